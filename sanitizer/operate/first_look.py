"""One look at upstream when it is first reached: is it LiteLLM, another server, or this gateway?

LiteLLM answers ``GET /health/liveliness`` to anyone. Cases, before the code:

* It is LiteLLM, or no answer comes in time, or the answer says that a LiteLLM behind it is away (5xx): all of this may
  be in order, and nothing is logged.
* It is this gateway, perhaps by a detour: the request comes back to it, and the answer is its own 508.
* Anything else is most likely a mistake, and is logged. The gateway serves all the same.
"""

import asyncio
import re
import ssl
from typing import Final
from urllib.parse import quote

from sanitizer.address import Address
from sanitizer.connecting import Connector
from sanitizer.errors import LoopDetected

TIMEOUT: Final = 10.0
"""Seconds for the whole look: LiteLLM may be busy with its own start."""
_LIMIT: Final = 64 * 1024
"""Bytes of the answer that are read."""
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?:\r|$)", re.IGNORECASE)
_TLS: Final = "if it speaks https, say so: --upstream https://..."
_ALIVE: Final = b"I'm alive!"


async def first_look(address: Address, tls: ssl.SSLContext | None, prefix: str) -> str | None:
    """Look at upstream once. Returns the fault that was found; None if there is none, or if it can't be found out.

    ``prefix`` is LiteLLM's root path.
    """
    path = f"{quote(prefix)}/health/liveliness"
    try:
        async with asyncio.timeout(TIMEOUT):
            answer = await _ask(address, tls, path)
    except (OSError, ValueError):  # TimeoutError is an OSError; ValueError: a name that IDNA can't encode
        return None
    return _judge(answer, path)


def _judge(answer: bytes, path: str) -> str | None:
    if not answer:
        return f"it closed the connection without an answer; {_TLS}"
    match = re.match(rb"HTTP/1\.[01] ([0-9]{3})", answer)
    if match is None:
        return f"it does not speak HTTP/1; {_TLS}"
    status = int(match[1])
    if status == LoopDetected.status and LoopDetected.kind.encode() in answer:
        return "it is the gateway itself, or leads back to it; --upstream has to name LiteLLM"
    if status >= 500 or (status == 200 and _ALIVE in answer):
        return None
    return f"it answers {status} to GET {path}, and not as LiteLLM does"


def _is_whole(answer: bytes) -> bool:
    """Whether no more has to be read. Not every server closes the connection when it is asked to."""
    head, end, content = answer.partition(b"\r\n\r\n")
    length = _LENGTH.search(head) if end else None
    return len(answer) >= _LIMIT or (length is not None and len(content) >= int(length[1]))


async def _ask(address: Address, tls: ssl.SSLContext | None, path: str) -> bytes:
    """The first bytes of the answer, from its head on."""
    reader = asyncio.StreamReader()
    transport = await Connector(address, tls, TIMEOUT).connect(lambda: asyncio.StreamReaderProtocol(reader))
    try:
        transport.write(f"GET {path} HTTP/1.1\r\nHost: {address.authority}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while not _is_whole(answer) and (data := await reader.read(_LIMIT)):
            answer += data
        return answer
    finally:
        transport.abort()

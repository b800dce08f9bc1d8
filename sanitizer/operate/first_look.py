"""Checks once, when upstream is first reached, that it is LiteLLM and not another server or this gateway.

LiteLLM answers ``GET /health/liveliness`` without a key. Cases, before the code:

* The response is LiteLLM's, or none arrives in time, or it is a 5xx, as a proxy sends while LiteLLM is down. The
  configuration may be correct, so nothing is logged.
* The response is the gateway's own 508: --upstream leads back to the gateway, perhaps through another proxy.
* Any other response is most likely due to a mistake. It is logged, and the gateway serves nevertheless.
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
"""Seconds for the whole exchange. LiteLLM may be slow because it has just started."""
_LIMIT: Final = 64 * 1024
"""Bytes after which no more of the response is read."""
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?:\r|$)", re.IGNORECASE)
_TLS_ADVICE: Final = "if it speaks https, say so: --upstream https://..."
_ALIVE: Final = b"I'm alive!"


async def first_look(address: Address, tls: ssl.SSLContext | None, prefix: str) -> str | None:
    """Send ``GET /health/liveliness`` under ``prefix``, LiteLLM's root path, and judge the response.

    Returns the fault of upstream, in words; None if it is LiteLLM, or if that can't be found out.
    """
    path = f"{quote(prefix)}/health/liveliness"
    try:
        async with asyncio.timeout(TIMEOUT):
            response = await _get(address, tls, path)
    except (OSError, ValueError):  # TimeoutError is an OSError; ValueError: a name that IDNA can't encode
        return None
    return _judge(response, path)


def _judge(response: bytes, path: str) -> str | None:
    if not response:
        return f"it closed the connection without an answer; {_TLS_ADVICE}"
    match = re.match(rb"HTTP/1\.[01] ([0-9]{3})", response)
    if match is None:
        return f"it does not speak HTTP/1; {_TLS_ADVICE}"
    status = int(match[1])
    if status == LoopDetected.status and LoopDetected.kind.encode() in response:
        return "it is the gateway itself, or leads back to it; --upstream has to name LiteLLM"
    if status >= 500 or (status == 200 and _ALIVE in response):
        return None
    return f"it answers {status} to GET {path}, and not as LiteLLM does"


def _is_complete(response: bytes) -> bool:
    """Whether no more has to be read. Not every server honours ``Connection: close``."""
    head, end, content = response.partition(b"\r\n\r\n")
    length = _LENGTH.search(head) if end else None
    return len(response) >= _LIMIT or (length is not None and len(content) >= int(length[1]))


async def _get(address: Address, tls: ssl.SSLContext | None, path: str) -> bytes:
    """The head of the response, and as much of its content as was read."""
    reader = asyncio.StreamReader()
    transport = await Connector(address, tls, TIMEOUT).connect(lambda: asyncio.StreamReaderProtocol(reader))
    try:
        transport.write(f"GET {path} HTTP/1.1\r\nHost: {address.authority}\r\nConnection: close\r\n\r\n".encode())
        response = b""
        while not _is_complete(response) and (data := await reader.read(_LIMIT)):
            response += data
        return response
    finally:
        transport.abort()

"""How long a message's content is, and when two parsers could disagree about it.

Facts enforced here (RFC 9112):

* 6.1: Transfer-Encoding is not for HTTP/1.0; a server answers codings that it does not know with an error. Only
  ``chunked``, once, is known here.
* 6.2, 6.3: Content-Length is digits; with Transfer-Encoding beside it, or with a second line, a request may be an
  attempt at smuggling. A server may reject it, and this one does.
* 6.3: a response to HEAD, and a 1xx, 204 or 304, has no content whatever its fields say; a response with neither
  field lasts until the connection closes.
* 7.1: a chunk is its size in hex, extensions, CRLF, that many octets, CRLF; a chunk of size 0 and trailers end the
  content. Extensions are for one hop (7.1.1) and go no further.
"""

import re
from enum import Enum
from typing import Final

from sanitizer.errors import BadRequest, UpstreamBroken
from sanitizer.relay.headers import Fields, Head


class Framing(Enum):
    """A content whose length is not known beforehand."""

    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


#: Length of a content in bytes, or how its end is found
Length = int | Framing

_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]+)?\r\n")
_TRAILERS: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+")
_FRAMING: Final = re.compile(rb"(?:content-length|transfer-encoding):", re.IGNORECASE)
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_OVERHEAD_LIMIT: Final = 64 * 1024


def _faulty(head: Head) -> str:
    """What is wrong with Content-Length and Transfer-Encoding; empty: nothing."""
    if head.faulty:
        return head.faulty
    if head.length is not None:
        if head.coding is not None:
            return "Content-Length beside Transfer-Encoding"
        if not _DIGITS.fullmatch(head.length):
            return "Content-Length is not a number"
    elif head.coding is not None and head.coding.lower() != b"chunked":
        return "Transfer-Encoding other than chunked"
    return ""


def request_length(head: Head, version: bytes = b"1.1") -> Length:
    """The length of a request's content; raises `BadRequest` where two parsers could disagree."""
    if wrong := _faulty(head):
        raise BadRequest(wrong)
    if head.length is not None:
        return int(head.length)
    if head.coding is None:
        return 0
    if version == b"1.0":
        raise BadRequest("Transfer-Encoding in HTTP/1.0")
    return Framing.CHUNKED


def response_length(method: bytes, status: int, head: Head) -> Length:
    """The length of a final response's content; raises `UpstreamBroken` where its framing is faulty."""
    if wrong := _faulty(head):
        raise UpstreamBroken(f"upstream's answer has {wrong}")
    if method == b"HEAD" or status == 204 or status == 304:
        return 0
    if head.length is not None:
        return int(head.length)
    return Framing.UNTIL_CLOSE if head.coding is None else Framing.CHUNKED


def check_fields(fields: Fields) -> None:
    """Raise `BadRequest` for a field line that a parser should not have let through: an ASGI server's, not ours."""
    for name, value in fields:
        if not name or b":" in name or _CONTROLS.search(name) or _CONTROLS.search(value):
            raise BadRequest("control character in a field")


class Malformed(ValueError):
    """Not the chunked coding."""


class Oversized(Malformed):
    """More than 64 KiB of chunk extensions or trailers."""


class ChunkedDecoder:
    """Takes the chunked coding off a content, octets as they come (RFC 9112 section 7.1).

    ``trailers``: the trailer lines, each with its CRLF, once the content is complete.
    """

    __slots__ = ("_held", "_in_trailers", "_left", "_overhead", "trailers")

    def __init__(self) -> None:
        self.trailers = b""
        self._held = b""  # of a line that is not complete
        self._left = 0  # octets of the current chunk still to come, its CRLF included
        self._in_trailers = False
        self._overhead = 0  # octets read since the last content

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """The content in ``data``, and what follows the content's end: None until then. Raises `Malformed`."""
        self._overhead += len(data)
        content, rest = self._feed(data)
        if content:
            self._overhead = 0
        elif rest is None and self._overhead > _OVERHEAD_LIMIT:
            raise Oversized("chunk extensions or trailers without end")
        return content, rest

    def _feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        if self._held:
            data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        at = 0
        while not self._in_trailers:
            if self._left:
                content = data[at : at + self._left - 2] if self._left > 2 else b""
                if content:
                    pieces.append(content)
                    at += len(content)
                    self._left -= len(content)
                if self._left <= 2:
                    crlf = data[at : at + self._left]
                    if not b"\r\n"[2 - self._left :].startswith(crlf):
                        raise Malformed("a chunk does not end with its size")
                    at += len(crlf)
                    self._left -= len(crlf)
                if self._left:
                    return b"".join(pieces), None
            match = _CHUNK_SIZE.match(data, at)
            if match is None:
                self._held = data[at:]
                if b"\n" in self._held:
                    raise Malformed("a chunk has no size")
                return b"".join(pieces), None
            at = match.end()
            size = int(match[1], 16)
            self._left = size + 2 if size else 0
            self._in_trailers = not size
        close = at
        if not data.startswith(b"\r\n", at):
            found = data.find(b"\r\n\r\n", at)
            if found < 0:
                self._held = data[at:]
                if _BARE_LF.search(self._held):
                    raise Malformed("the trailers are malformed")
                return b"".join(pieces), None
            close = found + 2
        self.trailers = data[at:close]
        lines = self.trailers.splitlines(keepends=True)
        if not _TRAILERS.fullmatch(self.trailers) or any(map(_FRAMING.match, lines)):
            raise Malformed("the trailers are malformed")
        return b"".join(pieces), data[close + 2 :]

"""The content of messages: its length, unless two parsers could disagree about that, its readers and its writers.

Facts enforced here (RFC 9112):

* 6.1: Transfer-Encoding is not for HTTP/1.0; a server answers codings that it does not know with an error. Only
  ``chunked``, once, is known here.
* 6.2, 6.3: Content-Length is digits; with Transfer-Encoding beside it, or with a second line, a request may be an
  attempt at smuggling. A server may reject it, and this one does.
* 6.3: a response to HEAD, and a 1xx, 204 or 304, has no content whatever its fields say; a response with neither
  field lasts until the connection closes.
* 7.1: a chunk is its size in hex, extensions, CRLF, that many octets, CRLF; a chunk of size 0 and trailers end the
  content. Extensions are for one hop (7.1.1) and go no further. Trailers must not frame (6.5.1 of RFC 9110).
"""

import re
from enum import Enum
from typing import Final

from sanitizer.errors import BadRequest, UpstreamBroken
from sanitizer.http1.heads import Head, Malformed, Oversized


class Framing(Enum):
    """A content whose length is not known beforehand."""

    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


# members read off the class are slow
CHUNKED: Final = Framing.CHUNKED
UNTIL_CLOSE: Final = Framing.UNTIL_CLOSE

Length = int | Framing
"""Length of a content in bytes, or how its end is found."""

_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]+)?\r\n")
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n")
_FRAMING: Final = re.compile(rb"(?:content-length|transfer-encoding):", re.IGNORECASE)
_OVERHEAD_LIMIT: Final = 64 * 1024


def request_length(head: Head, version: bytes = b"1.1") -> Length:
    """The length of a request's content; raises `BadRequest` where two parsers could disagree."""
    if head.fault:
        raise BadRequest(head.fault)
    if head.length is not None:
        return int(head.length)
    if head.coding is None:
        return 0
    if version == b"1.0":
        raise BadRequest("Transfer-Encoding in HTTP/1.0")
    return CHUNKED


def response_length(method: bytes, status: int, head: Head) -> Length:
    """The length of a final response's content; raises `UpstreamBroken` where its framing is faulty."""
    if head.fault:
        raise UpstreamBroken(head.fault)
    if method == b"HEAD" or status == 204 or status == 304:
        return 0
    if head.length is not None:
        return int(head.length)
    return UNTIL_CLOSE if head.coding is None else CHUNKED


class LengthReader:
    """Reads a content of ``length`` octets."""

    __slots__ = ("_remaining",)
    trailers = b""

    def __init__(self, length: int) -> None:
        self._remaining = length

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """The content in ``data``, and what follows the content's end: None until then."""
        remaining = self._remaining
        if len(data) < remaining:
            self._remaining = remaining - len(data)
            return data, None
        return data[:remaining], data[remaining:]


class UntilCloseReader:
    """Reads a content that the end of the connection ends."""

    __slots__ = ()
    trailers = b""

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """All of ``data``, and None: the content may go on."""
        return data, None


class ChunkedReader:
    """Reads a content in the chunked coding (RFC 9112 section 7.1).

    ``trailers``: the trailer lines, each with its CRLF, once the content is complete.
    """

    __slots__ = ("_held", "_in_trailers", "_lines", "_overhead", "_remaining", "trailers")

    def __init__(self) -> None:
        self.trailers = b""
        self._held: list[bytes] = []  # of a line that is not complete
        self._remaining = 0  # octets of the current chunk still to come, its CRLF included
        self._in_trailers = False
        self._lines: list[bytes] = []  # trailers so far
        self._overhead = 0  # octets read since the last content

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """The content in ``data``, and what follows the content's end: None until then.

        Raises `Malformed` or `Oversized`.
        """
        self._overhead += len(data)
        content, rest = self._feed(data)
        if content:
            self._overhead = 0
        elif rest is None and self._overhead > _OVERHEAD_LIMIT:
            raise Oversized("chunk extensions or trailers without end")
        return content, rest

    def _feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        pieces: list[bytes] = []
        at = 0
        while True:
            if self._remaining:
                at = self._read_chunk(data, at, pieces)
                if self._remaining:
                    return b"".join(pieces), None
            # a line is judged once, when it is whole: it may come octet by octet
            end = data.find(b"\n", at) + 1
            if not end:
                self._held.append(data[at:])
                return b"".join(pieces), None
            line = data[at:end]
            if self._held:
                line = b"".join([*self._held, line])
                self._held.clear()
            at = end
            if not self._in_trailers:
                match = _CHUNK_SIZE.fullmatch(line)
                if match is None:
                    raise Malformed("a chunk has no size")
                size = int(match[1], 16)
                self._remaining = size + 2 if size else 0
                self._in_trailers = not size
            elif line != b"\r\n":
                if not _TRAILER.fullmatch(line) or _FRAMING.match(line):
                    raise Malformed("the trailers are malformed")
                self._lines.append(line)
            else:
                self.trailers = b"".join(self._lines)
                return b"".join(pieces), data[at:]

    def _read_chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Read from ``at`` as much of the current chunk, and its CRLF, as there is. Returns where it ends."""
        if self._remaining > 2:
            content = data[at : at + self._remaining - 2]
            pieces.append(content)
            at += len(content)
            self._remaining -= len(content)
        crlf = data[at : at + self._remaining]  # nothing as long as content is missing
        if not b"\r\n"[-self._remaining :].startswith(crlf):
            raise Malformed("a chunk does not end with its size")
        self._remaining -= len(crlf)
        return at + len(crlf)


Reader = LengthReader | ChunkedReader | UntilCloseReader


def reader(length: Length) -> Reader:
    """A reader of a content of this length."""
    if isinstance(length, int):
        return LengthReader(length)
    return ChunkedReader() if length is CHUNKED else UntilCloseReader()


def encode_chunk(data: bytes) -> bytes:
    """``data`` as a chunk. No data gives no chunk, because an empty chunk would end the content."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def last_chunk(trailers: bytes = b"") -> bytes:
    """The end of a content in the chunked coding; ``trailers`` are lines, each with its CRLF."""
    return b"0\r\n%b\r\n" % trailers

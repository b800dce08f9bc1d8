"""The content of messages: how its length is determined, how it is read, and how it is written.

Facts enforced here (RFC 9112):

* 6.1: Transfer-Encoding is not defined for HTTP/1.0. A server responds with an error to a transfer coding that it does
  not understand. The only coding understood here is ``chunked``, applied once.
* 6.2, 6.3: Content-Length consists of digits. A request that also has Transfer-Encoding, or a second Content-Length,
  may be an attempt at request smuggling. A server may reject it, and this one does.
* 6.3: a response to HEAD, and a 1xx, 204 or 304 response, has no content, whatever its fields say. A response with
  neither field ends when the connection closes.
* 7.1: a chunk is its size in hex, extensions, CRLF, that many octets, CRLF. A chunk of size 0 and the trailers end the
  content. Extensions apply to one hop (7.1.1) and are not passed on. Trailers must not contain framing fields
  (RFC 9110 section 6.5.1).
"""

import re
from enum import Enum
from typing import Final

from sanitizer.errors import BadRequest, UpstreamBroken
from sanitizer.http1.heads import Head, Malformed, Oversized


class Framing(Enum):
    """How the end of content is found if its length is not known in advance."""

    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


# reading members off the enum class is slow
CHUNKED: Final = Framing.CHUNKED
UNTIL_CLOSE: Final = Framing.UNTIL_CLOSE

Length = int | Framing
"""The length of content in octets, or how its end is found."""

_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]+)?\r\n")
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n")
_FRAMING: Final = re.compile(rb"(?:content-length|transfer-encoding):", re.IGNORECASE)
_OVERHEAD_LIMIT: Final = 64 * 1024


def request_length(head: Head, version: bytes = b"1.1") -> Length:
    """Return the length of a request's content. Raises `BadRequest` if two parsers could disagree about it."""
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
    """Return the length of a final response's content. Raises `UpstreamBroken` if its framing is faulty."""
    if head.fault:
        raise UpstreamBroken(head.fault)
    if method == b"HEAD" or status == 204 or status == 304:
        return 0
    if head.length is not None:
        return int(head.length)
    return UNTIL_CLOSE if head.coding is None else CHUNKED


class LengthReader:
    """Reads content of ``length`` octets."""

    __slots__ = ("_remaining",)
    trailers = b""

    def __init__(self, length: int) -> None:
        self._remaining = length

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Return the content in ``data``, and the octets after its end, or None if the end is not reached."""
        remaining = self._remaining
        if len(data) < remaining:
            self._remaining = remaining - len(data)
            return data, None
        return data[:remaining], data[remaining:]


class UntilCloseReader:
    """Reads content that lasts until the connection closes."""

    __slots__ = ()
    trailers = b""

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Return ``data`` and None: more content may follow."""
        return data, None


class ChunkedReader:
    """Reads content in the chunked transfer coding (RFC 9112 section 7.1).

    ``trailers`` holds the trailer lines, each with its CRLF, once the content is complete.
    """

    __slots__ = ("_held", "_in_trailers", "_lines", "_overhead", "_remaining", "trailers")

    def __init__(self) -> None:
        self.trailers = b""
        self._held: list[bytes] = []  # pieces of an incomplete line
        self._remaining = 0  # octets of the current chunk not yet read, including its CRLF
        self._in_trailers = False
        self._lines: list[bytes] = []  # trailer lines read so far
        self._overhead = 0  # octets read since the last octet of content

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Return the content in ``data``, and the octets after its end, or None if the end is not reached.

        Raises `Malformed`, or `Oversized` for more than 64 KiB of extensions or trailers.
        """
        self._overhead += len(data)
        content, rest = self._feed(data)
        if content:
            self._overhead = 0
        elif rest is None and self._overhead > _OVERHEAD_LIMIT:
            raise Oversized("more than 64 KiB of chunk extensions or trailers")
        return content, rest

    def _feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        pieces: list[bytes] = []
        at = 0
        while True:
            if self._remaining:
                at = self._read_chunk(data, at, pieces)
                if self._remaining:
                    return b"".join(pieces), None
            # a line may arrive octet by octet, so it is matched only once, when it is complete
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
                    raise Malformed("a chunk has no valid size")
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
        """Read the part of the current chunk, and of its CRLF, that ``data`` has from ``at``. Returns where it ends."""
        if self._remaining > 2:
            content = data[at : at + self._remaining - 2]
            pieces.append(content)
            at += len(content)
            self._remaining -= len(content)
        crlf = data[at : at + self._remaining]  # empty while content is missing
        if not b"\r\n"[-self._remaining :].startswith(crlf):
            raise Malformed("a chunk is longer than its size")
        self._remaining -= len(crlf)
        return at + len(crlf)


Reader = LengthReader | ChunkedReader | UntilCloseReader


def reader(length: Length) -> Reader:
    """Return a reader for content of this length."""
    if isinstance(length, int):
        return LengthReader(length)
    return ChunkedReader() if length is CHUNKED else UntilCloseReader()


def encode_chunk(data: bytes) -> bytes:
    """Return ``data`` as a chunk, or nothing if ``data`` is empty, because an empty chunk would end the content."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def last_chunk(trailers: bytes = b"") -> bytes:
    """Return the last chunk and the trailer section. ``trailers`` are lines, each with its CRLF."""
    return b"0\r\n%b\r\n" % trailers

"""Taking heads and chunked content out of a stream of octets.

Facts enforced here (RFC 9112):

* 2.1: a head ends with an empty line.
* 7.1: a chunk is its size in hex, extensions, CRLF, that many octets, CRLF; a chunk of size 0 and trailers end the
  content. Extensions are for one hop (7.1.1) and go no further. Trailers must not frame (6.5.1 of RFC 9110).
"""

import re
from collections.abc import Callable
from typing import Final

import httptools

_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]+)?\r\n")
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n")
_FRAMING: Final = re.compile(rb"(?:content-length|transfer-encoding):", re.IGNORECASE)
_OVERHEAD_LIMIT: Final = 64 * 1024


class Malformed(ValueError):
    """A head that is not HTTP/1 or is faulty, or not the chunked coding."""


class Oversized(Malformed):
    """A head over its limit, or more than 64 KiB of chunk extensions or trailers."""


Judge = httptools.HttpRequestParser | httptools.HttpResponseParser


class HeadReader:
    """Finds where heads end, up to ``limit`` bytes of each, and lets ``parser`` judge them: llhttp, without callbacks.

    A head that passes has lines that end with CRLF, and no other CR, LF or control character; no folded line; nothing
    between a field's name and its colon.
    """

    __slots__ = ("_held", "_judge", "_limit", "_parser")

    def __init__(self, parser: Callable[[None], Judge], limit: int) -> None:
        self._parser = parser
        self._limit = limit
        self._held = b""  # of a head that is not complete
        self._judge: Judge | None = None

    @property
    def begun(self) -> bool:
        """Whether some of a head has been read, but not all."""
        return self._judge is not None

    @property
    def held(self) -> bytes:
        """What has come of a head that is not complete, or that has been refused."""
        return self._held

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """A head with its empty line, and what follows it; None until it is complete.

        Raises `Malformed` or `Oversized`.
        """
        held = self._held
        octets = held + data if held else data
        end = octets.find(b"\r\n\r\n", max(len(held) - 3, 0)) + 4
        complete = end > 3
        head = octets[:end] if complete else octets
        judge = self._judge or self._parser(None)
        try:
            judge.feed_data(head[len(held) :])
        except httptools.HttpParserUpgrade:
            pass  # a wish that others judge
        except httptools.HttpParserError as error:
            self._held = octets
            reason = str(error)
            raise Malformed("not HTTP/1" if reason.startswith("Expected HTTP/") else reason) from None
        if len(head) > self._limit:
            self._held = octets
            raise Oversized("the head is too large")
        if complete:
            self._judge, self._held = None, b""
            return head, octets[end:]
        self._judge, self._held = judge, head
        return None


class ChunkedDecoder:
    """Takes the chunked coding off a content, octets as they come (RFC 9112 section 7.1).

    ``trailers``: the trailer lines, each with its CRLF, once the content is complete.
    """

    __slots__ = ("_held", "_in_trailers", "_left", "_lines", "_overhead", "trailers")

    def __init__(self) -> None:
        self.trailers = b""
        self._held: list[bytes] = []  # of a line that is not complete
        self._left = 0  # octets of the current chunk still to come, its CRLF included
        self._in_trailers = False
        self._lines: list[bytes] = []  # trailers so far
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
        pieces: list[bytes] = []
        at = 0
        while True:
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
            # a line is judged once, when it is whole: it may come octet by octet
            end = data.find(b"\n", at) + 1
            if not end:
                if at < len(data):
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
                self._left = size + 2 if size else 0
                self._in_trailers = not size
            elif line != b"\r\n":
                if not _TRAILER.fullmatch(line) or _FRAMING.match(line):
                    raise Malformed("the trailers are malformed")
                self._lines.append(line)
            else:
                self.trailers = b"".join(self._lines)
                return b"".join(pieces), data[at:]

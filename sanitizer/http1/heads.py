"""Message heads: finding where they end, judging, reading and writing them.

A head is handled as the octets that came: a start line and field lines, each with its CRLF. The empty line that ends a
head is not part of it here. It is written when the head is sent, so that lines can be added until then.

Facts enforced here:

* RFC 9112 section 2.1: a head ends with an empty line.
* RFC 9110 section 7.6.1: Connection, and every field that it names, belongs to one hop; so do Keep-Alive,
  Proxy-Connection, TE, Transfer-Encoding and Upgrade, named or not. All other field lines pass, octet by octet and in
  order.

A sender could name a field in Connection that the next hop must see whole (Host, the framing, where the request came
from). Those in `_NEVER_NAMED` are kept all the same.

Once a parser has found nothing wrong with a head, every line ends with CRLF and holds no other CR or LF, and no line
continues another. So only the few fields that matter are looked for. What is passed on is never taken apart and put
together again.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Final, TypeAlias

import httptools

from sanitizer.errors import BadRequest

Fields = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
"""Fields that an intermediary never passes on, in lower case."""
_NEVER_NAMED: Final = frozenset(
    (b"host", b"content-length", b"via", b"date", b"set-cookie", b"forwarded", b"x-real-ip")
)
_NO_FIELDS: Final = frozenset((b"close", b"keep-alive"))  # connection options that name no field
_BOTH: Final = "Content-Length beside Transfer-Encoding"
MAX_DIGITS: Final = 18
"""The most digits that a Content-Length may have. No content is that long, and the number fits in 64 bits."""
_CONTROLS: Final = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])


def field_lines(names: Iterable[bytes]) -> re.Pattern[bytes]:
    """A pattern for the lines of these fields, each with the CRLF before it. Its groups are name and value."""
    return re.compile(rb"\r\n(" + b"|".join(names) + rb"):[ \t]*([^\r]*)", re.IGNORECASE)


_FRAMING: Final = field_lines((*HOP_BY_HOP, b"content-length"))
_HOP_BY_HOP_LINES: Final = field_lines(HOP_BY_HOP)
_ORIGIN: Final = field_lines((b"origin",))


class Malformed(ValueError):
    """Octets that are not HTTP/1, or are faulty."""


class Oversized(Malformed):
    """A head over its limit, or more than 64 KiB of chunk extensions or trailers."""


Judge: TypeAlias = httptools.HttpRequestParser | httptools.HttpResponseParser


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
    def held(self) -> bytes:
        """What has come of a head that is not complete, or that has been refused."""
        return self._held

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """A head, and what follows its empty line; None until it is complete. Raises `Malformed` or `Oversized`."""
        held = self._held
        octets = held + data if held else data
        end = octets.find(b"\r\n\r\n", len(held) - 3 if len(held) > 3 else 0) + 4
        complete = end > 3
        head = octets[:end] if complete else octets
        judge = self._judge or self._parser(None)
        try:
            judge.feed_data(head[len(held) :] if held else head)
        except httptools.HttpParserUpgrade:
            pass  # others judge whether the connection is upgraded
        except httptools.HttpParserError as error:
            self._held = octets
            reason = str(error)
            raise Malformed("not HTTP/1" if reason.startswith("Expected HTTP/") else reason) from None
        if len(head) > self._limit:
            self._held = octets
            raise Oversized("the head is too large")
        if complete:
            self._judge, self._held = None, b""
            return head[:-2], octets[end:]
        self._judge, self._held = judge, head
        return None


class Head:
    """What a head says to an intermediary.

    ``octets``: the head without the lines that are not passed on. ``connection``: the connection options, in lower
    case. ``length``, ``coding`` and ``upgrade``: the values of Content-Length, Transfer-Encoding and Upgrade, None
    where there is none. ``fault``: what is wrong with the framing; empty for nothing.

    The rest is found in requests alone. ``host``: the value of Host, of which there are ``hosts``. ``has_origin``:
    whether there is an Origin.
    """

    octets: bytes
    length: bytes | None = None
    coding: bytes | None = None
    upgrade: bytes | None = None
    fault: str = ""
    host: bytes | None = None
    hosts: int = 0
    has_origin: bool = False

    def __init__(self) -> None:
        self.connection: list[bytes] = []

    def read_length(self, value: bytes) -> None:
        """Read the value of a Content-Length line."""
        if self.length is not None:
            self.fault = "more than one Content-Length"
        self.length = length = value.rstrip(b" \t")
        if not length.isdigit() or len(length) > MAX_DIGITS:
            self.fault = "Content-Length is not a number"
        elif self.coding is not None:
            self.fault = _BOTH

    def read_hop_by_hop(self, name: bytes, value: bytes) -> None:
        """Read a line of one of `HOP_BY_HOP`."""
        if name == b"connection":
            self.connection += [option for part in value.split(b",") if (option := part.strip(b" \t").lower())]
        elif name == b"transfer-encoding":
            if self.coding is not None:
                self.fault = "more than one Transfer-Encoding"
            self.coding = value.rstrip(b" \t")
            if self.coding.lower() != b"chunked":
                self.fault = "Transfer-Encoding other than chunked"
            elif self.length is not None:
                self.fault = _BOTH
        elif name == b"upgrade":
            value = value.rstrip(b" \t")
            self.upgrade = value if self.upgrade is None else self.upgrade + b", " + value

    def drop(self, octets: bytes, lines: re.Pattern[bytes]) -> None:
        """Set `octets` to these, without ``lines`` and without the lines that Connection names."""
        self.octets = lines.sub(b"", octets)
        named = {name for name in self.connection if name not in _NEVER_NAMED and not name.startswith(b"x-forwarded-")}
        named -= _NO_FIELDS
        if named:
            self.octets = _without(self.octets, named)


def read_response_head(octets: bytes) -> Head:
    """Read the head of a response, of which only the framing and the hop-by-hop fields matter."""
    head = Head()
    drop = False
    for name, value in _FRAMING.findall(octets):
        name = name.lower()
        if name == b"content-length":
            head.read_length(value)
        else:
            drop = True
            head.read_hop_by_hop(name, value)
    if drop:
        head.drop(octets, _HOP_BY_HOP_LINES)
    else:
        head.octets = octets
    return head


def head_fields(head: bytes) -> Fields:
    """The field lines of a head as pairs, without the white space around values."""
    lines = head.split(b"\r\n")[1:-1]
    return [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]


def encode_head(start_line: bytes, fields: Fields) -> bytes:
    """A head of this start line and these field lines (RFC 9112 section 2.1)."""
    return start_line + b"\r\n" + b"".join([b": ".join(line) + b"\r\n" for line in fields])


def checked_head(start_line: bytes, fields: Fields) -> bytes:
    """A request's head, as `encode_head` makes it.

    Raises `BadRequest` for what a parser should not have let through: an ASGI server's, not ours.
    """
    head = encode_head(start_line, fields)
    # each line has two control characters, its CRLF
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(fields) + 2:
        raise BadRequest("control character in a head")
    for name, _ in fields:
        if not name or b":" in name:
            raise BadRequest("malformed field name")
    return head


def has_origin(octets: bytes) -> bool:
    """Whether a head that may not be whole has an Origin: then a page's script has sent the request."""
    return _ORIGIN.search(octets) is not None


def with_field(head: bytes, name: bytes, value: bytes | None) -> bytes:
    """``head`` with this value in the field ``name`` and no other; None: without that field."""
    if name in head.lower():
        head = _without(head, (name,))
    return head if value is None else b"%b%b: %b\r\n" % (head, name, value)


def _without(octets: bytes, names: Collection[bytes]) -> bytes:
    start, *lines = octets.split(b"\r\n")
    return b"\r\n".join([start, *(line for line in lines if line.partition(b":")[0].lower() not in names)])

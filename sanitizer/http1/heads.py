"""Message heads: how their end is found, and how they are validated, read and written.

A head is handled as the octets that were received: a start line and field lines, each with its CRLF. The empty line
that ends a head is left out, so that field lines can be appended. It is written when the head is sent.

Facts enforced here:

* RFC 9112 section 2.1: a head ends with an empty line.
* RFC 9110 section 7.6.1: Connection, and every field that it names, is hop-by-hop. So are Keep-Alive,
  Proxy-Connection, TE, Transfer-Encoding and Upgrade, whether it names them or not. All other field lines are passed
  on, octet by octet and in order.

A sender could name in Connection a field that the next hop needs: Host, a framing field or a forwarding field. Those in
`_NEVER_NAMED` are passed on nevertheless.

Once llhttp has accepted a head, every line ends with CRLF and has no other CR or LF, and no line is folded. Regular
expressions can therefore find the few fields that matter, and the rest is passed on without being parsed and
serialized again.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Final, TypeAlias

import httptools

from sanitizer.errors import BadRequest

Fields = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
"""The fields that an intermediary never passes on, in lower case."""
_NEVER_NAMED: Final = frozenset(
    (b"host", b"content-length", b"via", b"date", b"set-cookie", b"forwarded", b"x-real-ip")
)
_NO_FIELDS: Final = frozenset((b"close", b"keep-alive"))  # connection options that name no field
_BOTH_LENGTHS: Final = "Content-Length beside Transfer-Encoding"
MAX_DIGITS: Final = 18
"""The limit for the digits of a Content-Length: such a number fits in 64 bits, and no content is longer."""
_CONTROLS: Final = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])


def field_lines(names: Iterable[bytes]) -> re.Pattern[bytes]:
    """Return a pattern for the lines of these fields, with the CRLF before each. Its groups are the name and value."""
    return re.compile(rb"\r\n(" + b"|".join(names) + rb"):[ \t]*([^\r]*)", re.IGNORECASE)


_FRAMING: Final = field_lines((*HOP_BY_HOP, b"content-length"))
_HOP_BY_HOP_LINES: Final = field_lines(HOP_BY_HOP)
_ORIGIN: Final = field_lines((b"origin",))


class Malformed(ValueError):
    """The octets are not valid HTTP/1."""


class Oversized(Malformed):
    """A head is larger than its limit, or there are more than 64 KiB of chunk extensions or trailers."""


Parser: TypeAlias = httptools.HttpRequestParser | httptools.HttpResponseParser


class HeadReader:
    """Finds the end of heads of up to ``limit`` octets, and validates them with llhttp.

    ``make_parser`` is one of httptools' parser classes. It is called with None, because no callbacks are needed. In a
    head that passes, each line ends with CRLF and has no other CR, LF or control character, no line is folded, and
    nothing stands between a field's name and its colon.
    """

    __slots__ = ("_held", "_limit", "_make_parser", "_parser")

    def __init__(self, make_parser: Callable[[None], Parser], limit: int) -> None:
        self._make_parser = make_parser
        self._limit = limit
        self._held = b""
        self._parser: Parser | None = None  # None between two heads

    @property
    def held(self) -> bytes:
        """The octets received so far of a head that is incomplete, or that was rejected."""
        return self._held

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return a head, and the octets after its empty line, or None until the head is complete.

        Raises `Malformed` or `Oversized`.
        """
        held = self._held
        octets = held + data if held else data
        end = octets.find(b"\r\n\r\n", len(held) - 3 if len(held) > 3 else 0) + 4
        complete = end > 3
        head = octets[:end] if complete else octets
        parser = self._parser or self._make_parser(None)
        try:
            parser.feed_data(head[len(held) :] if held else head)
        except httptools.HttpParserUpgrade:
            pass  # the caller decides whether the connection is upgraded
        except httptools.HttpParserError as error:
            self._held = octets
            reason = str(error)
            raise Malformed("not HTTP/1" if reason.startswith("Expected HTTP/") else reason) from None
        if len(head) > self._limit:
            self._held = octets
            raise Oversized("the head is too large")
        if complete:
            self._parser, self._held = None, b""
            return head[:-2], octets[end:]
        self._parser, self._held = parser, head
        return None


class Head:
    """The parts of a head that matter to an intermediary.

    ``octets`` is the head without the lines that are not passed on. ``connection`` has the connection options, in lower
    case. ``length``, ``coding`` and ``upgrade`` are the values of Content-Length, Transfer-Encoding and Upgrade, each
    None if the field is missing. ``fault`` says what is wrong with the framing, and is empty if nothing is.

    The others are set for requests only. ``host`` is the value of the last Host line, and ``host_count`` the number of
    Host lines. ``has_origin`` says whether there is an Origin field.
    """

    octets: bytes
    length: bytes | None = None
    coding: bytes | None = None
    upgrade: bytes | None = None
    fault: str = ""
    host: bytes | None = None
    host_count: int = 0
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
            self.fault = _BOTH_LENGTHS

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
                self.fault = _BOTH_LENGTHS
        elif name == b"upgrade":
            value = value.rstrip(b" \t")
            self.upgrade = value if self.upgrade is None else self.upgrade + b", " + value

    def drop(self, octets: bytes, lines: re.Pattern[bytes]) -> None:
        """Set `octets` to ``octets`` without the lines that match ``lines`` and those that Connection names."""
        self.octets = lines.sub(b"", octets)
        named = {name for name in self.connection if name not in _NEVER_NAMED and not name.startswith(b"x-forwarded-")}
        named -= _NO_FIELDS
        if named:
            self.octets = _without(self.octets, named)


def read_response_head(octets: bytes) -> Head:
    """Read the framing and the hop-by-hop fields of a response head."""
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
    """Return the field lines of a head as pairs of name and value, without the whitespace around values."""
    lines = head.split(b"\r\n")[1:-1]
    return [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]


def encode_head(start_line: bytes, fields: Fields) -> bytes:
    """Return a head with this start line and these field lines (RFC 9112 section 2.1)."""
    return start_line + b"\r\n" + b"".join([b": ".join(line) + b"\r\n" for line in fields])


def checked_head(start_line: bytes, fields: Fields) -> bytes:
    """Return a request head as `encode_head` does, after checking parts that an ASGI server has parsed.

    Raises `BadRequest` for a control character or a field name that the server's parser should have rejected.
    """
    head = encode_head(start_line, fields)
    # the only control characters are the CRLF of each line
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(fields) + 2:
        raise BadRequest("control character in a head")
    for name, _ in fields:
        if not name or b":" in name:
            raise BadRequest("malformed field name")
    return head


def has_origin(octets: bytes) -> bool:
    """Whether a request head, complete or not, has an Origin field: then a script on a web page sent the request."""
    return _ORIGIN.search(octets) is not None


def with_field(head: bytes, name: bytes, value: bytes | None) -> bytes:
    """Return ``head`` with ``value`` as the only value of a field, or without the field if ``value`` is None.

    ``name`` is the field's name in lower case.
    """
    if name in head.lower():
        head = _without(head, (name,))
    return head if value is None else b"%b%b: %b\r\n" % (head, name, value)


def _without(octets: bytes, names: Collection[bytes]) -> bytes:
    start, *lines = octets.split(b"\r\n")
    return b"\r\n".join([start, *(line for line in lines if line.partition(b":")[0].lower() not in names)])

"""Message heads: finding them in a stream of octets, validating, reading and writing them."""

import httptools
import pytest

from sanitizer.errors import BadRequest
from sanitizer.http1.heads import (
    Fields,
    HeadReader,
    Malformed,
    Oversized,
    checked_head,
    encode_head,
    has_origin,
    head_fields,
    read_response_head,
    with_field,
)

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n"


def reader(limit: int = 100) -> HeadReader:
    return HeadReader(httptools.HttpRequestParser, limit)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
def test_head(step: int) -> None:
    """A head is found in pieces of any size, and the octets after it are returned. The next head is found likewise."""
    heads = reader()
    octets = HEAD + b"rest"
    for _ in range(2):
        found = None
        at = 0
        while found is None:
            found = heads.feed(octets[at : at + step])
            at += step
        head, rest = found
        assert head + b"\r\n" == HEAD
        assert b"rest".startswith(rest)


@pytest.mark.parametrize("step", [1, 100])
@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(octets, id=repr(octets))
        for octets in (
            HEAD.replace(b"\r\n", b"\n"),
            HEAD.replace(b"X:", b"X :"),
            HEAD.replace(b"X:", b" X:"),
            HEAD.replace(b"X:", b"X"),
            HEAD.replace(b"X:", b"X: \x00"),
            HEAD.replace(b"X:", b"X: a\rb"),
            HEAD.replace(b"X:", b"X: a\r\n b"),
            HEAD.replace(b"X:", b"X: a\nb:"),
            HEAD.replace(b"X:", b"\x80:"),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        )
    ],
)
def test_faulty_head(octets: bytes, step: int) -> None:
    """A head that two parsers could divide into lines differently, or read differently, is refused."""
    with pytest.raises(Malformed):
        read_in_pieces(reader(), octets, step)


@pytest.mark.parametrize("step", [1, 1000])
def test_large_head(step: int) -> None:
    """A head that is an octet over the limit is refused, whether it is received at once or octet by octet."""
    octets = HEAD.replace(b"X:", b"X: " + b"x" * (101 - len(HEAD)))
    assert len(octets) == 102
    with pytest.raises(Oversized):
        read_in_pieces(reader(101), octets, step)
    read_in_pieces(reader(102), octets, step)


def test_held() -> None:
    """`held` has the octets of an incomplete or malformed head, and none after a complete one."""
    heads = reader()
    heads.feed(b"GET / HT")
    assert heads.held == b"GET / HT"
    heads.feed(HEAD[8:] + b"rest")
    assert heads.held == b""
    with pytest.raises(Malformed):
        heads.feed(b"\x16\x03\x01")
    assert heads.held == b"\x16\x03\x01"


@pytest.mark.parametrize(
    ("octets", "found"),
    [
        pytest.param(b"GET / HTTP/1.1\r\noRIGIN: https://a", True, id="an incomplete head"),
        pytest.param(b"GET / HTTP/1.1\r\nX-Origin: a\r\nA: Origin: b\r\n", False, id="not at a line's start"),
    ],
)
def test_has_origin(octets: bytes, found: bool) -> None:
    """An Origin is found even in an incomplete head, and only at the start of a line."""
    assert has_origin(octets) is found


def test_upgrade() -> None:
    """A head with Upgrade is found like any other."""
    head = HEAD.replace(b"X:", b"Connection: upgrade\r\nUpgrade: x")
    assert reader().feed(head + b"rest") == (head[:-2], b"rest")


def read_in_pieces(heads: HeadReader, octets: bytes, step: int) -> None:
    for at in range(0, len(octets), step):
        heads.feed(octets[at : at + step])


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        pytest.param(
            [(b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")], [(b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")], id="cookies"
        ),
        pytest.param([(b"Connection", b"X-A"), (b"X-A", b"1"), (b"Keep-Alive", b"timeout=5")], [], id="hop-by-hop"),
        pytest.param(
            [(b"Connection", b"Set-Cookie"), (b"Set-Cookie", b"a")], [(b"Set-Cookie", b"a")], id="cookie-is-kept"
        ),
        pytest.param(
            [(b"Via", b"1.1 x"), (b"Server", b"uvicorn")], [(b"Via", b"1.1 x"), (b"Server", b"uvicorn")], id="via"
        ),
    ],
)
def test_response_fields(fields: Fields, passed: Fields) -> None:
    """The end-to-end fields of a response are relayed, and no field is added."""
    assert head_fields(read_response_head(encode_head(b"HTTP/1.1 200 OK", fields)).octets) == passed


def test_head_fields() -> None:
    """`head_fields` returns pairs of name and value, without the white space around values (RFC 9112 section 5.1)."""
    octets = b"HTTP/1.1 200 OK\r\nA: \t1 2\t \r\nb:\r\nC:x:y\r\n"
    assert head_fields(octets) == [(b"A", b"1 2"), (b"b", b""), (b"C", b"x:y")]


def test_encode_head() -> None:
    """An encoded head has the start line and the field lines, but not the empty line that ends a head."""
    assert encode_head(b"GET / HTTP/1.1", [(b"a", b"1"), (b"B", b"")]) == b"GET / HTTP/1.1\r\na: 1\r\nB: \r\n"


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        pytest.param([(b"A", b"x")], [], id="none"),
        pytest.param([(b"Connection", b" x ,,Close"), (b"cONNECTION", b"z\t")], [b"x", b"close", b"z"], id="several"),
    ],
)
def test_connection_options(fields: Fields, options: list[bytes]) -> None:
    """RFC 9110 section 5.6.1: a list may have several lines, empty members and optional white space, in any case."""
    assert list(read_response_head(encode_head(b"GET / HTTP/1.1", fields)).connection) == options


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"HTTP/1.1 200 Fine:  really\r\nA:1\r\nb :x\r\nC:\t 2 \t\r\n", id="response"),
        pytest.param(b"GET /a?b HTTP/1.1\r\nhOsT:x\r\nX-Te: connection: close\r\nA: \xe9\r\n", id="request"),
    ],
)
def test_octets_pass(octets: bytes) -> None:
    """A head without hop-by-hop fields is returned unchanged, with its spelling and white space."""
    assert read_response_head(octets).octets == octets


@pytest.mark.parametrize(
    "line",
    [
        pytest.param((b"X", b"a\x00"), id="nul"),
        pytest.param((b"X", b"a\rb"), id="bare-cr"),
        pytest.param((b"X\n", b"a"), id="lf-in-name"),
        pytest.param((b"", b"b"), id="no-name"),
        pytest.param((b"X:", b"a"), id="colon-in-name"),
    ],
)
def test_control_characters(line: tuple[bytes, bytes]) -> None:
    """RFC 9110 section 5.5: a field that would end its line, or has an invalid name, is refused."""
    with pytest.raises(BadRequest):
        checked_head(b"GET / HTTP/1.1", [(b"Host", b"a"), line, (b"Accept", b"*/*")])


def test_no_control_characters() -> None:
    """A tab and octets above 127 are accepted in a value."""
    fields = [(b"X", b"a\tb\xe9"), (b"Y", b"")]
    assert checked_head(b"GET / HTTP/1.1", fields) == b"GET / HTTP/1.1\r\nX: a\tb\xe9\r\nY: \r\n"


@pytest.mark.parametrize("target", [b"/a\r\nX: y", b"/a\n", b"/\x00"])
def test_control_characters_in_a_target(target: bytes) -> None:
    """A target with a control character is refused."""
    with pytest.raises(BadRequest):
        checked_head(b"GET %b HTTP/1.1" % target, [(b"Host", b"a")])


@pytest.mark.parametrize(
    ("value", "head"),
    [
        pytest.param(b"new", b"HTTP/1.1 200 OK\r\nA: x-b: 1\r\nx-b: new\r\n", id="set"),
        pytest.param(None, b"HTTP/1.1 200 OK\r\nA: x-b: 1\r\n", id="removed"),
    ],
)
def test_with_field(value: bytes | None, head: bytes) -> None:
    """`with_field` leaves one line of a field, or none, and keeps all other lines."""
    before = b"HTTP/1.1 200 OK\r\nX-B: 1\r\nA: x-b: 1\r\nx-b: 2\r\n"
    assert with_field(before, b"x-b", value) == head
    assert with_field(b"HTTP/1.1 200 OK\r\nA: x-b: 1\r\n", b"x-b", value) == head

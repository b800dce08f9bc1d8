"""Where a message's content ends, and what is refused because two parsers could disagree."""

import pytest

from sanitizer.errors import BadRequest, UpstreamBroken
from sanitizer.relay.framing import Framing, Length, checked_head, request_length, response_length
from sanitizer.relay.headers import Fields, Head, encode_head, read_head


def head(fields: Fields) -> Head:
    return read_head(encode_head(b"GET / HTTP/1.1", fields))


LENGTH, CODING = b"Content-Length", b"Transfer-Encoding"


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        pytest.param([], 0, id="none"),
        pytest.param([(LENGTH, b"0")], 0, id="zero"),
        pytest.param([(b"content-length", b"017")], 17, id="leading-zero"),
        pytest.param([(CODING, b"CHUNKED")], Framing.CHUNKED, id="chunked"),
    ],
)
def test_request_length(fields: Fields, length: Length) -> None:
    """RFC 9112 section 6.3: a request's content is as long as its fields say, or empty."""
    assert request_length(head(fields)) == length


FAULTY = [
    pytest.param([(LENGTH, value)], id=f"length-{value!r}")
    for value in (b"", b"-1", b"+1", b"0x1", b"1,1", b"1 1", b"1e1", b"\xb2", b"1" * 19)
] + [
    pytest.param([(LENGTH, b"1"), (LENGTH, b"1")], id="two-lengths"),
    pytest.param([(LENGTH, b"1"), (CODING, b"chunked")], id="both"),
    pytest.param([(CODING, b"chunked"), (LENGTH, b"1")], id="both-reversed"),
    pytest.param([(CODING, b"chunked"), (CODING, b"chunked")], id="two-codings"),
    pytest.param([(CODING, b"gzip, chunked")], id="gzip-chunked"),
    pytest.param([(CODING, b"identity")], id="identity"),
    pytest.param([(CODING, b"xchunked")], id="xchunked"),
    pytest.param([(CODING, b"chunked\x0b")], id="vertical-tab"),
]


@pytest.mark.parametrize("fields", FAULTY)
def test_faulty_framing(fields: Fields) -> None:
    """What two parsers could read differently is refused, from either side."""
    with pytest.raises(BadRequest):
        request_length(head(fields))
    with pytest.raises(UpstreamBroken):
        response_length(b"GET", 200, head(fields))


def test_coding_is_not_for_http_1_0() -> None:
    """RFC 9112 section 6.1."""
    with pytest.raises(BadRequest):
        request_length(head([(CODING, b"chunked")]), b"1.0")


@pytest.mark.parametrize(
    ("method", "status", "fields", "length"),
    [
        pytest.param(b"GET", 200, [], Framing.UNTIL_CLOSE, id="until-close"),
        pytest.param(b"GET", 200, [(LENGTH, b"3")], 3, id="length"),
        pytest.param(b"GET", 200, [(CODING, b"chunked")], Framing.CHUNKED, id="chunked"),
        pytest.param(b"HEAD", 200, [(LENGTH, b"3")], 0, id="head"),
        pytest.param(b"GET", 204, [(LENGTH, b"3")], 0, id="204"),
        pytest.param(b"GET", 304, [(LENGTH, b"3")], 0, id="304"),
    ],
)
def test_response_length(method: bytes, status: int, fields: Fields, length: Length) -> None:
    """RFC 9112 section 6.3: some responses have no content whatever their fields say."""
    assert response_length(method, status, head(fields)) == length


@pytest.mark.parametrize(
    "line",
    [
        pytest.param((b"X", b"a\x00"), id="nul"),
        pytest.param((b"X", b"a\rb"), id="bare-cr"),
        pytest.param((b"X\n", b"a"), id="in-name"),
        pytest.param((b"", b"b"), id="no-name"),
    ],
)
def test_control_characters(line: tuple[bytes, bytes]) -> None:
    """RFC 9110 section 5.5: nothing can end a line, whatever an ASGI server lets through."""
    with pytest.raises(BadRequest):
        checked_head(b"GET / HTTP/1.1", [(b"Host", b"a"), line, (b"Accept", b"*/*")])


def test_no_control_characters() -> None:
    """A tab and octets over 127 are none."""
    fields = [(b"X", b"a\tb\xe9"), (b"Y", b"")]
    assert checked_head(b"GET / HTTP/1.1", fields) == b"GET / HTTP/1.1\r\nX: a\tb\xe9\r\nY: \r\n\r\n"


@pytest.mark.parametrize("target", [b"/a\r\nX: y", b"/a\n", b"/\x00"])
def test_control_characters_in_a_target(target: bytes) -> None:
    """Nor can a target end the request line."""
    with pytest.raises(BadRequest):
        checked_head(b"GET %b HTTP/1.1" % target, [(b"Host", b"a")])

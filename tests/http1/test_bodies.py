"""Content: its length, the framing that is refused because two parsers could disagree, and reading and writing it."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanitizer.errors import BadRequest, UpstreamBroken
from sanitizer.http1.bodies import (
    ChunkedReader,
    Framing,
    Length,
    encode_chunk,
    last_chunk,
    reader,
    request_length,
    response_length,
)
from sanitizer.http1.heads import Fields, Head, Malformed, Oversized, encode_head, read_response_head


def head(fields: Fields) -> Head:
    return read_response_head(encode_head(b"GET / HTTP/1.1", fields))


LENGTH, CODING = b"Content-Length", b"Transfer-Encoding"


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        pytest.param([], 0, id="none"),
        pytest.param([(LENGTH, b"0")], 0, id="zero"),
        pytest.param([(b"content-length", b"017")], 17, id="leading-zero"),
        pytest.param([(LENGTH, b"17 \t")], 17, id="white space after a length"),
        pytest.param([(CODING, b"CHUNKED")], Framing.CHUNKED, id="chunked"),
        pytest.param([(CODING, b"chunked \t")], Framing.CHUNKED, id="white space after a coding"),
    ],
)
def test_request_length(fields: Fields, length: Length) -> None:
    """RFC 9112 section 6.3: the fields of a request determine the length of its content, which is 0 without any."""
    assert request_length(head(fields)) == length


FAULTY = [
    pytest.param([(LENGTH, value)], id=f"length-{value!r}")
    for value in (b"", b"-1", b"+1", b"0x1", b"1,1", b"1 1", b"1e1", b"\xb2", b"1" * 19)
] + [
    pytest.param([(LENGTH, b"1"), (LENGTH, b"1")], id="two-lengths"),
    pytest.param([(LENGTH, b"1"), (CODING, b"chunked")], id="length-and-coding"),
    pytest.param([(CODING, b"chunked"), (LENGTH, b"1")], id="coding-and-length"),
    pytest.param([(CODING, b"chunked"), (CODING, b"chunked")], id="two-codings"),
    pytest.param([(CODING, b"gzip, chunked")], id="gzip-chunked"),
    pytest.param([(CODING, b"identity")], id="identity"),
    pytest.param([(CODING, b"xchunked")], id="xchunked"),
    pytest.param([(CODING, b"chunked\x0b")], id="vertical-tab"),
]


@pytest.mark.parametrize("fields", FAULTY)
def test_faulty_framing(fields: Fields) -> None:
    """Framing that two parsers could read differently is refused in requests and in responses."""
    with pytest.raises(BadRequest):
        request_length(head(fields))
    with pytest.raises(UpstreamBroken):
        response_length(b"GET", 200, head(fields))


def test_coding_is_not_for_http_1_0() -> None:
    """RFC 9112 section 6.1: an HTTP/1.0 request with Transfer-Encoding is refused."""
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
    """RFC 9112 section 6.3: the length of a response's content depends on method, status and fields."""
    assert response_length(method, status, head(fields)) == length


@given(st.lists(st.binary(max_size=20), max_size=5), st.integers(1, 30))
def test_what_is_written_is_read(pieces: list[bytes], step: int) -> None:
    """Encoded chunks and trailers are decoded to the same content and trailers, in pieces of any size."""
    octets = b"".join(map(encode_chunk, pieces)) + last_chunk(b"A: b\r\n")
    body = reader(Framing.CHUNKED)
    content = b""
    rest: bytes | None = None
    for at in range(0, len(octets), step):
        assert rest is None
        piece, rest = body.feed(octets[at : at + step])
        content += piece
    assert (content, rest, body.trailers) == (b"".join(pieces), b"", b"A: b\r\n")


@given(st.integers(0, 40), st.integers(1, 50))
def test_length(length: int, step: int) -> None:
    """Content ends when its length is reached, and the octets after it are returned."""
    octets = bytes(range(50))
    body = reader(length)
    content = b""
    for at in range(0, len(octets), step):
        piece, rest = body.feed(octets[at : at + step])
        content += piece
        if rest is not None:
            assert content + rest == octets[: at + step]
            break
    assert content == octets[:length]
    assert body.trailers == b""


def test_until_close() -> None:
    """Content that ends with the connection is returned as it is fed, and never reported as complete."""
    body = reader(Framing.UNTIL_CLOSE)
    assert body.feed(b"a") == (b"a", None)
    assert (body.feed(b""), body.trailers) == ((b"", None), b"")


def feed_in_pieces(decoder: ChunkedReader, octets: bytes, step: int) -> None:
    for at in range(0, len(octets), step):
        decoder.feed(octets[at : at + step])


CHUNKED = [
    pytest.param(b"0\r\n\r\n", b"", b"", id="empty"),
    pytest.param(b"3\r\nabc\r\n0\r\n\r\n", b"abc", b"", id="one"),
    pytest.param(b"1\r\na\r\n00a\r\n0123456789\r\n0\r\n\r\n", b"a0123456789", b"", id="two"),
    pytest.param(b'1;x="y" \r\na\r\n0 ;z\r\n\r\n', b"a", b"", id="extensions"),
    pytest.param(b"2\r\n\r\n\r\n0\r\nA: b\r\nC:\r\n\r\n", b"\r\n", b"A: b\r\nC:\r\n", id="trailers"),
]


@pytest.mark.parametrize("step", [1, 2, 3, 100])
@pytest.mark.parametrize(("octets", "content", "trailers"), CHUNKED)
def test_chunked(octets: bytes, content: bytes, trailers: bytes, step: int) -> None:
    """Chunked content (RFC 9112 section 7.1) is decoded in pieces of any size, and the octets after it are returned."""
    decoder = ChunkedReader()
    octets += b"rest" if step == 100 else b""
    found = b""
    rest: bytes | None = None
    for at in range(0, len(octets), step):
        assert rest is None
        piece, rest = decoder.feed(octets[at : at + step])
        found += piece
    assert (found, rest, decoder.trailers) == (content, b"rest" if step == 100 else b"", trailers)


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(octets, id=repr(octets))
        for octets in (
            b"\r\n",
            b"g\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\na\r\n",
            b" 1\r\na\r\n",
            b"1 \r\na\r\n",
            b"1;\r\na\r\n",
            b"1;a\x00\r\na\r\n",
            b"1\na\r\n",
            b"1\r\nab\r\n",
            b"1\r\na\n",
            b"1\r\na\r\r\n",
            b"1" * 16 + b"\r\n",
            b"0\r\n\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\nA : b\r\n\r\n",
            b"0\r\n A: b\r\n\r\n",
            b"0\r\nContent-Length: 1\r\n\r\n",
            b"0\r\ntransfer-encoding: chunked\r\n\r\n",
        )
    ],
)
@pytest.mark.parametrize("step", [1, 100])
def test_not_chunked(octets: bytes, step: int) -> None:
    """Chunks that another parser could read differently are refused, in pieces of any size."""
    with pytest.raises(Malformed):
        feed_in_pieces(ChunkedReader(), octets, step)


@pytest.mark.parametrize("octets", [b"1;" + b"x" * 100, b"0\r\n" + b"A: " + b"x" * 100], ids=["extension", "trailers"])
def test_chunked_without_end(octets: bytes) -> None:
    """The sizes of chunk extensions and trailers are limited, as those of heads are."""
    decoder = ChunkedReader()
    decoder.feed(octets)
    with pytest.raises(Oversized):
        feed_in_pieces(decoder, b"x" * 70_000, 100)


def test_long_content() -> None:
    """The size of chunked content is not limited."""
    decoder = ChunkedReader()
    for _ in range(20):
        assert decoder.feed(b"4000\r\n" + b"x" * 0x4000 + b"\r\n") == (b"x" * 0x4000, None)


@pytest.mark.parametrize(
    ("octets", "most"),
    [
        pytest.param(b"3;" + b"x" * 60_000 + b"\r\nabc\r\n", 1, id="extension"),
        pytest.param(b"0\r\nA: " + b"x" * 60_000 + b"\r\n\r\n", 2, id="a trailer"),
        pytest.param(b"0\r\n" + b"A:\r\n" * 12_000 + b"\r\n", 2, id="trailers"),
    ],
)
def test_work_is_linear(octets: bytes, most: int) -> None:
    """Octets that are received one by one are scanned at most ``most`` times each, on average."""
    command = [sys.executable, "-m", "tests.support.scanned"]
    result = subprocess.run(command, input=octets, check=True, capture_output=True)
    assert 0 < int(result.stdout) <= most * len(octets)

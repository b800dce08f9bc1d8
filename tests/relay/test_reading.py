"""Taking heads and chunked content out of a stream of octets."""

import re
from collections.abc import Callable
from typing import Any

import httptools
import pytest

from sanitizer.relay import reading
from sanitizer.relay.reading import ChunkedDecoder, HeadReader, Malformed, Oversized

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n"


def reader(limit: int = 100) -> HeadReader:
    return HeadReader(httptools.HttpRequestParser, limit)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
def test_head(step: int) -> None:
    """A head is found in pieces of any size, and what follows it given back; then the next."""
    heads = reader()
    octets = HEAD + b"rest"
    for _ in range(2):
        found = None
        at = 0
        while found is None:
            found = heads.feed(octets[at : at + step])
            at += step
            assert heads.begun == (found is None)
        head, rest = found
        assert head == HEAD
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
    """What would let two parsers disagree about where a line ends, or what it says, does not pass."""
    with pytest.raises(Malformed):
        read_in_pieces(reader(), octets, step)


@pytest.mark.parametrize("step", [1, 1000])
def test_large_head(step: int) -> None:
    """A head is bounded, complete or not."""
    octets = HEAD.replace(b"X:", b"X: " + b"x" * (101 - len(HEAD)))
    assert len(octets) == 102
    with pytest.raises(Oversized):
        read_in_pieces(reader(101), octets, step)
    read_in_pieces(reader(102), octets, step)


def test_upgrade_is_a_wish() -> None:
    """A head that asks for an upgrade is one like others."""
    head = HEAD.replace(b"X:", b"Connection: upgrade\r\nUpgrade: x")
    assert reader().feed(head + b"rest") == (head, b"rest")


def read_in_pieces(heads: HeadReader, octets: bytes, step: int) -> None:
    for at in range(0, len(octets), step):
        heads.feed(octets[at : at + step])


def feed_in_pieces(decoder: ChunkedDecoder, octets: bytes, step: int) -> None:
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
    """RFC 9112 section 7.1, in pieces of any size; what follows the end is given back."""
    decoder = ChunkedDecoder()
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
    """What another parser might read otherwise is refused, in pieces of any size."""
    with pytest.raises(Malformed):
        feed_in_pieces(ChunkedDecoder(), octets, step)


@pytest.mark.parametrize("octets", [b"1;" + b"x" * 100, b"0\r\n" + b"A: " + b"x" * 100], ids=["extension", "trailers"])
def test_chunked_without_end(octets: bytes) -> None:
    """Extensions and trailers are bounded, as heads are."""
    decoder = ChunkedDecoder()
    decoder.feed(octets)
    with pytest.raises(Oversized):
        feed_in_pieces(decoder, b"x" * 70_000, 100)


class Scanned:
    """A pattern that counts the octets that it is given to look at."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self.pattern = pattern
        self.octets = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def scan(octets: bytes, at: int = 0) -> Any:
            self.octets += len(octets) - at
            return getattr(self.pattern, name)(octets, at)

        return scan


@pytest.mark.parametrize(
    ("octets", "most"),
    [
        pytest.param(b"3;" + b"x" * 60_000 + b"\r\nabc\r\n", 1, id="extension"),
        pytest.param(b"0\r\nA: " + b"x" * 60_000 + b"\r\n\r\n", 2, id="a trailer"),
        pytest.param(b"0\r\n" + b"A:\r\n" * 12_000 + b"\r\n", 2, id="trailers"),
    ],
)
def test_work_is_linear(octets: bytes, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What drips in octet by octet is looked at a fixed number of times, not again with each octet."""
    patterns = {name: Scanned(value) for name, value in vars(reading).items() if isinstance(value, re.Pattern)}
    for name, pattern in patterns.items():
        monkeypatch.setattr(reading, name, pattern)
    feed_in_pieces(ChunkedDecoder(), octets, 1)
    assert 0 < sum(pattern.octets for pattern in patterns.values()) <= most * len(octets)

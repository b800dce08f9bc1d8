"""A head that comes again is relayed as it was the first time, and nothing else is taken for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanitizer.address import TrustedProxies
from sanitizer.errors import BadRequest
from sanitizer.relay.framing import Framing
from sanitizer.relay.headers import Forwarding
from sanitizer.relay.repeat import Repeat
from sanitizer.relay.request import read_request
from tests.support.gateway import Gateway
from tests.support.upstream import Upstream

POST = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\nX: y\r\n\r\n"
ONWARD = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\nX: y\r\nVia: z\r\n\r\n"
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize("digits", [b"12", b"0", b"7", b"007", b"9" * 18])
def test_other_digits(digits: bytes) -> None:
    """The same head with another length gives the same onward head with that length."""
    repeat = Repeat.of(POST, ONWARD, b"POST", True)
    assert repeat.match(POST.replace(b"12", digits)) == (ONWARD.replace(b"12", digits), int(digits))


@pytest.mark.parametrize(
    "digits", [b"", b"-1", b"+1", b"1 ", b" 1", b"1,1", b"0x1", b"1\r\nY: 1", b"9" * 19, b"\xb2", b"1_0"]
)
def test_no_digits(digits: bytes) -> None:
    """Whatever is no length is not this head again: it is judged like any other."""
    assert Repeat.of(POST, ONWARD, b"POST", True).match(POST.replace(b"12", digits)) is None


def test_without_length() -> None:
    """A head without Content-Length has to be equal."""
    repeat = Repeat.of(GET, GET, b"GET", True)
    assert repeat.match(GET) == (GET, 0)
    assert repeat.match(GET.replace(b"/a", b"/b")) is None
    assert repeat.match(b"") is None


@given(st.binary(max_size=8), st.integers(0, len(POST)), st.integers(0, 4))
def test_any_edit(insert: bytes, at: int, cut: int) -> None:
    """An edited head matches only if the edit leaves digits in the one place, and all else as it was."""
    edited = POST[:at] + insert + POST[at + cut :]
    found = Repeat.of(POST, ONWARD, b"POST", True).match(edited)
    before, after = POST.split(b"12")
    digits = edited[len(before) : len(edited) - len(after)]
    same = len(edited) > len(before) + len(after) and edited == before + digits + after
    assert (found is not None) == (same and digits.isdigit() and len(digits) <= 18)


FORWARDING = Forwarding(TrustedProxies(), b"litellm-sanitizer-0")
PEER = FORWARDING.peer("192.0.2.1", "http")
CONNECTION = st.sampled_from([b"Upgrade", b"keep-alive, upgrade", b"Content-Length", b"X-Team, close"])
UPGRADE = st.sampled_from([b"websocket", b"h2c, other", b"h2c"])
OTHERS = [
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    b"X-Team: a",
    b"X-Content-Length: 1",
    b"X-Forwarded-For: 203.0.113.9",
    b"Via: 1.1 other",
]
LINES = st.tuples(
    st.lists(CONNECTION.map(b"Connection: ".__add__), max_size=2),
    st.lists(UPGRADE.map(b"Upgrade: ".__add__), max_size=1),
    st.lists(st.sampled_from(OTHERS), unique=True, max_size=2),
).flatmap(lambda lists: st.permutations([line for lines in lists for line in lines]))
METHODS = st.sampled_from([b"GET", b"GET", b"HEAD", b"POST"])
LENGTHS = st.sampled_from([b"0", b"00", b"12", b"007"])


@settings(max_examples=500)
@given(METHODS, st.sampled_from([b"1.1", b"1.1", b"1.0"]), LINES, st.integers(0, 5), LENGTHS, LENGTHS)
def test_as_if_read_afresh(
    method: bytes, version: bytes, lines: list[bytes], at: int, first: bytes, second: bytes
) -> None:
    """What a head that comes again with another length is taken for is what it is taken for by itself."""
    start = b"%b /a HTTP/%b" % (method, version)

    def octets(length: bytes) -> bytes:
        return b"\r\n".join((start, b"Host: h", *lines[:at], b"Content-Length: " + length, *lines[at:], b"", b""))

    try:
        judged = read_request(octets(first), way=False)
        again = read_request(octets(second), way=False)
    except BadRequest:
        return
    if not judged.repeatable:
        return
    onward = judged.onward(FORWARDING, PEER, "upstream")
    repeat = Repeat.of(octets(first), onward, judged.method, judged.keep_alive)
    assert repeat.match(octets(second)) == (again.onward(FORWARDING, PEER, "upstream"), again.length)
    assert not isinstance(again.length, Framing)
    assert (repeat.method, repeat.keep_alive, again.upgrade) == (again.method, again.keep_alive, b"")


def test_upgrade_with_and_without_content() -> None:
    """Upgrade is ignored with content; that says nothing of the same head with none. (ASGI has no upgrades.)"""
    lines = (b"GET /ws HTTP/1.1", b"Host: h", b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: ")
    head = b"\r\n".join(lines)
    with Upstream() as upstream, Gateway(upstream.url) as gateway, gateway.connect() as client:
        for content in (b"content", b"other", b"", b"more"):
            assert client.ask(head + b"%d\r\n\r\n%b" % (len(content), content)).status == 200
        assert [request.get(b"upgrade") for request in upstream.requests] == [None, None, b"websocket", None]


def test_on_one_connection(gateway: Gateway, upstream: Upstream) -> None:
    """Heads that repeat, differ, and repeat again arrive as each of them does on a connection of its own."""

    def post(path: bytes, body: bytes, *fields: bytes) -> bytes:
        lines = (b"POST %b HTTP/1.1" % path, b"Host: h", b"Content-Length: %d" % len(body), *fields)
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    requests = [
        post(b"/a", b"one"),
        post(b"/a", b"three"),
        post(b"/a", b""),
        post(b"/a", b"x" * 70_000),
        post(b"/b", b"two"),
        post(b"/b", b"two", b"X-Forwarded-For: 1.2.3.4"),
        post(b"/b", b"2", b"X-Forwarded-For: 1.2.3.4"),
        post(b"/b", b"22", b"Connection: X-Team", b"X-Team: a"),
        post(b"/b", b"222", b"Connection: X-Team", b"X-Team: a"),
        GET,
        GET,
        post(b"/a", b"one"),
    ]
    for request in requests:
        gateway.ask(request)
    apart = [(r.start, r.fields, r.body) for r in upstream.requests]
    upstream.requests.clear()
    with gateway.connect() as client:
        for request in requests:
            client.ask(request)
    together = [(r.start, r.fields, r.body) for r in upstream.requests]
    assert len(apart) == len(requests)
    assert together == apart

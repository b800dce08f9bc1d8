"""Which field lines of a request are forwarded, and which ones the gateway writes."""

import pytest

from sanitizer.address import TrustedProxies
from sanitizer.errors import LoopDetected
from sanitizer.http1.forwarding import Forwarding, has_buffering_field, passed_trailers
from sanitizer.http1.heads import Fields, encode_head, head_fields
from sanitizer.settings import load

PSEUDONYM = b"litellm-sanitizer-0123456789abcdef"
UNTRUSTED: Fields = [
    (b"X-Forwarded-For", b"192.0.2.1"),
    (b"X-Forwarded-Proto", b"http"),
    (b"X-Forwarded-Host", b"h"),
    (b"Via", b"1.1 " + PSEUDONYM),
]


def forwarding(trusted: str = "") -> Forwarding:
    flags = {"trusted_proxies": trusted} if trusted else {}
    return Forwarding(load(flags, {}).trusted_proxies, PSEUDONYM)


def sent(fields: Fields, trusted: str = "", peer: str | None = "192.0.2.1", scheme: str = "http") -> Fields:
    it = forwarding(trusted)
    head = encode_head(b"GET / HTTP/1.1", [(b"Host", b"h"), *fields])
    return head_fields(it.outbound(head, it.peer(peer, scheme))[1])[1:]


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([(b"B", b"2"), (b"a", b"1"), (b"B", b"")], [(b"B", b"2"), (b"a", b"1"), (b"B", b"")], id="order"),
        pytest.param([(b"Connection", b"close")], [], id="connection-is-removed"),
        pytest.param(
            [(b"Connection", b"X-A, x-b"), (b"x-a", b"1"), (b"X-B", b"2"), (b"X-C", b"3")],
            [(b"X-C", b"3")],
            id="named-in-connection",
        ),
        pytest.param([(b"X-A", b"1"), (b"Connection", b"X-A")], [], id="before-connection"),
        pytest.param(
            [(b"Connection", b"keep-alive"), (b"CONNECTION", b" ,x-a,"), (b"X-A", b"1")], [], id="second-line"
        ),
        pytest.param([(b"Connection", b"Host, Via")], [], id="host-is-kept"),
        pytest.param(
            [(b"Connection", b"Content-Length"), (b"Content-Length", b"3")],
            [(b"Content-Length", b"3")],
            id="length-is-kept",
        ),
        pytest.param(
            [(n, b"x") for n in (b"Keep-Alive", b"Proxy-Connection", b"TE", b"Transfer-Encoding", b"Upgrade")],
            [],
            id="hop-by-hop",
        ),
        pytest.param(
            [(b"Proxy-Authorization", b"x")], [(b"Proxy-Authorization", b"x")], id="proxy-authorization-is-kept"
        ),
        pytest.param(
            [
                (n, b"forged")
                for n in (b"x-forwarded-for", b"X-Forwarded-Port", b"Forwarded", b"X-Real-IP", b"x-forwarded-x")
            ],
            [],
            id="forged",
        ),
        pytest.param([(b"Connection", b"X-Forwarded-For")], [], id="connection-names-x-forwarded-for"),
    ],
)
def test_request_fields(fields: Fields, passed: Fields) -> None:
    """End-to-end fields are forwarded in order. The forwarding fields of an untrusted peer are replaced."""
    assert sent(fields) == passed + UNTRUSTED


def test_trusted_peer() -> None:
    """The forwarding fields of a trusted peer are forwarded unchanged and in order. Missing ones are added."""
    fields = [(b"Forwarded", b"for=a"), (b"X-Forwarded-For", b"a"), (b"x-forwarded-for", b"b"), (b"X-Real-IP", b"a")]
    via = (b"Via", b"1.1 " + PSEUDONYM)
    host, proto = (b"X-Forwarded-Host", b"h"), (b"X-Forwarded-Proto", b"https")
    assert sent(fields, "192.0.2.0/24", scheme="https") == [*fields, proto, host, via]
    assert sent([proto], "192.0.2.0/24") == [proto, (b"X-Forwarded-For", b"192.0.2.1"), host, via]
    assert sent([(b"Connection", b"x-forwarded-for"), fields[1]], "192.0.2.1/32")[0] == fields[1]


@pytest.mark.parametrize(
    ("peer", "trusted", "address"),
    [
        pytest.param("::ffff:192.0.2.1", "192.0.2.0/24", b"192.0.2.1", id="ipv4-mapped"),
        pytest.param("fe80::1%eth0", "fe80::/10", b"fe80::1", id="zone"),
        pytest.param(None, "unix", None, id="unix"),
    ],
)
def test_peer_trusted(peer: str | None, trusted: str, address: bytes | None) -> None:
    """A peer's address is compared with the trusted proxies, and kept, without IPv4 mapping and zone."""
    found = forwarding(trusted).peer(peer, "http")
    assert (found.trusted, found.address) == (True, address)
    assert not forwarding("198.51.100.0/24").peer(peer, "http").trusted
    assert not TrustedProxies().trusts(peer)


@pytest.mark.parametrize(
    ("peer", "scheme", "trusted", "said"),
    [
        pytest.param("192.0.2.1", "http", "", ["192.0.2.1"], id="an untrusted peer, by http"),
        pytest.param(None, "http", "", [None], id="a unix socket"),
        pytest.param("192.0.2.1", "https", "", [], id="an untrusted peer, by https"),
        pytest.param("192.0.2.1", "http", "192.0.2.0/24", [], id="a trusted peer"),
    ],
)
def test_claimed_https(peer: str | None, scheme: str, trusted: str, said: list[str | None]) -> None:
    """An untrusted peer that sends X-Forwarded-Proto: https over plain HTTP is reported once."""
    named: list[str | None] = []
    trusts = load({"trusted_proxies": trusted} if trusted else {}, {}).trusted_proxies
    it = Forwarding(trusts, PSEUDONYM, on_untrusted=named.append)
    came_from = it.peer(peer, scheme)
    for _ in range(2):
        octets = encode_head(b"GET / HTTP/1.1", [(b"Host", b"h"), (b"X-Forwarded-Proto", b"HTTPS ")])
        it.outbound(octets, came_from)
    assert named == said


def test_unix_peer_has_no_address() -> None:
    """The X-Forwarded-For of an untrusted peer on a Unix socket is removed, and none is added."""
    assert sent([(b"X-Forwarded-For", b"forged")], peer=None)[0] == (b"X-Forwarded-Proto", b"http")


def test_via_names_the_version_received() -> None:
    """RFC 9110 section 7.6.3: a Via line with the version of the received request is added to those of earlier hops."""
    it = forwarding()
    octets = encode_head(b"GET / HTTP/1.0", [(b"Via", b"1.1 a")])
    _, outbound = it.outbound(octets, it.peer("192.0.2.1", "http"), b"1.0")
    assert [value for name, value in head_fields(outbound) if name == b"Via"] == [b"1.1 a", b"1.0 " + PSEUDONYM]


@pytest.mark.parametrize(
    "via",
    [
        pytest.param([b"1.1 " + PSEUDONYM], id="own"),
        pytest.param([b"1.1 a, 1.1 " + PSEUDONYM + b", 1.1 b"], id="own-in-list"),
        pytest.param([b"1.1 litellm-sanitizer-%d" % n for n in range(9)], id="nine-others"),
    ],
)
def test_loop(via: list[bytes]) -> None:
    """A request is refused if Via names this gateway, or more than eight others of its kind."""
    with pytest.raises(LoopDetected):
        sent([(b"Via", value) for value in via])


def test_eight_gateways_are_no_loop() -> None:
    """A request that has passed eight other gateways is forwarded."""
    via = [(b"Via", b"1.1 litellm-sanitizer-%d" % n) for n in range(8)]
    assert sent(via)[:8] == via


def test_trailers_carry_no_routing() -> None:
    """RFC 9110 section 6.5.1: trailers for framing, routing or authentication are removed."""
    bad = [b"Host", b"Content-Type", b"TE", b"X-Forwarded-For", b"authorization", b"Via", b"Cookie", b"If-Match"]
    lines = b"".join(name + b": x\r\n" for name in bad)
    assert passed_trailers(lines + b"X-Checksum: y\r\nHosts:z\r\n" + lines) == b"X-Checksum: y\r\nHosts:z\r\n"


def test_what_a_head_says() -> None:
    """The fields that an intermediary interprets are found in upper and lower case, and only at the start of a line."""
    head, _ = forwarding().outbound(
        b"GET /\r\ncONTENT-lENGTH:  3 \r\nHOST:h\r\nhost: i\r\nUpgrade: a \t\r\nupgrade:b\r\nX-Origin: y\r\n",
        forwarding().peer("192.0.2.1", "http"),
    )
    assert (head.length, head.host, head.host_count, head.upgrade, head.has_origin) == (b"3", b"i", 2, b"a, b", False)


@pytest.mark.parametrize("found", [True, False])
def test_origin(found: bool) -> None:
    """A head has an Origin if a field line has exactly this name, in any case."""
    it = forwarding()
    octets = encode_head(b"GET / HTTP/1.1", [(b"Host", b"h"), (b"oRIGIN" if found else b"X-Origin", b"https://a")])
    assert it.outbound(octets, it.peer("192.0.2.1", "http"))[0].has_origin is found


def test_own_host() -> None:
    """If the gateway sends its own Host, the client's Host is sent in X-Forwarded-Host."""
    it = Forwarding(TrustedProxies(), PSEUDONYM, rb"\g<1>")  # the value must not be used as a replacement template
    octets = encode_head(b"GET / HTTP/1.1", [(b"A", b"1"), (b"hOST", b"h"), (b"B", b"2")])
    fields = head_fields(it.outbound(octets, it.peer(None, "http"))[1])
    assert fields[:3] == [(b"A", b"1"), (b"Host", rb"\g<1>"), (b"B", b"2")]
    assert (b"X-Forwarded-Host", b"h") in fields


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        pytest.param([(b"X-Accel-BUFFERING", b"yes")], True, id="in any case"),
        pytest.param([(b"A", b"x-accel-buffering: no")], False, id="in a value"),
        pytest.param([], False, id="no such field"),
    ],
)
def test_buffering_is_set(fields: Fields, found: bool) -> None:
    """Only a field line with the name X-Accel-Buffering counts."""
    assert has_buffering_field(encode_head(b"HTTP/1.1 200 OK", fields)) is found

"""Request heads: the forms of a target, the requests that are refused, and heads that repeat."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanitizer.address import TrustedProxies
from sanitizer.errors import BadRequest
from sanitizer.http1.bodies import Framing
from sanitizer.http1.forwarding import Forwarding
from sanitizer.http1.heads import head_fields
from sanitizer.http1.requests import CachedHead, Request, decoded_path, describe_other_protocol, read_request

HOST = b"Host: a\r\n"
FORWARDING = Forwarding(TrustedProxies(), b"litellm-sanitizer-0")
PEER = FORWARDING.peer("192.0.2.1", "http")


def read(octets: bytes) -> Request:
    return read_request(octets, PEER, FORWARDING, b"upstream")


def head(line: bytes, fields: bytes = HOST) -> bytes:
    return line + b"\r\n" + fields


@pytest.mark.parametrize(
    ("octets", "target", "in_origin_form"),
    [
        pytest.param(head(b"GET /a?b HTTP/1.1"), b"/a?b", head(b"GET /a?b HTTP/1.1"), id="origin form"),
        pytest.param(head(b"OPTIONS * HTTP/1.1"), b"*", head(b"OPTIONS * HTTP/1.1"), id="asterisk form"),
        pytest.param(
            head(b"GET http://b:1/c?d HTTP/1.1", b"X: 1\r\nHost: a\r\n"),
            b"/c?d",
            head(b"GET /c?d HTTP/1.1", b"Host: b:1\r\nX: 1\r\n"),
            id="absolute form",
        ),
        pytest.param(
            head(b"GET HTTPS://b HTTP/1.1"), b"/", head(b"GET / HTTP/1.1", b"Host: b\r\n"), id="absolute form, no path"
        ),
        pytest.param(
            head(b"GET http://b/ HTTP/1.1", b"Host: a \t\r\n"),
            b"/",
            head(b"GET / HTTP/1.1", b"Host: b\r\n"),
            id="absolute form, white space after Host",
        ),
    ],
)
def test_target(octets: bytes, target: bytes, in_origin_form: bytes) -> None:
    """An absolute target is replaced by its path and query, and its authority replaces Host. Other targets are kept."""
    request = read(octets)
    assert (request.target, request.octets) == (target, in_origin_form)


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(head(b"GET /a"), id="no version"),
        pytest.param(head(b"GET  /a HTTP/1.1"), id="two spaces"),
        pytest.param(head(b"GET /a b HTTP/1.1"), id="space in the target"),
        pytest.param(head(b"GET /a HTTP/2.0"), id="HTTP/2"),
        pytest.param(head(b"GET /a RTSP/1.0"), id="another protocol"),
        pytest.param(head(b"GET /a HTTP/1.1", b""), id="no Host"),
        pytest.param(head(b"GET /a HTTP/1.1", HOST * 2), id="two Hosts"),
        pytest.param(head(b"GET /a HTTP/1.0", HOST * 2), id="two Hosts, HTTP/1.0"),
        pytest.param(head(b"CONNECT a:1 HTTP/1.1"), id="CONNECT"),
        pytest.param(head(b"CONNECT /a HTTP/1.1"), id="CONNECT to a path"),
        pytest.param(head(b"CONNECT http://a/ HTTP/1.1"), id="CONNECT to a URL"),
        pytest.param(head(b"GET * HTTP/1.1"), id="asterisk form without OPTIONS"),
        pytest.param(head(b"GET a HTTP/1.1"), id="relative path"),
        pytest.param(head(b"GET ftp://a/ HTTP/1.1"), id="ftp"),
        pytest.param(head(b"GET http:///a HTTP/1.1"), id="no authority"),
        pytest.param(head(b"GET http://u@a/ HTTP/1.1"), id="user in the authority"),
        pytest.param(head(b"GET http://a?b HTTP/1.1"), id="query without a path"),
        pytest.param(head(b"GET http://a#b HTTP/1.1"), id="fragment without a path"),
        pytest.param(head(b"GET http://:1/ HTTP/1.1"), id="only a port in the authority"),
    ],
)
def test_not_relayed(octets: bytes) -> None:
    """A request that two servers could read differently, or that is not for a gateway, is refused."""
    with pytest.raises(BadRequest):
        read(octets)


@pytest.mark.parametrize(
    ("octets", "hosts"),
    [
        pytest.param(head(b"GET / HTTP/1.0", b""), [b"upstream"], id="no Host"),
        pytest.param(head(b"GET / HTTP/1.0", b"Host:\r\n"), [b""], id="an empty Host"),
        pytest.param(head(b"GET / HTTP/1.1"), [b"a"], id="a Host"),
    ],
)
def test_host_for_upstream(octets: bytes, hosts: list[bytes]) -> None:
    """An HTTP/1.0 request is forwarded as HTTP/1.1. If it has no Host, upstream's own authority is sent."""
    outbound = read(octets).outbound
    assert outbound.startswith(b"GET / HTTP/1.1\r\n")
    assert [value for name, value in head_fields(outbound) if name == b"Host"] == hosts


@pytest.mark.parametrize(
    ("octets", "keep_alive"),
    [
        pytest.param(head(b"GET / HTTP/1.1"), True, id="by default"),
        pytest.param(head(b"GET / HTTP/1.1", HOST + b"Connection: x, Close\r\n"), False, id="close"),
        pytest.param(head(b"GET / HTTP/1.0", HOST + b"Connection: keep-alive\r\n"), False, id="HTTP/1.0"),
    ],
)
def test_keep_alive(octets: bytes, keep_alive: bool) -> None:
    """An HTTP/1.1 connection is kept unless Connection has close. An HTTP/1.0 connection is not kept."""
    assert read(octets).keep_alive is keep_alive


UPGRADE = HOST + b"Connection: upgrade\r\nUpgrade: %b\r\n"


@pytest.mark.parametrize(
    ("octets", "upgrade"),
    [
        pytest.param(head(b"GET / HTTP/1.1", UPGRADE % b"websocket"), b"websocket", id="websocket"),
        pytest.param(head(b"GET / HTTP/1.1", UPGRADE % b"h2c, a"), b"a", id="h2c and another protocol"),
        pytest.param(head(b"GET / HTTP/1.1", UPGRADE % b"H2C"), b"", id="h2c alone"),
        pytest.param(head(b"POST / HTTP/1.1", UPGRADE % b"a"), b"", id="not GET"),
        pytest.param(head(b"GET / HTTP/1.0", UPGRADE % b"a"), b"", id="HTTP/1.0"),
        pytest.param(head(b"GET / HTTP/1.1", UPGRADE % b"a" + b"Content-Length: 1\r\n"), b"", id="with content"),
        pytest.param(head(b"GET / HTTP/1.1", UPGRADE % b"a" + b"Transfer-Encoding: chunked\r\n"), b"", id="chunked"),
        pytest.param(head(b"GET / HTTP/1.1", HOST + b"Upgrade: a\r\n"), b"", id="not in Connection"),
    ],
)
def test_upgrade(octets: bytes, upgrade: bytes) -> None:
    """Upgrade is forwarded for GET without content in HTTP/1.1. h2c is removed, since it would bypass the sanitizer."""
    assert read(octets).upgrade == upgrade


@pytest.mark.parametrize(
    ("octets", "expects"),
    [
        pytest.param(head(b"POST / HTTP/1.1", HOST + b"eXPECT:100-Continue\t\r\n"), True, id="in any case"),
        pytest.param(head(b"POST / HTTP/1.0", HOST + b"Expect: 100-continue\r\n"), False, id="HTTP/1.0"),
        pytest.param(head(b"POST / HTTP/1.1", HOST + b"Expect: 100-continued\r\n"), False, id="another expectation"),
        pytest.param(head(b"POST / HTTP/1.1"), False, id="no Expect"),
    ],
)
def test_expects_continue(octets: bytes, expects: bool) -> None:
    """RFC 9110 section 10.1.1: a 100-continue expectation is forwarded in HTTP/1.1, and ignored in HTTP/1.0."""
    request = read(octets)
    assert request.expects_continue is expects
    assert bool(re.search(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", request.outbound, re.IGNORECASE)) is expects


@pytest.mark.parametrize(
    ("fields", "cacheable"),
    [
        pytest.param(b"", True, id="nothing"),
        pytest.param(b"Content-Length: 5\r\n", True, id="length"),
        pytest.param(b"Transfer-Encoding: chunked\r\n", False, id="chunked"),
        pytest.param(b"Connection: upgrade\r\nUpgrade: a\r\n", False, id="upgrade"),
    ],
)
def test_repeatable(fields: bytes, cacheable: bool) -> None:
    """A head is cacheable unless it has chunked framing or an upgrade."""
    request = read(head(b"GET / HTTP/1.1", HOST + fields))
    assert request.cacheable is cacheable
    assert (request.length is Framing.CHUNKED) == (b"chunked" in fields)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        pytest.param(b"/key/update", "/key/update", id="plain"),
        pytest.param(b"/key/%75pdate?a=%2F", "/key/update", id="encoded, with a query"),
        pytest.param(b"/key%2Fupdate", "/key/update", id="encoded slash"),
        pytest.param(b"/key/update?", "/key/update", id="empty query"),
        pytest.param(b"/key/update#a?b", "/key/update", id="fragment"),
        pytest.param(b"/%E2%82%AC%FF", "/\u20ac\ufffd", id="partly UTF-8"),
        pytest.param(b"*", "*", id="asterisk"),
    ],
)
def test_decoded_path(target: bytes, path: str) -> None:
    """A path is decoded as LiteLLM's server decodes it."""
    assert decoded_path(target) == path


@pytest.mark.parametrize(
    ("octets", "advice"),
    [
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY protocol", id="PROXY protocol 1"),
        pytest.param(b"\0\r\nQUIT\n\x21\x11", "PROXY protocol", id="PROXY protocol 2, after its initial CRLFs"),
        pytest.param(b"\x16", "--ssl-certfile", id="TLS, one octet"),
        pytest.param(b"\x16\x03\x01\x02", "--ssl-certfile", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1", id="HTTP/2"),
        pytest.param(b"\x16\x02", "", id="not TLS"),
        pytest.param(b"PROXYING / HTTP/1.1\r\n", "", id="another method"),
        pytest.param(b"", "", id="nothing"),
    ],
)
def test_other_protocol(octets: bytes, advice: str) -> None:
    """Protocols that a load balancer or a client may use by mistake are recognized, and a remedy is named."""
    found = describe_other_protocol(octets)
    assert advice in found
    assert bool(found) == bool(advice)


# A repeated head is forwarded as it was the first time, and no other head is taken for a repetition.

POST = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\nX: y\r\n"
OUTBOUND = POST + PEER.lines + b"X-Forwarded-Host: h\r\nVia: 1.1 litellm-sanitizer-0\r\n"
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n"


@pytest.mark.parametrize("digits", [b"12", b"0", b"7", b"007", b"9" * 18])
def test_other_digits(digits: bytes) -> None:
    """The same head with another length matches, and the head for upstream has that length."""
    repeat = CachedHead.of(read(POST))
    assert repeat.match(POST.replace(b"12", digits)) == (OUTBOUND.replace(b"12", digits), int(digits))


@pytest.mark.parametrize(
    "digits", [b"", b"-1", b"+1", b"1 ", b" 1", b"1,1", b"0x1", b"1\r\nY: 1", b"9" * 19, b"\xb2", b"1_0"]
)
def test_no_digits(digits: bytes) -> None:
    """A head with anything but a valid length in its place does not match."""
    assert CachedHead.of(read(POST)).match(POST.replace(b"12", digits)) is None


def test_without_length() -> None:
    """A head without Content-Length matches only an equal head."""
    request = read(GET)
    repeat = CachedHead.of(request)
    assert repeat.match(GET) == (request.outbound, 0)
    assert repeat.match(GET.replace(b"/a", b"/b")) is None
    assert repeat.match(b"") is None


@given(st.binary(max_size=8), st.integers(0, len(POST)), st.integers(0, 4))
def test_any_edit(insert: bytes, at: int, cut: int) -> None:
    """An edited head matches if and only if it has digits for the length, and is unchanged otherwise."""
    edited = POST[:at] + insert + POST[at + cut :]
    found = CachedHead.of(read(POST)).match(edited)
    before, after = POST.split(b"12")
    digits = edited[len(before) : len(edited) - len(after)]
    same = len(edited) > len(before) + len(after) and edited == before + digits + after
    assert (found is not None) == (same and digits.isdigit() and len(digits) <= 18)


CONNECTION = st.sampled_from([b"Upgrade", b"keep-alive, upgrade", b"Content-Length", b"X-Team, close"])
UPGRADES = st.sampled_from([b"websocket", b"h2c, other", b"h2c"])
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
    st.lists(UPGRADES.map(b"Upgrade: ".__add__), max_size=1),
    st.lists(st.sampled_from(OTHERS), unique=True, max_size=2),
).flatmap(lambda lists: st.permutations([line for lines in lists for line in lines]))
METHODS = st.sampled_from([b"GET", b"GET", b"HEAD", b"POST"])
LENGTHS = st.sampled_from([b"0", b"00", b"12", b"007"])


@settings(max_examples=500)
@given(METHODS, st.sampled_from([b"1.1", b"1.1", b"1.0"]), LINES, st.integers(0, 5), LENGTHS, LENGTHS)
def test_as_if_read_afresh(
    method: bytes, version: bytes, lines: list[bytes], at: int, first: bytes, second: bytes
) -> None:
    """A head that differs from a cached one only in its length is forwarded as it would be without the cache."""
    start = b"%b /a HTTP/%b" % (method, version)

    def octets(length: bytes) -> bytes:
        return b"\r\n".join((start, b"Host: h", *lines[:at], b"Content-Length: " + length, *lines[at:], b""))

    try:
        judged = read(octets(first))
        again = read(octets(second))
    except BadRequest:
        return
    if not judged.cacheable:
        return
    repeat = CachedHead.of(judged)
    assert repeat.match(octets(second)) == (again.outbound, again.length)
    assert not isinstance(again.length, Framing)
    assert (repeat.method, repeat.keep_alive, again.upgrade) == (again.method, again.keep_alive, b"")

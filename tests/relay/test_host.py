"""Host: which values are valid, and which Host and X-Forwarded-Host upstream receives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import OK, Connection, Upstream, reply

KEY = "sk-of-the-gateway"
UPDATE = json.dumps({"key": "0" * 64, "spend": 1}).encode()
REFUSAL = json.dumps(
    {
        "error": {
            "message": "not on the list of those who can call /key/update (max_budget/spend)",
            "type": "",
            "param": "",
            "code": "403",
        }
    }
).encode()


def get(*hosts: bytes, target: bytes = b"/", version: bytes = b"1.1", more: bytes = b"") -> bytes:
    lines = b"".join(b"Host: %b\r\n" % host for host in hosts)
    return b"GET %b HTTP/%b\r\n%b%b\r\n" % (target, version, lines, more)


@pytest.mark.parametrize(
    "host",
    [
        pytest.param(b"a", id="a name"),
        pytest.param(b"Some-Name.example:8080", id="a name and a port"),
        pytest.param(b"lite_llm", id="an underscore, as in names of Compose services"),
        pytest.param(b"example.test.", id="a name with a trailing dot"),
        pytest.param(b"127.0.0.1:4000", id="IPv4"),
        pytest.param(b"[::1]", id="IPv6"),
        pytest.param(b"[::ffff:192.0.2.1]:4000", id="an IPv4-mapped IPv6 address and a port"),
        pytest.param(b"", id="empty"),
        pytest.param(b"a:", id="an empty port"),
        pytest.param(b"a%20b", id="percent-encoded"),
        pytest.param(b"a!$&'()*+;=~b", id="the sub-delims of RFC 3986 except the comma"),
        pytest.param(b"outbound|4000||litellm.default.svc", id="a cluster name, as in Envoy's health checks"),
        pytest.param(b"[fe80::1%25eth0]", id="an IPv6 zone"),
        pytest.param(b"[v1.fe]", id="an address of a future version"),
        pytest.param(b"\xc3\xa4.example", id="not ASCII"),
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_hosts(gateway: Gateway, upstream: Upstream, host: bytes, version: bytes) -> None:
    """uri-host [":" port] (RFC 9110 section 7.2), an empty value, and any other unambiguous value are forwarded."""
    assert gateway.ask(get(host, version=version)).status == 200
    assert upstream.requests[0].all(b"host") == [host]


@pytest.mark.parametrize(
    "host",
    [
        pytest.param(b"a b", id="a space"),
        pytest.param(b"a\tb", id="a tab"),
        pytest.param(b"a/b", id="a path"),
        pytest.param(b"a/b@c", id="a path and an at sign"),
        pytest.param(b"user@a", id="a user"),
        pytest.param(b"a,b", id="two hosts in one line"),
        pytest.param(b"a, b", id="two hosts in one line, with a space"),
        pytest.param(b"a?b", id="a query"),
        pytest.param(b"a#b", id="a fragment"),
        pytest.param(b"http://a", id="a URL"),
        pytest.param(b"a\\b", id="a backslash"),
        pytest.param(b'"a"', id="quotes"),
        pytest.param(b"<a>", id="angle brackets"),
        pytest.param(b"a:b", id="a port that is not a number"),
        pytest.param(b"a:1:2", id="two ports"),
        pytest.param(b"::1", id="IPv6 without brackets"),
        pytest.param(b"[::1", id="no closing bracket"),
        pytest.param(b"[::1]a", id="a character after the closing bracket"),
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_no_hosts(gateway: Gateway, upstream: Upstream, host: bytes, version: bytes) -> None:
    """A request with an invalid Host is refused (RFC 9112 section 3.2) and not forwarded."""
    response = gateway.ask(get(host, version=version))
    assert response.status == 400
    assert b"Host" in response.body
    assert gateway.ask(get(b"after")).status == 200
    assert [request.get(b"host") for request in upstream.requests] == [b"after"]


@pytest.mark.parametrize(
    ("target", "host"),
    [
        pytest.param(b"http://a,b/", b"a", id="an invalid host in the target"),
        pytest.param(b"http://:80/", b"a", id="only a port in the target (RFC 9110 section 4.2.1)"),
        pytest.param(b"http://a/", b"a b", id="an invalid Host, with a valid target"),
    ],
)
def test_no_host_of_an_absolute_target(upstream: Upstream, target: bytes, host: bytes) -> None:
    """The authority of an absolute target replaces Host, so both must be valid."""
    with Gateway(upstream.url) as gateway:
        assert gateway.ask(get(host, target=target)).status == 400
    assert upstream.requests == []


@pytest.fixture(scope="module")
def own_name(adapter: Adapter, running_upstream: Upstream) -> Iterator[Gateway]:
    """A gateway that sends upstream's own authority as Host."""
    with Gateway(running_upstream.url, "--pass-host-header", "false", adapter=adapter) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("octets", "told"),
    [
        pytest.param(get(b"client.test:81"), [b"client.test:81"], id="a name"),
        pytest.param(get(b""), [], id="empty"),
        pytest.param(get(version=b"1.0"), [], id="no Host, in HTTP/1.0"),
        pytest.param(
            get(b"client.test", more=b"X-Forwarded-Host: evil.test\r\n"),
            [b"client.test"],
            id="an untrusted peer's X-Forwarded-Host",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nA: b\r\nhoST:client.test\r\nContent-Length: 2\r\n\r\nhi",
            [b"client.test"],
            id="a request with content",
        ),
    ],
)
def test_own_name(own_name: Gateway, upstream: Upstream, octets: bytes, told: list[bytes]) -> None:
    """--pass-host-header=false: Host is upstream's own authority, and X-Forwarded-Host is the client's Host."""
    authority = b"127.0.0.1:%d" % upstream.port
    with own_name.connect() as client:
        assert client.ask(octets).status == 200
        if b"HTTP/1.1" in octets:
            assert client.ask(octets).status == 200  # the head is cached now
    for request in upstream.requests:
        assert request.all(b"host") == [authority]
        assert request.all(b"x-forwarded-host") == told


@pytest.mark.parametrize("options", [("--pass-host-header", "false"), ("--pass-host-header", "true"), ()], ids=repr)
def test_trusted_peer_tells_the_host(upstream: Upstream, adapter: Adapter, options: tuple[str, ...]) -> None:
    """A trusted peer's X-Forwarded-Host is forwarded, whatever --pass-host-header is."""
    octets = get(b"inner.test", more=b"X-Forwarded-Host: outer.test\r\n")
    with Gateway(upstream.url, "--trusted-proxies", "127.0.0.1", *options, adapter=adapter) as gateway:
        assert gateway.ask(octets).status == 200
    own = b"127.0.0.1:%d" % upstream.port
    assert upstream.requests[0].all(b"host") == [own if "false" in options else b"inner.test"]
    assert upstream.requests[0].all(b"x-forwarded-host") == [b"outer.test"]


def test_own_name_of_an_intercepted_request(own_name: Gateway, upstream: Upstream) -> None:
    """An intercepted request and its lookup have the same Host and X-Forwarded-Host as any other request."""
    body = b'{"key": "' + b"0" * 64 + b'", "permissions": {}}'
    head = b"POST /key/update HTTP/1.1\r\nHost: client.test\r\nContent-Length: %d\r\n" % len(body)
    assert own_name.ask(head + b"Content-Type: application/json\r\n\r\n" + body).status == 200
    assert [request.target.partition(b"?")[0] for request in upstream.requests] == [b"/key/info", b"/key/update"]
    for request in upstream.requests:
        assert request.all(b"host") == [b"127.0.0.1:%d" % upstream.port]
        assert request.all(b"x-forwarded-host") == [b"client.test"]


@pytest.mark.parametrize("trusted", [(), ("--trusted-proxies", "127.0.0.1")], ids=["untrusted", "trusted"])
@pytest.mark.parametrize("passed", ["true", "false"])
def test_lookup_key_goes_to_upstreams_own_name(
    upstream: Upstream, adapter: Adapter, tmp_path: Path, trusted: tuple[str, ...], passed: str
) -> None:
    """The lookup with the gateway's own key has upstream's own Host, and no host that the caller has chosen."""

    def script(connection: Connection) -> None:
        if connection.read_request().method == b"POST":
            connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL))
        else:
            connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}")

    upstream.script = script
    file = tmp_path / "key"
    file.write_text(KEY)
    chosen = (
        b"Host: chosen.test\r\nX-Forwarded-Host: chosen.test\r\nForwarded: host=chosen.test\r\n"
        b"X-Original-Host: chosen.test\r\nX-Host: chosen.test\r\nX-Forwarded-Server: chosen.test\r\n"
    )
    head = b"POST /key/update HTTP/1.1\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    options = ("--lookup-key-file", str(file), "--pass-host-header", passed, *trusted)
    with Gateway(upstream.url, *options, adapter=adapter) as gateway:
        assert gateway.ask(head % (chosen, len(UPDATE)) + UPDATE).status == 403
    with_key = [each for each in upstream.requests if each.get(b"authorization") == b"Bearer " + KEY.encode()]
    assert len(with_key) == 1
    assert with_key[0].all(b"host") == [b"127.0.0.1:%d" % upstream.port]
    assert b"chosen" not in with_key[0].raw_head


def test_repeated_host(upstream: Upstream) -> None:
    """Host is forwarded unchanged each time a client repeats a head."""
    upstream.script = reply(OK)
    with Gateway(upstream.url) as gateway, gateway.connect() as client:
        for _ in range(3):
            assert client.ask(get(b"[::1]:80")).status == 200
    assert [request.get(b"host") for request in upstream.requests] == [b"[::1]:80"] * 3

"""Each configuration in deploy/proxies, run by its program, with two upstreams.

Only requests that can need repair go to the gateway. The proxy relays all others to LiteLLM, as any proxy in front of
LiteLLM must: events one by one, and WebSockets as tunnels.

The tests replace the ports, and add settings with which the program needs no root and leaves nothing behind.
"""

import ipaddress
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy import proxies
from tests.deploy.proxies import FILES, command, configure, running
from tests.support.client import Client, ask
from tests.support.gateway import free_port
from tests.support.upstream import CLOSE, Connection, Upstream, reply

GATEWAY, LITELLM = b"gateway", b"litellm"


@dataclass
class Proxy:
    """A running proxy and its two upstreams."""

    name: str
    address: tuple[str, int]
    gateway: Upstream
    litellm: Upstream


def answers(name: bytes) -> Upstream:
    return Upstream(reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name)))


@pytest.fixture(scope="module", params=FILES)
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    file: str = request.param
    name = Path(file).stem
    directory = tmp_path_factory.mktemp(name)
    port = free_port()
    with answers(GATEWAY) as gateway, answers(LITELLM) as litellm, answers(b"ready") as admin:
        ports = {proxies.LITELLM: litellm.port, proxies.GATEWAY: gateway.port, proxies.ADMIN: admin.port}
        configuration = configure(file, directory, {**ports, proxies.PROXY: port})
        with running(command(name, directory, configuration), directory, port):
            yield Proxy(name, ("127.0.0.1", port), gateway, litellm)


ROUTES = {
    "the update": (b"POST", b"/key/update", GATEWAY),
    "with a query": (b"POST", b"/key/update?a=%20b&c", GATEWAY),
    "with an empty query": (b"POST", b"/key/update?", GATEWAY),
    "regenerate, the key in the body": (b"POST", b"/key/regenerate", GATEWAY),
    "regenerate, the key in the path": (b"POST", b"/key/sk-1.2_3/regenerate", GATEWAY),
    "another method": (b"GET", b"/key/update", LITELLM),
    "a preflight": (b"OPTIONS", b"/key/update", LITELLM),
    "another method, regenerate": (b"PUT", b"/key/sk-1/regenerate", LITELLM),
    "a trailing slash": (b"POST", b"/key/update/", LITELLM),
    "a longer name": (b"POST", b"/key/updates", LITELLM),
    "another letter case": (b"POST", b"/Key/Update", LITELLM),
    "a prefix": (b"POST", b"/x/key/update", LITELLM),
    "another endpoint": (b"POST", b"/key/generate", LITELLM),
    "two segments": (b"POST", b"/key/a/b/regenerate", LITELLM),
    "below regenerate": (b"POST", b"/key/a/regenerate/b", LITELLM),
    "the path in a query": (b"POST", b"/chat/completions?/key/update", LITELLM),
    "a completion": (b"POST", b"/v1/chat/completions", LITELLM),
    "the dashboard": (b"GET", b"/ui/?page=api-keys", LITELLM),
    "encoded octets elsewhere": (b"GET", b"/a%2Fb/%7e?x=%2f", LITELLM),
}


@pytest.mark.parametrize(("method", "target", "way"), ROUTES.values(), ids=ROUTES.keys())
def test_only_what_can_need_repair_goes_to_the_gateway(proxy: Proxy, method: bytes, target: bytes, way: bytes) -> None:
    """Exactly the requests that can need repair reach the gateway, and every target arrives as it was sent."""
    upstream = proxy.gateway if way == GATEWAY else proxy.litellm
    before = len(upstream.requests)
    answer = ask(
        proxy.address, method + b" " + target + b" HTTP/1.1\r\nHost: h.example:1\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert (200, way) == (answer.status, answer.body)
    request = upstream.wait_request(before + 1)
    assert (target, b"{}") == (request.target, request.body)
    assert request.all(b"host") == [b"h.example:1"]


def test_an_encoded_spelling_goes_where_the_file_says(proxy: Proxy) -> None:
    """nginx compares decoded paths, as LiteLLM does. The other proxies send an encoded path directly to LiteLLM."""
    answer = ask(proxy.address, b"POST /key/%75pdate HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
    assert answer.body == (GATEWAY if proxy.name == "nginx" else LITELLM)
    upstream = proxy.gateway if proxy.name == "nginx" else proxy.litellm
    assert upstream.requests[-1].target == b"/key/%75pdate"


def test_the_client_is_named_by_the_proxy(proxy: Proxy) -> None:
    """The gateway gets the client's address and scheme from the proxy, and the client can forge neither."""
    head = b"POST /key/update HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"
    ask(proxy.address, head + b"Content-Length: 2\r\n\r\n{}")
    request = proxy.gateway.requests[-1]
    last = b",".join(request.all(b"x-forwarded-for")).split(b",")[-1].strip()
    if proxy.name == "envoy":  # for a client on loopback, it sends another of the machine's addresses
        assert str(ipaddress.ip_address(last.decode())) != "6.6.6.6"
    else:
        assert last == b"127.0.0.1"
    assert request.all(b"x-forwarded-proto") == [b"http"]


EVENTS = {
    "chunked": (b"Transfer-Encoding: chunked", b"9\r\ndata: 1\n\n\r\n", b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"),
    "until the connection closes": (b"Connection: close", b"data: 1\n\n", b"data: 2\n\n"),
}


@pytest.mark.parametrize(("framing", "first", "second"), EVENTS.values(), ids=EVENTS.keys())
def test_events_arrive_one_by_one(proxy: Proxy, framing: bytes, first: bytes, second: bytes) -> None:
    """The proxy relays each event without waiting for the next one."""
    seen = threading.Event()
    usual = proxy.litellm.script
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + framing + b"\r\n\r\n"
    end = [CLOSE] if framing == b"Connection: close" else []
    proxy.litellm.script = reply(head + first, seen, second, *end)
    try:
        with Client(proxy.address) as client:
            client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
            client.read_until(b"data: 1\n\n")
            seen.set()
            client.read_until(b"data: 2\n\n")
    finally:
        seen.set()
        proxy.litellm.script = usual


def test_a_websocket_is_tunnelled(proxy: Proxy) -> None:
    """An upgrade reaches LiteLLM as an upgrade, and then octets are relayed in both directions."""

    def script(connection: Connection) -> None:
        request = connection.read_request()
        assert request.get(b"upgrade") == b"websocket"
        assert (request.get(b"connection") or b"").lower() == b"upgrade"
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello"
        )
        connection.read_until(b"ping")
        connection.send(b"pong")

    usual = proxy.litellm.script
    proxy.litellm.script = script
    try:
        with Client(proxy.address) as client:
            client.send(
                b"GET /v1/realtime?model=m HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert client.read_head().status == 101
            client.read_until(b"hello")
            client.send(b"ping")
            client.read_until(b"pong")
    finally:
        proxy.litellm.script = usual


def test_an_upload_of_any_size_passes(proxy: Proxy) -> None:
    """The proxy relays a key update with content of 3 MiB, which is more than nginx's default limit of 1 MB.

    The gateway streams content of that size without inspecting it.
    """
    size = 3 * 1024 * 1024
    answer = ask(
        proxy.address, b"POST /key/update HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size, b"x" * size
    )
    assert (answer.status, answer.body) == (200, GATEWAY)
    assert len(proxy.gateway.requests[-1].body) == size

"""A gateway behind an nginx that is configured with only `proxy_pass`. Such an nginx speaks HTTP/1.0 and buffers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.deploy.proxies import command, running
from tests.support.client import Client, ask
from tests.support.gateway import Adapter, Gateway, free_port
from tests.support.upstream import CLOSE, Connection, Upstream, perform, reply

CONFIGURATION = """\
server {{
    listen 127.0.0.1:{nginx};
    location / {{
        proxy_pass http://127.0.0.1:{gateway};
    }}
    location /upgraded/ {{
        proxy_pass http://127.0.0.1:{gateway};
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection upgrade;
    }}
}}
"""


@dataclass
class Chain:
    """nginx at ``address``, which relays to ``gateway``, which relays to ``upstream``."""

    address: tuple[str, int]
    gateway: Gateway
    upstream: Upstream


@pytest.fixture(scope="module", params=["native", "asgi"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    directory, port = tmp_path_factory.mktemp("nginx"), free_port()
    adapter: Adapter = request.param
    with Upstream() as upstream, Gateway(upstream.url, adapter=adapter) as gateway:
        configuration = directory / "default.conf"
        configuration.write_text(CONFIGURATION.format(nginx=port, gateway=gateway.address[1]))
        with running(command("nginx", directory, configuration), directory, port):
            yield Chain(("127.0.0.1", port), gateway, upstream)


@pytest.fixture(autouse=True)
def fresh(chain: Chain) -> None:
    chain.upstream.restart()


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "until the connection closes"])
def test_events_arrive_one_by_one(chain: Chain, chunked: bool) -> None:
    """Events are relayed one by one: each is sent only after the client has received the one before it.

    The log recommends `proxy_http_version 1.1`.
    """
    received = [threading.Event() for _ in range(5)]
    events = [b"data: %d\n\n" % number for number in range(len(received))]

    def script(connection: Connection) -> None:
        assert connection.read_request().method == b"POST"
        framing = b"Transfer-Encoding: chunked" if chunked else b"Connection: close"
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n\r\n" % framing)
        for event, seen in zip(events, received, strict=True):
            perform(connection, b"%x\r\n%b\r\n" % (len(event), event) if chunked else event, seen)
        perform(connection, b"0\r\n\r\n" if chunked else CLOSE)

    chain.upstream.script = script
    try:
        with Client(chain.address) as client:
            client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
            head = client.read_head()
            for event, seen in zip(events, received, strict=True):
                client.read_until(event)
                seen.set()
    finally:
        for seen in received:
            seen.set()
    assert head.get(b"x-accel-buffering") is None, "nginx keeps that to itself"
    chain.gateway.wait_for_line("proxy_http_version 1.1")


def test_an_update_is_repaired(chain: Chain) -> None:
    """An intercepted request in HTTP/1.0 is looked up and repaired as one in HTTP/1.1 is."""
    key = "0123456789abcdef" * 4
    stored = json.dumps({"key": key, "info": {"allowed_routes": ["info_routes"]}}).encode()

    def script(connection: Connection) -> None:
        content = stored if connection.read_request().target.startswith(b"/key/info") else b"{}"
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)

    chain.upstream.script = script
    body = b'{"key":"%b","allowed_routes":["info_routes"],"models":[]}' % key.encode()
    answer = ask(chain.address, b"POST /key/update HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    assert answer.get(b"x-litellm-sanitizer") == b'dropped; fields="allowed_routes"'
    assert chain.upstream.requests[-1].body == b'{"key":"%b","models":[]}' % key.encode()


def test_an_upgrade_is_not_passed_on_but_explained(chain: Chain) -> None:
    """An upgrade in HTTP/1.0 is forwarded without Upgrade. The native adapter logs once how to configure nginx."""
    chain.upstream.script = reply(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    head = b"GET /upgraded/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert [ask(chain.address, head).status for _ in range(2)] == [404, 404]
    assert [request.get(b"upgrade") for request in chain.upstream.requests] == [None, None]
    if chain.gateway.adapter == "native":  # under ASGI, no setting of nginx would help
        chain.gateway.wait_for_line("upgrade.*proxy_http_version 1.1")
        assert sum("upgrade" in line for line in chain.gateway.lines) == 1

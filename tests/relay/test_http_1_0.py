"""Clients that speak HTTP/1.0, as nginx does by default. `tests.deploy.test_default_nginx` runs a real nginx."""

from __future__ import annotations

import json
import threading

import pytest

from tests.support.client import Client
from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import CLOSE, OK, Connection, Upstream, in_turn, perform, reply

GET = b"GET / HTTP/1.0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n%b\r\n2\r\nok\r\n0\r\n\r\n"
KEY = "0123456789abcdef" * 4
UPDATE = b'{"key":"%b","allowed_routes":["info_routes"],"models":[]}' % KEY.encode()

ANSWERS = {
    "chunked": (GET, CHUNKED % b"", [b"no"]),
    "delimited by the close of the connection": (GET, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", [b"no"]),
    "chunked, to an intercepted request": (
        b"POST /key/update HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
        CHUNKED % b"",
        [b"no"],
    ),
    "upstream forbids buffering": (GET, CHUNKED % b"X-Accel-Buffering: no\r\n", [b"no"]),
    "upstream allows buffering": (GET, CHUNKED % b"x-ACCEL-buffering: yes\r\n", [b"yes"]),
    "with Content-Length": (GET, OK, []),
    "without content": (GET, b"HTTP/1.1 204 No Content\r\n\r\n", []),
    "chunked, to HEAD": (GET.replace(b"GET", b"HEAD"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", []),
    "chunked, to an HTTP/1.1 client": (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        CHUNKED % b"",
        [],
    ),
}


@pytest.mark.parametrize(("request_", "answer", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_of_unknown_length_is_not_to_be_buffered(
    gateway: Gateway, upstream: Upstream, request_: bytes, answer: bytes, expected: list[bytes]
) -> None:
    """An HTTP/1.0 response of unknown length gets ``X-Accel-Buffering: no`` unless upstream has set that field."""
    steps = [answer] if b"close" not in answer else [answer, CLOSE]
    upstream.script = reply(*steps)
    response = gateway.ask(request_)
    assert response.all(b"x-accel-buffering") == expected
    if b"ok" in answer:
        assert response.body == b"ok"


def test_what_to_set_is_said_once(adapter: Adapter, upstream: Upstream) -> None:
    """Only the first response that gets the field from the gateway is logged, with nginx settings that help."""
    upstream.script = in_turn(reply(CHUNKED % b"X-Accel-Buffering: no\r\n"), reply(CHUNKED % b""))
    with Gateway(upstream.url, adapter=adapter) as gateway:
        gateway.ask(GET)
        assert not any("proxy_buffering" in line for line in gateway.lines)
        for _ in range(3):
            gateway.ask(GET)
        gateway.wait_for_line("proxy_http_version 1.1;.*proxy_set_header Connection.*proxy_buffering off;")
    assert sum("proxy_buffering" in line for line in gateway.lines) == 1


@pytest.mark.parametrize("alias", [False, True], ids=["by key", "by alias"])
def test_an_update_without_host_is_looked_up(gateway: Gateway, upstream: Upstream, alias: bool) -> None:
    """If an HTTP/1.0 update has no Host, both it and its lookup get upstream's, because they are sent in HTTP/1.1."""
    info = {"allowed_routes": ["info_routes"], "key_alias": KEY}
    stored = json.dumps({"info": [info]} if alias else {"key": KEY, "info": info}).encode()

    def script(connection: Connection) -> None:
        content = stored if b"/key/info" in connection.read_request().target else b"{}"
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)

    upstream.script = script
    body = UPDATE.replace(b'"key"', b'"key_alias"') if alias else UPDATE
    response = gateway.ask(b"POST /key/update HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    assert response.get(b"x-litellm-sanitizer") == b'dropped; fields="allowed_routes"'
    assert [request.all(b"host") for request in upstream.requests] == [[b"127.0.0.1:%d" % upstream.port]] * 2


@pytest.mark.parametrize("path", [b"/", b"/key/update"])
def test_an_expectation_is_ignored(gateway: Gateway, upstream: Upstream, path: bytes) -> None:
    """A 100-continue expectation of an HTTP/1.0 client is ignored, and not forwarded (RFC 9110 section 10.1.1)."""
    arrived = threading.Event()

    def script(connection: Connection) -> None:
        request = connection.read_request()
        assert request.all(b"expect") == []
        arrived.set()
        perform(connection, OK)

    upstream.script = script
    head = b"POST %b HTTP/1.0\r\nExpect: 100-Continue \r\nX-A: 1\r\nContent-Length: 2\r\n\r\n{}" % path
    with Client(gateway.address) as client:
        client.send(head)
        assert arrived.wait(10)
        interim: list[object] = []
        assert client.read_response(interim=interim).status == 200  # type: ignore[arg-type]
    assert upstream.requests[0].get(b"x-a") == b"1"
    if gateway.adapter == "native":  # uvicorn sends 100 (Continue) in every version
        assert interim == []


def test_another_expectation_passes(gateway: Gateway, upstream: Upstream) -> None:
    """An unknown expectation is forwarded unchanged."""
    assert gateway.ask(b"GET / HTTP/1.0\r\nExpect: something\r\n\r\n").status == 200
    assert upstream.requests[0].get(b"expect") == b"something"


def test_an_upgrade_is_explained(upstream: Upstream) -> None:
    """An upgrade in HTTP/1.0 is forwarded as an ordinary request, and one log line says why."""
    asks = b"GET / HTTP/1.%b\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with Gateway(upstream.url) as gateway:
        gateway.ask(asks % b"1")
        gateway.ask(b"GET / HTTP/1.0\r\nUpgrade: websocket\r\n\r\n")  # no upgrade without Connection
        assert not any("upgrade" in line for line in gateway.lines)
        for _ in range(2):
            assert gateway.ask(asks % b"0").body == b"ok"
        gateway.wait_for_line("upgrade.*proxy_http_version 1.1")
    assert sum("upgrade" in line for line in gateway.lines) == 1
    assert [request.get(b"upgrade") for request in upstream.requests] == [b"websocket", None, None, None]

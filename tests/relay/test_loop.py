"""Forwarding loops: a gateway whose requests return to itself responds with 508."""

import pytest

from tests.support.gateway import Adapter, Gateway, free_port
from tests.support.upstream import Upstream

GET = b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n"


def test_itself(adapter: Adapter) -> None:
    """A gateway that is its own upstream responds with 508, with an error in JSON."""
    port = free_port()
    with Gateway(f"http://127.0.0.1:{port}", adapter=adapter, listen=("--port", str(port))) as gateway:
        response = gateway.ask(GET)
    assert response.status == 508
    assert b'"error"' in response.body


@pytest.mark.parametrize("body", [b'{"key": "sk-1", "models": []}', b'{"key": "sk-1", "allowed_routes": []}'])
def test_intercepted(adapter: Adapter, body: bytes) -> None:
    """The response to an intercepted request in a loop is 508, whether or not a lookup is made for it."""
    port = free_port()
    head = b"POST /key/update HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with Gateway(f"http://127.0.0.1:{port}", adapter=adapter, listen=("--port", str(port))) as gateway:
        assert gateway.ask(head % len(body) + body).status == 508


def test_two_in_a_circle() -> None:
    """Two gateways that are each other's upstream respond with 508."""
    ports = free_port(), free_port()
    with (
        Gateway(f"http://127.0.0.1:{ports[1]}", listen=("--port", str(ports[0]))) as gateway,
        Gateway(f"http://127.0.0.1:{ports[0]}", listen=("--port", str(ports[1]))),
    ):
        assert gateway.ask(GET).status == 508


def test_two_in_line() -> None:
    """Two gateways one behind the other are not a loop. Upstream receives two Via lines with different values."""
    with Upstream() as upstream, Gateway(upstream.url) as inner, Gateway(inner.url) as outer:
        assert outer.ask(GET).status == 200
        first, second = upstream.requests[0].all(b"via")
        assert first != second

"""What a client does to the gateway, or could be told wrongly by it: found by trying to break it."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support.client import Client
from tests.support.gateway import Gateway
from tests.support.upstream import CLOSE, OK, Upstream, reply
from tests.support.wire import Cut

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MIB = 1024 * 1024


def read_to_the_end(client: Client) -> None:
    while client.sock.recv(65536):
        pass


def send_for_ever(client: Client) -> None:
    for _ in range(100_000):
        client.send(GET * 100)


def test_cut_answer_resets_an_http_1_0_client(upstream: Upstream) -> None:
    """An answer that lasts until the connection closes must not end in good order when upstream has broken off."""
    upstream.script = reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", CLOSE)
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway, gateway.connect() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(OSError, match="reset"):
            read_to_the_end(client)


def test_an_empty_line_keeps_no_connection(upstream: Upstream) -> None:
    """CRLF behind a request, which some clients send, does not switch the idle timeout off."""
    upstream.script = reply(OK)
    with (
        Gateway(upstream.url, "--keepalive-timeout", "0.3", "--shutdown-grace", "0") as gateway,
        gateway.connect() as client,
    ):
        client.send(GET + b"\r\n")
        assert client.read_response().status == 200
        assert client.closed()


def test_many_requests_and_no_reader(upstream: Upstream) -> None:
    """A client that pipelines and does not read holds one answer or so in memory, not all of them."""
    size = 50_000  # one write each
    upstream.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway, gateway.connect() as client:
        assert client.ask(GET).status == 200
        before = gateway.memory()
        client.sock.settimeout(1)
        with pytest.raises((TimeoutError, BlockingIOError)):  # at last nothing more is taken
            send_for_ever(client)
        assert gateway.memory() - before < 20 * MIB


def test_authority_of_an_intercepted_request(upstream: Upstream) -> None:
    """The authority of an absolute target takes Host's place, however the request goes (RFC 9112 section 3.2.2)."""
    upstream.script = reply(OK)
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway:
        for path in (b"/key/update", b"/other"):
            head = b"POST http://real.example%b HTTP/1.1\r\nHost: other\r\nContent-Length: 2\r\n\r\n{}" % path
            assert gateway.ask(head).status == 200
    assert [request.get(b"host") for request in upstream.requests] == [b"real.example"] * 2


def test_nobody_waits_in_the_backlog_of_a_draining_supervisor(upstream: Upstream) -> None:
    """With workers too, the listener closes when the time to go on accepting is over."""
    upstream.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na")
    with Gateway(upstream.url, "--workers", "2", "--shutdown-grace", "6") as gateway, gateway.connect() as client:
        client.send(GET)
        client.read_head()
        gateway.terminate()
        gateway.wait_for_line("stopping")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # by the clock: a fast machine is answered a thousand times in that second
            try:
                with socket.create_connection(gateway.address, timeout=10) as late:  # type: ignore[arg-type]
                    late.sendall(GET)
                    late.recv(1)
            except (ConnectionRefusedError, ConnectionResetError, Cut):
                break
        else:
            pytest.fail("still accepting")
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):  # the drain goes on
            read_to_the_end(client)

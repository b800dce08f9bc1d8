"""Clients that misbehave, and responses that could mislead a client: cases found by trying to break the gateway."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.client import Client
from tests.support.gateway import Gateway
from tests.support.upstream import CLOSE, OK, WAIT_CLOSED, Connection, Upstream, reply
from tests.support.wire import Cut, send_until_blocked

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MIB = 1024 * 1024


def read_to_the_end(client: Client) -> None:
    while client.sock.recv(65536):
        pass


def send_for_ever(client: Client) -> None:
    for _ in range(100_000):
        client.send(GET * 100)


def test_cut_answer_resets_an_http_1_0_client(upstream: Upstream) -> None:
    """An HTTP/1.0 client is reset if upstream closes the connection before its response is complete."""
    upstream.script = reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", CLOSE)
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway, gateway.connect() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(OSError, match="reset"):
            read_to_the_end(client)


def test_an_empty_line_keeps_no_connection(upstream: Upstream) -> None:
    """A CRLF after a request, which some clients send, does not disable the keep-alive timeout."""
    upstream.script = reply(OK)
    with (
        Gateway(upstream.url, "--keepalive-timeout", "2", "--shutdown-grace", "0") as gateway,
        gateway.connect() as client,
    ):
        client.send(GET + b"\r\n")
        assert client.read_response().status == 200
        assert client.closed()


def test_many_requests_and_no_reader(upstream: Upstream) -> None:
    """A client that pipelines requests and does not read can't fill the gateway's memory with responses."""
    size = 50_000  # each response is one write
    upstream.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway, gateway.connect() as client:
        assert client.ask(GET).status == 200
        before = gateway.memory()
        client.sock.settimeout(1)
        with pytest.raises((TimeoutError, BlockingIOError)):  # in the end, the gateway reads nothing more
            send_for_ever(client)
        assert gateway.memory() - before < 20 * MIB


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\r\n", id="an empty line"),
        pytest.param(b"G", id="part of a request"),
        pytest.param(GET, id="another request"),
    ],
)
@pytest.mark.parametrize("path", [b"/", b"/key/update"])
def test_client_leaves_with_more_behind_its_request(upstream: Upstream, path: bytes, behind: bytes) -> None:
    """A disconnect is detected, whatever the client has sent after the request in progress."""
    left = threading.Event()

    def script(connection: Connection) -> None:
        reply(WAIT_CLOSED)(connection)
        left.set()

    upstream.script = script
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway, gateway.connect() as client:
        client.send(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % path + behind)
        upstream.wait_request(1)
        client.close()
        assert left.wait(30)


@pytest.mark.parametrize("path", [b"/", b"/key/update"])
def test_half_close_of_a_client_that_does_not_read(upstream: Upstream, path: bytes) -> None:
    """A FIN from a client that has stopped reading its response ends the exchange and resets the client."""
    stuck = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        send_until_blocked(connection, 100 * MIB)
        stuck.set()
        assert connection.closed()

    upstream.script = script
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway, gateway.connect() as client:
        client.send(b"POST %b HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % path)
        assert stuck.wait(30)
        client.half_close()
        upstream.wait_closed()
        with pytest.raises(Cut) as cut:
            client.read_to_end()
        assert cut.value.reset


@pytest.mark.parametrize("path", [b"/", b"/key/update"])
def test_half_close_in_an_answer(upstream: Upstream, path: bytes) -> None:
    """A client that sends FIN during a response which ends with the connection is reset, and the exchange ends."""
    upstream.script = reply(b"HTTP/1.1 200 OK\r\n\r\ncontent", WAIT_CLOSED)
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway, gateway.connect() as client:
        client.send(b"POST %b HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % path)
        client.read_until(b"content")
        client.half_close()
        with pytest.raises(Cut) as cut:
            client.read_to_end()
        assert cut.value.reset
        upstream.wait_closed()


def test_slow_readers_get_it_all(upstream: Upstream) -> None:
    """A response is not cut off while its client reads some of it from time to time, however long all of it takes.

    The last octets, which do not fit into the kernel's buffers, wait in the gateway. Several sizes are tried, because
    the size of these buffers varies.
    """

    def script(connection: Connection) -> None:
        size = int(connection.read_request().target[1:])
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))

    def read(size: int) -> int:
        with Client(gateway.address, receive_buffer=8192, keep=False) as client:
            client.send(b"GET /%d HTTP/1.0\r\n\r\n" % size)
            client.read_head()
            taken = 0
            while data := client.recv(8192):
                taken += len(data)
                time.sleep(0.01)  # all of the response takes several times the timeout
            return taken

    upstream.script = script
    sizes = range(2_600_000, 5_000_000, 200_000)
    with (
        Gateway(upstream.url, "--keepalive-timeout", "1", "--shutdown-grace", "0") as gateway,
        ThreadPoolExecutor(len(sizes)) as pool,
    ):
        assert list(pool.map(read, sizes)) == list(sizes)


@pytest.mark.parametrize("path", [b"/", b"/key/update"])
def test_early_answer_says_that_the_connection_ends(upstream: Upstream, path: bytes) -> None:
    """A response that upstream sends before it has received all content has Connection: close."""
    upstream.script = reply(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n", early=True)
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway, gateway.connect() as client:
        client.send(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n" % path)
        response = client.read_response()
        assert (response.status, response.get(b"connection")) == (413, b"close")


def test_authority_of_an_intercepted_request(upstream: Upstream) -> None:
    """The authority of an absolute target replaces Host, in an intercepted request too (RFC 9112 section 3.2.2)."""
    upstream.script = reply(OK)
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway:
        for path in (b"/key/update", b"/other"):
            head = b"POST http://real.example%b HTTP/1.1\r\nHost: other\r\nContent-Length: 2\r\n\r\n{}" % path
            assert gateway.ask(head).status == 200
    assert [request.get(b"host") for request in upstream.requests] == [b"real.example"] * 2


def test_nobody_waits_in_the_backlog_of_a_draining_supervisor(upstream: Upstream) -> None:
    """With workers, the listener is closed during a drain, while requests in progress go on."""
    upstream.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na")
    with Gateway(upstream.url, "--workers", "2", "--shutdown-grace", "6") as gateway, gateway.connect() as client:
        client.send(GET)
        client.read_head()
        gateway.terminate()
        gateway.wait_for_line("stopping")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # not by the number of attempts: a fast machine makes a thousand of them
            try:
                with socket.create_connection(gateway.address, timeout=10) as late:  # type: ignore[arg-type]
                    late.sendall(GET)
                    late.recv(1)
            except (ConnectionRefusedError, ConnectionResetError, Cut):
                break
        else:
            pytest.fail("the listener still accepts connections")
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):  # the drain goes on
            read_to_the_end(client)

"""Drains, and upstreams that restart: requests in progress are finished, and those that cannot be finished fail."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import Client
from tests.support.gateway import Gateway
from tests.support.upstream import OK, Connection, Upstream, reply
from tests.support.wire import Cut, send_until_blocked

GET = b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"9\r\ndata: 1\n\n\r\n"
HANDSHAKE = b"GET /ws HTTP/1.1\r\nHost: example.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


class Work:
    """A stream, an upload and a tunnel in progress through a gateway. ``go_on`` lets the stream end."""

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        self.go_on = threading.Event()
        upstream.script = self._serve
        self.stream, self.upload, self.tunnel = (gateway.connect() for _ in range(3))
        self.stream.send(GET)
        assert self.stream.read_head().status == 200
        self.stream.read_until(EVENT)
        self.upload.send(b"POST /up HTTP/1.1\r\nHost: example.test\r\nContent-Length: 10\r\n\r\nhello")
        upstream.wait_for(lambda: b"hello" in upstream.received)
        self.tunnel.send(HANDSHAKE)
        assert self.tunnel.read_response().status == 101

    def _serve(self, connection: Connection) -> None:
        request = connection.read_head()
        if request.method == b"POST":
            connection.read_body(request)
            connection.send(OK)
        elif request.target == b"/ws":
            connection.send(SWITCH)
            while data := connection.recv():
                connection.send(data.upper())
        else:
            connection.send(SSE, EVENT)
            if self.go_on.wait(20):
                connection.send(EVENT, b"0\r\n\r\n")

    def finish(self) -> None:
        """Check that all three can continue, and let them end in good order."""
        self.tunnel.send(b"still there?")
        assert self.tunnel.read_exactly(12) == b"STILL THERE?"
        self.upload.send(b"world")
        assert self.upload.read_response().body == b"ok"
        self.go_on.set()
        assert self.stream.read_until(b"0\r\n\r\n") == EVENT + b"0\r\n\r\n"
        self.tunnel.half_close()
        assert self.tunnel.read_to_end() == b""

    def close(self) -> None:
        self.go_on.set()
        for client in (self.stream, self.upload, self.tunnel):
            client.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.mark.parametrize("workers", [1, 2])
def test_drain(upstream: Upstream, workers: int) -> None:
    """After SIGTERM a stream, an upload and a tunnel are finished; then the process ends with status 0."""
    with Gateway(upstream.url, "--workers", str(workers), "--shutdown-grace", "12") as gateway:
        work = Work(gateway, upstream)
        try:
            gateway.terminate()
            gateway.wait_for_line("stopping")
            # new clients are still served for a sixth of the grace period, with one response per connection
            answer = gateway.ask(
                GET.replace(b"GET /", b"POST /").replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n")
            )
            assert answer.status == 200
            work.finish()
            assert gateway.wait() == 0
        finally:
            work.close()
        assert not any("aborting" in line for line in gateway.lines), gateway.lines


@pytest.mark.parametrize("workers", [1, 2])
def test_grace_is_over(upstream: Upstream, workers: int) -> None:
    """After the grace period, responses in progress are cut off, so that none looks complete. The exit status is 0."""
    with Gateway(upstream.url, "--workers", str(workers), "--shutdown-grace", "0.6") as gateway:
        work = Work(gateway, upstream)
        try:
            gateway.terminate()
            assert gateway.wait() == 0
            with pytest.raises(Cut):
                work.stream.read_until(b"0\r\n\r\n")
            with pytest.raises(Cut):
                work.upload.read_response()
            assert work.tunnel.closed()
        finally:
            work.close()
        assert not all(each.complete for each in upstream.requests if each.method == b"POST")


def test_idle_connections_do_not_hold_it_up(upstream: Upstream) -> None:
    """A client with an idle connection does not delay the end of the gateway."""
    with Gateway(upstream.url, "--shutdown-grace", "30") as gateway, gateway.connect() as client:
        assert client.ask(GET).status == 200
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.wait(10) == 0
        assert client.closed()
        assert not any("aborting" in line for line in gateway.lines)


@pytest.mark.parametrize("workers", [1, 2])
def test_second_signal(upstream: Upstream, workers: int) -> None:
    """A second signal ends the drain: requests in progress are aborted."""
    with Gateway(upstream.url, "--workers", str(workers), "--shutdown-grace", "30") as gateway:
        work = Work(gateway, upstream)
        try:
            gateway.terminate()
            gateway.wait_for_line("stopping")
            gateway.terminate()
            assert gateway.wait(10) == 0
            with pytest.raises(Cut):
                work.stream.read_until(b"0\r\n\r\n")
        finally:
            work.close()


def test_worker_dies(upstream: Upstream) -> None:
    """The gateway continues to serve requests after one of its workers has died."""
    with Gateway(upstream.url, "--workers", "2") as gateway:
        assert gateway.ask(GET).status == 200
        children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
        workers = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        gateway.wait_for_line("a worker has died")
        assert [gateway.ask(GET).status for _ in range(5)] == [200] * 5


def test_upstream_restarts() -> None:
    """Requests get 502 while upstream is down, and are answered on a new connection once it is up again."""
    with Upstream() as first:
        port = first.port
        gateway = Gateway(first.url)
        client = gateway.connect()
        assert client.ask(GET).status == 200
    with gateway, client:
        response = client.ask(GET)
        assert response.status == 502
        assert str(port).encode() not in response.body
        with Upstream(port=port) as second:
            assert client.ask(GET).status == 200
            assert client.ask(GET.replace(b"GET", b"POST").replace(b"Host", b"Content-Length: 0\r\nHost")).status == 200
            assert [each.connection for each in second.requests] == [0, 0]


def test_upstream_restarts_under_load(upstream: Upstream) -> None:
    """If upstream restarts, only the requests that it was working on fail."""
    held = threading.Event()
    upstream.script = reply(held, OK)
    with Gateway(upstream.url) as gateway:
        clients = [gateway.connect() for _ in range(4)]
        for client in clients:
            client.send(GET)
        upstream.wait_request(4)
        for connection in upstream.connections:
            connection.sock.shutdown(2)  # as the kernel does when a process has ended
        assert [client.read_response().status for client in clients] == [502] * 4
        held.set()
        upstream.script = reply(OK)
        assert [client.ask(GET).status for client in clients] == [200] * 4
        for client in clients:
            client.close()


def test_answer_to_an_upload_that_upstream_does_not_take() -> None:
    """A response without a length ends with upstream's FIN, even if upstream has not read all of the upload."""
    stuck, answered = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        connection.read_head()
        assert stuck.wait(30)
        connection.send(b"HTTP/1.1 413 Content Too Large\r\n\r\nno")
        connection.half_close()
        assert answered.wait(30)  # it reads nothing in the meantime

    with (
        Upstream(script, receive_buffer=8192) as upstream,
        Gateway(upstream.url) as gateway,
        gateway.connect() as client,
    ):
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
        send_until_blocked(client, 100_000_000)
        stuck.set()
        response = client.read_response()
        answered.set()
        assert (response.status, response.body, response.complete) == (413, b"no", True)


def test_client_without_an_address(upstream: Upstream) -> None:
    """A client that resets its connection before it is accepted has no address, so its request is not forwarded."""
    with Gateway(upstream.url, "--trusted-proxies", "unix") as gateway:
        os.kill(gateway.pid, signal.SIGSTOP)
        for _ in range(5):
            with gateway.connect() as client:
                client.send(GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"))
                client.reset()
        os.kill(gateway.pid, signal.SIGCONT)
        assert gateway.ask(GET.replace(b"GET", b"PUT")).status == 200
        assert [(each.method, each.all(b"x-forwarded-for")) for each in upstream.requests] == [(b"PUT", [b"127.0.0.1"])]


def test_leaving_beside_others(upstream: Upstream) -> None:
    """Clients that disconnect just when their responses arrive do not affect the responses to others."""
    go, sent = threading.Event(), threading.Semaphore(0)

    def script(connection: Connection) -> None:
        connection.read_request()
        assert go.wait(10)
        connection.send(OK)
        sent.release()

    upstream.script = script
    with Gateway(upstream.url) as gateway:
        leaving, staying = ([gateway.connect() for _ in range(3)] for _ in range(2))
        for client in (*leaving, *staying):
            client.send(GET)
        upstream.wait_request(6)
        os.kill(gateway.pid, signal.SIGSTOP)  # so that all that follows has happened when it continues
        for client in leaving:
            client.reset()
        go.set()
        assert all(sent.acquire(timeout=10) for _ in range(6))
        os.kill(gateway.pid, signal.SIGCONT)
        for client in staying:
            assert client.read_response().body == b"ok"
            client.close()
        assert gateway.stop() == 0
        assert not any("Traceback" in line for line in gateway.lines), gateway.lines


def test_nothing_is_left_behind(upstream: Upstream) -> None:
    """After clients have disconnected in all kinds of ways, no more sockets are open than before."""
    with Gateway(upstream.url, "--upstream-keepalive", "0.2") as gateway:
        assert gateway.ask(GET).status == 200
        upstream.wait_closed()
        before = gateway.open_sockets()
        for n in range(20):
            with gateway.connect() as client:
                client.send(GET if n % 2 else GET[: n + 1])
                if n % 3 == 0:
                    client.reset()
        held = threading.Event()
        upstream.script = reply(held, OK)
        leaving: list[Client] = [gateway.connect() for _ in range(5)]
        number = len(upstream.requests)
        for client in leaving:
            client.send(GET)
        upstream.wait_for(lambda: len(upstream.requests) >= number + 5)
        for client in leaving:
            client.close()
        held.set()
        upstream.wait_for(lambda: all(each.done.is_set() for each in upstream.connections))
        # this request is served only after the gateway has processed all earlier events
        upstream.script = reply(OK)
        assert gateway.ask(GET).status == 200
        upstream.wait_for(lambda: all(each.done.is_set() for each in upstream.connections))
        assert gateway.open_sockets() <= before

"""Streaming: each event is relayed before the next, and memory does not grow with the size of a message."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.client import Client
from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import OK, RESET, Connection, Upstream, reply
from tests.support.wire import MAX_BUFFERED, send_until_blocked

MIB = 1024 * 1024
SIZE = 100 * MIB
GROWTH = 20 * MIB
"""By how many bytes the gateway's memory may grow, however much it relays."""
UNREAD = 2 * MAX_BUFFERED + GROWTH
"""How many bytes a peer can send, at most, to a receiver behind the gateway that does not read."""
LARGE = UNREAD + 2 * GROWTH
"""The content of a message that its receiver does not read."""


@pytest.fixture(scope="module")
def bulk_upstream() -> Iterator[Upstream]:
    """An upstream that does not record what it receives."""
    with Upstream(keep=False) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def bulk_gateway(adapter: Adapter, bulk_upstream: Upstream) -> Iterator[Gateway]:
    """A gateway that is used only with ``bulk_upstream``, and has answered some requests before."""
    bulk_upstream.restart()
    with Gateway(bulk_upstream.url, adapter=adapter) as gateway:
        for _ in range(20):
            assert gateway.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
        yield gateway


@pytest.mark.parametrize("framing", ["chunked", "until close"])
def test_events_arrive_one_by_one(gateway: Gateway, upstream: Upstream, framing: str) -> None:
    """Each of 200 server-sent events reaches the client before upstream sends the next."""
    seen = threading.Semaphore(0)

    def script(connection: Connection) -> None:
        connection.read_request()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        connection.send(head + (b"Transfer-Encoding: chunked\r\n\r\n" if framing == "chunked" else b"\r\n"))
        for n in range(200):
            event = b"data: %d\n\n" % n
            connection.send(b"%x\r\n%s\r\n" % (len(event), event) if framing == "chunked" else event)
            assert seen.acquire(timeout=10), f"event {n} is held back"
        if framing == "chunked":
            connection.send(b"0\r\n\r\n")
        else:
            connection.close()

    upstream.script = script
    with gateway.connect() as client:
        client.send(b"GET /sse HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read_head().status == 200
        for n in range(200):
            client.read_until(b"data: %d\n\n" % n)
            seen.release()
        client.read_until(b"0\r\n\r\n")


def test_download_of_100_mib(bulk_gateway: Gateway, bulk_upstream: Upstream) -> None:
    """A response of 100 MiB is relayed completely, and the gateway's memory hardly grows."""
    piece = bytes(MIB)

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        for _ in range(SIZE // MIB):
            connection.send(piece)

    bulk_upstream.script = script
    before = bulk_gateway.memory()
    largest, got = before, 0
    with Client(bulk_gateway.address, keep=False) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        client.read_head()
        while got < SIZE and (data := client.recv(MIB)):
            if got // (8 * MIB) != (got + len(data)) // (8 * MIB):
                largest = max(largest, bulk_gateway.memory())
            got += len(data)
    assert got == SIZE
    assert largest - before < GROWTH


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_upload_of_100_mib(bulk_gateway: Gateway, bulk_upstream: Upstream, framing: str) -> None:
    """A request of 100 MiB is forwarded completely, and the gateway's memory hardly grows."""
    received = []

    def script(connection: Connection) -> None:
        request = connection.read_head()
        got = 0
        size = int(request.get(b"content-length") or 0)
        if size:
            while got < size and (data := connection.recv(MIB)):
                got += len(data)
        else:
            while length := int(connection.read_until(b"\r\n"), 16):
                got += len(connection.read_exactly(length))
                connection.read_exactly(2)
            connection.read_exactly(2)
        received.append(got)
        connection.send(OK)

    bulk_upstream.script = script
    piece = bytes(MIB)
    before = bulk_gateway.memory()
    largest = before
    with Client(bulk_gateway.address, keep=False) as client:
        how = b"Content-Length: %d" % SIZE if framing == "length" else b"Transfer-Encoding: chunked"
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n" % how)
        for n in range(SIZE // MIB):
            client.send(piece if framing == "length" else b"%x\r\n%s\r\n" % (MIB, piece))
            if n % 8 == 0:
                largest = max(largest, bulk_gateway.memory())
        if framing == "chunked":
            client.send(b"0\r\n\r\n")
        assert client.read_response().status == 200
    assert received == [SIZE]
    assert largest - before < GROWTH


def test_slow_client_slows_upstream(bulk_gateway: Gateway, bulk_upstream: Upstream) -> None:
    """While the client does not read, the gateway does not read from upstream; once it reads, everything arrives."""
    taken: list[int] = []
    blocked = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
        taken.append(send_until_blocked(connection, LARGE))
        blocked.set()
        for start in range(taken[0], LARGE, MIB):
            connection.send(bytes(min(MIB, LARGE - start)))

    bulk_upstream.script = script
    before = bulk_gateway.memory()
    with Client(bulk_gateway.address, keep=False, receive_buffer=65536) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert blocked.wait(30)
        assert taken[0] <= UNREAD, "upstream could continue to send although the client does not read"
        assert bulk_gateway.memory() - before < GROWTH
        client.read_head()
        got = 0
        while got < LARGE and (data := client.recv(MIB)):
            got += len(data)
    assert got == LARGE


def test_slow_upstream_slows_client(bulk_gateway: Gateway, bulk_upstream: Upstream) -> None:
    """While upstream does not read, the gateway does not read from the client; once it reads, everything arrives."""
    go_on = threading.Event()
    received = []

    def script(connection: Connection) -> None:
        connection.read_head()
        assert go_on.wait(30)
        got = 0
        while got < LARGE and (data := connection.recv(MIB)):
            got += len(data)
        received.append(got)
        connection.send(OK)

    bulk_upstream.script = script
    before = bulk_gateway.memory()
    with Client(bulk_gateway.address, keep=False) as client:
        number = len(bulk_upstream.requests) + 1
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % LARGE)
        bulk_upstream.wait_request(number)
        taken = send_until_blocked(client, LARGE)
        assert taken <= UNREAD, "the client could continue to send although upstream does not read"
        assert bulk_gateway.memory() - before < GROWTH
        go_on.set()
        for start in range(taken, LARGE, MIB):
            client.send(bytes(min(MIB, LARGE - start)))
        assert client.read_response().status == 200
    assert received == [LARGE]


@pytest.mark.parametrize("pooled", [False, True], ids=["new connection", "pooled connection"])
def test_post_runs_once(gateway: Gateway, upstream: Upstream, pooled: bool) -> None:
    """A POST is sent only once, even if upstream resets the connection after reading it."""
    if pooled:
        assert gateway.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
    upstream.script = reply(RESET)
    response = gateway.ask(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
    assert response.status == 502
    upstream.script = reply(OK)
    assert gateway.ask(b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
    runs = [each for each in upstream.requests if each.method == b"POST"]
    assert len(runs) == 1
    assert [each.connection for each in runs] == [0]

"""The admin listener's connections: their number is bounded, and each client is answered, whoever else is connected."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from sanitizer.operate import listener as module
from sanitizer.operate.admin import Admin
from sanitizer.operate.listener import CONNECTIONS, CONNECTIONS_PER_PEER, peer_of
from sanitizer.settings import load
from tests.operate.exchanges import request
from tests.operate.exposition import wait_for, wait_until_ready
from tests.support.client import Client
from tests.support.gateway import Gateway
from tests.support.upstream import Upstream
from tests.support.wire import Wire

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


def connect_from(gateway: Gateway, address: str) -> Client:
    """Connect to the admin listener from ``address``, one of the host's own in 127.0.0.0/8."""
    client = Client.__new__(Client)
    Wire.__init__(client, socket.create_connection(gateway.admin, source_address=(address, 0)))
    return client


@contextlib.contextmanager
def holders(gateway: Gateway, addresses: int, connections: int) -> Iterator[list[Client]]:
    """Hold ``connections`` connections from each of several ``addresses``, each with an incomplete request."""
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(addresses):
            for _ in range(connections):
                client = stack.enter_context(connect_from(gateway, f"127.0.1.{number + 1}"))
                client.send(b"GET /livez")
                clients.append(client)
        yield clients


@pytest.mark.parametrize(
    ("addresses", "connections"),
    [
        pytest.param(1, 3 * CONNECTIONS, id="one address"),
        pytest.param(2 * CONNECTIONS // CONNECTIONS_PER_PEER, CONNECTIONS_PER_PEER, id="some addresses"),
        pytest.param(3 * CONNECTIONS, 1, id="many addresses"),
    ],
)
def test_many_connections(upstream: Upstream, addresses: int, connections: int) -> None:
    """A new connection is answered, from any address, however many connections are held from however many addresses."""
    with Gateway(upstream.url, admin=True) as gateway:
        wait_until_ready(gateway)
        before = gateway.open_sockets()
        with holders(gateway, addresses, connections) as clients:
            for address in ("127.0.0.1", "127.0.1.1", "127.0.2.1") * 3:
                with connect_from(gateway, address) as client:
                    assert client.ask(LIVEZ).status == 200
            assert gateway.open_sockets() <= before + CONNECTIONS + 2
            assert clients[0].closed()  # the oldest is closed first
            assert gateway.ask(request()).body == b"ok"
        assert gateway.ask_admin("/livez").status == 200


def test_one_address_is_bounded(upstream: Upstream) -> None:
    """An address that opens more connections than it may have loses its oldest one. Other addresses lose none."""
    with Gateway(upstream.url, admin=True) as gateway, connect_from(gateway, "127.0.2.1") as other:
        assert other.ask(LIVEZ).status == 200
        with holders(gateway, 1, CONNECTIONS_PER_PEER + 1) as clients:
            assert clients[0].closed()
            clients[1].send(b" HTTP/1.1\r\nHost: a\r\n\r\n")
            assert clients[1].read_response().status == 200
            assert other.ask(LIVEZ).status == 200


def test_busiest_address_gives_way(upstream: Upstream) -> None:
    """When all connections are taken, the address with the most loses one. The oldest connection of all is kept."""
    with Gateway(upstream.url, admin=True) as gateway, connect_from(gateway, "127.0.2.1") as other:
        assert other.ask(LIVEZ).status == 200
        with holders(gateway, CONNECTIONS // CONNECTIONS_PER_PEER, CONNECTIONS_PER_PEER) as clients:
            assert clients[0].closed()
            assert other.ask(LIVEZ).status == 200


@pytest.mark.parametrize("addresses", [("fd00::1", "fd00::2"), ("::ffff:10.0.0.1", "10.0.0.1")])
def test_one_peer(addresses: tuple[str, str]) -> None:
    """An IPv6 /64 network is one peer. An IPv4 address is one peer in either notation."""
    assert len(set(map(peer_of, addresses))) == 1
    assert peer_of("fd00::1") != peer_of("fd00:0:0:1::1")
    assert peer_of("::ffff:10.0.0.1") != peer_of("::ffff:10.0.0.2")


@contextlib.contextmanager
def out_of_descriptors(gateway: Gateway) -> Iterator[None]:
    """Let clients use up all of the gateway's descriptors, with more connections than it can accept."""
    _, hard = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (64, hard))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.connect()) for _ in range(80)]
        assert clients[-1].closed()
        # The probe must not get a descriptor that becomes free.
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (3, hard))
        yield
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (64, hard))


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_no_descriptors(upstream: Upstream, tmp_path: Path, tls: bool, asked: bool) -> None:
    """While clients hold all descriptors, the admin listener answers, and reports the shortage.

    With TLS, the clients need not even complete a handshake.
    """
    file = tmp_path / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
    with Gateway(upstream.url, *(("--ssl-certfile", str(file)) if tls else ()), admin=True) as gateway:
        if asked:  # otherwise the first response has to load modules without a descriptor
            wait_until_ready(gateway)
        else:
            gateway.wait_for_line("upstream is reachable")
        with out_of_descriptors(gateway):
            for _ in range(3):
                live = gateway.ask_admin("/livez")
                assert (live.status, json.loads(live.body)) == (200, {"live": True})
            body = wait_until_ready(gateway, False, because="descriptors")
            assert json.loads(body)["reason"] == "the gateway is out of file descriptors"
            first = wait_for(gateway, lambda numbers: numbers[SHORTAGES] >= 1)[SHORTAGES]
            wait_for(gateway, lambda numbers: numbers[SHORTAGES] > first)  # it is counted for as long as it lasts
            with holders(gateway, CONNECTIONS // CONNECTIONS_PER_PEER, CONNECTIONS_PER_PEER):
                assert gateway.ask_admin("/livez").status == 200
        wait_until_ready(gateway)
        line = next(each for each in gateway.records if each["message"] == "out of file descriptors")
        assert (line["level"], line["kind"]) == ("warning", "accept")
        assert "ulimit -n" in line["detail"]


SHORTAGES = "sanitizer_out_of_descriptors_total"


MEGABYTES = 24
CHUNKED = b"POST /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "repeat"),
    [
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: a\r\n", b"a:\r\n", id="many lines"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: a\r\n", b"a:" + b"b" * 65532 + b"\r\n", id="long lines"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: a\r\na: ", b"b", id="an endless line"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: a\r\na: ", b"b\r\n ", id="a folded line"),
        pytest.param(b"GET /", b"a", id="an endless target"),
        pytest.param(b"", b"\r\n", id="empty lines"),
        pytest.param(CHUNKED + b"0\r\n", b"a:\r\n", id="trailers"),
        pytest.param(CHUNKED + b"0\r\na: ", b"b", id="an endless trailer"),
        pytest.param(CHUNKED, b"1\r\nb\r\n", id="small chunks"),
        pytest.param(CHUNKED, b"10000\r\n" + b"b" * 65536 + b"\r\n", id="large chunks"),
        pytest.param(CHUNKED + b"1;", b"a", id="an endless chunk extension"),
        pytest.param(b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", b"b", id="a body"),
        pytest.param(b"", LIVEZ, id="requests"),
        pytest.param(LIVEZ, b"a:\r\n", id="a head behind a request"),
    ],
)
def test_memory(upstream: Upstream, begin: bytes, repeat: bytes) -> None:
    """However much a client sends without reading, the process's memory stays bounded, and the listener answers."""
    with Gateway(upstream.url, admin=True) as gateway:
        wait_until_ready(gateway)
        before = peak_memory(gateway)
        piece = repeat * (1_000_000 // len(repeat) + 1)
        with Client(gateway.admin) as client:
            client.sock.settimeout(0.5)  # sending ends when the gateway reads no more
            with contextlib.suppress(OSError):
                client.send(begin, *[piece] * MEGABYTES)
            assert gateway.ask_admin("/livez").status == 200
        assert peak_memory(gateway) - before < 8 * 1024**2
        assert not any("Traceback" in line for line in gateway.lines), gateway.lines


def peak_memory(gateway: Gateway) -> int:
    """The largest resident set size that the process has had, in bytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{gateway.pid}/status").read_text())
    assert match
    return int(match[1]) * 1024


def test_connections_do_not_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection on which no request, or only a part of one, is received is closed."""
    monkeypatch.setattr(module, "LIFETIME", 0.1)
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with Admin(load({}, {}), listener), Client(address) as idle, Client(address) as begun:
            begun.send(b"GET /livez HTTP/1.1\r\n")
            assert idle.closed()
            assert begun.closed()


def test_answers_that_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends requests without end, and reads no response, is reset."""
    monkeypatch.setattr(module, "LIFETIME", 1.0)  # long enough for a response to wait for buffer space
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Admin(load({}, {}), listener),
        Client(listener.getsockname(), receive_buffer=4096) as client,
        pytest.raises(OSError, match=r"(?i)reset|broken pipe"),
    ):
        client.send(*[b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 100] * 10_000)


def test_answers_that_are_not_read_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """The listener ends without logging an error while a client does not read its responses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
        with Client(listener.getsockname(), receive_buffer=4096) as client, Admin(load({}, {}), listener):
            client.sock.settimeout(0.5)
            with contextlib.suppress(TimeoutError):  # no more requests are read, as a response waits for space
                while True:
                    client.sock.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_large_head(upstream: Upstream) -> None:
    """A request head of 30 kB is accepted. One of more than 32 KiB is answered with 400, and the connection closed."""
    head = "GET /livez HTTP/1.1\r\nHost: a\r\nX: %s"
    with Gateway(upstream.url, admin=True) as gateway:
        with Client(gateway.admin) as client:
            client.send((head % ("x" * 30_000)).encode())
            time.sleep(0.05)  # a head that arrives in one piece is not measured
            assert client.ask(b"\r\n\r\n").status == 200
        with Client(gateway.admin) as client:
            client.send((head % ("x" * 32_768)).encode())
            assert client.read_response().status == 400
            assert client.closed()

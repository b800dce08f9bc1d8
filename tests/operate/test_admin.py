"""The admin listener: alive, ready, and unmoved by what the public side does."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from sanitizer.address import Address
from sanitizer.operate import admin
from sanitizer.operate.admin import CONNECTIONS, CONNECTIONS_OF_ONE, SILENCE, Admin, Health
from sanitizer.operate.probe import Probe
from sanitizer.operate.snapshots import PipeWriter, Snapshot, Snapshots
from sanitizer.settings import Settings, load
from tests.operate.exchanges import request
from tests.operate.exposition import wait_for, wait_until_ready
from tests.support.client import Client
from tests.support.gateway import Gateway
from tests.support.upstream import OK, Upstream, refusing_port, reply
from tests.support.wire import Wire


def test_address_is_said(upstream: Upstream) -> None:
    """The line that says where the gateway listens says where its admin listener does."""
    with Gateway(upstream.url, admin=True) as gateway:
        (line,) = [record for record in gateway.records if record["message"].startswith("listening on")]
        assert line["admin"] == f"http://127.0.0.1:{gateway.admin[1]}"
    with Gateway(upstream.url) as gateway:
        (line,) = [record for record in gateway.records if record["message"].startswith("listening on")]
        assert "admin" not in line


def test_port_in_use(upstream: Upstream) -> None:
    """An admin port that is taken is one clear line that names the option, and exit status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["--port", "0", "--upstream", upstream.url, "--admin-port", str(port)]
        command = [sys.executable, "-m", "sanitizer", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert result.stderr == (
        f"litellm-sanitizer: can't listen on 127.0.0.1:{port} (--admin-port): Address already in use\n"
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_upstream_is_down(workers: int) -> None:
    """Without its upstream the gateway is live, not ready, and answers 502; when it is back, without a restart, 200."""
    with contextlib.ExitStack() as away:
        port = away.enter_context(refusing_port())
        options = ("--workers", str(workers))
        with Gateway(f"http://127.0.0.1:{port}", *options, admin=True) as gateway, gateway.connect() as client:
            body = wait_until_ready(gateway, False, because="upstream can't be reached")
            assert json.loads(body) == {"ready": False, "reason": "upstream can't be reached: connection refused"}
            live = gateway.ask_admin("/livez")
            assert (live.status, json.loads(live.body)) == (200, {"live": True})
            for _ in range(5):  # on one connection: one worker's, so that its log is one
                response = client.ask(request())
                assert response.status == 502
                message = "litellm-sanitizer: upstream is unreachable"
                error = {"message": message, "type": "unreachable", "param": None, "code": "502"}
                assert json.loads(response.body) == {"error": error}
            away.close()
            with Upstream(port=port):
                assert json.loads(wait_until_ready(gateway)) == {"ready": True}
                assert client.ask(request()).status == 200
        lines = [record for record in gateway.records if record["message"] == "upstream failed"]
        assert [(line["kind"], line.get("more")) for line in lines] == [("unreachable", None), ("unreachable", 4)]
        assert [record["message"] for record in gateway.records if record["message"] in CHANGES] == list(CHANGES)


CHANGES = ("not ready", "upstream is reachable")


@pytest.mark.parametrize("workers", [1, 2])
def test_stopping(upstream: Upstream, workers: int) -> None:
    """From SIGTERM on the gateway is not ready, although it still accepts and is live; so is it until it ends."""
    options = ("--workers", str(workers), "--shutdown-grace", "30")
    upstream.script = reply(hold := threading.Event(), OK)
    with Gateway(upstream.url, *options, admin=True) as gateway, gateway.connect() as client:
        wait_until_ready(gateway)
        client.send(request())
        upstream.wait_request()
        gateway.terminate()
        gateway.wait_for_line("stopping")
        answer = gateway.ask_admin("/readyz")
        assert (answer.status, json.loads(answer.body)) == (503, {"ready": False, "reason": "stopping"})
        assert gateway.ask_admin("/livez").status == 200
        assert gateway.ask_admin("/metrics").status == 200
        hold.set()
        assert client.read_response().status == 200
        assert gateway.wait() == 0


@pytest.mark.parametrize("trusted", [True, False])
def test_tls(tmp_path: Path, trusted: bool) -> None:
    """An https upstream is reachable if its certificate is trusted."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(str(bundle))
    with (
        Upstream(context=context) as upstream,
        Gateway(f"https://localhost:{upstream.port}", "--upstream-ca", str(bundle), admin=True) as gateway,
    ):
        if trusted:
            wait_until_ready(gateway)
            assert not [each for each in upstream.requests if each]
        else:
            body = wait_until_ready(gateway, False, because="upstream can't be reached")
            assert json.loads(body)["reason"].startswith("upstream can't be reached: certificate not trusted (")


def test_unix_socket(tmp_path: Path) -> None:
    """An upstream on a unix socket is reachable there."""
    path = str(tmp_path / "upstream")
    with Gateway(f"unix:{path}", admin=True) as gateway:
        assert b"reason" in wait_until_ready(gateway, False)
        with Upstream(uds=path):
            wait_until_ready(gateway)


def test_hanging_worker(upstream: Upstream) -> None:
    """A worker whose event loop does not turn makes the gateway not live and not ready, until it turns again."""
    with Gateway(upstream.url, "--workers", "2", admin=True) as gateway:
        wait_until_ready(gateway)
        assert gateway.ask_admin("/livez").status == 200
        workers = gateway.workers()  # all of them: one may be starting still, which is not silence
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            wait_until_ready(gateway, False, because="a process that serves is silent")
            live = gateway.ask_admin("/livez")
            assert (live.status, json.loads(live.body)["live"]) == (503, False)
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        wait_until_ready(gateway)
        assert gateway.ask_admin("/livez").status == 200


def test_busy(upstream: Upstream) -> None:
    """A public side with more than it can do does not keep the admin listener from answering."""
    done = threading.Event()

    def load(gateway: Gateway) -> None:
        with gateway.connect() as client:
            while not done.is_set():
                client.send(request() * 50)
                for _ in range(50):
                    client.read_response()

    with Gateway(upstream.url, admin=True) as gateway:
        threads = [threading.Thread(target=load, args=(gateway,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            wait_until_ready(gateway)
            for path in ("/livez", "/readyz", "/metrics") * 5:
                assert gateway.ask_admin(path).status == 200
        finally:
            done.set()
            for thread in threads:
                thread.join()


def test_nothing_else(upstream: Upstream) -> None:
    """The admin listener has three paths, which take GET and HEAD; the public one has none of them."""
    with Gateway(upstream.url, admin=True) as gateway:
        assert gateway.ask_admin("/").status == 404
        assert gateway.ask_admin("/key/info").status == 404
        for path in ("/livez", "/readyz", "/metrics"):
            with Client(gateway.admin) as client:
                client.send(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode())
                assert client.read_response().status == 405
            assert gateway.ask(request(target=path)).body == b"ok"
        assert {each.target for each in upstream.requests} == {b"/livez", b"/readyz", b"/metrics"}


LIVEZ = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


def connect_from(gateway: Gateway, address: str) -> Client:
    """A connection to the admin listener from one of the host's own addresses, 127.0.0.0/8."""
    client = Client.__new__(Client)
    Wire.__init__(client, socket.create_connection(gateway.admin, source_address=(address, 0)))
    return client


@contextlib.contextmanager
def holders(gateway: Gateway, addresses: int, connections: int) -> Iterator[list[Client]]:
    """Connections that begin a request and go no further, some from each of so many addresses."""
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
        pytest.param(2 * CONNECTIONS // CONNECTIONS_OF_ONE, CONNECTIONS_OF_ONE, id="some addresses"),
        pytest.param(3 * CONNECTIONS, 1, id="many addresses"),
    ],
)
def test_many_connections(upstream: Upstream, addresses: int, connections: int) -> None:
    """However many connections are held, and by however many, each new one gets its answer, from whatever address."""
    with Gateway(upstream.url, admin=True) as gateway:
        wait_until_ready(gateway)
        before = gateway.open_sockets()
        with holders(gateway, addresses, connections) as clients:
            for address in ("127.0.0.1", "127.0.1.1", "127.0.2.1") * 3:
                with connect_from(gateway, address) as client:
                    assert client.ask(LIVEZ).status == 200
            assert gateway.open_sockets() <= before + CONNECTIONS + 2
            assert clients[0].closed()  # the first to come is the first to go
            assert gateway.ask(request()).body == b"ok"
        assert gateway.ask_admin("/livez").status == 200


def test_one_address_is_bounded(upstream: Upstream) -> None:
    """One address that opens more than it may have loses its own connections, and no other address does."""
    with Gateway(upstream.url, admin=True) as gateway, connect_from(gateway, "127.0.2.1") as other:
        assert other.ask(LIVEZ).status == 200
        with holders(gateway, 1, CONNECTIONS_OF_ONE + 1) as clients:
            assert clients[0].closed()
            clients[1].send(b" HTTP/1.1\r\nHost: a\r\n\r\n")
            assert clients[1].read_response().status == 200
            assert other.ask(LIVEZ).status == 200


def test_busiest_address_gives_way(upstream: Upstream) -> None:
    """When all connections are taken, the address that has the most loses one, not the one that has had its longest."""
    with Gateway(upstream.url, admin=True) as gateway, connect_from(gateway, "127.0.2.1") as other:
        assert other.ask(LIVEZ).status == 200
        with holders(gateway, CONNECTIONS // CONNECTIONS_OF_ONE, CONNECTIONS_OF_ONE) as clients:
            assert clients[0].closed()
            assert other.ask(LIVEZ).status == 200


@pytest.mark.parametrize("addresses", [("fd00::1", "fd00::2"), ("::ffff:10.0.0.1", "10.0.0.1")])
def test_one_peer(addresses: tuple[str, str]) -> None:
    """What one machine has is one peer: an IPv6 network of 64 bits, an IPv4 address however it is written."""
    assert len(set(map(admin.peer_of, addresses))) == 1
    assert admin.peer_of("fd00::1") != admin.peer_of("fd00:0:0:1::1")
    assert admin.peer_of("::ffff:10.0.0.1") != admin.peer_of("::ffff:10.0.0.2")


@contextlib.contextmanager
def out_of_descriptors(gateway: Gateway) -> Iterator[None]:
    """Clients hold all the descriptors of the gateway: as many as there can be, and some more."""
    _, hard = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (64, hard))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.connect()) for _ in range(80)]
        assert clients[-1].closed()
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (3, hard))  # none comes free: the probe would take it
        yield
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (64, hard))


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_no_descriptors(upstream: Upstream, tmp_path: Path, tls: bool, asked: bool) -> None:
    """Where clients hold all descriptors the admin listener answers, and says so; with TLS they need no handshake."""
    file = tmp_path / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
    with Gateway(upstream.url, *(("--ssl-certfile", str(file)) if tls else ()), admin=True) as gateway:
        if asked:  # else what is loaded for the first answer is loaded without a descriptor
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
            wait_for(gateway, lambda numbers: numbers[SHORTAGES] > first)  # as long as it lasts
            with holders(gateway, CONNECTIONS // CONNECTIONS_OF_ONE, CONNECTIONS_OF_ONE):
                assert gateway.ask_admin("/livez").status == 200
        wait_until_ready(gateway)
        line = next(each for each in gateway.records if each["message"] == "out of file descriptors")
        assert (line["level"], line["kind"]) == ("warning", "accept")
        assert "ulimit -n" in line["detail"]


SHORTAGES = "sanitizer_out_of_descriptors_total"


MEGABYTES = 62
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
    """However much a client sends before it reads, the process does not grow with it, and goes on answering."""
    with Gateway(upstream.url, admin=True) as gateway:
        wait_until_ready(gateway)
        before = peak_memory(gateway)
        piece = repeat * (1_000_000 // len(repeat) + 1)
        with Client(gateway.admin) as client:
            client.sock.settimeout(0.5)  # what is not read any more is enough
            with contextlib.suppress(OSError):
                client.send(begin, *[piece] * MEGABYTES)
            assert gateway.ask_admin("/livez").status == 200
        assert peak_memory(gateway) - before < 8 * 1024**2
        assert not any("Traceback" in line for line in gateway.lines), gateway.lines


def peak_memory(gateway: Gateway) -> int:
    """The most memory that the process has ever had, in bytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{gateway.pid}/status").read_text())
    assert match
    return int(match[1]) * 1024


def test_connections_do_not_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks for nothing, or only begins to, is closed."""
    monkeypatch.setattr(admin, "LIFETIME", 0.1)
    monkeypatch.setattr(admin, "ANSWER_TIMEOUT", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = listener.getsockname()
        with Admin(load({}, {}), listener), Client(address) as idle, Client(address) as begun:
            begun.send(b"GET /livez HTTP/1.1\r\n")
            assert idle.closed()
            assert begun.closed()


def test_answers_that_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks again and again, and reads nothing, is reset all the same."""
    monkeypatch.setattr(admin, "LIFETIME", 1.0)  # long enough for an answer to wait for room
    monkeypatch.setattr(admin, "ANSWER_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with (
            Admin(load({}, {}), listener),
            Client(listener.getsockname(), receive_buffer=4096) as client,
            pytest.raises(OSError, match=r"(?i)reset|broken pipe"),
        ):
            client.send(*[b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 100] * 10_000)


def test_large_head(upstream: Upstream) -> None:
    """A head of any ordinary size is read, one over 32 KiB is refused."""
    head = "GET /livez HTTP/1.1\r\nHost: a\r\nX: %s"
    with Gateway(upstream.url, admin=True) as gateway:
        with Client(gateway.admin) as client:
            client.send((head % ("x" * 30_000)).encode())
            time.sleep(0.05)  # what has come whole is not measured
            assert client.ask(b"\r\n\r\n").status == 200
        with Client(gateway.admin) as client:
            client.send((head % ("x" * 32_768)).encode())
            assert client.read_response().status == 400
            assert client.closed()


def test_two_in_a_row() -> None:
    """Two failures in a row make upstream unreachable, one success makes it reachable: each change is told once."""
    told: list[str | None] = []
    probe = Probe(Address("http", "a", 80), None, 1, told.append)
    assert probe.reason == "upstream has not been reached yet"
    for error, reason in (
        ("e", "upstream has not been reached yet"),
        (None, None),
        ("e", None),
        (None, None),
        ("e", None),
        ("e", "upstream can't be reached: e"),
        ("f", "upstream can't be reached: f"),
        (None, None),
        (None, None),
    ):
        probe.judge(error)
        assert probe.reason == reason
    assert told == [None, "upstream can't be reached: e", None]


def test_silence() -> None:
    """Who has begun to tell of itself and then tells nothing for too long is not alive; who starts, is starting."""
    now = 100.0
    snapshots = Snapshots(lambda: now)
    probe = Probe(Address("http", "a", 80), None, 1, lambda _: None)
    probe.judge(None)
    health = Health(snapshots, probe)
    assert (health.not_alive(), health.not_ready()) == (None, "nothing serves yet")
    snapshots.add(1)
    snapshots.add(2)
    assert (health.not_alive(), health.not_ready()) == (None, "nothing serves yet")
    now += 10 * SILENCE
    assert (health.not_alive(), health.not_ready()) == (None, "nothing serves yet")
    snapshots.put(2, Snapshot({}, {}))
    now += SILENCE
    snapshots.put(1, Snapshot({}, {}))
    assert (health.not_alive(), health.not_ready()) == (None, None)
    now += 0.5
    assert health.not_alive() == health.not_ready() == "a process that serves is silent"
    snapshots.remove(2)
    assert (health.not_alive(), health.not_ready()) == (None, None)
    health.stop()
    assert (health.not_alive(), health.not_ready()) == (None, "stopping")


def test_reading_goes_on() -> None:
    """A worker is heard for as long as it tells, whatever is collected as garbage meanwhile."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with socket.create_server(("127.0.0.1", 0)) as listener, Admin(Settings(), listener) as admin, theirs:
        admin.add_worker(ours)
        tell = PipeWriter(theirs)
        for number in range(1, 6):
            gc.collect()  # the reader waits, and nothing but the admin listener holds it
            tell(Snapshot({("count",): number}, {}))
            until = time.monotonic() + 30
            while admin.snapshots.sum().totals != {("count",): number}:
                assert time.monotonic() < until, "the worker is not heard any more"
                time.sleep(0.01)
        assert admin.snapshots.serving

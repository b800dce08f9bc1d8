"""The admin listener: liveness and readiness, which the load on the public listener does not affect."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trustme

from sanitizer.address import Address
from sanitizer.connecting import Connector
from sanitizer.operate.admin import SILENCE, Admin, Health
from sanitizer.operate.probe import Probe
from sanitizer.operate.snapshots import PipeWriter, Snapshot, Snapshots
from sanitizer.settings import Settings
from tests.operate.exchanges import request
from tests.operate.exposition import wait_until_ready
from tests.support.client import Client
from tests.support.gateway import Gateway
from tests.support.upstream import OK, Upstream, refusing_port, reply


def test_address_is_said(upstream: Upstream) -> None:
    """The log line with the gateway's address also has the address of the admin listener, if there is one."""
    with Gateway(upstream.url, admin=True) as gateway:
        (line,) = [record for record in gateway.records if record["message"].startswith("listening on")]
        assert line["admin"] == f"http://127.0.0.1:{gateway.admin[1]}"
    with Gateway(upstream.url) as gateway:
        (line,) = [record for record in gateway.records if record["message"].startswith("listening on")]
        assert "admin" not in line


def test_port_in_use(upstream: Upstream) -> None:
    """If the admin port is in use, the command ends with status 1 and one line that names the option."""
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
    """While upstream is unreachable, the gateway is live, is not ready, and answers 502.

    When upstream is back, the gateway is ready and relays again, without a restart.
    """
    with contextlib.ExitStack() as away:
        port = away.enter_context(refusing_port())
        options = ("--workers", str(workers))
        with Gateway(f"http://127.0.0.1:{port}", *options, admin=True) as gateway, gateway.connect() as client:
            body = wait_until_ready(gateway, False, because="upstream can't be reached")
            assert json.loads(body) == {"ready": False, "reason": "upstream can't be reached: connection refused"}
            live = gateway.ask_admin("/livez")
            assert (live.status, json.loads(live.body)) == (200, {"live": True})
            for _ in range(5):  # on one connection, so that one worker logs all of them
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
    """After SIGTERM the gateway is live but not ready, while it finishes a request. Then it ends with status 0."""
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
    """An https upstream counts as reachable only if its certificate is trusted."""
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
    """An upstream on a Unix socket counts as reachable once something listens on the socket."""
    path = str(tmp_path / "upstream")
    with Gateway(f"unix:{path}", admin=True) as gateway:
        assert b"reason" in wait_until_ready(gateway, False)
        with Upstream(uds=path):
            wait_until_ready(gateway)


def test_hanging_worker(upstream: Upstream) -> None:
    """While the event loops of the workers do not run, the gateway is neither live nor ready.

    This is logged once.
    """
    with Gateway(upstream.url, "--workers", "2", admin=True) as gateway:
        wait_until_ready(gateway)
        assert gateway.ask_admin("/livez").status == 200
        workers = gateway.workers()  # all of them, because one may still be starting, and does not count as silent
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            wait_until_ready(gateway, False, because="a serving process does not respond")
            live = gateway.ask_admin("/livez")
            assert (live.status, json.loads(live.body)["live"]) == (503, False)
            gateway.wait_for_line("a serving process does not respond")
            probes = len(upstream.connections)
            upstream.wait_for(lambda: len(upstream.connections) >= probes + 2)  # two checks of the workers at least
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        wait_until_ready(gateway)
        assert gateway.ask_admin("/livez").status == 200
        gateway.stop()
        lines = [record for record in gateway.records if record["message"] == "a serving process does not respond"]
        assert [line["level"] for line in lines] == ["error"]


def test_busy(upstream: Upstream) -> None:
    """The admin listener answers while the public listener is overloaded."""
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
    """The admin listener serves three paths, and refuses POST for them. The public listener forwards these paths."""
    with Gateway(upstream.url, admin=True) as gateway:
        assert gateway.ask_admin("/").status == 404
        assert gateway.ask_admin("/key/info").status == 404
        for path in ("/livez", "/readyz", "/metrics"):
            with Client(gateway.admin) as client:
                client.send(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode())
                assert client.read_response().status == 405
            assert gateway.ask(request(target=path)).body == b"ok"
        assert {each.target for each in upstream.requests} == {b"/livez", b"/readyz", b"/metrics"}


def test_silence() -> None:
    """A process that has published a snapshot, and then publishes none for too long, makes the gateway not live.

    A process that has not published any is still starting.
    """
    now = 100.0
    snapshots = Snapshots(lambda: now)
    probe = Probe(Address("http", "a", 80), None, 1, lambda _: None)
    probe.judge(None)
    health = Health(snapshots, probe)
    assert (health.not_alive(), health.not_ready()) == (None, "nothing serves yet")
    now += 10 * SILENCE
    assert (health.not_alive(), health.not_ready()) == (None, "nothing serves yet")
    snapshots.put(2, Snapshot({}, {}))
    now += SILENCE
    snapshots.put(1, Snapshot({}, {}))
    assert (health.not_alive(), health.not_ready()) == (None, None)
    now += 0.5
    assert health.not_alive() == health.not_ready() == "a serving process does not respond"
    snapshots.remove(2)
    assert (health.not_alive(), health.not_ready()) == (None, None)
    health.stop()
    assert (health.not_alive(), health.not_ready()) == (None, "stopping")


def test_reading_goes_on() -> None:
    """The admin listener continues to read a worker's snapshots after a garbage collection."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with socket.create_server(("127.0.0.1", 0)) as listener, Admin(Settings(), listener) as admin, theirs:
        admin.add_worker(ours)
        tell = PipeWriter(theirs)
        for number in range(1, 6):
            gc.collect()  # the reader is waiting, and only the admin listener refers to it
            tell(Snapshot({("count",): number}, {}))
            until = time.monotonic() + 30
            while admin.snapshots.sum().totals != {("count",): number}:
                assert time.monotonic() < until, "the worker is not heard any more"
                time.sleep(0.01)
        assert admin.snapshots.serving


def test_a_task_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected error ends the probe. It is logged, and the admin listener continues to answer."""

    class Unthought(Exception):
        pass

    failed = threading.Event()

    async def connect(*_: object) -> None:
        failed.set()
        raise Unthought

    monkeypatch.setattr(Connector, "connect", connect)
    with socket.create_server(("127.0.0.1", 0)) as listener, Admin(Settings(), listener):
        assert failed.wait(30)
        with Client(listener.getsockname()) as client:
            assert client.ask(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
    (record,) = caplog.records
    assert (record.levelname, record.getMessage().partition(",")[0]) == ("ERROR", "upstream is not probed any more")
    assert vars(record)["fields"] == {"detail": "Unthought()"}

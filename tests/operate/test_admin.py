"""The admin listener: alive, ready, and unmoved by what the public side does."""

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
    """A worker whose event loop does not turn makes the gateway not live and not ready, until it turns again.

    That is logged once.
    """
    with Gateway(upstream.url, "--workers", "2", admin=True) as gateway:
        wait_until_ready(gateway)
        assert gateway.ask_admin("/livez").status == 200
        workers = gateway.workers()  # all of them: one may be starting still, which is not silence
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            wait_until_ready(gateway, False, because="a serving process does not respond")
            live = gateway.ask_admin("/livez")
            assert (live.status, json.loads(live.body)["live"]) == (503, False)
            gateway.wait_for_line("a serving process does not respond")
            probes = len(upstream.connections)
            upstream.wait_for(lambda: len(upstream.connections) >= probes + 2)  # two looks at the workers at least
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        wait_until_ready(gateway)
        assert gateway.ask_admin("/livez").status == 200
        gateway.stop()
        lines = [record for record in gateway.records if record["message"] == "a serving process does not respond"]
        assert [line["level"] for line in lines] == ["error"]


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


def test_silence() -> None:
    """Who has begun to tell of itself and then tells nothing for too long is not alive; who starts, is starting."""
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


def test_a_task_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An error that nobody has thought of ends the probe: that is logged, and the admin listener goes on answering."""

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

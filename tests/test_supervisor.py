"""Worker processes: signals reach them, none outlives the supervisor, and a dead worker does not delay the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from sanitizer.supervisor import STOP_SIGNALS, Supervisor
from tests.support.gateway import Gateway
from tests.support.upstream import OK, Upstream, reply

GET = b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_to_all(upstream: Upstream, number: signal.Signals) -> None:
    """A signal that every process gets, as from a terminal, starts the drain and does not abort it."""
    upstream.script = reply(hold := threading.Event(), OK)
    with Gateway(upstream.url, "--workers", "2", "--shutdown-grace", "6") as gateway, gateway.connect() as client:
        client.send(GET)
        upstream.wait_request()
        for pid in gateway.workers():
            os.kill(pid, number)
        until = time.monotonic() + 10
        # until both have handled it; otherwise the two signals might become one
        while sum("stopping" in line for line in gateway.lines) < 2:
            assert time.monotonic() < until, gateway.lines
            time.sleep(0.01)
        os.kill(gateway.pid, number)
        time.sleep(0.3)  # by then, any effect of the supervisor's signal has shown
        hold.set()
        assert client.read_response().body == b"ok"
        assert gateway.wait() == 0
        assert not any("aborting" in line for line in gateway.lines), gateway.lines


def test_parent_is_killed(upstream: Upstream) -> None:
    """When the supervisor is killed, its workers drain and end."""
    upstream.script = reply(hold := threading.Event(), OK)
    with Gateway(upstream.url, "--workers", "2", "--shutdown-grace", "6") as gateway, gateway.connect() as client:
        client.send(GET)
        upstream.wait_request()
        workers = gateway.workers()
        gateway.process.kill()
        gateway.wait_for_line("stopping")
        hold.set()
        assert client.read_response().body == b"ok"
        gateway.wait()  # until no process holds its stderr
        assert not any(map(runs, workers))
        assert sum("stopped" in line for line in gateway.lines) == 2


def runs(pid: int) -> bool:
    """Whether the process runs. One that has ended and is not yet reaped has no command line."""
    file = Path(f"/proc/{pid}/cmdline")
    return file.exists() and bool(file.read_bytes())


def test_stop_after_death(upstream: Upstream) -> None:
    """A signal that arrives before a dead worker is replaced ends the gateway, and no replacement is started."""
    with Gateway(upstream.url, "--workers", "2", "--shutdown-grace", "0.6") as gateway:
        os.kill(gateway.workers()[0], signal.SIGKILL)
        gateway.wait_for_line("a worker has died")
        gateway.terminate()
        gateway.wait_for_line("stopping")
        assert gateway.wait() == 0
        assert sum("stopped" in line for line in gateway.lines) == 1


def test_no_descriptor_for_workers() -> None:
    """A start that runs out of descriptors, at whatever point, is reported with the reason and exit status 1."""
    serve = ["-m", "sanitizer", "serve", "--upstream", "http://127.0.0.1:9", "--port", "0", "--admin-port", "0"]
    for limit in range(14, 24, 2):
        result = subprocess.run(
            ["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh", sys.executable, *serve, "--workers", "8"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == 1
        assert "open files" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_worker_that_does_not_end() -> None:
    """A worker that still runs some seconds after the grace period is killed, and the log names it."""
    with Gateway("http://127.0.0.1:9", "--workers", "2", "--shutdown-grace", "0.1") as gateway:
        worker = gateway.workers()[0]
        os.kill(worker, signal.SIGSTOP)
        gateway.terminate()
        assert gateway.wait() == 0
        (killed,) = [record for record in gateway.records if "killing it" in record["message"]]
        assert (killed["level"], killed["worker"]) == ("error", worker)
        assert not runs(worker)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_stop_while_starting(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """A signal that arrives while workers are being started ends the first one, and no further one is started."""
    started: list[SpawnProcess] = []
    start = SpawnProcess.start

    def start_and_signal(worker: SpawnProcess) -> None:
        start(worker)
        started.append(worker)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(SpawnProcess, "start", start_and_signal)
    with kept_handlers(), socket.socket() as listener:
        assert Supervisor(take_no_signal, [listener] * 5, 30.0, lambda: None).run() == 0
    assert [worker.exitcode for worker in started] == [-number]


def take_no_signal(*_: object) -> None:
    """The main function of a worker that never installs its signal handlers."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.pause()


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def do_nothing(*_: object) -> None:
    """The main function of a worker, which is never started here."""


def test_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no worker can be started, the exit status is 1."""

    def start(_: SpawnProcess) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(SpawnProcess, "start", start)
    with kept_handlers(), socket.socket() as listener:
        assert Supervisor(do_nothing, [listener] * 2, 1.0, lambda: None).run() == 1

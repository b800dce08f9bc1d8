"""Several workers, as clients see them: they share the load, and no request is lost when one dies or all drain."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, free_port
from tests.support.upstream import OK, Upstream, reply
from tests.support.wire import Cut

GET = b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n"
WAIT = 30.0
ESTABLISHED, LISTEN = "01", "0A"
MANY = 40
"""Of this many connections to two workers, all go to the same worker with a probability of 2**-39."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


def sockets(gateway: Gateway, state: str) -> list[str]:
    """The sockets in a state on the gateway's port, by their names in /proc. One not yet accepted is ``socket:[0]``."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f":{int(gateway.address[1]):04X}"
    return [f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == state]


def open_files(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            yield os.readlink(entry)


def shares(gateway: Gateway) -> Counter[int]:
    """How many connections each worker has accepted."""
    accepted = set(sockets(gateway, ESTABLISHED))
    return Counter({pid: sum(file in accepted for file in open_files(pid)) for pid in gateway.workers()})


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def stop_process(pid: int) -> None:
    """Send SIGSTOP, and wait until the process has stopped."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


@pytest.mark.parametrize(("workers", "connections"), [(2, 64), (4, 256)])
def test_share(workers: int, connections: int) -> None:
    """Of many connections made at once, no worker gets much more than its fair share.

    The kernel chooses by a hash. With a fair hash, a worker gets over 1.4 times its share in one of 500 bursts. The
    probability of this in more than half of 7 bursts is below 1e-9.
    """
    largest = []
    with Gateway("http://127.0.0.1:9", "--workers", str(workers)) as gateway:
        for _ in range(7):
            with ExitStack() as stack:
                for _ in range(connections):
                    client = stack.enter_context(socket.socket())
                    client.setblocking(False)
                    client.connect_ex(gateway.address)
                wait_until(lambda: shares(gateway).total() == connections)
                largest.append(max(shares(gateway).values()))
            wait_until(lambda: not shares(gateway).total())
    assert statistics.median(largest) <= 1.4 * connections / workers, largest


def test_a_worker_hangs(upstream: Upstream) -> None:
    """Connections queued for a worker that hangs wait for it, /livez fails, and other connections are served."""
    with Gateway(upstream.url, "--workers", "2", admin=True) as gateway, ExitStack() as stack:
        worker = gateway.workers()[0]
        stop_process(worker)
        try:
            clients = [stack.enter_context(gateway.connect()) for _ in range(MANY)]
            for client in clients:
                client.send(GET)
            wait_until(lambda: gateway.ask_admin("/livez").status == 503)
            answered = select.select([client.sock for client in clients], [], [], 0)[0]
            assert 0 < len(answered) < MANY
            assert sockets(gateway, ESTABLISHED).count("socket:[0]") == MANY - len(answered)
        finally:
            os.kill(worker, signal.SIGCONT)
        assert [client.read_response().status for client in clients] == [200] * MANY
        wait_until(lambda: gateway.ask_admin("/livez").status == 200)


def test_a_worker_is_killed(upstream: Upstream) -> None:
    """Connections queued for a worker that is killed are served by its successor."""
    with Gateway(upstream.url, "--workers", "2") as gateway, ExitStack() as stack:
        worker = gateway.workers()[1]
        stop_process(worker)
        clients = [stack.enter_context(gateway.connect()) for _ in range(MANY)]
        for client in clients:
            client.send(GET)
        os.kill(worker, signal.SIGKILL)
        assert [client.read_response().status for client in clients] == [200] * MANY
        assert sum(shares(gateway).values()) == MANY
        (died,) = [record for record in gateway.records if record["message"].startswith("a worker has died")]
        assert (died["level"], died["worker"], died["exit_status"]) == ("error", worker, -signal.SIGKILL)


def test_a_worker_is_stopped(upstream: Upstream) -> None:
    """While a worker that got SIGTERM drains, connections go to the others, and afterwards to its successor too."""
    upstream.script = reply(hold := threading.Event(), OK)
    options = ("--workers", "2", "--shutdown-grace", "12")
    with (
        Gateway(upstream.url, *options, listen=("--port", str(free_port()))) as gateway,
        gateway.connect() as slow,
        ExitStack() as stack,
    ):
        slow.send(GET)
        upstream.wait_request()
        (worker, _), _ = shares(gateway).most_common()
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda: len(sockets(gateway, LISTEN)) == 1)
        upstream.script = reply(OK)
        for _ in range(MANY):
            assert gateway.ask(GET).status == 200
        hold.set()
        assert slow.read_response().status == 200
        wait_until(lambda: len(sockets(gateway, LISTEN)) == 2)
        for _ in range(MANY):
            stack.enter_context(gateway.connect())
        wait_until(lambda: shares(gateway).total() == MANY)
        assert worker not in shares(gateway)
        assert all(shares(gateway).values())
        (ended,) = [record for record in gateway.records if record["message"].startswith("a worker has ended")]
        assert (ended["level"], ended["worker"], ended["exit_status"]) == ("warning", worker, 0)


def test_a_drain_without_a_successor(upstream: Upstream) -> None:
    """If the drain begins before a dead worker has been replaced, no client is left waiting in its queue."""
    upstream.script = reply(hold := threading.Event(), OK)
    with Gateway(upstream.url, "--workers", "2") as gateway, gateway.connect() as slow:
        slow.send(GET)
        upstream.wait_request()
        (_, _), (idle, _) = shares(gateway).most_common()
        os.kill(idle, signal.SIGKILL)
        gateway.wait_for_line("a worker has died")
        os.kill(gateway.pid, signal.SIGINT)
        wait_until(lambda: not sockets(gateway, LISTEN))
        with pytest.raises(ConnectionRefusedError):
            gateway.connect()
        hold.set()
        assert slow.read_response().status == 200
        assert gateway.wait() == 0


@pytest.mark.parametrize("to_all", [False, True], ids=["to the parent", "to all processes"])
@pytest.mark.parametrize("workers", [1, 4])
def test_nothing_is_lost(upstream: Upstream, workers: int, to_all: bool) -> None:
    """Clients that keep connecting while the gateway drains are served or refused, and never reset."""
    failures: list[str] = []
    answers: Counter[int] = Counter()

    def ask_until_refused(number: int) -> None:
        while True:
            try:
                client = gateway.connect()
            except ConnectionRefusedError:
                return
            except OSError as error:
                failures.append(repr(error))
                return
            try:
                with client:
                    assert client.ask(GET).body == b"ok"
            except (OSError, Cut, AssertionError) as error:
                failures.append(repr(error))
                return
            answers[number] += 1

    with Gateway(upstream.url, "--workers", str(workers), "--shutdown-grace", "12") as gateway:
        threads = [threading.Thread(target=ask_until_refused, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) == len(threads) or bool(failures))
        for pid in (gateway.pid, *(gateway.workers() if to_all else ())):
            os.kill(pid, signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert gateway.wait() == 0
    assert failures == []


@pytest.mark.parametrize("admin", [True, False])
def test_admin_modules(monkeypatch: pytest.MonkeyPatch, admin: bool) -> None:
    """Only the process with the admin listener loads the modules for it. No worker does."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with Gateway("http://127.0.0.1:9", "--workers", "2", admin=admin) as gateway:
        pass
    loaded = Counter(line.rpartition("|")[2].strip() for line in gateway.lines if line.startswith("import time:"))
    assert loaded["sanitizer.server"] == 3
    for name in ("sanitizer.operate.admin", "sanitizer.operate.collector", "prometheus_client", "uvicorn", "h11"):
        assert loaded[name] == admin, name

"""An upstream that is given by its name, when the name does not resolve or some of its addresses do not work.

Most tests make the same request with curl too: the gateway must do at least as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.names.dns import NAME, NXDOMAIN, SERVFAIL, Nameserver, configure
from tests.operate.exposition import wait_until_ready
from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import CLOSE, OK, Upstream, reply

PORT = 4000
URL = f"http://{NAME}:{PORT}"
CLOSING = reply(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), CLOSE)
"""A script that closes the connection after the response, so that the next request needs another one."""
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
FIRST, SECOND = "127.0.0.2", "127.0.0.3"
NOWHERE = "192.0.2.1"  # there is no route to it
TIMES = 8

adapters = pytest.mark.parametrize("adapter", ["native", "asgi"])


def curl(url: str = URL) -> int:
    """The status that curl gets, 0 if none."""
    command = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", "--noproxy", "*", "--max-time", "5", url]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout)


def statuses(gateway: Gateway, times: int = TIMES) -> Counter[int]:
    """The statuses of ``times`` requests, sent one after the other."""
    return Counter(gateway.ask(GET).status for _ in range(times))


def at_once(gateway: Gateway, times: int) -> Counter[int]:
    """The statuses of ``times`` requests, sent at the same time."""
    found: Counter[int] = Counter()
    lock = threading.Lock()

    def ask() -> None:
        status = gateway.ask(GET).status
        with lock:
            found[status] += 1

    threads = [threading.Thread(target=ask) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def assert_json(gateway: Gateway) -> None:
    """Assert that nothing but log records was written to stderr."""
    assert len(gateway.records) == len(gateway.lines), "\n".join(gateway.lines)


@contextlib.contextmanager
def black_hole(address: str) -> Iterator[None]:
    """No connection to ``address`` can be made: its accept queue is full, and the kernel drops every further SYN."""
    with socket.create_server((address, PORT), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex((address, PORT))
        assert listener.fileno() >= 0
        further = stack.enter_context(socket.socket())
        further.settimeout(0.2)
        with pytest.raises(TimeoutError):
            further.connect((address, PORT))
        yield


@contextlib.contextmanager
def refusing(address: str) -> Iterator[None]:
    """Connections to ``address`` are refused."""
    with socket.socket() as sock:
        sock.bind((address, PORT))
        yield


@adapters
@pytest.mark.parametrize("dead", [black_hole, refusing], ids=["black hole", "refused"])
def test_a_dead_address(adapter: Adapter, dead: Callable[[str], contextlib.AbstractContextManager[None]]) -> None:
    """If one of two addresses is dead, every request reaches the other one, and the gateway is ready."""
    configure()
    with (
        Nameserver([FIRST, SECOND]),
        dead(FIRST),
        Upstream(CLOSING, host=SECOND, port=PORT),
        Gateway(URL, "--connect-timeout", "2", adapter=adapter, admin=adapter == "native") as gateway,
    ):
        assert curl() == 200
        assert statuses(gateway) == {200: TIMES}
        if adapter == "native":
            wait_until_ready(gateway)
            assert "not ready" not in str(gateway.records)
    if adapter == "native":
        assert_json(gateway)


@pytest.mark.parametrize(
    ("addresses", "reason", "detail"),
    [
        pytest.param([FIRST, SECOND], "connection refused", "Connection refused", id="the same error"),
        pytest.param(
            [FIRST, NOWHERE],
            "none of its addresses could be reached",
            f"{FIRST}.*Network is unreachable|Network is unreachable.*{FIRST}",
            id="different errors",
        ),
    ],
)
def test_all_addresses_are_dead(addresses: list[str], reason: str, detail: str) -> None:
    """The readiness probe and the log give the reason for the failure. The client's response contains no address."""
    configure()
    with Nameserver(addresses), Gateway(URL, admin=True) as gateway:
        assert curl() == 0
        answer = gateway.ask(GET)
        assert answer.status == 502
        assert b"127.0.0" not in answer.body
        body = json.loads(wait_until_ready(gateway, False, because="upstream can't be reached"))
        assert body["reason"] == f"upstream can't be reached: {reason}"
        gateway.wait_for_line(f"upstream failed.*({detail})")
    assert_json(gateway)


@pytest.mark.parametrize("workers", [1, 2])
def test_two_live_addresses(workers: int) -> None:
    """Connections are made to all addresses of the name."""
    configure()
    with (
        Nameserver([FIRST, SECOND]),
        Upstream(CLOSING, host=FIRST, port=PORT) as first,
        Upstream(CLOSING, host=SECOND, port=PORT) as second,
        Gateway(URL, "--workers", str(workers)) as gateway,
    ):
        assert statuses(gateway) == {200: TIMES}
        assert first.requests
        assert second.requests


@adapters
def test_a_lost_packet(adapter: Adapter) -> None:
    """A lost query, which the resolver repeats, is no failure, even if that takes longer than the connect timeout."""
    configure("timeout:2")
    with (
        Nameserver([FIRST]) as dns,
        Upstream(CLOSING, host=FIRST, port=PORT),
        Gateway(URL, "--connect-timeout", "1", adapter=adapter) as gateway,
    ):
        dns.loses_first = True
        assert curl() == 200
        assert statuses(gateway, 2) == {200: 2}


@adapters
def test_a_slow_resolver(adapter: Adapter) -> None:
    """Requests at the same time share look-ups, whose time does not count towards the connect timeout."""
    configure("timeout:5")
    with (
        Nameserver([FIRST], delay=3) as dns,
        Upstream(CLOSING, host=FIRST, port=PORT),
        Gateway(URL, "--connect-timeout", "1", adapter=adapter) as gateway,
    ):
        assert curl() == 200
        before = dns.queries
        assert at_once(gateway, 40) == {200: 40}
        assert dns.queries - before < 10
    if adapter == "native":
        assert_json(gateway)


def test_search_domains() -> None:
    """The name is also looked up in the search domains, as other programs of the system do."""
    configure(search="test")
    with Nameserver([FIRST]), Upstream(host=FIRST, port=PORT), Gateway(f"http://litellm:{PORT}") as gateway:
        assert curl(f"http://litellm:{PORT}") == gateway.ask(GET).status == 200


def test_hosts() -> None:
    """A name in /etc/hosts needs no DNS server."""
    configure(hosts=f"{FIRST} {NAME}")
    with Upstream(host=FIRST, port=PORT), Gateway(URL) as gateway:
        assert curl() == gateway.ask(GET).status == 200


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param(NXDOMAIN, "Name or service not known", id="no such name"),
        pytest.param(SERVFAIL, "Temporary failure in name resolution", id="server failure"),
        pytest.param(None, "Temporary failure in name resolution", id="no server"),
    ],
)
def test_no_address(code: int | None, reason: str) -> None:
    """If the name has no address, the client gets 502 without the name. The readiness probe and the log say why."""
    configure("timeout:1", "attempts:1")
    with contextlib.ExitStack() as stack:
        if code is not None:
            stack.enter_context(Nameserver(code=code))
        gateway = stack.enter_context(Gateway(URL, admin=True))
        assert curl() == 0
        answer = gateway.ask(GET)
        assert answer.status == 502
        assert NAME.encode() not in answer.body
        body = json.loads(wait_until_ready(gateway, False, because="upstream can't be reached"))
        assert body["reason"] == f"upstream can't be reached: the name in --upstream can't be resolved: {reason}"
        gateway.wait_for_line(f"upstream failed.*the name in --upstream can't be resolved: {reason}")
    assert_json(gateway)


@adapters
@pytest.mark.parametrize("failure", ["server failure", "silence"])
def test_the_resolver_fails_later(adapter: Adapter, failure: str) -> None:
    """While look-ups fail, the last known addresses are used."""
    configure("timeout:1", "attempts:1")
    with (
        Nameserver([FIRST]) as dns,
        Upstream(CLOSING, host=FIRST, port=PORT) as upstream,
        Gateway(URL, "--connect-timeout", "2", adapter=adapter, admin=adapter == "native") as gateway,
    ):
        assert gateway.ask(GET).status == 200
        if failure == "silence":
            dns.silent = True
        else:
            dns.code = SERVFAIL
        assert curl() == 0
        assert statuses(gateway) == {200: TIMES}
        assert len(upstream.requests) == TIMES + 1
        if adapter == "native":
            wait_until_ready(gateway)
            assert "not ready" not in str(gateway.records)


@contextlib.contextmanager
def ending(gateway: Gateway, dns: Nameserver) -> Iterator[None]:
    """Send SIGTERM while twenty requests wait for a connection. After the block, the process must exit with 0."""
    clients = [gateway.connect() for _ in range(20)]
    for client in clients:
        client.send(GET)
    while not dns.queries:  # until the look-up has begun
        os.sched_yield()
    gateway.terminate()
    yield
    assert gateway.wait(10) == 0
    for client in clients:
        client.close()
    assert_json(gateway)


@pytest.mark.parametrize("how", ["drained", "a second signal"])
def test_exit_while_a_name_is_looked_up(how: str) -> None:
    """A look-up that gets no response, for the pool or the readiness probe, does not keep the process from exiting."""
    configure("timeout:30", "attempts:1")
    with Nameserver([FIRST]) as dns:
        dns.silent = True
        with Gateway(URL, "--shutdown-grace", "1", admin=True) as gateway, ending(gateway, dns):
            if how != "drained":
                gateway.wait_for_line("stopping")
                gateway.terminate()


def test_exit_while_addresses_are_tried() -> None:
    """Attempts to connect to several addresses do not keep the process from exiting, and write no traceback."""
    configure()
    with (
        Nameserver([FIRST, SECOND]) as dns,
        black_hole(FIRST),
        black_hole(SECOND),
        Gateway(URL, "--connect-timeout", "60", "--shutdown-grace", "1", admin=True) as gateway,
        ending(gateway, dns),
    ):
        pass


def test_keep_alive_probes() -> None:
    """The connections to the client and to upstream both have a TCP keep-alive timer of one minute."""
    configure()
    hold = threading.Event()
    with (
        Nameserver([FIRST]),
        Upstream(reply(hold, OK), host=FIRST, port=PORT) as upstream,
        Gateway(URL) as gateway,
        gateway.connect() as client,
    ):
        client.send(GET)
        upstream.wait_request()
        shown = subprocess.run(["ss", "-Htnop"], capture_output=True, text=True, timeout=10, check=True).stdout
        timers = [line for line in shown.splitlines() if f"pid={gateway.pid}," in line]
        hold.set()
        assert client.read_response().status == 200
    assert len(timers) == 2
    for line in timers:
        kind, left, _ = line.partition("timer:(")[2].split(",", 2)
        assert kind == "keepalive"
        assert left in ("1min", "60sec") or left.startswith("59"), line

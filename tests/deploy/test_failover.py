"""Each configuration in deploy/proxies while the gateway is away: key edits go to LiteLLM as they are.

This happens only if no connection to the gateway can be made. LiteLLM may have carried out a request that was sent
to the gateway, so the proxy never resends such a request.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy import proxies
from tests.deploy.proxies import FILES, command, configure, gateway_options, running
from tests.support.client import Client, Response
from tests.support.gateway import Gateway, reserved_port
from tests.support.upstream import CLOSE, OK, RESET, Connection, Script, Upstream, reply
from tests.support.wire import Cut, Wire

LARGE = {"nginx.conf": 3 << 20, "haproxy.cfg": 3 << 20, "envoy.yaml": 900_000}
"""Octets of content of a large edit. Envoy does not send an edit of over 1 MiB to LiteLLM instead."""
BACK = 60.0
"""Seconds within which a gateway that is running again must get the edits again. It takes 5."""


@dataclass
class Chain:
    """The proxy of ``file`` at ``address``, in front of LiteLLM and of a gateway's ``port`` and ``admin_port``."""

    file: str
    address: tuple[str, int]
    litellm: Upstream
    port: int
    admin_port: int

    def edit(self, number: int, size: int = 2) -> Response:
        """Send a key edit on a connection of its own."""
        with Client(self.address) as client:
            client.sock.settimeout(60)
            return client.ask(edit(number, size))

    def seen(self) -> list[tuple[bytes, bool]]:
        """The requests that have reached LiteLLM: the target, and whether the request came through the gateway."""
        return [(request.target, request.get(b"via") is not None) for request in self.litellm.requests]


def target(number: int) -> bytes:
    return b"/key/update?%d" % number


def edit(number: int, size: int = 2) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: h.example\r\nContent-Length: %d\r\n\r\n"
    return head % (target(number), size) + b"{}".ljust(size)


def status(client: Client) -> int:
    """The status of the next response. 0 if there is none, as from HAProxy after a failure of a reused connection."""
    try:
        return client.read_response().status
    except Cut:
        return 0


@pytest.fixture(params=FILES)
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chain]:
    """A proxy whose gateway is not running yet."""
    file: str = request.param
    with Upstream() as litellm, reserved_port() as port, reserved_port() as gateway, reserved_port() as admin:
        ports = {proxies.LITELLM: litellm.port, proxies.GATEWAY: gateway, proxies.ADMIN: admin, proxies.PROXY: port}
        made = Chain(file, ("127.0.0.1", port), litellm, gateway, admin)
        with running(command(Path(file).stem, tmp_path, configure(file, tmp_path, ports)), tmp_path, port):
            yield made


def wait_until_used(chain: Chain, is_used: Callable[[], bool]) -> None:
    """Send edits until the gateway is used. None may fail. Then clear the list of LiteLLM's requests."""
    until = time.monotonic() + BACK
    while True:
        assert chain.edit(0).status == 200
        if is_used():
            chain.litellm.requests.clear()
            return
        assert time.monotonic() < until, "the gateway is there, and gets no edits"
        time.sleep(0.05)


@contextlib.contextmanager
def real_gateway(chain: Chain, *options: str) -> Iterator[Gateway]:
    """A gateway that the proxy uses, started with the options that the proxy's file demands."""
    options = (*gateway_options(chain.file), *options)
    listen = ("--port", str(chain.port))
    with Gateway(chain.litellm.url, *options, listen=listen, admin_port=chain.admin_port) as gateway:
        wait_until_used(chain, lambda: chain.seen()[-1] == (target(0), True))
        yield gateway


@contextlib.contextmanager
def scripted_gateway(chain: Chain) -> Iterator[Upstream]:
    """A fake gateway that the proxy uses. Its admin listener stays ready until the end."""
    with Upstream(port=chain.admin_port), Upstream(port=chain.port) as gateway:
        wait_until_used(chain, lambda: bool(gateway.requests))
        gateway.requests.clear()
        yield gateway


def test_killed_and_back(chain: Chain) -> None:
    """After the gateway is killed, no edit fails, and each reaches LiteLLM once. A new gateway gets the edits again."""
    with real_gateway(chain) as gateway:
        gateway.kill()
        assert [chain.edit(number).status for number in range(100, 103)] == [200] * 3
        assert chain.edit(103, LARGE[chain.file]).status == 200
        with ThreadPoolExecutor(20) as pool:
            assert [answer.status for answer in pool.map(chain.edit, range(104, 124))] == [200] * 20
        assert Counter(chain.seen()) == Counter((target(number), False) for number in range(100, 124))
    with real_gateway(chain):
        pass


def test_killed_with_a_request_in_flight(chain: Chain) -> None:
    """A request that the gateway is relaying when it is killed fails, and is not resent."""
    held = threading.Event()
    with real_gateway(chain) as gateway:
        chain.litellm.script = reply(held, OK)
        try:
            with Client(chain.address) as client:
                client.send(edit(100))
                chain.litellm.wait_request()
                gateway.kill()
                chain.litellm.script = reply(OK)
                assert status(client) != 200
            assert [chain.edit(number).status for number in (101, 102)] == [200] * 2
        finally:
            held.set()
    assert chain.seen() == [(target(100), True), (target(101), False), (target(102), False)]


def test_drained(chain: Chain) -> None:
    """No edit fails while the gateway drains, or after it has ended. Each reaches LiteLLM once."""
    with real_gateway(chain, "--shutdown-grace", "12") as gateway:
        gateway.terminate()
        number = 99
        while gateway.process.poll() is None:
            number += 1
            assert chain.edit(number).status == 200
            time.sleep(0.02)
        assert gateway.wait() == 0
        assert chain.edit(number + 1).status == 200
    assert Counter(each for each, _ in chain.seen()) == Counter(map(target, range(100, number + 2)))
    assert chain.seen()[-1] == (target(number + 1), False)


@pytest.mark.parametrize("chain", ["haproxy.cfg", "envoy.yaml"], indirect=True)  # nginx has no health checks
def test_hung(chain: Chain) -> None:
    """While the gateway hangs, edits go to LiteLLM once its health check has failed. Afterwards it gets them again."""
    with real_gateway(chain) as gateway:
        os.kill(gateway.pid, signal.SIGSTOP)
        with contextlib.ExitStack() as stack:
            until = time.monotonic() + BACK
            while not chain.litellm.requests:  # the edits until then wait for the gateway
                stack.enter_context(Client(chain.address)).send(edit(100))
                assert time.monotonic() < until, "no edit goes to LiteLLM"
                time.sleep(0.2)
        assert [chain.edit(number).status for number in (101, 102)] == [200] * 2
        assert {through for _, through in chain.seen()} == {False}
        os.kill(gateway.pid, signal.SIGCONT)
        wait_until_used(chain, lambda: chain.seen()[-1] == (target(0), True))


def break_after_head(connection: Connection) -> None:
    connection.read_head()
    connection.reset()


def break_the_second(connection: Connection) -> None:
    connection.read_request()
    connection.send(OK)
    connection.read_request()
    connection.reset()


BREAKS: dict[str, tuple[Script, list[int]]] = {
    "a reset after the request": (reply(RESET), [2]),
    "an orderly end after the request": (reply(CLOSE), [2]),
    "a reset after the head of a large request": (break_after_head, [3 << 20]),
    "a reset after half a head of an answer": (reply(b"HTTP/1.1 200 OK\r\nContent-", RESET), [2]),
    "a reset of a connection that is used again": (break_the_second, [2, 2]),
}


@pytest.mark.parametrize(("script", "sizes"), BREAKS.values(), ids=BREAKS.keys())
def test_what_was_sent_is_not_sent_again(chain: Chain, script: Script, sizes: list[int]) -> None:
    """If a gateway that is ready receives a request and ends the connection, the proxy does not resend the request."""
    with scripted_gateway(chain) as gateway, Client(chain.address) as client:
        gateway.script = script
        for number, size in enumerate(sizes, 1):
            with contextlib.suppress(OSError):  # the response may arrive before everything is sent
                client.send(edit(number, size))
            assert (status(client) == 200) == (number < len(sizes))
        assert [each.target for each in gateway.requests] == [target(number) for number in range(1, len(sizes) + 1)]
        assert chain.litellm.requests == []


def test_a_gateway_that_cannot_be_reached(chain: Chain) -> None:
    """If connecting to the gateway times out, although its health checks succeed, the edit then goes to LiteLLM."""
    with scripted_gateway(chain) as gateway, contextlib.ExitStack() as stack:
        gateway.stop()
        full = stack.enter_context(socket.create_server(("127.0.0.1", chain.port), backlog=0))
        for _ in range(8):  # fills the queue, so that the kernel drops connections
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        assert chain.edit(1).status == 200
        assert chain.seen() == [(target(1), False)]


def test_the_gateway_trusts_the_proxy(chain: Chain) -> None:
    """LiteLLM gets the same client address and scheme through the gateway as directly from the proxy."""
    with real_gateway(chain), socket.create_connection(chain.address, source_address=("127.0.0.2", 0)) as sock:
        client = Wire(sock)
        for request in (edit(1), edit(2).replace(b"/key/update", b"/key/generate")):
            client.send(request)
            client.read_until(b"\r\n\r\nok")
    seen = [(request.all(b"x-forwarded-for"), request.all(b"x-forwarded-proto")) for request in chain.litellm.requests]
    assert [through for _, through in chain.seen()] == [True, False]
    assert seen[0] == seen[1]
    assert seen[0][1] == [b"http"]

"""Tunnels between all kinds of sockets, compared octet by octet: how they begin and end, also during a drain."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import ssl
import tempfile
import threading
from collections.abc import Iterator
from itertools import product
from typing import Final

import pytest
import trustme

from sanitizer.app import create_app
from sanitizer.relay.client import ClientConnection
from sanitizer.relay.connection import Connection as UpstreamConnection
from sanitizer.settings import load
from tests.support.client import Client
from tests.support.gateway import Gateway
from tests.support.upstream import OK, Connection, Script, Upstream, reply

HANDSHAKE: Final = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
SWITCH: Final = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
MIB: Final = 1024 * 1024
KINDS: Final = ("tcp", "tls", "unix")


class Lab:
    """A gateway between a client and an upstream, each on a socket of one of `KINDS`."""

    def __init__(self, stack: contextlib.ExitStack, client: str, upstream: str, script: Script, *options: str) -> None:
        self.kinds = client, upstream
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(server_context)
        self.context: ssl.SSLContext | None = None
        if client == "tls":
            self.context = ssl.create_default_context()
            authority.configure_trust(self.context)
            certificate.private_key_and_cert_chain_pem.write_to_path(f"{folder}/pem")
            options += ("--ssl-certfile", f"{folder}/pem")
        if upstream == "tls":
            authority.cert_pem.write_to_path(f"{folder}/ca")
            options += ("--upstream-ca", f"{folder}/ca")
        self.upstream = stack.enter_context(
            Upstream(
                script,
                uds=f"{folder}/upstream" if upstream == "unix" else None,
                context=server_context if upstream == "tls" else None,
                keep=False,
            )
        )
        url = self.upstream.url.replace("127.0.0.1", "localhost") if upstream == "tls" else self.upstream.url
        listen = ("--uds", f"{folder}/gateway") if client == "unix" else ("--port", "0")
        self.gateway = stack.enter_context(Gateway(url, *options, listen=listen, admin=True))

    def connect(self) -> Client:
        return Client(self.gateway.address, context=self.context, keep=False)

    def tunnel(self, *early: bytes) -> Client:
        """A client in a tunnel. It has sent ``early`` together with its request."""
        client = self.connect()
        client.send(HANDSHAKE + b"".join(early))
        assert client.read_head().status == 101
        return client


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module", params=list(product(KINDS, KINDS)), ids="-".join)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        client, upstream = request.param
        yield Lab(stack, client, upstream, reply(OK))


def pattern(octets: int) -> bytes:
    """Octets that show where some are missing."""
    return b"".join(b"%07d\n" % n for n in range(octets // 8))


def test_early_octets(lab: Lab) -> None:
    """Octets that a side sends together with its head are the first that the other side gets, and none are lost."""

    def script(connection: Connection) -> None:
        connection.read_head()
        connection.send(SWITCH + b"early answer")
        assert connection.read_exactly(len(early)) == early
        connection.send(b"late answer")
        assert connection.read_exactly(4) == b"late"
        connection.send(b"end")
        connection.closed()

    early = pattern(200_000)
    lab.upstream.script = script
    with lab.tunnel(early) as tunnel:
        assert tunnel.read_exactly(23) == b"early answerlate answer"
        tunnel.send(b"late")
        assert tunnel.read_exactly(3) == b"end"


def test_both_ways_at_once(lab: Lab) -> None:
    """Octets that are sent in both directions at once arrive completely and in order."""
    digests: dict[str, str] = {}
    content = pattern(24 * MIB)

    def take(connection: Client | Connection, name: str) -> None:
        digest = hashlib.sha256()
        for _ in range(len(content) // MIB):
            digest.update(connection.read_exactly(MIB))
        digests[name] = digest.hexdigest()

    def exchange(connection: Client | Connection, name: str) -> None:
        if isinstance(connection.sock, ssl.SSLSocket):  # two threads must not use it
            for at in range(0, len(content), MIB):
                connection.send(content[at : at + MIB])
            take(connection, name)
            return
        taker = threading.Thread(target=take, args=(connection, name))
        taker.start()
        connection.send(content)
        taker.join()

    def script(connection: Connection) -> None:
        connection.read_head()
        connection.send(SWITCH)
        if lab.kinds == ("tls", "tls"):  # neither side can read while it sends
            take(connection, "upstream")
            connection.send(content)
        else:
            exchange(connection, "upstream")
        done.set()
        connection.closed()

    done = threading.Event()
    lab.upstream.script = script
    with lab.tunnel() as tunnel:
        exchange(tunnel, "client")
        assert done.wait(30)
    assert set(digests.values()) == {hashlib.sha256(content).hexdigest()}
    assert set(digests) == {"upstream", "client"}


def end(connection: Client | Connection) -> None:
    """Close the connection, in TLS with a close_notify, without waiting for the peer's."""
    if isinstance(connection.sock, ssl.SSLSocket):
        connection.sock.setblocking(False)
        with contextlib.suppress(OSError):
            connection.sock.unwrap()
    connection.close()


@pytest.mark.parametrize("first", ["upstream", "client"])
def test_all_that_was_sent_before_the_end(lab: Lab, first: str) -> None:
    """A side that reads slowly gets all that the other side has sent before it closed, and then the end."""

    def take(connection: Client | Connection) -> None:
        assert ended.wait(10)
        got.append(connection.read_to_end())
        taken.set()

    def script(connection: Connection) -> None:
        connection.read_head()
        connection.send(SWITCH)
        if first == "client":
            take(connection)
            return
        connection.send(content)
        end(connection)
        ended.set()

    lab.upstream.script = script
    # enough to pause the gateway's reading before the end arrives, and no more than all buffers together can hold
    limit = 384 if lab.kinds[first == "upstream"] == "unix" else 1024
    for octets in range(64 * 1024, limit * 1024, 64 * 1024):
        content = pattern(octets)
        got: list[bytes] = []
        ended, taken = threading.Event(), threading.Event()
        with lab.tunnel() as tunnel:
            if first == "upstream":
                take(tunnel)
            else:
                tunnel.send(content)
                end(tunnel)
                ended.set()
                assert taken.wait(10)
        assert got == [content]
    assert b'sanitizer_upstream_errors_total{kind="broken"} 0.0' in lab.gateway.ask_admin("/metrics").body


def test_a_tunnel_that_begins_in_a_drain(stack: contextlib.ExitStack) -> None:
    """A drain waits for a request that becomes a tunnel after the signal to stop, until the tunnel has ended."""
    switch = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        assert switch.wait(10)
        connection.send(SWITCH)
        connection.send(connection.read_exactly(4).upper())
        assert connection.closed()

    lab = Lab(stack, "tcp", "tcp", script, "--shutdown-grace", "30")
    client = stack.enter_context(lab.connect())
    client.send(HANDSHAKE)
    lab.upstream.wait_request()
    lab.gateway.process.send_signal(signal.SIGINT)
    lab.gateway.wait_for_line("stopping")
    with contextlib.suppress(OSError), lab.connect() as late:  # no longer accepted, so the drain has begun
        assert late.closed()
    switch.set()
    assert client.read_head().status == 101
    client.send(b"ping")
    assert client.read_exactly(4) == b"PING"
    client.close()
    assert lab.gateway.wait(20) == 0
    assert not any("aborting" in line for line in lab.gateway.lines)


@pytest.mark.anyio
async def test_a_tls_client_that_is_lost_as_upstream_switches() -> None:
    """If a TLS client is lost while upstream switches protocols, no tunnel is made.

    uvloop has already scheduled `connection_lost` of the protocol that the tunnel would replace.
    """
    loop = asyncio.get_running_loop()
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()
        writer.close()
        ended.set()

    def switch_as_the_client_is_lost() -> None:
        assert isinstance(client, ClientConnection)
        if client.transport.is_closing():
            assert isinstance(connection, UpstreamConnection)
            connection.data_received(SWITCH)
        else:
            loop.call_soon(switch_as_the_client_is_lost)

    arrived, ended = asyncio.Event(), asyncio.Event()
    upstream = await asyncio.start_server(accepted, "127.0.0.1", 0)
    port = upstream.sockets[0].getsockname()[1]
    gateway = create_app(load({"upstream": f"http://127.0.0.1:{port}"}, {}))
    gateway.start()
    server = await loop.create_server(lambda: ClientConnection(gateway), "127.0.0.1", 0, ssl=context)
    address = server.sockets[0].getsockname()
    _, writer = await asyncio.open_connection(*address, ssl=trusting, server_hostname="localhost")
    writer.write(HANDSHAKE)
    await arrived.wait()
    (client,) = gateway.connections
    (connection,) = gateway.pool.watched()
    loop.call_soon(switch_as_the_client_is_lost)
    writer.transport.abort()
    async with asyncio.timeout(10):
        await gateway.connections.wait_closed()
        await ended.wait()
    assert (gateway.counters.tunnels, gateway.counters.in_flight) == (0, 0)
    gateway.close()
    server.close()
    upstream.close()

"""Connecting: the order of addresses, errors, the time limit, TLS, and keep-alive probes."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest
import trustme

from sanitizer import connecting, keepalive
from sanitizer.address import Address, parse_address
from sanitizer.connecting import Connector, rotated
from sanitizer.listeners import listen_tcp
from sanitizer.relay.connection import Connection
from sanitizer.relay.pool import Pool
from sanitizer.resolver import AddrInfo

pytestmark = pytest.mark.anyio


def info(host: str) -> AddrInfo:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (host, 80))


def hosts(addresses: list[AddrInfo]) -> list[str]:
    return [address[4][0] for address in addresses]


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (0, ["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        (1, ["fd00::2", "fd00::1", "10.0.0.2", "10.0.0.3", "10.0.0.1"]),
        (5, ["fd00::2", "fd00::1", "10.0.0.3", "10.0.0.1", "10.0.0.2"]),
    ],
)
def test_order(turn: int, expected: list[str]) -> None:
    """Each turn begins with another address, whatever the order found. The system's preferred family stays first."""
    for found in (
        ["fd00::2", "10.0.0.3", "fd00::1", "10.0.0.1", "10.0.0.2"],
        ["fd00::1", "fd00::2", "10.0.0.2", "10.0.0.1", "10.0.0.3"],
    ):
        assert hosts(rotated([info(host) for host in found], turn)) == expected


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://[::1]:{port}"])
async def test_no_look_up_for_an_ip_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An IP address is connected to without a lookup."""
    monkeypatch.setattr(connecting, "resolver_of", lambda *_: pytest.fail("looked up"))
    address = parse_address(url.format(port=1))
    with listen_tcp(address.host, 0) as listener:
        address = parse_address(url.format(port=listener.getsockname()[1]))
        transport = await Connector(address, None, 5).connect(asyncio.Protocol)
        transport.abort()


@pytest.fixture(params=[1, 2, None], ids=["one address", "two addresses", "an IP address"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A host that leads to 127.0.0.1: a name with one or two addresses, or the IP address itself."""
    if request.param is None:
        return "127.0.0.1"

    def getaddrinfo(host: str, port: int, **_: object) -> list[AddrInfo]:
        assert host == "litellm.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))] * request.param

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return "litellm.test"


async def test_refused(host: str) -> None:
    """A refused connection raises the system's own error."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(ConnectionRefusedError) as failure:
            await Connector(Address("http", host, port), None, 5).connect(asyncio.Protocol)
    assert str(failure.value) == "[Errno 111] Connection refused"


async def test_uvloop_raises_another_error(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `RuntimeError`, which uvloop raises for some failures of a socket, is raised as an `OSError`."""

    async def start_connection(*_: object, **__: object) -> socket.socket:
        raise RuntimeError("File descriptor 9 is used by transport")

    monkeypatch.setattr(connecting, "start_connection", start_connection)
    with pytest.raises(OSError, match="is used by transport"):
        await Connector(Address("http", host, 80), None, 5).connect(asyncio.Protocol)


async def test_a_handshake_that_does_not_end(host: str) -> None:
    """The time limit covers the TLS handshake too. When it expires, the socket is closed."""
    context = ssl.create_default_context()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connector = Connector(Address("https", host, listener.getsockname()[1]), context, 0.2)
        with pytest.raises(TimeoutError):
            await connector.connect(asyncio.Protocol)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(10)
            while await asyncio.to_thread(accepted.recv, 65536):
                pass


@pytest.mark.parametrize("trusted", [True, False])
async def test_name_in_the_certificate(host: str, trusted: bool) -> None:
    """The certificate has to be valid for the host in --upstream, whatever address the host leads to."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(host if trusted else "other.test").configure_cert(server)
    authority.configure_trust(client)
    listening = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=server)
    try:
        connector = Connector(Address("https", host, listening.sockets[0].getsockname()[1]), client, 5)
        if trusted:
            (await connector.connect(asyncio.Protocol)).abort()
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                await connector.connect(asyncio.Protocol)
    finally:
        listening.close()


OPTIONS = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): keepalive.IDLE,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): keepalive.INTERVAL,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): keepalive.COUNT,
}


def options_of(transport: asyncio.BaseTransport) -> dict[tuple[int, int], int]:
    sock = transport.get_extra_info("socket")
    return {option: sock.getsockopt(*option) for option in OPTIONS}


async def test_keep_alive_probes() -> None:
    """The kernel probes silent peers on both sides: accepted connections inherit the options of their listener."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[asyncio.BaseTransport] = loop.create_future()

    class Accepting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(transport)

    with listen_tcp("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = await loop.create_server(Accepting, sock=listener)
        address = Address("http", "127.0.0.1", port)
        pool = Pool(address)
        made = await Connector(address, None, 5).connect(lambda: Connection(pool))
        try:
            assert options_of(made) == OPTIONS
            assert options_of(await accepted) == OPTIONS
        finally:
            made.abort()
            pool.close()
            server.close()


@pytest.mark.parametrize("names", [{"TCP_KEEPALIVE"}, {"TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT"}, set()])
def test_other_platforms(names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system lacks some of the options, or has another name for one, the others are set."""
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name)
    for number, name in enumerate(sorted(names), start=100):
        monkeypatch.setattr(socket, name, number, raising=False)
    done: list[tuple[int, int, int]] = []

    class Sock:
        def setsockopt(self, *option: int) -> None:
            done.append(option)  # type: ignore[arg-type]

    keepalive.enable_keepalive(Sock())  # type: ignore[arg-type]
    values = {"TCP_KEEPALIVE": keepalive.IDLE, "TCP_KEEPINTVL": keepalive.INTERVAL, "TCP_KEEPCNT": keepalive.COUNT}
    assert sorted(done) == sorted(
        [
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            *((socket.IPPROTO_TCP, getattr(socket, name), values[name]) for name in names),
        ]
    )

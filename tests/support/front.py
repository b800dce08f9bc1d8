"""A gateway on a virtual loop: client connections without sockets, and the pool that they share."""

from __future__ import annotations

from typing import Any, cast

from sanitizer.address import TrustedProxies
from sanitizer.http1.forwarding import Forwarding
from sanitizer.relay.client import ClientConnection
from sanitizer.relay.connections import Connections
from sanitizer.relay.counters import Counters
from sanitizer.relay.interception import Ask, Interceptor
from sanitizer.relay.pool import Pool
from tests.support.virtual import ADDRESS, FakeTransport, VirtualLoop

PEER = ("192.0.2.1", 40000)
KEEPALIVE = 75.0
CONNECT_TIMEOUT = 5.0
UPSTREAM_KEEPALIVE = 1000.0


class Front:
    """The gateway that the client connections belong to. It intercepts nothing without an ``interceptor``."""

    keepalive_timeout = KEEPALIVE

    def __init__(
        self,
        response_timeout: float | None = None,
        max_connections: int | None = None,
        interceptor: Interceptor | None = None,
    ) -> None:
        self.pool = Pool(
            ADDRESS,
            connect_timeout=CONNECT_TIMEOUT,
            response_timeout=response_timeout,
            keepalive=UPSTREAM_KEEPALIVE,
            max_connections=max_connections,
        )
        self.forwarding = Forwarding(TrustedProxies(), b"litellm-sanitizer-test")
        self.counters = Counters(lambda kind, *_: self.refusals.append(kind), lambda kind, *_: self.stalls.append(kind))
        self.connections = Connections()
        self.interceptor = interceptor or self
        self.writing = None
        self.draining = False
        self.refusals: list[str] = []
        self.stalls: list[str] = []
        self.told: list[tuple[bytes, bytes, int]] = []

    def on_ended(self, client: str | None, method: bytes, target: bytes, status: int, seconds: float) -> None:
        assert client == PEER[0]
        self.told.append((method, target, status))

    def intercept(self, path: str, head: bytes, outbound: bytes, ask: Ask, client: str | None) -> None:
        """No request is intercepted."""

    async def ask(self, target: bytes, header: bytes, limit: int, content: bytes | None = None, /) -> tuple[int, bytes]:
        raise AssertionError("nothing is looked up")


def make_connection(
    front: Front,
    loop: VirtualLoop,
    kind: type[FakeTransport] = FakeTransport,
    peername: tuple[str, int] = PEER,
) -> FakeTransport:
    """A client connection that has just been accepted; its protocol is the transport's ``protocol``."""

    def make() -> FakeTransport:
        protocol = ClientConnection(cast(Any, front))
        transport = kind(loop, protocol, peername=peername, pollable=True)
        protocol.connection_made(transport)
        return transport

    return loop.act(make)


def shut_down(transport: FakeTransport) -> None:
    """Ask the connection to take no further request."""
    protocol = transport.protocol
    assert isinstance(protocol, ClientConnection)
    transport.loop.act(protocol.shutdown)

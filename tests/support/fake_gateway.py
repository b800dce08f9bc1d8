"""What client connections need of a gateway, without listeners, options or logs."""

from __future__ import annotations

from typing import Any, cast

from sanitizer.address import Address, TrustedProxies
from sanitizer.http1.forwarding import Forwarding
from sanitizer.relay.client import ClientConnection
from sanitizer.relay.connections import Connections
from sanitizer.relay.counters import Counters
from sanitizer.relay.interception import Interceptor, SendLookup
from sanitizer.relay.pool import Pool
from tests.support.virtual import ADDRESS, FakeTransport, VirtualLoop

PEER = ("192.0.2.1", 40000)
KEEPALIVE = 75.0
CONNECT_TIMEOUT = 5.0
UPSTREAM_KEEPALIVE = 1000.0


class FakeGateway:
    """A `sanitizer.relay.client.Gateway` that records what connections report. It has to be made in an event loop.

    ``interceptor``: without one, nothing is intercepted. ``client``: the address that every request must come from.
    ``refusals`` and ``stalls`` are the kinds that the counters have logged, ``ended`` the method, target and status of
    each request that has ended.
    """

    keepalive_timeout = KEEPALIVE
    write_context = None  # it is its own interceptor, and intercepts nothing

    def __init__(
        self,
        *,
        interceptor: Interceptor | None = None,
        address: Address = ADDRESS,
        client: str = PEER[0],
        connect_timeout: float = CONNECT_TIMEOUT,
        response_timeout: float | None = None,
        max_connections: int | None = None,
    ) -> None:
        self.pool = Pool(
            address,
            connect_timeout=connect_timeout,
            response_timeout=response_timeout,
            keepalive=UPSTREAM_KEEPALIVE,
            max_connections=max_connections,
        )
        self.forwarding = Forwarding(TrustedProxies(), b"litellm-sanitizer-test")
        self.counters = Counters(lambda kind, *_: self.refusals.append(kind), lambda kind, *_: self.stalls.append(kind))
        self.connections = Connections()
        self.interceptor = interceptor or self
        self.draining = False
        self.refusals: list[str] = []
        self.stalls: list[str] = []
        self.ended: list[tuple[bytes, bytes, int]] = []
        self._client = client

    def make_protocol(self) -> ClientConnection:
        """The protocol of a new client connection."""
        return ClientConnection(cast(Any, self))

    @property
    def statuses(self) -> list[int]:
        """The statuses of the requests that have ended."""
        return [status for _, _, status in self.ended]

    def on_request_ended(self, client: str | None, method: bytes, target: bytes, status: int, seconds: float) -> None:
        assert client == self._client
        self.ended.append((method, target, status))

    def intercept(
        self, path: str, head: bytes, outbound: bytes, send_lookup: SendLookup, client_address: str | None
    ) -> None:
        """No request is intercepted."""

    async def send_lookup(
        self, target: bytes, header: bytes, limit: int, content: bytes | None = None, /
    ) -> tuple[int, bytes]:
        raise AssertionError("nothing is looked up")


def make_connection(
    gateway: FakeGateway,
    loop: VirtualLoop,
    kind: type[FakeTransport] = FakeTransport,
    peername: tuple[str, int] = PEER,
) -> FakeTransport:
    """A client connection that has just been accepted. Its protocol is the transport's ``protocol``."""

    def make() -> FakeTransport:
        protocol = gateway.make_protocol()
        transport = kind(loop, protocol, peername=peername, pollable=True)
        protocol.connection_made(transport)
        return transport

    return loop.act(make)


def shut_down(transport: FakeTransport) -> None:
    """Call `ClientConnection.shutdown`, as the server does when it stops."""
    protocol = transport.protocol
    assert isinstance(protocol, ClientConnection)
    transport.loop.act(protocol.shutdown)

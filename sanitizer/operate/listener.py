"""The admin listener's socket and connections. They work even if the public side has used up all descriptors.

The number of open connections is bounded. A new connection is always accepted; when there are too many, an old one is
closed.
"""

import asyncio
import errno
import ipaddress
import socket
from collections import Counter
from typing import Any, Final, NamedTuple

from h11 import LocalProtocolError
from uvicorn.protocols.http.h11_impl import H11Protocol

from sanitizer import descriptors
from sanitizer.address import plain_ip

CONNECTIONS_PER_PEER: Final = 16
"""How many connections one peer may have open. When it opens another, its oldest one is closed."""
CONNECTIONS: Final = 64
"""How many connections may be open. When another is opened, the peer with the most connections loses its oldest one."""
BACKLOG: Final = 64
"""How many connections the kernel queues, and how many are accepted per iteration of the event loop."""
LIFETIME: Final = 30.0
"""Seconds after which a connection is closed. A response under way is sent first."""
ANSWER_TIMEOUT: Final = 5.0
"""Seconds after `LIFETIME` at which the connection is reset, if that response is still not complete."""
HEAD_LIMIT: Final = 32 * 1024
"""The largest size of a request head, in bytes. A larger one is answered with 400."""


class Listener(socket.socket):
    """A listening socket that accepts a connection even if no descriptor is left, by means of one in reserve.

    It then accepts one connection per iteration of the event loop. asyncio calls `accept` until no connection is
    waiting, and finding that out would need another descriptor.
    """

    _pretend_none_waits = False

    def accept(self) -> tuple[socket.socket, Any]:
        if self._pretend_none_waits:
            self._pretend_none_waits = False
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            self._pretend_none_waits = error.errno in descriptors.NONE_LEFT
            if error.errno != errno.EMFILE:
                raise
        return descriptors.take_from_reserve(super().accept)


def peer_of(address: str) -> str:
    """The peer that an IP address belongs to. An IPv6 /64 network is one peer, because one host may own all of it."""
    ip = plain_ip(address)
    return str(ip if ip.version == 4 else ipaddress.ip_network((ip, 64), strict=False))


class _Open(NamedTuple):
    """An open connection's peer, and the timers that will close it."""

    peer: str
    timers: tuple[asyncio.TimerHandle, ...]


class _OpenConnections:
    """The open connections of one listener, bounded in number and lifetime.

    A probe must be answered however many peers are connected. So a new connection is always kept. When there are too
    many, an old one is closed: it is almost certainly idle, because a request is answered within milliseconds.
    """

    def __init__(self) -> None:
        self._open: dict[H11Protocol, _Open] = {}  # oldest first

    def add(self, protocol: H11Protocol, peer: str) -> None:
        """Add a new connection, and close an old one if there are too many."""
        loop = asyncio.get_running_loop()
        timers = (
            loop.call_later(LIFETIME, protocol.shutdown),
            loop.call_later(LIFETIME + ANSWER_TIMEOUT, protocol.transport.abort),
        )
        self._open[protocol] = _Open(peer, timers)
        peers = Counter(each.peer for each in self._open.values())
        if peers[peer] > CONNECTIONS_PER_PEER:
            busiest = peer
        elif len(self._open) > CONNECTIONS:
            busiest = max(peers, key=peers.__getitem__)
        else:
            return
        oldest = next(protocol for protocol, each in self._open.items() if each.peer == busiest)
        self.discard(oldest)  # at once, because the event loop calls `connection_lost` only later
        oldest.transport.abort()

    def discard(self, protocol: H11Protocol) -> None:
        """Remove a connection, if it is still there, and cancel its timers."""
        if protocol in self._open:
            for timer in self._open.pop(protocol).timers:
                timer.cancel()


class _Bounded(H11Protocol):
    open_connections: _OpenConnections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = transport.get_extra_info("peername")
        if address is None:  # the client has left already
            transport.abort()
        else:
            self.open_connections.add(self, peer_of(address[0]))

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except LocalProtocolError:  # uvicorn tried to answer malformed content with 400 after the response was sent
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.discard(self)
        super().connection_lost(exc)


def bounded_protocol() -> type[H11Protocol]:
    """A protocol class for the connections of one listener, whose number and lifetime it bounds."""

    class Bounded(_Bounded):
        open_connections = _OpenConnections()

    return Bounded

"""The admin listener's socket and connections. Both work whatever the public side does, and however many connect.

A new connection is answered however many are open: an older one is closed for it.
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

CONNECTIONS_OF_ONE: Final = 16
"""Connections that one peer has open at a time; for a further one its oldest is closed."""
CONNECTIONS: Final = 64
"""Connections that are open at a time; for a further one the oldest is closed of the peer that has the most."""
BACKLOG: Final = 64
"""Connections that the kernel completes before they are accepted, and that are accepted in one turn."""
LIFETIME: Final = 30.0
"""Seconds after which a connection is closed, as soon as it has its answer; a scraper makes another."""
ANSWER_TIMEOUT: Final = 5.0
"""Seconds that it then has for its answer, before it is reset."""
HEAD_LIMIT: Final = 32 * 1024
"""Bytes of a request's head; a larger one is answered with 400."""


class Listener(socket.socket):
    """A listening socket that accepts even when the public side has used up its descriptors.

    It then accepts one connection in a turn: the event loop goes on until no connection waits, and finding that out
    would take a descriptor as well.
    """

    _enough = False

    def accept(self) -> tuple[socket.socket, Any]:
        if self._enough:
            self._enough = False
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            self._enough = error.errno in descriptors.NONE_LEFT
            if error.errno != errno.EMFILE:
                raise
        return descriptors.take_from_reserve(super().accept)


def peer_of(address: str) -> str:
    """The peer with this IP address. An IPv6 /64 network is one peer, for one machine may have all of it."""
    ip = plain_ip(address)
    return str(ip if ip.version == 4 else ipaddress.ip_network((ip, 64), strict=False))


class _Open(NamedTuple):
    """A connection that is open: its peer, and the timers that will close it."""

    peer: str
    timers: tuple[asyncio.TimerHandle, ...]


class _OpenConnections:
    """The connections of one listener that are open. There are few at a time, and none lasts.

    A probe must be answered, however many peers are connected. So a new connection is always kept, and the oldest one
    of a peer that has too many is closed: a request is answered within milliseconds, so an old connection is idle.
    """

    def __init__(self) -> None:
        self._open: dict[H11Protocol, _Open] = {}  # the oldest first

    def add(self, protocol: H11Protocol, peer: str) -> None:
        """Keep a new connection, and close another one if there are too many."""
        loop = asyncio.get_running_loop()
        timers = (
            loop.call_later(LIFETIME, protocol.shutdown),
            loop.call_later(LIFETIME + ANSWER_TIMEOUT, protocol.transport.abort),
        )
        self._open[protocol] = _Open(peer, timers)
        peers = Counter(each.peer for each in self._open.values())
        if peers[peer] > CONNECTIONS_OF_ONE:
            crowding = peer
        elif len(self._open) > CONNECTIONS:
            crowding = max(peers, key=peers.__getitem__)
        else:
            return
        oldest = next(protocol for protocol, each in self._open.items() if each.peer == crowding)
        self.discard(oldest)  # now, for `connection_lost` comes in a later turn
        oldest.transport.abort()

    def discard(self, protocol: H11Protocol) -> None:
        """Forget a connection, if it is kept."""
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
        except LocalProtocolError:  # uvicorn would answer bad content with 400, but the request has its answer
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.discard(self)
        super().connection_lost(exc)


def bounded_protocol() -> type[H11Protocol]:
    """A protocol for the connections of one listener, of which it bounds the number."""

    class Bounded(_Bounded):
        open_connections = _OpenConnections()

    return Bounded

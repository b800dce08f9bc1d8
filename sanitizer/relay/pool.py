"""The pool of connections to upstream.

Cases, before the code that branches on them:

* Upstream has closed an idle connection: `Connection.send_request` polls its socket first, and does not use it.
* ``max_connections`` are open: an exchange waits for one to become free, in order of arrival and for a limited time.
* An exchange is over before the connection that was opened for it is established: the next waiting exchange gets the
  connection, or it becomes idle.
* A connection is old: it is closed at the end of its response, even if exchanges wait. A new connection may reach an
  instance of upstream that has been started since.
* The pool is closed: every exchange in progress fails, in whatever state it is, and no connection is opened any more.
"""

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, Protocol

from sanitizer import descriptors
from sanitizer.address import Address
from sanitizer.connecting import Connector
from sanitizer.errors import (
    ConnectTimeout,
    GatewayError,
    OutOfDescriptors,
    PoolExhausted,
    ResponseTimeout,
    UpstreamBroken,
    UpstreamNotReading,
    UpstreamUnreachable,
)
from sanitizer.relay.advice import NO_CLOSE_NOTIFY, advise
from sanitizer.relay.connection import Connection
from sanitizer.relay.counters import Histogram
from sanitizer.relay.pipe import TunnelEnd
from sanitizer.relay.stalls import Watched
from sanitizer.relay.writer import Outbox

_ERRORS = (
    PoolExhausted,
    OutOfDescriptors,
    ConnectTimeout,
    ResponseTimeout,
    UpstreamNotReading,
    UpstreamUnreachable,
    UpstreamBroken,
)
"""The errors that `Pool.count_error` counts."""
LIFETIME: Final = 120.0
"""Seconds, give or take a quarter, after which a connection is closed at the end of a response."""
_CLOSED: Final = "the gateway has closed its connections to upstream"
_TUNNEL_CLOSE_TIMEOUT: Final = 60.0
"""Seconds for which upstream may accept nothing from a tunnel whose client has disconnected."""


class Requester(Protocol):
    """Needs a connection for its request; such as an `Exchange`."""

    @property
    def done(self) -> bool:
        """Whether a connection is no longer needed."""

    def attach(self, connection: Connection) -> None:
        """Use ``connection``."""

    def fail(self, error: GatewayError) -> None:
        """Called when there will be no connection, because of ``error``."""

    def on_blocked(self) -> None:
        """Called when there is no connection yet."""


class Pool:
    """All connections of one process to upstream. Must be created while an event loop is running.

    ``connect_timeout`` is the time in which a connection must be established or, with ``max_connections`` open, become
    free. ``response_timeout`` runs from the last byte sent to the response's head; None means no limit. A connection
    that has been idle for ``keepalive`` is not used again. All three are in seconds. ``on_error`` is called with the
    kind and the detail of each failure.
    """

    def __init__(
        self,
        address: Address,
        *,
        tls: ssl.SSLContext | None = None,
        connect_timeout: float = 5.0,
        response_timeout: float | None = None,
        keepalive: float = 4.0,
        max_connections: int | None = None,
        on_error: Callable[[str, str], None] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.authority = address.authority.encode()
        self.response_timeout = response_timeout
        self.errors = dict.fromkeys((error.kind for error in _ERRORS), 0)
        self.unannounced_ends = 0  # responses over TLS that were ended by a FIN without a close_notify
        self.seconds = Histogram()  # from the creation of an exchange to its response's head
        self._connector = Connector(address, tls, connect_timeout)
        self._connect_timeout = connect_timeout
        self._keepalive = keepalive
        self._max_connections = max_connections
        self._on_error = on_error
        self._idle = idle = deque[Connection]()
        self._established = established = set[Connection]()
        # with at most one busy connection there is nothing to batch
        self.outbox = Outbox(self.loop, lambda: len(established) - len(idle) < 2)
        self._tunnels: set[TunnelEnd] = set()
        self._connecting: dict[Connection, tuple[asyncio.Task[None], Requester]] = {}
        self._waiting: deque[tuple[Requester, asyncio.TimerHandle]] = deque()
        self._closing = False
        self._sweep_timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        """How many connections there are: busy, idle, being opened, or tunnels."""
        return len(self._established) + len(self._connecting) + len(self._tunnels)

    @property
    def connecting(self) -> int:
        """How many connections are being opened."""
        return len(self._connecting)

    @property
    def idle(self) -> int:
        """How many connections are idle."""
        return len(self._idle)

    def watched(self) -> Iterator[Watched]:
        """The connections that the stall sweep checks."""
        return chain(tuple(self._established), tuple(self._tunnels))

    # What an exchange calls

    def acquire(self, requester: Requester) -> asyncio.TimerHandle | None:
        """Attach ``requester`` to an idle connection at once, or to another one as `connect` does."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if self.loop.time() - connection.idle_since < self._keepalive and not connection.transport.is_closing():
                requester.attach(connection)
                return None
            connection.close()
        return self.connect(requester)

    def connect(self, requester: Requester) -> asyncio.TimerHandle | None:
        """Open a connection for ``requester``, or let it wait for one while ``max_connections`` are open.

        If it waits, returns the timer that fails it when it has waited for too long. After `close`, ``requester`` fails
        in a later iteration of the event loop: the failure of one may start the next, and calls would nest.
        """
        if self._closing:
            return self.loop.call_later(0, requester.fail, UpstreamUnreachable(_CLOSED))
        requester.on_blocked()
        if self._max_connections is not None and self.open >= self._max_connections:
            while self._waiting and self._waiting[0][0].done:
                self._waiting.popleft()
            timer = self.loop.call_later(self._connect_timeout, requester.fail, PoolExhausted())
            self._waiting.append((requester, timer))
            return timer
        connection = Connection(self)
        task = self.loop.create_task(self._connect(connection, requester))
        self._connecting[connection] = task, requester
        return None

    def make_tunnel_end(self, connection: Connection) -> TunnelEnd:
        """The tunnel end that replaces ``connection``, on which upstream has switched protocols."""
        end = TunnelEnd(connection.transport, _TUNNEL_CLOSE_TIMEOUT, self._tunnel_stalled, self._tunnel_lost)
        self._established.discard(connection)
        self._tunnels.add(end)
        return end

    def count_error(self, error: GatewayError) -> None:
        """Count a failure of upstream, or of getting a connection."""
        self.errors[error.kind] += 1
        if self._on_error is not None:
            self._on_error(error.kind, str(error.__cause__ or error))

    # What a connection calls

    def release(self, connection: Connection) -> None:
        """Take back a connection that is idle. Closes it if it is old."""
        if connection.transport.is_closing():
            return
        now = self.loop.time()
        if now >= connection.expires_at:
            connection.close()
            return
        requester = self._next_waiting() if self._waiting else None
        if requester is not None:
            requester.attach(connection)
            return
        connection.idle_since = now
        self._idle.append(connection)
        if self._sweep_timer is None:
            self._sweep_timer = self.loop.call_later(max(self._keepalive, 0.1), self._sweep)

    def closed(self, connection: Connection) -> None:
        """Remove a connection that is lost. The next waiting requester can then open one."""
        self._established.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._slot_free()

    def count_unannounced_end(self) -> None:
        """Count a response over TLS that was ended by a FIN without a close_notify."""
        self.unannounced_ends += 1
        advise(NO_CLOSE_NOTIFY)

    def _tunnel_stalled(self) -> None:
        self.count_error(UpstreamNotReading())

    def _tunnel_lost(self, end: TunnelEnd, broken_off: bool) -> None:
        self._tunnels.discard(end)
        if broken_off:
            self.count_error(UpstreamBroken())
        self._slot_free()

    # What the gateway calls

    def close(self) -> None:
        """Close every connection, and fail every exchange whose response is not complete."""
        self._closing = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        connecting = tuple(self._connecting.values())
        self._connecting.clear()  # a task that is cancelled before it starts would never fail its requester
        for task, requester in connecting:
            task.cancel()
            if not requester.done:
                requester.fail(UpstreamUnreachable(_CLOSED))
        while (waiting := self._next_waiting()) is not None:
            waiting.fail(UpstreamUnreachable(_CLOSED))
        for connection in tuple(self._established):
            if connection.receiver is not None:
                connection.receiver.fail(UpstreamBroken(_CLOSED))
            else:
                connection.close()
        for end in tuple(self._tunnels):
            end.abort()

    # Internal

    def _slot_free(self) -> None:
        if not self._closing and (self._max_connections is None or self.open < self._max_connections):
            requester = self._next_waiting()
            if requester is not None:
                self.connect(requester)

    def _next_waiting(self) -> Requester | None:
        while self._waiting:
            requester, timer = self._waiting.popleft()
            if not requester.done:
                timer.cancel()
                return requester
        return None

    def _sweep(self) -> None:
        """Close the connections that have been idle for too long. The longest idle is the first in the queue."""
        self._sweep_timer = None
        limit = self.loop.time() - self._keepalive
        while self._idle and self._idle[0].idle_since <= limit:
            self._idle.popleft().close()
        if self._idle:
            self._sweep_timer = self.loop.call_later(max(self._idle[0].idle_since - limit, 0.1), self._sweep)

    async def _connect(self, connection: Connection, requester: Requester) -> None:
        error: GatewayError | None = UpstreamUnreachable()  # also the result if an unexpected exception is raised
        try:
            await self._connector.connect(lambda: connection)
            error = None
        except TimeoutError:
            error = ConnectTimeout()
        except (OSError, ValueError) as cause:  # an OSError may be an SSLError; ValueError: IDNA can't encode the name
            error = _connect_error(cause)
        finally:
            self._connecting.pop(connection, None)
            self._connected(connection, requester, error)

    def _connected(self, connection: Connection, requester: Requester, error: GatewayError | None) -> None:
        """Attach a requester to a new connection, or fail ``requester`` because of ``error``."""
        if error is None and not connection.transport.is_closing():
            # at random, so that connections that were opened together are not all closed together
            connection.expires_at = self.loop.time() + LIFETIME * random.uniform(0.75, 1.25)  # noqa: S311
            self._established.add(connection)
            receiver = self._next_waiting() if requester.done else requester
            if receiver is None:
                connection.become_idle()
            else:
                receiver.attach(connection)
            return
        if not requester.done:
            requester.fail(error or UpstreamBroken())  # no error: it was established, and has been lost since
        self._slot_free()


def _connect_error(cause: Exception) -> GatewayError:
    """The error for a connection that could not be opened because of ``cause``."""
    error = OutOfDescriptors() if descriptors.ran_out(cause) else UpstreamUnreachable()
    error.__cause__ = cause
    return error

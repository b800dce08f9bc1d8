"""The pool of connections to upstream. Knows no ASGI.

Cases, before the code that branches on them:

* A pooled connection that upstream has closed meanwhile: seen by polling its socket before use, never handed out.
* ``max_connections`` are open: an exchange waits for the first that comes free, in order, for a limited time.
* A connection comes free before the one being made is ready: whoever waits takes it, the new one goes into the pool.
* A connection is old: it is closed when its answer has ended, even if somebody waits. A new one may reach an instance
  that has been started since.
* The pool is closed: every exchange at work fails, wherever it is, and nothing is opened any more.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final

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
from sanitizer.relay.connection import Connection
from sanitizer.relay.counters import Histogram
from sanitizer.relay.exchange import Exchange
from sanitizer.relay.outbox import Outbox

_ERRORS = (
    PoolExhausted,
    OutOfDescriptors,
    ConnectTimeout,
    ResponseTimeout,
    UpstreamNotReading,
    UpstreamUnreachable,
    UpstreamBroken,
)
"""All that an exchange can fail with."""
_CLOSED: Final = "the gateway has closed its connections to upstream"


class Upstream:
    """All connections of one process to upstream.

    ``connect_timeout`` is in seconds, for a connection to be made or, with ``max_connections`` open, to come free;
    ``response_timeout`` from the last byte sent to the response's head (None: no limit); connections idle for
    ``keepalive`` seconds are not used again. Has to be made where an event loop runs.
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
        self.address = address
        self.outbox = Outbox(self.loop)
        self.response_timeout = response_timeout
        self.errors = dict.fromkeys((error.kind for error in _ERRORS), 0)
        self.unannounced_ends = 0  # answers that a FIN has ended where TLS has a close_notify
        self.seconds = Histogram()  # from an exchange's making to its response's head
        self._connector = Connector(address, tls, connect_timeout)
        self._connect_timeout = connect_timeout
        self._keepalive = keepalive
        self._max = max_connections
        self._on_error = on_error
        self._idle: deque[Connection] = deque()
        self.connections: set[Connection] = set()  # that have been made
        self._connecting: dict[Connection, tuple[asyncio.Task[None], Exchange]] = {}
        self._waiting: deque[Exchange] = deque()
        self._closing = False
        self._sweep_timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        """How many connections there are: busy, idle, or being made."""
        return len(self.connections) + len(self._connecting)

    @property
    def alone(self) -> bool:
        """Whether at most one exchange is at work: then there are no other writes to wait for."""
        return len(self.connections) - len(self._idle) < 2

    @property
    def connecting(self) -> int:
        """How many connections are being made."""
        return len(self._connecting)

    @property
    def idle(self) -> int:
        """How many connections wait for a request."""
        return len(self._idle)

    def acquire(self, exchange: Exchange) -> None:
        """Attach ``exchange`` to an idle connection at once, or to a new one, or to the first that comes free."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if self.loop.time() - connection.idle_since < self._keepalive and not connection.transport.is_closing():
                exchange.attach(connection)
                return
            connection.close()
        self.connect(exchange)

    def connect(self, exchange: Exchange) -> None:
        """Attach ``exchange`` to a new connection, or to the first that comes free while all are taken.

        After `close` it fails, in a turn of its own: it may be one of many requests, each begun by the end of another.
        """
        if self._closing:
            exchange.timer = self.loop.call_later(0, exchange.fail, UpstreamUnreachable(_CLOSED))
            return
        exchange.on_blocked()
        if self._max is not None and self.open >= self._max:
            while self._waiting and self._waiting[0].done:
                self._waiting.popleft()
            self._waiting.append(exchange)
            exchange.timer = self.loop.call_later(self._connect_timeout, exchange.fail, PoolExhausted())
            return
        connection = Connection(self)
        task = self.loop.create_task(self._connect(connection, exchange))
        self._connecting[connection] = task, exchange

    def release(self, connection: Connection) -> None:
        """Take a connection back that is free again, unless it has grown old."""
        if connection.transport.is_closing():
            return
        now = self.loop.time()
        if now >= connection.renew_at:
            connection.close()
            return
        connection.reused = True
        exchange = self._next_waiting() if self._waiting else None
        if exchange is not None:
            exchange.attach(connection)
            return
        connection.idle_since = now
        self._idle.append(connection)
        if self._sweep_timer is None:
            self._sweep_timer = self.loop.call_later(max(self._keepalive, 0.1), self._sweep)

    def closed(self, connection: Connection) -> None:
        """A connection is gone: whoever waits for one may make a new one."""
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._slot_free()

    def count_error(self, error: GatewayError) -> None:
        self.errors[error.kind] += 1
        if self._on_error is not None:
            self._on_error(error.kind, str(error.__cause__ or error))

    def close(self) -> None:
        """Drop every connection, and fail every exchange that has no answer yet, or not all of it."""
        self._closing = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        connecting = tuple(self._connecting.values())
        self._connecting.clear()  # a task that has not begun is not told that it is cancelled
        for task, exchange in connecting:
            task.cancel()
            if not exchange.done:
                exchange.fail(UpstreamUnreachable(_CLOSED))
        while (waiting := self._next_waiting()) is not None:
            waiting.fail(UpstreamUnreachable(_CLOSED))
        for connection in tuple(self.connections):
            if connection.exchange is not None and not connection.exchange.done:
                connection.exchange.fail(UpstreamBroken(_CLOSED))
            else:
                connection.close()

    def _slot_free(self) -> None:
        if not self._closing and (self._max is None or self.open < self._max):
            exchange = self._next_waiting()
            if exchange is not None:
                self.connect(exchange)

    def _next_waiting(self) -> Exchange | None:
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.done:
                exchange.disarm()
                return exchange
        return None

    def _sweep(self) -> None:
        """Close what has been idle for too long; the longest idle are on the left."""
        self._sweep_timer = None
        limit = self.loop.time() - self._keepalive
        while self._idle and self._idle[0].idle_since <= limit:
            self._idle.popleft().close()
        if self._idle:
            self._sweep_timer = self.loop.call_later(max(self._idle[0].idle_since - limit, 0.1), self._sweep)

    async def _connect(self, connection: Connection, exchange: Exchange) -> None:
        error: GatewayError | None = UpstreamUnreachable()  # of an exception that nobody has thought of, too
        try:
            await self._connector.connect(lambda: connection)
            error = None
        except TimeoutError:
            error = ConnectTimeout()
        except (OSError, ValueError) as cause:  # ssl.SSLError is one; the other: a name that IDNA can't encode
            error = _not_connected(cause)
        finally:
            self._connecting.pop(connection, None)
            self._connected(connection, exchange, error)

    def _connected(self, connection: Connection, exchange: Exchange, error: GatewayError | None) -> None:
        """Use a connection that has been made for ``exchange``, or could not be made because of ``error``."""
        if error is None and not connection.transport.is_closing():
            self.connections.add(connection)
            user = self._next_waiting() if exchange.done else exchange
            if user is None:
                self.release(connection)
            else:
                user.attach(connection)
            return
        if not exchange.done:
            exchange.fail(error or UpstreamBroken())  # without an error it has been made, and lost since
        self._slot_free()


def _not_connected(cause: Exception) -> GatewayError:
    """The error of a connection that could not be made because of ``cause``."""
    error = OutOfDescriptors() if descriptors.ran_out(cause) else UpstreamUnreachable()
    error.__cause__ = cause
    return error

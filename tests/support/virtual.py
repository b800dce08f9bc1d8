"""An event loop whose clock is moved by the test, and transports without sockets, so that no test has to wait.

The loop is asyncio's own, with the clock and the opening of connections replaced. A test calls a function as if the
loop had called it (`VirtualLoop.act`), runs all callbacks that follow (`VirtualLoop.settle`), and moves the clock
(`VirtualLoop.advance`), which calls the timers in the order in which they are due.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import heapq
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal, ParamSpec, TypeVar

from sanitizer.address import Address
from tests.support.transitions import record

P = ParamSpec("P")
T = TypeVar("T")

ADDRESS = Address("http", "upstream.test", 80, "/upstream.sock")
"""A unix socket, so that no name has to be resolved before a connection is opened."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of zero: closing the socket sends RST (`socket(7)`)."""


class FakeSocket:
    """The socket of a `FakeTransport`, as far as protocols use it.

    With ``pollable`` it has a file descriptor, on which `select.poll` reports what the ``make_`` methods do.
    """

    family = socket.AF_INET

    def __init__(self, *, pollable: bool) -> None:
        self.options: list[tuple[int, int, int | bytes]] = []
        self.closed = False
        self._pair = socket.socketpair() if pollable else None
        if self._pair is not None:
            self._pair[0].setblocking(False)

    def fileno(self) -> int:
        return -1 if self._pair is None or self.closed else self._pair[0].fileno()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        if self.closed:
            raise OSError(errno.EBADF, "the socket is closed")
        self.options.append((level, option, value))

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        raise OSError(errno.EBADF, "this is no real socket")

    @property
    def resets(self) -> bool:
        """Whether closing the socket sends RST instead of FIN."""
        return (socket.SOL_SOCKET, socket.SO_LINGER, RESET) in self.options

    def make_readable(self) -> None:
        """Let a byte wait in the kernel's receive buffer."""
        assert self._pair is not None
        self._pair[1].send(b"x")

    def make_half_closed(self) -> None:
        """Let the kernel report that the peer has sent FIN."""
        assert self._pair is not None
        self._pair[1].shutdown(socket.SHUT_WR)

    def make_reset(self) -> None:
        """Let the kernel report that the peer has sent RST."""
        assert self._pair is not None
        self._pair[0].send(b"x")
        self._pair[1].close()  # the other end reports a reset, because a byte is unread

    def close(self) -> None:
        self.closed = True
        for each in self._pair or ():
            each.close()


class FakeTransport(asyncio.Transport):
    """One side of a connection, with methods for what the peer does.

    ``written``: all bytes that the protocol has written. ``unsent``: how many of them the peer has not received.
    ``ending``: how the peer sees the connection end. ``faults``: calls that a protocol must not make.
    """

    def __init__(
        self, loop: VirtualLoop, protocol: asyncio.Protocol, *, peername: tuple[str, int] | None, pollable: bool
    ) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.socket = FakeSocket(pollable=pollable)
        self.peername = peername
        self.written = bytearray()
        self.unsent = 0
        self.blocked = False
        self.reading = True
        self.closing = False
        self.lost = False
        self.eof_written = False
        self.ending: Literal["", "fin", "reset"] = ""
        self.faults: list[str] = []
        loop.transports.append(self)

    # Called by a protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"socket": self.socket, "peername": self.peername}.get(name, default)

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closing:
            self.faults.append(f"write after close: {bytes(data)!r}")
        elif self.eof_written:
            self.faults.append(f"write after write_eof: {bytes(data)!r}")
        else:
            self.written += data
            if self.blocked:
                self.unsent += len(data)

    def write_eof(self) -> None:
        if self.closing:
            self.faults.append("write_eof after close")
        self.eof_written = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.unsent:
                self._end(None)

    def abort(self) -> None:
        self.closing = True
        if not self.ending:
            self._end(None)

    def _end(self, exc: Exception | None) -> None:
        self.ending = "reset" if exc is not None or self.socket.resets else "fin"
        self.loop.call_soon(self._lose, exc)

    def _lose(self, exc: Exception | None) -> None:
        self.lost = True
        self.reading = False
        self.protocol.connection_lost(exc)
        self.socket.close()

    # Actions of the peer

    @property
    def delivered(self) -> bytes:
        """The bytes that the peer has received."""
        return bytes(self.written[: len(self.written) - self.unsent])

    @property
    def readable(self) -> bool:
        """Whether the event loop would read what the peer sends."""
        return self.reading and not self.closing

    def feed(self, data: bytes) -> None:
        """The peer sends ``data``."""
        assert self.readable
        self.loop.act(self.protocol.data_received, data)

    def feed_eof(self) -> None:
        """The peer sends FIN."""
        assert self.readable
        if not self.loop.act(self.protocol.eof_received) and not self.closing:
            self.close()

    def reset(self) -> None:
        """The peer sends RST."""
        self.closing = True
        if not self.ending:
            self._end(ConnectionResetError("reset by peer"))

    def block(self) -> None:
        """The peer stops reading before the last byte that was written, and the write buffer is full."""
        self.blocked = True
        self.unsent = min(len(self.written), 1)
        self.loop.act(self.protocol.pause_writing)

    def unblock(self) -> None:
        """The peer reads all that was written."""
        self.blocked = False
        self.unsent = 0
        self.loop.act(self.protocol.resume_writing)
        if self.closing and not self.ending:
            self._end(None)


class Attempt:
    """An attempt to open a connection, which the test lets succeed or fail.

    With ``closing``, an attempt that succeeds returns a transport that is closing already.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.outcome: asyncio.Future[None] = loop.create_future()
        self.transport: FakeTransport | None = None
        self.closing = False

    def accept(self) -> FakeTransport:
        """Let the attempt succeed. Returns the gateway's transport."""
        self.outcome.set_result(None)
        self._loop.settle()
        assert self.transport is not None
        return self.transport

    def refuse(self, error: Exception) -> None:
        """Let the attempt fail with ``error``."""
        self.outcome.set_exception(error)
        self._loop.settle()


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop, with a clock and with connection attempts that are controlled by the test.

    ``attempts``: the connection attempts under way. ``cancelled``: how many attempts the gateway has cancelled.
    ``failures``: the contexts of exceptions that callbacks have raised.
    """

    now = 1000.0

    def __init__(self) -> None:
        self._due: list[float] = []
        self._calls = 0
        super().__init__()
        self.attempts: list[Attempt] = []
        self.cancelled = 0
        self.transports: list[FakeTransport] = []
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    # Called by the gateway

    def time(self) -> float:
        return self.now

    def call_at(  # type: ignore[override]  # passes on whatever it is called with
        self, when: float, callback: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> asyncio.TimerHandle:
        heapq.heappush(self._due, when)
        self._calls += when <= self.now
        return super().call_at(when, callback, *args, **kwargs)

    def call_soon(  # type: ignore[override]  # passes on whatever it is called with
        self, callback: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> asyncio.Handle:
        self._calls += 1
        return super().call_soon(callback, *args, **kwargs)

    async def create_unix_connection(  # type: ignore[override]  # takes what the gateway passes
        self, protocol_factory: Callable[[], asyncio.Protocol], path: str
    ) -> tuple[FakeTransport, asyncio.Protocol]:
        assert path == ADDRESS.uds
        attempt = Attempt(self)
        self.attempts.append(attempt)
        try:
            await attempt.outcome
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.attempts.remove(attempt)
        protocol = protocol_factory()
        attempt.transport = FakeTransport(self, protocol, peername=None, pollable=True)
        protocol.connection_made(attempt.transport)
        if attempt.closing:
            attempt.transport.close()
        return attempt.transport, protocol

    # Called by tests

    def act(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``action`` as if in a callback. The callbacks that it schedules run in `settle`."""
        asyncio._set_running_loop(self)
        try:
            return action(*args, **kwargs)
        finally:
            asyncio._set_running_loop(None)

    def run_once(self) -> None:
        """Run one iteration of the event loop: the callbacks scheduled so far, and the timers that are due."""
        super().call_soon(self.stop)
        self.run_forever()

    def settle(self) -> None:
        """Run iterations until no callback is scheduled, and no timer is due."""
        calls = -1
        while calls != self._calls:
            calls = self._calls
            self.run_once()

    def steps(self, seconds: float) -> Iterator[None]:
        """Move the clock by ``seconds``, from timer to timer. Yields at each of them and at the end, after `settle`."""
        until = self.now + seconds
        while self._due and self._due[0] <= until:
            self.now = max(self.now, heapq.heappop(self._due))
            while self._due and self._due[0] <= self.now:
                heapq.heappop(self._due)
            self.settle()
            yield
        self.now = until
        self.settle()
        yield

    def advance(self, seconds: float) -> None:
        """Move the clock by ``seconds``, and call each timer at its time."""
        for _ in self.steps(seconds):
            pass

    def close(self) -> None:
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.settle()
        for transport in self.transports:
            transport.socket.close()
        super().close()


@contextlib.contextmanager
def virtual_loop() -> Iterator[VirtualLoop]:
    """An event loop for one test. At the end it checks that no callback has raised an exception, that no transport has
    faults, and that every state transition is in its table.
    """
    loop = VirtualLoop()
    try:
        with record() as recording:
            yield loop
        recording.check()
        assert loop.failures == []
        assert [fault for transport in loop.transports for fault in transport.faults] == []
    finally:
        loop.close()

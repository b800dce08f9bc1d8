"""An event loop whose clock the test moves, and transports without sockets: a whole gateway in one thread, no waiting.

The loop is asyncio's own, with the clock and the opening of connections replaced. A test performs an action as if the
loop had called it (`VirtualLoop.act`), lets everything that follows from it run (`VirtualLoop.settle`), and moves the
clock (`VirtualLoop.advance`), which fires the timers that come due in their order.
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
    """The part of a socket that a protocol asks its transport for.

    With ``pollable`` it has a file descriptor, which `select.poll` finds readable after `make_readable`.
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
        raise OSError(errno.EBADF, "only real sockets know")

    @property
    def resets(self) -> bool:
        """Whether closing the socket sends RST in place of FIN."""
        return (socket.SOL_SOCKET, socket.SO_LINGER, RESET) in self.options

    def make_readable(self) -> None:
        """Let a byte, or the end of them, wait in the kernel."""
        assert self._pair is not None
        self._pair[1].send(b"x")

    def make_half_closed(self) -> None:
        """Let a FIN wait in the kernel."""
        assert self._pair is not None
        self._pair[1].shutdown(socket.SHUT_WR)

    def make_reset(self) -> None:
        """Let the kernel know of an RST."""
        assert self._pair is not None
        self._pair[0].send(b"x")
        self._pair[1].close()  # with octets unread

    def close(self) -> None:
        self.closed = True
        for each in self._pair or ():
            each.close()


class FakeTransport(asyncio.Transport):
    """One connection, and what its peer sees of it.

    ``written`` is all that has been written, ``unsent`` how many of the last bytes of it the peer has not taken.
    ``ending`` is how the connection has ended for the peer. ``faults`` are calls that no protocol may make.
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

    # What a protocol calls

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

    # What the peer does

    @property
    def taken(self) -> bytes:
        """What the peer has got."""
        return bytes(self.written[: len(self.written) - self.unsent])

    @property
    def readable(self) -> bool:
        """Whether the loop would hand over what the peer sends."""
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
        """The peer takes nothing more, not even the last byte that was written, and the buffer is full."""
        self.blocked = True
        self.unsent = min(len(self.written), 1)
        self.loop.act(self.protocol.pause_writing)

    def unblock(self) -> None:
        """The peer takes all that waits."""
        self.blocked = False
        self.unsent = 0
        self.loop.act(self.protocol.resume_writing)
        if self.closing and not self.ending:
            self._end(None)


class Attempt:
    """A connection that is being opened; the test makes it or lets it fail.

    With ``closing`` it is made, and its transport is closed before anybody can use it.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.outcome: asyncio.Future[None] = loop.create_future()
        self.transport: FakeTransport | None = None
        self.closing = False

    def accept(self) -> FakeTransport:
        """Let the connection be made."""
        self.outcome.set_result(None)
        self._loop.settle()
        assert self.transport is not None
        return self.transport

    def refuse(self, error: Exception) -> None:
        """Let the connection fail."""
        self.outcome.set_exception(error)
        self._loop.settle()


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop with a clock that stands until it is moved, and with connections that the test makes.

    ``attempts`` are the connections being opened, ``given_up`` counts those that the gateway no longer waits for, and
    ``failures`` are what callbacks have raised.
    """

    now = 1000.0

    def __init__(self) -> None:
        self._due: list[float] = []
        self._calls = 0
        super().__init__()
        self.attempts: list[Attempt] = []
        self.given_up = 0
        self.transports: list[FakeTransport] = []
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    # What the gateway calls

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
            self.given_up += 1
            raise
        finally:
            self.attempts.remove(attempt)
        protocol = protocol_factory()
        attempt.transport = FakeTransport(self, protocol, peername=None, pollable=True)
        protocol.connection_made(attempt.transport)
        if attempt.closing:
            attempt.transport.close()
        return attempt.transport, protocol

    # What a test calls

    def act(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``action`` as a callback of the turn that is under way; what it schedules waits for `settle`."""
        asyncio._set_running_loop(self)
        try:
            return action(*args, **kwargs)
        finally:
            asyncio._set_running_loop(None)

    def turn(self) -> None:
        """Run one turn: what has been scheduled so far, and the timers that are due."""
        super().call_soon(self.stop)
        self.run_forever()

    def settle(self) -> None:
        """Run turns until one has nothing to do but timers that are not due."""
        calls = -1
        while calls != self._calls:
            calls = self._calls
            self.turn()

    def steps(self, seconds: float) -> Iterator[None]:
        """Move the clock, from timer to timer and to the end; stops at each when all that follows from it has run."""
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
        """Move the clock, firing each timer that comes due at its time."""
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
    """A loop for one test. What callbacks raise in it fails the test, and so does a change of state in no table."""
    loop = VirtualLoop()
    try:
        with record() as recording:
            yield loop
        recording.check()
        assert loop.failures == []
        assert [fault for transport in loop.transports for fault in transport.faults] == []
    finally:
        loop.close()

"""Batched writes: those of one iteration of the event loop are made together at its end.

A write wakes the process that reads at the other end. If writes are made one by one between other work, each of them
wakes a process that has gone to sleep again, which can cost the writer more than the rest of a relayed request. If they
are made together, only the first one does. While only one request is being handled, there is nothing to batch, and its
writes are made at once.
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any, Final, TypeVar

from sanitizer.relay.closing import Closing
from sanitizer.relay.transport import Transport, progress, reset

T = TypeVar("T")

_BULK: Final = 16 * 1024
"""Larger writes (in bytes) are made at once. The client may be slow, and reading from upstream must pause in time."""


class Outbox:
    """The writes of the current iteration of ``loop``, in order: functions, each with an argument.

    ``unbatched`` returns whether writes are to be made at once, because at most one request is being handled.
    """

    __slots__ = ("_loop", "_unbatched", "_writes")

    def __init__(self, loop: AbstractEventLoop, unbatched: Callable[[], bool]) -> None:
        self._loop = loop
        self._unbatched = unbatched
        self._writes: list[tuple[Callable[[Any], None], Any]] = []

    def add(self, write: Callable[[T], None], argument: T) -> None:
        """Call ``write(argument)`` at the end of this iteration, or at once if there is nothing to batch."""
        if self._unbatched():
            if self._writes:
                self.flush()
            write(argument)
            return
        if not self._writes:
            self._loop.call_soon(self.flush)
        self._writes.append((write, argument))

    def flush(self) -> None:
        """Make the batched writes now."""
        writes, self._writes = self._writes, []
        done = 0
        try:
            for write, argument in writes:
                done += 1
                write(argument)
        finally:
            if done < len(writes):  # a write has failed; the others must be made all the same
                self._writes[:0] = writes[done:]
                self._loop.call_soon(self.flush)


class Writer:
    """Writes to one client. The methods that close the connection, or its sending side, flush the outbox first."""

    __slots__ = ("_outbox", "_transport", "_written")

    def __init__(self, transport: Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._written = 0  # octets

    def write(self, data: bytes) -> None:
        """Send ``data``, at the latest at the end of this event loop iteration."""
        if len(data) > _BULK:
            self._outbox.flush()
            self._write(data)
        else:
            self._outbox.add(self._write, data)

    def flush(self) -> None:
        """Make all batched writes now."""
        self._outbox.flush()

    def write_eof(self) -> None:
        """Close the sending side, if the transport can."""
        self._outbox.flush()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def close(self, timeout: float) -> Closing:
        """Close the connection as `Closing` does, with the same ``timeout``."""
        self._outbox.flush()
        return Closing(self._transport, timeout)

    def reset(self) -> None:
        """Reset the connection, so that a response cannot be mistaken for a complete one.

        What was written of the response may still arrive.
        """
        self._outbox.flush()
        reset(self._transport)

    @property
    def progress(self) -> int:
        """A number that grows when the client acknowledges some of what was written."""
        return progress(self._transport, self._written)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():  # it is if the client has just disconnected; uvloop would raise
            self._written += len(data)
            self._transport.write(data)

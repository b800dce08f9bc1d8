"""Writes to clients, those of one turn of the event loop made together at its end.

A write wakes the process that reads at the other end. Made one by one between other work, each wakes a process that has
gone to sleep again, which can cost the writer more than the rest of a relayed request; made together, the first one
does. Where only one request is handled there is nothing to gather, and its writes do not wait.
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any, Final, TypeVar

from sanitizer.relay.closing import Closing
from sanitizer.relay.transport import Transport, progress, reset

T = TypeVar("T")

_BULK: Final = 16 * 1024
"""Bytes that are written at once: the client may be slow, and reading from upstream must pause before more comes."""


class Outbox:
    """What is to be written when the current turn of ``loop`` is over, in order: functions, with an argument each.

    ``alone`` says whether at most one request is being handled.
    """

    __slots__ = ("_loop", "_writes", "alone")

    def __init__(self, loop: AbstractEventLoop, alone: Callable[[], bool]) -> None:
        self.alone = alone
        self._loop = loop
        self._writes: list[tuple[Callable[[Any], None], Any]] = []

    def add(self, write: Callable[[T], None], argument: T) -> None:
        """Call ``write(argument)`` at the end of this turn, or at once if there is nothing to gather."""
        if self.alone():
            if self._writes:
                self.flush()
            write(argument)
            return
        if not self._writes:
            self._loop.call_soon(self.flush)
        self._writes.append((write, argument))

    def flush(self) -> None:
        """Write now what has been gathered."""
        writes, self._writes = self._writes, []
        done = 0
        try:
            for write, argument in writes:
                done += 1
                write(argument)
        finally:
            if done < len(writes):  # one has failed, which must not keep the others from being made
                self._writes[:0] = writes[done:]
                self._loop.call_soon(self.flush)


class Writer:
    """Writes to one client. Whatever ends the connection, or its sending side, comes after all that was written."""

    __slots__ = ("_outbox", "_transport", "_written")

    def __init__(self, transport: Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._written = 0  # octets

    def write(self, data: bytes) -> None:
        """Send ``data`` at the end of this turn of the event loop."""
        if len(data) > _BULK:
            self._outbox.flush()
            self._write(data)
        else:
            self._outbox.add(self._write, data)

    def flush(self) -> None:
        """Send now what has been written."""
        self._outbox.flush()

    def write_eof(self) -> None:
        """End the sending side, where the transport can."""
        self._outbox.flush()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def close(self, timeout: float) -> Closing:
        """Close the connection when the client has taken all, or none of it for ``timeout`` seconds."""
        self._outbox.flush()
        return Closing(self._transport, timeout)

    def reset(self) -> None:
        """Reset the connection, so that a response can't be taken for whole. What has been written of it may arrive."""
        self._outbox.flush()
        reset(self._transport)

    @property
    def progress(self) -> int:
        """A number that grows when the client takes some of what was written."""
        return progress(self._transport, self._written)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():  # else the client has left in this very turn, and uvloop would raise
            self._written += len(data)
            self._transport.write(data)

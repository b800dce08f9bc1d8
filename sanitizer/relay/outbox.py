"""Writes of one turn of the event loop, made together at its end.

A write wakes who reads at the other end. Made one by one between other work, each wakes a process that has gone to
sleep again, which can cost the writer more than the rest of a relayed request; made together, the first one does. Where
one request alone is at work there is nothing to gather, and its writes do not wait (`Upstream.alone`).
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Outbox:
    """What is to be written when the current turn of ``loop`` is over, in order: functions, with an argument each."""

    __slots__ = ("_loop", "_writes")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._writes: list[tuple[Callable[[Any], None], Any]] = []

    def add(self, write: Callable[[T], None], argument: T) -> None:
        """Call ``write(argument)`` at the end of this turn."""
        if not self._writes:
            self._loop.call_soon(self.flush)
        self._writes.append((write, argument))

    def flush(self) -> None:
        """Write now, as before a transport is closed."""
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

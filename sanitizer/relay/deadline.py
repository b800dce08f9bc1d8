"""A deadline that is cheap to move. Each request moves that of its client connection twice."""

import asyncio
from collections.abc import Callable
from typing import Final

_NEVER: Final = float("inf")


class Deadline:
    """Calls ``expire`` when the deadline has passed.

    Scheduling a timer is expensive. When the deadline is moved to a later time, the timer stays as it is and is
    scheduled again when it fires. Only a deadline that is earlier than the timer replaces it.
    """

    __slots__ = ("_expire", "_loop", "_timer", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[], None]) -> None:
        self._loop = loop
        self._expire = expire
        self._when = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Set the deadline to ``seconds`` from now."""
        self._when = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._when, self._check)

    def extend(self, seconds: float) -> None:
        """Move the deadline to ``seconds`` from now, unless it is later already."""
        self._when = max(self._when, self._loop.time() + seconds)

    def clear(self) -> None:
        """Remove the deadline, but keep the timer for the next one."""
        self._when = _NEVER

    def cancel(self) -> None:
        """Remove the deadline and the timer."""
        self._when = _NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if self._when == _NEVER:
            return
        if self._loop.time() < self._when:
            self._timer = self._loop.call_at(self._when, self._check)
        else:
            self._expire()

"""A deadline that is moved often: a connection's, which each request moves twice."""

import asyncio
from collections.abc import Callable
from typing import Final

_NEVER: Final = float("inf")


class Deadline:
    """Calls ``expire`` when its time has come. Its timer is only ever moved forward, for that is what costs."""

    __slots__ = ("_expire", "_loop", "_timer", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[], None]) -> None:
        self._loop = loop
        self._expire = expire
        self._when = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Let the time come in ``seconds``."""
        self._when = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._when, self._check)

    def extend(self, seconds: float) -> None:
        """Let the time not come before ``seconds`` from now."""
        self._when = max(self._when, self._loop.time() + seconds)

    def clear(self) -> None:
        """Let the time not come."""
        self._when = _NEVER

    def cancel(self) -> None:
        """Let the time not come, and keep no timer."""
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

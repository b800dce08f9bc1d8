"""Cutting peers that hold what they do not use (``--stall-timeout``).

There is no timer for each request. One sweep in each process looks at every connection, every quarter of the timeout. A
peer without progress in five sweeps in a row is cut, between 1 and 1.25 times the timeout after it stopped.

A connection says what its peer has still to do (`Pending`). The ways to hold up a connection are:

* A peer takes none of the octets that wait for it. Progress is the number of octets written, less those still in the
  transport's buffer. The kernel's count of acknowledged octets is added where there is one, because a TLS transport's
  buffer shrinks in large steps only.
* A client sends nothing of content that is due. The kernel's count of octets received is added here, for a TLS record
  brings nothing before it is whole.
* Upstream does not finish an answer that is held back. Upstream is not cut, but the answer is no longer held back.

The sweep also finds out that a client has left while it is not read: a paused transport does not report that, but its
socket can be polled.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

_SWEEPS_PER_TIMEOUT: Final = 4
"""Sweeps in one timeout."""
_DEFAULT_INTERVAL: Final = 15.0
"""Seconds from one sweep to the next where there is no timeout."""


class Pending(NamedTuple):
    """What a peer has still to do. ``progress`` changes when it does some of it; else ``on_stall`` is called."""

    progress: int
    on_stall: Callable[[], None]


class Watched(Protocol):
    """A connection that is looked at in each sweep."""

    def check(self) -> Pending | None:
        """What the peer has still to do, if anything. Also acts on a peer that has left unnoticed."""


class StallSweep:
    """Looks at all of ``connections`` regularly, until `close`, and gives up those that stall.

    ``timeout`` is in seconds; None: nothing is given up. Has to be made where an event loop runs.
    """

    def __init__(self, timeout: float | None, connections: Callable[[], Iterable[Watched]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = None if timeout is None else _SWEEPS_PER_TIMEOUT
        self._interval = _DEFAULT_INTERVAL if timeout is None else timeout / _SWEEPS_PER_TIMEOUT
        self._connections = connections
        self._seen: dict[Watched, tuple[Pending, int]] = {}  # and the sweeps without progress
        self._timer = self._loop.call_later(self._interval, self._sweep)

    def close(self) -> None:
        """Sweep no more."""
        self._timer.cancel()

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._sweep)
        seen: dict[Watched, tuple[Pending, int]] = {}
        for connection in self._connections():
            pending = connection.check()
            if pending is None:
                continue
            before, sweeps = self._seen.get(connection, (None, 0))
            sweeps = sweeps + 1 if pending == before else 0
            if sweeps == self._limit:
                pending.on_stall()
            else:
                seen[connection] = pending, sweeps
        self._seen = seen

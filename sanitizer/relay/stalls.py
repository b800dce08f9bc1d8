"""Cutting peers that hold what they do not use (``--stall-timeout``).

There is no timer for each request. One sweep a process looks at every connection, every quarter of the timeout. A peer
that has not got on between five sweeps in a row is cut, which is between 1 and 1.25 times the timeout after it stopped.

A connection says what its peer has to get on with. The ways to hold up a connection are:

* A peer takes none of the octets that wait for it. Their number is that of the octets written less those that are still
  in the transport's buffer. The kernel's count of acknowledged octets is added, where it keeps one: a TLS transport
  shows only in large steps how much has left its buffer.
* A client sends nothing of content that is due.
* Upstream does not finish an answer that is held back. It is not cut: the answer is held back no longer.

The sweep is also what sees a client leave that is not read at the moment: a transport that has been paused does not
tell, but the socket does when it is asked.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

_PARTS: Final = 4
"""Sweeps in one timeout."""
_INTERVAL: Final = 15.0
"""Seconds from one sweep to the next where there is no timeout."""


class Pending(NamedTuple):
    """What a peer has to get on with: ``progress`` changes when it does, and ``give_up`` is called if it does not."""

    progress: int
    give_up: Callable[[], None]


class Watched(Protocol):
    """A connection that is looked at in each sweep."""

    def check(self) -> Pending | None:
        """What the peer has to get on with, if anything. A peer that has left unseen is seen now."""


class StallSweep:
    """Looks at all of ``connections`` again and again, until `close`, and gives those up that stall.

    ``timeout`` is in seconds; None: nothing is given up. Has to be made where an event loop runs.
    """

    def __init__(self, timeout: float | None, connections: Callable[[], Iterable[Watched]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = None if timeout is None else _PARTS
        self._interval = _INTERVAL if timeout is None else timeout / _PARTS
        self._connections = connections
        self._seen: dict[Watched, tuple[Pending, int]] = {}  # and for how many sweeps it has been the same
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
                pending.give_up()
            else:
                seen[connection] = pending, sweeps
        self._seen = seen

"""Disconnecting peers that stall (``--stall-timeout``).

There is no timer for each request. Instead, each process sweeps over all its connections every quarter of the timeout.
A peer that is seen in five sweeps in a row with the same progress has stalled: four quarters lie between them. That is
noticed between 1 and 1.25 times the timeout after its last progress.

Each connection reports what it waits for (`Pending`). A peer can stall in these ways:

* It accepts none of the octets that wait for it. Progress is the number of octets written, less those still in the
  transport's buffer. The kernel's count of acknowledged octets is added where there is one, because the buffer of a TLS
  transport shrinks in large steps only.
* A client sends nothing of content that is due. The kernel's count of received octets is added, because TLS delivers
  nothing of a record before it is complete.
* Upstream does not complete a response that is held back. Then upstream is not disconnected, but the response is no
  longer held back.

The sweep also detects clients that have disconnected while reading from them is paused. A paused transport does not
report that, but its socket can be polled.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

_SWEEPS_PER_TIMEOUT: Final = 4
"""How many sweeps there are in one timeout."""
_DEFAULT_INTERVAL: Final = 15.0
"""Seconds between two sweeps if there is no timeout."""


class Pending(NamedTuple):
    """What a connection waits for its peer to do. While ``progress`` changes, the peer has not stalled.

    ``on_stall`` is called when it has.
    """

    progress: int
    on_stall: Callable[[], None]


class Watched(Protocol):
    """A connection that is checked in each sweep."""

    def check(self) -> Pending | None:
        """What the connection waits for its peer to do; None if for nothing.

        Also closes the connection if the peer has disconnected while reading is paused.
        """


class StallSweep:
    """Checks all ``connections`` regularly until `close`, and calls `Pending.on_stall` when a peer has stalled.

    ``timeout`` is in seconds; None means that no peer stalls. Must be created while an event loop is running.
    """

    def __init__(self, timeout: float | None, connections: Callable[[], Iterable[Watched]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = None if timeout is None else _SWEEPS_PER_TIMEOUT
        self._interval = _DEFAULT_INTERVAL if timeout is None else timeout / _SWEEPS_PER_TIMEOUT
        self._connections = connections
        self._seen: dict[Watched, tuple[Pending, int]] = {}  # with the number of sweeps without progress
        self._timer = self._loop.call_later(self._interval, self._sweep)

    def close(self) -> None:
        """Stop sweeping."""
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

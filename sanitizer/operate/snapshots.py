"""Snapshots of the metrics of each serving process, and the totals of processes that have ended.

A process publishes a snapshot every `INTERVAL` from its event loop, so a snapshot also shows that the event loop runs.
Without workers, the gateway's only process publishes it by a function call. A worker writes it to a pipe, as a line of
JSON. It skips snapshots while the pipe is full, so that a parent that does not read never blocks a worker. When the
pipe is closed, the worker has ended; its totals are kept.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, cast

Series = tuple[str, ...]
"""A metric's name, followed by the values of its labels."""

INTERVAL: Final = 0.5
"""Seconds between two snapshots of a process."""
_LINE_LIMIT: Final = 1024 * 1024


class Snapshot(NamedTuple):
    """The metrics of a process. ``totals`` never decrease, and still count after it has ended; ``gauges`` do not."""

    totals: dict[Series, float]
    gauges: dict[Series, float]

    def encode(self) -> bytes:
        """The snapshot as one line."""
        return json.dumps([list(numbers.items()) for numbers in self]).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "Snapshot":
        """The snapshot that was encoded as ``line``."""
        return cls(*({tuple(series): number for series, number in numbers} for numbers in json.loads(line)))


class Snapshots:
    """The latest snapshot of every serving process. Processes are identified by a number. Any thread may read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: Counter[Series] = Counter()  # the totals of processes that have ended
        self._latest: dict[int, tuple[Snapshot, float]] = {}  # with the time when it was published

    def put(self, number: int, snapshot: Snapshot) -> None:
        """Record a snapshot that a process has published. A process without one is starting, and not silent."""
        self._latest[number] = snapshot, self._clock()

    def remove(self, number: int) -> None:
        """Record that a process has ended."""
        if number in self._latest:
            last, _ = self._latest.pop(number)
            self._ended.update(cast(Any, last.totals))

    def sum(self) -> Snapshot:
        """The sum over all processes, with the totals of those that have ended."""
        totals, gauges = Counter(self._ended), Counter[Series]()
        for snapshot, _ in list(self._latest.values()):
            totals.update(cast(Any, snapshot.totals))
            gauges.update(cast(Any, snapshot.gauges))
        return Snapshot(cast(Any, totals), cast(Any, gauges))

    @property
    def serving(self) -> bool:
        """Whether any process has published a snapshot and has not ended."""
        return bool(self._latest)

    @property
    def silence(self) -> float:
        """The longest time, in seconds, for which a serving process has published nothing. 0 if no process serves."""
        return max((self._clock() - since for _, since in list(self._latest.values())), default=0.0)

    async def read(self, number: int, pipe: Connection) -> None:
        """Record the snapshots that a process writes to its end of ``pipe``, until it closes it."""
        reader = asyncio.StreamReader(_LINE_LIMIT)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                self.put(number, Snapshot.decode(line))
        finally:
            transport.close()
            self.remove(number)


class PipeWriter:
    """Writes the snapshots of a worker to its end of ``pipe``, without ever blocking."""

    def __init__(self, pipe: Connection) -> None:
        os.set_blocking(pipe.fileno(), False)
        self._pipe = pipe
        self._rest = b""  # the rest of a line that did not fit into the pipe

    def __call__(self, snapshot: Snapshot) -> None:
        """Write ``snapshot``, or the rest of the previous one if that has not been written completely."""
        octets = self._rest or snapshot.encode()
        try:
            written = os.write(self._pipe.fileno(), octets)
        except BlockingIOError:
            written = 0
        except BrokenPipeError:  # the parent process has ended, and this process is about to end
            return
        self._rest = octets[written:]

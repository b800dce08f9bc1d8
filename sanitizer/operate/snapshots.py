"""The last numbers of each process that serves, and the totals of those that are gone.

A process publishes a snapshot every `INTERVAL`, from its event loop, so a snapshot is a sign of life as well. The
gateway's only process hands it over directly. A worker writes it to a pipe, as a line of JSON, and leaves it out while
the pipe is full, so that a parent that does not read holds up no worker. When the pipe ends, the worker is gone, and
its totals stay.
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
"""A metric's name, then the values of its labels."""

INTERVAL: Final = 0.5
"""Seconds from one snapshot of a process to its next."""
_LINE_LIMIT: Final = 1024 * 1024


class Snapshot(NamedTuple):
    """The numbers of a process: ``totals`` only ever grow and outlive it, ``gauges`` go with it."""

    totals: dict[Series, float]
    gauges: dict[Series, float]

    def encode(self) -> bytes:
        """The snapshot as one line."""
        return json.dumps([list(numbers.items()) for numbers in self]).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "Snapshot":
        """The snapshot that `encode` has made into ``line``."""
        return cls(*({tuple(series): number for series, number in numbers} for numbers in json.loads(line)))


class Snapshots:
    """The last snapshot of every process that serves; a number names each. Any thread may read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gone: Counter[Series] = Counter()
        self._last: dict[int, tuple[Snapshot, float]] = {}  # and when it came

    def put(self, number: int, snapshot: Snapshot) -> None:
        """A process has published ``snapshot``. Before its first one it is starting, and not silent."""
        self._last[number] = snapshot, self._clock()

    def remove(self, number: int) -> None:
        """A process is gone."""
        if number in self._last:
            last, _ = self._last.pop(number)
            self._gone.update(cast(Any, last.totals))

    def sum(self) -> Snapshot:
        """All processes together, those that are gone too."""
        totals, gauges = Counter(self._gone), Counter[Series]()
        for snapshot, _ in list(self._last.values()):
            totals.update(cast(Any, snapshot.totals))
            gauges.update(cast(Any, snapshot.gauges))
        return Snapshot(cast(Any, totals), cast(Any, gauges))

    @property
    def serving(self) -> bool:
        """Whether any process serves: it has published a snapshot, and is not gone."""
        return bool(self._last)

    @property
    def silence(self) -> float:
        """For how many seconds the most silent process has published nothing."""
        return max((self._clock() - since for _, since in list(self._last.values())), default=0.0)

    async def read(self, number: int, pipe: Connection) -> None:
        """Take the snapshots that the process ``number`` writes to its end of ``pipe``, until it is gone."""
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
    """Writes the snapshots of a worker to its end of ``pipe``, and never waits for the reader at the other end."""

    def __init__(self, pipe: Connection) -> None:
        os.set_blocking(pipe.fileno(), False)
        self._pipe = pipe
        self._rest = b""  # of a line that did not fit

    def __call__(self, snapshot: Snapshot) -> None:
        """Write ``snapshot``, or the rest of the one before, if that has not been written whole."""
        octets = self._rest or snapshot.encode()
        try:
            written = os.write(self._pipe.fileno(), octets)
        except BlockingIOError:
            written = 0
        except BrokenPipeError:  # the parent is gone, and this process about to follow it
            return
        self._rest = octets[written:]

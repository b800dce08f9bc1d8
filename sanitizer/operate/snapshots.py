"""What each process that serves has last told of itself, and what remains of those that are gone.

A process tells it every `INTERVAL`, from its event loop: so a snapshot is a sign of life as well. The gateway's only
process hands it over directly; a worker writes it to a pipe, a line of JSON each, and leaves one out while the pipe is
full: nobody who does not read can hold up a worker. When the pipe ends, the worker is gone, and its totals stay.
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
        """What `encode` has made a line of."""
        return cls(*({tuple(series): number for series, number in numbers} for numbers in json.loads(line)))


class Snapshots:
    """The last snapshot of every process that serves; they are told apart by a number. Any thread may read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gone: Counter[Series] = Counter()
        self._last: dict[int, Snapshot | None] = {}
        self._heard: dict[int, float] = {}

    def add(self, number: int) -> None:
        """A process has been started; until it tells of itself for the first time, it is starting, not silent."""
        self._last[number] = None

    def put(self, number: int, snapshot: Snapshot) -> None:
        """A process has told of itself."""
        self._last[number] = snapshot
        self._heard[number] = self._clock()

    def remove(self, number: int) -> None:
        """A process is gone."""
        self._heard.pop(number, None)
        last = self._last.pop(number)
        if last is not None:
            self._gone.update(cast(Any, last.totals))

    def sum(self) -> Snapshot:
        """All processes together, those that are gone too."""
        totals, gauges = Counter(self._gone), Counter[Series]()
        for snapshot in list(self._last.values()):
            if snapshot is not None:
                totals.update(cast(Any, snapshot.totals))
                gauges.update(cast(Any, snapshot.gauges))
        return Snapshot(cast(Any, totals), cast(Any, gauges))

    @property
    def serving(self) -> bool:
        """Whether any process has told of itself yet."""
        return any(list(self._last.values()))

    @property
    def silence(self) -> float:
        """For how many seconds the most silent process has told nothing."""
        return max((self._clock() - heard for heard in list(self._heard.values())), default=0.0)

    async def read(self, number: int, pipe: Connection) -> None:
        """Take what the process ``number`` writes to its end of ``pipe``, until it is gone."""
        self.add(number)
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
    """Tells the snapshots of a worker through its end of ``pipe``, and never waits for who reads at the other."""

    def __init__(self, pipe: Connection) -> None:
        os.set_blocking(pipe.fileno(), False)
        self._pipe = pipe
        self._rest = b""  # of a line that did not fit

    def __call__(self, snapshot: Snapshot) -> None:
        """Tell ``snapshot``, or, if the one before could not be told yet, go on with that."""
        octets = self._rest or snapshot.encode()
        try:
            written = os.write(self._pipe.fileno(), octets)
        except BlockingIOError:
            written = 0
        except BrokenPipeError:  # the parent is gone, and this process about to follow it
            return
        self._rest = octets[written:]

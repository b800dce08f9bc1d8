"""Snapshots: their sum, the totals of processes that have ended, and a pipe that nobody reads."""

import asyncio
import multiprocessing
import os

import pytest

from sanitizer.operate.snapshots import PipeWriter, Snapshot, Snapshots

COUNT, GAUGE = ("count", "a"), ("gauge",)


def snapshot(count: float, gauge: float) -> Snapshot:
    return Snapshot({COUNT: count}, {GAUGE: gauge})


def test_sum() -> None:
    """Totals and gauges are added up. After a process has ended, its totals still count, and its gauges do not."""
    snapshots = Snapshots()
    assert not snapshots.serving
    snapshots.put(1, snapshot(3, 1))
    snapshots.put(2, snapshot(5, 2))
    snapshots.put(2, snapshot(6, 1))
    assert snapshots.serving
    assert snapshots.sum() == snapshot(9, 2)
    snapshots.remove(2)
    assert snapshots.sum() == snapshot(9, 1)
    snapshots.put(3, snapshot(1, 1))
    assert snapshots.sum() == snapshot(10, 2)
    snapshots.remove(4)  # it has published nothing
    assert snapshots.sum() == snapshot(10, 2)


def test_line() -> None:
    """A snapshot is encoded as one line, and decoded to an equal snapshot."""
    line = snapshot(3, 0.5).encode()
    assert (line.count(b"\n"), line[-1:]) == (1, b"\n")
    assert Snapshot.decode(line) == snapshot(3, 0.5)


@pytest.mark.anyio
async def test_pipe() -> None:
    """Snapshots that are written to a pipe are read at its other end. An incomplete line is ignored.

    After the writer has ended, its last totals still count.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    snapshots = Snapshots()
    reading = asyncio.create_task(snapshots.read(7, ours))
    os.write(theirs.fileno(), snapshot(1, 1).encode() + snapshot(2, 1).encode() + b"[[[")
    async with asyncio.timeout(30):
        while not snapshots.serving:  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)
        theirs.close()
        await reading
    assert snapshots.sum().totals == {COUNT: 2}
    assert not snapshots.serving


@pytest.mark.anyio
async def test_nobody_reads() -> None:
    """While nobody reads the pipe, snapshots that do not fit are skipped, and writing does not block."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    tell = PipeWriter(theirs)
    big = Snapshot({("count", "a" * 8000): 1}, {})
    for _ in range(100):
        tell(big)
    snapshots = Snapshots()
    reading = asyncio.create_task(snapshots.read(1, ours))
    async with asyncio.timeout(30):
        while not snapshots.serving:  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)
        while snapshots.sum() != snapshot(5, 5):
            tell(snapshot(5, 5))
            await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    ours.close()
    tell(snapshot(6, 6))  # the reader is gone
    theirs.close()

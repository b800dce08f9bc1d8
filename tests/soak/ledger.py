"""The outcome of every request of a soak, and whether each failure is accounted for.

A failure is accounted for in three cases only:

* Upstream had begun the request (its journal says so) and was killed while the client waited for the response.
* Upstream dropped the request: it closed the connection instead of answering, and noted that in its journal.
* Upstream never began the request, and was down or shutting down at some time while the client waited.

So an upstream that is restarted (not killed) must answer every request that it has begun, and outside of restarts
only a request that upstream has dropped may fail.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

now = time.monotonic

KILLED = "in flight on an upstream that was killed"
DROPPED = "dropped by upstream"
AWAY = "not begun, upstream was away"

Runs = dict[tuple[str, str], list[tuple[int, str]]]
"""By method and id of a request: the process id of each upstream that has begun it, and its fate there."""


@dataclass(frozen=True)
class Failure:
    """A request without a complete response, although its client stayed. ``begin`` and ``end`` are times of `now`.

    ``outcome``: ``502``, ``cut``, or ``unknown`` for a lookup of the gateway's that failed.
    """

    kind: str
    method: str
    id: str
    outcome: str
    begin: float
    end: float


@dataclass
class Restart:
    """Upstream process ``pid`` was killed, or told to end, at ``begin``.

    At ``end`` it had ended, and another process was ready.
    """

    how: str
    pid: int
    begin: float
    end: float = float("inf")

    def overlaps(self, failure: Failure) -> bool:
        return failure.begin <= self.end and self.begin <= failure.end


@dataclass
class Ledger:
    """Counts by kind of request. ``wrong`` has a line for each event that must not occur."""

    sent: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    restarts: list[Restart] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    octets: int = 0


def read_journal(path: Path) -> Runs:
    runs: Runs = defaultdict(list)
    for line in path.read_text().splitlines():
        method, request_id, pid, fate = line.split(" ")
        runs[method, request_id].append((int(pid), fate))
    return runs


def account(failure: Failure, runs: Runs, restarts: Iterable[Restart]) -> str | None:
    """The case that accounts for ``failure``; None if none does."""
    begun = runs.get((failure.method, failure.id), [])
    if any(fate == "dropped" for _, fate in begun):
        return DROPPED
    for restart in restarts:
        if restart.overlaps(failure):
            if restart.how == "killed" and any(pid == restart.pid for pid, _ in begun):
                return KILLED
            if not begun:
                return AWAY
    return None


def repeated(runs: Runs) -> list[str]:
    """The ids of POST requests that upstream has begun more than once. An LLM call may then be paid for twice."""
    return [request_id for (method, request_id), begun in runs.items() if method == "POST" and len(begun) > 1]

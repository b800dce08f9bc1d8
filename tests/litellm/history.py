"""Whether a history of one stored value is what a single register would have told: linearisability.

Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects", 1990; the search is Wing and
Gong's of 1993, with Lowe's memory of where it has been. Every event happened at one moment between its beginning and
its end. If the events can be put in an order that agrees with these times, in which each reading is of the last value
written, then no write was lost: each took effect while its writer waited, and what is read in the end was written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Someone ``wrote`` the value, or else read it, between two times on one clock.

    ``or_else``: values that may have been stored as well when someone read, who cannot tell them apart.
    """

    wrote: bool
    value: str
    begun: float
    ended: float
    or_else: tuple[str, ...] = ()

    def read(self, value: str) -> bool:
        """Whether this may have been a reading of the value."""
        return not self.wrote and (value == self.value or value in self.or_else)


def unexplained(events: Sequence[Event], initial: str) -> Event | None:
    """None if some order explains all events; else the earliest begun of those that no order gets past."""
    events = sorted(events, key=lambda event: event.begun)
    furthest = 0
    seen = set()
    # how many events from the first on are in order, which of the later ones are too, and what is stored after them
    pending: list[tuple[int, frozenset[int], str]] = [(0, frozenset(), initial)]
    while pending:
        first, later, value = pending.pop()
        while first in later:
            later, first = later - {first}, first + 1
        if first == len(events):
            return None
        if (first, later, value) in seen:
            continue
        seen.add((first, later, value))
        furthest = max(furthest, first)
        next_ones = _next(events, first, later)
        # a reading that fits may as well come now: it changes nothing
        if fitting := [index for index in next_ones if events[index].read(value)]:
            pending.append((first, later | {fitting[0]}, value))
            continue
        for index in next_ones:
            if events[index].wrote:
                pending.append((first, later | {index}, events[index].value))
    return events[furthest]


def _next(events: Sequence[Event], first: int, later: frozenset[int]) -> list[int]:
    """Those that began before any other had ended."""
    found: list[int] = []
    earliest_end = float("inf")
    for index in range(first, len(events)):
        if events[index].begun > earliest_end:
            break
        if index not in later:
            found.append(index)
            earliest_end = min(earliest_end, events[index].ended)
    return found

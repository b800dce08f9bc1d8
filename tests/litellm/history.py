"""Whether a history of one stored value could have come from a single register, that is, whether it is linearisable.

See Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects", 1990. The search is that of
Wing and Gong, 1993, with Lowe's memory of visited states. Every event took effect at one moment between its beginning
and its end. If the events can be put in an order that agrees with these times, and in which each read returns the last
value written, then no write was lost: each took effect while its writer waited, and the final value was written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """A write of the value if ``wrote``, otherwise a read of it, between two times on one clock.

    ``or_else`` are other values that a read may have been of, if the reader can't distinguish them.
    """

    wrote: bool
    value: str
    begun: float
    ended: float
    or_else: tuple[str, ...] = ()

    def read(self, value: str) -> bool:
        """Whether this may have been a read of the value."""
        return not self.wrote and (value == self.value or value in self.or_else)


def unexplained(events: Sequence[Event], initial: str) -> Event | None:
    """None if some order explains all events; otherwise the earliest event that no order gets past."""
    events = sorted(events, key=lambda event: event.begun)
    furthest = 0
    seen = set()
    # how many of the first events are ordered, which later ones are too, and the value stored after them
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
        # a read that fits can be next, because it changes nothing
        if fitting := [index for index in next_ones if events[index].read(value)]:
            pending.append((first, later | {fitting[0]}, value))
            continue
        for index in next_ones:
            if events[index].wrote:
                pending.append((first, later | {index}, events[index].value))
    return events[furthest]


def _next(events: Sequence[Event], first: int, later: frozenset[int]) -> list[int]:
    """The events that can be next: those that began before any other remaining event had ended."""
    found: list[int] = []
    earliest_end = float("inf")
    for index in range(first, len(events)):
        if events[index].begun > earliest_end:
            break
        if index not in later:
            found.append(index)
            earliest_end = min(earliest_end, events[index].ended)
    return found

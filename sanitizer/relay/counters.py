"""What the relay counts as it goes: plain numbers, written by its event loop, read by whoever wants to know."""

from bisect import bisect_left
from typing import Final

METHODS: Final = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH")
"""Methods that are counted by name (RFC 9110 section 9.3, RFC 5789); all others are one: clients choose them."""
CLIENT_LEFT: Final = 0
"""Stands for the status of a request whose client left before its response began."""
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of `Histogram`: from a management call's to those of an LLM that answers when all is thought."""


class Histogram:
    """How often something took how long: ``counts`` one a bound of ``bounds`` (seconds), and one for what is longer."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


class Counters:
    """Requests by the face they took, by method and status, in flight; tunnels open.

    ``answers``: for each of `METHODS`, and ``b""`` for all others, how many requests ended with a status of
    which hundred; what has the index 0 is `CLIENT_LEFT`. A request ends when its response is whole or broken off, when
    it has become a tunnel, or when its client has left.
    """

    __slots__ = ("_others", "answers", "cycles", "fast", "in_flight", "refused", "tunnels")

    def __init__(self) -> None:
        self.fast = self.cycles = self.refused = self.in_flight = self.tunnels = 0
        self.answers = {method: [0] * 10 for method in (*METHODS, b"")}
        self._others = self.answers[b""]

    def answered(self, method: bytes, status: int) -> None:
        """A request has ended."""
        self.answers.get(method, self._others)[status // 100] += 1

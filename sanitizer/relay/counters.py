"""What the relay counts: plain numbers, which its event loop writes and any thread may read."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from sanitizer.errors import ClientNotReading, ClientNotSending, GatewayError

OnEnded = Callable[[str | None, bytes, bytes, int, float], None]
"""Called with each request that has ended: the client's address, method, target, status or `CLIENT_LEFT`, and seconds.
Of a request that could not be read there is neither method nor target."""

OnClientError = Callable[[str, str, str | None], None]
"""Called with the kind of an error that a client is responsible for, its detail, and the client's address."""

METHODS: Final = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH")
"""Methods that are counted by name (RFC 9110 section 9.3, RFC 5789); all others are one: clients choose them."""
CLIENT_LEFT: Final = 0
"""Stands for the status of a request whose client left before its response began."""
SECONDS: Final[tuple[float, ...]] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of `Histogram`. A management call takes milliseconds; an LLM that does not stream, up to minutes."""


class Histogram:
    """Durations, counted in ``counts``: one number for each of ``bounds`` (seconds), and one for what is longer."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


class Counters:
    """Requests by method and status, refused, in flight; tunnels open; clients cut because they stalled.

    ``answers``: for each of `METHODS`, and ``b""`` for all others, how many requests have ended with a status of each
    hundred; index 0 counts `CLIENT_LEFT`. A request ends when its response is whole or broken off, when it has become a
    tunnel, or when its client has left. ``on_refused`` is called for each refusal, ``on_stalled`` for each client that
    is cut. ``stalled``: for each kind of error, how many clients were cut. ``out_of_descriptors``: how often no
    descriptor was left for a connection.
    """

    __slots__ = (
        "_on_refused",
        "_on_stalled",
        "_others",
        "answers",
        "in_flight",
        "out_of_descriptors",
        "refused",
        "stalled",
        "tunnels",
    )

    def __init__(self, on_refused: OnClientError | None = None, on_stalled: OnClientError | None = None) -> None:
        self._on_refused = on_refused
        self._on_stalled = on_stalled
        self.stalled = {ClientNotSending.kind: 0, ClientNotReading.kind: 0}
        self.refused = self.in_flight = self.tunnels = self.out_of_descriptors = 0
        self.answers = {method: [0] * 10 for method in (*METHODS, b"")}
        self._others = self.answers[b""]

    @property
    def requests(self) -> int:
        """How many requests have ended."""
        return sum(map(sum, self.answers.values()))

    def ended(self, method: bytes, status: int) -> None:
        """A request that was in flight has ended."""
        self.in_flight -= 1
        self.answers.get(method, self._others)[status // 100] += 1

    def refuse(self, error: GatewayError, peer: str | None) -> None:
        """A request of ``peer``'s is answered with ``error``, for which its sender is responsible."""
        self.refused += 1
        if self._on_refused is not None:
            self._on_refused(error.kind, str(error), peer)

    def stall(self, error: GatewayError, peer: str | None) -> None:
        """The client at the address ``peer`` is cut because of ``error``."""
        self.stalled[error.kind] += 1
        if self._on_stalled is not None:
            self._on_stalled(error.kind, str(error), peer)

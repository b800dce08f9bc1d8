"""The relay's counters: plain numbers, which its event loop writes and any thread may read."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from sanitizer.errors import ClientNotReading, ClientNotSending, GatewayError

OnRequestEnded = Callable[[str | None, bytes, bytes, int, float], None]
"""Called when a request has ended, with the client's address, the method, the target, the status or `CLIENT_LEFT`, and
the duration in seconds. Method and target are empty if the request could not be read."""

OnClientError = Callable[[str, str, str | None], None]
"""Called with the kind and the detail of an error that a client is responsible for, and the client's address."""

METHODS: Final = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH")
"""Methods that are counted by name (RFC 9110 section 9.3, RFC 5789). All others share one counter, because clients
could send any number of them."""
CLIENT_LEFT: Final = 0
"""Stands for the status of a request whose client disconnected before the response started."""
SECONDS: Final[tuple[float, ...]] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of `Histogram`. A management call takes milliseconds, and an LLM that does not stream up to minutes."""


class Histogram:
    """A histogram of durations. ``counts`` has a number for each of ``bounds`` (seconds), and one for longer ones."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


class Counters:
    """Counts requests, tunnels, and clients that were disconnected because they stalled.

    ``responses`` maps each of `METHODS`, and ``b""`` for all others, to the number of requests that have ended, by the
    first digit of the status; index 0 counts `CLIENT_LEFT`. A request ends when its response is complete or broken off,
    when it has become a tunnel, or when its client has disconnected. ``refused`` is how many of them the gateway has
    refused. ``in_flight`` and ``tunnels`` are the numbers of requests and tunnels that are open. ``stalled`` maps each
    kind of error to the number of clients disconnected because of it. ``out_of_descriptors`` is how often no descriptor
    was left for a connection. ``on_refused`` is called for each refusal, ``on_stalled`` for each stalled client.
    """

    __slots__ = (
        "_on_refused",
        "_on_stalled",
        "_others",
        "in_flight",
        "out_of_descriptors",
        "refused",
        "responses",
        "stalled",
        "tunnels",
    )

    def __init__(self, on_refused: OnClientError | None = None, on_stalled: OnClientError | None = None) -> None:
        self._on_refused = on_refused
        self._on_stalled = on_stalled
        self.stalled = {ClientNotSending.kind: 0, ClientNotReading.kind: 0}
        self.refused = self.in_flight = self.tunnels = self.out_of_descriptors = 0
        self.responses = {method: [0] * 10 for method in (*METHODS, b"")}
        self._others = self.responses[b""]

    @property
    def requests(self) -> int:
        """How many requests have ended."""
        return sum(map(sum, self.responses.values()))

    def count_request(self, method: bytes, status: int) -> None:
        """Count a request that was in flight and has ended."""
        self.in_flight -= 1
        self.responses.get(method, self._others)[status // 100] += 1

    def count_refusal(self, error: GatewayError, peer: str | None) -> None:
        """Count a request that is refused with ``error``; ``peer`` is the address of its client."""
        self.refused += 1
        if self._on_refused is not None:
            self._on_refused(error.kind, str(error), peer)

    def count_stall(self, error: GatewayError, peer: str | None) -> None:
        """Count a client that is disconnected because of ``error``; ``peer`` is its address."""
        self.stalled[error.kind] += 1
        if self._on_stalled is not None:
            self._on_stalled(error.kind, str(error), peer)

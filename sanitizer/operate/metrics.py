"""The metrics: their names and labels, and how a serving process gathers them.

No label has a value that a client can choose: methods, statuses, endpoints, fields and kinds are from closed lists.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from sanitizer.operate.snapshots import Snapshot
from sanitizer.relay.counters import Counters, Histogram
from sanitizer.relay.pool import Pool
from sanitizer.sanitize.core import Record
from sanitizer.sanitize.decision import Outcome
from sanitizer.sanitize.gates import FIELDS, GATES
from sanitizer.sanitize.stored import LookupOutcome

_LOOKUP_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Family(NamedTuple):
    """One metric: ``kind`` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


FAMILIES: Final = (
    Family(
        "sanitizer_decisions_total",
        "counter",
        ("endpoint", "outcome"),
        "Intercepted requests by outcome: dropped, changed, absent, unreadable, unknown, observed.",
    ),
    Family("sanitizer_dropped_fields_total", "counter", ("field",), "Fields cut out of requests."),
    Family(
        "sanitizer_resent_total",
        "counter",
        ("endpoint",),
        "Times that a request was sent again without fields because of which LiteLLM had refused it.",
    ),
    Family(
        "sanitizer_lookup_seconds",
        "histogram",
        ("outcome",),
        "Duration of lookups of a key in LiteLLM, by outcome: ok, class of LiteLLM's status, timeout, failed (no "
        "answer), unusable (an answer without the key's values).",
    ),
    Family(
        "sanitizer_requests_total",
        "counter",
        ("method", "status"),
        "Requests that have ended, by class of status. 499: the client left before its response began. 1xx: tunnels.",
    ),
    Family(
        "sanitizer_upstream_seconds",
        "histogram",
        (),
        "Time from receiving a request's head to receiving upstream's response head, with the wait for a connection. "
        "Lookups are included.",
    ),
    Family(
        "sanitizer_requests_in_flight", "gauge", (), "Requests that have not ended, without those that became tunnels."
    ),
    Family("sanitizer_upstream_connections", "gauge", ("state",), "Connections to upstream: connecting, busy, idle."),
    Family(
        "sanitizer_upstream_errors_total", "counter", ("kind",), "Requests and lookups that failed upstream, by kind."
    ),
    Family(
        "sanitizer_upstream_unannounced_ends_total",
        "counter",
        (),
        "Responses of unknown length that an https upstream ended without close_notify; they are relayed as complete.",
    ),
    Family(
        "sanitizer_out_of_descriptors_total",
        "counter",
        (),
        "Times that no file descriptor was left to connect to upstream or, counted at most once per second, to accept "
        "a connection.",
    ),
    Family(
        "sanitizer_stalled_clients_total",
        "counter",
        ("kind",),
        "Client connections closed because the client stalled: client_not_sending, client_not_reading.",
    ),
    Family("sanitizer_tunnels_in_flight", "gauge", (), "Open tunnels, such as WebSockets."),
    Family("sanitizer_ready", "gauge", (), "1 if the gateway is ready, as /readyz reports it, otherwise 0."),
    Family(
        "sanitizer_build_info",
        "gauge",
        ("version", "form"),
        "Always 1. The labels identify the build.",
    ),
)


class Decisions:
    """Counts the decisions about intercepted requests, and the duration of their lookups."""

    def __init__(self) -> None:
        endpoints = dict.fromkeys(gate.endpoint for gate in GATES)
        self.outcomes = {(endpoint, outcome): 0 for endpoint in endpoints for outcome in Outcome}
        self.dropped = dict.fromkeys(sorted(FIELDS), 0)
        self.resent = dict.fromkeys(endpoints, 0)
        self.lookups = {outcome: Histogram(_LOOKUP_SECONDS) for outcome in LookupOutcome}

    @property
    def intercepted(self) -> int:
        """How many requests were intercepted."""
        return sum(self.outcomes.values())

    def add(self, record: Record) -> None:
        """Count one decision."""
        decision = record.decision
        self.outcomes[record.endpoint, decision.outcome] += 1
        if decision.outcome is Outcome.DROPPED:
            for field in decision.fields:
                self.dropped[field] += 1
        for lookup in record.lookups:
            self.lookups[lookup.outcome].observe(lookup.seconds)
        self.resent[record.endpoint] += record.resent


def gather(counters: Counters, pool: Pool, decisions: Decisions) -> Snapshot:
    """The current values of this process's metrics."""
    totals: dict[tuple[str, ...], float] = {}
    for (endpoint, outcome), count in decisions.outcomes.items():
        totals["sanitizer_decisions_total", endpoint, outcome] = count
    for field, count in decisions.dropped.items():
        totals["sanitizer_dropped_fields_total", field] = count
    for endpoint, count in decisions.resent.items():
        totals["sanitizer_resent_total", endpoint] = count
    for ending, histogram in decisions.lookups.items():
        totals.update(_buckets("sanitizer_lookup_seconds", histogram, ending))
    for method, answers in counters.responses.items():
        for hundred, count in enumerate(answers):
            if count or hundred < 6:
                name = method.decode() or "other"
                totals["sanitizer_requests_total", name, f"{hundred}xx" if hundred else "499"] = count
    totals.update(_buckets("sanitizer_upstream_seconds", pool.seconds))
    for kind, count in pool.errors.items():
        totals["sanitizer_upstream_errors_total", kind] = count
    for kind, count in counters.stalled.items():
        totals["sanitizer_stalled_clients_total", kind] = count
    totals[("sanitizer_upstream_unannounced_ends_total",)] = pool.unannounced_ends
    totals[("sanitizer_out_of_descriptors_total",)] = counters.out_of_descriptors
    busy = pool.open - pool.idle - pool.connecting
    gauges: dict[tuple[str, ...], float] = {
        ("sanitizer_requests_in_flight",): counters.in_flight,
        ("sanitizer_upstream_connections", "connecting"): pool.connecting,
        ("sanitizer_upstream_connections", "busy"): busy,
        ("sanitizer_upstream_connections", "idle"): pool.idle,
        ("sanitizer_tunnels_in_flight",): counters.tunnels,
    }
    return Snapshot(totals, gauges)


def _buckets(name: str, histogram: Histogram, *labels: str) -> Iterator[tuple[tuple[str, ...], float]]:
    """A histogram's buckets and sum as series. The last label is the bucket's bound, or ``sum``."""
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        yield (name, *labels, str(bound)), count
    yield (name, *labels, "sum"), histogram.sum

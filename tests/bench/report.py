"""From the figures to the tables: medians over rounds, ratios taken inside one round, and the goals beside them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.bench.peers import PEERS
from tests.bench.workloads import CONNECTIONS, MIB, Values

TITLES = {"direct": "direct", **{peer.slug: peer.title for peer in PEERS}}
Round = dict[str, dict[str, Values]]


@dataclass
class Result:
    """All figures of a run. ``rounds``: workload, peer, metric to value; ``memory``: peer, metric to bytes."""

    machine: dict[str, Any]
    plan: dict[str, Any]
    versions: dict[str, str]
    missing: dict[str, str]
    memory: dict[str, Values]
    rounds: list[Round]
    failed: list[str]

    def values(self, workload: str, peer: str, metric: str) -> list[float]:
        """One figure of one peer, a value for each round that has it."""
        return [r[workload][peer][metric] for r in self.rounds if metric in r.get(workload, {}).get(peer, {})]

    def median(self, workload: str, peer: str, metric: str) -> float | None:
        values = self.values(workload, peer, metric)
        return median(values) if values else None


Look = Callable[[str, str, str], float]  # workload, peer, metric -> value in one round


@dataclass(frozen=True)
class Goal:
    """One line of the goals: a figure of one round, and the bound that its median over the rounds must keep."""

    text: str
    figure: Callable[[Look], float]
    bound: float
    stretch: float | None = None
    required: float | None = None
    at_least: bool = False
    unit: str = "x"

    def keeps(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound

    def show(self, value: float) -> str:
        return f"{value:.0f}{self.unit}" if value >= 100 else f"{value:.2f}{self.unit}"

    def target(self, bound: float | None) -> str:
        return "" if bound is None else f"{'≥' if self.at_least else '≤'} {bound:g}{self.unit}"

    def verdict(self, value: float) -> str:
        if self.stretch is not None and self.keeps(value, self.stretch):
            return "met, stretch too"
        if self.keeps(value, self.bound):
            return "met"
        if self.required is not None and self.keeps(value, self.required):
            return "**missed**, the required bound is met"
        return "**missed**"


def ratio(workload: str, metric: str, peer: str, to: str) -> Callable[[Look], float]:
    return lambda look: look(workload, peer, metric) / look(workload, to, metric)


def plain(workload: str, metric: str, peer: str = "gateway", unit: float = 1) -> Callable[[Look], float]:
    return lambda look: look(workload, peer, metric) / unit


def added(look: Look, peer: str) -> float:
    """Median latency that a peer adds to a request on a connection of its own, µs."""
    return look("requests@1", peer, "p50_us") - look("requests@1", "direct", "p50_us")


GOALS: tuple[Goal, ...] = (
    Goal("CPU a request, 64 connections / nginx", ratio("requests@64", "cpu_us", "gateway", "nginx"), 1.3, 1.1, 1.5),
    Goal('CPU a request, 64 connections / uvicorn "hello"', ratio("requests@64", "cpu_us", "gateway", "hello"), 0.9),
    Goal("CPU a request, 64 connections / Envoy", ratio("requests@64", "cpu_us", "gateway", "envoy"), 0.6),
    Goal("CPU a request, 64 connections / Caddy", ratio("requests@64", "cpu_us", "gateway", "caddy"), 0.3),
    Goal("CPU a request, 64 connections / aiohttp relay", ratio("requests@64", "cpu_us", "gateway", "aiohttp"), 0.2),
    Goal(
        "requests/s, 64 connections / nginx",
        ratio("requests@64", "per_second", "gateway", "nginx"),
        0.8,
        0.95,
        at_least=True,
    ),
    Goal(
        "requests/s, 64 connections / httpx relay",
        ratio("requests@64", "per_second", "gateway", "httpx"),
        100,
        at_least=True,
    ),
    Goal('ASGI face: CPU a request / uvicorn "hello"', ratio("requests@64", "cpu_us", "asgi", "hello"), 1.8, 1.6),
    Goal("ASGI face: CPU a request / Envoy (about the same)", ratio("requests@64", "cpu_us", "asgi", "envoy"), 1.1),
    Goal("p50 added, 1 connection / nginx", lambda look: added(look, "gateway") / added(look, "nginx"), 1.2, 1.0),
    Goal("SSE, CPU an event, 64 streams / nginx", ratio("sse", "cpu_us", "gateway", "nginx"), 1.25, 1.1),
    Goal("SSE, events that arrive in one read", plain("sse", "events_a_read"), 1.05, unit=""),
    Goal("SSE, first byte, 1 stream / nginx", ratio("first-byte", "p50_us", "gateway", "nginx"), 1.5, 1.2),
    Goal("100 MiB down / nginx", ratio("download", "mb_per_second", "gateway", "nginx"), 0.9, 1.0, at_least=True),
    Goal("100 MiB up / nginx", ratio("upload", "mb_per_second", "gateway", "nginx"), 0.9, 1.0, at_least=True),
    Goal("100 MiB down, memory growth", plain("download", "growth", unit=MIB), 4, unit=" MiB"),
    Goal("100 MiB up, memory growth", plain("upload", "growth", unit=MIB), 4, unit=" MiB"),
    Goal("resident memory at 256 connections (PSS)", plain("memory", "pss", unit=MIB), 32, 24, unit=" MiB"),
    Goal("`/key/update`, CPU a request / nginx + njs", ratio("update", "cpu_us", "gateway", "njs"), 2.0, 1.5),
    Goal(
        "requests/s, 2 workers / 1",
        lambda look: look("workers", "workers", "per_second") / look("requests@64", "gateway", "per_second"),
        1.8,
        at_least=True,
    ),
)


def judge(goal: Goal, result: Result) -> list[float]:
    """A goal's figure in each round that has all it needs."""
    figures = []
    for measured in result.rounds:

        def look(workload: str, peer: str, metric: str, measured: Round = measured) -> float:
            return (result.memory if workload == "memory" else measured[workload])[peer][metric]

        try:
            figures.append(goal.figure(look))
        except KeyError:
            continue
    return figures


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, unit: float = 1) -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "-"
    value /= unit
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def goals(result: Result) -> str:
    rows = []
    for goal in GOALS:
        figures = judge(goal, result)
        if figures:
            spread = f"{goal.show(median(figures))} ({goal.show(min(figures))} to {goal.show(max(figures))})"
            verdict = goal.verdict(median(figures))
        else:
            spread, verdict = "-", "not measured"
        bound = goal.target(goal.bound) + (f" (required {goal.target(goal.required)})" if goal.required else "")
        rows.append([goal.text, bound, goal.target(goal.stretch), spread, verdict])
    return table(["goal", "target", "stretch", "measured: median (range over rounds)", ""], rows)


def requests(result: Result, peers: list[str]) -> str:
    titles = {
        "cpu_us": "CPU µs a request",
        "per_second": "requests/s",
        "p50_us": "latency p50, µs",
        "p99_us": "latency p99, µs",
    }
    parts = []
    for metric, title in titles.items():
        rows = [
            [TITLES[peer], *(number(result.median(f"requests@{n}", peer, metric)) for n in CONNECTIONS)]
            for peer in peers
            if result.values("requests@64", peer, metric)
        ]
        parts.append(table([f"{title}, at connections:", *map(str, CONNECTIONS)], rows))
    return "\n\n".join(parts)


def streams(result: Result, peers: list[str]) -> str:
    columns: list[tuple[str, str, str, float]] = [
        ("SSE: CPU µs an event", "sse", "cpu_us", 1),
        ("events a read", "sse", "events_a_read", 1),
        ("events/s flat out", "sse-flat-out", "per_second", 1),
        ("first byte p50, µs", "first-byte", "p50_us", 1),
        ("down, MB/s", "download", "mb_per_second", 1),
        ("growth, MiB", "download", "growth", MIB),
        ("up, MB/s", "upload", "mb_per_second", 1),
        ("growth, MiB", "upload", "growth", MIB),
    ]
    rows = [
        [TITLES[peer], *(number(result.median(workload, peer, metric), unit) for _, workload, metric, unit in columns)]
        for peer in peers
        if any(result.values(workload, peer, metric) for _, workload, metric, _ in columns)
    ]
    return table(["", *(title for title, *_ in columns)], rows)


def memory(result: Result) -> str:
    rows = [
        [TITLES[peer], *(number(values[metric], MIB) for metric in ("pss_idle", "pss", "rss_idle", "rss"))]
        for peer, values in result.memory.items()
    ]
    return table(
        ["resident, MiB", "PSS, as started", "PSS, 256 connections", "RSS, as started", "RSS, 256 connections"], rows
    )


def update(result: Result, peers: list[str]) -> str:
    metrics = ("cpu_us", "per_second", "p50_us", "p99_us")
    rows = [
        [TITLES[peer], *(number(result.median("update", peer, metric)) for metric in metrics)]
        for peer in peers
        if result.values("update", peer, "cpu_us")
    ]
    return table(["`POST /key/update`, 16 connections", "CPU µs a request", "requests/s", "p50, µs", "p99, µs"], rows)


def markdown(result: Result) -> str:
    """The whole report."""
    m, plan = result.machine, result.plan
    peers = list(TITLES)
    versions = "; ".join(f"{TITLES[peer]}: {version}" for peer, version in result.versions.items())
    missing = [f"- {TITLES[peer]}: {reason}" for peer, reason in result.missing.items()]
    failed = [f"- {line}" for line in result.failed]
    parts = [
        f"{m['date']}, {m['cpus']} x {m['cpu']}, Linux {m['kernel']}, Python {m['python']}; {m['cores']}. "
        f"{plan['rounds']} rounds, {plan['seconds']:g} s a run, interleaved and shuffled; medians over rounds, "
        f"ratios taken inside one round. {versions}",
        "### Goals",
        goals(result),
        "### Requests: 1 KB POST, 2 KB JSON answer",
        requests(result, peers),
        "### Streams and transfers",
        "SSE: 64 streams, an event of 100 bytes each 10 ms (and flat out); first byte: 1 stream; transfers: 100 MiB.",
        streams(result, peers),
        "### Memory",
        memory(result),
        "### The intercepted path",
        "Look the key up, cut what is unchanged, forward.",
        update(result, peers),
    ]
    if missing:
        parts += ["### Not measured here", "\n".join(missing)]
    if failed:
        parts += ["### Runs that failed", "\n".join(failed)]
    return "\n\n".join(parts)

"""The report: medians over rounds, ratios within one round with their quartiles, and the goals."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from tests.bench.peers import PEERS
from tests.bench.workloads import CONNECTIONS, MIB, Values

TITLES = {"direct": "direct", **{peer.slug: peer.title for peer in PEERS}}
Round = dict[str, dict[str, Values]]


@dataclass
class Result:
    """All figures of a run: those of each round by workload, peer and metric; memory in bytes by peer and metric."""

    machine: dict[str, Any]
    plan: dict[str, Any]
    versions: dict[str, str]
    missing: dict[str, str]
    memory: dict[str, Values]
    rounds: list[Round]
    failed: list[str]

    def figures(self, workload: str, metric: str, peer: str, to: str | None = None) -> list[float]:
        """The values of one figure of a peer, one for each round that has it.

        With ``to``, they are the ratios to that peer's values in the same round. Memory is measured once, before the
        rounds.
        """
        found = []
        for measured in [{"memory": self.memory}] if workload == "memory" else self.rounds:
            values = measured.get(workload, {})
            if metric in values.get(peer, {}) and (to is None or metric in values.get(to, {})):
                found.append(values[peer][metric] / (values[to][metric] if to else 1))
        return found

    def median(self, workload: str, metric: str, peer: str) -> float | None:
        figures = self.figures(workload, metric, peer)
        return median(figures) if figures else None

    def forms(self, peer: str) -> dict[str, str]:
        """The peers that run ``peer`` ("gateway" or "asgi"), by form: "pure" or "compiled"."""
        if "compiled" in self.versions.get(peer, ""):
            return {"compiled": peer, "pure": "pure" if peer == "gateway" else f"{peer}-pure"}
        return {"pure": peer}


@dataclass(frozen=True)
class Goal:
    """A figure of the gateway, or its ratio to that of the peer ``to``, and the bound of its median for each form.

    A goal without ``bounds`` is only reported. The figure is divided by ``unit``, and ``suffix`` names the unit.
    """

    text: str
    workload: str
    metric: str
    to: str | None
    bounds: Mapping[str, float]
    peer: str = "gateway"
    at_least: bool = False
    unit: float = 1
    suffix: str = "x"

    def verdict(self, form: str, figures: list[float], control: list[float]) -> str:
        """The goal, and whether the median meets it. ``control`` are the A/A control's ratios for the same figure."""
        if form not in self.bounds:
            return "reported" if figures else "not measured"
        bound = self.bounds[form]
        goal = f"{'≥' if self.at_least else '≤'} {bound:g}{self.suffix}: "
        if not figures:
            return goal + "not measured"
        _, middle, _ = quartiles(figures)
        miss = 1 - middle / bound if self.at_least else middle / bound - 1
        if miss <= 0:
            return goal + "met"
        low, _, high = quartiles(control or [1])
        if miss < high - low:
            return goal + "met: the miss is smaller than the A/A range"
        return goal + "**missed**"


def bounds(pure: float, compiled: float) -> dict[str, float]:
    return {"pure": pure, "compiled": compiled}


CPU = "CPU a request, 64 connections / "
GOALS: tuple[Goal, ...] = (
    Goal(CPU + "nginx", "requests@64", "cpu_us", "nginx", bounds(1.45, 1.15)),
    Goal(CPU + "Envoy", "requests@64", "cpu_us", "envoy", bounds(0.55, 0.42)),
    Goal(CPU + "Caddy", "requests@64", "cpu_us", "caddy", bounds(0.3, 0.25)),
    Goal(CPU + "aiohttp relay", "requests@64", "cpu_us", "aiohttp", bounds(0.2, 0.16)),
    Goal("requests/s, 64 connections / nginx", "requests@64", "per_second", "nginx", bounds(0.7, 0.88), at_least=True),
    Goal("p50, 1 connection / nginx", "requests@1", "p50_us", "nginx", bounds(1.3, 1.15)),
    Goal("SSE, CPU an event, 64 streams / nginx", "sse", "cpu_us", "nginx", bounds(1.4, 1.3)),
    Goal("`/key/update`, CPU a request / nginx + njs", "update", "cpu_us", "njs", bounds(3.2, 2.5)),
    Goal('ASGI adapter: CPU a request / "hello"', "requests@64", "cpu_us", "hello", {}, peer="asgi"),
    Goal("resident at 256 connections (PSS)", "memory", "pss", None, bounds(30, 31), unit=MIB, suffix=" MiB"),
)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third quartile. If there is one value, all three are that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def spread(values: list[float], suffix: str = "") -> str:
    """Median and quartiles as the tables show them, or a dash."""
    if not values:
        return "-"
    low, middle, high = quartiles(values)
    return f"{middle:.2f}{suffix}" + (f" ({low:.2f}–{high:.2f})" if len(values) > 1 else "")  # noqa: RUF001 - a range


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


FEW_ROUNDS = 3


def goals(result: Result) -> str:
    rows = []
    for goal in GOALS:
        cells = []
        control = result.figures(goal.workload, goal.metric, "control", "gateway")
        forms = result.forms(goal.peer)
        for form in ("pure", "compiled"):
            peer = forms.get(form, "")
            figures = [f / goal.unit for f in result.figures(goal.workload, goal.metric, peer, goal.to)]
            cells += [spread(figures, goal.suffix), goal.verdict(form, figures, control)]
        rows.append([goal.text, *cells])
    return table(["median (quartiles)", "pure Python", "goal", "compiled", "goal"], rows)


def _gain(result: Result) -> list[str]:
    """A line with the CPU time of the compiled form relative to the pure one, if both were measured."""
    figures = result.figures("requests@64", "cpu_us", "gateway", "pure")
    return [f"Compiled / pure, CPU a request at 64 connections: {spread(figures)}."] if figures else []


REQUESTS = {
    "cpu_us": "CPU µs a request",
    "per_second": "requests/s",
    "p50_us": "latency p50, µs",
    "p99_us": "latency p99, µs",
}
STREAMS: list[tuple[str, str, str, float]] = [
    ("SSE: CPU µs an event", "sse", "cpu_us", 1),
    ("events a read", "sse", "events_a_read", 1),
    ("events/s flat out", "sse-flat-out", "per_second", 1),
    ("first byte p50, µs", "first-byte", "p50_us", 1),
    ("down, MB/s", "download", "mb_per_second", 1),
    ("growth, MiB", "download", "growth", MIB),
    ("up, MB/s", "upload", "mb_per_second", 1),
    ("growth, MiB", "upload", "growth", MIB),
]


def control(result: Result) -> str:
    """The ratios of two identical gateways, which show how much a ratio varies by chance."""

    def ratios(workload: str, metric: str) -> str:
        return spread(result.figures(workload, metric, "control", "gateway"))

    rows = [[title, *(ratios(f"requests@{n}", metric) for n in CONNECTIONS)] for metric, title in REQUESTS.items()]
    others = [(title, workload, metric) for title, workload, metric, _ in STREAMS if metric != "growth"]
    others += [(f"`/key/update`: {title}", "update", metric) for metric, title in REQUESTS.items()]
    others.append(("resident at 256 connections (PSS)", "memory", "pss"))
    return "\n\n".join(
        [
            table(["control / gateway, at connections:", *map(str, CONNECTIONS)], rows),
            table(["control / gateway", ""], [[title, ratios(workload, metric)] for title, workload, metric in others]),
        ]
    )


def requests(result: Result, peers: list[str]) -> str:
    parts = []
    for metric, title in REQUESTS.items():
        rows = [
            [TITLES[peer], *(number(result.median(f"requests@{n}", metric, peer)) for n in CONNECTIONS)]
            for peer in peers
            if result.figures("requests@64", metric, peer)
        ]
        parts.append(table([f"{title}, at connections:", *map(str, CONNECTIONS)], rows))
    return "\n\n".join(parts)


def streams(result: Result, peers: list[str]) -> str:
    rows = [
        [TITLES[peer], *(number(result.median(workload, metric, peer), unit) for _, workload, metric, unit in STREAMS)]
        for peer in peers
        if any(result.figures(workload, metric, peer) for _, workload, metric, _ in STREAMS)
    ]
    return table(["", *(title for title, *_ in STREAMS)], rows)


def memory(result: Result, peers: list[str]) -> str:
    rows = [
        [TITLES[peer], *(number(result.memory[peer][metric], MIB) for metric in ("pss_idle", "pss", "rss_idle", "rss"))]
        for peer in peers
        if peer in result.memory
    ]
    return table(
        ["resident, MiB", "PSS, as started", "PSS, 256 connections", "RSS, as started", "RSS, 256 connections"], rows
    )


def update(result: Result, peers: list[str]) -> str:
    rows = [
        [TITLES[peer], *(number(result.median("update", metric, peer)) for metric in REQUESTS)]
        for peer in peers
        if result.figures("update", "cpu_us", peer)
    ]
    return table(["`POST /key/update`, 16 connections", *REQUESTS.values()], rows)


def markdown(result: Result) -> str:
    """The whole report."""
    m, plan = result.machine, result.plan
    peers = [peer for peer in TITLES if peer != "control"]
    versions = [f"- {TITLES[peer]}: {version}" for peer, version in result.versions.items()]
    missing = [f"- {TITLES[peer]}: {reason}" for peer, reason in result.missing.items()]
    failed = [f"- {line}" for line in result.failed]
    parts = [
        f"{m['date']}, {m['cpus']} x {m['cpu']}, Linux {m['kernel']}; {m['cores']}. "
        f"{plan['rounds']} rounds, {plan['seconds']:g} s a run, interleaved and shuffled; medians over rounds, "
        "ratios taken inside one round.",
        *(["**Too few rounds to judge by.**"] if plan["rounds"] < FEW_ROUNDS else []),
        f"Python: {m['python']}.",
        "\n".join(versions),
        "### Goals",
        goals(result),
        *_gain(result),
        "### A/A control: the gateway beside itself",
        control(result),
        "### Requests: 1 KB POST, 2 KB JSON answer",
        requests(result, peers),
        "### Streams and transfers",
        "SSE: 64 streams, an event of 100 bytes each 10 ms (and flat out); first byte: 1 stream; transfers: 100 MiB.",
        streams(result, peers),
        "### Memory",
        memory(result, peers),
        "### The intercepted path",
        "Look the key up, cut what is unchanged, forward, log the decision.",
        update(result, peers),
    ]
    parts += ["### The build of Python", f"CONFIG_ARGS: `{m['configured']}`"]
    if missing:
        parts += ["### Not measured here", "\n".join(missing)]
    if failed:
        parts += ["### Runs that failed", "\n".join(failed)]
    return "\n\n".join(parts)

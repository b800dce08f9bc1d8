"""The picture in README.md: six bar charts in one SVG, for light and dark pages, made without a plotting library."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from tests.bench.report import TITLES, Result, number
from tests.bench.workloads import MIB

WIDTH, PANEL, GAP, ROW, LABEL = 960, 448, 24, 26, 128

SHORT = {
    "gateway": "this gateway",
    "pure": "pure Python",
    "asgi": "its ASGI adapter",
    "asgi-pure": "ASGI adapter, pure",
    "hello": 'uvicorn "hello"',
    "sniffio": "httpx + sniffio",
    "httpx": "httpx relay",
}

OURS = ("gateway", "pure", "asgi", "asgi-pure")

STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #334155 }
  .title { font-size: 15px; font-weight: 600; fill: #0f172a } .note, .foot { font-size: 12px; fill: #64748b }
  .value { font-variant-numeric: tabular-nums } .us { font-weight: 600; fill: #0f172a }
  .card { fill: #ffffff; stroke: #e2e8f0 }
  .bar { fill: #b6c2d2 } .bar.gateway, .bar.pure { fill: #0d9488 } .bar.asgi, .bar.asgi-pure { fill: #5ec4b8 }
  .cut { stroke: #ffffff; stroke-width: 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #cbd5e1 } .title, .us { fill: #f8fafc } .note, .foot { fill: #94a3b8 }
    .card { fill: #0f172a; stroke: #334155 }
    .bar { fill: #475569 } .bar.gateway, .bar.pure { fill: #2dd4bf } .bar.asgi, .bar.asgi-pure { fill: #17897c }
    .cut { stroke: #0f172a }
  }
"""


@dataclass(frozen=True)
class Panel:
    """One chart: a value for each peer, with the best at the top."""

    title: str
    note: str
    value: Callable[[Result, str], float | None]
    highest_first: bool = False


def measured(workload: str, metric: str) -> Callable[[Result, str], float | None]:
    return lambda result, peer: result.median(workload, metric, peer)


def added(result: Result, peer: str) -> float | None:
    latency, direct = (result.median("requests@1", "p50_us", name) for name in (peer, "direct"))
    return None if latency is None or direct is None else latency - direct


def resident(result: Result, peer: str) -> float | None:
    return result.memory[peer]["pss"] / MIB if peer in result.memory else None


PANELS = (
    Panel("CPU a request", "µs at 64 connections, lower is better", measured("requests@64", "cpu_us")),
    Panel(
        "Requests a second", "64 connections, one core, higher is better", measured("requests@64", "per_second"), True
    ),
    Panel("Latency added", "p50 in µs at 1 connection, lower is better", added),
    Panel("CPU an SSE event", "µs at 64 streams, lower is better", measured("sse", "cpu_us")),
    Panel("Memory", "MiB (PSS) at 256 connections, lower is better", resident),
    Panel("CPU of a POST /key/update", "µs: look up, cut, forward; lower is better", measured("update", "cpu_us")),
)


def bars(panel: Panel, result: Result) -> list[tuple[str, float]]:
    """The peers that have a value, best first."""
    values = [(peer, panel.value(result, peer)) for peer in TITLES if peer not in ("direct", "control", "workers")]
    return sorted(((p, v) for p, v in values if v is not None), key=lambda bar: bar[1], reverse=panel.highest_first)


def draw(panel: Panel, found: list[tuple[str, float]], x: int, y: int, height: int) -> list[str]:
    """The elements of one panel at (x, y). A bar longer than five times the gateway's is cut, and labelled in full."""
    ours = dict(found).get("gateway") or min((v for _, v in found), default=1)
    top = max((v for _, v in found), default=1)
    scale = top if panel.highest_first else min(top, 5 * ours)
    room = PANEL - LABEL - 96
    out = [
        f'<rect class="card" x="{x}.5" y="{y}.5" width="{PANEL}" height="{height}" rx="10"/>',
        f'<text class="title" x="{x + 20}" y="{y + 30}">{escape(panel.title)}</text>',
        f'<text class="note" x="{x + 20}" y="{y + 49}">{escape(panel.note)}</text>',
    ]
    for i, (peer, value) in enumerate(found):
        at = y + 66 + i * ROW
        width = max(2.0, room * min(max(value, 0) / scale, 1))
        name = SHORT.get(peer, TITLES[peer])
        kind = "us" if peer in OURS else ""
        out.append(f'<text class="{kind}" x="{x + LABEL}" y="{at + 13}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<rect class="bar {peer}" x="{x + LABEL + 10}" y="{at}" width="{width:.1f}" height="17" rx="3"/>')
        if value > scale:
            cut = x + LABEL + 10 + width * 0.88
            out.append(f'<path class="cut" d="M{cut:.1f} {at + 19}l6 -21m5 0l-6 21"/>')
        out.append(f'<text class="value {kind}" x="{x + LABEL + 18 + width:.1f}" y="{at + 13}">{number(value)}</text>')
    return out


def plot(result: Result) -> str:
    """The text of the SVG."""
    parts: list[str] = []
    y = 0
    for left in range(0, len(PANELS), 2):
        pair = [(panel, bars(panel, result)) for panel in PANELS[left : left + 2]]
        height = 78 + ROW * max(1, *(len(found) for _, found in pair))
        for column, (panel, found) in enumerate(pair):
            parts += draw(panel, found, 20 + column * (PANEL + GAP), y, height)
        y += height + GAP
    m, plan = result.machine, result.plan
    cpu = re.sub(r"\s+", " ", str(m["cpu"]))
    foot = f"{m['date']} · {cpu}, each proxy on one core · 1 KB POST, 2 KB JSON answer · "
    foot += f"medians of {plan['rounds']} interleaved rounds"
    parts.append(f'<text class="foot" x="20" y="{y + 4}">{escape(foot)}</text>')
    size = f'width="{WIDTH}" height="{y + 20}" viewBox="0 0 {WIDTH} {y + 20}"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', f"<style>{STYLE}</style>", *parts, "</svg>\n"]
    )

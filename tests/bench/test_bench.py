"""The benchmark's own plumbing: what its figures rest on, without measuring anything."""

import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.bench.peers import CONFIGS, PEERS, Missing, Place, executable, render
from tests.bench.plot import plot
from tests.bench.processes import Process
from tests.bench.relays import BODY
from tests.bench.report import GOALS, TITLES, Goal, Result, judge, markdown, number, ratio, table
from tests.bench.workloads import CHAT, CONNECTIONS, UPDATE, Values, post

MACHINE = {"cpu": "CPU", "cpus": 2, "kernel": "6.1", "python": "3.11", "date": "2024-01-01", "cores": "proxy on core 1"}


def result(*rounds: dict[str, dict[str, Values]], memory: dict[str, Values] | None = None) -> Result:
    return Result(MACHINE, {"rounds": len(rounds), "seconds": 2.0}, {}, {}, memory or {}, list(rounds), [])


def measured(cpu: dict[str, float]) -> dict[str, dict[str, Values]]:
    """One round in which each peer took so many microseconds a request."""
    return {"requests@64": {peer: {"cpu_us": us, "per_second": 1e6 / us} for peer, us in cpu.items()}}


@pytest.mark.parametrize("template", sorted(path.name for path in CONFIGS.iterdir() if path.suffix != ".js"))
def test_templates_are_filled_in(template: str, tmp_path: Path) -> None:
    """Every placeholder of every configuration gets its value, and both ports appear in it."""
    place = Place(port=4001, upstream=4000, directory=tmp_path)
    text = render(template, place, MODULES="/modules", CONFIGS="/configs").read_text()
    assert re.search(r"@[A-Z]+@", text) is None
    assert "4001" in text
    assert "4000" in text


def test_a_missing_program_is_named_with_its_package() -> None:
    """Whoever lacks a peer learns what to install."""
    with pytest.raises(Missing, match=r"no-such-proxy is not installed \(Debian: no-such-proxy\)"):
        executable("no-such-proxy", "Debian: no-such-proxy")


def test_sizes_are_as_the_tables_say() -> None:
    """1 KB is sent, 2 KB answered, and the declared length is the true one."""
    assert len(CHAT) == 1024
    assert len(BODY) == 2048
    head, _, content = post(b"/key/update", UPDATE).partition(b"\r\n\r\n")
    assert content == UPDATE
    assert f"Content-Length: {len(UPDATE)}".encode() in head


def test_ratios_are_taken_inside_a_round() -> None:
    """A round in which the whole machine was slow does not distort a ratio."""
    rounds = [measured({"gateway": g, "nginx": n}) for g, n in [(50, 50), (400, 200), (30, 10)]]
    goal = Goal("CPU", ratio("requests@64", "cpu_us", "gateway", "nginx"), 1.3)
    assert judge(goal, result(*rounds)) == [1.0, 2.0, 3.0]


def test_a_round_without_one_side_is_left_out() -> None:
    """A failed run takes its round out of the ratios, not the ratio out of the report."""
    rounds = [measured({"gateway": 50, "nginx": 50}), measured({"gateway": 50})]
    goal = Goal("CPU", ratio("requests@64", "cpu_us", "gateway", "nginx"), 1.3)
    assert judge(goal, result(*rounds)) == [1.0]


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        pytest.param(1.1, "met, stretch too", id="stretch"),
        pytest.param(1.3, "met", id="goal"),
        pytest.param(1.4, "**missed**, the required bound is met", id="required only"),
        pytest.param(1.6, "**missed**", id="missed"),
    ],
)
def test_verdicts_with_an_upper_bound(value: float, verdict: str) -> None:
    """The goal, its stretch and its required bound are told apart, bounds included."""
    assert Goal("CPU", lambda look: 0, bound=1.3, stretch=1.1, required=1.5).verdict(value) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(0.95, "met, stretch too"), (0.8, "met"), (0.79, "**missed**")])
def test_verdicts_with_a_lower_bound(value: float, verdict: str) -> None:
    """Where more is better, less than the bound is a miss."""
    assert Goal("req/s", lambda look: 0, bound=0.8, stretch=0.95, at_least=True).verdict(value) == verdict


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.123456, "0.123"), (12.345, "12.3"), (1234.5, "1,234"), (0.0, "0")]
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    """No false precision, and a dash for what was not measured."""
    assert number(value) == text


def test_tables_are_markdown() -> None:
    """Head, alignment, rows."""
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_every_goal_is_listed_although_nothing_was_measured() -> None:
    """A goal without figures says so; a missing peer and a failed run are named with their reasons."""
    empty = result()
    empty.missing["envoy"] = "envoy is not installed"
    empty.failed.append("httpx, upload, round 1: no end")
    text = markdown(empty)
    assert text.count("not measured") == len(GOALS)
    assert "- Envoy: envoy is not installed" in text
    assert "- httpx, upload, round 1: no end" in text


def test_every_goal_looks_at_what_is_measured() -> None:
    """With all figures at hand no goal stays without a verdict: its workloads, peers and metrics exist."""
    metrics = ("cpu_us", "per_second", "p50_us", "p99_us", "events_a_read", "mb_per_second", "growth")
    names = [*(f"requests@{n}" for n in CONNECTIONS), "sse", "first-byte", "download", "upload", "update", "workers"]
    slugs = [peer.slug for peer in PEERS]
    full = {name: {slug: dict.fromkeys(metrics, 2.0) for slug in slugs} for name in names}
    full["requests@1"]["direct"] = dict.fromkeys(metrics, 1.0)
    ours = result(full, memory={"gateway": {"pss": 1.0, "rss": 1.0, "pss_idle": 1.0, "rss_idle": 1.0}})
    assert [goal.text for goal in GOALS if not judge(goal, ours)] == []


def test_the_plot_is_well_formed_and_shows_everyone() -> None:
    """The SVG parses; each measured peer has its bar and its number, also one that is cut short."""
    svg = plot(result(measured({"gateway": 50, "nginx": 40, "httpx": 12_345})))
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]  # noqa: S314 - our own
    for expected in ("this gateway", "nginx", "httpx relay", "50", "40", "12,345"):
        assert expected in texts


def test_titles_are_unique() -> None:
    """No two rows of a table can be confused."""
    assert len(set(TITLES.values())) == len(PEERS) + 1


def test_children_are_measured_and_stopped_too(tmp_path: Path) -> None:
    """A process tree is one peer: its children's time and memory count, and none is left behind."""
    child = "import time; print('up', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = Process([sys.executable, "-c", parent], cpus=os.sched_getaffinity(0), log=tmp_path / "stderr")
    try:
        assert process.line() == "up"
        pids = process.pids()
        assert len(pids) == 2
        assert process.cpu_ns() > 0
        memory = process.memory()
        assert 0 < memory.pss <= memory.rss
        process.reset_peak()
        assert process.growth(memory) < memory.rss
    finally:
        process.stop()
    assert [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()] == []

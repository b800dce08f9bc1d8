"""The benchmark's own code: configurations, arithmetic, report and processes, without measuring anything."""

import os
import re
import sys
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.bench.interpreter import Build, Interpreter
from tests.bench.peers import CONFIGS, PEERS, Missing, Place, executable, form, package, render, start
from tests.bench.plot import plot
from tests.bench.processes import Cores, Process
from tests.bench.report import GOALS, TITLES, Goal, Result, bounds, control, goals, markdown, number, spread, table
from tests.bench.workloads import CHAT, UPDATE, WORKLOADS, Values, post
from tests.support.client import Client
from tests.support.upstream import Upstream, reply

PYTHON = Interpreter(sys.executable)
CPU = min(os.sched_getaffinity(0))
CORES = Cores(CPU, CPU, CPU, None)
MACHINE = {
    "cpu": "CPU",
    "cpus": 2,
    "kernel": "6.1",
    "python": "CPython 3.11, an optimised build",
    "configured": "'--with-something'",
    "date": "2024-01-01",
    "cores": "proxy on core 1",
}


def result(*rounds: dict[str, dict[str, Values]], memory: dict[str, Values] | None = None, form: str = "") -> Result:
    versions = dict.fromkeys(("gateway", "asgi"), f"0.1.0 ({form})")
    return Result(MACHINE, {"rounds": len(rounds), "seconds": 2.0}, versions, {}, memory or {}, list(rounds), [])


def measured(cpu: dict[str, float]) -> dict[str, dict[str, Values]]:
    """One round with the given CPU time per request of each peer, in microseconds."""
    return {"requests@64": {peer: {"cpu_us": us, "per_second": 1e6 / us} for peer, us in cpu.items()}}


@pytest.mark.parametrize("template", sorted(path.name for path in CONFIGS.iterdir() if path.suffix != ".js"))
def test_templates_are_filled_in(template: str, tmp_path: Path) -> None:
    """Every placeholder of every configuration gets its value, and both ports appear in it."""
    place = Place(port=4001, upstream=4000, directory=tmp_path, python=PYTHON)
    text = render(template, place, MODULES="/modules", CONFIGS="/configs").read_text()
    assert re.search(r"@[A-Z]+@", text) is None
    assert "4001" in text
    assert "4000" in text


def test_a_missing_program_is_named_with_its_package() -> None:
    """The error for a missing program names the package to install."""
    with pytest.raises(Missing, match=r"no-such-proxy is not installed \(Debian: no-such-proxy\)"):
        executable("no-such-proxy", "Debian: no-such-proxy")


def test_sizes_are_as_the_tables_say() -> None:
    """The content of a chat request is 1 KB, and Content-Length is the length of the content."""
    assert len(CHAT) == 1024
    head, _, content = post(b"/key/update", UPDATE).partition(b"\r\n\r\n")
    assert content == UPDATE
    assert f"Content-Length: {len(UPDATE)}".encode() in head


def test_ratios_are_taken_inside_a_round() -> None:
    """A round in which the whole machine was slow does not distort a ratio. A round that lacks one side is left out."""
    rounds = [measured({"gateway": g, "nginx": n}) for g, n in [(50, 50), (400, 200), (30, 10)]]
    figures = result(*rounds, measured({"gateway": 50})).figures("requests@64", "cpu_us", "gateway", "nginx")
    assert figures == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("values", "text"),
    [([], "-"), ([1.234], "1.23x"), ([1.0, 2.0], "1.50x (1.25–1.75)"), ([5, 1, 3, 2, 4], "3.00x (2.00–4.00)")],  # noqa: RUF001 - ranges
)
def test_ratios_have_quartiles(values: list[float], text: str) -> None:
    """If there is more than one value, the median is shown with the first and the third quartile."""
    assert spread(values, "x") == text


SMALLER = "met: the miss is smaller than the A/A range"


@pytest.mark.parametrize(
    ("at_least", "value", "control", "verdict"),
    [
        pytest.param(False, 1.25, [1.0], "≤ 1.25x: met", id="at the bound"),
        pytest.param(False, 1.26, [1.0], "≤ 1.25x: **missed**", id="above it, control without a range"),
        pytest.param(False, 1.26, [], "≤ 1.25x: **missed**", id="above it, no control"),
        pytest.param(False, 1.26, [0.98, 1.0, 1.02], f"≤ 1.25x: {SMALLER}", id="0.8 % above, control within 2 %"),
        pytest.param(False, 1.28, [0.98, 1.0, 1.02], "≤ 1.25x: **missed**", id="2.4 % above, control within 2 %"),
        pytest.param(True, 1.25, [1.0], "≥ 1.25x: met", id="at least, at the bound"),
        pytest.param(True, 1.24, [1.0], "≥ 1.25x: **missed**", id="at least, below it"),
        pytest.param(True, 1.24, [0.98, 1.0, 1.02], f"≥ 1.25x: {SMALLER}", id="at least, 0.8 % below"),
    ],
)
def test_verdicts(at_least: bool, value: float, control: list[float], verdict: str) -> None:
    """A goal that is missed by less than the A/A control's range counts as met, and the report says so."""
    goal = Goal("CPU", "requests@64", "cpu_us", "nginx", bounds(1.25, 1.0), at_least=at_least)
    assert goal.verdict("pure", [value], control) == verdict


def test_verdicts_rest_on_the_control_of_their_own_figure() -> None:
    """A goal is judged by the A/A control of its own figure: that of CPU time does not apply to requests/s."""
    rounds: list[dict[str, dict[str, Values]]] = [
        {
            "requests@64": {
                "gateway": {"cpu_us": 146, "per_second": 69},
                "nginx": {"cpu_us": 100, "per_second": 100},
                "control": {"cpu_us": 146 * ratio, "per_second": 69},
            }
        }
        for ratio in (0.9, 1.0, 1.1)
    ]
    text = goals(result(*rounds, form="pure Python"))
    assert f"≤ 1.45x: {SMALLER}" in text
    assert "≥ 0.7x: **missed**" in text
    assert "| CPU µs a request | - | - | 1.00 (0.95–1.05) | - |" in control(result(*rounds))  # noqa: RUF001 - a range


@pytest.mark.parametrize(
    ("form", "cpu", "rows"),
    [
        pytest.param(
            "pure Python",
            {"gateway": 140, "asgi": 300},
            [
                "CPU a request, 64 connections / nginx | 1.40x | ≤ 1.45x: met | - | ≤ 1.15x: not measured",
                'ASGI adapter: CPU a request / "hello" | 3.00x | reported | - | not measured',
            ],
            id="pure",
        ),
        pytest.param(
            "compiled",
            {"gateway": 110, "pure": 150, "asgi": 200, "asgi-pure": 300},
            [
                "CPU a request, 64 connections / nginx | 1.50x | ≤ 1.45x: **missed** | 1.10x | ≤ 1.15x: met",
                'ASGI adapter: CPU a request / "hello" | 3.00x | reported | 2.00x | reported',
            ],
            id="compiled",
        ),
    ],
)
def test_each_form_has_its_goal(form: str, cpu: dict[str, float], rows: list[str]) -> None:
    """The installed form decides which goal applies to a figure. If it is compiled, the pure peers are judged too."""
    text = goals(result(measured({**cpu, "nginx": 100, "hello": 100}), form=form))
    assert [row for row in rows if f"| {row} |" not in text] == []


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (Build("", "'--enable-optimizations' '--with-lto'", debian=False), "an optimised build (--enable"),
        (Build("", "'--enable-shared'", debian=True), "an optimised build (Debian"),
        (Build("", "'--enable-shared'", debian=False), "**not an optimised build**"),
    ],
)
def test_builds(build: Build, kind: str) -> None:
    """A build states whether it used profiles, because the figures of all Python peers depend on it."""
    assert build.kind.startswith(kind)


def test_the_installed_gateway_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout in the working directory or on PYTHONPATH does not hide the installed gateway, in either form."""
    venv.create(tmp_path / "venv", symlinks=True)
    path = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    installed = site / "sanitizer"
    installed.mkdir()
    (installed / "__init__.py").touch()
    (installed / "__main__.py").write_text(
        "import os, sys\n"
        "said = 'litellm-sanitizer 9.9 ' + ('pure' if os.environ.get('SANITIZER_PURE') else 'compiled')\n"
        "print(said)\n"
        "print(said, file=sys.stderr)\n"
    )
    checkout = Path(__file__).parent.parent.parent
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    python = Interpreter(str(path))
    for slug, expected in (("gateway", "9.9 compiled"), ("pure", "9.9 pure")):
        peer = next(peer for peer in PEERS if peer.slug == slug)
        assert peer.version(python) == expected
        with pytest.raises(Missing, match=f"did not start: litellm-sanitizer {expected}"):
            start(peer, 4000, tmp_path / slug, CORES, python)


def test_nothing_installed_is_said(tmp_path: Path) -> None:
    """The error names the gateway or the package that is not installed."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = Interpreter(str(tmp_path / "venv" / "bin" / "python"))
    with pytest.raises(Missing, match=r"litellm-sanitizer is not installed for .*/venv/bin/python"):
        form(python)
    with pytest.raises(Missing, match=r"Python package aiohttp is not installed \(pip install"):
        package("aiohttp")(python)


def test_hello_answers_as_the_gateway_does(tmp_path: Path) -> None:
    """The peer "hello" sends the same octets to its client as the gateway does."""
    answer = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\nx-litellm-version: 1\r\ncontent-length: 2\r\n\r\n{}"
    answers = []
    with Upstream(reply(answer)) as upstream:
        for peer in PEERS:
            if peer.slug not in ("gateway", "hello"):
                continue
            process, port = start(peer, upstream.port, tmp_path / peer.slug, CORES, PYTHON)
            try:
                with Client(("127.0.0.1", port)) as client:
                    response = client.ask(post(b"/v1/chat/completions", CHAT))
                    answers.append(response.raw_head + response.body)
            finally:
                process.stop()
    assert answers == [answer, answer]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.123456, "0.123"), (12.345, "12.3"), (1234.5, "1,234"), (0.0, "0")]
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    """A number is shown with three significant digits, or in full from 100 on, and a missing one as a dash."""
    assert number(value) == text


def test_tables_are_markdown() -> None:
    """A table has a header, a line for the alignment, and its rows."""
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_every_goal_is_listed_although_nothing_was_measured() -> None:
    """A goal without figures says so; a missing peer and a failed run are named with their reasons."""
    empty = result()
    empty.missing["envoy"] = "envoy is not installed"
    empty.failed.append("httpx, upload, round 1: no end")
    text = markdown(empty)
    assert text.count("not measured") == 2 * len(GOALS)
    assert "- Envoy: envoy is not installed" in text
    assert "- httpx, upload, round 1: no end" in text


def test_every_goal_looks_at_what_is_measured() -> None:
    """If all figures are present, every goal has a verdict: its workload, peers and metric exist."""
    workloads = {workload.name: workload.kind for workload in WORKLOADS}
    metrics = ("cpu_us", "per_second", "p50_us")
    full = {
        name: {peer.slug: dict.fromkeys(metrics, 2.0) for peer in PEERS if kind in peer.kinds}
        for name, kind in workloads.items()
    }
    memory = {peer.slug: {"pss": 1.0} for peer in PEERS if "memory" in peer.kinds}
    assert "not measured" not in goals(result(full, memory=memory, form="compiled"))


def test_the_plot_is_well_formed_and_shows_everyone() -> None:
    """The SVG is well-formed. It shows the name and the number of each measured peer, even if its bar is cut."""
    svg = plot(result(measured({"gateway": 50, "nginx": 40, "httpx": 12_345})))
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]  # noqa: S314 - our own
    for expected in ("this gateway", "nginx", "httpx relay", "50", "40", "12,345"):
        assert expected in texts


def test_titles_are_unique() -> None:
    """No two peers have the same title."""
    assert len(set(TITLES.values())) == len(PEERS) + 1


def test_children_are_measured_and_stopped_too(tmp_path: Path) -> None:
    """A process is measured together with its children, and stopping it leaves none of them behind."""
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

"""The dashboard and the alert rules query exported series, in PromQL that a parser of Prometheus's grammar accepts."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from sanitizer.address import Address
from sanitizer.app import Gateway as App
from sanitizer.operate.collector import SnapshotCollector
from sanitizer.operate.metrics import FAMILIES, gather
from sanitizer.operate.snapshots import Snapshots
from sanitizer.relay.pool import Pool
from sanitizer.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
PROMETHEUS = {"job", "instance"}  # labels that Prometheus adds to each series

DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]


def queries() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield f"panel {panel['title']} {target['refId']}", target["expr"].replace("$__rate_interval", "5m")


def selectors(node: object) -> Iterator[promql_parser.VectorSelector]:
    """Every selector in a query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("lhs", "rhs", "expr", "vector_selector", "param"):
        if (below := getattr(node, name, None)) is not None:
            yield from selectors(below)
    for argument in getattr(node, "args", ()):
        yield from selectors(argument)


@pytest.fixture(scope="module")
def exported() -> dict[str, list[dict[str, str]]]:
    """The labels of every series that the code exports, by name."""

    async def snapshots() -> Snapshots:
        app = App(Settings())
        snapshots = Snapshots()
        upstream = Pool(Address("http", "a", 80))
        snapshots.put(0, gather(app.counters, upstream, app.decisions))
        return snapshots

    found: dict[str, list[dict[str, str]]] = {}
    for family in SnapshotCollector(asyncio.run(snapshots()), lambda: True).collect():
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


@pytest.mark.parametrize(("where", "query"), [pytest.param(*each, id=each[0]) for each in queries()])
def test_query(where: str, query: str, exported: dict[str, list[dict[str, str]]]) -> None:
    """A query names metrics and labels that are exported, and matches values that these labels can have."""
    found = list(selectors(promql_parser.parse(query)))
    assert found
    for selector in found:
        assert selector.name is not None
        if selector.name == "up":
            continue
        assert selector.name in exported, f"{where}: no metric {selector.name}"
        series = exported[selector.name]
        for matcher in selector.matchers.matchers:
            if matcher.name in PROMETHEUS:
                continue
            assert matcher.name in series[0], f"{where}: {selector.name} has no label {matcher.name}"
            for value in matcher.value.split("|"):
                values = {labels[matcher.name] for labels in series}
                assert value in values, f"{where}: {matcher.name} is never {value}"
    labels = {name for group in re.findall(r"(?:by|ignoring) \(([^)]*)\)", query) for name in group.split(", ")}
    known = {name for selector in found for each in exported.get(selector.name or "", [])[:1] for name in each}
    assert labels <= known | PROMETHEUS, f"{where}: groups by what is not there"


def test_every_metric_is_shown() -> None:
    """The dashboard shows every metric."""
    shown = " ".join(query for where, query in queries() if where.startswith("panel"))
    assert [family.name for family in FAMILIES if family.name not in shown] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_rule(rule: dict[str, Any]) -> None:
    """A rule has a duration, a severity, a summary and a description.

    The summary and the description use only labels that the rule's query keeps.
    """
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"\d+[mh]", rule["for"])
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}
    kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"])))) or {"instance"}
    for text in rule["annotations"].values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept


def test_panels() -> None:
    """Panels have unique ids and do not overlap. Their legends use only labels that their queries keep."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    for panel in panels:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert f"by ({label})" in target["expr"]

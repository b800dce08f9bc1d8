"""Logs: their shape, what is masked, and how repeated failures are summed up."""

import json
import logging
from typing import Any

import pytest

from sanitizer.operate import logs


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A JSON object a line; fields that are None are left out; what looks like a key is masked."""
    logs.configure("info", "json")
    logs.event(logging.INFO, "hello sk-abc_DEF-1", outcome="dropped", reason=None)
    logs.event(logging.DEBUG, "not this")
    line = json.loads(capsys.readouterr().err)
    assert set(line) == {"time", "level", "message", "outcome"}
    assert (line["level"], line["message"], line["outcome"]) == ("info", "hello sk-***", "dropped")


def test_text_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Text has the same facts in one readable line."""
    logs.configure("warning", "text")
    logs.event(logging.WARNING, "upstream failed", kind="broken")
    assert capsys.readouterr().err.endswith("warning upstream failed  kind=broken\n")


def test_repeats() -> None:
    """The first failure of a kind is logged at once; those of the next ten seconds are one number in the next line."""
    lines: list[dict[str, Any]] = []
    times = iter((100.0, 101.0, 109.9, 110.0, 111.0, 111.0))
    repeats = logs.Repeats(
        "upstream failed", lambda level, message, **fields: lines.append(fields), lambda: next(times)
    )
    for _ in range(5):
        repeats("broken", "reset")
    repeats("unreachable", "refused")
    assert [(line["kind"], line["more"]) for line in lines] == [("broken", None), ("broken", 2), ("unreachable", None)]

"""Logs: their shape, what is masked, and how repeated failures are summed up."""

import json
import logging
from collections.abc import Callable

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
    """The first failure of a kind is logged at once, how many more there were every ten seconds, and none is lost."""
    lines: list[tuple[str, str, int | None]] = []
    timers: list[tuple[float, Callable[[], None]]] = []
    repeats = logs.Repeats(
        "upstream failed",
        lambda level, message, *, kind, detail, more=None: lines.append((kind, detail, more)),
        lambda seconds, call: timers.append((seconds, call)),
    )

    def pass_time() -> None:
        seconds, call = timers.pop(0)
        assert seconds == 10
        call()

    repeats("broken", "reset")
    repeats("broken", "closed")
    repeats("broken", "reset again")
    repeats("unreachable", "refused")
    assert lines == [("broken", "reset", None), ("unreachable", "refused", None)]
    pass_time()
    assert lines[2:] == [("broken", "reset again", 2)]
    pass_time()
    assert len(lines) == 3, "only one of that kind"
    repeats("broken", "closed")
    assert len(lines) == 3, "still within ten seconds of the line before"
    repeats("unreachable", "refused")
    assert lines[3:] == [("unreachable", "refused", None)], "ten seconds are over for this kind"
    repeats.close()
    assert lines[4:] == [("broken", "closed", 1)]
    while timers:
        pass_time()
    assert len(lines) == 5

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


class Told:
    """What `Repeats` logs, and its timers, which the test lets go off."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, int | None]] = []
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self.repeats = logs.Repeats(
            "upstream failed",
            lambda level, message, *, kind, detail, more=None: self.lines.append((kind, detail, more)),
            lambda seconds, call: self._timers.append((seconds, call)),
        )

    def pass_time(self) -> None:
        """Ten seconds pass."""
        timers, self._timers = self._timers, []
        for seconds, call in timers:
            assert seconds == 10
            call()


def test_repeats() -> None:
    """The first failure of a kind is logged at once, how many more there were every ten seconds, and none is lost."""
    told = Told()
    told.repeats("broken", "reset")
    told.repeats("broken", "reset")
    told.repeats("broken", "reset")
    told.repeats("unreachable", "refused")
    assert told.lines == [("broken", "reset", None), ("unreachable", "refused", None)]
    told.pass_time()
    assert told.lines[2:] == [("broken", "reset", 2)]
    told.repeats("broken", "reset")
    assert len(told.lines) == 3, "still within ten seconds of the line before"
    told.repeats("unreachable", "refused")
    assert told.lines[3:] == [("unreachable", "refused", None)], "ten seconds are over for this kind"
    told.repeats.close()
    assert told.lines[4:] == [("broken", "reset", 1)]
    told.pass_time()
    told.pass_time()
    assert len(told.lines) == 5


def test_no_detail_hides_behind_another() -> None:
    """Failures of one kind with another detail have a line of their own, but not endlessly many."""
    told = Told()
    for _ in range(2):
        for number in range(100):
            told.repeats("bad_request", f"fault {number}")
    at_once = [detail for _, detail, more in told.lines if more is None]
    assert at_once == [f"fault {number}" for number in range(33)]
    told.pass_time()
    assert sum(1 if more is None else more for _, _, more in told.lines) == 200
    told.pass_time()
    assert len(told.lines) == 66

"""Logs: the form of the lines, the masking of secrets, and the summary of repeated failures."""

import asyncio
import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanitizer.operate import logs


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A line is a JSON object. Fields that are None are left out, and a key in any text is masked."""
    logs.configure("info", "json")
    logs.event(logging.INFO, "hello sk-abc_DEF-1", outcome="dropped", reason=None)
    logs.event(logging.DEBUG, "not this")
    line = json.loads(capsys.readouterr().err)
    assert set(line) == {"time", "level", "message", "outcome"}
    assert (line["level"], line["message"], line["outcome"]) == ("info", "hello sk-***", "dropped")


def test_text_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """In text format, a line has the level, the message and the fields."""
    logs.configure("warning", "text")
    logs.event(logging.WARNING, "upstream failed", kind="broken")
    assert capsys.readouterr().err.endswith("warning upstream failed  kind=broken\n")


def test_text_values(capsys: pytest.CaptureFixture[str]) -> None:
    """In text format, a value of more than one word is quoted, and a value that is not text is written as in JSON."""
    logs.configure("info", "text")
    logs.event(logging.INFO, "x", a="two words", b='"', c="d=e", f="", g=True, h=1.5, i="\u00e4\\", j={"k": 1})
    shown = 'x  a="two words"  b="\\""  c="d=e"  f=""  g=true  h=1.5  i=\u00e4\\  j={"k": 1}\n'
    assert capsys.readouterr().err.endswith(shown)


@pytest.mark.parametrize("style", ["json", "text"])
def test_values_in_values_are_masked(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A secret is masked wherever it is in a field's value."""
    logs.configure("info", style)
    by = {"sk-secret2": {"b": "sk-secret3"}}
    logs.event(logging.INFO, "x", found=["a", ("sk-secret1", 1)], by=by, error=OSError("sk-secret4"))
    line = capsys.readouterr().err
    assert line.count("sk-***") == 4
    assert "secret" not in line


@given(st.text(max_size=20) | st.text(' ="\\', max_size=5))
@example("/x  outcome=dropped")
def test_text_value_is_one_field(value: str) -> None:
    """No value can be mistaken for another field, although a client may have chosen it."""
    logs.configure("info", "text")
    (handler,) = logs.logger.handlers
    line = handler.format(logging.makeLogRecord({"msg": "x", "fields": {"path": value, "status": 200}}))
    _, *found = re.split(r'  (\w+)=("(?:[^"\\]|\\.)*"|[^ "=]+)', line)
    assert [found[0], *found[2:]] == ["path", "", "status", "200", ""]
    assert (json.loads(found[1]) if found[1].startswith('"') else found[1]) == logs.mask(value)


@pytest.mark.parametrize("style", ["json", "text"])
def test_exceptions(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback is logged in full, with its secrets masked."""
    logs.configure("info", style)
    try:
        raise ValueError("sk-secret")
    except ValueError:
        logs.logger.exception("failed")
    shown = capsys.readouterr().err
    if style == "json":
        shown = json.loads(shown)["exception"]
    assert "Traceback (most recent call last):" in shown
    assert shown.rstrip().endswith("ValueError: sk-***")
    assert "sk-secret" not in shown


@given(st.lists(st.integers(0, 4_000_000_000), min_size=1), st.integers(0, 999))
@example([1, 1, 2, 1], 7)
def test_time(seconds: list[int], milliseconds: int) -> None:
    """A line has the time at which it was written, in UTC and to the millisecond, whatever the previous line has."""
    logs.configure("info", "json")
    (handler,) = logs.logger.handlers
    for second in seconds:
        record = logging.makeLogRecord({"created": second + milliseconds / 1000, "msecs": float(milliseconds)})
        expected = datetime.fromtimestamp(second, UTC).replace(microsecond=milliseconds * 1000)
        assert json.loads(handler.format(record))["time"] == expected.isoformat(timespec="milliseconds")


PIECES = st.sampled_from(
    [
        "sk",
        "-",
        "sk-",
        "eyJ",
        "e",
        "yJ",
        ".",
        "/",
        "//",
        "@",
        " ",
        "***",
        "a",
        "A",
        "0",
        "g",
        "0a" * 4,
        "0A" * 28,
        "f" * 64,
    ]
)


@given(st.lists(PIECES | st.text(max_size=3)).map("".join))
@example("sk-a")
@example("eyJ..")
@example("0123abcd" * 8)
@example("//a@")
def test_masks_that_are_not_tried(text: str) -> None:
    """A mask is skipped only if it would change nothing."""
    masked = text
    for pattern, replacement in (
        (logs._KEY, "sk-***"),
        (logs._JWT, r"\1eyJ***"),
        (logs._HASH, r"\1***"),
        (logs._USER, "***@"),
    ):
        masked = pattern.sub(replacement, masked)
    assert logs.mask(text) == masked


class Lines:
    """Records the lines that `Repeats` logs. It also replaces the event loop, so that the test can fire its timers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, int | None]] = []
        self.repeats = logs.Repeats("upstream failed")
        self._timers: list[Callable[[], None]] = []

    def event(self, level: int, message: str, *, kind: str, detail: str, more: int | None = None) -> None:
        assert (level, message) == (logging.WARNING, "upstream failed")
        self.lines.append((kind, detail, more))

    def call_later(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        assert seconds == 10
        self._timers.append(partial(call, *arguments))

    def pass_time(self) -> None:
        """Fire the timers, as if ten seconds had passed."""
        timers, self._timers = self._timers, []
        for call in timers:
            call()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Lines:
    log = Lines()
    monkeypatch.setattr(logs, "event", log.event)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: log)
    return log


def test_repeats(log: Lines) -> None:
    """The first failure of a kind is logged at once, and the number of further ones every ten seconds. None is lost."""
    log.repeats("broken", "reset")
    log.repeats("broken", "reset")
    log.repeats("broken", "reset")
    log.repeats("unreachable", "refused")
    assert log.lines == [("broken", "reset", None), ("unreachable", "refused", None)]
    log.pass_time()
    assert log.lines[2:] == [("broken", "reset", 2)]
    log.repeats("broken", "reset")
    assert len(log.lines) == 3, "still within ten seconds of the line before"
    log.repeats("unreachable", "refused")
    assert log.lines[3:] == [("unreachable", "refused", None)], "ten seconds are over for this kind"
    log.repeats.close()
    assert log.lines[4:] == [("broken", "reset", 1)]
    log.pass_time()
    log.pass_time()
    assert len(log.lines) == 5


def test_no_detail_hides_behind_another(log: Lines) -> None:
    """Failures of one kind with different details have lines of their own, up to a limit."""
    for _ in range(2):
        for number in range(100):
            log.repeats("bad_request", f"fault {number}")
    at_once = [detail for _, detail, more in log.lines if more is None]
    assert at_once == [f"fault {number}" for number in range(33)]
    log.pass_time()
    assert sum(1 if more is None else more for _, _, more in log.lines) == 200
    log.pass_time()
    assert len(log.lines) == 66

"""The probe: what makes upstream unreachable, and reachable again, and the words for it."""

from __future__ import annotations

from sanitizer.address import Address
from sanitizer.operate.probe import Probe


def test_two_in_a_row() -> None:
    """Two failures in a row make upstream unreachable, one success makes it reachable: each change is told once."""
    told: list[str | None] = []
    probe = Probe(Address("http", "a", 80), None, 1, told.append)
    assert probe.reason == "upstream has not been reached yet"
    for error, reason in (
        ("e", "upstream has not been reached yet"),
        (None, None),
        ("e", None),
        (None, None),
        ("e", None),
        ("e", "upstream can't be reached: e"),
        ("f", "upstream can't be reached: f"),
        (None, None),
        (None, None),
    ):
        probe.judge(error)
        assert probe.reason == reason
    assert told == [None, "upstream can't be reached: e", None]

"""The value of ``x-litellm-sanitizer`` for a decision."""

import pytest

from sanitizer.sanitize.decision import Decision, Outcome


@pytest.mark.parametrize(
    ("decision", "value"),
    [
        pytest.param(Decision(Outcome.ABSENT), b"absent", id="an outcome alone"),
        pytest.param(Decision(Outcome.DROPPED, ("a", "b")), b'dropped; fields="a,b"', id="fields"),
        pytest.param(
            Decision(Outcome.OBSERVED, ("a", "b"), None, ("b",)),
            b'observed; fields="a,b"; after-refusal="b"',
            id="fields, one of them cut after a refusal",
        ),
        pytest.param(
            Decision(Outcome.UNKNOWN, reason="no_key", lookup_key=True), b'unknown; reason="no_key"', id="a reason"
        ),
    ],
)
def test_field_value(decision: Decision, value: bytes) -> None:
    """The value is the outcome and its parameters. It does not show whose lookup was used."""
    assert decision.field_value == value

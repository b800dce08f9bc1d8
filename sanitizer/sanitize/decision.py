"""The decision about an intercepted request."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of an intercepted request, as metric labels, logs and the response field name it."""

    DROPPED = "dropped"  # at least one guarded field was cut
    CHANGED = "changed"  # no guarded field was cut: all differ from the stored values, or LiteLLM did not refuse them
    ABSENT = "absent"  # there was no guarded field with a value that can be unchanged
    UNREADABLE = "unreadable"  # the body could not be inspected
    UNKNOWN = "unknown"  # no stored value could be read
    OBSERVED = "observed"  # a field would have been cut, but the mode is "observe"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about one request."""

    outcome: Outcome
    fields: tuple[str, ...] = ()
    """The fields that were cut, or would have been."""
    reason: str | None = None
    """A stable token that qualifies the outcome."""
    after_refusal: tuple[str, ...] = ()
    """Those of ``fields`` that were cut only after LiteLLM had refused the request."""
    lookup_key: bool = False
    """Whether a lookup was made with the gateway's own credential."""

    @property
    def field_value(self) -> bytes:
        """The decision as the value of the response field."""
        value = str(self.outcome)
        if self.fields:
            value += f'; fields="{",".join(self.fields)}"'
        if self.after_refusal:
            value += f'; after-refusal="{",".join(self.after_refusal)}"'
        if self.reason:
            value += f'; reason="{self.reason}"'
        return value.encode()

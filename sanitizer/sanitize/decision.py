"""What was decided about an intercepted request."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How an intercepted request was decided: metric label, log field and response header."""

    DROPPED = "dropped"  # at least one field cut
    CHANGED = "changed"  # guarded fields present, none cut: forwarded as sent
    ABSENT = "absent"  # no guarded field
    UNREADABLE = "unreadable"  # body not inspectable
    UNKNOWN = "unknown"  # no usable stored value
    OBSERVED = "observed"  # would have been dropped, but the mode is "observe"


@dataclass(frozen=True, slots=True)
class Decision:
    """``fields``: what was cut, or would have been; ``after_refusal``: those among them that LiteLLM had refused first.

    ``reason``: a stable token. ``lookup_key``: it rests on a lookup with the gateway's own credential.
    """

    outcome: Outcome
    fields: tuple[str, ...] = ()
    reason: str | None = None
    after_refusal: tuple[str, ...] = ()
    lookup_key: bool = False

    @property
    def field_value(self) -> bytes:
        """The decision as the value of the response's field."""
        value = str(self.outcome)
        if self.fields:
            value += f'; fields="{",".join(self.fields)}"'
        if self.after_refusal:
            value += f'; after-refusal="{",".join(self.after_refusal)}"'
        if self.reason:
            value += f'; reason="{self.reason}"'
        return value.encode()

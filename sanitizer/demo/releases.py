"""What differs between LiteLLM releases: the fields that ``/key/update`` refuses to anyone but a proxy admin, and when.

A release is a row of `GATES`; the look-alike is built for one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gate:
    """One guarded field: ``refuses(sent, stored)`` is asked when the request body has the member at all."""

    field: str
    refuses: Callable[[Any, Any], bool]
    message: str


def _present(sent: Any, stored: Any) -> bool:
    """Not compared with what is stored, which is the defect; an empty list counts as nothing sent."""
    return bool(sent)


GATES: dict[str, tuple[Gate, ...]] = {
    "1.83.13": (
        Gate(
            "allowed_routes",
            _present,
            "Only proxy admins can set `allowed_routes` on a key. "
            "Use `key_type` to pick a preset route bucket instead.",
        ),
    ),
}

"""What differs between LiteLLM releases: the fields that are refused to anyone but a proxy admin, where and when.

A release is a row of `GATES`; the look-alike is built for one of them. 1.83.13's answers are held to recorded ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

UPDATE = "/key/update"
REGENERATE = "/key/regenerate"  # and where the path names the key


@dataclass(frozen=True)
class Gate:
    """One guarded field: ``refuses(sent, stored)`` is asked when the request body has the member at all."""

    endpoint: str
    field: str
    refuses: Callable[[Any, Any], bool]
    message: str


def _not_empty(sent: Any, stored: Any) -> bool:
    """Not compared with what is stored, which is the defect; an empty list counts as nothing sent."""
    return bool(sent)


def _present(sent: Any, stored: Any) -> bool:
    return True


ROUTES = "Only proxy admins can set `allowed_routes` on a key. Use `key_type` to pick a preset route bucket instead."
PERMISSIONS = "Only proxy admins can set `permissions`."

GATES: dict[str, tuple[Gate, ...]] = {
    "1.83.13": (Gate(UPDATE, "allowed_routes", _not_empty, ROUTES),),
    "1.92.0": tuple(
        Gate(endpoint, field, _present, message)
        for endpoint in (UPDATE, REGENERATE)
        for field, message in (("allowed_routes", ROUTES), ("permissions", PERMISSIONS))
    ),
}

"""The table: which field of which endpoint LiteLLM refuses on mere presence, and what "unchanged" means for it.

One row a gate. A field belongs here only if leaving it out of the request is the same as sending its stored value: the
columns of LiteLLM's key table are; what LiteLLM keeps in ``metadata`` is not, for a sent ``metadata`` replaces it. Each
of the rows below is such a column, which an update writes if the body has the member and leaves alone if not, whatever
other members it has; so it was read in, and seen on, LiteLLM 1.83.13, 1.92.0, 1.100.0, 1.105.0 and 1.109.1.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple, TypeGuard

from sanitizer.sanitize.jsonedit import Json, equal

Judge = Callable[[Json, Json], bool | None]
"""Is the sent value (first) the stored one (second)? None: nothing LiteLLM would store, so nothing can be said."""


def same_strings(sent: Json, stored: Json) -> bool | None:
    """Lists of strings, compared as sets: LiteLLM's dashboard does so, and Terraform-like clients reorder."""
    if not _strings(stored):
        return None
    return _strings(sent) and set(sent) == set(stored)


def same_list(sent: Json, stored: Json) -> bool | None:
    """Lists of strings, item by item: nobody is known to reorder them, and LiteLLM would store the new order."""
    if not _strings(stored):
        return None
    return _strings(sent) and sent == stored


def same_object(sent: Json, stored: Json) -> bool | None:
    """JSON objects, by strict equality at every depth."""
    return equal(sent, stored) if isinstance(stored, dict) else None


def same_windows(sent: Json, stored: Json) -> bool | None:
    """Budget windows, compared item by item on what a caller may set: ``budget_duration`` and ``max_budget``.

    No windows are stored as null or ``[]``; a sent null is the same as a stored null alone. ``reset_at`` is LiteLLM's:
    it stands in what is stored, and is not read in what is sent, which may repeat it but not differ. The order counts:
    LiteLLM gives it no meaning, but would store it.
    """
    if sent is None:
        return stored is None
    if stored is None:
        stored = []
    if not isinstance(stored, list) or not all(_window(item) for item in stored):
        return None
    return (
        isinstance(sent, list)
        and len(sent) == len(stored)
        and all(_same_window(one, other) for one, other in zip(sent, stored, strict=True))
    )


def _strings(value: Json) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _window(value: Json) -> TypeGuard[dict[str, Json]]:
    return (
        isinstance(value, dict)
        and {"budget_duration", "max_budget"} <= value.keys() <= {"budget_duration", "max_budget", "reset_at"}
        and isinstance(value["budget_duration"], str)
        and isinstance(value["max_budget"], Decimal)
    )


def _same_window(sent: Json, stored: Json) -> bool:
    if not _window(sent) or not _window(stored):
        return False
    return equal({"reset_at": stored.get("reset_at"), **sent}, {"reset_at": None, **stored})


class Refused(NamedTuple):
    """LiteLLM releases that refuse an unchanged value: from ``since`` on, those before ``before`` (None: to date)."""

    since: str
    before: str | None
    value: str
    """Which unchanged values it is about, and from whom."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One guarded field of one endpoint (always ``POST``)."""

    endpoint: str
    """Path without a prefix; ``{key}`` stands for the key, where the path names it."""
    field: str
    """Top-level member of the body."""
    stored_at: tuple[str, ...]
    """Where the stored value lies in the ``info`` of ``GET /key/info``."""
    unchanged: Judge
    """Not asked of a sent null, which is a change, unless the gate is `nullable`."""
    error: str = ""
    """From LiteLLM's refusal, which is a 403."""
    refused: tuple[Refused, ...] = ()
    """The evidence, from releases up to `NEWEST`."""
    nullable: bool = False
    """Whether LiteLLM stores, and shows, null where there is none."""


NEWEST = "1.109.1"
"""The newest LiteLLM that the table is made from."""

_ROUTES_ERROR = "Only proxy admins can set `allowed_routes` on a key."
_PERMISSIONS_ERROR = "Only proxy admins can set `permissions`."
_NEVER_COMPARED = (Refused("1.92.0", None, "any value"),)

GATES = (
    Gate(
        "/key/update",  # BerriAI/litellm#26555, #27005, #33277; it came with BerriAI/litellm#25445
        "allowed_routes",
        ("allowed_routes",),
        same_strings,
        _ROUTES_ERROR,
        (
            Refused("1.83.7", "1.101.0", "the lists of key types LLM API and read-only"),
            Refused("1.83.7", "1.109.0", "the list of key type management, and custom lists"),
            Refused("1.83.7", None, "a custom list in another order"),
            Refused("1.92.0", "1.101.0", "the empty list"),
        ),
    ),
    # stored as {} unless set
    Gate("/key/update", "permissions", ("permissions",), same_object, _PERMISSIONS_ERROR, _NEVER_COMPARED),
    # The dashboard of 1.92.0 sends [] whenever a key is saved, that of 1.100.0 no more. Up to 1.105.0 at least, LiteLLM
    # gives windows that are sent again a new ``reset_at``, which for periods bound to no calendar (``10d``) is later
    # than before; 1.109.1 leaves it as it is, as the gateway does. 1.83.13 stores [] as [], later releases store null.
    Gate(
        "/key/update",
        "budget_limits",
        ("budget_limits",),
        same_windows,
        "can call /key/update (max_budget/spend)",
        (
            Refused(
                "1.91.5",
                None,
                "any value, null and the empty list too; since 1.109.0, general_settings.self_serve_budget_policy can "
                "allow it",
            ),
        ),
        nullable=True,
    ),
    # the dashboard always sends it; an empty list is not refused
    Gate(
        "/key/update",
        "access_group_ids",
        ("access_group_ids",),
        same_list,
        "Team members cannot assign access groups",
        (Refused("1.91.5", None, "a list that is not empty, from who is no admin of the key's team"),),
    ),
    # An Enterprise feature; it writes the key's other columns as an update does. LiteLLM takes a key with slashes from
    # the path too: such a request is not intercepted.
    *(
        Gate(endpoint, field, (field,), unchanged, error, _NEVER_COMPARED)
        for endpoint in ("/key/regenerate", "/key/{key}/regenerate")
        for field, unchanged, error in (
            ("allowed_routes", same_strings, _ROUTES_ERROR),
            ("permissions", same_object, _PERMISSIONS_ERROR),
        )
    ),
)

FIELDS = frozenset(gate.field for gate in GATES)
"""All fields that may be dropped."""


@dataclass(frozen=True, slots=True)
class Target:
    """What an intercepted path stands for."""

    endpoint: str
    prefix: str
    """The path prefix it was called under, ``""`` for none."""
    key: str | None
    """The key in the path, if the endpoint has one there."""
    gates: tuple[Gate, ...]


class Targets:
    """The intercepted paths: every endpoint that has a gate on one of ``fields``, under each of ``prefixes``."""

    def __init__(self, fields: Collection[str], prefixes: Iterable[str]) -> None:
        gates: dict[str, list[Gate]] = {}
        for gate in GATES:
            if gate.field in fields:
                gates.setdefault(gate.endpoint, []).append(gate)
        begins = [endpoint.partition("{")[0] for endpoint in gates]
        self._common = os.path.commonprefix(begins)  # noqa: RUF071 - of characters is what is meant
        prefix = "|".join(map(re.escape, prefixes))
        self._endpoints = [
            (re.compile(rf"({prefix}){re.escape(endpoint).replace(_KEY, '([^/]+)')}"), endpoint, tuple(rows))
            for endpoint, rows in gates.items()
        ]

    def find(self, path: str) -> Target | None:
        """The target of a decoded path: LiteLLM matches decoded paths too, exactly and with case."""
        if self._common not in path:  # every POST comes by here
            return None
        for pattern, endpoint, gates in self._endpoints:
            if match := pattern.fullmatch(path):
                prefix, *key = match.groups()
                return Target(endpoint, prefix, key[0] if key else None, gates)
        return None


_KEY = re.escape("{key}")

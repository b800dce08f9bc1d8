"""The table: which field of which endpoint LiteLLM refuses on mere presence, and what "unchanged" means for it.

One row a gate. A field belongs here only if leaving it out of the request is the same as sending its stored value: the
columns of LiteLLM's key table are; what LiteLLM keeps in ``metadata`` is not, for a sent ``metadata`` replaces it.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TypeGuard

from sanitizer.sanitize.jsonedit import Json

Judge = Callable[[Json, Json], bool | None]
"""Is the sent value (first) the stored one (second)? None: nothing LiteLLM would store, so nothing can be said."""


def same_strings(sent: Json, stored: Json) -> bool | None:
    """Lists of strings, compared as sets: LiteLLM's dashboard does so, and Terraform-like clients reorder."""
    if not _strings(stored):
        return None
    return _strings(sent) and set(sent) == set(stored)


def _strings(value: Json) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


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


GATES = (
    # BerriAI/litellm#26555: refused from 1.83.7 to 1.108, a reordered list still in 1.109
    Gate("/key/update", "allowed_routes", ("allowed_routes",), same_strings),
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

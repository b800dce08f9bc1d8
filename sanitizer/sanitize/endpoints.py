"""The intercepted paths, and the endpoint of LiteLLM that each of them belongs to."""

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from sanitizer.sanitize.gates import GATES, Gate

_KEY: Final = re.escape("{key}")
_ALWAYS_INSPECTED: Final = frozenset(("key", "key_alias", "team_id", "metadata"))
"""Members that are inspected even if they have no gate: they identify the key, or other members are judged by them."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The endpoint that an intercepted path belongs to, with the variable parts of the path."""

    name: str
    """Its path as LiteLLM declares it, with ``{key}`` for a key."""
    prefix: str
    """The path prefix, ``""`` for none."""
    key: str | None
    """The key in the path, or None if the endpoint's path has none."""
    gates: tuple[Gate, ...]
    """The gates of the endpoint."""
    inspected: frozenset[str]
    """The members whose values are needed: those with a gate, those by which they are judged, and those that identify
    the key."""


class Endpoints:
    """The intercepted paths: each endpoint that has a gate on one of ``fields``, under each of ``prefixes``."""

    def __init__(self, fields: Collection[str], prefixes: Iterable[str]) -> None:
        gates: dict[str, list[Gate]] = {}
        for gate in GATES:
            if gate.field in fields:
                gates.setdefault(gate.endpoint, []).append(gate)
        constant_parts = [name.partition("{")[0] for name in gates]
        self._common_part = os.path.commonprefix(constant_parts)  # noqa: RUF071 - a prefix of characters is meant
        prefix = "|".join(map(re.escape, prefixes))
        self._endpoints = [
            (
                re.compile(rf"({prefix}){re.escape(name).replace(_KEY, '([^/]+)')}"),
                name,
                tuple(rows),
                _ALWAYS_INSPECTED.union(gate.field for gate in rows),
            )
            for name, rows in gates.items()
        ]

    def find(self, path: str) -> Endpoint | None:
        """The endpoint of a decoded path, or None if the path is not intercepted.

        As LiteLLM does, this compares the whole decoded path, and distinguishes case.
        """
        if self._common_part not in path:  # a fast check, because this is called for every POST
            return None
        for pattern, name, gates, inspected in self._endpoints:
            if match := pattern.fullmatch(path):
                prefix, *key = match.groups()
                return Endpoint(name, prefix, key[0] if key else None, gates, inspected)
        return None

"""The intercepted paths: what each of them stands for."""

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from sanitizer.sanitize.gates import GATES, Gate

_KEY: Final = re.escape("{key}")
_ALWAYS_LOOKED_AT: Final = frozenset(("key", "key_alias", "team_id", "metadata"))
"""Members that have no gate, perhaps, but name the key, or are what others are judged by."""


@dataclass(frozen=True, slots=True)
class Target:
    """What an intercepted path stands for."""

    endpoint: str
    prefix: str
    """The path prefix it was called under, ``""`` for none."""
    key: str | None
    """The key in the path, if the endpoint has one there."""
    gates: tuple[Gate, ...]
    looked_at: frozenset[str]
    """The members of a body whose values are needed: those with a gate, those by which they are judged, and the key."""


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
            (
                re.compile(rf"({prefix}){re.escape(endpoint).replace(_KEY, '([^/]+)')}"),
                endpoint,
                tuple(rows),
                _ALWAYS_LOOKED_AT.union(gate.field for gate in rows),
            )
            for endpoint, rows in gates.items()
        ]

    def find(self, path: str) -> Target | None:
        """The target of a decoded path: LiteLLM matches decoded paths too, exactly and with case."""
        if self._common not in path:  # this is asked of every POST
            return None
        for pattern, endpoint, gates, looked_at in self._endpoints:
            if match := pattern.fullmatch(path):
                prefix, *key = match.groups()
                return Target(endpoint, prefix, key[0] if key else None, gates, looked_at)
        return None

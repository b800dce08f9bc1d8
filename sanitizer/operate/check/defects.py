"""The defects of a LiteLLM release, from the table of gates: the fields that it refuses although they are unchanged."""

import re
from dataclasses import dataclass
from typing import Final

from sanitizer.sanitize.gates import GATES, NEWEST_PROVEN, Gate
from sanitizer.settings import Settings

Release = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Defect:
    """The defect of one field of one endpoint in one release.

    ``refused``: the unchanged values that the release refuses. ``fixed``: those that an earlier one refused.
    """

    endpoint: str
    field: str
    refused: list[str]
    fixed: list[str]
    error: str
    """A fragment of LiteLLM's error message."""
    repaired: bool
    """Whether the gateway repairs it with the given settings."""


def release_of(text: str) -> Release | None:
    """``1.92.0`` as (1, 92, 0). A suffix (``.rc1``, ``-nightly``) is ignored. None if ``text`` does not begin so."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else None


def _release(text: str | None) -> Release:
    """A release of the table of gates. None, which stands for "to date" there, is newer than every release."""
    return (release_of(text) if text else None) or (1_000_000,)


NEWEST_KNOWN: Final = _release(NEWEST_PROVEN)
OLDEST_KNOWN: Final = min(_release(row.since) for gate in GATES for row in gate.refused)


def defects_of(release: Release, settings: Settings) -> list[Defect]:
    """The defects of ``release``, one for each field of each endpoint.

    A release older than `OLDEST_KNOWN` is assumed to have the defects of that one.
    """
    gates: dict[tuple[str, str], list[Gate]] = {}
    for gate in GATES:
        gates.setdefault((gate.endpoint, gate.field), []).append(gate)
    return [_defect(of_field, max(release, OLDEST_KNOWN), settings) for of_field in gates.values()]


def _defect(gates: list[Gate], release: Release, settings: Settings) -> Defect:
    """The defect of a field. ``gates``: all gates of the field, of which several may have the same rows.

    If a row ends with the release with which another one begins, the other one replaces it, and nothing was fixed.
    """
    rows = list(dict.fromkeys(row for gate in gates for row in gate.refused))
    starts = {row.since for row in rows}
    gate = gates[0]
    return Defect(
        gate.endpoint,
        gate.field,
        refused=[value for since, before, value in rows if _release(since) <= release < _release(before)],
        fixed=[value for _, before, value in rows if release >= _release(before) and before not in starts],
        error=gate.fragments[0],
        repaired=settings.mode == "enforce" and gate.field in settings.fields,
    )

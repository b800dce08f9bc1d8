"""The defects of a LiteLLM release: fields that it refuses though they are unchanged, read from the table of gates."""

import re
from dataclasses import dataclass
from typing import Final

from sanitizer.sanitize.gates import GATES, NEWEST, Gate
from sanitizer.settings import Settings

Release = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Defect:
    """One field of one endpoint: the unchanged values that the release refuses, and those that it accepts again."""

    endpoint: str
    field: str
    refused: list[str]
    fixed: list[str]
    error: str
    """A part of LiteLLM's refusal."""
    repaired: bool
    """Whether the gateway is set to repair it."""


def release_of(text: str) -> Release | None:
    """``1.92.0`` as (1, 92, 0); what follows (``.rc1``, ``-nightly``) is left out. None if it has no such beginning."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else None


def _release(text: str | None) -> Release:
    """A release as the table of gates writes it; None, of what no release has changed, is after all others."""
    return (release_of(text) if text else None) or (1_000_000,)


NEWEST_KNOWN: Final = _release(NEWEST)
OLDEST_KNOWN: Final = min(_release(row.since) for gate in GATES for row in gate.refused)


def defects_of(release: Release, settings: Settings) -> list[Defect]:
    """The defects of ``release``, one for each field of an endpoint; before the oldest known release, those of that."""
    gates: dict[tuple[str, str], list[Gate]] = {}
    for gate in GATES:
        gates.setdefault((gate.endpoint, gate.field), []).append(gate)
    return [_defect(of_field, max(release, OLDEST_KNOWN), settings) for of_field in gates.values()]


def _defect(gates: list[Gate], release: Release, settings: Settings) -> Defect:
    """The defect of a field. ``gates`` are all on it; more than one may name the same values.

    A row that ends in the release in which another one begins has been replaced by that one; nothing is fixed.
    """
    rows = list(dict.fromkeys(row for gate in gates for row in gate.refused))
    begins = {row.since for row in rows}
    gate = gates[0]
    return Defect(
        gate.endpoint,
        gate.field,
        refused=[value for since, before, value in rows if _release(since) <= release < _release(before)],
        fixed=[value for _, before, value in rows if release >= _release(before) and before not in begins],
        error=gate.fragments[0],
        repaired=settings.mode == "enforce" and gate.field in settings.fields,
    )

"""The rule of `matrix`, cell by cell, on every release at hand; and that a gateway which breaks it is found out.

Bounded, so that it is soon over: one who reads the key, one who may not, and an admin play every case, for the gateway
tells callers apart by their lookup and by LiteLLM's answers alone. What only concerns a team's keys its admin plays. To
regenerate, where LiteLLM asks for its Enterprise licence before it asks who calls, is the owner's. ``python -m
tests.litellm.matrix`` has all of them do it all.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sanitizer.sanitize.gates import GATES
from tests.litellm.actors import LiteLLM
from tests.litellm.conftest import before
from tests.litellm.matrix import REGENERATE, TABLE, UPDATE, WHOLE, Caller, Cell, Row, Table, callers

Span = tuple[tuple[int, ...], tuple[int, ...]]
ROUTES_FIX, PRESETS_FIX, ALWAYS = (1, 109, 0), (1, 101, 0), (2,)
FIRST, COMPARED, BUDGET, SOFT = (1, 83, 7), (1, 92, 0), (1, 91, 5), (1, 105, 0)

SPENT: dict[str, Span] = dict.fromkeys(("unchanged", "still empty"), (BUDGET, ALWAYS))
#: A member that needs a licence, which its owner may not set either.
PREMIUM: dict[str, Span] = {
    "unchanged": (FIRST, ALWAYS),
    "still empty": (FIRST, BUDGET),
    "beside a change": (FIRST, COMPARED),
    "with its metadata": (FIRST, ALWAYS),
}
#: From which release on, and up to before which, an owner is refused direct and succeeds through the gateway.
REPAIRED: dict[str, dict[str, Span]] = {
    "/key/update allowed_routes": {
        "unchanged": (FIRST, ROUTES_FIX),
        "reordered": (FIRST, ALWAYS),
        "still empty": (COMPARED, PRESETS_FIX),
        "beside a change": (FIRST, COMPARED),
    },
    "/key/update allowed_routes (presets)": {
        "unchanged": (FIRST, PRESETS_FIX),
        "reordered": (FIRST, PRESETS_FIX),
        "still empty": (COMPARED, PRESETS_FIX),
        "beside a change": (FIRST, COMPARED),
    },
    "/key/update permissions": dict.fromkeys(("unchanged", "reordered", "still empty"), (COMPARED, ALWAYS)),
    "/key/update access_group_ids": dict.fromkeys(("unchanged", "with its team"), (BUDGET, ALWAYS)),
    "/key/update budget_limits": dict.fromkeys(("unchanged", "renewed", "still empty", "still null"), (BUDGET, ALWAYS)),
    "/key/update spend": SPENT,
    "/key/update soft_budget": dict.fromkeys(("unchanged", "still empty"), (SOFT, ALWAYS)),
    "/key/update user_id": {},  # whose key has no user is no owner: see `test_nobodys_key`
    "/key/update object_permission": dict.fromkeys(("unchanged", "in part", "with its team"), (COMPARED, ALWAYS)),
    "/key/update metadata": dict.fromkeys(("unchanged", "reordered"), (COMPARED, ALWAYS)),
    "/key/update allowed_passthrough_routes": {**PREMIUM, "with its metadata": (FIRST, COMPARED)},
    **{f"/key/update {name}": PREMIUM for name in ("guardrails", "policies", "prompts", "tags")},
    "/key/update team_id": {"still empty": (FIRST, SOFT)},
    "/key/update key_alias": {"still empty": (FIRST, ALWAYS)},
    "/key/update allowed_routes, permissions, access_group_ids, budget_limits": {
        "unchanged": (FIRST, ALWAYS),
        "still empty": (BUDGET, ALWAYS),
    },
    "/key/update spend, budget_limits, soft_budget (one changes)": {
        "unchanged": (BUDGET, ALWAYS),
        "soft_budget changes": (BUDGET, SOFT),  # nobody is refused it yet
    },
    "/key/update tags, prompts (one changes)": {"unchanged": (FIRST, ALWAYS)},
    f"/key/update {', '.join(WHOLE)} (whole key)": dict.fromkeys(
        ("unchanged", "still empty", "empty strings"), (FIRST, ALWAYS)
    ),
}
FEW = ("owner", "admin", "update-only key")
ALIKE = {"guardrails", "policies", "prompts"}
"""What LiteLLM and the gateway treat as they treat ``tags``."""
LICENCE = b"Regenerating Virtual Keys is an Enterprise feature"


@pytest.fixture(scope="module")
def table(release: LiteLLM) -> Iterator[Table]:
    with before(release) as gateway:
        yield Table(release, gateway.url, callers(release))


def broken(cells: list[Cell]) -> str:
    """How cells break the rule, a line each."""
    return "\n".join(f"{cell.caller.name}, {cell.case.name}: {problem}" for cell in cells for problem in cell.broken())


def test_every_gate_has_its_rows() -> None:
    """A new gate is a new row here, at the least."""
    rows = {(row.endpoint, *row.fields) for row in TABLE if len(row.fields) == 1}
    assert rows == {(gate.endpoint, gate.field) for gate in GATES}


@pytest.mark.parametrize("row", [row for row in TABLE if row.endpoint == UPDATE], ids=str)
def test_update(table: Table, row: Row) -> None:
    """The rule holds in every cell; an owner succeeds where they are known to be refused direct, and nowhere else."""
    cells = table.play(row, only=("owner",) if set(row.fields) <= ALIKE else FEW)
    assert not broken(cells), broken(cells)
    owners = [cell for cell in cells if cell.caller.name == "owner"]
    repaired = {cell.case.name for cell in owners if cell.repaired}
    spans = REPAIRED[str(row)]
    assert repaired == {case for case, (since, end) in spans.items() if since <= table.litellm.release < end}
    refused = [cell for cell in cells if cell.case.changes_nothing and not cell.through.success]
    assert not [cell.case.name for cell in refused if cell.reads]


def test_nobodys_key(table: Table) -> None:
    """A team's key without a user, which its admin edits: null for null is refused, and then left out."""
    row = next(row for row in TABLE if row.fields == ("user_id",))
    cells = table.play(row, only=("team admin", "admin"))
    assert not broken(cells), broken(cells)
    repaired = {(cell.caller.name, cell.case.name) for cell in cells if cell.repaired}
    refused = table.litellm.release >= COMPARED
    assert repaired == ({("team admin", "still null")} if refused else set())


@pytest.mark.parametrize("fields", [("access_group_ids",), ("object_permission",), ("team_id",)], ids=str)
def test_teams_key(table: Table, fields: tuple[str, ...]) -> None:
    """What LiteLLM judges by the key's team, and a change of that team."""
    row = next(row for row in TABLE if (row.endpoint, row.fields) == (UPDATE, fields))
    cells = table.play(row, only=("team member", "team admin"))
    assert not broken(cells), broken(cells)


@pytest.mark.parametrize("row", [row for row in TABLE if row.endpoint in REGENERATE], ids=str)
def test_regenerate(table: Table, row: Row) -> None:
    """The gate's refusal gives way to the next one, which is for want of a licence.

    LiteLLM asks for the licence before it looks at ``access_group_ids``.
    """
    cells = table.play(row, only=("owner",))
    assert not broken(cells), broken(cells)
    for cell in cells:
        if cell.case.changes_nothing:
            gate_first = table.litellm.release >= COMPARED and row.fields != ("access_group_ids",)
            assert cell.direct.status == (403 if gate_first else 500)
            assert (cell.through.status, LICENCE in cell.through.body) == (500, True)


def test_a_gateway_that_does_nothing_breaks_the_rule(release: LiteLLM) -> None:
    """What is judged here can be seen to fail."""
    owner = release.new_user()
    row = TABLE[0]
    caller = Caller("owner", owner.key, lambda: release.new_key(owner))
    with before(release, "--mode", "off") as gateway:
        cells = Table(release, gateway.url, [caller]).play(row)
    complaints = broken(cells).splitlines()
    for case, (since, end) in REPAIRED[str(row)].items():
        if since <= release.release < end:
            assert [line for line in complaints if line.startswith(f"owner, {case}: answered 403, not 200")]

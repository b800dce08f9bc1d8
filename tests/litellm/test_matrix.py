"""The rule of `matrix`, cell by cell, on every release at hand. A gateway that breaks it is detected.

To save time, not all callers play all cases. A caller who reads the key, one who may not, and an admin play the cases
of an update, because the gateway distinguishes callers only by their lookup and by LiteLLM's responses. Team members
and team admins play what concerns a team's keys. Only the owner regenerates keys, because there LiteLLM checks its
Enterprise licence before it checks the caller. ``python -m tests.litellm.matrix`` plays all cases with all callers.
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
#: For a member that needs a licence, and that its owner may not set.
PREMIUM: dict[str, Span] = {
    "unchanged": (FIRST, ALWAYS),
    "still empty": (FIRST, BUDGET),
    "beside a change": (FIRST, COMPARED),
    "with its metadata": (FIRST, ALWAYS),
}
#: By case, the first release that refuses it to an owner direct, and the first that no longer does. All are repaired.
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
    "/key/update user_id": {},  # a key without a user has no owner: see `test_nobodys_key`
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
        "soft_budget changes": (BUDGET, SOFT),  # not refused before that release
    },
    "/key/update tags, prompts (one changes)": {"unchanged": (FIRST, ALWAYS)},
    f"/key/update {', '.join(WHOLE)} (whole key)": dict.fromkeys(
        ("unchanged", "still empty", "empty strings"), (FIRST, ALWAYS)
    ),
}
FEW = ("owner", "admin", "update-only key")
ALIKE = {"guardrails", "policies", "prompts"}
"""Members that LiteLLM and the gateway treat like ``tags``."""
LICENCE = b"Regenerating Virtual Keys is an Enterprise feature"


@pytest.fixture(scope="module")
def table(release: LiteLLM) -> Iterator[Table]:
    with before(release) as gateway:
        yield Table(release, gateway.url, callers(release))


def broken(cells: list[Cell]) -> str:
    """The ways in which cells break the rule, one line each."""
    return "\n".join(f"{cell.caller.name}, {cell.case.name}: {problem}" for cell in cells for problem in cell.broken())


def test_every_gate_has_its_rows() -> None:
    """Each gate has a row of its own in the table, and each row with one field has a gate."""
    rows = {(row.endpoint, *row.fields) for row in TABLE if len(row.fields) == 1}
    assert rows == {(gate.endpoint, gate.field) for gate in GATES}


@pytest.mark.parametrize("row", [row for row in TABLE if row.endpoint == UPDATE], ids=str)
def test_update(table: Table, row: Row) -> None:
    """The rule holds in every cell. An owner's update is repaired in exactly the cases listed for the release."""
    cells = table.play(row, only=("owner",) if set(row.fields) <= ALIKE else FEW)
    assert not broken(cells), broken(cells)
    owners = [cell for cell in cells if cell.caller.name == "owner"]
    repaired = {cell.case.name for cell in owners if cell.repaired}
    spans = REPAIRED[str(row)]
    assert repaired == {case for case, (since, end) in spans.items() if since <= table.litellm.release < end}
    refused = [cell for cell in cells if cell.case.changes_nothing and not cell.through.success]
    assert not [cell.case.name for cell in refused if cell.reads]


def test_nobodys_key(table: Table) -> None:
    """For a team's key without a user, LiteLLM refuses the team admin's null ``user_id``, and the gateway cuts it."""
    row = next(row for row in TABLE if row.fields == ("user_id",))
    cells = table.play(row, only=("team admin", "admin"))
    assert not broken(cells), broken(cells)
    repaired = {(cell.caller.name, cell.case.name) for cell in cells if cell.repaired}
    refused = table.litellm.release >= COMPARED
    assert repaired == ({("team admin", "still null")} if refused else set())


@pytest.mark.parametrize("fields", [("access_group_ids",), ("object_permission",), ("team_id",)], ids=str)
def test_teams_key(table: Table, fields: tuple[str, ...]) -> None:
    """The rule holds for fields that LiteLLM judges by the key's team, and for a change of that team."""
    row = next(row for row in TABLE if (row.endpoint, row.fields) == (UPDATE, fields))
    cells = table.play(row, only=("team member", "team admin"))
    assert not broken(cells), broken(cells)


@pytest.mark.parametrize("row", [row for row in TABLE if row.endpoint in REGENERATE], ids=str)
def test_regenerate(table: Table, row: Row) -> None:
    """Through the gateway, LiteLLM refuses unchanged members only because of the missing licence.

    LiteLLM checks the licence before it checks ``access_group_ids``.
    """
    cells = table.play(row, only=("owner",))
    assert not broken(cells), broken(cells)
    for cell in cells:
        if cell.case.changes_nothing:
            gate_first = table.litellm.release >= COMPARED and row.fields != ("access_group_ids",)
            assert cell.direct.status == (403 if gate_first else 500)
            assert (cell.through.status, LICENCE in cell.through.body) == (500, True)


def test_a_gateway_that_does_nothing_breaks_the_rule(release: LiteLLM) -> None:
    """A gateway that repairs nothing breaks the rule in each case that LiteLLM refuses."""
    owner = release.new_user()
    row = TABLE[0]
    caller = Caller("owner", owner.key, lambda: release.new_key(owner))
    with before(release, "--mode", "off") as gateway:
        cells = Table(release, gateway.url, [caller]).play(row)
    complaints = broken(cells).splitlines()
    for case, (since, end) in REPAIRED[str(row)].items():
        if since <= release.release < end:
            assert [line for line in complaints if line.startswith(f"owner, {case}: answered 403, not 200")]

"""The rule of `matrix`, cell by cell, on every release at hand; and that a gateway which breaks it is found out.

Bounded, so that it is soon over: one who reads the key, one who may not, and an admin play every case of every field,
for the gateway tells callers apart by their lookup alone. The others play the cases of all fields together. To
regenerate, where LiteLLM asks for its Enterprise licence before it asks who calls, is the owner's. ``python -m
tests.litellm.matrix`` has all of them do it all.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sanitizer.sanitize.gates import GATES
from tests.litellm.actors import LiteLLM
from tests.litellm.conftest import before
from tests.litellm.matrix import CALLERS, REGENERATE, TABLE, UPDATE, Caller, Cell, Row, Table, callers

#: From which release on, and up to before which, an owner is refused direct and succeeds through the gateway.
REPAIRED: dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "/key/update allowed_routes": {
        "unchanged": ((1, 83, 7), (1, 109, 0)),
        "reordered": ((1, 83, 7), (2,)),
        "still empty": ((1, 92, 0), (1, 101, 0)),
        "beside a change": ((1, 83, 7), (1, 92, 0)),
    },
    "/key/update allowed_routes (presets)": {
        "unchanged": ((1, 83, 7), (1, 101, 0)),
        "reordered": ((1, 83, 7), (1, 101, 0)),
        "still empty": ((1, 92, 0), (1, 101, 0)),
        "beside a change": ((1, 83, 7), (1, 92, 0)),
    },
    "/key/update permissions": {
        "unchanged": ((1, 92, 0), (2,)),
        "reordered": ((1, 92, 0), (2,)),
        "still empty": ((1, 92, 0), (2,)),
    },
    "/key/update budget_limits": {
        "unchanged": ((1, 91, 5), (2,)),
        "still empty": ((1, 91, 5), (2,)),
        "still null": ((1, 91, 5), (2,)),
    },
    "/key/update access_group_ids": {"unchanged": ((1, 91, 5), (2,))},
    "/key/update allowed_routes, permissions, budget_limits, access_group_ids": {
        "unchanged": ((1, 83, 7), (2,)),
        "still empty": ((1, 91, 5), (2,)),
    },
}
FEW = ("owner", "admin", "update-only key")
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
    cells = table.play(row, only=CALLERS if len(row.fields) > 1 else FEW)
    assert not broken(cells), broken(cells)
    owners = [cell for cell in cells if cell.caller.name == "owner"]
    repaired = {cell.case.name for cell in owners if cell.repaired}
    spans = REPAIRED[str(row)]
    assert repaired == {case for case, (since, end) in spans.items() if since <= table.litellm.release < end}
    editors = set(CALLERS) - {"org admin", "update-only key"}
    refused = [cell for cell in cells if cell.case.changes_nothing and not cell.through.success]
    assert not [cell.case.name for cell in refused if cell.caller.name in editors]


@pytest.mark.parametrize("row", [row for row in TABLE if row.endpoint in REGENERATE], ids=str)
def test_regenerate(table: Table, row: Row) -> None:
    """The gate's refusal gives way to the next one, which is for want of a licence."""
    cells = table.play(row, only=("owner",))
    assert not broken(cells), broken(cells)
    for cell in cells:
        if cell.case.changes_nothing:
            assert cell.direct.status == (403 if table.litellm.release >= (1, 92, 0) else 500)
            assert (cell.through.status, LICENCE in cell.through.body) == (500, True)


def test_a_gateway_that_does_nothing_breaks_the_rule(release: LiteLLM) -> None:
    """What is judged here can be seen to fail."""
    owner = release.new_user()
    row = TABLE[0]
    with before(release, "--mode", "off") as gateway:
        cells = Table(release, gateway.url, [Caller("owner", owner.key, release.new_key(owner), reads=True)]).play(row)
    complaints = broken(cells).splitlines()
    for case, (since, end) in REPAIRED[str(row)].items():
        if since <= release.release < end:
            assert [line for line in complaints if line.startswith(f"owner, {case}: answered 403, not 200")]

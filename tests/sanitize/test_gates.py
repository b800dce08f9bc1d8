"""The table of gates: which fields are guarded, and when they may be cut."""

import re

import pytest

from sanitizer.sanitize.gates import FIELDS, GATES, Cut
from sanitizer.sanitize.jsonedit import Json
from tests.support.gateway import ROOT

BEFORE = {("allowed_routes", 403), ("permissions", 403), ("access_group_ids", 403)}
AFTER = {
    ("allowed_routes", 403),  # in another order
    ("budget_limits", 403),
    ("spend", 403),
    ("soft_budget", 403),
    ("user_id", 403),
    ("object_permission", 403),
    ("metadata", 403),
    ("allowed_passthrough_routes", 403),
    ("guardrails", 403),
    ("policies", 403),
    ("prompts", 403),
    ("tags", 403),
    ("team_id", 500),
    ("key_alias", 400),
}


@pytest.mark.parametrize(
    ("endpoint", "before", "after"),
    [
        pytest.param("/key/update", BEFORE, AFTER),
        pytest.param("/key/regenerate", BEFORE, {("allowed_routes", 403)}),
        pytest.param("/key/{key}/regenerate", BEFORE, {("allowed_routes", 403)}),
    ],
)
def test_table(endpoint: str, before: set[tuple[str, int]], after: set[tuple[str, int]]) -> None:
    """Each endpoint has exactly these fields per kind of cut, with these statuses. A new gate has to be added here."""
    rows = [gate for gate in GATES if gate.endpoint == endpoint]
    found = {cut: [(gate.field, gate.status) for gate in rows if gate.cut is cut] for cut in Cut}
    assert set(found[Cut.BEFORE_FORWARDING]) == before
    assert set(found[Cut.AFTER_REFUSAL]) == after
    assert len(rows) == len(before) + len(after)
    assert {gate.endpoint for gate in GATES} == {"/key/update", "/key/regenerate", "/key/{key}/regenerate"}


def test_readme() -> None:
    """The table of refusals in tests/litellm/README.md names every guarded field."""
    page = (ROOT / "tests/litellm/README.md").read_text()
    table = page.partition("| field | releases | who is refused |")[2].partition("\n\n")[0]
    assert {field for field in FIELDS if f"`{field}`" not in table} == set()


def test_fragments() -> None:
    """A fragment has at least three words, and no quote, bracket or backslash, which could surround a sent value."""
    for gate in GATES:
        assert gate.fragments
        for fragment in gate.fragments:
            assert len(fragment.split()) > 2, fragment
            assert not re.search(r"""['"\[\]{}\\]""", fragment), fragment


@pytest.mark.parametrize(
    "field",
    [
        # LiteLLM merges these into the sent metadata, or into the stored metadata
        *("enforced_params", "model_rpm_limit", "model_tpm_limit", "rpm_limit_type", "tpm_limit_type"),
        *("allowed_vector_store_indexes", "logging", "service_account_id", "temp_budget_increase"),
        "model_max_budget",  # cannot be proved without a licence
        "organization_id",  # LiteLLM derives permissions from it
        "key",
    ],
)
def test_never_a_gate(field: str) -> None:
    """A field is not guarded unless omitting it is known to have the same effect as sending its stored value."""
    assert field not in FIELDS


@pytest.mark.parametrize("field", ["team_id", "user_id", "key_alias"])
@pytest.mark.parametrize("value", ["a", 1, ["a"], {}, False])
def test_never_cut(field: str, value: Json) -> None:
    """A team, a user or an alias is never cut unless it is null or the empty string.

    LiteLLM derives permissions from the team and the user, and the alias names the key.
    """
    gates = [gate for gate in GATES if gate.field == field]
    assert gates
    assert not any(gate.can_be_unchanged(value) for gate in gates)


def test_what_refuses_what() -> None:
    """The evidence for a gate names a refused value and release numbers that can be compared, the earlier one first."""
    for gate in GATES:
        for since, before, value in gate.refused:
            assert value
            first = tuple(map(int, since.split(".")))
            assert len(first) == 3
            assert before is None or first < tuple(map(int, before.split(".")))

"""The table of gates: which paths are meant, what is guarded there, and when it may be cut."""

import re

import pytest

from sanitizer.sanitize import gates
from sanitizer.sanitize.gates import FIELDS, GATES, Cut, Gate, Targets
from sanitizer.sanitize.jsonedit import Json

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
    """Each field once for each kind of cut, with the status of LiteLLM's refusal: a new gate is a row here too."""
    rows = [gate for gate in GATES if gate.endpoint == endpoint]
    found = {cut: [(gate.field, gate.status) for gate in rows if gate.cut is cut] for cut in Cut}
    assert len(rows) == len(before) + len(after)
    assert set(found[Cut.BEFORE_FORWARDING]) == before
    assert set(found[Cut.AFTER_REFUSAL]) == after
    assert {gate.endpoint for gate in GATES} == {"/key/update", "/key/regenerate", "/key/{key}/regenerate"}


def test_fragments() -> None:
    """A fragment of a refusal has more than one word, and nothing in it that a value could have brought."""
    for gate in GATES:
        assert gate.fragments
        for fragment in gate.fragments:
            assert len(fragment.split()) > 2, fragment
            assert not re.search(r"""['"\[\]{}\\]""", fragment), fragment


@pytest.mark.parametrize(
    "field",
    [
        # laid over a sent metadata, or over the stored one
        *("enforced_params", "model_rpm_limit", "model_tpm_limit", "rpm_limit_type", "tpm_limit_type"),
        *("allowed_vector_store_indexes", "logging", "service_account_id", "temp_budget_increase"),
        "model_max_budget",  # not to be proved without a licence
        "organization_id",  # LiteLLM tells by it who may do what
        "key",
    ],
)
def test_never_a_gate(field: str) -> None:
    """Fields of which leaving out is not the same as sending what is stored."""
    assert field not in FIELDS


@pytest.mark.parametrize("field", ["team_id", "user_id", "key_alias"])
@pytest.mark.parametrize("value", ["a", 1, ["a"], {}, False])
def test_never_cut(field: str, value: Json) -> None:
    """LiteLLM tells by team and user who may do what, and by an alias which key is meant: only none is unchanged."""
    gates = [gate for gate in GATES if gate.field == field]
    assert gates
    assert not any(gate.possible(value) for gate in gates)


def test_what_refuses_what() -> None:
    """The evidence is release numbers that can be compared, from the earlier to the later."""
    for gate in GATES:
        for since, before, value in gate.refused:
            assert value
            first = tuple(map(int, since.split(".")))
            assert len(first) == 3
            assert before is None or first < tuple(map(int, before.split(".")))


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        pytest.param("/key/update", "", id="bare"),
        pytest.param("/p/key/update", "/p", id="under a prefix"),
        pytest.param("/q.r/key/update", "/q.r", id="under another"),
        pytest.param("/key/update/", None, id="trailing slash"),
        pytest.param("//key/update", None, id="two slashes"),
        pytest.param("/Key/Update", None, id="another case"),
        pytest.param("/key/update\n", None, id="a newline behind"),
        pytest.param("/key/updates", None, id="longer"),
        pytest.param("/x/key/update", None, id="under no prefix"),
        pytest.param("/qxr/key/update", None, id="a prefix is no pattern"),
        pytest.param("/p/p/key/update", None, id="under a prefix twice"),
        pytest.param("/key/generate", None, id="another endpoint"),
        pytest.param("", None, id="empty"),
    ],
)
def test_find(path: str, prefix: str | None) -> None:
    """Exactly the endpoints' paths are targets, bare and under each prefix."""
    target = Targets(FIELDS, ("", "/p", "/q.r")).find(path)
    assert (target and (target.endpoint, target.prefix, target.key)) == (
        None if prefix is None else ("/key/update", prefix, None)
    )


@pytest.mark.parametrize(
    ("path", "found"),
    [
        pytest.param("/key/regenerate", ("/key/regenerate", "", None), id="key in the body"),
        pytest.param("/p/key/regenerate", ("/key/regenerate", "/p", None), id="key in the body, under a prefix"),
        pytest.param("/key/sk-1/regenerate", ("/key/{key}/regenerate", "", "sk-1"), id="key in the path"),
        pytest.param("/p/key/sk-1/regenerate", ("/key/{key}/regenerate", "/p", "sk-1"), id="the same under a prefix"),
        pytest.param("/key/a b%2Fä/regenerate", ("/key/{key}/regenerate", "", "a b%2Fä"), id="as the path decodes to"),
        pytest.param(
            "/key/regenerate/regenerate", ("/key/{key}/regenerate", "", "regenerate"), id="a key of that name"
        ),
        pytest.param("/key/a/b/regenerate", None, id="a key with a slash"),
        pytest.param("/key//regenerate", None, id="no key"),
        pytest.param("/key/sk-1/regenerate/", None, id="trailing slash"),
        pytest.param("/key/sk-1/Regenerate", None, id="another case"),
        pytest.param("/key/sk-1/reset_spend", None, id="another endpoint"),
        pytest.param("/x/key/sk-1/regenerate", None, id="under no prefix"),
    ],
)
def test_find_regenerate(path: str, found: tuple[str, str, str | None] | None) -> None:
    """A key is regenerated at two paths, one of which names it."""
    target = Targets(FIELDS, ("", "/p")).find(path)
    assert (target and (target.endpoint, target.prefix, target.key)) == found


@pytest.mark.parametrize(
    ("fields", "update", "regenerate"),
    [
        pytest.param((), None, None, id="none"),
        pytest.param(("budget_limits",), ["budget_limits"], None, id="one that is not regenerated"),
        pytest.param(("permissions",), ["permissions"], ["permissions"], id="one of both"),
        pytest.param(("allowed_routes",), ["allowed_routes"] * 2, ["allowed_routes"] * 2, id="one with two gates"),
    ],
)
def test_fields_narrow(fields: tuple[str, ...], update: list[str] | None, regenerate: list[str] | None) -> None:
    """Only wanted fields have gates, and an endpoint without any is no target."""
    targets = Targets(fields, ("",))
    for path, names in (("/key/update", update), ("/key/regenerate", regenerate), ("/key/k/regenerate", regenerate)):
        target = targets.find(path)
        assert (target and [gate.field for gate in target.gates]) == names


def test_a_row_is_all_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate on another field or endpoint is one more row."""

    def never(sent: dict[str, Json], row: dict[str, Json]) -> bool:
        return False

    rows = tuple(
        Gate(endpoint, "x", never, Cut.BEFORE_FORWARDING, ("x",)) for endpoint in ("/key/update", "/user/{key}/y")
    )
    monkeypatch.setattr(gates, "GATES", gates.GATES + rows)
    targets = Targets({"allowed_routes", "x"}, ("", "/p"))

    update = targets.find("/key/update")
    assert update is not None
    assert [gate.field for gate in update.gates] == ["allowed_routes", "allowed_routes", "x"]
    other = targets.find("/p/user/1/y")
    assert other is not None
    assert (other.endpoint, other.prefix, other.key) == ("/user/{key}/y", "/p", "1")

"""The table of gates: which paths are meant, and what unchanged means."""

import pytest

from sanitizer.sanitize import gates
from sanitizer.sanitize.gates import (
    FIELDS,
    GATES,
    Gate,
    Judge,
    Targets,
    same_list,
    same_object,
    same_strings,
    same_windows,
)
from sanitizer.sanitize.jsonedit import Json, loads


@pytest.mark.parametrize(
    ("sent", "stored", "verdict"),
    [
        pytest.param('["a","b"]', '["a","b"]', True, id="the same"),
        pytest.param('["b","a"]', '["a","b"]', True, id="reordered"),
        pytest.param('["a","a","b"]', '["a","b","b"]', True, id="duplicates"),
        pytest.param("[]", "[]", True, id="both empty"),
        pytest.param("[]", '["a"]', False, id="emptied"),
        pytest.param('["a"]', "[]", False, id="filled"),
        pytest.param('["a"]', '["a","b"]', False, id="one fewer"),
        pytest.param('["A"]', '["a"]', False, id="another case"),
        pytest.param('["a "]', '["a"]', False, id="white space"),
        pytest.param('["a",1]', '["a"]', False, id="a number among the sent"),
        pytest.param('["a",null]', '["a"]', False, id="a null among the sent"),
        pytest.param('["a",["b"]]', '["a"]', False, id="a list among the sent"),
        pytest.param('"a"', '["a"]', False, id="a string"),
        pytest.param('{"a":1}', '["a"]', False, id="an object"),
        pytest.param("true", "[]", False, id="true"),
        pytest.param("null", "[]", False, id="null"),
        pytest.param(r'["\ud800"]', '["a"]', False, id="a lone surrogate"),
        pytest.param('["a"]', "null", None, id="null stored"),
        pytest.param('["a"]', '"a"', None, id="a string stored"),
        pytest.param('["a",1]', '["a",1]', None, id="a number stored"),
        pytest.param("[[]]", "[[]]", None, id="a list stored in the list"),
    ],
)
def test_same_strings(sent: str, stored: str, verdict: bool | None) -> None:
    """Lists of strings are compared as sets; about anything else that is stored, nothing is said."""
    assert same_strings(loads(sent.encode()), loads(stored.encode())) is verdict


@pytest.mark.parametrize(
    ("sent", "stored", "verdict"),
    [
        pytest.param('["a","b"]', '["a","b"]', True, id="the same"),
        pytest.param("[]", "[]", True, id="both empty"),
        pytest.param('["b","a"]', '["a","b"]', False, id="reordered"),
        pytest.param('["a","a"]', '["a"]', False, id="a duplicate"),
        pytest.param("[]", '["a"]', False, id="emptied"),
        pytest.param('["a"]', "[]", False, id="filled"),
        pytest.param('["a",1]', '["a"]', False, id="a number among the sent"),
        pytest.param('"a"', '["a"]', False, id="a string"),
        pytest.param("null", "[]", False, id="null"),
        pytest.param("null", "null", None, id="null stored"),
        pytest.param("[1]", "[1]", None, id="a number stored"),
    ],
)
def test_same_list(sent: str, stored: str, verdict: bool | None) -> None:
    """Lists of strings are compared item by item; about anything else that is stored, nothing is said."""
    assert same_list(loads(sent.encode()), loads(stored.encode())) is verdict


@pytest.mark.parametrize(
    ("sent", "stored", "verdict"),
    [
        pytest.param("{}", "{}", True, id="both empty"),
        pytest.param('{"a":1,"b":{"c":[null]}}', '{"b":{"c":[null]},"a":1.0}', True, id="the same"),
        pytest.param('{"a":1}', '{"a":true}', False, id="a boolean is no number"),
        pytest.param('{"a":0.1}', '{"a":0.10000000000000001}', False, id="a number that no float tells apart"),
        pytest.param('{"a":[1,2]}', '{"a":[2,1]}', False, id="reordered"),
        pytest.param('{"a":null}', "{}", False, id="a null more"),
        pytest.param("{}", '{"a":1}', False, id="emptied"),
        pytest.param('{"a":NaN}', '{"a":NaN}', False, id="NaN"),
        pytest.param("[]", "{}", False, id="a list"),
        pytest.param("null", "{}", False, id="null"),
        pytest.param("{}", "null", None, id="null stored"),
        pytest.param('"{}"', '"{}"', None, id="a string stored"),
        pytest.param("[]", "[]", None, id="a list stored"),
    ],
)
def test_same_object(sent: str, stored: str, verdict: bool | None) -> None:
    """Objects are equal in the strict sense, all the way down."""
    assert same_object(loads(sent.encode()), loads(stored.encode())) is verdict


DAY, WEEK = '{"budget_duration":"1d","max_budget":5}', '{"budget_duration":"7d","max_budget":20.5}'
STORED = (
    '[{"budget_duration":"1d","max_budget":5.0,"reset_at":"2026-01-02T00:00:00+00:00"},'
    '{"reset_at":"2026-01-05T00:00:00+00:00","max_budget":20.5,"budget_duration":"7d"}]'
)
NO_DATE = '[{"budget_duration":"1d","max_budget":5.0}]'


@pytest.mark.parametrize(
    ("sent", "stored", "verdict"),
    [
        pytest.param("[]", "null", True, id="none, stored as null"),
        pytest.param("[]", "[]", True, id="none, stored as a list"),
        pytest.param(f"[{DAY},{WEEK}]", STORED, True, id="the same"),
        pytest.param(STORED, STORED, True, id="the same, with LiteLLM's reset_at"),
        pytest.param(f"[{DAY}]", NO_DATE, True, id="stored without reset_at"),
        pytest.param(f"[{WEEK},{DAY}]", STORED, False, id="reordered"),
        pytest.param(f"[{DAY}]", STORED, False, id="one fewer"),
        pytest.param(f"[{DAY},{WEEK},{WEEK}]", STORED, False, id="one more"),
        pytest.param("[]", STORED, False, id="emptied"),
        pytest.param(f"[{DAY}]", "null", False, id="filled"),
        pytest.param(f"[{DAY}]".replace("5", "6"), NO_DATE, False, id="another budget"),
        pytest.param(f"[{DAY}]".replace("1d", "24h"), NO_DATE, False, id="the same time in another spelling"),
        pytest.param(f"[{DAY}]".replace("5", '"5"'), NO_DATE, False, id="a budget that LiteLLM would make a number"),
        pytest.param(f"[{DAY}]".replace("5", "null"), NO_DATE, False, id="no budget"),
        pytest.param(STORED.replace("2026", "2027"), STORED, False, id="another reset_at"),
        pytest.param(STORED.replace('"2026-01-02T00:00:00+00:00"', "null"), STORED, False, id="reset_at null"),
        pytest.param(f"[{DAY}]".replace("}", ',"x":1}'), NO_DATE, False, id="a member more"),
        pytest.param('[{"budget_duration":"1d"}]', NO_DATE, False, id="a member fewer"),
        pytest.param('[["1d",5]]', NO_DATE, False, id="a list in the list"),
        pytest.param("[null]", NO_DATE, False, id="a null in the list"),
        pytest.param(DAY, NO_DATE, False, id="an object"),
        pytest.param('""', "null", False, id="a string"),
        pytest.param("{}", "null", False, id="an empty object"),
        pytest.param("false", "null", False, id="false"),
        pytest.param("null", "null", True, id="null"),
        pytest.param("null", "[]", False, id="null, none stored as a list"),
        pytest.param("null", STORED, False, id="null, windows stored"),
        pytest.param("[]", '"[]"', None, id="a string stored"),
        pytest.param("[]", "{}", None, id="an object stored"),
        pytest.param(
            f"[{DAY}]".replace("5", '"5"'), f"[{DAY}]".replace("5", '"5"'), None, id="a budget stored as a string"
        ),
        pytest.param(f"[{DAY}]".replace("5", "true"), f"[{DAY}]".replace("5", "true"), None, id="a boolean stored"),
        pytest.param(
            NO_DATE.replace("}", ',"x":1}'), NO_DATE.replace("}", ',"x":1}'), None, id="stored in a form to come"
        ),
        pytest.param(f"[{DAY}]".replace("5", "NaN"), f"[{DAY}]".replace("5", "NaN"), False, id="NaN"),
    ],
)
def test_same_windows(sent: str, stored: str, verdict: bool | None) -> None:
    """Budget windows are compared on what a caller sets, in their order; whatever is odd is no equality."""
    assert same_windows(loads(sent.encode()), loads(stored.encode())) is verdict


@pytest.mark.parametrize(
    ("endpoint", "field", "judge"),
    [
        pytest.param("/key/update", "allowed_routes", same_strings),
        pytest.param("/key/update", "permissions", same_object),
        pytest.param("/key/update", "budget_limits", same_windows),
        pytest.param("/key/update", "access_group_ids", same_list),
        pytest.param("/key/regenerate", "allowed_routes", same_strings),
        pytest.param("/key/regenerate", "permissions", same_object),
        pytest.param("/key/{key}/regenerate", "allowed_routes", same_strings),
        pytest.param("/key/{key}/regenerate", "permissions", same_object),
    ],
)
def test_gate(endpoint: str, field: str, judge: Judge) -> None:
    """Each gate once, with what it compares, where, and its evidence."""
    (gate,) = [gate for gate in GATES if (gate.endpoint, gate.field) == (endpoint, field)]
    assert (gate.stored_at, gate.unchanged) == ((field,), judge)
    assert gate.error
    assert gate.refused
    assert len(GATES) == 8  # a new gate is a row here too


@pytest.mark.parametrize(
    "field",
    [
        # laid over a sent metadata, or over the stored one
        *("metadata", "guardrails", "policies", "prompts", "tags", "enforced_params", "allowed_passthrough_routes"),
        *("model_rpm_limit", "model_tpm_limit", "rpm_limit_type", "tpm_limit_type", "disable_global_guardrails"),
        *("allowed_vector_store_indexes", "logging", "service_account_id", "temp_budget_increase"),
        "object_permission",  # merged into the stored one
        "spend",  # the stored value lags behind
        "model_max_budget",  # not to be proved without a licence
        *("team_id", "organization_id", "user_id"),  # LiteLLM tells by them who may do what
        "key",
    ],
)
def test_never_a_gate(field: str) -> None:
    """Fields of which leaving out is not the same as sending what is stored."""
    assert field not in FIELDS


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
        pytest.param(
            FIELDS,
            ["allowed_routes", "permissions", "budget_limits", "access_group_ids"],
            ["allowed_routes", "permissions"],
            id="all",
        ),
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

    def never(sent: Json, stored: Json) -> bool:
        return False

    rows = (Gate("/key/update", "x", ("x",), never), Gate("/user/{key}/y", "x", ("x",), never))
    monkeypatch.setattr(gates, "GATES", gates.GATES + rows)
    targets = Targets({"allowed_routes", "x"}, ("", "/p"))

    update = targets.find("/key/update")
    assert update is not None
    assert [gate.field for gate in update.gates] == ["allowed_routes", "x"]
    other = targets.find("/p/user/1/y")
    assert other is not None
    assert (other.endpoint, other.prefix, other.key) == ("/user/{key}/y", "/p", "1")

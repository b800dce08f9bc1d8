"""The table of gates: which paths are meant, and what unchanged means."""

import pytest

from sanitizer.sanitize import gates
from sanitizer.sanitize.gates import FIELDS, Gate, Targets, same_strings
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
        pytest.param("/key/regenerate", None, id="another endpoint"),
        pytest.param("", None, id="empty"),
    ],
)
def test_find(path: str, prefix: str | None) -> None:
    """Exactly the endpoints' paths are targets, bare and under each prefix."""
    target = Targets(FIELDS, ("", "/p", "/q.r")).find(path)
    assert (target and (target.endpoint, target.prefix, target.key)) == (
        None if prefix is None else ("/key/update", prefix, None)
    )


def test_fields_narrow() -> None:
    """An endpoint without a gate on a wanted field is no target."""
    assert Targets((), ("",)).find("/key/update") is None


def test_a_row_is_all_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate on another field or endpoint, even one with the key in its path, is one more row."""

    def never(sent: Json, stored: Json) -> bool:
        return False

    rows = (
        Gate("/key/update", "permissions", ("permissions",), never),
        Gate("/key/{key}/regenerate", "permissions", ("permissions",), never),
    )
    monkeypatch.setattr(gates, "GATES", gates.GATES + rows)
    targets = Targets({"allowed_routes", "permissions"}, ("", "/p"))

    update = targets.find("/key/update")
    assert update is not None
    assert [gate.field for gate in update.gates] == ["allowed_routes", "permissions"]
    regenerate = targets.find("/p/key/sk-1/regenerate")
    assert regenerate is not None
    assert (regenerate.endpoint, regenerate.prefix, regenerate.key) == ("/key/{key}/regenerate", "/p", "sk-1")
    assert targets.find("/key/a/b/regenerate") is None

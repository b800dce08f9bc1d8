"""Head, body and stored key in, a decision out."""

from decimal import Decimal

import pytest

from sanitizer.sanitize import gates
from sanitizer.sanitize.decision import Decision, Outcome, Stored, Unknown, decide, inspect, obstacle
from sanitizer.sanitize.gates import FIELDS, Gate, Target, Targets
from sanitizer.sanitize.jsonedit import NotInspectable, equal
from tests.sanitize.harness import octets


def target(path: str = "/key/update", fields: frozenset[str] = FIELDS) -> Target:
    found = Targets(fields, ("",)).find(path)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        pytest.param([], None, id="no Content-Type"),
        pytest.param([("Content-Type", "")], None, id="an empty one"),
        pytest.param([("content-type", "application/json")], None, id="JSON"),
        pytest.param([("CONTENT-TYPE", "Application/JSON; charset=utf-8")], None, id="JSON with a parameter"),
        pytest.param([("Content-Type", "application/merge-patch+json")], None, id="+json"),
        pytest.param([("Content-Type", "application/jsonl")], "content_type", id="JSON lines"),
        pytest.param([("Content-Type", "text/json")], "content_type", id="text/json"),
        pytest.param([("Content-Type", "text/plain")], "content_type", id="text"),
        pytest.param([("Content-Type", "json")], "content_type", id="no slash"),
        pytest.param([("Content-Type", "application/json/x")], "content_type", id="two slashes"),
        pytest.param([("Content-Type", "application/json, text/plain")], "content_type", id="a list"),
        pytest.param([("Content-Type", "multipart/form-data; boundary=x")], "content_type", id="multipart"),
        pytest.param([("Content-Type", "application/x-www-form-urlencoded")], "content_type", id="a form"),
        pytest.param(
            [("Content-Type", "application/json; a=form")], "content_type", id="JSON that LiteLLM reads as form"
        ),
        pytest.param([("Content-Type", "application/json")] * 2, "content_type", id="two Content-Types"),
        pytest.param([("Content-Type", "application/\xe9")], "content_type", id="not ASCII"),
        pytest.param([("Content-Encoding", "gzip")], "content_encoding", id="gzip"),
        pytest.param([("content-encoding", "identity, zstd")], "content_encoding", id="two codings"),
        pytest.param(
            [("Content-Encoding", "identity"), ("Content-Encoding", "br")], "content_encoding", id="two lines"
        ),
        pytest.param([("Content-Encoding", "Identity")], None, id="identity"),
        pytest.param([("Content-Encoding", "")], None, id="no coding"),
        pytest.param([("Content-Digest", "sha-256=:AA==:")], "signed", id="Content-Digest"),
        pytest.param([("Repr-Digest", "sha-256=:AA==:")], "signed", id="Repr-Digest"),
        pytest.param([("Digest", "SHA-256=AA==")], "signed", id="Digest"),
        pytest.param([("Content-MD5", "AA==")], "signed", id="Content-MD5"),
        pytest.param([("Signature", "sig=:AA==:")], "signed", id="Signature"),
        pytest.param([("Signature-Input", 'sig=("content-digest")')], "signed", id="Signature-Input"),
        pytest.param([("X-Amz-Content-SHA256", "00")], "signed", id="AWS Signature Version 4"),
        pytest.param([("Authorization", "Bearer x"), ("Content-Length", "5")], None, id="other fields"),
    ],
)
def test_obstacle(lines: list[tuple[str, str]], reason: str | None) -> None:
    """A body that LiteLLM would not read as plain JSON, or that someone vouches for, is left alone."""
    head = octets([(name.encode(), value.encode("latin-1")) for name, value in lines])
    assert obstacle(head, 1024) == reason


@pytest.mark.parametrize(
    ("body", "key"),
    [
        pytest.param('{"key":"sk-1"}', "sk-1", id="raw"),
        pytest.param('{"\\u006bey":"sk\\u002d1"}', "sk-1", id="escaped"),
        pytest.param('{"key":" sk-1 "}', " sk-1 ", id="white space is part of it"),
        pytest.param('{"key":"ä€"}', "ä€", id="beyond ASCII"),
        pytest.param('{"key":""}', None, id="empty"),
        pytest.param('{"key":null}', None, id="null"),
        pytest.param('{"key":1}', None, id="a number"),
        pytest.param('{"key":["sk-1"]}', None, id="a list"),
        pytest.param('{"key":"\\ud800"}', None, id="a lone surrogate"),
        pytest.param('{"key_alias":"a","token":"b"}', None, id="absent"),
        pytest.param('{"data":{"key":"sk-1"}}', None, id="not at top level"),
    ],
)
def test_which_key(body: str, key: str | None) -> None:
    """The body's key, if it is a string that can name one."""
    assert inspect(body.encode(), target()).key == key


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        pytest.param("/key/sk-path/regenerate", "", "sk-path", id="no body"),
        pytest.param("/key/sk-path/regenerate", "{}", "sk-path", id="the path's"),
        pytest.param("/key/sk-path/regenerate", '{"key":"sk-body"}', "sk-body", id="the body's beats the path's"),
        pytest.param("/key/sk-path/regenerate", '{"key":null}', None, id="null"),
        pytest.param("/key/sk-path/regenerate", '{"key":""}', None, id="empty"),
        pytest.param("/key/\ud800/regenerate", "{}", None, id="a lone surrogate"),
        pytest.param("/key/regenerate", "", None, id="no key at all"),
        pytest.param("/key/regenerate", '{"key":"sk-body"}', "sk-body", id="the body's"),
        pytest.param("/key/regenerate", '{"new_key":"sk-new","key_alias":"a"}', None, id="other members name none"),
    ],
)
def test_which_key_to_regenerate(path: str, body: str, key: str | None) -> None:
    """Where the path names a key it counts, but a key in the body beats it, even one that names none."""
    assert inspect(body.encode(), target(path)).key == key


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"key":"sk-1","key":"sk-1"}', id="key"),
        pytest.param('{"key":"sk-1","\\u006bey":"sk-2"}', id="key, escaped"),
        pytest.param('{"allowed_routes":[],"key":"sk-1","allowed_routes":["a"]}', id="a guarded member"),
        pytest.param('{"allowed_routes":[],"allowed\\u005froutes":[]}', id="a guarded member, escaped"),
    ],
)
def test_duplicates(body: str) -> None:
    """Of duplicates some parser may take the other one: hands off."""
    with pytest.raises(NotInspectable) as refused:
        inspect(body.encode(), target())
    assert refused.value.reason == "duplicate_member"


def test_other_duplicates() -> None:
    """Duplicates of members that are not looked at are LiteLLM's business."""
    body = b'{"a":1,"allowed_routes":["r"],"a":2,"key":"sk-1"}'
    assert decide(inspect(body, target()), Stored({"allowed_routes": ["r"]})).body == b'{"a":1,"a":2,"key":"sk-1"}'


ROUTES = Stored({"allowed_routes": ["/a", "/b"], "models": []})


@pytest.mark.parametrize(
    ("body", "stored", "decision"),
    [
        pytest.param(
            '{"key":"sk-1","allowed_routes":["/a","/b"],"models":["m"]}',
            ROUTES,
            Decision(Outcome.DROPPED, ("allowed_routes",), body=b'{"key":"sk-1","models":["m"]}'),
            id="unchanged",
        ),
        pytest.param(
            '{ "allowed\\u005froutes" : ["\\/b","/a"] }',
            ROUTES,
            Decision(Outcome.DROPPED, ("allowed_routes",), body=b"{  }"),
            id="unchanged, reordered, escaped",
        ),
        pytest.param('{"allowed_routes":["/a"]}', ROUTES, Decision(Outcome.CHANGED), id="changed"),
        pytest.param('{"allowed_routes":null}', ROUTES, Decision(Outcome.CHANGED), id="null"),
        pytest.param('{"allowed_routes":[NaN]}', ROUTES, Decision(Outcome.CHANGED), id="nonsense"),
        pytest.param('{"key":"sk-1"}', ROUTES, Decision(Outcome.ABSENT), id="absent"),
        pytest.param('{"metadata":{"allowed_routes":[]}}', ROUTES, Decision(Outcome.ABSENT), id="elsewhere"),
        pytest.param(
            '{"allowed_routes":["/a"]}',
            Unknown("lookup_403"),
            Decision(Outcome.UNKNOWN, reason="lookup_403"),
            id="lookup refused",
        ),
        pytest.param('{"allowed_routes":null}', Unknown("x"), Decision(Outcome.CHANGED), id="null needs no lookup"),
        pytest.param(
            '{"allowed_routes":[]}', Stored({}), Decision(Outcome.UNKNOWN, reason="stored_shape"), id="field missing"
        ),
        pytest.param(
            '{"allowed_routes":[]}',
            Stored({"allowed_routes": None}),
            Decision(Outcome.UNKNOWN, reason="stored_shape"),
            id="wrong type stored",
        ),
    ],
)
def test_decide(body: str, stored: Stored | Unknown, decision: Decision) -> None:
    """Only what equals the stored value is cut; where there is none to compare with, nothing is."""
    assert decide(inspect(body.encode(), target()), stored) == decision


@pytest.mark.parametrize(
    ("body", "stored", "decision"),
    [
        pytest.param(
            '{"allowed_routes":["/a"],"permissions":{"x":1}}',
            Stored({"allowed_routes": ["/a"], "permissions": {"x": True}}),
            Decision(Outcome.DROPPED, ("allowed_routes",), body=b'{"permissions":{"x":1}}'),
            id="one unchanged",
        ),
        pytest.param(
            '{"allowed_routes":["/a"],"permissions":{}}',
            Stored({"allowed_routes": ["/a"], "permissions": {}}),
            Decision(Outcome.DROPPED, ("allowed_routes", "permissions"), body=b"{}"),
            id="both unchanged",
        ),
        pytest.param(
            '{"budget_limits":[],"models":[],"access_group_ids":[],"permissions":null}',
            Stored({"budget_limits": None, "access_group_ids": [], "permissions": {}}),
            Decision(Outcome.DROPPED, ("budget_limits", "access_group_ids"), body=b'{"models":[],"permissions":null}'),
            id="all but null",
        ),
        pytest.param(
            '{"budget_limits":null,"models":[]}',
            Stored({"budget_limits": None}),
            Decision(Outcome.DROPPED, ("budget_limits",), body=b'{"models":[]}'),
            id="null, where LiteLLM stores null",
        ),
        pytest.param(
            '{"budget_limits":null}',
            Stored({"budget_limits": []}),
            Decision(Outcome.CHANGED),
            id="null, where it does not",
        ),
        pytest.param(
            '{"budget_limits":null}', Unknown("x"), Decision(Outcome.UNKNOWN, reason="x"), id="null, not known"
        ),
        pytest.param(
            '{"allowed_routes":["/b"],"permissions":{}}',
            Stored({"allowed_routes": ["/a"]}),
            Decision(Outcome.UNKNOWN, reason="stored_shape"),
            id="one changed, one unknown",
        ),
        pytest.param(
            '{"allowed_routes":["/a"],"budget_limits":[]}',
            Stored({"allowed_routes": ["/a"]}),
            Decision(Outcome.DROPPED, ("allowed_routes",), body=b'{"budget_limits":[]}'),
            id="one unchanged, one that this release does not store",
        ),
    ],
)
def test_several_gates(body: str, stored: Stored, decision: Decision) -> None:
    """Several guarded fields are judged one by one."""
    assert decide(inspect(body.encode(), target()), stored) == decision


def test_stored_deeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored value may lie deeper; where there is no such way, nothing is known."""
    monkeypatch.setattr(gates, "GATES", (Gate("/key/update", "x", ("meta", "x"), equal),))
    submission = inspect(b'{"x":1}', target(fields=frozenset("x")))
    assert decide(submission, Stored({"meta": {"x": Decimal(1)}})).outcome is Outcome.DROPPED
    assert decide(submission, Stored({"meta": []})).reason == "stored_shape"


def test_observed() -> None:
    """Mode observe turns a drop into a report and leaves every other outcome."""
    dropped = Decision(Outcome.DROPPED, ("allowed_routes",), body=b"{}")
    assert dropped.observed() == Decision(Outcome.OBSERVED, ("allowed_routes",))
    assert Decision(Outcome.CHANGED).observed() == Decision(Outcome.CHANGED)


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        pytest.param('{"key":"sk-1","allowed_routes":[]}', True, id="a guarded member"),
        pytest.param('{"key":"sk-1","allowed_routes":null}', False, id="null is a change anyway"),
        pytest.param('{"key":"sk-1","budget_limits":null}', True, id="null may be stored"),
        pytest.param('{"key":"sk-1"}', False, id="none"),
        pytest.param('{"allowed_routes":[]}', False, id="no key"),
    ],
)
def test_needs_lookup(body: str, needed: bool) -> None:
    """Only what could be dropped is worth a lookup."""
    assert inspect(body.encode(), target()).needs_lookup is needed

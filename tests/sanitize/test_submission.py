"""Submissions: whether a body may be edited, which key it names, and which of its members are guarded."""

import pytest

from sanitizer.sanitize.endpoints import Endpoint, Endpoints
from sanitizer.sanitize.gates import FIELDS, Cut
from sanitizer.sanitize.jsonedit import Json, NotInspectable
from sanitizer.sanitize.submission import Submission, exceeds, reason_not_to_inspect
from tests.support.asgi import octets


def endpoint(path: str = "/key/update", fields: frozenset[str] = FIELDS) -> Endpoint:
    found = Endpoints(fields, ("",)).find(path)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        pytest.param([], None, id="no Content-Type"),
        pytest.param([("Content-Type", "")], None, id="an empty Content-Type"),
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
            [("Content-Type", "application/json; a=form")], "content_type", id="JSON that LiteLLM reads as a form"
        ),
        pytest.param([("Content-Type", "application/json")] * 2, "content_type", id="two Content-Types"),
        pytest.param([("Content-Type", "application/\xe9")], "content_type", id="not ASCII"),
        pytest.param([("Content-Encoding", "gzip")], "content_encoding", id="gzip"),
        pytest.param([("content-encoding", "identity, zstd")], "content_encoding", id="two codings in one line"),
        pytest.param(
            [("Content-Encoding", "identity"), ("Content-Encoding", "br")],
            "content_encoding",
            id="two codings in two lines",
        ),
        pytest.param([("Content-Encoding", "Identity")], None, id="identity"),
        pytest.param([("Content-Encoding", "")], None, id="an empty coding"),
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
def test_reason_not_to_inspect(lines: list[tuple[str, str]], reason: str | None) -> None:
    """A body is not inspected if LiteLLM would not read it as plain JSON, or if it is signed or has a digest."""
    head = octets([(name.encode(), value.encode("latin-1")) for name, value in lines])
    assert reason_not_to_inspect(head, 1024) == reason


@pytest.mark.parametrize(
    ("length", "limit", "more"),
    [
        pytest.param(b"1024", 1024, False, id="the limit"),
        pytest.param(b"1025", 1024, True, id="one above the limit"),
        pytest.param(b"999", 1024, False, id="fewer digits"),
        pytest.param(b"0001024", 1024, False, id="leading zeros"),
        pytest.param(b"1" * 5000, 1024, True, id="more digits than Python converts"),
        pytest.param(b"000", 0, False, id="zero"),
        pytest.param(b"1", 0, True, id="one above a limit of zero"),
        pytest.param(b"", 0, False, id="empty"),
        pytest.param(b"9e9", 0, False, id="not a number"),
    ],
)
def test_exceeds(length: bytes, limit: int, more: bool) -> None:
    """Lengths are compared as numbers of any size."""
    assert exceeds(length, limit) is more


@pytest.mark.parametrize(
    ("body", "key"),
    [
        pytest.param('{"key":"sk-1"}', "sk-1", id="a string"),
        pytest.param('{"\\u006bey":"sk\\u002d1"}', "sk-1", id="a string and a name with escapes"),
        pytest.param('{"key":" sk-1 "}', " sk-1 ", id="white space is preserved"),
        pytest.param('{"key":"ä€"}', "ä€", id="not ASCII"),
        pytest.param('{"key":""}', None, id="empty"),
        pytest.param('{"key":null}', None, id="null"),
        pytest.param('{"key":1}', None, id="a number"),
        pytest.param('{"key":["sk-1"]}', None, id="a list"),
        pytest.param('{"key":"\\ud800"}', None, id="a lone surrogate"),
        pytest.param('{"key_alias":"a","token":"b"}', None, id="absent"),
        pytest.param('{"data":{"key":"sk-1"}}', None, id="not at top level"),
    ],
)
def test_key(body: str, key: str | None) -> None:
    """The key is the body's ``key``, if that is a string that can name a key."""
    assert Submission(body.encode(), endpoint()).key == key


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        pytest.param("/key/sk-path/regenerate", "", "sk-path", id="key in the path, and no body"),
        pytest.param("/key/sk-path/regenerate", "{}", "sk-path", id="key in the path"),
        pytest.param("/key/sk-path/regenerate", '{"key":"sk-body"}', "sk-body", id="key in the path and in the body"),
        pytest.param("/key/sk-path/regenerate", '{"key":null}', None, id="key in the path, and null in the body"),
        pytest.param(
            "/key/sk-path/regenerate", '{"key":""}', None, id="key in the path, and an empty string in the body"
        ),
        pytest.param("/key/\ud800/regenerate", "{}", None, id="a lone surrogate in the path"),
        pytest.param("/key/regenerate", "", None, id="no key at all"),
        pytest.param("/key/regenerate", '{"key":"sk-body"}', "sk-body", id="key in the body"),
        pytest.param(
            "/key/regenerate",
            '{"new_key":"sk-new","key_alias":"a"}',
            None,
            id="new_key and key_alias, which do not name the key",
        ),
    ],
)
def test_key_to_regenerate(path: str, body: str, key: str | None) -> None:
    """A ``key`` in the body takes precedence over a key in the path, even if it names no key."""
    assert Submission(body.encode(), endpoint(path)).key == key


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"key":"sk-1","key":"sk-1"}', id="key"),
        pytest.param('{"key":"sk-1","\\u006bey":"sk-2"}', id="key, one of them escaped"),
        pytest.param('{"allowed_routes":[],"key":"sk-1","allowed_routes":["a"]}', id="a guarded member"),
        pytest.param('{"allowed_routes":[],"allowed\\u005froutes":[]}', id="a guarded member, one of them escaped"),
    ],
)
def test_duplicates(body: str) -> None:
    """A body with a duplicate ``key`` or guarded member is not inspected, as another parser may use the other one."""
    with pytest.raises(NotInspectable) as refused:
        Submission(body.encode(), endpoint())
    assert refused.value.reason == "duplicate_member"


def test_other_duplicates() -> None:
    """Duplicates of other members do not prevent a cut, and stay as they are."""
    body = b'{"a":1,"allowed_routes":["r"],"a":2,"key":"sk-1"}'
    assert Submission(body, endpoint()).without(["allowed_routes"]) == b'{"a":1,"a":2,"key":"sk-1"}'


@pytest.mark.parametrize(
    ("path", "body", "alias"),
    [
        pytest.param("/key/update", '{"key_alias":"a"}', "a", id="no key"),
        pytest.param("/key/update", '{"key_alias":"a","key":null}', "a", id="a null key"),
        pytest.param("/key/update", '{"key_alias":"a","key":"sk-1"}', None, id="a key"),
        pytest.param("/key/update", '{"key_alias":"a","key":""}', None, id="an empty key"),
        pytest.param("/key/update", '{"key_alias":"a","key":1}', None, id="a key that is not a string"),
        pytest.param("/key/update", '{"key_alias":""}', None, id="an empty alias"),
        pytest.param("/key/update", '{"key_alias":["a"]}', None, id="an alias that is a list"),
        pytest.param("/key/update", r'{"key_alias":"\ud800"}', None, id="an alias with a lone surrogate"),
        pytest.param("/key/regenerate", '{"key_alias":"a"}', None, id="an alias that the regenerated key will have"),
    ],
)
def test_alias(path: str, body: str, alias: str | None) -> None:
    """An update that names no key is about the key with the alias in its body."""
    submission = Submission(body.encode(), endpoint(path))
    assert (submission.key is None or alias is None, submission.alias) == (True, alias)


@pytest.mark.parametrize(
    ("body", "guarded", "before_forwarding"),
    [
        pytest.param('{"models":[]}', [], [], id="no guarded member"),
        pytest.param('{"metadata":{"allowed_routes":[]}}', ["metadata"], [], id="not at top level"),
        pytest.param(
            '{"allowed_routes":[]}',
            ["allowed_routes", "allowed_routes"],
            ["allowed_routes"],
            id="a member with two gates",
        ),
        pytest.param('{"allowed_routes":null}', ["allowed_routes"], [], id="null, for which only one gate remains"),
        pytest.param(
            '{"permissions":{},"spend":1}',
            ["permissions", "spend"],
            ["permissions"],
            id="one member judged before forwarding, one after a refusal",
        ),
        pytest.param(
            '{"spend":null,"team_id":"t","key_alias":"a","user_id":"u"}', [], [], id="values that are never unchanged"
        ),
        pytest.param(
            '{"budget_limits":null,"team_id":"","key_alias":"","user_id":null}',
            ["budget_limits", "user_id", "team_id", "key_alias"],
            [],
            id="null and empty strings",
        ),
    ],
)
def test_gates(body: str, guarded: list[str], before_forwarding: list[str]) -> None:
    """A body has the gates of those of its members that can be unchanged. Some are judged before forwarding."""
    submission = Submission(body.encode(), endpoint())
    assert [gate.field for gate in submission.gates] == guarded
    assert [gate.field for gate in submission.gates_before_forwarding] == before_forwarding


def test_unchanged() -> None:
    """Members are judged one by one. The second result is False if a stored value has an unknown shape."""
    submission = Submission(b'{"permissions":{},"allowed_routes":["b","a"],"access_group_ids":[]}', endpoint())
    row: dict[str, Json] = {"permissions": {}, "allowed_routes": ["a", "b"], "access_group_ids": []}
    before = submission.gates_before_forwarding
    after = [gate for gate in submission.gates if gate.cut is Cut.AFTER_REFUSAL]
    assert submission.unchanged(before, row) == (["permissions", "access_group_ids"], True)
    assert submission.unchanged(after, row) == (["allowed_routes"], True)
    assert submission.unchanged(before, {**row, "permissions": None}) == (["access_group_ids"], False)


def test_in_order() -> None:
    """Fields are returned in the order of the body."""
    submission = Submission(b'{"b":1,"spend":1,"a":2,"permissions":{}}', endpoint())
    assert submission.in_order(["permissions", "spend"]) == ("spend", "permissions")


@pytest.mark.parametrize(
    ("body", "cut", "stale"),
    [
        pytest.param('{"allowed_routes":[],"models":[]}', ["allowed_routes"], False, id="all cut"),
        pytest.param('{"allowed_routes":[],"permissions":{}}', ["allowed_routes"], True, id="one guarded member stays"),
        pytest.param(
            '{"allowed_routes":[],"spend":1}', ["allowed_routes"], False, id="a member on which no cut depends"
        ),
        pytest.param(
            '{"allowed_routes":[],"team_id":"t"}', ["allowed_routes"], True, id="team_id, on which the cut depends"
        ),
    ],
)
def test_makes_cache_stale(body: str, cut: list[str], stale: bool) -> None:
    """A cached value becomes stale if the request may write a member on which a cut before forwarding depends."""
    assert Submission(body.encode(), endpoint()).makes_cache_stale(cut) is stale

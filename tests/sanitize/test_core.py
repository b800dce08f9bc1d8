"""An intercepted request, from its body to its last response, with a LiteLLM that refuses some members."""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanitizer.sanitize.comparison import MAX_RESENDS
from sanitizer.sanitize.core import Interception, Record, Sanitizer
from sanitizer.sanitize.decision import Decision, Outcome
from sanitizer.sanitize.gates import GATES, UPDATE, Cut, Gate
from sanitizer.sanitize.jsonedit import loads
from sanitizer.sanitize.queries import Stored, Unknown
from sanitizer.sanitize.stored import Caller, Lookup, StoredKeys
from sanitizer.sanitize.submission import Submission
from tests.support.asgi import Cached, Lookups, NotLookedUp, Result, ask_nobody, looked_up

pytestmark = pytest.mark.anyio

HEAD = b"\r\nContent-Type: application/json\r\n\r\n"
BUDGET = (
    "{'error': 'Only proxy admins, team admins, or org admins can call /key/update (max_budget/spend). user_role=x'}"
)
PERMISSIONS = "{'error': 'Only proxy admins can set `permissions`.'}"
ROUTES = "{'error': 'Only proxy admins can set `allowed_routes` on a key. Use `key_type` to pick.'}"
METADATA = "{'error': 'Only proxy admins can set `metadata.allowed_passthrough_routes` on a key.'}"
STORES = "{'error': \"Key is not in a team. Vector stores cannot be assigned to personal keys. Disallowed: ['v1'].\"}"
NO_TEAM = "{'error': 'Team object not found for team change validation'}"
ALIAS = "Key with alias '' already exists. Unique key aliases across all keys are required."
USER = "Non-admin users cannot remove the user_id from a key."


def premium(name: str) -> str:
    return f"{{'error': 'This feature is only available for LiteLLM Enterprise users: {name}. You must be'}}"


ROW: dict[str, Any] = {
    "allowed_routes": ["/a", "/b"],
    "permissions": {"x": 1},
    "access_group_ids": ["g"],
    "budget_limits": None,
    "spend": 1.5,
    "litellm_budget_table": None,
    "user_id": None,
    "object_permission": {"vector_stores": ["v1"]},
    "metadata": {"allowed_passthrough_routes": ["/x"], "tags": ["t"]},
    "policies": [],
    "team_id": None,
    "key_alias": None,
}


def stored(**more: Any) -> Stored:
    info = loads(json.dumps({**ROW, **more}).encode())
    assert isinstance(info, dict)
    return Stored(info)


@dataclass
class Keys(StoredKeys):
    """Answers the caller's lookups with ``own``, in turn, and those with the lookup credential with ``with_key``."""

    own: list[Result] = field(default_factory=lambda: [stored()])
    with_key: Result | None = None
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def has_lookup_key(self) -> bool:
        return self.with_key is not None

    async def get(
        self, caller: Caller, key: str | None, alias: str | None, prefix: str, *, fresh: bool = False
    ) -> tuple[Stored | Unknown, Lookup | None]:
        name = f"alias {alias}" if key is None else key
        self.calls.append(f"{name} fresh" if fresh else name)
        return looked_up(self.own)

    async def get_with_lookup_key(
        self, caller: Caller, key: str | None, alias: str | None, prefix: str
    ) -> tuple[Stored | Unknown, Lookup | None]:
        self.calls.append(f"with the lookup key: {key or alias}")
        assert self.with_key is not None
        found, lookup = looked_up([self.with_key])
        return found, lookup and dataclasses.replace(lookup, lookup_key=True)


Refusals = Sequence[tuple[str, int, str]]
"""Members that LiteLLM refuses, in the order in which it checks them: the member, the status, the message."""


def answer(body: bytes, refusals: Refusals) -> tuple[int, bytes]:
    sent = json.loads(body)
    for name, status, text in refusals:
        if name in sent:
            return status, json.dumps({"error": {"message": text, "code": str(status)}}).encode()
    return 200, b"{}"


@dataclass
class Played:
    """The bodies that LiteLLM was sent, the response and the report, and how many responses were held back."""

    bodies: list[dict[str, Any]]
    status: int
    content: bytes
    mark: bytes | None
    record: Record
    keys: Keys
    held: int


async def play(
    sent: dict[str, Any],
    refusals: Refusals = (),
    keys: Keys | None = None,
    *,
    mode: str = "enforce",
    path: str = "/key/update",
    sends: int = 9,
    leaves: bool = False,
) -> Played:
    """Send one request as an adapter does, to a LiteLLM that refuses ``refusals``.

    A connection is available for the first ``sends`` sends. With ``leaves`` the client disconnects before it gets
    the last response.
    """
    records: list[Record] = []
    keys = keys or Keys()
    sanitizer = Sanitizer(keys, mode=mode, on_decision=records.append)
    interception = sanitizer.intercept(path, HEAD, HEAD, ask_nobody, None)
    assert isinstance(interception, Interception)
    body = json.dumps(sent).encode()
    assert interception.inspects
    assert interception.collect(body)
    body = await interception.edit() or body
    bodies: list[bytes] = []
    answers: list[tuple[int, bytes]] = []
    held = 0
    while True:
        bodies.append(body)
        answers.append(answer(body, refusals))
        status, content = answers[-1]
        following = None
        if interception.should_hold(status):
            held += 1
            following = await interception.next_body(status, b"HTTP/1.1 403 No\r\n\r\n", content)
        if following is None:
            break
        if len(bodies) == sends:
            break
        interception.report_resend()
        body = following
    if interception.confidential and not 200 <= status < 300:
        status, content = answers[0]
    mark = None if leaves else interception.report_response(status, HEAD)
    interception.close()
    assert sanitizer.collected == 0
    (record,) = records
    return Played([json.loads(each) for each in bodies], status, content, mark, record, keys, held)


KEY = {"key": "sk-1", "models": ["m"]}


@pytest.mark.parametrize(
    ("sent", "refusals", "bodies", "mark", "lookups"),
    [
        pytest.param({}, [], [{}], b"absent", [], id="nothing guarded"),
        pytest.param(
            {"permissions": {"x": 1}}, [], [{}], b'dropped; fields="permissions"', ["sk-1"], id="cut before forwarding"
        ),
        pytest.param(
            {"allowed_routes": ["/b", "/a"]},
            [],
            [{"allowed_routes": ["/b", "/a"]}],
            b"changed",
            ["sk-1"],
            id="reordered by an admin, and accepted",
        ),
        pytest.param(
            {"allowed_routes": ["/b", "/a"]},
            [("allowed_routes", 403, ROUTES)],
            [{"allowed_routes": ["/b", "/a"]}, {}],
            b'dropped; fields="allowed_routes"; after-refusal="allowed_routes"',
            ["sk-1"],
            id="reordered by another caller, and refused",
        ),
        pytest.param(
            {"allowed_routes": ["/c"]},
            [("allowed_routes", 403, ROUTES)],
            [{"allowed_routes": ["/c"]}],
            b"changed",
            ["sk-1"],
            id="changed by another caller, and refused",
        ),
        pytest.param(
            {"spend": 1.5},
            [],
            [{"spend": 1.5}],
            b'changed; reason="accepted"',
            [],
            id="spend, sent by an admin and accepted",
        ),
        pytest.param(
            {"spend": 1.50},
            [("spend", 403, BUDGET)],
            [{"spend": 1.5}, {}],
            b'dropped; fields="spend"; after-refusal="spend"',
            ["sk-1 fresh"],
            id="spend, sent by another caller and refused",
        ),
        pytest.param(
            {"spend": 2},
            [("spend", 403, BUDGET)],
            [{"spend": 2}],
            b"changed",
            ["sk-1 fresh"],
            id="a real change of spend",
        ),
        pytest.param(
            {"spend": 1.5, "budget_limits": [], "soft_budget": None},
            [("spend", 403, BUDGET), ("budget_limits", 403, BUDGET), ("soft_budget", 403, BUDGET)],
            [{"spend": 1.5, "budget_limits": [], "soft_budget": None}, {}],
            b'dropped; fields="spend,budget_limits,soft_budget"; after-refusal="spend,budget_limits,soft_budget"',
            ["sk-1 fresh"],
            id="three members that one permission guards are cut together",
        ),
        pytest.param(
            {"spend": 2, "budget_limits": []},
            [("spend", 403, BUDGET), ("budget_limits", 403, BUDGET)],
            [{"spend": 2, "budget_limits": []}, {"spend": 2}],
            b'dropped; fields="budget_limits"; after-refusal="budget_limits"',
            ["sk-1 fresh"],
            id="an unchanged and a changed member, refused twice",
        ),
        pytest.param(
            {"permissions": {"x": 1}, "spend": 1.5, "object_permission": {"vector_stores": ["v1"]}, "user_id": None},
            [("permissions", 403, PERMISSIONS), ("spend", 403, BUDGET), ("object_permission", 403, STORES)],
            [
                {"spend": 1.5, "object_permission": {"vector_stores": ["v1"]}, "user_id": None},
                {"object_permission": {"vector_stores": ["v1"]}, "user_id": None},
                {"user_id": None},
            ],
            b'dropped; fields="permissions,spend,object_permission"; after-refusal="spend,object_permission"',
            ["sk-1"],
            id="three members cut one after the other, with one lookup",
        ),
        pytest.param(
            {"spend": 1.5},
            [("spend", 403, "Something else")],
            [{"spend": 1.5}],
            b"changed",
            [],
            id="refused for another reason",
        ),
        pytest.param(
            {"spend": 1.5}, [("spend", 400, BUDGET)], [{"spend": 1.5}], b"changed", [], id="refused with another status"
        ),
        pytest.param(
            {"team_id": "", "key_alias": ""},
            [("team_id", 500, NO_TEAM), ("key_alias", 400, ALIAS)],
            [{"team_id": "", "key_alias": ""}, {"key_alias": ""}, {}],
            b'dropped; fields="team_id,key_alias"; after-refusal="team_id,key_alias"',
            ["sk-1 fresh"],
            id="empty strings for null",
        ),
        pytest.param(
            {"team_id": "t"}, [("team_id", 500, NO_TEAM)], [{"team_id": "t"}], b"absent", [], id="an unknown team"
        ),
        pytest.param(
            {"user_id": None},
            [("user_id", 403, USER)],
            [{"user_id": None}, {}],
            b'dropped; fields="user_id"; after-refusal="user_id"',
            ["sk-1 fresh"],
            id="user_id, null as stored",
        ),
        pytest.param(
            {"metadata": ROW["metadata"], "tags": ["t"]},
            [("metadata", 403, METADATA), ("tags", 403, premium("tags"))],
            [{"metadata": ROW["metadata"], "tags": ["t"]}, {"tags": ["t"]}, {}],
            b'dropped; fields="metadata,tags"; after-refusal="metadata,tags"',
            ["sk-1 fresh"],
            id="all of metadata, and a member that is stored in it",
        ),
        pytest.param(
            {"policies": []},
            [("policies", 403, premium("policies"))],
            [{"policies": []}, {}],
            b'dropped; fields="policies"; after-refusal="policies"',
            ["sk-1 fresh"],
            id="an empty list for an Enterprise feature",
        ),
        pytest.param(
            {"access_group_ids": ["g"], "object_permission": {}, "team_id": "other"},
            [("object_permission", 403, STORES)],
            [{"access_group_ids": ["g"], "object_permission": {}, "team_id": "other"}],
            b"changed",
            ["sk-1"],
            id="a new team, for which nothing is cut",
        ),
    ],
)
async def test_rule(
    sent: dict[str, Any], refusals: Refusals, bodies: list[dict[str, Any]], mark: bytes, lookups: list[str]
) -> None:
    """Unchanged members are cut before forwarding if they are no-ops for every caller, all others after a refusal."""
    played = await play({**KEY, **sent}, refusals)
    assert played.bodies == [{**KEY, **each} for each in bodies]
    assert played.mark == mark
    assert played.keys.calls == lookups
    assert played.record.resent == len(bodies) - 1
    assert (played.status, played.content) == answer(json.dumps(bodies[-1]).encode(), refusals)


@pytest.mark.parametrize(
    ("sent", "sends", "mark"),
    [
        pytest.param({"spend": 1.5}, 1, b'changed; reason="not_resent"', id="for the first resend"),
        pytest.param(
            {"spend": 1.5, "permissions": {"x": 1}},
            1,
            b'dropped; fields="permissions"',
            id="for the first resend, after a cut before forwarding",
        ),
        pytest.param(
            {"spend": 1.5, "user_id": None},
            2,
            b'dropped; fields="spend"; after-refusal="spend"',
            id="for the second resend",
        ),
    ],
)
async def test_no_connection_for_a_resend(sent: dict[str, Any], sends: int, mark: bytes) -> None:
    """A member is not reported as cut if LiteLLM never received the request without it."""
    refusals = [("spend", 403, BUDGET), ("user_id", 403, USER)]
    played = await play({**KEY, **sent}, refusals, sends=sends)
    assert (played.status, played.mark) == (403, mark)
    assert len(played.bodies) == sends
    assert (played.record.resent, played.record.decision.field_value) == (sends - 1, mark)


@pytest.mark.parametrize(("sends", "mark"), [(1, b'changed; reason="not_resent"'), (2, b'dropped; fields="spend"')])
async def test_client_leaves_before_a_resend(sends: int, mark: bytes) -> None:
    """The report does not claim a resend that was decided but not sent when the client left."""
    refusals = [("spend", 403, BUDGET), ("user_id", 403, USER)]
    played = await play({**KEY, "spend": 1.5, "user_id": None}, refusals, sends=sends, leaves=True)
    assert played.record.decision.field_value.startswith(mark)
    assert (played.record.resent, played.record.status) == (sends - 1, None)


async def test_cut_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a defect prevents a cut, no field is reported as cut, and the request may write, for the cache."""

    def without(*_: object) -> bytes:
        raise AssertionError

    monkeypatch.setattr(Submission, "without", without)
    records: list[Record] = []
    lookups = Lookups(stored(), caches=True)
    sanitizer = Sanitizer(lookups, on_decision=records.append)
    interception = sanitizer.intercept("/key/update", HEAD, HEAD, ask_nobody, None)
    assert isinstance(interception, Interception)
    interception.collect(b'{"key": "sk-1", "permissions": {"x": 1}}')
    with pytest.raises(AssertionError):
        await interception.edit()
    interception.decision_failed()
    assert lookups.writing_now == 1
    assert interception.report_response(200, HEAD) == b'unknown; reason="internal"'
    interception.close()
    assert (lookups.writing_now, [record.resent for record in records]) == (0, [0])


async def test_cut_fails_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a defect prevents a cut after a refusal, the decision about the first send stands."""
    sanitizer = Sanitizer(Keys())
    interception = sanitizer.intercept("/key/update", HEAD, HEAD, ask_nobody, None)
    assert isinstance(interception, Interception)
    body = b'{"key": "sk-1", "spend": 1.5}'
    interception.collect(body)
    assert await interception.edit() is None
    monkeypatch.setattr(Submission, "without", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await interception.next_body(403, b"HTTP/1.1 403 No\r\n\r\n", answer(body, [("spend", 403, BUDGET)])[1])
    interception.decision_failed()
    assert interception.report_response(403, HEAD) == b"changed"
    interception.close()


async def test_at_most_so_many_sends() -> None:
    """There are at most `MAX_RESENDS` resends. The client gets the response to the last one, even a refusal."""
    names = ["guardrails", "policies", "prompts", "spend", "user_id"]
    refusals = [(name, 403, premium(name)) for name in names[:3]] + [("spend", 403, BUDGET), ("user_id", 403, USER)]
    sent = {**KEY, "guardrails": [], "policies": [], "prompts": [], "spend": 1.5, "user_id": None}
    played = await play(sent, refusals)
    assert len(played.bodies) == MAX_RESENDS + 1
    assert played.bodies[-1] == {**KEY, "user_id": None}
    assert played.status == 403
    assert USER in json.loads(played.content)["error"]["message"]


async def test_fragment_in_a_value() -> None:
    """A caller that puts a gate's fragment into another refusal gains nothing: the resend is refused as well."""
    sent = {**KEY, "object_permission": {"vector_stores": [BUDGET]}, "spend": 1.5}
    refusals = [("object_permission", 403, f"Vector stores cannot be assigned to keys. Disallowed: ['{BUDGET}']")]
    played = await play(sent, refusals)
    assert played.status == 403
    assert played.bodies == [sent, {name: value for name, value in sent.items() if name != "spend"}]


@pytest.mark.parametrize(
    ("keys", "outcome", "reason"),
    [
        pytest.param([Unknown("lookup_403", refused=True)], Outcome.UNKNOWN, "lookup_403", id="lookup refused"),
        pytest.param([Unknown("lookup_timeout")], Outcome.UNKNOWN, "lookup_timeout", id="lookup timed out"),
        pytest.param([stored(spend="odd")], Outcome.UNKNOWN, "stored_shape", id="an unknown shape"),
    ],
)
async def test_unknown_after_refusal(keys: list[Result], outcome: Outcome, reason: str) -> None:
    """Without a usable stored value the client gets the refusal, and the reason is reported."""
    played = await play({**KEY, "spend": 1.5}, [("spend", 403, BUDGET)], Keys(own=keys))
    assert played.record.decision == Decision(outcome, reason=reason)
    assert (played.status, len(played.bodies)) == (403, 1)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        pytest.param(Unknown("lookup_timeout"), b"lookup_timeout", id="lookup timed out"),
        pytest.param(Unknown("lookup_403", refused=True), b"lookup_403", id="lookup refused"),
    ],
)
async def test_failed_lookup_is_not_repeated(found: Unknown, reason: bytes) -> None:
    """After a failed lookup before forwarding, there is no second lookup, and no response is held back."""
    sent = {**KEY, "permissions": {"x": 1}, "spend": 1.5}
    played = await play(sent, [("spend", 403, BUDGET)], Keys(own=[found]))
    assert played.keys.calls == ["sk-1"]
    assert played.mark == b'unknown; reason="%b"' % reason
    assert (played.status, played.held) == (403, 0)


async def test_no_key() -> None:
    """If the body names no key, there is no lookup, and no response is held back."""
    played = await play({"spend": 1.5}, [("spend", 403, BUDGET)])
    assert played.mark == b'unknown; reason="no_key"'
    assert (played.keys.calls, played.held) == ([], 0)


async def test_key_form() -> None:
    """A key that may not be put into a URL is not looked up, not even with the credential. No response is held back."""
    keys = Keys(own=[NotLookedUp("key_form")], with_key=stored())
    played = await play({**KEY, "permissions": {"x": 1}, "spend": 1.5}, [("spend", 403, BUDGET)], keys)
    assert played.mark == b'unknown; reason="key_form"'
    assert (played.keys.calls, played.held, played.record.lookups) == (["sk-1"], 0, ())


async def test_alias() -> None:
    """A key that is named only by its alias is looked up by the alias."""
    sent = {"key_alias": "mine", "permissions": {"x": 1}, "spend": 1.5}
    played = await play(sent, [("spend", 403, BUDGET)])
    assert played.bodies == [{"key_alias": "mine", "spend": 1.5}, {"key_alias": "mine"}]
    assert played.keys.calls == ["alias mine"]
    assert played.record.key_hash is None


async def test_cached_value_is_not_for_refusals() -> None:
    """A cached value may cut a member before forwarding, but after a refusal the key is looked up again."""
    keys = Keys(own=[Cached(stored().info), stored(spend=9)])
    played = await play({**KEY, "permissions": {"x": 1}, "spend": 1.5}, [("spend", 403, BUDGET)], keys)
    assert played.keys.calls == ["sk-1", "sk-1 fresh"]
    assert played.mark == b'dropped; fields="permissions"'


async def test_cached_cut_stands_without_a_resend() -> None:
    """If there is no resend, a member that a cached value cut is reported as cut, though the fresh value differs."""
    keys = Keys(own=[Cached(stored().info), stored(permissions={"x": 2}, spend=9)])
    played = await play({**KEY, "permissions": {"x": 1}, "spend": 1.5}, [("spend", 403, BUDGET)], keys)
    assert played.bodies == [{**KEY, "spend": 1.5}]
    assert played.mark == b'dropped; fields="permissions"'


async def test_cached_cut_is_taken_back() -> None:
    """A resend puts back a member that a cached value cut, if a fresh lookup shows that it is a change."""
    keys = Keys(own=[Cached(stored().info), stored(permissions={"x": 2})])
    played = await play({**KEY, "permissions": {"x": 1}, "spend": 1.5}, [("spend", 403, BUDGET)], keys)
    assert played.bodies == [{**KEY, "spend": 1.5}, {**KEY, "permissions": {"x": 1}}]
    assert played.mark == b'dropped; fields="spend"; after-refusal="spend"'


@pytest.mark.parametrize(
    ("sent", "refusals", "mark", "resent"),
    [
        pytest.param({"permissions": {"x": 1}}, [], b'observed; fields="permissions"', 0, id="cut before forwarding"),
        pytest.param(
            {"spend": 1.5},
            [("spend", 403, BUDGET)],
            b'observed; fields="spend"; after-refusal="spend"',
            0,
            id="cut after a refusal",
        ),
        pytest.param({"spend": 1.5}, [], b'changed; reason="accepted"', 0, id="accepted"),
        pytest.param({"spend": 2}, [("spend", 403, BUDGET)], b"changed", 0, id="a real change"),
    ],
)
async def test_observe(sent: dict[str, Any], refusals: Refusals, mark: bytes, resent: int) -> None:
    """In observe mode the decision is reported, and nothing is cut or sent again."""
    played = await play({**KEY, **sent}, refusals, mode="observe")
    assert played.bodies == [{**KEY, **sent}]
    assert (played.mark, played.record.resent) == (mark, resent)


def may_not_read(with_key: Result) -> Keys:
    return Keys(own=[Unknown("lookup_403", refused=True)], with_key=with_key)


STRANGER = [("permissions", 403, PERMISSIONS), ("models", 403, "This key is not yours")]


async def test_lookup_key_repairs() -> None:
    """With the lookup credential a member is cut only after a refusal, and the request is sent again without it."""
    played = await play({**KEY, "permissions": {"x": 1}}, STRANGER[:1], may_not_read(stored()))
    assert played.bodies == [{**KEY, "permissions": {"x": 1}}, KEY]
    assert played.mark == b'dropped; fields="permissions"; after-refusal="permissions"'
    assert played.record.decision.lookup_key
    assert played.keys.calls == ["sk-1", "with the lookup key: sk-1"]
    assert [lookup.lookup_key for lookup in played.record.lookups] == [False, True]


async def test_lookup_key_repairs_by_alias() -> None:
    """A request that names its key by its alias is repaired with the lookup credential too."""
    sent = {"key_alias": "mine", "permissions": {"x": 1}}
    played = await play(sent, STRANGER[:1], may_not_read(stored()))
    assert played.bodies == [sent, {"key_alias": "mine"}]
    assert played.keys.calls == ["alias mine", "with the lookup key: mine"]


async def test_lookup_key_is_used_once() -> None:
    """One lookup with the credential is enough for all members that LiteLLM refuses in one request."""
    sent = {**KEY, "permissions": {"x": 1}, "allowed_routes": ["/a", "/b"]}
    refusals = [("permissions", 403, PERMISSIONS), ("allowed_routes", 403, ROUTES)]
    played = await play(sent, refusals, may_not_read(stored()))
    assert played.bodies == [sent, {**KEY, "allowed_routes": ["/a", "/b"]}, KEY]
    assert played.keys.calls == ["sk-1", "with the lookup key: sk-1"]


async def test_lookup_key_file_holds_none() -> None:
    """If the credential's file holds none, the client gets the refusal, without ``x-litellm-sanitizer``."""
    played = await play({**KEY, "permissions": {"x": 1}}, STRANGER[:1], may_not_read(NotLookedUp("lookup_403")))
    assert (played.status, played.mark, len(played.bodies)) == (403, None, 1)
    assert (len(played.record.lookups), played.record.decision.lookup_key) == (1, False)


@pytest.mark.parametrize("guess", [{"x": 1}, {"x": 2}], ids=["right", "wrong"])
@pytest.mark.parametrize("found", [stored(), Unknown("lookup_key_404")], ids=["found", "not found"])
async def test_lookup_key_is_no_oracle(guess: dict[str, Any], found: Stored | Unknown) -> None:
    """A caller whom LiteLLM refuses gets the first refusal, without ``x-litellm-sanitizer``, whatever it guessed."""
    sent = {**KEY, "permissions": guess}
    played = await play(sent, STRANGER, may_not_read(found))
    assert (played.status, played.content) == answer(json.dumps(sent).encode(), STRANGER)
    assert played.mark is None


@pytest.mark.parametrize(
    ("refusals", "mark"),
    [
        pytest.param(STRANGER[1:], None, id="refused for another reason"),
        pytest.param([], b'unknown; reason="lookup_403"', id="accepted"),
    ],
)
async def test_decision_is_withheld(refusals: Refusals, mark: bytes | None) -> None:
    """A refusal for another reason has no ``x-litellm-sanitizer`` either: its text may depend on the stored value."""
    played = await play({**KEY, "permissions": {"x": 1}}, refusals, may_not_read(stored()))
    assert played.mark == mark


async def test_lookup_key_is_not_used_for_those_who_may_read() -> None:
    """The lookup credential is not used if the caller's own lookup succeeds."""
    played = await play({**KEY, "spend": 1.5}, [("spend", 403, BUDGET)], Keys(with_key=stored()))
    assert played.keys.calls == ["sk-1 fresh"]
    assert not played.record.decision.lookup_key


async def test_lookup_key_in_mode_observe() -> None:
    """In observe mode the decision is reported, but not shown to a client that LiteLLM refuses."""
    keys = may_not_read(stored())
    played = await play({**KEY, "permissions": {"x": 1}}, STRANGER[:1], keys, mode="observe")
    assert played.record.decision.outcome is Outcome.OBSERVED
    assert (played.status, played.mark, len(played.bodies)) == (403, None, 1)


@pytest.mark.parametrize("path", ["/key/regenerate", "/key/sk-1/regenerate"])
async def test_regenerate(path: str) -> None:
    """Regenerating a key cuts two fields before forwarding and reordered routes after a refusal, but not ``spend``."""
    sent = {
        "key": "sk-1",
        "permissions": {"x": 1},
        "access_group_ids": ["g"],
        "allowed_routes": ["/b", "/a"],
        "spend": 1,
    }
    played = await play(sent, [("allowed_routes", 403, ROUTES)], path=path)
    assert played.bodies == [
        {"key": "sk-1", "allowed_routes": ["/b", "/a"], "spend": 1},
        {"key": "sk-1", "spend": 1},
    ]


UPDATE_GATES = [gate for gate in GATES if gate.endpoint == UPDATE]
NULL = {"budget_limits", "soft_budget", "user_id"}
"""Fields whose unchanged value is null here. Every other one has a value in `ROW` or below."""
UNCHANGED: dict[str, Any] = {
    **{gate.field: ROW.get(gate.field) for gate in UPDATE_GATES},
    **{name: [] for name in ("guardrails", "policies", "prompts")},
    "tags": ["t"],
    "allowed_passthrough_routes": ["/x"],
    "team_id": "",
    "key_alias": "",
}


@pytest.mark.parametrize("gate", UPDATE_GATES, ids=lambda gate: gate.field)
async def test_every_gate(gate: Gate) -> None:
    """Each gate cuts its unchanged member: before forwarding, or after a refusal with any of its fragments."""
    reordered = gate.field == "allowed_routes" and gate.cut is Cut.AFTER_REFUSAL
    value = ["/b", "/a"] if reordered else UNCHANGED[gate.field]
    assert value is not None or gate.field in NULL, "a column of ROW, or an entry of UNCHANGED, is missing"
    for fragment in gate.fragments:
        played = await play({**KEY, gate.field: value}, [(gate.field, gate.status, f"{{'error': '{fragment} ...'}}")])
        assert played.status == 200
        assert played.bodies[-1] == KEY
        assert (len(played.bodies) == 1) is (gate.cut is Cut.BEFORE_FORWARDING)


@given(
    members=st.dictionaries(st.sampled_from(sorted(UNCHANGED)), st.booleans()),
    refusals=st.lists(st.sampled_from([(gate.field, gate.status, gate.fragments[0]) for gate in UPDATE_GATES])),
    with_key=st.booleans(),
)
def test_only_unchanged_members_are_cut(
    members: dict[str, bool], refusals: list[tuple[str, int, str]], with_key: bool
) -> None:
    """A change always reaches LiteLLM, and each resend cuts a member, whatever is sent and whatever is refused.

    ``members`` maps each sent member to whether it is changed. With ``with_key`` only the lookup credential may read
    the key.
    """
    changed = {name for name, differs in members.items() if differs}
    sent = {**KEY, **{name: ["a change"] if name in changed else UNCHANGED[name] for name in members}}
    played = asyncio.run(play(sent, refusals, may_not_read(stored()) if with_key else None))
    bodies, decision = played.bodies, played.record.decision
    for body in bodies:
        assert body.items() <= sent.items()
        assert body.keys() >= changed | KEY.keys()
    assert all(after.keys() < before.keys() for before, after in itertools.pairwise(bodies))
    assert len(bodies) - 1 == played.record.resent <= MAX_RESENDS
    if with_key:
        assert bodies[0] == sent
    answers = [answer(json.dumps(body).encode(), refusals) for body in bodies]
    seen = answers[-1] if not decision.lookup_key or answers[-1][0] == 200 else answers[0]
    assert (played.status, played.content) == seen
    assert set(decision.fields) == sent.keys() - bodies[-1].keys()
    assert set(decision.after_refusal) == bodies[0].keys() - bodies[-1].keys()

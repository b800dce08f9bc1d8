"""LiteLLM's refusals: the text by which each gate recognises them, that they write nothing, and what the gateway does.

The gateway sends a request again without a member only if LiteLLM's refusal contains a fragment of the member's gate.
So each refusal is provoked on each release, direct. Its text has to contain the fragment, its status has to be the
gate's, and the key, as the admin reads it, has to be unchanged, the time of its last update included.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from sanitizer.sanitize.gates import GATES, UPDATE
from sanitizer.sanitize.refusal import refusal_text
from tests.litellm.actors import MODELS, OTHER_MODELS, LiteLLM, update
from tests.litellm.answers import assert_same_answer
from tests.litellm.matrix import ROUTES, WINDOWS, Columns
from tests.support.gateway import Gateway

BUDGET = "can call /key/update (max_budget/spend)"
ANY, FROM_1_92, EVER = (1, 83, 7), (1, 92, 0), (2,)
TWO = {"budget_duration": "7d", "max_budget": 2}


@dataclass(frozen=True)
class Refusal:
    """``who`` sends ``sent`` for a key on which the admin has set ``held``. Releases from ``since`` on refuse it.

    Releases from ``before`` on no longer refuse it. The text has the ``fragment`` of a gate on ``field``. ``changed``
    is a real change that is refused too.
    """

    field: str
    fragment: str
    who: str
    sent: Columns
    changed: Columns
    held: Columns | None = None
    since: tuple[int, ...] = FROM_1_92
    before: tuple[int, ...] = EVER

    def __str__(self) -> str:
        return f"{self.field}-{re.sub('[^a-zA-Z]+', '-', self.fragment)[:32].strip('-')}"

    def is_of(self, release: tuple[int, ...]) -> bool:
        return self.since <= release < self.before


def stores(fragment: str, who: str, name: str, since: tuple[int, ...] = FROM_1_92, **more: Any) -> Refusal:
    """A refusal of one member of ``object_permission``. The admin has set it, if LiteLLM allows that."""
    sent, changed = ({"object_permission": {name: [value]}} for value in ("a", "b"))
    return Refusal("object_permission", fragment, who, sent, changed, held=sent, since=since, **more)


def premium(name: str, who: str = "owner") -> Refusal:
    """A refusal of a member that needs an Enterprise licence."""
    held = {"metadata": {name: ["a"]}}
    return Refusal(name, f"Enterprise users: {name}.", who, {name: ["a"]}, {name: ["b"]}, held, ANY)


REFUSALS = (
    Refusal(
        "allowed_routes",
        "Only proxy admins can set `allowed_routes` on a key",
        "owner",
        {"allowed_routes": ROUTES[::-1]},
        {"allowed_routes": ["management_routes"]},
        {"allowed_routes": ROUTES},
        ANY,
    ),
    Refusal(
        "permissions",
        "Only proxy admins can set `permissions`",
        "owner",
        {"permissions": {}},
        {"permissions": {"get_spend_routes": True}},
    ),
    Refusal(
        "access_group_ids",
        "Access groups cannot be assigned to personal keys",
        "owner",
        {"access_group_ids": ["a"]},
        {"access_group_ids": ["b"]},
        {"access_group_ids": ["a"]},
    ),
    Refusal(
        "access_group_ids",
        "Team members cannot assign access groups",
        "member",
        {"access_group_ids": ["a"]},
        {"access_group_ids": ["b"]},
        {"access_group_ids": ["a"]},
        before=(1, 110, 0),
    ),
    Refusal(
        "access_group_ids",
        "Access groups must be assigned to the key",
        "team admin",
        {"access_group_ids": ["a"]},
        {"access_group_ids": ["b"]},
        {"access_group_ids": ["a"]},
        since=(1, 110, 0),
    ),
    Refusal("budget_limits", BUDGET, "owner", {"budget_limits": None}, {"budget_limits": [TWO]}),
    Refusal(
        "budget_limits", BUDGET, "member", {"budget_limits": WINDOWS}, {"budget_limits": []}, {"budget_limits": WINDOWS}
    ),
    Refusal("spend", BUDGET, "owner", {"spend": 0}, {"spend": 1.5}),
    Refusal("spend", BUDGET, "member", {"spend": 2.5}, {"spend": 0}, {"spend": 2.5}),
    Refusal("soft_budget", BUDGET, "owner", {"soft_budget": None}, {"soft_budget": 7}, since=(1, 105, 0)),
    Refusal(
        "user_id",
        "Non-admin users cannot remove the user_id from a key",
        "team admin",
        {"user_id": None},
        {},
    ),
    stores("Vector stores cannot be assigned to", "owner", "vector_stores"),
    stores("search_tools cannot be assigned to", "owner", "search_tools"),
    stores("MCP access groups cannot be assigned to", "owner", "mcp_access_groups", ANY),
    stores("MCP toolsets cannot be assigned to", "owner", "mcp_toolsets"),
    # later releases ignore servers that do not exist
    stores("Only globally available (allow_all_keys) MCP servers", "owner", "mcp_servers", ANY, before=FROM_1_92),
    stores("Key requests MCP servers not allowed by team", "member", "mcp_servers", ANY, before=FROM_1_92),
    stores("Key requests MCP access groups not allowed by team", "member", "mcp_access_groups", ANY),
    stores("Key requests MCP toolsets not allowed by team", "member", "mcp_toolsets", ANY),
    stores("Key requests search tools not allowed by team", "member", "search_tools"),
    Refusal(
        "metadata",
        "Only proxy admins can set `metadata.allowed_passthrough_routes` on a key",
        "owner",
        {"metadata": {"allowed_passthrough_routes": ["/a"]}},
        {"metadata": {"allowed_passthrough_routes": ["/b"]}},
        {"metadata": {"allowed_passthrough_routes": ["/a"]}},
    ),
    Refusal(
        "allowed_passthrough_routes",
        "Only proxy admins can set `allowed_passthrough_routes`",
        "owner",
        {"allowed_passthrough_routes": ["/a"]},
        {"allowed_passthrough_routes": ["/b"]},
        {"metadata": {"allowed_passthrough_routes": ["/a"]}},
    ),
    premium("allowed_passthrough_routes", "admin"),
    premium("guardrails"),
    premium("policies"),
    premium("prompts"),
    premium("tags"),
    Refusal(
        "team_id",
        "Team object not found for team change validation",
        "owner",
        {"team_id": ""},
        {},
        since=ANY,
        before=(1, 105, 0),
    ),
    Refusal("key_alias", "Unique key aliases across all keys are required", "owner", {"key_alias": ""}, {}, since=ANY),
)


@dataclass
class Stage:
    """Callers on one LiteLLM, and a gateway in front of it whose counters are read."""

    litellm: LiteLLM
    gateway: Gateway
    credentials: dict[str, str]
    new_keys: dict[str, Callable[[], str]]
    sent: int = 0
    resent: int = 0

    def key_of(self, who: str, held: Columns | None) -> str:
        """Create another key for ``who`` to edit, on which the admin sets ``held``, if LiteLLM allows that."""
        key = self.new_keys[who]()
        if held is not None:
            update(self.litellm.url, self.litellm.master_key, {"key": key, **held})
        return key

    def through(self, who: str, body: Columns) -> tuple[httpx.Response, int]:
        """The response to an update through the gateway, and the number of its resends.

        Nothing else uses the gateway. It publishes its counters together, shortly after the response.
        """
        answer = update(self.gateway.url, self.credentials[who], body)
        self.sent += 1
        deadline = time.monotonic() + 30
        while (counts := self._counts())[0] < self.sent:
            assert time.monotonic() < deadline, counts
        resent, self.resent = counts[1] - self.resent, counts[1]
        return answer, resent

    def _counts(self) -> tuple[int, int]:
        """The numbers of the gateway's decisions and resends."""
        text = self.gateway.ask_admin("/metrics").body.decode()
        decided, resent = (
            sum(
                float(count) for count in re.findall(rf"^sanitizer_{name}_total\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
            )
            for name in ("decisions", "resent")
        )
        return int(decided), int(resent)


@pytest.fixture(scope="module")
def stage(release: LiteLLM) -> Iterator[Stage]:
    owner, member, team_admin = (release.new_user() for _ in range(3))
    team = release.call(
        "/team/new",
        {
            "team_alias": f"team-{uuid.uuid4().hex[:12]}",
            "members_with_roles": [
                {"role": "user", "user_id": member.user_id},
                {"role": "admin", "user_id": team_admin.user_id},
            ],
            "team_member_permissions": ["/key/info", "/key/health", "/key/generate", "/key/update"],
            "object_permission": {"mcp_toolsets": ["of-the-team"], "search_tools": ["of-the-team"]},
        },
    )["team_id"]

    def service() -> str:
        return release.new_secret(release.call("/key/generate", {"models": MODELS, "team_id": team})["key"])

    # LiteLLM accepts an empty alias for the first key only
    update(release.url, release.master_key, {"key": release.new_key(owner), "key_alias": ""})
    with Gateway(release.url, "--shutdown-grace", "1", admin=True) as gateway:
        yield Stage(
            release,
            gateway,
            {
                "owner": owner.key,
                "member": member.key,
                "team admin": team_admin.key,
                "admin": release.master_key,
            },
            {
                "owner": lambda: release.new_key(owner),
                "member": lambda: release.new_key(member, team_id=team),
                "team admin": service,
                "admin": lambda: release.new_key(owner),
            },
        )


def said(answer: httpx.Response) -> str:
    """The text of LiteLLM's refusal, as the gateway reads it."""
    return refusal_text(b"HTTP/1.1 403 Forbidden\r\n\r\n", answer.content)


def test_every_fragment_has_its_refusal() -> None:
    """Each fragment of each gate has a refusal here, and each refusal has its gate."""
    known = {(gate.field, fragment) for gate in GATES if gate.endpoint == UPDATE for fragment in gate.fragments}
    assert {(refusal.field, refusal.fragment) for refusal in REFUSALS} == known


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_words(stage: Stage, refusal: Refusal) -> None:
    """The releases concerned refuse with the gate's fragment and status, and write nothing. In others it is missing."""
    key = stage.key_of(refusal.who, refusal.held)
    stored = stage.litellm.stored(key)
    body = {"key": key, "models": OTHER_MODELS, **refusal.sent}
    direct = update(stage.litellm.url, stage.credentials[refusal.who], body)
    if not refusal.is_of(stage.litellm.release):
        assert refusal.fragment not in said(direct)
        return
    gates = [gate for gate in GATES if (gate.endpoint, gate.field) == (UPDATE, refusal.field)]
    assert {gate.status for gate in gates if refusal.fragment in gate.fragments} == {direct.status_code}, direct.text
    assert refusal.fragment in said(direct)
    assert stage.litellm.stored(key) == stored


@pytest.mark.parametrize("refusal", [refusal for refusal in REFUSALS if refusal.changed], ids=str)
def test_real_change(stage: Stage, refusal: Refusal) -> None:
    """A real change is not sent again. The caller gets LiteLLM's refusal byte for byte, and nothing is written."""
    if not refusal.is_of(stage.litellm.release):
        return
    key = stage.key_of(refusal.who, refusal.held)
    stored = stage.litellm.stored(key)
    body = {"key": key, "models": OTHER_MODELS, **refusal.changed}
    direct = update(stage.litellm.url, stage.credentials[refusal.who], body)
    assert refusal.fragment in said(direct), direct.text
    through, resent = stage.through(refusal.who, body)
    assert_same_answer(direct, through)
    assert resent == 0
    assert stage.litellm.stored(key) == stored


@pytest.mark.parametrize("who", ["owner", "member"])
@pytest.mark.parametrize(
    ("changed", "unchanged"),
    [
        pytest.param({"spend": 9.5}, {"budget_limits": None}, id="spend"),
        pytest.param({"spend": 9.5}, {"budget_limits": [], "soft_budget": None}, id="spend-beside-two"),
        pytest.param({"budget_limits": [TWO]}, {"spend": 0}, id="windows"),
        pytest.param({"soft_budget": 7}, {"spend": 0, "budget_limits": []}, id="soft-budget"),
    ],
)
def test_mixed(stage: Stage, who: str, changed: Columns, unchanged: Columns) -> None:
    """A real change beside unchanged members with the same fragment causes one resend, whose refusal is relayed."""
    key, credential = stage.key_of(who, None), stage.credentials[who]
    direct = update(stage.litellm.url, credential, {"key": key, "models": OTHER_MODELS, **changed})
    if direct.is_success:  # this release does not guard the field
        return
    assert BUDGET in said(direct)
    stored = stage.litellm.stored(key)
    through, resent = stage.through(who, {"key": key, "models": OTHER_MODELS, **changed, **unchanged})
    assert_same_answer(direct, through)
    assert resent == 1
    assert stage.litellm.stored(key) == stored
    fields = ",".join(unchanged)
    assert through.headers["x-litellm-sanitizer"] == f'dropped; fields="{fields}"; after-refusal="{fields}"'


def test_words_in_a_value(stage: Stage) -> None:
    """If a refusal quotes a fragment from the caller's own value, the resend is refused too, and nothing is written."""
    key, credential = stage.key_of("team admin", {"spend": 2.5}), stage.credentials["team admin"]
    stored = stage.litellm.stored(key)
    refused = {"key": key, "models": OTHER_MODELS, "object_permission": {"mcp_access_groups": [BUDGET]}}
    direct = update(stage.litellm.url, credential, refused)
    assert BUDGET in said(direct)
    assert direct.status_code == 403
    assert_same_answer(direct, update(stage.litellm.url, credential, {**refused, "spend": 2.5}))
    for spend, sends in ((2.5, 1), (9.5, 0)):
        through, resent = stage.through("team admin", {**refused, "spend": spend})
        assert_same_answer(direct, through)
        assert resent == sends
    assert stage.litellm.stored(key) == stored


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_unchanged(stage: Stage, refusal: Refusal) -> None:
    """If a caller sends back what the admin has set, the update succeeds, and only the change beside it is stored."""
    if not refusal.is_of(stage.litellm.release):
        return
    key = stage.key_of(refusal.who, refusal.held)
    stored = stage.litellm.stored(key)
    if refusal.field == "object_permission" and not stored["object_permission"]:
        return  # LiteLLM does not let anyone set it
    answer, resent = stage.through(refusal.who, {"key": key, "models": OTHER_MODELS, **refusal.sent})
    assert resent == (0 if refusal.field in ("permissions", "access_group_ids") else 1)
    assert answer.status_code == 200, answer.text
    assert refusal.field in answer.headers["x-litellm-sanitizer"]
    left_out = {"models", "updated_at", "settings_updated_at", "updated_by"}
    after = stage.litellm.stored(key)
    assert after["models"] == OTHER_MODELS
    assert {name: after[name] for name in after if name not in left_out} == {
        name: stored[name] for name in stored if name not in left_out
    }


def test_administrators(stage: Stage) -> None:
    """LiteLLM does not refuse an administrator any member that a permission guards."""
    admin = stage.litellm.master_key
    for refusal in REFUSALS:
        if "Only proxy admins" in refusal.fragment or refusal.fragment == BUDGET:
            key = stage.key_of("owner", refusal.held)
            answer = update(stage.litellm.url, admin, {"key": key, **refusal.sent})
            assert refusal.fragment not in said(answer)

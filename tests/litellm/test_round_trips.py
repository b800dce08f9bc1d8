"""Whole keys sent back: read a key, change its models, and send everything that was read, on real LiteLLMs.

The rule: if LiteLLM lets a caller change the models alone, sending the whole key with other models succeeds through the
gateway. The stored key then differs only in its models and in what LiteLLM itself writes (`WRITTEN`). If LiteLLM
refuses the change alone, the response through the gateway is LiteLLM's response to the same request without the members
that the gateway cut.

The cases are the product of `CALLERS` and `STATES`, and some by alias. They are played concurrently, once per release.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import httpx
import pytest

from tests.litellm.actors import CUSTOM_ROUTES, MODELS, OTHER_MODELS, LiteLLM, bearer, client, hashed, update
from tests.litellm.conftest import before

Columns = dict[str, Any]
Release = tuple[int, ...]

FIRST: Release = (0,)
BY_ALIAS: Release = (1, 96, 0)
"""The first release in which ``key_alias`` alone names a key."""
WORKERS = 8

WRITTEN: dict[str, tuple[Release, str]] = {
    "updated_at": (FIRST, "the time of the update"),
    "settings_updated_at": (FIRST, "the same"),
    "updated_by": (FIRST, "the caller"),
    "metadata.policies": ((1, 92, 0), "an empty list, from the column of that name, which is always empty"),
}
"""What LiteLLM itself writes when it accepts an unchanged key: a column or a member of one, since when, and why."""


@dataclass(frozen=True, eq=False)
class State:
    """The members that an admin sets on a key: ``holds`` on every release, and those of ``since`` on later ones."""

    name: str
    holds: Columns
    since: tuple[tuple[Release, Columns], ...] = ()

    def members(self, release: Release) -> Columns:
        members = dict(self.holds)
        for first, more in self.since:
            if release >= first:
                members |= more
        return members


RICH = State(
    "rich",
    {
        "aliases": {"short": MODELS[0]},
        "allowed_cache_controls": ["no-cache", "no-store"],
        "allowed_routes": [*CUSTOM_ROUTES, "/key/update", "/v2/key/info"],
        "access_group_ids": ["group-a", "group-b"],
        "blocked": False,
        "budget_duration": "30d",
        "budget_limits": [
            {"budget_duration": "7d", "max_budget": 1.5},
            {"budget_duration": "30d", "max_budget": 10},
        ],
        "config": {"a": 1},
        "duration": "90d",
        "max_budget": 12.5,
        "max_parallel_requests": 7,
        "metadata": {"owner": "Zoë", "limits": {"a": [1, 0.5, None, True]}, "policies": [], "tags": []},
        "model_max_budget": {},
        "model_rpm_limit": {MODELS[0]: 10},
        "model_tpm_limit": {MODELS[0]: 1000},
        "object_permission": {"agents": ["agent-a"], "mcp_servers": [], "models": [MODELS[0]]},
        "permissions": {"get_spend_routes": True, "limits": {"a": 1, "b": [0.5, None]}},
        "router_settings": {"num_retries": 2, "timeout": 30.5},
        "rpm_limit": 100,
        "rpm_limit_type": "best_effort_throughput",
        "spend": 0.25,
        "tpm_limit": 10_000,
        "tpm_limit_type": "best_effort_throughput",
    },
    (
        ((1, 92, 0), {"budget_fallbacks": {MODELS[0]: OTHER_MODELS}}),
        ((1, 105, 0), {"soft_budget": 9.5, "tpd_limit": 100_000}),
    ),
)
VECTOR_STORES = State("vector stores", {"object_permission": {"vector_stores": ["store-a", "store-b"]}})
PASS_THROUGH = State(
    "pass-through routes", {"metadata": {"allowed_passthrough_routes": ["/my-endpoint"], "owner": "Zoë"}}
)
STATES = (
    State("bare", {}),
    RICH,
    VECTOR_STORES,
    PASS_THROUGH,
    State(
        "everything",
        RICH.holds
        | {
            "object_permission": RICH.holds["object_permission"] | VECTOR_STORES.holds["object_permission"],
            "metadata": RICH.holds["metadata"] | PASS_THROUGH.holds["metadata"],
        },
        RICH.since,
    ),
)

CALLERS = (
    ("personal key", "owner"),
    ("personal key", "owner's session"),
    ("personal key", "admin"),
    ("team key", "member"),
    ("team key", "member's session"),
    ("team key", "colleague"),
    ("team key", "team admin"),
    ("team key", "admin"),
    ("service key", "member"),
    ("service key", "member's session"),
    ("service key", "team admin"),
    ("service key", "admin"),
)
"""Kinds of key, and the callers who send one back."""
REFUSED = {("team key", "colleague"), ("team key", "team admin")}
"""Kinds of key and callers to whom LiteLLM refuses even the change of the models: it is another member's key."""


@dataclass(frozen=True, eq=False)
class Case:
    """``caller`` sends back a key of this kind in this state."""

    kind: str
    caller: str
    state: State
    by_alias: bool = False
    """Whether ``key_alias`` names the key, in place of ``key``."""

    def __str__(self) -> str:
        return f"{self.kind}, {self.caller}, {self.state.name}{' by alias' if self.by_alias else ''}"


CASES = [
    *(Case(kind, caller, state) for (kind, caller), state in product(CALLERS, STATES)),
    *(
        Case(kind, caller, state, by_alias=True)
        for (kind, caller), state in product(CALLERS, (STATES[0], RICH))
        if caller in ("owner", "member", "team admin")
    ),
]


@dataclass
class Trip:
    """The responses to the change alone direct, to the whole key direct, and to the whole key through the gateway."""

    alone: httpx.Response
    direct: httpx.Response
    through: httpx.Response
    expected: httpx.Response | None
    """The direct response without the members that the gateway cut; only if the change alone was refused."""
    before: Columns
    after: Columns

    @property
    def cut(self) -> list[str]:
        return cut_fields(self.through)


def cut_fields(answer: httpx.Response) -> list[str]:
    """The members that the gateway has cut, from its response header."""
    outcome, _, rest = answer.headers["x-litellm-sanitizer"].partition("; ")
    return rest.split('"')[1].split(",") if outcome == "dropped" else []


class Traveller:
    """Plays cases on one LiteLLM, direct and through ``gateway``."""

    def __init__(self, litellm: LiteLLM, gateway: str) -> None:
        self.litellm, self.gateway = litellm, gateway
        with ThreadPoolExecutor(WORKERS) as pool:
            self.owner, self.member, colleague, team_admin = pool.map(lambda _: litellm.new_user(), range(4))
        roles = {self.member.user_id: "user", colleague.user_id: "user", team_admin.user_id: "admin"}
        team = {
            "team_alias": f"team-{uuid.uuid4().hex[:12]}",
            "members_with_roles": [{"role": role, "user_id": user_id} for user_id, role in roles.items()],
            "team_member_permissions": ["/key/info", "/key/health", "/key/generate", "/key/update"],
        }
        self.team: str = litellm.call("/team/new", team)["team_id"]
        self.credentials = {
            "owner": self.owner.key,
            "owner's session": litellm.new_session(self.owner),
            "member": self.member.key,
            "member's session": litellm.new_session(self.member),
            "colleague": colleague.key,
            "team admin": team_admin.key,
            "admin": litellm.master_key,
        }

    def new_key(self, case: Case, alias: str) -> str:
        """A key of the case's kind in its state."""
        members: Columns = {"models": MODELS, "key_alias": alias}
        if case.kind == "personal key":
            key = self.litellm.new_key(self.owner, **members)
        elif case.kind == "team key":
            key = self.litellm.new_key(self.member, team_id=self.team, **members)
        else:
            made = self.litellm.call("/key/service-account/generate", {"team_id": self.team, **members})
            key = self.litellm.new_secret(made["key"])
        holds = case.state.members(self.litellm.release)
        if "metadata" in holds:  # LiteLLM records a service account there
            holds["metadata"] = self.litellm.stored(key)["metadata"] | holds["metadata"]
        if holds:
            self.litellm.call("/key/update", {"key": key, **holds})
        return key

    def play(self, case: Case) -> Trip:
        litellm, credential = self.litellm, self.credentials[case.caller]
        alias = f"alias-{uuid.uuid4().hex[:12]}"
        key = self.new_key(case, alias)
        name = {"key_alias": alias} if case.by_alias else {"key": hashed(key)}

        def whole(models: list[str]) -> Columns:
            with client(litellm.url) as http:
                answer = http.get("/key/info", params={"key": hashed(key)}, headers=bearer(credential))
            assert answer.status_code == 200, answer.text
            return {**answer.json()["info"], **name, "models": models}

        alone = update(litellm.url, credential, {**name, "models": ["alone"]})
        direct = update(litellm.url, credential, whole(["direct"]))
        before, body = litellm.stored(key), whole(OTHER_MODELS)
        through = update(self.gateway, credential, body)
        after, expected = litellm.stored(key), None
        if not alone.is_success:
            cut = cut_fields(through)
            expected = update(litellm.url, credential, {name: body[name] for name in body if name not in cut})
        return Trip(alone, direct, through, expected, before, after)


@pytest.fixture(scope="module")
def trips(release: LiteLLM) -> Iterator[dict[Case, Future[Trip]]]:
    """All cases, played concurrently. A test waits for its own case."""
    with before(release) as gateway, ThreadPoolExecutor(WORKERS) as pool:
        traveller = Traveller(release, gateway.url)
        yield {case: pool.submit(traveller.play, case) for case in CASES}


def without_written(columns: Columns, release: Release) -> Columns:
    """``columns`` without what LiteLLM itself writes. A member of a column is left out only if it is empty."""
    rest = dict(columns)
    for path, (since, _) in WRITTEN.items():
        name, _, member = path.partition(".")
        if release < since:
            continue
        if not member:
            rest.pop(name, None)
        elif not rest[name].get(member):
            rest[name] = {other: value for other, value in rest[name].items() if other != member}
    return rest


@pytest.mark.parametrize("case", CASES, ids=str)
def test_round_trip(release: LiteLLM, trips: dict[Case, Future[Trip]], case: Case) -> None:
    """A whole key with other models is accepted if the change alone is, and then nothing else changes."""
    trip = trips[case].result()
    before, after = (without_written(columns, release.release) for columns in (trip.before, trip.after))
    if case.by_alias and release.release < BY_ALIAS:
        assert trip.alone.status_code == 422
    else:
        assert trip.alone.is_success == ((case.kind, case.caller) not in REFUSED), trip.alone.text
    if trip.expected is None:
        assert trip.through.status_code == 200, trip.through.text
        assert after == {**before, "models": OTHER_MODELS}
        assert bool(trip.cut) or trip.direct.is_success
    else:
        assert (trip.through.status_code, trip.through.content) == (trip.expected.status_code, trip.expected.content)
        assert after == before
    assert "models" not in trip.cut


def test_most_are_refused_direct(release: LiteLLM, trips: dict[Case, Future[Trip]]) -> None:
    """From 1.92.0 on, only admins can send a whole key back direct. Each release refuses it in at least 30 cases."""
    played = {case: trip.result() for case, trip in trips.items()}
    direct = {case for case, trip in played.items() if trip.direct.is_success}
    assert {case.caller for case in direct} <= {"admin", "team admin"} or release.release < (1, 92, 0)
    refused = [case for case, trip in played.items() if trip.alone.is_success and not trip.direct.is_success]
    assert len(refused) >= 30


def test_an_object_permission_by_alias(release: LiteLLM) -> None:
    """A limit: for an alias, LiteLLM shows no object permission, so one that it refuses is not repaired."""
    with before(release) as gateway:
        owner = release.new_user()
        alias = f"alias-{uuid.uuid4().hex[:12]}"
        key = release.new_key(owner, key_alias=alias)
        release.call("/key/update", {"key": key, **VECTOR_STORES.holds})
        stored = release.stored(key)
        body = {name: stored[name] for name in ("key_alias", "object_permission")}
        direct, through = (update(url, owner.key, body) for url in (release.url, gateway.url))
        assert (direct.status_code, direct.content) == (through.status_code, through.content)
        named = update(gateway.url, owner.key, {**body, "key": key})
        assert named.status_code == 200

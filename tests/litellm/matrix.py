"""Every gate, with every caller in every case, on real LiteLLMs: the responses, the stored keys, and a rule for both.

The rule: if LiteLLM accepts a request direct, the same request through the gateway has the same status, content and
stored key, whoever the caller is. An administrator's new order, budget windows and spend, for example, are stored. If
LiteLLM refuses a request direct, the request through the gateway has the status, content and stored key of a direct
request without the unchanged members for which LiteLLM refuses it. So a request that changes nothing succeeds, unless
LiteLLM refuses the caller for another reason, and a real change gets LiteLLM's own refusal. A caller who may not read
the key gets LiteLLM's response to the request as it was sent, because the gateway can't compare. A refused request
writes nothing, not even the time of the last update.

A cell is a series of requests on one key. After a request that wrote, the admin restores the key. The first request is
direct. If it is refused, each unchanged member is sent alone, if there are several, and then the request without the
refused ones, all direct. The last request goes through the gateway. Contents are compared byte for byte, and stored
keys column by column; null and empty differ. A time or a name that LiteLLM makes for the request reads "new" (see
`FRESH`). The cases state which members are unchanged. The gateway is never asked for this.

``python -m tests.litellm.matrix`` plays all cells on the LiteLLMs of ``LITELLM_RELEASES`` and prints them in Markdown.
Its exit status is 1 if a cell breaks the rule, and 2 if there is no such LiteLLM.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Literal

import httpx

from tests.litellm.actors import MODELS, OTHER_MODELS, LiteLLM, bearer, client, hashed
from tests.litellm.conftest import on_each_release
from tests.support.gateway import Gateway

Columns = dict[str, Any]

VOLATILE = ("updated_at", "settings_updated_at")
"""Columns of a key that every update sets."""
FRESH = (*VOLATILE, "created_at", "object_permission_id", "budget_id", "key_name")
"""Columns and members, of joined rows too, that LiteLLM generates. Only whether they are kept is compared."""
_FRESH = re.compile(rf'"({"|".join(FRESH)})": ?"([^"]*)"')

ROUTES = ["/chat/completions", "/models", "/key/info"]
PRESETS = ["llm_api_routes", "info_routes"]
PERMISSIONS = {"get_spend_routes": True, "limits": {"a": 1, "b": [0.5, None]}}
WINDOWS = [{"budget_duration": "7d", "max_budget": 1.5}, {"budget_duration": "30d", "max_budget": 10}]
GROUPS = ["group-a", "group-b"]  # LiteLLM does not check whether these groups exist
STORES: Columns = {"vector_stores": ["store-a"], "agents": ["agent-a"]}
EMPTY_STORES: Columns = {"vector_stores": [], "mcp_servers": [], "mcp_access_groups": [], "mcp_toolsets": []}
PASSTHROUGH: Columns = {"allowed_passthrough_routes": ["/through"], "team": {"name": "blue", "size": 1.5}}
PREMIUM = ("allowed_passthrough_routes", "guardrails", "policies", "prompts", "tags")
"""Members that LiteLLM keeps in ``metadata``."""

HELD: Columns = {
    "models": MODELS,
    "allowed_routes": ROUTES,
    "permissions": PERMISSIONS,
    "budget_limits": WINDOWS,
    "access_group_ids": GROUPS,
    "spend": 2.5,
    "soft_budget": 7,
}
"""A key with a value in most guarded columns."""
BARE: Columns = {"models": MODELS}
"""A new key."""
CHANGED: Columns = {
    "allowed_routes": ["management_routes"],
    "permissions": {"get_spend_routes": False},
    "budget_limits": [{"budget_duration": "7d", "max_budget": 2}],
    "access_group_ids": ["group-c"],
    "spend": 9.5,
    "soft_budget": 8,
}

AS_READ = object()
"""Stands for the value that ``GET /key/info`` shows."""
OWN_ALIAS = object()
"""Stands for an alias that no other key has."""
OTHER_ALIAS = object()
"""Stands for another such alias."""
OTHER_TEAM = object()
"""Stands for a team of the key's user that the key is not in."""

BEFORE = ("allowed_routes", "permissions", "access_group_ids")
"""Fields that are cut before a request is forwarded, if they are sent exactly as they are stored."""


@dataclass(frozen=True)
class Case:
    """An update that sends ``sent`` for a key that holds ``held``. Its members ``unchanged`` change nothing.

    ``late`` are those of them that LiteLLM must refuse before they are cut, although they are in `BEFORE`. ``on`` is
    the kind of key with which the case is played.
    """

    name: str
    sent: Columns
    unchanged: tuple[str, ...] = ()
    held: Columns = field(default_factory=lambda: HELD)
    late: tuple[str, ...] = ()
    on: Literal["any", "personal", "team"] = "any"

    @property
    def changes_nothing(self) -> bool:
        return bool(self.sent) and set(self.unchanged) == set(self.sent)

    @property
    def at_once(self) -> set[str]:
        """The members that the gateway cuts before it forwards the request."""
        return set(self.unchanged) & set(BEFORE) - set(self.late)


@dataclass(frozen=True)
class Row:
    """The ``cases`` that are played with ``fields`` of ``endpoint``."""

    endpoint: str
    fields: tuple[str, ...]
    cases: tuple[Case, ...]
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.endpoint} {', '.join(self.fields)}{self.variant}"


def row(
    endpoint: str,
    name: str,
    *more: Case,
    held: Any = AS_READ,
    empty: Any = AS_READ,
    changed: Any = AS_READ,
    variant: str = "",
) -> Row:
    """The cases of one field, and ``more``. Values that are not given are those of `HELD` and `CHANGED`."""
    columns = HELD if held is AS_READ else {**HELD, name: held}
    other = "permissions" if name == "allowed_routes" else "allowed_routes"
    empty = type(columns[name])() if empty is AS_READ else empty
    return Row(
        endpoint,
        (name,),
        (
            Case("unchanged", {name: AS_READ}, (name,), columns),
            Case("still empty", {name: empty}, (name,), BARE),
            Case("emptied", {name: empty}, held=columns),
            Case("null", {name: None}, held=columns),
            Case("changed", {name: CHANGED[name] if changed is AS_READ else changed}, held=columns),
            Case("absent", {}, held=columns),
            Case("beside a change", {name: AS_READ, other: CHANGED[other]}, (name,), columns),
            *more,
        ),
        variant,
    )


def routes(endpoint: str, held: list[str] = ROUTES, variant: str = "") -> Row:
    """The cases of ``allowed_routes``, whose order only an administrator can change."""
    name = "allowed_routes"
    columns = {**HELD, name: held}
    reordered = Case("reordered", {name: held[::-1]}, (name,), columns, late=(name,))
    return row(endpoint, name, reordered, held=held, variant=variant)


def permissions(endpoint: str) -> Row:
    reordered = dict(reversed(PERMISSIONS.items()))
    return row(endpoint, "permissions", Case("reordered", {"permissions": reordered}, ("permissions",)))


def access_groups(endpoint: str) -> Row:
    name = "access_group_ids"
    more = [Case("reordered", {name: GROUPS[::-1]})]
    if endpoint == UPDATE:
        more += [
            Case("with its team", {name: AS_READ, "team_id": AS_READ}, (name,)),
            Case("to another team", {name: AS_READ, "team_id": OTHER_TEAM}),
        ]
    return row(endpoint, name, *more)


def stored_in_metadata(name: str, *more: Case) -> Row:
    """The cases of a member that LiteLLM keeps in ``metadata``, where null has no meaning."""
    held: Columns = {"models": MODELS, "metadata": {name: ["a"], "other": 1}}
    return Row(
        UPDATE,
        (name,),
        (
            Case("unchanged", {name: AS_READ}, (name,), held),
            Case("still empty", {name: []}, (name,), BARE),
            Case("still null", {name: None}, (name,), BARE),
            Case("emptied", {name: []}, held=held),
            Case("null", {name: None}, held=held),
            Case("changed", {name: ["b"]}, held=held),
            Case("beside a change", {name: AS_READ, "permissions": CHANGED["permissions"]}, (name,), held),
            Case("with its metadata", {name: AS_READ, "metadata": {name: ["a"], "more": 2}}, (name,), held),
            Case("with other metadata", {name: AS_READ, "metadata": {"more": 2}}, held=held),
            *more,
        ),
    )


def together(endpoint: str, fields: tuple[str, ...]) -> Row:
    """The cases of a client that sends several members back."""
    as_read = dict.fromkeys(fields, AS_READ)
    return Row(
        endpoint,
        fields,
        (
            Case("unchanged", as_read, fields),
            Case("still empty", as_read, fields, BARE),
            Case("beside a change", {**as_read, fields[0]: CHANGED[fields[0]]}, fields[1:]),
        ),
    )


def one_changes(fields: tuple[str, ...], changed: Columns, held: Columns, variant: str) -> Row:
    """The cases in which one of ``fields`` changes, each in turn, and the others are sent as they were read."""
    as_read = dict.fromkeys(fields, AS_READ)
    cases = [Case("unchanged", as_read, fields, held)]
    for name in fields:
        others = tuple(other for other in fields if other != name)
        cases.append(Case(f"{name} changes", {**as_read, name: changed[name]}, others, held))
    return Row(UPDATE, fields, tuple(cases), variant)


UPDATE, REGENERATE = "/key/update", ("/key/regenerate", "/key/{key}/regenerate")
_WITH_STORES: Columns = {"models": MODELS, "object_permission": STORES}
_WITH_PASSTHROUGH: Columns = {"models": MODELS, "metadata": PASSTHROUGH}
_WITH_TAGS: Columns = {"models": MODELS, "metadata": {"tags": ["a"], "prompts": ["a"]}}
_WITH_ALIAS: Columns = {"models": MODELS, "key_alias": OWN_ALIAS}
_NOBODYS: Columns = {"models": MODELS, "user_id": None}
_FULL: Columns = {**HELD, "object_permission": STORES, "metadata": PASSTHROUGH}
_BUDGET = ("spend", "budget_limits", "soft_budget")
WHOLE = (*BEFORE, *_BUDGET, "object_permission", "metadata", "policies")
TABLE = (
    routes(UPDATE),
    routes(UPDATE, PRESETS, " (presets)"),
    permissions(UPDATE),
    access_groups(UPDATE),
    row(
        UPDATE,
        "budget_limits",
        Case("reordered", {"budget_limits": WINDOWS[::-1]}),
        Case("renewed", {"budget_limits": WINDOWS}, ("budget_limits",)),
        Case("still null", {"budget_limits": None}, ("budget_limits",), BARE),
    ),
    row(UPDATE, "spend", empty=0),
    row(UPDATE, "soft_budget", empty=None),
    Row(
        UPDATE,
        ("user_id",),
        (
            Case("still null", {"user_id": None}, ("user_id",), _NOBODYS),
            Case("null", {"user_id": None}, held=BARE, on="personal"),
            Case("unchanged", {"user_id": AS_READ}, held=BARE, on="personal"),
            Case(
                "beside a change",
                {"user_id": None, "permissions": CHANGED["permissions"]},
                ("user_id",),
                _NOBODYS,
            ),
        ),
    ),
    Row(
        UPDATE,
        ("object_permission",),
        (
            Case("unchanged", {"object_permission": AS_READ}, ("object_permission",), _WITH_STORES),
            Case(
                "in part",
                {"object_permission": {"vector_stores": ["store-a"], "mcp_servers": []}},
                ("object_permission",),
                _WITH_STORES,
            ),
            Case("still empty", {"object_permission": EMPTY_STORES}, ("object_permission",), BARE),
            Case("still null", {"object_permission": None}, ("object_permission",), BARE),
            Case("emptied", {"object_permission": EMPTY_STORES}, held=_WITH_STORES),
            Case("null", {"object_permission": None}, held=_WITH_STORES),
            Case("changed", {"object_permission": {**STORES, "vector_stores": ["store-b"]}}, held=_WITH_STORES),
            Case("beside its own", {"object_permission": {**STORES, "agents": ["agent-b"]}}, held=_WITH_STORES),
            Case("set", {"object_permission": STORES}, held=BARE),
            Case("absent", {}, held=_WITH_STORES),
            Case(
                "beside a change",
                {"object_permission": AS_READ, "permissions": CHANGED["permissions"]},
                ("object_permission",),
                _WITH_STORES,
            ),
            Case(
                "with its team",
                {"object_permission": AS_READ, "team_id": AS_READ},
                ("object_permission",),
                _WITH_STORES,
            ),
            Case("to another team", {"object_permission": AS_READ, "team_id": OTHER_TEAM}, held=_WITH_STORES),
        ),
    ),
    Row(
        UPDATE,
        ("metadata",),
        (
            Case("unchanged", {"metadata": AS_READ}, ("metadata",), _WITH_PASSTHROUGH),
            Case("reordered", {"metadata": dict(reversed(PASSTHROUGH.items()))}, ("metadata",), _WITH_PASSTHROUGH),
            Case("still empty", {"metadata": {}}, ("metadata",), BARE),
            Case("emptied", {"metadata": {}}, held=_WITH_PASSTHROUGH),
            Case("null", {"metadata": None}, held=_WITH_PASSTHROUGH),
            Case("changed", {"metadata": {**PASSTHROUGH, "team": {"name": "red"}}}, held=_WITH_PASSTHROUGH),
            Case("absent", {}, held=_WITH_PASSTHROUGH),
            Case(
                "beside a change",
                {"metadata": AS_READ, "permissions": CHANGED["permissions"]},
                ("metadata",),
                _WITH_PASSTHROUGH,
            ),
        ),
    ),
    *(stored_in_metadata(name) for name in PREMIUM),
    Row(
        UPDATE,
        ("team_id",),
        (
            Case("still empty", {"team_id": ""}, ("team_id",), BARE, on="personal"),
            Case("still null", {"team_id": None}, held=BARE, on="personal"),
            Case("emptied", {"team_id": ""}, held=BARE, on="team"),
            Case("unchanged", {"team_id": AS_READ}, held=BARE, on="team"),
            Case("changed", {"team_id": OTHER_TEAM}, held=BARE),
        ),
    ),
    Row(
        UPDATE,
        ("key_alias",),
        (
            Case("still empty", {"key_alias": ""}, ("key_alias",), BARE),
            Case("still null", {"key_alias": None}, held=BARE),
            Case("emptied", {"key_alias": ""}, held=_WITH_ALIAS),
            Case("unchanged", {"key_alias": AS_READ}, held=_WITH_ALIAS),
            Case("changed", {"key_alias": OTHER_ALIAS}, held=_WITH_ALIAS),
        ),
    ),
    together(UPDATE, (*BEFORE, "budget_limits")),
    one_changes(_BUDGET, CHANGED, HELD, " (one changes)"),
    one_changes(("tags", "prompts"), {"tags": ["b"], "prompts": ["b"]}, _WITH_TAGS, " (one changes)"),
    Row(
        UPDATE,
        WHOLE,
        (
            Case("unchanged", dict.fromkeys(WHOLE, AS_READ), WHOLE, _FULL),
            Case("still empty", dict.fromkeys(WHOLE, AS_READ), WHOLE, BARE),
            Case(
                "beside a change",
                {**dict.fromkeys(WHOLE, AS_READ), "spend": CHANGED["spend"]},
                tuple(name for name in WHOLE if name != "spend"),
                _FULL,
            ),
            Case(
                "empty strings",
                {"team_id": "", "key_alias": "", "permissions": {}, "budget_limits": []},
                ("team_id", "key_alias", "permissions", "budget_limits"),
                BARE,
                on="personal",
            ),
        ),
        " (whole key)",
    ),
    *(
        made
        for endpoint in REGENERATE
        for made in (
            routes(endpoint),
            permissions(endpoint),
            access_groups(endpoint),
            together(endpoint, BEFORE),
        )
    ),
)


@dataclass(frozen=True)
class Caller:
    """A caller with a ``credential``. ``new_key`` creates a key for them to edit; ``in_team``: it is a team's key."""

    name: str
    credential: str
    new_key: Callable[[], str]
    in_team: bool = False
    other_team: str = ""


CALLERS = ("owner", "dashboard session", "team member", "team admin", "org admin", "admin", "update-only key")


def callers(litellm: LiteLLM) -> list[Caller]:
    """One caller of each kind in `CALLERS`, each with keys to edit.

    Users create their keys themselves, because on newer releases an owner may not edit a key that an admin has created.
    Team and organisation admins edit keys of the team itself, because only its owner may edit a member's key. The
    organisation admin is in no team. There is none if LiteLLM needs an Enterprise licence to create an organisation.
    """

    owner, member, team_admin, org_admin = (litellm.new_user() for _ in range(4))
    grants = ["/key/info", "/key/health", "/key/generate", "/key/update", "/key/regenerate"]
    roles = [{"role": "user", "user_id": member.user_id}, {"role": "admin", "user_id": team_admin.user_id}]
    team: Columns = {
        "team_alias": f"team-{uuid.uuid4().hex[:12]}",
        "members_with_roles": roles,
        "team_member_permissions": grants,
    }
    organization = new_organization(litellm, org_admin.user_id)
    if organization:
        team["organization_id"] = organization
    team_id = litellm.call("/team/new", team)["team_id"]
    update_only = litellm.new_key(owner)
    litellm.call("/key/update", {"key": update_only, "allowed_routes": ["/key/update"]})

    others = [{"role": "user", "user_id": user.user_id} for user in (owner, member, team_admin)]
    other_team = litellm.call("/team/new", {"team_alias": f"other-{team['team_alias']}", "members_with_roles": others})

    def personal() -> str:
        return litellm.new_key(owner)

    def members() -> str:
        return litellm.new_key(member, team_id=team_id)

    def service() -> str:
        made = litellm.call("/key/generate", {"models": MODELS, "team_id": team_id})
        return litellm.new_secret(str(made["key"]))

    made = (
        ("owner", owner.key, personal),
        ("dashboard session", litellm.new_session(owner), personal),
        ("team member", member.key, members),
        ("team admin", team_admin.key, service),
        ("org admin", org_admin.key, service),
        ("admin", litellm.master_key, personal),
        ("update-only key", update_only, personal),
    )
    return [
        Caller(name, credential, new_key, new_key is not personal, other_team["team_id"])
        for name, credential, new_key in made
        if organization or name != "org admin"
    ]


def new_organization(litellm: LiteLLM, admin: str) -> str | None:
    """Create an organisation with that admin. Return None if this needs an Enterprise licence."""
    alias = {"organization_alias": f"organization-{uuid.uuid4().hex[:12]}", "models": []}
    answer = litellm.http.post("/organization/new", json=alias, headers=bearer(litellm.master_key))
    if answer.status_code == 403 and "Organizations are only available for LiteLLM Enterprise users" in answer.text:
        return None
    assert answer.is_success, answer.text
    organization: str = answer.json()["organization_id"]
    member = {"role": "org_admin", "user_id": admin}
    litellm.call("/organization/member_add", {"organization_id": organization, "member": member})
    return organization


@dataclass(frozen=True)
class Held:
    """A key that holds the values of a case. The admin reads ``columns``; ``reads`` is whether the caller may too."""

    key: str
    columns: Columns
    reads: bool

    def holds_as(self, other: Held) -> bool:
        """Whether both hold the same values, apart from the time of the last update."""
        return {**self.columns, **dict.fromkeys(VOLATILE)} == {**other.columns, **dict.fromkeys(VOLATILE)}


@dataclass(frozen=True)
class Result:
    """A response, and the key as the admin reads it afterwards. In both, `FRESH` values are marked."""

    status: int
    body: bytes
    decision: str
    """The gateway's response header; empty for a direct response."""
    stored: Columns
    wrote: tuple[str, ...]
    """The columns whose value has changed."""
    touched: bool
    """Whether anything of the key was written, the time of its last update included."""
    reads: bool
    """Whether LiteLLM lets the caller read the key."""

    @property
    def success(self) -> bool:
        return 200 <= self.status < 300


_DECISION = re.compile(r"(\w+)(?:; fields=\"([^\"]*)\")?(?:; after-refusal=\"([^\"]*)\")?(?:; reason=\"(\w+)\")?")


@dataclass(frozen=True)
class Cell:
    release: str
    row: Row
    caller: Caller
    case: Case
    direct: Result
    without: Result
    """The direct request without the unchanged members that LiteLLM refuses, if it refuses ``direct``."""
    through: Result

    @property
    def reads(self) -> bool:
        return self.through.reads

    @property
    def repaired(self) -> bool:
        """Whether LiteLLM accepted the request only because of the gateway."""
        return self.through.success and not self.direct.success

    @property
    def answered_otherwise(self) -> bool:
        """Whether the response through the gateway differs from the direct one: another status, or another refusal."""
        if self.direct.status != self.through.status:
            return True
        return not self.through.success and self.direct.body != self.through.body

    @property
    def expected(self) -> Result:
        """The result of the direct request that the one through the gateway has to equal."""
        return self.direct if self.direct.success or not self.reads else self.without

    def broken(self) -> list[str]:
        """The ways in which the cell breaks the rule, one line each."""
        expected = self.expected
        found = []
        if self.through.status != expected.status:
            found.append(f"answered {self.through.status}, not {expected.status}: {self.through.body[:200]!r}")
        elif self.through.body != expected.body:
            found.append(f"body {self.through.body!r}, not {expected.body!r}")
        if changed := differences(self.through.stored, expected.stored):
            found.append(f"stored otherwise than it should be: {changed}")
        for how, result in (("direct", self.direct), ("without", self.without), ("through", self.through)):
            if result.touched and not result.success:
                found.append(f"{how}: refused, and yet written: {result.wrote}")
        if complaint := self.misjudged():
            found.append(f"decided {self.through.decision}, but {complaint}")
        return found

    def misjudged(self) -> str | None:
        """The reason why the gateway's response header can't be right, or None."""
        match = _DECISION.fullmatch(self.through.decision)
        if not match:
            return "it should be there"
        outcome, reason = match[1], match[4]
        fields, after = ({*(match[number] or "").split(",")} - {""} for number in (2, 3))
        guarded = {name for name, value in self.case.sent.items() if is_guarded(name, value)}
        looked_up = any(name in BEFORE and self.case.sent[name] is not None for name in guarded)
        if not guarded:
            return None if outcome == "absent" else "nothing is guarded"
        if not self.reads:
            if (outcome, reason) == ("unknown", "lookup_403"):
                return None if looked_up or not self.through.success else "there was nothing to look up for"
            if looked_up or (outcome, reason) not in (("changed", None), ("changed", "accepted")):
                return "the caller may not read the key"
            return None
        at_once, may_follow = self.case.at_once, set(self.case.unchanged) - self.case.at_once
        if fields != at_once | after:
            return f"before it is forwarded it is cut by {sorted(at_once)}"
        if outcome != ("dropped" if fields else "changed"):
            return "that is not the name for it"
        if not after <= may_follow or (after and self.direct.success):
            return f"after a refusal it can be cut by {sorted(may_follow)} at most"
        if self.repaired and not fields:
            return "something must have been cut"
        if reason == "accepted" and (looked_up or not self.through.success):
            return "it was not accepted without a comparison"
        return None


def is_guarded(name: str, value: object) -> bool:
    """Whether a member ``name`` with this ``value`` is a guarded field."""
    if name in ("team_id", "key_alias"):
        return value == ""
    if name == "user_id":
        return value is None
    return value is not None or name not in ("spend", "metadata")


def differences(one: Columns, other: Columns) -> dict[str, tuple[Any, Any]]:
    names = sorted(one.keys() | other.keys())
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def marked(text: str, held: Held) -> str:
    """``text`` about a key, in which `FRESH` values read "kept" or "new", and placeholders replace the key's names."""
    known = {found[2] for found in _FRESH.finditer(json.dumps(held.columns))}
    text = _FRESH.sub(lambda found: f'"{found[1]}":"{"kept" if found[2] in known else "new"}"', text)
    for name, value in (("key", held.key), ("hash", hashed(held.key)), ("alias", hashed(held.key)[:12])):
        text = text.replace(value, f"<{name}>")
    return text


class Table:
    """Plays cells on ``litellm``, direct and through a gateway at ``gateway``, for all callers concurrently."""

    def __init__(self, litellm: LiteLLM, gateway: str, callers: list[Caller]) -> None:
        self.litellm = litellm
        self.release = ".".join(map(str, litellm.release))
        self.callers = callers
        self._gateway = client(gateway)
        self._held: dict[tuple[str, int], Held] = {}
        self._written: set[str] = set()
        # LiteLLM accepts an empty alias for the first key only
        first = callers[0].new_key()
        with suppress(AssertionError):
            litellm.call("/key/update", {"key": first, "key_alias": ""})

    def play(self, row: Row, only: Collection[str] = CALLERS) -> list[Cell]:
        """The row's cells for the callers in ``only``, caller by caller."""
        who = [caller for caller in self.callers if caller.name in only]
        with ThreadPoolExecutor(len(who)) as pool:
            return [cell for cells in pool.map(partial(self._cells, row), who) for cell in cells]

    def _cells(self, row: Row, caller: Caller) -> list[Cell]:
        played = ("any", "team" if caller.in_team else "personal")
        return [self._cell(row, caller, case) for case in row.cases if case.on in played]

    def _cell(self, row: Row, caller: Caller, case: Case) -> Cell:
        request = partial(self._request, row, caller, case.held)
        direct = request(self.litellm.http, case.sent)
        without = direct
        if case.unchanged and not direct.success and direct.reads:
            cut = set(case.unchanged)
            if len(cut) > 1:
                alone = {name: request(self.litellm.http, {name: case.sent[name]}) for name in cut - case.at_once}
                cut -= {name for name, result in alone.items() if result.success}
            left = {name: value for name, value in case.sent.items() if name not in cut}
            without = request(self.litellm.http, left)
        return Cell(self.release, row, caller, case, direct, without, request(self._gateway, case.sent))

    def _request(self, row: Row, caller: Caller, held: Columns, http: httpx.Client, members: Columns) -> Result:
        old = self._prepare(caller, held)
        body = {name: self._value(caller, old, name, value) for name, value in members.items()}
        body["models"] = OTHER_MODELS
        if "{key}" not in row.endpoint:
            body["key"] = old.key
        path = row.endpoint.replace("{key}", hashed(old.key))
        answer = http.post(path, json=body, headers=bearer(caller.credential))
        new = self.litellm.stored(old.key)
        touched = new != old.columns
        if touched:
            self._written.add(old.key)
        before, after = (json.loads(marked(json.dumps(columns), old)) for columns in (old.columns, new))
        wrote = tuple(name for name in differences(before, after) if name not in FRESH)
        content = marked(answer.text, old).encode()
        decision = answer.headers.get("x-litellm-sanitizer", "")
        return Result(answer.status_code, content, decision, after, wrote, touched, old.reads)

    def _value(self, caller: Caller, held: Held, name: str, value: Any) -> Any:
        """The value that is sent, or set by the admin, for a value of a `Case`."""
        if value is OWN_ALIAS:
            return f"alias-{hashed(held.key)[:12]}"
        if value is OTHER_ALIAS:
            return f"other-{hashed(held.key)[:12]}"
        if value is OTHER_TEAM:
            return caller.other_team
        if value is not AS_READ:
            return value
        if name == "soft_budget":
            return (held.columns["litellm_budget_table"] or {}).get(name)
        if (name in PREMIUM and name not in held.columns) or (
            name == "policies" and held.columns["metadata"].get(name)
        ):
            return held.columns["metadata"].get(name)
        return held.columns[name]

    def _prepare(self, caller: Caller, columns: Columns) -> Held:
        """A key with these columns. The admin restores them if something has been written since.

        If the admin can't, as with an object permission that was null, another key is created.
        """
        slot = (caller.name, id(columns))
        held = self._held.get(slot)
        if held is not None and held.key in self._written:
            again = None
            with suppress(AssertionError):
                again = self._set(caller, held.key, columns)
            self._written.discard(held.key)
            held = again if again and again.holds_as(held) else None
        if held is None:
            held = self._set(caller, caller.new_key(), columns)
        self._held[slot] = held
        return held

    def _set(self, caller: Caller, key: str, columns: Columns) -> Held:
        unset = Held(key, {}, reads=False)
        body = {name: self._value(caller, unset, name, value) for name, value in columns.items()}
        self.litellm.call("/key/update", {"key": key, **body})
        answer = self.litellm.http.get("/key/info", params={"key": hashed(key)}, headers=bearer(caller.credential))
        assert answer.status_code in (200, 403), answer.text
        return Held(key, self.litellm.stored(key), reads=answer.status_code == 200)


# --- in Markdown


def markdown(cells: list[Cell]) -> Iterator[str]:
    """One table per release and endpoint, with equal lines of callers merged; then the cells that break the rule."""
    for (release, endpoint), group in groupby(cells, lambda cell: (cell.release, cell.row.endpoint)):
        of_table = list(group)
        names = list(dict.fromkeys(case.name for cell in of_table for case in cell.row.cases))
        yield f"\n## LiteLLM {release}: `{endpoint}`\n\n| field | caller | {' | '.join(names)} |"
        yield "|" + "---|" * (len(names) + 2)
        for title, of_row in groupby(of_table, lambda cell: cell.row):
            lines: dict[str, list[str]] = {}
            for caller, of_caller in groupby(of_row, lambda cell: cell.caller):
                played = list(of_caller)
                shown = {cell.case.name: show(cell) for cell in played}
                line = " | ".join(shown.get(name, "") for name in names)
                unseen = "" if all(cell.reads for cell in played) else " (may not read the key)"
                lines.setdefault(line, []).append(caller.name + unseen)
            what = ", ".join(f"`{name}`" for name in title.fields) + title.variant
            for line, who in lines.items():
                yield f"| {what} | {', '.join(who)} | {line} |"
    yield ""
    for cell in cells:
        for problem in cell.broken():
            yield f"- BROKEN: {cell.release}, `{cell.row}`, {cell.caller.name}, {cell.case.name}: {problem}"


def show(cell: Cell) -> str:
    """The status as ``direct → gateway``, or one status if the responses are equal, and the columns written."""
    direct, through = cell.direct, cell.through
    statuses = f"{direct.status} → {through.status}" if cell.answered_otherwise else str(through.status)
    if cell.repaired:
        statuses = f"**{statuses}**"
    wrote = f" {', '.join(through.wrote)}" if through.wrote else ""
    return ("✗ " if cell.broken() else "") + statuses + wrote


LEGEND = """# What the gateway changes, cell by cell

By `python -m tests.litellm.matrix`, which states the rule, on LiteLLM {releases}. A cell shows the status
that LiteLLM answers directly and, if the response through the gateway differs, its status (→); then the columns of the
key that the request through the gateway wrote. **Bold**: refused direct, done through the gateway. 403 → 403:
refused direct for the field, then for something else. ✗: breaks the rule.

Every request also sends `models`; *unchanged* sends what `/key/info` shows, *beside a change* adds another guarded
field that is changed. Regenerating gets 500 without an Enterprise licence, unless the gate comes first. Where there is
no org admin, making an organisation needs that licence as well.
"""


def play(litellm: LiteLLM, gateway: Gateway) -> list[Cell]:
    """The whole matrix on one LiteLLM, direct and through ``gateway``."""
    table = Table(litellm, gateway.url, callers(litellm))
    return [cell for row in TABLE for cell in table.play(row)]


def main() -> int:
    cells = on_each_release(play)
    if cells is None:
        return 2
    played = list(dict.fromkeys(cell.release for cell in cells))
    print(LEGEND.format(releases=", ".join(played)) + "\n".join(markdown(cells)))
    broken = sum(bool(cell.broken()) for cell in cells)
    print(f"{len(cells)} cells, {sum(cell.repaired for cell in cells)} repaired, {broken} break the rule.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""Every gate, by every caller, in every case, on real LiteLLMs: the answers, what is stored, and the rule for both.

The rule: what changes nothing and is refused direct succeeds through the gateway, unless LiteLLM refuses the caller for
another reason; everything else has the status, the body and the stored key of a direct request without its unchanged
members. A caller who may not read the key has LiteLLM's answer to the request as it is: the gateway cannot tell.

A cell is three requests on one key, which the admin puts back into its state after any that wrote: the request direct,
the same less its unchanged members direct, and the request through the gateway. Answers are compared byte for byte and
stored keys column for column, but for `VOLATILE`. What is unchanged is said here, and never asked of the gateway.

``python -m tests.litellm.matrix`` plays all of it on the LiteLLMs of ``LITELLM_RELEASES`` and prints it in Markdown;
exit status 1 if a cell breaks the rule, 2 if there is no such LiteLLM.
"""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import httpx

from tests.litellm.actors import MODELS, OTHER_MODELS, LiteLLM, bearer, client, hashed
from tests.litellm.conftest import before, releases

Columns = dict[str, Any]

VOLATILE = ("updated_at", "settings_updated_at")
"""Columns of a key that differ between two equal updates."""
_VOLATILE = re.compile(rb'"(?:%b)":"[^"]*"' % b"|".join(name.encode() for name in VOLATILE))

ROUTES = ["/chat/completions", "/models", "/key/info"]
PRESETS = ["llm_api_routes", "info_routes"]
PERMISSIONS = {"get_spend_routes": True, "limits": {"a": 1, "b": [0.5, None]}}
WINDOWS = [{"budget_duration": "7d", "max_budget": 1.5}, {"budget_duration": "30d", "max_budget": 10}]
GROUPS = ["group-a", "group-b"]  # LiteLLM does not ask whether there are such groups

HELD: Columns = {
    "models": MODELS,
    "allowed_routes": ROUTES,
    "permissions": PERMISSIONS,
    "budget_limits": WINDOWS,
    "access_group_ids": GROUPS,
}
"""A key with something in every guarded column."""
BARE: Columns = {
    "models": MODELS,
    "allowed_routes": [],
    "permissions": {},
    "budget_limits": None,
    "access_group_ids": [],
}
"""A key as it is made."""
CHANGED: Columns = {
    "allowed_routes": ["management_routes"],
    "permissions": {"get_spend_routes": False},
    "budget_limits": [{"budget_duration": "7d", "max_budget": 2}],
    "access_group_ids": ["group-c"],
}


AS_READ = object()
"""Stands for the value that ``GET /key/info`` shows."""


@dataclass(frozen=True)
class Case:
    """``sent`` to a key that holds ``held``; the members ``unchanged`` of it change nothing."""

    name: str
    sent: Columns
    unchanged: tuple[str, ...] = ()
    held: Columns = field(default_factory=lambda: HELD)

    @property
    def changes_nothing(self) -> bool:
        return bool(self.sent) and set(self.unchanged) == set(self.sent)


@dataclass(frozen=True)
class Row:
    """``fields`` of ``endpoint``, and the cases that are played with them."""

    endpoint: str
    fields: tuple[str, ...]
    cases: tuple[Case, ...]
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.endpoint} {', '.join(self.fields)}{self.variant}"


def row(endpoint: str, name: str, *more: Case, reordered: Any, same: bool, held: Any = None, variant: str = "") -> Row:
    """The cases of one field, and ``more``; ``same``: its value ``reordered`` is the same value still."""
    columns = HELD if held is None else {**HELD, name: held}
    value, other = columns[name], "permissions" if name == "allowed_routes" else "allowed_routes"
    empty: Any = type(value)()
    return Row(
        endpoint,
        (name,),
        (
            Case("unchanged", {name: AS_READ}, (name,), columns),
            Case("reordered", {name: reordered}, (name,) if same else (), columns),
            Case("still empty", {name: empty}, (name,), BARE),
            Case("emptied", {name: empty}, held=columns),
            Case("null", {name: None}, held=columns),
            Case("changed", {name: CHANGED[name]}, held=columns),
            Case("absent", {}, held=columns),
            Case("beside a change", {name: AS_READ, other: CHANGED[other]}, (name,), columns),
            *more,
        ),
        variant,
    )


def together(endpoint: str, fields: tuple[str, ...]) -> Row:
    """The cases of a client that sends the whole key back."""
    held, bare = ({name: columns[name] for name in fields} for columns in (HELD, {**BARE, "budget_limits": []}))
    others = fields[1:]
    return Row(
        endpoint,
        fields,
        (
            Case("unchanged", held, fields),
            Case("still empty", bare, fields, BARE),
            Case("beside a change", {**held, fields[0]: CHANGED[fields[0]]}, others),
        ),
    )


def reversed_object(value: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(value.items()))


UPDATE, REGENERATE = "/key/update", ("/key/regenerate", "/key/{key}/regenerate")
TABLE = (
    row(UPDATE, "allowed_routes", reordered=ROUTES[::-1], same=True),
    row(UPDATE, "allowed_routes", reordered=PRESETS[::-1], same=True, held=PRESETS, variant=" (presets)"),
    row(UPDATE, "permissions", reordered=reversed_object(PERMISSIONS), same=True),
    row(
        UPDATE,
        "budget_limits",
        Case("still null", {"budget_limits": None}, ("budget_limits",), BARE),
        reordered=WINDOWS[::-1],
        same=False,
    ),
    row(UPDATE, "access_group_ids", reordered=GROUPS[::-1], same=False),
    together(UPDATE, ("allowed_routes", "permissions", "budget_limits", "access_group_ids")),
    *(
        made
        for endpoint in REGENERATE
        for made in (
            row(endpoint, "allowed_routes", reordered=ROUTES[::-1], same=True),
            row(endpoint, "permissions", reordered=reversed_object(PERMISSIONS), same=True),
            together(endpoint, ("allowed_routes", "permissions")),
        )
    ),
)


@dataclass(frozen=True)
class Caller:
    """Someone with a ``credential``, and the ``key`` that they edit; ``reads``: LiteLLM shows them its state."""

    name: str
    credential: str
    key: str
    reads: bool


CALLERS = ("owner", "dashboard session", "team member", "team admin", "org admin", "admin", "update-only key")


def callers(litellm: LiteLLM) -> list[Caller]:
    """One of each of `CALLERS`, each with a key of their own to edit.

    Keys of people are made by themselves: newer releases refuse an owner a key that an admin made. Team and
    organisation admins edit the team's own key, for only its owner may edit a member's. The organisation admin is in
    no team. Where LiteLLM makes no organisation without an Enterprise licence, there is none.
    """

    def generate(**members: Any) -> str:
        return litellm.new_secret(str(litellm.call("/key/generate", {"models": MODELS, **members})["key"]))

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
    made = {
        "owner": (owner.key, litellm.new_key(owner)),
        "dashboard session": (litellm.new_session(owner), litellm.new_key(owner)),
        "team member": (member.key, litellm.new_key(member, team_id=team_id)),
        "team admin": (team_admin.key, generate(team_id=team_id)),
        "org admin": (org_admin.key, generate(team_id=team_id)),
        "admin": (litellm.master_key, litellm.new_key(owner)),
        "update-only key": (update_only, litellm.new_key(owner)),
    }
    if not organization:
        del made["org admin"]
    return [Caller(name, *made[name], reads=reads(litellm, *made[name])) for name in CALLERS if name in made]


def reads(litellm: LiteLLM, credential: str, key: str) -> bool:
    answer = litellm.http.get("/key/info", params={"key": hashed(key)}, headers=bearer(credential))
    assert answer.status_code in (200, 403), answer.text
    return answer.status_code == 200


def new_organization(litellm: LiteLLM, admin: str) -> str | None:
    """An organisation with that admin, or None where it takes an Enterprise licence."""
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
class Result:
    """An answer, and the key as the admin reads it afterwards, both less what is volatile."""

    status: int
    body: bytes
    decision: str
    """The gateway's response header; empty for a direct answer."""
    stored: Columns
    wrote: tuple[str, ...]
    """The columns that hold another value than before."""

    @property
    def success(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True)
class Cell:
    release: str
    row: Row
    caller: Caller
    case: Case
    direct: Result
    without: Result
    """Direct, less the members that change nothing."""
    through: Result

    @property
    def repaired(self) -> bool:
        """Whether the gateway, and nothing else, made LiteLLM take the request."""
        return self.through.success and not self.direct.success

    @property
    def answered_otherwise(self) -> bool:
        """Whether the answer through the gateway is not the direct one: another status, or another refusal."""
        if self.direct.status != self.through.status:
            return True
        return not self.through.success and self.direct.body != self.through.body

    def broken(self) -> list[str]:
        """How the cell breaks the rule, a line each."""
        case, expected = self.case, self.without if self.caller.reads else self.direct
        found = []
        if self.through.status != expected.status:
            found.append(f"answered {self.through.status}, not {expected.status}: {self.through.body[:200]!r}")
        elif self.through.body != expected.body:
            found.append(f"body {self.through.body!r}, not {expected.body!r}")
        if changed := differences(self.through.stored, expected.stored):
            found.append(f"stored otherwise than it should be: {changed}")
        if not self.through.decision.startswith(self.decision()):
            found.append(f"decided {self.through.decision}, not {self.decision()}")
        # leaving the value out is what sending it is: but for its order, and for `reset_at`, which LiteLLM sets anew
        if self.direct.success and case.changes_nothing and case.name != "reordered":
            direct, without = (without_resets(result.stored) for result in (self.direct, self.without))
            if changed := differences(direct, without):
                found.append(f"sent unchanged it is stored otherwise than left out: {changed}")
        return found

    def decision(self) -> str:
        """How the gateway's response header must begin."""
        if not self.case.sent:
            return "absent"
        if all(value is None and name != "budget_limits" for name, value in self.case.sent.items()):
            return "changed"  # LiteLLM has no such field as null, so nothing is looked up
        if not self.caller.reads:
            return 'unknown; reason="lookup_403"'
        if self.case.unchanged:
            fields = ",".join(name for name in self.case.sent if name in self.case.unchanged)
            return f'dropped; fields="{fields}"'
        return "changed"


def differences(one: Columns, other: Columns) -> dict[str, tuple[Any, Any]]:
    names = sorted(one.keys() | other.keys())
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def without_resets(stored: Columns) -> Columns:
    """``stored`` without the time at which each budget window begins anew; no windows at all are None."""
    windows = [{**window, "reset_at": None} for window in stored["budget_limits"] or ()]
    return {**stored, "budget_limits": windows or None}


class Table:
    """Plays cells on ``litellm``, direct and through a gateway at ``gateway``, the callers side by side."""

    def __init__(self, litellm: LiteLLM, gateway: str, callers: list[Caller]) -> None:
        self.litellm = litellm
        self.release = ".".join(map(str, litellm.release))
        self.callers = callers
        self._gateway = client(gateway)
        self._kept: dict[str, tuple[Columns, Columns]] = {}

    def play(self, row: Row, only: Collection[str] = CALLERS) -> list[Cell]:
        """The row's cells, caller by caller: those of the callers ``only``."""
        who = [caller for caller in self.callers if caller.name in only]
        with ThreadPoolExecutor(len(who)) as pool:
            return [cell for cells in pool.map(partial(self._cells, row), who) for cell in cells]

    def _cells(self, row: Row, caller: Caller) -> list[Cell]:
        return [self._cell(row, caller, case) for case in row.cases]

    def _cell(self, row: Row, caller: Caller, case: Case) -> Cell:
        request = partial(self._request, row, caller, case.held)
        direct = request(self.litellm.http, case.sent)
        without = direct
        if case.unchanged:
            left = {name: value for name, value in case.sent.items() if name not in case.unchanged}
            without = request(self.litellm.http, left)
        return Cell(self.release, row, caller, case, direct, without, request(self._gateway, case.sent))

    def _request(self, row: Row, caller: Caller, held: Columns, http: httpx.Client, members: Columns) -> Result:
        old = self._prepare(caller.key, held)
        body = {name: old[name] if value is AS_READ else value for name, value in members.items()}
        body["models"] = OTHER_MODELS
        if "{key}" not in row.endpoint:
            body["key"] = caller.key
        path = row.endpoint.replace("{key}", hashed(caller.key))
        answer = http.post(path, json=body, headers=bearer(caller.credential))
        new = self._stored(caller.key)
        if new != old:
            del self._kept[caller.key]
        content = _VOLATILE.sub(b"", answer.content)
        decision = answer.headers.get("x-litellm-sanitizer", "")
        return Result(answer.status_code, content, decision, new, tuple(differences(old, new)))

    def _prepare(self, key: str, held: Columns) -> Columns:
        """The key as it is stored with ``held``, which the admin sees to unless nothing has been written since."""
        kept = self._kept.get(key)
        if kept is None or kept[0] is not held:
            self.litellm.call("/key/update", {"key": key, **held})
            kept = self._kept[key] = held, self._stored(key)
        return kept[1]

    def _stored(self, key: str) -> Columns:
        return {name: value for name, value in self.litellm.stored(key).items() if name not in VOLATILE}


# --- in Markdown


def markdown(cells: list[Cell]) -> Iterator[str]:
    """The cells as one table a release and endpoint, callers with equal lines together; then what is broken."""
    for (release, endpoint), group in groupby(cells, lambda cell: (cell.release, cell.row.endpoint)):
        of_table = list(group)
        names = list(dict.fromkeys(case.name for cell in of_table for case in cell.row.cases))
        yield f"\n## LiteLLM {release}: `{endpoint}`\n\n| field | caller | {' | '.join(names)} |"
        yield "|" + "---|" * (len(names) + 2)
        for title, of_row in groupby(of_table, lambda cell: cell.row):
            lines: dict[str, list[str]] = {}
            for caller, of_caller in groupby(of_row, lambda cell: cell.caller):
                shown = {cell.case.name: show(cell) for cell in of_caller}
                line = " | ".join(shown.get(name, "") for name in names)
                lines.setdefault(line, []).append(caller.name + ("" if caller.reads else " (may not read the key)"))
            what = ", ".join(f"`{name}`" for name in title.fields) + title.variant
            for line, who in lines.items():
                yield f"| {what} | {', '.join(who)} | {line} |"
    yield ""
    for cell in cells:
        for problem in cell.broken():
            yield f"- BROKEN: {cell.release}, `{cell.row}`, {cell.caller.name}, {cell.case.name}: {problem}"


def show(cell: Cell) -> str:
    """``direct → gateway`` status, one if they are equal, and the columns that were written."""
    direct, through = cell.direct, cell.through
    statuses = f"{direct.status} → {through.status}" if cell.answered_otherwise else str(through.status)
    if cell.repaired:
        statuses = f"**{statuses}**"
    wrote = f" {', '.join(through.wrote)}" if through.wrote else ""
    return ("✗ " if cell.broken() else "") + statuses + wrote


LEGEND = """# What the gateway changes, cell by cell

By `python -m tests.litellm.matrix`, whose text says what the rule is. A cell shows the status that LiteLLM answers
directly and, where the answer is another one, the one through the gateway (→); then the columns of the key that the
request through the gateway wrote. **Bold**: refused direct, done through the gateway. 403 → 403: refused direct for the
field, then for something else. ✗: breaks the rule.

Every request also sends `models`; *unchanged* sends what `/key/info` shows, *beside a change* adds another guarded
field that is changed. Regenerating ends with 500 for want of an Enterprise licence, unless the gate comes first; where
there is no org admin, making an organisation takes that licence as well.
"""


def play(url: str) -> list[Cell]:
    """The whole matrix on one LiteLLM."""
    litellm = LiteLLM(url.rstrip("/"), os.environ["LITELLM_MASTER_KEY"])
    with before(litellm) as gateway:
        table = Table(litellm, gateway.url, callers(litellm))
        return [cell for row in TABLE for cell in table.play(row)]


def main() -> int:
    named = releases()
    if not named or "LITELLM_MASTER_KEY" not in os.environ:
        print("LITELLM_RELEASES and LITELLM_MASTER_KEY name no LiteLLM", file=sys.stderr)
        return 2
    try:
        with ThreadPoolExecutor(len(named)) as pool:
            cells = [cell for of_release in pool.map(play, named.values()) for cell in of_release]
    except httpx.ConnectError as error:
        print(f"{error.request.url}: {error}", file=sys.stderr)
        return 2
    print(LEGEND + "\n".join(markdown(cells)))
    broken = sum(bool(cell.broken()) for cell in cells)
    print(f"{len(cells)} cells, {sum(cell.repaired for cell in cells)} repaired, {broken} break the rule.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

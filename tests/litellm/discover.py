"""Finds the fields that a LiteLLM refuses because they are present, on any release, and fields unknown so far too.

Each member of the release's own ``UpdateKeyRequest`` (``/openapi.json``) that ``GET /key/info`` shows, as a column or
elsewhere, is sent back as it is shown, together with other models. This is done for a new key, and for a key on which
an admin has set the member. The member is *presence-gated* for a caller if LiteLLM accepts the other models alone, but
not together with the member.

``python -m tests.litellm.discover`` does this on the LiteLLMs of ``LITELLM_RELEASES``, which must be for tests, because
it creates users, teams and keys on them. It prints a Markdown table of the presence-gated members. Its exit status is 1
if one of them is neither accepted through the gateway nor in `KNOWN`, and 2 if there is no such LiteLLM.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import httpx

from tests.litellm.actors import CUSTOM_ROUTES, MODELS, OTHER_MODELS, LiteLLM, bearer, hashed, update
from tests.litellm.conftest import on_each_release

Columns = dict[str, Any]

_IN_METADATA = "Enterprise at top level; read from `metadata`, where it can be sent back"
KNOWN: dict[str, str] = {
    "denied_passthrough_routes": _IN_METADATA,
    "disable_global_guardrails": _IN_METADATA,
}
"""Presence-gated members that the gateway does not repair, and why."""

NAMES = ("key", "models")
"""Members that every request has."""

ELSEWHERE: dict[str, Callable[[Columns], Any]] = {
    "soft_budget": lambda info: (info["litellm_budget_table"] or {}).get("soft_budget"),
    "duration": lambda info: None if info["expires"] is None else "30d",
}
"""Where ``/key/info`` shows a member that is neither a column of the key nor in its metadata."""

VALUES: Columns = {
    "access_group_ids": ["group-a", "group-b"],
    "allowed_passthrough_routes": ["/my-endpoint"],
    "allowed_routes": [*CUSTOM_ROUTES, "/key/update"],
    "allowed_vector_store_indexes": [{"index_name": "index-a", "index_permissions": ["read"]}],
    "budget_duration": "30d",
    "budget_fallbacks": {MODELS[0]: OTHER_MODELS},
    "budget_limits": [{"budget_duration": "7d", "max_budget": 1.5}],
    "duration": "30d",
    "metadata": {"owner": "Zoë", "allowed_passthrough_routes": ["/my-endpoint"]},
    "model_max_budget": {MODELS[0]: {"budget_limit": 1.0, "time_period": "30d"}},
    "model_rpm_limit": {MODELS[0]: 10},
    "model_tpm_limit": {MODELS[0]: 1000},
    "object_permission": {
        "agents": ["agent-a"],
        "models": MODELS,
        "search_tools": ["search-a"],
        "vector_stores": ["store-a"],
    },
    "permissions": {"get_spend_routes": True},
    "router_settings": {"num_retries": 2},
    "rpm_limit_type": "best_effort_throughput",
    "tpm_limit_type": "best_effort_throughput",
}
"""The values that an admin sets. For other members it is the `example` of the schema."""
IN_METADATA = {
    "allowed_passthrough_routes",
    "denied_passthrough_routes",
    "disable_global_guardrails",
    "guardrails",
    "policies",
    "prompts",
    "tags",
}
"""Members that an admin sets in ``metadata``, because at top level they need an Enterprise licence."""


TOGETHER: tuple[Columns, ...] = (
    {"auto_rotate": True, "rotation_interval": "30d"},
    {"temp_budget_increase": 2.5, "temp_budget_expiry": "2099-01-01T00:00:00Z"},
)
"""Members that can only be set together."""


def example(schema: Columns) -> Any:
    """A value of the schema's first type."""
    schema = next((part for part in schema.get("anyOf", ()) if part.get("type") != "null"), schema)
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "array":
        return [example(schema.get("items", {"type": "string"}))]
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return {"a": example(values) if isinstance(values, dict) else "b"}
    return {"integer": 7, "number": 7.5, "boolean": True}.get(schema.get("type", ""), "a")


CALLERS = ("owner", "member", "team admin")
STATES = ("bare", "set by an admin")


@dataclass(frozen=True)
class Cell:
    """One member, sent back by one caller, and the statuses of up to three requests.

    ``sent`` is that of the direct request with the member, ``omitted`` that of the direct request without it, and
    ``through`` that of the request with the member through the gateway. All are None if the member is not shown or
    could not be set. If the first request is accepted, the others are not sent.
    """

    release: str
    member: str
    state: str
    caller: str
    omitted: int | None = None
    sent: int | None = None
    through: int | None = None
    words: str = ""
    """The text of the refusal, or the reason why nothing was sent."""

    @property
    def gated(self) -> bool:
        """Whether LiteLLM refuses the member because it is present."""
        return self.omitted == 200 and self.sent != 200

    @property
    def repaired(self) -> bool:
        return self.gated and self.through == 200

    @property
    def unexplained(self) -> bool:
        """Whether the member is gated, is refused through the gateway too, and is not in `KNOWN`."""
        return self.gated and not self.repaired and self.member not in KNOWN


class Discovery:
    """Sends members to one LiteLLM, direct and through ``gateway``."""

    def __init__(self, litellm: LiteLLM, gateway: str) -> None:
        self.litellm, self.gateway = litellm, gateway
        self.release = ".".join(map(str, litellm.release))
        self.schema: Columns = litellm.http.get("/openapi.json").raise_for_status().json()["components"]["schemas"]
        self.owner, self.member, team_admin = (litellm.new_user() for _ in range(3))
        team = {
            "members_with_roles": [
                {"role": "user", "user_id": self.member.user_id},
                {"role": "admin", "user_id": team_admin.user_id},
            ],
            "team_member_permissions": ["/key/info", "/key/health", "/key/generate", "/key/update"],
        }
        self.team: str = litellm.call("/team/new", team)["team_id"]
        budget: str = litellm.call("/budget/new", {"max_budget": 100})["budget_id"]
        self.values = {**VALUES, "budget_id": budget, "end_user_budget_id": budget}
        self.credentials = dict(zip(CALLERS, (self.owner.key, self.member.key, team_admin.key), strict=True))

    @property
    def members(self) -> list[str]:
        """All members that a key update may have, in the order of the schema."""
        return [name for name in self.schema["UpdateKeyRequest"]["properties"] if name not in NAMES]

    def ask(self, members: Collection[str] | None = None, callers: Collection[str] = CALLERS) -> list[Cell]:
        """A cell for each of ``members`` (None: all), each state and each of ``callers``."""
        pairs = [(member, caller) for member in members or self.members for caller in callers]
        with ThreadPoolExecutor(8) as pool:
            return [cell for cells in pool.map(lambda pair: list(self._cells(*pair)), pairs) for cell in cells]

    def _cells(self, member: str, caller: str) -> Iterator[Cell]:
        key = self._new_key(caller)
        for state in STATES:
            cell = partial(Cell, self.release, member, state, caller)
            if state != "bare" and (refusal := self._set(key, member)):
                yield cell(words=f"not set: {refusal}")
                continue
            shown = self._shown(key, member, self.credentials[caller])
            if shown is None:
                yield cell(words="not shown")
                continue
            body: Columns = {"key": hashed(key), "models": OTHER_MODELS}
            ask = partial(update, key=self.credentials[caller])
            sent = ask(self.litellm.url, body={**body, **shown})
            if sent.is_success:
                yield cell(sent=sent.status_code)
                continue
            omitted = ask(self.litellm.url, body=body)
            through = ask(self.gateway, body={**body, **shown})
            yield cell(omitted.status_code, sent.status_code, through.status_code, words(sent))

    def _new_key(self, caller: str) -> str:
        """A key that the caller may edit: a personal one, a team's, or a team's service key."""
        if caller == "owner":
            return self.litellm.new_key(self.owner)
        if caller == "member":
            return self.litellm.new_key(self.member, team_id=self.team)
        made = self.litellm.call("/key/generate", {"models": MODELS, "team_id": self.team})
        return self.litellm.new_secret(made["key"])

    def _set(self, key: str, member: str) -> str | None:
        """Set the member as an admin. Return the reason if it could not be set, otherwise None."""
        if member in ("user_id", "team_id"):
            return "it says whose key it is"
        schema = self.schema["UpdateKeyRequest"]["properties"][member]
        value = f"alias-{hashed(key)[:12]}" if member == "key_alias" else self.values.get(member, example(schema))
        body = next((members for members in TOGETHER if member in members), {member: value})
        if member in IN_METADATA:
            body = {"metadata": body}
        answer = update(self.litellm.url, self.litellm.master_key, {"key": key, **body})
        return None if answer.is_success else words(answer)

    def _shown(self, key: str, member: str, credential: str) -> Columns | None:
        """The member as LiteLLM shows it to the caller; None if it does not."""
        answer = self.litellm.http.get("/key/info", params={"key": hashed(key)}, headers=bearer(credential))
        if not answer.is_success:
            return None
        info: Columns = answer.json()["info"]
        metadata = info["metadata"] or {}
        if member in metadata:
            names = next((members for members in TOGETHER if member in members), {member: None})
            return {name: metadata[name] for name in names}
        if member in ELSEWHERE:
            return {member: ELSEWHERE[member](info)}
        return {member: info[member]} if member in info else None


WORDS = 120
"""Characters of a refusal that the table shows."""
_NAMES = re.compile(r"user-[0-9a-f]{12}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|sk-[\w-]+")
"""Names of users, teams and keys, which differ from run to run."""


def words(answer: httpx.Response) -> str:
    """The text of LiteLLM's refusal, in one line for a table."""
    try:
        value = answer.json()
        said = value["error"]["message"] if "error" in value else value["detail"]
        text = "; ".join(item["msg"] for item in said) if isinstance(said, list) else str(said)
    except (ValueError, KeyError, TypeError):
        text = answer.text
    text = _NAMES.sub("...", text.replace("|", "/"))
    return " ".join(text.split())[:WORDS]


def markdown(cells: list[Cell]) -> Iterator[str]:
    """The presence-gated members, with equal lines of callers merged; then the members that could not be sent."""
    for release, group in groupby(cells, lambda cell: cell.release):
        of_release = list(group)
        yield f"\n## LiteLLM {release}\n"
        yield "| member | key | caller | omitted | sent back | through the gateway | words |"
        yield "|---|---|---|---|---|---|---|"
        lines: dict[tuple[object, ...], list[str]] = {}
        for cell in of_release:
            if cell.gated:
                through = f"**{cell.through}**" if cell.repaired else f"{cell.through} {KNOWN.get(cell.member, '✗')}"
                line = cell.member, cell.state, cell.omitted, cell.sent, through, cell.words
                lines.setdefault(line, []).append(cell.caller)
        for (member, state, omitted, sent, repaired, text), callers in lines.items():
            yield f"| `{member}` | {state} | {', '.join(callers)} | {omitted} | {sent} | {repaired} | {text} |"
        asked = {cell.member for cell in of_release if cell.sent is not None}
        free = sorted(asked - {cell.member for cell in of_release if cell.gated})
        yield f"\nSent back without refusal: {', '.join(f'`{name}`' for name in free)}.\n"
        rest = {(cell.member, cell.words) for cell in of_release if cell.sent is None and cell.state != "bare"}
        yield from (f"- `{member}` {why}" for member, why in sorted(rest))
        barred = sorted({cell.caller for cell in of_release if cell.omitted not in (200, None)})
        if barred:
            yield f"\nRefused even other models alone: {', '.join(barred)}."


def main() -> int:
    cells = on_each_release(lambda litellm, gateway: Discovery(litellm, gateway.url).ask())
    if cells is None:
        return 2
    print("# Members of a key that LiteLLM refuses because they are present")
    print("\n".join(markdown(cells)))
    unexplained = sorted({(cell.release, cell.member) for cell in cells if cell.unexplained})
    repaired = sum(cell.repaired for cell in cells)
    print(
        f"\n{len(cells)} cells, {sum(cell.gated for cell in cells)} refused on presence, {repaired} of them repaired."
    )
    for release, member in unexplained:
        print(f"- NEW: LiteLLM {release} refuses `{member}` because it is present, through the gateway too.")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())

"""BerriAI/litellm#26555 on a real LiteLLM: fields that are refused because they are present, and real changes.

The rule behind every test here: ``allowed_routes`` exactly as stored are cut for every caller. A value that is
unchanged in meaning, such as a list in another order, is cut if LiteLLM has refused it, and is stored if LiteLLM
accepts it. A changed value has LiteLLM's own response.
"""

from __future__ import annotations

import re
import subprocess
import time
from typing import Any

import pytest

from tests.litellm.actors import (
    CUSTOM_ROUTES,
    MODELS,
    OTHER_MODELS,
    ROUTES,
    LiteLLM,
    User,
    bearer,
    client,
    hashed,
    update,
)
from tests.litellm.answers import assert_same_answer, outcome
from tests.litellm.conftest import before, everywhere
from tests.support.gateway import ROOT

DROPPED = 'dropped; fields="allowed_routes"'


def differences(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_commands_of_the_readme(release: LiteLLM) -> None:
    """The commands in README.md create a user and a key. The edit fails direct, and succeeds through the gateway."""
    (commands,) = re.findall(r"^```sh\n(post\(\).*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    with before(release) as gateway:
        ours = {
            "http://127.0.0.1:4000": release.url,
            "http://127.0.0.1:4001": gateway.url,
            "sk-1234": release.master_key,
        }
        for printed, own in ours.items():
            assert printed in commands
            commands = commands.replace(printed, own)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands], capture_output=True, text=True, timeout=120, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^HTTP/1\.1 (\d+)", done.stdout, re.MULTILINE) == ["403", "200"]
    assert "Only proxy admins can set" in done.stdout
    assert 'x-litellm-sanitizer: dropped; fields="allowed_routes,permissions"' in done.stdout


@everywhere
@pytest.mark.parametrize("spelling", ["raw", "hash"])
@pytest.mark.parametrize("key_type", ["llm_api", "read_only", "management", "custom", "default"])
def test_resent_unchanged(
    litellm: LiteLLM, gateway: str, owner: User, caller: str, key_type: str, spelling: str
) -> None:
    """An update of the models with unchanged routes succeeds through the gateway, and changes nothing else.

    Direct, it is refused on the releases that have the bug.
    """
    key = litellm.new_key(owner, key_type)
    name = key if spelling == "raw" else hashed(key)
    body = {"key": name, "models": OTHER_MODELS, "allowed_routes": ROUTES[key_type]}
    stored = litellm.stored(key)

    direct = update(litellm.url, caller, {**body, "models": ["direct"]})
    if litellm.refuses_unchanged(key_type):
        assert direct.status_code == 403
        assert "Only proxy admins can set `allowed_routes` on a key." in direct.text
        assert litellm.stored(key) == stored
    else:
        assert direct.status_code == 200

    through = update(gateway, caller, body)
    assert through.status_code == 200, through.text
    assert through.headers["x-litellm-sanitizer"] == DROPPED
    after = litellm.stored(key)
    assert after["models"] == OTHER_MODELS
    assert after["allowed_routes"] == ROUTES[key_type]
    assert differences(stored, after) <= {"models", "updated_at", "updated_by", "settings_updated_at"}


@everywhere
def test_what_the_dashboard_sends(litellm: LiteLLM, gateway: str, owner: User, session: str) -> None:
    """The body with which the dashboard of 1.83.13 saves a key has the same result as that body without its routes."""
    one, two = litellm.new_key(owner, "llm_api"), litellm.new_key(owner, "llm_api")

    def body(key: str) -> dict[str, object]:
        object_permission: dict[str, list[str]] = {
            "mcp_servers": [],
            "mcp_access_groups": [],
            "mcp_toolsets": [],
            "agents": [],
            "agent_access_groups": [],
        }
        return {
            "key_alias": f"alias-{hashed(key)[:12]}",
            "models": OTHER_MODELS,
            "allowed_routes": ["llm_api_routes"],
            "max_budget": None,
            "budget_duration": None,
            "tpm_limit": None,
            "tpm_limit_type": None,
            "rpm_limit": None,
            "rpm_limit_type": None,
            "max_parallel_requests": None,
            "disable_global_guardrails": False,
            "access_group_ids": [],
            "team_id": None,
            "metadata": {},
            "duration": None,
            "token": hashed(key),
            "disabled_callbacks": [],
            "auto_rotate": False,
            "rotation_interval": None,
            "key": hashed(key),
            "object_permission": object_permission,
        }

    without = body(one)
    del without["allowed_routes"]
    direct, through = update(litellm.url, session, without), update(gateway, session, body(two))
    assert through.status_code == direct.status_code
    assert through.headers["x-litellm-sanitizer"] == 'dropped; fields="allowed_routes,access_group_ids"'
    assert litellm.stored(two)["models"] == litellm.stored(one)["models"]
    if litellm.release < (1, 91, 5):  # later releases refuse `max_budget` too because it is present
        assert update(litellm.url, session, body(two)).status_code == 403
        assert through.status_code == 200
        assert litellm.stored(two)["models"] == OTHER_MODELS


@everywhere
def test_reordered(litellm: LiteLLM, gateway: str, owner: User, caller: str) -> None:
    """LiteLLM refuses an owner's routes in another order. The gateway then cuts them, and the models are stored."""
    key = litellm.new_key(owner, "custom")
    body = {"key": key, "models": OTHER_MODELS, "allowed_routes": CUSTOM_ROUTES[::-1]}
    stored = litellm.stored(key)
    refused = update(litellm.url, caller, body).status_code == 403
    assert refused is (litellm.release >= (1, 83, 7))
    if not refused:
        return
    assert litellm.stored(key) == stored
    through = update(gateway, caller, body)
    expected = f'{DROPPED}; after-refusal="allowed_routes"'
    assert (through.status_code, through.headers["x-litellm-sanitizer"]) == (200, expected)
    after = litellm.stored(key)
    assert (after["models"], after["allowed_routes"]) == (OTHER_MODELS, CUSTOM_ROUTES)


def test_reordered_by_an_admin(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """An admin's routes in another order reach LiteLLM, which stores them."""
    key = litellm.new_key(owner, "custom")
    body = {"key": key, "models": OTHER_MODELS, "allowed_routes": CUSTOM_ROUTES[::-1]}
    answer = update(gateway, litellm.master_key, body)
    assert (answer.status_code, answer.headers["x-litellm-sanitizer"]) == (200, "changed")
    after = litellm.stored(key)
    assert (after["models"], after["allowed_routes"]) == (OTHER_MODELS, CUSTOM_ROUTES[::-1])


def test_spend_reset_by_an_admin(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """An admin's spend, new or repeated, is accepted without a lookup. An owner's unchanged spend is cut if refused."""
    key = litellm.new_key(owner)
    for spend in (2.5, 2.5, 0):
        answer = update(gateway, litellm.master_key, {"key": key, "spend": spend})
        assert (answer.status_code, answer.headers["x-litellm-sanitizer"]) == (200, 'changed; reason="accepted"')
        assert litellm.stored(key)["spend"] == spend
    answer = update(gateway, owner.key, {"key": key, "models": OTHER_MODELS, "spend": 0})
    assert answer.status_code == 200
    refused = litellm.release >= (1, 91, 5)
    expected = 'dropped; fields="spend"; after-refusal="spend"' if refused else 'changed; reason="accepted"'
    assert answer.headers["x-litellm-sanitizer"] == expected
    assert (litellm.stored(key)["models"], litellm.stored(key)["spend"]) == (OTHER_MODELS, 0)


def test_windows_renewed_by_an_admin(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """Budget windows that an admin sends again restart through the gateway if they do so direct.

    A window of one second restarts soon enough for the test to see it.
    """
    key = litellm.new_key(owner)
    windows = [{"budget_duration": "1s", "max_budget": 5}]

    def renewed(url: str) -> bool:
        update(litellm.url, litellm.master_key, {"key": key, "budget_limits": windows}).raise_for_status()
        before = litellm.stored(key)["budget_limits"]
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            update(url, litellm.master_key, {"key": key, "budget_limits": windows}).raise_for_status()
            if litellm.stored(key)["budget_limits"] != before:
                return True
        return False

    assert renewed(gateway) is renewed(litellm.url)


@pytest.mark.parametrize("key_type", ["llm_api", "custom"])
@pytest.mark.parametrize(
    "routes",
    [
        pytest.param(["management_routes"], id="other"),
        pytest.param(["llm_api_routes", "/key/update"], id="more"),
        pytest.param(CUSTOM_ROUTES[:-1], id="fewer"),
        pytest.param([], id="empty"),
        pytest.param(None, id="null"),
        pytest.param("llm_api_routes", id="string"),
        pytest.param([1], id="number"),
        pytest.param([["llm_api_routes"]], id="nested"),
        pytest.param({"llm_api_routes": True}, id="object"),
    ],
)
def test_real_change(litellm: LiteLLM, gateway: str, owner: User, caller: str, key_type: str, routes: object) -> None:
    """A non-admin's real change has LiteLLM's own response byte for byte, and the same stored values as direct."""
    one, two = litellm.new_key(owner, key_type), litellm.new_key(owner, key_type)
    body = {"models": OTHER_MODELS, "allowed_routes": routes}
    direct = update(litellm.url, caller, {**body, "key": one})
    through = update(gateway, caller, {**body, "key": two})
    assert outcome(through) == "changed"
    if direct.is_success:  # up to 1.91.5, `[]` is accepted (a hole in LiteLLM, which the gateway does not close)
        assert through.status_code == direct.status_code
    else:
        assert_same_answer(direct, through)
    expected, actual = litellm.stored(one), litellm.stored(two)
    assert (actual["models"], actual["allowed_routes"]) == (expected["models"], expected["allowed_routes"])


@everywhere
def test_change_by_an_admin(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """An admin's change is stored, and the models beside it too."""
    key = litellm.new_key(owner, "llm_api")
    body = {"key": key, "models": OTHER_MODELS, "allowed_routes": CUSTOM_ROUTES}
    answer = update(gateway, litellm.master_key, body)
    assert (answer.status_code, outcome(answer)) == (200, "changed")
    after = litellm.stored(key)
    assert (after["models"], after["allowed_routes"]) == (OTHER_MODELS, CUSTOM_ROUTES)


@everywhere
def test_there_and_back_again(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """A -> B -> A in quick succession ends at A: no write is compared with a value that is no longer stored."""
    key = litellm.new_key(owner, "llm_api")
    for _ in range(5):
        for routes in (CUSTOM_ROUTES, ["llm_api_routes"]):
            answer = update(gateway, litellm.master_key, {"key": key, "allowed_routes": routes})
            assert (answer.status_code, outcome(answer)) == (200, "changed")
            assert litellm.stored(key)["allowed_routes"] == routes


@everywhere
@pytest.mark.parametrize(
    "members",
    [
        pytest.param({}, id="absent"),
        pytest.param({"key": None}, id="null"),
        pytest.param({"key": ""}, id="empty"),
        pytest.param({"key": 1}, id="number"),
        pytest.param({"key": "sk-no-such-key"}, id="unknown"),
    ],
)
def test_no_key_named(litellm: LiteLLM, gateway: str, owner: User, caller: str, members: dict[str, object]) -> None:
    """Without an existing key, nothing is compared, in particular not with the caller's own key. LiteLLM responds."""
    body = {"models": OTHER_MODELS, "allowed_routes": [], **members}
    stored = litellm.stored(caller)
    direct, through = update(litellm.url, caller, body), update(gateway, caller, body)
    assert_same_answer(direct, through)
    assert outcome(through) == "unknown"
    assert litellm.stored(caller) == stored


@everywhere
def test_ordinary_update(litellm: LiteLLM, gateway: str, owner: User, caller: str) -> None:
    """An update without guarded fields is accepted, and the outcome is ``absent``."""
    key = litellm.new_key(owner, "llm_api")
    answer = update(gateway, caller, {"key": key, "models": OTHER_MODELS})
    assert (answer.status_code, outcome(answer)) == (200, "absent")
    assert litellm.stored(key)["models"] == OTHER_MODELS


@everywhere
@pytest.mark.parametrize("routes", [["llm_api_routes"], ["info_routes"], ["/key/update"]], ids=lambda routes: routes[0])
def test_a_key_that_may_not_ask(litellm: LiteLLM, gateway: str, owner: User, routes: list[str]) -> None:
    """A caller who may not read the key, or may not update it, gets LiteLLM's own response."""
    key, calling = litellm.new_key(owner, "llm_api"), litellm.new_key(owner)
    litellm.call("/key/update", {"key": calling, "allowed_routes": routes})
    body = {"key": key, "models": OTHER_MODELS, "allowed_routes": ["llm_api_routes"]}
    direct, through = update(litellm.url, calling, body), update(gateway, calling, body)
    # if the caller may read but not update, the field is cut, and the update is refused
    assert outcome(through) == ("dropped" if routes == ["info_routes"] else "unknown")
    if direct.is_success:  # from 1.101.0 on, LiteLLM accepts it from a key limited to `/key/update`
        assert (routes, through.status_code) == (["/key/update"], direct.status_code)
    else:
        assert_same_answer(direct, through)


@everywhere
@pytest.mark.parametrize("who", ["nobody", "stranger"])
def test_other_peoples_keys(litellm: LiteLLM, gateway: str, owner: User, who: str) -> None:
    """A caller who may not read a key learns nothing about it by guessing its routes."""
    key = litellm.new_key(owner, "llm_api")
    calling = "sk-not-a-key" if who == "nobody" else litellm.new_user().key
    for routes in (["llm_api_routes"], ["info_routes"]):
        body = {"key": key, "models": OTHER_MODELS, "allowed_routes": routes}
        direct, through = update(litellm.url, calling, body), update(gateway, calling, body)
        assert_same_answer(direct, through)
        assert outcome(through) == "unknown"
        assert litellm.stored(key)["models"] == MODELS


@everywhere
@pytest.mark.parametrize("may", [("/key/generate", "/key/update"), ("/key/generate",)], ids=["may", "may-not"])
def test_team_member(litellm: LiteLLM, gateway: str, may: tuple[str, ...]) -> None:
    """An update of a team's key has the result of one without the routes, whether or not members may edit."""
    member, colleague = litellm.new_user(), litellm.new_user()
    team = litellm.new_team(member, colleague, may=may)
    one, two = (litellm.new_key(member, "llm_api", team_id=team) for _ in range(2))
    without = {"models": OTHER_MODELS}
    body: dict[str, object] = {**without, "allowed_routes": ["llm_api_routes"]}
    if litellm.refuses_unchanged("llm_api"):
        assert update(litellm.url, member.key, {**body, "key": two}).status_code == 403
    for caller in (colleague, member):
        direct = update(litellm.url, caller.key, {**without, "key": one})
        through = update(gateway, caller.key, {**body, "key": two})
        assert through.headers["x-litellm-sanitizer"] == DROPPED  # team members read each other's keys
        assert through.status_code == direct.status_code
        expected, actual = litellm.stored(one), litellm.stored(two)
        assert (actual["models"], actual["allowed_routes"]) == (expected["models"], ["llm_api_routes"])
    assert through.status_code == (200 if "/key/update" in may else 401)


@everywhere
def test_every_other_byte_survives(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """Number spellings, escapes and white space beside the field are stored as from a direct request without it."""
    one, two = litellm.new_key(owner, "llm_api"), litellm.new_key(owner, "llm_api")
    metadata = r'{"a": 1e2, "b": 0.10, "c": 12345678901234567, "d": "\u00e9\ud83d\ude00", "e": [1, true]}'
    without = f'{{ "metadata" : {metadata},\n "key":"{one}"}}'
    body = f'{{ "metadata" : {metadata},\n "allowed\\u005froutes":["llm_api_routes"] , "key":"{two}"}}'
    headers = {**bearer(owner.key), "Content-Type": "application/json"}
    with client(litellm.url) as http:
        assert http.post("/key/update", content=without, headers=headers).status_code == 200
    with client(gateway) as http:
        answer = http.post("/key/update", content=body, headers=headers)
    assert (answer.status_code, answer.headers.get("x-litellm-sanitizer")) == (200, DROPPED)
    assert litellm.stored(two)["metadata"] == litellm.stored(one)["metadata"]
    assert litellm.stored(two)["metadata"]["a"] == 100

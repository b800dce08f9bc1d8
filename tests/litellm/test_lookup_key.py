"""The lookup credential in front of each LiteLLM: which callers it helps, and what strangers can learn through it.

The credential has the fewest rights that suffice: it is a key of a proxy admin viewer, limited to ``/key/info``.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sanitizer.sanitize.gates import GATES, UPDATE
from tests.litellm.actors import CUSTOM_ROUTES, OTHER_MODELS, LiteLLM, User, bearer, hashed, update
from tests.litellm.answers import assert_same_answer
from tests.litellm.conftest import before
from tests.support.gateway import Gateway


@pytest.fixture(scope="module")
def owner(release: LiteLLM) -> User:
    return release.new_user()


@pytest.fixture(scope="module")
def limited(release: LiteLLM, owner: User) -> str:
    """A key with which its user may update keys, and nothing else."""
    return release.new_secret(
        release.call("/key/generate", {"user_id": owner.user_id, "allowed_routes": ["/key/update"]})["key"]
    )


@pytest.fixture(scope="module")
def key_file(release: LiteLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    viewer = release.new_user("proxy_admin_viewer")
    members = {"user_id": viewer.user_id, "allowed_routes": ["/key/info"]}
    path = tmp_path_factory.mktemp("secret") / "key"
    path.write_text(release.new_secret(release.call("/key/generate", members)["key"]) + "\n")
    return path


@pytest.fixture(scope="module")
def helped(release: LiteLLM, key_file: Path) -> Iterator[Gateway]:
    """A gateway with the credential."""
    with before(release, "--lookup-key-file", str(key_file)) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def plain(release: LiteLLM) -> Iterator[Gateway]:
    """A gateway without the credential."""
    with before(release) as gateway:
        yield gateway


METADATA: dict[str, Any] = {
    "allowed_passthrough_routes": ["/through"],
    "guardrails": ["a"],
    "policies": ["a"],
    "prompts": ["a"],
    "tags": ["a"],
}


def body(key: str, *routes: str) -> dict[str, object]:
    return {"key": hashed(key), "models": OTHER_MODELS, "permissions": {}, "allowed_routes": list(routes)}


def decision(gateway: Gateway, key: str) -> dict[str, Any]:
    """The gateway's log line for the only request about ``key``. It may be written after the response."""
    line: dict[str, Any] = json.loads(gateway.wait_for_line(rf'^.*"key": "{hashed(key)[:8]}".*$')[0])
    return line


def assert_same(one: httpx.Response, other: httpx.Response) -> None:
    assert (one.status_code, one.content) == (other.status_code, other.content)


#: Two guesses at each guarded member: one that is right for a key that holds `STORED`, and a wrong one.
GUESSES: dict[str, tuple[Any, Any]] = {
    "allowed_routes": (CUSTOM_ROUTES, ["/guess"]),
    "permissions": ({"secret": 1}, {"secret": 2}),
    "access_group_ids": (["group-a"], ["group-b"]),
    "budget_limits": ([{"budget_duration": "7d", "max_budget": 1.5}], [{"budget_duration": "7d", "max_budget": 2}]),
    "spend": (2.5, 2),
    "soft_budget": (7, 8),
    "user_id": (None, None),
    "object_permission": ({"vector_stores": ["store-a"]}, {"vector_stores": ["store-b"]}),
    "metadata": (METADATA, {**METADATA, "tags": ["b"]}),
    **{name: (METADATA.get(name), ["b"]) for name in ("allowed_passthrough_routes", "guardrails", "policies")},
    **{name: (METADATA.get(name), ["b"]) for name in ("prompts", "tags")},
    "team_id": ("", ""),
    "key_alias": ("", ""),
}
STORED = {name: GUESSES[name][0] for name in GUESSES if name not in (*METADATA, "user_id", "team_id", "key_alias")}


@pytest.fixture(scope="module")
def full(release: LiteLLM, owner: User) -> str:
    """A key that holds `STORED`."""
    key = release.new_key(owner)
    release.call("/key/update", {"key": key, **STORED})
    return key


def test_every_gate_is_guessed_at() -> None:
    assert GUESSES.keys() == {gate.field for gate in GATES if gate.endpoint == UPDATE}


def test_key_limited_to_update(release: LiteLLM, owner: User, limited: str, plain: Gateway, helped: Gateway) -> None:
    """With the credential, an update by a caller who may update a key but not read it is repaired.

    Without the credential, LiteLLM's own response is relayed.
    """
    key = release.new_key(owner, "custom")
    refused = update(plain.url, limited, body(key, *CUSTOM_ROUTES))
    assert refused.headers["x-litellm-sanitizer"] == 'unknown; reason="lookup_403"'
    direct = update(release.url, limited, body(key, *CUSTOM_ROUTES))
    assert refused.status_code == direct.status_code
    if direct.status_code == 403:
        assert refused.content == direct.content

    answer = update(helped.url, limited, body(key, *CUSTOM_ROUTES))
    assert answer.status_code == 200, answer.text
    stored = release.stored(key)
    assert (stored["models"], stored["allowed_routes"]) == (OTHER_MODELS, CUSTOM_ROUTES)
    # a member is cut only after LiteLLM has refused it
    refusals = [name for name in ("permissions", "allowed_routes") if refuses(release, limited, owner, name)]
    if refusals:
        fields = ",".join(refusals)
        assert answer.headers["x-litellm-sanitizer"] == f'dropped; fields="{fields}"; after-refusal="{fields}"'
        assert decision(helped, key)["lookup_key"] is True
    else:
        assert answer.headers["x-litellm-sanitizer"].startswith(("changed", "unknown"))


def refuses(release: LiteLLM, credential: str, owner: User, name: str) -> bool:
    """Whether LiteLLM refuses this member if it is sent alone and unchanged."""
    key = release.new_key(owner, "custom")
    sent = {"key": hashed(key), "models": OTHER_MODELS, name: body(key, *CUSTOM_ROUTES)[name]}
    return update(release.url, credential, sent).status_code == 403


@pytest.mark.parametrize("name", ["budget_limits", "spend", "soft_budget", "object_permission", "metadata"])
def test_repaired_after_refusal(release: LiteLLM, owner: User, limited: str, helped: Gateway, name: str) -> None:
    """With other gates too, an unchanged value is cut if LiteLLM refuses it, and the stored value is kept."""
    key = release.new_key(owner)
    release.call("/key/update", {"key": key, name: STORED[name]})
    stored = release.stored(key)
    sent: dict[str, object] = {"key": hashed(key), "models": OTHER_MODELS, name: STORED[name]}
    direct = update(release.url, limited, sent)
    if direct.is_success:
        return
    assert release.stored(key) == stored
    answer = update(helped.url, limited, sent)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-litellm-sanitizer"] == f'dropped; fields="{name}"; after-refusal="{name}"'
    assert release.stored(key)[COLUMNS.get(name, name)] == stored[COLUMNS.get(name, name)]


#: Where a member is stored, if not in the column of its name.
COLUMNS = {"soft_budget": "litellm_budget_table"}


def test_a_real_change(release: LiteLLM, owner: User, limited: str, helped: Gateway) -> None:
    """A real change has LiteLLM's own refusal, and no response header of the gateway reveals that it is a change."""
    key = release.new_key(owner, "custom")
    sent = {"key": hashed(key), "models": OTHER_MODELS, "allowed_routes": ["/chat/completions"]}
    direct, answer = (update(url, limited, sent) for url in (release.url, helped.url))
    assert_same_answer(direct, answer)
    assert answer.status_code == 403
    assert "x-litellm-sanitizer" not in answer.headers
    assert release.stored(key)["allowed_routes"] == CUSTOM_ROUTES


@pytest.mark.parametrize("name", GUESSES)
def test_stranger(release: LiteLLM, full: str, helped: Gateway, name: str) -> None:
    """A stranger's guesses at a key get LiteLLM's own responses, whether they are right or wrong.

    If LiteLLM's responses to both guesses are equal, the gateway's response headers are equal too.
    """
    stranger = release.new_user().key
    assert release.http.get("/key/info", params={"key": hashed(full)}, headers=bearer(stranger)).status_code == 403
    stored = release.stored(full)
    directs, answers = [], []
    for guess in GUESSES[name]:
        sent = {"key": hashed(full), "models": OTHER_MODELS, name: guess}
        directs.append(update(release.url, stranger, sent))
        answers.append(update(helped.url, stranger, sent))
    for direct, answer in zip(directs, answers, strict=True):
        assert not answer.is_success
        assert_same_answer(direct, answer)
    if directs[0].content == directs[1].content:
        assert_nothing_told(*answers)
    assert release.stored(full) == stored


def test_stranger_with_the_whole_key(release: LiteLLM, full: str, helped: Gateway) -> None:
    """A wrong guess among right ones can't be distinguished from right ones alone, unless LiteLLM distinguishes them.

    From 1.101.0 on, it does so for ``allowed_routes``, which it compares before it checks who owns the key.
    """
    stranger = release.new_user().key
    right = {name: GUESSES[name][0] for name in STORED}
    told: dict[bytes, list[httpx.Response]] = {}
    for change in ({}, *({name: GUESSES[name][1]} for name in STORED)):
        sent = {"key": hashed(full), "models": OTHER_MODELS, **right, **change}
        direct, answer = update(release.url, stranger, sent), update(helped.url, stranger, sent)
        assert not answer.is_success
        assert_same_answer(direct, answer)
        told.setdefault(direct.content, []).append(answer)
    for alike in told.values():
        assert_nothing_told(*alike)


def assert_nothing_told(*answers: httpx.Response) -> None:
    """Assert that the responses are equal, including the gateway's response header, if there is one."""
    for answer in answers:
        assert_same_answer(answers[0], answer)
        assert answer.headers.get("x-litellm-sanitizer") == answers[0].headers.get("x-litellm-sanitizer")


@pytest.mark.parametrize("caller", ["sk-nobody", "x", "not a key"])
def test_nobody(release: LiteLLM, owner: User, helped: Gateway, caller: str) -> None:
    """For a caller whom LiteLLM does not know, the credential is not used."""
    key = release.new_key(owner, "custom")
    answer = update(helped.url, caller, body(key, *CUSTOM_ROUTES))
    assert_same(answer, update(release.url, caller, body(key, *CUSTOM_ROUTES)))
    assert answer.status_code == 401
    assert answer.headers["x-litellm-sanitizer"] == 'unknown; reason="lookup_401"'
    assert "lookup_key" not in decision(helped, key)


def test_organisation_admin(release: LiteLLM, helped: Gateway) -> None:
    """An organisation admin may neither read nor update the keys of its teams, and gets LiteLLM's own response."""
    made = release.http.post(
        "/organization/new",
        json={"organization_alias": f"organisation-{uuid.uuid4().hex[:12]}", "models": ["mock-gpt", *OTHER_MODELS]},
        headers=bearer(release.master_key),
    )
    if release.release >= (1, 101, 0):  # an Enterprise feature
        assert (made.status_code, "Enterprise" in made.text) == (403, True)
        return
    organisation = made.raise_for_status().json()["organization_id"]
    admin = release.new_user()
    member = {"role": "org_admin", "user_id": admin.user_id}
    release.call("/organization/member_add", {"organization_id": organisation, "member": member})
    team = release.call("/team/new", {"team_alias": f"team-{uuid.uuid4().hex[:12]}", "organization_id": organisation})[
        "team_id"
    ]
    key = release.new_secret(release.call("/key/generate", {"team_id": team})["key"])
    release.call("/key/update", {"key": key, "allowed_routes": CUSTOM_ROUTES})
    assert release.http.get("/key/info", params={"key": hashed(key)}, headers=bearer(admin.key)).status_code == 403

    answer = update(helped.url, admin.key, body(key, *CUSTOM_ROUTES))
    assert_same(answer, update(release.url, admin.key, body(key, *CUSTOM_ROUTES)))
    assert not answer.is_success
    without = update(release.url, admin.key, {"key": hashed(key), "models": OTHER_MODELS})
    assert without.status_code == 401
    assert "does not belong to team" in without.text


def test_replaced_file(release: LiteLLM, owner: User, limited: str, key_file: Path, helped: Gateway) -> None:
    """A new key in the file is used without a restart. A file without a valid key is logged, and the old key kept."""
    good = key_file.read_text()
    try:
        for content, outcome in (("sk-none", "unknown"), ("no key", "unknown"), (good, "dropped")):
            other = key_file.with_name("other")
            other.write_text(content)
            other.replace(key_file)
            key = release.new_key(owner, "custom")
            update(helped.url, limited, body(key, *CUSTOM_ROUTES))
            decided = decision(helped, key)
            assert decided["outcome"] == outcome
            assert decided.get("reason") == ("lookup_key_401" if outcome == "unknown" else None)
    finally:
        key_file.write_text(good)
    assert len([record for record in helped.records if "lookup key file" in record["message"]]) == 1

"""The lookup credential before each LiteLLM: whom it helps, and what it lets others find out.

The credential is the least that will do: a key of a proxy admin viewer, limited to ``/key/info``.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.litellm.actors import CUSTOM_ROUTES, OTHER_MODELS, LiteLLM, User, bearer, hashed, update
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
    """One without."""
    with before(release) as gateway:
        yield gateway


def body(key: str, *routes: str) -> dict[str, object]:
    return {"key": hashed(key), "models": OTHER_MODELS, "permissions": {}, "allowed_routes": list(routes)}


def decision(gateway: Gateway, key: str) -> dict[str, Any]:
    """What the gateway has logged of the one request about ``key``, which may come after its answer."""
    line: dict[str, Any] = json.loads(gateway.wait_for_line(rf'^.*"key": "{hashed(key)[:8]}".*$')[0])
    return line


def assert_same(one: httpx.Response, other: httpx.Response) -> None:
    assert (one.status_code, one.content) == (other.status_code, other.content)


def test_key_limited_to_update(release: LiteLLM, owner: User, limited: str, plain: Gateway, helped: Gateway) -> None:
    """Who may update a key but not read it is helped, and is told so; without the credential nothing changes."""
    key = release.new_key(owner, "custom")
    refused = update(plain.url, limited, body(key, *CUSTOM_ROUTES))
    assert refused.headers["x-litellm-sanitizer"] == 'unknown; reason="lookup_403"'
    if release.release < (1, 109, 0):
        assert refused.status_code == 403
        assert "Only proxy admins can set `allowed_routes`" in refused.text

    answer = update(helped.url, limited, body(key, *CUSTOM_ROUTES))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-litellm-sanitizer"] == 'dropped; fields="permissions,allowed_routes"'
    stored = release.stored(key)
    assert (stored["models"], stored["allowed_routes"]) == (OTHER_MODELS, CUSTOM_ROUTES)
    assert decision(helped, key)["lookup_key"] is True


def test_a_real_change(release: LiteLLM, owner: User, limited: str, helped: Gateway) -> None:
    """LiteLLM judges it in its own words, and the gateway does not say that it is one."""
    key = release.new_key(owner, "custom")
    direct, answer = (update(url, limited, body(key, "/chat/completions")) for url in (release.url, helped.url))
    assert_same(answer, direct)
    assert answer.status_code == 403
    assert "x-litellm-sanitizer" not in answer.headers
    assert release.stored(key)["allowed_routes"] == CUSTOM_ROUTES


def test_stranger(release: LiteLLM, owner: User, helped: Gateway) -> None:
    """Another's key stays as it is. What LiteLLM's refusal tells by itself, as the README says: whether a guess was
    right, which without the credential nobody can tell."""
    key = release.new_key(owner, "custom")
    stranger = release.new_user().key
    assert release.http.get("/key/info", params={"key": hashed(key)}, headers=bearer(stranger)).status_code == 403
    stored = release.stored(key)

    omitted = {"key": hashed(key), "models": OTHER_MODELS}
    without = update(release.url, stranger, omitted)
    right = update(helped.url, stranger, body(key, *CUSTOM_ROUTES))
    wrong = update(helped.url, stranger, body(key, "/guess"))
    assert_same(right, without)
    assert_same(wrong, update(release.url, stranger, body(key, "/guess")))
    for answer in (right, wrong):
        assert answer.status_code in (401, 403)
        assert "x-litellm-sanitizer" not in answer.headers
    assert right.content != wrong.content
    assert release.stored(key) == stored


@pytest.mark.parametrize("caller", ["sk-nobody", "x", "not a key"])
def test_nobody(release: LiteLLM, owner: User, helped: Gateway, caller: str) -> None:
    """For whom LiteLLM does not know, the credential is not used at all."""
    key = release.new_key(owner, "custom")
    answer = update(helped.url, caller, body(key, *CUSTOM_ROUTES))
    assert_same(answer, update(release.url, caller, body(key, *CUSTOM_ROUTES)))
    assert answer.status_code == 401
    assert answer.headers["x-litellm-sanitizer"] == 'unknown; reason="lookup_401"'
    assert "lookup_key" not in decision(helped, key)


def test_organisation_admin(release: LiteLLM, helped: Gateway) -> None:
    """They may not read the keys of their organisation's teams, nor does LiteLLM let them update those."""
    made = release.http.post(
        "/organization/new",
        json={"organization_alias": f"organisation-{uuid.uuid4().hex[:12]}", "models": ["mock-gpt", *OTHER_MODELS]},
        headers=bearer(release.master_key),
    )
    if release.release >= (1, 101, 0):  # an Enterprise feature since 1.105.0 at the latest
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
    assert_same(answer, update(release.url, admin.key, {"key": hashed(key), "models": OTHER_MODELS}))
    assert answer.status_code == 401
    assert "does not belong to team" in answer.text


def test_replaced_file(release: LiteLLM, owner: User, limited: str, key_file: Path, helped: Gateway) -> None:
    """Another key in the file is taken up without a restart, a bad one is not noticed by callers but in the log."""
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

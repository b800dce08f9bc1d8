"""The update that LiteLLM's own Terraform provider sends, on real LiteLLMs (BerriAI/litellm#40704, #40705).

The provider cannot send null. It sends an empty string, map or list for what the configuration does not mention, names
the key by its hash, and authenticates with ``x-api-key``. For a key without a team, releases up to 1.100.x refuse the
empty ``team_id``. From the second key without an alias on, every release refuses the empty ``key_alias``.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.litellm.actors import OTHER_MODELS, LiteLLM, User, client, hashed
from tests.litellm.conftest import before

PERMISSIONS = {"get_spend_routes": "true"}
"""A Terraform map has one type of value; here, strings."""


def payload(key: str, owner: User, permissions: dict[str, str]) -> dict[str, Any]:
    return {
        "key": hashed(key),
        "models": OTHER_MODELS,
        "user_id": owner.user_id,
        "team_id": "",
        "key_alias": "",
        "aliases": {},
        "config": {},
        "permissions": permissions,
        "metadata": {"managed-by": "terraform"},
        "model_max_budget": {},
        "model_rpm_limit": {},
        "model_tpm_limit": {},
        "allowed_cache_controls": [],
        "guardrails": [],
        "tags": [],
        "blocked": False,
        "tpm_limit": 1000,
        "rpm_limit": 10,
        "max_parallel_requests": 2,
    }


def send(url: str, credential: str, body: dict[str, Any]) -> httpx.Response:
    with client(url) as http:
        return http.post("/key/update", json=body, headers={"x-api-key": credential})


def refusal(release: LiteLLM, who: str) -> tuple[int, str]:
    """The first refusal of the payload direct: its status, and a part of its text."""
    if who == "owner" and release.release >= (1, 92, 0):
        return 403, "Only proxy admins can set `permissions`"
    if release.release < (1, 105, 0):
        return 500, "Team object not found for team change validation"
    return 400, "Unique key aliases across all keys are required"


@pytest.mark.parametrize("permissions", [{}, PERMISSIONS], ids=["no permissions", "permissions"])
@pytest.mark.parametrize("who", ["admin", "owner"])
def test_two_keys_without_team_and_alias(release: LiteLLM, who: str, permissions: dict[str, str]) -> None:
    """Both updates fail direct and succeed through the gateway. The sent values are stored, and null as the alias."""
    owner = release.new_user()
    credential = owner.key if who == "owner" else release.master_key
    keys = [release.new_key(owner) for _ in range(2)]
    for key in keys:
        release.call("/key/update", {"key": key, "permissions": permissions})
    # LiteLLM stores the first empty alias, and refuses every further one as a duplicate
    send(release.url, release.master_key, {"key": hashed(release.new_key(owner)), "key_alias": ""})

    for key in keys:
        stored = release.stored(key)
        direct = send(release.url, credential, payload(key, owner, permissions))
        status, fragment = refusal(release, who)
        assert direct.status_code == status, direct.text
        assert fragment in direct.text
        assert release.stored(key) == stored

    with before(release) as gateway:
        for key in keys:
            through = send(gateway.url, credential, payload(key, owner, permissions))
            assert through.status_code == 200, through.text
            assert "key_alias" in through.headers["x-litellm-sanitizer"]
            after = release.stored(key)
            expected = {
                "models": OTHER_MODELS,
                "user_id": owner.user_id,
                "key_alias": None,
                "permissions": permissions,
                "blocked": False,
                "tpm_limit": 1000,
                "rpm_limit": 10,
                "max_parallel_requests": 2,
            }
            assert {name: after[name] for name in expected} == expected
            assert not after["team_id"]
            assert after["metadata"].items() >= {"managed-by": "terraform"}.items()

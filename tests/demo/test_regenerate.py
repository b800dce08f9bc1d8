"""Regenerating a key: on the look-alike, since LiteLLM does it only with a licence; and how far a real one goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sanitizer.demo.background import serving
from sanitizer.demo.lookalike import create_lookalike
from sanitizer.demo.tables import token_of
from tests.demo.player import new_client
from tests.support.gateway import Gateway

MASTER_KEY = "sk-master-of-the-test"
PERMISSIONS = {"allow_pii_controls": True}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with new_client() as client:
        yield client


@pytest.fixture(scope="module")
def litellm() -> Iterator[str]:
    with serving(create_lookalike(MASTER_KEY, "1.92.0")) as url:
        yield url


@pytest.fixture(scope="module")
def gateway(litellm: str) -> Iterator[Gateway]:
    with Gateway(litellm, "--root-path", "/p") as gateway:
        yield gateway


class Alice:
    """An internal user with two keys, one of which, of type "LLM API", she regenerates."""

    def __init__(self, client: httpx.Client, litellm: str) -> None:
        self.client = client
        self.litellm = litellm
        user_id = self.post(litellm, "/user/new", MASTER_KEY, {"auto_create_key": False}).json()["user_id"]
        made = {"user_id": user_id, "permissions": PERMISSIONS}
        self.own = self.post(litellm, "/key/generate", MASTER_KEY, {"user_id": user_id}).json()["key"]
        self.key = self.post(litellm, "/key/generate", MASTER_KEY, {**made, "key_type": "llm_api"}).json()["key"]

    def post(self, url: str, path: str, caller: str, body: Any = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {caller}"}
        content = None if body is None else json.dumps(body)
        if content:
            headers["content-type"] = "application/json"
        return self.client.post(url + path, headers=headers, content=content)

    def stored(self, key: str) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {MASTER_KEY}"}
        answer = self.client.get(self.litellm + "/key/info", params={"key": token_of(key)}, headers=headers)
        info: dict[str, Any] = answer.raise_for_status().json()["info"]
        return info


@pytest.fixture
def alice(client: httpx.Client, litellm: str) -> Alice:
    return Alice(client, litellm)


UNCHANGED: dict[str, Any] = {"allowed_routes": ["llm_api_routes"], "permissions": PERMISSIONS}
DROPPED = 'dropped; fields="allowed_routes,permissions"'


@pytest.mark.parametrize("spelling", ["raw", "hash"])
@pytest.mark.parametrize("where", ["body", "path", "both"])
def test_unchanged(where: str, spelling: str, alice: Alice, gateway: Gateway) -> None:
    """Resent unchanged: 403 direct, 200 through the gateway, and the key is as it was but for its secret."""
    name = alice.key if spelling == "raw" else token_of(alice.key)
    path = "/key/regenerate" if where == "body" else f"/key/{alice.own if where == 'both' else name}/regenerate"
    body = {**UNCHANGED, "models": ["mock-gpt-2"], **({} if where == "path" else {"key": name})}
    before = alice.stored(alice.key)

    direct = alice.post(alice.litellm, path, alice.own, body)
    assert (direct.status_code, "Only proxy admins can set `allowed_routes`" in direct.text) == (403, True)

    answer = alice.post(gateway.url, path, alice.own, body)
    assert (answer.status_code, answer.headers["x-litellm-sanitizer"]) == (200, DROPPED)
    after = alice.stored(answer.json()["key"])
    assert {name for name in before if before[name] != after[name]} == {"key_name", "models", "updated_at"}
    assert alice.post(alice.litellm, "/key/update", alice.own, {"key": alice.key}).status_code == 404
    endpoint = "/key/regenerate" if where == "body" else "/key/{key}/regenerate"
    line = gateway.wait_for_line(rf'^.*"key": "{token_of(alice.key)[:8]}".*$')[0]
    assert json.loads(line)["endpoint"] == endpoint
    assert not [line for line in gateway.lines if alice.key in line or token_of(alice.key) in line]


@pytest.mark.parametrize(
    ("path", "body", "status", "mark"),
    [
        pytest.param("/key/{key}/regenerate", None, 200, "absent", id="no body"),
        pytest.param("/key/{key}/regenerate", {}, 200, "absent", id="no members"),
        pytest.param("/p/key/{key}/regenerate", {}, 404, "absent", id="under a prefix that only the gateway knows"),
        pytest.param("/key/{key}/regenerate", {"allowed_routes": ["/x"]}, 403, "changed", id="a real change"),
        pytest.param("/key/{key}/regenerate", {"permissions": None}, 403, "changed", id="null"),
        pytest.param(
            "/key/{key}/regenerate", {"permissions": {}, "key": "sk-no"}, 403, "unknown", id="another key in the body"
        ),
        pytest.param("/key/regenerate", {"permissions": PERMISSIONS}, 403, "unknown", id="no key"),
        pytest.param("/key/regenerate", {}, 400, "absent", id="no key and no members"),
        pytest.param("/key/regenerate", None, 400, "absent", id="nothing"),
        pytest.param("/key/a/{key}/regenerate", UNCHANGED, 403, None, id="a path that is not intercepted"),
    ],
)
def test_other(path: str, body: Any, status: int, mark: str | None, alice: Alice, gateway: Gateway) -> None:
    """Everything else goes on as it came, and is answered by LiteLLM."""
    path = path.replace("{key}", alice.key)
    direct = None if status == 200 else alice.post(alice.litellm, path, alice.own, body)
    answer = alice.post(gateway.url, path, alice.own, body)
    assert answer.status_code == status
    assert direct is None or answer.content == direct.content
    found = answer.headers.get("x-litellm-sanitizer")
    assert (found and found.partition(";")[0]) == mark


def test_admin(alice: Alice, gateway: Gateway) -> None:
    """An admin may change what is guarded, through the gateway too."""
    body = {"allowed_routes": ["info_routes"], "permissions": PERMISSIONS}
    answer = alice.post(gateway.url, f"/key/{alice.key}/regenerate", MASTER_KEY, body)
    assert (answer.status_code, answer.headers["x-litellm-sanitizer"]) == (200, 'dropped; fields="permissions"')
    assert alice.stored(answer.json()["key"])["allowed_routes"] == ["info_routes"]

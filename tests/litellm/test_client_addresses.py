"""LiteLLM's ``allowed_ips``, with a gateway on the same host.

LiteLLM runs under uvicorn, which trusts `X-Forwarded-For` from 127.0.0.1, the address of the gateway. A value that an
untrusted client has sent must therefore not reach LiteLLM, and a lookup must carry the same value as the request.
Otherwise it would be made under the gateway's own address. In these tests, LiteLLM serves only 127.0.0.2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.litellm.actors import MODELS, OTHER_MODELS, LiteLLM, User, bearer, client, update
from tests.litellm.conftest import address, before

ALLOWED, STRANGER = "127.0.0.2", "127.0.0.3"
FORGED = {
    "x-forwarded-for": {"X-Forwarded-For": ALLOWED},
    "twice": {"X-Forwarded-For": f"{ALLOWED}, {ALLOWED}"},
    "underscore": {"X_Forwarded_For": ALLOWED},
    "forwarded": {"Forwarded": f"for={ALLOWED}"},
    "x-real-ip": {"X-Real-IP": ALLOWED},
    "connection": {"X-Forwarded-For": ALLOWED, "Connection": "X-Forwarded-For"},
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("LITELLM_ALLOWED_IPS_URL", id="peer"),
        pytest.param("LITELLM_ALLOWED_IPS_FORWARDED_URL", id="use_x_forwarded_for"),
    ],
)
def guarded(request: pytest.FixtureRequest) -> LiteLLM:
    """A LiteLLM that serves only 127.0.0.2.

    This is set at run time, because in a configuration file the setting needs an Enterprise licence. If LiteLLM does
    not keep its settings in the database, it applies this one and then answers 500, because it can't store it.
    """
    litellm = LiteLLM(address(request.param), os.environ["LITELLM_MASTER_KEY"], source=ALLOWED)
    answer = litellm.http.post("/add/allowed_ip", json={"ip": ALLOWED}, headers=bearer(litellm.master_key))
    assert answer.status_code in (400, 500), answer.text  # 400: already there
    allowed = litellm.http.get("/get/allowed_ips", headers=bearer(litellm.master_key))
    assert allowed.json()["data"] == [ALLOWED]
    with client(litellm.url, source=STRANGER) as stranger:
        refused = stranger.get("/key/info", headers=bearer(litellm.master_key))
    assert (refused.status_code, STRANGER in refused.text) == (403, True)
    return litellm


@pytest.fixture(scope="module")
def owner(guarded: LiteLLM) -> User:
    return guarded.new_user()


@pytest.fixture(scope="module")
def gateway(guarded: LiteLLM) -> Iterator[str]:
    with before(guarded) as running:
        yield running.url


@pytest.mark.parametrize("forgery", [None, *FORGED])
def test_stranger(guarded: LiteLLM, gateway: str, owner: User, forgery: str | None) -> None:
    """A client with a forged address is refused under its real address, as one without is, and so is its lookup."""
    key = guarded.new_key(owner, "llm_api")
    body = {"key": key, "models": OTHER_MODELS, "allowed_routes": ["llm_api_routes"]}
    headers = FORGED[forgery] if forgery else {}
    for method, path, json in (("GET", "/v1/models", None), ("POST", "/key/update", body)):
        with client(gateway, source=STRANGER) as stranger:
            answer = stranger.request(method, path, json=json, headers={**bearer(owner.key), **headers})
        assert answer.status_code == 403
        assert f"IP address {STRANGER} not allowed" in answer.text
    assert answer.headers["x-litellm-sanitizer"].startswith("unknown")
    assert guarded.stored(key)["models"] == MODELS


def test_allowed_client(guarded: LiteLLM, gateway: str, owner: User) -> None:
    """The lookup is made under the client's address. Under the gateway's own address it would have been refused."""
    key = guarded.new_key(owner, "llm_api")
    body = {"key": key, "models": OTHER_MODELS, "allowed_routes": ["llm_api_routes"]}
    answer = update(gateway, owner.key, body, source=ALLOWED)
    assert (answer.status_code, answer.headers["x-litellm-sanitizer"]) == (200, 'dropped; fields="allowed_routes"')
    assert guarded.stored(key)["models"] == OTHER_MODELS


def test_trusted_proxy(guarded: LiteLLM, owner: User) -> None:
    """The address that a trusted proxy forwards is the one that LiteLLM accepts or refuses, for the lookup too."""
    with before(guarded, "--trusted-proxies", f"{STRANGER}/32") as gateway:
        for forwarded, status, outcome in ((ALLOWED, 200, "dropped"), ("192.0.2.1", 403, "unknown")):
            key = guarded.new_key(owner, "llm_api")
            body = {"key": key, "models": OTHER_MODELS, "allowed_routes": ["llm_api_routes"]}
            answer = update(gateway.url, owner.key, body, source=STRANGER, headers={"X-Forwarded-For": forwarded})
            assert answer.status_code == status, answer.text
            assert answer.headers["x-litellm-sanitizer"].startswith(outcome)
            assert guarded.stored(key)["models"] == (OTHER_MODELS if status == 200 else MODELS)

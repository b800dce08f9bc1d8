"""A LiteLLM under ``SERVER_ROOT_PATH``, which serves its endpoints with and without the prefix."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.litellm.actors import MODELS, OTHER_MODELS, LiteLLM, User, update
from tests.litellm.conftest import address, before

SOURCE = "127.0.0.2"  # after test_client_addresses, this LiteLLM may refuse other addresses


@pytest.fixture(scope="module")
def prefixed() -> LiteLLM:
    url = urlsplit(address("LITELLM_ROOT_PATH_URL"))
    assert url.path
    return LiteLLM(f"http://{url.netloc}", os.environ["LITELLM_MASTER_KEY"], source=SOURCE, prefix=url.path)


@pytest.fixture(scope="module")
def owner(prefixed: LiteLLM) -> User:
    return prefixed.new_user()


@pytest.fixture(scope="module")
def session(prefixed: LiteLLM, owner: User) -> str:
    return prefixed.new_session(owner)


@pytest.fixture(scope="module")
def gateway(prefixed: LiteLLM) -> Iterator[str]:
    with before(prefixed, "--root-path", prefixed.prefix) as running:
        yield running.url


@pytest.mark.parametrize("bare", [False, True], ids=["prefixed", "bare"])
def test_resent_unchanged(prefixed: LiteLLM, gateway: str, owner: User, caller: str, bare: bool) -> None:
    """An unchanged field is refused direct and accepted through the gateway, with and without the prefix."""
    prefix = "" if bare else prefixed.prefix
    key = prefixed.new_key(owner, "llm_api")
    body = {"key": key, "models": OTHER_MODELS, "allowed_routes": ["llm_api_routes"]}
    if prefixed.refuses_unchanged("llm_api"):
        assert update(prefixed.url, caller, body, prefix=prefix, source=SOURCE).status_code == 403
    through = update(gateway, caller, body, prefix=prefix, source=SOURCE)
    assert (through.status_code, through.headers["x-litellm-sanitizer"]) == (200, 'dropped; fields="allowed_routes"')
    after = prefixed.stored(key)
    assert (after["models"], after["allowed_routes"]) == (OTHER_MODELS, ["llm_api_routes"])


def test_unknown_prefix(prefixed: LiteLLM, owner: User) -> None:
    """A request under a prefix that the gateway does not know is not intercepted, and LiteLLM refuses it."""
    key = prefixed.new_key(owner, "custom")
    body = {"key": key, "models": OTHER_MODELS, "allowed_routes": ["llm_api_routes"]}
    with before(prefixed) as gateway:
        through = update(gateway.url, owner.key, body, prefix=prefixed.prefix, source=SOURCE)
    assert through.status_code == 403
    assert "x-litellm-sanitizer" not in through.headers
    assert prefixed.stored(key)["models"] == MODELS

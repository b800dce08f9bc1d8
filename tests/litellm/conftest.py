"""The LiteLLM that ``LITELLM_URL`` names, its users, and the gateway in front of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import httpx
import pytest

from tests.litellm.actors import CHAT, LiteLLM, User, bearer, client
from tests.support.gateway import Gateway

T = TypeVar("T")


def address(variable: str) -> str:
    """The address in an environment variable. Without it, the test is skipped."""
    if not os.environ.get(variable) or not os.environ.get("LITELLM_MASTER_KEY"):
        pytest.skip(f"{variable} and LITELLM_MASTER_KEY name no LiteLLM (tests/litellm/rig/suite.sh starts some)")
    return os.environ[variable].rstrip("/")


@contextmanager
def before(litellm: LiteLLM, *options: str) -> Iterator[Gateway]:
    """A gateway in front of ``litellm``. At its end, asserts that it has logged no secret and exits with status 0."""
    with Gateway(litellm.url, "--shutdown-grace", "1", *options) as gateway:
        yield gateway
        status = gateway.stop()
    assert status == 0
    written = "\n".join(gateway.lines)
    assert not [secret for secret in litellm.secrets if secret in written]


def releases() -> dict[str, str]:
    """Addresses of LiteLLMs by release, from ``LITELLM_RELEASES``: ``1.83.13=http://host:port 1.92.0=http://...``."""
    return dict(part.split("=", 1) for part in os.environ.get("LITELLM_RELEASES", "").split())


def on_each_release(play: Callable[[LiteLLM, Gateway], list[T]]) -> list[T] | None:
    """Call ``play`` with each LiteLLM that `releases` names and a gateway in front of it, concurrently.

    Returns all that ``play`` returned. This is for commands: if no LiteLLM is named or one can't be reached, it prints
    this on stderr and returns None.
    """
    named = releases()
    key = os.environ.get("LITELLM_MASTER_KEY")
    if not named or key is None:
        print("LITELLM_RELEASES and LITELLM_MASTER_KEY name no LiteLLM", file=sys.stderr)
        return None

    def play_on(url: str) -> list[T]:
        litellm = LiteLLM(url.rstrip("/"), key)
        with before(litellm) as gateway:
            return play(litellm, gateway)

    try:
        with ThreadPoolExecutor(len(named)) as pool:
            return [found for of_release in pool.map(play_on, named.values()) for found in of_release]
    except httpx.ConnectError as error:
        print(f"{error.request.url}: {error}", file=sys.stderr)
        return None


def wrapped() -> dict[str, str]:
    """Addresses of LiteLLMs that run the sanitizer in their own process, from ``LITELLM_WRAPPED``, as in `releases`.

    Each shares a database with the ordinary LiteLLM of its release, which ``LITELLM_RELEASES`` names.
    """
    return dict(part.split("=", 1) for part in os.environ.get("LITELLM_WRAPPED", "").split())


@pytest.fixture(scope="session", params=list[str | None](releases()) or [None])
def release(request: pytest.FixtureRequest) -> LiteLLM:
    """Each LiteLLM that ``LITELLM_RELEASES`` names, one after the other."""
    if request.param is None:
        pytest.skip("LITELLM_RELEASES names no LiteLLM (tests/litellm/rig/suite.sh starts some)")
    return LiteLLM(releases()[request.param].rstrip("/"), os.environ["LITELLM_MASTER_KEY"])


IN_PROCESS = list(wrapped()) or ["none"]
in_process = pytest.mark.parametrize("place", IN_PROCESS, indirect=True, scope="session")
"""Runs the test with each wrapped LiteLLM in place of the gateway."""
everywhere = pytest.mark.parametrize("place", ["gateway", *IN_PROCESS], indirect=True, scope="session")
"""Runs the test with a gateway, and with each wrapped LiteLLM in its place."""


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest) -> str:
    """Where the sanitizer runs: in a gateway, or in the process of the LiteLLM of this release."""
    return getattr(request, "param", "gateway")


@pytest.fixture(scope="session")
def litellm(place: str) -> LiteLLM:
    """A LiteLLM without the sanitizer, for direct requests."""
    if place == "gateway":
        return LiteLLM(address("LITELLM_URL"), os.environ["LITELLM_MASTER_KEY"])
    if place not in releases():
        pytest.skip(f"LITELLM_WRAPPED and LITELLM_RELEASES name no LiteLLM of both kinds: {place} (see rig/suite.sh)")
    return LiteLLM(releases()[place].rstrip("/"), os.environ["LITELLM_MASTER_KEY"])


@pytest.fixture(scope="session")
def gateway(litellm: LiteLLM, place: str) -> Iterator[str]:
    """The URL of a gateway with default options, or of the wrapped LiteLLM on the same database."""
    if place == "gateway":
        with before(litellm) as running:
            yield running.url
    else:
        url = wrapped()[place].rstrip("/")
        for each in (litellm.url, url):  # after its first completion, a LiteLLM reports more about its readiness
            with client(each) as http:
                answer = http.post("/v1/chat/completions", json=CHAT, headers=bearer(litellm.master_key))
            assert answer.status_code == 200
        yield url


@pytest.fixture(scope="session")
def owner(litellm: LiteLLM) -> User:
    return litellm.new_user()


@pytest.fixture(scope="session")
def session(litellm: LiteLLM, owner: User) -> str:
    """The key that the dashboard of ``owner`` sends."""
    return litellm.new_session(owner)


@pytest.fixture(params=["owner", "dashboard"])
def caller(request: pytest.FixtureRequest, owner: User, session: str) -> str:
    """The credential of a user who edits their own key: another key of theirs, or their dashboard's key."""
    return owner.key if request.param == "owner" else session

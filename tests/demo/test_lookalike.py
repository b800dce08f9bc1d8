"""The look-alike answers as the real LiteLLM did when it was recorded, and a real one still does."""

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sanitizer.demo.background import serving
from sanitizer.demo.lookalike import create_lookalike
from tests.demo.exchanges import EXCHANGES
from tests.demo.player import Player, new_client
from tests.demo.record import recording, release_at

RELEASE = "1.83.13"
MASTER_KEY = "sk-master-of-the-test"
RECORDED: dict[str, list[dict[str, Any]]] = json.loads(recording(RELEASE).read_text(encoding="utf-8"))

named = pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in EXCHANGES])


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with new_client() as client:
        yield client


@pytest.fixture(scope="module")
def lookalike() -> Iterator[str]:
    with serving(create_lookalike(MASTER_KEY, RELEASE)) as url:
        yield url


@pytest.fixture(scope="module")
def litellm(client: httpx.Client) -> tuple[str, str]:
    """URL and master key of a real LiteLLM of the recorded release."""
    if "LITELLM_URL" not in os.environ:
        pytest.skip("no LiteLLM to compare with: LITELLM_URL and LITELLM_MASTER_KEY are not set")
    url, master_key = os.environ["LITELLM_URL"].rstrip("/"), os.environ["LITELLM_MASTER_KEY"]
    if (release := release_at(client, url)) != RELEASE:
        pytest.skip(f"recorded from LiteLLM {RELEASE}, and LITELLM_URL is {release}")
    return url, master_key


@named
def test_lookalike_answers_as_recorded(name: str, client: httpx.Client, lookalike: str) -> None:
    """Status, content type, Location, Allow and the body, byte for byte but for ids and times, are those of LiteLLM."""
    assert_same(Player(client, lookalike, MASTER_KEY).play(EXCHANGES[name]), RECORDED[name])


@named
def test_recording_is_what_litellm_answers(name: str, client: httpx.Client, litellm: tuple[str, str]) -> None:
    """A real LiteLLM of the recorded release gives the recorded answers."""
    assert_same(Player(client, *litellm).play(EXCHANGES[name]), RECORDED[name])


def test_recording_has_every_exchange() -> None:
    """The recording holds the answers to the table as it is, no more and no fewer."""
    assert list(RECORDED) == list(EXCHANGES)
    for name, requests in EXCHANGES.items():
        assert [answer["request"] for answer in RECORDED[name]] == [str(request) for request in requests]


def assert_same(played: list[dict[str, Any]], recorded: list[dict[str, Any]]) -> None:
    """Answer by answer, as text: equal dictionaries may still differ in the order of their members."""
    for ours, theirs in zip(played, recorded, strict=True):
        assert ours == theirs
        assert json.dumps(ours) == json.dumps(theirs)

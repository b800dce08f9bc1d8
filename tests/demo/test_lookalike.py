"""The look-alike and a real LiteLLM respond as recorded, and `check` takes the look-alike for LiteLLM."""

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sanitizer.cli import main
from sanitizer.demo.background import serving
from sanitizer.demo.lookalike import RELEASE, create_lookalike
from tests.demo.exchanges import EXCHANGES, Player
from tests.litellm.actors import bearer
from tests.litellm.conftest import releases

MASTER_KEY = "sk-master-of-the-test"

PARTIAL = {
    "GET /.well-known/litellm-ui-config",
    "GET /health/readiness",
    "POST /key/generate",
    "POST /user/new",
    "POST /v1/chat/completions",
}
"""Requests whose 200 from the look-alike may lack members of the recorded one."""

each_exchange = pytest.mark.parametrize("steps", EXCHANGES.values(), ids=EXCHANGES.keys())


@pytest.fixture(scope="module")
def lookalike() -> Iterator[str]:
    with serving(create_lookalike(MASTER_KEY)) as url:
        yield url


@each_exchange
def test_lookalike_answers_as_recorded(steps: list[dict[str, Any]], lookalike: str) -> None:
    """The look-alike's status, content type and content are the recorded ones."""
    player = Player(lookalike, MASTER_KEY)
    for step in steps:
        answer = player.answer(*step["request"])
        if answer["status"] == 200 and step["request"][0] in PARTIAL and isinstance(step["body"], dict):
            answer["body"] = step["body"] | answer["body"]
        assert {"request": step["request"], **answer} == step


@each_exchange
def test_litellm_answers_as_recorded(steps: list[dict[str, Any]]) -> None:
    """A real LiteLLM of the release that was recorded still responds as recorded."""
    if RELEASE not in releases():
        pytest.skip(f"LITELLM_RELEASES names no LiteLLM {RELEASE} (tests/litellm/rig/suite.sh starts one)")
    player = Player(releases()[RELEASE], os.environ["LITELLM_MASTER_KEY"])
    assert [{"request": step["request"], **player.answer(*step["request"])} for step in steps] == steps


def test_check_recognises_it(lookalike: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``litellm-sanitizer check`` recognises the look-alike as LiteLLM, finds its release, and reports no problem."""
    assert main(["check", "--upstream", lookalike]) == 0
    printed = capsys.readouterr().out
    assert f"LiteLLM answers at {lookalike}" in printed
    assert f"LiteLLM {RELEASE} refuses these fields" in printed
    assert "No problem." in printed


@pytest.mark.parametrize(
    ("route", "caller"),
    [
        pytest.param("GET /key/info?key=<#alice.own>", "#alice.own", id="a key's hash for a key"),
        pytest.param("POST /user/new", "alice.own", id="a new user, by a user"),
    ],
)
def test_not_authorized(route: str, caller: str, lookalike: str) -> None:
    """The look-alike refuses the request with LiteLLM's status, 401. Its message is not LiteLLM's."""
    answer = Player(lookalike, MASTER_KEY).answer(route, caller, {} if "POST" in route else None)
    assert (answer["status"], answer["body"]["error"]["code"]) == (401, "401")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_not_a_json_object(content: bytes, lookalike: str) -> None:
    """The look-alike refuses the content with 400 in LiteLLM's error form. Its message is not LiteLLM's."""
    response = httpx.post(f"{lookalike}/key/update", headers=bearer(MASTER_KEY), content=content, trust_env=False)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "400")

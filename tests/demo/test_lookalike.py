"""The look-alike answers as a real LiteLLM did when it was recorded. A real one still does. `check` recognises it."""

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
"""Where the look-alike's 200 may lack members of LiteLLM's."""

each_exchange = pytest.mark.parametrize("steps", EXCHANGES.values(), ids=EXCHANGES.keys())


@pytest.fixture(scope="module")
def lookalike() -> Iterator[str]:
    with serving(create_lookalike(MASTER_KEY)) as url:
        yield url


@each_exchange
def test_lookalike_answers_as_recorded(steps: list[dict[str, Any]], lookalike: str) -> None:
    """Status, content type and content are LiteLLM's."""
    player = Player(lookalike, MASTER_KEY)
    for step in steps:
        answer = player.answer(*step["request"])
        if answer["status"] == 200 and step["request"][0] in PARTIAL and isinstance(step["body"], dict):
            answer["body"] = step["body"] | answer["body"]
        assert {"request": step["request"], **answer} == step


@each_exchange
def test_litellm_answers_as_recorded(steps: list[dict[str, Any]]) -> None:
    """A real LiteLLM of that release gives the recorded answers."""
    if RELEASE not in releases():
        pytest.skip(f"LITELLM_RELEASES names no LiteLLM {RELEASE} (tests/litellm/rig/suite.sh starts one)")
    player = Player(releases()[RELEASE], os.environ["LITELLM_MASTER_KEY"])
    assert [{"request": step["request"], **player.answer(*step["request"])} for step in steps] == steps


def test_check_recognises_it(lookalike: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``litellm-sanitizer check`` finds LiteLLM there, its release and no problem."""
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
    """It is refused with LiteLLM's status, but in fewer words."""
    answer = Player(lookalike, MASTER_KEY).answer(route, caller, {} if "POST" in route else None)
    assert (answer["status"], answer["body"]["error"]["code"]) == (401, "401")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_not_a_json_object(content: bytes, lookalike: str) -> None:
    """It is refused in LiteLLM's form, and in words of the look-alike's own."""
    response = httpx.post(f"{lookalike}/key/update", headers=bearer(MASTER_KEY), content=content, trust_env=False)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "400")

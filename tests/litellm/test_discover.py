"""`discover` finds the members that are known to be gated, and reports new ones.

It is run in full for each new release. Here, only the caller "owner" is played, on the newest release at hand.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sanitizer.sanitize.gates import GATES, UPDATE
from tests.litellm.actors import LiteLLM
from tests.litellm.conftest import before, releases
from tests.litellm.discover import KNOWN, Cell, Discovery, main, markdown
from tests.support.gateway import ROOT

GATED = {gate.field for gate in GATES if gate.endpoint == UPDATE}
#: The members that a current release refuses to a key's owner because they are present, and the gateway repairs.
REPAIRED = {
    "access_group_ids",
    "allowed_passthrough_routes",
    "budget_limits",
    "guardrails",
    "metadata",
    "object_permission",
    "permissions",
    "policies",
    "prompts",
    "soft_budget",
    "spend",
    "tags",
}


@pytest.fixture(scope="module")
def newest() -> LiteLLM:
    if not releases():
        pytest.skip("LITELLM_RELEASES names no LiteLLM (tests/litellm/rig/suite.sh starts some)")
    named = max(releases(), key=lambda release: tuple(map(int, release.split("."))))
    return LiteLLM(releases()[named].rstrip("/"), os.environ["LITELLM_MASTER_KEY"])


def test_an_owner_of_the_newest_release(newest: LiteLLM) -> None:
    """Every presence-gated member is repaired or known. A repaired one has a gate of its own."""
    with before(newest) as gateway:
        cells = Discovery(newest, gateway.url).ask(callers=["owner"])
    assert not [cell for cell in cells if cell.unexplained]
    repaired = {cell.member for cell in cells if cell.repaired}
    assert repaired <= GATED
    assert not repaired & KNOWN.keys()
    if newest.release >= (1, 105, 0):
        assert repaired == REPAIRED


def test_a_gateway_that_does_nothing(newest: LiteLLM) -> None:
    """With a gateway that repairs nothing, a member that it would repair is found as new."""
    with before(newest, "--mode", "off") as gateway:
        cells = Discovery(newest, gateway.url).ask(["models", "spend"], ["owner"])
    assert {cell.member for cell in cells if cell.unexplained} == {"spend"}
    assert "403 ✗" in "\n".join(markdown(cells))


@pytest.mark.parametrize(
    ("statuses", "gated", "unexplained"),
    [
        pytest.param((200, 403, 200), True, False, id="repaired"),
        pytest.param((200, 403, 403), True, True, id="new"),
        pytest.param((200, 500, 500), True, True, id="another status"),
        pytest.param((403, 403, 403), False, False, id="refused anyway"),
        pytest.param((None, 200, None), False, False, id="accepted"),
        pytest.param((None, None, None), False, False, id="not shown"),
    ],
)
def test_verdicts(statuses: tuple[int | None, int | None, int | None], gated: bool, unexplained: bool) -> None:
    """A member is gated if only the request with it is refused, and explained if it is repaired or known."""
    cell = Cell("1.2.3", "member", "bare", "owner", *statuses)
    assert (cell.gated, cell.unexplained) == (gated, unexplained)
    for known in KNOWN:
        assert not Cell("1.2.3", known, "bare", "owner", *statuses).unexplained


def test_nothing_to_ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If no LiteLLM is named, or nothing listens at its address, the exit status is 2 and stderr says why."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LITELLM_")}
    command = [sys.executable, "-m", "tests.litellm.discover"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    monkeypatch.setenv("LITELLM_RELEASES", "1.2.3=http://127.0.0.1:9")
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-1234")
    assert main() == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err

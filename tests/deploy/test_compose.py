"""deploy/compose: the file by the Compose specification, and what it would do, by hand, with a real LiteLLM."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.programs import DEPLOY, program
from tests.litellm.actors import bearer
from tests.support.gateway import Gateway

FILE = DEPLOY / "compose/compose.yaml"
OWNER, KEY = "sk-compose-owner", "sk-compose-llm-api-key"


def text() -> str:
    """The file as it is with no variable set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", FILE.read_text())


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text())["services"]
    return found


def test_it_is_valid() -> None:
    """By a strict parser of the Compose specification, to which a misspelt key is an error."""
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed (PyPI, Linux on x86-64)")
    parse = compose_spec.PyCompose.from_yaml
    parse(text()).validate()
    with pytest.raises(ValueError, match="cap_dropp"):
        parse(text().replace("cap_drop", "cap_dropp"))


def test_nobody_gets_past_the_gateway() -> None:
    """The gateway alone has a published port, on this machine's loopback."""
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:4000:4001"]}
    assert "FORWARDED_ALLOW_IPS" in services()["litellm"]["environment"]
    subnet = yaml.safe_load(text())["networks"]["default"]["ipam"]["config"][0]["subnet"]
    assert services()["litellm"]["environment"]["FORWARDED_ALLOW_IPS"] == subnet


def test_what_the_gateway_runs_with() -> None:
    """Nothing to write to, no capability, a limit, time to drain."""
    gateway = services()["gateway"]
    assert gateway["read_only"] is True
    assert gateway["cap_drop"] == ["ALL"]
    assert gateway["security_opt"] == ["no-new-privileges:true"]
    assert gateway["mem_limit"]
    assert int(gateway["stop_grace_period"].removesuffix("s")) >= 30 + 10


@pytest.fixture
def pair() -> Iterator[tuple[str, str, str]]:
    """LiteLLM's URL, the gateway's before it, and the master key; what `setup` makes is removed at the end."""
    litellm, master = os.environ.get("LITELLM_URL"), os.environ.get("LITELLM_MASTER_KEY")
    if not litellm or not master:
        pytest.skip("LITELLM_URL and LITELLM_MASTER_KEY name no LiteLLM (see tests/litellm/rig/README.md)")
    with Gateway(litellm) as gateway:
        yield litellm, gateway.url, master
    httpx.post(
        f"{litellm}/user/delete", json={"user_ids": ["ada"]}, headers=bearer(master), trust_env=False, timeout=60
    )


def commands() -> list[str]:
    """The README's commands that try the bug and its repair."""
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    return [block for block in blocks if "/key/update" in block]


def test_the_bug_and_its_repair_as_the_readme_shows_them(pair: tuple[str, str, str]) -> None:
    """`setup`, twice as after a restart; then 403 past the gateway, 200 through it, and the change is stored."""
    litellm, gateway, master = pair
    curl = program("curl", "Debian: curl")
    environment = {"GATEWAY": gateway, "LITELLM_MASTER_KEY": master}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(DEPLOY / "compose/setup.py")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, f"ready: owner {OWNER}, key {KEY}\n"), done.stderr
    shown = (DEPLOY / "README.md").read_text()
    assert done.stdout.strip() in shown

    past, through = commands()
    past = past.replace("docker compose run --rm curl", curl).replace("http://litellm:4000", litellm)
    through = through.replace("curl", curl, 1).replace("http://127.0.0.1:4000", gateway)
    refused, repaired = (
        subprocess.run(
            shlex.split(command.replace("\\\n", " ")), capture_output=True, text=True, timeout=120, check=True
        ).stdout
        for command in (past, through)
    )
    assert refused.startswith("HTTP/1.1 403 "), refused
    assert "Only proxy admins can set `allowed_routes`" in refused
    assert repaired.startswith("HTTP/1.1 200 "), repaired
    assert 'x-litellm-sanitizer: dropped; fields="allowed_routes"' in repaired

    params = {"key": hashlib.sha256(KEY.encode()).hexdigest()}
    answer = httpx.get(f"{litellm}/key/info", params=params, headers=bearer(master), trust_env=False, timeout=60)
    assert answer.json()["info"]["models"] == ["another-mock"]

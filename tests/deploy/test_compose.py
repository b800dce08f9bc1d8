"""deploy/compose: the Compose file, which is not run here, and its `setup`. containers/test_project.py runs both."""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.programs import DEPLOY
from tests.litellm.actors import bearer
from tests.support.upstream import Connection, Upstream, reply
from tests.support.wire import Request

FILE = DEPLOY / "compose/compose.yaml"
READY = "ready: owner sk-compose-owner, key sk-compose-llm-api-key"
TIMEOUT = 60.0


def text() -> str:
    """The text of the file with the default of each variable."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", FILE.read_text())


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text())["services"]
    return found


def test_it_is_valid() -> None:
    """A strict parser of the Compose specification accepts the file, and rejects it with a misspelt key."""
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed (PyPI, Linux on x86-64)")
    parse = compose_spec.PyCompose.from_yaml
    parse(text()).validate()
    with pytest.raises(ValueError, match="cap_dropp"):
        parse(text().replace("cap_drop", "cap_dropp"))


def test_nobody_gets_past_the_gateway() -> None:
    """Only the gateway has a published port, on loopback.

    LiteLLM trusts forwarding fields only from the project's own network.
    """
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:4000:4001"]}
    assert "FORWARDED_ALLOW_IPS" in services()["litellm"]["environment"]
    subnet = yaml.safe_load(text())["networks"]["default"]["ipam"]["config"][0]["subnet"]
    assert services()["litellm"]["environment"]["FORWARDED_ALLOW_IPS"] == subnet


def test_what_the_gateway_runs_with() -> None:
    """The gateway runs on a read-only file system, without capabilities, with a memory limit and time to drain."""
    gateway = services()["gateway"]
    assert gateway["read_only"] is True
    assert gateway["cap_drop"] == ["ALL"]
    assert gateway["security_opt"] == ["no-new-privileges:true"]
    assert gateway["mem_limit"]
    assert int(gateway["stop_grace_period"].removesuffix("s")) >= 30 + 10


class Answers:
    """Carries out the requests of ``setup``. The responses have the statuses that LiteLLM was seen to send.

    If ``url`` is given, the LiteLLM there carries out the requests instead.
    """

    def __init__(self, url: str | None = None, master: str = "sk-master") -> None:
        self.url = url
        self.master = master
        self.keys = {f"Bearer {master}"}
        self.users: list[str] = []

    def __call__(self, request: Request) -> bytes:
        """The response to ``request``, as octets."""
        caller = (request.get(b"authorization") or b"").decode()
        path = request.target.decode()
        if self.url is None:
            status, content = self._as_seen(path, caller, json.loads(request.body)), b"{}"
        else:
            headers = {"Authorization": caller, "Content-Type": "application/json"}
            answer = httpx.post(self.url + path, content=request.body, headers=headers, trust_env=False, timeout=60)
            status, content = answer.status_code, answer.content
        return b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)

    def _as_seen(self, path: str, caller: str, body: dict[str, Any]) -> int:
        if caller not in self.keys:
            return 401
        if path == "/key/generate":
            self.keys.add(f"Bearer {body['key']}")
            return 200
        if body["user_id"] in self.users:
            return 409
        self.users.append(body["user_id"])
        return 200


@pytest.fixture(params=["as LiteLLM was seen to answer", "LiteLLM"])
def litellm(request: pytest.FixtureRequest) -> Iterator[Answers]:
    if request.param != "LiteLLM":
        yield Answers()
        return
    url, master = os.environ.get("LITELLM_URL"), os.environ.get("LITELLM_MASTER_KEY")
    if not url or not master:
        pytest.skip("LITELLM_URL and LITELLM_MASTER_KEY name no LiteLLM (see tests/litellm/rig/README.md)")
    with httpx.Client(base_url=url, headers=bearer(master), trust_env=False, timeout=TIMEOUT) as admin:
        admin.post("/user/delete", json={"user_ids": ["ada"]})  # from another run
        yield Answers(url, master)
        admin.post("/user/delete", json={"user_ids": ["ada"]}).raise_for_status()


@contextlib.contextmanager
def setup(upstream: Upstream, master: str) -> Iterator[subprocess.Popen[str]]:
    """Run deploy/compose/setup.py. It is killed when the block ends."""
    with subprocess.Popen(
        [sys.executable, str(DEPLOY / "compose/setup.py")],
        env={"GATEWAY": upstream.url, "LITELLM_MASTER_KEY": master},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


STEPS = ["the user", "the owner's key", "the key of type LLM API"]


def test_setup_while_litellm_is_away() -> None:
    """`setup` sends a request again if the gateway has answered it with 502, or if the connection was closed."""
    litellm = Answers()

    def script(connection: Connection) -> None:
        request = connection.read_request()
        match len(upstream.requests):
            case 1:
                connection.send(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\n{}")
            case 2:
                connection.close()
            case _:
                connection.send(litellm(request))

    with Upstream(script) as upstream, setup(upstream, litellm.master) as process:
        assert "ready: owner" in process.communicate(timeout=TIMEOUT)[0]
        assert process.returncode == 0
    assert len(upstream.requests) == 2 + len(STEPS)


@pytest.mark.parametrize("carried_out", [False, True], ids=["before it is carried out", "after it was carried out"])
@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_setup_after_an_interruption(litellm: Answers, step: int, carried_out: bool) -> None:
    """`setup` is killed at each of its requests. Two further runs then succeed, and the user and the keys exist."""
    interrupted = threading.Event()

    def script(connection: Connection) -> None:
        request = connection.read_request()
        if len(upstream.requests) <= step or interrupted.is_set():
            connection.send(litellm(request))
        else:
            if carried_out:
                litellm(request)
            interrupted.set()

    with Upstream(script) as upstream:
        with setup(upstream, litellm.master) as process:
            assert interrupted.wait(TIMEOUT)
        for _ in range(2):
            with setup(upstream, litellm.master) as process:
                said, _ = process.communicate(timeout=TIMEOUT)
                assert (process.returncode, said) == (0, READY + "\n")
        owner, key = re.findall(r"sk-[\w-]+", READY)
        if litellm.url is None:
            assert (litellm.users, litellm.keys) == (
                ["ada"],
                {f"Bearer {litellm.master}", f"Bearer {owner}", f"Bearer {key}"},
            )
        else:
            params = {"key": hashlib.sha256(key.encode()).hexdigest()}
            answer = httpx.get(
                f"{litellm.url}/key/info", params=params, headers=bearer(owner), trust_env=False, timeout=60
            )
            info = answer.raise_for_status().json()["info"]
            assert (info["user_id"], info["models"], info["allowed_routes"]) == ("ada", ["mock"], ["llm_api_routes"])


def test_setup_tells_what_was_refused() -> None:
    """When a request is refused, `setup` prints the response and ends with status 1."""
    refused = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 7\r\n\r\nno key."
    with Upstream(reply(refused)) as upstream, setup(upstream, "sk-master") as process:
        said, _ = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, said) == (1, "POST /user/new: 401 no key.\n")
    assert len(upstream.requests) == 1


def test_the_readme_says_what_setup_does() -> None:
    """deploy/README.md quotes the line with which `setup` ends."""
    assert f"`{READY}`" in (DEPLOY / "README.md").read_text()

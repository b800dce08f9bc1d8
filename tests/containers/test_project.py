"""deploy/compose/compose.yaml, run by podman-compose with a real LiteLLM and PostgreSQL, as README.md shows it.

The images of PostgreSQL, curl and LiteLLM are those of images/Containerfile, which contain Debian's packages and the
rig's LiteLLM. The gateway's image is the Dockerfile's, on Debian 13. The tests use the file as it is, except for
features that podman-compose 1.6 lacks:

- It does not know ``configs`` with ``content``. A second file mounts LiteLLM's configuration instead.
- With a podman before 4.6 it does not wait for ``service_healthy``, and podman leaves health checks to systemd timers.
  So the tests start the services in the order of ``depends_on``, each after the health checks of those before it have
  succeeded.
- ``run`` accepts a service that has a profile only with ``--profile``.
"""

import re
import shlex
from collections.abc import Iterator
from graphlib import TopologicalSorter
from typing import Any

import pytest
import yaml

from tests.containers.conftest import Images
from tests.containers.podman import TIMEOUT, Podman
from tests.deploy.programs import DEPLOY, program

FILE = DEPLOY / "compose/compose.yaml"
README = (DEPLOY / "README.md").read_text()
PROJECT: dict[str, Any] = yaml.safe_load(FILE.read_text())
STARTED = [name for name, service in PROJECT["services"].items() if "profiles" not in service]
START_TIMEOUT = 4 * TIMEOUT


class Compose:
    """The project, run by podman-compose."""

    def __init__(self, podman: Podman, images: Images) -> None:
        self.podman = podman
        self._environment = {
            "LITELLM_IMAGE": images.litellm("localhost/litellm"),
            "GATEWAY_IMAGE": images.gateway("trixie"),
        }
        images.postgres(f"docker.io/library/{PROJECT['services']['postgres']['image']}")
        images.stand_in("curl", f"docker.io/{PROJECT['services']['curl']['image']}", "bookworm")
        config = podman.folder / "litellm.yaml"
        config.write_text(PROJECT["configs"]["litellm"]["content"])
        (mounted,) = PROJECT["services"]["litellm"]["configs"]
        volumes = {"services": {"litellm": {"volumes": [f"{config}:{mounted['target']}:ro"]}}}
        second = podman.folder / "second.yaml"
        second.write_text(yaml.safe_dump(volumes))
        self._command = [program("podman-compose", "PyPI: podman-compose"), "--file", str(FILE), "--file", str(second)]

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run podman-compose. Returns its standard output."""
        command = [*self._command, *arguments]
        return self.podman.run(*command, check=check, timeout=2 * TIMEOUT, environment=self._environment).stdout

    def container(self, service: str) -> str:
        return f"{PROJECT['name']}_{service}_1"

    def wait_until_healthy(self, service: str) -> None:
        container = self.container(service)
        self.podman.wait_for(container, lambda: self.podman.is_healthy(container), START_TIMEOUT)

    def up(self) -> None:
        """Start the services, each when those that it depends on are healthy."""
        depends = {name: PROJECT["services"][name].get("depends_on", {}) for name in STARTED}
        for service in TopologicalSorter(depends).static_order():
            for other, wanted in depends[service].items():
                assert wanted == {"condition": "service_healthy"}
                self.wait_until_healthy(other)
            self("up", "--detach", "--no-build", "--no-deps", service)


@pytest.fixture(scope="module")
def compose(podman: Podman, images: Images) -> Iterator[Compose]:
    """The project, after `setup` has ended."""
    compose = Compose(podman, images)
    try:
        compose.up()
        podman("wait", compose.container("setup"))
        yield compose
    finally:
        compose("down", "--volumes", "--timeout", "0", check=False)


def shown(beginning: str) -> list[str]:
    """The command in README's Compose section that starts with ``beginning``, split as a shell splits it."""
    (found,) = re.findall(rf"^{re.escape(beginning)}(?:.*\\\n)*.*$", README, re.MULTILINE)
    return shlex.split(found.replace("\\\n", " "))


def test_setup_ends_as_the_readme_says(compose: Compose) -> None:
    """`setup` prints the line with the keys that README.md quotes."""
    line = compose.podman.log(compose.container("setup")).strip()
    assert line == "ready: owner sk-compose-owner, key sk-compose-llm-api-key"
    assert f"`{line}`" in README


def test_past_the_gateway_it_is_the_bug(compose: Compose) -> None:
    """README's first command, sent directly to LiteLLM from inside the network, gets LiteLLM's own 403."""
    command = shown("docker compose run --rm curl -si http://litellm:4000/key/update")
    answer = compose("--profile", "curl", *command[2:])
    assert answer.startswith("HTTP/1.1 403 "), answer
    assert "Only proxy admins can set `allowed_routes`" in answer
    assert "x-litellm-sanitizer" not in answer


def test_through_the_gateway_it_is_repaired(compose: Compose) -> None:
    """README's second command, sent to the published port, gets 200 with the gateway's header. The change is stored."""
    answer = compose.podman.run(*shown("curl -si http://127.0.0.1:4000/key/update")).stdout
    assert answer.startswith("HTTP/1.1 200 "), answer
    assert 'x-litellm-sanitizer: dropped; fields="allowed_routes"\n' in answer
    read = "http://127.0.0.1:4000/key/info?key=sk-compose-llm-api-key"
    stored = compose.podman.run("curl", "-s", read, "-H", "Authorization: Bearer sk-compose-owner").stdout
    info = yaml.safe_load(stored)["info"]
    assert (info["models"], info["allowed_routes"]) == (["another-mock"], ["llm_api_routes"])


def test_setup_run_again_leaves_what_is_there(compose: Compose) -> None:
    """`setup` succeeds again on an existing project, as it does when `docker compose up` is repeated."""
    assert "ready: owner" in compose("run", "--rm", "-T", "setup")


def test_litellm_has_no_published_port(compose: Compose) -> None:
    """Only the gateway has a published port, on loopback."""
    ports = {name: compose.podman("port", compose.container(name)) for name in STARTED}
    assert {name: port for name, port in ports.items() if port} == {"gateway": "4001/tcp -> 127.0.0.1:4000"}


def test_litellm_knows_the_client(compose: Compose) -> None:
    """LiteLLM trusts the gateway's X-Forwarded-For: its access log does not show the gateway as the client."""
    gateway = compose.podman.inspect("container", compose.container("gateway"))["NetworkSettings"]["Networks"]
    ((address,),) = [[each["IPAddress"]] for each in gateway.values()]
    compose.podman.run("curl", "-s", "http://127.0.0.1:4000/who-asks")
    litellm = compose.container("litellm")
    compose.podman.wait_for(litellm, lambda: "GET /who-asks" in compose.podman.log(litellm))
    (line,) = [line for line in compose.podman.log(litellm).splitlines() if "GET /who-asks" in line]
    assert f"{address}:" not in line


def test_what_the_gateway_runs_with(compose: Compose) -> None:
    """The gateway runs read-only, without capabilities, without new privileges, and with the memory limit."""
    gateway = compose.container("gateway")
    status = compose.podman("exec", gateway, "cat", "/proc/1/status")
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
    found = compose.podman.inspect("container", gateway)["HostConfig"]
    assert (found["ReadonlyRootfs"], found["Memory"]) == (True, 256 * 1024 * 1024)


def test_it_is_stopped_within_its_grace(compose: Compose) -> None:
    """After `stop`, the gateway has ended with status 0. After `start`, it is healthy again."""
    compose("stop", "gateway")
    state = compose.podman.inspect("container", compose.container("gateway"))["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)
    compose("start", "gateway")
    compose.wait_until_healthy("gateway")

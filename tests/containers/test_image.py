"""The image, built from the Dockerfile on Debian 12 (Python 3.11) and Debian 13 (3.13), and run as it is deployed.

The tests do not cover what a registry's ``python:slim`` base has or lacks in comparison.
"""

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.containers.conftest import BASES, Images
from tests.containers.podman import Podman
from tests.support.client import Client, ask
from tests.support.gateway import free_port
from tests.support.upstream import OK, Upstream, reply

LIMIT = 256 * 1024 * 1024
DEPLOYED = [
    *["--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges"],
    *["--memory", str(LIMIT)],
]
"""The restrictions that deploy/compose and deploy/kubernetes set."""


@dataclass
class Image:
    name: str
    size: int
    size_of_base: int
    found: dict[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        return dict(each.split("=", 1) for each in self.found["Config"]["Env"])


@pytest.fixture(scope="module", params=BASES)
def image(podman: Podman, images: Images, request: pytest.FixtureRequest) -> Image:
    name = images.gateway(request.param)
    found = podman.inspect("image", name)
    return Image(name, found["Size"], podman.inspect("image", images.base(request.param))["Size"], found)


@dataclass
class Running:
    """A container of the image, which uses the machine's network."""

    podman: Podman
    name: str
    port: int

    @property
    def log(self) -> str:
        return self.podman.log(self.name)

    def execute(self, *command: str) -> str:
        """Run a command in the container. Returns its output."""
        return self.podman("exec", self.name, *command)

    def children(self) -> dict[int, tuple[str, str]]:
        """The command and the state of each process below process 1, by process id in the container."""
        lines = self.podman("top", self.name, "pid", "state", "args").splitlines()[1:]
        found = {int(pid): (args, state) for pid, state, args in (line.split(maxsplit=2) for line in lines)}
        del found[1]
        return found

    def wait_for_children(self, number: int, *, without: int = 0) -> dict[int, tuple[str, str]]:
        """Wait until ``number`` processes are below process 1, and ``without`` is none of them."""
        found: dict[int, tuple[str, str]] = {}

        def are_there() -> bool:
            found.clear()
            found.update(self.children())
            return len(found) == number and without not in found

        self.podman.wait_for(self.name, are_there)
        return found

    def stop(self) -> int:
        """Send SIGTERM to process 1. Returns its exit status."""
        self.podman("kill", "--signal", "TERM", self.name)
        return self.wait()

    def wait(self) -> int:
        return int(self.podman("wait", self.name))


@contextlib.contextmanager
def running(podman: Podman, image: Image, upstream: Upstream, *arguments: str) -> Iterator[Running]:
    """Run the image, with ``arguments`` after its entry point. Yields the container once it listens."""
    port = free_port()
    variables = {
        "SANITIZER_UPSTREAM": upstream.url,
        "SANITIZER_PORT": str(port),
        "SANITIZER_ADMIN_PORT": str(free_port()),
    }
    options = [option for name, value in variables.items() for option in ("--env", f"{name}={value}")]
    command = ["run", "--detach", "--network", "host", *DEPLOYED, *options, image.name, *arguments]
    name = podman(*command, on_host=True)
    try:
        started = Running(podman, name, port)
        podman.wait_for(name, lambda: "listening on" in started.log)
        yield started
    finally:
        podman("rm", "--force", "--time", "0", name)


def test_it_says_what_it_is(podman: Podman, image: Image) -> None:
    """The image has a numeric user, an entry point in exec form, ports and labels.

    It has no compiler, pip or cache, and adds less than 80 MB to its base.
    """
    config = image.found["Config"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert config["Entrypoint"] == ["litellm-sanitizer"]
    assert set(config["ExposedPorts"]) == {"4001/tcp", "9464/tcp"}
    assert image.environment["SANITIZER_HOST"] == image.environment["SANITIZER_ADMIN_HOST"] == "0.0.0.0"  # noqa: S104
    labels = {name.removeprefix("org.opencontainers.image.") for name in config["Labels"]}
    assert {"title", "description", "licenses"} <= labels
    assert image.found["Healthcheck"]["Test"][0] == "CMD"
    assert image.size - image.size_of_base < 80_000_000
    left = ["usr/bin/gcc", "opt/litellm-sanitizer/bin/pip", "root/.cache", "build", "tests"]
    for path in left:
        done = podman.run(
            "podman", "run", "--rm", "--entrypoint", "test", image.name, "!", "-e", f"/{path}", check=False
        )
        assert done.returncode == 0, path
    print(f"{image.name} adds {(image.size - image.size_of_base) / 1e6:.1f} MB to its base", file=sys.stderr)


@pytest.mark.parametrize(("pure", "form"), [("", "compiled"), ("false", "compiled"), ("true", "pure")])
def test_it_runs_compiled_modules(podman: Podman, image: Image, pure: str, form: str) -> None:
    """The image runs the modules that its builder has compiled. With SANITIZER_PURE, it runs the source."""
    said = podman("run", "--rm", *DEPLOYED, "--env", f"SANITIZER_PURE={pure}", image.name, "--version")
    assert said.endswith(f" ({form})")


def test_it_serves_as_it_is_deployed(podman: Podman, image: Image) -> None:
    """The gateway serves as process 1, with a numeric user, no capabilities, a read-only file system and 256 MiB."""
    with Upstream() as upstream, running(podman, image, upstream) as gateway:
        answer = ask(("127.0.0.1", gateway.port), b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (answer.status, answer.body) == (200, b"ok")
        status = dict(re.findall(r"^(\w+):\s*(.*)$", gateway.execute("cat", "/proc/1/status"), re.MULTILINE))
        assert status["Uid"].split() == status["Gid"].split() == ["65532"] * 4
        assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
        assert status["NoNewPrivs"] == "1"
        assert gateway.execute("cat", "/proc/1/comm").startswith("litellm-saniti")
        assert "python3" in gateway.execute("readlink", "/proc/1/exe")
        attempt = podman.run("podman", "exec", "--user", "0", gateway.name, "touch", "/tmp/x", check=False)  # noqa: S108
        assert "Read-only file system" in attempt.stderr
        limit = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
        assert int(gateway.execute("sh", "-c", limit)) == LIMIT


def test_a_stop_is_a_drain(podman: Podman, image: Image) -> None:
    """A response in progress at SIGTERM is completed, and the exit status is 0."""
    finish = threading.Event()
    with Upstream(reply(OK[:-1], finish, OK[-1:])) as upstream, running(podman, image, upstream) as gateway:
        with Client(("127.0.0.1", gateway.port)) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            client.read_until(b"\r\n\r\no")
            podman("kill", "--signal", "TERM", gateway.name)
            podman.wait_for(gateway.name, lambda: "stopping" in gateway.log)
            finish.set()
            assert client.read_to_end() == b"k"
        assert gateway.wait() == 0, gateway.log
        assert "Traceback" not in gateway.log


def test_its_health_check(podman: Podman, image: Image) -> None:
    """The health check succeeds while the gateway serves, on any admin port. It fails if nothing listens there."""
    with Upstream() as upstream, running(podman, image, upstream) as gateway:
        assert podman.is_healthy(gateway.name, on_host=True)
    idle = podman("run", "--detach", *DEPLOYED, "--entrypoint", "sleep", image.name, "infinity")
    try:
        assert not podman.is_healthy(idle)
    finally:
        podman("rm", "--force", "--time", "0", idle)


def test_process_1_leaves_no_zombies(podman: Podman, image: Image) -> None:
    """A worker that is killed is reaped and replaced. After SIGTERM, the gateway ends with status 0."""
    with Upstream() as upstream, running(podman, image, upstream, "--workers", "2") as gateway:
        before = gateway.wait_for_children(3)  # two workers, and multiprocessing's resource tracker
        worker = next(pid for pid, (command, _) in before.items() if "spawn_main" in command)
        gateway.execute("sh", "-c", f"kill -KILL {worker}")
        after = gateway.wait_for_children(3, without=worker)
        assert not any(state.startswith("Z") for _, state in after.values())
        assert ask(("127.0.0.1", gateway.port), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").status == 200
        assert gateway.stop() == 0, gateway.log

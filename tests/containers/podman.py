"""podman with a store and namespaces of its own (world.sh). Nothing is left behind, whatever happens."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.deploy.programs import ROOT, program

TIMEOUT = 60.0
BUILD_TIMEOUT = 600.0
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
"""Settings that need no systemd, and no limit above the machine's."""

STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{folder}/store"
runroot = "{folder}/run"
"""


class Podman:
    """Runs podman, and other programs beside it. A context manager; ``folder`` is removed at the end.

    They run in a network namespace with podman's networks and published ports, which reaches no other network. A
    program that runs ``on_host`` has the machine's network instead.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("podman", "runc"):
            program(name, f"Debian: {name}")
        program("ip", "Debian: iproute2")
        self._nsenter = program("nsenter", "Debian: util-linux")
        self.folder = folder
        (folder / "tmp").mkdir()
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SANITIZER_", "LITELLM_"))
        }
        self.environment["TMPDIR"] = str(folder / "tmp")
        for variable, text in (("CONTAINERS_CONF", CONTAINERS_CONF), ("CONTAINERS_STORAGE_CONF", STORAGE_CONF)):
            file = folder / variable.lower()
            file.write_text(text.format(folder=folder))
            self.environment[variable] = str(file)
        self._world = subprocess.Popen(
            [Path(__file__).with_name("world.sh"), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
            start_new_session=True,  # an interrupt from the terminal ends only the tests, which then end it
        )
        assert self._world.stdout is not None
        assert self._world.stdout.readline() == b"ready\n"
        self._pid = only_child(only_child(self._world.pid))

    def command(self, *arguments: str, on_host: bool = False) -> list[str]:
        """The command that runs ``arguments`` in the namespaces, in the project's folder."""
        inside = [self._nsenter, "--target", str(self._pid), "--mount", "--pid", f"--wd={ROOT}"]
        return [*inside, *([] if on_host else ["nsenter", "--net=/run/bridged"]), *arguments]

    def run(
        self,
        *arguments: str,
        on_host: bool = False,
        check: bool = True,
        timeout: float = TIMEOUT,
        environment: dict[str, str] | None = None,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespaces, and wait until it ends.

        Raises:
            AssertionError: ``check`` is true, and the program has ended with a status other than 0.
        """
        done = subprocess.run(
            self.command(*arguments, on_host=on_host),
            env=self.environment | (environment or {}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
        return done

    def __call__(self, *arguments: str, on_host: bool = False, timeout: float = TIMEOUT) -> str:
        """Run podman, and wait until it ends. Returns its standard output."""
        return self.run("podman", *arguments, on_host=on_host, timeout=timeout).stdout.strip()

    def build(self, tag: str, context: Path, *options: str) -> None:
        """Build an image, with this machine's network and certificate authorities."""
        trusted = ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"] if Path(CERTIFICATES).exists() else []
        arguments = ["--format", "docker", "--network", "host", *trusted, *options, "--tag", tag, str(context)]
        self("build", *arguments, on_host=True, timeout=BUILD_TIMEOUT)

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """The result of ``podman inspect`` for a ``container`` or an ``image``."""
        found: dict[str, Any] = json.loads(self(kind, "inspect", name))[0]
        return found

    def log(self, container: str, *options: str) -> str:
        done = self.run("podman", "logs", *options, container)
        return done.stdout + done.stderr

    def is_healthy(self, container: str, *, on_host: bool = False) -> bool:
        """Run the container's health check once. podman leaves this to timers of systemd, which does not run here.

        ``on_host`` must be true for a container with the machine's network, because the check uses podman's network.
        """
        return self.run("podman", "healthcheck", "run", container, on_host=on_host, check=False).returncode == 0

    def wait_for(self, container: str, condition: Callable[[], object], timeout: float = TIMEOUT) -> None:
        """Wait until ``condition()`` is true.

        Raises:
            AssertionError: the container has ended, or ``timeout`` is over. The message is the container's log.
        """
        until = time.monotonic() + timeout
        while not condition():
            assert self.inspect("container", container)["State"]["Running"], self.log(container)
            assert time.monotonic() < until, self.log(container)
            time.sleep(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._world.stdin is not None
        assert self._world.stdout is not None
        self._world.stdin.close()
        self._world.wait(BUILD_TIMEOUT)
        self._world.stdout.close()


def only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)

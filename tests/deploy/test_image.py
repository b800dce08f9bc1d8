"""The image, built from the Dockerfile by buildah on a base of Debian packages, and run as a container would be.

No container engine runs it: a chroot with its file system read-only, its own process ids, the image's user, environment
and entry point. What a registry's ``python:slim`` base would add or lack is not seen here.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.programs import ROOT, program
from tests.support.client import ask
from tests.support.gateway import free_port
from tests.support.upstream import Upstream

TIMEOUT = 60.0
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, directory: Path) -> None:
        self.command = [program("buildah", "Debian: buildah"), "--root", str(directory / "store")]
        self.command += ["--runroot", str(directory / "run"), "--storage-driver", "vfs"]

    def __call__(self, *arguments: str, timeout: float = 600) -> str:
        done = subprocess.run(
            [*self.command, *arguments], capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


@dataclass
class Image:
    """The built image: its configuration, its mounted file system, and how many bytes it adds to its base."""

    config: dict[str, Any]
    root: Path
    added: int


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    tars = {name: os.environ.get(f"IMAGE_{name}") for name in ("BASE", "BUILDER")}
    if None in tars.values():
        pytest.skip("IMAGE_BASE and IMAGE_BUILDER name no bases for the image (tests/deploy/base.sh makes them)")
    if os.geteuid() != 0:
        pytest.skip("building the image in a chroot takes root")
    buildah = Buildah(tmp_path_factory.mktemp("image"))
    arguments = ["--format", "docker", "--isolation", "chroot"]
    size_of_base = 0
    for name, tar in tars.items():
        scratch = buildah("from", "scratch")
        buildah("add", "--quiet", scratch, str(tar), "/")
        if name == "BASE":
            size_of_base = size_of(Path(buildah("mount", scratch)))
        buildah("commit", "--quiet", "--rm", scratch, name.lower())
        arguments += ["--build-arg", f"{name}=localhost/{name.lower()}"]
    # what this machine trusts, for the time of the build
    arguments += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"] if Path(CERTIFICATES).exists() else []
    buildah("build", *arguments, "--tag", "litellm-sanitizer", ".")
    container = buildah("from", "localhost/litellm-sanitizer")
    root = Path(buildah("mount", container))
    try:
        config = json.loads(buildah("inspect", "--type", "image", "localhost/litellm-sanitizer"))["Docker"]["config"]
        yield Image(config, root, size_of(root) - size_of_base)
    finally:
        buildah("umount", container)
        buildah("rm", "--all")
        buildah("rmi", "--all", "--force")


def size_of(folder: Path) -> int:
    return int(subprocess.run(["du", "-sb", str(folder)], capture_output=True, check=True).stdout.split()[0])


@dataclass
class Running:
    """The image's entry point as process 1 of its own process ids."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    admin_port: int
    root: Path

    @property
    def pid(self) -> int:
        """Outside: the only child of `unshare`."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(children) == 1
        return int(children[0])

    def family(self) -> dict[int, str]:
        """The states of all its descendants, by process id."""
        found: dict[int, str] = {}
        waiting = [self.pid]
        while waiting:
            parent = waiting.pop()
            with contextlib.suppress(OSError):
                for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
                    found[int(child)] = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
                    waiting.append(int(child))
        return found

    def wait_for(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + TIMEOUT
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)


@contextlib.contextmanager
def running(image: Image, directory: Path, upstream: Upstream, *arguments: str) -> Iterator[Running]:
    port, admin_port = free_port(), free_port()
    environment = dict(each.split("=", 1) for each in image.config["Env"])
    environment |= {
        "SANITIZER_UPSTREAM": upstream.url,
        "SANITIZER_PORT": str(port),
        "SANITIZER_ADMIN_PORT": str(admin_port),
        "SANITIZER_SHUTDOWN_GRACE": "6",
    }
    log = directory / "log"
    root = str(image.root)
    setup = (
        'mount --make-rprivate / && mount --bind "$1" "$1" && mount -t proc proc "$1/proc"'
        ' && mount -o remount,bind,ro "$1" && root=$1 user=$2 && shift 2 && exec chroot --userspec="$user" "$root" "$@"'
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *[program("unshare", "Debian: util-linux"), "--pid", "--fork", "--mount", "--kill-child"],
                *["sh", "-c", setup, "sh", root, image.config["User"]],
                *["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in environment.items())],
                *[*image.config["Entrypoint"], *arguments],
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    started = Running(process, log, port, admin_port, image.root)
    try:
        started.wait_for(lambda: "listening on" in log.read_text())
        yield started
    finally:
        if process.poll() is None:
            # not `unshare`: its --kill-child is forgotten when chroot changes the user (prctl(2), PR_SET_PDEATHSIG)
            os.kill(started.pid, signal.SIGKILL)
        process.wait(TIMEOUT)


def test_it_says_what_it_is(image: Image) -> None:
    """A numeric user, an entry point in exec form, ports, labels; no compiler, pip or cache, less than 80 MB."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.config["User"])
    assert image.config["Entrypoint"] == ["litellm-sanitizer"]
    assert set(image.config["ExposedPorts"]) == {"4001/tcp", "9464/tcp"}
    environment = dict(each.split("=", 1) for each in image.config["Env"])
    assert environment["SANITIZER_HOST"] == environment["SANITIZER_ADMIN_HOST"] == "0.0.0.0"  # noqa: S104
    labels = {name.removeprefix("org.opencontainers.image.") for name in image.config["Labels"]}
    assert {"title", "description", "licenses"} <= labels
    assert image.config["Healthcheck"]["Test"][0] == "CMD"
    assert image.added < 80_000_000
    for left in ("usr/bin/gcc", "opt/litellm-sanitizer/bin/pip", "root/.cache", "build", "tests"):
        assert not (image.root / left).exists()
    print(f"the image adds {image.added / 1e6:.1f} MB to its base", file=sys.stderr)


def test_it_runs_compiled_modules(image: Image) -> None:
    """The image is built by its builder's compiler, which it does not contain."""
    command = ["chroot", str(image.root), "/opt/litellm-sanitizer/bin/litellm-sanitizer", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith(" (compiled)\n")


def test_it_serves_read_only_and_drains_at_sigterm(image: Image, tmp_path: Path) -> None:
    """As the numeric user and process 1, on a file system that can't be written to; a stop is a drain."""
    with Upstream() as upstream, running(image, tmp_path, upstream) as gateway:
        answer = ask(("127.0.0.1", gateway.port), b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (answer.status, answer.body) == (200, b"ok")
        status = Path(f"/proc/{gateway.pid}/status").read_text()
        assert re.search(r"^Uid:\t65532\t65532\t65532\t65532$", status, re.MULTILINE)
        assert re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert Path(f"/proc/{gateway.pid}/exe").resolve().name.startswith("python3")
        os.kill(gateway.pid, signal.SIGTERM)
        assert gateway.process.wait(TIMEOUT) == 0, gateway.log.read_text()
        assert "Traceback" not in gateway.log.read_text()


def test_its_health_check(image: Image, tmp_path: Path) -> None:
    """Succeeds while it serves, on whichever port the admin listener has; fails when nothing listens there."""
    test = image.config["Healthcheck"]["Test"][1:]
    inside = ["chroot", f"--userspec={image.config['User']}", str(image.root), "/usr/bin/env", "-i"]

    def check(port: int) -> int:
        command = [*inside, f"SANITIZER_ADMIN_PORT={port}", *test]
        return subprocess.run(command, timeout=TIMEOUT, capture_output=True, check=False).returncode

    with Upstream() as upstream, running(image, tmp_path, upstream) as gateway:
        assert check(gateway.admin_port) == 0
        assert check(free_port()) != 0


def test_process_1_leaves_no_zombies(image: Image, tmp_path: Path) -> None:
    """With workers, one of which is killed: it is reaped and replaced, and at a stop all of them end."""
    with Upstream() as upstream, running(image, tmp_path, upstream, "--workers", "2") as gateway:
        gateway.wait_for(lambda: len(gateway.family()) >= 3)  # two workers, and multiprocessing's resource tracker
        before = gateway.family()
        worker = next(pid for pid in before if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)
        gateway.wait_for(lambda: worker not in gateway.family() and len(gateway.family()) == len(before))
        assert "Z" not in gateway.family().values()
        assert ask(("127.0.0.1", gateway.port), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").status == 200
        os.kill(gateway.pid, signal.SIGTERM)
        assert gateway.process.wait(TIMEOUT) == 0, gateway.log.read_text()

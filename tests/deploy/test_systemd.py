"""The unit: read by systemd's own tools, and run by a systemd that is process 1 of a container.

There, the lines of deploy/README.md install, upgrade and remove it. The container shares the network with this machine,
and its systemd has no more privileges than it needs to make a sandbox. What a machine's own systemd would do otherwise
is not seen: user namespaces, AppArmor or SELinux, and the memory limit of a control group.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.deploy.programs import DEPLOY, ROOT, program
from tests.support.client import Client
from tests.support.gateway import free_port
from tests.support.upstream import OK, Connection, Upstream
from tests.support.wire import Cut

UNIT = DEPLOY / "systemd" / "litellm-sanitizer.service"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
DROP_IN = f"/etc/systemd/system/{UNIT.name}.d/test.conf"
CERTIFICATE = "/etc/litellm-sanitizer.pem"
EXPOSURE = 14
"""Ten times what `systemd-analyze security` rates the unit, as deploy/README.md says."""
READY = b'{"status": "healthy", "db": "connected", "litellm_version": "1.83.13"}'
TIMEOUT = 60.0


def systemd_analyze() -> str:
    return program("systemd-analyze", "Debian: systemd")


# By systemd's own tools


def verify(unit: str, root: Path) -> subprocess.CompletedProcess[str]:
    """What `systemd-analyze verify` says of this text as the unit of a machine on which everything is in its place."""
    for folder in ("etc/systemd/system", "opt/litellm-sanitizer/bin", "usr/bin"):
        (root / folder).mkdir(parents=True)
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    (root / "etc/systemd/system" / UNIT.name).write_text(unit)
    for name in ("opt/litellm-sanitizer/bin/litellm-sanitizer", "usr/bin/kill"):
        (root / name).write_text("#!/bin/sh\n")
        (root / name).chmod(0o755)
    command = [systemd_analyze(), "verify", f"--root={root}", "--man=no", "--recursive-errors=no", UNIT.name]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.mark.parametrize("drop_in", [False, True], ids=["as it is", "with all that is commented out"])
def test_verify(tmp_path: Path, drop_in: bool) -> None:
    """systemd knows every option and value in it."""
    unit = UNIT.read_text()
    done = verify(re.sub("^#(?=[A-Z][A-Za-z]+=)", "", unit, flags=re.MULTILINE) if drop_in else unit, tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_verify_finds_mistakes(tmp_path: Path) -> None:
    """An option that systemd does not know is found."""
    done = verify(UNIT.read_text().replace("ProtectSystem=", "ProtectsSystem="), tmp_path)
    assert "Unknown key" in done.stderr


def test_security() -> None:
    """The sandbox is as tight as deploy/README.md says."""
    command = [systemd_analyze(), "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"rates it {EXPOSURE / 10} " in (DEPLOY / "README.md").read_text()


# By a systemd that runs it


def blocks() -> list[str]:
    """The commands in deploy/README.md: files, check and start, upgrade, removal."""
    text = (DEPLOY / "README.md").read_text()
    section = text[text.index("\n## A service of systemd\n") :]
    return re.findall(r"^```sh\n(.*?)^```$", section[: section.index("\n## ", 1)], re.MULTILINE | re.DOTALL)


FILES, START, UPGRADE, REMOVAL = blocks()


class Machine:
    """A container whose process 1 is systemd, run by a podman that keeps everything in ``folder``."""

    def __init__(self, base: str, folder: Path) -> None:
        program("runc", "Debian: runc")
        self._folder = folder
        self.name = f"litellm-sanitizer-{uuid.uuid4().hex[:12]}"
        configuration = folder / "containers.conf"
        configuration.write_text(
            # limits that also a machine which is a container itself lets podman set
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        self._environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}
        self._podman = [program("podman", "Debian: podman"), "--root", str(folder / "store")]
        self._podman += ["--runroot", str(folder / "run"), "--tmpdir", str(folder / "tmp")]
        self.podman("import", base, self.name)

    def start(self) -> None:
        certificates = ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"] if Path(CERTIFICATES).exists() else []
        self.podman(
            *("run", "--detach", "--systemd=always", "--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined"),
            *("--rm", "--timeout=1800"),  # it does not outlive a run that was killed for long
            *("--network=host", f"--volume={ROOT}:/clone:ro", *certificates, "--workdir=/clone"),
            *("--name", self.name, self.name, "/lib/systemd/systemd"),
        )
        self.wait_for(lambda: self.run("systemctl is-system-running || true").strip() in ("running", "degraded"))
        self.run("mount --make-rshared /")  # as systemd does outside of containers; credentials need it

    def remove(self) -> None:
        self.podman("rm", "--force", "--time=0", "--ignore", self.name)
        self.podman("rmi", "--force", self.name)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{self._folder}/"):  # podman's own, of its store
                subprocess.run(["umount", line.split()[1]], timeout=TIMEOUT, check=True)

    def podman(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._podman, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, commands: str) -> str:
        """Run these commands in the container, as root and in the clone; what they write."""
        return self.podman("exec", self.name, "sh", "-euc", commands)

    def wait_for(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < until, self.run(
                f"journalctl --no-pager | tail -50; systemctl status {UNIT.stem} || true"
            )
            time.sleep(0.2)


class Service(Machine):
    """The service on such a machine, which listens on ``port`` of this one."""

    port: int

    def show(self, name: str) -> str:
        return self.run(f"systemctl show -P {name} {UNIT.stem}").strip()

    def log(self) -> str:
        return self.run(f"journalctl -u {UNIT.stem} -o cat --no-pager")

    def options(self, *lines: str) -> None:
        """Let the service have these options alone, when it is started again."""
        self.run("cat >/etc/litellm-sanitizer.env <<'EOF'\n" + "\n".join(lines) + "\nEOF")

    def restart(self, *lines: str) -> None:
        """Start it again with these options alone, whether it can or not."""
        self.options(*lines)
        self.run(f"systemctl restart {UNIT.stem} || true")

    def drop_in(self, *names: str) -> None:
        """Let the service have the lines for a drop-in that the unit shows and that set ``names``."""
        lines = [line[1:] for line in UNIT.read_text().splitlines() if line.startswith(tuple(f"#{n}=" for n in names))]
        assert len(lines) == len(names)
        self.run(f"mkdir -p {Path(DROP_IN).parent}; cat >{DROP_IN} <<'EOF'\n[Service]\n" + "\n".join(lines) + "\nEOF")
        self.run("systemctl daemon-reload")

    def ask(self, port: int | None = None) -> int:
        with Client(("127.0.0.1", port or self.port)) as client:
            return client.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status

    def serves(self, port: int | None = None) -> bool:
        """Whether it answers as it should; it may not have begun to listen yet."""
        try:
            return self.ask(port) == 200
        except (ConnectionError, Cut):
            return False


class LiteLLM(Upstream):
    """An upstream that `check` takes for a LiteLLM. While `held` is not set, its answers to POST wait for it."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.held.set()
        super().__init__(self._answer)

    def _answer(self, connection: Connection) -> None:
        request = connection.read_request()
        if request.method == b"POST":
            self.held.wait(TIMEOUT)
        if request.target == b"/health/readiness":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(READY), READY))
        else:
            connection.send(OK)


@pytest.fixture(scope="module")
def upstream() -> Iterator[LiteLLM]:
    upstream = LiteLLM()
    with upstream:
        yield upstream
        upstream.errors.clear()  # of connections that an end of the service has cut


@pytest.fixture(scope="module")
def service(upstream: LiteLLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, installed and started as deploy/README.md says."""
    base = os.environ.get("SYSTEMD_BASE")
    if base is None:
        pytest.skip("SYSTEMD_BASE names no base with systemd, dbus and procps (tests/deploy/base.sh makes one)")
    if os.geteuid() != 0:
        pytest.skip("a container with systemd takes root")
    service = Service(base, tmp_path_factory.mktemp("machine"))
    try:
        service.start()
        service.run(FILES)
        service.port = free_port()
        service.options(*options(service, upstream))
        assert "No problem." in service.run(START)
        service.wait_for(service.serves)
        yield service
    finally:
        service.remove()


def low_port() -> int:
    """A port below 1024 on which nobody listens."""
    for port in range(700, 1024):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port below 1024")


def options(service: Service, upstream: Upstream) -> tuple[str, ...]:
    return (
        f"SANITIZER_UPSTREAM={upstream.url}",
        f"SANITIZER_PORT={service.port}",
        "SANITIZER_ADMIN_PORT=0",
        "SANITIZER_WORKERS=2",
        "SANITIZER_SHUTDOWN_GRACE=30",
    )


def test_confined(service: Service) -> None:
    """Every process of it is a user of its own, without capabilities, and under the filter of system calls."""
    assert service.run("stat -c '%a %U' /etc/litellm-sanitizer.env").strip() == "600 root"
    assert service.show("UnitFileState") == "enabled"
    group = service.show("ControlGroup")
    found = service.run(
        "for each in $(cat /sys/fs/cgroup/systemd$1/cgroup.procs /sys/fs/cgroup$1/cgroup.procs 2>/dev/null); do "
        "grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/$each/status; done".replace("$1", group)
    )
    lines = [line.split() for line in found.splitlines()]
    assert len(lines) == 5 * 4  # the parent, its resource tracker, two workers
    assert all(int(user) >= 61184 for name, *users in lines if name == "Uid:" for user in users)  # dynamic ones
    others = {(name, int(value, 16)) for name, value, *_ in lines if name != "Uid:"}
    assert others == {("CapEff:", 0), ("CapBnd:", 0), ("NoNewPrivs:", 1), ("Seccomp:", 2)}


def test_reload(service: Service, upstream: LiteLLM) -> None:
    """`systemctl reload` loads a renewed certificate, whose key a group of the service can read."""
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def renew() -> bytes:
        made = authority.issue_cert("localhost")
        chain, key = (pem.bytes().decode() for pem in (made.cert_chain_pems[0], made.private_key_pem))
        service.run(f"umask 027; cat >{CERTIFICATE} <<'EOF'\n{chain}{key}EOF\nchgrp ssl-cert {CERTIFICATE}")
        return ssl.PEM_cert_to_DER_cert(chain)

    def presented() -> bytes | None:
        with contextlib.suppress(OSError), Client(("127.0.0.1", service.port), context=context) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            return client.sock.getpeercert(True)
        return None  # it may not have begun to listen yet

    service.run("groupadd --system ssl-cert")
    service.drop_in("SupplementaryGroups")
    first = renew()
    service.restart(*options(service, upstream), f"SANITIZER_SSL_CERTFILE={CERTIFICATE}")
    service.wait_for(lambda: presented() == first)
    process = service.show("MainPID")
    second = renew()
    service.run(f"systemctl reload {UNIT.stem}")
    service.wait_for(lambda: presented() == second)
    assert service.show("MainPID") == process
    service.run(f"rm -r {Path(DROP_IN).parent} {CERTIFICATE}; systemctl daemon-reload")
    service.restart(*options(service, upstream))
    service.wait_for(service.serves)


def test_crash(service: Service) -> None:
    """It is started again when it has crashed."""
    old = service.show("MainPID")
    service.run(f"kill -{int(signal.SIGKILL)} {old}")
    service.wait_for(lambda: service.show("NRestarts") == "1" and service.show("SubState") == "running")
    service.wait_for(service.serves)
    assert service.show("MainPID") != old


def test_upgrade(service: Service, upstream: LiteLLM) -> None:
    """An upgrade restarts it, and the request under way is answered first."""
    *files, restart = UPGRADE.splitlines()
    service.run("\n".join(files))
    old = service.show("MainPID")
    upstream.held.clear()
    number = len(upstream.requests)
    with Client(("127.0.0.1", service.port)) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        upstream.wait_for(lambda: len(upstream.requests) > number)
        upgrade = threading.Thread(target=service.run, args=(restart,))
        upgrade.start()
        try:
            service.wait_for(lambda: service.show("ActiveState") == "deactivating")
        finally:
            upstream.held.set()
        assert client.read_response(b"POST").status == 200
        upgrade.join()
    assert (service.show("Result"), service.show("NRestarts"), service.show("ActiveState")) == (
        "success",
        "0",
        "active",
    )
    assert service.show("MainPID") != old
    service.wait_for(service.serves)


def test_drop_in(service: Service, upstream: LiteLLM) -> None:
    """With the lines that the unit shows, it reads a key that root alone can read, and takes a port below 1024."""
    service.run("umask 077; echo sk-lookup >/etc/litellm-sanitizer.key")
    service.drop_in("LoadCredential", "Environment", "AmbientCapabilities", "CapabilityBoundingSet")
    port = low_port()
    service.restart(*options(service, upstream), f"SANITIZER_PORT={port}")
    service.wait_for(lambda: service.serves(port))
    assert (
        service.run(f"tr '\\0' '\\n' </proc/{service.show('MainPID')}/environ | grep LOOKUP").count("/lookup-key") == 1
    )
    service.run(f"rm -r {Path(DROP_IN).parent} /etc/litellm-sanitizer.key; systemctl daemon-reload")
    service.restart(*options(service, upstream))


def test_bad_usage(service: Service, upstream: LiteLLM) -> None:
    """With an option that it does not take, it fails once and for all, and the log says why."""
    service.restart("SANITIZER_PORT=none")
    service.wait_for(lambda: service.show("ActiveState") == "failed")
    assert (service.show("ExecMainStatus"), service.show("NRestarts")) == ("2", "0")
    service.wait_for(lambda: "litellm-sanitizer: SANITIZER_PORT 'none': takes a port" in service.log())
    service.restart(*options(service, upstream))


def test_removal(service: Service) -> None:
    """Nothing of it stays behind but its log."""
    service.run(REMOVAL)
    assert service.run(f"systemctl list-units --all --no-legend '{UNIT.stem}*'; systemctl reset-failed") == ""
    assert service.run("find / -xdev -path /proc -prune -o -name '*litellm*sanitizer*' -print") == ""

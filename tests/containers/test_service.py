"""The unit of deploy/systemd, run by a systemd that is process 1 of a container.

There, the commands in deploy/README.md install, upgrade and remove it. The container shares the network with this
machine, and its systemd has only the privileges that it needs to make a sandbox. The tests do not cover what a
machine's own systemd does differently: user namespaces, AppArmor or SELinux, and a control group's memory limit.
"""

import contextlib
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.containers.conftest import Images
from tests.containers.podman import BUILD_TIMEOUT, CERTIFICATES, TIMEOUT, Podman
from tests.deploy.programs import DEPLOY, ROOT
from tests.support.client import Client
from tests.support.gateway import free_port
from tests.support.upstream import OK, Connection, Upstream
from tests.support.wire import Cut

UNIT = DEPLOY / "systemd" / "litellm-sanitizer.service"
DROP_IN = f"/etc/systemd/system/{UNIT.name}.d/test.conf"
CERTIFICATE = "/etc/litellm-sanitizer.pem"
READY = b'{"status": "healthy", "db": "connected", "litellm_version": "1.83.13"}'


def blocks() -> list[str]:
    """The commands in deploy/README.md, as four blocks: files, check and start, upgrade, removal."""
    text = (DEPLOY / "README.md").read_text()
    section = text[text.index("\n## A service of systemd\n") :]
    return re.findall(r"^```sh\n(.*?)^```$", section[: section.index("\n## ", 1)], re.MULTILINE | re.DOTALL)


FILES, START, UPGRADE, REMOVAL = blocks()


class Service:
    """A container whose process 1 is systemd. Its service listens on ``port`` of this machine."""

    def __init__(self, podman: Podman, image: str) -> None:
        self.port = free_port()
        self._podman = podman
        certificates = ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"] if Path(CERTIFICATES).exists() else []
        self._name = podman(
            *("run", "--detach", "--systemd=always", "--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined"),
            *("--network=host", f"--volume={ROOT}:/clone:ro", *certificates, "--workdir=/clone"),
            *(image, "/lib/systemd/systemd"),
            on_host=True,
        )
        self.wait_for(lambda: self.run("systemctl is-system-running || true").strip() in ("running", "degraded"))
        self.run("mount --make-rshared /")  # as systemd does outside of containers; credentials need it

    def remove(self) -> None:
        self._podman("rm", "--force", "--time=0", self._name)

    def run(self, commands: str) -> str:
        """Run ``commands`` in the container, as root and in the clone. Returns their output."""
        command = ["exec", self._name, "sh", "-euc", commands]
        # Without `on_host`, it would use another network than the container's.
        return self._podman(*command, on_host=True, timeout=BUILD_TIMEOUT)

    def wait_for(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < until, self.run(
                f"journalctl --no-pager | tail -50; systemctl status {UNIT.stem} || true"
            )
            time.sleep(0.2)

    def show(self, name: str) -> str:
        return self.run(f"systemctl show -P {name} {UNIT.stem}").strip()

    def log(self) -> str:
        return self.run(f"journalctl -u {UNIT.stem} -o cat --no-pager")

    def options(self, *lines: str) -> None:
        """Replace all options of the service by ``lines``. It uses them from its next start."""
        self.run("cat >/etc/litellm-sanitizer.env <<'EOF'\n" + "\n".join(lines) + "\nEOF")

    def restart(self, *lines: str) -> None:
        """Restart the service with ``lines`` as its only options, whether or not it can start."""
        self.options(*lines)
        self.run(f"systemctl restart {UNIT.stem} || true")

    def drop_in(self, *names: str) -> None:
        """Install a drop-in with those lines that the unit has as comments and that set ``names``."""
        lines = [line[1:] for line in UNIT.read_text().splitlines() if line.startswith(tuple(f"#{n}=" for n in names))]
        assert len(lines) == len(names)
        self.run(f"mkdir -p {Path(DROP_IN).parent}; cat >{DROP_IN} <<'EOF'\n[Service]\n" + "\n".join(lines) + "\nEOF")
        self.run("systemctl daemon-reload")

    def ask(self, port: int | None = None) -> int:
        with Client(("127.0.0.1", port or self.port)) as client:
            return client.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status

    def serves(self, port: int | None = None) -> bool:
        """Whether a request is answered with 200. The service may not be listening yet."""
        try:
            return self.ask(port) == 200
        except (ConnectionError, Cut):
            return False


class LiteLLM(Upstream):
    """An upstream that `check` takes for a LiteLLM. It answers a POST only when `held` is set."""

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
        upstream.errors.clear()  # from connections that the service cut when it ended


@pytest.fixture(scope="module")
def service(podman: Podman, images: Images, upstream: LiteLLM) -> Iterator[Service]:
    """The service, installed and started as deploy/README.md says."""
    service = Service(podman, images.stand_in("systemd", "localhost/systemd", "bookworm"))
    try:
        service.run(FILES)
        service.options(*options(service, upstream))
        assert "No problem." in service.run(START)
        service.wait_for(service.serves)
        yield service
    finally:
        service.remove()


def low_port() -> int:
    """A port below 1024 on which nothing listens."""
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
    """Every process of the service has a dynamic user, no capabilities, and the filter of system calls."""
    assert service.run("stat -c '%a %U' /etc/litellm-sanitizer.env").strip() == "600 root"
    assert service.show("UnitFileState") == "enabled"
    group = service.show("ControlGroup")
    found = service.run(
        "for each in $(cat /sys/fs/cgroup/systemd$1/cgroup.procs /sys/fs/cgroup$1/cgroup.procs 2>/dev/null); do "
        "grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/$each/status; done".replace("$1", group)
    )
    lines = [line.split() for line in found.splitlines()]
    assert len(lines) == 5 * 4  # the parent, its resource tracker, two workers
    assert all(int(user) >= 61184 for name, *users in lines if name == "Uid:" for user in users)  # dynamic users
    others = {(name, int(value, 16)) for name, value, *_ in lines if name != "Uid:"}
    assert others == {("CapEff:", 0), ("CapBnd:", 0), ("NoNewPrivs:", 1), ("Seccomp:", 2)}


def test_reload(service: Service, upstream: LiteLLM) -> None:
    """`systemctl reload` loads a renewed certificate, whose key a supplementary group of the service can read."""
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
    """systemd starts the service again after a crash."""
    old = service.show("MainPID")
    service.run(f"kill -{int(signal.SIGKILL)} {old}")
    service.wait_for(lambda: service.show("NRestarts") == "1" and service.show("SubState") == "running")
    service.wait_for(service.serves)
    assert service.show("MainPID") != old


def test_upgrade(service: Service, upstream: LiteLLM) -> None:
    """An upgrade restarts the service, which first answers the request in flight."""
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
    """With the drop-in lines that the unit shows, the service reads a key file, and uses a port below 1024.

    Only root can read the key file.
    """
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
    """With an invalid option, the service fails and is not restarted, and the log has the reason."""
    service.restart("SANITIZER_PORT=none")
    service.wait_for(lambda: service.show("ActiveState") == "failed")
    assert (service.show("ExecMainStatus"), service.show("NRestarts")) == ("2", "0")
    service.wait_for(lambda: "litellm-sanitizer: SANITIZER_PORT 'none': takes a port" in service.log())
    service.restart(*options(service, upstream))


def test_removal(service: Service) -> None:
    """The removal leaves nothing of the service behind but its log."""
    service.run(REMOVAL)
    assert service.run(f"systemctl list-units --all --no-legend '{UNIT.stem}*'; systemctl reset-failed") == ""
    assert service.run("find / -xdev -path /proc -prune -o -name '*litellm*sanitizer*' -print") == ""

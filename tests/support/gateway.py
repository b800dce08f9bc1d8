"""The gateway as a process between a test's client and its upstream."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tests.support.client import Address, Client, Response

Adapter = Literal["native", "asgi", "httpx"]
"""Which implementation of the gateway a test runs; see `MODULES`."""

MODULES: dict[Adapter, list[str]] = {
    "native": ["sanitizer", "serve"],  # the product: the command's own server
    "asgi": ["tests.support.asgi_adapter"],  # create_app() under an unmodified uvicorn
    "httpx": ["tests.conformance.httpx_relay"],  # a simple relay with httpx, for comparison
}
ROOT = Path(__file__).parents[2]
START_TIMEOUT = 30.0
ADMIN_ATTEMPTS = 5
STOP_TIMEOUT = 40.0


def free_port() -> int:
    """A port of loopback on which nothing listens, outside the range of outgoing connections, so that it stays free."""
    with reserved_port() as port:
        return port


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port of loopback for as long as the context lasts. A listener there has to set SO_REUSEADDR.

    The port is below the range of outgoing connections. An outgoing connection from the same port, at any local
    address, would prevent a listener on all addresses.
    """
    with socket.socket() as reserved:
        for _ in range(100):
            port = random.SystemRandom().randrange(15_000, 32_000)  # Hypothesis seeds the module's own
            with contextlib.suppress(OSError):
                reserved.bind(("127.0.0.1", port))  # fails if the port is bound, even if nothing listens there
                break
        else:
            raise OSError("no free port")
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # from now on a listener can bind it too
        yield port


class Gateway:
    """A running gateway in front of ``upstream`` (a URL). ``lines`` are the lines it has written to stderr so far.

    With ``admin`` or ``admin_port`` it has an admin listener, at the address `admin`. Environment variables of the test
    run that would set options are not passed to it.
    """

    def __init__(
        self,
        upstream: str,
        *options: str,
        adapter: Adapter = "native",
        listen: tuple[str, ...] = ("--port", "0"),
        admin: bool = False,
        admin_port: int = 0,
    ) -> None:
        self.adapter = adapter
        arguments = [*MODULES[adapter], "--upstream", upstream, *listen, *options]
        if adapter == "native" and "--log-format" not in options:
            arguments += ["--log-format", "json"]
        for attempt in range(ADMIN_ATTEMPTS):
            self.admin = ("127.0.0.1", admin_port or (free_port() if admin else 0))
            try:
                self._start([*arguments, "--admin-port", str(self.admin[1])] if adapter == "native" else arguments)
                return
            except AssertionError:
                # another process has bound the port since it was found to be free
                if attempt == ADMIN_ATTEMPTS - 1 or not any("(--admin-port)" in line for line in self.lines):
                    raise

    def _start(self, arguments: list[str]) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SANITIZER_", "SERVER_"))}
        environment["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error::ResourceWarning", "-m", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        )
        self.lines: list[str] = []
        self._condition = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""
        try:
            self.address = self._wait_for_address()
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._condition:
                self.lines.append(line.decode("utf-8", "backslashreplace").rstrip("\n"))
                self._condition.notify_all()
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def wait_for_line(self, pattern: str, *, timeout: float = START_TIMEOUT) -> re.Match[str]:
        """Wait until a line on stderr matches ``pattern``.

        Raises:
            AssertionError: the process ended, or ``timeout`` seconds passed, without such a line.
        """

        def match() -> re.Match[str] | None:
            return next((found for line in self.lines if (found := re.search(pattern, line))), None)

        with self._condition:
            self._condition.wait_for(lambda: match() or self._ended, timeout)
            found = match()
            assert found, f"no line like {pattern!r}:\n" + "\n".join(self.lines)
            return found

    def _wait_for_address(self) -> Address:
        self.url = self.wait_for_line(r"listening on (unix:[^\s\"]+|https?://[^\s\",]+)")[1]
        if self.url.startswith("unix:"):
            return self.url.removeprefix("unix:").removeprefix("//")
        host, _, port = self.url.rpartition("//")[2].rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON log records written so far. Lines that are not JSON are left out."""
        found = []
        for line in self.lines:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [record for record in found if isinstance(record, dict)]

    def connect(self) -> Client:
        return Client(self.address)

    def ask(self, *chunks: bytes) -> Response:
        """Send one request on a new connection, and read its response."""
        with self.connect() as client:
            return client.ask(*chunks)

    def ask_admin(self, path: str) -> Response:
        """Send one GET request to the admin listener, and read its response."""
        with Client(self.admin) as client:
            return client.ask(f"GET {path} HTTP/1.1\r\nHost: admin.test\r\nConnection: close\r\n\r\n".encode())

    def workers(self) -> list[int]:
        """The process ids of the gateway's workers."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def memory(self) -> int:
        """The proportional set size of the process in bytes."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no Pss in smaps_rollup")

    def open_sockets(self) -> int:
        """How many sockets the process has open, listeners included."""
        count = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                count += os.readlink(entry).startswith("socket:")
        return count

    def assert_no_traceback(self) -> None:
        """Fail if the gateway's own server has logged a traceback. uvicorn logs one for each response that is cut."""
        if self.adapter == "native":
            with self._condition:
                assert not any("Traceback" in line for line in self.lines), "\n".join(self.lines)

    def terminate(self) -> None:
        """Send SIGTERM, upon which the gateway drains."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """Wait until the process has ended. Returns the exit status."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        if self.process.stderr:
            self.process.stderr.close()
        return status

    def stop(self) -> int:
        """Send SIGINT, upon which the gateway stops accepting at once, and wait. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
            return
        if self.process.poll() is None:
            self.stop()
        else:
            self.wait()
        self.assert_no_traceback()

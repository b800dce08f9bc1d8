"""The servers of the walk-through, both on loopback: an ASGI app in a thread, and the gateway in a process."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import uvicorn
from starlette.types import ASGIApp

_SILENT = uvicorn.config.LOG_LEVELS["critical"] + 1
_GATEWAY = [sys.executable, "-P", "-m", "sanitizer", "serve", "--port", "0", "--log-format", "text"]
_START_TIMEOUT = 30.0  # seconds
_STOP_TIMEOUT = 5.0


class GatewayFailed(Exception):
    """The gateway did not start, or it ended unexpectedly. The message says which, with the log of a failed start."""


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve ``app`` on a free port until the block ends. Yields its URL, ``http://127.0.0.1:PORT``.

    The socket listens before the server runs, so no connection is refused. Nothing is logged.
    """
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=_SILENT,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Gateway:
    """A gateway process that serves at ``url``. While ``echo`` is true, its log is copied to this process's stderr.

    The constructor waits until the gateway has started. Raises `GatewayFailed` if it does not start.
    """

    def __init__(self, process: "subprocess.Popen[str]", log: IO[str]) -> None:
        self._process = process
        self._log = log
        self.echo = False
        self.url = self._wait_for_address()
        self._reader = threading.Thread(target=self._read, name="gateway log", daemon=True)
        self._reader.start()

    def wait(self) -> None:
        """Wait until the gateway ends, which it should not do. Then raises `GatewayFailed`."""
        status = self._process.wait()
        raise GatewayFailed(f"the gateway ended with status {status}")

    def stop(self) -> None:
        """Stop the gateway, and kill it if it has not ended after 5 seconds."""
        self.echo = False
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()

    def _wait_for_address(self) -> str:
        lines = []
        alarm = threading.Timer(_START_TIMEOUT, self._process.kill)
        alarm.start()
        try:
            for line in self._log:
                lines.append(line)
                if match := re.search(r"listening on (http://\S+)", line):
                    return match[1]
        finally:
            alarm.cancel()
        raise GatewayFailed("the gateway did not start:\n" + "".join(lines).rstrip())

    def _read(self) -> None:
        for line in self._log:
            if self.echo:
                sys.stderr.write(line)


@contextmanager
def running_gateway(upstream: str) -> Iterator[Gateway]:
    """Run ``litellm-sanitizer serve`` in front of ``upstream`` (a URL) until the block ends.

    Options from the environment are not passed to it. Raises `GatewayFailed` if it does not start.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SANITIZER_", "SERVER_"))}
    with subprocess.Popen(  # noqa: S603 - a fixed command, without a shell
        [*_GATEWAY, "--upstream", upstream, "--shutdown-grace", "1"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment | {"SANITIZER_ADMIN_PORT": "0"},
        text=True,
    ) as process:
        try:
            assert process.stderr is not None  # noqa: S101 - it is a pipe
            gateway = Gateway(process, process.stderr)
            try:
                yield gateway
            finally:
                gateway.stop()
        finally:
            process.kill()

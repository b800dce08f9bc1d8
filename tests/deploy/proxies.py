"""Runs a proxy for a test, with a configuration from deploy/proxies."""

import contextlib
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.deploy.programs import DEPLOY, envoy, program

START_TIMEOUT = 60.0
FILES = ["nginx.conf", "haproxy.cfg", "envoy.yaml"]
PROXY, LITELLM, GATEWAY, ADMIN = 8080, 4000, 4001, 9464
"""The loopback ports in the files. The last one is the gateway's admin port."""

NGINX = """\
daemon off;
pid {directory}/pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {configuration};
}}
"""


def configure(file: str, directory: Path, ports: dict[int, int]) -> Path:
    """Write a copy of ``file`` into ``directory``, with each port replaced as in ``ports``. Returns the copy's path."""
    text = (DEPLOY / "proxies" / file).read_text()
    shown = re.compile(r"(127\.0\.0\.1:|port_value: |check port )(\d+)\b")
    copy = directory / file
    copy.write_text(shown.sub(lambda found: found[1] + str(ports[int(found[2])]), text))
    return copy


def gateway_options(file: str) -> list[str]:
    """The options with which the gateway must be started according to ``file``, without ``--upstream``."""
    found = re.search(
        r"^# .*litellm-sanitizer --upstream \S+(.*)$", (DEPLOY / "proxies" / file).read_text(), re.MULTILINE
    )
    assert found
    return shlex.split(found[1])


def command(name: str, directory: Path, configuration: Path) -> list[str]:
    if name == "nginx":
        main = directory / "main.conf"
        main.write_text(NGINX.format(directory=directory, configuration=configuration))
        return [program("nginx", "Debian: nginx-light"), "-p", str(directory), "-c", str(main)]
    if name == "haproxy":
        return [program("haproxy", "Debian: haproxy"), "-db", "-f", str(configuration)]
    return [envoy(), "-c", str(configuration), "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def running(command: list[str], directory: Path, port: int) -> Iterator[None]:
    """Run a proxy while the block runs. Its output goes to a file in ``directory``.

    The block starts when the proxy accepts connections at ``port`` of loopback.
    """
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_TIMEOUT
        while not accepts(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(30)

"""Proxies that run for a test."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.deploy.programs import envoy, program

START_TIMEOUT = 30.0

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
    """Run a proxy, which accepts at ``port`` of loopback; its output goes into ``directory``."""
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

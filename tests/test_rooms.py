"""Imports between packages: the modules that each package loads in a fresh interpreter, and import cycles."""

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
"""The modules that handle ASGI requests. The rest of `sanitize` is independent of the transport."""

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
    """Those of ``modules`` that are in the package ``sanitizer``, without the package itself."""
    return {name for name in modules if name.startswith("sanitizer.")}


def test_http1_loads() -> None:
    """``http1`` loads only ``errors`` and ``address`` of the package, and no event loop, HTTP client or server."""
    found = loaded(*HTTP1)
    assert own(found) == {"sanitizer.http1", *HTTP1, "sanitizer.address", "sanitizer.errors"}
    assert "httptools" in found
    assert not found & {"asyncio", "uvloop", *SERVERS}


def imports() -> dict[str, set[str]]:
    """The modules of the package, each with those that its import statements name, anywhere in the file."""
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
    """The subpackage that a module is in, or the module itself if it is at the top level."""
    return ".".join(module.split(".")[:2])


def test_no_import_circle() -> None:
    """There is no import cycle between modules, or between packages. Imports for types alone count too."""
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
    """A package loads none of the modules that it must not depend on, directly or indirectly."""
    found = loaded(*modules)
    assert found >= set(modules)
    assert not found & set(strangers)

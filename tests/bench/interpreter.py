"""The Python that runs the gateway and the Python peers: its installed packages, and how it was built."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

INSTALLED: Final = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
"""With these variables Python imports only installed packages, wherever it is started: no checkout hides a wheel."""

PURE: Final = {"SANITIZER_PURE": "1"}
"""With this variable the gateway runs in pure Python, even if it is compiled."""

_BUILD: Final = """
import json, platform, sys, sysconfig
print(json.dumps({
    "version": f"{platform.python_implementation()} {platform.python_version()}",
    "arguments": sysconfig.get_config_var("CONFIG_ARGS") or "",
    "debian": "deb_system" in sysconfig.get_scheme_names(),
}))
"""


@dataclass(frozen=True)
class Build:
    """How an interpreter was built: the ``arguments`` of its ``configure``, and whether it is Debian's."""

    version: str
    arguments: str
    debian: bool

    @property
    def kind(self) -> str:
        """Whether the compiler used profiles.

        Debian's rules use them on every common architecture. They call make's target ``profile-opt`` and remove the
        flags from the installed files, so CONFIG_ARGS does not show it.
        """
        if "--enable-optimizations" in self.arguments:
            return "an optimised build (--enable-optimizations)"
        if self.debian:
            return "an optimised build (Debian's rules use profiles, although CONFIG_ARGS does not show it)"
        return "**not an optimised build**"


@dataclass(frozen=True)
class Interpreter:
    """The Python interpreter at ``path``."""

    path: str

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Run Python with ``arguments`` and return what it prints. Raises `subprocess.CalledProcessError`."""
        done = subprocess.run(
            [self.path, *arguments],
            env={**os.environ, **INSTALLED, **(env or {})},
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return done.stdout.strip()

    def build(self) -> Build:
        """How this Python was built."""
        return Build(**json.loads(self.run("-c", _BUILD)))

    def version(self, package: str) -> str:
        """The version of an installed distribution. Raises `subprocess.CalledProcessError` if there is none."""
        return self.run("-c", f"from importlib.metadata import version; print(version({package!r}))")

    def gateway(self, env: Mapping[str, str] | None = None) -> str:
        """Version and form of the installed gateway, as ``--version`` prints them: "0.1.0 (compiled)"."""
        return self.run("-m", "sanitizer", "--version", env=env).removeprefix("litellm-sanitizer ")

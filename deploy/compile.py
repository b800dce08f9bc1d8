"""A build hook of hatchling that compiles the hot parts of the package with mypyc. The wheel keeps their source too.

The hook is enabled by ``HATCH_BUILD_HOOK_ENABLE_CUSTOM=true`` in the environment. Without it the wheel is pure Python;
with it the wheel is for one platform. Compiling needs a C compiler, Python's headers, and the hook's dependencies in
pyproject.toml. It takes place in a temporary directory, so that a checkout never runs compiled modules.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = ("http1/*.py", "relay/*.py", "sanitize/decision.py", "sanitize/gates.py", "sanitize/jsonedit.py")
"""Patterns for the modules to compile, relative to the package ``sanitizer``. No ``__init__`` is compiled."""


class Compile(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            raise RuntimeError("an editable install runs the source; unset HATCH_BUILD_HOOK_ENABLE_CUSTOM")
        from mypyc.build import mypycify
        from setuptools import Distribution

        self._folder = tempfile.TemporaryDirectory(prefix="mypyc-")
        work = Path(self._folder.name)
        shutil.copytree(Path(self.root, "sanitizer"), work / "sanitizer")
        with contextlib.chdir(work):
            modules = sorted(
                str(path.relative_to(work))
                for pattern in COMPILED
                for path in work.glob(f"sanitizer/{pattern}")
                if path.name != "__init__.py"
            )
            extensions = mypycify(
                ["--ignore-missing-imports", *modules], opt_level="3", debug_level="0", group_name="sanitizer"
            )
            command: Any = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
            command.build_lib = "lib"
            command.ensure_finalized()
            command.run()
        for library in work.glob("lib/**/*.so"):
            build_data["force_include"][str(library)] = str(library.relative_to(work / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._folder.cleanup()

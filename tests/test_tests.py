"""The tests themselves: no test module imports another one."""

import re

from tests.support.gateway import ROOT

MODULES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py"))}


def test_imports() -> None:
    """No test module imports another one: code that they share is in modules without tests."""
    imports = re.compile(r"^(?:from|import) tests\b.*\btest_\w+", re.MULTILINE)
    found = {name: imports.findall(text) for name, text in MODULES.items()}
    assert {name: modules for name, modules in found.items() if modules} == {}

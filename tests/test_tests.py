"""The tests themselves: tests/README.md has them all, no link is dead, and no test module leans on another."""

import re

import pytest

from tests.support.gateway import ROOT

TESTS = ROOT / "tests"
MODULES = {path.relative_to(TESTS).as_posix(): path.read_text() for path in sorted(TESTS.rglob("test_*.py"))}
PAGES = ["README.md", "deploy/README.md", *(path.relative_to(ROOT).as_posix() for path in TESTS.rglob("README.md"))]


def test_page() -> None:
    """tests/README.md names every test module, and none that is not there."""
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)`", (TESTS / "README.md").read_text())
    assert set(named) == MODULES.keys()


def test_modules_of_the_readme() -> None:
    """README names no module that is not there."""
    folders = ("sanitizer", "tests", "deploy")
    modules = {path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    development = (ROOT / "README.md").read_text().partition("## Development")[2]
    named = set(re.findall(r"`((?:\w+/)?\w+\.py)`", development))
    assert len(named) > 20
    assert {name for name in named if not any(f"/{module}".endswith(f"/{name}") for module in modules)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    """Links to files of the repository lead to some."""
    file = ROOT / page
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", file.read_text()) if ":" not in link]
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_imports() -> None:
    """What two test modules need is in a module that is none."""
    imports = re.compile(r"^(?:from|import) tests\b.*\btest_\w+", re.MULTILINE)
    found = {name: imports.findall(text) for name, text in MODULES.items()}
    assert {name: modules for name, modules in found.items() if modules} == {}

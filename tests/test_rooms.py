"""The walls of the house: who may know whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sanitizer

PACKAGE = Path(sanitizer.__file__).parent


def imports(room: str) -> Iterator[tuple[str, str]]:
    """(file, imported module) for every import in ``room``, relative ones resolved."""
    for path in sorted((PACKAGE / room).rglob("*.py")):
        package = ["sanitizer", *path.relative_to(PACKAGE).parts[:-1]]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) + 1 - node.level] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                yield path.name, module
                yield from ((path.name, f"{module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize(
    ("room", "stranger"),
    [
        pytest.param("sanitize", "sanitizer.relay", id="sanitize knows no relay"),
        pytest.param("relay", "sanitizer.sanitize", id="relay knows no sanitizer"),
        pytest.param("sanitize", "sanitizer.operate", id="sanitize knows no logs or metrics"),
        pytest.param("relay", "httpx", id="nothing on the hot path is httpx"),
        pytest.param("sanitize", "httpx", id="nor is a lookup"),
    ],
)
def test_rooms(room: str, stranger: str) -> None:
    """A room that must not know another imports nothing of it."""
    found = list(imports(room))
    assert found
    assert [each for each in found if f"{each[1]}.".startswith(f"{stranger}.")] == []

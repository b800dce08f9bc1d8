"""The documents of the repository, which are its Markdown files: their headings, links, code spans and code blocks."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.gateway import ROOT

_HIDDEN = {".ci", ".github"}
_OTHER = {"artifacts", "build", "dist", "node_modules", "wheel", "wheels", "__pycache__"}
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>(?:(?!-->).)*) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


def files() -> Iterator[Path]:
    """The files of the repository. The tree need not be a clone: folders that are not part of it are left out."""
    for folder, folders, names in os.walk(ROOT):
        if "pyvenv.cfg" in names or "conda-meta" in folders:
            folders.clear()
            continue
        folders[:] = [name for name in folders if (name in _HIDDEN or name[0] != ".") and name not in _OTHER]
        yield from (path for name in names if name != ".git" and (path := Path(folder, name)).is_file())


@dataclass(frozen=True)
class Block:
    """A fenced block of code. ``mark``: the text of the HTML comment directly above it, or None."""

    page: str
    line: int
    language: str
    mark: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a document, without their indentation."""
    text = text_of(page)
    return [
        Block(
            page,
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["mark"],
            re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
        )
        for found in _BLOCK.finditer(text)
    ]


def prose_of(page: str) -> str:
    """The document without its fenced blocks."""
    return _BLOCK.sub("", text_of(page))


def spans_of(page: str) -> list[str]:
    """The code spans of a document, each in one line."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose_of(page))]


def links_of(page: str) -> list[str]:
    """The targets of the document's links and pictures, as they are written."""
    return re.findall(r"\]\(([^)\s]+)\)", prose_of(page))


def anchors_of(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?) *#*$", prose_of(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()  # the text of a link
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = next(n for n in range(len(anchors) + 1) if (f"{slug}-{n}" if n else slug) not in anchors)
        anchors.add(f"{slug}-{number}" if number else slug)
    return anchors


FILES = {path.relative_to(ROOT).as_posix() for path in files()}
FOLDERS = {parent.as_posix() for name in FILES for parent in Path(name).parents}
PAGES = sorted(name for name in FILES if name.endswith(".md"))

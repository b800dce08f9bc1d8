"""Each command that a document prints is run as it is printed, or a mark says why it is not.

A mark is an HTML comment directly above a block of the language ``sh``:

- ``<!-- not run: REASON -->``: no test runs the block, because it needs a cluster, for example.
- ``<!-- run by tests/containers/test_service.py -->``: this file contains the block's text, or reads the document.

A block without a mark is run here, by bash, in a copy of the repository. It finds ``.venv`` there and the installed
commands on the PATH, and nothing else of this environment. It has to exit with 0. A block that needs the network or a
port of its own, or takes longer than a few seconds, gets a mark.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import FILES, PAGES, Block, blocks_of, prose_of, text_of
from tests.support.gateway import ROOT

TIMEOUT = 120.0
LOOKS_LIKE_COMMANDS = re.compile(
    r"^(?:\$ |(?:curl|docker|export|kubectl|litellm-sanitizer|pip|python3?|sudo) |\.?\w[\w.-]*/[\w./-]+(?: |$))",
    re.MULTILINE,
)


def commands_of(page: str) -> list[Block]:
    return [block for block in blocks_of(page) if block.language == "sh"]


@pytest.mark.parametrize("page", PAGES)
def test_languages(page: str) -> None:
    """The language of a block with commands is ``sh``. Without it, the block would not be run."""
    for block in blocks_of(page):
        assert block.language not in ("bash", "console", "shell"), f"{block}: write ```sh"
        if not block.language:
            assert not LOOKS_LIKE_COMMANDS.search(block.text), f"{block}: write ```sh, or another language"


@pytest.mark.parametrize("page", PAGES)
def test_fences(page: str) -> None:
    """Each fence is three backticks, with a language or nothing behind them. Another one would hide its commands."""
    assert re.findall(r"^ *(?:```|~~~).*", prose_of(page), re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES)
def test_marks(page: str) -> None:
    """A mark gives a reason, or names a file that has or reads the block."""
    for block in commands_of(page):
        if block.mark is None:
            continue
        kind, _, value = block.mark.partition(": ")
        if kind == "not run":
            assert len(value.split()) > 2, f"{block}: give a reason, <!-- not run: REASON -->"
            continue
        found = re.fullmatch(r"run by (\S+)", block.mark)
        assert found, f"{block}: write <!-- not run: REASON --> or <!-- run by FILE -->"
        assert found[1] in FILES, f"{block}: there is no {found[1]}"
        source = text_of(found[1])
        has = block.text.strip() in source or reads(source, page)
        assert has, f"{block}: {found[1]} does not have these commands, nor reads them"


def reads(source: str, page: str) -> bool:
    """Whether the source of a test or script reads the document."""
    path, name = re.escape(page), re.escape(Path(page).name)
    return bool(
        re.search(rf'"(?:[\w/.]+/)?{name}"\)\.read_text\(|_of\("{path}"\)', source)
        or (source.startswith("#!") and re.search(rf"(?<![\w/]){path}\b", source))
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository. Its ``.venv`` is the environment that runs this test."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in FILES:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a temporary file of another test
            shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(sys.prefix)
    return copy


@pytest.mark.parametrize("page", PAGES)
def test_commands(page: str, checkout: Path, tmp_path: Path) -> None:
    """The blocks without a mark succeed, one after the other."""
    for block in commands_of(page):
        if block.mark is None:
            status, output = run(block.text, checkout, tmp_path)
            assert status == 0, f"{block}: exit status {status}. Mark the block if it can't be run here.\n{output}"


def run(commands: str, folder: Path, home: Path) -> tuple[int, str]:
    """Run ``commands`` in ``folder``. Returns the exit status, -9 after `TIMEOUT` seconds, and the output."""
    path = os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]])
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={"PATH": path, "HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
    return process.returncode, output


@pytest.mark.parametrize(
    ("commands", "status"),
    [("true", 0), ("false | true", 1), ("false\ntrue", 1), (".venv/bin/python -c 'import sanitizer'", 0)],
)
def test_run(commands: str, status: int, checkout: Path, tmp_path: Path) -> None:
    """A block fails if one of its commands fails, also within a pipe."""
    assert run(commands, checkout, tmp_path)[0] == status

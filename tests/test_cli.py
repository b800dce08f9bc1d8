"""The command: bad input is one clear line and exit status 2."""

import socket
import subprocess
import sys

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sanitizer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["--upstream", "ftp://x"], "--upstream", id="upstream"),
        pytest.param(["serve", "--port", "99999"], "--port", id="port"),
        pytest.param(["--upstream-ca", "/nonexistent"], "--upstream-ca", id="ca"),
        pytest.param(["--no-such-option"], "--no-such-option", id="option"),
        pytest.param(["--por", "1"], "--por", id="no-abbreviations"),
        pytest.param(["fly"], "fly", id="command"),
    ],
)
def test_bad_usage(arguments: list[str], named: str) -> None:
    """One line on stderr that names what is wrong, and exit status 2."""
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert named in result.stderr


def test_port_in_use() -> None:
    """A port that is taken is one line, too; it is not bad usage: exit status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--port", str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "can't listen on 127.0.0.1:" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["--version"]], ids=" ".join)
def test_help(arguments: list[str]) -> None:
    """Help is printed on stdout."""
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "litellm-sanitizer" in result.stdout

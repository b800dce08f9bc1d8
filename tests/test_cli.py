"""The command: bad input is one clear line and exit status 2."""

import socket
import subprocess
import sys

import pytest

from tests.support.upstream import refusing_port


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


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--lookup-key-file", "sk-secret"], id="for a file"),
        pytest.param(["check", "--key-file", "sk-secret"], id="for a file to check with"),
        pytest.param(["--lookup-key", "sk-secret"], id="for an option that is none"),
        pytest.param(["--upstream", "http://sk-secret@host"], id="in a URL"),
        pytest.param(["--upstream", "http://user:secret@host"], id="a password"),
    ],
)
def test_secret_in_bad_usage(arguments: list[str]) -> None:
    """What looks like a secret is not repeated, although it is what is wrong."""
    result = run(*arguments)
    assert result.returncode == 2
    assert "secret" not in result.stderr


@pytest.mark.parametrize("command", ["serve", "check", "demo"])
def test_unknown_option(command: str) -> None:
    """The help that is pointed to is the one that lists the command's options."""
    assert f"see litellm-sanitizer {command} --help" in run(command, "--no-such-option").stderr


def test_reader_of_a_check_leaves() -> None:
    """``check | head`` ends without a traceback."""
    with refusing_port() as port:
        command = [sys.executable, "-m", "sanitizer", "check", "--upstream", f"http://127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as check:
            assert check.stdout is not None
            assert check.stderr is not None
            check.stdout.close()
            assert (check.stderr.read(), check.wait(30)) == ("", 1)


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

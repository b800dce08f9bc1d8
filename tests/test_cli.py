"""The command: bad input is reported in one line, with exit status 2; the help is complete, and its examples run."""

import contextlib
import io
import re
import shlex
import signal
import socket
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from sanitizer import launch
from sanitizer.cli import main
from sanitizer.settings import OPTIONS, Settings
from tests.support.gateway import ROOT
from tests.support.upstream import refusing_port

CHECK = ROOT / "sanitizer/operate/check"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sanitizer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


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
    """Bad usage is reported in one line on stderr that names the mistake, with exit status 2."""
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
        pytest.param(["--lookup-key", "sk-secret"], id="for an unknown option"),
        pytest.param(["--upstream", "http://sk-secret@host"], id="in a URL"),
        pytest.param(["--upstream", "http://user:secret@host"], id="a password"),
    ],
)
def test_secret_in_bad_usage(arguments: list[str]) -> None:
    """An error message does not repeat a value that looks like a secret, even if that value is the error."""
    result = run(*arguments)
    assert result.returncode == 2
    assert "secret" not in result.stderr


@pytest.mark.parametrize("command", ["serve", "check", "demo"])
def test_unknown_option(command: str) -> None:
    """The error message names the help that lists the options of the command."""
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
    """A port that is in use is reported in one line, with exit status 1, because the usage is correct."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--port", str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "can't listen on 127.0.0.1:" in result.stderr


def help_of(*command: str) -> str:
    """The text that the command's ``--help`` prints on a terminal of 80 columns."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as exited:
            main([*command, "--help"])
    assert exited.value.code == 0
    return printed.getvalue()


def examples_of(*command: str) -> list[tuple[dict[str, str], list[str]]]:
    """The examples at the end of a help text: the variables and the arguments of each command line."""
    text = help_of(*command).partition("\nexamples:\n")[2]
    assert not text or re.fullmatch(r"(?:  # \S.*\n(?:  \S.*\n(?:    \S.*\n)*))+", text.replace("\n\n", "\n")), text
    examples = []
    for line in re.findall(r"^  (?!#)(\S.*)$", text.replace("\\\n", ""), re.MULTILINE):
        words = shlex.split(line)
        start = words.index("litellm-sanitizer")
        variables = dict(word.split("=", 1) for word in words[:start])
        examples.append((variables, words[start + 1 :]))
    return examples


HELP = [(), ("serve",), ("check",), ("demo",)]
EXAMPLES = [(variables, arguments) for command in HELP for variables, arguments in examples_of(*command)]
SERVED = [example for example in EXAMPLES if example[1][:1] not in (["check"], ["demo"])]
RUN = [arguments for _, arguments in EXAMPLES if arguments[:1] in (["check"], ["demo"])]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help(command: tuple[str, ...]) -> None:
    """The help fits 80 columns and is printed on stdout."""
    result = run(*command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: litellm-sanitizer")
    assert max(map(len, help_of(*command).splitlines())) <= 80


def test_version() -> None:
    """The version is printed on stdout."""
    result = run("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"litellm-sanitizer \S+ \((compiled|pure)\)\n", result.stdout)


def test_groups() -> None:
    """``serve --help`` lists each option once, below the title of its group, in the order of the fields."""
    titles = [title for title, _ in groupby(OPTIONS, key=lambda option: option.group)]
    assert titles == ["upstream", "listeners", "what is repaired", "forwarding", "limits", "TLS", "processes", "logs"]
    _, *parts = re.split(r"^(\S.*):\n", help_of("serve"), flags=re.MULTILINE)
    listed = {
        title: re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }
    assert listed == {
        "options": [],
        **{title: [option.flag for option in OPTIONS if option.group == title] for title in titles},
        "examples": [],
    }


def test_check_takes_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """``check`` takes each option of ``serve``. Its help lists those that the checks read."""
    monkeypatch.setattr("sanitizer.cli.load", lambda flags, environ: flags)
    monkeypatch.setattr("sanitizer.operate.check.run", lambda flags, key, *, as_json: len(flags))
    given = [word for option in OPTIONS for word in ([option.flag, "1"] if option.metavar else [option.flag])]
    assert main(["check", *given]) == len(OPTIONS)
    read = set(re.findall(r"settings\.(\w+)", "".join(path.read_text() for path in CHECK.glob("*.py"))))
    read = {name.replace("upstream_tls", "upstream_ca") for name in read} - {"lookup_key"}
    listed = set(re.findall(r"^  (--[a-z-]+)", help_of("check"), re.MULTILINE))
    assert listed - {"--key-file", "--json"} == {f"--{name.replace('_', '-')}" for name in read}


def test_addresses_of_the_help() -> None:
    """The first lines of the help name the addresses that the gateway uses by default."""
    settings = Settings()
    for address in (f" {settings.host}:{settings.port} ", f" {settings.upstream}."):
        assert address in help_of().partition("options:")[0]


@pytest.mark.parametrize(("variables", "arguments"), SERVED, ids=[" ".join([*each[0], *each[1]]) for each in SERVED])
def test_examples_of_serve(variables: dict[str, str], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own parsers accept the examples of ``serve``. They are not run: their ports may be in use."""
    served: list[Settings] = []

    def serve(settings: Settings, unknown: list[str]) -> int:
        assert unknown == []
        served.append(settings)
        return 0

    monkeypatch.setattr(launch, "serve", serve)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, signals: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 0
    (settings,) = served
    assert settings != Settings()


@pytest.mark.parametrize("arguments", RUN, ids=" ".join)
def test_examples_of_other_commands(arguments: list[str], tmp_path: Path) -> None:
    """The examples of ``demo`` and ``check`` are run. A check reports that nothing listens at its upstream."""
    (tmp_path / "master-key").write_text("sk-1234\n")
    with refusing_port() as port:
        away = ["--upstream", f"http://127.0.0.1:{port}"] if arguments[0] == "check" else []
        command = [sys.executable, "-m", "sanitizer", *arguments, *away]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == ((1, "") if away else (0, ""))
    assert ("no connection" if away else "All results are as expected.") in done.stdout

"""The check command against each LiteLLM."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from sanitizer.cli import main
from tests.litellm.actors import LiteLLM
from tests.support.gateway import ROOT


@pytest.fixture
def checked(release: LiteLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs a check, with or without a key, and returns the report."""

    def check(key: str | None) -> dict[str, Any]:
        options = ["--upstream", release.url, "--json"]
        if key is not None:
            (tmp_path / "key").write_text(key)
            options += ["--key-file", str(tmp_path / "key")]
        status = main(["check", *options])
        out, err = capsys.readouterr()
        assert key is None or key not in out
        report: dict[str, Any] = json.loads(out)
        assert (status, err) == (0 if report["ok"] else 1, "")
        return report

    return check


def results(report: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["result"] for finding in report["findings"]}


def test_admin(release: LiteLLM, checked: Any) -> None:
    """With an admin's key, a check reports the release, and the defects that the release is known to have."""
    report = checked(release.master_key)
    assert results(report) == {"connection": "ok", "release": "ok", "dashboard": "ok", "key": "note"}
    assert report["release"] == ".".join(map(str, release.release))
    refused = {(each["endpoint"], each["field"]): each["refused"] for each in report["defects"]}
    assert bool(refused["/key/update", "permissions"]) is (release.release >= (1, 92, 0))
    words = " ".join(refused["/key/update", "allowed_routes"])
    assert ("LLM API" in words) is release.refuses_unchanged("llm_api")
    assert ("custom lists" in words) is release.refuses_unchanged("custom")
    assert ("the empty list" in words) is release.refuses_unchanged("default")
    assert "in another order" in words
    assert report["needed"] is True


def test_command_of_the_readme(
    release: LiteLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command in README.md succeeds, and reports ``allowed_routes``."""
    readme = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"^\.venv/bin/litellm-sanitizer (check .*)$", readme, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "admin.key").write_text(release.master_key)
    assert main(shlex.split(command.replace("http://127.0.0.1:4000", release.url))) == 0
    assert "allowed_routes" in capsys.readouterr().out


def test_user(release: LiteLLM, checked: Any) -> None:
    """A check with a user's key can read that key. From 1.92.0 on, LiteLLM does not show the release to users."""
    report = checked(release.new_user().key)
    told = release.release < (1, 92, 0)
    assert results(report) == {
        "connection": "ok",
        "release": "ok" if told else "note",
        "dashboard": "ok",
        "key": "ok",
    }
    assert (report["defects"] is not None) is told
    assert report["needed"] is (True if told else None)


@pytest.mark.parametrize(
    ("key_type", "result"),
    [
        pytest.param("llm_api", "note", id="LLM API"),
        pytest.param("read_only", "ok", id="read-only"),
        pytest.param("management", "ok", id="management"),
    ],
)
def test_key_types(release: LiteLLM, checked: Any, key_type: str, result: str) -> None:
    """A check notes that a key of type "LLM API" may not call /key/info. The other types may."""
    assert results(checked(release.new_key(release.new_user(), key_type)))["key"] == result


def test_nobody(checked: Any) -> None:
    """A key that LiteLLM does not know is reported as a problem. A check without a key is not."""
    assert results(checked("sk-nobody"))["key"] == "problem"
    assert results(checked(None))["key"] == "note"

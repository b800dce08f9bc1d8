"""The check command: its findings about an upstream, and its report as text and as JSON."""

from __future__ import annotations

import gc
import json
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
import trustme

from sanitizer import __version__
from sanitizer.cli import main
from sanitizer.operate.check.client import MAX_ANSWER
from sanitizer.sanitize.gates import GATES, NEWEST_PROVEN
from sanitizer.sanitize.queries import token_of
from tests.support.upstream import CLOSE, OK, RESET, WAIT_CLOSED, Connection, Upstream, refusing_port, reply

URL = "http://127.0.0.1:4000"
KEY = "sk-key-of-the-check"
OWN = "sk-lookup-key-of-the-check"
READY = {"status": "healthy", "db": "connected", "litellm_version": "1.83.13"}
QUIET = {"status": "healthy", "db": "connected"}


class LiteLLM:
    """Answers the requests of a check. ``asked`` has the path of each, with its query, and its key."""

    def __init__(self, **answers: Any) -> None:
        self.ready: Any = answers.get("ready", READY)
        self.ready_status = answers.get("ready_status", 200)
        self.details: Any = answers.get("details", (404, {"detail": "Not Found"}))
        self.config: Any = answers.get("config", {"server_root_path": "", "proxy_base_url": None})
        self.roots: list[str] = answers.get("roots", [])
        self.info = answers.get("info", {})
        self.names: list[str] | None = answers.get("names")  # the only hosts that are routed to it; None: all
        self.hosts: set[str] = set()
        self.asked: list[tuple[str, str | None]] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        key = request.headers.get("authorization", "").removeprefix("Bearer ") or None
        path = request.url.path
        self.asked.append((request.url.raw_path.decode(), key))
        assert request.method == "GET"
        host = request.headers["host"]
        self.hosts.add(host)
        if self.names is not None and host.partition(":")[0] not in self.names:
            return httpx.Response(404, text="no such host")
        status, value = {
            "/health/readiness": (self.ready_status, self.ready),
            "/health/readiness/details": self.details,
            "/.well-known/litellm-ui-config": (200 if self.config is not None else 404, self.config),
            **{f"{root}/health/liveliness": (200, "I'm alive!") for root in ["", *self.roots]},
            "/key/info": (self.info.get(key, 401), {}),
        }.get(path, (404, {"detail": "Not Found"}))
        return value if isinstance(value, httpx.Response) else httpx.Response(status, json=value)


@contextmanager
def running(**answers: Any) -> Iterator[tuple[LiteLLM, str]]:
    """Run a LiteLLM that sends these ``answers``. Yields it and its URL."""
    litellm = LiteLLM(**answers)
    with respx.mock(assert_all_called=False) as router:
        router.route(scheme="http", port=4000).mock(side_effect=litellm.answer)
        router.route().mock(side_effect=httpx.ConnectError)
        yield litellm, URL


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    return str(path)


class Checked:
    """One run of the command."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.status = main(["check", *arguments])
        self.out, self.err = capsys.readouterr()
        assert KEY not in self.out + self.err
        assert OWN not in self.out + self.err

    @property
    def words(self) -> str:
        """The text, without its line breaks."""
        return " ".join(self.out.split())

    @property
    def report(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value

    def findings(self) -> list[tuple[str, str]]:
        return [(finding["check"], finding["result"]) for finding in self.report["findings"]]


def test_text(capsys: pytest.CaptureFixture[str], key_file: str) -> None:
    """The complete report about a LiteLLM without problems."""
    with running(info={KEY: 200}) as (_, url):
        checked = Checked(capsys, "--upstream", url, "--key-file", key_file)
    assert (checked.status, checked.err) == (0, "")
    head, *lines = checked.out.splitlines()
    assert head == f"litellm-sanitizer {__version__}, proven on LiteLLM {NEWEST_PROVEN}: check of {url}"
    assert lines == [
        "",
        f"ok       connection  LiteLLM answers at {url}",
        "ok       release     1.83.13",
        "ok       dashboard   PROXY_BASE_URL is not set: the dashboard calls the address that it was loaded",
        "                     from",
        "ok       key         LiteLLM answers /key/info for this key",
        "",
        "LiteLLM 1.83.13 refuses these fields, though unchanged, most of them from all but proxy admins:",
        "  POST /key/update",
        "    allowed_routes              the lists of key types LLM API and read-only; the list of key type",
        "                                management, and custom lists; a custom list in another order",
        "    allowed_passthrough_routes  any list that is not empty; up to 1.91.5 the empty one too",
        *(
            line
            for name in ("guardrails", "policies", "prompts", "tags")
            for line in (
                f"    {name:28}any list that is not empty, without a licence; up to 1.91.5 the",
                "                                empty one too",
            )
        ),
        "    team_id                     the empty string, of a key without a team",
        "    key_alias                   the empty string, from the second key without an alias on",
        "The gateway repairs all of these.",
        "",
        "No problem.",
    ]


def test_endpoints(capsys: pytest.CaptureFixture[str]) -> None:
    """Endpoints that refuse the same values are listed together.

    A value that several gates of a field refuse is listed once.
    """
    with running(ready={**READY, "litellm_version": NEWEST_PROVEN}) as (_, url):
        lines = Checked(capsys, "--upstream", url).out.splitlines()
    heading = "  POST /key/regenerate, /key/{key}/regenerate"
    assert [line.split(None, 1) for line in lines[lines.index(heading) + 1 :][:3]] == [
        ["allowed_routes", "any value"],
        ["permissions", "any value"],
        ["access_group_ids", "a list that is not empty (read, not run)"],
    ]
    assert [line for line in lines if line.startswith("  POST")] == [
        "  POST /key/update",
        heading,
        "  POST /key/update",
    ]
    assert lines[lines.index("Fixed in this release:") :] == [
        "Fixed in this release:",
        "  POST /key/update",
        "    allowed_routes  the lists of key types LLM API and read-only; the list of key type management,",
        "                    and custom lists; the empty list",
        "    team_id         the empty string, of a key without a team",
        "The gateway repairs all of these.",
        "",
        "No problem.",
    ]


def test_nothing_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that is known to refuse nothing needs no gateway. For an unknown release, that is unknown."""
    monkeypatch.setattr("sanitizer.operate.check.defects.GATES", ())
    for release, needed, said in (("1.83.13", False, "so it needs no gateway"), ("2.0.0", None, "as far as is known")):
        with running(ready={**READY, "litellm_version": release}) as (_, url):
            checked = Checked(capsys, "--upstream", url)
            assert Checked(capsys, "--upstream", url, "--json").report["needed"] is needed
        assert checked.status == 0
        assert f"LiteLLM {release} refuses nothing that is sent unchanged, {said}." in checked.words
        assert "The gateway repairs" not in checked.words


def test_json(capsys: pytest.CaptureFixture[str], key_file: str) -> None:
    """``--json`` prints the findings and the defects as JSON. The check sends four requests, in this order."""
    with running(info={KEY: 200}) as (litellm, url):
        checked = Checked(capsys, "--upstream", url, "--key-file", key_file, "--json")
    assert checked.status == 0
    report = checked.report
    assert (report["ok"], report["needed"], report["upstream"], report["release"]) == (True, True, url, "1.83.13")
    assert report["proven_on"] == NEWEST_PROVEN == "1.110.2"
    assert checked.findings() == [("connection", "ok"), ("release", "ok"), ("dashboard", "ok"), ("key", "ok")]
    fields = [(each["endpoint"], each["field"]) for each in report["defects"]]
    assert fields == list(dict.fromkeys((gate.endpoint, gate.field) for gate in GATES))
    assert report["defects"][0] == {
        "endpoint": "/key/update",
        "field": "allowed_routes",
        "refused": [
            "the lists of key types LLM API and read-only",
            "the list of key type management, and custom lists",
            "a custom list in another order",
        ],
        "fixed": [],
        "error": "Only proxy admins can set `allowed_routes` on a key",
        "repaired": True,
    }
    assert litellm.asked == [
        ("/health/readiness", None),
        ("/health/readiness", None),  # with another Host
        ("/.well-known/litellm-ui-config", None),
        (f"/key/info?key={token_of(KEY)}", KEY),
    ]


def test_routed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """It is a problem if upstream answers only to its own name, because clients send the gateway's name as Host."""
    with running(names=["127.0.0.1"]) as (_, url):
        text = Checked(capsys, "--upstream", url)
        checked = Checked(capsys, "--upstream", url, "--json")
    assert (text.status, checked.status) == (1, 1)
    assert dict(checked.findings())["host"] == "problem"
    assert "routes by name" in text.words
    assert "404" in text.words
    assert "--pass-host-header=false" in text.words
    assert "1 problem." in text.words


def test_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--pass-host-header=false``, the check uses upstream's own name only, as clients' Host is not forwarded."""
    with running(names=["127.0.0.1"]) as (litellm, url):
        checked = Checked(capsys, "--upstream", url, "--pass-host-header=false")
    assert checked.status == 0
    assert litellm.hosts == {url.removeprefix("http://")}


def test_not_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """If LiteLLM answers requests with either of two Hosts, the report does not mention Host."""
    with running() as (litellm, url):
        checked = Checked(capsys, "--upstream", url, "--json")
    assert (checked.status, len(litellm.hosts)) == (0, 2)
    assert "host" not in dict(checked.findings())


PREMIUM = ["allowed_passthrough_routes 1", "guardrails 1", "policies 1", "prompts 1", "tags 1"]
EMPTY = ["team_id 1", "key_alias 1"]
SINCE_1_91_5 = ["access_group_ids 1", "budget_limits 1", "spend 1"]
SINCE_1_92_0 = ["permissions 1", *SINCE_1_91_5, "user_id 1", "object_permission 1", "metadata 1", *PREMIUM]
SINCE_1_105_0 = [*SINCE_1_92_0[:4], "soft_budget 1", *SINCE_1_92_0[4:], "key_alias 1"]
GROUPS = ["access_group_ids 1"]
REGENERATE = ["allowed_routes 1", "permissions 1", "access_group_ids 1"]
ROUTES_AND_TEAM = ["allowed_routes 3", "team_id 1"]


@pytest.mark.parametrize(
    ("release", "update", "regenerate", "fixed"),
    [
        pytest.param("1.83.4", [*PREMIUM, *EMPTY], [], [], id="an older one"),
        pytest.param("1.83.5", [*PREMIUM, *EMPTY], [], [], id="the oldest known"),
        pytest.param("1.83.6", [*PREMIUM, *EMPTY], [], [], id="before the comparison went"),
        pytest.param("1.83.7", ["allowed_routes 3", *PREMIUM, *EMPTY], [], [], id="its first release"),
        pytest.param("1.83.13.post1", ["allowed_routes 3", *PREMIUM, *EMPTY], [], [], id="more behind the number"),
        pytest.param(
            "1.91.5", ["allowed_routes 3", *SINCE_1_91_5, *PREMIUM, *EMPTY], GROUPS, [], id="budgets and access groups"
        ),
        pytest.param("1.92.0", ["allowed_routes 4", *SINCE_1_92_0, *EMPTY], REGENERATE, [], id="most"),
        pytest.param("1.92.0.rc1", ["allowed_routes 4", *SINCE_1_92_0, *EMPTY], REGENERATE, [], id="a candidate"),
        pytest.param(
            "1.101.0", ["allowed_routes 2", *SINCE_1_92_0, *EMPTY], REGENERATE, ["allowed_routes 2"], id="half fixed"
        ),
        pytest.param(
            "1.105.0",
            ["allowed_routes 2", *SINCE_1_105_0],
            REGENERATE,
            ["allowed_routes 2", "team_id 1"],
            id="soft budgets",
        ),
        pytest.param(
            "1.109.0", ["allowed_routes 1", *SINCE_1_105_0], REGENERATE, ROUTES_AND_TEAM, id="but for the order"
        ),
        pytest.param(
            NEWEST_PROVEN, ["allowed_routes 1", *SINCE_1_105_0], REGENERATE, ROUTES_AND_TEAM, id="the newest known"
        ),
        pytest.param("2.0.0", ["allowed_routes 1", *SINCE_1_105_0], REGENERATE, ROUTES_AND_TEAM, id="a newer one"),
    ],
)
def test_defects(
    release: str, update: list[str], regenerate: list[str], fixed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The report lists the kinds of unchanged values that a release refuses, and those that it accepts again.

    The test compares the number of kinds, by endpoint and field.
    """
    with running(ready={**READY, "litellm_version": release}) as (_, url):
        checked = Checked(capsys, "--upstream", url, "--json")
        text = Checked(capsys, "--upstream", url).words
    defects = checked.report["defects"]

    def found(kind: str, endpoint: str) -> list[str]:
        rows = [each for each in defects if each["endpoint"] == endpoint and each[kind]]
        return [f"{each['field']} {len(each[kind])}" for each in rows]

    assert checked.report["needed"] is (None if release in ("2.0.0", "1.83.4") else True)
    assert found("refused", "/key/update") == update
    assert found("fixed", "/key/update") == fixed
    for endpoint in ("/key/regenerate", "/key/{key}/regenerate"):
        assert (found("refused", endpoint), found("fixed", endpoint)) == (regenerate, [])
    assert checked.status == 0
    assert ("Fixed in this release:" in text) is bool(fixed)
    assert (f"newer than {NEWEST_PROVEN}, the newest release whose defects are known" in text) is (release == "2.0.0")
    assert ("older than 1.83.5, the oldest release whose defects are known" in text) is (release == "1.83.4")
    assert dict(checked.findings())["release"] == ("note" if release in ("2.0.0", "1.83.4") else "ok")


@pytest.mark.parametrize(
    ("release", "refused"),
    [
        ("1.109.1", "a list that is not empty, from a caller who is no admin of the key's team"),
        ("1.110.0", "a list that is not empty, from a caller who is no proxy admin"),
    ],
)
def test_access_groups(release: str, refused: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From 1.110.0 on, admins of the key's team are refused, too.

    The newer rule replaces the older one, so the older one is not listed as fixed.
    """
    with running(ready={**READY, "litellm_version": release}) as (_, url):
        defects = Checked(capsys, "--upstream", url, "--json").report["defects"]
    (defect,) = [each for each in defects if (each["endpoint"], each["field"]) == ("/key/update", "access_group_ids")]
    assert (defect["refused"], defect["fixed"]) == ([refused], [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param((), "The gateway repairs all of these.", id="all"),
        pytest.param(("--fields", "permissions"), "in another order - NOT REPAIRED: not in --fields", id="fields"),
        pytest.param(("--mode", "observe"), "any value - NOT REPAIRED: --mode observe", id="observe"),
        pytest.param(("--mode", "off"), "any value - NOT REPAIRED: --mode off", id="off"),
    ],
)
def test_what_is_not_repaired(options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If the gateway's options leave a defect unrepaired, the report says so. This is not a problem."""
    with running(ready={**READY, "litellm_version": "1.92.0"}) as (_, url):
        checked = Checked(capsys, "--upstream", url, *options)
    assert checked.status == 0
    assert said in checked.words
    assert ("The gateway repairs" in checked.words) is (options == ())


@pytest.mark.parametrize(
    ("answers", "with_key", "release", "said"),
    [
        pytest.param({"ready": READY}, False, "1.83.13", "ok release 1.83.13", id="anyone is told"),
        pytest.param({"ready": QUIET}, False, None, "LiteLLM did not report it; from 1.92.0 on", id="without a key"),
        pytest.param(
            {"ready": QUIET, "details": (200, {**QUIET, "litellm_version": "1.92.0"})},
            True,
            "1.92.0",
            "ok release 1.92.0",
            id="an admin is told",
        ),
        pytest.param(
            {"ready": QUIET, "details": (401, {})},
            True,
            None,
            "LiteLLM answered this key with 401",
            id="others are not",
        ),
        pytest.param(
            {"ready": {**QUIET, "litellm_version": "next"}}, False, "next", "next, which can't be compared", id="a word"
        ),
        pytest.param(
            {"ready": {**QUIET, "litellm_version": "\x1b[2J"}}, False, "'\\x1b[2J'", "can't be compared", id="escapes"
        ),
        pytest.param(
            {"ready": {**QUIET, "litellm_version": "x" * 999}}, False, "x" * 200, "x, which can't", id="a long one"
        ),
        pytest.param({"ready": {**QUIET, "litellm_version": None}}, False, None, "did not report it", id="null"),
    ],
)
def test_release(
    answers: dict[str, Any],
    with_key: bool,
    release: str | None,
    said: str,
    capsys: pytest.CaptureFixture[str],
    key_file: str,
) -> None:
    """The report has the release that LiteLLM reports, escaped and shortened. It is no problem if that is unknown."""
    options = ("--key-file", key_file) if with_key else ()
    with running(**answers, info={KEY: 200}) as (_, url):
        text = Checked(capsys, "--upstream", url, *options)
        checked = Checked(capsys, "--upstream", url, *options, "--json")
    assert said in text.words
    assert "\x1b" not in text.out
    assert (text.status, checked.report["release"]) == (0, release)
    assert checked.report["needed"] is (None if checked.report["defects"] is None else True)


@pytest.mark.parametrize(
    ("answers", "status", "result", "said"),
    [
        pytest.param({KEY: 200}, 0, "ok", "LiteLLM answers /key/info for this key", id="200"),
        pytest.param({}, 1, "problem", "blocked or deleted; give another: --key-file", id="401"),
        pytest.param({KEY: 403}, 0, "note", "this key may not call /key/info (403)", id="403"),
        pytest.param({KEY: 404}, 0, "note", "it is most likely the master key", id="404"),
        pytest.param({KEY: 500}, 1, "problem", "LiteLLM answers /key/info with 500", id="500"),
        pytest.param({KEY: 307}, 1, "problem", "LiteLLM answers /key/info with 307", id="a redirect"),
    ],
)
def test_key(
    answers: dict[str, int],
    status: int,
    result: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    key_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check tries the given key, from a file or from the environment, and reports LiteLLM's response."""
    with running(info=answers) as (_, url):
        text = Checked(capsys, "--upstream", url, "--key-file", key_file)
        monkeypatch.setenv("SANITIZER_CHECK_KEY", KEY)
        checked = Checked(capsys, "--upstream", url, "--json")
    assert said in text.words
    assert (text.status, checked.status) == (status, status)
    assert checked.findings()[-1] == ("key", result)


@pytest.mark.parametrize(
    ("answers", "result"),
    [
        pytest.param({OWN: 200}, "ok", id="it may read"),
        pytest.param({OWN: 404}, "ok", id="it may read, the key is the master key"),
        pytest.param({OWN: 403}, "problem", id="it may not"),
        pytest.param({}, "problem", id="LiteLLM does not know it"),
    ],
)
def test_lookup_key(
    answers: dict[str, int], result: str, capsys: pytest.CaptureFixture[str], key_file: str, tmp_path: Path
) -> None:
    """The lookup credential is tried, too, with a lookup of the given key."""
    own = tmp_path / "own"
    own.write_text(OWN)
    options = ("--lookup-key-file", str(own), "--key-file", key_file, "--json")
    with running(info={KEY: 200, **answers}) as (litellm, url):
        checked = Checked(capsys, "--upstream", url, *options)
    assert checked.findings()[-1] == ("lookup key", result)
    assert checked.status == (1 if result == "problem" else 0)
    assert litellm.asked[-1] == (f"/key/info?key={token_of(KEY)}", OWN)


@pytest.mark.parametrize(
    ("config", "roots", "options", "findings", "said"),
    [
        pytest.param(
            {"server_root_path": "/p", "proxy_base_url": None},
            ["/p"],
            ("--root-path", "/p"),
            [("root path", "ok"), ("dashboard", "ok")],
            "LiteLLM answers under /p",
            id="known",
        ),
        pytest.param(
            {"server_root_path": "/p/", "proxy_base_url": None},
            ["/p"],
            (),
            [("root path", "problem"), ("dashboard", "ok")],
            "LiteLLM's SERVER_ROOT_PATH is /p, which the gateway does not know: --root-path /p",
            id="not known",
        ),
        pytest.param(
            {"server_root_path": "", "proxy_base_url": None},
            [],
            ("--root-path", "/q"),
            [("root path", "problem"), ("dashboard", "ok")],
            "LiteLLM does not answer under /q (404): --root-path is not its SERVER_ROOT_PATH; make them the same",
            id="not LiteLLM's",
        ),
        pytest.param(
            {"server_root_path": "/", "proxy_base_url": ""}, [], (), [("dashboard", "ok")], "is not set", id="root"
        ),
        pytest.param(None, [], (), [("dashboard", "note")], "did not report PROXY_BASE_URL (404)", id="none"),
        pytest.param([], [], (), [("dashboard", "note")], "did not report PROXY_BASE_URL (200)", id="a list"),
        pytest.param({}, [], (), [("dashboard", "note")], "did not report PROXY_BASE_URL (200)", id="empty"),
        pytest.param(
            {"proxy_base_url": "https://u:secret@llm.example/x"},
            [],
            (),
            [("dashboard", "note")],
            "PROXY_BASE_URL is https://***@llm.example/x: the dashboard calls this address, so it has to lead to the",
            id="elsewhere",
        ),
        pytest.param(
            {"proxy_base_url": "http://[bad"},
            [],
            (),
            [("dashboard", "note")],
            "PROXY_BASE_URL is http://[bad",
            id="bad",
        ),
        pytest.param(
            {"proxy_base_url": "http://127.0.0.1:1"},
            [],
            (),
            [("dashboard", "note")],
            "PROXY_BASE_URL is http://127.0.0.1:1: the dashboard calls",
            id="another port",
        ),
        pytest.param(
            {"proxy_base_url": 5}, [], (), [("dashboard", "note")], "PROXY_BASE_URL is 5", id="not even a string"
        ),
    ],
)
def test_addresses(
    config: Any,
    roots: list[str],
    options: tuple[str, ...],
    findings: list[tuple[str, str]],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The check compares root paths, and reports where PROXY_BASE_URL makes the dashboard send its requests."""
    with running(config=config, roots=roots) as (_, url):
        text = Checked(capsys, "--upstream", url, *options)
        checked = Checked(capsys, "--upstream", url, *options, "--json")
    assert said in text.words
    assert "secret" not in text.out
    assert [finding for finding in checked.findings() if finding[0] in ("root path", "dashboard")] == findings
    assert text.status == checked.status == any(result == "problem" for _, result in findings)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "127.0.0.2"])
def test_past_the_gateway(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a problem if PROXY_BASE_URL is upstream's own address, because the dashboard then bypasses the gateway."""
    with running() as (litellm, url):
        litellm.config = {"proxy_base_url": f"http://{host}:{url.rpartition(':')[2]}/"}
        checked = Checked(capsys, "--upstream", url)
    assert checked.status == 1
    assert "which is LiteLLM itself: the dashboard calls it past the gateway; set it to the" in checked.words
    assert "1 problem." in checked.words


@pytest.mark.parametrize("host", ["llm.example", "192.0.2.1"])
def test_another_host(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A PROXY_BASE_URL with another host is not taken for upstream only because it has the same port."""
    with running() as (litellm, url):
        litellm.config = {"proxy_base_url": f"http://{host}:{url.rpartition(':')[2]}/"}
        checked = Checked(capsys, "--upstream", url, "--json")
    assert dict(checked.findings())["dashboard"] == "note"


@pytest.mark.parametrize(
    ("ready", "status", "said"),
    [
        pytest.param(
            {"status": "unhealthy", "db": "disconnected"}, 503, "(503): status unhealthy, database dis", id="503"
        ),
        pytest.param(
            {"status": "healthy", "db": "Not connected"}, 200, "(200): status healthy, database Not", id="no db"
        ),
    ],
)
def test_not_ready(ready: Any, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a problem if LiteLLM reports that it is unhealthy or has no database."""
    with running(ready=ready, ready_status=status) as (_, url):
        checked = Checked(capsys, "--upstream", url)
    assert checked.status == 1
    assert f"PROBLEM readiness LiteLLM is not ready {said}" in checked.words


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        pytest.param({"detail": "Not Found"}, 404, id="404"),
        pytest.param({"status": "ok"}, 200, id="another health"),
        pytest.param(["status", "db"], 200, id="a list"),
        pytest.param(httpx.Response(200, html="<html>"), 200, id="a page"),
        pytest.param(httpx.Response(200, content=b"x" * (MAX_ANSWER * 2)), 200, id="a large page"),
        pytest.param(httpx.Response(200, content=b"[" * 200_000), 200, id="deep"),
        pytest.param(
            httpx.Response(200, content=iter((b"no gzip",)), headers={"content-encoding": "gzip"}),
            200,
            id="a broken coding",
        ),
        pytest.param(httpx.Response(302, headers={"location": "http://127.0.0.1:1/"}), 302, id="a redirect"),
    ],
)
def test_not_litellm(answer: Any, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that is not LiteLLM is recognized by its response, and the check requests no other path."""
    with running(ready=answer, ready_status=status) as (litellm, url):
        checked = Checked(capsys, "--upstream", url)
    assert checked.status == 1
    assert f"not as LiteLLM does: {status} to GET /health/readiness; --upstream has to name" in checked.words
    assert [path for path, _ in litellm.asked if path != "/health/readiness"] == []


def test_another_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    """A gateway that answers 508 because its own upstream leads back to it is reported as that."""
    with running(ready={}, ready_status=508) as (_, url):
        checked = Checked(capsys, "--upstream", url)
    assert checked.status == 1
    assert "a litellm-sanitizer whose --upstream leads back to itself; --upstream has to name" in checked.words


def test_endless(capsys: pytest.CaptureFixture[str]) -> None:
    """An endless response is read only up to a limit."""
    endless = reply(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (MAX_ANSWER + 1), WAIT_CLOSED, early=True)
    with Upstream(endless) as upstream:
        checked = Checked(capsys, "--upstream", upstream.url, "--connect-timeout", "2")
        upstream.errors.clear()  # a TLS handshake was tried too, which is no request
    assert (checked.status, "something answers, but not as LiteLLM does: 200" in checked.words) == (1, True)


def test_misspelled_variable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that looks like an option, but is none, is named on stderr and not in the report."""
    monkeypatch.setenv("SANITIZER_WORKRS", "2")
    monkeypatch.setenv("SANITIZER_CHECK_KEY", KEY)
    with running(info={KEY: 200}) as (_, url):
        checked = Checked(capsys, "--upstream", url, "--json")
    assert checked.err == "litellm-sanitizer: SANITIZER_WORKRS: no such option, ignored\n"
    assert checked.report["ok"]


def test_dead_port(capsys: pytest.CaptureFixture[str]) -> None:
    """A refused connection is reported as a problem."""
    with refusing_port() as port:
        checked = Checked(capsys, "--upstream", f"http://127.0.0.1:{port}")
        report = Checked(capsys, "--upstream", f"http://127.0.0.1:{port}", "--json").report
    assert checked.status == 1
    assert (report["ok"], report["needed"]) == (False, None)
    assert "PROBLEM connection no connection: Connection refused; does LiteLLM run" in checked.words


def test_no_such_host(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that can't be resolved is reported as a problem."""
    checked = Checked(capsys, "--upstream", "http://name.invalid:4000")
    assert (checked.status, "PROBLEM connection no connection: " in checked.words) == (1, True)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        pytest.param([CLOSE], "does not speak HTTP, or closes the connection", id="closes"),
        pytest.param([RESET], "does not speak HTTP, or closes the connection", id="resets"),
        pytest.param([b"SSH-2.0-OpenSSH_9.2\r\n", CLOSE], "does not speak HTTP", id="speaks something else"),
        pytest.param([WAIT_CLOSED], "connected, but no answer within 2 s (--lookup-timeout)", id="says nothing"),
    ],
)
def test_no_http(steps: list[Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that does not speak HTTP, or does not answer, is reported as a problem."""

    with Upstream(reply(*steps, early=True)) as upstream:
        checked = Checked(capsys, "--upstream", upstream.url, "--lookup-timeout", "2", "--connect-timeout", "2")
        upstream.errors.clear()  # a TLS handshake was tried too, which is no request
    assert (checked.status, said in checked.words) == (1, True), checked.out


class Nginx:
    """A TLS server that answers every request with 400, even a request without TLS, as nginx does.

    It is a context manager, and serves while the block runs.
    """

    def __init__(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        self._listener = listener
        self._context = context
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _serve(self) -> None:
        answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(10)
            with sock:
                if sock.recv(1, socket.MSG_PEEK) == b"\x16":
                    with self._context.wrap_socket(sock, server_side=True) as secure:
                        secure.recv(65536)
                        secure.sendall(answer)
                else:
                    sock.recv(65536)
                    sock.sendall(answer)


def plain(connection: Connection) -> None:
    """Answers a request in plain HTTP with 200, and anything else with a 400 in plain HTTP."""
    connection.send(OK if connection.recv().startswith(b"GET ") else b"HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.close()


class TestTLS:
    """The check reports a wrong scheme in ``--upstream``, and a certificate that is not trusted."""

    @pytest.fixture
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @pytest.fixture
    def secure(self, authority: trustme.CA) -> Iterator[str]:
        """The port of a LiteLLM that speaks https, with a certificate for localhost only."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        content = json.dumps(READY).encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)
        with Upstream(reply(answer), context=context) as upstream:
            yield str(upstream.port)
            upstream.errors.clear()

    def test_http_to_https(self, secure: str, capsys: pytest.CaptureFixture[str]) -> None:
        checked = Checked(capsys, "--upstream", f"http://127.0.0.1:{secure}")
        assert (checked.status, "this port speaks https: --upstream https://" in checked.words) == (1, True)

    def test_https_to_http(self, capsys: pytest.CaptureFixture[str]) -> None:
        with Upstream(plain, keep=False) as upstream:
            checked = Checked(capsys, "--upstream", upstream.url.replace("http:", "https:"))
        assert (checked.status, "this port speaks plain http: --upstream http://" in checked.words) == (1, True)

    def test_unknown_authority(self, secure: str, capsys: pytest.CaptureFixture[str]) -> None:
        checked = Checked(capsys, "--upstream", f"https://localhost:{secure}")
        assert checked.status == 1
        assert "its certificate is not trusted (unable to get local issuer certificate)" in checked.words
        assert "--upstream-ca" in checked.words

    def test_another_name(
        self, secure: str, authority: trustme.CA, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        authority.cert_pem.write_to_path(str(tmp_path / "ca"))
        checked = Checked(capsys, "--upstream", f"https://127.0.0.1:{secure}", "--upstream-ca", str(tmp_path / "ca"))
        assert (checked.status, "IP address mismatch" in checked.words) == (1, True)

    def test_trusted(
        self, secure: str, authority: trustme.CA, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        authority.cert_pem.write_to_path(str(tmp_path / "ca"))
        checked = Checked(capsys, "--upstream", f"https://localhost:{secure}", "--upstream-ca", str(tmp_path / "ca"))
        assert f"ok connection LiteLLM answers at https://localhost:{secure}" in checked.words

    def test_nginx_says_it(self, authority: trustme.CA, capsys: pytest.CaptureFixture[str]) -> None:
        """A port that answers plain HTTP with a 400, but accepts a TLS handshake, is recognized as https."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        with socket.create_server(("127.0.0.1", 0)) as listener, Nginx(listener, context):
            checked = Checked(capsys, "--upstream", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert (checked.status, "this port speaks https: --upstream https://" in checked.words) == (1, True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore leaves its socket open
def test_unix_socket(capsys: pytest.CaptureFixture[str]) -> None:
    """A Unix socket that does not exist is reported as a problem."""
    with tempfile.TemporaryDirectory() as folder:
        checked = Checked(capsys, "--upstream", f"unix:{folder}/a")
    gc.collect()  # raises the warning here, where it is ignored, and not in a later test
    assert (checked.status, "no connection: No such file or directory" in checked.words) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        pytest.param(["--upstream", "x"], {}, "--upstream 'x': takes http", id="an option of serve"),
        pytest.param(
            ["--key-file", "/nonexistent"], {}, "--key-file '/nonexistent': takes a readable file", id="no file"
        ),
        pytest.param(["--key-file", "/dev/null"], {}, "--key-file '/dev/null': takes one key", id="no key in it"),
        pytest.param([], {"SANITIZER_CHECK_KEY": f"{KEY} {KEY}"}, "SANITIZER_CHECK_KEY '***': takes one key", id="two"),
    ],
)
def test_bad_usage(
    arguments: list[str],
    environment: dict[str, str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command ends with status 2 and one line that names the invalid value, but not the key."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    checked = Checked(capsys, *arguments)
    assert (checked.status, checked.out, len(checked.err.splitlines())) == (2, "", 1)
    assert named in checked.err

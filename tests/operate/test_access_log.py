"""The log lines of a gateway with real sockets: the access log, decisions, failures and the start."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest

from sanitizer import FORM
from sanitizer.operate import logs
from tests.operate.exchanges import (
    BUDGET,
    CUT,
    HANDSHAKE,
    KEY,
    SPEND,
    SWITCH,
    UPDATE,
    lookup,
    refusing,
    request,
    stored,
    update,
)
from tests.support.client import ask
from tests.support.gateway import Gateway
from tests.support.upstream import CLOSE, OK, WAIT_CLOSED, Upstream, reply
from tests.support.wire import Cut

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        pytest.param("/v1/models", "/v1/models", id="plain"),
        pytest.param("/v1/models?api_key=secret", "/v1/models", id="query"),
        pytest.param("/a?", "/a", id="empty query"),
        pytest.param("/a#b?c", "/a", id="fragment"),
        pytest.param("/a%20b", "/a%20b", id="encoded, as it came"),
        pytest.param("/key/sk-0123456789/regenerate", "/key/sk-***/regenerate", id="key"),
        pytest.param("/key/sk-0123456789/reset_spend", "/key/sk-***/reset_spend", id="key, another endpoint"),
        pytest.param("/key/sk-0123456789/x", "/key/sk-***", id="key, and what may be part of it"),
        pytest.param("/key/sk-ab/cd", "/key/sk-***", id="key with a slash at the end"),
        pytest.param("/key/sk-ab/cd/regenerate", "/key/sk-***/regenerate", id="key with a slash"),
        pytest.param("/key/sk-ab/c/d//e/regenerate", "/key/sk-***/regenerate", id="key with slashes"),
        pytest.param("/key/sk-ab%2Fcd/regenerate", "/key/sk-***/regenerate", id="key with an encoded slash"),
        pytest.param("/key/sk-ab%252Fcd%2fregenerate", "/key/sk-***/regenerate", id="key with a slash encoded twice"),
        pytest.param("/key/sk-ab/regenerate/cd/regenerate", "/key/sk-***/regenerate", id="key with an endpoint's name"),
        pytest.param("/key/sk-ab/regenerate/cd", "/key/sk-***", id="key that ends behind an endpoint's name"),
        pytest.param("/key/sk-a.b~c%2Fd/regenerate", "/key/sk-***/regenerate", id="key with odd characters"),
        pytest.param("/key/sk-a,b&c;d(e)%20%0Af/regenerate", "/key/sk-***/regenerate", id="key with delimiters"),
        pytest.param("/key/%20sk-ab/regenerate", "/key/ sk-***/regenerate", id="key behind a space"),
        pytest.param("/key/%22sk-ab%22/regenerate", '/key/"sk-***/regenerate', id="key in quotes"),
        pytest.param("/key/%73k-0123456789/regenerate", "/key/sk-***/regenerate", id="encoded s"),
        pytest.param("/key/sk%2d0123456789/regenerate", "/key/sk-***/regenerate", id="encoded hyphen"),
        pytest.param("/key/%73%6B%2D0123456789", "/key/sk-***", id="all encoded"),
        pytest.param("/key/%2573k-0123456789", "/key/sk-***", id="encoded twice"),
        pytest.param("/key/%0Ask-0123456789", "/key/\nsk-***", id="after a line feed"),
        pytest.param("/key/" + "ab" * 32, "/key/abababab***", id="hash"),
        pytest.param("/v1/risk-free/task-1", "/v1/risk-free/task-1", id="no key"),
        pytest.param("/sso/eyJhbGci.eyJzdWIi.c2ln-_9/cb", "/sso/eyJ***/cb", id="JWT"),
        pytest.param("/sso/eyJhbGci%2EeyJzdWIi%2Ec2ln", "/sso/eyJ***", id="JWT, encoded dots"),
        pytest.param("/sso/%65yJhbGci.eyJzdWIi.", "/sso/eyJ***", id="JWT without a signature"),
        pytest.param("/sso/eyJhbGci..aXY.Y3Q.dGFn/cb", "/sso/eyJ***/cb", id="encrypted JWT"),
        pytest.param("/sso/token_eyJhbGci.eyJzdWIi.c2ln", "/sso/token_eyJ***", id="JWT behind a name"),
        pytest.param("/a.b/eyJhbGci.eyJzdWIi.c2ln", "/a.b/eyJ***", id="JWT behind a dot"),
        pytest.param("/a/eyJ/eyJhbGci.b/heyJude", "/a/eyJ/eyJhbGci.b/heyJude", id="no JWT"),
    ],
)
def test_path(target: str, path: str) -> None:
    """The path is logged without its query, and a key or a JWT in it is masked, however it is encoded."""
    assert logs.path_of(target.encode()) == path


def accesses(gateway: Gateway) -> list[dict[str, Any]]:
    return [record for record in gateway.records if record["message"] == "request"]


def test_access_log(upstream: Upstream) -> None:
    """Each request is logged in one line, whatever its outcome, and whether or not it is intercepted."""
    options = ("--access-log", "--response-timeout", "2")
    expected: list[tuple[str | None, str | None, int]] = []
    with Gateway(upstream.url, *options) as gateway:
        with gateway.connect() as client:
            for _ in range(2):  # the second request repeats the head of the first
                assert client.ask(request(target=f"/key/{KEY}/x?token=secret")).status == 200
                expected.append(("GET", "/key/sk-***", 200))
            assert client.ask(update(b"{")).status == 200
            expected.append(("POST", "/key/update", 200))
            upstream.script = reply(CLOSE)
            assert client.ask(request("POST", "/closes")).status == 502
            expected.append(("POST", "/closes", 502))
        assert gateway.ask(b"GET /no-host HTTP/1.1\r\n\r\n").status == 400
        expected.append(("GET", "/no-host", 400))
        assert gateway.ask(b"?\r\n\r\n").status == 400
        expected.append((None, None, 400))
        upstream.script = reply(CUT, CLOSE)
        with gateway.connect() as client:
            client.send(request(target="/cut"))
            with pytest.raises(Cut):
                client.read_until(b"the rest")
        expected.append(("GET", "/cut", 200))
        upstream.script = reply(WAIT_CLOSED)
        number = len(upstream.requests)
        with gateway.connect() as client:
            client.send(request(target="/leaves"))
            upstream.wait_request(number + 1)
        gateway.wait_for_line("/leaves")
        expected.append(("GET", "/leaves", 499))
        upstream.script = reply(SWITCH, CLOSE)
        assert gateway.ask(HANDSHAKE).status == 101
        expected.append(("GET", "/ws", 101))
        upstream.script = reply(OK)
        assert gateway.ask(request("OPTIONS", "*")).status == 200
        expected.append(("OPTIONS", "*", 200))
        gateway.stop()
        lines = accesses(gateway)
        assert [(line.get("method"), line.get("path"), line["status"]) for line in lines] == expected
        assert {line["client"] for line in lines} == {"127.0.0.1"}
        assert all(0 <= line["ms"] < 60_000 for line in lines)
        assert "secret" not in "\n".join(gateway.lines)


def test_time_of_a_repeated_head(upstream: Upstream) -> None:
    """The logged time of a request is counted from its own head, even if that repeats an earlier head.

    The line is written before the test has read it, so the time that the test measures is longer. If the time were
    counted from the first head, the time of the last request would include that of all others.
    """
    with Gateway(upstream.url, "--access-log") as gateway, gateway.connect() as client:
        for status in range(200, 220):
            upstream.script = reply(b"HTTP/1.1 %d OK\r\nContent-Length: 0\r\n\r\n" % status)
            start = time.perf_counter()
            assert client.ask(request()).status == status
            gateway.wait_for_line(rf'"status": ?{status}\b')
            waited = (time.perf_counter() - start) * 1000
        gateway.stop()
        assert accesses(gateway)[-1]["ms"] <= waited + 0.1  # the logged time is rounded


def test_no_access_log(upstream: Upstream) -> None:
    """Without ``--access-log``, no line is written for a request that is relayed."""
    with Gateway(upstream.url) as gateway:
        assert gateway.ask(request(target="/nothing")).status == 200
        gateway.stop()
        assert not accesses(gateway)
        assert not any("/nothing" in line for line in gateway.lines)


def test_decision(upstream: Upstream) -> None:
    """A decision is logged in one line, with the response's status. A decision `absent` is not logged.

    The line identifies the request by LiteLLM's call id and by its traceparent.
    """
    answer = OK.replace(b"\r\nContent", b"\r\nx-litellm-call-id: 6f7c-1\r\nContent")
    upstream.script = lookup(stored(["/a"]), then=answer)
    with Gateway(upstream.url) as gateway:
        assert gateway.ask(update().replace(b"Host", f"traceparent: {TRACEPARENT}\r\nHost".encode())).status == 200
        assert gateway.ask(update(b'{"key":"sk-1"}')).status == 200
        gateway.stop()
        (line,) = [record for record in gateway.records if record["message"].startswith("/key/update")]
        assert 0 <= line.pop("lookup_ms") < 60_000
        assert set(line.pop("key")) <= set("0123456789abcdef")
        del line["time"]
        assert line == {
            "level": "info",
            "message": "/key/update dropped",
            "outcome": "dropped",
            "endpoint": "/key/update",
            "fields": "allowed_routes",
            "client": "127.0.0.1",
            "status": 200,
            "call_id": "6f7c-1",
            "traceparent": TRACEPARENT,
        }


def test_decision_after_a_refusal(upstream: Upstream) -> None:
    """A request that is resent is logged in one line, with the fields that LiteLLM refused and the final status.

    The access log has one line for it, too.
    """
    upstream.script = refusing("403 No", BUDGET, {"spend": 1.5}, b"spend")
    with Gateway(upstream.url, "--access-log") as gateway:
        assert gateway.ask(SPEND).status == 200
        gateway.stop()
        (line,) = [record for record in gateway.records if record["message"].startswith("/key/update")]
        del line["time"], line["key"], line["lookup_ms"]
        assert line == {
            "level": "info",
            "message": "/key/update dropped",
            "outcome": "dropped",
            "endpoint": "/key/update",
            "fields": "spend",
            "after_refusal": "spend",
            "client": "127.0.0.1",
            "status": 200,
        }
        assert [(line["path"], line["status"]) for line in accesses(gateway)] == [("/key/update", 200)]


CALLER = "sk-caller"
CALLER_HASH = hashlib.sha256(CALLER.encode()).hexdigest()[:8]
TOKEN = "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJqd3QifQ.c2lnbmF0dXJl"
CHAIN = "203.0.113.7, 10.0.0.1"


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize(
    ("target", "fields", "proxies", "said"),
    [
        pytest.param(
            "/key/update", f"x-api-key: {CALLER}", "", {"caller": CALLER_HASH, "client": "127.0.0.1"}, id="a key"
        ),
        pytest.param(
            f"/key/{KEY}/regenerate",
            f"Authorization: Bearer {CALLER}",
            "",
            {"caller": CALLER_HASH, "client": "127.0.0.1"},
            id="a key that is regenerated",
        ),
        pytest.param(
            "/key/update", f"Authorization: {TOKEN}", "", {"client": "127.0.0.1"}, id="a token of another kind"
        ),
        pytest.param(
            "/key/update", f"X-Forwarded-For: {CHAIN}", "10.0.0.0/8", {"client": "127.0.0.1"}, id="an untrusted peer"
        ),
        pytest.param(
            "/key/update",
            f"X-Forwarded-For: {CHAIN}",
            "127.0.0.1",
            {"client": "127.0.0.1", "forwarded_for": CHAIN},
            id="a trusted peer",
        ),
        pytest.param("/key/update", "X: y", "127.0.0.1", {"client": "127.0.0.1"}, id="a trusted peer says nothing"),
    ],
)
def test_caller(
    upstream: Upstream, log_format: str, target: str, fields: str, proxies: str, said: dict[str, str]
) -> None:
    """A decision's line has the hash of the caller's key, the peer, and a trusted peer's X-Forwarded-For."""
    message = request("POST", target, UPDATE, f"Content-Type: application/json\r\n{fields}\r\n")
    upstream.script = lookup(stored(["/a"]))
    with Gateway(upstream.url, "--log-format", log_format, "--trusted-proxies", proxies) as gateway:
        assert gateway.ask(message).status == 200
        gateway.stop()
        (line,) = [line for line in gateway.lines if " dropped" in line]
        assert TOKEN.split(".")[-1] not in line
        if log_format == "json":
            found = json.loads(line)
        else:
            found = dict(part.replace('"', "").split("=", 1) for part in line.split("  ") if "=" in part)
        assert {name: found[name] for name in ("caller", "client", "forwarded_for") if name in found} == said


def test_caller_on_a_unix_socket(upstream: Upstream, tmp_path: Path) -> None:
    """A client on a Unix socket has no address. Its X-Forwarded-For is logged only if Unix sockets are trusted."""
    upstream.script = lookup(stored(["/a"]))
    message = request("POST", "/key/update", UPDATE, f"Content-Type: application/json\r\nX-Forwarded-For: {CHAIN}\r\n")
    for proxies, said in (("", None), ("unix", CHAIN)):
        listen = ("--uds", str(tmp_path / "socket"))
        with Gateway(upstream.url, "--trusted-proxies", proxies, listen=listen) as gateway:
            assert gateway.ask(message).status == 200
            gateway.stop()
            (line,) = [record for record in gateway.records if record["message"] == "/key/update dropped"]
            assert (line.get("client"), line.get("forwarded_for")) == (None, said)


def test_decision_without_an_answer(upstream: Upstream) -> None:
    """If the client leaves before the response, the decision is still logged, without a status."""
    upstream.script = reply(WAIT_CLOSED)
    with Gateway(upstream.url) as gateway, gateway.connect() as client:
        client.send(update(b"{"))
        upstream.wait_request()
        client.close()
        gateway.wait_for_line("/key/update unreadable")
        gateway.stop()
        (line,) = [record for record in gateway.records if record["message"] == "/key/update unreadable"]
        assert "status" not in line


@pytest.mark.parametrize("message", [request(), update(b"{")], ids=["relayed", "intercepted"])
def test_aborted_stream(upstream: Upstream, message: bytes) -> None:
    """If upstream cuts several responses, one line reports the first cut, and another the number of further ones.

    No traceback is logged.
    """
    upstream.script = reply(CUT, CLOSE)
    with Gateway(upstream.url) as gateway:
        for _ in range(3):
            with gateway.connect() as client:
                client.send(message)
                with pytest.raises(Cut):
                    client.read_until(b"the rest")
        gateway.stop()
        lines = [record for record in gateway.records if record["level"] != "info"]
        assert [(line["message"], line["kind"], line.get("more")) for line in lines] == [
            ("upstream failed", "broken", None),
            ("upstream failed", "broken", 2),
        ]


def test_start(upstream: Upstream) -> None:
    """In text format, the start is a few lines: address, form, upstream, mode, fields, workers and admin listener."""
    options = ("--log-format", "text", "--mode", "observe", "--fields", "allowed_routes")
    with Gateway(upstream.url, *options, admin=True) as gateway:
        gateway.stop()
        start = gateway.lines.index(next(line for line in gateway.lines if "listening on" in line))
        assert re.fullmatch(r"\d\d:\d\d:\d\d info    listening on http://127\.0\.0\.1:\d+", gateway.lines[start])
        assert [line.split() for line in gateway.lines[start + 1 : start + 7]] == [
            ["form", FORM],
            ["upstream", upstream.url],
            ["mode", "observe"],
            ["fields", "allowed_routes"],
            ["workers", "1"],
            ["admin", f"http://127.0.0.1:{gateway.admin[1]}"],
        ]


def test_text_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """No text that a client sends can begin a new line in the log."""
    logs.configure("info", "text")
    logs.access("request", path="/a\nb\x1b[31m\u2028c")
    assert capsys.readouterr().err.endswith(' request  path="/a\\nb\\u001b[31m\\u2028c"\n')


def test_level(capsys: pytest.CaptureFixture[str]) -> None:
    """The access log is written even if the log level is `error`. A field that is None is left out."""
    logs.configure("error", "json")
    logs.access("request", path="/a", method=None)
    line = json.loads(capsys.readouterr().err)
    assert (line["message"], line["path"]) == ("request", "/a")
    assert "method" not in line


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("before", ["", " ", "\n", "\u00e4", "\\", '"', "_", "/", "=", "Bearer "])
def test_key_is_masked(capsys: pytest.CaptureFixture[str], style: str, before: str) -> None:
    """A key is masked whatever character precedes it, and however that character is escaped."""
    logs.configure("info", style)
    logs.access(f"{before}sk-0123", detail=f"{before}sk-0123.4567")
    written = capsys.readouterr().err
    assert "0123" not in written
    assert "4567" not in written
    assert written.count("sk-***") == 2
    if style == "json":
        assert json.loads(written)["message"] == f"{before}sk-***"


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("secret", ["sk-0123/4567", "sk-0123/4567/regenerate", "eyJhbGci.eyJ0123.4567"])
def test_whole_secret_is_masked(capsys: pytest.CaptureFixture[str], style: str, secret: str) -> None:
    """A JWT, and a key that contains a slash, are masked to their end, in messages and in fields."""
    logs.configure("info", style)
    logs.event(logging.ERROR, f"no such file: {secret}", file=secret)
    written = capsys.readouterr().err
    assert "0123" not in written
    assert "4567" not in written
    assert written.count("***") == 2


def test_address_of_an_ipv4_client(upstream: Upstream) -> None:
    """Even if the listener is dual-stack, the log has an IPv4 client's address in IPv4 form, as X-Forwarded-For has."""
    with Gateway(upstream.url, "--host", "::", "--access-log", "--shutdown-grace", "0") as gateway:
        port = int(gateway.url.rpartition(":")[2])
        assert ask(("127.0.0.1", port), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
        gateway.wait_for_line('"request"')
        gateway.stop()
    (record,) = accesses(gateway)
    assert record["client"] == "127.0.0.1"
    assert upstream.requests[0].get(b"x-forwarded-for") == b"127.0.0.1"

"""No secret appears in a log line, a URL or an error body: everything that the process writes is searched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.operate.exposition import wait_until_ready
from tests.support.client import Client
from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import CLOSE, OK, RESET, WAIT_CLOSED, Connection, Script, Upstream, refusing_port, reply
from tests.support.wire import Cut

SECRETS = {
    # LiteLLM's keys can be recognised by their form
    **{name: f"sk-{name}-0a1b2c3d4e5f6071" for name in ("path", "header", "update", "protocol", "padded", "trailer")},
    "slash": "sk-slash-0a1b2c3d/behind-a-slash-4e5f6071",
    # and so can JSON Web Tokens
    "jwt": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJqd3QifQ.c2lnbmF0dXJlLTRlNWY2MDcx",
    # other tokens can't
    **{
        name: f"eyJ{name}.0a1b2c3d"
        for name in ("query", "authorization", "cookie", "body", "userinfo", "answer", "own")
    },
}
PARTS = {"slash": SECRETS["slash"].split("/")[1:], "jwt": SECRETS["jwt"].split(".")[1:]}
"""For secrets that contain a separator: the parts after it, which must not be written either."""
KEY = SECRETS["update"]
HASH = hashlib.sha256(KEY.encode()).hexdigest()
PATH_HASH = hashlib.sha256(SECRETS["path"].encode()).hexdigest()
CALLER_HASH = hashlib.sha256(SECRETS["header"].encode()).hexdigest()

FIELDS = (
    "Host: example.test\r\n"
    f"Authorization: Bearer {SECRETS['authorization']}\r\n"
    f"x-litellm-api-key: {SECRETS['header']}\r\n"
    f"Cookie: token={SECRETS['cookie']}\r\n"
)
TARGET = f"/key/{SECRETS['path']}/reset_spend?api_key={SECRETS['query']}"


def request(
    method: str = "POST", target: str = TARGET, *, fields: str = "", body: str = SECRETS["body"], length: str = ""
) -> bytes:
    head = f"{method} {target} HTTP/1.1\r\n{FIELDS}{fields}Content-Length: {length or len(body.encode())}\r\n\r\n"
    return (head + body).encode()


def update(body: str, *, fields: str = "Content-Type: application/json\r\n") -> bytes:
    return request(target=f"/key/update?debug={SECRETS['query']}", fields=fields, body=body)


def regenerate(body: str, *, key: str = SECRETS["path"]) -> bytes:
    target = f"/key/{key}/regenerate?debug={SECRETS['query']}"
    return request(target=target, fields="Content-Type: application/json\r\n", body=body)


def info(value: object, status: str = "200 OK") -> Script:
    """An upstream that answers a lookup with ``status`` and ``value``, and any other request with OK."""
    content = json.dumps(value).encode()

    def script(connection: Connection) -> None:
        lookup = connection.read_request().method == b"GET"
        connection.send(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (status.encode(), len(content), content)
            if lookup
            else OK
        )

    return script


def refusing(connection: Connection) -> None:
    """Refuses every request, and an update of the routes with LiteLLM's message."""
    read = connection.read_request()
    words = "Only proxy admins can set `allowed_routes` on a key."
    content = json.dumps({"error": {"message": words if b"allowed_routes" in read.body else "no"}}).encode()
    connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))


def trailers(target: str) -> bytes:
    """A POST with a trailer that would authenticate the client at LiteLLM if it were merged into the header fields."""
    head = f"POST {target} HTTP/1.1\r\n{FIELDS}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return f"{head}{len(RESEND):x}\r\n{RESEND}\r\n0\r\nx-api-key: {SECRETS['trailer']}\r\n\r\n".encode()


STORED = info({"key": HASH, "info": {"allowed_routes": ["llm_api_routes"], "secret": SECRETS["answer"]}})
STORED_BY_PATH = info({"key": PATH_HASH, "info": {"permissions": {"secret": SECRETS["answer"]}}})
PERMISSIONS = json.dumps({"permissions": {"secret": SECRETS["answer"]}, "new_key": KEY})
RESEND = json.dumps({"key": KEY, "models": ["a"], "allowed_routes": ["llm_api_routes"]})
CHANGE = json.dumps({"key": KEY, "allowed_routes": ["info_routes"]})
UPGRADE = (
    f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{SECRETS['protocol']}\r\n"
)
HANDSHAKE = f"GET /v1/realtime?key={SECRETS['query']} HTTP/1.1\r\n{FIELDS}{UPGRADE}\r\n".encode()


@dataclass(frozen=True)
class Case:
    """A request, upstream's script, and the client's status. ``asgi`` is the status on that adapter, if it differs."""

    message: bytes
    script: Script
    status: int = 200
    asgi: int | None = None

    def expected(self, adapter: Adapter) -> int:
        return self.status if self.asgi is None or adapter == "native" else self.asgi


CASES: dict[str, Case] = {
    "relayed": Case(request(), reply(OK)),
    "upstream closes": Case(request(), reply(CLOSE), 502),
    "upstream resets": Case(request("GET"), reply(RESET), 502),
    "upstream answers with no HTTP": Case(request(), reply(SECRETS["answer"].encode() + b"\r\n\r\n", WAIT_CLOSED), 502),
    "upstream answers with two lengths": Case(
        request(),
        reply(f"HTTP/1.1 200 OK\r\nX: {SECRETS['answer']}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".encode()),
        502,
    ),
    "upstream breaks off": Case(
        request(),
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", SECRETS["answer"].encode(), CLOSE),
    ),
    "upstream does not answer": Case(request(), reply(WAIT_CLOSED), 504),
    "two lengths": Case(request(fields="Content-Length: 1\r\n"), reply(OK), 400),
    "a path with an encoded key": Case(request(target=TARGET.replace("sk-", "%73k%2D")), reply(OK)),
    "a path with a key encoded twice": Case(request(target=TARGET.replace("sk-", "%2573k-")), reply(OK)),
    "a path with a hash": Case(request("GET", target=f"/key/{PATH_HASH}/info"), reply(OK)),
    "a path with a key that has a slash": Case(request(target=f"/key/{SECRETS['slash']}/regenerate"), reply(OK)),
    "a path that ends with such a key": Case(request("DELETE", target=f"/key/{SECRETS['slash']}"), reply(OK)),
    "a path with such a key, encoded": Case(
        request(target=f"/key/{SECRETS['slash']}/reset_spend".replace("/behind", "%2Fbehind").replace("sk-", "%73k-")),
        reply(OK),
    ),
    "a path with a token": Case(request("GET", target=f"/sso/{SECRETS['jwt']}/callback"), reply(OK)),
    "a path with an encoded token": Case(
        request("GET", target=f"/sso/{SECRETS['jwt']}".replace(".", "%2E").replace("eyJ", "%65yJ")),
        reply(OK),
    ),
    "a refused request with a key in its path": Case(
        request(target=f"/key/{SECRETS['slash']}/{SECRETS['jwt']}", fields="Content-Length: 1\r\n"), reply(OK), 400
    ),
    "trailers": Case(trailers("/other"), reply(OK)),
    "trailers of an update": Case(trailers("/key/update"), STORED),
    "trailers that are malformed": Case(trailers("/other").replace(b"x-api-key:", b"x-api-key"), reply(OK), 400),
    "a length that is a key": Case(request(length=SECRETS["body"]), reply(OK), 400),
    "a faulty method": Case(SECRETS["body"].encode() + b" " + request(), reply(OK), 400),
    "a faulty field": Case(request(fields=f"{SECRETS['header']}\r\n"), reply(OK), 400),
    "a Host with a user": Case(f"GET / HTTP/1.1\r\nHost: u:{SECRETS['userinfo']}@a\r\n\r\n".encode(), reply(OK), 400),
    "a target of another scheme": Case(request(target=f"ftp://{SECRETS['userinfo']}@a/"), reply(OK), 400, asgi=200),
    "a head too large": Case(request(fields=f"X: {SECRETS['header'] * 4000}\r\n"), reply(OK), 431, asgi=200),
    "a loop": Case(request(fields="".join(f"Via: 1.1 litellm-sanitizer-{n}\r\n" for n in range(9))), reply(OK), 508),
    "an upgrade": Case(
        HANDSHAKE,
        reply(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        101,
        asgi=502,
    ),
    "an upgrade that is refused": Case(HANDSHAKE, reply(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), 403),
    "an upgrade that upstream closes": Case(HANDSHAKE, reply(CLOSE), 502),
    "an update, dropped": Case(update(RESEND), STORED),
    "an update, changed": Case(update(CHANGE), STORED),
    "an update, absent": Case(update(json.dumps({"key": KEY})), STORED),
    "an update, unreadable": Case(update(RESEND[:-1]), STORED),
    "an update of another type": Case(update(RESEND, fields=f"Content-Type: {SECRETS['header']}\r\n"), STORED),
    "an update, its lookup refused": Case(update(RESEND), info({"error": KEY}, "403 Forbidden")),
    "an update, refused as its lookup is": Case(update(RESEND), refusing, 403),
    "an update, its lookup not found": Case(update(RESEND), info({"detail": KEY}, "404 Not Found")),
    "an update, its lookup of another shape": Case(update(RESEND), info([KEY])),
    **{
        f"an update, its key {name}": Case(update(json.dumps({**json.loads(RESEND), "key": key})), STORED)
        for name, key in {
            "padded": f" {SECRETS['padded']}\n",
            "in quotes": f"'{SECRETS['padded']}'",
            "in double quotes": f'"{SECRETS["padded"]}"',
            "with its scheme": f"Bearer {SECRETS['padded']}",
            "a token": SECRETS["jwt"],
        }.items()
    },
    "a regeneration, its key padded": Case(regenerate(PERMISSIONS, key=f"%20{SECRETS['padded']}"), STORED_BY_PATH),
    "a regeneration, its key in quotes": Case(
        regenerate(PERMISSIONS, key=f"%22{SECRETS['padded']}%22"), STORED_BY_PATH
    ),
    "an update, its lookup broken off": Case(update(RESEND), reply(RESET), 502),
    "an update, its lookup unanswered": Case(update(RESEND), reply(WAIT_CLOSED), 504),
    "a regeneration, dropped": Case(regenerate(PERMISSIONS), STORED_BY_PATH),
    "a regeneration, dropped, its key hashed": Case(regenerate(PERMISSIONS, key=PATH_HASH), STORED_BY_PATH),
    "a regeneration, changed": Case(regenerate(PERMISSIONS), info({"key": PATH_HASH, "info": {"permissions": {}}})),
    "a regeneration, absent": Case(regenerate(""), STORED_BY_PATH),
    "a regeneration, unreadable": Case(regenerate(SECRETS["body"]), STORED_BY_PATH),
    "a regeneration, its lookup refused": Case(regenerate(PERMISSIONS), info({"error": KEY}, "403 Forbidden")),
    "a regeneration, its lookup broken off": Case(regenerate(PERMISSIONS), reply(RESET), 502),
}


FAILURES = ["upstream failed", "request refused", "lookup key file"]
"""Parts of messages that are logged for `CASES`, however logging is configured."""
EVENTS = [
    *(f"/key/update {outcome}" for outcome in ("dropped", "changed", "unreadable", "unknown")),
    *(f"/key/{{key}}/regenerate {outcome}" for outcome in ("dropped", "changed", "unreadable", "unknown")),
    "lookup_404",
    "lookup_timeout",
    "lookup_failed",
    "lookup_shape",
    "key_form",
    "loop_detected",
    "response_timeout",
    "broken",
]
"""Parts of further messages, which the command logs because it logs more than warnings."""


def play(gateway: Gateway, message: bytes) -> bytes:
    """The octets that a client receives for ``message`` if it waits for the response."""
    with Client(gateway.address) as client:
        client.ask(message)
        return bytes(client.received)


def leave(gateway: Gateway, message: bytes) -> bytes:
    """The octets that a client receives if it half-closes at once. The connection may be reset meanwhile."""
    with Client(gateway.address) as client:
        with contextlib.suppress(Cut, OSError):
            client.send(message)
            client.half_close()
            client.read_to_end()
        return bytes(client.received)


def assert_no_secret(text: str, where: str) -> None:
    for name, secret in SECRETS.items():
        for part in (secret.removeprefix("sk-"), *PARTS.get(name, ())):
            assert part not in text, f"the {name} secret is in {where}"
    assert HASH not in text, f"the key's whole hash is in {where}"
    assert PATH_HASH not in text, f"the whole hash of the path's key is in {where}"
    assert CALLER_HASH not in text, f"the whole hash of the caller's key is in {where}"


def assert_no_secret_in_admin(gateway: Gateway) -> None:
    for path in ("/metrics", "/readyz", "/livez", TARGET, f"/{SECRETS['jwt']}/{SECRETS['slash']}"):
        answer = gateway.ask_admin(path)
        assert answer.body
        assert_no_secret(answer.raw_head.decode("latin-1") + answer.body.decode(), f"the admin listener's {path}")


@pytest.mark.parametrize("adapter", ["native", "asgi"])
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_secret_is_written(adapter: Adapter, log_format: str, tmp_path: Path) -> None:
    """No secret of a request is logged, or is in a response of the gateway's own, whatever happens to the request."""
    own = tmp_path / "key"
    own.write_text(SECRETS["own"])
    options = (
        "--lookup-key-file",
        str(own),
        "--log-level",
        "debug",
        "--log-format",
        log_format,
        "--response-timeout",
        "2",
        "--lookup-timeout",
        "2",
        *(["--access-log"] if adapter == "native" else []),
    )
    with Upstream() as upstream, Gateway(upstream.url, *options, adapter=adapter, admin=True) as gateway:
        for name, case in CASES.items():
            upstream.script = case.script
            received = play(gateway, case.message)
            assert received.startswith(b"HTTP/1.1 %d " % case.expected(adapter)), (name, received)
            for answer in (received, leave(gateway, case.message)):
                if not answer.startswith(b"HTTP/1.1 200"):  # upstream's own content may have secrets
                    assert_no_secret(answer.decode("latin-1"), "an answer")
        upstream.settle()
        upstream.errors.clear()
        lookups = [each.target for each in upstream.requests if each.method == b"GET" and b"/key/info" in each.target]
        assert lookups
        for secret in (KEY, SECRETS["path"], SECRETS["padded"], SECRETS["jwt"]):
            assert secret.encode() not in b"".join(lookups), "the key is in the URL of a lookup"
        if adapter == "native":  # uvicorn merges trailers into the header fields
            assert SECRETS["trailer"].encode() not in upstream.received, "a trailer has been passed on"
        with pytest.raises(AssertionError):
            assert_no_secret(upstream.received.decode("latin-1"), "what upstream received, as it should")
        assert SECRETS["own"].encode() in upstream.received
        own.write_text(f"{SECRETS['own']} {SECRETS['own']}")  # not one key
        upstream.script = refusing
        play(gateway, update(RESEND))
        if adapter == "native":
            assert_no_secret_in_admin(gateway)
        gateway.stop()
        assert_no_secret("\n".join(gateway.lines), "the log")
        for message in (*FAILURES, *(EVENTS if adapter == "native" else ())):
            assert any(message in line for line in gateway.lines), f"not logged: {message}"
        if (adapter, log_format) == ("native", "json"):
            accesses = [record for record in gateway.records if record["message"] == "request"]
            assert len(accesses) == 2 * len(CASES) + 1
            assert any("sk-***" in record.get("path", "") for record in accesses)
            decisions = [record for record in gateway.records if "outcome" in record]
            assert {record["caller"] for record in decisions} == {CALLER_HASH[:8]}


def test_no_secret_while_upstream_is_away() -> None:
    """If upstream can't be reached, no secret is logged or sent, and the client does not learn upstream's address."""
    options = ("--log-level", "debug", "--access-log")
    with refusing_port() as port, Gateway(f"http://127.0.0.1:{port}", *options, admin=True) as gateway:
        for message in (request(), update(RESEND), HANDSHAKE):
            received = play(gateway, message)
            assert received.startswith(b"HTTP/1.1 502")
            assert str(port).encode() not in received, "an internal address is shown"
            assert_no_secret(received.decode("latin-1"), "an answer")
        assert_no_secret_in_admin(gateway)
        assert str(port).encode() not in wait_until_ready(gateway, False, because="can't be reached")
        gateway.stop()
        assert_no_secret("\n".join(gateway.lines), "the log")


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_no_secret_in_a_check(options: tuple[str, ...], tmp_path: Path) -> None:
    """A check prints neither the key that it uses nor other secrets, although LiteLLM's responses repeat them."""
    file = tmp_path / "key"
    file.write_text(KEY)
    secrets = {name: SECRETS[name] for name in ("slash", "jwt", "update")}

    def script(connection: Connection) -> None:
        connection.read_request()
        words = " ".join(secrets.values())
        content = json.dumps({"status": words, "db": words, "litellm_version": words, "error": {"message": words}})
        connection.send(b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content.encode()))

    with Upstream(script) as upstream:
        command = [sys.executable, "-m", "sanitizer", "check", "--upstream", upstream.url, "--key-file", str(file)]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "***" in done.stdout
        assert_no_secret(done.stdout + done.stderr, "what a check says")

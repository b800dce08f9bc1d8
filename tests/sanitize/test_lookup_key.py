"""The lookup credential: where it comes from, when it is used, what goes with it, and who is told."""

import asyncio
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from starlette.types import Receive, Scope, Send

from sanitizer.address import Address
from sanitizer.relay.fetch import fetch
from sanitizer.relay.upstream import Upstream as GatewayUpstream
from sanitizer.sanitize.decision import Outcome, Stored, Unknown
from sanitizer.sanitize.jsonedit import Json
from sanitizer.sanitize.lookup_key import KeyFile, checked_key, read_key
from sanitizer.sanitize.stored import Caller, StoredKeys, token_of
from tests.sanitize.harness import JSON, KEY, Client, Fields, Lookups, Sanitized, Upstream, octets, update
from tests.support.upstream import Upstream as Server
from tests.support.upstream import in_turn, reply

TOKEN = token_of(KEY)
OWN = "sk-own"
ALICE: Fields = [(b"Host", b"proxy.example"), (b"Authorization", b"Bearer alice")]
REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}"


def answer(**info: Any) -> bytes:
    body = json.dumps({"key": TOKEN, "info": {"allowed_routes": ["/a"], **info}}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        pytest.param("sk-1", "sk-1", id="bare"),
        pytest.param("\n sk-1 \r\n\n", "sk-1", id="white space around it"),
        pytest.param("0123abcd", "0123abcd", id="not one of LiteLLM's making"),
        pytest.param("", None, id="empty"),
        pytest.param(" \n", None, id="nothing but white space"),
        pytest.param("sk-1 sk-2", None, id="two"),
        pytest.param("sk-1\nsk-2", None, id="two lines"),
        pytest.param("sk-1\x00", None, id="a control character"),
        pytest.param("sk-\xe4", None, id="not ASCII"),
        pytest.param("k" * 512, "k" * 512, id="long"),
        pytest.param("k" * 513, None, id="too long"),
        pytest.param("k" + "\n" * 5000, None, id="a file too long"),
    ],
)
def test_key(content: str, key: str | None, tmp_path: Path) -> None:
    """One key that can be sent, or an error that does not repeat it."""
    path = tmp_path / "key"
    path.write_bytes(content.encode())
    if key is not None:
        assert (read_key(str(path)), checked_key(content)) == (key, key)
        return
    with pytest.raises(ValueError, match="key") as refused:
        read_key(str(path))
    assert "sk-" not in str(refused.value)


class TestKeyFile:
    """The key in a file, as the file changes."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "key"
        path.write_text("sk-1\n")
        return path

    def test_rewritten(self, path: Path) -> None:
        """Another content in the same file."""
        key = KeyFile(str(path), pytest.fail)
        assert [key(), key()] == ["sk-1", "sk-1"]
        path.write_text("sk-two\n")
        assert key() == "sk-two"

    def test_touched(self, path: Path) -> None:
        """The same size in the same file, at another time."""
        key = KeyFile(str(path), pytest.fail)
        path.write_text("sk-2\n")
        os.utime(path, ns=(1, 1))
        assert key() == "sk-2"

    def test_renamed(self, path: Path) -> None:
        """Another file in its place, of the same size and time."""
        key = KeyFile(str(path), pytest.fail)
        status = path.stat()
        other = path.with_name("other")
        other.write_text("sk-2\n")
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
        assert key() == "sk-2"

    def test_kubernetes(self, tmp_path: Path) -> None:
        """A mounted secret: the file is a link into a folder that is itself a link, which is swapped."""
        for name, text in (("v1", "sk-1"), ("v2", "sk-2")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "key").write_text(text)
            os.utime(tmp_path / name / "key", ns=(1, 1))
        (tmp_path / "..data").symlink_to("v1")
        path = tmp_path / "key"
        path.symlink_to("..data/key")
        key = KeyFile(str(path), pytest.fail)
        assert key() == "sk-1"
        (tmp_path / "..new").symlink_to("v2")
        (tmp_path / "..new").replace(tmp_path / "..data")
        assert key() == "sk-2"

    def test_last_good_one(self, path: Path) -> None:
        """Where there is no key for a while the last one stays, and each reason in a row is told once."""
        told: list[str] = []
        key = KeyFile(str(path), told.append)
        path.unlink()
        assert [key(), key()] == ["sk-1", "sk-1"]
        assert told == ["No such file or directory"]
        path.write_text("")
        assert [key(), key()] == ["sk-1", "sk-1"]
        path.write_text("two words")
        assert key() == "sk-1"
        assert [reason[:7] for reason in told[1:]] == ["one key"]
        path.write_text("sk-2")
        assert key() == "sk-2"
        path.write_text("two words")
        assert key() == "sk-2"
        assert len(told) == 3

    def test_gone_after_the_start(self, path: Path) -> None:
        """It has been read before the first use."""
        told: list[str] = []
        key = KeyFile(str(path), told.append)
        path.unlink()
        assert key() == "sk-1"

    def test_never_there(self, tmp_path: Path) -> None:
        """Without any, there is none."""
        told: list[str] = []
        key = KeyFile(str(tmp_path / "none"), told.append)
        assert (key(), len(told)) == (None, 1)


async def ask(target: bytes, header: bytes, limit: int) -> tuple[int, bytes]:
    lines = [line.split(b": ", 1) for line in header.split(b"\r\n")[1:]]
    async with httpx.AsyncClient(base_url="http://litellm.test") as client:
        answer = await client.get(target.decode(), headers=[(name, value) for name, value in lines])
    return answer.status_code, answer.content


def stored_keys(own: str | None, ttl: float = 0) -> StoredKeys:
    """StoredKeys whose lookups respx answers."""
    return StoredKeys(cache_ttl=ttl, lookup_key=lambda: own)


async def get(stored: StoredKeys, headers: Fields = ALICE) -> Stored | Unknown:
    found, lookup = await stored.get(Caller(octets(headers), ask), KEY, "")
    assert lookup is None or lookup.lookup_key == found.lookup_key
    return found


class LiteLLM:
    """Answers Alice's lookups with ``status`` and those with the gateway's credential with ``own``."""

    def __init__(self, router: respx.MockRouter, status: int, own: int | httpx.Response = 200) -> None:
        self.status = status
        self.own = own
        self.askers: list[str] = []
        router.get(url__startswith="http://litellm.test/").mock(side_effect=self._info)

    def _info(self, request: httpx.Request) -> httpx.Response:
        asker = request.headers["authorization"].removeprefix("Bearer ")
        self.askers.append(asker)
        status = self.own if asker == OWN else self.status
        if isinstance(status, httpx.Response):
            return status
        return httpx.Response(status, json={"key": TOKEN, "info": {"allowed_routes": ["/a"]}})


HELD: dict[str, Json] = {"allowed_routes": ["/a"]}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "own", "askers", "result"),
    [
        pytest.param(200, OWN, ["alice"], Stored(HELD), id="the caller may read"),
        pytest.param(403, OWN, ["alice", OWN], Stored(HELD, lookup_key=True), id="the caller may not"),
        pytest.param(403, None, ["alice"], Unknown("lookup_403"), id="the caller may not, and there is none"),
        pytest.param(401, OWN, ["alice"], Unknown("lookup_401"), id="LiteLLM does not know the caller"),
        pytest.param(404, OWN, ["alice"], Unknown("lookup_404"), id="no such key"),
        pytest.param(400, OWN, ["alice"], Unknown("lookup_400"), id="a bad request"),
        pytest.param(429, OWN, ["alice"], Unknown("lookup_429"), id="too many requests"),
        pytest.param(500, OWN, ["alice"], Unknown("lookup_500"), id="LiteLLM fails"),
        pytest.param(307, OWN, ["alice"], Unknown("lookup_307"), id="a redirect"),
    ],
)
async def test_when(
    status: int, own: str | None, askers: list[str], result: Stored | Unknown, respx_mock: respx.MockRouter
) -> None:
    """Only after a 403, and only once."""
    litellm = LiteLLM(respx_mock, status)
    assert await get(stored_keys(own)) == result
    assert litellm.askers == askers


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("own", "reason"),
    [
        pytest.param(401, "lookup_key_401", id="it is no key any more"),
        pytest.param(403, "lookup_key_403", id="it may not read this key"),
        pytest.param(404, "lookup_key_404", id="no such key"),
        pytest.param(500, "lookup_key_500", id="LiteLLM fails"),
        pytest.param(httpx.Response(200, text="<html>"), "lookup_shape", id="a page"),
        pytest.param(httpx.Response(200, json={"key": "0" * 64, "info": HELD}), "lookup_shape", id="another key"),
        pytest.param(
            httpx.Response(200, json={"key": TOKEN, "info": {"status": "deleted"}}), "key_deleted", id="a deleted key"
        ),
        pytest.param(httpx.Response(200, content=b" " * 1100000), "lookup_size", id="too long"),
    ],
)
async def test_refused_as_well(own: int | httpx.Response, reason: str, respx_mock: respx.MockRouter) -> None:
    """An own lookup that gives nothing is unknown, by a reason of its own if it was refused."""
    LiteLLM(respx_mock, 403, own)
    assert await get(stored_keys(OWN)) == Unknown(reason, lookup_key=True)


@pytest.mark.anyio
async def test_bytes_sent() -> None:
    """Nothing by which the caller may have authenticated goes along with the gateway's own key."""
    fields: Fields = [
        (b"Host", b"proxy.example:8443"),
        (b"X-LiteLLM-API-Key", b"Bearer sk-1"),
        (b"authorization", b"Bearer sk-2"),
        (b"API-Key", b"sk-3"),
        (b"X-API-Key", b"sk-4"),
        (b"x-goog-api-key", b"sk-5"),
        (b"Ocp-Apim-Subscription-Key", b"sk-6"),
        (b"X-A-Name-Of-The-Operator", b"sk-7"),
        (b"X-Forwarded-Access-Token", b"sk-8"),
        (b"Cookie", b"token=9"),
        (b"Accept", b"*/*"),
        (b"Content-Type", b"application/json"),
        (b"X-Forwarded-For", b"203.0.113.9"),
        (b"x-forwarded-proto", b"https"),
        (b"X-Forwarded-Host", b"proxy.example"),
        (b"Via", b"1.1 a"),
        (b"Via", b"1.1 litellm-sanitizer-0"),
    ]
    with Server(in_turn(reply(REFUSED), reply(answer()))) as server:
        upstream = GatewayUpstream(Address("http", "127.0.0.1", server.port))
        try:
            stored = StoredKeys(lookup_key=lambda: OWN)
            caller = Caller(octets(fields), partial(fetch, upstream))
            assert (await stored.get(caller, KEY, "/p"))[0] == Stored(HELD, lookup_key=True)
        finally:
            upstream.close()
        server.settle()
        assert server.requests[1].raw_head == b"\r\n".join(
            [
                b"GET /p/key/info?key=%b HTTP/1.1" % TOKEN.encode(),
                b"Host: proxy.example:8443",
                b"X-Forwarded-For: 203.0.113.9",
                b"x-forwarded-proto: https",
                b"X-Forwarded-Host: proxy.example",
                b"Via: 1.1 a",
                b"Via: 1.1 litellm-sanitizer-0",
                b"Authorization: Bearer sk-own",
                b"Accept-Encoding: identity",
                b"",
                b"",
            ]
        )


@pytest.mark.anyio
async def test_one_timeout(respx_mock: respx.MockRouter) -> None:
    """Both lookups together have the time of one."""

    async def wait(request: httpx.Request) -> httpx.Response:
        if request.headers["authorization"] == "Bearer alice":
            return httpx.Response(403)
        await asyncio.Event().wait()
        raise AssertionError

    respx_mock.get(url__startswith="http://litellm.test/").mock(side_effect=wait)
    stored = stored_keys(OWN)
    stored._timeout = 0.05
    assert await get(stored) == Unknown("lookup_timeout", lookup_key=True)


@pytest.mark.anyio
async def test_cached_for_the_caller_alone(respx_mock: respx.MockRouter) -> None:
    """What the credential has read is reused for the caller it was read for, and is still known for what it is."""
    litellm = LiteLLM(respx_mock, 403)
    stored = stored_keys(OWN, ttl=10)
    assert await get(stored) == Stored(HELD, lookup_key=True)
    assert await get(stored) == Stored(HELD, cached=True, lookup_key=True)
    assert litellm.askers == ["alice", OWN]
    litellm.status = 401
    stranger: Fields = [ALICE[0], (b"Authorization", b"Bearer stranger")]
    assert await get(stored, stranger) == Unknown("lookup_401")
    assert litellm.askers == ["alice", OWN, "stranger"]


@pytest.mark.anyio
@pytest.mark.parametrize("status", [200, 201, 204, 299, 199, 300, 307, 400, 401, 403, 404, 500])
@pytest.mark.parametrize(
    ("mode", "sent", "stored", "mark"),
    [
        pytest.param("enforce", ["/a"], Stored(HELD, lookup_key=True), b'dropped; fields="allowed_routes"', id="right"),
        pytest.param("enforce", ["/b"], Stored(HELD, lookup_key=True), b"changed", id="wrong"),
        pytest.param(
            "enforce", ["/b"], Unknown("lookup_key_404", True), b'unknown; reason="lookup_key_404"', id="unknown"
        ),
        pytest.param(
            "observe", ["/a"], Stored(HELD, lookup_key=True), b'observed; fields="allowed_routes"', id="observed"
        ),
    ],
)
async def test_who_is_told(status: int, mode: str, sent: list[str], stored: Stored | Unknown, mark: bytes) -> None:
    """A caller whom LiteLLM refuses does not learn from the gateway whether the value sent was the stored one."""

    class Answering(Upstream):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": status, "headers": [(b"x-litellm-sanitizer", b"?")]})
            await send({"type": "http.response.body"})

    app = Sanitized(Answering(), Lookups(stored), mode)
    client = await Client([update(sent)], [JSON]).through(app)
    assert client.marks == ([mark] if 200 <= status < 300 else [])
    (record,) = app.records
    assert record.decision.lookup_key
    assert record.decision.outcome is Outcome(mark.split(b";")[0].decode())

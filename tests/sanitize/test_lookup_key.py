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

from sanitizer.address import Address
from sanitizer.relay.fetch import fetch
from sanitizer.relay.pool import Pool
from sanitizer.sanitize.decision import Stored, Unknown
from sanitizer.sanitize.jsonedit import Json
from sanitizer.sanitize.lookup_key import KeyFile, checked_key, read_key
from sanitizer.sanitize.stored import Caller, Lookup, LookupOutcome, StoredKeys, token_of
from tests.sanitize.harness import KEY, Fields, octets
from tests.support.upstream import Upstream as Server
from tests.support.upstream import reply

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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((f"{quote}sk-1{quote}\n".encode(), "it has quotes around it") for quote in ('"', "'", "`")),
        (b'"sk-1', "it has quotes around it"),
        (b"sk-1'", "it has quotes around it"),
        ("\ufeffsk-1".encode(), "begins with a byte order mark"),
        ('\ufeff"sk-1"'.encode(), "begins with a byte order mark"),
        ("sk-1\r\n".encode("utf-16"), "begins with a byte order mark"),
        (b"\xfe\xff" + "sk-1".encode("utf-16-be"), "begins with a byte order mark"),
    ],
)
def test_key_in_a_wrapping(content: bytes, words: str, tmp_path: Path) -> None:
    """What an editor or a shell has put around a key is named, and not sent as part of it."""
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^one key and nothing else: .*{words}") as refused:
        read_key(str(path))
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"), [("'sk-1'", "it has quotes around it"), ("\ufeffsk-1", "begins with a byte order mark")]
)
def test_text_in_a_wrapping(text: str, words: str) -> None:
    """The same of a variable's value."""
    with pytest.raises(ValueError, match=words):
        checked_key(text)


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


async def ask(target: bytes, header: bytes, limit: int, content: bytes | None = None, /) -> tuple[int, bytes]:
    lines = [line.split(b": ", 1) for line in header.split(b"\r\n")[1:]]
    async with httpx.AsyncClient(base_url="http://litellm.test") as client:
        answer = await client.get(target.decode(), headers=[(name, value) for name, value in lines])
    return answer.status_code, answer.content


def stored_keys(own: str | None, ttl: float = 0) -> StoredKeys:
    """StoredKeys whose lookups respx answers."""
    return StoredKeys(cache_ttl=ttl, lookup_key=lambda: own)


async def get(stored: StoredKeys, headers: Fields = ALICE) -> Stored | Unknown:
    return (await stored.get(Caller(octets(headers), ask), KEY, ""))[0]


async def get_with_lookup_key(stored: StoredKeys) -> tuple[Stored | Unknown, Lookup | None]:
    return await stored.get_with_lookup_key(Caller(octets(ALICE), ask), KEY, None, "")


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
async def test_not_by_itself(respx_mock: respx.MockRouter) -> None:
    """A lookup is the caller's; when it is refused, that is said, and the credential not used."""
    litellm = LiteLLM(respx_mock, 403)
    stored = stored_keys(OWN)
    assert await get(stored) == Unknown("lookup_403", refused=True)
    assert litellm.askers == ["alice"]
    assert (stored.has_lookup_key, StoredKeys().has_lookup_key) == (True, False)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("own", "result", "outcome"),
    [
        pytest.param(200, Stored(HELD), LookupOutcome.OK, id="found"),
        pytest.param(401, Unknown("lookup_key_401"), LookupOutcome.REFUSED, id="it is no key any more"),
        pytest.param(403, Unknown("lookup_key_403"), LookupOutcome.REFUSED, id="it may not read this key"),
        pytest.param(404, Unknown("lookup_key_404"), LookupOutcome.REFUSED, id="no such key"),
        pytest.param(500, Unknown("lookup_key_500"), LookupOutcome.SERVER_ERROR, id="LiteLLM fails"),
        pytest.param(httpx.Response(200, text="<html>"), Unknown("lookup_shape"), LookupOutcome.UNUSABLE, id="a page"),
        pytest.param(
            httpx.Response(200, json={"key": "0" * 64, "info": HELD}),
            Unknown("lookup_shape"),
            LookupOutcome.UNUSABLE,
            id="another key",
        ),
        pytest.param(
            httpx.Response(200, json={"key": TOKEN, "info": {"status": "deleted"}}),
            Unknown("key_deleted"),
            LookupOutcome.UNUSABLE,
            id="a deleted key",
        ),
        pytest.param(
            httpx.Response(200, content=b" " * 1100000), Unknown("lookup_size"), LookupOutcome.UNUSABLE, id="too long"
        ),
    ],
)
async def test_with_lookup_key(
    own: int | httpx.Response, result: Stored | Unknown, outcome: LookupOutcome, respx_mock: respx.MockRouter
) -> None:
    """What the credential reads, or how it is refused, which has a reason of its own."""
    litellm = LiteLLM(respx_mock, 403, own)
    found, lookup = await get_with_lookup_key(stored_keys(OWN))
    assert found == result
    assert lookup is not None
    assert (lookup.outcome, lookup.lookup_key) == (outcome, True)
    assert litellm.askers == [OWN]


@pytest.mark.anyio
async def test_no_key_now(respx_mock: respx.MockRouter) -> None:
    """A file that has held no key yet gives none: the caller's refusal stands, and nobody is asked."""
    litellm = LiteLLM(respx_mock, 403)
    assert await get_with_lookup_key(stored_keys(None)) == (Unknown("lookup_403"), None)
    assert litellm.askers == []


@pytest.mark.anyio
async def test_bytes_sent() -> None:
    """Nothing goes along with the gateway's own key by which the caller has authenticated, or names a virtual host."""
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
        (b"Forwarded", b"host=proxy.example"),
        (b"Via", b"1.1 a"),
        (b"Via", b"1.1 litellm-sanitizer-0"),
    ]
    with Server(reply(answer())) as server:
        upstream = Pool(Address("http", "127.0.0.1", server.port))
        try:
            stored = StoredKeys(lookup_key=lambda: OWN, host=b"litellm.example")
            caller = Caller(octets(fields), partial(fetch, upstream))
            assert (await stored.get_with_lookup_key(caller, KEY, None, "/p"))[0] == Stored(HELD)
        finally:
            upstream.close()
        server.settle()
        assert server.requests[0].raw_head == b"\r\n".join(
            [
                b"GET /p/key/info?key=%b HTTP/1.1" % TOKEN.encode(),
                b"Host: litellm.example",
                b"X-Forwarded-For: 203.0.113.9",
                b"x-forwarded-proto: https",
                b"Via: 1.1 a",
                b"Via: 1.1 litellm-sanitizer-0",
                b"Authorization: Bearer sk-own",
                b"Accept-Encoding: identity",
                b"",
                b"",
            ]
        )


@pytest.mark.anyio
async def test_timeout(respx_mock: respx.MockRouter) -> None:
    """It has the time of any lookup."""

    async def wait(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    respx_mock.get(url__startswith="http://litellm.test/").mock(side_effect=wait)
    stored = stored_keys(OWN)
    stored._timeout = 0.05
    found, lookup = await get_with_lookup_key(stored)
    assert found == Unknown("lookup_timeout")
    assert lookup is not None
    assert lookup.outcome is LookupOutcome.TIMEOUT


@pytest.mark.anyio
async def test_not_cached(respx_mock: respx.MockRouter) -> None:
    """What the credential has read is for one request."""
    litellm = LiteLLM(respx_mock, 403)
    stored = stored_keys(OWN, ttl=10)
    for _ in range(2):
        assert (await get_with_lookup_key(stored))[0] == Stored(HELD)
    assert litellm.askers == [OWN, OWN]

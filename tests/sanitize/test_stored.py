"""The lookup: what is sent, to the byte, and what is made of whatever comes back."""

import asyncio
import contextlib
import hashlib
import json
import logging
import ssl
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from sanitizer.address import Address
from sanitizer.errors import (
    ConnectTimeout,
    GatewayError,
    PoolExhausted,
    ResponseTimeout,
    UpstreamBroken,
    UpstreamUnreachable,
)
from sanitizer.relay.fetch import fetch
from sanitizer.relay.pool import Pool
from sanitizer.sanitize.decision import Stored, Unknown
from sanitizer.sanitize.stored import MAX_ANSWER, Ask, Caller, LookupOutcome, StoredKeys, key_hash, token_of
from tests.sanitize.harness import Fields, octets
from tests.support.upstream import (
    CLOSE,
    RESET,
    WAIT_CLOSED,
    Connection,
    Script,
    Upstream,
    in_turn,
    refusing_port,
    reply,
)

pytestmark = pytest.mark.anyio

KEY = "sk-secret"
TOKEN = hashlib.sha256(KEY.encode()).hexdigest()
HOST = (b"Host", b"proxy.example")
LARGE: Any = {f"openai/model-{n}": {"budget_limit": "0.5", "time_period": "1d", "models": ["a"]} for n in range(8000)}
"""More than a key has that has a budget for each of its models."""


def answer(info: Any = None, key: Any = TOKEN, **more: Any) -> bytes:
    return json.dumps({"key": key, "info": {"allowed_routes": ["/a"]} if info is None else info, **more}).encode()


def ok(body: bytes, *fields: bytes) -> bytes:
    lines = (b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *fields)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass
class LookUp:
    """Looks a key up with given fields."""

    stored: StoredKeys
    ask: Ask

    async def __call__(self, *fields: tuple[bytes, bytes], key: str = KEY, prefix: str = "") -> Stored | Unknown:
        found, self.lookup = await self.stored.get(Caller(octets(list(fields or [HOST])), self.ask), key, prefix)
        return found


@contextlib.asynccontextmanager
async def keys(address: Address, seconds: float = 10, verify: ssl.SSLContext | None = None) -> AsyncIterator[LookUp]:
    """Lookups that carry given fields over the relay's connections."""
    upstream = Pool(address, tls=verify)
    try:
        yield LookUp(StoredKeys(timeout=seconds), partial(fetch, upstream))
    finally:
        upstream.close()


async def look_up(
    upstream: Upstream, *fields: tuple[bytes, bytes], key: str = KEY, prefix: str = "", seconds: float = 10
) -> Stored | Unknown:
    async with keys(Address("http", "127.0.0.1", upstream.port), seconds) as look_up:
        return await look_up(*fields, key=key, prefix=prefix)


async def test_bytes_sent() -> None:
    """The caller's fields and nothing else: order, duplicates, case and values as they are."""
    fields: Fields = [
        (b"Host", b"proxy.example:8443"),
        (b"X-LiteLLM-API-Key", b"Bearer sk-1"),
        (b"authorization", b"Bearer sk-2"),
        (b"Accept", b"*/*"),
        (b"X-Team", b"one"),
        (b"Accept-Encoding", b"gzip, br"),
        (b"x-team", b"two"),
        (b"Content-Type", b"application/json"),
        (b"content-length", b"52"),
        (b"Content-Language", b"en"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Expect", b"100-continue"),
        (b"Range", b"bytes=0-1"),
        (b"If-None-Match", b'"x"'),
        (b"if-modified-since", b"yesterday"),
        (b"Cookie", b"a=1"),
        (b"Cookie", b"b=2"),
        (b"X-Name", "Zo\xeb".encode("latin-1")),
        (b"X-Empty", b""),
        (b"X-Forwarded-For", b"203.0.113.9"),
        (b"Via", b"1.1 litellm-sanitizer-0"),
    ]
    with Upstream(reply(ok(answer()))) as upstream:
        assert await look_up(upstream, *fields) == Stored({"allowed_routes": ["/a"]})
        upstream.settle()
        assert upstream.received == b"\r\n".join(
            [
                b"GET /key/info?key=%b HTTP/1.1" % TOKEN.encode(),
                b"Host: proxy.example:8443",
                b"X-LiteLLM-API-Key: Bearer sk-1",
                b"authorization: Bearer sk-2",
                b"Accept: */*",
                b"X-Team: one",
                b"x-team: two",
                b"Cookie: a=1",
                b"Cookie: b=2",
                b"X-Name: Zo\xeb",
                b"X-Empty: ",
                b"X-Forwarded-For: 203.0.113.9",
                b"Via: 1.1 litellm-sanitizer-0",
                b"Accept-Encoding: identity",
                b"",
                b"",
            ]
        )


@pytest.mark.parametrize(
    ("key", "prefix", "target"),
    [
        pytest.param(KEY, "", f"/key/info?key={TOKEN}", id="a raw key is hashed"),
        pytest.param("sk-", "", f"/key/info?key={hashlib.sha256(b'sk-').hexdigest()}", id="the shortest raw key"),
        pytest.param("sk-ä€", "", f"/key/info?key={hashlib.sha256('sk-ä€'.encode()).hexdigest()}", id="not ASCII"),
        pytest.param(TOKEN, "", f"/key/info?key={TOKEN}", id="a hash goes as it is"),
        pytest.param(KEY, "/p/q", f"/p/q/key/info?key={TOKEN}", id="under the prefix"),
        pytest.param(KEY, "/ä b%20c?", f"/%C3%A4%20b%2520c%3F/key/info?key={TOKEN}", id="an odd prefix"),
    ],
)
async def test_target(key: str, prefix: str, target: str) -> None:
    """Keys are looked up by what LiteLLM stores for them, under the prefix of the request."""
    with Upstream(reply(ok(answer(key=token_of(key))))) as upstream:
        assert isinstance(await look_up(upstream, key=key, prefix=prefix), Stored)
        assert upstream.requests[0].target == target.encode()


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(" sk-1", id="a key behind a space"),
        pytest.param("\tsk-1\n", id="a key in white space"),
        pytest.param("\u00a0sk-1", id="a key behind a no-break space"),
        pytest.param("'sk-1'", id="a key in quotes"),
        pytest.param('"sk-1"', id="a key in double quotes"),
        pytest.param("\u201csk-1\u201d", id="a key in typographic quotes"),
        pytest.param("\ufeffsk-1", id="a key behind a BOM"),
        pytest.param("Bearer sk-1", id="a key with its scheme"),
        pytest.param("SK-1", id="a key in upper case"),
        pytest.param("eyJhbGci.eyJzdWIi.c2ln", id="a JWT"),
        pytest.param("hunter2", id="a word"),
        pytest.param(TOKEN[:-1], id="63 digits"),
        pytest.param(TOKEN + "0", id="65 digits"),
        pytest.param(TOKEN + "\n", id="a hash and a line feed"),
        pytest.param(" " + TOKEN, id="a hash behind a space"),
        pytest.param(TOKEN[:-1] + "g", id="64 letters"),
        pytest.param("\u0661" * 64, id="64 digits of another script"),
        pytest.param("x" * 100_000, id="a long one"),
    ],
)
async def test_no_hash(key: str) -> None:
    """LiteLLM hashes what begins with ``sk-``; whatever else is no hash may be a secret: no URL gets it."""
    with Upstream() as upstream:
        async with keys(Address("http", "127.0.0.1", upstream.port)) as look_up:
            assert await look_up(key=key) == Unknown("key_form")
            caller = Caller(octets([HOST]), look_up.ask)
            own = StoredKeys(lookup_key=lambda: "sk-own")
            assert isinstance((await own.get_with_lookup_key(caller, key, None, ""))[0], Unknown)
        assert upstream.connections == []


@pytest.mark.parametrize(
    ("status", "body", "result"),
    [
        pytest.param(200, answer(), Stored({"allowed_routes": ["/a"]}), id="the stored key"),
        pytest.param(200, answer({}), Stored({}), id="fields are the gates' business"),
        pytest.param(200, answer({"status": "active"}), Stored({"status": "active"}), id="an active key"),
        pytest.param(200, answer({"status": "deleted"}), Unknown("key_deleted"), id="a deleted key"),
        pytest.param(200, answer(status="deleted"), Unknown("key_deleted"), id="a deleted key, said elsewhere"),
        pytest.param(200, answer(key="0" * 64), Unknown("lookup_shape"), id="another key"),
        pytest.param(200, answer(key=None), Unknown("lookup_shape"), id="no key"),
        pytest.param(200, answer([]), Unknown("lookup_shape"), id="info is a list"),
        pytest.param(200, b'{"key":"%b"}' % TOKEN.encode(), Unknown("lookup_shape"), id="no info"),
        pytest.param(200, b"[]", Unknown("lookup_shape"), id="a list"),
        pytest.param(200, b"null", Unknown("lookup_shape"), id="null"),
        pytest.param(200, b"", Unknown("lookup_shape"), id="empty"),
        pytest.param(200, b"<html>", Unknown("lookup_shape"), id="a page"),
        pytest.param(200, answer()[:-1], Unknown("lookup_shape"), id="cut off"),
        pytest.param(200, answer().decode().encode("utf-16"), Unknown("lookup_shape"), id="not UTF-8"),
        pytest.param(200, b"[" * 40_000, Unknown("lookup_shape"), id="nested"),
        pytest.param(200, b" " * (MAX_ANSWER + 1), Unknown("lookup_size"), id="over the limit"),
        pytest.param(200, answer({"metadata": LARGE}), Stored({"metadata": LARGE}), id="many values"),
        pytest.param(200, answer({"metadata": [0] * 340_000}), Unknown("lookup_size"), id="1 MB of integers"),
        pytest.param(200, answer({"metadata": [[]] * 250_000}), Unknown("lookup_size"), id="1 MB of lists"),
        pytest.param(200, answer({str(n): 0 for n in range(80_000)}), Unknown("lookup_size"), id="1 MB of members"),
        pytest.param(204, b"", Unknown("lookup_204"), id="no content"),
        pytest.param(206, answer(), Unknown("lookup_206"), id="partial"),
        pytest.param(307, b"", Unknown("lookup_307"), id="a redirect is not followed"),
        pytest.param(401, answer(), Unknown("lookup_401"), id="unauthorized"),
        pytest.param(403, b"{}", Unknown("lookup_403", refused=True), id="forbidden"),
        pytest.param(404, b"{}", Unknown("lookup_404"), id="not found"),
        pytest.param(500, b"{}", Unknown("lookup_500"), id="server error"),
    ],
)
async def test_answers(status: int, body: bytes, result: Stored | Unknown) -> None:
    """Whatever is not a 200 about this very key is unknown."""
    head = b"HTTP/1.1 %d Odd\r\nLocation: /elsewhere\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    with Upstream(reply(head + body), keep=False) as upstream:
        assert await look_up(upstream) == result
        assert [request.target for request in upstream.requests] == [f"/key/info?key={TOKEN}".encode()]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(UpstreamUnreachable(), "lookup_failed", id="no connection"),
        pytest.param(ConnectTimeout(), "lookup_timeout", id="no connection in time"),
        pytest.param(PoolExhausted(), "lookup_timeout", id="no free connection in time"),
        pytest.param(ResponseTimeout(), "lookup_timeout", id="no answer in the relay's time"),
        pytest.param(UpstreamBroken(), "lookup_failed", id="reset, or not HTTP"),
    ],
)
async def test_errors(error: GatewayError, reason: str) -> None:
    """A lookup that fails is unknown, never an error."""

    async def fail(target: bytes, header: bytes, limit: int, content: bytes | None = None, /) -> tuple[int, bytes]:
        raise error

    look_up = LookUp(StoredKeys(), fail)
    assert await look_up() == Unknown(reason, refused=reason == "lookup_403")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(reply(CLOSE), "lookup_failed", id="no answer"),
        pytest.param(reply(RESET), "lookup_failed", id="reset"),
        pytest.param(reply(b"nonsense\r\n\r\n"), "lookup_failed", id="not HTTP"),
        pytest.param(reply(ok(answer())[:-1], CLOSE), "lookup_failed", id="cut off"),
        pytest.param(
            reply(b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\n{", CLOSE), "lookup_403", id="refused, cut off"
        ),
    ],
)
async def test_broken_off(script: Script, reason: str) -> None:
    """Likewise on the wire; a status that will not do is enough."""
    with Upstream(script) as upstream:
        assert await look_up(upstream) == Unknown(reason, refused=reason == "lookup_403")


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        pytest.param(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\n{", "lookup_403", id="refused"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + b" " * (MAX_ANSWER + 1),
            "lookup_size",
            id="over the limit",
        ),
    ],
)
async def test_not_read_to_the_end(octets: bytes, reason: str) -> None:
    """What more of an answer cannot change is not waited for, and its connection closed."""
    with Upstream(reply(octets, WAIT_CLOSED)) as upstream:
        assert await look_up(upstream) == Unknown(reason, refused=reason == "lookup_403")
        await asyncio.to_thread(upstream.wait_closed)


async def test_no_connection_comes_free() -> None:
    """A lookup waits for one of the relay's connections no longer than a relayed request."""
    with Upstream(reply(WAIT_CLOSED)) as upstream:
        relay = Pool(Address("http", "127.0.0.1", upstream.port), connect_timeout=0.1, max_connections=1)
        look_up = LookUp(StoredKeys(), partial(fetch, relay))
        first = asyncio.create_task(look_up())
        await asyncio.to_thread(upstream.wait_request)
        assert await look_up() == Unknown("lookup_timeout")
        relay.close()
        assert await first == Unknown("lookup_failed")


async def test_refused() -> None:
    """Nobody listening is unknown."""
    with refusing_port() as port:
        async with keys(Address("http", "127.0.0.1", port)) as look_up:
            assert await look_up() == Unknown("lookup_failed")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(reply(WAIT_CLOSED), id="no answer"),
        pytest.param(reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", WAIT_CLOSED), id="half an answer"),
        pytest.param(reply(b"HTTP/1.1 200 OK\r\nX-", WAIT_CLOSED), id="half a head"),
    ],
)
async def test_timeout(script: Script) -> None:
    """The timeout is for the whole lookup, and closes its connection."""
    with Upstream(script) as upstream:
        assert await look_up(upstream, seconds=0.1) == Unknown("lookup_timeout")
        await asyncio.to_thread(upstream.wait_closed)


async def test_timeout_of_a_trickle() -> None:
    """An answer that keeps coming, too slowly, ends with the timeout all the same."""
    stop = threading.Event()

    def trickle(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not stop.wait(0.02):
                connection.send(b" ")

    with Upstream(trickle) as upstream:
        assert await look_up(upstream, seconds=0.2) == Unknown("lookup_timeout")
        stop.set()


async def test_cancel() -> None:
    """Cancelling closes the connection at once."""
    with Upstream(reply(WAIT_CLOSED)) as upstream:
        async with keys(Address("http", "127.0.0.1", upstream.port)) as look_up:
            lookup = asyncio.create_task(look_up())
            await asyncio.to_thread(upstream.wait_request)
            lookup.cancel()
            with pytest.raises(asyncio.CancelledError):
                await lookup
            await asyncio.to_thread(upstream.wait_closed)


async def test_connection_is_reused() -> None:
    """Lookups share a kept-alive connection."""
    with Upstream(reply(ok(answer()))) as upstream:
        async with keys(Address("http", "127.0.0.1", upstream.port)) as look_up:
            for _ in range(3):
                assert isinstance(await look_up(), Stored)
        assert len(upstream.connections) == 1


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        pytest.param(b"HTTP/1.1 403 Forbidden", "lookup_403", id="refused"),
        pytest.param(b"HTTP/1.1 200 OK", "lookup_size", id="over the limit"),
    ],
)
async def test_connections_are_given_back(head: bytes, reason: str) -> None:
    """An answer that is not read to its end keeps no connection: there is one for every lookup to come."""
    body = b" " * (MAX_ANSWER + 1)
    with Upstream(reply(head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body), keep=False) as upstream:
        async with keys(Address("http", "127.0.0.1", upstream.port)) as look_up:
            for _ in range(25):
                assert await look_up() == Unknown(reason, refused=reason == "lookup_403")


async def test_stale_connection() -> None:
    """A kept-alive connection that upstream closes as it is used costs a second attempt, not the decision."""
    with Upstream(in_turn(reply(ok(answer())), reply(CLOSE), reply(ok(answer())))) as upstream:
        async with keys(Address("http", "127.0.0.1", upstream.port)) as look_up:
            for _ in range(2):
                assert isinstance(await look_up(), Stored)
        assert [request.connection for request in upstream.requests] == [0, 0, 1]


async def test_only_one_second_attempt() -> None:
    """Only the end of a kept-alive connection is a reason to ask again."""
    with Upstream(in_turn(reply(ok(answer())), reply(CLOSE))) as upstream:
        async with keys(Address("http", "127.0.0.1", upstream.port)) as look_up:
            for result in (Stored({"allowed_routes": ["/a"]}), Unknown("lookup_failed")):
                assert await look_up() == result
        assert [request.connection for request in upstream.requests] == [0, 0, 1]


async def test_cookies_are_not_kept() -> None:
    """What upstream sets for one caller is not sent for the next."""
    with Upstream(reply(ok(answer(), b"Set-Cookie: token=alice; Path=/"))) as upstream:
        async with keys(Address("http", "127.0.0.1", upstream.port)) as look_up:
            for _ in range(2):
                assert isinstance(await look_up(), Stored)
        assert [request.get(b"cookie") for request in upstream.requests] == [None, None]


async def test_environment_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Proxies and credentials that the environment names are not for lookups."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Upstream(reply(ok(answer()))) as upstream:
        assert isinstance(await look_up(upstream), Stored)
        assert upstream.requests[0].fields == [HOST, (b"Accept-Encoding", b"identity")]


async def test_unix_socket(tmp_path: Path) -> None:
    """Over a unix socket like the relay."""
    path = str(tmp_path / "socket")
    with Upstream(reply(ok(answer())), uds=path) as upstream:
        async with keys(Address("http", "localhost", 80, path)) as look_up:
            assert isinstance(await look_up(), Stored)
        assert upstream.requests[0].get(b"host") == HOST[1]


@pytest.mark.parametrize("trusted", [pytest.param(True, id="trusted"), pytest.param(False, id="not trusted")])
async def test_tls(trusted: bool) -> None:
    """Over TLS the certificate counts, for upstream's address and not for the Host that the caller named."""
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    (ca if trusted else trustme.CA()).configure_trust(client)
    with Upstream(reply(ok(answer())), context=server) as upstream:
        async with keys(Address("https", "127.0.0.1", upstream.port), verify=client) as look_up:
            result = await look_up()
    assert result == (Stored({"allowed_routes": ["/a"]}) if trusted else Unknown("lookup_failed"))


async def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Targets and fields appear in no log, whatever its level."""
    caplog.set_level(logging.DEBUG)
    with Upstream(reply(ok(answer()))) as upstream:
        await look_up(upstream, HOST, (b"Authorization", b"Bearer sk-other"))
    text = caplog.text
    assert TOKEN not in text
    assert "sk-other" not in text


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        pytest.param(KEY, TOKEN[:8], id="raw"),
        pytest.param(TOKEN, TOKEN[:8], id="its hash"),
        pytest.param("custom", hashlib.sha256(b"custom").hexdigest()[:8], id="anything else"),
    ],
)
async def test_key_hash(key: str, prefix: str) -> None:
    """A key has one name in logs, whether it is sent raw or hashed, and that name never shows it."""
    assert key_hash(key) == prefix


def aliases(*rows: Any) -> bytes:
    return json.dumps({"key": ["ignored"], "info": list(rows)}).encode()


async def test_bytes_sent_for_an_alias() -> None:
    """A key is looked up by its alias with a POST, whose content alone is the gateway's."""
    with Upstream(reply(ok(aliases({"key_alias": "ä", "spend": None})))) as upstream:
        async with keys(Address("http", "127.0.0.1", upstream.port)) as look_up:
            caller = Caller(octets([HOST, (b"Content-Type", b"text/x"), (b"Content-Length", b"9")]), look_up.ask)
            found, lookup = await look_up.stored.get_by_alias(caller, "ä", "/p")
        assert found == Stored({"key_alias": "ä", "spend": None})
        assert lookup is not None
        assert lookup.outcome is LookupOutcome.OK
        upstream.settle()
        body = b'{"key_aliases": ["\\u00e4"]}'
        assert upstream.received == b"\r\n".join(
            [
                b"POST /p/v2/key/info HTTP/1.1",
                b"Host: proxy.example",
                b"Accept-Encoding: identity",
                b"Content-Type: application/json",
                b"Content-Length: %d" % len(body),
                b"",
                body,
            ]
        )


@pytest.mark.parametrize(
    ("status", "body", "result"),
    [
        pytest.param(200, aliases({"key_alias": "a"}), Stored({"key_alias": "a"}), id="the key"),
        pytest.param(200, aliases(), Unknown("lookup_shape"), id="none that the caller may see"),
        pytest.param(200, aliases({"key_alias": "b"}), Unknown("lookup_shape"), id="another"),
        pytest.param(200, aliases({"key_alias": "a"}, {"key_alias": "a"}), Unknown("lookup_shape"), id="two"),
        pytest.param(200, aliases([]), Unknown("lookup_shape"), id="a list"),
        pytest.param(200, aliases({"key_alias": "a", "status": "deleted"}), Unknown("key_deleted"), id="a deleted one"),
        pytest.param(200, b'{"info": {"key_alias": "a"}}', Unknown("lookup_shape"), id="an object"),
        pytest.param(200, b" " * (MAX_ANSWER + 1), Unknown("lookup_size"), id="over the limit"),
        pytest.param(200, aliases(*[{}] * 100_000), Unknown("lookup_size"), id="100,000 rows"),
        pytest.param(403, b"{}", Unknown("lookup_403", refused=True), id="forbidden"),
        pytest.param(404, b"{}", Unknown("lookup_404"), id="a release that has no such endpoint"),
    ],
)
async def test_answers_for_an_alias(status: int, body: bytes, result: Stored | Unknown) -> None:
    """Only one row with that very alias is the key."""
    head = b"HTTP/1.1 %d Odd\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    with Upstream(reply(head + body), keep=False) as upstream:
        async with keys(Address("http", "127.0.0.1", upstream.port)) as look_up:
            caller = Caller(octets([HOST]), look_up.ask)
            assert (await look_up.stored.get_by_alias(caller, "a", ""))[0] == result

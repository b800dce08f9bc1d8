"""Lookups: the octets that are sent, and the result of each kind of response or failure."""

import asyncio
import contextlib
import hashlib
import json
import logging
import ssl
import threading
from collections.abc import AsyncIterator, Callable
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
from sanitizer.sanitize.jsonedit import Json
from sanitizer.sanitize.queries import MAX_RESPONSE, Stored, Unknown, token_of
from sanitizer.sanitize.stored import Caller, Lookup, LookupOutcome, SendLookup, StoredKeys
from tests.support.asgi import Fields, octets
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
ROW = Stored({"allowed_routes": ["/a"]})
OWN = "sk-own"


def answer(info: Any = None, key: Any = TOKEN, **more: Any) -> bytes:
    return json.dumps({"key": key, "info": {"allowed_routes": ["/a"]} if info is None else info, **more}).encode()


def ok(body: bytes, *fields: bytes) -> bytes:
    lines = (b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *fields)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass
class LookUp:
    """Looks up keys as a caller with the given fields, or with the lookup credential. `lookup` is the latest lookup."""

    stored: StoredKeys
    send_lookup: SendLookup
    lookup: Lookup | None = None

    async def __call__(
        self,
        *fields: tuple[bytes, bytes],
        key: str | None = KEY,
        alias: str | None = None,
        prefix: str = "",
        lookup_key: bool = False,
    ) -> Stored | Unknown:
        get = self.stored.get_with_lookup_key if lookup_key else self.stored.get
        found, self.lookup = await get(Caller(octets(list(fields or [HOST])), self.send_lookup), key, alias, prefix)
        return found


@contextlib.asynccontextmanager
async def keys(address: Address, verify: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[LookUp]:
    """Lookups over the relay's connections; ``options`` are those of `StoredKeys`."""
    upstream = Pool(address, tls=verify)
    try:
        yield LookUp(StoredKeys(**{"timeout": 10, "lookup_key": lambda: OWN, **options}), partial(fetch, upstream))
    finally:
        upstream.close()


def keys_at(upstream: Upstream, **options: Any) -> contextlib.AbstractAsyncContextManager[LookUp]:
    return keys(Address("http", "127.0.0.1", upstream.port), **options)


async def look_up(
    upstream: Upstream, *fields: tuple[bytes, bytes], key: str = KEY, prefix: str = "", **options: Any
) -> Stored | Unknown:
    async with keys_at(upstream, **options) as look_up:
        return await look_up(*fields, key=key, prefix=prefix)


FIELDS: Fields = [
    (b"Host", b"proxy.example:8443"),
    (b"X-LiteLLM-API-Key", b"Bearer sk-1"),
    (b"authorization", b"Bearer sk-2"),
    (b"API-Key", b"sk-3"),
    (b"x-goog-api-key", b"sk-5"),
    (b"Ocp-Apim-Subscription-Key", b"sk-6"),
    (b"X-A-Name-Of-The-Operator", b"sk-7"),
    (b"X-Forwarded-Access-Token", b"sk-8"),
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
    (b"x-forwarded-proto", b"https"),
    (b"X-Forwarded-Host", b"proxy.example"),
    (b"Forwarded", b"host=proxy.example"),
    (b"Via", b"1.1 a"),
    (b"Via", b"1.1 litellm-sanitizer-0"),
]
CALLERS = [
    b"Host: proxy.example:8443",
    b"X-LiteLLM-API-Key: Bearer sk-1",
    b"authorization: Bearer sk-2",
    b"API-Key: sk-3",
    b"x-goog-api-key: sk-5",
    b"Ocp-Apim-Subscription-Key: sk-6",
    b"X-A-Name-Of-The-Operator: sk-7",
    b"X-Forwarded-Access-Token: sk-8",
    b"Accept: */*",
    b"X-Team: one",
    b"x-team: two",
    b"Cookie: a=1",
    b"Cookie: b=2",
    b"X-Name: Zo\xeb",
    b"X-Empty: ",
    b"X-Forwarded-For: 203.0.113.9",
    b"x-forwarded-proto: https",
    b"X-Forwarded-Host: proxy.example",
    b"Forwarded: host=proxy.example",
    b"Via: 1.1 a",
    b"Via: 1.1 litellm-sanitizer-0",
]
CREDENTIALS = [
    b"Host: litellm.example",
    b"X-Forwarded-For: 203.0.113.9",
    b"x-forwarded-proto: https",
    b"Via: 1.1 a",
    b"Via: 1.1 litellm-sanitizer-0",
    b"Authorization: Bearer sk-own",
]


@pytest.mark.parametrize(
    ("lookup_key", "lines"),
    [pytest.param(False, CALLERS, id="the caller's"), pytest.param(True, CREDENTIALS, id="the lookup credential's")],
)
async def test_bytes_sent(lookup_key: bool, lines: list[bytes]) -> None:
    """A lookup has the caller's field lines, unchanged and in order, without those about content, ranges or conditions.

    With the lookup credential, it has none that could authenticate the caller or name a virtual host.
    """
    with Upstream(reply(ok(answer()))) as upstream:
        async with keys_at(upstream, host=b"litellm.example") as look_up:
            assert await look_up(*FIELDS, prefix="/p", lookup_key=lookup_key) == ROW
        await asyncio.to_thread(upstream.settle)
        target = b"GET /p/key/info?key=%b HTTP/1.1" % TOKEN.encode()
        assert upstream.received == b"\r\n".join([target, *lines, b"Accept-Encoding: identity", b"", b""])


@pytest.mark.parametrize(
    ("key", "prefix", "target"),
    [
        pytest.param(KEY, "", f"/key/info?key={TOKEN}", id="a raw key is hashed"),
        pytest.param("sk-", "", f"/key/info?key={hashlib.sha256(b'sk-').hexdigest()}", id="the shortest raw key"),
        pytest.param("sk-ä€", "", f"/key/info?key={hashlib.sha256('sk-ä€'.encode()).hexdigest()}", id="not ASCII"),
        pytest.param(TOKEN, "", f"/key/info?key={TOKEN}", id="a hash is sent unchanged"),
        pytest.param(KEY, "/p/q", f"/p/q/key/info?key={TOKEN}", id="under the prefix"),
        pytest.param(
            KEY, "/ä b%20c?", f"/%C3%A4%20b%2520c%3F/key/info?key={TOKEN}", id="a prefix that must be encoded"
        ),
    ],
)
async def test_target(key: str, prefix: str, target: str) -> None:
    """A key is looked up by the hash that LiteLLM stores for it, under the prefix of the request."""
    with Upstream(reply(ok(answer(key=token_of(key))))) as upstream:
        assert isinstance(await look_up(upstream, key=key, prefix=prefix), Stored)
        assert upstream.requests[0].target == target.encode()


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(" sk-1", id="a space before a key"),
        pytest.param("\tsk-1\n", id="white space around a key"),
        pytest.param("\u00a0sk-1", id="a no-break space before a key"),
        pytest.param("'sk-1'", id="a key in quotes"),
        pytest.param('"sk-1"', id="a key in double quotes"),
        pytest.param("\u201csk-1\u201d", id="a key in typographic quotes"),
        pytest.param("\ufeffsk-1", id="a BOM before a key"),
        pytest.param("Bearer sk-1", id="a key with a scheme"),
        pytest.param("SK-1", id="a key in upper case"),
        pytest.param("eyJhbGci.eyJzdWIi.c2ln", id="a JWT"),
        pytest.param("hunter2", id="a word"),
        pytest.param(TOKEN[:-1], id="63 digits"),
        pytest.param(TOKEN + "0", id="65 digits"),
        pytest.param(TOKEN + "\n", id="a line feed after a hash"),
        pytest.param(" " + TOKEN, id="a space before a hash"),
        pytest.param(TOKEN[:-1] + "g", id="64 characters, one of them not hexadecimal"),
        pytest.param("\u0661" * 64, id="64 digits of another script"),
        pytest.param("x" * 100_000, id="a long string"),
    ],
)
async def test_no_hash(key: str) -> None:
    """A key that is no hash and does not begin with ``sk-`` may be a secret, and is not put into a URL."""
    with Upstream() as upstream:
        async with keys_at(upstream) as look_up:
            assert (await look_up(key=key), look_up.lookup) == (Unknown("key_form"), None)
            assert isinstance(await look_up(key=key, lookup_key=True), Unknown)
            assert look_up.lookup is None
        assert upstream.connections == []


@pytest.mark.parametrize("lookup_key", [False, True], ids=["the caller's", "the lookup credential's"])
@pytest.mark.parametrize(
    ("status", "body", "result", "outcome"),
    [
        pytest.param(200, answer(), ROW, LookupOutcome.OK, id="the stored key"),
        pytest.param(200, b"<html>", Unknown("lookup_shape"), LookupOutcome.UNUSABLE, id="HTML"),
        pytest.param(200, answer(key="0" * 64), Unknown("lookup_shape"), LookupOutcome.UNUSABLE, id="another key"),
        pytest.param(200, answer(status="deleted"), Unknown("key_deleted"), LookupOutcome.UNUSABLE, id="a deleted key"),
        pytest.param(200, b" " * 1_100_000, Unknown("lookup_size"), LookupOutcome.UNUSABLE, id="over the limit"),
        pytest.param(204, b"", None, LookupOutcome.UNUSABLE, id="no content"),
        pytest.param(206, answer(), None, LookupOutcome.UNUSABLE, id="partial content"),
        pytest.param(307, b"", None, LookupOutcome.REDIRECTED, id="a redirect is not followed"),
        pytest.param(401, answer(), None, LookupOutcome.REFUSED, id="unauthorized"),
        pytest.param(403, b"{}", None, LookupOutcome.REFUSED, id="forbidden"),
        pytest.param(404, b"{}", None, LookupOutcome.REFUSED, id="not found"),
        pytest.param(500, b"{}", None, LookupOutcome.SERVER_ERROR, id="server error"),
    ],
)
async def test_answers(
    status: int, body: bytes, result: Stored | Unknown | None, outcome: LookupOutcome, lookup_key: bool
) -> None:
    """The stored value is unknown unless the response is a 200 about the requested key.

    The lookup's outcome is recorded. A refusal of the lookup credential has reasons of its own. Only a 403 to the
    caller's own lookup is marked as ``refused``, so that the credential may be used.
    """
    head = b"HTTP/1.1 %d Odd\r\nLocation: /elsewhere\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    refused = Unknown(f"lookup_{'key_' if lookup_key else ''}{status}", refused=status == 403 and not lookup_key)
    with Upstream(reply(head + body), keep=False) as upstream:
        async with keys_at(upstream) as look_up:
            found = await look_up(lookup_key=lookup_key)
        assert found == (result or refused)
        assert look_up.lookup is not None
        assert (look_up.lookup.outcome, look_up.lookup.lookup_key) == (outcome, lookup_key)
        (request,) = upstream.requests
        assert request.target == f"/key/info?key={TOKEN}".encode()
        assert request.get(b"authorization") == (b"Bearer sk-own" if lookup_key else None)


FAILED, TIMEOUT = LookupOutcome.FAILED, LookupOutcome.TIMEOUT


@pytest.mark.parametrize(
    ("error", "reason", "outcome"),
    [
        pytest.param(UpstreamUnreachable(), "lookup_failed", FAILED, id="no connection"),
        pytest.param(ConnectTimeout(), "lookup_timeout", TIMEOUT, id="no connection in time"),
        pytest.param(PoolExhausted(), "lookup_timeout", TIMEOUT, id="no free connection in time"),
        pytest.param(ResponseTimeout(), "lookup_timeout", TIMEOUT, id="no response in time"),
        pytest.param(UpstreamBroken(), "lookup_failed", FAILED, id="reset, or not HTTP"),
    ],
)
async def test_errors(error: GatewayError, reason: str, outcome: LookupOutcome) -> None:
    """If a lookup fails, the stored value is unknown, and no exception is raised."""

    async def fail(target: bytes, header: bytes, limit: int, content: bytes | None = None, /) -> tuple[int, bytes]:
        raise error

    look_up = LookUp(StoredKeys(), fail)
    assert await look_up() == Unknown(reason)
    assert look_up.lookup is not None
    assert look_up.lookup.outcome is outcome


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(reply(CLOSE), "lookup_failed", id="no response"),
        pytest.param(reply(RESET), "lookup_failed", id="reset"),
        pytest.param(reply(b"nonsense\r\n\r\n"), "lookup_failed", id="not HTTP"),
        pytest.param(reply(ok(answer())[:-1], CLOSE), "lookup_failed", id="cut off"),
        pytest.param(
            reply(b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\n{", CLOSE), "lookup_403", id="refused, cut off"
        ),
    ],
)
async def test_broken_off(script: Script, reason: str) -> None:
    """If a response breaks off, the stored value is unknown. A status other than 200 is reported even so."""
    with Upstream(script) as upstream:
        assert await look_up(upstream) == Unknown(reason, refused=reason == "lookup_403")


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        pytest.param(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\n{", "lookup_403", id="refused"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + b" " * (MAX_RESPONSE + 1),
            "lookup_size",
            id="over the limit",
        ),
    ],
)
async def test_not_read_to_the_end(octets: bytes, reason: str) -> None:
    """Content that cannot change the result is not waited for, and the connection is closed."""
    with Upstream(reply(octets, WAIT_CLOSED)) as upstream:
        assert await look_up(upstream) == Unknown(reason, refused=reason == "lookup_403")
        await asyncio.to_thread(upstream.wait_closed)


async def test_no_connection_comes_free() -> None:
    """A lookup waits for a free connection no longer than a relayed request does."""
    with Upstream(reply(WAIT_CLOSED)) as upstream:
        relay = Pool(Address("http", "127.0.0.1", upstream.port), connect_timeout=1, max_connections=1)
        look_up = LookUp(StoredKeys(), partial(fetch, relay))
        first = asyncio.create_task(look_up())
        await asyncio.to_thread(upstream.wait_request)
        assert await look_up() == Unknown("lookup_timeout")
        relay.close()
        assert await first == Unknown("lookup_failed")


async def test_refused() -> None:
    """If the connection is refused, the stored value is unknown."""
    with refusing_port() as port:
        async with keys(Address("http", "127.0.0.1", port)) as look_up:
            assert await look_up() == Unknown("lookup_failed")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(reply(WAIT_CLOSED), id="no response"),
        pytest.param(reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", WAIT_CLOSED), id="half the content"),
        pytest.param(reply(b"HTTP/1.1 200 OK\r\nX-", WAIT_CLOSED), id="half a head"),
    ],
)
async def test_timeout(script: Script) -> None:
    """The timeout applies to the whole lookup. After it, the connection is closed."""
    with Upstream(script) as upstream:
        assert await look_up(upstream, timeout=1.0) == Unknown("lookup_timeout")
        await asyncio.to_thread(upstream.wait_closed)


async def test_timeout_of_a_trickle() -> None:
    """The timeout also ends a lookup whose response arrives slowly but steadily."""
    stop = threading.Event()

    def trickle(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not stop.wait(0.02):
                connection.send(b" ")

    with Upstream(trickle) as upstream:
        assert await look_up(upstream, timeout=0.2) == Unknown("lookup_timeout")
        stop.set()


async def test_cancel() -> None:
    """Cancelling a lookup closes its connection at once."""
    with Upstream(reply(WAIT_CLOSED)) as upstream:
        async with keys_at(upstream) as look_up:
            lookup = asyncio.create_task(look_up())
            await asyncio.to_thread(upstream.wait_request)
            lookup.cancel()
            with pytest.raises(asyncio.CancelledError):
                await lookup
            await asyncio.to_thread(upstream.wait_closed)


async def test_connection_is_reused() -> None:
    """Lookups share a kept-alive connection."""
    with Upstream(reply(ok(answer()))) as upstream:
        async with keys_at(upstream) as look_up:
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
    """A response that is not read to its end keeps no connection in use, so that later lookups find a free one."""
    body = b" " * (MAX_RESPONSE + 1)
    with Upstream(reply(head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body), keep=False) as upstream:
        async with keys_at(upstream) as look_up:
            for _ in range(25):
                assert await look_up() == Unknown(reason, refused=reason == "lookup_403")


async def test_stale_connection() -> None:
    """If upstream closes a kept-alive connection as it is used, the lookup is sent once more on a new connection."""
    with Upstream(in_turn(reply(ok(answer())), reply(CLOSE), reply(ok(answer())))) as upstream:
        async with keys_at(upstream) as look_up:
            for _ in range(2):
                assert isinstance(await look_up(), Stored)
        assert [request.connection for request in upstream.requests] == [0, 0, 1]


async def test_only_one_second_attempt() -> None:
    """If the new connection is closed too, the lookup fails and is not sent a third time."""
    with Upstream(in_turn(reply(ok(answer())), reply(CLOSE))) as upstream:
        async with keys_at(upstream) as look_up:
            for result in (ROW, Unknown("lookup_failed")):
                assert await look_up() == result
        assert [request.connection for request in upstream.requests] == [0, 0, 1]


async def test_cookies_are_not_kept() -> None:
    """A cookie that upstream sets in one lookup is not sent with the next."""
    with Upstream(reply(ok(answer(), b"Set-Cookie: token=alice; Path=/"))) as upstream:
        async with keys_at(upstream) as look_up:
            for _ in range(2):
                assert isinstance(await look_up(), Stored)
        assert [request.get(b"cookie") for request in upstream.requests] == [None, None]


async def test_environment_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lookups ignore proxies and credentials in the environment."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Upstream(reply(ok(answer()))) as upstream:
        assert isinstance(await look_up(upstream), Stored)
        assert upstream.requests[0].fields == [HOST, (b"Accept-Encoding", b"identity")]


async def test_unix_socket(tmp_path: Path) -> None:
    """Lookups work over a Unix domain socket."""
    path = str(tmp_path / "socket")
    with Upstream(reply(ok(answer())), uds=path) as upstream:
        async with keys(Address("http", "localhost", 80, path)) as look_up:
            assert isinstance(await look_up(), Stored)
        assert upstream.requests[0].get(b"host") == HOST[1]


@pytest.mark.parametrize("trusted", [pytest.param(True, id="trusted"), pytest.param(False, id="not trusted")])
async def test_tls(trusted: bool) -> None:
    """Over TLS, a trusted certificate must match upstream's address, and need not match the caller's Host."""
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    (ca if trusted else trustme.CA()).configure_trust(client)
    with Upstream(reply(ok(answer())), context=server) as upstream:
        async with keys(Address("https", "127.0.0.1", upstream.port), verify=client) as look_up:
            result = await look_up()
    assert result == (ROW if trusted else Unknown("lookup_failed"))


async def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A lookup's target and credentials are not logged at any level."""
    caplog.set_level(logging.DEBUG)
    with Upstream(reply(ok(answer()))) as upstream:
        await look_up(upstream, HOST, (b"Authorization", b"Bearer sk-other"))
    text = caplog.text
    assert TOKEN not in text
    assert "sk-other" not in text


@pytest.mark.parametrize("lookup_key", [False, True], ids=["the caller's", "the lookup credential's"])
async def test_bytes_sent_for_an_alias(lookup_key: bool) -> None:
    """A key is looked up by its alias with a POST, whose content and Content-* fields are the gateway's own."""
    row: dict[str, Json] = {"key_alias": "ä", "spend": None}
    fields = (HOST, (b"Content-Type", b"text/x"), (b"Content-Length", b"9"))
    with Upstream(reply(ok(json.dumps({"key": ["ignored"], "info": [row]}).encode()))) as upstream:
        async with keys_at(upstream, host=b"litellm.example") as look_up:
            found = await look_up(*fields, key=None, alias="ä", prefix="/p", lookup_key=lookup_key)
            assert found == Stored(row)
        assert look_up.lookup is not None
        assert (look_up.lookup.outcome, look_up.lookup.lookup_key) == (LookupOutcome.OK, lookup_key)
        await asyncio.to_thread(upstream.settle)
        body = b'{"key_aliases": ["\\u00e4"]}'
        own = [b"Host: litellm.example", b"Authorization: Bearer sk-own"]
        assert upstream.received == b"\r\n".join(
            [
                b"POST /p/v2/key/info HTTP/1.1",
                *(own if lookup_key else [b"Host: proxy.example"]),
                b"Accept-Encoding: identity",
                b"Content-Type: application/json",
                b"Content-Length: %d" % len(body),
                b"",
                body,
            ]
        )


@pytest.mark.parametrize(
    ("status", "refused"),
    [
        pytest.param(403, True, id="forbidden"),
        pytest.param(404, False, id="not found, as in releases without the endpoint"),
    ],
)
async def test_alias_refused(status: int, refused: bool) -> None:
    """If the status of a lookup by alias is not 200, the stored value is unknown."""
    with Upstream(reply(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status), keep=False) as upstream:
        async with keys_at(upstream) as look_up:
            assert await look_up(key=None, alias="a") == Unknown(f"lookup_{status}", refused)


# with the lookup credential


async def test_whether_there_is_a_lookup_key() -> None:
    """`has_lookup_key` is true if a credential is configured, even if its file holds none."""
    assert [StoredKeys().has_lookup_key, StoredKeys(lookup_key=lambda: None).has_lookup_key] == [False, True]


@pytest.mark.parametrize(
    "lookup_key", [None, lambda: None], ids=["no credential is configured", "the file contains no credential"]
)
async def test_no_lookup_key(lookup_key: Callable[[], str | None] | None) -> None:
    """Without a credential the result is that of the caller's refused lookup, and no lookup is sent."""
    with Upstream() as upstream:
        async with keys_at(upstream, lookup_key=lookup_key) as look_up:
            assert await look_up(lookup_key=True) == Unknown("lookup_403")
        assert (look_up.lookup, upstream.connections) == (None, [])


async def test_timeout_with_the_lookup_key() -> None:
    """A lookup with the credential has the same timeout as any other."""
    with Upstream(reply(WAIT_CLOSED)) as upstream:
        async with keys_at(upstream, timeout=0.05) as look_up:
            assert await look_up(lookup_key=True) == Unknown("lookup_timeout")
        assert look_up.lookup is not None
        assert look_up.lookup.outcome is LookupOutcome.TIMEOUT


async def test_what_the_lookup_key_reads_is_not_cached() -> None:
    """A value that was read with the lookup credential is used for one request only."""
    with Upstream(reply(ok(answer()))) as upstream:
        async with keys_at(upstream, cache_ttl=10) as look_up:
            for _ in range(2):
                assert await look_up(lookup_key=True) == ROW
            for _ in range(2):
                assert await look_up() == ROW
        assert len(upstream.requests) == 3


async def test_an_alias_is_not_cached() -> None:
    """A lookup by alias is not cached, as LiteLLM may give the alias to another key at any time."""
    with Upstream(reply(ok(b'{"info": [{"key_alias": "a"}]}'))) as upstream:
        async with keys_at(upstream, cache_ttl=10) as look_up:
            for _ in range(2):
                assert await look_up(key=None, alias="a") == Stored({"key_alias": "a"})
        assert len(upstream.requests) == 2

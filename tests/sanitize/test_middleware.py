"""The middleware around an app: what the app and the client receive, what is reported, and what is cancelled."""

import asyncio
import hashlib
import logging
from decimal import Decimal
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from sanitizer.errors import BadRequest
from sanitizer.sanitize import core
from sanitizer.sanitize.core import Record, Sanitizer
from sanitizer.sanitize.decision import Decision, Outcome
from sanitizer.sanitize.middleware import SanitizerMiddleware
from sanitizer.sanitize.queries import Stored, Unknown
from sanitizer.sanitize.stored import Caller, Lookup, LookupOutcome
from tests.support.asgi import (
    JSON,
    KEY,
    ROUTES,
    Cached,
    Client,
    Fields,
    Lookups,
    Result,
    Sanitized,
    Upstream,
    serving,
    update,
)

pytestmark = pytest.mark.anyio

HASH = hashlib.sha256(KEY.encode()).hexdigest()[:8]
CUT = b'{"key": "sk-secret",  "models": ["m"]}'


NO_KEY, NO_JSON, NO_BODY = b'{"allowed_routes":["/a"]}', b'{"key":', b""
DROPPED, OBSERVED = (Decision(outcome, ("allowed_routes",)) for outcome in (Outcome.DROPPED, Outcome.OBSERVED))
CHANGED, ABSENT = Decision(Outcome.CHANGED), Decision(Outcome.ABSENT)


def unknown(reason: str) -> Decision:
    return Decision(Outcome.UNKNOWN, reason=reason)


@pytest.mark.parametrize(
    ("mode", "body", "stored", "forwarded", "decision", "key"),
    [
        pytest.param("enforce", update(models=["m"]), ROUTES, CUT, DROPPED, HASH, id="dropped"),
        pytest.param("enforce", update(["/b"]), ROUTES, None, CHANGED, HASH, id="changed"),
        pytest.param("enforce", update(None), ROUTES, None, CHANGED, HASH, id="null"),
        pytest.param("enforce", b'{"key":"sk-secret"}', ROUTES, None, ABSENT, HASH, id="absent"),
        pytest.param(
            "enforce", update(), Unknown("lookup_403"), None, unknown("lookup_403"), HASH, id="lookup refused"
        ),
        pytest.param("enforce", NO_KEY, ROUTES, None, unknown("no_key"), None, id="no key"),
        pytest.param(
            "enforce", NO_JSON, ROUTES, None, Decision(Outcome.UNREADABLE, reason="not_json"), None, id="not JSON"
        ),
        pytest.param("enforce", NO_BODY, ROUTES, None, ABSENT, None, id="no body"),
        pytest.param("observe", update(), ROUTES, None, OBSERVED, HASH, id="observed"),
        pytest.param("observe", update(["/b"]), ROUTES, None, CHANGED, HASH, id="observe, changed"),
    ],
)
async def test_outcomes(
    mode: str, body: bytes, stored: Stored | Unknown, forwarded: bytes | None, decision: Decision, key: str | None
) -> None:
    """Each outcome has its forwarded body, its response field and its report.

    ``forwarded`` is None if the body is forwarded as it was received.
    """
    upstream = Upstream()
    app = Sanitized(upstream, Lookups(stored), mode)
    length = (b"content-length", b"%d" % len(body))
    client = await Client([body], [JSON, length]).through(app)
    assert upstream.body == (body if forwarded is None else forwarded)
    assert upstream.scopes[0]["headers"] == [JSON, (b"content-length", b"%d" % len(upstream.body))]
    assert client.field_values == [decision.field_value]
    assert client.sent[1]["body"] == b"done"
    (report,) = app.records
    assert (report.endpoint, report.decision, report.key_hash) == ("/key/update", decision, key)
    assert (report.status, report.resent) == (200, 0)


TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("asked", "answered", "call_id", "traceparent"),
    [
        pytest.param([], [], None, None, id="neither"),
        pytest.param([], [(b"X-LiteLLM-Call-Id", b"6f7c-1")], "6f7c-1", None, id="LiteLLM's call ID"),
        pytest.param([(b"traceparent", TRACEPARENT)], [], None, TRACEPARENT.decode(), id="the client's traceparent"),
        pytest.param([(b"x-litellm-call-id", b"1")], [], None, None, id="the client's call ID"),
        pytest.param([(b"traceparent", b"00-sk-1")], [], None, None, id="a malformed traceparent"),
        pytest.param([], [(b"x-litellm-call-id", b"1" * 129)], None, None, id="a call ID that is too long"),
        pytest.param([], [(b"x-litellm-call-id", b"a b")], None, None, id="a call ID with a space"),
    ],
)
async def test_which_request_it_was(
    asked: Fields, answered: Fields, call_id: str | None, traceparent: str | None
) -> None:
    """A report has LiteLLM's call ID and the client's ``traceparent``, unless they are malformed."""
    app = Sanitized(Upstream(answered), Lookups(ROUTES))
    await Client([update()], [JSON, *asked]).through(app)
    assert [(each.call_id, each.traceparent, each.status) for each in app.records] == [(call_id, traceparent, 200)]


@pytest.mark.parametrize(
    ("more", "caller", "client", "forwarded"),
    [
        pytest.param({}, None, None, None, id="no client in the scope"),
        pytest.param({"client": None}, None, None, None, id="a unix socket"),
        pytest.param({"client": ("192.0.2.7", 1)}, None, "192.0.2.7", None, id="an address"),
        pytest.param(
            {"client": ("1.1.1.1  caller=0", 0)}, None, None, None, id="something other than an address in the scope"
        ),
        pytest.param(
            {"client": ("192.0.2.7", 1), "headers": [JSON, (b"x-forwarded-for", b"192.0.2.7")]},
            None,
            "192.0.2.7",
            None,
            id="the same address in X-Forwarded-For",
        ),
        pytest.param(
            {"client": ("192.0.2.7", 1), "headers": [JSON, (b"x-forwarded-for", b"::1")]},
            None,
            "192.0.2.7",
            "::1",
            id="another address in X-Forwarded-For",
        ),
        pytest.param({"headers": [JSON, (b"x-api-key", KEY.encode())]}, HASH, None, None, id="a key"),
        pytest.param(
            {"headers": [JSON, (b"authorization", b"Bearer e.y.J")]}, None, None, None, id="a token that is not a key"
        ),
    ],
)
async def test_caller(more: dict[str, Any], caller: str | None, client: str | None, forwarded: str | None) -> None:
    """A report has the hash of the caller's key, the address in the scope, and other addresses in X-Forwarded-For."""
    app = Sanitized(Upstream(), Lookups(ROUTES))
    request = Client([update()], [JSON])
    await app({**request.scope, **more}, request.receive, request.send)
    assert [(each.caller_hash, each.client, each.forwarded_for) for each in app.records] == [
        (caller, client, forwarded)
    ]


async def test_no_response() -> None:
    """A request for which the app raises instead of responding is reported once, without a status."""

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError

    app = Sanitized(fails, Lookups(ROUTES))
    with pytest.raises(RuntimeError):
        await Client([update()], [JSON]).through(app)
    assert [(each.decision.outcome, each.status) for each in app.records] == [(Outcome.DROPPED, None)]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        pytest.param([(b"content-type", b"text/plain")], b"content_type", id="not JSON"),
        pytest.param([JSON, (b"content-encoding", b"gzip")], b"content_encoding", id="compressed"),
        pytest.param([JSON, (b"content-digest", b"sha-256=:AA==:")], b"signed", id="signed"),
        pytest.param([JSON, (b"content-length", b"1025")], b"too_large", id="too large"),
        pytest.param([JSON, (b"content-length", b"1" * 5000)], b"too_large", id="far too large"),
    ],
)
async def test_head_decides(headers: Fields, reason: bytes) -> None:
    """If the head rules out an inspection, the app is called before any of the body is read, and there is no lookup."""
    body = update()
    client = Client([body], headers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert client.receives == 0
        await upstream(scope, receive, send)

    upstream = Upstream()
    lookups = Lookups(ROUTES)
    await client.through(Sanitized(app, lookups))
    assert upstream.body == body
    assert upstream.scopes[0]["headers"] == headers
    assert client.field_values == [b'unreadable; reason="%b"' % reason]
    assert lookups.calls == []


@pytest.mark.parametrize(
    ("headers", "after"),
    [
        pytest.param(
            [(b"host", b"h"), (b"Content-Length", b"63"), JSON, (b"x", b"1")],
            [(b"host", b"h"), (b"Content-Length", b"38"), JSON, (b"x", b"1")],
            id="Content-Length keeps its place",
        ),
        pytest.param(
            [JSON, (b"transfer-encoding", b"chunked"), (b"x", b"1"), (b"x", b"2")],
            [JSON, (b"transfer-encoding", b"chunked"), (b"x", b"1"), (b"x", b"2")],
            id="chunked stays chunked",
        ),
        pytest.param(
            [(b"content-length", b"63"), (b"expect", b"100-continue")],
            [(b"content-length", b"38"), (b"expect", b"100-continue")],
            id="Expect is preserved",
        ),
    ],
)
async def test_head_of_a_cut_request(headers: Fields, after: Fields) -> None:
    """A cut changes nothing in the head but the value of Content-Length."""
    upstream = Upstream()
    await Client([update(models=["m"])], headers).through(Sanitized(upstream, Lookups(ROUTES)))
    assert upstream.scopes[0]["headers"] == after
    assert upstream.body == CUT


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_chunks(size: int) -> None:
    """The body is inspected as a whole, whatever the sizes of its chunks."""
    body = update(models=["m"])
    upstream = Upstream()
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    await Client([*chunks, b""]).through(Sanitized(upstream, Lookups(ROUTES)))
    assert upstream.body == CUT


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        pytest.param("GET", "/key/update", "enforce", id="another method"),
        pytest.param("post", "/key/update", "enforce", id="the method in lower case"),
        pytest.param("POST", "/key/update/", "enforce", id="a trailing slash"),
        pytest.param("POST", "/v1/chat/completions", "enforce", id="another path"),
        pytest.param("POST", "/key/update", "off", id="mode off"),
    ],
)
async def test_passes_by(method: str, path: str, mode: str) -> None:
    """For a request that is not intercepted the app gets the very same scope, receive and send."""
    client = Client(method=method, path=path)
    scope = client.scope
    seen: list[object] = []

    async def app(*arguments: Any) -> None:
        seen.extend(arguments)

    sanitized = Sanitized(app, Lookups(ROUTES), mode)
    receive, send = client.receive, client.send
    await sanitized(scope, receive, send)
    assert [id(each) for each in seen] == [id(scope), id(receive), id(send)]
    assert sanitized.records == []


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_other_scopes_pass_by(kind: str) -> None:
    """Scopes other than HTTP requests are passed to the app."""
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    scope = {"type": kind, "path": "/key/update"}
    client = Client()
    await Sanitized(app, Lookups(ROUTES))(scope, client.receive, client.send)
    assert seen == [scope]


@pytest.mark.parametrize(
    ("path", "prefix"),
    [pytest.param("/key/update", "", id="without a prefix"), pytest.param("/p/key/update", "/p", id="under a prefix")],
)
async def test_lookup(path: str, prefix: str) -> None:
    """The lookup is for the body's key, under the request's prefix, and its outcome and duration are reported."""
    lookups = Lookups(ROUTES)
    app = Sanitized(Upstream(), lookups)
    await Client([update()], path=path).through(app)
    assert lookups.calls == [(KEY, prefix, False)]
    assert app.records[0].lookups == (Lookup(LookupOutcome.OK, 0.01),)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"key":"sk-secret","models":[]}', id="no guarded member"),
        pytest.param(update(None), id="null"),
        pytest.param(b'{"allowed_routes":[]}', id="no key"),
        pytest.param(b'{"key":"","allowed_routes":[]}', id="an empty key"),
    ],
)
async def test_no_lookup(body: bytes) -> None:
    """There is no lookup if no member could be cut."""
    lookups = Lookups(ROUTES)
    app = Sanitized(Upstream(), lookups)
    await Client([body]).through(app)
    assert lookups.calls == []
    assert app.records[0].lookups == ()


async def test_lookup_follows_the_body() -> None:
    """The lookup is made after the body's last byte was received: the stored value is not older than the request."""
    body = update()
    lookups = Lookups(ROUTES)
    client = Client([body[:-1], body[-1:]])

    async def receive() -> Message:
        assert not client.messages or lookups.calls == []
        return await client.receive()

    await Sanitized(Upstream(), lookups)(client.scope, receive, client.send)
    assert client.field_values == [b'dropped; fields="allowed_routes"']


async def test_too_large_streams() -> None:
    """When a body exceeds the limit, the app receives the part that was read, and then the rest at its own pace."""
    chunks = [b"x" * 1000, b"y" * 1000, b"z" * 1000, b""]
    client = Client(chunks)
    receives: list[int] = []
    held: list[int] = []
    upstream = Upstream()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def counted() -> Message:
            receives.append(client.receives)
            held.append(sanitized.sanitizer.collected)
            return await receive()

        await upstream(scope, counted, send)

    sanitized = Sanitized(app, Lookups(ROUTES))
    await client.through(sanitized)
    assert receives == [2, 2, 3]
    assert held == [2000, 0, 0]
    assert [message["body"] for message in upstream.received[0]] == [b"".join(chunks[:2]), *chunks[2:]]
    assert client.field_values == [b'unreadable; reason="too_large"']
    assert sanitized.sanitizer.collected == 0


@pytest.mark.parametrize("limit", [100, None], ids=["given", "by default"])
async def test_exactly_the_limit(limit: int | None) -> None:
    """A body whose Content-Length is the limit is inspected, and a longer one is not. The default limit is 1 MiB."""
    largest = 1024 * 1024 if limit is None else limit
    sanitizer = Sanitizer(Lookups(ROUTES)) if limit is None else Sanitizer(Lookups(ROUTES), max_body=limit)
    marks = []
    for length in (largest, largest + 1):
        body = update() + b" " * (length - len(update()))
        client = Client([body], [JSON, (b"content-length", b"%d" % length)])
        marks += (await client.through(SanitizerMiddleware(Upstream(), sanitizer=sanitizer))).field_values
    assert marks == [b'dropped; fields="allowed_routes"', b'unreadable; reason="too_large"']


async def test_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """While too many octets are collected, a further body is not inspected. Afterwards bodies are inspected again."""
    body = update()
    monkeypatch.setattr(core, "MAX_COLLECTED", 2 * len(body) - 1)
    gate = asyncio.Event()
    lookups = Lookups(ROUTES, gate=gate)
    upstream = Upstream()
    app = Sanitized(upstream, lookups)

    first = asyncio.create_task(Client([body]).through(app))
    await lookups.started.wait()
    assert app.sanitizer.collected == len(body)
    second = await Client([body[:20], body[20:]]).through(app)
    assert second.field_values == [b'unreadable; reason="busy"']
    assert b"".join(message["body"] for message in upstream.received[0]) == body

    gate.set()
    assert (await first).field_values == [b'dropped; fields="allowed_routes"']
    assert app.sanitizer.collected == 0
    assert (await Client([body]).through(app)).field_values == [b'dropped; fields="allowed_routes"']


async def test_held_until_the_app_returns() -> None:
    """A body counts as collected until the app returns or fails."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert sanitized.sanitizer.collected == len(body)
        raise LookupError

    body = update()
    sanitized = Sanitized(app, Lookups(ROUTES))
    with pytest.raises(LookupError):
        await Client([body]).through(sanitized)
    assert sanitized.sanitizer.collected == 0


async def test_client_leaves_in_its_body() -> None:
    """If the client leaves before its body is complete, the app is not called, and that is reported."""
    upstream = Upstream()
    lookups = Lookups(ROUTES)
    app = Sanitized(upstream, lookups)
    client = await Client([update()[:-1]], truncated=True).through(app)
    assert (upstream.scopes, lookups.calls, client.sent) == ([], [], [])
    assert app.records == [Record(endpoint="/key/update", decision=Decision(Outcome.UNREADABLE, reason="client_left"))]
    assert app.sanitizer.collected == 0


async def test_client_leaves_during_the_lookup() -> None:
    """If the client leaves, the lookup is cancelled at once, the app is not called, and that is reported."""
    upstream = Upstream()
    lookups = Lookups(ROUTES, gate=asyncio.Event())
    app = Sanitized(upstream, lookups)
    client = Client([update()])
    request = asyncio.create_task(client.through(app))
    await lookups.started.wait()
    client.leave()
    await request
    assert lookups.cancelled
    assert (upstream.scopes, client.sent) == ([], [])
    assert app.records == [Record(endpoint="/key/update", decision=unknown("client_left"), key_hash=HASH)]
    assert app.sanitizer.collected == 0


async def test_server_cancels() -> None:
    """If the server cancels the request, the lookup is cancelled, and no task is left."""
    lookups = Lookups(ROUTES, gate=asyncio.Event())
    app = Sanitized(Upstream(), lookups)
    before = asyncio.all_tasks()
    request = asyncio.create_task(Client([update()]).through(app))
    await lookups.started.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert lookups.cancelled
    assert asyncio.all_tasks() == before
    assert app.sanitizer.collected == 0


async def test_something_else_after_the_body() -> None:
    """A further message after the end of the body is not mistaken for a disconnect."""
    lookups = Lookups(ROUTES, gate=asyncio.Event())
    client = Client([update(), b"", b""])
    client.messages[0]["more_body"] = False
    request = asyncio.create_task(client.through(Sanitized(Upstream(), lookups)))
    await lookups.started.wait()
    assert lookups.gate is not None
    lookups.gate.set()
    assert (await request).field_values == [b'dropped; fields="allowed_routes"']


async def test_app_sees_the_client_leave() -> None:
    """After the body, ``receive`` returns the server's messages, so that the app sees the client disconnect."""
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        client.leave()
        seen.append(await receive())

    client = Client([update(models=["m"])])
    await client.through(Sanitized(app, Lookups(ROUTES)))
    assert seen == [{"type": "http.request", "body": CUT, "more_body": False}, {"type": "http.disconnect"}]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([], id="no field with the name"),
        pytest.param([(b"x-litellm-sanitizer", b"dropped")], id="one field with the name"),
        pytest.param(
            [(b"X-LiteLLM-Sanitizer", b"a"), (b"x-litellm-sanitizer", b"b")], id="two fields with the name, in any case"
        ),
    ],
)
async def test_response_field(fields: Fields) -> None:
    """The response's fields stay in order. Only fields with the name of the gateway's own field are replaced by it."""
    own = [(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2")]
    client = await Client([b"{}"]).through(Sanitized(Upstream([own[0], *fields, own[1]]), Lookups(ROUTES)))
    assert client.sent[0]["headers"] == [*own, (b"x-litellm-sanitizer", b"absent")]


@pytest.mark.parametrize(
    ("results", "fresh", "mark"),
    [
        pytest.param([Cached({"allowed_routes": ["/a"]})], [False], b"dropped", id="cached and equal"),
        pytest.param(
            [Cached({"allowed_routes": ["/b"]}), ROUTES],
            [False, True],
            b"dropped",
            id="cached and different, then equal",
        ),
        pytest.param(
            [Cached({"allowed_routes": ["/b"]}), Stored({"allowed_routes": ["/c"]})],
            [False, True],
            b"changed",
            id="cached and different, then still different",
        ),
        pytest.param(
            [Cached({"allowed_routes": None}), Unknown("lookup_403")],
            [False, True],
            b"unknown",
            id="cached with an unknown shape, then refused",
        ),
    ],
)
async def test_cached_difference_is_confirmed(results: list[Result], fresh: list[bool], mark: bytes) -> None:
    """A cached value is enough only to find a member unchanged. Otherwise a fresh lookup decides."""
    lookups = Lookups(*results)
    app = Sanitized(Upstream(), lookups)
    client = await Client([update()]).through(app)
    assert [call[2] for call in lookups.calls] == fresh
    assert client.field_values[0].split(b";")[0] == mark
    assert (not app.records[0].lookups) == (fresh == [False])


@pytest.mark.parametrize(
    ("body", "mode", "writes"),
    [
        pytest.param(update(), "enforce", [], id="dropped: nothing guarded is written"),
        pytest.param(update(["/b"]), "enforce", [KEY], id="changed"),
        pytest.param(update(), "observe", [KEY], id="observed"),
        pytest.param(b'{"key":"sk-secret"}', "enforce", [KEY], id="absent"),
        pytest.param(b'{"key_alias":"a"}', "enforce", [None], id="no key: it may write any key"),
        pytest.param(b"?", "enforce", [None], id="unreadable: it may write any key"),
    ],
)
async def test_writes_are_announced(body: bytes, mode: str, writes: list[str | None]) -> None:
    """A request that may write the key is announced to the cache for as long as the app handles it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert lookups.writing_now == len(writes)
        await Upstream()(scope, receive, send)

    lookups = Lookups(ROUTES, caches=True)
    await Client([body]).through(Sanitized(app, lookups, mode))
    assert lookups.writes == writes
    assert lookups.writing_now == 0


async def test_member_that_is_put_back_is_announced() -> None:
    """A resend that puts back a member, which a cached value had cut, is announced to the cache."""
    announced: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        announced.append(lookups.writing_now)
        body = (await receive())["body"]
        status, content = (
            (403, b'{"error": {"message": "only team admins can call /key/update (max_budget/spend)"}}')
            if b"spend" in body
            else (200, b"{}")
        )
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": content})

    stored = Stored({"allowed_routes": ["/b"], "spend": Decimal(1), "litellm_budget_table": None})
    lookups = Lookups(Cached(ROUTES.info), stored, caches=True)
    client = await Client([update(spend=1)]).through(Sanitized(app, lookups))
    assert client.field_values == [b'dropped; fields="spend"; after-refusal="spend"']
    assert announced == [0, 1]
    assert lookups.writing_now == 0


@pytest.mark.parametrize(
    ("kind", "method", "path", "writes"),
    [
        pytest.param("http", "POST", "/team/update", [None], id="an endpoint that may write keys"),
        pytest.param("http", "PATCH", "/p/key/x", [None], id="another method, under a prefix"),
        pytest.param("http", "GET", "/key/update", [], id="a method that writes nothing"),
        pytest.param("http", "POST", "/v1/chat/completions", [], id="an endpoint that writes no keys"),
        pytest.param("http", "POST", "/keys", [], id="a path that only begins like one of them"),
        pytest.param("websocket", "POST", "/key/update", [], id="a WebSocket"),
    ],
)
async def test_others_are_announced(kind: str, method: str, path: str, writes: list[str | None]) -> None:
    """A request that is not intercepted, but may write any key, is announced for as long as the app handles it."""
    seen: list[object] = []

    async def app(*arguments: Any) -> None:
        assert lookups.writing_now == len(writes)
        seen.extend(arguments)

    lookups = Lookups(ROUTES, caches=True)
    client = Client()
    arguments = ({"type": kind, "method": method, "path": path, "headers": []}, client.receive, client.send)
    await Sanitized(app, lookups)(*arguments)
    assert seen == [*arguments]
    assert (lookups.writes, lookups.writing_now) == (writes, 0)


async def test_no_caller() -> None:
    """A request for which no head of a lookup can be made is passed to the app without an inspection."""

    def caller(scope: Scope) -> Caller:
        raise BadRequest("no onward head")

    upstream = Upstream()
    app = SanitizerMiddleware(upstream, caller=caller)
    client = await Client([update()]).through(app)
    assert (upstream.body, client.field_values) == (update(), [])


async def test_stalled() -> None:
    """If the body stalls, the app receives the part that has arrived, and the rest when it arrives."""
    half, rest = update()[:20], update()[20:]
    released = asyncio.Event()
    client = Client([half, rest])

    async def receive() -> Message:
        if client.receives == 1:
            client.receives += 1
            await asyncio.Event().wait()
        if client.receives > 1:
            await released.wait()
        return await client.receive()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        first = await receive()
        assert (first, sanitized.sanitizer.collected) == ({"type": "http.request", "body": half, "more_body": True}, 0)
        released.set()
        await upstream(scope, receive, send)

    upstream, lookups = Upstream(), Lookups(ROUTES, caches=True)
    sanitized = Sanitized(app, lookups, stall_timeout=0.01)
    await sanitized(client.scope, receive, client.send)
    assert upstream.body == rest
    assert client.field_values == [b'unreadable; reason="stalled"']
    assert (lookups.calls, lookups.writes) == ([], [None])


@pytest.mark.parametrize(("status", "marks"), [(200, [b'unknown; reason="lookup_403"']), (300, []), (404, [])])
async def test_nothing_is_said(status: int, marks: list[bytes]) -> None:
    """If the lookup credential may be used, only a 2xx response has ``x-litellm-sanitizer``."""
    lookups = Lookups(Unknown("lookup_403", refused=True), has_lookup_key=True)
    client = await Client([update()]).through(Sanitized(Upstream([(b"x", b"1")], status=status), lookups))
    assert (client.sent[0]["headers"][0], client.field_values) == ((b"x", b"1"), marks)


async def key_update(request: Request) -> Response:
    return JSONResponse({"stored": await request.json()})


async def other(request: Request) -> Response:
    return PlainTextResponse(await request.body())


STARLETTE = Starlette(
    routes=[
        Route("/key/update", key_update, methods=["GET", "POST"]),
        Route("/other", other, methods=["POST"]),
    ]
)


async def test_around_starlette() -> None:
    """The middleware works around a Starlette app."""
    app = Sanitized(STARLETTE, Lookups(ROUTES))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        cut = await client.post(
            "/key/update", content=update(models=["m"]), headers={"content-type": "application/json"}
        )
        passed = await client.post("/other", content=update())
    assert cut.json() == {"stored": {"key": KEY, "models": ["m"]}}
    assert cut.headers["x-litellm-sanitizer"] == 'dropped; fields="allowed_routes"'
    assert passed.content == update()
    assert "x-litellm-sanitizer" not in passed.headers


def request_head(length: int, *lines: bytes) -> bytes:
    head = [b"POST /key/update HTTP/1.1", b"Host: h", b"Content-Type: application/json", b"Content-Length: %d" % length]
    return b"\r\n".join([*head, *lines, b"Connection: close", b"", b""])


async def test_expect_under_uvicorn() -> None:
    """A client that expects 100 (Continue) gets it before it sends its body, and then the response."""
    body = update(models=["m"])
    async with serving(Sanitized(STARLETTE, Lookups(ROUTES))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_head(len(body), b"Expect: 100-continue"))
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        response = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.endswith(b'{"stored":{"key":"sk-secret","models":["m"]}}')


async def test_client_leaves_under_uvicorn(caplog: pytest.LogCaptureFixture) -> None:
    """If a real client disconnects during the lookup, the lookup is cancelled, and the server logs no warning."""
    caplog.set_level(logging.INFO)
    upstream = Upstream()
    lookups = Lookups(ROUTES, gate=asyncio.Event())
    app = Sanitized(upstream, lookups)
    done = asyncio.Event()

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        done.set()

    async with serving(watched) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_head(len(update())) + update())
        await asyncio.wait_for(lookups.started.wait(), 10)
        writer.close()
        await asyncio.wait_for(done.wait(), 10)
    assert lookups.cancelled
    assert upstream.scopes == []
    assert not [line for line in caplog.records if line.levelno > logging.INFO]

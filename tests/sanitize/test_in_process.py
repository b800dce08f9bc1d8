"""The middleware's own lookups: it asks the app that it wraps for the stored key, in the same process."""

import asyncio
import contextlib
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanitizer.sanitize.core import Sanitizer
from sanitizer.sanitize.middleware import SanitizerMiddleware
from sanitizer.sanitize.queries import MAX_RESPONSE
from sanitizer.sanitize.stored import StoredKeys
from tests.support.asgi import JSON, KEY, Client, Fields, Upstream, serving, update

pytestmark = pytest.mark.anyio

CUT = b'{"key": "sk-secret",  "models": ["m"]}'
DROPPED = b'dropped; fields="allowed_routes"'
TOKEN = hashlib.sha256(KEY.encode()).hexdigest()


def named(scope: Scope) -> str:
    """The key that a lookup asks for."""
    ((name, value),) = parse_qsl(scope["query_string"].decode(), keep_blank_values=True, strict_parsing=True)
    assert name == "key"
    return str(value)


async def stored(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a lookup as LiteLLM does for a key whose only allowed route is ``/a``."""
    answer = JSONResponse({"key": named(scope), "info": {"allowed_routes": ["/a"]}})
    await answer(scope, receive, send)


@dataclass
class LiteLLM:
    """An app that calls ``lookup`` for lookups, whose scopes it keeps, and ``upstream`` for all other requests."""

    lookup: ASGIApp = stored
    upstream: Upstream = field(default_factory=Upstream)
    lookups: list[Scope] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/key/info"):
            self.lookups.append(scope)
            await self.lookup(scope, receive, send)
        else:
            await self.upstream(scope, receive, send)


async def through(
    app: ASGIApp, body: bytes, headers: Fields | None = None, said: Mapping[str, object] | None = None
) -> Client:
    """Send an update through ``app``, with the keys of ``said`` in its scope."""
    client = Client([body], [JSON] if headers is None else headers)
    async with asyncio.timeout(10):
        await app({**client.scope, **(said or {})}, client.receive, client.send)
    return client


# Under servers and in frameworks


async def key_info(request: Request) -> Response:
    return JSONResponse({"key": request.query_params["key"], "info": {"allowed_routes": ["/a"]}})


async def key_update(request: Request) -> Response:
    return PlainTextResponse(await request.body())


class FastAPI(Starlette):
    """Sets a root path in the scope before any middleware runs, as FastAPI does for LiteLLM."""

    root_path = "/p"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["root_path"] = self.root_path
        await super().__call__(scope, receive, send)


def around(kind: type[Starlette]) -> ASGIApp:
    return SanitizerMiddleware(framework(kind))


def added(kind: type[Starlette]) -> ASGIApp:
    app = framework(kind)
    app.add_middleware(SanitizerMiddleware)
    return app


def beneath_another(kind: type[Starlette]) -> ASGIApp:
    app = framework(kind)
    app.add_middleware(SanitizerMiddleware)

    app.add_middleware(BaseHTTPMiddleware, dispatch=passes_on)
    return app


async def passes_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


def framework(kind: type[Starlette]) -> Starlette:
    return kind(routes=[Route("/key/info", key_info), Route("/key/update", key_update, methods=["POST"])])


@contextlib.asynccontextmanager
async def uvicorn(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        yield http


@contextlib.asynccontextmanager
async def transport(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url="http://test", transport=httpx.ASGITransport(app)) as http:
        yield http


Server = Callable[[ASGIApp], contextlib.AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.mark.parametrize("server", [uvicorn, transport])
@pytest.mark.parametrize("kind", [Starlette, FastAPI])
@pytest.mark.parametrize("placed", [around, added, beneath_another])
@pytest.mark.parametrize("root_path", ["", "/p", "p/"])
async def test_repairs(
    monkeypatch: pytest.MonkeyPatch,
    server: Server,
    kind: type[Starlette],
    placed: Callable[[type[Starlette]], ASGIApp],
    root_path: str,
) -> None:
    """An update is repaired wherever the middleware is placed, with and without LiteLLM's root path."""
    monkeypatch.setenv("SERVER_ROOT_PATH", root_path)
    paths = ["/key/update", "/p/key/update"] if kind is FastAPI else ["/key/update"]
    async with server(placed(kind)) as http:
        for path in paths:
            answer = await http.post(path, content=update(models=["m"]), headers={"content-type": "application/json"})
            if path == "/p/key/update" and not root_path:  # it is not configured
                assert (answer.content, "x-litellm-sanitizer" in answer.headers) == (update(models=["m"]), False)
            else:
                assert (answer.content, answer.headers["x-litellm-sanitizer"]) == (CUT, DROPPED.decode())
        assert (await http.get("/key/info?key=k")).json()["key"] == "k"


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_other_scopes_pass_by(kind: str) -> None:
    """For a lifespan or a WebSocket the app gets the very same scope, receive and send."""
    seen: list[object] = []

    async def app(*arguments: object) -> None:
        seen.extend(arguments)

    client = Client()
    scope, receive, send = {"type": kind, "path": "/key/update"}, client.receive, client.send
    await SanitizerMiddleware(app)(scope, receive, send)
    assert [id(each) for each in seen] == [id(scope), id(receive), id(send)]


# The request that a lookup makes


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        pytest.param(
            [(b"host", b"h"), (b"authorization", b"Bearer sk-1"), (b"cookie", b"token=1"), (b"x-api-key", b"sk-2")],
            [(b"host", b"h"), (b"authorization", b"Bearer sk-1"), (b"cookie", b"token=1"), (b"x-api-key", b"sk-2")],
            id="credentials",
        ),
        pytest.param(
            [(b"host", b"h"), (b"x", b"1"), (b"y", b"2"), (b"x", b"3"), (b"x", b"1")],
            [(b"host", b"h"), (b"x", b"1"), (b"y", b"2"), (b"x", b"3"), (b"x", b"1")],
            id="repeated field names",
        ),
        pytest.param(
            [
                (b"host", b"h"),
                (b"content-length", b"%d" % len(update(models=["m"]))),
                (b"content-language", b"en"),
                (b"transfer-encoding", b"chunked"),
                (b"expect", b"100-continue"),
                (b"range", b"bytes=0-1"),
                (b"if-none-match", b"*"),
                (b"if-modified-since", b"Sat, 01 Jan 2000 00:00:00 GMT"),
                (b"accept-encoding", b"gzip, br"),
                (b"x", b"1"),
            ],
            [(b"host", b"h"), (b"x", b"1")],
            id="fields that a lookup does not have",
        ),
        pytest.param(
            [(b"host", b"h"), (b"a", b"b: c"), (b"d", b""), (b"e", b" f "), (b"g", b"\xe9\xff"), (b"h", b"i:j")],
            [(b"host", b"h"), (b"a", b"b: c"), (b"d", b""), (b"e", b" f "), (b"g", b"\xe9\xff"), (b"h", b"i:j")],
            id="unusual values",
        ),
        pytest.param([(b"x", b"1")], [(b"x", b"1")], id="no Host"),
    ],
)
async def test_fields(sent: Fields, asked: Fields) -> None:
    """A lookup has the request's field lines in order, without those about content or conditions.

    It asks for the identity coding.
    """
    app = LiteLLM()
    client = await through(SanitizerMiddleware(app), update(models=["m"]), [JSON, *sent])
    assert client.field_values == [DROPPED]
    (lookup,) = app.lookups
    assert lookup["headers"] == [*asked, (b"accept-encoding", b"identity")]


async def test_fields_are_not_split() -> None:
    """A request is not intercepted if one of its fields would become two lines in a head."""
    app = LiteLLM()
    line = (b"x", b"1\r\nauthorization: Bearer sk-other")
    client = await through(SanitizerMiddleware(app), update(), [JSON, line])
    assert (app.lookups, client.field_values) == ([], [])
    assert app.upstream.body == update()
    assert app.upstream.scopes[0]["headers"] == [JSON, line]


async def test_scope() -> None:
    """The lookup's scope describes the same client, server and app as the request's scope, but a request of its own."""
    said: dict[str, Any] = {
        "client": ("192.0.2.1", 5555),
        "server": ("192.0.2.2", 443),
        "scheme": "https",
        "http_version": "2",
        "root_path": "/p",
        "app": object(),
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "of-a-server": object(),
    }
    of_the_request: dict[str, Any] = {"raw_path": b"/key/update", "query_string": b"a=1", "extensions": {"tls": {}}}
    app = LiteLLM()
    client = await through(SanitizerMiddleware(app), update(), said={**said, **of_the_request})
    assert client.field_values == [DROPPED]
    (lookup,) = app.lookups
    own = {"method": "GET", "path": "/key/info", "raw_path": b"/key/info", "query_string": b"key=" + TOKEN.encode()}
    headers = [(b"accept-encoding", b"identity")]
    assert lookup == {"type": "http", **said, **own, "headers": headers}
    (updated,) = app.upstream.scopes
    assert updated.items() >= {**said, **of_the_request}.items()


async def test_state() -> None:
    """A lookup sees the server's state. The request does not see what it changes there or in context variables."""
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    seen: list[object] = []

    async def lookup(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["state"]))
        scope["state"]["user"] = "of the lookup"
        variable.set("of the lookup")
        await stored(scope, receive, send)

    class Watched(Upstream):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            seen.extend([dict(scope["state"]), variable.get()])
            await super().__call__(scope, receive, send)

    pool = object()
    state = {"pool": pool}
    client = await through(SanitizerMiddleware(LiteLLM(lookup, Watched())), update(), said={"state": state})
    assert client.field_values == [DROPPED]
    assert seen == [{"pool": pool}, {"pool": pool}, "unset"]
    assert state == {"pool": pool}


async def test_content() -> None:
    """A lookup has no content, however often it calls ``receive``, and the request's own content is not consumed."""
    messages: list[Message] = []

    async def lookup(scope: Scope, receive: Receive, send: Send) -> None:
        messages.append(await receive())
        while messages[-1].get("more_body"):
            messages.append(await receive())
        await stored(scope, receive, send)

    app = LiteLLM(lookup)
    client = await through(SanitizerMiddleware(app), update(models=["m"]))
    assert (client.field_values, app.upstream.body) == ([DROPPED], CUT)
    assert {message["type"] for message in messages} == {"http.request"}
    assert b"".join(message["body"] for message in messages) == b""


async def test_prefix() -> None:
    """The lookup has the request's prefix, decoded in ``path`` and percent-encoded in ``raw_path``."""
    app = LiteLLM()
    sanitized = SanitizerMiddleware(app, sanitizer=Sanitizer(prefixes=["/ü ?"]))
    client = await through(sanitized, update(), said={"path": "/ü ?/key/update"})
    assert client.field_values == [DROPPED]
    (lookup,) = app.lookups
    assert (lookup["path"], lookup["raw_path"]) == ("/ü ?/key/info", b"/%C3%BC%20%3F/key/info")


async def test_callers_share_nothing() -> None:
    """A cookie that LiteLLM sets in a lookup's response is neither sent with later requests nor passed to a client."""

    async def lookup(scope: Scope, receive: Receive, send: Send) -> None:
        answer = JSONResponse({"key": TOKEN, "info": {"allowed_routes": ["/a"]}}, headers={"set-cookie": "session=1"})
        await answer(scope, receive, send)

    app = LiteLLM(lookup)
    sanitized = SanitizerMiddleware(app)
    for cookie in ([(b"cookie", b"of=one")], [], [(b"cookie", b"of=another")]):
        client = await through(sanitized, update(), [JSON, *cookie])
        assert client.field_values == [DROPPED]
        assert app.lookups[-1]["headers"] == [*cookie, (b"accept-encoding", b"identity")]
        assert app.upstream.scopes[-1]["headers"] == [JSON, *cookie]
        assert not [name for name, _ in client.sent[0]["headers"] if name == b"set-cookie"]


# What can go wrong in a lookup


def answers(*messages: Message, then: BaseException | None = None) -> ASGIApp:
    """An app that sends ``messages``, and then raises ``then`` unless that is None."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        if then is not None:
            raise then

    return app


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(content: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def never_whole(scope: Scope, receive: Receive, send: Send) -> None:
    await send(start())
    await send(part(b"{", more=True))
    await asyncio.Event().wait()


async def waits_for_the_client(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


ANSWER = json.dumps({"key": TOKEN, "info": {"allowed_routes": ["/a"]}}).encode()
FITTING = ANSWER + b" " * (MAX_RESPONSE - len(ANSWER))
GZIP = (b"content-encoding", b"gzip")


@pytest.mark.parametrize(
    ("lookup", "mark"),
    [
        pytest.param(answers(start(), part(FITTING)), DROPPED, id="the largest response"),
        pytest.param(answers(start(), part(FITTING + b" ")), b'unknown; reason="lookup_size"', id="too large"),
        pytest.param(
            answers(start(), *[part(b" " * 100_000, more=True)] * 20, part(ANSWER)),
            b'unknown; reason="lookup_size"',
            id="too large in pieces",
        ),
        pytest.param(RedirectResponse("/elsewhere"), b'unknown; reason="lookup_307"', id="redirect"),
        pytest.param(PlainTextResponse("no", 403), b'unknown; reason="lookup_403"', id="refused"),
        pytest.param(PlainTextResponse("hello"), b'unknown; reason="lookup_shape"', id="not JSON"),
        pytest.param(answers(start(), part(ANSWER[:-1])), b'unknown; reason="lookup_shape"', id="incomplete JSON"),
        pytest.param(answers(then=RuntimeError()), b'unknown; reason="lookup_500"', id="raises"),
        pytest.param(
            answers(then=ExceptionGroup("", [RuntimeError()])),
            b'unknown; reason="lookup_500"',
            id="raises an ExceptionGroup",
        ),
        pytest.param(
            answers(start(), part(ANSWER[:9], more=True), then=RuntimeError()),
            b'unknown; reason="lookup_failed"',
            id="raises within its response",
        ),
        pytest.param(answers(start(), part(ANSWER), then=RuntimeError()), DROPPED, id="raises after its response"),
        pytest.param(answers(), b'unknown; reason="lookup_500"', id="no response"),
        pytest.param(answers(start()), b'unknown; reason="lookup_failed"', id="no content"),
        pytest.param(
            answers(start(), part(ANSWER, more=True)), b'unknown; reason="lookup_failed"', id="no last content message"
        ),
        pytest.param(answers(part(ANSWER)), b'unknown; reason="lookup_500"', id="content without a response start"),
        pytest.param(
            answers(start(200, GZIP), part(gzip.compress(ANSWER))),
            b'unknown; reason="lookup_shape"',
            id="compressed despite Accept-Encoding: identity",
        ),
        pytest.param(never, b'unknown; reason="lookup_timeout"', id="never responds"),
        pytest.param(never_whole, b'unknown; reason="lookup_timeout"', id="never ends its response"),
        pytest.param(
            waits_for_the_client, b'unknown; reason="lookup_timeout"', id="waits for the client to disconnect"
        ),
    ],
)
async def test_lookups(lookup: ASGIApp, mark: bytes) -> None:
    """The request is forwarded whatever the app does with the lookup, and unedited if the lookup does not succeed."""
    app = LiteLLM(lookup)
    sanitizer = Sanitizer(StoredKeys(timeout=0.1))
    client = await through(SanitizerMiddleware(app, sanitizer=sanitizer), update(models=["m"]))
    assert client.field_values == [mark]
    assert app.upstream.body == (CUT if mark == DROPPED else update(models=["m"]))
    assert client.sent[1]["body"] == b"done"
    assert len(app.lookups) == 1


async def test_client_leaves_during_the_lookup() -> None:
    """If the client leaves, the lookup is cancelled and the app gets no update. The next request is served."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def lookup(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    app = LiteLLM(lookup)
    sanitized = SanitizerMiddleware(app)
    client = Client([update()])
    request = asyncio.create_task(client.through(sanitized))
    await asyncio.wait_for(begun.wait(), 10)
    client.leave()
    await request
    assert ended.is_set()
    assert (app.upstream.scopes, client.sent) == ([], [])
    app.lookup = stored
    assert (await through(sanitized, update())).field_values == [DROPPED]


async def test_callers_at_once() -> None:
    """Each of several lookups at the same time is answered for its own caller and key."""
    everyone = asyncio.Barrier(8)

    async def lookup(scope: Scope, receive: Receive, send: Send) -> None:
        await everyone.wait()
        (number,) = (value for name, value in scope["headers"] if name == b"x-api-key")
        may = int(named(scope)) == int(number)
        answer: dict[str, Any] = {"key": named(scope), "info": {"allowed_routes": [f"/{named(scope)}"]}}
        await JSONResponse(answer, 200 if may else 403)(scope, receive, send)

    sanitized = SanitizerMiddleware(LiteLLM(lookup))

    def ask(number: int) -> Any:
        key = f"{number // 2 * 2:064}"  # every other caller asks for its neighbour's key
        body = json.dumps({"key": key, "allowed_routes": [f"/{key}"]}).encode()
        return through(sanitized, body, [JSON, (b"x-api-key", b"%d" % number)])

    clients = await asyncio.gather(*map(ask, range(8)))
    assert [client.field_values for client in clients] == [[DROPPED], [b'unknown; reason="lookup_403"']] * 4


async def test_alias() -> None:
    """A key that is named by its alias is looked up with a POST, whose content the app receives."""
    seen: list[tuple[str, str, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        seen.append((scope["method"], scope["path"], message["body"]))
        row = {"key_alias": "mine", "allowed_routes": ["/a"]}
        body = json.dumps({"info": [row]} if scope["path"] == "/v2/key/info" else {}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    sent = b'{"key_alias": "mine", "allowed_routes": ["/a"]}'
    client = await through(SanitizerMiddleware(app), sent)
    assert client.field_values == [DROPPED]
    assert seen == [
        ("POST", "/v2/key/info", b'{"key_aliases": ["mine"]}'),
        ("POST", "/key/update", b'{"key_alias": "mine" }'),
    ]

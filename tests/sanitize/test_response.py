"""Resends through the middleware: a response that is held back, another body, and another response.

The bodies of resends are scripted (`tests.support.cores`). Most tests call the middleware with messages. The last ones
run it under a real server and in front of the real relay.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanitizer.address import Address, TrustedProxies
from sanitizer.http1.forwarding import Forwarding
from sanitizer.relay.asgi import Relay
from sanitizer.relay.counters import Counters
from sanitizer.relay.fetch import fetch
from sanitizer.relay.pool import Pool
from sanitizer.sanitize.core import Interception
from sanitizer.sanitize.middleware import SanitizerMiddleware
from sanitizer.sanitize.response import NOT_SENT
from sanitizer.sanitize.stored import Caller
from tests.support import client as raw
from tests.support.asgi import JSON, Client, Fields, ask_nobody, octets, serving
from tests.support.cores import BODY, CONFIDENTIAL, EXCHANGES, LIMIT, REFUSAL, Answer, Core, Exchange
from tests.support.upstream import CLOSE, OK, WAIT_CLOSED, Connection, Upstream, in_turn, reply
from tests.support.wire import Cut

pytestmark = pytest.mark.anyio

FIELD = (b"x-litellm-sanitizer", b"absent")
SECOND = b'{"key": "sk-second"}'
LENGTH = (b"Content-Length", b"00%d" % len(BODY))
HEAD: Fields = [JSON, LENGTH, (b"x", b"1"), (b"x", b"2")]


def start(status: int, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def content(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


FORBIDDEN: list[Message] = [start(403, (b"X-Case", b"Kept")), content(REFUSAL)]
ALLOWED: list[Message] = [start(200), content(b"ok")]


class Failure(Exception):
    """An exception that the app raises."""


def messages_of(answer: Answer) -> list[Message]:
    """The messages of a response: its start, its pieces, and an empty last message."""
    head = start(answer.status, (b"X-Status", b"%d" % answer.status), (b"Set-Cookie", b"a=b"))
    return [head, *[content(piece, more=True) for piece in answer.pieces], content(b"")]


Step = Message | Exception | asyncio.Event | Callable[[], None]


@dataclass
class App:
    """An app that reads a whole request and then performs the next of ``answers``, or the last one again.

    An answer consists of steps: a message is sent, an exception raised, an event waited for, and a function called.
    """

    answers: Sequence[Sequence[Step]]
    scopes: list[Scope] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    received: list[Message] = field(default_factory=list)
    cancelled: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        steps = self.answers[min(len(self.scopes), len(self.answers) - 1)]
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            self.received.append(message)
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        try:
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif callable(step):
                    step()
                else:
                    await send(step)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def around(app: ASGIApp, core: Core) -> SanitizerMiddleware:
    return SanitizerMiddleware(app, sanitizer=core, caller=lambda scope: Caller(octets(scope["headers"]), ask_nobody))


def merged(messages: Sequence[Message]) -> tuple[Message, bytes]:
    """Return the start message of a response, and its whole content."""
    first, *rest = messages
    assert {message["type"] for message in rest} == {"http.response.body"}
    assert [message.get("more_body", False) for message in rest] == [True] * (len(rest) - 1) + [False]
    return first, b"".join([message.get("body", b"") for message in rest])


@pytest.mark.parametrize("case", EXCHANGES)
async def test_exchanges(case: Exchange) -> None:
    """Each send has the same scope but for Content-Length and `NOT_SENT`. The client gets the last response."""
    app = App([messages_of(answer) for answer in case.answers])
    core = Core(*case.bodies, holds=case.holds, edited=case.edited)
    client = await Client([BODY], HEAD).through(around(app, core))
    last = case.answers[-1]
    assert merged(client.sent) == (
        start(last.status, (b"X-Status", b"%d" % last.status), (b"Set-Cookie", b"a=b"), FIELD),
        last.content,
    )
    assert app.bodies == list(case.sent)
    length = LENGTH[1] if case.edited is None else b"%d" % len(case.edited)
    lengths = [length, *[b"%d" % len(body) for body in case.sent[1:]]]
    assert [scope.pop(NOT_SENT, None) is not None for scope in app.scopes] == [False] + [True] * (len(lengths) - 1)
    assert app.scopes == [{**client.scope, "headers": [JSON, (b"Content-Length", each), *HEAD[2:]]} for each in lengths]
    assert core.held_responses == [(answer.status, answer.content) for answer in case.answers[: case.held]]
    assert all(b"\r\nX-Status: " in head for head in core.held_heads)
    assert [record.status for record in core.records] == [last.status]
    assert core.collected == 0


@pytest.mark.parametrize(("answers", "bodies", "shown"), CONFIDENTIAL)
async def test_confidential(answers: tuple[Answer, ...], bodies: tuple[bytes | None, ...], shown: int) -> None:
    """If the response to a confidential resend is not a 2xx, the client gets the first response instead."""
    app = App([messages_of(answer) for answer in answers])
    core = Core(*bodies, confidential=True)
    client = await Client([BODY], HEAD).through(around(app, core))
    got, body = merged(client.sent)
    assert (got["status"], body) == (answers[shown].status, answers[shown].content)
    assert len(app.bodies) == len(answers)
    held = [answer for answer in answers if answer.status == 403 and len(answer.content) <= LIMIT]
    assert core.held_responses == [(answer.status, answer.content) for answer in held]
    assert [record.status for record in core.records] == [answers[shown].status]
    assert core.collected == 0


@pytest.mark.parametrize("before", [(), (start(500), content(b"half", more=True)), (start(500), content(b"whole"))])
async def test_confidential_send_fails(before: Sequence[Step]) -> None:
    """If a confidential resend fails, the client gets the first response, and the server does not see the failure."""
    failure = Failure()
    client = Client([BODY])
    with reported(failure):
        await client.through(around(App([FORBIDDEN, [*before, failure]]), Core(SECOND, confidential=True)))
    assert merged(client.sent) == (start(403, (b"X-Case", b"Kept"), FIELD), REFUSAL)


async def test_the_limit() -> None:
    """The table of exchanges uses the limit that the adapters use."""
    assert Interception.held_limit == LIMIT


@pytest.mark.parametrize(
    ("status", "first"),
    [pytest.param(200, b"first", id="not held"), pytest.param(403, b"x" * (LIMIT + 1), id="held, and too long")],
)
async def test_streams(status: int, first: bytes) -> None:
    """A response that is not, or no longer, held back reaches the client message by message, as the app sends it."""
    passed: list[int] = []

    def look() -> None:
        passed.append(len(client.sent))

    client = Client([BODY])
    app = App([[start(status), look, content(first, more=True), look, content(b"last"), look]])
    core = Core(SECOND)
    await client.through(around(app, core))
    assert passed == ([1, 2, 3] if status == 200 else [0, 2, 3])
    assert merged(client.sent) == (start(status, FIELD), first + b"last")
    assert core.held_responses == []


async def test_nothing_passes_while_it_is_held() -> None:
    """Nothing of a held response is sent to the client while `next_body` runs."""
    app = App([FORBIDDEN, ALLOWED])
    core = Core(SECOND, gate=asyncio.Event())
    client = Client([BODY])
    request = asyncio.create_task(client.through(around(app, core)))
    await core.next_body_called.wait()
    assert client.sent == []
    assert core.gate is not None
    core.gate.set()
    await request
    assert merged(client.sent) == (start(200, FIELD), b"ok")


async def test_scopes_are_copies() -> None:
    """Changes that the app makes to its scope are not in the scope of the next call."""
    app = App([FORBIDDEN, ALLOWED])

    async def changing(scope: Scope, receive: Receive, send: Send) -> None:
        assert "mark" not in scope
        assert scope["state"] == {}
        scope["mark"] = scope["state"]["mark"] = 1
        scope["headers"].append((b"mark", b"1"))
        await app(scope, receive, send)

    client = Client([BODY])
    scope = {**client.scope, "state": {}}
    await around(changing, Core(SECOND))(scope, client.receive, client.send)
    assert [each["headers"].count((b"mark", b"1")) for each in app.scopes] == [1, 1]
    assert scope["state"] == {}


@pytest.mark.parametrize("sent", [[], [content(b"half", more=True)]], ids=["no content", "some content"])
@pytest.mark.parametrize("sends", [1, 2])
async def test_held_answer_breaks_off(sends: int, sent: list[Message]) -> None:
    """If the app fails within a held response, the part that it has sent is passed on, and its exception is raised."""
    app = App([*[FORBIDDEN] * (sends - 1), [start(403), *sent, Failure()]])
    core = Core(*[SECOND] * sends)
    client = Client([BODY])
    with pytest.raises(Failure):
        await client.through(around(app, core))
    assert client.sent == [start(403, FIELD), *sent]
    assert len(core.held_responses) == sends - 1
    assert [record.status for record in core.records] == [403]
    assert core.collected == 0


async def test_app_returns_in_its_answer() -> None:
    """If the app returns within a held response, the incomplete response is passed on as it is."""
    app = App([[start(403), content(b"half", more=True)]])
    client = await Client([BODY]).through(around(app, Core(SECOND)))
    assert client.sent == [start(403, FIELD), content(b"half", more=True)]


@pytest.mark.parametrize("first", [FORBIDDEN, []], ids=["at the second send", "at the first send"])
async def test_no_answer(first: list[Message]) -> None:
    """If the app fails without a response, the client gets none, and no earlier held response in its place."""
    app = App([first, [Failure()]] if first else [[Failure()]])
    core = Core(SECOND)
    client = Client([BODY])
    with pytest.raises(Failure):
        await client.through(around(app, core))
    assert client.sent == []
    assert [record.status for record in core.records] == [None]
    assert core.collected == 0


async def test_app_fails_after_its_answer() -> None:
    """If the app fails after a complete held response, the client gets the response, and the exception is raised."""
    app = App([[*FORBIDDEN, Failure()]])
    core = Core(None)
    client = Client([BODY])
    with pytest.raises(Failure):
        await client.through(around(app, core))
    assert merged(client.sent) == (start(403, (b"X-Case", b"Kept"), FIELD), REFUSAL)


async def test_length_over_the_limit() -> None:
    """A response whose Content-Length is over the limit is passed on at once."""
    passed: list[int] = []
    length = (b"Content-Length", b"%d" % (LIMIT + 1))
    app = App([[start(403, length), lambda: passed.append(len(client.sent)), content(b"x" * (LIMIT + 1))]])
    client = Client([BODY], HEAD)
    core = Core(SECOND)
    await client.through(around(app, core))
    assert passed == [1]
    assert client.sent == [start(403, length, FIELD), content(b"x" * (LIMIT + 1))]
    assert core.held_responses == []


async def test_trailers() -> None:
    """A held response is passed on, in order, as soon as the app sends trailers."""
    passed: list[int] = []
    trailers: Message = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}
    first: Message = {**start(403), "trailers": True}
    client = Client([BODY])
    app = App([[first, content(b"held"), trailers, lambda: passed.append(len(client.sent))]])
    await client.through(around(app, Core(None)))
    assert passed == [3]
    assert client.sent == [{**start(403, FIELD), "trailers": True}, content(b"held"), trailers]


async def test_another_way_to_send_content() -> None:
    """A response whose content is sent otherwise than in body messages is not held back."""
    passed: list[int] = []
    sent: Message = {"type": "http.response.pathsend", "path": "/nothing"}
    client = Client([BODY])
    app = App([[start(403), sent, lambda: passed.append(len(client.sent))]])
    await client.through(around(app, Core(SECOND)))
    assert passed == [2]
    assert client.sent == [start(403, FIELD), sent]


HINT: Message = {"type": "http.response.early_hint", "links": [b"<1>"]}


async def test_interim_answers() -> None:
    """Interim responses to the first send are passed on at once."""
    passed: list[int] = []
    app = App([[HINT, lambda: passed.append(len(client.sent)), *FORBIDDEN], ALLOWED])
    client = Client([BODY])
    await client.through(around(app, Core(SECOND)))
    assert passed == [1]
    assert client.sent[0] == HINT
    assert merged(client.sent[1:]) == (start(200, FIELD), b"ok")


async def test_interim_responses_to_resends() -> None:
    """Interim responses to resends are not passed on, as the client has sent one request only."""
    client = await Client([BODY]).through(around(App([FORBIDDEN, [HINT, *ALLOWED]]), Core(SECOND)))
    assert merged(client.sent) == (start(200, FIELD), b"ok")


# the client leaves


async def test_client_leaves_while_the_answer_is_held() -> None:
    """If the client leaves while a response is held back, the app's ``receive`` returns the disconnect."""
    client = Client([BODY])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start(403))
        await send(content(b"half", more=True))
        client.leave()
        assert await receive() == {"type": "http.disconnect"}

    core = Core(SECOND)
    await client.through(around(app, core))
    assert core.held_responses == []
    assert core.collected == 0


async def test_client_leaves_while_the_core_decides() -> None:
    """If the client leaves while `next_body` runs, that is cancelled, and the app is not called again."""
    app = App([FORBIDDEN, ALLOWED])
    core = Core(SECOND, gate=asyncio.Event())
    client = Client([BODY])
    request = asyncio.create_task(client.through(around(app, core)))
    await core.next_body_called.wait()
    client.leave()
    await request
    assert core.cancelled
    assert (app.bodies, client.sent) == ([BODY], [])
    assert [record.status for record in core.records] == [None]
    assert core.collected == 0


async def test_client_leaves_during_the_resend() -> None:
    """If the client leaves during a resend, the app's ``receive`` returns the disconnect in that call too."""
    client = Client([BODY])
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        if len(seen) == 1:
            for message in FORBIDDEN:
                await send(message)
        else:
            client.leave()
            seen.append(await receive())

    core = Core(SECOND, b"{}")
    await client.through(around(app, core))
    assert seen == [
        {"type": "http.request", "body": BODY, "more_body": False},
        {"type": "http.request", "body": SECOND, "more_body": False},
        {"type": "http.disconnect"},
    ]
    assert [record.status for record in core.records] == [None]
    assert core.collected == 0


@pytest.mark.parametrize("sends", [0, 1], ids=["in next_body", "during the second send"])
async def test_server_cancels(sends: int) -> None:
    """If the server cancels the request, `next_body` or the app's call is cancelled, and no task is left."""
    begun = asyncio.Event()
    app = App([FORBIDDEN, [begun.set, asyncio.Event()]])
    core = Core(SECOND, gate=asyncio.Event())
    before = asyncio.all_tasks()
    client = Client([BODY])
    request = asyncio.create_task(client.through(around(app, core)))
    await core.next_body_called.wait()
    if sends:
        assert core.gate is not None
        core.gate.set()
        await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert (core.cancelled, app.cancelled) == (not sends, sends)
    assert asyncio.all_tasks() == before
    assert client.sent == []
    assert core.collected == 0


# defects of a core


@contextlib.contextmanager
def reported(error: Exception) -> Iterator[None]:
    """Assert that only ``error`` is passed to the event loop's exception handler, and only once."""
    loop = asyncio.get_running_loop()
    contexts: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    try:
        yield
    finally:
        loop.set_exception_handler(None)
    assert [context["exception"] for context in contexts] == [error]


async def test_edit_fails() -> None:
    """If `edit` raises, the request is forwarded as it was received, and the event loop reports the exception."""
    error = LookupError("a defect")
    app = App([ALLOWED])
    client = Client([BODY], HEAD)
    with reported(error):
        await client.through(around(app, Core(edited=error)))
    assert (app.bodies, app.scopes[0]["headers"]) == ([BODY], HEAD)
    assert client.sent[-1] == ALLOWED[-1]


@pytest.mark.parametrize("sends", [1, 2])
async def test_next_body_fails(sends: int) -> None:
    """If `next_body` raises, the held response is passed on, and the event loop reports the exception."""
    error = LookupError("a defect")
    app = App([FORBIDDEN])
    client = Client([BODY])
    with reported(error):
        await client.through(around(app, Core(*[SECOND] * (sends - 1), error)))
    assert app.bodies == [BODY, *[SECOND] * (sends - 1)]
    assert merged(client.sent) == (start(403, (b"X-Case", b"Kept"), FIELD), REFUSAL)


# other kinds of requests


async def test_chunked_request() -> None:
    """A request without Content-Length gets none in any of its sends."""
    app = App([FORBIDDEN, FORBIDDEN, ALLOWED])
    core = Core(SECOND, b"")
    headers = [JSON, (b"transfer-encoding", b"chunked")]
    client = await Client([BODY[:5], BODY[5:], b""], headers).through(around(app, core))
    assert app.bodies == [BODY, SECOND, b""]
    assert [scope["headers"] for scope in app.scopes] == [headers] * 3
    assert client.sent[0]["status"] == 200


async def test_body_over_the_limit() -> None:
    """A body over the limit is passed on without an inspection, and so is its response."""
    app = App([FORBIDDEN])
    core = Core(holds=(), max_body=10)
    client = await Client([BODY[:20], BODY[20:]]).through(around(app, core))
    assert (app.bodies, client.sent[0]["status"]) == ([BODY], 403)
    assert client.field_values == [b'unreadable; reason="too_large"']


# around a Starlette app, and in front of the relay


async def test_around_starlette() -> None:
    """A Starlette app is called once per send, and the background task of each response runs."""
    done: list[bytes] = []

    async def key_update(request: Request) -> Response:
        body = await request.body()
        task = BackgroundTask(done.append, body)
        return PlainTextResponse(body, 200 if body == SECOND else 403, background=task)

    app = Starlette(routes=[Route("/key/update", key_update, methods=["POST"])])
    client = Client([BODY], [JSON, (b"content-length", b"%d" % len(BODY))])
    scope = {**client.scope, "http_version": "1.1", "query_string": b"", "root_path": "", "scheme": "http"}
    await around(app, Core(SECOND))(scope, client.receive, client.send)
    assert merged(client.sent)[1] == SECOND
    assert done == [BODY, SECOND]


@dataclass
class Served:
    """The middleware in front of the relay, under uvicorn."""

    port: int

    async def ask(self, *chunks: bytes) -> raw.Response:
        return await asyncio.to_thread(raw.ask, ("127.0.0.1", self.port), *chunks)


@contextlib.asynccontextmanager
async def served(
    upstream: Upstream, core: Core, between: Callable[[ASGIApp], ASGIApp] = lambda app: app, **options: Any
) -> AsyncIterator[Served]:
    """Serve the middleware and the relay in front of ``upstream``. ``options`` are those of the `Pool`."""
    pool = Pool(Address("http", "127.0.0.1", upstream.port), **options)
    relay = Relay(pool, Forwarding(TrustedProxies(), b"litellm-sanitizer-test"), Counters())
    send_lookup = partial(fetch, pool)
    app = SanitizerMiddleware(
        between(relay), sanitizer=core, caller=lambda scope: Caller(relay.outbound_head(scope), send_lookup)
    )
    async with serving(app) as port:
        yield Served(port)
    pool.close()


UPDATE = b"POST /key/update HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
REFUSED = b"HTTP/1.1 403 Forbidden\r\nX-Case: Kept\r\nContent-Length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


async def test_before_the_relay(upstream: Upstream) -> None:
    """Each send is a separate request to upstream, on the same connection."""
    upstream.script = in_turn(reply(REFUSED), reply(REFUSED), reply(OK))
    core = Core(SECOND, b"{}")
    async with served(upstream, core, max_connections=1) as server:
        response = await server.ask(UPDATE)
    assert (response.status, response.body, response.get(b"x-litellm-sanitizer")) == (200, b"ok", b"absent")
    assert [request.body for request in upstream.requests] == [BODY, SECOND, b"{}"]
    assert {request.connection for request in upstream.requests} == {0}
    assert core.collected == 0


@pytest.mark.parametrize(
    ("script", "status"),
    [pytest.param(reply(CLOSE), 502, id="closed"), pytest.param(reply(WAIT_CLOSED), 504, id="no response")],
)
async def test_resend_fails(upstream: Upstream, script: Any, status: int) -> None:
    """If a resend fails after it was sent, it may have been carried out: the client gets the failure, with no retry."""
    upstream.script = in_turn(reply(REFUSED), script, reply(OK))
    core = Core(SECOND)
    async with served(upstream, core, response_timeout=2) as server:
        response = await server.ask(UPDATE)
    assert (response.status, response.get(b"x-litellm-sanitizer")) == (status, b"absent")
    assert [request.body for request in upstream.requests] == [BODY, SECOND]
    assert [record.status for record in core.records] == [status]


def copying(app: ASGIApp) -> ASGIApp:
    """Middleware that calls ``app`` with a copy of the scope, as some do."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        await app(dict(scope), receive, send)

    return middleware


@pytest.mark.parametrize("between", [lambda app: app, copying], ids=["the relay alone", "middleware before the relay"])
async def test_upstream_is_gone(upstream: Upstream, between: Callable[[ASGIApp], ASGIApp]) -> None:
    """If upstream no longer accepts connections, the client gets the held response."""
    upstream.script = reply(REFUSED)
    core = Core(SECOND, gate=asyncio.Event())
    async with served(upstream, core, between) as server:
        request = asyncio.create_task(server.ask(UPDATE))
        await core.next_body_called.wait()
        await asyncio.to_thread(upstream.stop)
        assert core.gate is not None
        core.gate.set()
        response = await request
    assert (response.status, response.body) == (403, REFUSAL)
    assert core.resent == 0


async def test_no_connection_comes_free(upstream: Upstream) -> None:
    """If no connection becomes free for a resend, the client gets the held response."""
    upstream.script = in_turn(reply(REFUSED), reply(WAIT_CLOSED))
    core = Core(SECOND, gate=asyncio.Event())
    async with served(upstream, core, max_connections=1, connect_timeout=2) as server:
        request = asyncio.create_task(server.ask(UPDATE))
        await core.next_body_called.wait()
        with raw.Client(("127.0.0.1", server.port)) as other:
            other.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.to_thread(upstream.wait_request, 2)
            assert core.gate is not None
            core.gate.set()
            response = await request
    assert (response.status, response.body) == (403, REFUSAL)


async def test_client_leaves_while_a_resend_waits(upstream: Upstream) -> None:
    """A resend is not reported as sent if the client leaves while it waits for a connection."""
    upstream.script = in_turn(reply(REFUSED), reply(WAIT_CLOSED))
    core = Core(SECOND, gate=asyncio.Event())
    async with served(upstream, core, max_connections=1) as server:
        with raw.Client(("127.0.0.1", server.port)) as client, raw.Client(("127.0.0.1", server.port)) as other:
            client.send(UPDATE)
            await core.next_body_called.wait()
            other.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.to_thread(upstream.wait_request, 2)
            assert core.gate is not None
            core.gate.set()
            client.close()
            await core.ended.wait()
    assert (core.collected, core.resent) == (0, 0)
    assert [record.status for record in core.records] == [None]


async def test_client_leaves_during_a_resend(upstream: Upstream) -> None:
    """A resend that was sent before the client left is reported, although there is no response."""
    upstream.script = in_turn(reply(REFUSED), reply(WAIT_CLOSED))
    core = Core(SECOND)
    async with served(upstream, core) as server:
        with raw.Client(("127.0.0.1", server.port)) as client:
            client.send(UPDATE)
            await asyncio.to_thread(upstream.wait_request, 2)
            client.close()
            await core.ended.wait()
    assert (core.resent, [record.status for record in core.records]) == (1, [None])


async def test_held_answer_breaks_off_before_the_relay(upstream: Upstream) -> None:
    """If upstream breaks off a held response, the received part is passed on, and the client's connection is closed."""
    came, broken = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\n\r\nhalf")
        loop.call_soon_threadsafe(came.set)
        asyncio.run_coroutine_threadsafe(broken.wait(), loop).result(10)
        connection.close()

    upstream.script = script
    core = Core(SECOND)

    def ask() -> bytes:
        with raw.Client(("127.0.0.1", server.port)) as client:
            client.send(UPDATE)
            try:
                return client.read_to_end()
            except Cut as cut:
                return cut.got

    async with served(upstream, core) as server:
        request = asyncio.create_task(asyncio.to_thread(ask))
        await came.wait()
        broken.set()
        got = await request
    assert got.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert got.endswith(b"\r\n\r\nhalf")
    assert core.held_responses == []

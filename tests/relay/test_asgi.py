"""The relay as an ASGI app, called without a server: cancellation, exceptions, and messages that no server sends."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest
from starlette.types import Message, Scope

from sanitizer.address import Address, TrustedProxies
from sanitizer.errors import ResponseCut
from sanitizer.http1.forwarding import Forwarding
from sanitizer.relay.asgi import Relay
from sanitizer.relay.connection import Connection as UpstreamConnection
from sanitizer.relay.counters import Counters
from sanitizer.relay.pool import Pool
from tests.support.upstream import CLOSE, OK, WAIT_CLOSED, Connection, Step, Upstream, perform, reply
from tests.support.virtual import ADDRESS, FakeTransport, VirtualLoop, virtual_loop

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MIB


class Failure(Exception):
    """An exception that the server raises."""


def scope(method: str = "GET", *headers: tuple[bytes, bytes]) -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": "/",
        "query_string": b"",
        "headers": [(b"host", b"a"), *headers],
        "client": ("192.0.2.1", 1),
    }


def content(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


async def nothing() -> Message:
    """Wait for a message that never arrives."""
    await asyncio.Event().wait()
    raise AssertionError


@dataclass
class Server:
    """The server's side of one request: `receive` returns each of ``messages``, and then the result of ``then``.

    If ``blocked`` is an event, `send` sets it at the first piece of the response's content, and never returns.
    """

    messages: list[Message] = field(default_factory=lambda: [content(b"")])
    then: Callable[[], Awaitable[Message]] = nothing
    sent: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blocked: asyncio.Event | None = None

    async def receive(self) -> Message:
        return self.messages.pop(0) if self.messages else await self.then()

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if self.blocked is not None and message["type"] == "http.response.body":
            self.blocked.set()
            await asyncio.Event().wait()

    @property
    def status(self) -> int:
        found: int = self.sent[0]["status"]
        return found

    @property
    def body(self) -> bytes:
        return b"".join([message["body"] for message in self.sent[1:]])


@dataclass
class World:
    upstream: Upstream
    pool: Pool
    relay: Relay


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with Upstream() as upstream:
        pool = Pool(Address("http", "127.0.0.1", upstream.port))
        relay = Relay(pool, Forwarding(TrustedProxies(), b"litellm-sanitizer-test"), Counters())
        yield World(upstream, pool, relay)
        pool.close()


async def closed(upstream: Upstream) -> None:
    """Wait until upstream's first connection is closed."""
    await asyncio.to_thread(upstream.wait_closed)


def reading_on(connection: Connection) -> None:
    """A script that reads until the connection is closed, and does not respond."""
    connection.read_head()
    while connection.recv():
        pass


@pytest.mark.parametrize("when", ["before the response", "within the response", "within the upload", "before a 100"])
async def test_cancelled(world: World, when: str) -> None:
    """If the server cancels the app, none of its tasks is left, and the upstream connection is closed."""
    server = Server()
    asked = scope()
    begun = asyncio.Event()
    if when == "before the response":
        world.upstream.script = reply(WAIT_CLOSED)
        begun.set()
    elif when == "within the response":
        world.upstream.script = reply(ENDLESS + b"x", WAIT_CLOSED)
        server.blocked = begun
    else:
        world.upstream.script = reading_on
        asked = scope("POST", (b"content-length", b"2"))
        server.messages = [content(b"{", more=True)]
        begun.set()
        if when == "before a 100":
            asked["headers"].append((b"expect", b"100-continue"))
    tasks = asyncio.all_tasks()
    app = asyncio.create_task(world.relay(asked, server.receive, server.send))
    await begun.wait()
    await asyncio.to_thread(world.upstream.wait_request)
    app.cancel()
    with pytest.raises(asyncio.CancelledError):
        await app
    await asyncio.sleep(0)  # cancelled tasks end in the next event loop iteration
    assert asyncio.all_tasks() == tasks
    await closed(world.upstream)
    assert world.pool.open == 0


async def test_returned(world: World) -> None:
    """No task of the app is left once the response is complete."""
    world.upstream.script = reply(OK)
    tasks = asyncio.all_tasks()
    server = Server()
    await world.relay(scope(), server.receive, server.send)
    await asyncio.sleep(0)  # cancelled tasks end in the next event loop iteration
    assert asyncio.all_tasks() == tasks
    assert (server.status, server.body) == (200, b"ok")


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        pytest.param([[b"host", b"a"], [b"content-length", b"2"]], b"hi", id="lists"),  # Mangum passes these
        pytest.param(((b"host", b"a"), (b"content-length", b"2")), b"hi", id="a tuple"),
        pytest.param([(b"host", b"a"), (b"content-length", b"2")], bytearray(b"hi"), id="bytearray"),
    ],
)
async def test_other_types(world: World, fields: object, data: bytes) -> None:
    """Headers may be lists or tuples, and a body may be a bytearray. The compiled modules must accept them as well."""
    world.upstream.script = reply(OK)
    server = Server([content(data)])
    await world.relay({**scope("POST"), "headers": fields}, server.receive, server.send)
    assert (server.status, server.body) == (200, b"ok")
    assert world.upstream.requests[-1].body == b"hi"


async def fails() -> Message:
    raise Failure


async def test_receive_fails(world: World) -> None:
    """If ``receive`` raises before the response, the app raises the same, and the upstream connection is closed."""
    world.upstream.script = reading_on
    server = Server([content(b"{", more=True)], fails)
    with pytest.raises(Failure):
        await world.relay(scope("POST", (b"content-length", b"2")), server.receive, server.send)
    assert (server.sent, world.pool.open) == ([], 0)


async def test_receive_fails_in_the_answer(world: World) -> None:
    """If ``receive`` raises during the response, the app raises `ResponseCut` with that exception as its cause."""
    world.upstream.script = reply(ENDLESS + b"x", WAIT_CLOSED)
    begun = asyncio.Event()

    async def fails_later() -> Message:
        await begun.wait()
        raise Failure

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            begun.set()

    with pytest.raises(ResponseCut) as cut:
        await world.relay(scope(), Server(then=fails_later).receive, send)
    assert isinstance(cut.value.__cause__, Failure)


@pytest.mark.parametrize("end", [CLOSE, b"y"], ids=["cut", "whole"])
async def test_upload_goes_on_after_the_answer(world: World, end: bytes | Step) -> None:
    """Once the response has ended, the app receives the rest of the content, although upstream no longer reads it.

    A client that sends all of its content before it reads the response would wait forever otherwise.
    """
    blocked, ended = asyncio.Event(), threading.Event()

    def script(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx")
        assert ended.wait(10)
        perform(connection, end)

    async def receive() -> Message:
        if ended.is_set():
            read_on.set()
            return await nothing()
        return content(bytes(MIB), more=True)

    world.upstream.script = script
    read_on = asyncio.Event()
    server = Server(then=receive, messages=[])
    server.blocked = blocked
    app = asyncio.create_task(
        world.relay(scope("POST", (b"transfer-encoding", b"chunked")), server.receive, server.send)
    )
    await blocked.wait()
    (upstream,) = world.pool.watched()
    assert isinstance(upstream, UpstreamConnection)
    while not upstream.write_paused:  # noqa: ASYNC110 - nothing reports it
        await asyncio.sleep(0)
    ended.set()
    async with asyncio.timeout(10):
        await read_on.wait()
    app.cancel()
    with pytest.raises(asyncio.CancelledError):
        await app


@pytest.mark.parametrize("body", [b"ok", b""])
async def test_receive_fails_behind_the_answer(world: World, body: bytes) -> None:
    """If ``receive`` raises when the response has been received completely, the response is sent completely."""
    world.upstream.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), CLOSE)
    whole, failed = asyncio.Event(), asyncio.Event()

    async def fails_later() -> Message:
        await whole.wait()
        failed.set()
        raise Failure

    server = Server(then=fails_later)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            await asyncio.to_thread(world.upstream.wait_closed)  # by then, the response has been received completely
            whole.set()
            await failed.wait()
            await asyncio.sleep(0)
        await server.send(message)

    await world.relay(scope(), server.receive, send)
    assert (server.status, server.body) == (200, body)


@dataclass
class Waiting:
    """A request with content. Upstream has received its head. The clock of ``loop`` does not advance on its own."""

    loop: VirtualLoop
    server: Server
    app: asyncio.Task[None]
    upstream: FakeTransport

    @property
    def content(self) -> bytes:
        """The content that upstream has received."""
        return self.upstream.delivered.partition(b"\r\n\r\n")[2]


@contextlib.contextmanager
def waiting(expectation: bytes, version: str = "1.1") -> Iterator[Waiting]:
    """Send a request with this Expect field. After the ``with`` block, send the response and check it."""
    with virtual_loop() as loop:
        relay = Relay(loop.act(Pool, ADDRESS), Forwarding(TrustedProxies(), b"litellm-sanitizer-test"), Counters())
        server = Server([content(b"hi")])
        asked = {**scope("POST", (b"content-length", b"2"), (b"expect", expectation)), "http_version": version}
        app = loop.create_task(relay(asked, server.receive, server.send))
        loop.settle()
        waiting = Waiting(loop, server, app, loop.attempts[0].accept())
        yield waiting
        waiting.upstream.feed(OK)
        loop.settle()
        app.result()
        assert (server.status, server.body) == (200, b"ok")


def test_no_100() -> None:
    """The content is forwarded after a second, even if upstream sends no 100 (Continue) (RFC 9110 section 10.1.1)."""
    with waiting(b"100-continue") as request:
        request.loop.advance(0.99)
        assert (request.content, len(request.server.messages)) == (b"", 1)
        request.loop.advance(0.01)
        assert request.content == b"hi"


@pytest.mark.parametrize("interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
def test_content_waits_for_a_100(interim: bytes) -> None:
    """``receive`` makes a server send 100 (Continue), so it is not called before upstream has sent one."""
    with waiting(b"100-Continue") as request:
        assert (request.content, len(request.server.messages)) == (b"", 1)
        request.upstream.feed(interim)
        request.loop.settle()
        assert request.content == (b"hi" if b"100" in interim else b"")


@pytest.mark.parametrize(("version", "value"), [("1.0", b"100-continue"), ("1.0", b"something"), ("1.1", b"something")])
def test_content_waits_for_nothing_else(version: str, value: bytes) -> None:
    """The content is forwarded at once if the request is HTTP/1.0, or expects anything except 100 (Continue)."""
    with waiting(value, version) as request:
        assert request.content == b"hi"


@pytest.mark.parametrize("length", [1, 3])
async def test_content_of_another_length(world: World, length: int) -> None:
    """Content that does not fit its Content-Length is refused with 400. No server should let it through."""
    world.upstream.script = reading_on
    server = Server([content(b"hi")])
    await world.relay(scope("POST", (b"content-length", b"%d" % length)), server.receive, server.send)
    assert server.status == 400


@pytest.mark.parametrize(
    ("asked", "kind", "counted"),
    [
        pytest.param(scope("GET", (b"host", b"b")), "bad_request", (1, 0), id="a refusal"),
        pytest.param(
            scope("GET", *[(b"via", b"1.1 litellm-sanitizer-%d" % n) for n in range(9)]),
            "loop_detected",
            (1, 0),
            id="a loop",
        ),
        pytest.param(scope("POST", (b"content-length", b"2")), "client_not_sending", (0, 1), id="a stall"),
        pytest.param(scope(), "broken", (0, 0), id="an upstream failure"),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1", "2"])
async def test_errors(world: World, asked: Scope, kind: str, counted: tuple[int, int], version: str) -> None:
    """A client's errors are counted, reported with its address, and close an HTTP/1 connection. Upstream's are not."""
    reported: list[tuple[str, str | None]] = []

    def report(kind: str, detail: str, peer: str | None) -> None:
        reported.append((kind, peer))

    counters = Counters(report, report)
    world.upstream.script = reply(CLOSE) if asked["method"] == "GET" else reading_on
    relay = Relay(world.pool, Forwarding(TrustedProxies(), b"litellm-sanitizer-test"), counters, 0.01)
    server = Server([content(b"", more=asked["method"] == "POST")])
    await relay({**asked, "http_version": version}, server.receive, server.send)
    assert json.loads(server.body)["error"]["type"] == kind
    assert (counters.refused, sum(counters.stalled.values())) == counted
    assert reported == [(kind, "192.0.2.1")] * sum(counted)
    closes = any(counted) and version != "2"
    assert ((b"connection", b"close") in server.sent[0]["headers"]) is closes


@pytest.mark.parametrize(("status", "passed"), [(599, 599), (600, 502)])
async def test_status(world: World, status: int, passed: int) -> None:
    """A status above 599, for which servers have no status line, is handled as an upstream error."""
    world.upstream.script = reply(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nhi" % status)
    server = Server()
    await world.relay(scope(), server.receive, server.send)
    assert server.status == passed


async def test_websocket(world: World) -> None:
    """An ASGI app cannot tunnel a WebSocket: it closes it with code 1011, and forwards nothing."""
    server = Server()
    await world.relay({"type": "websocket"}, server.receive, server.send)
    assert [(message["type"], message["code"]) for message in server.sent] == [("websocket.close", 1011)]
    assert world.upstream.requests == []


async def test_another_scope(world: World) -> None:
    """A scope of another type raises an exception, as the ASGI specification asks for."""
    with pytest.raises(RuntimeError, match="lifespan"):
        await world.relay({"type": "lifespan"}, nothing, Server().send)

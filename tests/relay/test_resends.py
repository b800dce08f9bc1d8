"""Resends on client connections: a response is held back, the request is resent, and another response is relayed.

The client connections use real sockets and an event loop that runs in a thread. Upstream uses real sockets as well.
The sanitizer is a `tests.support.cores.Core`, whose resends are scripted.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import pytest
import uvloop

from sanitizer.address import Address
from sanitizer.relay.counters import CLIENT_LEFT
from tests.support.client import Client
from tests.support.cores import BODY, CONFIDENTIAL, EXCHANGES, LIMIT, REFUSAL, Answer, Core, Exchange
from tests.support.fake_gateway import FakeGateway
from tests.support.upstream import (
    CLOSE,
    OK,
    RESET,
    WAIT_CLOSED,
    Connection,
    Script,
    Step,
    Upstream,
    in_turn,
    perform,
    reply,
)
from tests.support.wire import Cut

T = TypeVar("T")

FIELD = (b"x-litellm-sanitizer", b"absent")
SECOND = b'{"key": "sk-second"}'
GET = b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n"
FORBIDDEN = b"HTTP/1.1 403 Not For You\r\nX-Case: Kept\r\nContent-Length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL)


class Listener:
    """Client connections in front of ``upstream``, in an event loop of their own.

    ``failures`` are the contexts that the event loop has passed to its exception handler.
    """

    def __init__(
        self,
        upstream: Upstream,
        core: Core,
        *,
        connect_timeout: float = 5.0,
        response_timeout: float | None = None,
        max_connections: int | None = None,
    ) -> None:
        self.core = core
        self.failures: list[dict[str, Any]] = []
        self._upstream = Address("http", "127.0.0.1", upstream.port)
        self._connect_timeout = connect_timeout
        self._response_timeout = response_timeout
        self._max_connections = max_connections
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener")
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda loop, context: self.failures.append(context))
        self._stopped = asyncio.Event()
        self.gateway = gateway = FakeGateway(
            interceptor=self.core,
            address=self._upstream,
            client="127.0.0.1",
            connect_timeout=self._connect_timeout,
            response_timeout=self._response_timeout,
            max_connections=self._max_connections,
        )
        server = await self.loop.create_server(gateway.make_protocol, "127.0.0.1", 0)
        self.address: tuple[str, int] = server.sockets[0].getsockname()
        self._ready.set()
        await self._stopped.wait()
        server.close()
        gateway.connections.abort()
        gateway.pool.close()
        await server.wait_closed()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of ``coroutine``, run in the event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def wait(self, event: asyncio.Event) -> None:
        """Wait until ``event`` is set in the event loop."""
        self.run(event.wait())

    def open_gate(self) -> None:
        """Let the core's `next_body` return."""
        assert self.core.gate is not None
        self.loop.call_soon_threadsafe(self.core.gate.set)

    def drain(self) -> None:
        """Do what the server does when it stops, except for closing its listener."""

        async def drain() -> None:
            self.gateway.draining = True
            self.gateway.connections.shutdown()

        self.run(drain())

    def connect(self) -> Client:
        return Client(self.address)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        if kind is None:
            assert not self.failures
            assert self.core.collected == 0


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


def update(*lines: bytes, body: bytes = BODY) -> bytes:
    """An update with these field lines before its Content-Length."""
    length = b"CONTENT-length: 00%d" % len(body)
    head = [b"POST /key/update?a=%41& HTTP/1.1", b"host: A", *lines, length, b"X-Last: 1", b"", b""]
    return b"\r\n".join(head) + body


def chunked(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content) if content else b""


def script_of(answer: Answer, framing: str) -> Script:
    """An upstream that sends ``answer``, piece by piece."""
    head = b"HTTP/1.1 %d It Is So\r\nX-Status: %d\r\nset-COOKIE: a=b\r\n" % (answer.status, answer.status)
    steps: list[bytes | Step | threading.Event] = []
    if framing == "chunked":
        last = b"" if answer.status == 204 else b"0\r\n\r\n"  # a 204 has no content, whatever its fields say
        steps = [head + b"Transfer-Encoding: chunked\r\n\r\n", *map(chunked, answer.pieces), last]
    elif framing == "length":
        steps = [head + b"Content-Length: %d\r\n\r\n" % len(answer.content), *answer.pieces]
    else:
        steps = [head + b"\r\n", *answer.pieces, CLOSE]
    return reply(*steps)


def bodies_of(upstream: Upstream) -> list[bytes]:
    return [request.body for request in upstream.requests if request.complete]


@pytest.mark.parametrize("framing", ["length", "chunked", "until close"])
@pytest.mark.parametrize("case", EXCHANGES)
def test_exchanges(upstream: Upstream, case: Exchange, framing: str) -> None:
    """Each resend has the same head except for its length, and the client gets the last response, byte for byte."""
    upstream.script = in_turn(*[script_of(answer, framing) for answer in case.answers])
    core = Core(*case.bodies, holds=case.holds, edited=case.edited)
    with Listener(upstream, core) as listener, listener.connect() as client:
        response = client.ask(update())
        assert client.ask(GET).status == case.answers[-1].status  # the connection can still be used
    last = case.answers[-1]
    assert response.start == b"HTTP/1.1 %d It Is So" % last.status
    assert response.body == last.content
    length = (b"Content-Length", b"%d" % len(last.content))
    framed = length if framing == "length" else (b"Transfer-Encoding", b"chunked")
    assert [line for line in response.fields if line != framed] == [
        (b"X-Status", b"%d" % last.status),
        (b"set-COOKIE", b"a=b"),
        FIELD,
    ]
    assert framed in response.fields
    *requests, _ = upstream.requests
    assert [request.body for request in requests] == list(case.sent)
    lengths = [request.get(b"content-length") for request in requests]
    as_it_came = [b"00%d" % len(BODY)] if case.edited is None else [b"%d" % len(case.edited)]
    assert lengths == [*as_it_came, *[b"%d" % len(body) for body in case.sent[1:]]]
    heads = {re.sub(rb"(?<=CONTENT-length: )\d+", b"", request.raw_head) for request in requests}
    assert len(heads) == 1
    assert heads.pop().startswith(b"POST /key/update?a=%41& HTTP/1.1\r\nhost: A\r\nCONTENT-length: \r\nX-Last: 1\r\n")
    assert core.held_responses == [(answer.status, answer.content) for answer in case.answers[: case.held]]
    assert all(head.startswith(b"HTTP/1.1 4") or b" 500 " in head for head in core.held_heads)
    assert [record.status for record in core.records] == [last.status]
    assert listener.gateway.statuses == [last.status] * 2
    assert listener.gateway.counters.in_flight == 0


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize(("answers", "bodies", "shown"), CONFIDENTIAL)
def test_confidential(
    upstream: Upstream, answers: tuple[Answer, ...], bodies: tuple[bytes | None, ...], shown: int, framing: str
) -> None:
    """A confidential response is replaced by the first response, byte for byte, unless it is a 2xx."""
    upstream.script = in_turn(*[script_of(answer, framing) for answer in answers])
    core = Core(*bodies, confidential=True)
    with Listener(upstream, core) as listener, listener.connect() as client:
        response = client.ask(update())
        assert client.ask(GET).status == answers[-1].status  # the connection can still be used
    assert response.start == b"HTTP/1.1 %d It Is So" % answers[shown].status
    assert response.body == answers[shown].content
    assert response.get(b"x-status") == b"%d" % answers[shown].status
    assert len(upstream.requests) == len(answers) + 1
    assert [record.status for record in core.records] == [answers[shown].status]
    assert core.collected == 0


@pytest.mark.parametrize("steps", [(CLOSE,), (b"HTTP/1.1 500 Odd\r\nContent-Length: 9\r\n\r\nhalf", CLOSE)])
def test_confidential_send_fails(upstream: Upstream, steps: tuple[bytes | Step, ...]) -> None:
    """If a confidential resend fails, the client gets the first response as well."""
    upstream.script = in_turn(reply(FORBIDDEN), reply(*steps))
    with Listener(upstream, Core(SECOND, confidential=True)) as listener, listener.connect() as client:
        response = client.ask(update())
    assert (response.start, response.body) == (b"HTTP/1.1 403 Not For You", REFUSAL)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 9\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
)
def test_confidential_answer_breaks_off(upstream: Upstream, framing: bytes) -> None:
    """If a 2xx breaks off, the client's connection is reset, and the response held back before is not sent."""
    upstream.script = in_turn(reply(FORBIDDEN), reply(b"HTTP/1.1 200 OK\r\n" + framing, CLOSE), reply(OK))
    with Listener(upstream, Core(SECOND, confidential=True)) as listener, listener.connect() as client:
        client.send(update() + GET)
        with pytest.raises(Cut) as cut:
            client.read_to_end()
    assert cut.value.reset
    assert bytes(client.received).count(b"HTTP/1.1") == 1
    assert b"half" in client.received


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize(
    ("status", "first"),
    [pytest.param(200, b"first", id="not held"), pytest.param(403, b"x" * (LIMIT + 1), id="held until it is too long")],
)
def test_streams(upstream: Upstream, status: int, first: bytes, framing: str) -> None:
    """A response that is not held back, or no longer, reaches the client before upstream sends the rest of it."""
    seen = threading.Event()
    head = b"HTTP/1.1 %d It Is So\r\n" % status
    if framing == "length":
        upstream.script = reply(head + b"Content-Length: %d\r\n\r\n" % (len(first) + 4), first, seen, b"last")
    else:
        encoding = b"Transfer-Encoding: chunked\r\n\r\n"
        upstream.script = reply(head + encoding + chunked(first), seen, chunked(b"last"), b"0\r\n\r\n")
    core = Core(b"{}")
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        assert client.read_head().status == status
        got = bytearray()
        while len(got) < len(first):
            if framing == "length":
                got += client.recv()
            else:
                size = int(client.read_until(b"\r\n"), 16)
                got += client.read_exactly(size)
                client.read_exactly(2)
        assert bytes(got) == first
        seen.set()
        rest = b"last" if framing == "length" else b"4\r\nlast\r\n0\r\n\r\n"
        assert client.read_exactly(len(rest)) == rest
    assert core.held_responses == []
    assert bodies_of(upstream) == [BODY]


def test_nothing_passes_while_it_is_held(upstream: Upstream) -> None:
    """No byte of a response that is held back is sent to the client before `next_body` has returned."""
    upstream.script = in_turn(reply(FORBIDDEN), reply(OK))
    core = Core(SECOND, gate=asyncio.Event())
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        listener.wait(core.next_body_called)
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        client.sock.settimeout(10)
        listener.open_gate()
        assert client.read_response().body == b"ok"


def break_off(upstream: Upstream, beside: int, sent: bytes, end: Step) -> bytes:
    """Break a 403 off after ``sent``, while ``beside`` other requests are in progress.

    Returns the bytes that the client has received when its connection is reset.
    """
    came, broken, free = threading.Event(), threading.Event(), threading.Event()

    def refusal(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 403 Not For You\r\n" + sent)
        came.set()
        perform(connection, broken, end)

    upstream.script = in_turn(*[reply(free, OK)] * beside, refusal, reply(OK))
    core = Core(SECOND)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(Listener(upstream, core))
        client, third, *others = [stack.enter_context(listener.connect()) for _ in range(2 + beside)]
        stack.callback(free.set)
        for number, other in enumerate(others, 1):
            other.send(GET)
            upstream.wait_request(number)
        client.send(update())
        assert came.wait(10)
        assert third.ask(GET).status == 200  # shows that the octets sent before have been read
        broken.set()
        with pytest.raises(Cut) as cut:
            client.read_to_end()
        assert cut.value.reset
        listener.wait(core.ended)
        free.set()
        assert [other.read_response().status for other in others] == [200] * beside
    assert core.held_responses == []
    assert [body for body in bodies_of(upstream) if body] == [BODY]
    assert [record.status for record in core.records] == [403]
    return cut.value.got


PARTS = [
    pytest.param(b"Content-Length: 10\r\n\r\n", b"half", b"half", id="length"),
    pytest.param(b"Content-Length: 10\r\n\r\n", b"", b"", id="no content yet"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\n", b"4\r\nhalf\r\n6\r\n", b"4\r\nhalf\r\n", id="chunked"),
]
"""The end of a response's head, the part of its content that upstream sends, and the part that the client gets."""


@pytest.mark.parametrize("end", [CLOSE, RESET], ids=["closed", "reset"])
@pytest.mark.parametrize(("framing", "sent", "content"), PARTS)
def test_held_answer_breaks_off(upstream: Upstream, framing: bytes, sent: bytes, content: bytes, end: Step) -> None:
    """If a held response breaks off, the part that was received is relayed, and the client's connection is reset."""
    got = break_off(upstream, 0, framing + sent, end)
    assert got.startswith(b"HTTP/1.1 403 Not For You\r\n")
    assert got.partition(b"\r\n\r\n")[2] == content


@pytest.mark.parametrize(("framing", "sent", "content"), PARTS)
def test_held_answer_breaks_off_beside_others(upstream: Upstream, framing: bytes, sent: bytes, content: bytes) -> None:
    """A held response that breaks off is relayed in the same way while other requests are in progress.

    Writes are batched then.
    """
    got = break_off(upstream, 2, framing + sent, CLOSE)
    assert got.startswith(b"HTTP/1.1 403 Not For You\r\n")
    assert got.partition(b"\r\n\r\n")[2] == content


def test_held_answer_is_faulty(upstream: Upstream) -> None:
    """A held response whose content is not valid HTTP is handled as one that breaks off."""
    held = threading.Event()

    class Statuses(set[int]):
        def __contains__(self, status: object) -> bool:
            held.set()
            return super().__contains__(status)

    head = b"HTTP/1.1 403 Not For You\r\nTransfer-Encoding: chunked\r\n\r\n"
    upstream.script = reply(head + b"4\r\nhalf\r\n", held, b"?\r\n")
    core = Core(SECOND, holds=Statuses({403}))
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        assert client.read_head().status == 403
        with pytest.raises(Cut) as cut:
            client.read_to_end()
        assert cut.value.reset
        assert cut.value.got in (b"4\r\nhalf\r\n", b"")  # empty if the reset has overtaken the content
        listener.wait(core.ended)
    assert core.held_responses == []


@pytest.mark.parametrize("bodies", [(None,), (SECOND,)], ids=["relayed", "sent again"])
def test_trailers(upstream: Upstream, bodies: tuple[bytes | None]) -> None:
    """The client gets the trailers of the response that is relayed, whether it was held back or not."""
    answer = b"HTTP/1.1 403 A\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nheld\r\n0\r\nX-Sum: %d\r\n\r\n"
    upstream.script = in_turn(reply(answer % 1), reply(answer.replace(b"403", b"200") % 2))
    with Listener(upstream, Core(*bodies)) as listener, listener.connect() as client:
        response = client.ask(update())
        number = len(upstream.requests)
        assert (response.body, response.trailers) == (b"held", [(b"X-Sum", b"%d" % number)])
        assert client.ask(GET).status == 200


def test_trailers_of_a_long_answer(upstream: Upstream) -> None:
    """Trailers are relayed too if the last piece of a response makes it too long to be held back."""
    held = threading.Event()
    first = b"HTTP/1.1 403 A\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"x" * LIMIT)

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(first)
        held.set()
        assert seen.wait(10)
        connection.send(b"1\r\ny\r\n0\r\nX-Sum: 1\r\n\r\n")

    seen = threading.Event()
    upstream.script = in_turn(script, reply(OK))
    core = Core(SECOND)
    with Listener(upstream, core) as listener, listener.connect() as client, listener.connect() as other:
        client.send(update())
        assert held.wait(10)
        assert other.ask(GET).status == 200  # shows that the octets sent before have been read
        seen.set()
        response = client.read_response()
        assert (response.body, response.trailers) == (b"x" * LIMIT + b"y", [(b"X-Sum", b"1")])
        assert client.ask(GET).status == 200
    assert core.held_responses == []


@pytest.mark.parametrize("length", [b"%d" % (LIMIT + 1), b"00%d" % (LIMIT + 1)])
def test_length_over_the_limit(upstream: Upstream, length: bytes) -> None:
    """A response whose Content-Length is over the limit for held responses is relayed at once."""
    seen = threading.Event()
    upstream.script = reply(b"HTTP/1.1 403 A\r\nContent-Length: %b\r\n\r\n" % length, seen, b"x" * (LIMIT + 1))
    core = Core(SECOND)
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        with contextlib.ExitStack() as stack:
            stack.callback(seen.set)
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 403 A\r\n")
        assert client.read_exactly(LIMIT + 1) == b"x" * (LIMIT + 1)
        assert client.ask(GET).status == 403
    assert core.held_responses == []


def test_interim_answers(upstream: Upstream) -> None:
    """Interim responses to the first send are relayed at once. Those to resends are not relayed."""
    seen = threading.Event()
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: <%d>\r\n\r\n"
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    upstream.script = in_turn(
        reply(go_on + hints % 1, seen, FORBIDDEN), reply(go_on, hints % 2 + FORBIDDEN), reply(hints % 3, OK)
    )
    core = Core(SECOND, b"{}")
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        assert client.read_head().status == 100
        assert client.read_head().get(b"link") == b"<1>"
        seen.set()
        assert client.read_head().status == 200
    assert bodies_of(upstream) == [BODY, SECOND, b"{}"]


def test_expect_on_a_resend(upstream: Upstream) -> None:
    """A resend keeps the Expect field, and the client gets no 100 (Continue) for it."""
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    upstream.script = in_turn(reply(FORBIDDEN), reply(go_on, OK))
    with Listener(upstream, Core(SECOND)) as listener, listener.connect() as client:
        client.send(update(b"Expect: 100-continue", body=b"")[:-4].replace(b"000", b"%d" % len(BODY)) + b"\r\n\r\n")
        assert client.read_head().status == 100
        client.send(BODY)
        interim = client.read_head()  # upstream's own, before its response to the first send
        assert interim.status == 100
        assert client.read_head().status == 200
    assert bodies_of(upstream) == [BODY, SECOND]
    assert [request.get(b"expect") for request in upstream.requests] == [b"100-continue"] * 2


# no connection for a resend


def test_upstream_is_gone(upstream: Upstream) -> None:
    """If upstream no longer accepts connections, the held response is relayed."""
    upstream.script = reply(FORBIDDEN)
    core = Core(SECOND, gate=asyncio.Event())
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        listener.wait(core.next_body_called)
        upstream.stop()
        listener.open_gate()
        response = client.read_response()
        assert (response.start, response.body) == (b"HTTP/1.1 403 Not For You", REFUSAL)
        assert FIELD in response.fields
        assert client.ask(GET).status == 502  # the connection can still be used
        assert listener.gateway.pool.errors["unreachable"] == 2
    assert [record.status for record in core.records] == [403]
    assert core.resent == 0
    assert bodies_of(upstream) == [BODY]


@dataclass
class Waiting:
    """A resend of ``client`` that waits for the only connection to upstream. A request of ``other`` has it.

    Upstream responds to that request when `free` is set.
    """

    listener: Listener
    core: Core
    client: Client
    other: Client
    free: threading.Event


@contextlib.contextmanager
def waiting_resend(upstream: Upstream, **options: Any) -> Iterator[Waiting]:
    """Let a resend wait for a connection. ``options`` are those of the connections to upstream."""
    free = threading.Event()

    def script(connection: Connection) -> None:
        if connection.read_request().method == b"POST":
            connection.send(OK if len(connection.upstream.requests) > 2 else FORBIDDEN)
        else:
            assert free.wait(10)
            connection.send(OK)

    upstream.script = script
    core = Core(SECOND, gate=asyncio.Event())
    with (
        Listener(upstream, core, max_connections=1, **options) as listener,
        listener.connect() as client,
        listener.connect() as other,
    ):
        client.send(update())
        listener.wait(core.next_body_called)
        other.send(GET)
        upstream.wait_request(2)
        listener.open_gate()
        yield Waiting(listener, core, client, other, free)


def test_no_connection_comes_free(upstream: Upstream) -> None:
    """If no upstream connection becomes free in time, the held response is relayed."""
    with waiting_resend(upstream, connect_timeout=2) as it:
        response = it.client.read_response()
        assert (response.start, response.body) == (b"HTTP/1.1 403 Not For You", REFUSAL)
        it.free.set()
        assert it.other.read_response().status == 200
        assert it.client.ask(GET).status == 200
        assert it.listener.gateway.pool.errors["pool_exhausted"] == 1
    assert it.core.resent == 0
    assert [request.method for request in upstream.requests] == [b"POST", b"GET", b"GET"]


def test_a_connection_comes_free(upstream: Upstream) -> None:
    """A resend waits for an upstream connection like any other request."""
    with waiting_resend(upstream) as it:
        it.free.set()
        assert it.other.read_response().status == 200
        assert it.client.read_response().status == 200
    assert it.core.resent == 1
    assert len(upstream.connections) == 1
    assert bodies_of(upstream) == [BODY, b"", SECOND]


@pytest.mark.parametrize("end", [CLOSE, RESET], ids=["closed", "reset"])
def test_stale_connection(upstream: Upstream, end: Step) -> None:
    """A resend does not use a pooled connection that upstream has closed in the meantime."""
    upstream.script = in_turn(reply(FORBIDDEN, end), reply(OK))
    core = Core(SECOND, gate=asyncio.Event())
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        listener.wait(core.next_body_called)
        upstream.wait_closed()
        listener.open_gate()
        assert client.read_response().status == 200
    assert [(request.connection, request.body) for request in upstream.requests] == [(0, BODY), (1, SECOND)]
    assert core.resent == 1


# a resend fails


@pytest.mark.parametrize(
    ("script", "status", "kind"),
    [
        pytest.param(reply(CLOSE), 502, "broken", id="closed"),
        pytest.param(reply(RESET), 502, "broken", id="reset"),
        pytest.param(reply(RESET, early=True), 502, "broken", id="reset before the content was read"),
        pytest.param(reply(b"HTTP/1.1 200 OK\r\nContent-", CLOSE), 502, "broken", id="closed within the head"),
        pytest.param(reply(b"?\r\n\r\n"), 502, "broken", id="not HTTP"),
        pytest.param(reply(WAIT_CLOSED), 504, "response_timeout", id="no response"),
    ],
)
@pytest.mark.parametrize("pooled", [True, False], ids=["on the same connection", "on a new one"])
def test_resend_fails(upstream: Upstream, script: Script, status: int, kind: str, pooled: bool) -> None:
    """If a resend fails once it was sent, the client gets the error. It may have taken effect, so it is not retried."""
    first = FORBIDDEN if pooled else FORBIDDEN.replace(b"X-Case", b"Connection: close\r\nX-Case")
    upstream.script = in_turn(reply(first), script, reply(OK))
    core = Core(SECOND)
    with Listener(upstream, core, response_timeout=2) as listener, listener.connect() as client:
        response = client.ask(update())
        assert response.status == status
        assert b'"type": "%b"' % kind.encode() in response.body
        assert FIELD in response.fields
        assert listener.gateway.pool.errors[kind] == 1
        assert client.ask(GET).status == 200
    assert [request.method for request in upstream.requests] == [b"POST", b"POST", b"GET"]
    assert [record.status for record in core.records] == [status]


def test_response_to_a_resend_breaks_off(upstream: Upstream) -> None:
    """If the second response breaks off, the client gets the part received, then a reset, and nothing of the first."""
    upstream.script = in_turn(reply(FORBIDDEN), reply(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", CLOSE))
    core = Core(SECOND)
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        with pytest.raises(Cut) as cut:
            client.read_to_end()
        assert cut.value.reset
        assert cut.value.got.startswith(b"HTTP/1.1 200 OK\r\n")
        assert cut.value.got.endswith(b"\r\n\r\nhalf")
        listener.wait(core.ended)
    assert [record.status for record in core.records] == [200]


# the client disconnects; a half-close counts as that


def assert_gone(listener: Listener, upstream: Upstream, bodies: list[bytes]) -> None:
    """Assert that the request has ended without a response, and that upstream got ``bodies`` and nothing else."""
    core, gateway = listener.core, listener.gateway
    listener.wait(core.ended)
    assert core.collected == 0
    assert [record.status for record in core.records] == [None]
    assert gateway.statuses == [CLIENT_LEFT]
    assert gateway.counters.in_flight == 0
    upstream.script = reply(OK)
    with listener.connect() as other:
        assert other.ask(GET).status == 200
    assert bodies_of(upstream) == [*bodies, b""]
    assert gateway.pool.open == gateway.pool.idle


@pytest.mark.parametrize("leave", [Client.close, Client.reset, Client.half_close])
def test_client_leaves_while_the_answer_is_held(upstream: Upstream, leave: Any) -> None:
    """If the client disconnects before a held response is complete, the upstream connection is closed."""
    came = threading.Event()
    part = b"HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\nhalf"

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(part)
        came.set()
        assert connection.closed()

    upstream.script = script
    with Listener(upstream, Core(SECOND)) as listener, listener.connect() as client:
        client.send(update())
        assert came.wait(10)
        leave(client)
        upstream.wait_closed()
        assert_gone(listener, upstream, [BODY])


@pytest.mark.parametrize("leave", [Client.close, Client.reset, Client.half_close])
def test_client_leaves_while_the_core_decides(upstream: Upstream, leave: Any) -> None:
    """If the client disconnects during `next_body`, that is cancelled, and nothing is resent."""
    upstream.script = in_turn(reply(FORBIDDEN), reply(OK))
    core = Core(SECOND, gate=asyncio.Event())
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        listener.wait(core.next_body_called)
        leave(client)
        assert_gone(listener, upstream, [BODY])
        assert core.cancelled


def test_client_leaves_as_the_core_returns(upstream: Upstream) -> None:
    """If the client disconnects just before `next_body` returns, its result is ignored."""
    upstream.script = in_turn(reply(FORBIDDEN), reply(OK))
    core = Core(SECOND)
    with Listener(upstream, core) as listener, listener.connect() as client:
        core.before_return = listener.gateway.connections.abort
        client.send(update())
        assert client.closed()
        assert_gone(listener, upstream, [BODY])
        assert len(core.held_responses) == 1


def test_client_leaves_during_the_resend(upstream: Upstream) -> None:
    """If the client disconnects after a resend was sent, the upstream connection is closed."""
    upstream.script = in_turn(reply(FORBIDDEN), reply(WAIT_CLOSED))
    core = Core(SECOND, b"{}")
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        upstream.wait_for(lambda: bodies_of(upstream) == [BODY, SECOND])
        client.close()
        upstream.wait_closed()
        assert_gone(listener, upstream, [BODY, SECOND])
    assert core.resent == 1


def test_client_leaves_while_the_resend_waits(upstream: Upstream) -> None:
    """If the client disconnects while a resend waits for an upstream connection, it is not sent."""
    with waiting_resend(upstream) as it:
        it.client.close()
        it.listener.wait(it.core.ended)
        assert (it.core.collected, it.core.resent) == (0, 0)
        it.free.set()
        assert it.other.read_response().status == 200
        assert it.other.ask(GET).status == 200
    assert bodies_of(upstream) == [BODY, b"", b""]
    assert it.listener.gateway.statuses == [CLIENT_LEFT, 200, 200]


# drain


@pytest.mark.parametrize(
    ("bodies", "status", "body"),
    [pytest.param((SECOND,), 200, b"ok", id="sent again"), pytest.param((None,), 403, REFUSAL, id="relayed")],
)
def test_drain_while_held(upstream: Upstream, bodies: tuple[bytes | None], status: int, body: bytes) -> None:
    """A drain waits for a request whose response is held back. The final response has ``Connection: close``."""
    upstream.script = in_turn(reply(FORBIDDEN), reply(OK))
    core = Core(*bodies, gate=asyncio.Event())
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update())
        listener.wait(core.next_body_called)
        listener.drain()
        listener.open_gate()
        response = client.read_response()
        assert (response.status, response.body, response.get(b"connection")) == (status, body, b"close")
        assert client.closed()


def test_drain_during_the_resend(upstream: Upstream) -> None:
    """A drain waits for the response to a resend, which has ``Connection: close``."""
    drained = threading.Event()
    upstream.script = in_turn(reply(FORBIDDEN), reply(drained, OK))
    with Listener(upstream, Core(SECOND)) as listener, listener.connect() as client:
        client.send(update())
        upstream.wait_request(2)
        listener.drain()
        drained.set()
        response = client.read_response()
        assert (response.status, response.get(b"connection")) == (200, b"close")
        assert client.closed()


# defects of a core


def reported(listener: Listener, error: Exception) -> None:
    """Assert that the event loop has reported ``error`` once, and nothing else."""
    (context,) = listener.failures
    assert context["exception"] is error
    assert context["message"]
    listener.failures.clear()


def test_edit_fails(upstream: Upstream) -> None:
    """If `edit` raises an exception, the request is forwarded unchanged, and the event loop reports the failure."""
    error = LookupError("a defect")
    with Listener(upstream, Core(edited=error)) as listener, listener.connect() as client:
        assert client.ask(update()).body == b"ok"
        assert client.ask(GET).body == b"ok"
        reported(listener, error)
    assert bodies_of(upstream) == [BODY, b""]
    assert upstream.requests[0].get(b"content-length") == b"00%d" % len(BODY)


@pytest.mark.parametrize("sends", [1, 2])
def test_next_body_fails(upstream: Upstream, sends: int) -> None:
    """If `next_body` raises an exception, the held response is relayed, and the event loop reports the failure."""
    upstream.script = in_turn(*[reply(FORBIDDEN)] * sends, reply(OK))
    error = LookupError("a defect")
    core = Core(*[SECOND] * (sends - 1), error)
    with Listener(upstream, core) as listener, listener.connect() as client:
        response = client.ask(update())
        assert (response.start, response.body) == (b"HTTP/1.1 403 Not For You", REFUSAL)
        assert FIELD in response.fields
        assert client.ask(GET).body == b"ok"
        reported(listener, error)
    assert bodies_of(upstream) == [BODY, *[SECOND] * (sends - 1), b""]


# kinds of requests


@pytest.mark.parametrize(
    ("bodies", "status", "body"),
    [pytest.param((SECOND,), 200, b"second", id="sent again"), pytest.param((None,), 403, b"first", id="relayed")],
)
def test_http_1_0(upstream: Upstream, bodies: tuple[bytes | None], status: int, body: bytes) -> None:
    """An HTTP/1.0 client gets a response without chunks and interim responses, which ends with the connection."""
    answer = b"HTTP/1.1 %d It Is So\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n"
    upstream.script = in_turn(
        reply(answer % (403, chunked(b"first"))),
        reply(b"HTTP/1.1 103 Early Hints\r\n\r\n", answer % (200, chunked(b"second"))),
    )
    with Listener(upstream, Core(*bodies)) as listener, listener.connect() as client:
        client.send(update().replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        response = client.read_response()
        assert (response.status, response.framing, response.body) == (status, "close", body)
        assert (response.get(b"connection"), response.complete) == (b"close", True)
    assert {request.start for request in upstream.requests} == {b"POST /key/update?a=%41& HTTP/1.1"}


def test_chunked_request(upstream: Upstream) -> None:
    """A chunked request is chunked in each resend too, and has no Content-Length."""
    upstream.script = in_turn(reply(FORBIDDEN), reply(FORBIDDEN), reply(OK))
    core = Core(SECOND, b"")
    head = b"POST /key/update HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Listener(upstream, core) as listener, listener.connect() as client:
        response = client.ask(head + chunked(BODY[:5]) + chunked(BODY[5:]) + b"0\r\n\r\n")
        assert (response.status, response.body) == (200, b"ok")
    assert bodies_of(upstream) == [BODY, SECOND, b""]
    assert [request.framing for request in upstream.requests] == ["chunked"] * 3
    assert not any(request.all(b"content-length") for request in upstream.requests)
    assert len({request.raw_head for request in upstream.requests}) == 1


@pytest.mark.parametrize("body", [SECOND, None], ids=["sent again", "relayed"])
def test_pipelined_request_behind(upstream: Upstream, body: bytes | None) -> None:
    """A pipelined request waits for the final response to the request before it, and is answered after that."""
    upstream.script = in_turn(reply(FORBIDDEN), *[reply(OK)] * (body is not None), reply(FORBIDDEN), reply(OK))
    core = Core(body, SECOND, gate=asyncio.Event())
    with Listener(upstream, core) as listener, listener.connect() as client:
        client.send(update() + update() + GET)
        listener.wait(core.next_body_called)
        assert len(upstream.requests) == 1
        listener.open_gate()
        first = 403 if body is None else 200
        assert [client.read_response().status for _ in range(3)] == [first, 200, 200]
    again = [] if body is None else [body]
    assert bodies_of(upstream) == [BODY, *again, BODY, SECOND, b""]
    assert [record.status for record in core.records] == [first, 200]


@pytest.mark.parametrize("body", [SECOND, None], ids=["sent again", "relayed"])
def test_connection_close(upstream: Upstream, body: bytes | None) -> None:
    """If the client asks for it, its connection is closed after the final response, not before."""
    upstream.script = in_turn(reply(FORBIDDEN), reply(OK))
    with Listener(upstream, Core(body)) as listener, listener.connect() as client:
        response = client.ask(update(b"Connection: close"))
        assert (response.status, response.get(b"connection")) == (200 if body else 403, b"close")
        assert client.closed()


def test_pieces_of_any_size(upstream: Upstream) -> None:
    """Neither the request nor the response has to arrive in one piece."""

    def script(connection: Connection) -> None:
        connection.read_request()
        for byte in FORBIDDEN if len(upstream.requests) == 1 else OK:
            connection.send(bytes([byte]))

    upstream.script = script
    core = Core(SECOND)
    with Listener(upstream, core) as listener, listener.connect() as client:
        request = update()
        assert client.ask(*[request[i : i + 1] for i in range(len(request))]).body == b"ok"
    assert bodies_of(upstream) == [BODY, SECOND]
    assert core.held_responses == [(403, REFUSAL)]


def test_body_over_the_limit(upstream: Upstream) -> None:
    """A body over the limit is sent once, and the response to it is relayed."""
    upstream.script = reply(FORBIDDEN)
    core = Core(holds=(), max_body=10)
    with Listener(upstream, core) as listener, listener.connect() as client:
        response = client.ask(update())
        assert (response.status, response.body) == (403, REFUSAL)
        assert response.get(b"x-litellm-sanitizer") == b'unreadable; reason="too_large"'
    assert bodies_of(upstream) == [BODY]


def test_slow_reader_of_the_answer_before(upstream: Upstream) -> None:
    """A held response is relayed in order if the client has not yet read the response before it."""
    size = 3_000_000
    upstream.script = in_turn(
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size), reply(FORBIDDEN), reply(OK)
    )
    core = Core(None)
    with Listener(upstream, core) as listener, Client(listener.address, receive_buffer=8192) as client:
        client.send(GET + update() + GET)
        responses = [client.read_response() for _ in range(3)]
        assert [(each.status, len(each.body)) for each in responses] == [(200, size), (403, len(REFUSAL)), (200, 2)]

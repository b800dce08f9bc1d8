"""An exchange without a client connection: when a request is sent once more, how it ends, and which calls it makes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from sanitizer.errors import BadRequest
from sanitizer.http1.bodies import Framing, Length
from tests.support.recorder import ANSWERED, OK, Recorder, World
from tests.support.virtual import FakeTransport, VirtualLoop, virtual_loop

RESPONSE_TIMEOUT = 20.0
HELD = 64 * 1024
BROKEN = ("error", "broken")


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    with virtual_loop() as loop:
        yield loop


@pytest.fixture
def world(loop: VirtualLoop) -> World:
    return World(loop)


# A connection that is lost


@dataclass(frozen=True)
class Loss:
    """A request whose connection is lost, and whether it is then sent on another."""

    method: bytes
    connection: Literal["pooled", "unused", "new"]
    """A pooled connection has served an exchange before; an unused one was in the pool too, but has not."""
    sent: bool
    """Whether any of the request had been written before the loss."""
    again: bool
    """Whether the request is sent once more."""
    body: int = 0
    """Size of the content."""
    answer: bytes = b""
    """The part of the response that was received before the loss."""


LOSSES = {
    # nothing was sent: any request can be sent on another connection
    "GET, pooled, not sent": Loss(b"GET", "pooled", sent=False, again=True),
    "POST, pooled, not sent": Loss(b"POST", "pooled", sent=False, again=True),
    "GET, new, not sent": Loss(b"GET", "new", sent=False, again=True),
    "POST, new, not sent": Loss(b"POST", "new", sent=False, again=True),
    "POST with content, pooled, not sent": Loss(b"POST", "pooled", sent=False, again=True, body=100_000),
    # sent on an idle connection, which upstream may just have closed
    "GET, pooled, sent": Loss(b"GET", "pooled", sent=True, again=True),
    "HEAD, pooled, sent": Loss(b"HEAD", "pooled", sent=True, again=True),
    "OPTIONS, pooled, sent": Loss(b"OPTIONS", "pooled", sent=True, again=True),
    "TRACE, pooled, sent": Loss(b"TRACE", "pooled", sent=True, again=True),
    "PUT, pooled, sent": Loss(b"PUT", "pooled", sent=True, again=True),
    "DELETE, pooled, sent": Loss(b"DELETE", "pooled", sent=True, again=True),
    "POST, pooled, sent": Loss(b"POST", "pooled", sent=True, again=False),
    "PATCH, pooled, sent": Loss(b"PATCH", "pooled", sent=True, again=False),
    "unknown method, pooled, sent": Loss(b"BREW", "pooled", sent=True, again=False),
    "PUT with content that is kept for a retry": Loss(b"PUT", "pooled", sent=True, again=True, body=HELD - 100),
    "PUT with content too large to be kept for a retry": Loss(b"PUT", "pooled", sent=True, again=False, body=HELD),
    "POST with content, pooled, sent": Loss(b"POST", "pooled", sent=True, again=False, body=10),
    # the same holds for a pooled connection that was never used
    "POST, unused, not sent": Loss(b"POST", "unused", sent=False, again=True),
    "GET, unused, sent": Loss(b"GET", "unused", sent=True, again=True),
    "POST, unused, sent": Loss(b"POST", "unused", sent=True, again=False),
    # upstream had begun to respond
    "GET, pooled, one octet of the response": Loss(b"GET", "pooled", sent=True, again=False, answer=b"H"),
    "GET, pooled, an interim response": Loss(
        b"GET", "pooled", sent=True, again=False, answer=b"HTTP/1.1 103 Early Hints\r\n\r\n"
    ),
    "GET, pooled, the response head": Loss(b"GET", "pooled", sent=True, again=False, answer=OK[:-2]),
    # a new connection cannot have been closed because it was idle
    "GET, new, sent": Loss(b"GET", "new", sent=True, again=False),
    "PUT with content, new, sent": Loss(b"PUT", "new", sent=True, again=False, body=10),
    "POST, new, sent": Loss(b"POST", "new", sent=True, again=False),
    "GET, new, one octet of the response": Loss(b"GET", "new", sent=True, again=False, answer=b"H"),
}


def lose(world: World, loss: Loss) -> tuple[Recorder, FakeTransport]:
    """Send a request and lose its connection. Returns the client, and the transport of the lost connection."""
    loop = world.loop
    recorder = world.make(loss.method, loss.body)
    if loss.connection != "new":
        transport = world.idle_connection() if loss.connection == "pooled" else world.unused_connection()
        if not loss.sent:
            transport.socket.make_readable()  # upstream has closed it, and the event loop has not read that yet
        loop.act(recorder.exchange.start)
    elif loss.sent:
        loop.act(recorder.exchange.start)
        loop.settle()
        transport = world.accept()
    else:
        world.run()  # while another is in progress, a request is written at the end of the event loop iteration
        loop.act(recorder.exchange.start)
        loop.settle()
        attempt = loop.attempts[0]
        attempt.outcome.set_result(None)
        while attempt.transport is None:
            loop.run_once()
        transport = attempt.transport
    if loss.body:
        loop.act(recorder.exchange.send, b"b" * loss.body)
    if loss.sent:
        assert transport.written == recorder.octets + b"b" * loss.body
        if loss.answer:
            world.answer(transport, loss.answer)
    else:
        assert transport.written == b""
    if loss.sent or loss.connection == "new":
        transport.reset()
    loop.settle()
    assert transport.lost
    return recorder, transport


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_lost(world: World, loss: Loss) -> None:
    """A request is sent once more if it cannot have taken effect, or if it is idempotent and a copy of it is kept."""
    recorder, _ = lose(world, loss)
    assert len(world.loop.attempts) == loss.again
    errors = [call for call in recorder.calls if call[0] == "error"]
    assert errors == ([] if loss.again else [BROKEN])
    assert recorder.exchange.done != loss.again
    assert world.pool.errors["broken"] == (not loss.again)
    if loss.again:
        transport = world.accept()
        assert transport.written == recorder.octets + b"b" * loss.body
        world.answer(transport)
        assert recorder.calls[:1] == ANSWERED[:1]
        assert sum(call[0] == "content" and call[2] for call in recorder.calls) == 1
        assert world.pool.errors["broken"] == 0


@pytest.mark.parametrize(
    "loss", [loss for loss in LOSSES.values() if loss.again], ids=[name for name, loss in LOSSES.items() if loss.again]
)
def test_lost_again(world: World, loss: Loss) -> None:
    """A request is not sent a third time: if the second connection is lost too, the exchange fails."""
    recorder, _ = lose(world, loss)
    second = world.accept()
    assert second.written == recorder.octets + b"b" * loss.body
    second.reset()
    world.loop.settle()
    assert recorder.calls == [BROKEN]
    assert world.loop.attempts == []


def test_lost_again_on_a_pooled_connection(loop: VirtualLoop) -> None:
    """A request is not sent a third time, even if its second connection comes from the pool."""
    world = World(loop, max_connections=1)
    first = world.idle_connection()
    recorder = world.start()
    other = world.start()
    first.reset()
    loop.settle()
    second = world.accept()
    assert second.written == other.octets  # it has waited longer
    world.answer(second)
    assert second.written == other.octets + recorder.octets
    second.reset()
    loop.settle()
    assert recorder.calls == [BROKEN]
    assert loop.attempts == []


def test_paused_when_the_answer_ends(world: World) -> None:
    """If reading was paused when the response ended, the connection is read again once it is in the pool."""
    recorder, transport = world.run()
    world.answer(transport, OK[:-2])
    world.loop.act(recorder.exchange.pause_reading)
    assert not transport.reading
    world.loop.act(transport.protocol.data_received, OK[-2:])  # read before the pause
    assert recorder.calls[-1] == ("content", b"ok", True)
    assert transport.reading
    assert world.pool.idle == 1


def test_lost_while_its_content_comes(world: World) -> None:
    """A request that is sent once more has the content received before the loss, and the content received later."""
    first = world.idle_connection()
    recorder = world.start(b"PUT", 9)
    world.send(recorder, b"one")
    assert first.written == recorder.octets + b"one"
    first.reset()
    world.loop.settle()
    world.send(recorder, b"two")
    second = world.accept()
    assert second.written == recorder.octets + b"onetwo"
    world.send(recorder, b"six")
    assert second.written == recorder.octets + b"onetwosix"
    world.answer(second)
    assert recorder.calls == ANSWERED
    assert world.pool.idle == 1


def test_content_before_the_retry(world: World) -> None:
    """Content that is received before the head is written on the second connection is sent after the head."""
    first = world.idle_connection()
    recorder = world.start(b"PUT", 6)
    first.reset()
    world.loop.settle()
    attempt = world.loop.attempts[0]
    world.start()  # while another is in progress, a head is written at the end of the event loop iteration
    world.accept(1)
    attempt.outcome.set_result(None)
    while attempt.transport is None:
        world.loop.run_once()
    world.send(recorder, b"octets")
    assert attempt.transport.written == recorder.octets + b"octets"


def test_all_pooled_connections_are_stale(world: World) -> None:
    """Stale pooled connections are closed without being used, and a POST gets a new connection."""
    recorders = [world.run(), world.run(), world.run()]
    for _, transport in recorders:
        world.answer(transport)
        transport.written.clear()
        transport.socket.make_readable()
    post = world.start(b"POST")
    assert [bytes(transport.written) for _, transport in recorders] == [b"", b"", b""]
    assert all(transport.lost for _, transport in recorders)
    world.answer(world.accept())
    assert post.calls == ANSWERED


# A response before the request is complete


@pytest.mark.parametrize("length", [10, Framing.CHUNKED])
def test_early_response(world: World, length: Length) -> None:
    """A response to an incomplete request is relayed. Then the connection is closed, and no more content is sent."""
    recorder = world.start(b"POST", length)
    transport = world.accept()
    world.send(recorder, b"half")
    written = bytes(transport.written)
    world.answer(transport)
    assert recorder.calls == ANSWERED
    assert transport.lost
    assert world.pool.open == 0
    world.send(recorder, b"the rest", last=True)
    assert transport.written == written
    assert recorder.calls == ANSWERED


def test_request_whole_before_the_response_is(world: World) -> None:
    """A connection can be used again if the request is complete before the response ends."""
    recorder = world.start(b"POST", 4)
    transport = world.accept()
    world.answer(transport, OK[:-1])
    world.send(recorder, b"body")
    world.answer(transport, OK[-1:])
    assert [call for call in recorder.calls if call[0] == "response"] == [("response", 200)]
    assert not transport.closing
    assert world.pool.idle == 1


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        pytest.param(b"HTTP/1.1 413 Content Too Large\r\n\r\nno", ("content", b"", True), id="until close"),
        pytest.param(OK[:-1], BROKEN, id="length"),
        pytest.param(OK[:9], BROKEN, id="part of a head"),
        pytest.param(b"", BROKEN, id="no response"),
    ],
)
@pytest.mark.parametrize("sent", [True, False])
def test_fin_while_upstream_reads_nothing(world: World, answer: bytes, end: tuple[object, ...], *, sent: bool) -> None:
    """Upstream's FIN ends its response at once, even while octets of the request wait to be written."""
    recorder = world.start(b"POST", 300_000)
    transport = world.accept()
    transport.block()
    world.send(recorder, bytes(300_000 if sent else 200_000))
    if answer:
        world.answer(transport, answer)
    transport.feed_eof()
    world.loop.settle()
    assert recorder.calls[-1] == end
    assert recorder.exchange.done
    assert transport.lost
    assert world.pool.open == 0


# The response timeout


@pytest.fixture
def timed(loop: VirtualLoop) -> World:
    return World(loop, response_timeout=RESPONSE_TIMEOUT, connect_timeout=5.0)


def test_response_timeout(timed: World) -> None:
    """The response timeout counts from the last byte of the request that was sent."""
    recorder = timed.start(b"POST", 3)
    timed.loop.advance(4)
    transport = timed.accept()
    for byte in (b"1", b"2", b"3"):
        timed.loop.advance(RESPONSE_TIMEOUT - 1)
        timed.send(recorder, byte)
    timed.loop.advance(RESPONSE_TIMEOUT - 1)
    assert recorder.calls == []
    timed.loop.advance(1)
    assert recorder.calls == [("error", "response_timeout")]
    assert transport.lost
    assert timed.pool.errors["response_timeout"] == 1
    timed.loop.advance(1000)
    assert recorder.calls == [("error", "response_timeout")]


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(OK[:10], id="part of a head"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="an interim response"),
    ],
)
def test_response_timeout_before_the_head(timed: World, before: bytes) -> None:
    """The timeout is not extended by anything that arrives before the head of the final response is complete."""
    recorder, transport = timed.run()
    timed.loop.advance(RESPONSE_TIMEOUT - 1)
    if before:
        timed.answer(transport, before)
    timed.loop.advance(1)
    assert recorder.calls[-1] == ("error", "response_timeout")


def test_no_response_timeout_after_the_head(timed: World) -> None:
    """After the response's head, there is no time limit for the rest of the response or of the request."""
    recorder = timed.start(b"POST", 2)
    transport = timed.accept()
    timed.answer(transport, OK[:-2])
    timed.loop.advance(10 * RESPONSE_TIMEOUT)
    timed.send(recorder, b"12")
    timed.loop.advance(10 * RESPONSE_TIMEOUT)
    timed.answer(transport, OK[-2:])
    assert recorder.calls[-1] == ("content", b"ok", True)


def test_response_timeout_of_the_retry(timed: World) -> None:
    """A request that is sent once more gets the whole timeout again, from the time when it is sent."""
    first = timed.idle_connection()
    recorder = timed.start()
    timed.loop.advance(3)
    first.reset()
    timed.loop.settle()
    timed.loop.advance(4)
    second = timed.accept()
    timed.loop.advance(RESPONSE_TIMEOUT - 1)
    assert recorder.calls == []
    timed.loop.advance(1)
    assert recorder.calls == [("error", "response_timeout")]
    assert second.lost


# Content that does not fit its length


CONTENTS = {
    "complete, in one piece": ([(b"1234", True)], True),
    "complete, without a last piece": ([(b"1234", False)], True),
    "complete, in pieces": ([(b"12", False), (b"34", False), (b"", True)], True),
    "too long, in one piece": ([(b"12345", True)], False),
    "too long, in pieces": ([(b"123", False), (b"45", False)], False),
    "too short": ([(b"123", False), (b"", True)], False),
    "no content": ([(b"", True)], False),
    "complete, with more after the last piece": ([(b"1234", True), (b"5", False)], True),
}


@pytest.mark.parametrize(("pieces", "fits"), CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "waiting"])
def test_content_length(world: World, pieces: list[tuple[bytes, bool]], fits: bool, connected: bool) -> None:
    """No more content is sent than the head declares, and content of another length raises `BadRequest`."""
    recorder = world.start(b"POST", 4)
    transport = world.accept() if connected else None
    for data, last in pieces[:-1]:
        world.send(recorder, data, last=last)
    with contextlib.nullcontext() if fits else pytest.raises(BadRequest):
        world.send(recorder, pieces[-1][0], last=pieces[-1][1])
    if transport is None:
        transport = world.accept()
    assert recorder.calls == []
    body = bytes(transport.written).removeprefix(recorder.octets)
    if fits:
        assert body == b"1234"
        assert recorder.exchange.request_complete
    else:
        assert len(body) < 4


def test_chunks(world: World) -> None:
    """Content of unknown length is sent in chunks, without trailers."""
    recorder = world.start(b"POST", Framing.CHUNKED)
    transport = world.accept()
    world.send(recorder, b"a" * 16)
    world.send(recorder, b"")
    world.send(recorder, b"b", last=True)
    world.send(recorder, b"more", last=True)
    assert bytes(transport.written).removeprefix(recorder.octets) == (
        b"10\r\n" + b"a" * 16 + b"\r\n" + b"1\r\nb\r\n0\r\n\r\n"
    )


# Cancelling


def _before_start(world: World) -> Recorder:
    return world.make()


def _connecting(world: World) -> Recorder:
    return world.start()


def _waiting_for_its_turn(world: World) -> Recorder:
    world.run()
    world.run()
    return world.start()


def _to_be_written(world: World) -> Recorder:
    world.run()
    recorder = world.start()
    attempt = world.loop.attempts[0]
    attempt.outcome.set_result(None)
    while attempt.transport is None:
        world.loop.run_once()
    return recorder


def _at_work(world: World) -> Recorder:
    return world.run()[0]


def _sending(world: World) -> Recorder:
    recorder = world.start(b"POST", 100)
    world.accept()
    world.send(recorder, b"some")
    return recorder


def _answering(octets: bytes) -> Callable[[World], Recorder]:
    def answer(world: World) -> Recorder:
        recorder, transport = world.run()
        world.answer(transport, octets)
        return recorder

    return answer


def _to_be_sent_once_more(world: World) -> Recorder:
    recorder, _ = lose(world, LOSSES["GET, pooled, sent"])
    return recorder


def _stale(world: World) -> Recorder:
    transport = world.idle_connection()
    transport.socket.make_readable()
    recorder = world.make()
    world.loop.act(recorder.exchange.start)  # stale: the exchange starts again in the next iteration
    assert transport.closing
    return recorder


POINTS: dict[str, Callable[[World], Recorder]] = {
    "before it starts": _before_start,
    "while its connection is opened": _connecting,
    "while it waits for a connection": _waiting_for_its_turn,
    "before its head is written": _to_be_written,
    "before the response": _at_work,
    "while its content is sent": _sending,
    "after an interim response": _answering(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "after part of the response head": _answering(OK[:9]),
    "after the response head": _answering(OK[:-2]),
    "after part of the response content": _answering(OK[:-1]),
    "before it is sent again": _to_be_sent_once_more,
    "after its connection was found stale": _stale,
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_cancel(loop: VirtualLoop, point: Callable[[World], Recorder]) -> None:
    """After `cancel`, the exchange makes no call and sends nothing, its connection is closed, and others proceed."""
    world = World(loop, max_connections=2, response_timeout=RESPONSE_TIMEOUT)
    recorder = point(world)
    calls = list(recorder.calls)
    connection = recorder.exchange.connection
    before = {id(transport): bytes(transport.written) for transport in loop.transports}
    loop.act(recorder.exchange.cancel)
    loop.settle()
    assert connection is None or connection.transport.is_closing()
    loop.act(recorder.exchange.start)
    loop.act(recorder.exchange.send, b"more")
    loop.act(recorder.exchange.cancel)
    for attempt in list(loop.attempts):
        attempt.accept()
    assert {id(transport): bytes(transport.written) for transport in loop.transports} == before | {
        id(transport): b"" for transport in loop.transports if id(transport) not in before
    }
    loop.advance(2 * RESPONSE_TIMEOUT)
    assert recorder.calls == calls
    assert recorder.exchange.done
    for transport in loop.transports:
        if not transport.closing:
            transport.reset()
    loop.settle()
    other, transport = world.run()
    world.answer(transport)
    assert other.calls == ANSWERED


def test_cancel_after_the_end(world: World) -> None:
    """Cancelling an exchange that has ended does not close its connection, which is in the pool."""
    recorder, transport = world.run()
    world.answer(transport)
    world.loop.act(recorder.exchange.cancel)
    assert not transport.closing
    assert world.pool.idle == 1
    assert recorder.calls == ANSWERED


# The calls


@dataclass(frozen=True)
class Response:
    """A response, and the content in it. ``needs_end``: it ends with the connection."""

    octets: bytes
    content: bytes
    interim: int = 0
    needs_end: bool = False


RESPONSES = {
    "length": Response(OK, b"ok"),
    "no content": Response(b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "length 0": Response(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "chunked": Response(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nX: y\r\n\r\n", b"ok"
    ),
    "until close": Response(b"HTTP/1.1 200 OK\r\n\r\nok", b"ok", needs_end=True),
    "interim responses": Response(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK, b"ok", 2),
}


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_hooks(world: World, response: Response) -> None:
    """A response cut in two anywhere is reported as interim responses, one final response, its content and one end."""
    for cut in range(1, len(response.octets)):
        recorder, transport = world.run()
        world.answer(transport, response.octets[:cut])
        world.answer(transport, response.octets[cut:])
        if response.needs_end:
            assert not recorder.exchange.done
            transport.feed_eof()
            world.loop.settle()
        kinds = [call[0] for call in recorder.calls]
        assert kinds[: response.interim + 1] == ["interim"] * response.interim + ["response"]
        content = recorder.calls[response.interim + 1 :]
        assert content
        assert {call[0] for call in content} == {"content"}
        assert [call[2] for call in content] == [False] * (len(content) - 1) + [True]
        assert b"".join(call[1] for call in content) == response.content
        assert recorder.exchange.done
        transport.reset()
        world.loop.settle()
        assert len(recorder.calls) == len(kinds)


@pytest.mark.parametrize("how", ["eof", "reset"])
@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_hooks_of_a_broken_response(world: World, response: Response, how: str) -> None:
    """A response that breaks off anywhere is reported as one error, unless a FIN is its regular end."""
    for cut in range(len(response.octets)):
        recorder, transport = world.run(b"POST")
        if cut:
            world.answer(transport, response.octets[:cut])
        if how == "eof":
            transport.feed_eof()
        else:
            transport.reset()
        world.loop.settle()
        ends = [call for call in recorder.calls if call[0] == "error" or (call[0] == "content" and call[2])]
        head_has_come = response.octets[:cut].endswith(b"\r\n\r\n") or ("response", 200) in recorder.calls
        if response.needs_end and how == "eof" and head_has_come:
            assert ends == [("content", b"", True)]
        else:
            assert ends == [BROKEN]
        assert recorder.calls[-1:] == ends
        assert recorder.exchange.done


@pytest.mark.parametrize("octets", [b"SSH-2.0-OpenSSH_9.9\r\n\r\n", b"\x00" * 40, b"HTTP/1.1 20 OK\r\n\r\n"])
def test_not_http(world: World, octets: bytes) -> None:
    """Octets that are not HTTP are reported as one error, and the connection is closed."""
    recorder, transport = world.run()
    world.answer(transport, octets)
    assert recorder.calls == [BROKEN]
    assert transport.lost


def test_seconds(world: World) -> None:
    """The time to the head of a response is observed once per response, and never for a request that fails."""
    for observed in (1, 2):
        _, transport = world.run()
        world.answer(transport, b"HTTP/1.1 103 Early Hints\r\n\r\n")
        world.answer(transport)
        assert sum(world.pool.seconds.counts) == observed
        transport.reset()
        world.loop.settle()
    world.run()[1].reset()
    world.loop.settle()
    assert sum(world.pool.seconds.counts) == 2


@pytest.mark.parametrize("beyond", [0, 1])
def test_largest_head(world: World, beyond: int) -> None:
    """A response head of the largest allowed size is accepted. One that is an octet longer is an error."""
    recorder, transport = world.run()
    start = b"HTTP/1.1 204 No Content\r\nX: "
    world.answer(transport, start + b"x" * (256 * 1024 - len(start) - 4 + beyond) + b"\r\n\r\n")
    assert recorder.calls == ([BROKEN] if beyond else [("response", 204), ("content", b"", True)])


def test_unblocked(world: World) -> None:
    """`resume` is called when the request has been written, and when upstream can be written to again."""
    recorder = world.start(b"POST", 10)
    assert recorder.exchange.blocked
    transport = world.accept()
    assert not recorder.exchange.blocked
    assert recorder.unblocked == 1
    transport.block()
    assert recorder.exchange.blocked
    transport.unblock()
    assert not recorder.exchange.blocked
    assert recorder.unblocked == 2

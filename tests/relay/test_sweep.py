"""The stall sweep over client and upstream connections: which peers are disconnected and when, and which are not.

`test_stalls` tests the same with real sockets, in real time and therefore in less detail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from sanitizer.relay.stalls import StallSweep
from tests.support.cores import BODY, REFUSAL, Core
from tests.support.fake_gateway import FakeGateway, make_connection
from tests.support.virtual import FakeTransport, VirtualLoop, virtual_loop

TIMEOUT = 60.0
SWEEP = TIMEOUT / 4
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
UPDATE = b"POST /key/update HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HELD = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL[:-1])


class Scene:
    """A client connection with a stall sweep. Its requests get an upstream connection at once."""

    def __init__(self, loop: VirtualLoop, *, core: Core | None = None, timeout: float | None = TIMEOUT) -> None:
        self.loop = loop
        self.gateway = gateway = loop.act(FakeGateway, interceptor=core)
        loop.act(StallSweep, timeout, lambda: [*gateway.connections, *gateway.pool.watched()])
        self.client = make_connection(gateway, loop)
        self.upstream: FakeTransport

    def send(self, octets: bytes) -> None:
        self.client.feed(octets)
        self.loop.settle()
        for attempt in self.loop.attempts.copy():
            self.upstream = attempt.accept()

    def answer(self, octets: bytes) -> None:
        self.upstream.feed(octets)
        self.loop.settle()

    @property
    def errors(self) -> dict[str, int]:
        """The upstream errors that have been counted, by kind."""
        return {kind: count for kind, count in self.gateway.pool.errors.items() if count}


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    with virtual_loop() as loop:
        yield loop


def assert_cut_in_time(loop: VirtualLoop, is_cut: Callable[[], bool]) -> None:
    """Assert that ``is_cut()`` becomes true between 1 and 1.25 times the timeout from now."""
    loop.advance(TIMEOUT - 1)
    assert not is_cut()
    loop.advance(SWEEP + 1)
    assert is_cut()


# Clients that do not read


@pytest.mark.parametrize(
    "answer", [OK, OK[:-1], OK + b"surplus"], ids=["complete", "incomplete", "complete, with surplus octets"]
)
def test_client_reads_nothing(loop: VirtualLoop, answer: bytes) -> None:
    """A client that reads nothing is reset, and its request, if it is still in progress, is cancelled."""
    scene = Scene(loop)
    scene.send(GET)
    scene.answer(answer)
    scene.client.block()
    assert_cut_in_time(loop, lambda: scene.client.lost)
    assert scene.client.ending == "reset"
    assert scene.gateway.stalls == ["client_not_reading"]
    assert scene.gateway.ended == [(b"GET", b"/", 200)]
    assert scene.gateway.counters.in_flight == 0
    assert (scene.gateway.pool.open, len(scene.gateway.connections)) == (answer == OK, 0)


def test_client_takes_some(loop: VirtualLoop) -> None:
    """A client that reads an octet now and then is not disconnected."""
    scene = Scene(loop)
    scene.send(GET)
    scene.answer(OK[:-1])
    scene.client.block()
    scene.client.unsent = 10
    for _ in range(9):
        loop.advance(TIMEOUT)
        scene.client.unsent -= 1
    assert not scene.client.closing
    assert scene.gateway.stalls == []


# Clients that do not send


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        pytest.param(POST, b"/", id="no content"),
        pytest.param(POST + b"some", b"/", id="part of the content"),
        pytest.param(CHUNKED + b"4\r\nsome\r\n", b"/", id="one chunk"),
        pytest.param(UPDATE + BODY[:-1], b"/key/update", id="part of an intercepted request"),
    ],
)
def test_client_sends_nothing(loop: VirtualLoop, sent: bytes, path: bytes) -> None:
    """A client that sends nothing more of its content gets 408, and the upstream connection is closed."""
    scene = Scene(loop, core=Core())
    scene.send(sent)
    assert_cut_in_time(loop, lambda: bool(scene.client.written))
    assert scene.client.written.startswith(b"HTTP/1.1 408 ")
    assert b'"client_not_sending"' in scene.client.written
    assert scene.client.eof_written
    assert scene.gateway.stalls == ["client_not_sending"]
    assert scene.gateway.ended == [(b"POST", path, 408)]
    assert scene.gateway.counters.in_flight == scene.gateway.counters.refused == 0
    assert scene.gateway.pool.open == 0
    loop.advance(TIMEOUT)
    assert scene.client.ending == "fin"
    assert scene.gateway.stalls == ["client_not_sending"]


def test_client_sends_some(loop: VirtualLoop) -> None:
    """A client that sends an octet now and then has not stalled until it stops."""
    scene = Scene(loop)
    scene.send(POST)
    for _ in range(9):
        loop.advance(TIMEOUT)
        scene.send(b"x")
    assert scene.gateway.stalls == []
    assert scene.client.written == b""
    loop.advance(TIMEOUT + SWEEP)
    assert scene.gateway.stalls == ["client_not_sending"]


def test_client_need_not_send_yet(loop: VirtualLoop) -> None:
    """A client that waits for 100 (Continue) can stall only after it has got one."""
    scene = Scene(loop)
    scene.send(EXPECT)
    loop.advance(10 * TIMEOUT)
    scene.answer(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    loop.advance(10 * TIMEOUT)
    assert scene.gateway.stalls == []
    scene.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert_cut_in_time(loop, lambda: scene.gateway.stalls == ["client_not_sending"])


def test_client_sends_without_having_to(loop: VirtualLoop) -> None:
    """A client stalls if it begins its content without waiting for 100 (Continue), and then stops."""
    scene = Scene(loop)
    scene.send(EXPECT)
    scene.send(b"some")
    assert_cut_in_time(loop, lambda: scene.gateway.stalls == ["client_not_sending"])


@pytest.mark.parametrize("sent", [GET, POST, POST + b"some", UPDATE + BODY])
def test_upstream_is_slow_to_respond(loop: VirtualLoop, sent: bytes) -> None:
    """No client has stalled while it waits for a response, or once an early response has begun. Nor has upstream."""
    scene = Scene(loop, core=Core())
    scene.send(sent)
    if sent.startswith(POST):
        scene.answer(OK[:-2])
    loop.advance(10 * TIMEOUT)
    scene.answer(OK[-2:] if sent.startswith(POST) else OK)
    assert scene.client.written.endswith(b"ok")
    assert scene.gateway.stalls == []
    assert scene.errors == {}


# Upstream does not read


def test_upstream_reads_nothing(loop: VirtualLoop) -> None:
    """If upstream stops reading a request, the client gets 504, and is not itself counted as stalled."""
    scene = Scene(loop)
    scene.send(POST + b"some")
    scene.upstream.block()
    assert_cut_in_time(loop, lambda: bool(scene.client.written))
    assert scene.client.written.startswith(b"HTTP/1.1 504 ")
    assert scene.upstream.lost
    assert scene.errors == {"upstream_not_reading": 1}
    assert scene.gateway.stalls == []


def test_upstream_takes_some(loop: VirtualLoop) -> None:
    """An upstream that keeps reading has not stalled, even if the same number of octets always waits for it."""
    scene = Scene(loop)
    scene.send(POST)
    for _ in range(9):
        scene.send(b"some")
        scene.upstream.block()
        loop.advance(TIMEOUT - 1)
        scene.upstream.unblock()
    assert (scene.errors, scene.gateway.stalls) == ({}, [])


def test_upstream_answers_and_reads_nothing(loop: VirtualLoop) -> None:
    """An upstream that has begun to respond may leave the rest of the request unread."""
    scene = Scene(loop)
    scene.send(POST + b"some")
    scene.upstream.block()
    scene.answer(OK[:-1])
    loop.advance(10 * TIMEOUT)
    assert (scene.errors, scene.gateway.stalls) == ({}, [])
    assert not scene.upstream.closing


# A response that is held back


def test_held_answer_stalls(loop: VirtualLoop) -> None:
    """A held response that stalls is relayed as far as it was received, and then as it is received."""
    scene = Scene(loop, core=Core())
    scene.send(UPDATE + BODY)
    scene.answer(HELD)
    assert_cut_in_time(loop, lambda: bool(scene.client.written))
    assert scene.client.written.endswith(b"\r\n\r\n" + REFUSAL[:-1])
    loop.advance(10 * TIMEOUT)
    scene.answer(REFUSAL[-1:])
    assert scene.client.written.endswith(REFUSAL)
    assert (scene.errors, scene.gateway.stalls) == ({}, [])
    scene.send(GET)
    scene.answer(OK)
    assert scene.client.written.endswith(OK)


def test_held_answer_goes_on(loop: VirtualLoop) -> None:
    """A response is still held back while an octet arrives now and then."""
    scene = Scene(loop, core=Core())
    scene.send(UPDATE + BODY)
    scene.answer(HELD[:-20])
    for at in range(-20, -1):
        scene.answer(HELD[at : at + 1])
        loop.advance(TIMEOUT)
    assert scene.client.written == b""


# Clients that disconnect while reading from them is paused


@dataclass(frozen=True)
class Paused:
    """A client from which reading is paused, because of the octets it has ``sent``, or because upstream is ``slow``."""

    sent: bytes
    slow: bool = False


@pytest.mark.parametrize("timeout", [TIMEOUT, None])
@pytest.mark.parametrize("leave", ["FIN", "RST"])
@pytest.mark.parametrize(
    "paused",
    [
        pytest.param(Paused(GET + b"x" * 70_000), id="pipelined"),
        pytest.param(Paused(POST + b"some", slow=True), id="upstream is slow"),
    ],
)
def test_client_leaves_unseen(loop: VirtualLoop, paused: Paused, leave: str, timeout: float | None) -> None:
    """The next sweep detects that the client has disconnected, and its request is cancelled."""
    scene = Scene(loop, timeout=timeout)
    scene.send(paused.sent)
    if paused.slow:
        scene.upstream.block()
    assert not scene.client.reading
    if leave == "FIN":
        scene.client.socket.make_half_closed()
    else:
        scene.client.socket.make_reset()
    loop.advance(SWEEP)
    assert scene.client.lost
    assert scene.upstream.lost
    assert scene.gateway.statuses == [0]
    assert (scene.errors, scene.gateway.stalls) == ({}, [])


def test_client_stays(loop: VirtualLoop) -> None:
    """The sweep does not disconnect a client only because reading from it is paused."""
    scene = Scene(loop)
    scene.send(GET + b"x" * 70_000)
    loop.advance(10 * TIMEOUT)
    assert not scene.client.closing
    assert not scene.upstream.closing

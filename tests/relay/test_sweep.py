"""The stall sweep over client connections and upstream's: who is cut after how long, and who is not.

`test_stalls` shows the same on real sockets, in real time and therefore in less detail.
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
    """A client connection whose requests get a connection to upstream at once, swept for stalls."""

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
        """Failures of upstream's that have been counted."""
        return {kind: count for kind, count in self.gateway.pool.errors.items() if count}


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    with virtual_loop() as loop:
        yield loop


def assert_cut_in_time(loop: VirtualLoop, is_cut: Callable[[], bool]) -> None:
    """It is cut between 1 and 1.25 times the timeout from now, a sweep having just been."""
    loop.advance(TIMEOUT - 1)
    assert not is_cut()
    loop.advance(SWEEP + 1)
    assert is_cut()


# Clients that do not read


@pytest.mark.parametrize("answer", [OK, OK[:-1], OK + b"surplus"], ids=["whole", "in part", "whole, and surplus"])
def test_client_takes_nothing(loop: VirtualLoop, answer: bytes) -> None:
    """It is reset, and its request is given up, if there still is one."""
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
    """It is left alone while it takes an octet now and then."""
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
        pytest.param(POST + b"some", b"/", id="some of the content"),
        pytest.param(CHUNKED + b"4\r\nsome\r\n", b"/", id="a chunk"),
        pytest.param(UPDATE + BODY[:-1], b"/key/update", id="some of an intercepted request"),
    ],
)
def test_client_sends_nothing(loop: VirtualLoop, sent: bytes, path: bytes) -> None:
    """It gets 408, and upstream sees the request given up."""
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
    """It is left alone while it sends an octet now and then, and cut when it stops."""
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
    """A client that waits for a 100 is cut when it sends nothing after that, and not before."""
    scene = Scene(loop)
    scene.send(EXPECT)
    loop.advance(10 * TIMEOUT)
    scene.answer(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    loop.advance(10 * TIMEOUT)
    assert scene.gateway.stalls == []
    scene.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert_cut_in_time(loop, lambda: scene.gateway.stalls == ["client_not_sending"])


def test_client_sends_without_having_to(loop: VirtualLoop) -> None:
    """A client that has begun its content without the 100 that it could wait for is to go on."""
    scene = Scene(loop)
    scene.send(EXPECT)
    scene.send(b"some")
    assert_cut_in_time(loop, lambda: scene.gateway.stalls == ["client_not_sending"])


@pytest.mark.parametrize("sent", [GET, POST, POST + b"some", UPDATE + BODY])
def test_upstream_thinks(loop: VirtualLoop, sent: bytes) -> None:
    """A client is not cut while it waits, nor when the answer to its content comes early; and upstream never is."""
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


def test_upstream_takes_nothing(loop: VirtualLoop) -> None:
    """The client gets 504; it is not its fault that it is not read meanwhile."""
    scene = Scene(loop)
    scene.send(POST + b"some")
    scene.upstream.block()
    assert_cut_in_time(loop, lambda: bool(scene.client.written))
    assert scene.client.written.startswith(b"HTTP/1.1 504 ")
    assert scene.upstream.lost
    assert scene.errors == {"upstream_not_reading": 1}
    assert scene.gateway.stalls == []


def test_upstream_takes_some(loop: VirtualLoop) -> None:
    """It is left alone while it takes as much as comes, with always the same size under way."""
    scene = Scene(loop)
    scene.send(POST)
    for _ in range(9):
        scene.send(b"some")
        scene.upstream.block()
        loop.advance(TIMEOUT - 1)
        scene.upstream.unblock()
    assert (scene.errors, scene.gateway.stalls) == ({}, [])


def test_upstream_answers_and_takes_nothing(loop: VirtualLoop) -> None:
    """Once it answers it may leave the rest of the request unread."""
    scene = Scene(loop)
    scene.send(POST + b"some")
    scene.upstream.block()
    scene.answer(OK[:-1])
    loop.advance(10 * TIMEOUT)
    assert (scene.errors, scene.gateway.stalls) == ({}, [])
    assert not scene.upstream.closing


# An answer that is held back


def test_held_answer_stalls(loop: VirtualLoop) -> None:
    """It passes on as far as it has come, and then as it comes; nobody is cut."""
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
    """It is held back while an octet comes now and then."""
    scene = Scene(loop, core=Core())
    scene.send(UPDATE + BODY)
    scene.answer(HELD[:-20])
    for at in range(-20, -1):
        scene.answer(HELD[at : at + 1])
        loop.advance(TIMEOUT)
    assert scene.client.written == b""


# Clients that leave while they are not read


@dataclass(frozen=True)
class Paused:
    """A client that is not read, because of what it has ``sent``, or since upstream is ``slow``."""

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
    """The next sweep sees it, and its request is given up."""
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
    """A client that is not read is not taken for one that has left."""
    scene = Scene(loop)
    scene.send(GET + b"x" * 70_000)
    loop.advance(10 * TIMEOUT)
    assert not scene.client.closing
    assert not scene.upstream.closing

"""The pool alone: which exchange gets which connection, when connections are closed, and which errors are counted."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sanitizer.relay.connection import Connection
from sanitizer.relay.pool import LIFETIME
from tests.support.recorder import ANSWERED, OK, Recorder, World
from tests.support.virtual import FakeSocket, FakeTransport, VirtualLoop, virtual_loop

CONNECT_TIMEOUT = 5.0
KEEPALIVE = 4.0
CLOSING = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    with virtual_loop() as loop:
        yield loop


def make_world(loop: VirtualLoop, **options: Any) -> World:
    return World(loop, **{"connect_timeout": CONNECT_TIMEOUT, "keepalive": KEEPALIVE, **options})


def idle_connections(world: World, number: int) -> list[FakeTransport]:
    """``number`` idle connections in the pool, each idle for a second less than the one before it."""
    transports = [world.run()[1] for _ in range(number)]
    for transport in transports:
        world.answer(transport)
        world.loop.advance(1)
    return transports


def serves(transport: FakeTransport, recorder: Recorder) -> bool:
    """Whether the last request on a connection is that of ``recorder``'s exchange."""
    return transport.written.endswith(recorder.octets)


# Waiting


def test_waiting_order(loop: VirtualLoop) -> None:
    """If all connections are in use, the exchange that has waited longest gets the next one that becomes free."""
    world = make_world(loop, max_connections=2)
    _, one = world.run()
    _, two = world.run()
    waiting = [world.start(method) for method in (b"GET", b"POST", b"GET", b"POST")]
    assert loop.attempts == []
    for transport, recorder in zip((two, one, one, two), waiting, strict=True):
        world.answer(transport)
        assert serves(transport, recorder)
    assert world.pool.open == 2


@pytest.mark.parametrize("how", ["closed by the response", "reset", "cancelled", "broken response"])
def test_a_lost_connection_frees_its_place(loop: VirtualLoop, how: str) -> None:
    """After a connection has ended, a new one is opened for the exchange that has waited longest."""
    world = make_world(loop, max_connections=1)
    first, transport = world.run(b"POST")
    second, third = world.start(), world.start()
    if how == "closed by the response":
        world.answer(transport, CLOSING)
    elif how == "reset":
        transport.reset()
    elif how == "cancelled":
        loop.act(first.exchange.cancel)
    else:
        world.answer(transport, b"no HTTP\r\n\r\n")
    loop.settle()
    assert len(loop.attempts) == 1
    new = world.accept()
    assert serves(new, second)
    world.answer(new)
    assert serves(new, third)


@pytest.mark.parametrize("how", ["refused", "timed out"])
def test_a_failed_attempt_frees_its_place(loop: VirtualLoop, how: str) -> None:
    """A failed connection attempt fails only its own exchange. Another attempt is made for the next exchange."""
    world = make_world(loop, max_connections=1)
    first = world.start()
    loop.advance(1)
    second = world.start()
    if how == "refused":
        loop.attempts[0].refuse(ConnectionRefusedError(111, "Connection refused"))
    else:
        loop.advance(CONNECT_TIMEOUT - 1)
    assert [call[0] for call in first.calls] == ["error"]
    assert second.calls == []
    assert serves(world.accept(), second)


@pytest.mark.parametrize("gone", [{0}, {1}, {0, 1}, {2}])
def test_waiter_that_has_left_is_skipped(loop: VirtualLoop, gone: set[int]) -> None:
    """A connection that becomes free is not given to a cancelled exchange."""
    world = make_world(loop, max_connections=1)
    _, transport = world.run()
    waiting = [world.start() for _ in range(3)]
    for index in gone:
        loop.act(waiting[index].exchange.cancel)
    for index, recorder in enumerate(waiting):
        if index not in gone:
            world.answer(transport)
            assert serves(transport, recorder)
    world.answer(transport)
    assert world.pool.idle == 1
    assert all(serves(transport, recorder) or recorder.exchange.done for recorder in waiting)


def test_waiting_is_limited(loop: VirtualLoop) -> None:
    """An exchange that gets no connection within the connect timeout fails at that time, and no other one does."""
    world = make_world(loop, max_connections=1)
    _, transport = world.run()
    served = world.start()
    loop.advance(2)
    late = world.start()
    loop.advance(2)
    last = world.start()
    world.answer(transport)
    assert serves(transport, served)
    loop.advance(CONNECT_TIMEOUT - 2)
    assert late.calls == [("error", "pool_exhausted")]
    assert last.calls == []
    loop.advance(2)
    assert last.calls == [("error", "pool_exhausted")]
    loop.advance(LIFETIME / 2)
    assert served.calls == []
    assert world.pool.errors["pool_exhausted"] == 2
    world.answer(transport)
    assert served.calls == ANSWERED
    assert world.pool.idle == 1


def test_connecting_counts(loop: VirtualLoop) -> None:
    """Connections that are being opened count towards the limit."""
    world = make_world(loop, max_connections=2)
    for _ in range(3):
        world.start()
    assert (world.pool.open, world.pool.connecting) == (2, 2)
    assert len(loop.attempts) == 2


@pytest.mark.parametrize("waits", [True, False], ids=["an exchange waits", "no exchange waits"])
def test_the_new_connection_is_not_needed(loop: VirtualLoop, waits: bool) -> None:
    """A new connection whose exchange was cancelled is given to a waiting exchange. If there is none, it is idle."""
    world = make_world(loop, max_connections=1)
    gone = world.start()
    waiting = world.start() if waits else None
    loop.act(gone.exchange.cancel)
    transport = world.accept()
    if waiting is not None:
        assert transport.written == waiting.octets
        world.answer(transport)
        assert waiting.calls == ANSWERED
    assert world.pool.idle == 1
    following = world.start()
    assert loop.attempts == []
    assert serves(transport, following)


def test_a_connection_comes_free_before_the_new_one_is_ready(loop: VirtualLoop) -> None:
    """A waiting exchange gets a connection that becomes free. A new one goes to the exchange that it was opened for."""
    world = make_world(loop, max_connections=2)
    _, old = world.run()
    connecting, waiting = world.start(), world.start()
    world.answer(old)
    assert serves(old, waiting)
    new = world.accept()
    assert new.written == connecting.octets
    world.answer(new)
    world.answer(old)
    assert connecting.calls == waiting.calls == ANSWERED
    assert world.pool.idle == world.pool.open == 2


def test_a_connection_is_lost_as_it_is_made(loop: VirtualLoop) -> None:
    """A new connection that is closing already fails its exchange, and does not count towards the limit."""
    world = make_world(loop, max_connections=1)
    recorder = world.start(b"POST")
    attempt = loop.attempts[0]
    attempt.closing = True
    transport = attempt.accept()
    assert transport.written == b""
    assert recorder.calls == [("error", "broken")]
    assert world.pool.open == 0
    world.run()


# Idle connections


def test_the_last_used_is_used_first(loop: VirtualLoop) -> None:
    """The connection that was used last is reused first, so that the others are idle for long enough to be closed."""
    world = make_world(loop, keepalive=100.0)
    transports = idle_connections(world, 3)
    for transport in reversed(transports):
        assert serves(transport, world.start())
    assert loop.attempts == []


def test_sweep(loop: VirtualLoop) -> None:
    """Each connection is closed when it has been idle for ``keepalive`` seconds, and no earlier."""
    world = make_world(loop)
    transports = idle_connections(world, 3)  # idle for 3, 2 and 1 seconds
    for number in range(3):
        loop.advance(0.5)
        assert [transport.lost for transport in transports] == [n < number for n in range(3)]
        loop.advance(0.5)
        assert [transport.lost for transport in transports] == [n <= number for n in range(3)]
    assert (world.pool.open, world.pool.idle) == (0, 0)


def test_sweep_goes_on(loop: VirtualLoop) -> None:
    """A connection that becomes idle after the pool was empty is closed after ``keepalive`` seconds, too."""
    world = make_world(loop)
    for _ in range(3):
        (transport,) = idle_connections(world, 1)
        loop.advance(KEEPALIVE - 1.5)
        assert not transport.closing
        loop.advance(0.5)
        assert transport.lost


def test_sweep_spares_what_is_at_work(loop: VirtualLoop) -> None:
    """A connection in use is not closed as idle, however long the response takes."""
    world = make_world(loop)
    (transport,) = idle_connections(world, 1)
    recorder = world.start()
    loop.advance(10 * KEEPALIVE)
    world.answer(transport)
    assert recorder.calls == ANSWERED
    assert not transport.closing


@pytest.mark.parametrize("keepalive", [0.0, 0.0625])
def test_keepalive_shorter_than_the_sweep(loop: VirtualLoop, keepalive: float) -> None:
    """A connection that has been idle for ``keepalive`` seconds is not reused, even if it has not been closed yet."""
    world = make_world(loop, keepalive=keepalive)
    _, transport = world.run()
    world.answer(transport)
    loop.advance(keepalive)
    assert not transport.closing
    recorder = world.start(b"POST")
    assert transport.lost
    assert serves(world.accept(), recorder)


def _raise_os_error(*_: object) -> None:
    raise OSError("no such option")


def _close(transport: FakeTransport) -> None:
    transport.closing = True  # as it is between `close` and `connection_lost`


def _fill(transport: FakeTransport) -> None:
    transport.socket.make_readable()


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("spoil", [_close, _fill], ids=["closed", "unread octets"])
def test_stale(loop: VirtualLoop, method: bytes, spoil: Any) -> None:
    """An idle connection that is closing, or has octets to read, is not used. Another idle one or a new one is."""
    world = make_world(loop, keepalive=100.0)
    sound, stale = idle_connections(world, 2)
    written = bytes(stale.written)
    spoil(stale)
    recorder = world.start(method)
    assert stale.written == written
    assert serves(sound, recorder)
    spoil(sound)
    second = world.start(method)
    assert serves(world.accept(), second)
    assert recorder.calls == second.calls == []


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_stale_before_its_first_use(loop: VirtualLoop, method: bytes) -> None:
    """An idle connection that has not been used is polled before its first request, too."""
    world = make_world(loop)
    unused = world.unused_connection()
    assert world.pool.idle == 1
    unused.socket.make_readable()
    recorder = world.start(method)
    assert unused.written == b""
    world.answer(world.accept())
    assert recorder.calls == ANSWERED


def test_polled_though_its_options_could_not_be_set(loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is polled even if its socket options could not be set.

    An event loop reports an exception in `connection_made`, and uses the connection nevertheless.
    """
    world = make_world(loop)
    connection = loop.act(Connection, world.pool)
    transport = FakeTransport(loop, connection, peername=None, pollable=True)
    with monkeypatch.context() as context:
        context.setattr(FakeSocket, "setsockopt", _raise_os_error)
        with pytest.raises(OSError, match="option"):
            connection.connection_made(transport)
    connection.expires_at = loop.now + 60
    loop.act(connection.become_idle)
    transport.socket.make_readable()
    recorder = world.start()
    assert transport.written == b""
    assert serves(world.accept(), recorder)


@pytest.mark.parametrize("how", ["eof", "reset", "bytes"])
def test_idle_connection_ends(loop: VirtualLoop, how: str) -> None:
    """An idle connection that upstream ends, or sends octets on, is removed from the pool, which is not an error."""
    world = make_world(loop)
    (transport,) = idle_connections(world, 1)
    if how == "eof":
        transport.feed_eof()
    elif how == "reset":
        transport.reset()
    else:
        transport.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    loop.settle()
    assert transport.lost
    assert (world.pool.open, world.pool.idle) == (0, 0)
    assert world.errors == []
    world.run()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(CLOSING, id="close"),
        pytest.param(OK.replace(b"1.1", b"1.0"), id="HTTP/1.0"),
        pytest.param(OK + b"HTTP/1.1 200 OK\r\n", id="octets after the response"),
    ],
)
def test_not_kept(loop: VirtualLoop, answer: bytes) -> None:
    """A connection that can't be reused after its response is closed."""
    world = make_world(loop)
    recorder, transport = world.run()
    world.answer(transport, answer)
    assert recorder.calls == ANSWERED
    assert transport.lost
    assert world.pool.open == 0


def test_kept_alive_in_http_1_0(loop: VirtualLoop) -> None:
    """A connection to an HTTP/1.0 server is kept if its response has Connection: keep-alive (RFC 9112 section 9.3)."""
    world = make_world(loop)
    _, transport = world.run()
    world.answer(transport, OK.replace(b"1.1", b"1.0").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive, x\r\n\r\n"))
    assert world.pool.idle == 1


# Old connections


def keep_busy(world: World, transport: FakeTransport, seconds: float) -> None:
    """On a busy connection, complete one request per second for ``seconds``, and start the next one each time."""
    for _ in range(int(seconds)):
        world.loop.advance(1)
        world.answer(transport)
        recorder = world.start()
        assert serves(transport, recorder)


def test_renewed_by_age(loop: VirtualLoop) -> None:
    """A busy connection is closed when a response ends after its lifetime, and not before."""
    world = make_world(loop)
    _, transport = world.run(b"POST")
    keep_busy(world, transport, 0.75 * LIFETIME - 1)
    loop.advance(LIFETIME)
    assert not transport.closing, "a response is in progress"
    world.answer(transport)
    assert transport.lost
    assert world.pool.open == 0
    following = world.start()
    assert serves(world.accept(), following)


def test_renewed_while_a_request_waits(loop: VirtualLoop) -> None:
    """A connection is closed after its lifetime even if an exchange waits. That exchange gets a new connection."""
    world = make_world(loop, max_connections=1)
    _, transport = world.run()
    loop.advance(2 * LIFETIME)
    waiting = world.start()
    world.answer(transport)
    assert transport.lost
    new = world.accept()
    assert serves(new, waiting)
    assert world.pool.open == 1


def test_not_all_at_once(loop: VirtualLoop) -> None:
    """Connections that were opened together have different lifetimes, at most a quarter below or above `LIFETIME`."""
    world = make_world(loop)
    ages = [
        connection.expires_at - loop.now
        for _, transport in (world.run() for _ in range(100))
        if isinstance(connection := transport.protocol, Connection)
    ]
    assert len(ages) == 100
    assert 0.75 * LIFETIME <= min(ages) < 0.85 * LIFETIME
    assert 1.15 * LIFETIME < max(ages) <= 1.25 * LIFETIME
    assert len(set(ages)) == 100


# Errors


def _refuse(world: World) -> None:
    world.start()
    world.loop.attempts[0].refuse(ConnectionRefusedError(111, "Connection refused"))


def _no_descriptor(world: World) -> None:
    world.start()
    world.loop.attempts[0].refuse(OSError(24, "Too many open files"))


def _no_descriptor_in_the_system(world: World) -> None:
    world.start()
    world.loop.attempts[0].refuse(OSError(23, "Too many open files in system"))


def _unknown_name(world: World) -> None:
    world.start()
    world.loop.attempts[0].refuse(UnicodeError("label too long"))


def _never_connect(world: World) -> None:
    world.start()
    world.loop.advance(CONNECT_TIMEOUT)


def _never_answer(world: World) -> None:
    world.run()
    world.loop.advance(20)


def _break_off(world: World) -> None:
    _, transport = world.run()
    transport.reset()
    world.loop.settle()


def _wait_in_vain(world: World) -> None:
    world.run()
    world.start()
    world.loop.advance(CONNECT_TIMEOUT)


@pytest.mark.parametrize(
    ("bring_about", "kind", "detail"),
    [
        pytest.param(_refuse, "unreachable", "[Errno 111] Connection refused", id="refused"),
        pytest.param(_unknown_name, "unreachable", "label too long", id="a name that can't be encoded"),
        pytest.param(
            _no_descriptor, "descriptors", "[Errno 24] Too many open files", id="no descriptor in the process"
        ),
        pytest.param(
            _no_descriptor_in_the_system,
            "descriptors",
            "[Errno 23] Too many open files in system",
            id="no descriptor in the system",
        ),
        pytest.param(
            _never_connect, "connect_timeout", "upstream could not be reached in time", id="no connection in time"
        ),
        pytest.param(_never_answer, "response_timeout", "upstream did not answer in time", id="no response in time"),
        pytest.param(
            _break_off, "broken", "upstream closed the connection before its response was complete", id="broken"
        ),
        pytest.param(_wait_in_vain, "pool_exhausted", "all upstream connections are busy; try again", id="all busy"),
    ],
)
def test_errors_are_counted(loop: VirtualLoop, bring_about: Any, kind: str, detail: str) -> None:
    """Each failure is counted once under its kind, and reported once with its details."""
    world = make_world(loop, max_connections=1, response_timeout=20.0)
    bring_about(world)
    assert {each: count for each, count in world.pool.errors.items() if count} == {kind: 1}
    assert world.errors == [(kind, detail)]


def test_an_end_that_nobody_waits_for_is_no_error(loop: VirtualLoop) -> None:
    """A connection attempt that fails after its exchange was cancelled is not reported as an error."""
    world = make_world(loop)
    recorder = world.start()
    loop.act(recorder.exchange.cancel)
    loop.attempts[0].refuse(ConnectionRefusedError(111, "Connection refused"))
    assert recorder.calls == []
    assert world.errors == []
    assert world.pool.open == 0


# Closing


def _busy(world: World) -> list[Recorder]:
    return [world.run(b"POST")[0]]


def _busy_on_a_reused_connection(world: World) -> list[Recorder]:
    world.idle_connection()
    return [world.start()]


def _to_be_written(world: World) -> list[Recorder]:
    busy = world.run(b"POST")[0]
    world.idle_connection()
    recorder = world.make()
    world.loop.act(recorder.exchange.start)  # its write is batched, because of the exchange in progress
    return [busy, recorder]


def _stale(world: World) -> list[Recorder]:
    world.idle_connection().socket.make_readable()
    recorder = world.make()
    world.loop.act(recorder.exchange.start)  # it is detected, so that the exchange starts again later
    return [recorder]


def _to_connect(world: World) -> list[Recorder]:
    recorder = world.make()
    world.loop.act(recorder.exchange.start)  # the attempt has not begun
    return [recorder]


def _connecting(world: World) -> list[Recorder]:
    return [world.start()]


def _connected(world: World) -> list[Recorder]:
    recorder = world.start()
    world.loop.attempts[0].outcome.set_result(None)  # the attempt has succeeded, but its task has not run yet
    return [recorder]


def _waiting(world: World) -> list[Recorder]:
    return [world.start(b"POST") for _ in range(4)]


@pytest.mark.parametrize(
    "bring_about",
    [_busy, _busy_on_a_reused_connection, _to_be_written, _stale, _to_connect, _connecting, _connected, _waiting],
)
def test_close_fails_what_is_at_work(loop: VirtualLoop, bring_about: Callable[[World], list[Recorder]]) -> None:
    """Closing the pool fails each exchange in progress once. No connection stays open, and none is opened."""
    world = make_world(loop, max_connections=2)
    recorders = bring_about(world)
    loop.act(world.pool.close)
    loop.settle()
    assert loop.attempts == []
    assert all(transport.lost for transport in loop.transports)
    loop.advance(100)
    assert [len(recorder.calls) for recorder in recorders] == [1] * len(recorders)
    assert {recorder.calls[0][0] for recorder in recorders} == {"error"}
    assert sum(world.pool.errors.values()) == len(world.errors) == len(recorders)
    assert all(transport.lost for transport in loop.transports)
    assert (world.pool.open, world.pool.idle) == (0, 0)


@pytest.mark.parametrize("head", [OK[:-2], b"HTTP/1.1 200 OK\r\n\r\n"], ids=["length", "until close"])
def test_close_breaks_answers_off(loop: VirtualLoop, head: bytes) -> None:
    """Closing the pool fails a response that has begun, even one that ends when its connection is closed."""
    world = make_world(loop)
    recorder, transport = world.run()
    world.answer(transport, head + b"o")
    loop.act(world.pool.close)
    loop.settle()
    assert recorder.calls == [("response", 200), ("content", b"o", False), ("error", "broken")]


def test_close_leaves_alone_what_is_over(loop: VirtualLoop) -> None:
    """Closing the pool closes idle connections, and does not call exchanges that are complete or cancelled."""
    world = make_world(loop, max_connections=3)
    busy, _ = world.run(b"POST")
    answered, transport = world.run()
    connecting, waiting = world.start(b"POST"), world.start()
    for recorder in (connecting, waiting):
        loop.act(recorder.exchange.cancel)
    world.answer(transport)
    assert (world.pool.open, world.pool.idle) == (3, 1)
    loop.act(world.pool.close)
    loop.settle()
    loop.advance(100)
    assert answered.calls == ANSWERED
    assert busy.calls == [("error", "broken")]
    assert connecting.calls == waiting.calls == []
    assert (loop.attempts, world.pool.open, world.pool.idle) == ([], 0, 0)


@pytest.mark.parametrize("cancelled", [True, False])
def test_request_after_close(loop: VirtualLoop, cancelled: bool) -> None:
    """A request after the pool was closed fails, but not in the call that starts it.

    An adapter that starts its next request at once would otherwise recurse.
    """
    world = make_world(loop)
    world.idle_connection()
    loop.act(world.pool.close)
    recorder = world.make()
    loop.act(recorder.exchange.start)
    assert recorder.calls == []
    if cancelled:
        loop.act(recorder.exchange.cancel)
    loop.settle()
    assert recorder.calls == ([] if cancelled else [("error", "unreachable")])
    assert loop.attempts == []


def test_an_attempt_that_fails_in_an_unexpected_way(loop: VirtualLoop) -> None:
    """An unexpected exception in a connection attempt is reported, and fails only its own exchange."""
    world = make_world(loop, max_connections=1)
    recorder, waiting = world.start(), world.start()
    loop.attempts[0].refuse(RuntimeError("a defect"))
    assert recorder.calls == [("error", "unreachable")]
    world.answer(world.accept())
    assert waiting.calls == ANSWERED
    gc.collect()
    assert [str(failure["exception"]) for failure in loop.failures] == ["a defect"]
    loop.failures.clear()

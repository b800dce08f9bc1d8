"""The pool by itself: who gets which connection, what is closed and when, and what is counted."""

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
    """So many connections in the pool, the first of them idle for the longest, by a second each."""
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
    """With all connections taken, who has come first gets the first that comes free."""
    world = make_world(loop, max_connections=2)
    _, one = world.run()
    _, two = world.run()
    waiting = [world.start(method) for method in (b"GET", b"POST", b"GET", b"POST")]
    assert loop.attempts == []
    for transport, recorder in zip((two, one, one, two), waiting, strict=True):
        world.answer(transport)
        assert serves(transport, recorder)
    assert world.pool.open == 2


@pytest.mark.parametrize("how", ["closed by the answer", "reset", "cancelled", "broken answer"])
def test_a_lost_connection_frees_its_place(loop: VirtualLoop, how: str) -> None:
    """A connection that ends makes room for a new one, for who has waited longest."""
    world = make_world(loop, max_connections=1)
    first, transport = world.run(b"POST")
    second, third = world.start(), world.start()
    if how == "closed by the answer":
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
    """A connection that can't be made fails its own exchange, and the next one has a try."""
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
def test_who_has_left_is_skipped(loop: VirtualLoop, gone: set[int]) -> None:
    """A place is not spent on an exchange that is over."""
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
    """Who has waited for the connect timeout fails; each by its own time, and who has been served not at all."""
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


def test_being_made_counts(loop: VirtualLoop) -> None:
    """Connections that are being made take a place each."""
    world = make_world(loop, max_connections=2)
    for _ in range(3):
        world.start()
    assert (world.pool.open, world.pool.connecting) == (2, 2)
    assert len(loop.attempts) == 2


@pytest.mark.parametrize("waits", [True, False], ids=["somebody waits", "nobody waits"])
def test_the_new_connection_is_not_needed(loop: VirtualLoop, waits: bool) -> None:
    """A connection whose exchange is over when it is ready goes to who waits for one, or else into the pool."""
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
    """Who waits takes the one that comes free; the new one is for the exchange that it is made for."""
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
    """A transport that is closing already when the connection is made is an error, and takes no place."""
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
    """So that those that are not needed are idle for long enough to be closed."""
    world = make_world(loop, keepalive=100.0)
    transports = idle_connections(world, 3)
    for transport in reversed(transports):
        assert serves(transport, world.start())
    assert loop.attempts == []


def test_sweep(loop: VirtualLoop) -> None:
    """A connection that has been idle for ``keepalive`` seconds is closed, the longest idle first, each in its time."""
    world = make_world(loop)
    transports = idle_connections(world, 3)  # idle since 3, 2 and 1 seconds
    for number in range(3):
        loop.advance(0.5)
        assert [transport.lost for transport in transports] == [n < number for n in range(3)]
        loop.advance(0.5)
        assert [transport.lost for transport in transports] == [n <= number for n in range(3)]
    assert (world.pool.open, world.pool.idle) == (0, 0)


def test_sweep_goes_on(loop: VirtualLoop) -> None:
    """What becomes idle after the pool has been empty is closed in its time as well."""
    world = make_world(loop)
    for _ in range(3):
        (transport,) = idle_connections(world, 1)
        loop.advance(KEEPALIVE - 1.5)
        assert not transport.closing
        loop.advance(0.5)
        assert transport.lost


def test_sweep_spares_what_is_at_work(loop: VirtualLoop) -> None:
    """A connection that has been taken out of the pool is not idle, however long its answer takes."""
    world = make_world(loop)
    (transport,) = idle_connections(world, 1)
    recorder = world.start()
    loop.advance(10 * KEEPALIVE)
    world.answer(transport)
    assert recorder.calls == ANSWERED
    assert not transport.closing


@pytest.mark.parametrize("keepalive", [0.0, 0.0625])
def test_keepalive_shorter_than_the_sweep(loop: VirtualLoop, keepalive: float) -> None:
    """A connection that has been idle for longer is not used again, though it has not been closed yet."""
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
    transport.closing = True  # as it is between its close and `connection_lost`


def _fill(transport: FakeTransport) -> None:
    transport.socket.make_readable()


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("spoil", [_close, _fill], ids=["closed", "something to read"])
def test_stale(loop: VirtualLoop, method: bytes, spoil: Any) -> None:
    """A pooled connection that has been closed, or has something to read, is never used: a new one is made."""
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
    """A connection that has been in the pool without having been used is polled before its first request, too."""
    world = make_world(loop)
    unused = world.unused_connection()
    assert world.pool.idle == 1
    unused.socket.make_readable()
    recorder = world.start(method)
    assert unused.written == b""
    world.answer(world.accept())
    assert recorder.calls == ANSWERED


def test_polled_though_its_options_could_not_be_set(loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Event loops report an exception of `connection_made`, and use the connection: it has to be polled, too."""
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
    """An idle connection that upstream ends, or speaks on unasked, leaves the pool; nobody fails for it."""
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
        pytest.param(OK + b"HTTP/1.1 200 OK\r\n", id="bytes behind it"),
    ],
)
def test_not_kept(loop: VirtualLoop, answer: bytes) -> None:
    """A connection that can't be used again after its answer is closed."""
    world = make_world(loop)
    recorder, transport = world.run()
    world.answer(transport, answer)
    assert recorder.calls == ANSWERED
    assert transport.lost
    assert world.pool.open == 0


def test_kept_in_http_1_0_by_its_own_word(loop: VirtualLoop) -> None:
    """An HTTP/1.0 server may say that it keeps the connection open (RFC 9112 section 9.3)."""
    world = make_world(loop)
    _, transport = world.run()
    world.answer(transport, OK.replace(b"1.1", b"1.0").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive, x\r\n\r\n"))
    assert world.pool.idle == 1


# Old connections


def keep_busy(world: World, transport: FakeTransport, seconds: float) -> None:
    """One request after another for so long, a second each, on one connection that is at work already."""
    for _ in range(int(seconds)):
        world.loop.advance(1)
        world.answer(transport)
        recorder = world.start()
        assert serves(transport, recorder)


def test_renewed_by_age(loop: VirtualLoop) -> None:
    """However busy it is, a connection is closed after its lifetime, when an answer has ended, and not before."""
    world = make_world(loop)
    _, transport = world.run(b"POST")
    keep_busy(world, transport, 0.75 * LIFETIME - 1)
    loop.advance(LIFETIME)
    assert not transport.closing, "an answer is on its way"
    world.answer(transport)
    assert transport.lost
    assert world.pool.open == 0
    following = world.start()
    assert serves(world.accept(), following)


def test_renewed_although_somebody_waits(loop: VirtualLoop) -> None:
    """With all connections taken all the time, they are renewed as well; whoever waits gets the new one."""
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
    """What was made together is renewed at different times, a quarter of the lifetime before or after it."""
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
        pytest.param(_no_descriptor, "descriptors", "[Errno 24] Too many open files", id="no descriptor"),
        pytest.param(
            _no_descriptor_in_the_system,
            "descriptors",
            "[Errno 23] Too many open files in system",
            id="no descriptor in the system",
        ),
        pytest.param(_never_connect, "connect_timeout", "upstream could not be reached in time", id="no connection"),
        pytest.param(_never_answer, "response_timeout", "upstream did not answer in time", id="no answer"),
        pytest.param(
            _break_off, "broken", "upstream closed the connection before its response was complete", id="broken"
        ),
        pytest.param(_wait_in_vain, "pool_exhausted", "all upstream connections are busy; try again", id="all busy"),
    ],
)
def test_errors_are_counted(loop: VirtualLoop, bring_about: Any, kind: str, detail: str) -> None:
    """Each failure is counted under its kind, and told with what the system has said about it, once."""
    world = make_world(loop, max_connections=1, response_timeout=20.0)
    bring_about(world)
    assert {each: count for each, count in world.pool.errors.items() if count} == {kind: 1}
    assert world.errors == [(kind, detail)]


def test_an_end_that_nobody_waits_for_is_no_error(loop: VirtualLoop) -> None:
    """A connection attempt that fails after its exchange is over is nobody's error."""
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
    world.loop.act(recorder.exchange.start)  # which another exchange at work puts off to the end of the turn
    return [busy, recorder]


def _stale(world: World) -> list[Recorder]:
    world.idle_connection().socket.make_readable()
    recorder = world.make()
    world.loop.act(recorder.exchange.start)  # which is found, so that it is started again in the next turn
    return [recorder]


def _to_connect(world: World) -> list[Recorder]:
    recorder = world.make()
    world.loop.act(recorder.exchange.start)  # the attempt has not begun
    return [recorder]


def _connecting(world: World) -> list[Recorder]:
    return [world.start()]


def _connected(world: World) -> list[Recorder]:
    recorder = world.start()
    world.loop.attempts[0].outcome.set_result(None)  # the attempt has succeeded, and nobody knows of it
    return [recorder]


def _waiting(world: World) -> list[Recorder]:
    return [world.start(b"POST") for _ in range(4)]


@pytest.mark.parametrize(
    "bring_about",
    [_busy, _busy_on_a_reused_connection, _to_be_written, _stale, _to_connect, _connecting, _connected, _waiting],
)
def test_close_fails_what_is_at_work(loop: VirtualLoop, bring_about: Callable[[World], list[Recorder]]) -> None:
    """Each exchange at work fails, once; no connection is left, and none is opened."""
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
    """An answer that has begun is not whole, even one that lasts until the connection closes."""
    world = make_world(loop)
    recorder, transport = world.run()
    world.answer(transport, head + b"o")
    loop.act(world.pool.close)
    loop.settle()
    assert recorder.calls == [("response", 200), ("content", b"o", False), ("error", "broken")]


def test_close_leaves_alone_what_is_over(loop: VirtualLoop) -> None:
    """Idle connections are dropped; nothing is told to exchanges that are answered or cancelled."""
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
    """It fails, in a turn of its own: an adapter that goes on with its next request at once must not go too deep."""
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
    """No exchange is left without an end by an exception that nobody has thought of, and its place comes free."""
    world = make_world(loop, max_connections=1)
    recorder, waiting = world.start(), world.start()
    loop.attempts[0].refuse(RuntimeError("a defect"))
    assert recorder.calls == [("error", "unreachable")]
    world.answer(world.accept())
    assert waiting.calls == ANSWERED
    gc.collect()
    assert [str(failure["exception"]) for failure in loop.failures] == ["a defect"]
    loop.failures.clear()

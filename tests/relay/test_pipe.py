"""A tunnel by itself: what passes, how each side ends, who is paused, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sanitizer.relay.pipe import TunnelEnd
from sanitizer.relay.stalls import StallSweep
from tests.support.fake_gateway import KEEPALIVE, FakeGateway, make_connection
from tests.support.virtual import FakeTransport, VirtualLoop, virtual_loop

UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
UPSTREAM_CLOSE_TIMEOUT = 60.0
STALL_TIMEOUT = 200.0


class NoHalfClose(FakeTransport):
    """A connection whose sides can't end one by one, as in TLS."""

    def can_write_eof(self) -> bool:
        return False


class Full(FakeTransport):
    """A connection whose buffer the head of a 101 fills."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        if bytes(data).startswith(SWITCH):
            self.blocked, self.unsent = True, 1
            self.protocol.pause_writing()


class Tunnel:
    """A tunnel, swept for stalls, and its two transports: that of the client and that of upstream."""

    def __init__(
        self,
        loop: VirtualLoop,
        *,
        kind: type[FakeTransport] = FakeTransport,
        behind: tuple[bytes, bytes] = (b"", b""),
        blocked: bool = False,
    ) -> None:
        self.loop = loop
        self.gateway = gateway = loop.act(FakeGateway)
        loop.act(StallSweep, STALL_TIMEOUT, lambda: [*gateway.connections, *gateway.pool.watched()])
        self.client = make_connection(gateway, loop, kind)
        self.client.feed(UPGRADE + behind[0])
        loop.settle()
        self.upstream = loop.attempts[0].accept()
        self.request = bytes(self.upstream.written)
        if blocked:
            self.upstream.block()
        self.upstream.feed(SWITCH + behind[1])
        loop.settle()

    def side(self, name: str) -> FakeTransport:
        return self.client if name == "client" else self.upstream

    def other(self, name: str) -> FakeTransport:
        return self.upstream if name == "client" else self.client

    def sent_to(self, name: str) -> bytes:
        """What a side has been sent in the tunnel."""
        return bytes(self.side(name).written).removeprefix(SWITCH if name == "client" else self.request)

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Tunnels, client connections, and connections to upstream."""
        return self.gateway.counters.tunnels, len(self.gateway.connections), self.gateway.pool.open


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    with virtual_loop() as loop:
        yield loop


SIDES = pytest.mark.parametrize("side", ["client", "upstream"])


def test_octets_pass(loop: VirtualLoop) -> None:
    """Those behind the request and behind the answer, and all that come later; the request is over."""
    tunnel = Tunnel(loop, behind=(b"early", b"first"))
    assert tunnel.gateway.ended == [(b"GET", b"/", 101)]
    assert tunnel.gateway.counters.in_flight == 0
    assert sum(tunnel.gateway.pool.seconds.counts) == 1
    for _ in range(2):
        tunnel.client.feed(b" to upstream")
        tunnel.upstream.feed(b" to the client")
    assert tunnel.sent_to("upstream") == b"early to upstream to upstream"
    assert tunnel.sent_to("client") == b"first to the client to the client"
    loop.advance(10 * KEEPALIVE)
    assert not tunnel.client.closing
    assert tunnel.numbers == (1, 1, 1)


def test_many_octets_behind_the_request(loop: VirtualLoop) -> None:
    """A client that was not read because it had sent so much is read on."""
    tunnel = Tunnel(loop, behind=(bytes(100_000), b""))
    assert tunnel.client.reading
    assert tunnel.sent_to("upstream") == bytes(100_000)


@SIDES
def test_sides_end_one_after_the_other(loop: VirtualLoop, side: str) -> None:
    """The other side is told that one has ended, and may go on; it is all over when it ends too."""
    tunnel = Tunnel(loop)
    one, other = tunnel.side(side), tunnel.other(side)
    one.feed_eof()
    loop.settle()
    assert other.eof_written
    assert (one.closing, other.closing) == (False, False)
    other.feed(b"more")
    assert one.written.endswith(b"more")
    other.feed_eof()
    loop.settle()
    assert (one.ending, other.ending) == ("fin", "fin")
    assert tunnel.numbers == (0, 0, 0)
    assert not any(tunnel.gateway.pool.errors.values())


@SIDES
def test_end_of_a_side_in_tls(loop: VirtualLoop, side: str) -> None:
    """Where one side can't end alone, its end is that of both; what was sent before arrives."""
    tunnel = Tunnel(loop, kind=NoHalfClose)
    tunnel.side(side).feed(b"last")
    tunnel.other(side).block()
    tunnel.side(side).resume_reading()  # as it would be if no more than this waited
    tunnel.side(side).feed_eof()
    loop.settle()
    assert tunnel.side(side).lost
    assert (tunnel.other(side).closing, tunnel.other(side).lost) == (True, False)
    tunnel.other(side).unblock()
    loop.settle()
    assert tunnel.other(side).delivered.endswith(b"last")
    assert tunnel.other(side).ending == "fin"
    assert tunnel.numbers == (0, 0, 0)


@SIDES
def test_end_in_tls_of_a_side_that_takes_nothing(loop: VirtualLoop, side: str) -> None:
    """The other side is closed at once, though this one has still to take what was sent to it."""
    tunnel = Tunnel(loop, kind=NoHalfClose)
    tunnel.side(side).block()
    tunnel.side(side).feed_eof()
    loop.settle()
    assert tunnel.other(side).ending == "fin"
    assert not tunnel.side(side).lost
    tunnel.side(side).unblock()
    loop.settle()
    assert tunnel.numbers == (0, 0, 0)


@SIDES
def test_side_breaks_off(loop: VirtualLoop, side: str) -> None:
    """The other gets what was sent before, and is closed; it is counted if it was upstream."""
    tunnel = Tunnel(loop)
    tunnel.side(side).feed(b"last")
    tunnel.side(side).reset()
    loop.settle()
    assert tunnel.other(side).delivered.endswith(b"last")
    assert tunnel.other(side).ending == "fin"
    assert tunnel.numbers == (0, 0, 0)
    assert tunnel.gateway.pool.errors["broken"] == (side == "upstream")


def test_octets_for_a_side_that_has_just_left(loop: VirtualLoop) -> None:
    """They are dropped, and so is the end behind them."""
    tunnel = Tunnel(loop)
    tunnel.client.reset()
    tunnel.upstream.feed(b"late")
    tunnel.upstream.feed_eof()
    loop.settle()
    assert tunnel.numbers == (0, 0, 0)


@pytest.mark.parametrize(("side", "timeout"), [("client", KEEPALIVE), ("upstream", UPSTREAM_CLOSE_TIMEOUT)])
@pytest.mark.parametrize("takes", [True, False])
def test_rest_for_a_side_that_takes_nothing(loop: VirtualLoop, side: str, timeout: float, *, takes: bool) -> None:
    """When the other side is gone it has a limited time for what is on its way, and more while it takes some."""
    tunnel = Tunnel(loop)
    slow = tunnel.side(side)
    tunnel.other(side).feed(b"the last octets")
    slow.block()
    slow.unsent = 5
    tunnel.other(side).reset()
    loop.settle()
    loop.advance(timeout - 1)
    assert not slow.lost
    if takes:
        slow.unsent -= 1
        loop.advance(timeout)
        assert not slow.lost
    loop.advance(1)
    assert slow.ending == "reset"
    loop.advance(timeout)
    assert tunnel.numbers == (0, 0, 0)


def slow_from_the_start(loop: VirtualLoop, side: str) -> Tunnel:
    return Tunnel(loop, kind=Full) if side == "client" else Tunnel(loop, blocked=True)


def slow_later(loop: VirtualLoop, side: str) -> Tunnel:
    tunnel = Tunnel(loop)
    tunnel.side(side).block()
    return tunnel


@SIDES
@pytest.mark.parametrize("make", [slow_from_the_start, slow_later])
def test_slow_side(loop: VirtualLoop, side: str, make: Callable[[VirtualLoop, str], Tunnel]) -> None:
    """The other is not read while a side takes nothing, and is read on when it does."""
    tunnel = make(loop, side)
    assert not tunnel.other(side).reading
    assert tunnel.side(side).reading
    tunnel.side(side).unblock()
    assert tunnel.other(side).reading
    tunnel.other(side).feed(b"on")
    assert tunnel.sent_to(side) == b"on"


@SIDES
def test_side_that_stalls(loop: VirtualLoop, side: str) -> None:
    """It is reset when it has taken nothing for the stall timeout, and the other is closed; it is counted once."""
    tunnel = Tunnel(loop)
    tunnel.side(side).block()
    loop.advance(STALL_TIMEOUT - 1)
    assert not tunnel.side(side).closing
    loop.advance(STALL_TIMEOUT / 2 + 1)
    assert tunnel.side(side).ending == "reset"
    assert tunnel.other(side).ending == "fin"
    errors = {kind: count for kind, count in tunnel.gateway.pool.errors.items() if count}
    assert tunnel.gateway.stalls == (["client_not_reading"] if side == "client" else [])
    assert errors == ({"upstream_not_reading": 1} if side == "upstream" else {})
    assert tunnel.numbers == (0, 0, 0)


@SIDES
def test_side_that_takes_some(loop: VirtualLoop, side: str) -> None:
    """A side that takes as much as comes, with always the same size under way, is not cut."""
    tunnel = Tunnel(loop)
    for _ in range(10):
        tunnel.side(side).block()
        loop.advance(STALL_TIMEOUT - 60)
        tunnel.side(side).unblock()
        tunnel.other(side).feed(b"some")
    assert tunnel.numbers == (1, 1, 1)


@SIDES
def test_side_that_is_reset_unseen(loop: VirtualLoop, side: str) -> None:
    """A sweep sees the reset of a side that is not read, because the other is slow."""
    tunnel = Tunnel(loop)
    tunnel.other(side).block()
    tunnel.side(side).socket.make_reset()
    loop.advance(STALL_TIMEOUT / 4)
    assert tunnel.side(side).ending == "reset"
    assert tunnel.other(side).closing


@SIDES
def test_side_that_ends_unseen(loop: VirtualLoop, side: str) -> None:
    """A FIN of a side that is not read waits until what was sent before it has been read."""
    tunnel = Tunnel(loop)
    tunnel.other(side).block()
    tunnel.side(side).socket.make_half_closed()
    loop.advance(STALL_TIMEOUT / 2)
    assert not tunnel.side(side).closing


def test_drain(loop: VirtualLoop) -> None:
    """A tunnel goes on while the gateway drains, and is reset when the grace is over."""
    tunnel = Tunnel(loop)
    loop.act(tunnel.gateway.connections.shutdown)
    loop.settle()
    tunnel.client.feed(b"on")
    assert tunnel.sent_to("upstream") == b"on"
    loop.act(tunnel.gateway.connections.abort)
    loop.settle()
    assert tunnel.client.ending == "reset"
    assert tunnel.numbers == (0, 0, 0)


def test_pool_is_closed(loop: VirtualLoop) -> None:
    """Then the tunnel is reset, which is no failure of upstream's."""
    tunnel = Tunnel(loop)
    assert isinstance(tunnel.upstream.protocol, TunnelEnd)
    loop.act(tunnel.gateway.pool.close)
    loop.settle()
    assert tunnel.upstream.ending == "reset"
    assert tunnel.client.closing
    assert not any(tunnel.gateway.pool.errors.values())
    assert tunnel.numbers == (0, 0, 0)

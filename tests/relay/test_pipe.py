"""A tunnel without real sockets: which octets are relayed, how each side ends, when reading is paused, the counters."""

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
    """A connection that cannot be half-closed, as in TLS."""

    def can_write_eof(self) -> bool:
        return False


class Full(FakeTransport):
    """A connection whose write buffer is full once the head of a 101 has been written."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        if bytes(data).startswith(SWITCH):
            self.blocked, self.unsent = True, 1
            self.protocol.pause_writing()


class Tunnel:
    """A tunnel with a stall sweep, and the transports of its client and of its upstream."""

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
        """The octets that were sent to this side of the tunnel."""
        return bytes(self.side(name).written).removeprefix(SWITCH if name == "client" else self.request)

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The numbers of tunnels, of client connections and of upstream connections."""
        return self.gateway.counters.tunnels, len(self.gateway.connections), self.gateway.pool.open


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    with virtual_loop() as loop:
        yield loop


SIDES = pytest.mark.parametrize("side", ["client", "upstream"])


def test_octets_pass(loop: VirtualLoop) -> None:
    """Octets are relayed both ways, including those right after the request or the 101. The request has ended."""
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
    """A client whose reading was paused because it had sent so much is read again in the tunnel."""
    tunnel = Tunnel(loop, behind=(bytes(100_000), b""))
    assert tunnel.client.reading
    assert tunnel.sent_to("upstream") == bytes(100_000)


@SIDES
def test_sides_end_one_after_the_other(loop: VirtualLoop, side: str) -> None:
    """The FIN of one side is relayed, and the other side may go on. The tunnel ends when that sends a FIN too."""
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
    """If connections cannot be half-closed, a FIN ends both sides. The octets sent before it still arrive."""
    tunnel = Tunnel(loop, kind=NoHalfClose)
    tunnel.side(side).feed(b"last")
    tunnel.other(side).block()
    tunnel.side(side).resume_reading()  # as if too few octets were waiting to pause it
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
def test_end_in_tls_of_a_side_that_reads_nothing(loop: VirtualLoop, side: str) -> None:
    """When a side sends a FIN, the other is closed at once, even if octets still wait to be sent to the first side."""
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
    """If a side resets, the other gets what was sent before, and is closed. Only upstream's reset is an error."""
    tunnel = Tunnel(loop)
    tunnel.side(side).feed(b"last")
    tunnel.side(side).reset()
    loop.settle()
    assert tunnel.other(side).delivered.endswith(b"last")
    assert tunnel.other(side).ending == "fin"
    assert tunnel.numbers == (0, 0, 0)
    assert tunnel.gateway.pool.errors["broken"] == (side == "upstream")


def test_octets_for_a_side_that_has_just_left(loop: VirtualLoop) -> None:
    """Octets and a FIN for a client that has just reset its connection are dropped."""
    tunnel = Tunnel(loop)
    tunnel.client.reset()
    tunnel.upstream.feed(b"late")
    tunnel.upstream.feed_eof()
    loop.settle()
    assert tunnel.numbers == (0, 0, 0)


@pytest.mark.parametrize(("side", "timeout"), [("client", KEEPALIVE), ("upstream", UPSTREAM_CLOSE_TIMEOUT)])
@pytest.mark.parametrize("takes", [True, False])
def test_rest_for_a_side_that_reads_nothing(loop: VirtualLoop, side: str, timeout: float, *, takes: bool) -> None:
    """After one side is lost, the other has a limited time to read the rest, which starts again with any progress."""
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
    """While one side does not read, reading from the other is paused. It resumes when the first side reads again."""
    tunnel = make(loop, side)
    assert not tunnel.other(side).reading
    assert tunnel.side(side).reading
    tunnel.side(side).unblock()
    assert tunnel.other(side).reading
    tunnel.other(side).feed(b"on")
    assert tunnel.sent_to(side) == b"on"


@SIDES
def test_side_that_stalls(loop: VirtualLoop, side: str) -> None:
    """A side that reads nothing for the stall timeout is reset and counted once, and the other side is closed."""
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
    """A side that keeps reading is not reset, even if the number of octets that wait for it is always the same."""
    tunnel = Tunnel(loop)
    for _ in range(10):
        tunnel.side(side).block()
        loop.advance(STALL_TIMEOUT - 60)
        tunnel.side(side).unblock()
        tunnel.other(side).feed(b"some")
    assert tunnel.numbers == (1, 1, 1)


@SIDES
def test_side_that_is_reset_unseen(loop: VirtualLoop, side: str) -> None:
    """The stall sweep detects that a side has reset its connection while reading from it is paused."""
    tunnel = Tunnel(loop)
    tunnel.other(side).block()
    tunnel.side(side).socket.make_reset()
    loop.advance(STALL_TIMEOUT / 4)
    assert tunnel.side(side).ending == "reset"
    assert tunnel.other(side).closing


@SIDES
def test_side_that_ends_unseen(loop: VirtualLoop, side: str) -> None:
    """The stall sweep ignores the FIN of a side while reading from it is paused."""
    tunnel = Tunnel(loop)
    tunnel.other(side).block()
    tunnel.side(side).socket.make_half_closed()
    loop.advance(STALL_TIMEOUT / 2)
    assert not tunnel.side(side).closing


def test_drain(loop: VirtualLoop) -> None:
    """A tunnel continues during a drain, and is reset when the grace period ends."""
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
    """If the pool is closed, the tunnel is reset, which is not counted as an upstream error."""
    tunnel = Tunnel(loop)
    assert isinstance(tunnel.upstream.protocol, TunnelEnd)
    loop.act(tunnel.gateway.pool.close)
    loop.settle()
    assert tunnel.upstream.ending == "reset"
    assert tunnel.client.closing
    assert not any(tunnel.gateway.pool.errors.values())
    assert tunnel.numbers == (0, 0, 0)

"""A client that writes down what an exchange tells it, and a pool whose connections the test makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sanitizer.http1.bodies import CHUNKED, Framing, Length, Reader, reader
from sanitizer.relay.handler import Handler, Pause
from sanitizer.relay.pipe import TunnelEnd
from sanitizer.relay.pool import Pool
from sanitizer.relay.proxied import Proxied
from sanitizer.relay.transport import Transport
from tests.support.virtual import ADDRESS, FakeTransport, VirtualLoop

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ANSWERED: list[tuple[Any, ...]] = [("response", 200), ("content", b"ok", True)]
"""What a client is told whose exchange gets `OK` in one piece."""


class Recorder:
    """A client with one request, which ``exchange`` relays.

    ``calls``: what it has been told. ``unblocked``: how often it was told that it can send more content. ``told``: kind
    and detail of each error that the pool has told of; the last is that which an exchange has just failed with.
    """

    transport: Transport

    def __init__(
        self,
        pool: Pool,
        method: bytes,
        head: bytes,
        length: Length = 0,
        *,
        upgrade: bool = False,
        told: Sequence[tuple[str, str]] = (("", ""),),
    ) -> None:
        self.loop = pool.loop
        self.pool = pool
        self.address: str | None = None
        self.write_blocked = self.cross_origin = False
        self.write: Callable[[bytes], None] = self._write
        self.octets = head + b"\r\n"
        self.calls: list[tuple[Any, ...]] = []
        self.unblocked = 0
        self.exchange = Proxied(self, method, head, length, keep_alive=True, upgrade=upgrade)
        self._told = told
        self._head: bytes | None = None  # of the response
        self._body: Reader

    def write_interim(self, head: bytes) -> None:
        self.calls.append(("interim", head))

    def pause(self, reason: Pause) -> None: ...

    def resume(self, reason: Pause) -> None:
        self.unblocked += 1

    def stays_open(self, keep_alive: bool) -> bool:
        response = self.exchange.response
        if response is None:
            self._fail()
        else:
            self.calls.append(("response", response.status))
            self._body = reader(CHUNKED if isinstance(response.length, Framing) else response.length)
        return keep_alive

    def _write(self, data: bytes) -> None:
        if self.exchange.response is None:  # the response says what has failed
            return
        if self._head is None:
            self._head, _, data = data.partition(b"\r\n\r\n")
        content, rest = self._body.feed(data)
        assert not rest, "more than the response"
        self.calls.append(("content", content, rest is not None))

    def response_sent(self, handler: Handler, keep_alive: bool) -> None:
        assert handler is self.exchange
        assert self.calls[-1][0] == "error" or self.calls[-1][2], "not the last of the response"

    def become_tunnel(self, handler: Handler, upstream: TunnelEnd) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        self._fail()

    def _fail(self) -> None:
        self.calls.append(("error", self._told[-1][0]))


class World:
    """A pool on a virtual loop, and what upstream does on its connections. Each method lets everything settle."""

    def __init__(self, loop: VirtualLoop, **options: Any) -> None:
        self.loop = loop
        self.told: list[tuple[str, str]] = []
        options.setdefault("on_error", lambda kind, detail: self.told.append((kind, detail)))
        self.pool = loop.act(lambda: Pool(ADDRESS, **options))
        self._number = 0

    def make(self, method: bytes = b"GET", length: Length = 0) -> Recorder:
        """A client whose exchange has not been started; its head is like no other's."""
        self._number += 1
        return Recorder(self.pool, method, b"%b /%d HTTP/1.1\r\n" % (method, self._number), length, told=self.told)

    def start(self, method: bytes = b"GET", length: Length = 0) -> Recorder:
        """A client whose exchange has been started."""
        recorder = self.make(method, length)
        self.loop.act(recorder.exchange.start)
        self.loop.settle()
        return recorder

    def accept(self, index: int = 0) -> FakeTransport:
        """Let one of the connections that are being opened be made."""
        return self.loop.attempts[index].accept()

    def run(self, method: bytes = b"GET") -> tuple[Recorder, FakeTransport]:
        """A client whose exchange is at work on a connection of its own."""
        recorder = self.start(method)
        transport = self.accept()
        assert transport.written == recorder.octets
        return recorder, transport

    def answer(self, transport: FakeTransport, octets: bytes = OK) -> None:
        """Upstream sends ``octets``."""
        transport.feed(octets)
        self.loop.settle()

    def idle_connection(self) -> FakeTransport:
        """A connection in the pool that has had one exchange."""
        _, transport = self.run()
        self.answer(transport)
        transport.written.clear()
        return transport

    def unused_connection(self) -> FakeTransport:
        """A connection in the pool that has had no exchange: the one that it was made for was cancelled."""
        recorder = self.start()
        self.loop.act(recorder.exchange.cancel)
        return self.accept()

    def send(self, recorder: Recorder, data: bytes, *, last: bool = False) -> None:
        """The client sends content."""
        self.loop.act(recorder.exchange.send, data, last)
        self.loop.settle()

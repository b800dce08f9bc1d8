"""A client that records the calls of its exchange, and a pool whose connections are controlled by the test."""

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
"""The calls of an exchange that receives `OK` in one piece."""


class Recorder:
    """A client with one request, which ``exchange`` relays.

    ``calls`` are the calls of the exchange, with their arguments; a failed exchange appears as ("error", kind).
    ``unblocked`` counts the calls of `resume`. ``errors``: kind and detail of each error that the pool has reported,
    the latest last.
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
        errors: Sequence[tuple[str, str]] = (("", ""),),
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
        self._errors = errors
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
        if self.exchange.response is None:  # this is the gateway's own error response
            return
        if self._head is None:
            self._head, _, data = data.partition(b"\r\n\r\n")
        content, rest = self._body.feed(data)
        assert not rest, "more than the response"
        self.calls.append(("content", content, rest is not None))

    def response_sent(self, handler: Handler, keep_alive: bool) -> None:
        assert handler is self.exchange
        assert self.calls[-1][0] == "error" or self.calls[-1][2], "the response is not complete"

    def become_tunnel(self, handler: Handler, upstream: TunnelEnd) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        self._fail()

    def _fail(self) -> None:
        self.calls.append(("error", self._errors[-1][0]))


class World:
    """A pool on a virtual loop, with methods for what clients and upstream do. Each method calls `VirtualLoop.settle`.

    ``errors``: kind and detail of each error that the pool has reported.
    """

    def __init__(self, loop: VirtualLoop, **options: Any) -> None:
        self.loop = loop
        self.errors: list[tuple[str, str]] = []
        options.setdefault("on_error", lambda kind, detail: self.errors.append((kind, detail)))
        self.pool = loop.act(lambda: Pool(ADDRESS, **options))
        self._number = 0

    def make(self, method: bytes = b"GET", length: Length = 0) -> Recorder:
        """A client whose exchange has not been started. No two clients have the same request head."""
        self._number += 1
        return Recorder(self.pool, method, b"%b /%d HTTP/1.1\r\n" % (method, self._number), length, errors=self.errors)

    def start(self, method: bytes = b"GET", length: Length = 0) -> Recorder:
        """A client whose exchange has been started."""
        recorder = self.make(method, length)
        self.loop.act(recorder.exchange.start)
        self.loop.settle()
        return recorder

    def accept(self, index: int = 0) -> FakeTransport:
        """Let one of the connection attempts succeed."""
        return self.loop.attempts[index].accept()

    def run(self, method: bytes = b"GET") -> tuple[Recorder, FakeTransport]:
        """A client whose exchange has sent its request on a new connection."""
        recorder = self.start(method)
        transport = self.accept()
        assert transport.written == recorder.octets
        return recorder, transport

    def answer(self, transport: FakeTransport, octets: bytes = OK) -> None:
        """Upstream sends ``octets``."""
        transport.feed(octets)
        self.loop.settle()

    def idle_connection(self) -> FakeTransport:
        """An idle connection in the pool that has been used for one exchange."""
        _, transport = self.run()
        self.answer(transport)
        transport.written.clear()
        return transport

    def unused_connection(self) -> FakeTransport:
        """An idle connection in the pool that has not been used: the exchange that it was opened for was cancelled."""
        recorder = self.start()
        self.loop.act(recorder.exchange.cancel)
        return self.accept()

    def send(self, recorder: Recorder, data: bytes, *, last: bool = False) -> None:
        """The client sends content."""
        self.loop.act(recorder.exchange.send, data, last)
        self.loop.settle()

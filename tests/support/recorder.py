"""Exchanges that write down what they are told, over a pool whose connections the test makes."""

from __future__ import annotations

from typing import Any

from sanitizer.errors import GatewayError
from sanitizer.http1.bodies import Length
from sanitizer.relay.connection import Response
from sanitizer.relay.exchange import Exchange
from sanitizer.relay.pool import Pool
from tests.support.virtual import ADDRESS, FakeTransport, VirtualLoop

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ANSWERED: list[tuple[Any, ...]] = [("response", 200), ("content", b"ok", True)]
"""What an exchange is told that gets `OK` in one piece."""


class Recorder(Exchange):
    """An exchange; ``calls`` are the hooks that have been called; ``unblocked`` counts those of `on_unblocked`."""

    __slots__ = ("calls", "octets", "unblocked")

    def __init__(self, pool: Pool, method: bytes, head: bytes, length: Length) -> None:
        super().__init__(pool, method, head, length)
        self.octets = head + b"\r\n"
        self.calls: list[tuple[Any, ...]] = []
        self.unblocked = 0

    def on_interim(self, head: bytes) -> None:
        self.calls.append(("interim", head))

    def on_response(self, response: Response) -> None:
        self.calls.append(("response", response.status))

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        self.calls.append(("content", data, last))

    def on_error(self, error: GatewayError) -> None:
        self.calls.append(("error", error.kind))

    def on_unblocked(self) -> None:
        self.unblocked += 1


class World:
    """A pool on a virtual loop, and what upstream does on its connections. Each method lets everything settle."""

    def __init__(self, loop: VirtualLoop, **options: Any) -> None:
        self.loop = loop
        self.told: list[tuple[str, str]] = []
        options.setdefault("on_error", lambda kind, detail: self.told.append((kind, detail)))
        self.pool = loop.act(lambda: Pool(ADDRESS, **options))
        self._number = 0

    def make(self, method: bytes = b"GET", length: Length = 0) -> Recorder:
        """An exchange that has not been started; its head is like no other's."""
        self._number += 1
        return Recorder(self.pool, method, b"%b /%d HTTP/1.1\r\n" % (method, self._number), length)

    def start(self, method: bytes = b"GET", length: Length = 0) -> Recorder:
        """An exchange that has been started."""
        exchange = self.make(method, length)
        self.loop.act(exchange.start)
        self.loop.settle()
        return exchange

    def accept(self, index: int = 0) -> FakeTransport:
        """Let one of the connections that are being opened be made."""
        return self.loop.attempts[index].accept()

    def run(self, method: bytes = b"GET") -> tuple[Recorder, FakeTransport]:
        """An exchange at work on a connection of its own."""
        exchange = self.start(method)
        transport = self.accept()
        assert transport.written == exchange.octets
        return exchange, transport

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
        exchange = self.start()
        self.loop.act(exchange.cancel)
        return self.accept()

    def send(self, exchange: Recorder, data: bytes, *, last: bool = False) -> None:
        """The client sends content."""
        self.loop.act(exchange.send, data, last)
        self.loop.settle()

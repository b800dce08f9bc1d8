"""The handler of an ordinary request: it relays the response to the client piece by piece, as it is received."""

from contextlib import AbstractContextManager, ExitStack

from sanitizer.errors import GatewayError
from sanitizer.http1.bodies import Framing, Length, encode_chunk, last_chunk
from sanitizer.http1.forwarding import has_buffering_field, passed_trailers
from sanitizer.http1.requests import Request
from sanitizer.http1.responses import error_response
from sanitizer.relay.advice import HTTP_1_0_STREAM, advise
from sanitizer.relay.connection import Response
from sanitizer.relay.counters import CLIENT_LEFT
from sanitizer.relay.exchange import Exchange
from sanitizer.relay.handler import Client
from sanitizer.relay.stalls import Pending


class Proxied(Exchange):
    """Forwards a request of ``client`` and relays the response. ``version`` is the client's HTTP version."""

    __slots__ = ("_chunked_out", "_head", "client", "keep_alive", "started", "status", "version")

    def __init__(
        self,
        client: Client,
        method: bytes,
        head: bytes,
        length: Length,
        keep_alive: bool,
        version: bytes = b"1.1",
        upgrade: bool = False,
    ) -> None:
        super().__init__(client.pool, method, head, length, upgrade=upgrade)
        self.client = client
        self.keep_alive = keep_alive
        self.version = version
        self.started = False
        self.status = CLIENT_LEFT
        self._head = b""  # of the response, until it is written together with the first content
        self._chunked_out = False

    @classmethod
    def of(cls, client: Client, request: Request) -> "Proxied":
        """The handler of ``request``."""
        _, outbound, method, _, version, keep_alive, _, length, upgrade = request
        return cls(client, method, outbound, length, keep_alive, version, bool(upgrade))

    # Handler

    @property
    def response_started(self) -> bool:
        return self.response is not None

    def start(self) -> None:
        self.started = True
        super().start()

    def content(self, data: bytes) -> None:
        self.send(data)

    def end(self) -> None:
        if not self.request_complete:
            self.send(b"", True)
        self.client.resume("upstream")  # only a connection that is read reports that the client has disconnected

    def close_after_response(self) -> None:
        self.keep_alive = False

    def pending(self) -> Pending | None:
        return None  # no response is held back

    # Exchange

    def on_blocked(self) -> None:
        if not self.request_complete:
            self.client.pause("upstream")

    def on_unblocked(self) -> None:
        self.client.resume("upstream")

    def on_interim(self, head: bytes) -> None:
        if self.version == b"1.1":
            self.client.write_interim(head)

    def on_response(self, response: Response) -> None:
        self.status = response.status
        if self.client.write_blocked:  # by the previous response
            self.pause_reading()
        self.keep_alive = self.client.stays_open(self.keep_alive)
        head = self.head_to_client(response.status, response.head)
        if isinstance(response.length, Framing):
            if self.version == b"1.1":
                self._chunked_out = True
                head += b"Transfer-Encoding: chunked\r\n"
            else:
                self.keep_alive = False
                if not has_buffering_field(head):
                    advise(HTTP_1_0_STREAM)
                    head += b"X-Accel-Buffering: no\r\n"
        self._head = head + b"\r\n" if self.keep_alive else head + b"Connection: close\r\n\r\n"

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        if self._chunked_out:
            data = encode_chunk(data)
            if last:
                data += last_chunk(passed_trailers(trailers) if trailers else b"")
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self.client.write(data)
        if last:
            self.response_sent()

    def on_error(self, error: GatewayError) -> None:
        client = self.client
        if self.response is not None:
            client.abort()
            return
        self.status = error.status
        self.keep_alive = client.stays_open(self.keep_alive)
        head, content = error_response(error, self.keep_alive, client.cross_origin, self.method)
        client.write(self.head_to_client(error.status, head) + b"\r\n" + content)
        self.response_sent()

    def on_tunnel(self, response: Response, data: bytes) -> None:
        if self.client.transport.is_closing():  # `connection_lost` may be scheduled, and would not reach a tunnel end
            self.cancel()
            return
        self.status = response.status
        self.client.write(response.head + b"\r\n" + data)
        connection = self.connection
        assert connection is not None  # noqa: S101 - for the type checker
        self._finish()
        end = self.pool.make_tunnel_end(connection)
        self.client.become_tunnel(self, end)
        connection.become_tunnel_end(end)

    def head_to_client(self, status: int, head: bytes) -> bytes:
        """The head to send to the client for a response's ``head``. Framing fields are added afterwards."""
        return head

    def response_sent(self) -> None:
        """Called when the response is complete and written."""
        self.client.response_sent(self, self.keep_alive)


class ProxiedWrite(Proxied):
    """Forwards a request inside the context ``writing``, which is left when the exchange with upstream is over."""

    __slots__ = ("_writing",)

    def __init__(self, writing: AbstractContextManager[None], client: Client, request: Request) -> None:
        super().__init__(client, request.method, request.outbound, request.length, request.keep_alive, request.version)
        self._writing = ExitStack()
        self._writing.enter_context(writing)

    def _finish(self) -> None:
        super()._finish()
        self._writing.close()

"""A request that is relayed below ASGI: what upstream answers goes out on the client's connection."""

from contextlib import AbstractContextManager, ExitStack
from http import HTTPStatus

from sanitizer.errors import GatewayError
from sanitizer.relay.advice import HTTP_1_0_STREAM, advise
from sanitizer.relay.counters import CLIENT_LEFT
from sanitizer.relay.exchange import Exchange, Response
from sanitizer.relay.framing import Framing, Length
from sanitizer.relay.handler import Client
from sanitizer.relay.headers import buffering_is_set, encode_head, passed_trailers
from sanitizer.relay.stalls import Pending
from sanitizer.relay.transport import Transport


class Relayed(Exchange):
    """A request of ``client``'s, relayed; or, once upstream has switched protocols, a tunnel."""

    __slots__ = ("_chunked_out", "_eofs", "_head", "client", "keep_alive", "started", "status", "version")

    def __init__(
        self,
        client: Client,
        method: bytes,
        head: bytes,
        length: Length,
        upgrade: bool,
        keep_alive: bool,
        version: bytes,
    ) -> None:
        super().__init__(client.upstream, method, head, length, upgrade=upgrade)
        self.client = client
        self.keep_alive = keep_alive
        self.version = version
        self.started = False
        self.status = CLIENT_LEFT  # of the response, as soon as there is one
        self._head = b""  # of the response, until its first content is there
        self._chunked_out = False
        self._eofs = 0

    @property
    def begun(self) -> bool:
        """Whether some of the response has been written."""
        return self.response is not None

    def start(self) -> None:
        self.started = True
        super().start()

    def content(self, data: bytes) -> None:
        self.send(data)

    def end(self) -> None:
        if not self._sent_last:
            self.send(b"", True)
        self.client.resume("upstream")  # to see the client leave

    def last(self) -> None:
        """Let this be the connection's last request."""
        self.keep_alive = False

    # Exchange

    def on_blocked(self) -> None:
        if not self._sent_last:
            self.client.pause("upstream")

    def on_unblocked(self) -> None:
        self.client.resume("upstream")

    def on_interim(self, head: bytes) -> None:
        if self.version == b"1.1":
            self.client.write_interim(head)

    def pending(self) -> Pending | None:
        """None: no answer is held back."""
        return None

    def on_response(self, response: Response) -> None:
        self.status = response.status
        if self.client.write_blocked:  # by the response before
            self.pause_reading()
        self.keep_alive = self.client.stays_open(self.keep_alive)
        head = self.head_to_client(response.status, response.head)
        if isinstance(response.length, Framing):
            if self.version == b"1.1":
                self._chunked_out = True
                head = head[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
            else:
                self.keep_alive = False
                if not buffering_is_set(head):
                    advise(HTTP_1_0_STREAM)
                    head = head[:-2] + b"X-Accel-Buffering: no\r\n\r\n"
        self._head = head if self.keep_alive else head[:-2] + b"Connection: close\r\n\r\n"

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        if self._chunked_out:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if last:
                data += b"0\r\n" + passed_trailers(trailers) + b"\r\n" if trailers else b"0\r\n\r\n"
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self.client.write(data)
        if last:
            self.answered()

    def on_error(self, error: GatewayError) -> None:
        client = self.client
        if client.tunnel is self:
            client.close()
        elif self.response is not None:
            client.abort()
        else:
            self.status = error.status
            self.keep_alive = client.stays_open(self.keep_alive)
            head, content = error_response(error, self.keep_alive, client.cross_origin, self.method)
            client.write(self.head_to_client(error.status, head) + content)
            self.answered()

    def head_to_client(self, status: int, head: bytes) -> bytes:
        """The head that the client gets for ``head``, less what frames its content."""
        return head

    def answered(self) -> None:
        """The response is whole and written."""
        self.client.answered(self, self.keep_alive)

    # Tunnel

    def on_tunnel(self, response: Response, data: bytes) -> None:
        self.status = response.status
        self.client.write(response.head + data)
        self.client.enter_tunnel(self, self)

    def on_tunnel_data(self, data: bytes) -> None:
        self.client.write(data)

    def on_tunnel_eof(self) -> None:
        if self.connection is not None and not self.connection.transport.can_write_eof():
            self._eofs += 1  # in TLS the end of one side ends both
        self._end_of(self.client.transport)

    def tunnel_send(self, data: bytes) -> None:
        """Bytes from the client inside the tunnel."""
        if self.connection is not None:
            self.connection.write(data)
            if self.connection.write_paused:
                self.client.pause("upstream")

    def tunnel_eof(self) -> bool:
        """The client will send nothing more; returns whether it can still be written to."""
        if self.connection is not None:
            self._end_of(self.connection.transport)
        return self.client.transport.can_write_eof()

    def leave(self) -> None:
        """The client's connection is gone; what it has sent still reaches upstream."""
        self._finish()
        if self.connection is not None:
            self.connection.exchange = None
            self.connection.transport.close()

    def _end_of(self, transport: Transport) -> None:
        self._eofs += 1
        self.upstream.outbox.flush()
        if self._eofs == 2 or not transport.can_write_eof():
            self._finish()  # in good order: what closes now is no failure of upstream's
            transport.close()
            self.client.close()
        else:
            transport.write_eof()


class Writing(Relayed):
    """A request that is relayed inside of ``writing``, from its head to its end."""

    __slots__ = ("_writing",)

    def __init__(
        self,
        writing: AbstractContextManager[None],
        client: Client,
        method: bytes,
        head: bytes,
        length: Length,
        keep_alive: bool,
        version: bytes,
    ) -> None:
        super().__init__(client, method, head, length, False, keep_alive, version)
        self._writing = ExitStack()
        self._writing.enter_context(writing)

    def _finish(self) -> None:
        super()._finish()
        self._writing.close()


def error_response(
    error: GatewayError, keep_alive: bool, cross_origin: bool, method: bytes = b"GET"
) -> tuple[bytes, bytes]:
    """Head and content of a response for an error of the gateway's own.

    ``cross_origin``: the request has an Origin. A browser then lets the page read only an answer that allows it, as
    LiteLLM's answers do.
    """
    content = error.body()
    fields = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(content))]
    if cross_origin:
        fields.append((b"Access-Control-Allow-Origin", b"*"))
    if not keep_alive:
        fields.append((b"Connection", b"close"))
    phrase = HTTPStatus(error.status).phrase.encode()
    head = encode_head(b"HTTP/1.1 %d %b" % (error.status, phrase), fields)
    return head, content if method != b"HEAD" else b""

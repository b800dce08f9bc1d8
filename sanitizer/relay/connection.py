"""One HTTP/1.1 connection to upstream: parses what comes, for one exchange after another.

Cases, before the code that branches on them:

* Bytes after the response's end, or on an idle connection: nobody asked for them; the connection is closed.
* The connection ends where the content's end is not: an error, unless the content lasts until the connection closes.
* HEAD: httptools can't know that no content follows; the parser is replaced afterwards.
* 101: what follows the head is no HTTP any more; a tunnel if the exchange has asked for it, an error if not.
"""

import asyncio
import select
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import httptools

from sanitizer.errors import GatewayError, UpstreamBroken
from sanitizer.relay.exchange import Exchange, Response
from sanitizer.relay.framing import Framing, response_length
from sanitizer.relay.headers import Fields, read_fields

if TYPE_CHECKING:
    from sanitizer.relay.upstream import Upstream

_HEAD_LIMIT: Final = 256 * 1024
"""Bytes of an upstream's response head, trailers likewise: beyond, it is broken."""


class Transport(Protocol):
    """What is used of asyncio's transports; plain TCP, TLS and unix sockets all have it."""

    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def can_write_eof(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


class Connection(asyncio.Protocol):
    """One connection to upstream: parses what comes, for one exchange after another."""

    __slots__ = (
        "_content",
        "_fields",
        "_head_bytes",
        "_keeps_alive",
        "_last",
        "_parser",
        "_poll",
        "_reading_paused",
        "_reason",
        "_responded",
        "_stale_parser",
        "_surplus",
        "answering",
        "exchange",
        "exchanges",
        "idle_since",
        "transport",
        "tunnel",
        "upstream",
        "write_paused",
    )

    def __init__(self, upstream: "Upstream") -> None:
        self.upstream = upstream
        self.exchange: Exchange | None = None
        self.exchanges = 0
        self.idle_since = 0.0
        self.answering = False  # a byte of the current response has come
        self.write_paused = False
        self.tunnel = False
        self._poll = select.poll()
        self._parser = httptools.HttpResponseParser(self)
        self._stale_parser = False
        self._reading_paused = False
        self._reason = b""
        self._fields: Fields = []
        self._head_bytes = 0
        self._content: list[bytes] = []
        self._last = False
        self._keeps_alive = False
        self._responded = False  # a response head was handed on during this read
        self._surplus = False

    @property
    def fresh(self) -> bool:
        """Whether the idle connection can be used: open, and nothing to read, neither bytes nor the end of them."""
        return not self.transport.is_closing() and not self._poll.poll(0)

    def pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def close(self) -> None:
        """Close at once: unsent bytes are dropped."""
        self.exchange = None
        self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._poll.register(sock.fileno(), select.POLLIN | getattr(select, "POLLRDHUP", 0))

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.close()
            return
        if self.tunnel:
            exchange.on_tunnel_data(data)
            return
        self.answering = True
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as switch:
            self._switch(exchange, data[switch.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, GatewayError):
                self._break(error.__context__)
                return
            raise
        except httptools.HttpParserError:
            if not self._last:
                self._break(UpstreamBroken("upstream's answer is not HTTP"))
                return
            self._surplus = True
        if self.exchange is not exchange:  # cancelled by a hook
            self._content = []
        elif self._last:
            self._end(exchange)
        elif self._content or self._responded:
            self._responded = False
            exchange.on_content(self._take_content(), False, [])
        elif self._head_bytes > _HEAD_LIMIT:
            self._break(UpstreamBroken("upstream's response head, or its trailers, are too large"))

    def eof_received(self) -> bool:
        exchange = self.exchange
        if exchange is not None and self.tunnel:
            exchange.on_tunnel_eof()
            return self.transport.can_write_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        del self._parser  # it holds this object's methods
        self.upstream.closed(self)
        if exchange is None or exchange.done:
            return
        response = exchange.response
        if exc is None and response is not None and response.length is Framing.UNTIL_CLOSE and not self.tunnel:
            exchange.complete(self._take_content(), [])
        else:
            exchange.lost(UpstreamBroken())

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.on_unblocked()

    # httptools

    def on_message_begin(self) -> None:
        if self._last:
            self._surplus = True
            return
        self._fields = []
        self._reason = b""

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        exchange = self.exchange
        if exchange is None or self._last:
            self._surplus = True
            return
        status = self._parser.get_status_code()
        fields, self._fields = self._fields, []
        if status < 200:
            if status < 100:
                raise UpstreamBroken("upstream's answer has no valid status")
            if status != 101:
                exchange.on_interim(status, self._reason, read_fields(fields).passed)
            elif exchange.upgrade:
                upgrade = [line for line in fields if line[0].lower() == b"upgrade"]
                passed = [*read_fields(fields).passed, (b"Connection", b"Upgrade"), *upgrade]
                exchange.response = Response(status, self._reason, passed, 0)
            else:
                raise UpstreamBroken("upstream switched protocols unasked")
            return
        self._head_bytes = 0
        section = read_fields(fields)
        length = response_length(exchange.method, status, section)
        if exchange.method == b"HEAD":
            self._stale_parser = self._last = True
            options = section.connection or []
            version = self._parser.get_http_version()
            self._keeps_alive = b"close" not in options and (version == "1.1" or b"keep-alive" in options)
        else:
            self._keeps_alive = self._parser.should_keep_alive()
        self._responded = True
        exchange.respond(Response(status, self._reason, section.passed, length))

    def on_body(self, data: bytes) -> None:
        self._head_bytes = 0  # trailers and chunk extensions are counted like heads
        if self._last:
            self._surplus = True
        else:
            self._content.append(data)

    def on_message_complete(self) -> None:
        if self.exchange is not None and self.exchange.response is not None and not self._last:
            self._last = True

    def _take_content(self) -> bytes:
        content = self._content[0] if len(self._content) == 1 else b"".join(self._content)
        self._content = []
        return content

    def _end(self, exchange: Exchange) -> None:
        """The response is whole: give the connection back, or close it, then tell the face."""
        content, trailers = self._take_content(), self._fields
        reusable = (
            exchange.request_complete and not self._surplus and self._keeps_alive and not self.transport.is_closing()
        )
        self.exchange = None
        self._last = self._responded = self.answering = False
        self._fields = []
        self._head_bytes = 0
        self.resume_reading()
        if not reusable:
            self.transport.abort()
        else:
            if self._stale_parser:
                self._parser = httptools.HttpResponseParser(self)
                self._stale_parser = False
            exchange.connection = None
            self.upstream.release(self)  # first, so that the face's next request can take it
        exchange.complete(content, trailers)

    def _switch(self, exchange: Exchange, data: bytes) -> None:
        response = exchange.response
        if response is None or response.status != 101:
            self._break(UpstreamBroken("upstream switched protocols unasked"))
            return
        self.tunnel = True
        exchange.disarm()
        exchange.on_tunnel(response, data)

    def _break(self, error: GatewayError) -> None:
        exchange = self.exchange
        self.transport.abort()
        if exchange is not None:
            self.exchange = None
            exchange.lost(error)

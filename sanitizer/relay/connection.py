"""One HTTP/1.1 connection to upstream: reads what comes, for one exchange after another.

httptools judges heads; where they end, and all content, is found here, octet by octet, by the length that the head
declares. Cases, before the code that branches on them:

* Bytes after the response's end, or on an idle connection: nobody asked for them; the connection is closed.
* The connection ends where the content's end is not: an error, unless the content lasts until the connection closes.
  Upstream's FIN then ends it, even if some of the request is still on its way, for upstream may never take that. In TLS
  a FIN without a close_notify, which many servers leave out, does so too, and is counted. A reset never does.
* The connection is lost with octets unread, because a write has found the reset before they were read, or because
  uvloop ends a TLS connection whose reading is paused: they are read first, for they may be the rest of the answer.
* 101: what follows the head is no HTTP any more; a tunnel if the exchange has asked for it, an error if not.
"""

import asyncio
import os
import random
import select
import socket
import ssl
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast

import httptools

from sanitizer.errors import UpstreamBroken, UpstreamNotReading
from sanitizer.keepalive import probe_when_silent
from sanitizer.relay.advice import NO_CLOSE_NOTIFY, advise
from sanitizer.relay.exchange import Exchange, Response
from sanitizer.relay.framing import Framing, response_length
from sanitizer.relay.headers import read_head
from sanitizer.relay.reading import ChunkedDecoder, HeadReader, Malformed
from sanitizer.relay.stalls import Pending
from sanitizer.relay.transport import Transport, acknowledged

if TYPE_CHECKING:
    from sanitizer.relay.upstream import Upstream

_HEAD_LIMIT: Final = 256 * 1024
"""Bytes of an upstream's response head: beyond, it is broken."""
LIFETIME: Final = 120.0
"""Seconds, a quarter more or less, after which a connection is closed at the end of its exchange."""
_REST: Final = 64 * 1024
"""Bytes that are read at once from a connection that has been lost."""


class Connection(asyncio.Protocol):
    """One connection to upstream."""

    __slots__ = (
        "_chunks",
        "_first",
        "_heads",
        "_keeps_alive",
        "_left",
        "_poll",
        "_reading_paused",
        "_written",
        "answering",
        "exchange",
        "idle_since",
        "renew_at",
        "reused",
        "transport",
        "tunnel",
        "upstream",
        "write_paused",
    )

    def __init__(self, upstream: "Upstream") -> None:
        self.upstream = upstream
        self.exchange: Exchange | None = None
        self.reused = False  # it has been free since it was made, so that upstream may have closed it
        self.idle_since = 0.0
        self.answering = False  # a byte of the current response has come
        self.write_paused = False
        self.tunnel = False
        self._poll = select.poll()
        self._reading_paused = False
        self._written = 0  # octets, beyond those of the heads and what has come with them
        self._heads = HeadReader(httptools.HttpResponseParser, _HEAD_LIMIT)
        self._left = 0  # octets of the content still to come
        self._chunks: ChunkedDecoder | None = None
        self._first: tuple[bytes, bytes | None] | None = None  # decoded of what has come with the head
        self._keeps_alive = False

    @property
    def fresh(self) -> bool:
        """Whether the idle connection can be used: open, and nothing to read, neither bytes nor the end of them."""
        return not self.transport.is_closing() and not self._poll.poll(0)

    def write(self, data: bytes) -> None:
        """Send more of the current request, or into the tunnel."""
        self._written += len(data)
        self.transport.write(data)

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

    def check(self) -> Pending | None:
        """See `sanitizer.relay.stalls`. Once upstream answers, it may leave the rest of the request unread."""
        exchange = self.exchange
        unsent = self.transport.get_write_buffer_size()
        if not unsent or (exchange is not None and exchange.response is not None and not self.tunnel):
            return None
        return Pending(self._written - unsent + acknowledged(self.transport), self._not_reading)

    def _not_reading(self) -> None:
        if self.exchange is not None:
            self.exchange.fail(UpstreamNotReading())
        else:  # the client of a tunnel has left, and what it has sent before can't be delivered
            self.upstream.count_error(UpstreamNotReading())
            self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(Transport, transport)
        # at random, so that connections that were made together are not all renewed together
        self.renew_at = self.upstream.loop.time() + LIFETIME * random.uniform(0.75, 1.25)  # noqa: S311
        sock = transport.get_extra_info("socket")
        # first, because event loops use a connection even if this method has raised an exception
        self._poll.register(sock.fileno(), select.POLLIN | getattr(select, "POLLRDHUP", 0))
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            probe_when_silent(sock)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.close()
            return
        if self.tunnel:
            exchange.on_tunnel_data(data)
            return
        if not exchange.transmitted:  # meant for nobody
            self.close()
            exchange.lost(UpstreamBroken())
            return
        self.answering = True
        try:
            while exchange.response is None:
                rest = self._read_head(exchange, data)
                if rest is None or self.exchange is not exchange:
                    return
                data = rest
            self._read_content(exchange, exchange.response, data)
        except (Malformed, UpstreamBroken) as error:
            self.close()
            exchange.lost(UpstreamBroken(f"upstream's answer is faulty: {error}"))

    def eof_received(self) -> bool:
        exchange = self.exchange
        if exchange is not None and self.tunnel:
            exchange.on_tunnel_eof()
            return self.transport.can_write_eof()
        self.close()  # not when all has been written, which may be never
        self._upstream_ended(exchange, in_order=True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.exchange is not None and self.exchange.transmitted:
            self._read_rest(self.exchange)
        exchange, self.exchange = self.exchange, None
        self.upstream.closed(self)
        self._upstream_ended(exchange, in_order=exc is None)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.on_blocked()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.on_unblocked()

    # Reading

    def _read_head(self, exchange: Exchange, data: bytes) -> bytes | None:
        """Read a head; returns what follows it, None if that isn't for the exchange or the head is not complete."""
        found = self._heads.feed(data)
        if found is None:
            return None
        octets, rest = found
        version = octets[:8]
        if not version.startswith(b"HTTP/"):
            raise UpstreamBroken("not HTTP")
        status = int(octets[9:12])
        head = read_head(octets, answer=True)
        octets = head.octets if version == b"HTTP/1.1" else b"HTTP/1.1" + head.octets[8:]
        if status < 200:
            if status < 100:
                raise UpstreamBroken("no valid status")
            if status != 101:
                exchange.on_interim(octets)
                return rest or None
            if not exchange.upgrade or head.upgrade is None:
                raise UpstreamBroken("protocols switched unasked")
            octets = octets[:-2] + b"Connection: Upgrade\r\nUpgrade: " + head.upgrade + b"\r\n\r\n"
            self.tunnel = True
            exchange.disarm()
            self.upstream.seconds.observe(perf_counter() - exchange.since)
            exchange.response = Response(status, octets, 0)
            exchange.on_tunnel(exchange.response, rest)
            return None
        length = response_length(exchange.method, status, head)
        if length is Framing.CHUNKED:
            self._chunks = ChunkedDecoder()
            self._first = self._chunks.feed(rest)  # before the head passes: if malformed, the answer is an error
        elif length is not Framing.UNTIL_CLOSE:
            self._left = length
        options = head.connection
        self._keeps_alive = b"close" not in options and (version == b"HTTP/1.1" or b"keep-alive" in options)
        exchange.respond(Response(status, octets, length))
        return rest

    def _read_content(self, exchange: Exchange, response: Response, data: bytes) -> None:
        if self._chunks is not None:
            content, rest = self._first or self._chunks.feed(data)
            self._first = None
            if rest is None:
                exchange.on_content(content, False, b"")
            else:
                trailers = self._chunks.trailers
                self._chunks = None
                self._end(exchange, content, trailers, surplus=bool(rest))
        elif response.length is Framing.UNTIL_CLOSE:
            exchange.on_content(data, False, b"")
        elif len(data) < self._left:
            self._left -= len(data)
            exchange.on_content(data, False, b"")
        else:
            left, self._left = self._left, 0
            self._end(exchange, data[:left], b"", surplus=len(data) > left)

    def _upstream_ended(self, exchange: Exchange | None, *, in_order: bool) -> None:
        """Upstream has ended the connection, which ends a response that lasts until then, if it was ``in_order``."""
        if exchange is None or exchange.done:
            return
        response = exchange.response
        if in_order and response is not None and response.length is Framing.UNTIL_CLOSE:
            if not self._end_is_announced():
                self.upstream.unannounced_ends += 1
                advise(NO_CLOSE_NOTIFY)
            exchange.complete(b"", b"")
        else:
            exchange.lost(UpstreamBroken())

    def _read_rest(self, exchange: Exchange) -> None:
        """Read what has come before the connection was lost, and has not been handed over."""
        tls: ssl.SSLObject | None = self.transport.get_extra_info("ssl_object")
        sock = self.transport.get_extra_info("socket")
        try:
            while not exchange.done:
                data = os.read(sock.fileno(), _REST) if tls is None else tls.read(_REST)
                if not data:
                    return
                self.data_received(data)
        except OSError:  # there is nothing, or no more; `ssl.SSLError` is one
            pass

    def _end_is_announced(self) -> bool:
        """Whether upstream has said that it has sent all: in TLS by a close_notify, without TLS by its FIN."""
        tls: ssl.SSLObject | None = self.transport.get_extra_info("ssl_object")
        try:
            return tls is None or not tls.read(1)
        except ssl.SSLZeroReturnError:
            return True
        except ssl.SSLError:  # no close_notify has come
            return False

    def _end(self, exchange: Exchange, content: bytes, trailers: bytes, *, surplus: bool) -> None:
        """The response is whole: give the connection back, or close it, then tell the face."""
        self.exchange = None
        self.answering = False
        if surplus or not self._keeps_alive or not exchange.request_complete or self.transport.is_closing():
            self.transport.abort()
        else:
            if self._reading_paused:
                self.resume_reading()
            exchange.connection = None
            self.upstream.release(self)  # first, so that the face's next request can take it
        exchange.complete(content, trailers)

"""A client connection: it reads requests, passes each of them to a handler, and writes the handler's response.

An ordinary request is handled by a `Proxied`, which is an `Exchange`: there is no task, no ASGI scope and no future. A
request that the sanitizer intercepts is handled by an `Intercepted`. A request for an upgrade is relayed like an
ordinary request; when upstream has switched protocols, the two connections become a tunnel (`sanitizer.relay.pipe`).

=========  ================================================  ================================================
State      What it waits for                                 The next states
=========  ================================================  ================================================
IDLE       a request                                         HEAD, RECEIVING, ANSWERING, LINGERING, CLOSING
HEAD       the rest of a request's head                      RECEIVING, ANSWERING, LINGERING, CLOSING
RECEIVING  the rest of the content, and the response         ANSWERING, LINGERING, CLOSING
ANSWERING  the response to a complete request                IDLE, CLOSING, TUNNEL
LINGERING  the client to read the response and close         CLOSING
CLOSING    the client to acknowledge what was written
TUNNEL     nothing: the connection is an end of a tunnel
CLOSED     nothing: the connection is lost
=========  ================================================  ================================================

Every state but TUNNEL leads to CLOSED as well.

Cases, before the code that branches on them:

* A request is received before the response to the previous one is sent (pipelining, RFC 9112 section 9.3.2): its octets
  are kept unparsed, so that the responses keep their order. Up to a limit, the socket is still read, because asyncio
  reports a disconnect only while it reads.
* The response is complete before the request is: it says ``Connection: close``. What the client still sends is read and
  dropped for a while, but no longer than `LINGER_LIMIT`, so that the client can read the response (RFC 9112 section
  9.6).
* Two parsers could read a request differently: it is refused, and the connection is closed.
* The client disconnects, even if only by a FIN: the connection to upstream is closed at once. After a FIN, the client
  still gets the responses to earlier requests, if it reads them in time. If the response to the current request has
  started, however, the connection is reset, so that the response cannot be mistaken for a complete one.
* The client reads slowly: as long as it reads some of its response now and then, it is given more time. If it reads
  nothing, the connection is reset, so that the response cannot be mistaken for a complete one.
* Upstream breaks off in the middle of a response: the client's connection is reset, so that the response cannot be
  mistaken for a complete one.
* The client stalls (`sanitizer.relay.stalls`): if nothing of a response has been written, it gets a 408. Otherwise the
  connection is reset.
* The client disconnects while reading from it is paused: `check` detects that.
"""

import asyncio
import socket
from collections.abc import Callable
from enum import Enum
from time import perf_counter
from typing import Final, Protocol, cast

import httptools

from sanitizer.errors import BadRequest, ClientNotReading, ClientNotSending, GatewayError, HeadTooLarge
from sanitizer.http1.bodies import LengthReader, Reader, reader
from sanitizer.http1.forwarding import Forwarding, Peer
from sanitizer.http1.heads import HeadReader, Malformed, Oversized, has_origin
from sanitizer.http1.requests import CachedHead, describe_other_protocol, read_request
from sanitizer.http1.responses import error_response
from sanitizer.relay.closing import Closing
from sanitizer.relay.connections import Connections
from sanitizer.relay.counters import Counters, OnRequestEnded
from sanitizer.relay.deadline import Deadline
from sanitizer.relay.dispatch import make_handler
from sanitizer.relay.handler import Handler, Pause
from sanitizer.relay.interception import Interceptor, SendLookup
from sanitizer.relay.pipe import TunnelEnd
from sanitizer.relay.pool import Pool
from sanitizer.relay.proxied import Proxied
from sanitizer.relay.stalls import Pending
from sanitizer.relay.transport import Transport, octets_received, peer_has_closed, unacknowledged
from sanitizer.relay.writer import Writer

HEAD_LIMIT: Final = 64 * 1024
"""Bytes of a request head; a larger one is answered with 431."""
HEAD_TIMEOUT: Final = 30.0
"""Seconds from a head's first byte to its last; after that the connection is closed."""
LINGER: Final = 5.0
"""Seconds that a client has to read its response. They start again whenever it sends more, which is dropped."""
LINGER_LIMIT: Final = 30.0
"""Seconds of lingering in all, like nginx's ``lingering_time``, because a client could go on sending for ever."""
_REMEMBERED_HEADS_LIMIT: Final = 8
"""Heads that are remembered on one connection. A client that has sent more of them than this rarely repeats one."""
_PIPELINED_LIMIT: Final = 64 * 1024
"""Bytes of pipelined requests. If there are more, reading is paused, and a disconnect is not reported."""


class State(Enum):
    """What a client connection waits for, see this module's table."""

    IDLE = "idle"
    HEAD = "head"
    RECEIVING = "receiving"
    ANSWERING = "answering"
    LINGERING = "lingering"
    CLOSING = "closing"
    TUNNEL = "tunnel"
    CLOSED = "closed"


# looking up a member on the enum class is slow
_IDLE, _HEAD, _RECEIVING, _ANSWERING, _LINGERING, _CLOSING, _TUNNEL, _CLOSED = State


class Gateway(Protocol):
    """The gateway that a client connection belongs to."""

    pool: Pool
    forwarding: Forwarding
    counters: Counters
    connections: Connections
    """The open client connections. Each adds itself when it is made, and removes itself when lost."""
    draining: bool
    on_request_ended: OnRequestEnded | None
    keepalive_timeout: float
    interceptor: Interceptor
    """Decides which requests are intercepted."""
    send_lookup: SendLookup
    """Sends the lookups of an interception to upstream."""


class ClientConnection(asyncio.Protocol):
    """One client connection. The server calls `shutdown` and `abort`, and the stall sweep calls `check`."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.loop = asyncio.get_running_loop()
        self.pool = gateway.pool
        self.transport: Transport
        self.peer: Peer
        self.state = _IDLE
        self.write_blocked = False  # the write buffer is full, because the client reads slowly
        self.cross_origin = False  # the current request has an Origin field; a repeated head has the same
        self._writer: Writer
        self.write: Callable[[bytes], None]  # the writer's method, which saves a call for each piece
        self._head_reader = HeadReader(httptools.HttpRequestParser, HEAD_LIMIT)
        self._handler: Handler | None = None  # of the current request
        self._content_reader: Reader | None = None  # of the current request
        self._pipelined = b""  # octets received after the current request
        self._received = 0  # octets of content, of all requests
        self._awaits_continue = False  # the client may wait for a 100 before it sends the content
        self._on_request_ended = gateway.on_request_ended
        self._began_at = 0.0  # when the current request's head was complete; like its target, for `on_request_ended`
        self._target = b""
        self._repeat: CachedHead | None = None  # the previous request's head, if it can be repeated
        self._remembered_heads = 0  # how many heads have been remembered
        self._pauses: set[Pause] = set()
        self._deadline = Deadline(self.loop, self._expire)
        self._linger_end = 0.0
        self._unacknowledged: int | None = None  # octets, when the deadline last expired
        self._closing: Closing | None = None

    def _enter(self, state: State) -> None:
        """Change the state, and set the deadline at which the connection is closed in this state, if there is one."""
        self.state = state
        if state is _IDLE:
            self._deadline.set(self.gateway.keepalive_timeout)
        elif state is _HEAD:
            self._deadline.set(HEAD_TIMEOUT)
        elif state is _LINGERING:
            self._deadline.set(LINGER)
            self._linger_end = self.loop.time() + LINGER_LIMIT
        else:
            self._deadline.clear()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(Transport, transport)
        self._writer = Writer(self.transport, self.pool.outbox)
        self.write = self._writer.write
        self.gateway.connections.add(self)
        sock = transport.get_extra_info("socket")
        name = transport.get_extra_info("peername")
        self.address = str(name[0]) if isinstance(name, tuple) else None  # None on a unix socket
        scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self.peer = self.gateway.forwarding.peer(self.address, scheme)
        self._enter(_IDLE)
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.address is None:  # reset before it was accepted; its request cannot be forwarded without an address
                self.abort()
        if self.peer.address is not None:
            self.address = self.peer.address.decode()  # an IPv4 client's address in IPv4 form, even on an IPv6 socket
        if self.gateway.connections.shutting_down:  # its TLS handshake ended after `Connections.shutdown`
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gateway.connections.discard(self)
        self._enter(_CLOSED)
        self._deadline.cancel()
        if self._closing is not None:
            self._closing.cancel()
        self._cancel()

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state is _RECEIVING or ((state is _IDLE or state is _HEAD) and not self.write_blocked):
            self._read(data)
        elif state is _IDLE or state is _HEAD or state is _ANSWERING:
            self._defer(self._pipelined + data)
        elif state is _LINGERING:  # clients may read the response only when they have sent everything
            self._deadline.extend(min(LINGER, self._linger_end - self.loop.time()))

    def eof_received(self) -> bool:
        if self.state is not _LINGERING and self.state is not _CLOSING:
            self._client_disconnected()
        return False

    def pause_writing(self) -> None:
        self.write_blocked = True
        if self._handler is not None:
            self._handler.pause_reading()

    def resume_writing(self) -> None:
        self.write_blocked = False
        if self._handler is not None:
            self._handler.resume_reading()
        elif self._pipelined and (self.state is _IDLE or self.state is _HEAD):
            self._read_pipelined()

    # What the server calls

    def shutdown(self) -> None:
        """Take no further request, and close when the response to the current one is sent."""
        if self._handler is not None:
            self._handler.close_after_response()
        elif self.state is _IDLE:
            self._close()

    def abort(self) -> None:
        """Reset the connection, so that the response cannot be mistaken for a complete one."""
        self._enter(_CLOSING)
        self._writer.reset()

    # What the stall sweep calls

    def check(self) -> Pending | None:
        """What the connection waits for the client or upstream to do, for the stall sweep; None if for nothing.

        Also detects a client that has disconnected while reading is paused.
        """
        state = self.state
        if self._pauses and state is not _LINGERING and state is not _CLOSING and peer_has_closed(self.transport):
            self._client_disconnected()
        if self.transport.get_write_buffer_size():
            return Pending(self._writer.progress, self._not_reading)
        handler = self._handler
        if handler is None:
            return None
        if self.state is _RECEIVING and not self._awaits_continue and not self._pauses and not handler.response_started:
            return Pending(self._received + octets_received(self.transport), self._not_sending)
        return handler.pending()

    def _not_reading(self) -> None:
        self.gateway.counters.count_stall(ClientNotReading(), self.address)
        self.abort()

    def _not_sending(self) -> None:
        error = ClientNotSending()
        self.gateway.counters.count_stall(error, self.address)
        self._respond_with_error(error)

    # What a handler calls

    def write_interim(self, head: bytes) -> None:
        """Send the head of a 1xx response."""
        if head.startswith(b"HTTP/1.1 100"):
            self._awaits_continue = False
        self._writer.write(head + b"\r\n")

    def pause(self, reason: Pause) -> None:
        """Stop reading until `resume` is called with the same reason."""
        if not self._pauses and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses.add(reason)

    def resume(self, reason: Pause) -> None:
        """Resume reading, unless it is paused for another reason."""
        if reason in self._pauses:
            self._pauses.remove(reason)
            if not self._pauses and not self.transport.is_closing():
                self.transport.resume_reading()

    def stays_open(self, keep_alive: bool) -> bool:
        """Whether the connection can take another request after the response to the current one."""
        return keep_alive and self.state is not _RECEIVING and not self.gateway.draining

    def response_sent(self, handler: Handler, keep_alive: bool) -> None:
        """Called when the response to the current request is complete and written."""
        if self.state is _CLOSING:
            return  # the connection has just been reset; `connection_lost` counts the request
        self._unacknowledged = None
        self._handler = None
        self._count(handler.method, handler.status)
        if self.state is _RECEIVING:
            self._linger()
        elif not keep_alive:
            self._close()
        else:
            self._enter(_IDLE)
            if self._pipelined and not self.write_blocked:
                self._read_pipelined()

    def become_tunnel(self, handler: Handler, upstream: TunnelEnd) -> None:
        """End the current request, and make the connection a tunnel to ``upstream``."""
        gateway = self.gateway
        self._handler = None
        self._count(handler.method, handler.status)
        self._enter(_TUNNEL)
        self._deadline.cancel()
        self._writer.flush()
        self.resume("pipelined")
        end = TunnelEnd(self.transport, gateway.keepalive_timeout, self._tunnel_stalled, self._tunnel_lost)
        gateway.connections.add(end)  # first, so that a drain never finds that no connection is open
        gateway.connections.discard(self)
        gateway.counters.tunnels += 1
        end.join(upstream)
        if self.write_blocked:
            end.pause_writing()
        early, self._pipelined = self._pipelined, b""
        if early:
            end.data_received(early)

    def _tunnel_stalled(self) -> None:
        self.gateway.counters.count_stall(ClientNotReading(), self.address)

    def _tunnel_lost(self, end: TunnelEnd, broken_off: bool) -> None:
        self.gateway.connections.discard(end)
        self.gateway.counters.tunnels -= 1

    # Reading

    def _read(self, data: bytes) -> None:
        """Read a request, or more of it, and defer the octets after it."""
        try:
            rest: bytes | None = data
            if self._handler is None:
                rest = self._read_head(data)
            if rest is not None and self.state is _RECEIVING:
                rest = self._read_content(rest)
        except GatewayError as error:
            self._refuse(error)
            return
        if rest:
            self._defer(rest)
        handler = self._handler
        # only now, so that a head and the content received together with it are sent in one write
        if handler is not None and not handler.started:
            handler.start()

    def _defer(self, data: bytes) -> None:
        """Keep ``data`` until the response to the current request is sent."""
        self._pipelined = data
        if len(data) > _PIPELINED_LIMIT:
            self.pause("pipelined")

    def _read_pipelined(self) -> None:
        if self.transport.is_closing():  # the client has just disconnected
            return
        data, self._pipelined = self._pipelined, b""
        self.resume("pipelined")
        self._read(data)

    def _read_head(self, data: bytes) -> bytes | None:
        """Read a head. Returns the octets after it, or None if it is not complete. Raises `GatewayError`."""
        if self.state is _IDLE:
            data = data.lstrip(b"\r\n")  # RFC 9112 section 2.2
            if not data:
                return None
            if self._repeat is not None:
                end = data.find(b"\r\n\r\n") + 2
                head = data[:end]
                again = self._repeat.match(head)
                if again is not None:
                    if self._on_request_ended is not None:
                        self._remember_for_log(head)
                    self._begin_repeat(self._repeat, *again)
                    return data[end + 2 :]
        try:
            found = self._head_reader.feed(data)
        except Oversized:
            raise HeadTooLarge from None
        except Malformed as malformed:
            raise BadRequest(
                describe_other_protocol(self._head_reader.held) or f"malformed request: {malformed}"
            ) from None
        if found is None:
            if self.state is _IDLE:
                self._enter(_HEAD)
            return None
        head, rest = found
        self._repeat = None
        if self._on_request_ended is not None:
            self._remember_for_log(head)
        try:
            self._begin(head)
        except GatewayError as error:
            self._refuse(error, head)
            return None
        return rest

    def _begin(self, head: bytes) -> None:
        """Start to handle the request with this head. Raises `GatewayError` if it can't be relayed."""
        gateway = self.gateway
        request = read_request(head, self.peer, gateway.forwarding, self.pool.authority)
        self.cross_origin = request.head.has_origin
        self._handler = handler = make_handler(self, request, gateway.interceptor, gateway.send_lookup)
        ordinary = type(handler) is Proxied and request.octets is head
        if ordinary and request.cacheable and self._remembered_heads < _REMEMBERED_HEADS_LIMIT:
            self._remembered_heads += 1
            self._repeat = CachedHead.of(request)
        gateway.counters.in_flight += 1  # only now: the end of a request that has a handler is always counted
        if request.length:
            self._content_reader = reader(request.length)
            self._awaits_continue = request.expects_continue
            self._enter(_RECEIVING)
        else:
            self._enter(_ANSWERING)
            handler.end()

    def _begin_repeat(self, repeat: CachedHead, outbound: bytes, length: int) -> None:
        """Start to handle a request whose head repeats the previous one."""
        self.gateway.counters.in_flight += 1
        self._handler = handler = Proxied(self, repeat.method, outbound, length, repeat.keep_alive)
        if length:
            self._content_reader = LengthReader(length)
            self._enter(_RECEIVING)
        else:
            self._enter(_ANSWERING)
            handler.end()

    def _read_content(self, data: bytes) -> bytes | None:
        """Read content of the current request. Returns the octets after its end, or None if it is not complete."""
        handler, content_reader = self._handler, self._content_reader
        assert handler is not None  # noqa: S101 - for the type checker
        assert content_reader is not None  # noqa: S101
        if data:
            self._received += len(data)
            self._awaits_continue = False
        try:
            content, rest = content_reader.feed(data)
        except Oversized as oversized:
            raise HeadTooLarge(str(oversized)) from None
        except Malformed as malformed:
            raise BadRequest(str(malformed)) from None
        if content:
            handler.content(content)
        if rest is not None:
            self._enter(_ANSWERING)
            handler.end()
        return rest

    # The end of a request

    def _client_disconnected(self) -> None:
        """Handle a disconnect. The client may still read the responses to earlier requests, but nothing else."""
        if self._cancel():
            self.abort()
        else:
            self._close()  # which first writes the responses to earlier requests

    def _cancel(self) -> bool:
        """Cancel the current request, because the client has disconnected. Returns whether its response had started."""
        handler, self._handler = self._handler, None
        if handler is None:
            return False
        response_started = handler.response_started
        handler.cancel()
        self._count(handler.method, handler.status)
        return response_started

    def _refuse(self, error: GatewayError, head: bytes = b"") -> None:
        """Refuse and count a request that can't be relayed. ``head`` is empty if it could not be read."""
        if self._respond_with_error(error, head):
            self.gateway.counters.count_refusal(error, self.address)

    def _respond_with_error(self, error: GatewayError, head: bytes = b"") -> bool:
        """Send an error response, and read no further request.

        Returns False if another response has already started. In that case the connection is reset.
        """
        handler, self._handler = self._handler, None
        method = head.partition(b" ")[0] if handler is None else handler.method
        if handler is not None:
            # the content is malformed or has stalled: upstream must not mistake what it has received for all of it
            response_started = handler.response_started
            if not response_started:
                handler.status = error.status
            handler.cancel()
            self._count(handler.method, handler.status)
            if response_started:
                self.abort()
                return False
        else:
            self.cross_origin = has_origin(head or self._head_reader.held)
            self.gateway.counters.in_flight += 1
            if not head:
                self._began_at, self._target = perf_counter(), b""
            self._count(method, error.status)
        error_head, content = error_response(error, False, self.cross_origin, method)
        self._writer.write(error_head + b"\r\n" + content)
        self._linger()
        return True

    def _count(self, method: bytes, status: int) -> None:
        """Count a request that has ended. Called exactly once for each."""
        self.gateway.counters.count_request(method, status)
        if self._on_request_ended is not None:
            self._on_request_ended(self.address, method, self._target, status, perf_counter() - self._began_at)

    def _remember_for_log(self, head: bytes) -> None:
        """Keep the arguments of `on_request_ended` for the request with this head."""
        self._began_at = perf_counter()
        _, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        self._target = rest.rpartition(b" ")[0]

    # Closing

    def _linger(self) -> None:
        """Close the sending side, and drop what the client sends until it has had time to read the response."""
        self._enter(_LINGERING)
        self._writer.write_eof()
        for reason in tuple(self._pauses):
            self.resume(reason)

    def _close(self) -> None:
        """Close when the client has acknowledged what was written."""
        self._enter(_CLOSING)
        self._closing = self._writer.close(self.gateway.keepalive_timeout)

    def _expire(self) -> None:
        """Close the connection when the deadline has passed, unless the client acknowledges more of a response."""
        before, self._unacknowledged = self._unacknowledged, unacknowledged(self.transport)
        if self._unacknowledged and (before is None or self._unacknowledged < before):
            self._deadline.set(self.gateway.keepalive_timeout)
        else:
            self._close()

"""A client connection: reads requests, gives each to a handler, and writes what the handler answers, socket to socket.

An ordinary request becomes a `Relayed`, an `Exchange` and nothing more: no task, no ASGI scope, no future. httptools
judges its head, `headers` rewrites it, content passes as it is read. What the sanitizer intercepts becomes an
`Intercepted`. An upgrade becomes a tunnel: the handshake is relayed, then bytes both ways.

Cases, before the code that branches on them:

* A request comes before the one before it is answered (pipelining, RFC 9112 section 9.3.2): its octets wait, unread, so
  that answers keep their order. The socket is read on, else a client that leaves would go unseen, up to a limit.
* The response is whole before the request is: it says ``Connection: close``, what still comes is read and dropped for a
  while, so that the client gets to read the response (RFC 9112 section 9.6).
* A request that two parsers could read differently is refused, and the connection closed.
* The client leaves, by FIN too: upstream's connection is closed at once. Only in a tunnel one side may end first.
  After a FIN the client still gets what was answered before, if it takes it in time; but if the response to the
  request at work has begun, the connection is reset, so that the response can't be taken for whole.
* The client reads slowly: while it takes some of its response now and then, it is given more time; if it takes none,
  the connection is reset, so that the response can't be taken for whole.
* Upstream breaks off in mid-response: the client's connection is reset, so that no response can be taken for whole.
* The client stalls, see `sanitizer.relay.stalls`: if nothing of an answer has been written, it gets 408; else the
  connection is reset.
* The client leaves while it is not read: `check` finds out. In a tunnel only a reset counts: either side may end first.
"""

import asyncio
import socket
import struct
from time import perf_counter
from typing import Final, Protocol, cast

import httptools

from sanitizer.connections import Connections
from sanitizer.errors import BadRequest, ClientNotReading, ClientNotSending, GatewayError, HeadTooLarge
from sanitizer.relay.advice import HTTP_1_0_UPGRADE, advise
from sanitizer.relay.counters import Counters, OnEnded
from sanitizer.relay.framing import Framing
from sanitizer.relay.handler import Handler, Pause, Tunnel
from sanitizer.relay.headers import Forwarding, Peer, has_origin
from sanitizer.relay.intercepted import Ask, Intercepted, Interceptor
from sanitizer.relay.reading import ChunkedDecoder, HeadReader, Malformed, Oversized
from sanitizer.relay.relayed import Relayed, Writing, error_response
from sanitizer.relay.repeat import Repeat
from sanitizer.relay.request import decoded_path, other_protocol, read_request
from sanitizer.relay.stalls import Pending
from sanitizer.relay.transport import Transport, acknowledged, has_left, received, untaken
from sanitizer.relay.upstream import Upstream

HEAD_LIMIT: Final = 64 * 1024
"""Bytes of a request head; a larger one is answered with 431."""
HEAD_TIMEOUT: Final = 30.0
"""Seconds from a head's first byte to its last; then the connection is closed."""
_LINGER: Final = 5.0
"""Seconds in which a client may read its response. They begin anew when it sends more, which is dropped."""
_CLOSE_NOTIFY: Final = 0.1
"""Seconds from one look to the next at whether a TLS client has taken all, close_notify too."""
_BULK: Final = 16 * 1024
"""Bytes that are written at once: the client may be slow, and reading from upstream must pause before more comes."""
_NEW_HEADS: Final = 8
"""Heads on one connection that are remembered; a client that never repeats one is not worth it."""
_READS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
"""Methods of requests that write nothing (RFC 9110 section 9.2.1)."""
_NEVER: Final = float("inf")
_PIPELINED: Final = 64 * 1024
"""Bytes of requests waiting for their turn; beyond, the client is not read, and so not seen to leave."""


class Front(Protocol):
    """What a client connection needs of the gateway that it belongs to."""

    upstream: Upstream
    forwarding: Forwarding
    counters: Counters
    connections: Connections
    """Those that are open: each adds itself, and discards itself when it is lost."""
    draining: bool
    on_ended: OnEnded | None
    keepalive_timeout: float
    interceptor: Interceptor
    """Asked about every POST."""
    ask: Ask
    """Sends lookups to upstream."""


class RelayProtocol(asyncio.Protocol):
    """One client connection. The server calls `shutdown` and `abort`, the stall sweep `check`."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.loop = asyncio.get_running_loop()
        self.upstream = front.upstream
        self.transport: Transport
        self.peer: Peer
        self.closing = False  # no further request is read
        self.tunnel: Tunnel | None = None
        self._heads = HeadReader(httptools.HttpRequestParser, HEAD_LIMIT)
        self._request: Handler | None = None  # the one at work
        self._on_ended = front.on_ended
        self._arrived = 0.0  # when its head was whole, and its target; kept for `on_ended` alone
        self._target = b""
        self._receiving = False  # its content is still coming
        self._left = 0  # octets of it, where their number is known
        self._chunks: ChunkedDecoder | None = None  # where it is not
        self._received = 0  # octets of content, of all requests
        self._written = 0  # octets
        self._awaits_continue = False  # it need not send the content yet
        self._waiting = b""  # what has come behind it
        self.write_blocked = False  # the client reads more slowly than is written to it
        self.cross_origin = False  # the request at work has an Origin, as the head that it repeats, if it repeats one
        self._repeat: Repeat | None = None  # the head before this one
        self._new_heads = 0  # heads that were none
        self._pauses: set[Pause] = set()
        self._deadline = _NEVER
        self._unsent = _NEVER  # when the deadline last came
        self._timer: asyncio.TimerHandle | None = None
        self._tls_end: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(Transport, transport)
        self.front.connections.add(self)
        sock = transport.get_extra_info("socket")
        name = transport.get_extra_info("peername")
        self.address = str(name[0]) if isinstance(name, tuple) else None  # None on a unix socket
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.address is None:  # reset before it was accepted: its request must not go on as from nowhere
                self.abort()
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self.peer = self.front.forwarding.peer(self.address, self.scheme)
        if self.peer.address is not None:
            self.address = self.peer.address.decode()  # an IPv4 client's, on an IPv6 socket too
        self._expire_in(self.front.keepalive_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self.front.connections.discard(self)
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tls_end is not None:
            self._tls_end.cancel()
        self._cancel()
        if self.tunnel is not None:
            self.tunnel.leave()
            self.tunnel = None
            self.front.counters.tunnels -= 1

    def data_received(self, data: bytes) -> None:
        if self.tunnel is not None:
            self.tunnel.tunnel_send(data)
        elif self.closing:
            # it goes on sending, and reads its response after that; it may have been given more time already
            self._deadline = max(self._deadline, self.loop.time() + _LINGER)
        elif not self._receiving and (self._request is not None or self.write_blocked):
            self._waiting += data
            if len(self._waiting) > _PIPELINED:
                self.pause("pipelined")
        else:
            self._read(data)

    def eof_received(self) -> bool:
        if self.tunnel is not None:
            return self.tunnel.tunnel_eof()
        if not self.closing:
            self._leave()
        return False

    def pause_writing(self) -> None:
        self.write_blocked = True
        if self.tunnel is not None:
            self.tunnel.pause_reading()
        elif self._request is not None:
            self._request.pause_reading()

    def resume_writing(self) -> None:
        self.write_blocked = False
        if self.tunnel is not None:
            self.tunnel.resume_reading()
        elif self._request is not None:
            self._request.resume_reading()
        elif self._waiting and not self.closing:
            self._read_waiting()

    # What the server calls

    def shutdown(self) -> None:
        """Take no further request; close as soon as the one at work is answered."""
        if self._request is not None:
            self._request.last()
        elif self.tunnel is None and not self.closing and not self._heads.begun:
            self.close()

    # What the stall sweep calls

    def check(self) -> Pending | None:
        if self._pauses and not self.closing:
            if self.tunnel is None and has_left(self.transport):
                self._leave()
            elif self.tunnel is not None and has_left(self.transport, half_close=False):
                self.abort()
        if unsent := self.transport.get_write_buffer_size():
            return Pending(self._written - unsent + acknowledged(self.transport), self._not_reading)
        request = self._request
        if request is None:
            return None
        if self._receiving and not self._awaits_continue and not self._pauses and not request.begun:
            return Pending(self._received + received(self.transport), self._not_sending)
        return request.pending()

    def _not_reading(self) -> None:
        self._stall(ClientNotReading())
        self.abort()

    def _not_sending(self) -> None:
        error = ClientNotSending()
        self._stall(error)
        self._reject(error)

    def _stall(self, error: GatewayError) -> None:
        self.front.counters.stall(error, self.address)

    # What a request calls

    def write_interim(self, head: bytes) -> None:
        if head.startswith(b"HTTP/1.1 100"):
            self._awaits_continue = False
        self.write(head)

    def pause(self, reason: Pause) -> None:
        if not self._pauses and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses.add(reason)

    def resume(self, reason: Pause) -> None:
        if reason in self._pauses:
            self._pauses.remove(reason)
            if not self._pauses and not self.transport.is_closing():
                self.transport.resume_reading()

    def stays_open(self, keep_alive: bool) -> bool:
        """Whether the connection can take another request after the response to the one at work."""
        return keep_alive and not self._receiving and not self.front.draining

    def answered(self, request: Handler, keep_alive: bool) -> None:
        """The response to the request at work is whole and written."""
        self._unsent = _NEVER
        if self._request is not request:
            return  # the client has left
        self._request = None
        self._ended(request)
        if self._receiving:
            self._linger()
        elif not keep_alive:
            self.close()
        else:
            self._expire_in(self.front.keepalive_timeout)
            if self._waiting and not self.write_blocked:
                self._read_waiting()

    def _leave(self) -> None:
        """The client has left: it still gets the responses to earlier requests, and nothing else."""
        if self._cancel():
            self.abort()
        else:
            self.close()  # when the responses to earlier requests are written
            self._progresses()  # so that at the deadline it is known whether the client takes them

    def _cancel(self) -> bool:
        """The client has left: cancel the request at work. Returns whether its response had begun."""
        request, self._request = self._request, None
        if request is None:
            return False
        begun = request.begun
        request.cancel()
        self._ended(request)
        return begun

    def _ended(self, request: Handler) -> None:
        """Count a request that is no longer at work: each comes here once."""
        self.front.counters.ended(request.method, request.status)
        if self._on_ended is not None:
            self._report(request.method, request.status)

    def _report(self, method: bytes, status: int) -> None:
        if self._on_ended is not None:
            self._on_ended(self.address, method, self._target, status, perf_counter() - self._arrived)

    def _read_waiting(self) -> None:
        if self.transport.is_closing():  # the client has left in this very turn: no request of its is begun any more
            return
        data, self._waiting = self._waiting, b""
        self.resume("pipelined")
        self._read(data)

    def write(self, data: bytes) -> None:
        """Send ``data`` at the end of this turn of the event loop, at once if there is nothing to send it with."""
        upstream = self.upstream
        outbox = upstream.outbox
        if len(data) > _BULK or upstream.alone:
            outbox.flush()
            self._write_now(data)
        else:
            outbox.add(self._write_now, data)

    def _write_now(self, data: bytes) -> None:
        if not self.transport.is_closing():  # else the client has left in this very turn, and uvloop would raise
            self._written += len(data)
            self.transport.write(data)

    def close(self) -> None:
        """Close when everything is written."""
        self.closing = True
        self.upstream.outbox.flush()
        self.transport.close()
        self._expire_in(self.front.keepalive_timeout)  # what a client does not read must not keep the connection
        if self.scheme == "https" and self._tls_end is None:
            self._tls_end = self.loop.call_later(_CLOSE_NOTIFY, self._end_tls)

    def abort(self) -> None:
        """Reset the connection, so that the response can't be taken for whole."""
        self.closing = True
        self.upstream.outbox.flush()  # what has come of it is the client's
        sock = self.transport.get_extra_info("socket")
        if sock is not None:  # else the kernel sends FIN, which ends a response that lasts until the connection closes
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _end_tls(self, taken: bool = False) -> None:
        """End a connection that is being closed when its client has taken all, close_notify too.

        uvloop would wait half a minute for the client's own close_notify, which an idle client does not send. Once
        ``taken``, the client had taken all that the kernel had: what uvloop may have kept has followed by now.
        """
        remaining = untaken(self.transport)
        if taken and not remaining:
            self.transport.abort()
        else:
            self._tls_end = self.loop.call_later(_CLOSE_NOTIFY, self._end_tls, not remaining)

    def enter_tunnel(self, request: Handler, tunnel: Tunnel) -> None:
        """The request at work has become a tunnel; what the client has sent early goes into it."""
        self._request = None
        self._ended(request)
        self.tunnel = tunnel
        self.front.counters.tunnels += 1
        early, self._waiting = self._waiting, b""
        if early:
            tunnel.tunnel_send(early)
        self.resume("pipelined")

    # Reading

    def _read(self, data: bytes) -> None:
        """Read a request, or more of it, and let what follows wait for its answer."""
        try:
            rest: bytes | None = data
            if self._request is None:
                rest = self._read_head(data)
            if rest is not None and self._receiving:
                rest = self._read_content(rest)
        except GatewayError as error:
            self._refuse(error)
            return
        request = self._request
        # not before now, so that a head and the content that has come with it are one write
        if request is not None and not request.started:
            request.start()
        if rest:
            self._waiting = rest
            if len(rest) > _PIPELINED:
                self.pause("pipelined")

    def _read_head(self, data: bytes) -> bytes | None:
        """Read a head; returns what follows it, None if it is not complete. Raises `GatewayError`."""
        begun = self._heads.begun
        if not begun:
            data = data.lstrip(b"\r\n")  # RFC 9112 section 2.2
            if not data:
                return None
            if self._repeat is not None:
                end = data.find(b"\r\n\r\n") + 4
                again = self._repeat.match(data[:end])
                if again is not None:
                    if self._on_ended is not None:
                        self._note(data[:end])
                    self._request = self._relay_again(self._repeat, *again)
                    return data[end:]
        try:
            found = self._heads.feed(data)
        except Oversized:
            raise HeadTooLarge from None
        except Malformed as error:
            raise BadRequest(other_protocol(self._heads.held) or f"malformed request: {error}") from None
        if found is None:
            if not begun:
                self._expire_in(HEAD_TIMEOUT)
            return None
        head, rest = found
        self._deadline = _NEVER
        self._repeat = None
        if self._on_ended is not None:
            self._note(head)
        try:
            self._request = self._make_request(head)
        except GatewayError as error:
            self._refuse(error, head)
            return None
        if not self._receiving:
            self._request.end()
        return rest

    def _note(self, head: bytes) -> None:
        """Keep what `on_ended` is called with for the request with this head."""
        self._arrived = perf_counter()
        _, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        self._target = rest.rpartition(b" ")[0]

    def _make_request(self, octets: bytes) -> Handler:
        request = read_request(octets, way=self.peer.trusted)
        self.cross_origin = request.head.has_origin
        length = request.length
        if length is Framing.CHUNKED:
            self._chunks = ChunkedDecoder()
            self._receiving = True
        elif length:
            self._left = cast(int, length)
            self._receiving = True
        self._awaits_continue = self._receiving and request.expects_continue
        front = self.front
        outbound = request.onward(front.forwarding, self.peer, self.upstream.address.authority)
        if request.method == b"POST":
            path = decoded_path(request.target)
            interception = front.interceptor.intercept(path, request.octets, outbound, front.ask)
            if interception is not None:
                front.counters.in_flight += 1
                return Intercepted(self, request, outbound, interception)
        front.counters.in_flight += 1
        if front.interceptor.writing is not None and request.method not in _READS:
            writing = front.interceptor.writing(decoded_path(request.target))
            if writing is not None:
                return Writing(writing, self, request.method, outbound, length, request.keep_alive, request.version)
        if self._new_heads < _NEW_HEADS and request.repeatable and request.octets is octets:
            self._new_heads += 1
            self._repeat = Repeat.of(octets, outbound, request.method, request.keep_alive)
        elif request.version == b"1.0" and request.head.upgrade and b"upgrade" in request.head.connection:
            advise(HTTP_1_0_UPGRADE)
        upgrade = bool(request.upgrade)
        return Relayed(self, request.method, outbound, length, upgrade, request.keep_alive, request.version)

    def _relay_again(self, repeat: Repeat, onward: bytes, length: int) -> Relayed:
        self._deadline = _NEVER
        self.front.counters.in_flight += 1
        request = Relayed(self, repeat.method, onward, length, False, repeat.keep_alive, b"1.1")
        if length:
            self._left = length
            self._receiving = True
            self._awaits_continue = False
        else:
            request.end()
        return request

    def _read_content(self, data: bytes) -> bytes | None:
        """Read content of the request at work; returns what follows its end, None until then."""
        request = self._request
        assert request is not None  # noqa: S101 - for the type checker
        if data:
            self._received += len(data)
            self._awaits_continue = False
        if self._chunks is None:
            if len(data) < self._left:
                self._left -= len(data)
                if data:
                    request.content(data)
                return None
            content, rest = data[: self._left], data[self._left :]
        else:
            try:
                content, end = self._chunks.feed(data)
            except Oversized as error:
                raise HeadTooLarge(str(error)) from None
            except Malformed as error:
                raise BadRequest(str(error)) from None
            if end is None:
                if content:
                    request.content(content)
                return None
            rest = end
            self._chunks = None
        if content:
            request.content(content)
        self._receiving = False
        request.end()
        return rest

    def _refuse(self, error: GatewayError, head: bytes = b"") -> None:
        """Refuse a request that can't be relayed; ``head`` is its own, if known."""
        if self._reject(error, head):
            self.front.counters.refuse(error, self.address)

    def _reject(self, error: GatewayError, head: bytes = b"") -> bool:
        """Answer a request with ``error``, and read no further. Returns False if a response has begun: it is cut."""
        request, self._request = self._request, None
        method = head.partition(b" ")[0] if request is None else request.method
        if request is not None:
            # the head was good, the content is not: what upstream has got of it must not be taken for whole
            begun = request.begun
            if not begun:
                request.status = error.status
            request.cancel()
            self._ended(request)
            if begun:
                self.abort()
                return False
        else:
            self.cross_origin = has_origin(head or self._heads.held)
            self.front.counters.in_flight += 1
            self.front.counters.ended(method, error.status)
            if self._on_ended is not None:
                if not head:
                    self._arrived, self._target = perf_counter(), b""
                self._report(method, error.status)
        self.write(b"".join(error_response(error, False, self.cross_origin, method)))
        self._linger()
        return True

    # Closing

    def _linger(self) -> None:
        """Close, but let the client read its response first: what it still sends is dropped for a while."""
        self.closing = True
        if self.transport.is_closing():
            return
        self.upstream.outbox.flush()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        for reason in tuple(self._pauses):
            self.resume(reason)
        self._expire_in(_LINGER)

    def _expire_in(self, seconds: float) -> None:
        """Close the connection in ``seconds`` unless the deadline is moved. The timer is only ever moved forward."""
        self._deadline = self.loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(self._deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._deadline == _NEVER:
            return
        if self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._expire)
        elif self._progresses():
            self._expire_in(self.front.keepalive_timeout)
        elif self.transport.is_closing():
            self.abort()
        else:
            self.close()

    def _progresses(self) -> bool:
        """Whether the client has taken some of what is still on its way to it since the deadline last came."""
        before, self._unsent = self._unsent, untaken(self.transport)
        return 0 < self._unsent < before

"""The fast face of the relay: an HTTP protocol for uvicorn's server that relays socket to socket.

An ordinary request becomes an `Exchange` and nothing more: no task, no ASGI scope, no future. Its head is parsed once
and rewritten by `headers`; content passes as it is read. What the sanitizer intercepts becomes one of uvicorn's ASGI
cycles. An upgrade becomes a tunnel: the handshake is relayed, then bytes both ways.

Cases, before the code that branches on them:

* Requests on one connection may come before earlier ones are answered (pipelining, RFC 9112 section 9.3.2). Each is an
  item of a queue; only the first is at work, so answers keep their order, and reading pauses while others wait.
* The response is whole before the request is: it says ``Connection: close``, what still comes is read and dropped for a
  while, so that the client gets to read the response (RFC 9112 section 9.6).
* A request that two parsers could read differently is refused, after the answers before it, and the connection closed.
* Upgrade with content, in HTTP/1.0, or to h2c (which could carry anything past the sanitizer): ignored, as a server may
  (RFC 9110 section 7.8); httptools stops at it all the same, so a new parser reads on.
* The client leaves, by FIN too: upstream's connection is closed at once. Only in a tunnel one side may end first.
* Upstream breaks off in mid-response: the client's connection is reset, so that no response can be taken for whole.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Protocol, cast
from urllib.parse import unquote

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from sanitizer.errors import BadRequest, GatewayError, HeadTooLarge, ResponseCut
from sanitizer.relay.connection import Transport
from sanitizer.relay.exchange import Exchange, Response
from sanitizer.relay.framing import Framing, Length, request_length
from sanitizer.relay.headers import Fields, Forwarding, Peer, encode_head, read_fields, trailer_fields
from sanitizer.relay.upstream import Upstream

HEAD_LIMIT: Final = 64 * 1024
"""Bytes of a request head; a larger one is answered with 431."""
HEAD_TIMEOUT: Final = 30.0
"""Seconds from a head's first byte to its last; then the connection is closed."""
_LINGER: Final = 5.0
"""Seconds in which a client may read its response while what it still sends is dropped."""
_EARLY_LIMIT: Final = 64 * 1024
"""Bytes held that a client sends before it knows whether its upgrade was accepted."""
_NEVER: Final = float("inf")

# why reading from the client is paused
_UPSTREAM_BLOCKED, _PIPELINED, _CYCLE_FULL, _EARLY_FULL = 1, 2, 4, 8


class Counters:
    """How many requests took which face, and how many tunnels are open. Plain integers."""

    __slots__ = ("cycles", "fast", "refused", "tunnels")

    def __init__(self) -> None:
        self.fast = self.cycles = self.refused = self.tunnels = 0


class Front(Protocol):
    """What a client connection needs of the gateway that it belongs to; itself an ASGI app."""

    upstream: Upstream
    forwarding: Forwarding
    counters: Counters
    draining: bool
    keepalive_timeout: float

    intercepts: Callable[[str, str], bool]
    """Whether a request with this method and decoded path has to go through ASGI."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class RelayProtocol(asyncio.Protocol):
    """One client connection. uvicorn's server makes it with the keyword arguments, and calls `shutdown`."""

    def __init__(
        self,
        front: Front,
        *,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.front = front
        self.loop = _loop or asyncio.get_running_loop()
        self.server_state = server_state
        self.app_state = app_state
        self.app: ASGIApp = config.loaded_app
        self.transport: Transport
        self.peer: Peer
        self.flow: FlowControl | None = None  # made for the first cycle
        self.closing = False  # no further request is read
        self.tunnel: _Relayed | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._in_head = False
        self._head_size = 0
        self._target = b""
        self._fields: Fields = []
        self._queue: deque[_Relayed | _Cycle | _Refusal] = deque()
        self._receiving: _Relayed | _Cycle | _Refusal | None = None
        self._early: bytearray | None = None  # since an upgrade was asked for
        self._rest: Length | None = None  # content that follows an upgrade which is ignored
        self._primed = False
        self._pauses = 0
        self._deadline = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(Transport, transport)
        self.server_state.connections.add(cast(Any, self))
        sock = transport.get_extra_info("socket")
        address = transport.get_extra_info("peername")
        self.client = (str(address[0]), int(address[1])) if isinstance(address, tuple) else None
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self.client is None:  # reset before it was accepted: its request must not go on as from nowhere
                self.abort()
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self.peer = self.front.forwarding.peer(self.client[0] if self.client else None, self.scheme)
        self._expire_in(self.front.keepalive_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(cast(Any, self))
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for item in self._queue:
            item.cancel()
        self._queue.clear()
        if self.tunnel is not None:
            self.tunnel.leave()
            self.tunnel = None
            self.front.counters.tunnels -= 1
        if self.flow is not None:
            self.flow.resume_writing()
            self.flow = None
        del self._parser  # it holds this object's methods

    def data_received(self, data: bytes) -> None:
        if self.tunnel is not None:
            self.tunnel.tunnel_send(data)
            return
        if self._early is not None:
            self._hold_early(data)
            return
        if self.closing:
            return
        self._deadline = _NEVER
        self._head_size += len(data)
        self._feed(data)
        if not self.closing:
            if self._head_size > HEAD_LIMIT:
                self._refuse(HeadTooLarge())
            elif self._in_head:
                self._expire_in(HEAD_TIMEOUT)
        # not before now, so that a head and the content that has come with it are one write
        if self._queue and not self._queue[0].started:
            self._queue[0].start()

    def eof_received(self) -> bool:
        if self.tunnel is not None:
            return self.tunnel.tunnel_eof()
        return False

    def pause_writing(self) -> None:
        if self.tunnel is not None:
            self.tunnel.pause_reading()
        elif self._queue:
            self._queue[0].client_blocked()

    def resume_writing(self) -> None:
        if self.tunnel is not None:
            self.tunnel.resume_reading()
        elif self._queue:
            self._queue[0].client_unblocked()

    # uvicorn

    def shutdown(self) -> None:
        """Take no further request; close as soon as those at work are answered."""
        if self.tunnel is not None:
            return
        if not self._queue and not self._in_head:
            self.transport.close()
        for item in self._queue:
            item.last()

    # httptools

    def on_message_begin(self) -> None:
        if self._primed:
            return
        self._in_head = True
        self._target = b""
        self._fields = []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._primed:
            self._primed = False
            self._fields = []
            return
        self._in_head = False
        if self.closing:
            return
        size, self._head_size = self._head_size, 0
        item = self._request(size)
        self._receiving = item
        self._queue.append(item)
        if len(self._queue) > 1:
            self.pause(_PIPELINED)

    def on_body(self, data: bytes) -> None:
        self._head_size = 0  # trailers and chunk extensions are counted like heads
        if self._receiving is not None:
            self._receiving.content(data)

    def on_message_complete(self) -> None:
        item = self._receiving
        if item is None or self._rest is not None:
            return
        self._receiving = None
        trailers, self._fields = self._fields, []
        item.end(trailer_fields(trailers) if trailers else [])
        if not item.keep_alive:
            self.closing = True

    # What the items of the queue call

    def pause(self, reason: int) -> None:
        if not self._pauses and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses |= reason

    def resume(self, reason: int) -> None:
        if self._pauses & reason:
            self._pauses &= ~reason
            if not self._pauses and not self.transport.is_closing():
                self.transport.resume_reading()

    def stays_open(self, item: "_Relayed | _Cycle | _Refusal") -> bool:
        """Whether the connection can take another request after this one's response."""
        return item.keep_alive and self._receiving is not item and not self.front.draining

    def answered(self, item: "_Relayed | _Cycle | _Refusal") -> None:
        """The first item's response is whole and written."""
        self.server_state.total_requests += 1
        if not self._queue or self._queue[0] is not item:
            return  # the client has left
        self._queue.popleft()
        if self._receiving is item:  # its content is still coming
            self._receiving = None
            self._linger()
        elif isinstance(item, _Refusal):
            self._linger()
        elif not item.keep_alive:
            self.closing = True
            self.transport.close()
        elif self._queue:
            if len(self._queue) == 1:
                self.resume(_PIPELINED)
            self._queue[0].start()
        elif self._early is not None:  # an upgrade was refused
            early, self._early = bytes(self._early), None
            self.resume(_EARLY_FULL)
            if early:
                self.transport.close()
            else:
                self._parser = httptools.HttpRequestParser(self)
                self._expire_in(self.front.keepalive_timeout)
        elif not self._in_head:
            self._expire_in(self.front.keepalive_timeout)

    def abort(self) -> None:
        """Reset the connection, so that the response can't be taken for whole."""
        self.closing = True
        self.transport.abort()

    def enter_tunnel(self, exchange: "_Relayed") -> None:
        """The first item has become a tunnel; what the client has sent early goes into it."""
        self._queue.popleft()
        self.tunnel = exchange
        self.front.counters.tunnels += 1
        early, self._early = bytes(self._early or b""), None
        self.resume(_EARLY_FULL)
        if early:
            exchange.tunnel_send(early)

    # Reading

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stopped_at_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, GatewayError):
                raise
            self._refuse(error.__context__)
        except httptools.HttpParserError:
            if not self.closing:  # else: data after the last request
                self._refuse(BadRequest())

    def _stopped_at_upgrade(self, data: bytes) -> None:
        if self._early is not None:
            self._hold_early(data)
            return
        length, self._rest = self._rest, None
        self._parser = httptools.HttpRequestParser(self)
        if length is not None:  # content follows that httptools has not seen
            self._primed = True
            framing = b"Transfer-Encoding: chunked" if isinstance(length, Framing) else b"Content-Length: %d" % length
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
        if data and not self.closing:
            self._feed(data)

    def _hold_early(self, data: bytes) -> None:
        if self._early is not None and data:
            self._early += data
            if len(self._early) > _EARLY_LIMIT:
                self.pause(_EARLY_FULL)

    def _request(self, size: int) -> "_Relayed | _Cycle":
        """The request whose head has just been read, out of at most ``size`` bytes. Raises `GatewayError`."""
        fields, target = self._fields, self._target
        self._fields = []
        if size > HEAD_LIMIT and _size(target, fields) > HEAD_LIMIT:
            raise HeadTooLarge
        parser = self._parser
        method: bytes = parser.get_method()
        version = b"1.1" if (number := parser.get_http_version()) == "1.1" else number.encode()
        if version not in (b"1.1", b"1.0"):
            raise BadRequest("HTTP version other than 1.1 and 1.0")
        if target[:1] != b"/" or method == b"CONNECT":
            target, fields = _origin_form(method, target, fields)
        section = read_fields(fields, way=self.peer.trusted)
        if section.hosts > 1 or (not section.hosts and version == b"1.1"):
            raise BadRequest("exactly one Host is needed")  # RFC 9112 section 3.2
        length = request_length(section, version)
        keep_alive = version == b"1.1" and parser.should_keep_alive()
        upgrade = b""
        if parser.should_upgrade():
            upgrade = _upgrade_wanted(fields) if version == b"1.1" and method == b"GET" and length == 0 else b""
            if not upgrade and length != 0:
                self._rest = length
            keep_alive = version == b"1.1" and b"close" not in (section.connection or ())
        if method == b"POST":
            path = target.partition(b"?")[0].partition(b"#")[0].decode("latin-1")
            path = unquote(path) if "%" in path else path
            if self.front.intercepts("POST", path):
                self.front.counters.cycles += 1
                return _Cycle(self, self._scope(method, target, path, version, fields), keep_alive)
        self.front.counters.fast += 1
        passed = self.front.forwarding.onward(section, self.peer, version)
        if length is Framing.CHUNKED:
            passed.append((b"Transfer-Encoding", b"chunked"))
        if upgrade:
            passed += ((b"Connection", b"Upgrade"), (b"Upgrade", upgrade))
            self._early = bytearray()
        elif not section.hosts:
            passed.insert(0, (b"Host", self.front.upstream.address.authority.encode()))
        head = encode_head(b"%b %b HTTP/1.1" % (method, target), passed)
        return _Relayed(self, method, head, length, bool(upgrade), keep_alive, version)

    def _scope(self, method: bytes, target: bytes, path: str, version: bytes, fields: Fields) -> Scope:
        raw_path, _, query = target.partition(b"#")[0].partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version.decode(),
            "server": None,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in fields],
            "state": self.app_state.copy(),
            "method": method.decode(),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "extensions": {"sanitizer.target": target},
        }

    def _refuse(self, error: GatewayError) -> None:
        """Answer ``error`` after the answers before it, and read no further."""
        self.closing = True
        self._in_head = False
        item, self._receiving = self._receiving, None
        if item is not None and self._queue and self._queue[-1] is item:
            # the head was good, the content is not: what upstream has got of it must not be taken for whole
            self._queue.pop()
            item.cancel()
            if item.begun:
                self.abort()
                return
        self.front.counters.refused += 1
        refusal = _Refusal(self, error)
        self._queue.append(refusal)

    # Closing

    def _linger(self) -> None:
        """Close, but let the client read its response first: what it still sends is dropped for a while."""
        self.closing = True
        self._early = None
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume(self._pauses)
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
        if self._queue:  # a head is late, but answers before it are still on their way
            self._expire_in(HEAD_TIMEOUT)
        elif self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._expire)
        else:
            self.transport.close()


class _Relayed(Exchange):
    """A request that is relayed below ASGI."""

    __slots__ = ("_chunked_out", "_eofs", "_head", "client", "keep_alive", "started", "version")

    def __init__(
        self,
        client: RelayProtocol,
        method: bytes,
        head: bytes,
        length: Length,
        upgrade: bool,
        keep_alive: bool,
        version: bytes,
    ) -> None:
        super().__init__(client.front.upstream, method, head, length, upgrade=upgrade)
        self.client = client
        self.keep_alive = keep_alive
        self.version = version
        self.started = False
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
        if self.blocked and not self.request_complete:
            self.client.pause(_UPSTREAM_BLOCKED)

    def content(self, data: bytes) -> None:
        self.send(data)
        if self.started and self.blocked:
            self.client.pause(_UPSTREAM_BLOCKED)

    def end(self, trailers: Fields) -> None:
        if not self.request_complete:
            self.send(b"", True, trailers)
        self.client.resume(_UPSTREAM_BLOCKED)  # to see the client leave

    def last(self) -> None:
        """Let this be the connection's last request."""
        self.keep_alive = False

    def client_blocked(self) -> None:
        self.pause_reading()

    def client_unblocked(self) -> None:
        self.resume_reading()

    # Exchange

    def on_unblocked(self) -> None:
        self.client.resume(_UPSTREAM_BLOCKED)

    def on_interim(self, status: int, reason: bytes, fields: Fields) -> None:
        if self.version == b"1.1":
            self.client.transport.write(encode_head(b"HTTP/1.1 %d %b" % (status, reason), fields))

    def on_response(self, response: Response) -> None:
        client = self.client
        fields = response.fields
        self.keep_alive = client.stays_open(self)
        if isinstance(response.length, Framing):
            if self.version == b"1.1":
                self._chunked_out = True
                fields.append((b"Transfer-Encoding", b"chunked"))
            else:
                self.keep_alive = False
        if not self.keep_alive:
            fields.append((b"Connection", b"close"))
        self._head = encode_head(b"HTTP/1.1 %d %b" % (response.status, response.reason), fields)

    def on_content(self, data: bytes, last: bool, trailers: Fields) -> None:
        if self._chunked_out:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if last:
                data += encode_head(b"0", trailer_fields(trailers)) if trailers else b"0\r\n\r\n"
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self.client.transport.write(data)
        if last:
            self.client.answered(self)

    def on_error(self, error: GatewayError) -> None:
        client = self.client
        if self.client.tunnel is self:
            client.transport.close()
        elif self.response is not None:
            client.abort()
        else:
            self.keep_alive = client.stays_open(self)
            client.transport.write(encode_error(error, self.keep_alive, self.method))
            client.answered(self)

    # Tunnel

    def on_tunnel(self, response: Response, data: bytes) -> None:
        self.client.transport.write(encode_head(b"HTTP/1.1 101 %b" % response.reason, response.fields))
        if data:
            self.client.transport.write(data)
        self.client.enter_tunnel(self)

    def on_tunnel_data(self, data: bytes) -> None:
        self.client.transport.write(data)

    def on_tunnel_eof(self) -> None:
        self._end_of(self.client.transport)

    def tunnel_send(self, data: bytes) -> None:
        """Bytes from the client inside the tunnel."""
        if self.connection is not None:
            self.connection.transport.write(data)
            if self.connection.write_paused:
                self.client.pause(_UPSTREAM_BLOCKED)

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
        if self._eofs == 2 or not transport.can_write_eof():
            self._finish()  # in good order: what closes now is no failure of upstream's
            transport.close()
            self.client.transport.close()
        else:
            transport.write_eof()


class _CycleFlow:
    """What uvicorn's flow control pauses for an ASGI cycle: the client connection, for a reason of its own."""

    def __init__(self, client: RelayProtocol) -> None:
        self._client = client

    def pause_reading(self) -> None:
        self._client.pause(_CYCLE_FULL)

    def resume_reading(self) -> None:
        self._client.resume(_CYCLE_FULL)


class _Cycle:
    """A request that goes through ASGI: one of uvicorn's cycles."""

    def __init__(self, client: RelayProtocol, scope: Scope, keep_alive: bool) -> None:
        self._client = client
        self.started = False
        if client.flow is None:
            client.flow = FlowControl(cast(Any, _CycleFlow(client)))
        self._flow = client.flow
        self._cycle = RequestResponseCycle(
            scope=cast(Any, scope),
            transport=cast(Any, client.transport),
            flow=self._flow,
            logger=logging.getLogger("uvicorn.error"),
            access_logger=logging.getLogger("uvicorn.access"),
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=any(n == b"expect" and v.lower() == b"100-continue" for n, v in scope["headers"]),
            keep_alive=keep_alive and not client.front.draining,
            on_response=self._answered,
        )

    @property
    def keep_alive(self) -> bool:
        return self._cycle.keep_alive

    @property
    def begun(self) -> bool:
        return self._cycle.response_started

    def start(self) -> None:
        self.started = True
        task = self._client.loop.create_task(self._cycle.run_asgi(cast(Any, self._app)))
        self._client.server_state.tasks.add(task)
        task.add_done_callback(self._client.server_state.tasks.discard)

    def content(self, data: bytes) -> None:
        cycle = self._cycle
        if not cycle.response_complete:
            cycle.body += data
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self._flow.pause_reading()
            cycle.message_event.set()

    def end(self, trailers: Fields) -> None:
        self._cycle.more_body = False
        self._cycle.message_event.set()

    def last(self) -> None:
        self._cycle.keep_alive = False

    def cancel(self) -> None:
        self._cycle.disconnected = True
        self._cycle.message_event.set()

    def client_blocked(self) -> None:
        self._flow.pause_writing()

    def client_unblocked(self) -> None:
        self._flow.resume_writing()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._client.app(scope, receive, send)
        except ResponseCut:
            self._cycle.disconnected = True
            self._client.abort()

    def _answered(self) -> None:
        self._client.answered(self)


class _Refusal:
    """A request that can't be read: answered with an error in its turn; the connection ends with it."""

    keep_alive = False
    begun = False

    def __init__(self, client: RelayProtocol, error: GatewayError) -> None:
        self._client = client
        self._error = error
        self.started = False

    def start(self) -> None:
        self.started = True
        self._client.transport.write(encode_error(self._error, False))
        self._client.answered(self)

    def content(self, data: bytes) -> None:
        """Nothing is read after it."""

    def end(self, trailers: Fields) -> None:
        """Nothing is read after it."""

    def last(self) -> None:
        """It is."""

    def cancel(self) -> None:
        """Nothing is under way."""

    def client_blocked(self) -> None:
        """It is written whole."""

    def client_unblocked(self) -> None:
        """It is written whole."""


def encode_error(error: GatewayError, keep_alive: bool, method: bytes = b"GET") -> bytes:
    """A whole response for an error of the gateway's own."""
    content = error.body()
    fields = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(content))]
    if not keep_alive:
        fields.append((b"Connection", b"close"))
    phrase = HTTPStatus(error.status).phrase.encode()
    return encode_head(b"HTTP/1.1 %d %b" % (error.status, phrase), fields) + (content if method != b"HEAD" else b"")


def _size(target: bytes, fields: Fields) -> int:
    return len(target) + sum(len(name) + len(value) + 4 for name, value in fields)


def _upgrade_wanted(fields: Fields) -> bytes:
    """The protocols that an upgrade is asked to, without h2c; empty: none that is relayed."""
    return b", ".join(
        protocol
        for name, value in fields
        if name.lower() == b"upgrade"
        for part in value.split(b",")
        if (protocol := part.strip()) and protocol.lower() != b"h2c"
    )


def _origin_form(method: bytes, target: bytes, fields: Fields) -> tuple[bytes, Fields]:
    """Target and fields of a request whose target is not a path (RFC 9112 section 3.2)."""
    if target == b"*" and method == b"OPTIONS":
        return target, fields
    scheme, separator, rest = target.partition(b"://")
    if method == b"CONNECT" or not separator or scheme.lower() not in (b"http", b"https"):
        raise BadRequest("target is neither a path nor an http URL")
    authority, slash, path = rest.partition(b"/")
    if not authority or b"@" in authority or b"?" in authority or b"#" in authority:
        raise BadRequest("target has no plain authority")
    # the target's authority counts, whatever Host says
    others = [(name, value) for name, value in fields if name.lower() != b"host"]
    return slash + path or b"/", [(b"Host", authority), *others]

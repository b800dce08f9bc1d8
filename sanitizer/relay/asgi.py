"""The relay as an ASGI app. It works under any ASGI server, streams both ways, and buffers at most 64 KiB each way.

The command's own server can relay some things that ASGI has no way to express: a target that ends in an empty query
(``/a?``), reason phrases, the case of field names, trailers, interim responses (103), responses to HTTP/1.0 clients
(servers send them chunked), upgrades, the Content-Length of a 304 (uvicorn refuses it), and status codes above 599.
"""

import asyncio
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import quote

from starlette.types import Message, Receive, Scope, Send

from sanitizer.errors import BadRequest, ClientNotSending, GatewayError, LoopDetected, ResponseCut, UpstreamBroken
from sanitizer.http1.bodies import Framing, Length, request_length
from sanitizer.http1.forwarding import Forwarding, has_buffering_field
from sanitizer.http1.heads import checked_head, head_fields
from sanitizer.http1.requests import check_host
from sanitizer.http1.responses import error_fields
from sanitizer.relay.advice import HTTP_1_0_STREAM, advise
from sanitizer.relay.connection import Response
from sanitizer.relay.counters import Counters
from sanitizer.relay.exchange import Exchange
from sanitizer.relay.pool import Pool

_BUFFERED: Final = 64 * 1024
"""Bytes of a response that are buffered for a slow client. If there are more, reading from upstream is paused."""
_CONTINUE_TIMEOUT: Final = 1.0
"""Seconds to wait for upstream's 100 (Continue); after that the content is sent anyway (RFC 9110 section 10.1.1)."""


class AsgiExchange(Exchange):
    """An exchange whose response a coroutine awaits piece by piece."""

    __slots__ = ("_content", "_content_waiter", "_continued", "_failure", "_last", "_response_waiter", "_size")

    def __init__(self, pool: Pool, method: bytes, head: bytes, length: Length) -> None:
        super().__init__(pool, method, head, length)
        # the first is done when more of the response is there, the second when content may be sent or is not needed
        self._response_waiter: asyncio.Future[None] | None = None
        self._content_waiter: asyncio.Future[None] | None = None
        self._continued = False
        self._content: list[bytes] = []
        self._size = 0
        self._last = False
        self._failure: BaseException | None = None

    async def wait_for_continue(self) -> None:
        """Wait until upstream asks for the content with a 100, or responds without it."""
        while not self._continued and self.response is None and not self.done:
            self._content_waiter = self.pool.loop.create_future()
            await self._content_waiter

    async def wait_unblocked(self) -> None:
        """Wait until more content may be sent, or no more is needed."""
        self._content_waiter = self.pool.loop.create_future()
        await self._content_waiter

    async def head(self) -> Response | None:
        """The response's head, or None if the client has disconnected.

        Raises `GatewayError`, or the exception that the ASGI server's ``receive`` has raised.
        """
        while self.response is None and not self.done:
            await self._wait_for_more()
        if self.response is None and self._failure is not None:
            raise self._failure
        return self.response

    async def content(self) -> tuple[bytes, bool] | None:
        """Content received so far, and whether it is the last, or None if the client has disconnected.

        Raises `ResponseCut` if the exchange has failed.
        """
        while not self._content and not self.done:
            await self._wait_for_more()
        if self._failure is not None and not self._content:
            cut = ResponseCut()
            cut.__cause__ = self._failure  # compiled code does not set it for ``raise ... from``
            raise cut
        if self.done and not self._last and self._failure is None:
            return None
        data = self._content[0] if len(self._content) == 1 else b"".join(self._content)
        self._content.clear()
        self._size = 0
        self.resume_reading()
        return data, self._last

    def cancel(self) -> None:
        super().cancel()
        self._wake(self._response_waiter)
        self._wake(self._content_waiter)

    def fail_request(self, failure: BaseException) -> None:
        """End the exchange, because reading the request has failed with ``failure``."""
        if not self.done:
            self._failure = failure
            self.cancel()

    async def _wait_for_more(self) -> None:
        self._response_waiter = self.pool.loop.create_future()
        await self._response_waiter

    def _wake(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def on_interim(self, head: bytes) -> None:
        if head.startswith(b"HTTP/1.1 100"):
            self._continued = True
            self._wake(self._content_waiter)

    def on_response(self, response: Response) -> None:
        if response.status > 599:  # uvicorn has no status line for it, and would fail without a response
            self.response = None
            self.fail(UpstreamBroken("upstream's status is above 599"))
            return
        if not self.request_complete:
            self._wake(self._content_waiter)

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        if data:
            self._content.append(data)
            self._size += len(data)
            if self._size > _BUFFERED and not last:
                self.pause_reading()
        self._last = last
        self._wake(self._response_waiter)
        if last:
            self._wake(self._content_waiter)

    def on_error(self, error: GatewayError) -> None:
        self._failure = error
        self._wake(self._response_waiter)
        self._wake(self._content_waiter)

    def on_unblocked(self) -> None:
        self._wake(self._content_waiter)


class Relay:
    """An ASGI app that relays requests over the connections of ``pool``.

    ``counters`` counts the requests that it refuses, and the clients that stall. ``stall_timeout`` is how many seconds
    a client may send nothing of content that is due; None means no limit.
    """

    def __init__(
        self, pool: Pool, forwarding: Forwarding, counters: Counters, stall_timeout: float | None = None
    ) -> None:
        self._pool = pool
        self._forwarding = forwarding
        self._counters = counters
        self._stall_timeout = stall_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # only the command's own server tunnels upgrades, see sanitizer.relay.client
            await send(
                {"type": "websocket.close", "code": 1011, "reason": "upgrades need litellm-sanitizer's own server"}
            )
            return
        if scope["type"] != "http":
            raise RuntimeError(f"Relay does not support ASGI scopes of type {scope['type']!r}")
        try:
            head, length = self._outbound(scope)
            exchange = AsgiExchange(self._pool, scope["method"].encode(), head, length)
            await self._relay(exchange, scope, receive, send)
        except GatewayError as error:
            peer = _client_address(scope)
            if isinstance(error, ClientNotSending):
                self._counters.count_stall(error, peer)
            elif isinstance(error, BadRequest | LoopDetected):
                self._counters.count_refusal(error, peer)
            await _send_error(send, error, scope)

    async def _relay(self, exchange: AsgiExchange, scope: Scope, receive: Receive, send: Send) -> None:
        def done(reader: asyncio.Task[None]) -> None:
            if not reader.cancelled() and (failure := reader.exception()) is not None:
                exchange.fail_request(failure)

        expects_continue = _expects_continue(scope)
        reader = self._pool.loop.create_task(_forward_content(exchange, receive, expects_continue, self._stall_timeout))
        reader.add_done_callback(done)
        try:
            # after the reader's first step, so that a head and the content received with it are sent in one write
            self._pool.loop.call_soon(exchange.start)
            await _respond(exchange, send, scope["http_version"])
        finally:
            exchange.cancel()
            if not exchange.transmitted and (report_not_sent := scope.get("sanitizer.not_sent")) is not None:
                report_not_sent()  # see sanitizer.sanitize.response
            # not awaited: the caller must know that a write is over before the client's next request is handled
            reader.cancel()

    def outbound_head(self, scope: MutableMapping[str, Any]) -> bytes:
        """The head with which a request of this scope is forwarded. Raises `BadRequest` or `LoopDetected`."""
        return self._outbound(scope)[0]

    def _outbound(self, scope: MutableMapping[str, Any]) -> tuple[bytes, Length]:
        peer = self._forwarding.peer(_client_address(scope), scope.get("scheme", "http"))
        version = scope["http_version"].encode()
        start_line = scope["method"].encode() + b" " + request_target(scope) + b" HTTP/1.1"
        # ASGI allows a field to be any iterable of two items; compiled code requires a tuple
        fields = [(name, value) for name, value in scope["headers"]]
        head, octets = self._forwarding.outbound(checked_head(start_line, fields), peer, version)
        if scope["method"] == "CONNECT":
            raise BadRequest("CONNECT is for proxies")
        check_host(head.host, head.host_count, version)
        length = request_length(head, version)
        if not head.host_count:
            octets += b"Host: " + self._pool.authority + b"\r\n"
        if not isinstance(length, int):
            octets += b"Transfer-Encoding: chunked\r\n"
        return octets, length


def request_target(scope: MutableMapping[str, Any]) -> bytes:
    """The request target of a scope, in the octets that were sent (RFC 9112 section 3.2)."""
    path: bytes = scope.get("raw_path") or quote(scope["path"], safe="/:@!$&'()*+,;=~").encode()
    return path + b"?" + scope["query_string"] if scope["query_string"] else path


async def _send_error(send: Send, error: GatewayError, scope: Scope) -> None:
    """Send an error response of the gateway's own."""
    # the octets that follow on this connection can't be trusted, or may never be sent; HTTP/2 has no such field
    close = isinstance(error, BadRequest | LoopDetected | ClientNotSending) and scope["http_version"] in ("1.0", "1.1")
    cross_origin = any(name == b"origin" for name, _ in scope["headers"])
    fields, content = error_fields(error, not close, cross_origin)
    headers = [(name.lower(), value) for name, value in fields]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _client_address(scope: MutableMapping[str, Any]) -> str | None:
    client = scope.get("client")
    return client[0] if client else None


def _expects_continue(scope: Scope) -> bool:
    if scope["http_version"] == "1.0":  # the expectation must be ignored (RFC 9110 section 10.1.1)
        return False
    for name, value in scope["headers"]:
        if name == b"expect":
            return bool(value.lower() == b"100-continue")
    return False


def _forward_message(exchange: AsgiExchange, message: Message) -> bool:
    """Forward content that the client has sent. If it has disconnected, cancels the exchange and returns False."""
    if message["type"] == "http.disconnect":
        exchange.cancel()
        return False
    if not exchange.request_complete:
        exchange.send(bytes(message.get("body", b"")), last=not message.get("more_body", False))
    return True


async def _respond(exchange: AsgiExchange, send: Send, version: str) -> None:
    response = await exchange.head()
    if response is None:
        return
    headers = [(name.lower(), value) for name, value in head_fields(response.head)]
    if response.status in (204, 304):
        headers = [line for line in headers if line[0] != b"content-length"]
    if version == "1.0" and isinstance(response.length, Framing) and not has_buffering_field(response.head):
        # uvicorn with httptools sends it chunked nevertheless, which nginx accepts; with h11, the close ends it
        advise(HTTP_1_0_STREAM)
        headers.append((b"x-accel-buffering", b"no"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    last = False
    while not last:
        piece = await exchange.content()
        if piece is None:
            return
        data, last = piece
        await send({"type": "http.response.body", "body": data, "more_body": not last})


async def _forward_content(
    exchange: AsgiExchange, receive: Receive, expects_continue: bool, stall_timeout: float | None
) -> None:
    """Forward the client's content as it is received. If the client disconnects, cancels the exchange.

    Raises `ClientNotSending` if nothing is received for ``stall_timeout`` although content is due.
    """
    if expects_continue:
        # calling `receive` makes the server send a 100, but only upstream may decide that
        try:
            async with asyncio.timeout(_CONTINUE_TIMEOUT):
                await exchange.wait_for_continue()
        except TimeoutError:
            pass
    while _forward_message(exchange, await _receive(exchange, receive, stall_timeout)):
        while exchange.blocked and not exchange.request_complete:
            await exchange.wait_unblocked()


async def _receive(exchange: AsgiExchange, receive: Receive, stall_timeout: float | None) -> Message:
    while True:
        try:
            async with asyncio.timeout(None if exchange.request_complete else stall_timeout):
                return await receive()
        except TimeoutError:
            if exchange.response is None:
                raise ClientNotSending from None

"""One request to upstream and its response, whoever relays it.

An exchange goes through these states; each arrow is a method::

    start() -> waiting for a connection -> attached: head and content go out as they come
            -> on_interim()* -> on_response() -> on_content()* with the last one marked -> done
    at any point: cancel() by the face (the client has left), or on_error() by the connection

Cases, before the code that branches on them:

* Upstream closes a pooled connection just as a request goes out on it, without a byte of answer: if the method is
  idempotent and all that was sent is still held, it is sent once more on a new connection (RFC 9110 section 9.2.2);
  a POST may have run and is never repeated.
* The response ends before the request does: the response is whole, but the connection can't be used again.
* The response breaks off: an answer can still be given before `on_response`, none after it.
"""

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Final

from sanitizer.errors import BadRequest, GatewayError, ResponseTimeout, UpstreamBroken
from sanitizer.relay.framing import Framing, Length

if TYPE_CHECKING:
    from sanitizer.relay.connection import Connection
    from sanitizer.relay.upstream import Upstream

_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
_HELD: Final = 64 * 1024
"""Bytes of an idempotent request kept, so that it can be sent once more."""


class Response:
    """A response: its ``status``, its ``head`` to pass on (octets), the ``length`` of its content."""

    __slots__ = ("head", "length", "status")

    def __init__(self, status: int, head: bytes, length: Length) -> None:
        self.status = status
        self.head = head
        self.length = length


class Exchange:
    """One request to upstream and its response. A face derives from it and defines the ``on_...`` hooks.

    ``method`` and ``head`` are octets, the head complete with its empty line; ``length`` tells how the content that
    `send` brings is framed. ``upgrade``: the head asks for one, so 101 is an answer and opens a tunnel.
    """

    __slots__ = (
        "_held",
        "_held_size",
        "_owed",
        "_sent_last",
        "_unsent",
        "chunked",
        "connection",
        "done",
        "method",
        "response",
        "retried",
        "since",
        "timer",
        "transmitted",
        "upgrade",
        "upstream",
    )

    def __init__(
        self, upstream: "Upstream", method: bytes, head: bytes, length: Length = 0, *, upgrade: bool = False
    ) -> None:
        self.upstream = upstream
        self.method = method
        self.chunked = length is Framing.CHUNKED
        self.upgrade = upgrade
        self.connection: Connection | None = None
        self.response: Response | None = None
        self.done = False
        self.retried = False
        self.since = perf_counter()
        self.transmitted = False  # bytes of it have been written
        self._owed = length if isinstance(length, int) else 0  # content still to come from the face
        self._sent_last = length == 0
        self._unsent: list[bytes] = [head]
        self._held: list[bytes] | None = [head] if method in _IDEMPOTENT else None
        self._held_size = len(head)  # counted along: a body may come byte by byte
        self.timer: asyncio.TimerHandle | None = None

    # What the face calls

    def start(self) -> None:
        """Take a connection, or wait for one, and send the head. Can call `on_error` before it returns."""
        if not self.done:
            self.upstream.acquire(self)

    def send(self, data: bytes, last: bool = False, trailers: bytes = b"") -> None:
        """Pass on content of the request; ``last`` ends it, with trailer lines.

        Raises `BadRequest` if there is more or less of it than the request's Content-Length says.
        """
        if self.done or self._sent_last:
            return
        if self.chunked:
            framed = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if last:
                framed += b"0\r\n" + trailers + b"\r\n"
        else:
            framed = data
            self._owed -= len(data)
            if self._owed < 0 or (last and self._owed):
                raise BadRequest("the content does not fit its Content-Length")
        self._sent_last = last or (not self.chunked and not self._owed)
        if self._held is not None:
            self._held.append(framed)
            self._held_size += len(framed)
            if self._held_size > _HELD:
                self._held = None
        if self.connection is None or not self.transmitted:
            self._unsent.append(framed)
        elif not self.connection.transport.is_closing():  # else its end is about to be told
            if framed:
                self.connection.write(framed)
            if self.upstream.response_timeout is not None:
                self._arm()

    @property
    def blocked(self) -> bool:
        """Whether the face should stop sending for now; `on_blocked` and `on_unblocked` tell when that changes."""
        return not self.done and (self.connection is None or self.connection.write_paused)

    @property
    def request_complete(self) -> bool:
        """Whether the whole request has been handed to the connection."""
        return self._sent_last

    def pause_reading(self) -> None:
        """Stop reading from upstream: the client is slower."""
        if self.connection is not None:
            self.connection.pause_reading()

    def resume_reading(self) -> None:
        """Go on reading from upstream."""
        if self.connection is not None:
            self.connection.resume_reading()

    def cancel(self) -> None:
        """The client has left: give up, and let upstream know by closing its connection."""
        if not self.done:
            self._finish()
            if self.connection is not None:
                self.connection.close()

    # What the connection and the pool call

    def attach(self, connection: "Connection") -> None:
        self.connection = connection
        connection.exchange = self
        if self.upstream.alone:
            self._transmit()
        else:
            self.upstream.outbox.add(Exchange._transmit, self)

    def _transmit(self) -> None:
        """Send the head, and what has come of the content."""
        connection = self.connection
        if self.done or connection is None or self.transmitted or connection.transport.is_closing():
            return
        if connection.reused and not connection.fresh:
            connection.close()
            self.lost(UpstreamBroken())
            return
        self.transmitted = True
        connection.transport.write(b"".join(self._unsent) if len(self._unsent) > 1 else self._unsent[0])
        self._unsent = []
        if self.upstream.response_timeout is not None:
            self._arm()
        if not self._sent_last:
            if connection.write_paused:
                self.on_blocked()
            else:
                self.on_unblocked()

    def respond(self, response: Response) -> None:
        if self.timer is not None:
            self.disarm()
        self.upstream.seconds.observe(perf_counter() - self.since)
        self._held = None
        self.response = response
        self.on_response(response)

    def complete(self, content: bytes, trailers: bytes) -> None:
        self._finish()
        self.on_content(content, True, trailers)

    def lost(self, error: GatewayError) -> None:
        """The connection is gone before the response was whole."""
        connection, self.connection = self.connection, None
        if self.done:
            return
        if not self.transmitted and connection is not None and connection.reused:
            # it had been closed while it was idle, as all others may have been; nothing has been sent
            self.upstream.loop.call_soon(Exchange.start, self)
            return
        may_repeat = not self.transmitted or (
            connection is not None and connection.reused and not connection.answering and self._held is not None
        )
        if may_repeat and not self.retried:
            self.retried = True
            if self.transmitted and self._held is not None:
                self._unsent = [b"".join(self._held)]
            self.transmitted = False
            self.disarm()
            self.upstream.connect(self)
        else:
            self.fail(error)

    def fail(self, error: GatewayError) -> None:
        self._finish()
        self.upstream.count_error(error)
        if self.connection is not None:
            self.connection.close()
        self.on_error(error)

    def _finish(self) -> None:
        self.done = True
        self._held = None
        self._unsent = []
        if self.timer is not None:
            self.disarm()

    def _arm(self) -> None:
        # counts from the last byte sent: a long upload is not a slow answer
        if self.response is None and (timeout := self.upstream.response_timeout) is not None:
            self.disarm()
            self.timer = self.upstream.loop.call_later(timeout, self.fail, ResponseTimeout())

    def disarm(self) -> None:
        """Stop waiting for a connection or a response head."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    # What the face defines

    def on_interim(self, head: bytes) -> None:
        """A 1xx response other than 101 has come."""

    def on_response(self, response: Response) -> None:
        """The final response's head has come; `on_content` follows at once, if need be with nothing."""
        raise NotImplementedError

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        """Content of the response has come; with ``last`` the exchange is over."""
        raise NotImplementedError

    def on_error(self, error: GatewayError) -> None:
        """The exchange has failed; before `on_response` an answer can still be given, after it none."""
        raise NotImplementedError

    def on_blocked(self) -> None:
        """There is no connection yet, or none any more, or upstream is slower: no more content should be sent."""

    def on_unblocked(self) -> None:
        """More content of the request may be sent."""

    def on_tunnel(self, response: Response, data: bytes) -> None:
        """Upstream has switched protocols; ``data`` are the first bytes after its head."""
        raise NotImplementedError

    def on_tunnel_data(self, data: bytes) -> None:
        """Bytes from upstream inside the tunnel."""

    def on_tunnel_eof(self) -> None:
        """Upstream will send nothing more; it can still read."""

"""One HTTP/1.1 connection to upstream: it sends one request after another, and reads the responses.

`sanitizer.http1.heads` finds where a head ends, and httptools validates it. Content is read by the length that the head
declares.

==========  ================================================  ==================================
State       What it waits for                                 The next states
==========  ================================================  ==================================
CONNECTING  the connection to be established                  IDLE, ATTACHED
IDLE        a receiver                                        ATTACHED
ATTACHED    the receiver's request                            WAITING
WAITING     the first octet of the response                   HEAD
HEAD        the rest of the head, or the head after a 1xx     CONTENT, TUNNEL
CONTENT     the rest of the content                           IDLE
TUNNEL      nothing: the connection is an end of a tunnel
CLOSED      nothing
==========  ================================================  ==================================

Every state but TUNNEL leads to CLOSED as well.

Cases, before the code that branches on them:

* Octets are received after the end of a response, or before a request has been sent: they respond to nothing, and the
  connection is closed.
* The connection ends before the content does: this is an error, unless the content lasts until the connection closes.
  Then upstream's FIN ends the content, even if some of the request has not been acknowledged, because upstream may
  never read that. In TLS, a FIN without a close_notify, which many servers omit, ends the content too, and is counted.
  A reset never does.
* The connection is lost with octets unread, because a write has detected the reset before they were read, or because
  uvloop closes a TLS connection whose reading is paused: they are read first, for they may be the rest of the response.
* The response is complete, but the request is not, or upstream has not acknowledged all of it: the connection is
  closed. Upstream may be closing it too, and the next request would be lost.
* 101: what follows the head is not HTTP. It is a tunnel if the request has asked for an upgrade, and an error if not.
"""

import asyncio
import select
import socket
from enum import Enum
from typing import Final, Protocol, cast

import httptools

from sanitizer.errors import GatewayError, UpstreamBroken, UpstreamNotReading
from sanitizer.http1.bodies import UNTIL_CLOSE, Length, Reader, reader, response_length
from sanitizer.http1.heads import HeadReader, Malformed, read_response_head
from sanitizer.keepalive import enable_keepalive
from sanitizer.relay.pipe import TunnelEnd
from sanitizer.relay.stalls import Pending
from sanitizer.relay.transport import Transport, end_is_announced, progress, read_remaining, unacknowledged

_HEAD_LIMIT: Final = 256 * 1024
"""Bytes of a response head; a larger one is an error of upstream's."""
_ALWAYS_ACCEPTED: Final = 16 * 1024
"""Bytes of a request that any upstream's kernel accepts, so that the send queue need not be queried."""


class State(Enum):
    """What a connection to upstream waits for, see this module's table."""

    CONNECTING = "connecting"
    IDLE = "idle"
    ATTACHED = "attached"
    WAITING = "waiting"
    HEAD = "head"
    CONTENT = "content"
    TUNNEL = "tunnel"
    CLOSED = "closed"


# looking up a member on the enum class is slow
_CONNECTING, _IDLE, _ATTACHED, _WAITING, _HEAD, _CONTENT, _TUNNEL, _CLOSED = State


class Response:
    """A response: its ``status``, its ``head`` to relay, in octets, and the ``length`` of its content."""

    __slots__ = ("head", "length", "status")

    def __init__(self, status: int, head: bytes, length: Length) -> None:
        self.status = status
        self.head = head
        self.length = length


class Receiver(Protocol):
    """Sends a request on a connection, and receives its response.

    ``method`` is the request's method. ``upgrade`` is whether the request asks for an upgrade, which allows a 101.
    """

    method: bytes
    upgrade: bool

    @property
    def request_complete(self) -> bool:
        """Whether the connection has been given the whole request."""

    def on_interim(self, head: bytes) -> None:
        """Called with the head of each 1xx response other than 101."""

    def response_received(self, response: Response) -> None:
        """Called with the head of the final response."""

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        """Called with content that is not the last: ``last`` is False, and ``trailers`` is empty."""

    def response_complete(self, content: bytes, trailers: bytes) -> None:
        """Called with the last of the content. The receiver is detached from the connection."""

    def protocol_switched(self, response: Response, data: bytes) -> None:
        """Called when upstream has switched protocols. ``data`` is what was received after the head of the 101."""

    def connection_lost(self, error: GatewayError, *, unanswered: bool) -> None:
        """Called when the connection is lost before the response is complete.

        ``unanswered`` means that the connection had been idle and not an octet of the response was received, so that
        upstream may have closed it before it received the request.
        """

    def fail(self, error: GatewayError) -> None:
        """Called when the request has failed for another reason."""

    def on_blocked(self) -> None:
        """Called when no more content should be sent, because upstream is slower."""

    def on_unblocked(self) -> None:
        """Called when more content may be sent."""


class Owner(Protocol):
    """The pool that a connection belongs to."""

    def release(self, connection: "Connection") -> None:
        """Take back a connection that is idle."""

    def closed(self, connection: "Connection") -> None:
        """Remove a connection that is lost."""

    def count_unannounced_end(self) -> None:
        """Count a response over TLS that was ended by a FIN without a close_notify."""


class Connection(asyncio.Protocol):
    """One connection to upstream.

    ``reused`` means that it has been idle, so that upstream may have closed it meanwhile. ``idle_since`` and
    ``expires_at`` belong to the pool; they are times of the event loop's clock.
    """

    __slots__ = (
        "_content_reader",
        "_first_content",
        "_head_reader",
        "_keeps_alive",
        "_length",
        "_owner",
        "_poll",
        "_reading_paused",
        "_written",
        "expires_at",
        "idle_since",
        "receiver",
        "reused",
        "state",
        "transport",
        "write_paused",
    )

    def __init__(self, owner: Owner) -> None:
        self.receiver: Receiver | None = None
        self.state = _CONNECTING
        self.reused = False
        self.idle_since = self.expires_at = 0.0
        self.write_paused = False
        self._owner = owner
        self._poll = select.poll()
        self._reading_paused = False
        self._written = 0  # octets of the current request
        self._head_reader = HeadReader(httptools.HttpResponseParser, _HEAD_LIMIT)
        self._length: Length = 0  # of the current response
        self._content_reader: Reader
        self._first_content: tuple[bytes, bytes | None] | None = None  # read from what was received with the head
        self._keeps_alive = False

    # What a receiver calls

    def attach(self, receiver: Receiver) -> None:
        """Attach ``receiver`` to the connection, which is idle or has just been established."""
        self.receiver = receiver
        self.state = _ATTACHED

    def send_request(self, octets: bytes) -> bool:
        """Send a request's head and the first of its content.

        Returns False, and sends nothing, if upstream has closed the connection, or has sent something, while it was
        idle. The connection is then closed.
        """
        if self.transport.is_closing() or (self.reused and self._poll.poll(0)):
            self.close()
            return False
        self.state = _WAITING
        self._written = len(octets)
        self.transport.write(octets)
        return True

    def write(self, data: bytes) -> None:
        """Send more of the current request."""
        if not self.transport.is_closing():  # if it is, the loss is about to be reported
            self._written += len(data)
            self.transport.write(data)

    def pause_reading(self) -> None:
        """Stop reading: the client is slower."""
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading."""
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def close(self) -> None:
        """Close at once. Unsent octets are dropped, and the receiver is not called any more."""
        self.receiver = None
        self.state = _CLOSED
        self.transport.abort()

    def become_tunnel_end(self, end: TunnelEnd) -> None:
        """Become ``end`` of a tunnel, which has been joined to the other end already."""
        self.receiver = None
        self.state = _TUNNEL
        if self.write_paused:
            end.pause_writing()

    # What the stall sweep calls

    def check(self) -> Pending | None:
        """How far upstream is with the request, for the stall sweep.

        Returns None if nothing waits to be sent. Also returns None once the response has started, because upstream may
        then leave the rest of the request unread.
        """
        if self.state is _CONTENT or not self.transport.get_write_buffer_size():
            return None
        return Pending(progress(self.transport, self._written), self._not_reading)

    def _not_reading(self) -> None:
        if self.receiver is not None:
            self.receiver.fail(UpstreamNotReading())

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(Transport, transport)
        sock = transport.get_extra_info("socket")
        # first, because event loops go on to use the protocol if this method raises an exception
        self._poll.register(sock.fileno(), select.POLLIN | getattr(select, "POLLRDHUP", 0))
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enable_keepalive(sock)

    def data_received(self, data: bytes) -> None:
        receiver = self.receiver
        if receiver is None or self.state is _ATTACHED:  # it responds to no request
            self._break(UpstreamBroken())
            return
        if self.state is _WAITING:
            self.state = _HEAD
        try:
            while self.state is _HEAD:
                rest = self._read_head(receiver, data)
                if rest is None or self.receiver is not receiver:
                    return
                data = rest
            self._read_content(receiver, data)
        except (Malformed, UpstreamBroken) as error:
            self._break(UpstreamBroken(f"upstream's answer is faulty: {error}"))

    def eof_received(self) -> bool:
        self.transport.abort()  # returning False would first wait until everything is written, which may never happen
        self._end(orderly=True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.receiver is not None and self.state is not _ATTACHED:
            for data in read_remaining(self.transport):
                self.data_received(data)
                if self.receiver is None:
                    break
        if self.state is _TUNNEL:  # the octets that were unread until now contained a 101
            self.transport.get_protocol().connection_lost(exc)
            return
        self._owner.closed(self)
        self._end(orderly=exc is None)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.receiver is not None:
            self.receiver.on_blocked()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.receiver is not None:
            self.receiver.on_unblocked()

    # Reading

    def _read_head(self, receiver: Receiver, data: bytes) -> bytes | None:
        """Read a head. Returns the octets after it, or None if there are none to be read here.

        None means that the head is not complete, that nothing follows a 1xx, or that the connection is a tunnel.
        """
        found = self._head_reader.feed(data)
        if found is None:
            return None
        octets, rest = found
        version = octets[:8]
        if not version.startswith(b"HTTP/"):
            raise UpstreamBroken("not HTTP")
        status = int(octets[9:12])
        head = read_response_head(octets)
        octets = head.octets if version == b"HTTP/1.1" else b"HTTP/1.1" + head.octets[8:]
        if status < 100:
            raise UpstreamBroken("no valid status")
        if status == 101:
            if not receiver.upgrade or head.upgrade is None:
                raise UpstreamBroken("protocols switched unasked")
            octets += b"Connection: Upgrade\r\nUpgrade: " + head.upgrade + b"\r\n"
            receiver.protocol_switched(Response(status, octets, 0), rest)
            return None
        if status < 200:
            receiver.on_interim(octets)
            return rest or None
        self._length = length = response_length(receiver.method, status, head)
        self._content_reader = reader(length)
        # before the receiver gets the head, so that it can respond with an error if the content is malformed
        self._first_content = self._content_reader.feed(rest)
        options = head.connection
        self._keeps_alive = b"close" not in options and (version == b"HTTP/1.1" or b"keep-alive" in options)
        self.state = _CONTENT
        receiver.response_received(Response(status, octets, length))
        return rest

    def _read_content(self, receiver: Receiver, data: bytes) -> None:
        """Read content. At its end, release the connection to the pool, or close it, and then call the receiver."""
        content, rest = self._first_content or self._content_reader.feed(data)
        self._first_content = None
        if rest is None:
            receiver.on_content(content, False, b"")
            return
        self.receiver = None
        if rest or not self._keeps_alive or not self._has_sent_all(receiver) or self.transport.is_closing():
            self.close()
        else:
            self.resume_reading()
            self.become_idle()  # first, so that the client's next request can use the connection
        receiver.response_complete(content, self._content_reader.trailers)

    def _has_sent_all(self, receiver: Receiver) -> bool:
        """Whether upstream has the whole request. An upstream that responds without reading it may close afterwards."""
        return receiver.request_complete and (self._written <= _ALWAYS_ACCEPTED or not unacknowledged(self.transport))

    def become_idle(self) -> None:
        """Release the connection to the pool: it has no receiver."""
        self.state = _IDLE
        self.reused = True
        self._owner.release(self)

    # Closing

    @property
    def _unanswered(self) -> bool:
        return self.reused and (self.state is _ATTACHED or self.state is _WAITING)

    def _break(self, error: GatewayError) -> None:
        """Close the connection because of what upstream has sent."""
        receiver, unanswered = self.receiver, self._unanswered
        self.close()
        if receiver is not None:
            receiver.connection_lost(error, unanswered=unanswered)

    def _end(self, *, orderly: bool) -> None:
        """Handle the end of the connection. An ``orderly`` one, which is not a reset, may complete a response."""
        receiver, unanswered = self.receiver, self._unanswered
        complete = orderly and self.state is _CONTENT and self._length is UNTIL_CLOSE
        self.receiver = None
        self.state = _CLOSED
        if receiver is None:
            return
        if not complete:
            receiver.connection_lost(UpstreamBroken(), unanswered=unanswered)
            return
        if not end_is_announced(self.transport):
            self._owner.count_unannounced_end()
        receiver.response_complete(b"", b"")

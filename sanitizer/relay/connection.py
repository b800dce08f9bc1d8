"""One HTTP/1.1 connection to upstream: reads what comes, for one receiver after another.

httptools judges heads; where they end is found by `sanitizer.http1.heads`, and all content is read by the length that
the head declares.

==========  ================================================  ==================================
State       What it waits for                                 The next states
==========  ================================================  ==================================
CONNECTING  to be made                                        IDLE, ATTACHED
IDLE        a receiver                                        ATTACHED
ATTACHED    the receiver's request                            WAITING
WAITING     the first octet of the response                   HEAD
HEAD        the rest of the head, or a head that is no 1xx    CONTENT, TUNNEL
CONTENT     the rest of the content                           IDLE
TUNNEL      nothing: the connection is an end of a tunnel
CLOSED      nothing
==========  ================================================  ==================================

Every state but TUNNEL leads to CLOSED as well.

Cases, before the code that branches on them:

* Octets come after the response's end, or before a request has been sent: they answer nothing, and the connection is
  closed.
* The connection ends where the content's end is not: an error, unless the content lasts until the connection closes.
  Upstream's FIN then ends it, even if some of the request is still on its way, for upstream may never take that. In TLS
  a FIN without a close_notify, which many servers leave out, does so too, and is counted. A reset never does.
* The connection is lost with octets unread, because a write has found the reset before they were read, or because
  uvloop ends a TLS connection whose reading is paused: they are read first, for they may be the rest of the answer.
* The response is whole, but the request is not, or upstream has not taken all of it: the connection is closed, for
  upstream may close it too, and the next request would be lost.
* 101: what follows the head is no HTTP any more; a tunnel if the receiver has asked for it, an error if not.
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
from sanitizer.keepalive import probe_when_silent
from sanitizer.relay.pipe import TunnelEnd
from sanitizer.relay.stalls import Pending
from sanitizer.relay.transport import Transport, end_is_announced, progress, read_remaining, unacknowledged

_HEAD_LIMIT: Final = 256 * 1024
"""Bytes of an upstream's response head: beyond, it is broken."""
_ALWAYS_ACCEPTED: Final = 16 * 1024
"""Bytes of a request that any upstream's kernel takes, so that it need not be asked."""


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


# members read off the class are slow
_CONNECTING, _IDLE, _ATTACHED, _WAITING, _HEAD, _CONTENT, _TUNNEL, _CLOSED = State


class Response:
    """A response: its ``status``, its ``head`` to pass on (octets), the ``length`` of its content."""

    __slots__ = ("head", "length", "status")

    def __init__(self, status: int, head: bytes, length: Length) -> None:
        self.status = status
        self.head = head
        self.length = length


class Receiver(Protocol):
    """Sends a request on a connection, and receives its response.

    ``method`` is the request's. ``upgrade``: the request asks for one, so that 101 is an answer.
    """

    method: bytes
    upgrade: bool

    @property
    def request_complete(self) -> bool:
        """Whether the whole request has been handed to the connection."""

    def on_interim(self, head: bytes) -> None:
        """The head of a 1xx response other than 101 has come."""

    def response_received(self, response: Response) -> None:
        """The final response's head has come."""

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        """Content has come, and more is to come: ``last`` is False, and ``trailers`` empty."""

    def response_complete(self, content: bytes, trailers: bytes) -> None:
        """The rest of the content has come. The connection is no longer the receiver's."""

    def protocol_switched(self, response: Response, data: bytes) -> None:
        """Upstream has switched protocols; ``data`` are the first octets after its head."""

    def connection_lost(self, error: GatewayError, *, unanswered: bool) -> None:
        """The connection is gone before the response was whole.

        ``unanswered``: it had been idle, and not an octet of a response has come, so that upstream may have closed it
        before it got the request.
        """

    def fail(self, error: GatewayError) -> None:
        """The request has failed for another reason."""

    def on_blocked(self) -> None:
        """Upstream is slower: no more content should be sent."""

    def on_unblocked(self) -> None:
        """More content of the request may be sent."""


class Owner(Protocol):
    """The pool that a connection belongs to."""

    def release(self, connection: "Connection") -> None:
        """Take back a connection that is idle."""

    def closed(self, connection: "Connection") -> None:
        """Forget a connection that is gone."""

    def count_unannounced_end(self) -> None:
        """Count a response that a FIN has ended where TLS has a close_notify."""


class Connection(asyncio.Protocol):
    """One connection to upstream.

    ``reused``: it has been idle, so that upstream may have closed it meanwhile. ``idle_since`` and ``expires_at`` are
    times of the event loop, for the pool.
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
        self._first_content: tuple[bytes, bytes | None] | None = None  # read of what has come with the head
        self._keeps_alive = False

    # What a receiver calls

    def attach(self, receiver: Receiver) -> None:
        """Let the connection, which is idle or has just been made, be ``receiver``'s."""
        self.receiver = receiver
        self.state = _ATTACHED

    def send_request(self, octets: bytes) -> bool:
        """Send a request's head and the first of its content.

        Returns False if the connection is gone: upstream has closed it, or has sent something, while it was idle. Then
        nothing has been sent.
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
        if not self.transport.is_closing():  # else its end is about to be reported
            self._written += len(data)
            self.transport.write(data)

    def pause_reading(self) -> None:
        """Stop reading: the client is slower."""
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on reading."""
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def close(self) -> None:
        """Close at once: unsent bytes are dropped, and nothing more is reported."""
        self.receiver = None
        self.state = _CLOSED
        self.transport.abort()

    def become_tunnel_end(self, end: TunnelEnd) -> None:
        """The connection has become the ``end`` of a tunnel, which has been joined to the other end."""
        self.receiver = None
        self.state = _TUNNEL
        if self.write_paused:
            end.pause_writing()

    # What the stall sweep calls

    def check(self) -> Pending | None:
        """See `sanitizer.relay.stalls`. Once upstream answers, it may leave the rest of the request unread."""
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
        # first, because event loops use a connection even if this method has raised an exception
        self._poll.register(sock.fileno(), select.POLLIN | getattr(select, "POLLRDHUP", 0))
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            probe_when_silent(sock)

    def data_received(self, data: bytes) -> None:
        receiver = self.receiver
        if receiver is None or self.state is _ATTACHED:  # they answer nothing
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
        self.transport.abort()  # not when all has been written, which may be never
        self._end(in_order=True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.receiver is not None and self.state is not _ATTACHED:
            for data in read_remaining(self.transport):
                self.data_received(data)
                if self.receiver is None:
                    break
        if self.state is _TUNNEL:  # what had not been read was a 101
            self.transport.get_protocol().connection_lost(exc)
            return
        self._owner.closed(self)
        self._end(in_order=exc is None)

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
        """Read a head; returns what follows it, None if that isn't for the receiver or the head is not complete."""
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
        self._first_content = self._content_reader.feed(rest)  # before the head: if malformed, the answer is an error
        options = head.connection
        self._keeps_alive = b"close" not in options and (version == b"HTTP/1.1" or b"keep-alive" in options)
        self.state = _CONTENT
        receiver.response_received(Response(status, octets, length))
        return rest

    def _read_content(self, receiver: Receiver, data: bytes) -> None:
        """Read content. At its end give the connection back, or close it, and then call the receiver."""
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
            self.become_idle()  # first, so that the receiver's next request can take the connection
        receiver.response_complete(content, self._content_reader.trailers)

    def _has_sent_all(self, receiver: Receiver) -> bool:
        """Whether upstream has the whole request. An upstream that answers without having read it may well close."""
        return receiver.request_complete and (self._written <= _ALWAYS_ACCEPTED or not unacknowledged(self.transport))

    def become_idle(self) -> None:
        """Give the connection to the pool: no receiver needs it now."""
        self.state = _IDLE
        self.reused = True
        self._owner.release(self)

    # The end

    @property
    def _unanswered(self) -> bool:
        return self.reused and (self.state is _ATTACHED or self.state is _WAITING)

    def _break(self, error: GatewayError) -> None:
        """Close the connection because of what has come."""
        receiver, unanswered = self.receiver, self._unanswered
        self.close()
        if receiver is not None:
            receiver.connection_lost(error, unanswered=unanswered)

    def _end(self, *, in_order: bool) -> None:
        """Upstream has ended the connection, which ends a response that lasts until then, if it was ``in_order``."""
        receiver, unanswered = self.receiver, self._unanswered
        whole = in_order and self.state is _CONTENT and self._length is UNTIL_CLOSE
        self.receiver = None
        self.state = _CLOSED
        if receiver is None:
            return
        if not whole:
            receiver.connection_lost(UpstreamBroken(), unanswered=unanswered)
            return
        if not end_is_announced(self.transport):
            self._owner.count_unannounced_end()
        receiver.response_complete(b"", b"")

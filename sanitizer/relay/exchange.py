"""One request to upstream and its response.

========  ==========================================  ==================================
State     What it waits for                           The next states
========  ==========================================  ==================================
NEW       `start`                                     WAITING, DONE
WAITING   a connection                                ATTACHED, DONE
ATTACHED  the end of the event loop iteration         SENT, WAITING, DONE
SENT      the response's head                         ANSWERED, WAITING, DONE
ANSWERED  the rest of the response                    DONE
DONE      nothing
========  ==========================================  ==================================

Cases, before the code that branches on them:

* Upstream closes a pooled connection just as a request is sent on it, without a byte of a response. If the method is
  idempotent and no more than 64 KiB were sent, of which a copy is kept, the request is sent once more, on a new
  connection (RFC 9110 section 9.2.2). A POST may have been carried out, and is never repeated.
* The response ends before the request does: the response is complete, but the connection can't be used again.
* The exchange fails: an error response can still be sent before `on_response`, but not after it.
"""

import asyncio
from enum import Enum
from time import perf_counter
from typing import Final

from sanitizer.errors import BadRequest, GatewayError, ResponseTimeout, UpstreamBroken
from sanitizer.http1.bodies import CHUNKED, Length, encode_chunk, last_chunk
from sanitizer.relay.connection import Connection, Response
from sanitizer.relay.pool import Pool

_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
_REPLAY_LIMIT: Final = 64 * 1024
"""Bytes of an idempotent request that are kept, so that it can be sent once more."""


class State(Enum):
    """What an exchange waits for, see this module's table."""

    NEW = "new"
    WAITING = "waiting"
    ATTACHED = "attached"
    SENT = "sent"
    ANSWERED = "answered"
    DONE = "done"


# looking up a member on the enum class is slow
_NEW, _WAITING, _ATTACHED, _SENT, _ANSWERED, _DONE = State


class Exchange:
    """One request to upstream and its response. Subclasses define the ``on_...`` methods.

    ``method`` and ``head`` are octets. ``length`` is the framing of the content that is passed to `send`.
    ``upgrade`` says that the head asks for an upgrade, so that a 101 is allowed and opens a tunnel. ``response`` is set
    when its head has been received. ``transmitted`` is whether any of the request has been written.
    """

    __slots__ = (
        "_created_at",
        "_remaining",
        "_replay",
        "_replay_size",
        "_retried",
        "_timer",
        "_unsent",
        "chunked",
        "connection",
        "method",
        "pool",
        "request_complete",
        "response",
        "state",
        "transmitted",
        "upgrade",
    )

    def __init__(self, pool: Pool, method: bytes, head: bytes, length: Length = 0, *, upgrade: bool = False) -> None:
        head += b"\r\n"
        self.pool = pool
        self.method = method
        self.chunked = length is CHUNKED
        self.upgrade = upgrade
        self.connection: Connection | None = None
        self.response: Response | None = None
        self.state = _NEW
        self.transmitted = False
        self.request_complete = length == 0  # `send` has been called with all of the content
        self._retried = False
        self._created_at = perf_counter()
        self._remaining = length if isinstance(length, int) else 0  # octets of content that `send` still expects
        self._unsent: list[bytes] = [head]
        self._replay: list[bytes] | None = [head] if method in _IDEMPOTENT else None
        self._replay_size = len(head)  # kept as a sum, because content may arrive byte by byte
        self._timer: asyncio.TimerHandle | None = None

    @property
    def done(self) -> bool:
        """Whether the exchange is over."""
        return self.state is _DONE

    # What a handler calls

    def start(self) -> None:
        """Get a connection, or wait for one, and send the head. May call `on_error` before it returns."""
        if self.state is not _DONE:
            self.state = _WAITING
            self._timer = self.pool.acquire(self) or self._timer

    def send(self, data: bytes, last: bool = False) -> None:
        """Send content of the request. ``last`` means that no more follows.

        Raises `BadRequest` if the content is longer or shorter than the request's Content-Length.
        """
        if self.state is _DONE or self.request_complete:
            return
        if self.chunked:
            framed = encode_chunk(data) + last_chunk() if last else encode_chunk(data)
        else:
            framed = data
            self._remaining -= len(data)
            if self._remaining < 0 or (last and self._remaining):
                raise BadRequest("the content does not fit its Content-Length")
        self.request_complete = last or (not self.chunked and not self._remaining)
        if self._replay is not None:
            self._replay.append(framed)
            self._replay_size += len(framed)
            if self._replay_size > _REPLAY_LIMIT:
                self._replay = None
        if self.connection is None or not self.transmitted:
            self._unsent.append(framed)
        elif framed:
            self.connection.write(framed)
            self._await_response()

    @property
    def blocked(self) -> bool:
        """Whether `send` should not be called for now. `on_blocked` and `on_unblocked` are called when that changes."""
        return self.state is not _DONE and (self.connection is None or self.connection.write_paused)

    def pause_reading(self) -> None:
        """Stop reading from upstream: the client is slower."""
        if self.connection is not None:
            self.connection.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading from upstream."""
        if self.connection is not None:
            self.connection.resume_reading()

    def cancel(self) -> None:
        """Give up, and close the connection to upstream, which tells upstream that nobody waits for the response."""
        if self.state is not _DONE:
            self._finish()
            if self.connection is not None:
                self.connection.close()

    # What the pool calls

    def attach(self, connection: Connection) -> None:
        """Use ``connection``. At the end of this event loop iteration the head is sent, and the content so far."""
        self._stop_timer()
        self.connection = connection
        self.state = _ATTACHED
        connection.attach(self)
        self.pool.outbox.add(Exchange._transmit, self)

    def fail(self, error: GatewayError) -> None:
        """End the exchange because of ``error``, and close its connection."""
        self._finish()
        self.pool.count_error(error)
        if self.connection is not None:
            self.connection.close()
        self.on_error(error)

    # What the connection calls

    def response_received(self, response: Response) -> None:
        self._stop_timer()
        self.pool.seconds.observe(perf_counter() - self._created_at)
        self._replay = None
        self.state = _ANSWERED
        self.response = response
        self.on_response(response)

    def response_complete(self, content: bytes, trailers: bytes) -> None:
        self.connection = None
        self._finish()
        self.on_content(content, True, trailers)

    def protocol_switched(self, response: Response, data: bytes) -> None:
        self.pool.seconds.observe(perf_counter() - self._created_at)
        self.state = _ANSWERED
        self.response = response
        self.on_tunnel(response, data)

    def connection_lost(self, error: GatewayError, *, unanswered: bool) -> None:
        self.connection = None
        if unanswered and not self.transmitted:
            # upstream closed the connection while it was idle, and may have closed all other idle ones; not called
            # directly, because there may be many, and the calls would nest
            self.state = _WAITING
            self.pool.loop.call_soon(self.start)
        elif self._retried or (self.transmitted and not (unanswered and self._replay is not None)):
            self.fail(error)
        else:
            self._retried = True
            if self._replay is not None:
                self._unsent = [b"".join(self._replay)]
            self.transmitted = False
            self._stop_timer()
            self.state = _WAITING
            self._timer = self.pool.connect(self) or self._timer

    # Internal

    def _transmit(self) -> None:
        """Send the head, and the content that `send` has been called with so far."""
        connection = self.connection
        if self.state is not _ATTACHED or connection is None:
            return
        octets = b"".join(self._unsent) if len(self._unsent) > 1 else self._unsent[0]
        if not connection.send_request(octets):
            self.connection_lost(UpstreamBroken(), unanswered=connection.reused)
            return
        self.state = _SENT
        self.transmitted = True
        self._unsent = []
        self._await_response()
        self.on_transmitted()
        if not self.request_complete:
            if connection.write_paused:
                self.on_blocked()
            else:
                self.on_unblocked()

    def _await_response(self) -> None:
        """Limit the time to the response's head. It counts from the last byte sent: an upload may take longer."""
        timeout = self.pool.response_timeout
        if timeout is not None and self.response is None:
            self._stop_timer()
            self._timer = self.pool.loop.call_later(timeout, self.fail, ResponseTimeout())

    def _finish(self) -> None:
        self.state = _DONE
        self._replay = None
        self._unsent = []
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What a subclass defines

    def on_transmitted(self) -> None:
        """Called when the head has been written, and all content that `send` had been called with."""

    def on_interim(self, head: bytes) -> None:
        """Called with the head of each 1xx response other than 101."""

    def on_response(self, response: Response) -> None:
        """Called with the final response's head. `on_content` is called right after it, even if there is no content."""
        raise NotImplementedError

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        """Called with content of the response, which may be empty. When it is the last, the exchange is over."""
        raise NotImplementedError

    def on_error(self, error: GatewayError) -> None:
        """Called when the exchange has failed. If `on_response` has not been called, an error response can be sent."""
        raise NotImplementedError

    def on_blocked(self) -> None:
        """Called when no more content should be sent: there is no connection, or upstream is slower."""

    def on_unblocked(self) -> None:
        """Called when more content may be sent."""

    def on_tunnel(self, response: Response, data: bytes) -> None:
        """Called when upstream has switched protocols. ``data`` is what was received after the head of the 101."""
        raise NotImplementedError

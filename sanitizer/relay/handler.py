"""The interface between a client connection and the handler of its current request."""

import asyncio
from collections.abc import Callable
from typing import Literal, Protocol

from sanitizer.relay.pipe import TunnelEnd
from sanitizer.relay.pool import Pool
from sanitizer.relay.stalls import Pending
from sanitizer.relay.transport import Transport

Pause = Literal["upstream", "pipelined"]
"""Why reading from a client is paused: upstream is slower, or too many pipelined requests wait for their turn."""


class Handler(Protocol):
    """Handles one request of a client connection, from its head to the end of its response.

    ``status`` is the status of the response once it is known, and `CLIENT_LEFT` until then. ``started`` is whether
    `start` has been called. The client connection first passes on the content that was received together with the head,
    by `content` and `end`, so that both are sent in one write.
    """

    method: bytes
    status: int
    started: bool

    @property
    def response_started(self) -> bool:
        """Whether any of the response has been written."""

    def start(self) -> None:
        """Start to forward the request."""

    def content(self, data: bytes) -> None:
        """Called with each piece of the request's content."""

    def end(self) -> None:
        """Called when the request is complete.

        Its trailers are not forwarded, because some servers merge trailers into the fields of the head.
        """

    def close_after_response(self) -> None:
        """Called when the connection will take no further request, which the response should announce."""

    def cancel(self) -> None:
        """Give up and write nothing more: the client has disconnected, or ``status`` was set to refuse its request."""

    def pause_reading(self) -> None:
        """Stop reading the response from upstream: the client is slower."""

    def resume_reading(self) -> None:
        """Resume reading the response from upstream."""

    def pending(self) -> Pending | None:
        """How far upstream is with a response that is held back, for the stall sweep; None if none is held back."""


class Client(Protocol):
    """The client connection that a request was received on, as its handler uses it."""

    loop: asyncio.AbstractEventLoop
    transport: Transport
    address: str | None
    """The client's IP address; None on a unix socket."""
    pool: Pool
    """The connections to upstream."""
    write_blocked: bool
    """Whether the write buffer is full, because the client reads slowly."""
    cross_origin: bool
    """Whether the current request has an Origin field."""
    write: Callable[[bytes], None]
    """Sends octets to the client, at the latest at the end of this event loop iteration."""

    def write_interim(self, head: bytes) -> None:
        """Send the head of a 1xx response."""

    def pause(self, reason: Pause) -> None:
        """Stop reading from the client until `resume` is called with the same reason."""

    def resume(self, reason: Pause) -> None:
        """Resume reading from the client, unless it is paused for another reason."""

    def stays_open(self, keep_alive: bool) -> bool:
        """Whether the connection can take another request after the response to the current one."""

    def response_sent(self, handler: Handler, keep_alive: bool) -> None:
        """Called when the response to the current request is complete and written."""

    def become_tunnel(self, handler: Handler, upstream: TunnelEnd) -> None:
        """End the current request, and make the connection a tunnel to ``upstream``."""

    def abort(self) -> None:
        """Reset the connection, so that the response cannot be mistaken for a complete one."""

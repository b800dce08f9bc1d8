"""What a client connection and the handler of its current request know of each other, and no more."""

import asyncio
from collections.abc import Callable
from typing import Literal, Protocol

from sanitizer.relay.pipe import TunnelEnd
from sanitizer.relay.pool import Pool
from sanitizer.relay.stalls import Pending
from sanitizer.relay.transport import Transport

Pause = Literal["upstream", "pipelined"]
"""Why nothing is read from a client: upstream is slower, or a request has to wait for its turn."""


class Handler(Protocol):
    """Handles one request of a client connection, from its head to the end of its response.

    ``status`` is that of the response as soon as there is one, `CLIENT_LEFT` until then; ``started``: `start` has been
    called, which is after the first `content` or `end`, so that what has come together is sent on together.
    """

    method: bytes
    status: int
    started: bool

    @property
    def response_started(self) -> bool:
        """Whether some of the response has been written."""

    def start(self) -> None:
        """Begin to send the request on."""

    def content(self, data: bytes) -> None:
        """Content of the request has come."""

    def end(self) -> None:
        """The request is whole. Its trailers are not passed on: some servers merge them into the head's fields."""

    def close_after_response(self) -> None:
        """The connection takes no further request: the response should say so."""

    def cancel(self) -> None:
        """Give up and write nothing more: the client has left or, where ``status`` says so, its request is refused."""

    def pause_reading(self) -> None:
        """The client reads slowly: let no more of the response come."""

    def resume_reading(self) -> None:
        """The client has caught up."""

    def pending(self) -> Pending | None:
        """What upstream has still to do for an answer that is held back; None if none is."""


class Client(Protocol):
    """What a handler uses of the client connection that its request has come on."""

    loop: asyncio.AbstractEventLoop
    transport: Transport
    address: str | None
    """Its IP address; None on a unix socket."""
    pool: Pool
    """Where requests go."""
    write_blocked: bool
    cross_origin: bool
    """The current request has an Origin."""
    write: Callable[[bytes], None]
    """Sends octets to the client at the end of this turn of the event loop."""

    def write_interim(self, head: bytes) -> None:
        """Send the head of a 1xx response."""

    def pause(self, reason: Pause) -> None:
        """Read nothing from the client until `resume` is called with the same reason."""

    def resume(self, reason: Pause) -> None: ...

    def stays_open(self, keep_alive: bool) -> bool:
        """Whether the connection can take another request after the response to the current one."""

    def response_sent(self, handler: Handler, keep_alive: bool) -> None:
        """The response to the current request is whole and written."""

    def become_tunnel(self, handler: Handler, upstream: TunnelEnd) -> None:
        """Join the connection to the end that upstream's connection has become; the current request is over."""

    def abort(self) -> None:
        """Reset the connection, so that the response can't be taken for whole."""

"""A tunnel: what two connections become when upstream has switched protocols. Octets pass both ways.

=======  ============================================  ================
State    What it waits for                             The next states
=======  ============================================  ================
OPEN     octets from its peer                          ENDED, CLOSING
ENDED    the other end, for its peer sends no more     CLOSING
CLOSING  its peer to take all that was written
LOST     nothing: the connection is lost
=======  ============================================  ================

Every state leads to LOST as well.

Cases, before the code that branches on them:

* One side ends: the end is passed on, and the other side may go on sending. In TLS, the end of one side ends both.
* One side is lost: the other gets what was sent before, even if it had not been read yet, and is closed.
* One side reads slowly: nothing more is read from the other. If it takes nothing for the stall timeout, it is reset.
* A side that is not read because the other one is slow is reset by its peer: a sweep finds out. A FIN shows nothing
  then, for either side may end first.
"""

import asyncio
from collections.abc import Callable
from enum import Enum

from sanitizer.relay.closing import Closing
from sanitizer.relay.stalls import Pending
from sanitizer.relay.transport import Transport, end_is_announced, peer_has_closed, progress, read_remaining, reset


class _State(Enum):
    OPEN = "open"
    ENDED = "ended"
    CLOSING = "closing"
    LOST = "lost"


# members read off the class are slow
_OPEN, _ENDED, _CLOSING, _LOST = _State


class TunnelEnd(asyncio.Protocol):
    """One end of a tunnel.

    ``close_timeout``: seconds for which a peer may take nothing while its side is closed. ``on_stalled`` is called when
    the peer is cut because it takes nothing. ``on_lost`` is called with the end when its connection is gone, and with
    whether the peer has broken it off, which means that this side had not begun to close it.
    """

    __slots__ = (
        "_close_timeout",
        "_closing",
        "_on_lost",
        "_on_stalled",
        "_other",
        "_paused",
        "_state",
        "_written",
        "transport",
    )

    _other: "TunnelEnd"

    def __init__(
        self,
        transport: Transport,
        close_timeout: float,
        on_stalled: Callable[[], None],
        on_lost: Callable[["TunnelEnd", bool], None],
    ) -> None:
        self.transport = transport
        self._close_timeout = close_timeout
        self._on_stalled = on_stalled
        self._on_lost = on_lost
        self._state = _OPEN
        self._closing: Closing | None = None
        self._paused = False
        self._written = 0  # octets

    def join(self, other: "TunnelEnd") -> None:
        """Make a tunnel of this end and the ``other``."""
        self._other, other._other = other, self
        self.transport.set_protocol(self)
        other.transport.set_protocol(other)

    def close(self) -> None:
        """Close when the peer has taken all."""
        if self._state is _OPEN or self._state is _ENDED:
            self._state = _CLOSING
            if not self.transport.is_closing():
                self._closing = Closing(self.transport, self._close_timeout)

    # What the server calls

    def shutdown(self) -> None:
        """Do nothing: a tunnel lasts until a side ends it, or the grace is over."""

    def abort(self) -> None:
        """Reset the connection."""
        self._state = _CLOSING
        reset(self.transport)

    # What the stall sweep calls

    def check(self) -> Pending | None:
        """What the peer has still to take. Also acts on one that has left unnoticed."""
        if self._paused and peer_has_closed(self.transport, half_close=False):
            self.abort()
        if not self.transport.get_write_buffer_size():
            return None
        return Pending(progress(self.transport, self._written), self._stalled)

    def _stalled(self) -> None:
        self._on_stalled()
        self.abort()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        other = self._other
        if not other.transport.is_closing():  # else its peer has left in this very turn, and uvloop would raise
            other._written += len(data)
            other.transport.write(data)

    def eof_received(self) -> bool:
        other = self._other
        half_close = self.transport.can_write_eof() and other.transport.can_write_eof()
        if other._state is not _OPEN or not half_close:
            other.close()
            self.close()
            return False
        self._state = _ENDED
        if not other.transport.is_closing():
            other.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        broken_off = False
        if self._state is not _CLOSING:
            for data in read_remaining(self.transport):
                self.data_received(data)
            broken_off = exc is not None or not end_is_announced(self.transport)
        self._state = _LOST
        if self._closing is not None:
            self._closing.cancel()
        self._on_lost(self, broken_off)
        self._other.close()

    def pause_writing(self) -> None:
        self._other._pause()

    def resume_writing(self) -> None:
        self._other._resume()

    def _pause(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self.transport.pause_reading()
        self._paused = True

    def _resume(self) -> None:
        if self._paused and not self.transport.is_closing():
            self.transport.resume_reading()
        self._paused = False

"""A tunnel: two connections are joined when upstream has switched protocols, and octets are relayed in both directions.

=======  ============================================  ================
State    What it waits for                             The next states
=======  ============================================  ================
OPEN     octets from its peer                          ENDED, CLOSING
ENDED    the other peer's FIN: its own has sent one    CLOSING
CLOSING  its peer to acknowledge what was written
LOST     nothing: the connection is lost
=======  ============================================  ================

Every state leads to LOST as well.

Cases, before the code that branches on them:

* One peer sends FIN: the FIN is relayed, and the other peer may go on sending. With TLS on either side, both
  connections are closed, because a TLS transport cannot be half-closed.
* One connection is lost: the other peer gets what was sent before, even if it had not been read yet, and its connection
  is closed.
* One peer reads slowly: nothing more is read from the other. If it accepts nothing for the stall timeout, its
  connection is reset.
* A peer resets its connection while reading from it is paused: the stall sweep detects that. The sweep ignores a FIN,
  because a half-closed tunnel remains open.
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


# looking up a member on the enum class is slow
_OPEN, _ENDED, _CLOSING, _LOST = _State


class TunnelEnd(asyncio.Protocol):
    """One end of a tunnel.

    ``close_timeout`` is how many seconds the peer may acknowledge nothing while the connection is being closed.
    ``on_stalled`` is called before the connection is reset because the peer has stalled. ``on_lost`` is called when the
    connection is lost, with this end and whether the peer has broken it off: by a reset, or in TLS without a
    close_notify, before this end was being closed.
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
        """Make this end and ``other`` a tunnel, and set them as the protocols of their transports."""
        self._other, other._other = other, self
        self.transport.set_protocol(self)
        other.transport.set_protocol(other)

    def close(self) -> None:
        """Close when the peer has acknowledged everything."""
        if self._state is _OPEN or self._state is _ENDED:
            self._state = _CLOSING
            if not self.transport.is_closing():
                self._closing = Closing(self.transport, self._close_timeout)

    # What the server calls

    def shutdown(self) -> None:
        """Do nothing: a tunnel lasts until one of its peers ends it, or until the drain aborts it."""

    def abort(self) -> None:
        """Reset the connection."""
        self._state = _CLOSING
        reset(self.transport)

    # What the stall sweep calls

    def check(self) -> Pending | None:
        """How far the peer is with reading, for the stall sweep; None if nothing waits for it.

        Also aborts the connection if the peer has reset it while reading is paused.
        """
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
        if not other.transport.is_closing():  # it is if the other peer has just disconnected; uvloop would raise
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

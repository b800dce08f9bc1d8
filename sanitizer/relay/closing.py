"""Closing a connection whose peer may read slowly, or not at all.

Cases, before the code that branches on them:

* The peer acknowledges some of the pending octets now and then: it is given more time.
* The peer acknowledges none of them: the connection is reset, so that what it has received cannot be mistaken for
  everything.
* In TLS, the peer has acknowledged everything, including the close_notify, but does not send its own: the connection is
  aborted. uvloop would wait for the peer's close_notify, which an idle client does not send.
"""

import asyncio
from typing import Final

from sanitizer.relay.transport import Transport, reset, unacknowledged

_TLS_INTERVAL: Final = 0.125
"""Seconds between two checks whether the peer of a TLS connection has acknowledged everything."""


class Closing:
    """Closes ``transport`` when the peer has acknowledged everything; resets it after ``timeout`` without progress.

    ``timeout`` is in seconds.
    """

    __slots__ = ("_loop", "_timeout", "_timer", "_tls_timer", "_transport", "_unacknowledged")

    def __init__(self, transport: Transport, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._timeout = timeout
        self._unacknowledged = unacknowledged(transport)
        self._timer = self._loop.call_later(timeout, self._check)
        self._tls_timer: asyncio.TimerHandle | None = None
        transport.close()
        if transport.get_extra_info("sslcontext"):
            self._tls_timer = self._loop.call_later(_TLS_INTERVAL, self._end_tls)

    def cancel(self) -> None:
        """Stop checking: the connection is lost."""
        self._timer.cancel()
        if self._tls_timer is not None:
            self._tls_timer.cancel()

    def _check(self) -> None:
        before, self._unacknowledged = self._unacknowledged, unacknowledged(self._transport)
        if 0 < self._unacknowledged < before:
            self._timer = self._loop.call_later(self._timeout, self._check)
        else:
            reset(self._transport)

    def _end_tls(self, acknowledged: bool = False) -> None:
        """Abort the connection once everything is acknowledged in two checks in a row.

        ``acknowledged`` is the result of the previous check. The second one covers octets that uvloop had buffered at
        the first, such as the close_notify.
        """
        remaining = unacknowledged(self._transport)
        if acknowledged and not remaining:
            self._transport.abort()
        else:
            self._tls_timer = self._loop.call_later(_TLS_INTERVAL, self._end_tls, not remaining)

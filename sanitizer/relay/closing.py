"""Closing a connection whose peer may read slowly, or not at all.

Cases, before the code that branches on them:

* The peer takes some of what is on its way to it now and then: it is given more time.
* The peer takes none of it: the connection is reset, so that what has come can't be taken for whole.
* In TLS, the peer has taken all, the close_notify too, and does not send its own: the connection is ended. uvloop would
  wait for that, which an idle client does not send.
"""

import asyncio
from typing import Final

from sanitizer.relay.transport import Transport, reset, unacknowledged

_TLS_INTERVAL: Final = 0.125
"""Seconds from one look to the next at whether the peer of a TLS connection has taken all."""


class Closing:
    """Closes ``transport`` when its peer has taken all, or none of it for ``timeout`` seconds."""

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
        """Look no more: the connection is lost."""
        self._timer.cancel()
        if self._tls_timer is not None:
            self._tls_timer.cancel()

    def _check(self) -> None:
        before, self._unacknowledged = self._unacknowledged, unacknowledged(self._transport)
        if 0 < self._unacknowledged < before:
            self._timer = self._loop.call_later(self._timeout, self._check)
        else:
            reset(self._transport)

    def _end_tls(self, taken: bool = False) -> None:
        """End the connection once all is taken. ``taken``: at the last look it was.

        Then what uvloop may have kept has followed by now, the close_notify too.
        """
        remaining = unacknowledged(self._transport)
        if taken and not remaining:
            self._transport.abort()
        else:
            self._tls_timer = self._loop.call_later(_TLS_INTERVAL, self._end_tls, not remaining)

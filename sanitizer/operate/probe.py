"""Whether upstream can be reached: asked in the background, so that `/readyz` answers at once."""

import asyncio
import os
import ssl
from collections.abc import Callable
from typing import Final

from sanitizer import descriptors
from sanitizer.address import Address
from sanitizer.connecting import Connector
from sanitizer.resolver import LookupFailed

INTERVAL: Final = 2.0
"""Seconds from one connection to the next."""
FAILURES: Final = 2
"""This many in a row make upstream unreachable; one success makes it reachable again."""
_OUT_OF_DESCRIPTORS: Final = "the gateway is out of file descriptors"
"""A reason that is no failure of upstream's."""


class Probe:
    """Connects to upstream in the same way as a request does, and closes the connection.

    ``tls`` and ``timeout`` are those of `Connector`. ``reason``: why upstream counts as unreachable; None if it does
    not. ``on_change`` is called with it whenever it has changed from None or to None.
    """

    def __init__(
        self, address: Address, tls: ssl.SSLContext | None, timeout: float, on_change: Callable[[str | None], None]
    ) -> None:
        self._connector = Connector(address, tls, timeout)
        self._timeout = timeout
        self._on_change = on_change
        self._failures = 0
        self.reason: str | None = "upstream has not been reached yet"

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self.judge(await self._connect())
            await asyncio.sleep(INTERVAL)

    def judge(self, error: str | None) -> None:
        """Take in how a connection went; ``error``: None if it was made."""
        before = self.reason
        if error is None:
            self._failures = 0
            self.reason = None
            if before is not None:
                self._on_change(None)
            return
        self._failures += 1
        if self._failures >= FAILURES:
            self.reason = error if error == _OUT_OF_DESCRIPTORS else f"upstream can't be reached: {error}"
            if self._failures == FAILURES:
                self._on_change(self.reason)

    async def _connect(self) -> str | None:
        ended = asyncio.Event()
        try:
            transport = await self._connector.connect(lambda: _Visit(ended))
        except TimeoutError:
            return "timed out"
        except (OSError, ValueError) as error:  # ssl.SSLError is one; the other: a name that IDNA can't encode
            return _said(error)
        transport.close()
        try:
            async with asyncio.timeout(self._timeout):
                await ended.wait()
        except TimeoutError:
            transport.abort()
        return None


class _Visit(asyncio.Protocol):
    """A connection that carries nothing. Sets ``ended`` when it is closed."""

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()


def _said(error: Exception) -> str:
    """The reason of a failed connection, for the operator. It does not name the address."""
    if descriptors.ran_out(error):
        return _OUT_OF_DESCRIPTORS
    if isinstance(error, LookupFailed):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "TLS handshake failed"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    if isinstance(error, OSError):  # one for each address
        return "none of its addresses could be reached"
    return type(error).__name__

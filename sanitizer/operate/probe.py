"""Finds out in the background whether upstream can be reached, so that `/readyz` answers at once."""

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
"""Seconds between two connections."""
FAILURES: Final = 2
"""After this many failures in a row upstream counts as unreachable. One success makes it reachable again."""
_OUT_OF_DESCRIPTORS: Final = "the gateway is out of file descriptors"
"""A reason that is not upstream's fault."""


class Probe:
    """Connects to upstream at intervals, in the same way as a request does, and closes each connection at once.

    ``tls`` and ``timeout`` are those of `Connector`. ``reason``: why upstream counts as unreachable; None if it is
    reachable. ``on_change`` is called with the new reason when upstream becomes reachable or unreachable.
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
        """Connect every `INTERVAL`, until cancelled."""
        while True:
            self.judge(await self._connect())
            await asyncio.sleep(INTERVAL)

    def judge(self, error: str | None) -> None:
        """Update `reason` after an attempt to connect. ``error``: why it failed; None if it succeeded."""
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
            transport = await self._connector.connect(lambda: _ProbeProtocol(ended))
        except TimeoutError:
            return "timed out"
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; ValueError: a name that IDNA can't encode
            return _describe(error)
        transport.close()
        try:
            async with asyncio.timeout(self._timeout):
                await ended.wait()
        except TimeoutError:
            pass
        finally:  # also if the probe is cancelled: a TLS connection waits for upstream's close_notify
            transport.abort()
        return None


class _ProbeProtocol(asyncio.Protocol):
    """A connection that carries nothing. Sets ``ended`` when it is closed."""

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()


def _describe(error: Exception) -> str:
    """Why a connection failed, in words for the operator and without the address."""
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
    if isinstance(error, OSError):  # it sums up the errors of several addresses
        return "none of its addresses could be reached"
    return type(error).__name__

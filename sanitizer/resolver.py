"""Resolves upstream's host name.

Only ``getaddrinfo`` resolves a name as every other program does: with ``/etc/hosts``, ``nsswitch.conf`` and search
domains. It can block for as long as ``resolv.conf`` allows, so it is called on a daemon thread, which does not keep the
process from exiting. Cases, before the code that branches on them:

* Connections that need the name during a lookup share the result of that lookup.
* A lookup fails, or takes longer than `TIMEOUT`: the last known addresses are used for up to `MAX_STALE`. During that
  time, a connection starts a lookup but does not wait for it.
* The name does not exist: the last known addresses are discarded, because this is a valid answer and not a failure
  (RFC 8767 section 4). They may now belong to another server, and requests carry keys.
"""

import asyncio
import functools
import socket
import threading
from concurrent.futures import Future
from queue import SimpleQueue
from time import monotonic
from typing import Any, Final

AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""One address, as ``getaddrinfo`` returns it."""
Result = list[AddrInfo] | str
"""The result of a lookup: addresses, or the reason why there are none.

The reason is not an exception, because asyncio would log one that no task retrieves.
"""

TIMEOUT: Final = 10.0
"""Seconds that a connection waits for a lookup."""
MAX_STALE: Final = 300.0
"""Seconds after the first failure during which the last known addresses are used."""
_NO_SUCH_NAME: Final = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)


class LookupFailed(OSError):
    """The name could not be resolved. The message is for the operator, and does not contain the name."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the name in --upstream can't be resolved: {reason}")


class Resolver:
    """Resolves one name, with one lookup at a time. Can be used from several event loops."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._lock = threading.Lock()  # guards the next three attributes
        self._lookup: Future[Result] | None = None  # in progress
        self._last_addresses: list[AddrInfo] = []
        self._failing_since: float | None = None
        self._queue: SimpleQueue[Future[Result]] = SimpleQueue()
        threading.Thread(target=self._run, name="resolver", daemon=True).start()

    async def addresses(self) -> list[AddrInfo]:
        """Return the addresses of the name. Raises `LookupFailed`."""
        with self._lock:
            lookup = self._lookup or self._start_lookup()
            stale = self._stale_addresses()
        if stale:
            return stale
        found: Result
        try:
            async with asyncio.timeout(TIMEOUT):
                found = await asyncio.wrap_future(lookup)
        except TimeoutError:
            found = f"no answer within {TIMEOUT:g} s"
            with self._lock:
                if self._lookup is lookup:
                    self._record_failure()
        if isinstance(found, list):
            return found
        with self._lock:
            stale = self._stale_addresses()
        if not stale:
            raise LookupFailed(found)
        return stale

    def _start_lookup(self) -> Future[Result]:
        self._lookup = lookup = Future[Result]()
        lookup.set_running_or_notify_cancel()  # so that a caller that stops waiting does not cancel it for the others
        self._queue.put(lookup)
        return lookup

    def _record_failure(self) -> None:
        if self._failing_since is None:
            self._failing_since = monotonic()

    def _stale_addresses(self) -> list[AddrInfo]:
        """Return the last known addresses if lookups have been failing for less than `MAX_STALE`, otherwise none."""
        since = self._failing_since
        return self._last_addresses if since is not None and monotonic() - since < MAX_STALE else []

    def _run(self) -> None:
        """Do the lookups in the queue. Runs on the resolver's thread."""
        while True:
            lookup = self._queue.get()
            found: Result
            no_such_name = False
            try:
                found = list[AddrInfo](socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM))
            except OSError as error:
                found = error.strerror or str(error)
                no_such_name = error.errno in _NO_SUCH_NAME
            except UnicodeError as error:  # a name that IDNA can't encode
                found = str(error)
            with self._lock:
                self._lookup = None
                if isinstance(found, str) and not no_such_name:
                    self._record_failure()
                else:
                    self._last_addresses = [] if isinstance(found, str) else found
                    self._failing_since = None
            lookup.set_result(found)


@functools.cache
def resolver_of(host: str, port: int) -> Resolver:
    """Return the process's resolver for this name, which all connections share."""
    return Resolver(host, port)

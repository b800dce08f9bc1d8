"""The addresses of upstream's name, as the system finds them.

``getaddrinfo`` is the only way to look a name up as every other program does: by ``/etc/hosts``, ``nsswitch.conf`` and
search domains. It blocks for as long as ``resolv.conf`` says. So it is called on a daemon thread, which does not keep
the process from ending. Cases, before the code that branches on them:

* Connections that are wanted during a look-up share its outcome.
* A look-up fails, or takes longer than `LIMIT`: the last addresses are used for as long as `KEPT`. While that lasts, a
  connection does not wait for the look-up that it begins.
* The answer is that there is no such name: the last addresses are forgotten, for this is no failure (RFC 8767 section
  4). They may belong to another server by now, and requests carry keys.
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
"""One address, as ``getaddrinfo`` gives it."""
Outcome = list[AddrInfo] | str
"""The outcome of a look-up: addresses, or why there are none. It is no exception, for perhaps no task waits for it."""

LIMIT: Final = 10.0
"""Seconds that a connection waits for a look-up."""
KEPT: Final = 300.0
"""Seconds from the first failure during which the last addresses are used."""
_NO_SUCH_NAME: Final = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)


class LookupFailed(OSError):
    """A name has no address, or none was found in time. The message is for the operator and does not name it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the name in --upstream can't be resolved: {reason}")


class Resolver:
    """Looks up one name, with one look-up at a time. May be used from several event loops."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._lock = threading.Lock()  # for what follows
        self._lookup: Future[Outcome] | None = None  # the one under way
        self._last: list[AddrInfo] = []
        self._failing_since: float | None = None
        self._wanted: SimpleQueue[Future[Outcome]] = SimpleQueue()
        threading.Thread(target=self._work, name="resolver", daemon=True).start()

    async def addresses(self) -> list[AddrInfo]:
        """The addresses of the name. Raises `LookupFailed`."""
        with self._lock:
            lookup = self._lookup or self._begin()
            last = self._usable()
        if last:
            return last
        found: Outcome
        try:
            async with asyncio.timeout(LIMIT):
                found = await asyncio.wrap_future(lookup)
        except TimeoutError:
            found = f"no answer within {LIMIT:g} s"
            with self._lock:
                if self._lookup is lookup:
                    self._fail()
        if isinstance(found, list):
            return found
        with self._lock:
            last = self._usable()
        if not last:
            raise LookupFailed(found)
        return last

    def _begin(self) -> Future[Outcome]:
        self._lookup = lookup = Future[Outcome]()
        lookup.set_running_or_notify_cancel()  # from now on a caller that gives up waiting cannot cancel it
        self._wanted.put(lookup)
        return lookup

    def _fail(self) -> None:
        if self._failing_since is None:
            self._failing_since = monotonic()

    def _usable(self) -> list[AddrInfo]:
        """The last addresses, if look-ups fail and have not failed for too long."""
        since = self._failing_since
        return self._last if since is not None and monotonic() - since < KEPT else []

    def _work(self) -> None:
        """Look the name up whenever it is wanted; runs on the thread."""
        while True:
            lookup = self._wanted.get()
            found: Outcome
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
                    self._fail()
                else:
                    self._last = [] if isinstance(found, str) else found
                    self._failing_since = None
            lookup.set_result(found)


@functools.cache
def resolver_of(host: str, port: int) -> Resolver:
    """The one resolver of this process for a name, which all connections to it share."""
    return Resolver(host, port)

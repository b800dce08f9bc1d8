"""The descriptors that a process may have: each open file and each connection is one.

Cases, before the code:

* The public side has used up all descriptors that it may have. A connection to upstream fails with `OSError`. A
  connection of a client is closed at once by uvloop's event loop, which reports that nowhere: `Watch` sees it instead.
* The admin listener accepts a connection meanwhile: it takes a descriptor of the reserve, which nothing else may use.
"""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import threading
from collections.abc import Callable
from typing import Final, TypeVar

_T = TypeVar("_T")

RESERVE: Final = 160
"""Descriptors that only the admin listener may use. It has at most 64 connections, and accepts 64 in one turn."""
ADVICE: Final = "raise the limit of open files (ulimit -n, LimitNOFILE=), or run more --workers"
"""Advice for the operator when there are too few."""
NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE)
"""Error numbers of a process, or a whole system, that can have no further descriptor."""
_WATCH_INTERVAL: Final = 1.0
_raising: Final = threading.Lock()
"""Held while the limit is raised, so that no other thread takes the reserve for room."""


def raise_limit(reserve: int) -> None:
    """Raise the soft limit of descriptors to the hard one, less ``reserve``: the usual 1024 are 500 streams."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard - reserve, hard // 2), hard))


def take_from_reserve(take: Callable[[], _T]) -> _T:
    """Call ``take``, which may use one descriptor of the reserve, and return its result.

    Raises `OSError` if no descriptor is left.

    The limit is that of the whole process, so it is raised by one place at a time, which ``take`` fills at once: a
    public side with connections waiting would fill whatever else there is. A place can be lost all the same: the public
    side has been faster, or a call under way, such as accept(2), keeps it for its result, so that it only looks free.
    Then the next place is tried.
    """
    with _raising:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            for place in range(soft, hard):
                if _is_open(place):
                    continue
                resource.setrlimit(resource.RLIMIT_NOFILE, (place + 1, hard))
                try:
                    return take()
                except OSError as error:
                    if error.errno != errno.EMFILE:
                        raise
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _is_open(descriptor: int) -> bool:
    try:
        os.get_inheritable(descriptor)
    except OSError:
        return False
    return True


def none_left() -> bool:
    """Whether the process can't have a further descriptor now. One of the reserve does not count."""
    with _raising:
        try:
            socket.socket(socket.AF_UNIX).close()
        except OSError as error:
            return error.errno in NONE_LEFT
    return False


def ran_out(error: Exception) -> bool:
    """Whether ``error`` came about because no descriptor was left. The error of a name's look-up does not say so."""
    return (isinstance(error, OSError) and error.errno in NONE_LEFT) or none_left()


class Watch:
    """Calls ``report`` when no descriptor is left, and then once a second while that lasts.

    It looks when a connection has been accepted, which may have taken the last one, and every second from `start` on,
    because connections to upstream and files take descriptors too.
    """

    def __init__(self, report: Callable[[], None]) -> None:
        self._report = report
        self._reported = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look, where an event loop runs."""
        self._look()

    def accepted(self) -> None:
        """A connection has been accepted. If it took the last descriptor, further ones are closed unseen."""
        if not self._reported and none_left():
            self._look()

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_WATCH_INTERVAL, self._look)
        self._reported = none_left()
        if self._reported:
            self._report()

"""The descriptors that a process may have: each open file and each connection is one.

Cases, before the code:

* The public side has used up all that it may have. What it connects to fails with `OSError`. What connects to it is
  closed at once by the event loop, uvloop's, which tells nobody: `Watch` sees it instead.
* The admin listener accepts a connection then: it takes one of those in reserve, which nobody else may have.
"""

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Final

RESERVE: Final = 160
"""Descriptors that only the admin listener may use. It has at most 64 connections, and accepts 64 in one turn."""
ADVICE: Final = "raise the limit of open files (ulimit -n, LimitNOFILE=), or run more --workers"
"""What an operator can do when there are too few."""
_NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE)
_WATCH_INTERVAL: Final = 1.0


def raise_limit() -> None:
    """Let the process have all the descriptors that it can have, less the reserve: the usual 1024 are 500 streams."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard - RESERVE, hard // 2), hard))


@contextlib.contextmanager
def reserve() -> Iterator[None]:
    """Use the reserve. The limit is the whole process's: hold it for no longer than it takes to get a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def none_left() -> bool:
    """Whether the process can't have a further descriptor now."""
    try:
        socket.socket(socket.AF_UNIX).close()
    except OSError as error:
        return error.errno in _NONE_LEFT
    return False


def is_shortage(error: Exception) -> bool:
    """Whether ``error`` came about because no descriptor was left. That of a name's look-up does not say so itself."""
    return (isinstance(error, OSError) and error.errno in _NONE_LEFT) or none_left()


class Watch:
    """Calls ``report`` when `check` finds that no descriptor is left, and then once a second while that lasts."""

    def __init__(self, report: Callable[[], None]) -> None:
        self._report = report
        self._timer: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """To be called whenever a connection has been accepted: the last one that could be is the first sign."""
        if self._timer is None:
            self._look()

    def _look(self) -> None:
        self._timer = None
        if none_left():
            self._report()
            self._timer = asyncio.get_running_loop().call_later(_WATCH_INTERVAL, self._look)

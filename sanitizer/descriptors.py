"""The file descriptors of the process: each open file and each connection needs one.

Cases, before the code:

* The public side has used up all descriptors that it may use. A connection to upstream fails with `OSError`. A client's
  connection is closed at once by uvloop's event loop, which does not report this, so `Watch` detects it.
* The admin listener accepts a connection in this situation: it takes a descriptor from a reserve that nothing else may
  use.
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
"""Descriptors that only the admin listener may use. It has at most 64 connections, and accepts up to 64 at once."""
ADVICE: Final = "raise the limit of open files (ulimit -n, LimitNOFILE=), or run more --workers"
"""Logged advice for the operator when the descriptors are used up."""
NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE)
"""The error numbers if the limit of the process, or of the whole system, is reached."""
_WATCH_INTERVAL: Final = 1.0
_limit_lock: Final = threading.Lock()
"""Held while the limit is raised, so that `none_left` in another thread does not count the reserve."""


def raise_limit(reserve: int) -> None:
    """Raise the soft limit to the hard limit minus ``reserve``, but at least to half of the hard limit.

    The usual soft limit, 1024, allows only some 500 streams.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard - reserve, hard // 2), hard))


def take_from_reserve(take: Callable[[], _T]) -> _T:
    """Call ``take``, which may use one descriptor of the reserve, and return its result.

    Raises `OSError` if no descriptor is left.

    The limit applies to the whole process, and the public side would use any descriptor that it allows. So the limit is
    raised just far enough for one descriptor, which ``take`` uses at once. The attempt can still fail: the public side
    may use that descriptor first, or a call in progress, such as accept(2), may have reserved it for its result, so
    that it only looks free. The next descriptor is then tried.
    """
    with _limit_lock:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            for descriptor in range(soft, hard):
                if _is_open(descriptor):
                    continue
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor + 1, hard))
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
    """Whether the public side has no descriptor left. The reserve does not count."""
    with _limit_lock:
        try:
            socket.socket(socket.AF_UNIX).close()
        except OSError as error:
            return error.errno in NONE_LEFT
    return False


def ran_out(error: Exception) -> bool:
    """Whether ``error`` occurred because no descriptor was left.

    The error of a failed name lookup does not show this, so whether any is left now is tested too.
    """
    return (isinstance(error, OSError) and error.errno in NONE_LEFT) or none_left()


class Watch:
    """Calls ``report`` when no descriptor is left, and then once per second while that lasts.

    It checks whenever a connection was accepted, which may have taken the last descriptor. It also checks every second
    after `start`, because connections to upstream and files use descriptors too.
    """

    def __init__(self, report: Callable[[], None]) -> None:
        self._report = report
        self._reported = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the checks. Needs a running event loop."""
        self._check()

    def accepted(self) -> None:
        """Check after a connection was accepted: if it took the last descriptor, the next ones are closed silently."""
        if not self._reported and none_left():
            self._check()

    def _check(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_WATCH_INTERVAL, self._check)
        self._reported = none_left()
        if self._reported:
            self._report()

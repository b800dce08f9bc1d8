"""Worker processes: started, replaced when they die, and drained together.

Signals to stop go to the supervisor, which passes them on. A terminal's Ctrl-C and a service manager may send them to
every process of the gateway as well, so that a worker gets them twice. A worker therefore takes a repeated signal for
the same one, and only the supervisor, which gets each of them once, decides that a drain is to end early: it sends the
workers `END_DRAIN`.

`RELOAD` is passed on too, whenever it comes. A process keeps it blocked until it can handle it.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Final

from sanitizer.operate import logs
from sanitizer.operate.admin import Admin

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""The first of them starts the drain."""
END_DRAIN: Final = signal.SIGUSR1
"""Ends the drain of a worker."""
RELOAD: Final = signal.SIGHUP
"""Lets every process that serves load its certificate and key again."""
_RESTART_PAUSE: Final = 1.0
"""Seconds before a dead worker is replaced: one that dies at its start must not take the whole machine."""
_PATIENCE: Final = 5.0
"""Seconds beyond the grace in which workers may end by themselves, before they are killed."""


class Supervisor:
    """Runs ``count`` worker processes.

    ``work`` is called in each, with the pipe to write snapshots to, or None without an admin listener; it has to
    unblock SIGINT and `RELOAD` when it can take them. ``grace`` is what a worker may take to drain, in seconds.
    ``on_stop`` is called when the first signal has come.
    """

    def __init__(
        self,
        work: Callable[[Connection | None], None],
        count: int,
        grace: float,
        admin: Admin | None,
        on_stop: Callable[[], None],
    ) -> None:
        self._spawn = multiprocessing.get_context("spawn")
        self._work = work
        self._count = count
        self._grace = grace
        self._admin = admin
        self._on_stop = on_stop
        self._signals: list[int] = []
        self._reload = False  # has come, and has not been passed on
        self._workers: list[SpawnProcess] = []
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)

    def run(self) -> int:
        """Run the workers until a signal says stop and they have drained. Returns the exit status: 1 if one can't be
        started at all, else 0.
        """
        with self._woken, self._wake:
            resource_tracker.ensure_running()  # else the first start would start it, and unblock the signals for that
            signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
            for number in STOP_SIGNALS:
                signal.signal(number, self._signalled)
            signal.signal(RELOAD, self._asked_to_reload)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [RELOAD])
            try:
                while len(self._workers) < self._count and not self._signals:
                    self._workers.append(self._start())
                while not self._signals:
                    self._wait(self._workers)
                    self._replace_dead()
                self._drain()
            except OSError as error:
                logs.event(logging.ERROR, "can't start a worker", reason=error.strerror or str(error))
                return 1
            finally:
                for worker in self._workers:
                    worker.kill()
                    worker.join()
                signal.signal(RELOAD, signal.SIG_IGN)
                signal.set_wakeup_fd(-1)
        return 0

    def _signalled(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _asked_to_reload(self, _: int, __: FrameType | None) -> None:
        self._reload = True

    def _wait(self, workers: Iterable[SpawnProcess] = (), timeout: float | None = None) -> None:
        """Wait until one of ``workers`` has ended, a signal has come, or ``timeout`` seconds have passed."""
        wait([self._woken, *(worker.sentinel for worker in workers)], timeout)
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        if self._reload:
            self._reload = False
            for worker in self._workers:
                if worker.exitcode is None and worker.pid is not None:
                    os.kill(worker.pid, RELOAD)

    def _start(self) -> SpawnProcess:
        """Start a worker. Raises `OSError`."""
        if self._admin is None:
            return self._start_with(None)
        ours, theirs = self._spawn.Pipe(duplex=False)
        with theirs:  # closed here, so that the pipe ends with the worker
            try:
                worker = self._start_with(theirs)
            except OSError:
                ours.close()
                raise
        self._admin.add_worker(ours)
        return worker

    def _start_with(self, pipe: Connection | None) -> SpawnProcess:
        worker = self._spawn.Process(target=self._work, args=(pipe,))
        # the worker inherits this; SIGTERM is not blocked, so that it ends at once a worker that is still starting
        blocked = (signal.SIGINT, RELOAD)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        return worker

    def _replace_dead(self) -> None:
        dead = [worker for worker in self._workers if worker.exitcode is not None]
        if not dead or self._signals:
            return
        for worker in dead:
            logs.event(logging.ERROR, "a worker has died, starting another", exit_status=worker.exitcode)
            self._workers.remove(worker)
        self._pause()
        while len(self._workers) < self._count and not self._signals:
            try:
                self._workers.append(self._start())
            except OSError as error:  # the others serve on
                logs.event(logging.ERROR, "can't start a worker", reason=error.strerror or str(error))
                self._pause()

    def _pause(self) -> None:
        """Let `_RESTART_PAUSE` pass, unless a signal comes."""
        until = time.monotonic() + _RESTART_PAUSE
        while not self._signals and (remaining := until - time.monotonic()) > 0:
            self._wait(timeout=remaining)

    def _drain(self) -> None:
        """Pass signals on until all workers have ended, or have had more than enough time."""
        deadline = time.monotonic() + self._grace + _PATIENCE
        self._on_stop()
        passed = 0
        while working := [worker for worker in self._workers if worker.exitcode is None]:
            while passed < len(self._signals):
                number = END_DRAIN if passed else self._signals[0]
                passed += 1
                for worker in working:
                    if worker.pid is not None:
                        os.kill(worker.pid, number)
            if (remaining := deadline - time.monotonic()) <= 0:
                break
            self._wait(working, remaining)

"""Worker processes: started, replaced when they die, and drained together.

Each worker has a listening socket of its own, over which the kernel spreads new connections; a Unix socket is shared by
all. The supervisor holds all of these sockets open, so that the connections in the queue of a worker that dies wait for
its successor, which gets the same socket. A worker that hangs is not replaced: the connections in its queue wait until
it goes on, or is killed. When the drain begins, the supervisor closes its copies, for there are no successors any more:
what still waits for one is reset.

Each worker reports when it serves. If one exits with status 1 before all have done so, the gateway can't start.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Final

from sanitizer.operate import logs

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
    """Runs a worker process for each of ``listeners``, which it closes when they drain.

    ``work`` is called in each process, with its listener, the pipe to which it has to send its process id when it
    serves, and the pipe to write snapshots to; it has to unblock SIGINT and `RELOAD` when it can take them. ``grace``
    is what a worker may take to drain, in seconds. ``on_serving`` is called when all serve for the first time, and
    ``on_stop`` when the first signal has come. ``add_worker`` is called with the other end of each pipe for snapshots;
    if it is None, there are no such pipes.
    """

    def __init__(
        self,
        work: Callable[[socket.socket, Connection, Connection | None], None],
        listeners: Sequence[socket.socket],
        grace: float,
        on_serving: Callable[[], None],
        add_worker: Callable[[Connection], None] | None = None,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        self._spawn = multiprocessing.get_context("spawn")
        self._work = work
        self._listeners = listeners
        self._grace = grace
        self._on_serving = on_serving
        self._add_worker = add_worker
        self._on_stop = on_stop
        self._signals: list[int] = []
        self._reload = False  # has come, and has not been passed on
        self._workers: list[SpawnProcess] = []  # in the order of their listeners
        self._reports, self._report = self._spawn.Pipe(duplex=False)
        self._serving: set[int] = set()  # process ids
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)

    def run(self) -> int:
        """Run the workers until a signal says stop and they have drained. Returns the exit status: 1 if one can't
        start, else 0.
        """
        with self._woken, self._wake, self._reports, self._report:
            signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
            for number in STOP_SIGNALS:
                signal.signal(number, self._signalled)
            signal.signal(RELOAD, self._asked_to_reload)
            try:
                # else the first start would start it, and unblock the signals for that
                resource_tracker.ensure_running()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [*STOP_SIGNALS, RELOAD])
                for listener in self._listeners:
                    if not self._signals:
                        self._workers.append(self._start(listener))
                began = False
                while not self._signals:
                    self._wait(self._workers)
                    dead = {place: worker for place, worker in enumerate(self._workers) if worker.exitcode is not None}
                    if not began and any(worker.exitcode == 1 for worker in dead.values()):
                        return 1  # it has logged why
                    if dead and not self._signals:
                        self._replace(dead)
                    if not began and not self._signals and self._serving.issuperset(w.pid for w in self._workers):
                        began = True
                        self._on_serving()
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
        """Wait until one of ``workers`` has ended, one has begun to serve, a signal has come, or ``timeout`` seconds
        have passed.
        """
        wait([self._woken, self._reports, *(worker.sentinel for worker in workers)], timeout)
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        while self._reports.poll():
            self._serving.add(self._reports.recv())
        if self._reload:
            self._reload = False
            for worker in self._workers:
                if worker.exitcode is None and worker.pid is not None:
                    os.kill(worker.pid, RELOAD)

    def _start(self, listener: socket.socket) -> SpawnProcess:
        """Start a worker. Raises `OSError`."""
        if self._add_worker is None:
            return self._start_with(listener, None)
        ours, theirs = self._spawn.Pipe(duplex=False)
        with theirs:  # closed here, so that the pipe ends with the worker
            try:
                worker = self._start_with(listener, theirs)
            except OSError:
                ours.close()
                raise
        self._add_worker(ours)
        return worker

    def _start_with(self, listener: socket.socket, pipe: Connection | None) -> SpawnProcess:
        worker = self._spawn.Process(target=self._work, args=(listener, self._report, pipe))
        # the worker inherits this; SIGTERM is not blocked, so that it ends at once a worker that is still starting
        blocked = (signal.SIGINT, RELOAD)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        return worker

    def _replace(self, dead: Mapping[int, SpawnProcess]) -> None:
        """Start a successor for each of ``dead``, in its place, unless a signal comes."""
        for worker in dead.values():
            level, what = (logging.ERROR, "died") if worker.exitcode else (logging.WARNING, "ended")  # it was told to
            logs.event(level, f"a worker has {what}, starting another", worker=worker.pid, exit_status=worker.exitcode)
        self._pause()
        places = list(dead)
        while places and not self._signals:
            try:
                self._workers[places[0]] = self._start(self._listeners[places[0]])
                del places[0]
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
        if self._on_stop is not None:
            self._on_stop()
        for listener in self._listeners:
            listener.close()
        passed = 0
        while working := [worker for worker in self._workers if worker.exitcode is None]:
            while passed < len(self._signals):
                number = END_DRAIN if passed else self._signals[0]
                passed += 1
                for worker in working:
                    if worker.pid is not None:
                        os.kill(worker.pid, number)
            if (remaining := deadline - time.monotonic()) <= 0:
                for worker in working:
                    logs.event(logging.ERROR, "a worker does not end, killing it", worker=worker.pid)
                break
            self._wait(working, remaining)

"""Worker processes: started, replaced when they die, and drained together.

Each worker has its own listening socket, and the kernel distributes new connections among them. A Unix socket is shared
by all workers. The supervisor keeps all of these sockets open: if a worker dies, the connections in its queue wait for
its successor, which gets the same socket. A worker that hangs is not replaced: the connections in its queue wait until
it continues or is killed. When the drain starts, the supervisor closes its copies, because no successor will follow,
and the connections that still wait for one are reset.

Each worker reports when it serves. If one exits with status 1 before all have reported, the gateway can't start.

Stop signals are sent to the supervisor, which passes them on. A terminal's Ctrl-C or a service manager may send them to
every process of the gateway, so that a worker receives them twice. A worker therefore ignores a repeated signal. Only
the supervisor, which receives each signal once, decides to end a drain early. It then sends `END_DRAIN` to the workers.

`RELOAD` is passed on at any time. Each process blocks it until it can handle it.
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
"""The first of these that is received starts the drain."""
END_DRAIN: Final = signal.SIGUSR1
"""Tells a worker to end its drain."""
RELOAD: Final = signal.SIGHUP
"""Tells every serving process to reload its certificate and key."""
_RESTART_PAUSE: Final = 1.0
"""Seconds before a dead worker is replaced, so that workers that die at startup do not occupy the whole machine."""
_KILL_DELAY: Final = 5.0
"""Seconds after the grace period before workers that have not exited are killed."""


class Supervisor:
    """Runs a worker process for each of ``listeners``, which are closed when the drain starts.

    ``work`` is called in each worker with its listener, the pipe to which it must send its process id once it serves,
    and the pipe for its snapshots. It must unblock SIGINT and `RELOAD` once it can handle them. ``grace`` is the time
    in seconds that a worker may take to drain. ``on_serving`` is called when all workers serve for the first time, and
    ``on_stop`` when the first stop signal is received. ``add_worker`` is called with the read end of the pipe for each
    worker's snapshots. If it is None, there are no such pipes.
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
        self._reload = False  # whether `RELOAD` has to be passed on
        self._workers: list[SpawnProcess] = []  # in the order of `_listeners`
        self._reports, self._report = self._spawn.Pipe(duplex=False)
        self._serving: set[int] = set()  # process ids of the workers that have reported
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        self._wakeup_reader.setblocking(False)
        self._wakeup_writer.setblocking(False)

    def run(self) -> int:
        """Run the workers until a stop signal is received and they have drained.

        Returns the exit status: 0, or 1 if a worker can't start.
        """
        with self._wakeup_reader, self._wakeup_writer, self._reports, self._report:
            signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
            for number in STOP_SIGNALS:
                signal.signal(number, self._on_stop_signal)
            signal.signal(RELOAD, self._on_reload_signal)
            try:
                # otherwise the first worker's start would start it, and that would unblock the signals
                resource_tracker.ensure_running()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [*STOP_SIGNALS, RELOAD])
                for listener in self._listeners:
                    if not self._signals:
                        self._workers.append(self._start(listener))
                all_served = False
                while not self._signals:
                    self._wait(self._workers)
                    dead = {index: worker for index, worker in enumerate(self._workers) if worker.exitcode is not None}
                    if not all_served and any(worker.exitcode == 1 for worker in dead.values()):
                        return 1  # it has logged why
                    if dead and not self._signals:
                        self._replace(dead)
                    if not all_served and not self._signals and self._serving.issuperset(w.pid for w in self._workers):
                        all_served = True
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

    def _on_stop_signal(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _on_reload_signal(self, _: int, __: FrameType | None) -> None:
        self._reload = True

    def _wait(self, workers: Iterable[SpawnProcess] = (), timeout: float | None = None) -> None:
        """Wait until one of ``workers`` exits, one reports that it serves, a signal is received, or ``timeout`` (in
        seconds) expires.
        """
        wait([self._wakeup_reader, self._reports, *(worker.sentinel for worker in workers)], timeout)
        with contextlib.suppress(BlockingIOError):
            self._wakeup_reader.recv(4096)
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
        reader, writer = self._spawn.Pipe(duplex=False)
        with writer:  # closed in this process, so that the pipe is closed when the worker exits
            try:
                worker = self._start_with(listener, writer)
            except OSError:
                reader.close()
                raise
        self._add_worker(reader)
        return worker

    def _start_with(self, listener: socket.socket, pipe: Connection | None) -> SpawnProcess:
        worker = self._spawn.Process(target=self._work, args=(listener, self._report, pipe))
        # the worker inherits this; SIGTERM is not blocked, so that it kills a worker that is still starting
        blocked = (signal.SIGINT, RELOAD)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        return worker

    def _replace(self, dead: Mapping[int, SpawnProcess]) -> None:
        """Start successors for ``dead``, by their index in `_workers`, unless a stop signal is received."""
        for worker in dead.values():
            # a worker exits with status 0 if it was sent a stop signal itself
            if worker.exitcode:
                level, message = logging.ERROR, "a worker has died, starting another"
            else:
                level, message = logging.WARNING, "a worker has ended, starting another"
            logs.event(level, message, worker=worker.pid, exit_status=worker.exitcode)
        self._pause()
        indexes = list(dead)
        while indexes and not self._signals:
            try:
                self._workers[indexes[0]] = self._start(self._listeners[indexes[0]])
                del indexes[0]
            except OSError as error:  # the other workers continue to serve
                logs.event(logging.ERROR, "can't start a worker", reason=error.strerror or str(error))
                self._pause()

    def _pause(self) -> None:
        """Wait for `_RESTART_PAUSE`, or until a stop signal is received."""
        deadline = time.monotonic() + _RESTART_PAUSE
        while not self._signals and (remaining := deadline - time.monotonic()) > 0:
            self._wait(timeout=remaining)

    def _drain(self) -> None:
        """Pass stop signals on until all workers have exited, or until it is time for `run` to kill the rest."""
        deadline = time.monotonic() + self._grace + _KILL_DELAY
        if self._on_stop is not None:
            self._on_stop()
        for listener in self._listeners:
            listener.close()
        passed_on = 0
        while running := [worker for worker in self._workers if worker.exitcode is None]:
            while passed_on < len(self._signals):
                number = END_DRAIN if passed_on else self._signals[0]
                passed_on += 1
                for worker in running:
                    if worker.pid is not None:
                        os.kill(worker.pid, number)
            if (remaining := deadline - time.monotonic()) <= 0:
                for worker in running:
                    logs.event(logging.ERROR, "a worker does not end, killing it", worker=worker.pid)
                break
            self._wait(running, remaining)

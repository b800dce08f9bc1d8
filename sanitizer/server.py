"""One process that serves: it accepts, and it drains.

It goes through these states:

    STARTING --listening--> SERVING --signal--> ACCEPTING --time--> DRAINING --empty--> STOPPED
                                                    |                   |                  ^
                                                    +---second signal---+---deadline---> ABORTING

* ACCEPTING: it is not ready any more, but still accepts, so that a load balancer can notice: a sixth of
  ``shutdown_grace``, at most 5 s. SIGINT skips this state. In its last second, or its second half if it is shorter than
  2 s, the kernel lets no new connection begin: the handshakes under way are completed and what is in the queue is
  accepted, so that no connection is reset when the listener is closed.
* DRAINING: the listener is closed, requests in flight finish.
* ABORTING: the grace, counted from the first signal, is over, or a second signal has come. What remains is reset.

A signal that comes while it starts is taken up when it serves. The exit status is 0 after a signal, and 1 if the
process can't start. A TLS handshake under way is no request in flight: it ends with the process.

SIGHUP loads the TLS certificate and its key again, and never ends the process. Files that can't be used are logged, and
change nothing.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Final

import uvloop

from sanitizer import descriptors
from sanitizer.app import Gateway
from sanitizer.listeners import (
    BACKLOG,
    allow_handshakes,
    has_waiting,
    refuse_handshakes,
    reload_certificate,
    stop_listening,
    tls_context,
)
from sanitizer.operate import logs, snapshots
from sanitizer.operate.metrics import gather
from sanitizer.operate.snapshots import Snapshot
from sanitizer.relay.client import ClientConnection
from sanitizer.supervisor import END_DRAIN, RELOAD, STOP_SIGNALS

_MAX_ACCEPTING: Final = 5.0
_HANDSHAKES: Final = 1.0
"""Seconds in which handshakes under way can be completed; a SYN-ACK that was lost is sent again after one second."""
_TLS_SHUTDOWN_TIMEOUT: Final = 86_400.0
_ABORT_TIMEOUT: Final = 1.0
"""Seconds in which what was aborted has to end; it takes some turns of the event loop."""


class Server:
    """One process that serves: it accepts on ``listener`` for ``gateway`` until a signal comes, and then drains.

    ``on_serving`` is called when it accepts; ``publish`` with a snapshot of its numbers twice a second; ``on_stop``
    when the first signal has come.
    """

    def __init__(
        self,
        gateway: Gateway,
        listener: socket.socket,
        on_serving: Callable[[], None],
        publish: Callable[[Snapshot], None] | None = None,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        self._gateway = gateway
        self._listener = listener
        self._on_serving = on_serving
        self._publish = publish
        self._on_stop = on_stop
        self._stop = asyncio.Event()  # a signal has come
        self._interrupted = False  # it was SIGINT
        self._end_drain = asyncio.Event()  # a second one has come
        self._tls: ssl.SSLContext | None = None
        self._descriptors = descriptors.Watch(gateway.out_of_descriptors)
        self._publishing: asyncio.TimerHandle | None = None
        self._parent = multiprocessing.parent_process()
        self._worker = os.getpid() if self._parent else None

    def run(self) -> int:
        """Serve until a signal says stop. Returns the exit status. Has to be called in the main thread."""
        # until the event loop handles them: an exception in the midst of its start would leave it half made
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._run())

    async def _run(self) -> int:
        self._handle_signals()
        try:
            try:
                server = await self._start()
            except OSError as error:
                log_failed_start(error, self._worker)
                return 1
            self._on_serving()
            await self._stop.wait()
            await self._drain(server)
        finally:
            if self._publishing is not None:
                self._publishing.cancel()
            # when the event loop closes, it restores the default handlers, which end the process by the signal
            for number in (*STOP_SIGNALS, RELOAD):
                asyncio.get_running_loop().remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)
            self._gateway.close()
        self._publish_now()
        counters, pool = self._gateway.counters, self._gateway.pool
        logs.event(
            logging.INFO,
            "stopped",
            worker=self._worker,
            requests=counters.requests,
            intercepted=self._gateway.decisions.intercepted,
            refused=counters.refused,
            upstream_errors={kind: count for kind, count in pool.errors.items() if count} or None,
        )
        return 0

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        # not by the loop: when it closes, it restores the default handler, which ends the process
        signal.signal(RELOAD, lambda *_: loop.call_soon_threadsafe(self._reload))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*STOP_SIGNALS, RELOAD])
        if self._parent is not None:
            loop.add_signal_handler(END_DRAIN, self._end_drain.set)
            # a worker must not outlive its parent, even one that was killed
            loop.add_reader(self._parent.sentinel, self._orphaned, self._parent.sentinel)

    def _signalled(self, number: int) -> None:
        if not self._stop.is_set():
            self._interrupted = number == signal.SIGINT
            self._stop.set()
            if self._on_stop is not None:
                self._on_stop()
        elif self._parent is None:  # for a worker it may be the same signal, see `sanitizer.supervisor`
            self._end_drain.set()

    def _reload(self) -> None:
        """Load certificate and key again, for the connections that are made from now on."""
        certfile, keyfile = self._gateway.settings.ssl_certfile, self._gateway.settings.ssl_keyfile
        if certfile is None:
            logs.event(logging.INFO, "SIGHUP is ignored: there is no --ssl-certfile to load again", worker=self._worker)
            return
        if self._tls is None:  # the server could not start
            return
        level, message, reason = logging.INFO, "the certificate has been loaded again", None
        try:
            reload_certificate(self._tls, certfile, keyfile)
        except OSError as error:
            level, reason = logging.ERROR, error.strerror or str(error)
            if isinstance(error, ssl.SSLError):  # OpenSSL's own messages do not distinguish these faults
                reason = "these are not a certificate chain in PEM and an unencrypted private key that fits it"
            message = (
                "the new certificate can't be loaded, so the old one stays; correct the files, then send SIGHUP again"
            )
        logs.event(level, message, reason=reason, certfile=certfile, keyfile=keyfile, worker=self._worker)

    def _orphaned(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        self._stop.set()

    async def _start(self) -> asyncio.Server:
        """Accept connections. Raises `OSError` if that can't be."""
        settings = self._gateway.settings
        if settings.ssl_certfile:
            self._tls = tls_context(settings.ssl_certfile, settings.ssl_keyfile)
        self._gateway.start()
        # a client connection decides itself how long its closing may take; after 30 s the event loop would drop what
        # the client has not taken
        server = await asyncio.get_running_loop().create_server(
            self._accepted,
            sock=self._listener,
            ssl=self._tls,
            ssl_shutdown_timeout=None if self._tls is None else _TLS_SHUTDOWN_TIMEOUT,
            backlog=BACKLOG,
        )
        allow_handshakes(self._listener)
        self._publish_regularly()
        self._descriptors.start()
        return server

    def _accepted(self) -> ClientConnection:
        self._descriptors.accepted()
        return ClientConnection(self._gateway)

    def _publish_regularly(self) -> None:
        if self._publish is not None:
            self._publish_now()
            self._publishing = asyncio.get_running_loop().call_later(snapshots.INTERVAL, self._publish_regularly)

    def _publish_now(self) -> None:
        if self._publish is not None:
            self._publish(gather(self._gateway.counters, self._gateway.pool, self._gateway.decisions))

    async def _drain(self, server: asyncio.Server) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        gateway, connections = self._gateway, self._gateway.connections
        grace = gateway.settings.shutdown_grace
        accepting = 0.0 if self._interrupted else min(_MAX_ACCEPTING, grace / 6)
        gateway.draining = True
        logs.event(
            logging.INFO, "stopping", accepting_seconds=round(accepting, 3), grace_seconds=grace, worker=self._worker
        )
        await _wait_until(begun + accepting - min(_HANDSHAKES, accepting / 2), self._end_drain.wait())
        refuse_handshakes(self._listener)
        if self._listener.family == socket.AF_UNIX:  # it has no handshakes: clients write as soon as they connect
            await self._stop_accepting(server, begun + grace)
        await _wait_until(begun + accepting, self._end_drain.wait())
        await self._stop_accepting(server, begun + grace)
        connections.shutdown()
        await _wait_until(begun + grace, self._end_drain.wait(), connections.wait_closed())
        if connections:
            why = "a second signal has come" if self._end_drain.is_set() else "the grace is over"
            logs.event(logging.WARNING, f"{why}: aborting what is open", connections=len(connections))
            connections.abort()
            await _wait_until(loop.time() + _ABORT_TIMEOUT, connections.wait_closed())

    async def _stop_accepting(self, server: asyncio.Server, deadline: float) -> None:
        """Accept the connections that wait, but none after ``deadline``, and close the listener if it is open."""
        if not server.is_serving():
            return
        loop = asyncio.get_running_loop()
        while has_waiting(self._listener) and loop.time() < deadline:  # noqa: ASYNC110 - no event tells the end
            await asyncio.sleep(0)  # the event loop accepts all of them in one turn
        stop_listening(self._listener)
        server.close()


async def _wait_until(deadline: float, *events: Coroutine[Any, Any, object]) -> None:
    """Wait until one of ``events`` has ended, or ``deadline`` has come. None of them goes on after that."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(event) for event in events]
    await asyncio.wait(tasks, timeout=max(deadline - loop.time(), 0), return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def log_failed_start(error: OSError, worker: int | None = None) -> None:
    """Log why a process can't start."""
    logs.event(logging.ERROR, "can't start", reason=error.strerror or str(error), worker=worker)

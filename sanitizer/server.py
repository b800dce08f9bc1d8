"""One serving process: it accepts connections, and drains them when it is stopped.

Its states:

    STARTING --listening--> SERVING --signal--> ACCEPTING --time--> DRAINING --empty--> STOPPED
                                                    |                   |                  ^
                                                    +---second signal---+---deadline---> ABORTING

* ACCEPTING: the process is not ready any more but still accepts, so that a load balancer has time to notice. This lasts
  a sixth of ``shutdown_grace``, at most 5 s. SIGINT skips this state. In the last second, or in the second half if the
  state is shorter than 2 s, the kernel blocks new TCP handshakes. Those in progress are completed, and the connections
  in the queue are accepted, so that no connection is reset when the listener is closed.
* DRAINING: the listener is closed, and the requests in flight are completed.
* ABORTING: the grace period, counted from the first signal, has expired, or a second signal was received. The remaining
  connections are reset.

A signal received in STARTING is handled in SERVING. The exit status is 0 after a signal, and 1 if the process can't
start. A TLS handshake in progress does not count as a request in flight: it is cut off when the process exits.

SIGHUP reloads the TLS certificate and its key, and never stops the process. If the files can't be used, this is logged,
and the old certificate stays in use.
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
"""The longest time in the state ACCEPTING, in seconds."""
_HANDSHAKE_TIME: Final = 1.0
"""Seconds in which handshakes in progress can complete. A lost SYN-ACK is sent again after one second."""
_TLS_SHUTDOWN_TIMEOUT: Final = 86_400.0
_ABORT_TIMEOUT: Final = 1.0
"""Seconds to wait for aborted connections to close, which takes a few iterations of the event loop."""


class Server:
    """Accepts connections on ``listener`` for ``gateway`` until a signal is received, and then drains them.

    ``on_serving`` is called once the server accepts connections, ``publish`` with a snapshot of its metrics twice per
    second, and ``on_stop`` when the first signal is received.
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
        self._stop = asyncio.Event()  # set by the first signal
        self._interrupted = False  # whether the first signal was SIGINT
        self._end_drain = asyncio.Event()  # set by the second signal
        self._tls: ssl.SSLContext | None = None
        self._descriptors = descriptors.Watch(gateway.out_of_descriptors)
        self._publish_timer: asyncio.TimerHandle | None = None
        self._parent = multiprocessing.parent_process()
        self._worker = os.getpid() if self._parent else None  # for the log

    def run(self) -> int:
        """Serve until a signal stops the server. Returns the exit status. Must be called in the main thread."""
        # blocked until the event loop handles them: an exception while it is created would leave it half initialized
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
            if self._publish_timer is not None:
                self._publish_timer.cancel()
            # when the event loop closes, it restores the default handlers, which would kill the process
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
            loop.add_signal_handler(number, self._on_signal, number)
        # not `add_signal_handler`: when the loop closes, it restores the default handler, which would kill the process
        signal.signal(RELOAD, lambda *_: loop.call_soon_threadsafe(self._reload))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*STOP_SIGNALS, RELOAD])
        if self._parent is not None:
            loop.add_signal_handler(END_DRAIN, self._end_drain.set)
            # a worker must not outlive its parent, even if the parent was killed
            loop.add_reader(self._parent.sentinel, self._on_parent_exit, self._parent.sentinel)

    def _on_signal(self, number: int) -> None:
        if not self._stop.is_set():
            self._interrupted = number == signal.SIGINT
            self._stop.set()
            if self._on_stop is not None:
                self._on_stop()
        elif self._parent is None:  # a worker may receive the same signal twice, see `sanitizer.supervisor`
            self._end_drain.set()

    def _reload(self) -> None:
        """Reload the certificate and key, for new connections."""
        certfile, keyfile = self._gateway.settings.ssl_certfile, self._gateway.settings.ssl_keyfile
        if certfile is None:
            logs.event(logging.INFO, "SIGHUP is ignored: there is no --ssl-certfile to load again", worker=self._worker)
            return
        if self._tls is None:  # the server failed to start
            return
        level, message, reason = logging.INFO, "the certificate has been loaded again", None
        try:
            reload_certificate(self._tls, certfile, keyfile)
        except OSError as error:
            level, reason = logging.ERROR, error.strerror or str(error)
            if isinstance(error, ssl.SSLError):  # OpenSSL's own messages do not distinguish these errors
                reason = "these are not a certificate chain in PEM and an unencrypted private key that fits it"
            message = (
                "the new certificate can't be loaded, so the old one stays; correct the files, then send SIGHUP again"
            )
        logs.event(level, message, reason=reason, certfile=certfile, keyfile=keyfile, worker=self._worker)

    def _on_parent_exit(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        self._stop.set()

    async def _start(self) -> asyncio.Server:
        """Start to accept connections. Raises `OSError`."""
        settings = self._gateway.settings
        if settings.ssl_certfile:
            self._tls = tls_context(settings.ssl_certfile, settings.ssl_keyfile)
        self._gateway.start()
        # `ClientConnection` has its own limit for closing; by default, the event loop would discard unread data after
        # 30 s
        server = await asyncio.get_running_loop().create_server(
            self._make_protocol,
            sock=self._listener,
            ssl=self._tls,
            ssl_shutdown_timeout=None if self._tls is None else _TLS_SHUTDOWN_TIMEOUT,
            backlog=BACKLOG,
        )
        allow_handshakes(self._listener)
        self._publish_regularly()
        self._descriptors.start()
        return server

    def _make_protocol(self) -> ClientConnection:
        self._descriptors.accepted()
        return ClientConnection(self._gateway)

    def _publish_regularly(self) -> None:
        if self._publish is not None:
            self._publish_now()
            self._publish_timer = asyncio.get_running_loop().call_later(snapshots.INTERVAL, self._publish_regularly)

    def _publish_now(self) -> None:
        if self._publish is not None:
            self._publish(gather(self._gateway.counters, self._gateway.pool, self._gateway.decisions))

    async def _drain(self, server: asyncio.Server) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        gateway, connections = self._gateway, self._gateway.connections
        grace = gateway.settings.shutdown_grace
        accepting = 0.0 if self._interrupted else min(_MAX_ACCEPTING, grace / 6)
        gateway.draining = True
        logs.event(
            logging.INFO, "stopping", accepting_seconds=round(accepting, 3), grace_seconds=grace, worker=self._worker
        )
        await _wait_until(started + accepting - min(_HANDSHAKE_TIME, accepting / 2), self._end_drain.wait())
        refuse_handshakes(self._listener)
        if self._listener.family == socket.AF_UNIX:  # it has no handshakes, so clients send as soon as they connect
            await self._stop_accepting(server, started + grace)
        await _wait_until(started + accepting, self._end_drain.wait())
        await self._stop_accepting(server, started + grace)
        connections.shutdown()
        await _wait_until(started + grace, self._end_drain.wait(), connections.wait_closed())
        if connections:
            reason = "a second signal was received" if self._end_drain.is_set() else "the shutdown grace has expired"
            logs.event(logging.WARNING, f"{reason}: aborting the open connections", connections=len(connections))
            connections.abort()
            await _wait_until(loop.time() + _ABORT_TIMEOUT, connections.wait_closed())

    async def _stop_accepting(self, server: asyncio.Server, deadline: float) -> None:
        """Accept the waiting connections, until ``deadline`` at most, and close the listener if it is still open."""
        if not server.is_serving():
            return
        loop = asyncio.get_running_loop()
        while has_waiting(self._listener) and loop.time() < deadline:  # noqa: ASYNC110 - no event signals this
            await asyncio.sleep(0)  # the event loop accepts all of them in one iteration
        stop_listening(self._listener)
        server.close()


async def _wait_until(deadline: float, *events: Coroutine[Any, Any, object]) -> None:
    """Wait until one of ``events`` completes, or until ``deadline`` (event loop time). The others are cancelled."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(event) for event in events]
    await asyncio.wait(tasks, timeout=max(deadline - loop.time(), 0), return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def log_failed_start(error: OSError, worker: int | None = None) -> None:
    """Log the reason why a process can't start."""
    logs.event(logging.ERROR, "can't start", reason=error.strerror or str(error), worker=worker)

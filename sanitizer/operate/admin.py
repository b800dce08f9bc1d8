"""The admin listener: ``/livez``, ``/readyz`` and ``/metrics``, on a separate port so that they hide no LiteLLM path.

* ``/livez``: 200, or 503 if a serving process has not published a snapshot for `SILENCE`.
* ``/readyz``: 200, or 503 if the gateway is stopping, not serving yet or not alive, or upstream can't be reached.
* ``/metrics``: the sum over all serving processes, in Prometheus's text format.

The listener runs in a thread with its own event loop, in the gateway's process, or in the parent process of the
workers. So it answers even when the public side is overloaded. If the event loop of the public side hangs, its
snapshots cease, and the gateway counts as not alive.

uvicorn serves the listener with its h11 protocol, which limits the size of a head. The event loop is asyncio's, because
it accepts connections by calling a method of the listening socket, which `Listener` overrides. uvloop would close new
connections when the public side has used up the process's descriptors.
"""

import asyncio
import itertools
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final

import uvicorn
from h11 import LocalProtocolError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sanitizer.operate import logs
from sanitizer.operate.collector import SnapshotCollector
from sanitizer.operate.first_look import first_look
from sanitizer.operate.listener import BACKLOG, HEAD_LIMIT, Listener, bounded_protocol
from sanitizer.operate.probe import Probe
from sanitizer.operate.snapshots import Snapshot, Snapshots
from sanitizer.settings import Settings

SILENCE: Final = 5.0
"""Seconds without a snapshot after which a process counts as hanging."""
_WATCH_INTERVAL: Final = 1.0
"""Seconds between two checks for a process that hangs."""
_SHUTDOWN_GRACE: Final = 0.5
"""Seconds that responses under way have left when the listener shuts down. uvicorn's own limit is twice as long, and
logs an error."""


class Health:
    """Whether the gateway is alive, and whether it is ready."""

    def __init__(self, snapshots: Snapshots, probe: Probe) -> None:
        self._snapshots = snapshots
        self._probe = probe
        self.stopping = False

    def stop(self) -> None:
        """Make the gateway not ready, for good."""
        self.stopping = True

    def not_alive(self) -> str | None:
        """The reason why the gateway should be restarted; None if it is alive."""
        return "a serving process does not respond" if self._snapshots.silence > SILENCE else None

    def not_ready(self) -> str | None:
        """The reason why the gateway should receive no requests; None if it is ready."""
        if self.stopping:
            return "stopping"
        if not self._snapshots.serving:
            return "nothing serves yet"
        return self.not_alive() or self._probe.reason


def create_admin_app(health: Health, snapshots: Snapshots) -> ASGIApp:
    """The admin listener's ASGI app."""
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(snapshots, lambda: health.not_ready() is None))

    async def livez(_: Request) -> Response:
        return _answer("live", health.not_alive())

    async def readyz(_: Request) -> Response:
        return _answer("ready", health.not_ready())

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    app = Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])

    async def answer_once(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except LocalProtocolError:  # uvicorn has answered malformed content with 400, and is closing the connection
            while (await receive())["type"] != "http.disconnect":
                pass

    return answer_once


def _answer(what: str, reason: str | None) -> Response:
    if reason is None:
        return JSONResponse({what: True})
    return JSONResponse({what: False, "reason": reason}, 503)


class Admin:
    """The admin listener, as a context manager: it serves on ``listener`` while the context lasts.

    Raises `OSError` if upstream's CA can't be read.
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self.snapshots = Snapshots()
        self._settings = settings
        self._tls = settings.upstream_tls()
        self._listener = Listener(fileno=os.dup(listener.fileno()))
        self._has_looked = False
        self._probe = Probe(settings.upstream, self._tls, settings.connect_timeout, self._on_probe)
        self.health = Health(self.snapshots, self._probe)
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_admin_app(self.health, self.snapshots),
                http=bounded_protocol(),
                h11_max_incomplete_event_size=HEAD_LIMIT,
                backlog=BACKLOG,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._run, name="admin", daemon=True)

    def __enter__(self) -> "Admin":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._loop.call_soon_threadsafe(self._loop.call_later, _SHUTDOWN_GRACE, self._abort_connections)
        self._thread.join()

    def _abort_connections(self) -> None:
        for connection in self._server.server_state.connections:
            connection.transport.abort()

    def add_process(self) -> Callable[[Snapshot], None]:
        """Add this process, which serves without workers. Returns the function that publishes its snapshots."""
        return partial(self.snapshots.put, next(self._numbers))

    def add_worker(self, pipe: Connection) -> None:
        """Add a worker, which writes its snapshots to the other end of ``pipe``."""
        self._loop.call_soon_threadsafe(self._read, pipe)

    def _read(self, pipe: Connection) -> None:
        self._spawn(self.snapshots.read(next(self._numbers), pipe), "the metrics of a worker are lost")

    def _spawn(self, work: Coroutine[Any, Any, None], failure: str) -> None:
        """Run ``work`` in a task. If it raises an exception, log ``failure``."""
        task = self._loop.create_task(work)
        self._tasks.add(task)  # the event loop's reference is weak, so a task could be garbage-collected while it waits
        task.add_done_callback(partial(self._ended, failure))

    def _ended(self, failure: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logs.event(logging.ERROR, failure, detail=repr(error))

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # which cancels every task when it is closed
            runner.run(self._serve())

    async def _serve(self) -> None:
        failure = "upstream is not probed any more, so /readyz may be wrong; restart the gateway and report this line"
        self._spawn(self._probe.run(), failure)
        self._spawn(self._watch(), "a process that hangs will not be logged; report this line")
        await self._server.serve([self._listener])

    async def _watch(self) -> None:
        """Log each time that the gateway stops being alive."""
        was_alive = True
        while True:
            reason = self.health.not_alive()
            if reason is not None and was_alive:
                detail = "its event loop has hung for 5 s; /livez answers 503 until it continues; restart the gateway"
                logs.event(logging.ERROR, reason, detail=detail)
            was_alive = reason is None
            await asyncio.sleep(_WATCH_INTERVAL)

    def _on_probe(self, reason: str | None) -> None:
        if reason is not None:
            logs.event(logging.WARNING, "not ready", reason=reason)
            return
        logs.event(logging.INFO, "upstream is reachable")
        if not self._has_looked:
            self._has_looked = True
            self._spawn(self._look(), "the first look at upstream has failed; report this line")

    async def _look(self) -> None:
        fault = await first_look(self._settings.upstream, self._tls, self._settings.root_path[-1])
        if fault is not None:
            detail = f"{fault} (`litellm-sanitizer check` says more)"
            logs.event(logging.WARNING, "upstream does not look like LiteLLM", detail=detail)

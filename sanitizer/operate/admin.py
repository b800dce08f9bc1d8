"""The admin listener: ``/livez``, ``/readyz`` and ``/metrics``, on a port of its own so that none of LiteLLM's paths is
shadowed.

It has a thread and an event loop of its own, in the gateway's process, or the workers' parent: a public side with more
than enough to do does not keep it from answering, and one whose event loop hangs is not alive, for its snapshots cease.

uvicorn serves it, with the protocol that parses by h11: that has a limit for the size of a head.

* ``/livez``: 200 unless a process that serves has been silent for `SILENCE`.
* ``/readyz``: 200, or 503 with the reason: stopping, nothing serves yet, upstream can't be reached.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final

import uvicorn
import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from sanitizer.operate import logs
from sanitizer.operate.first_look import first_look
from sanitizer.operate.metrics import SnapshotCollector
from sanitizer.operate.probe import Probe
from sanitizer.operate.snapshots import Snapshot, Snapshots
from sanitizer.settings import Settings

SILENCE: Final = 5.0
"""Seconds after which a process that tells nothing counts as hanging."""
CONNECTIONS: Final = 64
"""Connections that are open at a time; a further one is reset."""
LIFETIME: Final = 30.0
"""Seconds after which a connection is closed, as soon as it has its answer; a scraper makes another."""
ANSWER_TIMEOUT: Final = 5.0
"""Seconds that it then has for its answer, before it is reset."""
HEAD_LIMIT: Final = 32 * 1024
"""Bytes of a request's head; a larger one is answered with 400."""


def _bounded_protocol() -> type[H11Protocol]:
    """A protocol for the connections of one listener. There are few at a time and none lasts: nobody is to use up with
    them the descriptors that the public listener needs.
    """
    timers: dict[H11Protocol, tuple[asyncio.TimerHandle, ...]] = {}  # of each connection that is open

    class Bounded(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            timers[self] = ()
            if len(timers) > CONNECTIONS:
                transport.abort()
                return
            loop = asyncio.get_running_loop()
            timers[self] = (
                loop.call_later(LIFETIME, self.shutdown),
                loop.call_later(LIFETIME + ANSWER_TIMEOUT, transport.abort),
            )

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in timers.pop(self, ()):
                timer.cancel()
            super().connection_lost(exc)

    return Bounded


class Health:
    """Whether the gateway is alive, and whether it is ready."""

    def __init__(self, snapshots: Snapshots, probe: Probe) -> None:
        self._snapshots = snapshots
        self._probe = probe
        self.stopping = False

    def stop(self) -> None:
        """From now on the gateway is not ready."""
        self.stopping = True

    def not_alive(self) -> str | None:
        """Why the gateway should be restarted."""
        return "a process that serves is silent" if self._snapshots.silence > SILENCE else None

    def not_ready(self) -> str | None:
        """Why the gateway should get no requests."""
        if self.stopping:
            return "stopping"
        if not self._snapshots.serving:
            return "nothing serves yet"
        return self.not_alive() or self._probe.reason


def create_admin_app(health: Health, snapshots: Snapshots) -> Starlette:
    """The admin listener's ASGI app."""
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(snapshots, lambda: health.not_ready() is None))

    async def livez(_: Request) -> Response:
        return _answer("live", health.not_alive())

    async def readyz(_: Request) -> Response:
        return _answer("ready", health.not_ready())

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


def _answer(what: str, reason: str | None) -> Response:
    if reason is None:
        return JSONResponse({what: True})
    return JSONResponse({what: False, "reason": reason}, 503)


class Admin:
    """The admin listener while it runs: a context manager. Raises `OSError` if upstream's CA can't be read."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._listener = listener
        self.snapshots = Snapshots()
        self._settings = settings
        self._tls = settings.upstream_tls()
        self._looking: asyncio.Task[None] | None = None
        self._probe = Probe(settings.upstream, self._tls, settings.connect_timeout, self._on_probe)
        self.health = Health(self.snapshots, self._probe)
        self._numbers = itertools.count()
        self._reading: set[asyncio.Task[None]] = set()
        self._loop = uvloop.new_event_loop()
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_admin_app(self.health, self.snapshots),
                http=_bounded_protocol(),
                h11_max_incomplete_event_size=HEAD_LIMIT,
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
        self._thread.join()

    def add_process(self) -> Callable[[Snapshot], None]:
        """Take snapshots of this process, which is the one that serves. Returns what it publishes them with."""
        number = next(self._numbers)
        self.snapshots.add(number)
        return lambda snapshot: self.snapshots.put(number, snapshot)

    def add_worker(self, pipe: Connection) -> None:
        """Take the snapshots that a worker writes to the other end of ``pipe``."""
        self._loop.call_soon_threadsafe(self._read, pipe)

    def _read(self, pipe: Connection) -> None:
        reading = self._loop.create_task(self.snapshots.read(next(self._numbers), pipe))
        self._reading.add(reading)  # a task that nobody holds is collected, however much it has to wait for
        reading.add_done_callback(self._read_out)

    def _read_out(self, reading: asyncio.Task[None]) -> None:
        self._reading.discard(reading)
        if not reading.cancelled() and (error := reading.exception()) is not None:
            logs.event(logging.ERROR, "a worker's numbers are lost", detail=repr(error))

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        probing = asyncio.create_task(self._probe.run())
        try:
            await self._server.serve([self._listener])
        finally:
            for task in (probing, self._looking):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    def _on_probe(self, reason: str | None) -> None:
        if reason is None:
            logs.event(logging.INFO, "upstream is reachable")
            if self._looking is None:
                self._looking = self._loop.create_task(self._look())
        else:
            logs.event(logging.WARNING, "not ready", reason=reason)

    async def _look(self) -> None:
        wrong = await first_look(self._settings.upstream, self._tls, self._settings.prefixes[-1])
        if wrong is not None:
            detail = f"{wrong} (`litellm-sanitizer check` says more)"
            logs.event(logging.WARNING, "upstream does not look like LiteLLM", detail=detail)

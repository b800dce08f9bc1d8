"""The admin listener: ``/livez``, ``/readyz`` and ``/metrics``, on a port of its own so that none of LiteLLM's paths is
shadowed.

It has a thread and an event loop of its own, in the gateway's process, or the workers' parent: a public side with more
than enough to do does not keep it from answering, and one whose event loop hangs is not alive, for its snapshots cease.

uvicorn serves it with its h11 protocol, which limits the size of a head. The event loop is asyncio's own, which accepts
by a method of the listening socket: uvloop's would close new connections when the public side has used up the process's
descriptors.

A new connection is answered however many are open: an older one is closed for it, see `_bounded_protocol`.

* ``/livez``: 200 unless a process that serves has been silent for `SILENCE`.
* ``/readyz``: 200, or 503 with the reason: stopping, nothing serves yet, upstream can't be reached.
"""

import asyncio
import contextlib
import errno
import ipaddress
import itertools
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, NamedTuple

import uvicorn
from h11 import LocalProtocolError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sanitizer import descriptors
from sanitizer.address import plain_ip
from sanitizer.operate import logs
from sanitizer.operate.first_look import first_look
from sanitizer.operate.metrics import SnapshotCollector
from sanitizer.operate.probe import Probe
from sanitizer.operate.snapshots import Snapshot, Snapshots
from sanitizer.settings import Settings

SILENCE: Final = 5.0
"""Seconds after which a process that tells nothing counts as hanging."""
CONNECTIONS_OF_ONE: Final = 16
"""Connections that one peer has open at a time; for a further one its oldest is closed."""
CONNECTIONS: Final = 64
"""Connections that are open at a time; for a further one the oldest is closed of the peer that has the most."""
BACKLOG: Final = 64
"""Connections that the kernel completes before they are accepted, and that are accepted in one turn."""
LIFETIME: Final = 30.0
"""Seconds after which a connection is closed, as soon as it has its answer; a scraper makes another."""
ANSWER_TIMEOUT: Final = 5.0
"""Seconds that it then has for its answer, before it is reset."""
HEAD_LIMIT: Final = 32 * 1024
"""Bytes of a request's head; a larger one is answered with 400."""


class _Listener(socket.socket):
    """A listening socket that accepts even when the public side has used up its descriptors.

    It then accepts one connection in a turn: the event loop goes on until no connection waits, and finding that out
    would take a descriptor as well.
    """

    _enough = False

    def accept(self) -> tuple[socket.socket, Any]:
        if self._enough:
            self._enough = False
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            self._enough = error.errno in descriptors.NONE_LEFT
            if error.errno != errno.EMFILE:
                raise
        return descriptors.take_from_reserve(super().accept)


def peer_of(address: str) -> str:
    """The peer with this IP address. An IPv6 /64 network is one peer, for one machine may have all of it."""
    ip = plain_ip(address)
    return str(ip if ip.version == 4 else ipaddress.ip_network((ip, 64), strict=False))


class _Open(NamedTuple):
    """A connection that is open: its peer, and the timers that will close it."""

    peer: str
    timers: tuple[asyncio.TimerHandle, ...]


def _bounded_protocol() -> type[H11Protocol]:
    """A protocol for the connections of one listener. There are few at a time, and none lasts.

    A probe must be answered whoever else is connected. So the new connection never has to go, but the oldest one of a
    peer that has too many: a request is answered within milliseconds, so an old connection is idle.
    """
    connections: dict[H11Protocol, _Open] = {}  # the oldest first

    def make_room(newcomer: str) -> None:
        peers = Counter(each.peer for each in connections.values())
        if peers[newcomer] > CONNECTIONS_OF_ONE:
            crowding = newcomer
        elif len(connections) > CONNECTIONS:
            crowding = max(peers, key=peers.__getitem__)
        else:
            return
        oldest = next(protocol for protocol, each in connections.items() if each.peer == crowding)
        forget(oldest)  # now, for `connection_lost` comes in a later turn
        oldest.transport.abort()

    def forget(protocol: H11Protocol) -> None:
        if protocol in connections:
            for timer in connections.pop(protocol).timers:
                timer.cancel()

    class Bounded(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            address = transport.get_extra_info("peername")
            if address is None:  # the client has left already
                transport.abort()
                return
            loop = asyncio.get_running_loop()
            peer = peer_of(address[0])
            connections[self] = _Open(
                peer,
                (
                    loop.call_later(LIFETIME, self.shutdown),
                    loop.call_later(LIFETIME + ANSWER_TIMEOUT, transport.abort),
                ),
            )
            make_room(peer)

        def data_received(self, data: bytes) -> None:
            try:
                super().data_received(data)
            except LocalProtocolError:  # uvicorn would answer bad content with 400, but the request has its answer
                self.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            forget(self)
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
        except LocalProtocolError:  # uvicorn has answered with 400 because of its content, and closes the connection
            while (await receive())["type"] != "http.disconnect":
                pass

    return answer_once


def _answer(what: str, reason: str | None) -> Response:
    if reason is None:
        return JSONResponse({what: True})
    return JSONResponse({what: False, "reason": reason}, 503)


class Admin:
    """The admin listener while it runs: a context manager. Raises `OSError` if upstream's CA can't be read."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self.snapshots = Snapshots()
        self._settings = settings
        self._tls = settings.upstream_tls()
        self._looking: asyncio.Task[None] | None = None
        self._probe = Probe(settings.upstream, self._tls, settings.connect_timeout, self._on_probe)
        self.health = Health(self.snapshots, self._probe)
        self._numbers = itertools.count()
        self._reading: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_admin_app(self.health, self.snapshots),
                http=_bounded_protocol(),
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
        self._listener = _Listener(fileno=os.dup(listener.fileno()))

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
        wrong = await first_look(self._settings.upstream, self._tls, self._settings.root_path[-1])
        if wrong is not None:
            detail = f"{wrong} (`litellm-sanitizer check` says more)"
            logs.event(logging.WARNING, "upstream does not look like LiteLLM", detail=detail)

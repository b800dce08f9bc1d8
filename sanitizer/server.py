"""The gateway on uvicorn's server: listeners, workers, graceful drain.

Switched off or replaced, and why: proxy headers (uvicorn would rewrite the client's address before it is judged),
Server and Date fields (upstream's pass), its WebSockets (upgrades are tunnelled), its access log and signal handling.

The admin listener runs in a thread of the process that was started, see `sanitizer.operate.admin`: every process that
serves tells it of itself twice a second, a worker through a pipe. Without the listener nobody is told anything.

At SIGTERM a process still accepts for a sixth of ``shutdown_grace``, at most 5 s, so that a load balancer can notice;
then listeners close, requests in flight finish, and what remains when the grace is over is aborted. Exit status 0.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Final

import uvicorn
import uvloop

from sanitizer.app import Gateway, make_pseudonym
from sanitizer.operate import logs, snapshots
from sanitizer.operate.admin import Admin
from sanitizer.operate.metrics import gather
from sanitizer.operate.snapshots import Snapshot
from sanitizer.relay.protocol import RelayProtocol
from sanitizer.settings import Settings

_BACKLOG: Final = 2048
_ACCEPT_AT_MOST: Final = 5.0
_WORKER_RESTART_PAUSE: Final = 1.0
_STOPPING: Final = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn's server with a drain that goes on accepting for a while, and an exit status of 0 after it.

    ``tell`` is told of this process, if anyone wants to know; ``on_stop`` is called by the signal handler.
    """

    def __init__(
        self,
        gateway: Gateway,
        sockets: list[socket.socket],
        tell: Callable[[Snapshot], None] | None = None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        settings = gateway.settings
        config = uvicorn.Config(
            gateway,
            http=lambda **_: RelayProtocol(gateway),  # type: ignore[arg-type]
            ws="none",
            lifespan="on",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=_BACKLOG,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
        )
        super().__init__(config)
        self.gateway = gateway
        self._listening = sockets
        self._grace = settings.shutdown_grace
        self._interrupted = False
        self._tell = tell
        self._on_stop = on_stop

    def run_until_stopped(self) -> int:
        """Serve until a signal says stop; returns the exit status."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self.serve(self._listening))
        return 0 if self.started else 1

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        parent = multiprocessing.parent_process()
        if parent is not None:  # a worker must not outlive its parent, even one that was killed
            asyncio.get_running_loop().add_reader(parent.sentinel, self._orphaned, parent.sentinel)
        self._tell_on()

    def _tell_on(self) -> None:
        if self._tell is not None:
            self._tell_now()
            asyncio.get_running_loop().call_later(snapshots.INTERVAL, self._tell_on)

    def _tell_now(self) -> None:
        if self._tell is not None:
            self._tell(gather(self.gateway.counters, self.gateway.upstream, self.gateway.decisions))

    def _orphaned(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then abort what is left; see this module's docstring."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace
        self.gateway.draining = True
        accepting = _accepting_seconds(self._grace, self._interrupted)
        worker = os.getpid() if multiprocessing.parent_process() else None
        logs.event(
            logging.INFO, "stopping", accepting_seconds=round(accepting, 3), grace_seconds=self._grace, worker=worker
        )
        await self._wait(loop.time() + accepting, lambda: False)
        for server in self.servers:
            server.close()
        for connection in list(self.gateway.connections):
            connection.shutdown()
        await self._wait(deadline, lambda: not self.gateway.connections and not self.server_state.tasks)
        if self.gateway.connections or self.server_state.tasks:
            logs.event(logging.WARNING, "grace is over, aborting", connections=len(self.gateway.connections))
        for connection in list(self.gateway.connections):
            connection.transport.abort()
        for task in tuple(self.server_state.tasks):
            task.cancel()
        await asyncio.sleep(0)
        await self.lifespan.shutdown()
        self._tell_now()
        counters, upstream = self.gateway.counters, self.gateway.upstream
        logs.event(
            logging.INFO,
            "stopped",
            worker=worker,
            requests=counters.requests,
            intercepted=self.gateway.decisions.intercepted,
            refused=counters.refused,
            upstream_errors={kind: count for kind, count in upstream.errors.items() if count} or None,
        )

    async def _wait(self, deadline: float, done: Any) -> None:
        loop = asyncio.get_running_loop()
        # signals and closing connections set no event
        while loop.time() < deadline and not self.force_exit and not done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal again at the end: a drained gateway has not been killed."""
        handlers = {sig: signal.signal(sig, self.handle_exit) for sig in _STOPPING}
        try:
            yield
        finally:
            for sig, handler in handlers.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts the drain (without the time to go on accepting, for SIGINT), the second ends it."""
        self.force_exit = self.should_exit
        self._interrupted = sig == signal.SIGINT
        self._on_stop()
        self.should_exit = True


def _accepting_seconds(grace: float, interrupted: bool) -> float:
    """How long new connections are accepted after a signal to stop; not at all after Ctrl-C."""
    return 0.0 if interrupted else min(_ACCEPT_AT_MOST, grace / 6)


def _raise_descriptor_limit() -> None:
    """Use all the descriptors that this process may have: the usual 1024 are 500 streams."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(settings: Settings, unknown: Sequence[str] = ()) -> int:
    """Run the gateway until it is told to stop; returns the exit status: 0, or 1 when it can't start.

    ``unknown``: variables that look like options of ours and are none, to warn of.
    """
    logs.configure(settings.log_level, settings.log_format)
    _exit_when_told()
    _raise_descriptor_limit()
    where = settings.uds or f"{settings.host}:{settings.port}"
    admin_listener = None
    try:
        listener = _listen(settings)
        if settings.admin_port:
            where = f"{settings.admin_host}:{settings.admin_port} (--admin-port)"
            admin_listener = _listen_on(settings.admin_host, settings.admin_port)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        print(f"litellm-sanitizer: can't listen on {where}: {reason}", file=sys.stderr)
        return 1
    scheme = "https" if settings.ssl_certfile else "http"
    at = f"unix:{settings.uds}" if settings.uds else f"{scheme}://{_authority(listener)}"
    logs.event(
        logging.INFO,
        f"listening on {at}",
        block=True,
        upstream=str(settings.upstream),
        root_path=",".join(filter(None, settings.prefixes)) or None,
        mode=settings.mode,
        fields=",".join(sorted(settings.fields)),
        workers=settings.workers,
        admin=f"http://{_authority(admin_listener)}" if admin_listener else None,
    )
    for name in unknown:
        logs.event(logging.WARNING, "no such option, ignored", variable=name)
    pseudonym = make_pseudonym()
    try:
        with contextlib.nullcontext() if admin_listener is None else Admin(settings, admin_listener) as admin:
            if settings.workers > 1:
                return _supervise(settings, pseudonym, listener, admin)
            gateway = Gateway(settings, pseudonym)
            if admin is None:
                return Server(gateway, [listener]).run_until_stopped()
            return Server(gateway, [listener], admin.serving_here(), admin.health.stop).run_until_stopped()
    finally:
        listener.close()
        if settings.uds:
            with contextlib.suppress(OSError):
                os.unlink(settings.uds)


def _authority(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(settings: Settings) -> socket.socket:
    if settings.uds:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(settings.uds).st_mode):
                _unlink_if_stale(settings.uds)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(settings.uds)
        os.chmod(settings.uds, 0o666)  # noqa: S103 - as uvicorn and nginx: who may connect is the folder's business
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        return listener
    return _listen_on(settings.host, settings.port)


def _listen_on(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    dual = host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
    listener.setblocking(False)
    return listener


def _unlink_if_stale(path: str) -> None:
    """Remove the socket that an earlier process has left; one that answers is in use and stays."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def _exit_when_told() -> None:
    """Until there is something to drain, a signal to stop just ends the process, without a traceback."""
    for sig in _STOPPING:
        signal.signal(sig, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _work(settings: Settings, pseudonym: bytes, listener: socket.socket, pipe: Connection | None) -> None:
    logs.configure(settings.log_level, settings.log_format)
    _exit_when_told()
    tell = snapshots.PipeWriter(pipe) if pipe else None
    sys.exit(Server(Gateway(settings, pseudonym), [listener], tell).run_until_stopped())


def _supervise(settings: Settings, pseudonym: bytes, listener: socket.socket, admin: Admin | None) -> int:
    """Run the workers; start one anew when it dies; pass SIGTERM and SIGINT on and wait for them to drain."""
    spawn = multiprocessing.get_context("spawn")
    stop: list[int] = []
    woken, wake = socket.socketpair()
    wake.setblocking(False)

    def start() -> Any:
        ours, theirs = spawn.Pipe(duplex=False) if admin else (None, None)
        worker = spawn.Process(target=_work, args=(settings, pseudonym, listener, theirs))
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)  # the worker's too, until it knows what to do with them
        worker.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        if admin and ours and theirs:
            theirs.close()  # so that the pipe ends with the worker
            admin.serving_there(ours)
        return worker

    def told_to_stop(number: int, _: FrameType | None) -> None:
        stop.append(number)
        if admin:
            admin.health.stop()

    with woken, wake:
        signal.set_wakeup_fd(wake.fileno())
        for sig in _STOPPING:
            signal.signal(sig, told_to_stop)
        workers = [start() for _ in range(settings.workers)]
        while not stop:
            multiprocessing.connection.wait([woken, *(worker.sentinel for worker in workers)])
            for index, worker in enumerate(workers):
                if worker.exitcode is not None and not stop:
                    logs.event(logging.ERROR, "a worker has died, starting another", exit_status=worker.exitcode)
                    time.sleep(_WORKER_RESTART_PAUSE)  # one that dies at its start must not take the whole machine
                    workers[index] = start()
        told = 0
        accept_until = time.monotonic() + _accepting_seconds(settings.shutdown_grace, stop[0] == signal.SIGINT)
        deadline = time.monotonic() + settings.shutdown_grace + 5
        while any(worker.exitcode is None for worker in workers) and time.monotonic() < deadline:
            for number in stop[told:]:
                for worker in workers:
                    if worker.exitcode is None:
                        os.kill(worker.pid, number)
            told = len(stop)
            if time.monotonic() >= accept_until:  # as the workers do: else clients would wait in its backlog
                listener.close()
            multiprocessing.connection.wait(
                [worker.sentinel for worker in workers if worker.exitcode is None], timeout=0.2
            )
        for worker in workers:
            worker.kill()
        signal.set_wakeup_fd(-1)
        return 0

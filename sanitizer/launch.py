"""The command ``serve``: opens the listeners, and serves in this process or in workers under a supervisor.

The admin listener runs in a thread of the process that was started, see `sanitizer.operate.admin`. If there is one,
every serving process publishes its metrics twice per second. A worker does so through a pipe.

The address of the gateway is logged once every process serves.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from sanitizer import FORM, descriptors
from sanitizer.app import Gateway, make_pseudonym
from sanitizer.listeners import address_of, authority, for_workers, listen_tcp, listen_unix
from sanitizer.operate import logs
from sanitizer.operate.snapshots import PipeWriter
from sanitizer.server import Server, log_failed_start
from sanitizer.settings import Settings
from sanitizer.supervisor import STOP_SIGNALS, Supervisor

if TYPE_CHECKING:
    from sanitizer.operate.admin import Admin


def serve(settings: Settings, unknown: Sequence[str] = ()) -> int:
    """Run the gateway until a signal stops it. Returns the exit status: 0, or 1 if it can't start.

    ``unknown`` are environment variables that are named like options but are not options. Each is logged as a warning.
    """
    logs.configure(settings.log_level, settings.log_format)
    _exit_at_signals()
    # workers have no admin listener, and their parent, which has one, accepts no public connections
    descriptors.raise_limit(descriptors.RESERVE if settings.admin_port and settings.workers == 1 else 0)
    with contextlib.ExitStack() as stack:
        # from now on, signals stay pending until a `Server` or a `Supervisor` can shut down cleanly
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        address = settings.uds or authority(settings.host, settings.port)
        admin_listener = None
        try:
            listener = stack.enter_context(
                listen_unix(settings.uds) if settings.uds else listen_tcp(settings.host, settings.port)
            )
            listeners = stack.enter_context(for_workers(listener, settings.workers))
            if settings.admin_port:
                address = f"{authority(settings.admin_host, settings.admin_port)} (--admin-port)"
                admin_listener = stack.enter_context(listen_tcp(settings.admin_host, settings.admin_port))
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (while")[0]
            print(f"litellm-sanitizer: can't listen on {address}: {reason}", file=sys.stderr)
            return 1
        for name in unknown:
            logs.event(logging.WARNING, "no such option, ignored", variable=name)
        try:
            admin = _admin(settings, admin_listener) if admin_listener else None
        except OSError as error:
            log_failed_start(error)
            return 1
        with admin or contextlib.nullcontext():
            on_serving = functools.partial(_log_listening, settings, listener, admin_listener)
            return _serve(settings, listeners, on_serving, admin)


def _admin(settings: Settings, listener: socket.socket) -> Admin:
    """Create the admin listener. Raises `OSError`. Its modules use about 6 MiB, so only this function imports them."""
    from sanitizer.operate.admin import Admin

    return Admin(settings, listener)


def _serve(
    settings: Settings, listeners: Sequence[socket.socket], on_serving: Callable[[], None], admin: Admin | None
) -> int:
    pseudonym = make_pseudonym()
    on_stop = admin.health.stop if admin else None
    if settings.workers == 1:
        publish = admin.add_process() if admin else None
        return Server(Gateway(settings, pseudonym), listeners[0], on_serving, publish, on_stop).run()
    work = functools.partial(_work, settings, pseudonym)
    add_worker = admin.add_worker if admin else None
    try:
        supervisor = Supervisor(work, listeners, settings.shutdown_grace, on_serving, add_worker, on_stop)
    except OSError as error:
        log_failed_start(error)
        return 1
    return supervisor.run()


def _work(
    settings: Settings, pseudonym: bytes, listener: socket.socket, report: Connection, pipe: Connection | None
) -> None:
    """Serve in a worker process, and exit."""
    logs.configure(settings.log_level, settings.log_format)
    _exit_at_signals()

    def on_serving() -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent has died, and this process will stop too
            report.send(os.getpid())

    publish = PipeWriter(pipe) if pipe else None
    with listener:
        sys.exit(Server(Gateway(settings, pseudonym), listener, on_serving, publish).run())


def _log_listening(settings: Settings, listener: socket.socket, admin_listener: socket.socket | None) -> None:
    scheme = "https" if settings.ssl_certfile else "http"
    url = f"unix:{settings.uds}" if settings.uds else f"{scheme}://{address_of(listener)}"
    logs.event(
        logging.INFO,
        f"listening on {url}",
        block=True,
        form=FORM,
        upstream=str(settings.upstream),
        root_path=",".join(filter(None, settings.root_path)) or None,
        mode=settings.mode,
        fields=",".join(sorted(settings.fields)),
        workers=settings.workers,
        admin=f"http://{address_of(admin_listener)}" if admin_listener else None,
    )


def _exit_at_signals() -> None:
    """Make the stop signals end the process without a traceback, as long as there is nothing to drain."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

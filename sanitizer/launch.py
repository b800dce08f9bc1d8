"""The command ``serve``: the listeners, the admin listener, and one process that serves or several under a supervisor.

The admin listener runs in a thread of the process that was started, see `sanitizer.operate.admin`. Every process that
serves publishes its numbers twice a second, a worker through a pipe. Without the listener none does.
"""

import contextlib
import functools
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from sanitizer import descriptors
from sanitizer.app import Gateway, make_pseudonym
from sanitizer.listeners import address_of, authority, listen_tcp, listen_unix
from sanitizer.operate import logs
from sanitizer.operate.admin import Admin
from sanitizer.operate.snapshots import PipeWriter
from sanitizer.server import Server, log_failed_start
from sanitizer.settings import Settings
from sanitizer.supervisor import STOP_SIGNALS, Supervisor


def serve(settings: Settings, unknown: Sequence[str] = ()) -> int:
    """Run the gateway until it is told to stop. Returns the exit status: 0, or 1 when it can't start.

    ``unknown``: variables that look like options of ours and are none, to warn of.
    """
    logs.configure(settings.log_level, settings.log_format)
    _exit_at_signals()
    # workers have no admin listener, and their parent, which has it, has no public side
    descriptors.raise_limit(descriptors.RESERVE if settings.admin_port and settings.workers == 1 else 0)
    with contextlib.ExitStack() as stack:
        where = settings.uds or authority(settings.host, settings.port)
        admin_listener = None
        try:
            listener = stack.enter_context(
                listen_unix(settings.uds) if settings.uds else listen_tcp(settings.host, settings.port)
            )
            if settings.admin_port:
                where = f"{authority(settings.admin_host, settings.admin_port)} (--admin-port)"
                admin_listener = stack.enter_context(listen_tcp(settings.admin_host, settings.admin_port))
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (while")[0]
            print(f"litellm-sanitizer: can't listen on {where}: {reason}", file=sys.stderr)
            return 1
        _log_listening(settings, listener, admin_listener)
        for name in unknown:
            logs.event(logging.WARNING, "no such option, ignored", variable=name)
        # a signal waits until the admin listener can be ended in good order
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            admin = Admin(settings, admin_listener) if admin_listener else None
        except OSError as error:
            log_failed_start(error)
            return 1
        with admin or contextlib.nullcontext():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            return _serve(settings, listener, admin)


def _serve(settings: Settings, listener: socket.socket, admin: Admin | None) -> int:
    pseudonym = make_pseudonym()
    if settings.workers == 1:
        gateway = Gateway(settings, pseudonym)
        if admin is None:
            return Server(gateway, listener).run()
        return Server(gateway, listener, admin.add_process(), admin.health.stop).run()

    def stop() -> None:
        if admin is not None:
            admin.health.stop()
        # the workers go on accepting from their copies: when they have closed those, none is to keep the backlog open
        listener.close()

    work = functools.partial(_work, settings, pseudonym, listener)
    return Supervisor(work, settings.workers, settings.shutdown_grace, admin, stop).run()


def _work(settings: Settings, pseudonym: bytes, listener: socket.socket, pipe: Connection | None) -> None:
    """Serve in a worker process, until the process ends."""
    logs.configure(settings.log_level, settings.log_format)
    _exit_at_signals()
    sys.exit(Server(Gateway(settings, pseudonym), listener, PipeWriter(pipe) if pipe else None).run())


def _log_listening(settings: Settings, listener: socket.socket, admin_listener: socket.socket | None) -> None:
    scheme = "https" if settings.ssl_certfile else "http"
    url = f"unix:{settings.uds}" if settings.uds else f"{scheme}://{address_of(listener)}"
    logs.event(
        logging.INFO,
        f"listening on {url}",
        block=True,
        upstream=str(settings.upstream),
        root_path=",".join(filter(None, settings.root_path)) or None,
        mode=settings.mode,
        fields=",".join(sorted(settings.fields)),
        workers=settings.workers,
        admin=f"http://{address_of(admin_listener)}" if admin_listener else None,
    )


def _exit_at_signals() -> None:
    """Until there is something to drain, a signal to stop ends the process, without a traceback."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

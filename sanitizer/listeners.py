"""Listening sockets, TCP and Unix, and the TLS context of the public one.

A Unix socket is a file that outlives the process that made it. Cases, before the code:

* A process that was killed has left its socket behind: nobody answers there, and the next process replaces it.
* Another process listens there: its socket stays, and binding fails.
* Another process has replaced the socket while this one drained: the file is the other's, and stays at the end.
"""

import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from typing import Final

from sanitizer.keepalive import probe_when_silent

BACKLOG: Final = 2048
"""Connections that the kernel completes before they are accepted."""


@contextlib.contextmanager
def listen_tcp(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on the first address of ``host``, closed at the end. Raises `OSError`."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    dual = host == "::" and socket.has_dualstack_ipv6()
    with socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=dual) as listener:
        probe_when_silent(listener)
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def listen_unix(path: str) -> Iterator[socket.socket]:
    """A Unix socket that listens at ``path``, closed and removed at the end. Raises `OSError`."""
    _unlink_if_stale(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        made = _identity(path)
        try:
            os.chmod(path, 0o666)  # noqa: S103 - as uvicorn and nginx: the folder decides who may connect
            listener.listen(BACKLOG)
            listener.setblocking(False)
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if _identity(path) == made:
                    os.unlink(path)


def address_of(listener: socket.socket) -> str:
    """The address that a TCP socket listens on, as it stands in a URL."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """The context of a TLS listener with this certificate chain. ``keyfile``: None if the key is in ``certfile``.

    Raises `OSError`, of which `ssl.SSLError` is one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _unlink_if_stale(path: str) -> None:
    """Remove a socket on which nobody listens. Whatever else is there stays, and is left to `bind` to complain of."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino

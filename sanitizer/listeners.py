"""Listening sockets, TCP and Unix, and the TLS context of the public listener.

With SO_REUSEPORT, the kernel distributes new TCP connections among the sockets that listen on one port, by a hash of
both addresses. Each socket has its own queue of connections that are established but not yet accepted. When the socket
is closed, the kernel resets them. Cases, before the code:

* Another process, such as a gateway of the same user, listens on the port: binding must fail. The first socket
  therefore binds and listens before it gets the option. After that, a program of the same user that sets SO_REUSEPORT
  before it binds can share the port. The kernel has no means to prevent this, but no gateway does so.
* A client has started its TCP handshake when the listener is about to be closed: its connection would be reset as soon
  as it is established. `refuse_handshakes` is therefore called some time before the listener is closed.

A Unix socket is a file that outlives the process that created it. Cases, before the code:

* A process was killed and has left its socket behind: no process accepts there, so the next process replaces it.
* Another process listens there: its socket is kept, and binding fails.
* Another process has replaced the socket while this one drained: the file belongs to the other process and is kept. It
  may have the same inode number, but not the same modification time.
* Another process starts or exits on the same path at the same time: each holds a lock on the folder while it checks the
  file and acts on the result.
"""

import contextlib
import errno
import fcntl
import os
import select
import socket
import ssl
import stat
import struct
import sys
import time
from array import array
from collections.abc import Iterator
from typing import Final

from sanitizer.address import in_brackets
from sanitizer.descriptors import NONE_LEFT
from sanitizer.keepalive import enable_keepalive

BACKLOG: Final = 2048
"""Limit of established connections that wait in the kernel to be accepted."""
_LOCK_TIMEOUT: Final = 1.0
"""Seconds to wait for the lock on a socket's folder. A gateway holds it only for a few system calls."""
_LINUX: Final = sys.platform == "linux"
_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
"""Linux's values (asm-generic/socket.h), for which the module `socket` has no constants."""
_NO_SYN: Final = (
    (0x30, 0, 0, 13),  # load the octet of the TCP header that has SYN and ACK (RFC 9293 section 3.1)
    (0x54, 0, 0, 0x12),  # clear all other bits
    (0x15, 0, 1, 0x02),  # SYN without ACK starts a handshake:
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # accept everything else
)
"""A socket filter in classic BPF: for each ``struct sock_filter``, the code, the two jumps and the operand."""


@contextlib.contextmanager
def listen_tcp(host: str, port: int, *, reuse_port: bool = False) -> Iterator[socket.socket]:
    """Listen on the first address of ``host``. The socket is closed on exit. Raises `OSError`."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    dual = host == "::" and socket.has_dualstack_ipv6()
    with socket.create_server(
        address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=dual, reuse_port=reuse_port
    ) as listener:
        enable_keepalive(listener)
        yield listener


@contextlib.contextmanager
def for_workers(first: socket.socket, count: int) -> Iterator[list[socket.socket]]:
    """Return a listening socket for each of ``count`` workers: ``first``, and others on its port, closed on exit.

    The workers share ``first`` if it is a Unix socket, or if the platform does not distribute connections. Raises
    `OSError`.
    """
    with contextlib.ExitStack() as stack:
        listeners = [first] * count
        if count > 1 and _is_linux_tcp(first):
            host, port = first.getsockname()[:2]
            try:
                _set_reuse_port(first, True)
                listeners[1:] = [stack.enter_context(listen_tcp(host, port, reuse_port=True)) for _ in range(1, count)]
            except OSError as error:
                if error.errno in NONE_LEFT:
                    raise
                stack.close()  # some sandboxes lack the option, or support it only before `bind`
                with contextlib.suppress(OSError):
                    _set_reuse_port(first, False)
        yield listeners


def refuse_handshakes(listener: socket.socket) -> None:
    """Block new TCP handshakes. Those that have started can still complete, and must then be accepted.

    The kernel drops the SYN of a new handshake. The client repeats it after a second (RFC 6298 section 2), and is then
    refused, or reaches a successor. Does nothing if the kernel does not support this.
    """
    if _is_linux_tcp(listener):
        octets = array("B", b"".join(struct.pack("HBBI", *step) for step in _NO_SYN))
        program = struct.pack("HP", len(_NO_SYN), octets.buffer_info()[0])  # struct sock_fprog
        with contextlib.suppress(OSError):  # some sandboxes have no socket filters
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def allow_handshakes(listener: socket.socket) -> None:
    """Undo `refuse_handshakes`, which a previous process with this socket may have called."""
    if _is_linux_tcp(listener):
        with contextlib.suppress(OSError):  # there was no filter
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def has_waiting(listener: socket.socket) -> bool:
    """Whether a connection waits to be accepted. False for a socket that no longer listens (POLLHUP)."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return any(event == select.POLLIN for _, event in poll.poll(0))


def stop_listening(listener: socket.socket) -> None:
    """Stop a worker's own socket from listening, so that new connections go to the other workers.

    This also affects the copies of the socket in other processes. A socket that workers share continues to listen.
    A later `socket.listen` makes it listen on the same port again.
    """
    if _is_linux_tcp(listener) and listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
        address = listener.getsockname()
        with contextlib.suppress(OSError):  # another process has already stopped it through its copy
            listener.shutdown(socket.SHUT_RDWR)
            # `shutdown` releases a port that the kernel chose; any other is still bound, and `bind` fails with EINVAL
            listener.bind(address)


def _set_reuse_port(listener: socket.socket, reuse: bool) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)


def _is_linux_tcp(listener: socket.socket) -> bool:
    """Whether the kernel can filter and distribute connections to ``listener``.

    On other platforms, SO_REUSEPORT is missing or does not distribute connections.
    """
    return _LINUX and listener.family != socket.AF_UNIX


@contextlib.contextmanager
def listen_unix(path: str) -> Iterator[socket.socket]:
    """Listen on a Unix socket at ``path``. It is closed and removed on exit. Raises `OSError`."""
    with socket.socket(socket.AF_UNIX) as listener:
        with _locked(os.path.dirname(path) or "."):
            _unlink_if_stale(path)
            listener.bind(path)
            identity = _identity(path)
            listener.listen(BACKLOG)
        try:
            os.chmod(path, 0o666)  # noqa: S103 - as in uvicorn and nginx, the folder decides who may connect
            yield listener
        finally:
            with contextlib.suppress(OSError), _locked(os.path.dirname(path) or "."):
                if _identity(path) == identity:
                    os.unlink(path)


def address_of(listener: socket.socket) -> str:
    """Return the address on which a TCP socket listens, as written in a URL."""
    return authority(*listener.getsockname()[:2])


def authority(host: str, port: int) -> str:
    """Return ``host`` and ``port`` as written in a URL."""
    return f"{in_brackets(host)}:{port}"


def tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """Return the context of a TLS listener with this certificate chain.

    ``keyfile`` is None if the key is in ``certfile``. Raises `OSError`, of which `ssl.SSLError` is a subclass.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # without a password, OpenSSL would prompt on the terminal for that of an encrypted key
    context.load_cert_chain(certfile, keyfile, password="")
    context.set_alpn_protocols(["http/1.1"])
    return context


def reload_certificate(context: ssl.SSLContext, certfile: str, keyfile: str | None) -> None:
    """Use this certificate chain for all later handshakes on ``context``.

    Raises `OSError`, and then changes nothing. The files are loaded into a new context, to which each handshake
    switches, because a context that has loaded a chain but not its key could not complete any handshake.
    """
    new_context = tls_context(certfile, keyfile)

    def switch_context(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = new_context

    context.sni_callback = switch_context  # called in each handshake, even without SNI


def _unlink_if_stale(path: str) -> None:
    """Remove the socket at ``path`` if no process listens on it. Otherwise it stays, and `bind` will fail.

    Raises `FileExistsError` if ``path`` is not a socket.
    """
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(
                errno.EEXIST, "this path exists and is not a socket; remove it, or choose another path"
            )
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            pass  # a process listens there, but its queue is full


def _identity(path: str) -> tuple[int, int, int]:
    """Identify a socket among all that are created at ``path``. Changing its owner or mode does not change this."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold a lock on ``folder``, for which other gateways wait. It is not an error if the folder can't be locked."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            _lock(descriptor)
        yield


def _lock(descriptor: int) -> None:
    """Lock an open folder. Gives up after `_LOCK_TIMEOUT`, because no gateway holds the lock that long."""
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)

"""Listening sockets, TCP and Unix, and the TLS context of the public one.

The kernel spreads new TCP connections over the sockets that listen on one port with SO_REUSEPORT, by a hash of both
addresses. Each socket has a queue of its own, of the connections that are complete and not yet accepted; when the
socket is closed, the kernel resets those. Cases, before the code:

* Another process, be it a gateway of the same user, listens on the port: binding fails. The first socket therefore
  listens before it gets the option. What remains: after that, a program of the same user that sets SO_REUSEPORT before
  it binds can share the port, which the kernel has no means to forbid. No gateway does so.
* A client has begun its handshake when the listener is to be closed: its connection would be reset as soon as the
  client has it. `refuse_handshakes` therefore comes some time before that.

A Unix socket is a file that outlives the process that made it. Cases, before the code:

* A process that was killed has left its socket behind: no process accepts there, and the next one replaces it.
* Another process listens there: its socket stays, and binding fails.
* Another process has replaced the socket while this one drained: the file is the other's, and stays at the end. It may
  have the same inode number, but not the same time.
* Another process starts or ends on the same path at the same time: each holds a lock on the folder while it looks at
  the file and acts on what it has seen.
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
from sanitizer.keepalive import probe_when_silent

BACKLOG: Final = 2048
"""Connections that the kernel completes before they are accepted."""
_LOCK_TIMEOUT: Final = 1.0
"""Seconds to wait for the lock on a socket's folder. A gateway holds it only for a few system calls."""
_LINUX: Final = sys.platform == "linux"
_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
"""Linux's numbers (asm-generic/socket.h), which the module `socket` does not name."""
_NO_SYN: Final = (
    (0x30, 0, 0, 13),  # load the octet of a TCP header that has SYN and ACK (RFC 9293 section 3.1)
    (0x54, 0, 0, 0x12),  # keep these two
    (0x15, 0, 1, 0x02),  # SYN alone begins a handshake:
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # keep all else
)
"""A socket filter in classic BPF; of each ``struct sock_filter`` the code, the two jumps, the operand."""


@contextlib.contextmanager
def listen_tcp(host: str, port: int, *, reuse_port: bool = False) -> Iterator[socket.socket]:
    """A socket that listens on the first address of ``host``, closed at the end. Raises `OSError`."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    dual = host == "::" and socket.has_dualstack_ipv6()
    with socket.create_server(
        address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=dual, reuse_port=reuse_port
    ) as listener:
        probe_when_silent(listener)
        yield listener


@contextlib.contextmanager
def for_workers(first: socket.socket, count: int) -> Iterator[list[socket.socket]]:
    """A listening socket for each of ``count`` workers: ``first``, and others on its port, closed at the end.

    A Unix socket is shared by all, as is that of a platform that does not spread connections. Raises `OSError`.
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
                stack.close()  # this kernel, a sandbox's perhaps, has no such option, or takes it only before `bind`
                with contextlib.suppress(OSError):
                    _set_reuse_port(first, False)
        yield listeners


def refuse_handshakes(listener: socket.socket) -> None:
    """Let no new connection begin; those that have begun can still be completed, and are to be accepted.

    The kernel drops the SYN of a new one. The client repeats it after a second (RFC 6298 section 2), and by then is
    refused, or gets to a successor. Does nothing where the kernel can't do this.
    """
    if _is_linux_tcp(listener):
        octets = array("B", b"".join(struct.pack("HBBI", *step) for step in _NO_SYN))
        program = struct.pack("HP", len(_NO_SYN), octets.buffer_info()[0])  # struct sock_fprog
        with contextlib.suppress(OSError):  # a sandbox may have no socket filters
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def allow_handshakes(listener: socket.socket) -> None:
    """Undo `refuse_handshakes`, which a process that had the socket before may have called."""
    if _is_linux_tcp(listener):
        with contextlib.suppress(OSError):  # there is no filter
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def has_waiting(listener: socket.socket) -> bool:
    """Whether a connection waits to be accepted. None does on a socket that has stopped (POLLHUP)."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return any(event == select.POLLIN for _, event in poll.poll(0))


def stop_listening(listener: socket.socket) -> None:
    """End a worker's own socket also for the processes that have copies of it, so that connections go to the others.

    One that workers share goes on. `socket.listen` begins anew, on the same port.
    """
    if _is_linux_tcp(listener) and listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
        address = listener.getsockname()
        with contextlib.suppress(OSError):  # another process that has a copy has ended it
            listener.shutdown(socket.SHUT_RDWR)
            # `shutdown` has given up a port that the kernel chose; of any other, `bind` says that it is bound (EINVAL)
            listener.bind(address)


def _set_reuse_port(listener: socket.socket, reuse: bool) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)


def _is_linux_tcp(listener: socket.socket) -> bool:
    """Whether the kernel may filter what comes, and spread it. Elsewhere SO_REUSEPORT is missing or spreads nothing."""
    return _LINUX and listener.family != socket.AF_UNIX


@contextlib.contextmanager
def listen_unix(path: str) -> Iterator[socket.socket]:
    """A Unix socket that listens at ``path``, closed and removed at the end. Raises `OSError`."""
    with socket.socket(socket.AF_UNIX) as listener:
        with _locked(os.path.dirname(path) or "."):
            _unlink_if_stale(path)
            listener.bind(path)
            made = _identity(path)
            listener.listen(BACKLOG)
        try:
            os.chmod(path, 0o666)  # noqa: S103 - as uvicorn and nginx: the folder decides who may connect
            yield listener
        finally:
            with contextlib.suppress(OSError), _locked(os.path.dirname(path) or "."):
                if _identity(path) == made:
                    os.unlink(path)


def address_of(listener: socket.socket) -> str:
    """The address that a TCP socket listens on, as it stands in a URL."""
    return authority(*listener.getsockname()[:2])


def authority(host: str, port: int) -> str:
    """``host`` and ``port`` as they stand in a URL."""
    return f"{in_brackets(host)}:{port}"


def tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """The context of a TLS listener with this certificate chain. ``keyfile``: None if the key is in ``certfile``.

    Raises `OSError`, of which `ssl.SSLError` is a subclass.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # without a password given here, OpenSSL would ask the terminal for that of an encrypted key
    context.load_cert_chain(certfile, keyfile, password="")
    context.set_alpn_protocols(["http/1.1"])
    return context


def reload_certificate(context: ssl.SSLContext, certfile: str, keyfile: str | None) -> None:
    """Present this certificate chain to the connections that are made on ``context`` from now on.

    Raises `OSError`; then nothing has changed. Another context loads the files, and each handshake changes to it: a
    context that has loaded a chain but not its key could complete no handshake any more.
    """
    fresh = tls_context(certfile, keyfile)

    def present(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = fresh

    context.sni_callback = present  # called in each handshake, even if the client names no server


def _unlink_if_stale(path: str) -> None:
    """Remove a socket on which no process listens. If one does, the socket stays, and `bind` will fail.

    Raises `FileExistsError` if it is no socket that is there.
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
            pass  # a process listens there, but does not accept at the moment


def _identity(path: str) -> tuple[int, int, int]:
    """Identifies a socket among all that are made at ``path``. A change of its owner or mode does not change this."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold a lock on ``folder``, which other gateways then wait for. A folder that can't be locked is not an error."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            _lock(descriptor)
        yield


def _lock(descriptor: int) -> None:
    """Lock an open folder. Gives up after `_LOCK_TIMEOUT`, for then no gateway holds the lock."""
    until = time.monotonic() + _LOCK_TIMEOUT
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)

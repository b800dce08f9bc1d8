"""Listening sockets: existing ones that are replaced or left alone, sockets for workers, and how they are closed."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from sanitizer import listeners
from sanitizer.listeners import (
    address_of,
    allow_handshakes,
    for_workers,
    has_waiting,
    listen_tcp,
    listen_unix,
    refuse_handshakes,
    stop_listening,
)
from tests.support.gateway import reserved_port


@pytest.fixture
def path() -> Iterator[str]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder, "socket"))


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def leave_behind(path: str) -> None:
    """Leave a socket file on which no process listens."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def test_unix_socket(path: str) -> None:
    """Every user may connect while the socket listens. Then its file is removed."""
    with listen_unix(path):
        assert Path(path).stat().st_mode & 0o777 == 0o666
        connect(path)
    assert not Path(path).exists()


def test_stale_unix_socket(path: str) -> None:
    """A socket file on which no process listens is replaced."""
    leave_behind(path)
    with listen_unix(path):
        connect(path)


def test_unix_socket_in_use(path: str) -> None:
    """A socket that is in use is not replaced, and goes on accepting connections."""
    with listen_unix(path):
        with pytest.raises(OSError, match="in use"), listen_unix(path):
            pass
        connect(path)


def test_unix_socket_of_a_process_that_does_not_accept(path: str) -> None:
    """A socket is in use even if its process hangs and its backlog is full. The check does not wait for the process."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        for _ in range(100):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            if client.connect_ex(path) == errno.EAGAIN:
                break
        else:
            pytest.fail("the backlog is never full")
        with pytest.raises(OSError, match="in use"), listen_unix(path):
            pass


def test_file_in_the_way(path: str) -> None:
    """A file that is not a socket is not removed."""
    Path(path).write_text("kept")
    with pytest.raises(OSError, match="not a socket"), listen_unix(path):
        pass
    assert Path(path).read_text() == "kept"


def test_replaced_unix_socket(path: str) -> None:
    """A socket file that has replaced ours is kept when ours is closed."""
    with listen_unix(path):
        Path(path).unlink()
        leave_behind(path)
    assert Path(path).exists()


def test_successor_of_the_same_inode(path: str) -> None:
    """A successor's socket file is kept when ours is closed, even if the file system has reused the inode."""
    with listen_unix(path) as listener:
        listener.close()  # as a drain does; the file can be replaced from now on
        with ExitStack() as successor:
            successor.enter_context(listen_unix(path))
            kept = successor.pop_all()
    with kept:
        connect(path)
    assert not Path(path).exists()


def test_successors_at_once(path: str) -> None:
    """If many listeners start at once on a stale socket file, one of them listens and the others fail."""
    go = threading.Barrier(8)
    done = threading.Barrier(8)

    def start() -> bool:
        go.wait()
        try:
            with listen_unix(path):
                done.wait()
                return True
        except OSError:
            done.wait()
            return False

    for _ in range(20):
        leave_behind_if_gone(path)
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda _: start(), range(8))) == 1


def test_folder_is_locked(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another program holds a lock on the folder, the listener waits for it for a limited time only."""
    monkeypatch.setattr(listeners, "_LOCK_TIMEOUT", 0.05)
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with listen_unix(path):
            connect(path)
        assert not Path(path).exists()
    finally:
        os.close(folder)


def leave_behind_if_gone(path: str) -> None:
    if not Path(path).exists():
        leave_behind(path)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::]")])
def test_address(host: str, shown: str) -> None:
    """An address is shown as in a URL."""
    with listen_tcp(host, 0) as listener:
        assert address_of(listener) == f"{shown}:{listener.getsockname()[1]}"


def test_every_address() -> None:
    """A listener on ``::`` accepts IPv4 connections too."""
    with listen_tcp("::", 0) as listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        pass


HOSTS = pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])


def is_shared(listener: socket.socket) -> bool:
    return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


@HOSTS
def test_workers_have_a_socket_each(host: str) -> None:
    """Each worker has its own socket. All listen at one address, and have the options of the first socket."""
    with listen_tcp(host, 0) as first, for_workers(first, 3) as sockets:
        assert sockets[0] is first
        assert len({listener.fileno() for listener in sockets}) == 3
        assert len({address_of(listener) for listener in sockets}) == 1
        for listener in sockets:
            assert is_shared(listener)
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        others = sockets[1:]
    assert [listener.fileno() for listener in others] == [-1, -1]


def test_one_process_has_an_ordinary_socket() -> None:
    """A single serving process does not share its port."""
    with listen_tcp("127.0.0.1", 0) as first, for_workers(first, 1) as sockets:
        assert sockets == [first]
        assert not is_shared(first)


def test_workers_share_a_unix_socket(path: str) -> None:
    """All workers accept on one Unix socket."""
    with listen_unix(path) as first, for_workers(first, 3) as sockets:
        assert sockets == [first] * 3


def test_workers_share_a_socket_that_the_kernel_does_not_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers share one TCP socket where the kernel does not distribute connections. No worker can stop it."""
    monkeypatch.setattr(listeners, "_LINUX", False)
    with listen_tcp("127.0.0.1", 0) as first, for_workers(first, 3) as sockets:
        assert sockets == [first] * 3
        assert not is_shared(first)
        refuse_handshakes(first)
        stop_listening(first)
        socket.create_connection(first.getsockname()).close()


@pytest.mark.parametrize("known", [True, False], ids=["too late", "unknown"])
def test_workers_share_a_socket_in_a_sandbox(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """All workers share one TCP socket where SO_REUSEPORT is unknown, or has no effect after bind(2).

    No worker can stop the shared socket.
    """
    set_reuse_port = listeners._set_reuse_port

    def in_a_sandbox(listener: socket.socket, _: bool) -> None:
        if not known:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        set_reuse_port(listener, False)

    monkeypatch.setattr(listeners, "_set_reuse_port", in_a_sandbox)
    with listen_tcp("127.0.0.1", 0) as first, for_workers(first, 3) as sockets:
        assert sockets == [first] * 3
        stop_listening(first)
        socket.create_connection(first.getsockname()).close()


def test_no_socket_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a worker's socket can't be made because there are too few descriptors, the error is raised."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with listen_tcp("127.0.0.1", 0) as first:
        monkeypatch.setattr(listeners, "listen_tcp", fail)
        with pytest.raises(OSError, match="Too many"), for_workers(first, 3):
            pass


@HOSTS
@pytest.mark.parametrize("workers", [1, 2])
def test_port_in_use(host: str, workers: int) -> None:
    """A port on which a gateway listens, with or without workers, is in use for another gateway of the same user."""
    with listen_tcp(host, 0) as first, for_workers(first, workers):
        port = first.getsockname()[1]
        with pytest.raises(OSError, match="in use"), listen_tcp(host, port):
            pass


def test_port_in_use_by_another_program() -> None:
    """A port on which another program listens with SO_REUSEPORT is in use, and is not shared with that program."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="in use"), listen_tcp("127.0.0.1", port):
            pass


def test_many_gateways_at_once() -> None:
    """If many gateways start at once on one port, at most one listens with all its workers. The others fail.

    If two begin to listen at the same moment, the kernel may refuse both.
    """
    with reserved_port() as port:
        go, done = threading.Barrier(8), threading.Barrier(8)

        def start(_: int) -> bool:
            go.wait()
            try:
                with listen_tcp("127.0.0.1", port) as first, for_workers(first, 4):
                    done.wait()
                    return True
            except OSError:
                done.wait()
                return False

        with ThreadPoolExecutor(8) as pool:
            listening = [sum(pool.map(start, range(8))) for _ in range(20)]
        assert max(listening) == 1


@HOSTS
def test_refused_handshakes(host: str) -> None:
    """A new handshake is held off until handshakes are allowed again. An established connection is still accepted."""
    with listen_tcp(host, 0) as listener, ExitStack() as stack:
        address = listener.getsockname()[:2]
        before = stack.enter_context(socket.create_connection(address))
        refuse_handshakes(listener)
        late = stack.enter_context(socket.socket(listener.family))
        late.setblocking(False)
        late.connect_ex(address)
        accepted = stack.enter_context(listener.accept()[0])
        assert accepted.getpeername() == before.getsockname()
        before.sendall(b"a")
        assert accepted.recv(1) == b"a"
        assert not has_waiting(listener)
        allow_handshakes(listener)
        listener.settimeout(30)
        with listener.accept()[0] as second:  # the client has repeated its SYN
            assert second.getpeername() == late.getsockname()


def test_handshakes_without_filter() -> None:
    """Allowing handshakes has no effect if they were not refused."""
    with listen_tcp("127.0.0.1", 0) as listener:
        allow_handshakes(listener)
        socket.create_connection(listener.getsockname()).close()


@pytest.mark.parametrize("chosen_by_kernel", [False, True], ids=["a port that was asked for", "port 0"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_a_stopped_listener(host: str, chosen_by_kernel: bool) -> None:
    """A stopped listener is stopped in every process. Connections go to the others until one process listens again."""
    with (
        reserved_port() as port,
        listen_tcp(host, 0 if chosen_by_kernel else port) as first,
        for_workers(first, 2) as (_, second),
        first.dup() as copy,
        ExitStack() as stack,
    ):
        address = first.getsockname()
        for _ in range(2):  # whichever process is first
            stop_listening(first)
        assert not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert not has_waiting(copy)
        for _ in range(40):
            stack.enter_context(socket.create_connection(address[:2]))
        for _ in range(40):
            second.accept()[0].close()
        copy.listen()
        assert copy.getsockname() == address
        for _ in range(40):
            stack.enter_context(socket.create_connection(address[:2]))
        assert has_waiting(first)

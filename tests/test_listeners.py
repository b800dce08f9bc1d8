"""Listening sockets: which are taken over, which are left alone, and what remains of them."""

from __future__ import annotations

import contextlib
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
from sanitizer.listeners import address_of, listen_tcp, listen_unix


@pytest.fixture
def path() -> Iterator[str]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder, "socket"))


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def leave_behind(path: str) -> None:
    """A socket on which nobody listens any more."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def test_unix_socket(path: str) -> None:
    """Everyone may connect while it listens; then the file is gone."""
    with listen_unix(path):
        assert Path(path).stat().st_mode & 0o777 == 0o666
        connect(path)
    assert not Path(path).exists()


def test_stale_unix_socket(path: str) -> None:
    """A socket on which nobody listens is replaced."""
    leave_behind(path)
    with listen_unix(path):
        connect(path)


def test_unix_socket_in_use(path: str) -> None:
    """A socket on which another process listens stays that process's."""
    with listen_unix(path):
        with pytest.raises(OSError, match="in use"), listen_unix(path):
            pass
        connect(path)


def test_unix_socket_of_a_process_that_does_not_accept(path: str) -> None:
    """A process that hangs, and whose backlog is full, still has its socket; nobody waits for it."""
    with contextlib.ExitStack() as stack:
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
    """A file that is no socket is not removed."""
    Path(path).write_text("kept")
    with pytest.raises(OSError, match="not a socket"), listen_unix(path):
        pass
    assert Path(path).read_text() == "kept"


def test_replaced_unix_socket(path: str) -> None:
    """A socket that another process has put in the place of ours stays when ours ends."""
    with listen_unix(path):
        Path(path).unlink()
        leave_behind(path)
    assert Path(path).exists()


def test_successor_of_the_same_inode(path: str) -> None:
    """A successor's socket stays when ours ends, also if the file system has given it the inode of ours."""
    with listen_unix(path) as listener:
        listener.close()  # as a drain does; the file can be replaced from now on
        with ExitStack() as successor:
            successor.enter_context(listen_unix(path))
            kept = successor.pop_all()
    with kept:
        connect(path)
    assert not Path(path).exists()


def test_successors_at_once(path: str) -> None:
    """Of many that start at once where a dead one has left its socket, one listens, and the others fail."""
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
    """A lock on the folder that is none of a gateway's is not waited for without end."""
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
    """An address is shown as it stands in a URL."""
    with listen_tcp(host, 0) as listener:
        assert address_of(listener) == f"{shown}:{listener.getsockname()[1]}"


def test_every_address() -> None:
    """``::`` takes connections over IPv4 too."""
    with listen_tcp("::", 0) as listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        pass

"""The reserve of descriptors: one at a time can be taken from it, while other code wants descriptors too.

The limit applies to a whole process, so each test runs in an interpreter of its own. In pytest's process, other threads
open and close descriptors.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

BEGIN = """
import atexit, errno, os, resource, socket, threading
from sanitizer.descriptors import none_left, take_from_reserve

limits = resource.getrlimit(resource.RLIMIT_NOFILE)

@atexit.register
def restore():
    "Coverage writes a file at the end."
    os.closerange(3, 64)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

def exhaust(hard=limits[1]):
    "From now on none is left to the public side."
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
"""


def run(script: str) -> None:
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(script)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_one_at_a_time() -> None:
    """While one descriptor is taken from the reserve, no other can be opened."""
    run("""
        def take():
            os.dup(0)
            try:
                os.dup(0)
            except OSError as error:
                assert error.errno == errno.EMFILE
            else:
                raise AssertionError("there was another")

        exhaust()
        assert none_left()
        for _ in range(3):
            take_from_reserve(take)
            assert none_left()
    """)


def test_reserve_is_no_room() -> None:
    """While one descriptor is taken from the reserve, another thread still finds that none is left."""
    run("""
        found = []
        other = threading.Thread(target=lambda: found.append(none_left()))

        def take():
            other.start()
            other.join(1)  # it ends here only if it looks while the limit is raised
            return os.dup(0)

        exhaust()
        assert take_from_reserve(take) == 3
        other.join()
        assert found == [True]
    """)


@pytest.mark.parametrize("losses", [1, 2, 5])
def test_somebody_is_faster(losses: int) -> None:
    """If the public side opens the descriptor that was meant to be taken, the next one is taken."""
    run(f"""
        calls = 0

        def take():
            global calls
            calls += 1
            if calls <= {losses}:
                os.dup(0)
            return os.dup(0)

        exhaust()
        assert take_from_reserve(take) == 3 + {losses}
        assert calls == {losses} + 1
    """)


def test_blocked_accept() -> None:
    """A thread blocked in accept(2) holds a descriptor that does not look open. The next one is taken instead."""
    run("""
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.socket()
        os.close(place := os.dup(0))
        accepted = []

        def accept():
            while not accepted:
                try:
                    accepted.append(listener.accept()[0])
                except OSError as error:  # `none_left` has the place
                    assert error.errno == errno.EMFILE

        resource.setrlimit(resource.RLIMIT_NOFILE, (place + 1, limits[1]))
        thread = threading.Thread(target=accept)
        thread.start()
        while not none_left():  # until the thread has the place
            pass
        exhaust()
        assert take_from_reserve(lambda: os.dup(0)) == place + 1
        assert none_left()
        client.connect(listener.getsockname())
        thread.join()
        assert accepted[0].fileno() == place
    """)


def test_none_in_reserve() -> None:
    """If the reserve is used up too, an error is raised, and the limit is unchanged afterwards."""
    run("""
        exhaust(6)
        for expected in (3, 4, 5):
            assert take_from_reserve(lambda: os.dup(0)) == expected
        calls = []
        try:
            take_from_reserve(lambda: calls.append(None))
        except OSError as error:
            assert error.errno == errno.EMFILE
        else:
            raise AssertionError("something was taken")
        assert not calls
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (3, 6)
    """)


@pytest.mark.parametrize("code", ["EMFILE", "ECONNABORTED"])
def test_take_fails(code: str) -> None:
    """Taking is given up if no descriptor is free, or at the first other error. The limit is unchanged afterwards."""
    run(f"""
        calls = []

        def take():
            calls.append(None)
            raise OSError(errno.{code}, "no")

        exhaust(6)
        try:
            take_from_reserve(take)
        except OSError as error:
            assert error.errno == errno.{code}
        else:
            raise AssertionError("something was taken")
        assert len(calls) == {3 if code == "EMFILE" else 1}
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (3, 6)
    """)


@pytest.mark.parametrize("accepted", [True, False])
def test_watch(accepted: bool) -> None:
    """A shortage is reported while it lasts: at once after an accepted connection, otherwise by the periodic check."""
    run(f"""
        import asyncio
        from sanitizer import descriptors

        async def main():
            found = asyncio.Queue()
            watch = descriptors.Watch(lambda: found.put_nowait(None))
            watch.start()
            watch.accepted()
            assert found.empty()
            exhaust()
            for _ in range(3 * {accepted}):
                watch.accepted()
                assert found.qsize() == 1  # once a second
            for _ in range(3):
                await asyncio.wait_for(found.get(), 20)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            reported = found.qsize()
            watch.accepted()
            await asyncio.sleep(3 * descriptors._WATCH_INTERVAL)
            assert found.qsize() == reported

        descriptors._WATCH_INTERVAL = 0.05
        asyncio.run(main())
    """)


def test_ran_out() -> None:
    """An error is attributed to the shortage if its number says so, or if no descriptor is left when it occurs."""
    run("""
        from sanitizer.descriptors import ran_out

        refused, other = ConnectionRefusedError(errno.ECONNREFUSED, "refused"), ValueError()
        assert ran_out(OSError(errno.EMFILE, "x")) and ran_out(OSError(errno.ENFILE, "x"))
        assert not ran_out(refused) and not ran_out(other)
        exhaust()
        assert ran_out(refused) and ran_out(other)
    """)


@pytest.mark.parametrize(("reserve", "soft"), [(0, 64), (10, 54), (32, 32), (60, 32)])
def test_raise_limit(reserve: int, soft: int) -> None:
    """The soft limit is raised to the hard limit less the reserve, which is at most half of the hard limit."""
    run(f"""
        from sanitizer.descriptors import raise_limit

        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 64))
        raise_limit({reserve})
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == ({soft}, 64)
    """)

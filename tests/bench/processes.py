"""Processes that are measured: started on given cores, read through /proc, and stopped by their id."""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a process tree, summed. ``pss`` counts a page that n processes share as 1/n of a page."""

    rss: int
    pss: int


@dataclass(frozen=True)
class Cores:
    """The CPU for each part, numbered as by `os.sched_getaffinity`. ``spare`` is a second one for the proxy, if any."""

    proxy: int
    load: int
    upstream: int
    spare: int | None

    @classmethod
    def pick(cls) -> "Cores":
        """Give the proxy a core of its own. With three cores upstream has one too, and with four one is spare.

        Raises `SystemExit` if there are fewer than two.
        """
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise SystemExit("the benchmark needs two cores: one for the proxy, one for the load")
        return cls(cores[-1], cores[0], cores[min(1, len(cores) - 2)], cores[-2] if len(cores) > 3 else None)


@contextmanager
def affinity(cpus: set[int]) -> Iterator[None]:
    """Processes that are started in this context run only on ``cpus``."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Process:
    """A running command and its children. Standard error goes to ``log``. Raises `OSError` if it can't be started."""

    def __init__(self, argv: Sequence[str], *, cpus: set[int], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with affinity(cpus), log.open("wb") as stderr:
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(env or {})},
                start_new_session=True,  # Ctrl-C must not reach it: stop() ends it
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def line(self) -> str:
        """Read the next line that the process prints."""
        assert self._popen.stdout is not None
        return self._popen.stdout.readline().decode().strip()

    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._popen.poll() is None

    def complaint(self) -> str:
        """The last line of its standard error."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"ended with {self._popen.poll()}")

    def stop(self, patience: float = 3.0) -> None:
        """Send SIGTERM, and SIGKILL after ``patience`` seconds. Then kill the remaining children. Waits for all."""
        children = [fd for pid in self.pids()[1:] if (fd := _handle(pid)) is not None]
        self._popen.terminate()
        try:
            self._popen.wait(patience)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(patience)
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        for child in children:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
            select.select([child], [], [], patience)  # readable when it has ended
            os.close(child)

    def pids(self) -> list[int]:
        """The process and its descendants."""
        found = [self._popen.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found.extend(int(child) for child in _read(children).split())
        return found

    def cpu_ns(self) -> int:
        """CPU time so far in nanoseconds, user and system, of all live threads, as the scheduler accounts for it.

        If the kernel does not have schedstat, the time is read from /proc/PID/stat, in ticks of 10 ms.
        """
        tasks = [task for pid in self.pids() for task in Path(f"/proc/{pid}/task").iterdir()]
        if Path("/proc/self/schedstat").exists():
            return sum(int((_read(task / "schedstat") or "0").split()[0]) for task in tasks)
        ticks = [_read(task / "stat").rpartition(")")[2].split() for task in tasks]
        return sum(int(t[11]) + int(t[12]) for t in ticks if t) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")

    def memory(self) -> Memory:
        """The resident size now."""
        text = "".join(_read(f"/proc/{pid}/smaps_rollup") for pid in self.pids())
        return Memory(_kib(text, "Rss"), _kib(text, "Pss"))

    def reset_peak(self) -> None:
        """Reset the peak resident size that `growth` reads (proc(5), clear_refs)."""
        for pid in self.pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def growth(self, before: Memory) -> int:
        """The number of bytes by which the peak resident size since `reset_peak` exceeds ``before``."""
        return max(0, sum(_kib(_read(f"/proc/{pid}/status"), "VmHWM") for pid in self.pids()) - before.rss)


def _handle(pid: int) -> int | None:
    """A file descriptor that refers to this process even if its id is reused; None if the process has ended."""
    with suppress(ProcessLookupError):
        return os.pidfd_open(pid)
    return None


def _read(path: str | Path) -> str:
    """The content of a file under /proc; empty if its process or thread has just ended."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _kib(text: str, name: str) -> int:
    return 1024 * sum(map(int, re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)))


def wait_until(ready: Callable[[], bool], process: Process, seconds: float = 20) -> bool:
    """Poll until ``ready()`` is true, the process has ended or the time is up. Return whether it became ready."""
    deadline = time.monotonic() + seconds
    while process.running() and time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(0.02)
    return False

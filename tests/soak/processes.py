"""The processes of a soak, observed from outside: the lines that they write, and the figures that Linux has of them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 30.0
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Process:
    """A Python process. ``lines`` are those that it has written so far, to stdout and stderr."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid
        self.lines: list[str] = []
        self._changed = asyncio.Event()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def start(cls, module: str, *arguments: str) -> Process:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SANITIZER_", "SERVER_"))}
        environment |= {"PYTHONPATH": str(ROOT), "SANITIZER_ADMIN_PORT": "0"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "always::ResourceWarning", "-m", module, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode("utf-8", "backslashreplace").rstrip("\n"))
            self._changed.set()
        self._changed.set()

    async def line(self, wanted: Callable[[str], bool], *, after: int = 0) -> str:
        """Wait for a line that is ``wanted``, and return the first one. The first ``after`` lines are ignored.

        Raises:
            RuntimeError: the process has ended without writing it.
            TimeoutError: it was not written within `START_TIMEOUT`.
        """
        async with asyncio.timeout(START_TIMEOUT):
            while True:
                self._changed.clear()
                for line in self.lines[after:]:
                    if wanted(line):
                        return line
                if self._reader.done():
                    raise RuntimeError("\n".join([f"process {self.pid} has ended:", *self.lines[-20:]]))
                await self._changed.wait()

    async def wait(self, seconds: float) -> int | None:
        """The exit status; None if the process does not end in time."""
        try:
            async with asyncio.timeout(seconds):
                status = await self.process.wait()
                await self._reader
        except TimeoutError:
            return None
        return status

    def send(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.wait(START_TIMEOUT)

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def resident(self) -> int:
        """The resident set size, in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE

    @property
    def cpu(self) -> float:
        """The CPU time used so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

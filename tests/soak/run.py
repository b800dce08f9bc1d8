"""The course of a soak, and its verdicts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.clients import Load
from tests.soak.ledger import Ledger, Restart, account, now, read_journal, repeated
from tests.soak.processes import Process
from tests.soak.upstream import DRAINING, READY
from tests.support.gateway import free_port

MIB = 1 << 20
GRACE = 10.0
DRAIN = 20.0
"""Seconds after SIGTERM within which upstream must have finished the requests that it has begun."""
WARM_UP = 2.0
CACHED = 2
"""The number of additional objects of a type that is accepted after the load, because bounded caches keep some."""
REST = 30.0
"""Seconds within which the gateway, once idle, must have closed everything that it does not need."""


@dataclass(frozen=True)
class Options:
    """A soak: ``seconds`` of load by ``clients`` clients, and a restart of upstream every ``restart_every`` seconds.

    ``keepalive``: seconds for which the gateway keeps idle upstream connections. ``growth``: bytes by which its memory
    may differ at the end. ``stall``: its stall timeout, in seconds.
    """

    seconds: float
    clients: int = 64
    restart_every: float = 20.0
    keepalive: float = 4.0
    growth: int = 6 * MIB
    stall: float = 8.0
    seed: int = 0


@dataclass
class Sample:
    """The gateway's resident memory in bytes, and its open descriptors, ``at`` seconds after the load began."""

    at: float
    resident: int
    descriptors: int


@dataclass
class Report:
    """All findings of a soak. A verdict has a condition, whether it holds, and the figures."""

    ledger: Ledger
    seconds: float
    verdicts: list[tuple[str, bool, str]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    accounts: Counter[tuple[str, str]] = field(default_factory=Counter)
    stopped: dict[str, Any] = field(default_factory=dict)
    cpu: float = 0.0

    @property
    def good(self) -> bool:
        return all(so for _, so, _ in self.verdicts)

    def verdict(self, what: str, so: object, figures: object) -> None:
        self.verdicts.append((what, bool(so), str(figures)))


class Upstream:
    """The process that currently answers at ``port``."""

    def __init__(self, port: int, journal: Path, ledger: Ledger) -> None:
        self.port = port
        self.process: Process
        self._journal = journal
        self._ledger = ledger

    async def start(self) -> None:
        process = await Process.start("tests.soak.upstream", str(self.port), str(self._journal))
        self.process = process
        await process.line(lambda line: line.startswith(READY))

    async def restart(self, how: str) -> None:
        """Replace the process by another.

        ``how``: ``killed``, or ``restarted`` after the process has answered the requests that it had begun.
        """
        old = self.process
        entry = Restart(how, old.pid, now())
        self._ledger.restarts.append(entry)
        if how == "killed":
            await old.kill()
            await self.start()
        else:
            old.send(signal.SIGTERM)
            await old.line(lambda line: line == DRAINING)
            await self.start()
            await self.wait_for_end(old)
        self.judge(old)
        entry.end = now()

    async def wait_for_end(self, process: Process) -> None:
        if await process.wait(DRAIN) is None:
            self._ledger.wrong.append(f"upstream {process.pid} has connections left {DRAIN:.0f} s after SIGTERM")
            await process.kill()

    def judge(self, process: Process) -> None:
        if odd := [line for line in process.lines if not line.startswith((READY, DRAINING))]:
            self._ledger.wrong.append("upstream says: " + "\n".join(odd[-10:]))

    async def kill(self) -> None:
        await self.process.kill()

    async def stop(self) -> None:
        self.process.send(signal.SIGTERM)
        await self.wait_for_end(self.process)
        self.judge(self.process)


def records(lines: list[str], message: str) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if record["message"] == message:
                yield record


async def census(gateway: Process) -> Counter[str]:
    """The number of objects of each type that the gateway holds."""
    after = len(gateway.lines)
    gateway.send(signal.SIGUSR1)
    line = await gateway.line(lambda line: '"census"' in line, after=after)
    return Counter(json.loads(line)["objects"])


async def rest(gateway: Process, most: int) -> int:
    """Wait until the idle gateway has at most ``most`` open descriptors, or `REST` is over. Returns their number."""
    deadline = now() + REST
    while (count := gateway.descriptors) > most and now() < deadline:  # noqa: ASYNC110 - it depends on another process
        await asyncio.sleep(0.1)
    return count


async def growth(gateway: Process, before: Counter[str]) -> Counter[str]:
    """Wait until the idle gateway holds few objects beyond ``before``, or `REST` is over. Returns the excess by type.

    `CACHED` objects of each type in ``before`` are not excess. For some seconds after the last failure, the log has a
    timer for each kind of failure, to sum up further ones.
    """
    most = before + Counter(dict.fromkeys(before, CACHED))
    deadline = now() + REST
    while (more := await census(gateway) - most) and now() < deadline:  # noqa: ASYNC110 - it depends on another process
        await asyncio.sleep(0.5)
    return more


async def soak(options: Options) -> Report:
    """Run a soak. No process or file of it is left behind."""
    async with contextlib.AsyncExitStack() as stack:
        journal = Path(stack.enter_context(tempfile.TemporaryDirectory()), "journal")
        ledger = Ledger()
        upstream = Upstream(free_port(), journal, ledger)
        await upstream.start()
        stack.push_async_callback(upstream.kill)
        gateway = await Process.start(
            "tests.soak.census",
            *("serve", "--upstream", f"http://127.0.0.1:{upstream.port}", "--port", "0", "--log-format", "json"),
            *("--shutdown-grace", f"{GRACE:g}", "--upstream-keepalive", f"{options.keepalive:g}"),
            *("--stall-timeout", f"{options.stall:g}"),
        )
        stack.push_async_callback(gateway.kill)
        line = await gateway.line(lambda line: "listening on" in line)
        load = Load(int(json.loads(line)["message"].rpartition(":")[2]), ledger, options.seed, options.stall)
        report = Report(ledger, options.seconds)
        await watch(options, report, upstream, gateway, load)
        await upstream.stop()
        judge_requests(report, journal)
        return report


async def watch(options: Options, report: Report, upstream: Upstream, gateway: Process, load: Load) -> None:
    await load.look_up()
    await asyncio.sleep(options.keepalive + 1)
    most = gateway.descriptors
    # Objects that the first request of a kind creates, and that are kept, are no leak. They exist after a warm-up.
    await load.run(options.clients, now() + WARM_UP)
    await rest(gateway, most)
    objects = await census(gateway)

    begin, cpu = now(), gateway.cpu
    async with asyncio.TaskGroup() as group:
        group.create_task(restart(upstream, load, options, begin))
        sampling = group.create_task(sample(gateway, report, begin))
        await load.run(options.clients, begin + options.seconds)
        sampling.cancel()
    report.cpu = gateway.cpu - cpu

    left = await rest(gateway, most)
    report.verdict("file descriptors as before", left <= most, f"{most} -> {left}")
    grown = await growth(gateway, objects)
    figures = ", ".join(f"{name} +{count}" for name, count in grown.most_common(5)) or f"{sum(objects.values())}"
    report.verdict("tasks, connections and other objects as before", not grown, figures)
    judge_memory(report, options)
    await judge_end(report, gateway)


async def restart(upstream: Upstream, load: Load, options: Options, begin: float) -> None:
    """Restart upstream at intervals, killing it every second time, until two seconds before the end of the load.

    After the last restart, one request of each kind of stall is sent, which no restart cuts.
    """
    for number in range(1, 10_000):
        at = begin + number * options.restart_every
        if at > begin + options.seconds - 2:
            break
        await asyncio.sleep(max(0, at - now()))
        await upstream.restart("killed" if number % 2 else "restarted")
    await load.stall()


async def sample(gateway: Process, report: Report, begin: float) -> None:
    while True:
        report.samples.append(Sample(now() - begin, gateway.resident, gateway.descriptors))
        await asyncio.sleep(max(0.5, report.seconds / 60))


def judge_memory(report: Report, options: Options) -> None:
    first = min(60.0, options.seconds / 2)
    reference = next((each for each in report.samples if each.at >= first), report.samples[-1])
    growth = report.samples[-1].resident - reference.resident
    figures = f"{reference.resident / MIB:.1f} MiB at {reference.at:.0f} s, {growth / MIB:+.1f} MiB at the end"
    report.verdict(f"memory within {options.growth / MIB:.0f} MiB", abs(growth) <= options.growth, figures)


async def judge_end(report: Report, gateway: Process) -> None:
    """Send SIGTERM to the idle gateway. It must end within the grace, with no error in its log.

    Its counts of requests must agree with those of the clients.
    """
    begin = now()
    gateway.send(signal.SIGTERM)
    status = await gateway.wait(GRACE + 5)
    taken = now() - begin
    ended = status == 0 and taken < GRACE
    report.verdict("exit status 0 at SIGTERM, within the grace", ended, f"{status}, {taken:.1f} s")
    errors = [line for line in gateway.lines if not line.startswith("{")]
    for line in gateway.lines:
        with contextlib.suppress(ValueError):
            if json.loads(line)["level"] in ("error", "critical") or "aborting" in line:
                errors.append(line)
    figures = "\n".join(errors[:20]) or f"{len(gateway.lines)} lines"
    report.verdict("no error and no traceback in the log", not errors, figures)
    report.stopped = stopped = next(records(gateway.lines, "stopped"), {})
    if not stopped:
        report.verdict("counters at the end", False, "no line says so")
        return
    intercepted = stopped["intercepted"]
    relayed = stopped["requests"] - intercepted
    ledger = report.ledger
    updates = ledger.finished["key/update"], ledger.sent["key/update"]
    others = ledger.finished.total() - updates[0], ledger.sent.total() - updates[1]
    agree = others[0] <= relayed <= others[1] and updates[0] <= intercepted <= updates[1] and not stopped["refused"]
    figures = (
        f"relayed {others[0]} <= {relayed} <= {others[1]}, intercepted {updates[0]} <= {intercepted} <= {updates[1]}"
    )
    report.verdict("its counts are those of the clients", agree, figures)


def judge_requests(report: Report, journal: Path) -> None:
    ledger = report.ledger
    report.verdict("every finished answer whole and right", not ledger.wrong, "\n".join(ledger.wrong[:20]) or "all")
    runs = read_journal(journal)
    twice = repeated(runs)
    posts = sum(method == "POST" for method, _ in runs)
    report.verdict("no POST run twice", not twice, f"{posts} run once" if not twice else twice[:20])
    odd = []
    for failure in ledger.failures:
        reason = account(failure, runs, ledger.restarts)
        report.accounts[failure.outcome, reason or "not accounted for"] += 1
        if reason is None:
            odd.append(f"{failure} run by {runs.get((failure.method, failure.id))}")
    report.verdict("every failure accounted for", not odd, "\n".join(odd[:20]) or f"{len(ledger.failures)}")

"""Lookups of a name: which callers share one, which addresses are used while lookups fail, and for how long."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop

from sanitizer import resolver
from sanitizer.resolver import MAX_STALE, AddrInfo, LookupFailed, Resolver, resolver_of

GOOD: list[AddrInfo] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 4000))]
NEW: list[AddrInfo] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.3", 4000))]
AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
NONAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
AT_ONCE = 5.0
"""Time limit in seconds for something that should not wait at all."""
PREFIX = "the name in --upstream can't be resolved: "

pytestmark = pytest.mark.anyio


class System:
    """A fake ``getaddrinfo``: it waits for `answer`, then returns or raises ``outcome``. ``asked`` counts its calls."""

    def __init__(self) -> None:
        self.outcome: list[AddrInfo] | Exception = GOOD
        self.answer = threading.Event()
        self.answer.set()
        self.asked = 0
        self.now = 1000.0

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[AddrInfo]:
        assert (host, port) == ("litellm.test", 4000)
        self.asked += 1
        assert self.answer.wait(10)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    system = System()
    monkeypatch.setattr(socket, "getaddrinfo", system.getaddrinfo)
    monkeypatch.setattr(resolver, "monotonic", lambda: system.now)
    yield system
    system.answer.set()


@pytest.fixture
def names(system: System) -> Resolver:
    return Resolver("litellm.test", 4000)


async def behind(names: Resolver) -> None:
    """Wait until the lookup in the background has ended."""
    if (lookup := names._lookup) is not None:
        await asyncio.wrap_future(lookup)


async def test_each_connection_looks_the_name_up(system: System, names: Resolver) -> None:
    """A result is not cached: the next connection looks the name up again."""
    assert await names.addresses() == GOOD
    system.outcome = NEW
    assert await names.addresses() == NEW
    assert system.asked == 2


async def test_one_for_all(system: System, names: Resolver) -> None:
    """All waiting callers share one lookup. Cancelling one of them does not affect the others."""
    system.answer.clear()
    tasks = [asyncio.create_task(names.addresses()) for _ in range(50)]
    await asyncio.sleep(0)  # all of them wait
    tasks[0].cancel()
    await asyncio.sleep(0)
    system.answer.set()
    assert await asyncio.gather(*tasks[1:]) == [GOOD] * 49
    assert tasks[0].cancelled()
    assert system.asked == 1


@pytest.mark.parametrize("outcome", [GOOD, AGAIN], ids=["addresses", "failure"])
async def test_two_event_loops(system: System, names: Resolver, outcome: list[AddrInfo] | Exception) -> None:
    """Callers in the event loops of two threads share one lookup, as the probe and the relay do."""
    system.answer.clear()
    system.outcome = outcome
    found: list[Any] = []
    begun = threading.Event()

    async def ask() -> None:
        task = asyncio.create_task(names.addresses())
        await asyncio.sleep(0)
        begun.set()
        found.extend(await asyncio.gather(task, return_exceptions=True))

    thread = threading.Thread(target=lambda: uvloop.run(ask()))
    thread.start()
    begun.wait(10)
    task = asyncio.create_task(names.addresses())
    await asyncio.sleep(0)
    system.answer.set()
    found += await asyncio.gather(task, return_exceptions=True)
    thread.join()
    assert system.asked == 1
    if outcome is GOOD:
        assert found == [GOOD, GOOD]
    else:
        assert [str(each) for each in found] == [PREFIX + "Temporary failure in name resolution"] * 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AGAIN, "Temporary failure in name resolution"),
        (NONAME, "Name or service not known"),
        (UnicodeError("label too long"), "label too long"),
        (OSError(24, "Too many open files"), "Too many open files"),
    ],
)
async def test_failures_have_words(system: System, names: Resolver, error: Exception, reason: str) -> None:
    """A failure has the system's message, and the next connection looks the name up again."""
    system.outcome = error
    for _ in range(2):
        with pytest.raises(LookupFailed) as failure:
            await names.addresses()
        assert str(failure.value) == PREFIX + reason
    system.outcome = GOOD
    assert await names.addresses() == GOOD


async def test_too_long(system: System, names: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup that does not end fails after the time limit. A later caller waits for the same lookup."""
    monkeypatch.setattr(resolver, "TIMEOUT", 0.01)
    system.answer.clear()
    for _ in range(2):
        with pytest.raises(LookupFailed, match="no answer within"):
            await names.addresses()
    system.answer.set()
    await behind(names)
    assert system.asked == 1


async def test_the_last_addresses(system: System, names: Resolver) -> None:
    """While lookups fail, the last addresses are used, for a limited time that begins with the first failure."""
    await names.addresses()
    system.now += 10 * MAX_STALE
    system.outcome = AGAIN
    for elapsed in (0, MAX_STALE / 2, MAX_STALE / 2 - 1):
        system.now += elapsed
        assert await names.addresses() == GOOD
        await behind(names)
    assert system.asked == 4
    system.now += 1
    with pytest.raises(LookupFailed):
        await names.addresses()
    system.outcome = NEW
    assert await names.addresses() == NEW
    system.outcome = AGAIN
    assert await names.addresses() == NEW


async def test_nobody_waits_while_look_ups_fail(system: System, names: Resolver) -> None:
    """While lookups fail, the last addresses are used at once. A lookup in the background detects the recovery."""
    await names.addresses()
    system.outcome = AGAIN
    await names.addresses()
    system.answer.clear()
    system.outcome = NEW
    async with asyncio.timeout(AT_ONCE):
        for _ in range(3):
            assert await names.addresses() == GOOD
    system.answer.set()
    await behind(names)
    assert system.asked == 3
    assert await names.addresses() == NEW


async def test_the_last_addresses_when_it_takes_too_long(
    system: System, names: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup that does not end counts as a failure. Only the first caller waits for it."""
    await names.addresses()
    monkeypatch.setattr(resolver, "TIMEOUT", 0.01)
    system.answer.clear()
    assert await names.addresses() == GOOD
    monkeypatch.setattr(resolver, "TIMEOUT", 1000.0)
    async with asyncio.timeout(AT_ONCE):
        assert await names.addresses() == GOOD
    system.answer.set()
    await behind(names)
    assert system.asked == 2


async def test_a_name_that_is_gone(system: System, names: Resolver) -> None:
    """If the system reports that the name does not exist, the last addresses are no longer used."""
    await names.addresses()
    system.outcome = NONAME
    with pytest.raises(LookupFailed):
        await names.addresses()
    system.outcome = AGAIN
    with pytest.raises(LookupFailed):
        await names.addresses()


async def test_a_failure_that_nobody_waits_for(
    system: System, names: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure of a lookup whose callers have all been cancelled is not logged."""
    system.answer.clear()
    system.outcome = AGAIN
    task = asyncio.create_task(names.addresses())
    await asyncio.sleep(0)
    task.cancel()
    system.answer.set()
    await behind(names)
    await asyncio.gather(task, return_exceptions=True)
    gc.collect()
    assert caplog.records == []


def test_one_resolver(system: System) -> None:
    """All connections of a process to one host and port share a resolver."""
    assert resolver_of("litellm.test", 4000) is resolver_of("litellm.test", 4000)
    assert resolver_of("litellm.test", 4001) is not resolver_of("litellm.test", 4000)

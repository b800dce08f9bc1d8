"""Writes of one turn of the event loop are made in order, and one that fails keeps no other from being made."""

import asyncio
from typing import Any

import pytest

from sanitizer.relay.writer import Outbox


@pytest.mark.anyio
async def test_order() -> None:
    """Writes are made when the turn is over, in order; what a write adds is made in the next turn."""
    outbox, made = Outbox(asyncio.get_running_loop(), lambda: False), list[str]()
    outbox.add(made.append, "first")
    outbox.add(lambda text: outbox.add(made.append, text), "third")
    outbox.add(made.append, "second")
    assert made == []
    await asyncio.sleep(0)
    assert made == ["first", "second"]
    await asyncio.sleep(0)
    assert made == ["first", "second", "third"]


@pytest.mark.anyio
async def test_order_when_it_is_alone_at_last() -> None:
    """A write that need not wait is made after those that have waited."""
    alone = False
    outbox, made = Outbox(asyncio.get_running_loop(), lambda: alone), list[str]()
    outbox.add(made.append, "first")
    alone = True
    outbox.add(made.append, "second")
    assert made == ["first", "second"]
    await asyncio.sleep(0)
    assert made == ["first", "second"]


@pytest.mark.anyio
async def test_failure() -> None:
    """A write that fails is reported; those after it, by others, are made all the same."""
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    outbox, made = Outbox(loop, lambda: False), list[str]()

    def fail(text: str) -> None:
        raise RuntimeError(text)

    outbox.add(made.append, "before")
    outbox.add(fail, "closed")
    outbox.add(made.append, "after")
    outbox.add(fail, "closed too")
    outbox.add(made.append, "last")
    for _ in range(3):
        await asyncio.sleep(0)
    assert made == ["before", "after", "last"]
    assert [str(context["exception"]) for context in reported] == ["closed", "closed too"]

"""The outbox: the writes of an event loop iteration are made in order, and a failed write does not stop the others."""

import asyncio
from typing import Any

import pytest

from sanitizer.relay.writer import Outbox


@pytest.mark.anyio
async def test_order() -> None:
    """Writes are made in order at the end of the iteration. A write that another write adds is made in the next one."""
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
    """A write that is made at once is made after the writes that were batched before it."""
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
    """A failed write is reported to the event loop, and the writes after it are made."""
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

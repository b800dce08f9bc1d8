"""A sanitizer with scripted bodies for resends, and the cases of resends that test both adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import pytest

from sanitizer.sanitize.core import Interception, Record, Sanitizer
from sanitizer.sanitize.endpoints import Endpoint, Endpoints
from sanitizer.sanitize.gates import FIELDS
from sanitizer.sanitize.stored import Caller, SendLookup

LIMIT: Final = 64 * 1024
"""Bytes of a response's content that an adapter holds back."""

BODY: Final = b'{"key": "sk-second", "models": ["as it came"]}'
"""A request body in which the real sanitizer finds nothing to look up and nothing to cut."""

REFUSAL: Final = b'{"error": {"message": "refused", "code": "403"}}'


class Core(Sanitizer):
    """A `Sanitizer` that holds back responses with a status in ``holds``, and has each of ``bodies`` sent in turn.

    `next_body` sets `next_body_called`, waits for ``gate`` if there is one, and calls `before_return`. Then it returns
    the next of ``bodies``, or raises it if it is an exception; after the last one it returns None. ``confidential``:
    whether responses to resends are confidential. ``edited``: what `edit` returns or raises, in place of the real
    sanitizer's edit. `ended` is set when a request is over.
    """

    def __init__(
        self,
        *bodies: bytes | Exception | None,
        holds: Collection[int] = (403,),
        edited: bytes | Exception | None = None,
        gate: asyncio.Event | None = None,
        max_body: int = 1024 * 1024,
        confidential: bool = False,
    ) -> None:
        self.confidential = confidential
        self.records: list[Record] = []
        super().__init__(max_body=max_body, on_decision=self.records.append)
        self.bodies = list(bodies)
        self.statuses = holds
        self.edited = edited
        self.gate = gate
        self.next_body_called = asyncio.Event()
        self.ended = asyncio.Event()
        self.before_return: Callable[[], object] = bool
        self.cancelled = False
        self.held_responses: list[tuple[int, bytes]] = []
        """Status and content of each response that `next_body` was called with."""
        self.resent = 0  # how many of the bodies were sent
        self.held_heads: list[bytes] = []
        """The heads of these responses."""

    def intercept(
        self, path: str, head: bytes, outbound: bytes, send_lookup: SendLookup, client_address: str | None
    ) -> Interception | None:
        endpoint = Endpoints(FIELDS, ("",)).find(path)
        if endpoint is None:
            return None
        return _Scripted(self, endpoint, head, Caller(outbound, send_lookup, client_address))


class _Scripted(Interception):
    def __init__(self, core: Core, endpoint: Endpoint, head: bytes, caller: Caller) -> None:
        super().__init__(core, endpoint, head, caller)
        self._core = core

    async def edit(self) -> bytes | None:
        if isinstance(self._core.edited, Exception):
            raise self._core.edited
        body = await super().edit()
        return body if self._core.edited is None else self._core.edited

    def should_hold(self, status: int) -> bool:
        return status in self._core.statuses

    async def next_body(self, status: int, head: bytes, content: bytes) -> bytes | None:
        core = self._core
        core.held_responses.append((status, content))
        core.held_heads.append(head)
        core.next_body_called.set()
        if core.gate is not None:
            try:
                await core.gate.wait()
            except asyncio.CancelledError:
                core.cancelled = True
                raise
        core.before_return()
        body = core.bodies.pop(0) if core.bodies else None
        if isinstance(body, Exception):
            raise body
        self.confidential = core.confidential and (self.confidential or body is not None)
        return body

    def report_resend(self) -> None:
        self._core.resent += 1

    def close(self, reason: str = "client_left", status: int | None = None) -> None:
        super().close(reason, status)
        self._core.ended.set()


@dataclass(frozen=True)
class Answer:
    """A response of upstream's, whose content is sent in ``pieces``. ``breaks``: it ends before it is complete."""

    status: int
    pieces: tuple[bytes, ...]
    breaks: bool = False

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)


@dataclass(frozen=True)
class Exchange:
    """Upstream's responses in turn, the bodies that the core wants sent in turn, and the expected outcome.

    ``sent``: the bodies of the requests that upstream receives. ``held``: how many responses are passed to the core's
    `next_body`. The client receives the last of ``answers``.
    """

    answers: tuple[Answer, ...]
    bodies: tuple[bytes | None, ...]
    sent: tuple[bytes, ...]
    held: int
    edited: bytes | None = None
    holds: tuple[int, ...] = (403,)


REFUSED = Answer(403, (REFUSAL,))
ACCEPTED = Answer(200, (b'{"ok": ', b"true}"))


def refused(number: int) -> Answer:
    return Answer(403, (REFUSAL, b" %d" % number))


EXCHANGES = [
    pytest.param(Exchange((ACCEPTED,), (b"{}",), (BODY,), 0), id="not held"),
    pytest.param(Exchange((REFUSED,), (None,), (BODY,), 1), id="held, and passed on"),
    pytest.param(Exchange((Answer(403, ()),), (None,), (BODY,), 1), id="held without content, and passed on"),
    pytest.param(Exchange((REFUSED, ACCEPTED), (b'{"a": 1}',), (BODY, b'{"a": 1}'), 1), id="sent again"),
    pytest.param(Exchange((REFUSED, ACCEPTED), (b"",), (BODY, b""), 1), id="sent again without content"),
    pytest.param(
        Exchange((REFUSED, ACCEPTED), (b"x" * 200_000,), (BODY, b"x" * 200_000), 1), id="sent again with more content"
    ),
    pytest.param(
        Exchange((REFUSED, ACCEPTED), (b"{}",), (b'{"edited": 1}', b"{}"), 1, edited=b'{"edited": 1}'),
        id="sent again after an edit",
    ),
    pytest.param(
        Exchange((REFUSED, Answer(500, (b"failed",))), (b"{}",), (BODY, b"{}"), 1), id="sent again, another failure"
    ),
    pytest.param(
        Exchange((refused(1), refused(2)), (b"1", None), (BODY, b"1"), 2), id="sent again, refused, and passed on"
    ),
    pytest.param(
        Exchange(
            (refused(1), refused(2), refused(3), refused(4), ACCEPTED),
            (b"1", b"22", b"333", b"4444"),
            (BODY, b"1", b"22", b"333", b"4444"),
            4,
        ),
        id="sent again four times",
    ),
    pytest.param(
        Exchange(
            (Answer(400, (b"a",)), Answer(500, (b"b",)), REFUSED),
            (b"1", b"2"),
            (BODY, b"1", b"2"),
            2,
            holds=(400, 500),
        ),
        id="other statuses are held",
    ),
    pytest.param(
        Exchange((Answer(403, (b"x" * LIMIT,)), ACCEPTED), (b"{}",), (BODY, b"{}"), 1),
        id="as much as is held, in one piece",
    ),
    pytest.param(
        Exchange((Answer(403, (b"x" * (LIMIT - 1), b"y")), ACCEPTED), (b"{}",), (BODY, b"{}"), 1),
        id="as much as is held, in two pieces",
    ),
    pytest.param(Exchange((Answer(403, (b"x" * LIMIT, b"y")),), (b"{}",), (BODY,), 0), id="one byte too long"),
    pytest.param(
        Exchange((Answer(403, (b"x" * (LIMIT + 1),)),), (b"{}",), (BODY,), 0), id="one byte too long, in one piece"
    ),
    pytest.param(
        Exchange((Answer(403, tuple(bytes([n]) * 10_000 for n in range(30))),), (b"{}",), (BODY,), 0),
        id="much too long",
    ),
    pytest.param(
        Exchange((REFUSED, Answer(403, (b"x" * LIMIT, b"y"))), (b"1", b"2"), (BODY, b"1"), 1),
        id="sent again, and then too long",
    ),
]
"""These cases have the same outcome with each adapter."""


CONFIDENTIAL = [
    pytest.param((REFUSED, ACCEPTED), (b"{}",), 1, id="2xx: the client's"),
    pytest.param((REFUSED, Answer(204, ())), (b"{}",), 1, id="2xx without content: the client's"),
    pytest.param((REFUSED, Answer(404, (b"none",))), (b"{}",), 0, id="another status"),
    pytest.param((REFUSED, Answer(300, ())), (b"{}",), 0, id="a redirect"),
    pytest.param((REFUSED, Answer(500, (b"x" * 200_000, b"y" * 200_000))), (b"{}",), 0, id="another status, long"),
    pytest.param((REFUSED, refused(2)), (b"{}", None), 0, id="held, and nothing more to send"),
    pytest.param((REFUSED, Answer(403, (b"x" * (LIMIT + 1),))), (b"{}",), 0, id="held until it is too long"),
    pytest.param((REFUSED, refused(2), ACCEPTED), (b"{}", b"[]"), 2, id="held, and 2xx after another send"),
    pytest.param((REFUSED, refused(2), Answer(400, ())), (b"{}", b"[]"), 0, id="held, and another status after that"),
    pytest.param((REFUSED, refused(2), refused(3)), (b"{}", b"[]", None), 0, id="held three times"),
]
"""Cases in which the responses to resends are confidential: upstream's responses, the bodies that are sent again,
and the index of the response that the client receives."""

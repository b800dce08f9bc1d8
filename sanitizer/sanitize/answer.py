"""An app's answer on its way to the client.

=========  ===========================================  ==========================================================
State      What has come                                What ends it
=========  ===========================================  ==========================================================
AWAITED    perhaps interim answers                      the start: HOLDING, or PASSING if it need not be held back
HOLDING    the start, and perhaps some of the content   the last content: WHOLE; too much, or a failure: PASSING
WHOLE      all, and none of it has passed               the interception has no other body to send: PASSING
PASSING    what has come has passed, the rest follows
REPLACED   it is dropped, whatever comes
=========  ===========================================  ==========================================================

While the app answers a further send, the answer before stays WHOLE. An answer to a further send that has not begun to
pass becomes REPLACED by one that is WHOLE, if it is not for the caller to see or if the request could not be sent.
"""

from enum import Enum
from typing import Final

from starlette.types import Message, Send

from sanitizer.sanitize.core import Interception
from sanitizer.sanitize.scopes import encode_header
from sanitizer.sanitize.submission import exceeds

NOT_SENT: Final = "sanitizer.not_sent"
"""In an ``http.response.start``: the app has sent nothing of the request to where it would have been answered."""


class _State(Enum):
    AWAITED = "awaited"
    HOLDING = "holding"
    WHOLE = "whole"
    PASSING = "passing"
    REPLACED = "replaced"


class Answer:
    """The app's answer, which is held back if the interception wants to see it first.

    ``previous`` is the answer that is held back while the app answers a further send, `first` the first of those.
    """

    def __init__(self, interception: Interception, send: Send, previous: "Answer | None") -> None:
        self._interception = interception
        self._send = send
        self._previous = previous
        self.first: Answer = previous.first if previous is not None else self
        self._state = _State.AWAITED
        self._start: Message = {}
        self._messages: list[Message] = []  # what follows the start
        self._size = 0
        self.status = 0
        self.head = b""

    @property
    def whole(self) -> bool:
        """Whether the answer is whole and held back."""
        return self._state is _State.WHOLE

    @property
    def replaced(self) -> bool:
        """Whether an answer that was held back is the client's in place of this one."""
        return self._state is _State.REPLACED

    @property
    def content(self) -> bytes:
        """The content of the answer, if it is held back."""
        return b"".join([message.get("body", b"") for message in self._messages])

    async def send(self, message: Message) -> None:
        """The ASGI ``send`` of the app."""
        if self._state is _State.PASSING:
            await self._send(message)
        elif self._state is _State.REPLACED:
            pass
        elif message["type"] == "http.response.start":
            await self._begin(message)
        elif self._state is _State.AWAITED:
            if self._previous is None:  # interim answers to further sends do not pass
                await self._send(message)
        else:
            self._messages.append(message)
            self._size += len(message.get("body", b""))
            if message["type"] != "http.response.body" or self._size > self._interception.held_limit:
                await self.pass_on()
            elif not message.get("more_body", False):
                self._state = _State.WHOLE

    async def pass_on(self) -> None:
        """Hold the answer back no longer. If it is not for the client to see, the first one is the client's instead."""
        if self._state in (_State.PASSING, _State.REPLACED):
            return
        if self.first is not self and self._interception.confidential and not 200 <= self.status < 300:
            await self._replace_by(self.first)
            return
        if self._state is _State.AWAITED:
            return
        self._state = _State.PASSING
        value = self._interception.answered(self.status, self.head)
        field = self._interception.field
        headers = [line for line in self._start.get("headers", ()) if line[0].lower() != field]
        if value is not None:
            headers.append((field, value))
        await self._send({**self._start, "headers": headers})
        for message in self._messages:
            await self._send(message)
        self._messages.clear()

    async def _begin(self, start: Message) -> None:
        headers, limit = start.get("headers", ()), self._interception.held_limit
        self._start = start
        self.status = start["status"]
        self.head = encode_header(headers) or b""
        if start.get(NOT_SENT) and self._previous is not None:
            await self._replace_by(self._previous)
            return
        self._state = _State.HOLDING
        too_long = any(name.lower() == b"content-length" and exceeds(value, limit) for name, value in headers)
        if too_long or not self._interception.holds(self.status):
            await self.pass_on()

    async def _replace_by(self, other: "Answer") -> None:
        """Let an answer that is held back be the client's, and drop this one."""
        self._state = _State.REPLACED
        await other.pass_on()

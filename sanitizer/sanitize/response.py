"""An app's response on its way to the client, which is held back if it may be a refusal.

=========  ==========================================  ============================================================
State      What the app has sent                       Next state
=========  ==========================================  ============================================================
AWAITED    nothing, or interim responses               at the start: HOLDING, or PASSING if it need not be held back
HOLDING    the start, and perhaps some content         at the end of the content: COMPLETE; if the response is too
                                                       long, or the app fails: PASSING
COMPLETE   all of the response                         if the request is not sent again: PASSING
PASSING    any part, which is relayed to the client
REPLACED   any part, which is dropped
=========  ==========================================  ============================================================

While the app handles a resend, the previous response stays COMPLETE. In two cases the response to the resend becomes
REPLACED, and the client gets a COMPLETE one instead. If it is confidential and not a 2xx, the client gets the first
response. If the request could not be sent again, the client gets the previous one.
"""

from enum import Enum
from typing import Final

from starlette.types import Message, Send

from sanitizer.sanitize.core import Interception
from sanitizer.sanitize.scopes import encode_header
from sanitizer.sanitize.submission import exceeds

NOT_SENT: Final = "sanitizer.not_sent"
"""A key of a resend's scope. Its value is a function without arguments. An app that forwards requests calls it, before
it responds or returns, if it has sent nothing of this one."""


class _State(Enum):
    AWAITED = "awaited"
    HOLDING = "holding"
    COMPLETE = "complete"
    PASSING = "passing"
    REPLACED = "replaced"


class AppResponse:
    """A response of the app. It is held back if the interception has to inspect it before the client gets it.

    ``previous`` is the response that was held back before this resend, or None if this responds to the first send.
    """

    def __init__(self, interception: Interception, send: Send, previous: "AppResponse | None") -> None:
        self._interception = interception
        self._send = send
        self._previous = previous
        self._first: AppResponse = previous._first if previous is not None else self
        self._state = _State.AWAITED
        self._start: Message = {}
        self._messages: list[Message] = []  # those held back after the start
        self._size = 0  # bytes of content in `_messages`
        self._not_sent = False
        self._resend_reported = previous is None
        self.status = 0
        self.head = b""

    @property
    def complete(self) -> bool:
        """Whether the response is complete and held back."""
        return self._state is _State.COMPLETE

    @property
    def replaced(self) -> bool:
        """Whether the client gets an earlier response in place of this one."""
        return self._state is _State.REPLACED

    @property
    def content(self) -> bytes:
        """The content that is held back."""
        return b"".join([message.get("body", b"") for message in self._messages])

    def report_not_sent(self) -> None:
        """Report that the app has sent nothing of the request, see `NOT_SENT`."""
        self._not_sent = True

    async def send(self, message: Message) -> None:
        """The ASGI ``send`` for the app."""
        if self._state is _State.PASSING:
            await self._send(message)
        elif self._state is _State.REPLACED:
            pass
        elif message["type"] == "http.response.start":
            await self._begin(message)
        elif self._state is _State.AWAITED:
            if self._previous is None:  # the client does not get interim responses to resends
                await self._send(message)
        else:
            self._messages.append(message)
            self._size += len(message.get("body", b""))
            if message["type"] != "http.response.body" or self._size > self._interception.held_limit:
                await self.pass_on()
            elif not message.get("more_body", False):
                self._state = _State.COMPLETE

    async def pass_on(self) -> None:
        """Stop holding the response back. The client gets the first response instead if this one is confidential."""
        self._report_resend()
        if self._state in (_State.PASSING, _State.REPLACED):
            return
        if self._first is not self and self._interception.confidential and not 200 <= self.status < 300:
            await self._replace_by(self._first)
            return
        if self._state is _State.AWAITED:
            return
        self._state = _State.PASSING
        value = self._interception.report_response(self.status, self.head)
        field = self._interception.response_field
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
        if self._previous is not None and self._not_sent:
            await self._replace_by(self._previous)
            return
        self._report_resend()
        self._state = _State.HOLDING
        too_long = any(name.lower() == b"content-length" and exceeds(value, limit) for name, value in headers)
        if too_long or not self._interception.should_hold(self.status):
            await self.pass_on()

    def _report_resend(self) -> None:
        if not self._resend_reported and not self._not_sent:
            self._resend_reported = True
            self._interception.report_resend()

    async def _replace_by(self, other: "AppResponse") -> None:
        """Send ``other``, which was held back, to the client, and drop this response."""
        self._state = _State.REPLACED
        await other.pass_on()

"""The sanitizer as ASGI middleware. Around LiteLLM's own app it repairs updates in that process, with no hop added::

    from litellm.proxy.proxy_server import app as litellm
    from sanitizer.sanitize.middleware import SanitizerMiddleware
    app = SanitizerMiddleware(litellm)

Whatever is not intercepted reaches the app as if nothing were there. What can go wrong with the rest is listed in
`sanitizer.sanitize.core`.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanitizer.errors import GatewayError
from sanitizer.sanitize.core import Interception, Sanitizer
from sanitizer.sanitize.scopes import copy_scope, encode_header
from sanitizer.sanitize.stored import Caller

HELD_LIMIT: Final = 64 * 1024
"""Bytes of an answer's content that are held back; a longer answer passes on."""
_READS: Final = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods of requests that write nothing (RFC 9110 section 9.2.1)."""
NOT_SENT: Final = "sanitizer.not_sent"
"""In an ``http.response.start``: the app has sent nothing of the request to where it would have been answered."""


class ClientLeft(Exception):
    """The client disconnected before its request could be forwarded."""


class SanitizerMiddleware:
    """Cuts guarded fields out of requests to ``app`` if they are sent unchanged; everything else passes by.

    ``sanitizer``: how; by default one that cuts all fields, under the path prefixes in the variable SERVER_ROOT_PATH,
    which LiteLLM reads too. ``caller`` gives the `Caller` that looks keys up for a request; by default ``app`` itself
    is asked, in this process. A request for which it raises `GatewayError` is not intercepted. ``stall_timeout``: when
    content that is due has not come for this many seconds, the app gets the request as it comes. None: no limit.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        sanitizer: Sanitizer | None = None,
        caller: Callable[[Scope], Caller] | None = None,
        stall_timeout: float | None = 60.0,
    ) -> None:
        self.app = app
        self._stall_timeout = stall_timeout
        self.sanitizer = sanitizer or Sanitizer(prefixes=("", *_root_paths()))
        if caller is None:
            from sanitizer.sanitize.in_process import InProcess  # the gateway does without httpx

            caller = InProcess(app)
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        interception = self._intercept(scope)
        if interception is None:
            writing = self._writing(scope)
            if writing is None:
                await self.app(scope, receive, send)
                return
            with writing:
                await self.app(scope, receive, send)
            return
        try:
            await self._handle(interception, scope, _Upload(interception, receive, self._stall_timeout), send)
        except ClientLeft:
            pass  # `close` reports it
        finally:
            interception.close()

    def _intercept(self, scope: Scope) -> Interception | None:
        if scope["type"] != "http" or scope["method"] != "POST" or not self.sanitizer.intercepts(scope["path"]):
            return None
        head = encode_header(scope["headers"])
        if head is None:
            return None
        try:
            caller = self._caller(scope)
        except GatewayError:
            return None
        return self.sanitizer.intercept(scope["path"], head, caller.head, caller.ask)

    def _writing(self, scope: Scope) -> AbstractContextManager[None] | None:
        writing = self.sanitizer.writing
        if writing is None or scope["type"] != "http" or scope["method"] in _READS:
            return None
        return writing(scope["path"])

    async def _handle(self, interception: Interception, scope: Scope, upload: "_Upload", send: Send) -> None:
        scope = copy_scope(scope)  # uvicorn appends the request's trailers to the list of fields in its scope
        body = None
        if interception.inspects and await upload.read():
            body = await upload.ask(interception.edit())
        previous: _Answer | None = None
        while True:
            answer = _Answer(interception, send, previous)
            returned = False
            with _Reported(answer):
                try:
                    await self.app(_with_body(scope, body), upload.replay(body), answer.send)
                    returned = True
                finally:
                    if not returned or not answer.held:  # what there is of an answer is the client's all the same
                        await answer.pass_on()
            if not answer.held:
                return
            body = await upload.ask(interception.next_body(answer.status, answer.head, answer.content))
            if body is None:
                await answer.pass_on()
                return
            previous = answer


class _Upload:
    """The request's content, read into an interception, and the ``receive`` that hands it to the app."""

    def __init__(self, interception: Interception, receive: Receive, stall_timeout: float | None) -> None:
        self._stall_timeout = stall_timeout
        self._interception = interception
        self._receive = receive
        self._read: bool | None = None  # whether the whole content has been read

    async def read(self) -> bool:
        """Collect the content; False if it can't be inspected and more of it may be to come. Raises `ClientLeft`."""
        self._read = False
        more = True
        while more:
            try:
                async with asyncio.timeout(self._stall_timeout):
                    message = await self._receive()
            except TimeoutError:
                self._interception.stop_collecting()
                return False
            if message["type"] == "http.disconnect":
                raise ClientLeft
            more = message.get("more_body", False)
            if not self._interception.collect(message.get("body", b"")):
                self._read = not more
                return False
        self._read = True
        return True

    def replay(self, body: bytes | None) -> Receive:
        """A ``receive`` that begins with ``body``, or else with what was read, and goes on with what is to come."""
        if self._read is None:  # nothing was
            return self._receive
        content = self._interception.body if body is None else body
        replayed: Message | None = {"type": "http.request", "body": content, "more_body": not self._read}

        async def receive() -> Message:
            nonlocal replayed
            message, replayed = replayed, None
            if message is None:
                return await self._receive()
            if message["more_body"]:
                self._interception.release()  # from here on it streams
            return message

        return receive

    async def ask(self, question: Coroutine[Any, Any, bytes | None]) -> bytes | None:
        """The body that ``question`` returns, asked after `read`. Raises `ClientLeft`, with the question cancelled.

        A question that fails, which only a defect can cause, is reported by the event loop, and returns no body.
        """
        work = asyncio.create_task(question)
        gone = asyncio.create_task(self._client_left())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                gone.result()
                raise ClientLeft
            if (error := work.exception()) is not None:
                self._interception.give_up()
                message = "an interception has failed; the request goes on as it came"
                asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
                return None
            return work.result()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _client_left(self) -> None:
        message = await self._receive()
        if message["type"] != "http.disconnect":  # a server that says something else after the body's end
            await asyncio.Event().wait()


class _Answer:
    """The app's answer on its way to the client, which is held back if the interception wants to see it first.

    ``previous`` is the answer that is held back while the app answers a further send, `first` the first of those.
    """

    def __init__(self, interception: Interception, send: Send, previous: "_Answer | None") -> None:
        self._interception = interception
        self._send = send
        self._previous = previous
        self.first: _Answer = previous.first if previous is not None else self
        self._start: Message | None = None  # as long as the answer is held back
        self._passes = False
        self._messages: list[Message] = []  # what follows the start
        self._size = 0
        self._whole = False
        self.status = 0
        self.head = b""

    @property
    def held(self) -> bool:
        """Whether the answer is whole and held back."""
        return self._start is not None and self._whole

    @property
    def content(self) -> bytes:
        """The content of the answer, if it is held back."""
        return b"".join([message.get("body", b"") for message in self._messages])

    @property
    def gave_way(self) -> bool:
        """Whether an answer that was held back is the client's in place of this one."""
        return self._send is _send_nothing

    async def send(self, message: Message) -> None:
        """The ASGI ``send`` of the app."""
        if self._passes:
            await self._send(message)
        elif message["type"] == "http.response.start":
            self.status = message["status"]
            self.head = encode_header(message.get("headers", ())) or b""
            self._start = message
            if message.get(NOT_SENT) and self._previous is not None:
                await self._give_way(self._previous)
            elif _length(message) > HELD_LIMIT or not self._interception.holds(self.status):
                await self.pass_on()
        elif self._start is None:
            if self._previous is None:  # interim answers to further sends do not pass
                await self._send(message)
        else:
            self._messages.append(message)
            self._size += len(message.get("body", b""))
            self._whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            if self._size > HELD_LIMIT or message["type"] != "http.response.body":
                await self.pass_on()

    async def pass_on(self) -> None:
        """Hold the answer back no longer. If it is not for the client to see, the first one is the client's instead."""
        confidential = self._interception.confidential and not 200 <= self.status < 300
        if confidential and self.first is not self and not self._passes:
            await self._give_way(self.first)
            return
        start, self._start = self._start, None
        if start is None:
            return
        self._passes = True
        value = self._interception.answered(self.status, self.head)
        field = self._interception.field
        headers = [line for line in start.get("headers", ()) if line[0].lower() != field]
        if value is not None:
            headers.append((field, value))
        await self._send({**start, "headers": headers})
        for message in self._messages:
            await self._send(message)
        self._messages.clear()

    async def _give_way(self, other: "_Answer") -> None:
        """Let an answer that is held back be the client's, and drop this one."""
        self._start = None
        self._passes = True
        self._send = _send_nothing
        await other.pass_on()


class _Reported:
    """Lets the event loop report an app's failure, and no server see it, if the answer has given way to another.

    A server closes the connection when an app fails, and the client would learn from that what the answer was.
    """

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or not self._answer.gave_way:
            return False
        message = "the app has failed in a further send, whose answer is not the client's"
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
        return True


def _length(start: Message) -> int:
    """What the Content-Length of an answer says, 0 if nothing."""
    values = [value for name, value in start.get("headers", ()) if name.lower() == b"content-length"]
    return int(values[0]) if values and values[0].isdigit() and len(values[0]) <= 18 else 0


async def _send_nothing(message: Message) -> None:
    """Drop what the app still sends."""


def _root_paths() -> list[str]:
    path = os.environ.get("SERVER_ROOT_PATH", "").strip("/")
    return [f"/{path}"] if path else []


def _with_body(scope: Scope, body: bytes | None) -> Scope:
    """A copy of ``scope`` with the length of ``body``, unless that is None. A chunked body has none and gets none."""
    copied = copy_scope(scope)
    if body is not None:
        length = b"%d" % len(body)
        copied["headers"] = [
            (name, length if name.lower() == b"content-length" else value) for name, value in scope["headers"]
        ]
    return copied

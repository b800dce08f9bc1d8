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
from sanitizer.sanitize.answer import Answer
from sanitizer.sanitize.core import Interception, Sanitizer
from sanitizer.sanitize.scopes import copy_scope, encode_header
from sanitizer.sanitize.stored import Caller

_READS: Final = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods of requests that write nothing (RFC 9110 section 9.2.1)."""


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
        client = scope.get("client")
        return self.sanitizer.intercept(scope["path"], head, caller.head, caller.ask, client[0] if client else None)

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
        previous: Answer | None = None
        while True:
            answer = Answer(interception, send, previous)
            returned = False
            with _Reported(answer):
                try:
                    await self.app(_with_body(scope, body), upload.replay(body), answer.send)
                    returned = True
                finally:
                    if not returned or not answer.whole:  # what there is of an answer is the client's all the same
                        await answer.pass_on()
            if not answer.whole:
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
            if not self._interception.collect(bytes(message.get("body", b""))):
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


class _Reported:
    """Lets the event loop report an app's failure, and hides it from the server, if the answer has been replaced.

    A server closes the connection when an app fails, and the client would learn from that what the answer was.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        hidden = isinstance(error, Exception) and self._answer.replaced
        if hidden:
            message = "the app has failed in a further send, whose answer is not the client's"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
        return hidden


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

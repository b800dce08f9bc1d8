"""The sanitizer as ASGI middleware. It can wrap LiteLLM's own app, and then repairs updates without another hop::

    from litellm.proxy.proxy_server import app as litellm
    from sanitizer.sanitize.middleware import SanitizerMiddleware
    app = SanitizerMiddleware(litellm)

A request that is not intercepted reaches the app unchanged. `sanitizer.sanitize.core` lists the cases in which an
intercepted request is not edited.
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
from sanitizer.sanitize.response import NOT_SENT, AppResponse
from sanitizer.sanitize.scopes import copy_scope, encode_header
from sanitizer.sanitize.stored import Caller

_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
"""Safe methods (RFC 9110 section 9.2.1), whose requests write nothing."""


class ClientLeft(Exception):
    """The client disconnected before its request could be forwarded."""


class SanitizerMiddleware:
    """Cuts unchanged guarded fields from requests to ``app``, and passes everything else through.

    ``sanitizer`` decides what to cut. The default one cuts all guarded fields. It intercepts paths without a prefix and
    under the prefix in the environment variable SERVER_ROOT_PATH, which LiteLLM reads too.

    ``caller`` returns the `Caller` for a scope, with which keys are looked up. By default, lookups are sent to ``app``
    in this process. A request for which ``caller`` raises `GatewayError` is not intercepted.

    ``stall_timeout`` is in seconds. If the content is incomplete and no more of it is received for so long, the app
    gets the request unedited. None means that there is no limit.
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
            from sanitizer.sanitize.in_process import InProcess  # imported here, for the gateway does not load httpx

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
            pass  # `close` reports the request
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
        return self.sanitizer.intercept(
            scope["path"], head, caller.head, caller.send_lookup, client[0] if client else None
        )

    def _writing(self, scope: Scope) -> AbstractContextManager[None] | None:
        writing = self.sanitizer.write_context
        if writing is None or scope["type"] != "http" or scope["method"] in _SAFE:
            return None
        return writing(scope["path"])

    async def _handle(self, interception: Interception, scope: Scope, upload: "_Upload", send: Send) -> None:
        scope = copy_scope(scope)  # uvicorn appends the request's trailers to the list of fields in its scope
        body = None
        if interception.inspects and await upload.read():
            body = await upload.unless_client_leaves(interception.edit())
        previous: AppResponse | None = None
        while True:
            response = AppResponse(interception, send, previous)
            sent = _with_body(scope, body)
            if previous is not None:
                sent[NOT_SENT] = response.report_not_sent
            returned = False
            with _FailureHidden(response):
                try:
                    await self.app(sent, upload.replay(body), response.send)
                    returned = True
                finally:
                    if not returned or not response.complete:  # the client gets an incomplete response as well
                        await response.pass_on()
            if not response.complete:
                return
            next_body = interception.next_body(response.status, response.head, response.content)
            body = await upload.unless_client_leaves(next_body)
            if body is None:
                await response.pass_on()
                return
            previous = response


class _Upload:
    """The content of a request: collects it in an interception, and replays it to the app."""

    def __init__(self, interception: Interception, receive: Receive, stall_timeout: float | None) -> None:
        self._stall_timeout = stall_timeout
        self._interception = interception
        self._receive = receive
        self._complete: bool | None = None  # whether all content was read; None if `read` was not called

    async def read(self) -> bool:
        """Collect the content. Returns False if it cannot be inspected. Raises `ClientLeft`."""
        self._complete = False
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
                self._complete = not more
                return False
        self._complete = True
        return True

    def replay(self, body: bytes | None) -> Receive:
        """A ``receive`` for the app. It returns ``body``, or what was read if that is None, and then later messages."""
        if self._complete is None:
            return self._receive
        content = self._interception.body if body is None else body
        replayed: Message | None = {"type": "http.request", "body": content, "more_body": not self._complete}

        async def receive() -> Message:
            nonlocal replayed
            message, replayed = replayed, None
            if message is None:
                return await self._receive()
            if message["more_body"]:
                self._interception.release()  # the rest is streamed, so the request is never sent again
            return message

        return receive

    async def unless_client_leaves(self, decision: Coroutine[Any, Any, bytes | None]) -> bytes | None:
        """Run ``decision``, which returns a body, and return that body. To be called after `read`.

        If the client disconnects first, ``decision`` is cancelled and `ClientLeft` is raised. If ``decision`` raises,
        which only a defect can cause, the event loop's exception handler is called and None is returned.
        """
        work = asyncio.create_task(decision)
        disconnect = asyncio.create_task(self._wait_for_disconnect())
        try:
            await asyncio.wait((work, disconnect), return_when=asyncio.FIRST_COMPLETED)
            if disconnect.done():
                disconnect.result()
                raise ClientLeft
            if (error := work.exception()) is not None:
                self._interception.decision_failed()
                message = "an interception has failed; the request is not edited"
                asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
                return None
            return work.result()
        finally:
            work.cancel()
            disconnect.cancel()
            await asyncio.gather(work, disconnect, return_exceptions=True)

    async def _wait_for_disconnect(self) -> None:
        message = await self._receive()
        if message["type"] != "http.disconnect":  # some servers send another message after the end of the content
            await asyncio.Event().wait()


class _FailureHidden:
    """Hides an app's failure from the server if the response was replaced. The event loop's exception handler gets it.

    A server closes the connection when an app fails. That would tell the client something about the hidden response.
    """

    def __init__(self, response: AppResponse) -> None:
        self._response = response

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        hidden = isinstance(error, Exception) and self._response.replaced
        if hidden:
            message = "the app has failed during a resend, whose response the client does not get"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
        return hidden


def _root_paths() -> list[str]:
    path = os.environ.get("SERVER_ROOT_PATH", "").strip("/")
    return [f"/{path}"] if path else []


def _with_body(scope: Scope, body: bytes | None) -> Scope:
    """A copy of ``scope``, with the length of ``body`` as Content-Length, if it has one and ``body`` is not None."""
    copied = copy_scope(scope)
    if body is not None:
        length = b"%d" % len(body)
        copied["headers"] = [
            (name, length if name.lower() == b"content-length" else value) for name, value in scope["headers"]
        ]
    return copied

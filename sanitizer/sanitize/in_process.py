"""Lookups that are sent to an ASGI app in this process."""

from urllib.parse import unquote

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanitizer.errors import UpstreamBroken
from sanitizer.sanitize.scopes import copy_scope, encode_header
from sanitizer.sanitize.stored import Caller


class InProcess:
    """Makes the `Caller` of a request from its ASGI scope. Lookups are sent to ``app``.

    The scope of a lookup also has what else the server has put into the scope of the request, such as the client, the
    scheme and the state.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope) -> Caller:
        async def send_lookup(
            target: bytes, header: bytes, limit: int, content: bytes | None = None, /
        ) -> tuple[int, bytes]:
            path, _, query = target.partition(b"?")
            lines = (line.partition(b": ") for line in header.split(b"\r\n")[1:])
            lookup_scope = {
                **copy_scope(scope),
                "method": "GET" if content is None else "POST",
                "path": unquote(path.decode()),
                "raw_path": path,
                "query_string": query,
                "headers": [(name.lower(), value) for name, _, value in lines],
            }
            lookup_scope.pop("extensions", None)
            return await _call(self._app, lookup_scope, content)

        return Caller(encode_header(scope["headers"]) or b"\r\n", send_lookup)


async def _call(app: ASGIApp, scope: Scope, content: bytes | None) -> tuple[int, bytes]:
    """Call ``app`` with a request. Returns the status and the content of its response.

    As under a server, the status is 500 if the app fails, or returns, before it has begun a response. Raises
    `UpstreamBroken` if the response is incomplete.
    """
    started = complete = False

    async def checked(_: Scope, receive: Receive, send: Send) -> None:
        async def checked_send(message: Message) -> None:
            nonlocal started, complete
            if not started and message["type"] != "http.response.start":
                raise RuntimeError("the app sent content before it started its response")
            await send(message)
            started = True
            complete = complete or (message["type"] == "http.response.body" and not message.get("more_body", False))

        await app(scope, receive, checked_send)
        if not complete:  # the transport does not check this
            raise RuntimeError("the app returned without completing its response")

    transport = httpx.ASGITransport(app=checked, raise_app_exceptions=False)
    response = await transport.handle_async_request(httpx.Request("POST", "http://app", content=content))
    if started and not complete:
        raise UpstreamBroken
    return response.status_code, b"".join([part async for part in response.aiter_raw()])

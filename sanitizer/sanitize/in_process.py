"""Lookups that ask an ASGI app in this process."""

from urllib.parse import unquote

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanitizer.errors import UpstreamBroken
from sanitizer.sanitize.scopes import copy_scope, encode_header
from sanitizer.sanitize.stored import Caller


class InProcess:
    """Gives the `Caller` that looks a key up in ``app``, as the client that has sent the request of a scope.

    Whatever else the server has put into that scope counts for the lookup too: the client, the scheme, the state.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope) -> Caller:
        async def ask(target: bytes, header: bytes, limit: int, content: bytes | None = None, /) -> tuple[int, bytes]:
            path, _, query = target.partition(b"?")
            lines = (line.partition(b": ") for line in header.split(b"\r\n")[1:])
            asked = {
                **copy_scope(scope),
                "method": "GET" if content is None else "POST",
                "path": unquote(path.decode()),
                "raw_path": path,
                "query_string": query,
                "headers": [(name.lower(), value) for name, _, value in lines],
            }
            asked.pop("extensions", None)
            return await _ask(self._app, asked, content)

        return Caller(encode_header(scope["headers"]) or b"\r\n", ask)


async def _ask(app: ASGIApp, scope: Scope, content: bytes | None) -> tuple[int, bytes]:
    """The status and the content with which ``app`` answers a request.

    As from a server, the status is 500 if the app fails before its answer has begun, or begins none. Raises
    `UpstreamBroken` if it breaks off its answer.
    """
    started = whole = False

    async def watched(_: Scope, receive: Receive, send: Send) -> None:
        async def send_in_order(message: Message) -> None:
            nonlocal started, whole
            if not started and message["type"] != "http.response.start":
                raise RuntimeError("the app has sent content before the start of its answer")
            await send(message)
            started = True
            whole = whole or (message["type"] == "http.response.body" and not message.get("more_body", False))

        await app(scope, receive, send_in_order)
        if not whole:  # the transport would take it for granted
            raise RuntimeError("the app has returned without a whole answer")

    transport = httpx.ASGITransport(app=watched, raise_app_exceptions=False)
    response = await transport.handle_async_request(httpx.Request("POST", "http://app", content=content))
    if started and not whole:
        raise UpstreamBroken
    return response.status_code, b"".join([part async for part in response.aiter_raw()])

"""Lookups that ask an ASGI app in this process."""

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from sanitizer.sanitize.scopes import copy_scope, encode_header
from sanitizer.sanitize.stored import Caller

_OF_A_REQUEST = ("method", "path", "raw_path", "query_string", "headers")


class InProcess:
    """Gives the `Caller` that looks a key up in ``app``, as the client that has sent the request of a scope.

    Whatever else the server has put into that scope counts for the lookup too: the client, the scheme, the state.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope) -> Caller:
        async def app(asked: Scope, receive: Receive, send: Send) -> None:
            inherited = {name: value for name, value in copy_scope(scope).items() if name != "extensions"}
            await self._app({**inherited, **{name: asked[name] for name in _OF_A_REQUEST}}, receive, send)

        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)

        async def ask(target: bytes, header: bytes, limit: int, content: bytes | None = None, /) -> tuple[int, bytes]:
            lines = (line.partition(b": ") for line in header.split(b"\r\n")[1:])
            headers = [(name, value) for name, _, value in lines]
            method = "GET" if content is None else "POST"
            request = httpx.Request(method, f"http://litellm{target.decode()}", headers=headers, content=content)
            response = await transport.handle_async_request(request)
            return response.status_code, await response.aread()

        return Caller(encode_header(scope["headers"]) or b"\r\n\r\n", ask)

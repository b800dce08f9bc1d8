"""The Python peers, each a raw ASGI application of a few lines, served by uvicorn with httptools and uvloop.

``hello`` relays nothing: it repeats a response that upstream has sent once. Any ASGI gateway costs at least as much.
``httpx_relay`` and ``aiohttp_relay`` stream both ways through the named client library, as gateways are commonly
written. ``asgi_adapter`` is this gateway under a server that is not its own.
"""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from http.client import HTTPConnection
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PORT = int(os.environ.get("BENCH_UPSTREAM", "4000"))
UPSTREAM = f"http://127.0.0.1:{PORT}"
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}


def hello() -> App:
    """An app that repeats one response of upstream to a POST, with the fields and content that the gateway relays."""
    connection = HTTPConnection("127.0.0.1", PORT)
    connection.request("POST", "/v1/chat/completions", b"{}", {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    start = {
        "type": "http.response.start",
        "status": answer.status,
        "headers": [(name.lower().encode(), value.encode()) for name, value in answer.getheaders()],
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send(start)
        await send({"type": "http.response.body", "body": content})

    return app


async def body(receive: Receive) -> AsyncIterator[bytes]:
    """The content of the request, as it is received."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
        yield message.get("body", b"")


def fields(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The request's fields without the hop-by-hop ones."""
    return [(name, value) for name, value in scope["headers"] if name not in HOP_BY_HOP]


def has_body(scope: Scope) -> bool:
    """Whether the request declares content (RFC 9112 section 6.3)."""
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def target(scope: Scope) -> str:
    """The URL to which the request is forwarded."""
    path: str = scope["path"]
    query: bytes = scope["query_string"]
    return f"{UPSTREAM}{path}?{query.decode('ascii')}" if query else UPSTREAM + path


class NotInstalled(MetaPathFinder):
    """Makes a package look as if it were not installed: every import of it searches sys.path and fails."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == self.package:
            PathFinder.find_spec(fullname + "-is-not-installed", path)
            raise ModuleNotFoundError(fullname)


def stock_httpx_relay() -> App:
    """The relay after ``pip install httpx``: sniffio is missing, so every request tries to import it and fails."""
    sys.meta_path.insert(0, NotInstalled("sniffio"))
    return httpx_relay()


def httpx_relay() -> App:
    """A relay through one `httpx.AsyncClient` with its defaults, but without timeouts."""
    import httpx

    client = httpx.AsyncClient(timeout=httpx.Timeout(None))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        content = body(receive) if has_body(scope) else None
        async with client.stream(scope["method"], target(scope), headers=fields(scope), content=content) as response:
            headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    return app


def aiohttp_relay() -> App:
    """A relay through one `aiohttp.ClientSession` without a limit on its connections."""
    import aiohttp

    session: aiohttp.ClientSession | None = None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal session
        if scope["type"] != "http":
            return
        if session is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields(scope)]
        data = body(receive) if has_body(scope) else None
        async with session.request(
            scope["method"], target(scope), headers=headers, data=data, allow_redirects=False
        ) as response:
            answer = [(name.lower(), value) for name, value in response.raw_headers if name.lower() not in HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status, "headers": answer})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    return app


def asgi_adapter() -> App:
    """The gateway as an ASGI application for any ASGI server. It logs its decisions as the command does."""
    from sanitizer.app import create_app
    from sanitizer.operate import logs
    from sanitizer.settings import load

    logs.configure("info", "json")
    return create_app(load({"upstream": UPSTREAM}, {}))

"""A stand-in for LiteLLM under a real uvicorn: ``python -m tests.deploy.stand_in (PORT | SOCKET) JOURNAL``.

It answers the requests of the clients in `tests.soak`, and journals each request when it begins it, as
`tests.soak.upstream` does: ``<method> <request id> <pid> relayed``, or ``direct`` if the request has not passed
through a gateway. uvicorn handles SIGTERM: it closes its listener, idle connections and WebSockets, and answers the
requests that it has begun.

========================  ===================================================================
``GET /held``             a server-sent event, and a second one after ``POST /release?id=``
all others                as in `tests.soak.upstream`
========================  ===================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.soak.upstream import ROUTES, TEXT

READY: Final = "Uvicorn running on"
ID: Final = "x-request-id"

released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


async def text(request: Request) -> Response:
    content = await request.body()
    text = TEXT[: int(request.query_params["size"])]
    answer = {"id": request.headers[ID], "text": text, "digest": hashlib.sha256(text.encode()).hexdigest()}
    return JSONResponse({**answer, "content": hashlib.sha256(content).hexdigest()})


async def upload(request: Request) -> Response:
    digest, size = hashlib.sha256(), 0
    async for data in request.stream():
        digest.update(data)
        size += len(data)
    return JSONResponse({"id": request.headers[ID], "size": size, "digest": digest.hexdigest()})


async def events(request: Request) -> Response:
    await request.body()
    count, pause = int(request.query_params["count"]), float(request.query_params["pause"])

    async def stream() -> AsyncIterator[bytes]:
        for number in range(count):
            yield b'data: {"id": "%b", "number": %d}\n\n' % (request.headers[ID].encode(), number)
            await asyncio.sleep(pause)
        yield b"data: [DONE]\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


async def held(request: Request) -> Response:
    async def stream() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await released[request.headers[ID]].wait()
        yield b"data: 2\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


async def release(request: Request) -> Response:
    released[request.query_params["id"]].set()
    return JSONResponse({})


async def key_info(request: Request) -> Response:
    token = request.query_params["key"]
    return JSONResponse({"key": token, "info": {"token": token, "allowed_routes": ROUTES}})


async def key_update(request: Request) -> Response:
    return JSONResponse({"id": request.headers[ID], "received": (await request.body()).decode()})


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await websocket.send_bytes(await websocket.receive_bytes())


async def alive(_: Request) -> Response:
    return JSONResponse("I'm alive!")


def journalled(app: ASGIApp, journal: int) -> ASGIApp:
    async def begin(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            fields = dict(scope["headers"])
            request_id, fate = fields.get(ID.encode(), b"-").decode(), "relayed" if b"via" in fields else "direct"
            os.write(journal, f"{scope['method']} {request_id} {os.getpid()} {fate}\n".encode())
        await app(scope, receive, send)

    return begin


APP = Starlette(
    routes=[
        Route("/json", text, methods=["GET", "POST"]),
        Route("/upload", upload, methods=["POST"]),
        Route("/events", events, methods=["POST"]),
        Route("/held", held),
        Route("/release", release, methods=["POST"]),
        Route("/key/info", key_info),
        Route("/key/update", key_update, methods=["POST"]),
        Route("/health/liveliness", alive),
        WebSocketRoute("/ws", echo),
    ]
)


def main() -> None:
    where, path = sys.argv[1:]
    journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    listen: dict[str, int | str] = {"port": int(where)} if where.isdecimal() else {"uds": where}
    app = journalled(APP, journal)
    uvicorn.run(app, ws="websockets-sansio", lifespan="off", access_log=False, **listen)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

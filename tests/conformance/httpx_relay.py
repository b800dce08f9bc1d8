"""A plain relay of some forty lines on Starlette and httpx, as found in many projects: the suite's negative control.

``python -m tests.conformance.httpx_relay --upstream URL --port PORT``
"""

import contextlib
import sys
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app(upstream: str) -> Starlette:
    client = httpx.AsyncClient(base_url=upstream, timeout=None)  # noqa: S113 - LLMs are slow

    async def relay(request: Request) -> Response:
        url = httpx.URL(path=request.url.path, query=request.url.query.encode())
        headers = [(name, value) for name, value in request.headers.raw if name.decode().lower() not in HOP_BY_HOP]
        outbound = client.build_request(request.method, url, headers=headers, content=request.stream())
        try:
            answer = await client.send(outbound, stream=True)
        except httpx.HTTPError:
            return JSONResponse({"error": "bad gateway"}, 502)
        response = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
        response.raw_headers = [
            (name, value) for name, value in answer.headers.raw if name.decode().lower() not in HOP_BY_HOP
        ]
        return response

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(routes=[Route("/{path:path}", relay, methods=METHODS)], lifespan=lifespan)


class Server(uvicorn.Server):
    """Prints the address that it listens on, as the gateway does."""

    def _log_started_message(self, listeners: object) -> None:
        host, port = self.servers[0].sockets[0].getsockname()
        print(f"listening on http://{host}:{port}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    config = uvicorn.Config(
        create_app(options["--upstream"]), port=int(options["--port"]), log_config=None, timeout_graceful_shutdown=1
    )
    Server(config).run()

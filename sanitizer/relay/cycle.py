"""A request that goes through ASGI: one of uvicorn's cycles, on a connection that is not uvicorn's."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from sanitizer.errors import ResponseCut
from sanitizer.relay.counters import CLIENT_LEFT

if TYPE_CHECKING:
    from sanitizer.relay.protocol import RelayProtocol


class _CycleFlow:
    """What uvicorn's flow control pauses for an ASGI cycle: the client connection, for a reason of its own."""

    def __init__(self, client: "RelayProtocol") -> None:
        self._client = client

    def pause_reading(self) -> None:
        self._client.pause("cycle")

    def resume_reading(self) -> None:
        self._client.resume("cycle")


class Cycle:
    """A request that goes through ASGI: one of uvicorn's cycles."""

    def __init__(self, client: "RelayProtocol", scope: Scope, keep_alive: bool) -> None:
        self._client = client
        self.started = False
        self.method: bytes = scope["method"].encode()
        self.status = CLIENT_LEFT  # of the response, as soon as there is one
        if client.flow is None:
            client.flow = FlowControl(cast(Any, _CycleFlow(client)))
            if client.write_blocked:
                client.flow.pause_writing()
        self._flow = client.flow
        self._cycle = RequestResponseCycle(
            scope=cast(Any, scope),
            transport=cast(Any, client.transport),
            flow=self._flow,
            logger=logging.getLogger("uvicorn.error"),
            access_logger=logging.getLogger("uvicorn.access"),
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=any(n == b"expect" and v.lower() == b"100-continue" for n, v in scope["headers"]),
            keep_alive=keep_alive and not client.front.draining,
            on_response=self._answered,
        )

    @property
    def begun(self) -> bool:
        return self._cycle.response_started

    def start(self) -> None:
        self.started = True
        task = self._client.loop.create_task(self._cycle.run_asgi(cast(Any, self._app)))
        self._client.front.tasks.add(task)
        task.add_done_callback(self._client.front.tasks.discard)

    def content(self, data: bytes) -> None:
        cycle = self._cycle
        if not cycle.response_complete:
            cycle.body += data
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self._flow.pause_reading()
            cycle.message_event.set()

    def end(self, trailers: bytes) -> None:
        self._cycle.more_body = False
        self._cycle.message_event.set()

    def last(self) -> None:
        self._cycle.keep_alive = False

    def cancel(self) -> None:
        self._cycle.disconnected = True
        self._cycle.message_event.set()

    def pause_reading(self) -> None:
        """The application waits by the flow control that it shares with the connection."""

    def resume_reading(self) -> None:
        """Likewise."""

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self._cycle.keep_alive = self._client.stays_open(self._cycle.keep_alive)
            await send(message)

        try:
            await self._client.app(scope, receive, noted)
        except ResponseCut:
            self._cycle.disconnected = True
            self._client.abort()

    def _answered(self) -> None:
        self.status = self.status or 500  # an app that failed before it answered
        self._flow.resume_reading()  # what has not been taken is of no more use
        self._client.answered(self, self._cycle.keep_alive)

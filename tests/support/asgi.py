"""An ASGI client and an ASGI upstream that work message by message, and stand-ins for the sanitizer's lookups."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanitizer.sanitize.core import Record, Sanitizer
from sanitizer.sanitize.gates import FIELDS
from sanitizer.sanitize.middleware import SanitizerMiddleware
from sanitizer.sanitize.queries import Stored, Unknown
from sanitizer.sanitize.scopes import encode_header
from sanitizer.sanitize.stored import Caller, Lookup, LookupOutcome, SendLookup, StoredKeys

Fields = list[tuple[bytes, bytes]]

KEY = "sk-secret"
JSON = (b"content-type", b"application/json")


def update(routes: Any = ("/a",), **more: Any) -> bytes:
    return json.dumps({"key": KEY, "allowed_routes": routes, **more}).encode()


def octets(headers: Fields) -> bytes:
    """These header fields as field lines."""
    head = encode_header(headers)
    assert head is not None
    return head


async def ask_nobody(target: bytes, header: bytes, limit: int, content: bytes | None = None, /) -> tuple[int, bytes]:
    raise AssertionError


@dataclass(frozen=True)
class Cached(Stored):
    """A stored key that an earlier request has looked up: it needs no lookup."""


@dataclass(frozen=True)
class NotLookedUp(Unknown):
    """The reason why the stored key is unknown, where no lookup was made."""


Result = Stored | Unknown


def looked_up(results: list[Result]) -> tuple[Result, Lookup | None]:
    """Take the next of ``results``, and return it with the lookup that it needed. The last result stays in the list."""
    result = results.pop(0) if len(results) > 1 else results[0]
    return result, None if isinstance(result, Cached | NotLookedUp) else Lookup(LookupOutcome.OK, 0.01)


class Lookups(StoredKeys):
    """Returns ``results`` in turn, then the last one repeatedly. With a ``gate``, each lookup waits until it is set."""

    def __init__(
        self,
        *results: Result,
        gate: asyncio.Event | None = None,
        caches: bool = False,
        has_lookup_key: bool = False,
    ) -> None:
        super().__init__(cache_ttl=10 if caches else 0, lookup_key=(lambda: None) if has_lookup_key else None)
        self.results = list(results)
        self.gate = gate
        self.started = asyncio.Event()
        self.cancelled = False
        self.calls: list[tuple[str | None, str, bool]] = []
        self.writes: list[str | None] = []
        self.writing_now = 0

    async def get(
        self, caller: Caller, key: str | None, alias: str | None, prefix: str, *, fresh: bool = False
    ) -> tuple[Stored | Unknown, Lookup | None]:
        self.calls.append((key, prefix, fresh))
        self.started.set()
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        return looked_up(self.results)

    @contextlib.contextmanager
    def writing(self, key: str | None) -> Iterator[None]:
        self.writes.append(key)
        self.writing_now += 1
        try:
            yield
        finally:
            self.writing_now -= 1


ROUTES = Stored({"allowed_routes": ["/a"]})


@dataclass
class Upstream:
    """An app that reads the whole request, and sends a response with this status and these header fields."""

    fields: Fields = field(default_factory=list)
    status: int = 200
    scopes: list[Scope] = field(default_factory=list)
    received: list[list[Message]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        messages: list[Message] = []
        self.received.append(messages)
        more = True
        while more:
            messages.append(await receive())
            more = messages[-1].get("more_body", False)
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.fields)})
        await send({"type": "http.response.body", "body": b"done"})

    @property
    def body(self) -> bytes:
        """The body of the only request."""
        (messages,) = self.received
        return b"".join(message["body"] for message in messages)


@dataclass
class Client:
    """One request: its head and the chunks of its body. After the last chunk, `receive` waits for `leave`."""

    chunks: Sequence[bytes] = (b"",)
    headers: Fields = field(default_factory=lambda: [JSON])
    path: str = "/key/update"
    method: str = "POST"
    truncated: bool = False
    """Whether the client leaves after these chunks, before the body is complete."""
    sent: list[Message] = field(default_factory=list)
    receives: int = 0

    def __post_init__(self) -> None:
        self.disconnected = asyncio.Event()
        last = len(self.chunks) - 1
        self.messages = [
            {"type": "http.request", "body": chunk, "more_body": self.truncated or i < last}
            for i, chunk in enumerate(self.chunks)
        ]
        if self.truncated:
            self.leave()

    @property
    def scope(self) -> Scope:
        return {"type": "http", "method": self.method, "path": self.path, "headers": self.headers}

    def leave(self) -> None:
        self.disconnected.set()

    async def receive(self) -> Message:
        self.receives += 1
        if self.messages:
            return self.messages.pop(0)
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def through(self, app: ASGIApp) -> "Client":
        async with asyncio.timeout(10):
            await app(self.scope, self.receive, self.send)
        return self

    @property
    def field_values(self) -> list[bytes]:
        """The values of the response's `x-litellm-sanitizer` fields."""
        return [value for name, value in self.sent[0]["headers"] if name.lower() == b"x-litellm-sanitizer"]


@dataclass
class Sanitized:
    """An app behind the sanitizer's middleware; ``records`` are the decisions that were reported."""

    app: ASGIApp
    stored: StoredKeys
    mode: str = "enforce"
    max_body: int = 1024
    prefixes: tuple[str, ...] = ("", "/p")
    records: list[Record] = field(default_factory=list)
    send_lookup: SendLookup = ask_nobody
    stall_timeout: float | None = None

    def __post_init__(self) -> None:
        self.sanitizer = Sanitizer(
            self.stored,
            mode=self.mode,
            fields=FIELDS,
            prefixes=self.prefixes,
            max_body=self.max_body,
            on_decision=self.records.append,
        )
        self.middleware = SanitizerMiddleware(
            self.app,
            sanitizer=self.sanitizer,
            caller=lambda scope: Caller(octets(scope["headers"]), self.send_lookup),
            stall_timeout=self.stall_timeout,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.middleware(scope, receive, send)


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[int]:
    """Serve ``app`` with uvicorn on a free port of loopback. Yields the port."""
    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # connections wait here until the server has started
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task

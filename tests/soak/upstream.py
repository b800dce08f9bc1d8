"""The LiteLLM-like upstream of a soak: ``python -m tests.soak.upstream PORT JOURNAL``.

It journals each request before it runs it, in a file that outlives the process: ``<method> <request id> <pid> run``.
It drops one request in a hundred instead (``dropped`` in the journal): it closes the connection without a response.
After SIGTERM it closes its listener and its idle connections, answers the requests that it has begun with
``Connection: close``, and ends.

====================  =====================================================================================
``GET /json?size=``   JSON with ``size`` characters and their digest; ``POST``: the content's digest as well
``POST /upload``      length and digest of the content; sends 100 if the client expects that
``GET /events``       ``count`` numbered server-sent events, one every ``pause`` seconds
``GET /ws``           a WebSocket that sends back every message
``GET /flood``        more octets than any buffers hold
``POST /stuck``       no response: reads no content for ``seconds``, and then closes the connection
``GET /key/info``     a key whose ``allowed_routes`` are ``["llm_api_routes"]``, for every key
``POST /key/update``  the content as it was received
====================  =====================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import uvloop
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol

KEEPALIVE = 5.0
"""Seconds after which an idle connection is closed: uvicorn's default, a second more than the gateway's own."""
TEXT = "".join(random.Random(1).choices('abcdefghijklmnopqrstuvwxyz \N{EURO SIGN}"\\', k=1 << 20))
DROPPED = 0.01
FLOOD = 64 << 20
ROUTES = ["llm_api_routes"]
DRAINING = "draining"
READY = "ready"


class Request:
    """A request whose head has been read."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = head[:-4].split(b"\r\n")
        self.method, self.target, _ = lines[0].decode().split(" ")
        assert self.method in ("GET", "POST"), head  # fails for the rest of another request's content
        self.fields = {name.strip().lower(): value.strip() for name, _, value in (x.partition(b":") for x in lines[1:])}
        url = urlsplit(self.target)
        self.path = url.path
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.id = self.fields.get(b"x-request-id", b"-").decode()
        self.head = head
        self.reader = reader
        self.writer = writer

    async def content(self) -> AsyncIterator[bytes]:
        if self.fields.get(b"expect"):
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"transfer-encoding" in self.fields:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        else:
            left = int(self.fields.get(b"content-length", 0))
            while left and (data := await self.reader.read(min(left, 65536))):
                left -= len(data)
                yield data
            if left:
                raise asyncio.IncompleteReadError(b"", left)


class Server:
    def __init__(self, journal: int) -> None:
        self.journal = journal
        self.draining = asyncio.Event()
        self.idle: set[asyncio.StreamWriter] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, port: int) -> None:
        """Listen until SIGTERM, and then finish the requests that have begun."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.draining.set)
        server = await asyncio.start_server(self.accept, "127.0.0.1", port, limit=1 << 20, backlog=1024)
        print(READY, server.sockets[0].getsockname()[1], flush=True)
        await self.draining.wait()
        server.close()
        for writer in self.idle:
            writer.close()
        print(DRAINING, flush=True)
        while self.tasks:
            await asyncio.wait(self.tasks)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self.connection(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The gateway cuts a request because a client has left. The clients account for such requests.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            while not self.draining.is_set():
                self.idle.add(writer)
                try:
                    async with asyncio.timeout(KEEPALIVE):
                        head = await reader.readuntil(b"\r\n\r\n")
                finally:
                    self.idle.discard(writer)
                if writer.is_closing():
                    break
                request = Request(head, reader, writer)
                fate = "dropped" if random.random() < DROPPED else "run"
                os.write(self.journal, f"{request.method} {request.id} {os.getpid()} {fate}\n".encode())
                if fate == "dropped":
                    break
                await self.answer(request)
                if request.path in ("/ws", "/stuck"):
                    break
        writer.close()

    async def answer(self, request: Request) -> None:
        match request.path:
            case "/events":
                await self.events(request)
            case "/ws":
                await self.websocket(request)
            case "/upload":
                digest, size = hashlib.sha256(), 0
                async for data in request.content():
                    digest.update(data)
                    size += len(data)
                await self.json(request, {"id": request.id, "size": size, "digest": digest.hexdigest()})
            case "/flood":
                await self.flood(request)
            case "/stuck":
                await asyncio.sleep(float(request.query["seconds"]))
            case "/key/info":
                token = request.query["key"]
                await self.json(request, {"key": token, "info": {"token": token, "allowed_routes": ROUTES}})
            case "/key/update":
                content = b"".join([data async for data in request.content()])
                await self.json(request, {"id": request.id, "received": content.decode()})
            case _:
                content = b"".join([data async for data in request.content()])
                text = TEXT[: int(request.query["size"])]
                answer = {"id": request.id, "text": text, "digest": hashlib.sha256(text.encode()).hexdigest()}
                await self.json(request, {**answer, "content": hashlib.sha256(content).hexdigest()})

    async def json(self, request: Request, answer: object) -> None:
        content = json.dumps(answer, ensure_ascii=False).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(content)
        request.writer.write(head + self.last() + b"\r\n" + content)
        await request.writer.drain()

    async def flood(self, request: Request) -> None:
        request.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % FLOOD)
        for _ in range(FLOOD >> 20):
            if request.writer.is_closing():  # uvloop allows no more than one write after that
                raise ConnectionResetError
            request.writer.write(bytes(1 << 20))
            await request.writer.drain()

    async def events(self, request: Request) -> None:
        async for _ in request.content():
            pass
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        request.writer.write(head + self.last() + b"\r\n")
        for number in range(int(request.query["count"])):
            if request.writer.is_closing():  # uvloop allows no more than one write after that
                raise ConnectionResetError
            event = b'data: {"id": "%b", "number": %d}\n\n' % (request.id.encode(), number)
            request.writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await request.writer.drain()
            await asyncio.sleep(float(request.query["pause"]))
        if request.writer.is_closing():
            raise ConnectionResetError
        request.writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await request.writer.drain()

    def last(self) -> bytes:
        return b"Connection: close\r\n" if self.draining.is_set() else b""

    async def websocket(self, request: Request) -> None:
        protocol = ServerProtocol(max_size=None)
        protocol.receive_data(request.head)
        handshake = protocol.events_received()[0]
        assert isinstance(handshake, Handshake)
        protocol.send_response(protocol.accept(handshake))
        while True:
            for data in protocol.data_to_send():
                if data:
                    request.writer.write(data)
            await request.writer.drain()
            if protocol.close_expected():
                break
            data = await request.reader.read(65536)
            if not data:
                break
            protocol.receive_data(data)
            for event in protocol.events_received():
                if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY):
                    send = protocol.send_text if event.opcode is Opcode.TEXT else protocol.send_binary
                    send(bytes(event.data))


def main() -> None:
    port, path = sys.argv[1:]
    journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def run() -> None:
        await Server(journal).serve(int(port))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()

"""A client's connection to the gateway: as much of HTTP/1.1 as a soak needs, and the ways in which a request fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator


class Cut(Exception):
    """The connection ended before the response was complete."""


class BadGateway(Exception):
    """The gateway has answered with a 502 of its own."""


class Wrong(Exception):
    """A response that the gateway must never send."""


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Wrong(what)


class Connection:
    """One HTTP/1.1 connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.last = False  # the response was the last on this connection
        self.raw_head = b""
        self._fields: dict[bytes, bytes] = {}

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 18))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> int:
        """Read the next response head. Returns its status.

        Raises `BadGateway` if the status is 502. The content must then have the form of LiteLLM's errors.
        """
        self.raw_head = await self.reader.readuntil(b"\r\n\r\n")
        lines = self.raw_head[:-4].split(b"\r\n")
        self._fields = {
            n.strip().lower(): value.strip() for n, _, value in (line.partition(b":") for line in lines[1:])
        }
        status = int(lines[0].split(b" ")[1])
        self.last = self._fields.get(b"connection") == b"close"
        if status == 502:
            error = json.loads(await self.content())["error"]
            expect({"message", "type", "param", "code"} == error.keys() and error["code"] == "502", f"502 {error}")
            raise BadGateway
        expect(status in (100, 101, 200, 408, 504), f"status {status}")
        return status

    def field(self, name: bytes) -> bytes:
        return self._fields.get(name, b"")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The response's content, in pieces as they arrive."""
        if self.field(b"transfer-encoding"):
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        else:
            left = int(self.field(b"content-length"))
            while left:
                data = await self.reader.read(min(left, 65536))
                if not data:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(data)
                yield data

    async def content(self) -> bytes:
        return b"".join([data async for data in self.pieces()])

    def close(self, *, reset: bool = False) -> None:
        if reset:
            sock = self.writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # the socket may be closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        else:
            self.writer.close()

"""HTTP/1.1 as bytes on a blocking socket, for tests that have to see exactly what was sent and received.

The parser is small, and shares nothing with the code under test. It splits heads at CRLF, keeps the case and order of
field lines, and frames content by RFC 9112 section 6.3.
"""

from __future__ import annotations

import select
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path

Fields = list[tuple[bytes, bytes]]

TIMEOUT = 30.0
"""Seconds after which a read fails the test. No passing test waits that long."""

MAX_BUFFERED = sum(int(Path("/proc/sys/net/ipv4", name).read_text().split()[2]) for name in ("tcp_rmem", "tcp_wmem"))
"""How many bytes the kernel holds, at most, for a TCP connection whose receiver does not read (see ``man 7 tcp``).

How many it really holds varies: it enlarges a receive buffer as data is read from it, and never makes it smaller.
"""


class Cut(Exception):
    """The peer closed or reset the connection before a read was complete. ``got`` are the bytes read until then."""

    def __init__(self, got: bytes, *, reset: bool) -> None:
        super().__init__(f"{'reset' if reset else 'closed'} after {len(got)} bytes: {got[-200:]!r}")
        self.got = got
        self.reset = reset


@dataclass
class Message:
    """A request or a response: ``start`` line, field lines in order, content without its framing."""

    start: bytes
    fields: Fields
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    framing: str = "none"  # "none", "length", "chunked", or "close" (delimited by the end of the connection)
    complete: bool = True
    raw_head: bytes = b""

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def get(self, name: bytes) -> bytes | None:
        values = self.all(name)
        return values[0] if values else None

    @property
    def names(self) -> list[bytes]:
        return [name for name, _ in self.fields]


@dataclass
class Request(Message):
    connection: int = 0  # the number of the upstream connection on which it was received, from 0

    @property
    def method(self) -> bytes:
        return self.start.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]


@dataclass
class Response(Message):
    @property
    def version(self) -> bytes:
        return self.start.split(b" ")[0]

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    @property
    def reason(self) -> bytes:
        return self.start.split(b" ", 2)[2] if self.start.count(b" ") > 1 else b""


def parse_head(head: bytes) -> tuple[bytes, Fields]:
    """The start line and the fields of a head that ends in an empty line.

    Raises:
        AssertionError: the head has a field line without a colon, an empty name, whitespace around a name, or a bare
            CR or LF. The gateway must never send such a head.
    """
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    fields = []
    for line in lines:
        assert b"\r" not in line, head
        assert b"\n" not in line, head
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        assert colon, head
        assert name, head
        assert name.strip() == name, head
        fields.append((name, value.strip(b" \t")))
    return lines[0], fields


class Wire:
    """A connected socket with a read buffer. With ``keep``, ``received`` keeps every byte that was received."""

    def __init__(self, sock: socket.socket, *, keep: bool = True) -> None:
        self.sock = sock
        self.keep = keep
        self.received = bytearray()
        self._buffer = bytearray()
        self._ended: Cut | None = None
        sock.settimeout(TIMEOUT)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *chunks: bytes) -> None:
        """Send each chunk in a write of its own."""
        for chunk in chunks:
            self.sock.sendall(chunk)

    def recv(self, size: int = 65536) -> bytes:
        """Return buffered bytes, or read some if there are none. Empty once the peer has closed or reset."""
        if self._buffer:
            data = bytes(self._buffer[:size])
            del self._buffer[:size]
            return data
        return self._fill(size)

    def _fill(self, size: int = 65536) -> bytes:
        if self._ended:
            return b""
        try:
            data = self.sock.recv(size)
        except TimeoutError:
            raise
        except OSError:
            self._ended = Cut(b"", reset=True)
            return b""
        if not data:
            self._ended = Cut(b"", reset=False)
        elif self.keep:
            self.received += data
        return data

    def _cut(self, got: bytes) -> Cut:
        return Cut(got, reset=self._ended is not None and self._ended.reset)

    def _read_more(self) -> None:
        """Read more into the buffer.

        Raises:
            Cut: the stream has ended. It carries the buffered bytes.
        """
        data = self._fill()
        if not data:
            got = bytes(self._buffer)
            self._buffer.clear()
            raise self._cut(got)
        self._buffer += data

    def read_until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            self._read_more()
        data = bytes(self._buffer[: at + len(mark)])
        del self._buffer[: at + len(mark)]
        return data

    def read_exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._read_more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def read_to_end(self) -> bytes:
        """Read until the peer closes the connection.

        Raises:
            Cut: the connection was reset.
        """
        while data := self._fill():
            self._buffer += data
        got = bytes(self._buffer)
        self._buffer.clear()
        if self._ended and self._ended.reset:
            raise self._cut(got)
        return got

    def closed(self) -> bool:
        """Wait until the peer sends or closes. Returns whether it has closed or reset, with no byte unread."""
        return not self._buffer and not self._fill()

    def wait_readable(self) -> bool:
        """Wait until there is something to read. False at the end of the stream."""
        if not self._buffer:
            self._buffer += self._fill()
        return bool(self._buffer)

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def read_chunked(self) -> tuple[bytes, Fields]:
        """Read chunked content. Returns it decoded, and the trailer fields.

        Raises:
            Cut: the stream has ended. It carries the content decoded so far.
        """
        body = bytearray()
        try:
            while size := int(self.read_until(b"\r\n")[:-2].split(b";")[0], 16):
                try:
                    body += self.read_exactly(size)
                except Cut as cut:
                    body += cut.got
                    raise
                assert self.read_exactly(2) == b"\r\n"
            trailers = []
            while (line := self.read_until(b"\r\n")) != b"\r\n":
                name, _, value = line[:-2].partition(b":")
                trailers.append((name, value.strip()))
        except Cut as cut:
            raise Cut(bytes(body), reset=cut.reset) from None
        return bytes(body), trailers

    def read_body(self, message: Message) -> None:
        """Read the content of ``message`` into it. ``message.complete`` is false if the stream ended before."""
        try:
            if message.all(b"transfer-encoding"):
                message.framing = "chunked"
                message.body, message.trailers = self.read_chunked()
            elif length := message.get(b"content-length"):
                message.framing = "length"
                message.body = self.read_exactly(int(length))
            elif message.framing == "close":
                message.body = self.read_to_end()
            message.complete = True
        except Cut as cut:
            message.body = cut.got
            message.complete = False


def send_until_blocked(sender: Wire, limit: int) -> int:
    """Send zeros until the socket blocks, or ``limit`` bytes are sent. Returns how many were sent."""
    piece, sent = bytes(64 * 1024), 0
    sender.sock.setblocking(False)
    # blocked means that nothing can be written for half a second
    while sent < limit and select.select([], [sender.sock], [], 0.5)[1]:
        sent += sender.sock.send(piece[: limit - sent])
    sender.sock.settimeout(TIMEOUT)
    return sent

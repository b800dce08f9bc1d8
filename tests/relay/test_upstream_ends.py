"""How upstream ends a connection and how that affects the response, over real sockets and on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Final, cast

import pytest
import trustme
import uvloop

from sanitizer.address import Address
from sanitizer.relay import pipe
from sanitizer.relay.handler import Handler, Pause
from sanitizer.relay.pool import Pool
from sanitizer.relay.transport import Transport
from tests.support.recorder import Recorder

WAIT: Final = 10.0
LARGE: Final = 100_000
"""Octets of content: TLS reads them in more than one piece, and socket buffers hold all of them."""
LENGTH: Final = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
UNTIL_CLOSE: Final = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
End = Callable[[socket.socket], None]


class Taker(Recorder):
    """A client whose request has ``length`` octets of content.

    With ``pauses``, it stops reading once it has received some content of the response.
    """

    def __init__(self, upstream: Pool, length: int, *, pauses: bool = False, upgrade: bool = False) -> None:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % length
        super().__init__(upstream, b"POST", head, length, upgrade=upgrade)
        self.ended = asyncio.Event()
        self.sends = asyncio.Event()
        self.pauses = pauses

    def resume(self, reason: Pause) -> None:
        super().resume(reason)
        self.sends.set()

    def _write(self, data: bytes) -> None:
        super()._write(data)
        if self.pauses and self.content:
            self.pauses = False
            self.exchange.pause_reading()

    def response_sent(self, handler: Handler, keep_alive: bool) -> None:
        super().response_sent(handler, keep_alive)
        self.ended.set()

    def abort(self) -> None:
        super().abort()
        self.ended.set()

    @property
    def content(self) -> bytes:
        return b"".join(call[1] for call in self.calls if call[0] == "content")

    @property
    def failed(self) -> bool:
        return self.calls[-1][:1] == ("error",)


class Server:
    """Serves one connection: it reads a request's head, sends ``answer``, calls ``end``, and sets `ended`."""

    def __init__(self, answer: bytes, end: End, context: ssl.SSLContext | None = None) -> None:
        self._answer = answer
        self._end = end
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        sock.settimeout(WAIT)
        if self._context is not None:
            sock = self._context.wrap_socket(sock, server_side=True)
        received = b""
        while b"\r\n\r\n" not in received:
            received += sock.recv(65536)
        sock.sendall(self._answer)
        self._end(sock)
        self.ended.set()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(WAIT)
        self._listener.close()


def fin(sock: socket.socket) -> None:
    """Send FIN; in TLS, without close_notify."""
    os.close(sock.detach())


def close_notify(sock: socket.socket) -> None:
    """Send close_notify and, right after it, FIN."""
    assert isinstance(sock, ssl.SSLSocket)
    sock.setblocking(False)
    with contextlib.suppress(ssl.SSLError):  # it does not wait for the peer's close_notify
        sock.unwrap()
    fin(sock)


def reset(sock: socket.socket) -> None:
    """Send RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    fin(sock)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


async def take(server: Server, tls: ssl.SSLContext | None, *, pauses: bool = False) -> tuple[Taker, Pool]:
    """Receive a response; with ``pauses``, resume reading only when upstream has ended the connection."""
    address = Address("https" if tls else "http", "localhost" if tls else "127.0.0.1", server.port)
    upstream = Pool(address, tls=tls)
    client = Taker(upstream, 0, pauses=pauses)
    client.exchange.start()
    if pauses:
        await asyncio.to_thread(server.ended.wait, WAIT)
        await asyncio.sleep(0)
        client.exchange.resume_reading()
    async with asyncio.timeout(WAIT):
        await client.ended.wait()
    upstream.close()
    return client, upstream


ENDS: dict[str, tuple[bytes, End, bool, int]] = {
    # head, end of the connection, whether the response is complete, number of ends counted as without close_notify
    "until close, close_notify": (UNTIL_CLOSE, close_notify, True, 0),
    "until close, FIN": (UNTIL_CLOSE, fin, True, 1),
    "until close, RST": (UNTIL_CLOSE, reset, False, 0),
    "length, close_notify": (LENGTH % LARGE, close_notify, True, 0),
    "length, FIN": (LENGTH % LARGE, fin, True, 0),
    "incomplete content, close_notify": (LENGTH % (LARGE + 1), close_notify, False, 0),
    "incomplete content, FIN": (LENGTH % (LARGE + 1), fin, False, 0),
    "incomplete chunk, FIN": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (LARGE + 1),
        fin,
        False,
        0,
    ),
}


@pytest.mark.parametrize("pauses", [False, True], ids=["read at once", "reading is paused"])
@pytest.mark.parametrize(("head", "end", "whole", "unannounced"), ENDS.values(), ids=ENDS.keys())
def test_the_end_of_a_tls_connection(
    runner: asyncio.Runner,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    head: bytes,
    end: End,
    whole: bool,
    unannounced: int,
    pauses: bool,
) -> None:
    """A FIN ends a response of unknown length as close_notify does, but is counted. A reset does not end it.

    A client that has paused reading gets all that upstream has sent before the FIN.
    """
    with Server(head + b"x" * LARGE, end, server_context) as server:
        client, upstream = runner.run(take(server, client_context, pauses=pauses))
    assert client.failed != whole
    assert upstream.unannounced_ends == unannounced
    if whole:
        assert len(client.content) == LARGE


@pytest.mark.parametrize("end", [fin, reset])
def test_the_end_of_a_plain_connection(runner: asyncio.Runner, end: End) -> None:
    """Without TLS, a FIN ends a response of unknown length and is not counted, and a reset is an error."""
    with Server(UNTIL_CLOSE + b"x", end) as server:
        client, upstream = runner.run(take(server, None))
    assert client.failed != (end is fin)
    assert upstream.unannounced_ends == 0


@pytest.mark.parametrize(
    ("head", "whole"),
    [(LENGTH % 4, True), (LENGTH % 5, False), (UNTIL_CLOSE, False)],
    ids=["whole", "cut", "until close"],
)
def test_an_answer_before_a_reset(runner: asyncio.Runner, head: bytes, whole: bool) -> None:
    """If upstream responds to an upload early and resets the connection, a failed write does not hide the response."""

    async def upload(server: Server) -> Taker:
        upstream = Pool(Address("http", "127.0.0.1", server.port))
        client = Taker(upstream, 10_000_000)
        client.exchange.start()
        await client.sends.wait()
        for _ in range(2):  # uvloop has sent the head after these iterations
            await asyncio.sleep(0)
        server.ended.wait(WAIT)  # blocks the event loop, so that it cannot read in the meantime
        client.exchange.send(b"x" * 1_000_000)
        async with asyncio.timeout(WAIT):
            await client.ended.wait()
        upstream.close()
        return client

    with Server(head + b"nope", reset) as server:
        client = runner.run(upload(server))
    assert client.calls[0] == ("response", 200)
    assert client.content == b"nope"
    assert client.failed != whole


class Switcher(Taker):
    """A client whose connection becomes a tunnel. It stops reading as soon as its request is sent."""

    async def connect(self, sock: socket.socket) -> None:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=sock)
        self.transport = cast(Transport, transport)

    def resume(self, reason: Pause) -> None:
        super().resume(reason)
        self.exchange.pause_reading()

    def _write(self, data: bytes) -> None:
        self.transport.write(data.partition(b"\r\n\r\n")[2])

    def become_tunnel(self, handler: Handler, upstream: pipe.TunnelEnd) -> None:
        pipe.TunnelEnd(self.transport, 1.0, lambda: None, lambda *_: self.ended.set()).join(upstream)


@pytest.mark.parametrize("ending", [close_notify, fin])
def test_a_tunnel_that_begins_when_it_has_ended(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, ending: End
) -> None:
    """If upstream switches protocols and ends while it is not read, the client gets all that was sent, and the end."""

    async def switch(server: Server, sock: socket.socket) -> Pool:
        upstream = Pool(Address("https", "localhost", server.port), tls=client_context)
        client = Switcher(upstream, 1, upgrade=True)  # its request stays incomplete, so that `resume` is called
        await client.connect(sock)
        client.exchange.start()
        await client.sends.wait()
        await asyncio.to_thread(server.ended.wait, WAIT)
        async with asyncio.timeout(WAIT):
            await client.ended.wait()
        return upstream

    head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    near, far = socket.socketpair()
    with Server(head + b"x" * LARGE, ending, server_context) as server, far, near:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            upstream = runner.run(switch(server, near))
        far.settimeout(WAIT)
        content = b""
        while data := far.recv(65536):
            content += data
    assert content == b"x" * LARGE
    assert (upstream.open, upstream.errors["broken"]) == (0, ending is fin)


@pytest.mark.parametrize("taken", [True, False])
def test_a_request_that_upstream_has_not_taken(runner: asyncio.Runner, taken: bool) -> None:
    """A connection is not pooled if the response ends while octets of the request still wait to be written.

    Upstream, which has not read all of the request, may close the connection.
    """

    def rest(sock: socket.socket) -> None:
        answered.wait(WAIT)
        fin(sock)

    def take_all(sock: socket.socket) -> None:
        while not sock.recv(65536).endswith(b"."):
            pass
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnope")
        rest(sock)

    async def upload(server: Server) -> int:
        upstream = Pool(Address("http", "127.0.0.1", server.port))
        client = Taker(upstream, length)
        client.exchange.start()
        await client.sends.wait()
        client.exchange.send(b"x" * (length - 1) + b".")
        async with asyncio.timeout(WAIT):
            await client.ended.wait()
        answered.set()
        idle = upstream.idle
        upstream.close()
        return idle

    answered = threading.Event()
    length = 20_000_000  # more than a socket holds
    answer = b"" if taken else b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nnope"
    with Server(answer, take_all if taken else rest) as server:
        assert runner.run(upload(server)) == taken

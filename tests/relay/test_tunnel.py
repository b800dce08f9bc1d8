"""Upgrades are tunnelled: WebSockets with `websockets` on both ends, through the native adapter."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from tests.support.gateway import Gateway
from tests.support.wire import MAX_BUFFERED

Handler = Callable[[ServerConnection], None]


class Upstream:
    """A WebSocket server whose handler can be replaced. If ``refuse`` is set, it is the response to a handshake."""

    def __init__(self) -> None:
        self.handler: Handler = echo
        self.refuse: Response | None = None
        self.requests: list[Request] = []
        self.outcome: list[object] = []
        self.done = threading.Event()
        self.server: Server = serve(
            self._handle,
            "127.0.0.1",
            0,
            select_subprotocol=lambda connection, offered: offered[0] if offered else None,
            process_request=self._process,
            max_size=None,
        )
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.socket.getsockname()[1]}"

    def _process(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        return self.refuse

    def _handle(self, connection: ServerConnection) -> None:
        outcome, done = self.outcome, self.done  # of the current test, even if the handler ends after it
        try:
            self.handler(connection)
        except ConnectionClosed as closed:
            outcome.append(closed)
        finally:
            done.set()

    def close(self) -> None:
        """Stop accepting connections. The clients close theirs."""
        self.server.shutdown()
        self._thread.join()


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


@pytest.fixture(scope="module")
def tunnelling(server: Upstream) -> Iterator[Gateway]:
    with Gateway(server.url) as gateway:
        yield gateway


@pytest.fixture
def upstream(server: Upstream) -> Upstream:
    server.handler, server.refuse = echo, None
    server.requests.clear()
    server.outcome = []
    server.done = threading.Event()
    return server


@pytest.fixture
def url(tunnelling: Gateway) -> str:
    return tunnelling.url.replace("http:", "ws:") + "/v1/realtime?model=gpt%2Frealtime&x="


@contextlib.contextmanager
def session(url: str, **options: Any) -> Iterator[ClientConnection]:
    with connect(url, max_size=None, proxy=None, **options) as client:
        yield client


def test_messages(upstream: Upstream, url: str) -> None:
    """Text and binary messages, including empty ones, are relayed in both directions."""
    with session(url) as client:
        for message in ("hello", "", "\N{EURO SIGN}", b"", b"\x00\xff", "x" * 70_000, b"y" * 70_000):
            client.send(message)
            assert client.recv() == message


def test_handshake(upstream: Upstream, url: str) -> None:
    """Target, subprotocols, Origin and credentials reach upstream unchanged, and the client gets upstream's choice."""
    protocols = [Subprotocol("openai-insecure-api-key.sk-1"), Subprotocol("realtime")]
    headers = {"Authorization": "Bearer sk-2", "OpenAI-Beta": "realtime=v1"}
    with session(url, subprotocols=protocols, origin="https://ui.test", additional_headers=headers) as client:
        assert client.subprotocol == "openai-insecure-api-key.sk-1"
    (request,) = upstream.requests
    assert request.path == "/v1/realtime?model=gpt%2Frealtime&x="
    assert request.headers["Sec-WebSocket-Protocol"] == "openai-insecure-api-key.sk-1, realtime"
    assert request.headers["Origin"] == "https://ui.test"
    assert request.headers["Authorization"] == "Bearer sk-2"
    assert request.headers["OpenAI-Beta"] == "realtime=v1"
    assert request.headers["X-Forwarded-For"] == "127.0.0.1"
    assert len(request.headers.get_all("Host")) == 1


@pytest.mark.parametrize("compression", ["deflate", None])
def test_compression(upstream: Upstream, url: str, compression: str | None) -> None:
    """permessage-deflate is negotiated end to end, or not at all if the client does not offer it."""
    with session(url, compression=compression) as client:
        client.send("a" * 10_000)
        assert client.recv() == "a" * 10_000
        names = [extension.name for extension in client.protocol.extensions]
    assert names == (["permessage-deflate"] if compression else [])


def test_fragments(upstream: Upstream, url: str) -> None:
    """A message in fragments arrives in the same fragments."""
    fragments: list[object] = []

    def handler(connection: ServerConnection) -> None:
        fragments.extend(connection.recv_streaming())
        connection.send(iter(["one", "two"]))

    upstream.handler = handler
    with session(url, compression=None) as client:
        client.send(iter(["a", "bc", "", "d" * 70_000]))
        assert list(client.recv_streaming()) == ["one", "two", ""]
    assert fragments == ["a", "bc", "", "d" * 70_000, ""]


def test_pings(upstream: Upstream, url: str) -> None:
    """Pings are answered by the other peer."""

    def handler(connection: ServerConnection) -> None:
        assert connection.ping(b"from upstream").wait(10)
        connection.send("ponged")
        echo(connection)

    upstream.handler = handler
    with session(url) as client:
        assert client.recv() == "ponged"
        assert client.ping(b"from the client").wait(10)


def test_16_mib(upstream: Upstream, url: str) -> None:
    """A message of 16 MiB is relayed to upstream and back."""
    message = bytes(range(256)) * (16 * 4096)
    with session(url, compression=None) as client:
        client.send(message)
        assert client.recv() == message


def test_close_code_reaches_upstream(upstream: Upstream, url: str) -> None:
    """The client's close code and reason reach upstream."""
    codes: list[tuple[int, str]] = []

    def handler(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            connection.recv()
        assert connection.close_code is not None
        codes.append((connection.close_code, connection.close_reason or ""))

    upstream.handler = handler
    with session(url) as client:
        client.close(4001, "enough")
    assert upstream.done.wait(10)
    assert codes == [(4001, "enough")]


@pytest.mark.parametrize("code", [CloseCode.NORMAL_CLOSURE, CloseCode.INTERNAL_ERROR, 3000, 4999])
def test_close_code_reaches_client(upstream: Upstream, url: str, code: int) -> None:
    """Upstream's close code and reason reach the client."""
    upstream.handler = lambda connection: connection.close(code, "so it is")
    with session(url) as client:
        with pytest.raises(ConnectionClosed):
            client.recv()
        assert (client.close_code, client.close_reason) == (code, "so it is")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusals(upstream: Upstream, url: str, status: int) -> None:
    """The response of an upstream that refuses the handshake reaches the client unchanged."""
    body = b'{"detail": "no"}'
    headers = Headers({"X-Why": "because", "Content-Length": str(len(body)), "WWW-Authenticate": "Bearer"})
    upstream.refuse = Response(status, "Nope", headers, body)
    with pytest.raises(InvalidStatus) as refusal, session(url):
        pass
    response = refusal.value.response
    assert (response.status_code, response.reason_phrase, response.body) == (status, "Nope", body)
    assert (response.headers["X-Why"], response.headers["WWW-Authenticate"]) == ("because", "Bearer")


def test_client_vanishes(upstream: Upstream, url: str) -> None:
    """If the client disconnects without a close frame, upstream's connection ends without one too."""
    with session(url) as client:
        client.send("here")
        client.recv()
        client.socket.shutdown(socket.SHUT_RDWR)
        assert upstream.done.wait(10)
    assert [type(each) for each in upstream.outcome] == [ConnectionClosedError]


def test_upstream_vanishes(upstream: Upstream, url: str) -> None:
    """If upstream disconnects without a close frame, the client's connection ends without one too."""

    def handler(connection: ServerConnection) -> None:
        connection.recv()
        connection.socket.shutdown(socket.SHUT_RDWR)

    upstream.handler = handler
    with session(url) as client:
        client.send("go")
        with pytest.raises(ConnectionClosedError):
            client.recv()
        assert client.close_code == CloseCode.ABNORMAL_CLOSURE


def test_ends_are_no_errors(upstream: Upstream) -> None:
    """A tunnel that ends in good order, whichever side is first, is neither counted nor logged as an error."""
    ended = threading.Event()

    def handler(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            if connection.recv() == "you first":
                connection.recv()
            connection.socket.shutdown(socket.SHUT_WR)
            connection.recv()
        ended.set()

    upstream.handler = handler
    with Gateway(upstream.url) as gateway:
        url = gateway.url.replace("http:", "ws:")
        for word in ("you first", "me first"):
            ended.clear()
            with session(url) as client:
                client.send(word)
                if word == "me first":
                    with pytest.raises(ConnectionClosed):
                        client.recv()
            assert ended.wait(10)
        assert gateway.stop() == 0
    assert "upstream_errors" not in gateway.records[-1]
    assert not any(record["level"] == "warning" for record in gateway.records)


def test_slow_reader(upstream: Upstream, tunnelling: Gateway, url: str) -> None:
    """While the client does not read, the gateway does not buffer what upstream sends."""
    mib, growth = 1024 * 1024, 20 * 1024 * 1024
    unread = 2 * MAX_BUFFERED + growth
    number = (unread + 2 * growth) // mib
    sent: queue.SimpleQueue[int] = queue.SimpleQueue()

    def handler(connection: ServerConnection) -> None:
        for n in range(number):
            connection.send(bytes(mib))
            sent.put(n)

    upstream.handler = handler
    before = tunnelling.memory()
    with session(url, compression=None, max_queue=1) as client:
        taken = 0
        with contextlib.suppress(queue.Empty):
            while taken < number:
                sent.get(timeout=0.5)
                taken += 1
        assert taken * mib <= unread, "upstream could continue to send although the client does not read"
        assert tunnelling.memory() - before < growth
        for _ in range(number):
            assert len(client.recv()) == mib
        assert tunnelling.memory() - before < growth


def test_many_at_once(upstream: Upstream, url: str) -> None:
    """Tunnels that are open at the same time do not disturb each other."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(session(url)) for _ in range(20)]
        for n, client in enumerate(clients):
            client.send(f"number {n}")
        assert [client.recv() for client in clients] == [f"number {n}" for n in range(20)]

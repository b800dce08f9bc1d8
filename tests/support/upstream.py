"""A scripted upstream: records the exact bytes it receives, and sends, closes or resets as its script does.

A script is a function of a connection. It is called when the first byte of a request has arrived, and serves that one
request. `reply` makes a script from steps. `Upstream.script` may be replaced at any time, because it is looked up for
each request.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from tests.support import wire
from tests.support.client import Address
from tests.support.wire import Cut, Request, Wire, parse_head

T = TypeVar("T")


class Connection(Wire):
    """One accepted connection, numbered from 0."""

    def __init__(self, sock: socket.socket, number: int, upstream: Upstream) -> None:
        super().__init__(sock, keep=upstream.keep)
        self.number = number
        self.upstream = upstream
        self.done = threading.Event()  # set when the connection is closed and all it received is recorded

    def _fill(self, size: int = 65536) -> bytes:
        data = super()._fill(size)
        self.upstream.changed()
        return data

    def answer_first_look(self) -> bool:
        """If the request is the gateway's own first look, answer it as LiteLLM does, and do not record it."""
        if not self._buffer.startswith(FIRST_LOOK):
            return False
        self.read_until(b"\r\n\r\n")
        self.send(ALIVE)
        return True

    def read_head(self) -> Request:
        """Read the next request's head. The request is recorded, and is not complete yet.

        Raises:
            Cut: the connection ended first.
        """
        head = self.read_until(b"\r\n\r\n")
        start, fields = parse_head(head)
        request = Request(start, fields, raw_head=head, complete=False, connection=self.number)
        self.upstream.record(request)
        return request

    def read_request(self, *, continue_: bool = False) -> Request:
        """Read the next request. With ``continue_``, send ``100 Continue`` after its head if it has an Expect field.

        Raises:
            Cut: the connection ended before the request was complete.
        """
        request = self.read_head()
        if continue_ and request.get(b"expect"):
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.read_body(request)
        self.upstream.changed()
        if not request.complete:
            raise Cut(request.body, reset=False)
        return request


Script = Callable[[Connection], None]


@dataclass(frozen=True)
class Step:
    """An action of a script other than sending bytes."""

    name: str


CLOSE = Step("close")
RESET = Step("reset")
HALF_CLOSE = Step("half-close")
WAIT_CLOSED = Step("wait until the gateway closes")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FIRST_LOOK = b"GET /health/liveliness HTTP/1.1\r\n"
ALIVE = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n"I\'m alive!"'


def reply(*steps: bytes | Step | threading.Event, early: bool = False) -> Script:
    """A script that reads one whole request, and then performs ``steps``. With ``early``, it reads the head only."""

    def script(connection: Connection) -> None:
        if early:
            connection.read_head()
        else:
            connection.read_request(continue_=True)
        perform(connection, *steps)

    return script


def perform(connection: Connection, *steps: bytes | Step | threading.Event) -> None:
    """Perform ``steps`` in order: send bytes, do what a `Step` names, or wait until an event is set."""
    for step in steps:
        if isinstance(step, bytes):
            connection.send(step)
        elif isinstance(step, threading.Event):
            assert step.wait(wire.TIMEOUT), "the test did not set the event that its script waits for"
        elif step is CLOSE:
            connection.close()
        elif step is RESET:
            connection.reset()
        elif step is HALF_CLOSE:
            connection.half_close()
        elif step is WAIT_CLOSED:
            assert connection.closed(), "the gateway sent more instead of closing"


def in_turn(*scripts: Script) -> Script:
    """A script that serves each request by the next of ``scripts``. The last one serves all further requests."""
    lock = threading.Lock()
    remaining = list(scripts)

    def script(connection: Connection) -> None:
        with lock:
            current = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        current(connection)

    return script


class Upstream:
    """A server on ``host``, or on the unix socket ``uds``, with one thread per connection. A context manager."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        uds: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        context: ssl.SSLContext | None = None,
        keep: bool = True,
        receive_buffer: int | None = None,
        answers_first_look: bool = True,
    ) -> None:
        self.script = script or reply(OK)
        self._answers_first_look = answers_first_look
        self.keep = keep
        self.settle_timeout = 2.0  # seconds within which a gateway has to close connections that upstream has ended
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self.errors: list[BaseException] = []
        self._condition = threading.Condition()
        self._context = context
        self._listener = socket.socket(socket.AF_UNIX if uds else socket.AF_INET)
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(uds or (host, port))
        self._listener.listen(256)
        self.address: Address = uds or self._listener.getsockname()
        self._stopping = False
        self._thread = threading.Thread(target=self._accept, name="upstream", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        if isinstance(self.address, str):
            return f"unix:{self.address}"
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.address[1]}"

    @property
    def port(self) -> int:
        assert not isinstance(self.address, str)
        return self.address[1]

    @property
    def received(self) -> bytes:
        """Every byte received, connection by connection."""
        return b"".join(bytes(connection.received) for connection in self.connections)

    def record(self, request: Request) -> None:
        """Add ``request`` to the record."""
        with self._condition:
            self.requests.append(request)
            self._condition.notify_all()

    def changed(self) -> None:
        """Let `wait_for` evaluate its condition again."""
        with self._condition:
            self._condition.notify_all()

    def wait_for(self, condition: Callable[[], T]) -> T:
        """Wait until ``condition()`` is true, and return its value. It is evaluated whenever something arrives.

        Raises:
            AssertionError: it did not become true in time.
        """
        with self._condition:
            assert self._condition.wait_for(condition, wire.TIMEOUT), "upstream did not receive what the test waits for"
            return condition()

    def wait_request(self, number: int = 1) -> Request:
        """Wait until ``number`` request heads have arrived in all. Returns the last of these requests."""
        self.wait_for(lambda: len(self.requests) >= number)
        return self.requests[number - 1]

    def wait_closed(self, number: int = 0) -> None:
        """Wait until the connection with this number is closed."""
        self.wait_for(lambda: len(self.connections) > number)
        assert self.connections[number].done.wait(wire.TIMEOUT), "the gateway did not close its upstream connection"

    def settle(self) -> None:
        """Half-close every connection, and wait until the gateway has closed it too, so that all it sent is recorded.

        Connections that it has not closed within `settle_timeout` are shut down.
        """
        for connection in self.connections:
            if not connection.done.is_set():
                with contextlib.suppress(OSError):
                    connection.half_close()
        until = time.monotonic() + self.settle_timeout
        for connection in self.connections:
            if not connection.done.wait(max(0, until - time.monotonic())):
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def restart(self, script: Script | None = None) -> None:
        """Call `settle`, discard what was recorded, and continue with another script."""
        self.settle()
        with self._condition:
            self.requests = []
            self.connections = []
            self.errors = []
            self.script = script or reply(OK)

    def stop(self) -> None:
        """Close the listener and every connection."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(wire.TIMEOUT)
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for connection in self.connections:
            assert connection.done.wait(wire.TIMEOUT)
        for connection in self.connections:
            connection.close()

    def __enter__(self) -> Upstream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is None and self.errors:
            raise self.errors[0]

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), name="upstream connection", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        if self._context is not None:
            try:
                sock.settimeout(wire.TIMEOUT)
                sock = self._context.wrap_socket(sock, server_side=True)
            except OSError:  # the gateway has refused the certificate, or closed the connection
                sock.close()
                return
        with self._condition:
            connection = Connection(sock, len(self.connections), self)
            self.connections.append(connection)
            self._condition.notify_all()
        connection.sock.settimeout(None)  # a connection may be idle for any time
        try:
            while connection.wait_readable():
                connection.sock.settimeout(wire.TIMEOUT)
                if self._answers_first_look and connection.answer_first_look():
                    break
                self.script(connection)
                if connection.sock.fileno() < 0:
                    break
                connection.sock.settimeout(None)
        except Cut:
            pass
        except (AssertionError, OSError) as error:
            if not self._stopping and not isinstance(error, ConnectionError):
                self.errors.append(error)
        finally:
            connection.close()
            connection.done.set()
            self.changed()


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port of loopback that refuses connections: it is bound, so that nothing else can listen there."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]

"""A scripted upstream: records the exact bytes it receives, answers what the script says, or breaks off as it says.

A script is a function of one connection, called when the first byte of a request is there; it serves that one request.
`reply` builds the common ones from steps. ``upstream.script`` may be replaced at any time: it is looked up per request.
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
        self.done = threading.Event()  # the connection is over, and everything it received is recorded

    def _fill(self, size: int = 65536) -> bytes:
        data = super()._fill(size)
        self.upstream.changed()
        return data

    def answer_first_look(self) -> bool:
        """Answer as LiteLLM does if the gateway's own first look has come, and keep it out of the record."""
        if not self._buffer.startswith(FIRST_LOOK):
            return False
        self.read_until(b"\r\n\r\n")
        self.send(ALIVE)
        return True

    def read_head(self) -> Request:
        """The next request's head, recorded as a request that is not complete yet.

        Raises:
            Cut: the connection ended first.
        """
        head = self.read_until(b"\r\n\r\n")
        start, fields = parse_head(head)
        request = Request(start, fields, raw_head=head, complete=False, connection=self.number)
        self.upstream.record(request)
        return request

    def read_request(self, *, continue_: bool = False) -> Request:
        """The next request with its content, with ``100 Continue`` sent in between if asked for and expected.

        Raises:
            Cut: the connection ended before the request was whole.
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
    """Something a script does besides sending bytes."""

    name: str


CLOSE = Step("close")
RESET = Step("reset")
HALF_CLOSE = Step("half-close")
WAIT_CLOSED = Step("wait until the gateway closes")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FIRST_LOOK = b"GET /health/liveliness HTTP/1.1\r\n"
ALIVE = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n"I\'m alive!"'


def reply(*steps: bytes | Step | threading.Event, early: bool = False) -> Script:
    """A script that reads one whole request and then goes through ``steps``; with ``early``, it reads the head only.

    An event among the steps is waited for.
    """

    def script(connection: Connection) -> None:
        if early:
            connection.read_head()
        else:
            connection.read_request(continue_=True)
        perform(connection, *steps)

    return script


def perform(connection: Connection, *steps: bytes | Step | threading.Event) -> None:
    for step in steps:
        if isinstance(step, bytes):
            connection.send(step)
        elif isinstance(step, threading.Event):
            assert step.wait(wire.TIMEOUT), "the test never set the event its script waits for"
        elif step is CLOSE:
            connection.close()
        elif step is RESET:
            connection.reset()
        elif step is HALF_CLOSE:
            connection.half_close()
        elif step is WAIT_CLOSED:
            assert connection.closed(), "the gateway sent more instead of closing"


def in_turn(*scripts: Script) -> Script:
    """The first request is served by the first script, and so on; the last serves all that follow."""
    lock = threading.Lock()
    left = list(scripts)

    def script(connection: Connection) -> None:
        with lock:
            current = left.pop(0) if len(left) > 1 else left[0]
        current(connection)

    return script


class Upstream:
    """A listening socket on ``host`` (or ``uds``), one thread a connection. A context manager."""

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
        self.patience = 2.0  # seconds in which a gateway should notice that an idle connection has ended
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
        """Every byte of every connection, in the order of the connections."""
        return b"".join(bytes(connection.received) for connection in self.connections)

    def record(self, request: Request) -> None:
        with self._condition:
            self.requests.append(request)
            self._condition.notify_all()

    def changed(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def wait_for(self, condition: Callable[[], T]) -> T:
        """Wait until ``condition()`` is true; it is looked at whenever something arrives.

        Raises:
            AssertionError: it did not come true in time.
        """
        with self._condition:
            assert self._condition.wait_for(condition, wire.TIMEOUT), "upstream never saw what the test waits for"
            return condition()

    def wait_request(self, number: int = 1) -> Request:
        """Wait until ``number`` request heads have arrived in all; the last of them."""
        self.wait_for(lambda: len(self.requests) >= number)
        return self.requests[number - 1]

    def wait_closed(self, number: int = 0) -> None:
        """Wait until the connection with that number is over."""
        self.wait_for(lambda: len(self.connections) > number)
        assert self.connections[number].done.wait(wire.TIMEOUT), "the gateway never closed its upstream connection"

    def settle(self) -> None:
        """Say good-bye on every connection and wait until the gateway has gone too, so that all it sent is recorded."""
        for connection in self.connections:
            if not connection.done.is_set():
                with contextlib.suppress(OSError):
                    connection.half_close()
        until = time.monotonic() + self.patience
        for connection in self.connections:
            if not connection.done.wait(max(0, until - time.monotonic())):
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def restart(self, script: Script | None = None) -> None:
        """Settle, forget what happened so far, and go on with another script."""
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
            except OSError:  # the gateway did not like the certificate, or has gone
                sock.close()
                return
        with self._condition:
            connection = Connection(sock, len(self.connections), self)
            self.connections.append(connection)
            self._condition.notify_all()
        # an idle connection waits for its next request as long as the test likes
        connection.sock.settimeout(None)
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
            # everything is recorded, the gateway has gone or has been sent away
            connection.close()
            connection.done.set()
            self.changed()


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port of loopback on which nothing listens, kept from others while the test runs."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]

"""Client connections behave as a model predicts, whatever clients, upstream and the clock do, in any order.

At least two client connections share a pool. Only the event loop and the transports are fake. Clients send requests in
any pieces, stop reading, and disconnect. Upstream accepts or refuses connections, sends responses in any pieces, closes
connections, and stops reading for a while. The clock moves. After each step the model predicts

* which complete responses each client has received, in the order of its requests, and how its connection has ended;
* what upstream has received: the content of each request as far as it has been sent, and no POST on two connections;
* the values of the counters, and which connections exist;
* from which peers reading may be paused;
* what each side of a tunnel has received, and how it has ended.

The model does not predict which request a new connection is for, or in which order requests get one. `test_pool` tests
that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import h11
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sanitizer.relay.client import ClientConnection
from sanitizer.relay.connection import Connection
from sanitizer.relay.interception import SendLookup
from tests.support.cores import BODY, Core
from tests.support.fake_gateway import KEEPALIVE, FakeGateway, make_connection, shut_down
from tests.support.transitions import record
from tests.support.virtual import Attempt, FakeTransport, VirtualLoop, virtual_loop

EXAMPLES: Final = int(os.environ.get("MACHINE_EXAMPLES", "300"))
HEAD_LIMIT: Final = 64 * 1024
HEAD_TIMEOUT: Final = 30.0
LINGER: Final = 5.0
LINGER_LIMIT: Final = 30.0
CLOSE_NOTIFY: Final = 0.25
"""Seconds until a closed TLS connection is aborted after the client has received everything.

Like all times here, it is exact as a float, and so are its sums.
"""
RESPONSE_TIMEOUT: Final = 20.0
HELD: Final = 64 * 1024
"""A request with more bytes than this is not sent a second time."""
PIPELINED: Final = 64 * 1024
"""If more bytes than this of further requests wait, reading from their client is paused."""
SMALL: Final = 16 * 1024
"""A request with at most this many bytes is assumed to have been received when upstream responds."""
LARGE: Final = 70_000
IDEMPOTENT: Final = (b"GET", b"HEAD", b"PUT")


class TLSTransport(FakeTransport):
    """The transport of a TLS connection whose client does not reply to close_notify: only `abort` ends it."""

    changed = 0.0
    """When `close` was called, or when the client last received everything."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return True if name == "sslcontext" else super().get_extra_info(name, default)

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closing = True
        self.changed = self.loop.now

    def unblock(self) -> None:
        self.blocked = False
        self.unsent = 0
        self.changed = self.loop.now
        self.loop.act(self.protocol.resume_writing)


def may_be_open(transport: FakeTransport) -> bool:
    """Whether a transport may still be open after `close` was called."""
    if isinstance(transport, TLSTransport) and transport.loop.now < transport.changed + CLOSE_NOTIFY:
        return True
    return transport.unsent > 0


# Requests


@dataclass
class Request:
    """A request: its octets in ``wire``, and their meaning.

    ``head`` is the size of the head, and ``delivered`` how many of the octets the gateway has received. ``fault`` is
    the part that the gateway refuses: the head, or the content, whose malformed octets end at ``fault_at``.
    """

    method: bytes
    target: bytes
    wire: bytes
    head: int
    body: bytes = b""
    framing: Literal["none", "length", "chunked"] = "none"
    version: bytes = b"1.1"
    stays_open: bool = True
    fault: Literal["", "head", "content"] = ""
    refused_with: int = 0
    fault_at: int = 0
    delivered: int = 0
    spans: list[tuple[int, bytes]] = field(default_factory=list)
    """Each piece of the content, after its position in ``wire``."""

    @property
    def whole(self) -> bool:
        return self.delivered == len(self.wire)

    @property
    def begun(self) -> bool:
        return self.delivered > 0

    @property
    def head_is_whole(self) -> bool:
        return self.delivered >= self.head

    def sent_content(self) -> bytes:
        """The content that the gateway has received so far."""
        return b"".join(piece[: max(self.delivered - at, 0)] for at, piece in self.spans)

    def held_size(self, head_upstream: int) -> int:
        """How many bytes there are for upstream so far, if its head has ``head_upstream`` bytes."""
        overhead = sum(len(b"%x\r\n\r\n" % len(piece)) for _, piece in self.spans) if self.framing == "chunked" else 0
        return head_upstream + len(self.sent_content()) + overhead


def make_request(kind: str, target: bytes, body: bytes) -> Request:
    """A request of the named ``kind``."""
    host = b"Host: example.test\r\n"
    if kind == "GET upgrade":
        head = b"GET %b HTTP/1.1\r\n%bConnection: Upgrade\r\nUpgrade: echo\r\n\r\n" % (target, host)
        return Request(b"GET", target, head, len(head))
    if kind in ("GET", "HEAD"):
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (kind.encode(), target, host)
        return Request(kind.encode(), target, head, len(head))
    if kind == "GET close":
        head = b"GET %b HTTP/1.1\r\n%bConnection: close\r\n\r\n" % (target, host)
        return Request(b"GET", target, head, len(head), stays_open=False)
    if kind == "GET 1.0":
        head = b"GET %b HTTP/1.0\r\n\r\n" % target
        return Request(b"GET", target, head, len(head), version=b"1.0", stays_open=False)
    if kind in ("POST", "PUT"):
        head = b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (kind.encode(), target, host, len(body))
        framing: Literal["none", "length"] = "length" if body else "none"
        spans = [(len(head), body)]
        return Request(kind.encode(), target, head + body, len(head), body, framing, spans=spans)
    if kind in ("POST chunked", "PUT chunked", "POST faulty"):
        method = kind.partition(" ")[0].encode()
        head = b"%b %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (method, target, host)
        wire = head
        spans = []
        for piece in (body[: len(body) // 2], body[len(body) // 2 :]):
            if piece:
                wire += b"%x;extension\r\n" % len(piece)
                spans.append((len(wire), piece))
                wire += piece + b"\r\n"
        request = Request(method, target, b"", len(head), body, "chunked", spans=spans)
        if kind == "POST faulty":
            wire += b"no size\r\n"
            request.fault, request.refused_with, request.fault_at = "content", 400, len(wire)
        request.wire = wire + b"0\r\nX-Checksum: 1\r\n\r\n"
        return request
    if kind == "no host":
        head = b"GET %b HTTP/1.1\r\n\r\n" % target
        return Request(b"GET", target, head, len(head), stays_open=False, fault="head", refused_with=400)
    if kind == "two hosts":
        head = b"POST %b HTTP/1.1\r\n%b%b\r\n" % (target, host, host)
        return Request(b"POST", target, head, len(head), stays_open=False, fault="head", refused_with=400)
    assert kind == "oversized"
    head = b"GET %b HTTP/1.1\r\n%bX: " % (target, host)
    head += b"x" * (HEAD_LIMIT + 1 - len(head))
    return Request(b"", b"", head, len(head), stays_open=False, fault="head", refused_with=431)


REQUESTS: Final = (
    "GET",
    "GET close",
    "GET 1.0",
    "GET upgrade",
    "HEAD",
    "POST",
    "POST chunked",
    "PUT",
    "PUT chunked",
    "POST faulty",
    "no host",
    "two hosts",
    "oversized",
)


# Responses


@dataclass
class Answer:
    """A response of upstream: its octets in ``wire``, of which ``sent`` have been sent, and their meaning.

    The final head ends at ``head``, and the response at ``end``. Octets after that belong to no response. Once
    ``faulty_at`` octets have been sent, the response is malformed; 0 if it never is.
    """

    status: int
    body: bytes
    wire: bytes
    head: int
    end: int
    interim: int = 0
    until_close: bool = False
    reusable: bool = True
    faulty_at: int = 0
    sent: int = 0
    closes: bool = False
    """Whether the head that the client receives must have Connection: close. Set when the response has begun."""

    @property
    def begun(self) -> bool:
        """Whether the final head has been sent."""
        return self.sent >= self.head


def make_answer(kind: str, method: bytes, body: bytes, interim: int) -> Answer:
    """A response of the named ``kind`` to a request with ``method``, after ``interim`` interim responses."""
    has_content = method != b"HEAD"
    before = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * interim
    status, fields, content = 200, b"Content-Length: %d\r\n" % len(body), body
    until_close, reusable = False, True
    if kind == "chunked":
        half = len(body) // 2
        pieces = [piece for piece in (body[:half], body[half:]) if piece]
        fields = b"Transfer-Encoding: chunked\r\n"
        content = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Trailer: 1\r\n\r\n"
    elif kind == "until close":
        fields, until_close, reusable = b"", has_content, not has_content
    elif kind == "no content":
        status, fields, body, content = 204, b"", b"", b""
    elif kind == "not modified":
        status, body, content = 304, b"", b""
    elif kind == "close":
        fields += b"Connection: close\r\n"
        reusable = False
    if not has_content:
        body = content = b""
    head = before + b"HTTP/1.1 %d Whatever\r\n%b\r\n" % (status, fields)
    wire = head + content
    answer = Answer(status, body, wire, len(head), len(wire), interim, until_close, reusable)
    if kind == "surplus":
        answer.wire += b"HTTP/1.1 200 OK\r\n"
    elif kind == "faulty head":
        answer.wire = before + b"SSH-2.0\r\n\r\n"
        answer.head = answer.end = len(answer.wire) + 1
        answer.faulty_at = len(before) + 1
    elif kind == "faulty content" and has_content:
        answer.wire = head.replace(fields, b"Transfer-Encoding: chunked\r\n") + b"1\r\nx\r\nno size\r\n"
        answer.status, answer.body = 200, b"x"
        answer.head = answer.wire.index(b"1\r\nx")
        answer.faulty_at = len(answer.wire)
        answer.end = len(answer.wire) + 1
    return answer


ANSWERS: Final = (
    "length",
    "chunked",
    "until close",
    "no content",
    "not modified",
    "close",
    "surplus",
    "faulty head",
    "faulty content",
)


# The two peers


@dataclass
class Seen:
    """A request as far as upstream has received it."""

    method: bytes
    target: bytes
    client: Client
    number: int
    """Its index among the requests of its client."""
    reused: bool
    """Whether its connection was idle before it, so that upstream may have closed it."""
    head: int
    content: bytes = b""
    whole: bool = False
    size: int = 0
    """How many bytes of it have been written, including its head and its chunk framing."""
    changed: float = 0.0
    """When the latest byte of it was written."""


class Origin:
    """A connection from the gateway, as upstream sees it. h11 parses the requests on it."""

    def __init__(self, transport: FakeTransport) -> None:
        self.transport = transport
        self.read = 0
        self.seen: list[Seen] = []
        self.current: Seen | None = None
        self.answer: Answer | None = None
        self.stale = False
        self.tunnel: Tunnel | None = None
        self.free = not transport.written
        """Whether it has been idle: it was not used when it was opened, or it has had a request."""
        self._parser = h11.Connection(h11.SERVER)

    @property
    def idle(self) -> bool:
        """Whether the gateway may use the connection for another request."""
        return self.current is None and not self.transport.closing and self.tunnel is None

    def old(self, now: float) -> bool:
        """Whether the connection has reached the end of its lifetime."""
        assert isinstance(self.transport.protocol, Connection)
        return now >= self.transport.protocol.expires_at

    def go_stale(self) -> None:
        self.stale = True
        self.transport.socket.make_readable()

    def receive(self, clients: list[Client]) -> None:
        """Read what the gateway has written."""
        if self.tunnel is not None:
            return
        fresh = bytes(self.transport.written[self.read :])
        self.read += len(fresh)
        if not fresh:
            return
        assert not self.stale, "a request on a connection with unread octets"
        if self.current is None:
            self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self._parser.receive_data(fresh)
        while True:
            event = self._parser.next_event()
            if isinstance(event, h11.Request):
                assert self.current is None
                client = clients[int(event.target.split(b"/")[1])]
                assert client.active is not None
                assert client.origin is None, "a request on two connections at once"
                head = fresh.index(b"\r\n\r\n") + 4
                self.current = Seen(event.method, event.target, client, client.finished, self.free, head)
                self.free = True
                self.seen.append(self.current)
                client.origin = self
                client.transmissions.append(self.current)
            elif isinstance(event, h11.Data):
                assert self.current is not None
                self.current.content += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert self.current is not None
                self.current.whole = True
            else:
                break
        assert self.current is not None
        self.current.changed = self.transport.loop.now
        self.current.size += len(fresh)
        assert self._parser.trailing_data[0] == b"", "octets after a request"


@dataclass
class Expected:
    """A complete response that a client must have received."""

    status: int
    body: bytes
    closes: bool
    interim: int = 0
    own: bool = False
    """Whether the gateway has generated it."""


class Reader:
    """Reads the responses on a client's connection, with h11."""

    def __init__(self) -> None:
        self.responses: list[Expected] = []
        self.partial: Expected | None = None
        self.interim = 0
        self._parser: h11.Connection | None = None

    def feed(self, data: bytes, methods: list[bytes], *, ended: bool = False) -> None:
        """Read ``data``. ``ended``: whether the connection ends after it.

        ``methods`` are the methods of all requests on the connection.
        """
        while data or ended:
            if self._parser is None:
                if not data:
                    return
                self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
                method = methods[len(self.responses)] if len(self.responses) < len(methods) else b""
                self._parser.send(h11.Request(method=method or b"GET", target="/", headers=[("Host", "a")]))
                self._parser.send(h11.EndOfMessage())
            if not data and self.partial is None:
                return  # no response has begun, so none ends with the connection
            self._parser.receive_data(data)
            end_to_come, data = ended and bool(data), b""
            while True:
                event = self._parser.next_event()
                if isinstance(event, h11.InformationalResponse):
                    self.interim += 1
                elif isinstance(event, h11.Response):
                    closes = (b"connection", b"close") in list(event.headers)
                    own = (b"content-type", b"application/json") in list(event.headers)
                    self.partial = Expected(event.status_code, b"", closes, self.interim, own)
                    self.interim = 0
                elif isinstance(event, h11.Data):
                    assert self.partial is not None
                    self.partial.body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    assert self.partial is not None
                    self.responses.append(self.partial)
                    self.partial = None
                    data = self._parser.trailing_data[0]
                    self._parser = None
                    break
                elif end_to_come:
                    break
                else:
                    return


Ending = Literal["", "fin", "linger", "reset", "left", "tunnel"]
SWITCH: Final = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


class Tunnel:
    """A tunnel between two transports, and the state that the model predicts for it.

    In each pair the client's side is first. ``due``: the octets that each side must have been sent since the tunnel
    began. ``ended``: which sides have sent FIN. ``over``: whether both connections must be closed.
    """

    def __init__(self, client: FakeTransport, upstream: FakeTransport) -> None:
        self.sides = (client, upstream)
        self.begun = (len(client.written), len(upstream.written))
        self.due = [b"", b""]
        self.ended = [False, False]
        self.over = False

    @property
    def open(self) -> bool:
        """Whether the tunnel is counted: it is until the client's connection is lost."""
        return not self.sides[0].lost

    def check(self) -> None:
        for transport, begun, due, other_ended, other in zip(
            self.sides, self.begun, self.due, reversed(self.ended), reversed(self.sides), strict=True
        ):
            assert transport.written[begun:] == due
            if self.over:
                assert transport.closing
                assert transport.lost or may_be_open(transport)
            else:
                assert not transport.closing
                assert transport.eof_written == other_ended
                assert transport.reading != other.blocked


class Client:
    """A client, and the state that the model predicts for its connection.

    ``finished`` counts the requests that have ended, and ``active`` is the one in progress. ``ending`` is how the
    connection ends or has ended: "fin" after everything was written, "linger" with time for the client to read its last
    response, "reset", "left" because the client has disconnected, or "tunnel" if it has become one. It is "" while the
    connection stays open.
    """

    def __init__(self, number: int, transport: FakeTransport, now: float) -> None:
        self.number = number
        self.transport = transport
        self.requests: list[Request] = []
        self.outgoing = b""
        self.finished = 0
        self.active: Request | None = None
        self.origin: Origin | None = None
        self.transmissions: list[Seen] = []
        self.retried = False
        self.last = False
        self.ending: Ending = ""
        self.expected: list[Expected] = []
        self.reader = Reader()
        self.read = 0
        self.deadline = now + KEEPALIVE
        self.linger_end = now
        self.untaken = float("inf")
        """How many bytes it had not received at its latest deadline since the last response."""
        self.lost_by = float("inf")
        """When its connection must have ended, even if it does not read."""
        self.head_begun = False
        """Whether the gateway has begun to read a head that is not complete."""

    @property
    def next(self) -> Request | None:
        """The next request to begin; None while another one is in progress, or if there is none."""
        return self.requests[self.finished] if self.active is None and self.finished < len(self.requests) else None

    def waiting(self) -> int:
        """How many bytes the gateway has received of the requests after the one in progress."""
        ahead = self.finished if self.active is None else self.finished + 1
        return sum(request.delivered for request in self.requests[ahead:])

    def delivered(self, size: int) -> None:
        """The gateway receives the next ``size`` bytes."""
        for request in self.requests:
            part = min(size, len(request.wire) - request.delivered)
            request.delivered += part
            size -= part


def at_work(clients: list[Client]) -> list[Client]:
    """The clients with a request in progress, or all clients if none has one."""
    return [client for client in clients if client.active is not None] or clients


class ClientMachine(RuleBasedStateMachine):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.clients: list[Client] = []
        self.origins: list[Origin] = []
        self.ended: list[tuple[bytes, bytes, int]] = []
        self.started = 0
        self.answers = 0
        self.refusals = 0
        self.allowed: Counter[int] = Counter()
        """How many requests without a connection may fail in this step, by the status of the gateway's response."""
        self.upstream_closed = False
        self.gateway: FakeGateway

    @initialize(
        response_timeout=st.sampled_from([None, RESPONSE_TIMEOUT]),
        max_connections=st.sampled_from([None, None, 1]),
        tls=st.sampled_from([False, False, True]),
    )
    def start(self, response_timeout: float | None, max_connections: int | None, *, tls: bool) -> None:
        self.tls = tls
        self.response_timeout = response_timeout
        self.max_connections = max_connections
        self.gateway = self.loop.act(FakeGateway, response_timeout=response_timeout, max_connections=max_connections)
        for _ in range(2):
            self.connect()

    def connect(self) -> None:
        kind = TLSTransport if self.tls else FakeTransport
        self.clients.append(Client(len(self.clients), make_connection(self.gateway, self.loop, kind), self.loop.now))

    # What rules act on

    def open_clients(self) -> list[Client]:
        return [client for client in self.clients if not client.ending]

    def answering(self) -> list[Origin]:
        """Connections on which upstream has sent only a part of its response."""
        return [
            origin
            for origin in self.origins
            if origin.answer is not None and origin.answer.sent < len(origin.answer.wire) and origin.transport.readable
        ]

    def quiet(self) -> list[Client]:
        """Clients whose requests have all ended."""
        return [client for client in self.open_clients() if client.next is None and client.active is None]

    def http_origins(self) -> list[Origin]:
        """Open connections to upstream that are not tunnels."""
        return [origin for origin in self.origins if not origin.transport.closing and origin.tunnel is None]

    def switching(self) -> list[Origin]:
        """Connections on which upstream may switch protocols: their clients have nothing to send after the request."""
        return [
            origin
            for origin in self.asked()
            if origin.current is not None
            and origin.current.client.active is not None
            and b"Upgrade: " in origin.current.client.active.wire
            and not origin.current.client.outgoing
            and not origin.current.client.waiting()
            and origin.transport.readable
        ]

    def tunnels(self) -> list[Tunnel]:
        """The tunnels whose connections are not to be closed."""
        return [origin.tunnel for origin in self.origins if origin.tunnel is not None and not origin.tunnel.over]

    def asked(self) -> list[Origin]:
        """Connections on which upstream has a request and no response yet."""
        return [
            origin
            for origin in self.origins
            if origin.current is not None and origin.answer is None and not origin.transport.closing
        ]

    # Rules: clients

    @precondition(lambda self: self.open_clients())
    @rule(
        data=st.data(),
        kind=st.sampled_from(REQUESTS[:9] * 3 + REQUESTS),
        same=st.booleans(),
        size=st.sampled_from([0, 1, 12, 12, LARGE]),
        now=st.sampled_from([True, True, False]),
    )
    def compose(self, data: st.DataObject, kind: str, same: bool, size: int, now: bool) -> None:
        """A client has another request to send, and mostly sends it at once."""
        client = data.draw(st.sampled_from(self.open_clients()))
        self.add_request(client, kind, same=same, size=size)
        if now:
            self.send(client, len(client.outgoing))

    def add_request(self, client: Client, kind: str, *, same: bool, size: int) -> None:
        if client.requests and client.requests[-1].fault:
            return  # what follows is never read
        number = len(client.requests)
        body = (b"%d:" % number + b"b" * size)[:size]
        request = make_request(kind, b"/%d/%b" % (client.number, b"same" if same else b"%d" % number), body)
        client.requests.append(request)
        client.outgoing += request.wire

    @precondition(lambda self: self.quiet())
    @rule(
        data=st.data(),
        request=st.sampled_from(("GET", "POST", "PUT chunked", "HEAD", "GET 1.0")),
        answer=st.sampled_from(ANSWERS),
        interim=st.sampled_from([0, 0, 1]),
        same=st.sampled_from([True, True, False]),
    )
    def ask(self, data: st.DataObject, request: str, answer: str, interim: int, same: bool) -> None:
        """A client sends a request and receives the response. This usually leaves an idle connection in the pool."""
        client = data.draw(st.sampled_from(self.quiet()))
        self.add_request(client, request, same=same, size=12)
        self.send(client, len(client.outgoing))
        self.consistent()
        self.accept_all()
        if client.origin is not None:
            self.respond_on(client.origin, answer, 20, interim)

    def accept_all(self) -> None:
        for attempt in list(self.loop.attempts):
            self.origins.append(Origin(attempt.accept()))
            self.consistent()

    @precondition(lambda self: self.quiet())
    @rule(
        data=st.data(),
        kind=st.sampled_from(("POST", "POST chunked", "PUT", "PUT chunked", "POST faulty", "GET")),
        part=st.sampled_from([0, 1, 20]),
        same=st.sampled_from([True, True, False]),
        seconds=st.sampled_from([0.0, 0.0, 100.0]),
    )
    def begin_request(self, data: st.DataObject, kind: str, part: int, same: bool, seconds: float) -> None:
        """A client sends a request head and part of the content, upstream accepts a connection, and time may pass."""
        client = data.draw(st.sampled_from(self.quiet()))
        self.add_request(client, kind, same=same, size=30)
        if client.next is not None:
            self.send(client, client.next.head + part)
            self.consistent()
            self.accept_all()
            self.pass_time(seconds)

    @precondition(lambda self: self.quiet())
    @rule(data=st.data(), stale=st.booleans())
    def ask_and_leave(self, data: st.DataObject, stale: bool) -> None:
        """A client disconnects before there is a connection for its request. The pool may get an unused connection."""
        client = data.draw(st.sampled_from(self.quiet()))
        self.add_request(client, "GET", same=True, size=0)
        self.send(client, len(client.outgoing))
        self.consistent()
        client.transport.reset()
        self.left(client)
        self.loop.settle()
        self.consistent()
        self.accept_all()
        if stale and self.origins and self.origins[-1].idle and not self.origins[-1].stale:
            self.origins[-1].go_stale()

    @precondition(lambda self: any(client.outgoing for client in self.open_clients()))
    @rule(data=st.data(), size=st.sampled_from([1, 5, 20, 60, 100, 1 << 20]))
    def send_some(self, data: st.DataObject, size: int) -> None:
        clients = [client for client in self.open_clients() if client.outgoing]
        self.send(data.draw(st.sampled_from(at_work(clients))), size)

    def send(self, client: Client, size: int) -> None:
        if not client.transport.readable:
            return
        piece, client.outgoing = client.outgoing[:size], client.outgoing[size:]
        client.delivered(len(piece))
        client.transport.feed(piece)
        self.loop.settle()

    @precondition(lambda self: any(client.ending == "linger" for client in self.clients))
    @rule()
    def send_on(self) -> None:
        """Lingering clients go on sending. Their octets are discarded, but give them more time."""
        for client in self.clients:
            if client.ending == "linger" and client.transport.readable:
                client.transport.feed(client.outgoing[:100] or b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                client.deadline = max(client.deadline, min(self.loop.now + LINGER, client.linger_end))

    @precondition(lambda self: self.open_clients())
    @rule(data=st.data(), how=st.sampled_from(["eof", "reset"]))
    def leave(self, data: st.DataObject, how: str) -> None:
        client = data.draw(st.sampled_from(at_work(self.open_clients())))
        transport = client.transport
        if how == "eof":
            if transport.readable:  # a FIN is detected by reading
                transport.feed_eof()
                self.half_closed(client)
        else:
            transport.reset()
            self.left(client)

    @precondition(
        lambda self: any(each.transport.written and not each.transport.blocked for each in self.open_clients())
    )
    @rule(data=st.data())
    def stop_taking(self, data: st.DataObject) -> None:
        clients = [each for each in self.open_clients() if each.transport.written and not each.transport.blocked]
        data.draw(st.sampled_from(at_work(clients))).transport.block()

    @precondition(lambda self: any(each.transport.blocked and not each.transport.lost for each in self.clients))
    @rule(data=st.data())
    def take_again(self, data: st.DataObject) -> None:
        blocked = [each for each in self.clients if each.transport.blocked and not each.transport.lost]
        data.draw(st.sampled_from(blocked)).transport.unblock()

    # Rules: upstream

    @precondition(lambda self: self.loop.attempts)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        attempt: Attempt = data.draw(st.sampled_from(self.loop.attempts))
        self.origins.append(Origin(attempt.accept()))

    @precondition(lambda self: self.loop.attempts)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        attempt: Attempt = data.draw(st.sampled_from(self.loop.attempts))
        self.allowed[502] += 1
        attempt.refuse(ConnectionRefusedError("refused"))

    @precondition(lambda self: self.asked())
    @rule(
        data=st.data(),
        kind=st.sampled_from(ANSWERS),
        size=st.sampled_from([0, 1, 20]),
        interim=st.sampled_from([0, 0, 1, 2]),
        now=st.booleans(),
    )
    def respond(self, data: st.DataObject, kind: str, size: int, interim: int, now: bool) -> None:
        """Upstream has a response to send, and sends it at once or later in pieces."""
        origin = data.draw(st.sampled_from(self.asked()))
        self.respond_on(origin, kind, size, interim, now=now)

    def respond_on(self, origin: Origin, kind: str, size: int, interim: int, *, now: bool = True) -> None:
        assert origin.current is not None
        self.answers += 1
        body = (b"%d:" % self.answers + b"a" * size)[:size]
        origin.answer = make_answer(kind, origin.current.method, body, interim)
        if now and origin.transport.readable:
            self.go_on(origin, len(origin.answer.wire))
            if origin.answer is not None and origin.answer.until_close and origin.transport.readable:
                self.end(origin, "eof")

    @precondition(lambda self: self.asked())
    @rule(
        data=st.data(),
        kind=st.sampled_from(("length", "chunked", "until close", "close", "surplus", "faulty content")),
        interim=st.sampled_from([0, 0, 1]),
        part=st.sampled_from([0, 1, 5]),
    )
    def begin_response(self, data: st.DataObject, kind: str, interim: int, part: int) -> None:
        """Upstream sends the head of a response and part of its content, preferably before the request is complete."""
        origins = self.asked()
        early = [origin for origin in origins if origin.current is not None and not origin.current.whole]
        origin = data.draw(st.sampled_from(early or origins))
        self.respond_on(origin, kind, 20, interim, now=False)
        if origin.answer is not None and origin.transport.readable:
            self.go_on(origin, origin.answer.head + part)

    @precondition(lambda self: self.answering())
    @rule(data=st.data(), size=st.sampled_from([1, 5, 30, 60, 1000, 1000]))
    def answer_some(self, data: st.DataObject, size: int) -> None:
        self.go_on(data.draw(st.sampled_from(self.answering())), size)

    @precondition(lambda self: self.answering())
    @rule(data=st.data(), more=st.booleans())
    def answer_who_leaves(self, data: st.DataObject, *, more: bool) -> None:
        """The rest of a response is received in the iteration of the event loop in which its client is reset.

        ``more``: whether the client has sent another request before that.
        """
        origin = data.draw(st.sampled_from(self.answering()))
        assert origin.answer is not None
        assert origin.current is not None
        client = origin.current.client
        if more:
            self.add_request(client, "POST", same=False, size=12)
            self.send(client, len(client.outgoing))
            self.consistent()
            if origin.current is None:
                return  # sending has ended the request
        expected = list(client.expected)
        client.transport.reset()
        self.go_on(origin, len(origin.answer.wire))
        client.expected = expected  # nothing can be written any more
        self.left(client)  # none of its requests is begun any more

    @precondition(lambda self: self.http_origins())
    @rule(data=st.data(), how=st.sampled_from(["eof", "reset"]))
    def break_off(self, data: st.DataObject, how: Literal["eof", "reset"]) -> None:
        """Upstream ends a connection that is idle, or has a request, whatever it has sent of the response."""
        origin = data.draw(st.sampled_from(self.http_origins()))
        if how == "reset" or origin.transport.readable:  # a FIN is detected by reading
            self.end(origin, how)

    @precondition(lambda self: any(origin.idle and not origin.stale for origin in self.origins))
    @rule(data=st.data())
    def go_stale(self, data: st.DataObject) -> None:
        """Upstream ends an idle connection. The event loop has not reported it yet, but the socket can be polled."""
        origin = data.draw(st.sampled_from([each for each in self.origins if each.idle and not each.stale]))
        origin.go_stale()

    @precondition(lambda self: any(origin.idle for origin in self.origins))
    @rule(data=st.data())
    def speak_unasked(self, data: st.DataObject) -> None:
        """Upstream sends octets on an idle connection, and the gateway closes the connection."""
        origin = data.draw(st.sampled_from([each for each in self.origins if each.idle]))
        origin.transport.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        self.loop.settle()
        assert origin.transport.lost

    @precondition(lambda self: self.http_origins())
    @rule(data=st.data())
    def upstream_blocks(self, data: st.DataObject) -> None:
        """Upstream stops reading, or resumes it."""
        origins = self.http_origins()
        reading = [origin for origin in origins if origin.current is not None and not origin.current.whole]
        origin = data.draw(st.sampled_from(reading or origins))
        if origin.transport.blocked:
            origin.transport.unblock()
        else:
            origin.transport.block()

    # Rules: tunnels

    @precondition(lambda self: self.switching() or self.quiet())
    @rule(data=st.data(), octets=st.sampled_from([b"", b"first"]))
    def switch(self, data: st.DataObject, octets: bytes) -> None:
        """Upstream switches protocols, for a request that it has received, or for a new one."""
        if not self.switching():
            client = data.draw(st.sampled_from(self.quiet()))
            self.add_request(client, "GET upgrade", same=False, size=0)
            self.send(client, len(client.outgoing))
            self.consistent()
            self.accept_all()
        if not self.switching():
            return
        origin = data.draw(st.sampled_from(self.switching()))
        assert origin.current is not None
        client = origin.current.client
        before = len(client.transport.written)
        origin.tunnel = tunnel = Tunnel(client.transport, origin.transport)
        tunnel.due[0] = SWITCH + octets
        origin.transport.feed(SWITCH + octets)
        self.loop.settle()
        client.read = before + len(tunnel.due[0])  # the reader of responses must not read these octets
        client.ending = "tunnel"
        self.end_request(client, 101)

    @precondition(lambda self: self.tunnels())
    @rule(data=st.data(), side=st.sampled_from([0, 1]), what=st.sampled_from(["octets", "block", "eof", "reset"]))
    def use_tunnel(self, data: st.DataObject, side: int, what: str) -> None:
        """A side of a tunnel sends octets, stops reading, resumes it, sends FIN, or sends RST."""
        tunnel = data.draw(st.sampled_from(self.tunnels()))
        transport = tunnel.sides[side]
        if what == "block":
            if transport.blocked:
                transport.unblock()
            else:
                transport.block()
        elif what == "reset":
            transport.reset()
            tunnel.over = True
        elif not transport.readable or tunnel.ended[side]:
            return
        elif what == "octets":
            transport.feed(b"octets")
            tunnel.due[1 - side] += b"octets"
        else:
            transport.feed_eof()
            tunnel.ended[side] = True
            tunnel.over = all(tunnel.ended) or self.tls

    # Rules: the clock and the shutdown

    @rule(seconds=st.sampled_from([0.5, 4.5, 5.0, 10.0, 30.0, 45.0, 75.0]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        """Move the clock by ``seconds``, and apply each timeout to the model when it expires."""
        cancelled = self.loop.cancelled
        for _ in self.loop.steps(seconds):
            self.allowed[504] += self.loop.cancelled - cancelled
            cancelled = self.loop.cancelled
            if self.max_connections is not None:
                self.allowed[503] += len(self.clients)
            self.expire()
            self.consistent()

    @precondition(lambda self: not self.gateway.draining and self.started > 2)
    @rule()
    def drain(self) -> None:
        """The gateway begins to drain: no connection accepts a request after the one in progress."""
        self.gateway.draining = True
        for client in self.clients:
            if client.ending == "linger":
                shut_down(client.transport)  # this changes nothing: it still has time to read its response
        for client in self.open_clients():
            client.last = True
            shut_down(client.transport)
            if client.active is None and not client.head_begun:
                client.ending = "fin"

    @precondition(lambda self: not self.upstream_closed and self.started > 5)
    @rule()
    def close_upstream(self) -> None:
        """The pool is closed: the requests in progress fail, and so does every later request."""
        self.upstream_closed = True
        self.loop.act(self.gateway.pool.close)
        for tunnel in self.tunnels():
            tunnel.over = True
        for client in self.clients:
            if self.status_begun(client):
                self.cut(client)
            elif client.active is not None:
                self.fail(client, 502)

    # The model

    def half_closed(self, client: Client) -> None:
        """The client has sent FIN: a response that has begun is cut off, and those before it can still be read."""
        client.ending = "reset" if self.status_begun(client) else "fin"
        client.lost_by = self.loop.now + KEEPALIVE
        if client.active is not None:
            self.end_request(client, self.status_begun(client))

    def left(self, client: Client) -> None:
        """The client has disconnected, which ends the request in progress."""
        client.ending = "left"
        if client.active is not None:
            self.end_request(client, self.status_begun(client))

    def status_begun(self, client: Client) -> int:
        """The status of a response whose final head has been sent, 0 if there is none."""
        answer = client.origin.answer if client.origin else None
        return answer.status if answer and answer.begun else 0

    def end_request(self, client: Client, status: int) -> None:
        """The request in progress has ended. ``status`` is 0 if no response had begun."""
        request = client.active
        assert request is not None
        self.ended.append((request.method, request.target, status))
        client.active = None
        client.finished += 1
        client.retried = False
        client.transmissions = []
        if client.origin is not None:
            client.origin.current = client.origin.answer = None
            client.origin = None

    def finish(self, client: Client, expected: Expected, *, closes: bool) -> None:
        """The response to the request in progress is complete."""
        request = client.active
        assert request is not None
        client.expected.append(expected)
        client.untaken = float("inf")
        self.end_request(client, expected.status)
        if not request.whole:
            client.ending = "linger"
            client.deadline = self.loop.now + LINGER
            client.linger_end = self.loop.now + LINGER_LIMIT
        elif closes:
            client.ending = "fin"
        else:
            client.deadline = self.loop.now + KEEPALIVE

    def closes(self, client: Client) -> bool:
        """Whether a response that begins now is the connection's last."""
        request = client.active
        assert request is not None
        return client.last or self.gateway.draining or not request.stays_open or not request.whole

    def fail(self, client: Client, status: int) -> None:
        """The exchange of the request in progress has failed, and no response had begun."""
        closes = self.closes(client)
        self.finish(client, Expected(status, b"", closes, self.interim_passed(client), own=True), closes=closes)

    def interim_passed(self, client: Client) -> int:
        answer = client.origin.answer if client.origin else None
        if answer is None or client.active is None or client.active.version != b"1.1":
            return 0
        return answer.wire[: answer.sent].count(b"103 Early Hints\r\nLink: </a>\r\n\r\n")

    def cut(self, client: Client) -> None:
        """A response that has begun is cut off."""
        self.end_request(client, self.status_begun(client))
        client.ending = "reset"

    def go_on(self, origin: Origin, size: int) -> None:
        """Upstream sends the next ``size`` bytes of its response."""
        answer, seen = origin.answer, origin.current
        assert answer is not None
        assert seen is not None
        client = seen.client
        begun = answer.begun
        piece = answer.wire[answer.sent : answer.sent + size]
        answer.sent += len(piece)
        if not begun and answer.faulty_at and answer.sent >= answer.faulty_at:
            answer.head = answer.end  # a head is not relayed if malformed octets directly follow it
        if not begun and answer.begun:
            client.last = self.closes(client)  # as the relayed head says
            assert client.active is not None
            if answer.until_close and client.active.version != b"1.1":
                client.last = True
            answer.closes = client.last
        origin.transport.feed(piece)
        if answer.faulty_at and answer.sent >= answer.faulty_at:
            self.broken(origin, retry=False)
        elif not answer.until_close and answer.sent >= answer.end:
            taken = seen.size <= SMALL or not origin.transport.unsent
            reusable = answer.reusable and seen.whole and taken and answer.sent == answer.end
            reusable = reusable and not origin.old(self.loop.now)
            self.complete(origin)
            self.loop.settle()
            assert origin.transport.closing != reusable
        self.loop.settle()

    def complete(self, origin: Origin) -> None:
        answer, seen = origin.answer, origin.current
        assert answer is not None
        assert seen is not None
        client = seen.client
        assert client.active is not None
        interim = answer.interim if client.active.version == b"1.1" else 0
        body = answer.wire[answer.head : answer.sent] if answer.until_close else answer.body
        self.finish(client, Expected(answer.status, body, answer.closes, interim), closes=client.last)

    def end(self, origin: Origin, how: Literal["eof", "reset"]) -> None:
        answer = origin.answer
        if how == "eof":
            origin.transport.feed_eof()
        else:
            origin.transport.reset()
        if origin.current is not None:
            if answer is not None and answer.until_close and answer.begun and how == "eof":
                self.complete(origin)
            else:
                self.broken(origin, retry=not (answer and answer.sent))
        self.loop.settle()

    def broken(self, origin: Origin, *, retry: bool) -> None:
        """A connection is lost with a request on it. With ``retry``, the request is sent again if it may be."""
        seen = origin.current
        assert seen is not None
        client = seen.client
        request = client.active
        assert request is not None
        if origin.answer is not None and origin.answer.begun:
            self.cut(client)
        elif (
            retry
            and seen.reused
            and not client.retried
            and request.method in IDEMPOTENT
            and request.held_size(seen.head) <= HELD
        ):
            client.retried = True
            client.origin = None
            origin.current = origin.answer = None
        else:
            self.fail(client, 502)

    def expire(self) -> None:
        """Apply the timeouts that have expired."""
        now = self.loop.now
        for client in self.clients:
            transport = client.transport
            if client.ending in ("", "linger") and client.active is None and now >= client.deadline:
                before, client.untaken = client.untaken, transport.unsent
                if 0 < transport.unsent < before and not transport.closing:
                    client.deadline = now + KEEPALIVE  # it is still reading what was written
                else:
                    client.ending = "fin"
            seen = client.origin.current if client.origin else None
            if (
                seen is not None
                and self.response_timeout is not None
                and client.active is not None
                and not self.status_begun(client)
                and now >= seen.changed + self.response_timeout
            ):
                self.fail(client, 504)

    def advance_requests(self) -> None:
        """Begin the requests whose turn it is, and refuse malformed ones."""
        for client in self.clients:
            while not client.ending:
                if client.active is None:
                    request = client.next
                    if request is None or not request.begun or client.transport.blocked:
                        break
                    if not request.head_is_whole:
                        if not client.head_begun:
                            client.head_begun = True
                            client.deadline = self.loop.now + HEAD_TIMEOUT
                        break
                    client.head_begun = False
                    if request.fault == "head":
                        client.finished += 1
                        self.ended.append((request.method, request.target, request.refused_with))
                        self.refuse_request(client, Expected(request.refused_with, b"", True, own=True))
                        break
                    client.active = request
                    self.started += 1
                request = client.active
                if request.fault == "content" and request.delivered >= request.fault_at:
                    if self.status_begun(client):
                        self.cut(client)
                    else:
                        expected = Expected(request.refused_with, b"", True, self.interim_passed(client), own=True)
                        self.end_request(client, request.refused_with)
                        self.refuse_request(client, expected)
                elif self.upstream_closed:
                    self.fail(client, 502)
                    continue
                break

    def refuse_request(self, client: Client, expected: Expected) -> None:
        self.refusals += 1
        client.expected.append(expected)
        client.ending = "linger"
        client.deadline = self.loop.now + LINGER
        client.linger_end = self.loop.now + LINGER_LIMIT

    def adopt_failure(self, client: Client) -> None:
        """Let a request without a connection fail as this step allows. The model does not predict which one fails."""
        if client.active is None or client.origin is not None or client.ending:
            return
        if len(client.reader.responses) > len(client.expected):
            status = client.reader.responses[len(client.expected)].status
            if self.allowed[status] > 0:
                self.allowed[status] -= 1
                self.fail(client, status)

    # What must hold

    @invariant()
    def settled(self) -> None:
        if not hasattr(self, "gateway"):
            return
        self.loop.settle()
        self.consistent()
        while sum(not client.transport.lost and client.ending != "tunnel" for client in self.clients) < 2:
            self.connect()

    def consistent(self) -> None:
        """Check that everything is as the model predicts."""
        self.advance_requests()
        for client in self.clients:
            fresh = bytes(client.transport.written[client.read :])
            client.read += len(fresh)
            # a client that has disconnected does not read what was still written to it
            ended = client.transport.ending == "fin" and not client.transport.unsent and client.ending != "left"
            methods = [request.method for request in client.requests]
            client.reader.feed(fresh, methods, ended=ended)
            self.adopt_failure(client)
        self.advance_requests()
        for origin in self.origins:
            origin.receive(self.clients)
        for client in self.clients:
            self.check_client(client)
        for origin in self.origins:
            self.check_origin(origin)
        self.check_numbers()
        self.allowed.clear()
        assert self.loop.failures == []
        for transport in self.loop.transports:
            assert transport.faults == []

    def check_client(self, client: Client) -> None:
        transport = client.transport
        if client.ending == "tunnel":
            return
        got = [
            Expected(each.status, b"" if each.own else each.body, each.closes, each.interim, each.own)
            for each in client.reader.responses
        ]
        expected = client.expected
        if client.ending == "fin" and not transport.ending and client.reader.partial is not None:
            # the response ends with the connection, which is closed only after the client has received everything
            assert client.reader.partial.body == expected[-1].body
            expected = expected[:-1]
        assert got == expected, (client.number, client.ending)
        if client.reader.partial is not None and client.origin is not None and client.origin.answer is not None:
            assert client.active is not None
            assert client.origin.answer.body.startswith(client.reader.partial.body)
        if client.ending in ("", "linger"):
            assert not transport.closing
            assert transport.eof_written == (bool(client.ending) and not self.tls)
        elif client.ending == "left":
            assert transport.lost
        else:
            assert transport.closing
            assert transport.lost or (client.ending == "fin" and may_be_open(transport))
            # a client that has not received everything must not take its response for complete
            assert not transport.lost or transport.ending == ("reset" if transport.unsent else client.ending)
        assert transport.lost or self.loop.now < client.lost_by
        if client.ending == "linger":
            assert transport.reading, "the client's octets must be read: unread ones would reset the response"
        if not client.ending:
            if not transport.reading:
                assert self.may_pause(client), "reading from the client is paused without a reason"
            else:
                assert not self.must_pause(client), "more is read from the client than can be forwarded"
        if client.active is not None and client.origin is not None:
            self.check_content(client, client.origin)

    def may_pause(self, client: Client) -> bool:
        """Whether the gateway may pause reading from a client."""
        if client.waiting() > PIPELINED and (client.active is not None or client.transport.blocked):
            return True
        if client.active is None or client.active.whole:
            return False
        return client.origin is None or client.origin.transport.blocked

    def must_pause(self, client: Client) -> bool:
        """Whether the gateway must pause reading from a client, because it can't forward more."""
        request = client.active
        if client.waiting() > PIPELINED and (request is None or request.whole):
            return True
        if request is None or request.whole:
            return False
        return client.origin is None or client.origin.transport.blocked

    def check_content(self, client: Client, origin: Origin) -> None:
        """Check that upstream has received as much of the request in progress as the client has sent."""
        request, seen = client.active, origin.current
        assert request is not None
        assert seen is not None
        assert (seen.method, seen.target) == (request.method, request.target)
        assert seen.content == request.sent_content()
        assert seen.whole == request.whole
        assert seen.number == client.finished
        if request.method not in IDEMPOTENT:
            assert len(client.transmissions) == 1, "a request that is not idempotent was sent more than once"
        assert len(client.transmissions) <= 2

    def check_origin(self, origin: Origin) -> None:
        transport = origin.transport
        if origin.tunnel is not None:
            origin.tunnel.check()
            return
        seen = origin.current
        if seen is None and origin.seen and not transport.closing:
            assert origin.seen[-1].whole, "a connection is kept open after an incomplete request"
        if not transport.closing:
            blocked = seen is not None and seen.client.transport.blocked
            assert transport.reading or blocked, "reading from upstream is paused although the client is not blocked"
            if blocked and origin.answer is not None and origin.answer.begun:
                assert not transport.reading, "reading from upstream is not paused although the client is blocked"
            assert transport.unsent == 0 or transport.blocked

    def check_numbers(self) -> None:
        counters, upstream = self.gateway.counters, self.gateway.pool
        active = [client for client in self.clients if client.active is not None]
        assert counters.in_flight == len(active)
        assert counters.requests == len(self.ended)
        assert counters.refused == self.refusals == len(self.gateway.refusals)
        assert sorted(self.gateway.ended) == sorted(self.ended)
        answers = {(method, i): n for method, row in counters.responses.items() for i, n in enumerate(row) if n}
        assert answers == Counter((method, status // 100) for method, _, status in self.ended)
        tunnels = [origin.tunnel for origin in self.origins if origin.tunnel is not None]
        assert counters.tunnels == sum(tunnel.open for tunnel in tunnels)
        assert len(self.gateway.connections) == sum(not client.transport.lost for client in self.clients)
        used = [origin for origin in self.origins if not origin.transport.lost]
        assert upstream.open == len(used) + len(self.loop.attempts)
        assert upstream.idle == sum(origin.idle for origin in used)
        if self.max_connections is not None:
            assert upstream.open <= self.max_connections
        unattached = sum(client.origin is None for client in active)
        if self.max_connections is None or upstream.open < self.max_connections:
            assert unattached <= len(self.loop.attempts), "a request has no connection, and none is being opened for it"
        for origin in used:
            if origin.idle:
                assert self.max_connections is None or not unattached, "a request waits although a connection is idle"

    def teardown(self) -> None:
        """Disconnect the clients. Then no request may be in flight, and all connections must end."""
        with contextlib.closing(self.loop):
            if not hasattr(self, "gateway"):
                return
            for client in self.clients:
                if not client.ending:
                    client.transport.reset()
                    self.left(client)
            for tunnel in self.tunnels():
                tunnel.sides[0].reset()
                tunnel.over = True
            self.loop.settle()
            self.consistent()
            assert self.gateway.counters.in_flight == 0
            for _ in range(8):
                self.loop.advance(KEEPALIVE)
            assert [client.number for client in self.clients if not client.transport.lost] == []
            self.loop.act(self.gateway.pool.close)
            self.loop.settle()
            assert self.gateway.pool.open == 0
            assert self.loop.failures == []


def test_repeated_head() -> None:
    """The keep-alive timeout does not apply while a request waits for its response, even if its head is repeated."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        request = make_request("GET", b"/", b"")
        answer = make_answer("length", b"GET", b"ok", 0)
        for number in range(3):
            client.feed(request.wire)
            loop.settle()
            upstream = loop.attempts[0].accept() if loop.attempts else loop.transports[-1]
            loop.advance(10 * KEEPALIVE)
            upstream.feed(answer.wire)
            loop.settle()
            assert client.written == answer.wire * (number + 1)


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        pytest.param(b"", KEEPALIVE, id="nothing"),
        pytest.param(b"\r\n", KEEPALIVE, id="an empty line"),
        pytest.param(b"GET", HEAD_TIMEOUT, id="part of a head"),
    ],
)
@pytest.mark.parametrize("after", ["nothing", "a response"])
def test_client_that_does_not_send(sent: bytes, seconds: float, after: str) -> None:
    """A connection without a complete head is closed at its timeout. Further octets of the head do not extend it."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        if after == "a response":
            client.feed(make_request("GET", b"/", b"").wire)
            loop.settle()
            loop.advance(3)
            loop.attempts[0].accept().feed(make_answer("length", b"GET", b"ok", 0).wire)
            loop.settle()
        if sent:
            client.feed(sent)
        loop.advance(seconds / 2)
        if sent == b"GET":
            client.feed(b" ")
        loop.advance(seconds / 2 - 1)
        assert not client.closing
        loop.advance(1)
        assert (client.lost, client.ending) == (True, "fin")
        assert gateway.counters.refused == 0
        assert len(gateway.connections) == 0


def answered(
    gateway: FakeGateway, loop: VirtualLoop, request: Request, answer: Answer
) -> tuple[FakeTransport, FakeTransport]:
    """A client that was sent a response to its first request, and the connection to upstream that the request used."""
    client = make_connection(gateway, loop)
    client.feed(request.wire)
    loop.settle()
    upstream = loop.attempts[0].accept()
    upstream.feed(answer.wire)
    return client, upstream


def test_client_that_reads_slowly() -> None:
    """A connection stays open while its client reads some of a response, and is reset if the client reads nothing."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        request, answer = make_request("GET", b"/", b""), make_answer("length", b"GET", b"ok", 0)
        client, upstream = answered(gateway, loop, request, answer)
        client.block()
        for unsent in (9, 6, 3):
            client.unsent = unsent
            loop.advance(KEEPALIVE)
            assert not client.closing
        client.unblock()
        client.feed(request.wire)
        upstream.feed(answer.wire)
        assert client.delivered == 2 * answer.wire
        client.block()
        loop.advance(KEEPALIVE)
        assert not client.closing
        loop.advance(KEEPALIVE)
        assert client.closing
        loop.advance(KEEPALIVE)
        assert client.ending == "reset"


@pytest.mark.parametrize("read", [0, 9])
def test_request_behind_an_unread_response(read: int) -> None:
    """A request, even one received in part, is begun only when the client has read the previous response."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        request, answer = make_request("GET", b"/", b""), make_answer("length", b"GET", b"ok", 0)
        client, upstream = answered(gateway, loop, request, answer)
        upstream.written.clear()
        if read:
            client.feed(request.wire[:read])
        client.block()
        client.feed(request.wire[read:-1])
        client.feed(request.wire[-1:])
        loop.settle()
        assert upstream.written == b""
        client.unblock()
        loop.settle()
        assert upstream.written.startswith(b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize("beyond", [0, 1])
def test_largest_head(beyond: int) -> None:
    """A head of the largest size is forwarded, and one that is longer by an octet is refused."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
        client.feed(start + b"x" * (HEAD_LIMIT - len(start) - 4 + beyond) + b"\r\n\r\n")
        loop.settle()
        assert client.written.startswith(b"HTTP/1.1 431 ") == bool(beyond)
        assert len(loop.attempts) == 1 - beyond
        assert gateway.refusals == ["head_too_large"] * beyond


@pytest.mark.parametrize("beyond", [0, 1])
def test_pipelining_limit(beyond: int) -> None:
    """Reading from a client is paused while more than the limit waits behind a request, and resumed afterwards."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        request = make_request("GET", b"/", b"")
        behind = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
        client.feed(request.wire + behind)
        client.feed(bytes(PIPELINED - len(behind) + beyond))
        loop.settle()
        assert client.reading != bool(beyond)
        upstream = loop.attempts[0].accept()
        upstream.feed(make_answer("length", b"GET", b"ok", 0).wire)
        loop.settle()
        assert client.reading
        assert upstream.written.endswith(bytes(PIPELINED - len(behind) + beyond))


def test_client_during_a_drain() -> None:
    """A connection that is accepted after all others were shut down is closed at once."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        loop.act(gateway.connections.shutdown)
        client = make_connection(gateway, loop)
        loop.settle()
        assert (client.lost, client.ending) == (True, "fin")
        assert len(gateway.connections) == 0


def test_ipv4_client_on_an_ipv6_socket() -> None:
    """The log and X-Forwarded-For have the IPv4 address of an IPv4-mapped client."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop, peername=("::ffff:192.0.2.1", 40000))
        client.feed(make_request("GET", b"/", b"").wire)
        loop.settle()
        upstream = loop.attempts[0].accept()
        assert b"\r\nX-Forwarded-For: 192.0.2.1\r\n" in upstream.written
        upstream.feed(make_answer("length", b"GET", b"ok", 0).wire)
        assert gateway.ended == [(b"GET", b"/", 200)]  # `FakeGateway` has compared the address


class Deciding:
    """An interception whose decision is never made."""

    inspects = True
    field = b"x-test"
    body = b""

    def __init__(self) -> None:
        self.cancelled = False
        self.closed: list[tuple[str, int | None]] = []

    def collect(self, data: bytes) -> bool:
        return True

    def release(self) -> bytes:
        raise AssertionError("the content is not too large")

    async def edit(self) -> bytes | None:
        never: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        try:
            return await never
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    def should_hold(self, status: int) -> bool:
        return False

    async def next_body(self, status: int, head: bytes, content: bytes) -> bytes | None:
        raise AssertionError("there is no response")

    def report_response(self, status: int, head: bytes) -> bytes | None:
        return None

    def close(self, reason: str = "", status: int | None = None) -> None:
        self.closed.append((reason, status))


def test_fin_while_the_core_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIN cancels the task of an intercepted request at once, even if the client has not read an earlier response."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        client.feed(make_request("GET", b"/", b"").wire)
        loop.settle()
        loop.attempts[0].accept().feed(make_answer("length", b"GET", b"ok", 0).wire)
        interception = Deciding()
        monkeypatch.setattr(gateway, "intercept", lambda *_: interception)
        client.feed(make_request("POST", b"/", b"content").wire)
        loop.settle()
        client.block()
        assert gateway.counters.in_flight == 1
        client.feed_eof()
        loop.settle()
        assert interception.cancelled
        assert interception.closed == [("client_left", None)]
        assert gateway.ended == [(b"GET", b"/", 200), (b"POST", b"/", 0)]
        assert not client.lost
        loop.advance(KEEPALIVE)
        assert (client.lost, client.ending) == (True, "reset")


@pytest.mark.parametrize("kind", ["GET", "POST"])
def test_request_of_a_client_that_has_left(kind: str) -> None:
    """A pipelined request is not begun if its client disconnects before the previous request is answered."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        first = make_request("GET", b"/1", b"")
        client.feed(first.wire + make_request(kind, b"/2", b"content").wire)
        loop.settle()
        upstream = loop.attempts[0].accept()
        client.reset()
        upstream.feed(make_answer("length", b"GET", b"ok", 0).wire)
        loop.settle()
        assert upstream.written.count(b" HTTP/1.1\r\n") == 1
        assert loop.attempts == []
        assert gateway.ended == [(b"GET", b"/1", 200)]
        assert gateway.counters.in_flight == 0
        assert gateway.pool.idle == 1


@pytest.mark.parametrize("what", ["stale", "reset"])
def test_upload_whose_connection_is_lost(what: str) -> None:
    """Reading from a client is paused from the loss of its request's connection until there is another one."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client, other = make_connection(gateway, loop), make_connection(gateway, loop)
        request = make_request("GET", b"/", b"")
        for each in (client, other):  # the other's request is in progress, so that writes are batched
            each.feed(request.wire)
            loop.settle()
        first, _ = [attempt.accept() for attempt in loop.attempts.copy()]
        first.feed(make_answer("length", b"GET", b"ok", 0).wire)
        loop.settle()
        if what == "stale":
            first.socket.make_readable()
        client.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        loop.settle()
        if what == "reset":
            assert client.reading
            first.reset()
            loop.settle()
        assert not client.reading
        loop.attempts[0].accept()
        assert client.reading


def test_upload_that_upstream_does_not_take() -> None:
    """Reading from a client is paused while upstream does not read its request, and resumed when upstream does."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        loop.settle()
        assert not client.reading  # there is no connection yet
        upstream = loop.attempts[0].accept()
        assert client.reading
        for _ in range(3):
            client.feed(b"content")
            loop.settle()
            upstream.block()
            assert not client.reading
            upstream.unblock()
            assert client.reading
        assert upstream.written.endswith(b"\r\n\r\n" + b"content" * 3)


@pytest.mark.parametrize("path", [b"/", b"/key/update"])
def test_slow_reader(path: bytes) -> None:
    """Reading from upstream is paused while the client does not read its response, and resumed when the client does."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway, interceptor=Core())
        client = make_connection(gateway, loop)
        client.feed(make_request("POST", path, BODY).wire)
        loop.settle()
        answer = make_answer("length", b"POST", b"content", 0)
        upstream = loop.attempts[0].accept()
        upstream.feed(answer.wire[: answer.head])
        for octet in range(answer.head, answer.end):
            client.block()
            assert not upstream.reading
            client.unblock()
            assert upstream.reading
            upstream.feed(answer.wire[octet : octet + 1])
        assert client.delivered.endswith(b"\r\n\r\ncontent")
        assert gateway.pool.idle == 1


def test_upload_that_is_answered_early() -> None:
    """A client that was answered before it has sent its content may go on sending for 30 seconds, even in a drain."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        loop.settle()
        loop.attempts[0].accept().feed(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        loop.settle()
        begun = loop.now
        while loop.now + LINGER - 1 < begun + LINGER_LIMIT:
            loop.advance(LINGER - 1)
            client.feed(b"12345")
            shut_down(client)
            assert not client.closing
        loop.advance(begun + LINGER_LIMIT - loop.now)
        assert (client.lost, client.ending) == (True, "fin")
        assert client.delivered == b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("seconds", [1.0, KEEPALIVE - 1])
def test_the_end_of_a_tls_connection(seconds: float) -> None:
    """A closed TLS connection ends only when the client has received all of its response, and soon after that."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop, TLSTransport)
        client.feed(make_request("GET close", b"/", b"").wire)
        loop.settle()
        upstream = loop.attempts[0].accept()
        client.blocked = True
        upstream.feed(make_answer("length", b"GET", b"content", 0).wire)
        loop.settle()
        assert client.closing
        loop.advance(seconds)
        assert not client.lost
        client.unsent = 0
        loop.advance(CLOSE_NOTIFY)
        assert (client.lost, client.ending) == (True, "fin")


@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("kind", ["GET", "GET 1.0"])
@pytest.mark.parametrize("framing", ["length", "chunked", "until close"])
def test_fin_in_an_answer(framing: str, kind: str, *, blocked: bool) -> None:
    """A client that sends FIN during its response is reset, so that it can't take the response for complete."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        client.feed(make_request(kind, b"/", b"").wire)
        loop.settle()
        upstream = loop.attempts[0].accept()
        answer = make_answer(framing, b"GET", b"content", 0)
        upstream.feed(answer.wire[: answer.head + 1])
        loop.settle()
        if blocked:
            client.block()
        client.feed_eof()
        loop.settle()
        assert (client.lost, client.ending) == (True, "reset")
        assert upstream.lost
        assert (gateway.counters.in_flight, gateway.ended) == (0, [(b"GET", b"/", 200)])


@pytest.mark.parametrize("takes", [True, False])
def test_fin_behind_an_unread_response(*, takes: bool) -> None:
    """A FIN cancels the request in progress at once. The previous response can be read until the keep-alive timeout."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        request = make_request("GET", b"/", b"")
        answer = make_answer("length", b"GET", b"ok", 0)
        client.feed(request.wire)
        loop.settle()
        upstream = loop.attempts[0].accept()
        upstream.feed(answer.wire)
        client.feed(request.wire)
        loop.settle()
        client.block()
        loop.advance(10 * KEEPALIVE)
        assert gateway.counters.in_flight == 1
        client.feed_eof()
        loop.settle()
        assert upstream.lost
        assert (gateway.counters.in_flight, gateway.ended[1:]) == (0, [(b"GET", b"/", 0)])
        assert not client.lost
        if takes:
            client.unblock()
            loop.settle()
            assert (client.lost, client.ending, client.delivered) == (True, "fin", answer.wire)
        else:
            loop.advance(KEEPALIVE)
            assert (client.lost, client.ending) == (True, "reset")


def test_client_connection() -> None:
    """After each step of any sequence, client connections are as the model predicts."""
    with record() as recording:
        run_state_machine_as_test(
            ClientMachine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=40,
                deadline=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    recording.check()


def test_a_defect_of_the_interceptor() -> None:
    """A request is no longer counted as in flight after an exception in the interceptor has ended its connection."""

    class Defective(FakeGateway):
        def intercept(
            self, path: str, head: bytes, outbound: bytes, send_lookup: SendLookup, client_address: str | None
        ) -> None:
            raise RuntimeError("a defect")

    with virtual_loop() as loop:
        gateway = loop.act(Defective)
        client = make_connection(gateway, loop)
        with pytest.raises(RuntimeError, match="a defect"):
            client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        client.reset()  # as event loops do after an exception
        loop.settle()
        assert client.lost
        assert gateway.counters.in_flight == 0


def test_response_in_the_iteration_of_a_reset() -> None:
    """A request is counted once if its response is received after its client connection was aborted."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        client.feed(make_request("GET", b"/", b"").wire)
        loop.settle()
        upstream = loop.attempts[0].accept()
        protocol = client.protocol
        assert isinstance(protocol, ClientConnection)
        loop.act(protocol.abort)
        upstream.feed(make_answer("length", b"GET", b"content", 0).wire)
        loop.settle()
        assert (client.lost, client.ending) == (True, "reset")
        assert (gateway.counters.in_flight, gateway.counters.requests) == (0, 1)

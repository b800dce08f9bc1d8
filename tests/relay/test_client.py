"""The client connection as a state machine: whatever the two peers and the clock do, in any order, it answers rightly.

Two client connections share a pool; only the event loop and the transports are not real. Clients send requests in any
pieces, stop taking answers, and leave. Upstream accepts connections or not, answers in any pieces, breaks off, and
takes nothing for a while. The clock moves. The model says after each step

* which whole responses each client has got, in the order of its requests, and how its connection has ended;
* what upstream has got: the content of each request as far as it has been sent, and no POST on two connections;
* what has been counted, and which connections there are;
* who may be paused;
* what each side of a tunnel has got, and how it has ended.

The model does not say which request a new connection is for, or in which order requests get one: `test_pool` does.
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
"""Seconds in which a TLS connection is ended when all has been taken. Like all times here, sums of it are exact."""
RESPONSE_TIMEOUT: Final = 20.0
HELD: Final = 64 * 1024
"""Bytes of a request beyond which it is not sent a second time."""
PIPELINED: Final = 64 * 1024
"""Bytes of waiting requests beyond which a client is not read."""
SMALL: Final = 16 * 1024
"""Bytes of a request that upstream is taken to have got when it answers, whatever it has taken of them."""
LARGE: Final = 70_000
IDEMPOTENT: Final = (b"GET", b"HEAD", b"PUT")


class TLSTransport(FakeTransport):
    """A TLS connection whose client does not answer close_notify: only `abort` ends it."""

    changed = 0.0
    """When it was closed, or all was taken."""

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
    """Whether a connection that has been closed may still be there."""
    if isinstance(transport, TLSTransport) and transport.loop.now < transport.changed + CLOSE_NOTIFY:
        return True
    return transport.unsent > 0


# Requests


@dataclass
class Request:
    """A request on the wire, and what it says.

    ``wire`` is the head and the content; ``head`` the head's size. ``fault`` tells what the gateway refuses it for:
    the head, or the content at ``fault_at``, where the faulty bytes end.
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
    """Where in ``wire`` each piece of the content begins."""

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
        """The content in what has been delivered."""
        return b"".join(piece[: max(self.delivered - at, 0)] for at, piece in self.spans)

    def held_size(self, head_upstream: int) -> int:
        """Bytes for upstream so far, where its head is so large."""
        overhead = sum(len(b"%x\r\n\r\n" % len(piece)) for _, piece in self.spans) if self.framing == "chunked" else 0
        return head_upstream + len(self.sent_content()) + overhead


def make_request(kind: str, target: bytes, body: bytes) -> Request:
    """A request of a named kind."""
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


# Answers


@dataclass
class Answer:
    """What upstream answers: a response in ``wire``, whose final head ends at ``head``, and how it goes on.

    Beyond ``end`` are bytes that nobody asked for; at ``faulty_at`` the answer is no HTTP any more.
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
    """Whether its head says to the client that the connection ends, once it has begun."""

    @property
    def begun(self) -> bool:
        """Whether the final head has come."""
        return self.sent >= self.head


def make_answer(kind: str, method: bytes, body: bytes, interim: int) -> Answer:
    """An answer of a named kind to a request with this method."""
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
    """A request as upstream has read it so far."""

    method: bytes
    target: bytes
    client: Client
    number: int
    """Which request of its client it is."""
    reused: bool
    """Whether its connection was free before it, and may have been closed by upstream meanwhile."""
    head: int
    content: bytes = b""
    whole: bool = False
    size: int = 0
    """Bytes of it that have been written, with its head and what frames its content."""
    changed: float = 0.0
    """When its last byte came."""


class Origin:
    """One connection of the gateway's, as upstream sees it. h11 reads the requests on it."""

    def __init__(self, transport: FakeTransport) -> None:
        self.transport = transport
        self.read = 0
        self.seen: list[Seen] = []
        self.current: Seen | None = None
        self.answer: Answer | None = None
        self.stale = False
        self.tunnel: Tunnel | None = None
        self.free = not transport.written
        """Whether it has been free: nobody had a use for it when it was made, or it has had a request."""
        self._parser = h11.Connection(h11.SERVER)

    @property
    def idle(self) -> bool:
        """Whether the gateway may use the connection for another request."""
        return self.current is None and not self.transport.closing and self.tunnel is None

    def old(self, now: float) -> bool:
        """Whether the gateway has used the connection for long enough."""
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
        assert not self.stale, "a request on a connection with something to read"
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
        assert self._parser.trailing_data[0] == b"", "bytes after a request"


@dataclass
class Expected:
    """A whole response that a client must have got."""

    status: int
    body: bytes
    closes: bool
    interim: int = 0
    own: bool = False
    """Whether it is the gateway's own."""


class Reader:
    """Reads the responses on a client's connection, with h11."""

    def __init__(self) -> None:
        self.responses: list[Expected] = []
        self.partial: Expected | None = None
        self.interim = 0
        self._parser: h11.Connection | None = None

    def feed(self, data: bytes, methods: list[bytes], *, ended: bool = False) -> None:
        """Read more; ``methods`` are those of all requests on the connection."""
        while data or ended:
            if self._parser is None:
                if not data:
                    return
                self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
                method = methods[len(self.responses)] if len(self.responses) < len(methods) else b""
                self._parser.send(h11.Request(method=method or b"GET", target="/", headers=[("Host", "a")]))
                self._parser.send(h11.EndOfMessage())
            if not data and self.partial is None:
                return  # no response has begun, so the end ends none
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
    """What two transports have become, and what the model says of them.

    ``due`` is what each peer must have been sent, from where the tunnel began. ``ended`` are the sides that have ended
    with FIN, ``over`` says whether both connections end.
    """

    def __init__(self, client: FakeTransport, upstream: FakeTransport) -> None:
        self.sides = (client, upstream)
        self.begun = (len(client.written), len(upstream.written))
        self.due = [b"", b""]
        self.ended = [False, False]
        self.over = False

    @property
    def open(self) -> bool:
        """Whether it counts as a tunnel: it does until the client's connection is lost."""
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
    """A client, and what the model says of its connection.

    ``finished`` counts the requests that are over; ``active`` is the one at work. ``ending`` is how the connection
    ends, or has ended: after all is written, with time to read the last response, cut, or because the client left.
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
        """What it had not taken when its deadline last came, since its last response."""
        self.lost_by = float("inf")
        """When its connection must have ended, however little it takes."""
        self.head_begun = False
        """Whether the gateway has begun to read a head that is not complete."""

    @property
    def next(self) -> Request | None:
        """The first request that is not at work yet."""
        return self.requests[self.finished] if self.active is None and self.finished < len(self.requests) else None

    def waiting(self) -> int:
        """Bytes that have come for requests behind the one at work."""
        ahead = self.finished if self.active is None else self.finished + 1
        return sum(request.delivered for request in self.requests[ahead:])

    def delivered(self, size: int) -> None:
        """So many bytes have reached the gateway."""
        for request in self.requests:
            part = min(size, len(request.wire) - request.delivered)
            request.delivered += part
            size -= part


def at_work(clients: list[Client]) -> list[Client]:
    """Those that have a request at work; all, if none has."""
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
        """Statuses of the gateway's own that a request without a connection may get in this step, and how many."""
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

    # What can be done things to

    def open_clients(self) -> list[Client]:
        return [client for client in self.clients if not client.ending]

    def answering(self) -> list[Origin]:
        """Connections on which upstream has an answer to go on with."""
        return [
            origin
            for origin in self.origins
            if origin.answer is not None and origin.answer.sent < len(origin.answer.wire) and origin.transport.readable
        ]

    def quiet(self) -> list[Client]:
        """Clients that have no request at work, and none begun."""
        return [client for client in self.open_clients() if client.next is None and client.active is None]

    def http_origins(self) -> list[Origin]:
        """Connections to upstream that are open, and no tunnels."""
        return [origin for origin in self.origins if not origin.transport.closing and origin.tunnel is None]

    def switching(self) -> list[Origin]:
        """Connections on which upstream may switch protocols; nothing has come behind the request."""
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
        """The tunnels on which neither side has broken off, or both have ended."""
        return [origin.tunnel for origin in self.origins if origin.tunnel is not None and not origin.tunnel.over]

    def asked(self) -> list[Origin]:
        """Connections on which upstream has a request, and no answer yet."""
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
        """A client makes up a request, to be sent behind those before it; mostly it sends it at once."""
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
        """A request from its head to the end of its answer: after it there is a connection in the pool, as a rule."""
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
        """The head of a request and a part of its content have come, and upstream has got it, mostly."""
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
        """A client leaves before there is a connection for its request: one may go into the pool without any use."""
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
        """Clients whose connection is about to end go on sending for a while; nothing comes of it."""
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
            if transport.readable:  # a FIN is found by reading
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
        """Upstream makes up an answer, and sends it at once or in pieces."""
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
        """The head of an answer has come, and a part of its content; rather before the request is whole."""
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
        """The rest of an answer comes in the very turn in which the loop has found its client gone.

        It may have sent ``more`` before: another request, behind the one that is answered.
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
                return  # what came first has ended the request
        expected = list(client.expected)
        client.transport.reset()
        self.go_on(origin, len(origin.answer.wire))
        client.expected = expected  # nothing can be written any more
        self.left(client)  # none of its requests is begun any more

    @precondition(lambda self: self.http_origins())
    @rule(data=st.data(), how=st.sampled_from(["eof", "reset"]))
    def break_off(self, data: st.DataObject, how: Literal["eof", "reset"]) -> None:
        """Upstream ends a connection: one that is idle, or whatever it has answered so far."""
        origin = data.draw(st.sampled_from(self.http_origins()))
        if how == "reset" or origin.transport.readable:  # a FIN is found by reading
            self.end(origin, how)

    @precondition(lambda self: any(origin.idle and not origin.stale for origin in self.origins))
    @rule(data=st.data())
    def go_stale(self, data: st.DataObject) -> None:
        """The end of an idle connection is in the kernel, where the gateway can find it, but the loop has not."""
        origin = data.draw(st.sampled_from([each for each in self.origins if each.idle and not each.stale]))
        origin.go_stale()

    @precondition(lambda self: any(origin.idle for origin in self.origins))
    @rule(data=st.data())
    def speak_unasked(self, data: st.DataObject) -> None:
        """Upstream sends something on an idle connection, which is closed for it."""
        origin = data.draw(st.sampled_from([each for each in self.origins if each.idle]))
        origin.transport.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        self.loop.settle()
        assert origin.transport.lost

    @precondition(lambda self: self.http_origins())
    @rule(data=st.data())
    def upstream_blocks(self, data: st.DataObject) -> None:
        """Upstream stops taking, or takes again."""
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
        """Upstream switches protocols, for a request that has been made, or for a new one."""
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
        client.read = before + len(tunnel.due[0])  # which is not for the reader of responses
        client.ending = "tunnel"
        self.end_request(client, 101)

    @precondition(lambda self: self.tunnels())
    @rule(data=st.data(), side=st.sampled_from([0, 1]), what=st.sampled_from(["octets", "block", "eof", "reset"]))
    def use_tunnel(self, data: st.DataObject, side: int, what: str) -> None:
        """A side of a tunnel sends octets, takes nothing or takes again, ends, or breaks off."""
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

    # Rules: the clock, and the end

    @rule(seconds=st.sampled_from([0.5, 4.5, 5.0, 10.0, 30.0, 45.0, 75.0]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        """Let the limits that are reached in this time take effect, one after another."""
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
        """The gateway stops: no connection takes a request beyond the one at work."""
        self.gateway.draining = True
        for client in self.clients:
            if client.ending == "linger":
                shut_down(client.transport)  # which changes nothing: it may still be read
        for client in self.open_clients():
            client.last = True
            shut_down(client.transport)
            if client.active is None and not client.head_begun:
                client.ending = "fin"

    @precondition(lambda self: not self.upstream_closed and self.started > 5)
    @rule()
    def close_upstream(self) -> None:
        """All connections to upstream are dropped, for good: whatever is at work fails, and so does what comes."""
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
        """The client has ended its side: an answer that has begun is cut, those before it can still be taken."""
        client.ending = "reset" if self.status_begun(client) else "fin"
        client.lost_by = self.loop.now + KEEPALIVE
        if client.active is not None:
            self.end_request(client, self.status_begun(client))

    def left(self, client: Client) -> None:
        """The client is gone, with the request that was at work."""
        client.ending = "left"
        if client.active is not None:
            self.end_request(client, self.status_begun(client))

    def status_begun(self, client: Client) -> int:
        """The status of the answer as far as it has come, 0 for none."""
        answer = client.origin.answer if client.origin else None
        return answer.status if answer and answer.begun else 0

    def end_request(self, client: Client, status: int) -> None:
        """The request at work is over, in whatever way."""
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
        """The request at work has been answered whole."""
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
        """The exchange of the request at work has failed, and no answer has begun."""
        closes = self.closes(client)
        self.finish(client, Expected(status, b"", closes, self.interim_passed(client), own=True), closes=closes)

    def interim_passed(self, client: Client) -> int:
        answer = client.origin.answer if client.origin else None
        if answer is None or client.active is None or client.active.version != b"1.1":
            return 0
        return answer.wire[: answer.sent].count(b"103 Early Hints\r\nLink: </a>\r\n\r\n")

    def cut(self, client: Client) -> None:
        """An answer that has begun breaks off."""
        self.end_request(client, self.status_begun(client))
        client.ending = "reset"

    def go_on(self, origin: Origin, size: int) -> None:
        """Upstream sends so much of its answer."""
        answer, seen = origin.answer, origin.current
        assert answer is not None
        assert seen is not None
        client = seen.client
        begun = answer.begun
        piece = answer.wire[answer.sent : answer.sent + size]
        answer.sent += len(piece)
        if not begun and answer.faulty_at and answer.sent >= answer.faulty_at:
            answer.head = answer.end  # a head with a fault right behind it goes to nobody
        if not begun and answer.begun:
            client.last = self.closes(client)  # as its head says, from here on
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
        """A connection is lost with a request on it."""
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
        """What time alone brings about."""
        now = self.loop.now
        for client in self.clients:
            transport = client.transport
            if client.ending in ("", "linger") and client.active is None and now >= client.deadline:
                before, client.untaken = client.untaken, transport.unsent
                if 0 < transport.unsent < before and not transport.closing:
                    client.deadline = now + KEEPALIVE  # it may still take what has been written to it
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
        """Whose turn it is is at work; what can't be read is refused."""
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
        """A request without a connection may fail with what this step allows; the model does not say which."""
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
        """Everything is as the model says."""
        self.advance_requests()
        for client in self.clients:
            fresh = bytes(client.transport.written[client.read :])
            client.read += len(fresh)
            # a client that has left does not read what it may still have got
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
            # the end of the connection, which ends the response, comes only when all before it has been taken
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
            # who takes nothing does not get a response that could be taken for whole
            assert not transport.lost or transport.ending == ("reset" if transport.unsent else client.ending)
        assert transport.lost or self.loop.now < client.lost_by
        if client.ending == "linger":
            assert transport.reading, "what a client still sends must be read, so that its response is not reset"
        if not client.ending:
            if not transport.reading:
                assert self.may_pause(client), "reading is paused, and nothing is waited for"
            else:
                assert not self.must_pause(client), "more is read than can be passed on"
        if client.active is not None and client.origin is not None:
            self.check_content(client, client.origin)

    def may_pause(self, client: Client) -> bool:
        """Whether the gateway has a reason not to read from a client."""
        if client.waiting() > PIPELINED and (client.active is not None or client.transport.blocked):
            return True
        if client.active is None or client.active.whole:
            return False
        return client.origin is None or client.origin.transport.blocked

    def must_pause(self, client: Client) -> bool:
        """Whether what a client sends has nowhere to go."""
        request = client.active
        if client.waiting() > PIPELINED and (request is None or request.whole):
            return True
        if request is None or request.whole:
            return False
        return client.origin is None or client.origin.transport.blocked

    def check_content(self, client: Client, origin: Origin) -> None:
        """Upstream has got of the request at work what the client has sent of it."""
        request, seen = client.active, origin.current
        assert request is not None
        assert seen is not None
        assert (seen.method, seen.target) == (request.method, request.target)
        assert seen.content == request.sent_content()
        assert seen.whole == request.whole
        assert seen.number == client.finished
        if request.method not in IDEMPOTENT:
            assert len(client.transmissions) == 1, "a request that must not be repeated has been"
        assert len(client.transmissions) <= 2

    def check_origin(self, origin: Origin) -> None:
        transport = origin.transport
        if origin.tunnel is not None:
            origin.tunnel.check()
            return
        seen = origin.current
        if seen is None and origin.seen and not transport.closing:
            assert origin.seen[-1].whole, "a connection is used again, with a request on it that never ended"
        if not transport.closing:
            blocked = seen is not None and seen.client.transport.blocked
            assert transport.reading or blocked, "reading is paused, and the client takes everything"
            if blocked and origin.answer is not None and origin.answer.begun:
                assert not transport.reading, "more is read than the client takes"
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
            assert unattached <= len(self.loop.attempts), "a request is forgotten"
        for origin in used:
            if origin.idle:
                assert self.max_connections is None or not unattached, "a request waits beside an idle connection"

    def teardown(self) -> None:
        """At the end clients leave, or take all that was written to them; then nothing is at work any more."""
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
    """A request whose head has come before has as much time for its answer as any other."""
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
        pytest.param(b"GET", HEAD_TIMEOUT, id="some of a head"),
    ],
)
@pytest.mark.parametrize("after", ["nothing", "an answer"])
def test_client_that_does_not_send(sent: bytes, seconds: float, after: str) -> None:
    """Its connection is closed in its time, and not before; what comes of a head does not put that off."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop)
        if after == "an answer":
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
    """A client whose first request has been answered, and the connection to upstream that it was answered on."""
    client = make_connection(gateway, loop)
    client.feed(request.wire)
    loop.settle()
    upstream = loop.attempts[0].accept()
    upstream.feed(answer.wire)
    return client, upstream


def test_client_that_takes_its_answer_slowly() -> None:
    """While it takes some of it, its connection stays open for the next request; when it takes none, it is reset."""
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
def test_request_behind_an_answer_that_is_not_taken(read: int) -> None:
    """It waits, though its head may have been ``read`` in part, and is begun when the client takes its answer."""
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
    """A head of the largest size is relayed; one that is longer by an octet is refused."""
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
def test_most_that_is_pipelined(beyond: int) -> None:
    """A client is read until that much waits for its turn; it is read on when the request before it is answered."""
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


def test_client_that_comes_late() -> None:
    """A connection that is made when all others have been shut down is closed at once, and holds up nothing."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        loop.act(gateway.connections.shutdown)
        client = make_connection(gateway, loop)
        loop.settle()
        assert (client.lost, client.ending) == (True, "fin")
        assert len(gateway.connections) == 0


def test_ipv4_client_on_an_ipv6_socket() -> None:
    """Logs and upstream learn of its IPv4 address."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client = make_connection(gateway, loop, peername=("::ffff:192.0.2.1", 40000))
        client.feed(make_request("GET", b"/", b"").wire)
        loop.settle()
        upstream = loop.attempts[0].accept()
        assert b"\r\nX-Forwarded-For: 192.0.2.1\r\n" in upstream.written
        upstream.feed(make_answer("length", b"GET", b"ok", 0).wire)
        assert gateway.ended == [(b"GET", b"/", 200)]  # where the address is compared


class Deciding:
    """An interception that waits for a decision which never comes."""

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
        raise AssertionError("there is no answer")

    def report_response(self, status: int, head: bytes) -> bytes | None:
        return None

    def close(self, reason: str = "", status: int | None = None) -> None:
        self.closed.append((reason, status))


def test_fin_while_it_is_decided_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIN cancels the task of an intercepted request at once, though an answer before it is not taken yet."""
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
    """A request that has waited for the one before it is not begun when the client is gone with the answer to that."""
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
    """A client is not read from the loss of its request's connection until there is another."""
    with virtual_loop() as loop:
        gateway = loop.act(FakeGateway)
        client, other = make_connection(gateway, loop), make_connection(gateway, loop)
        request = make_request("GET", b"/", b"")
        for each in (client, other):  # the other's request is at work, so that writes wait for the end of a turn
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
    """A client is not read while upstream takes nothing of its request, and is read on when it does."""
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
    """Upstream is not read while the client takes nothing of its answer, and is read on when it does."""
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
    """A client that reads its response only when it has sent its content may take half a minute, in a drain too."""
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
    """It comes when the client has taken all of its response, however long that takes, and no later."""
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
    """What a client gets of an answer that is cut because of its FIN can't be taken for whole."""
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
def test_fin_behind_an_answer_that_is_not_taken(*, takes: bool) -> None:
    """The request at work is cancelled at once; the answer before it has the keep-alive timeout to be taken in."""
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
    """Whatever peers and clock do, the model is right."""
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
    """A request that ends the connection with an exception is not counted as in flight for ever."""

    class Defective(FakeGateway):
        def intercept(
            self, path: str, head: bytes, outbound: bytes, send_lookup: SendLookup, client: str | None
        ) -> None:
            raise RuntimeError("a defect")

    with virtual_loop() as loop:
        gateway = loop.act(Defective)
        client = make_connection(gateway, loop)
        with pytest.raises(RuntimeError, match="a defect"):
            client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        client.reset()  # as event loops do then
        loop.settle()
        assert client.lost
        assert gateway.counters.in_flight == 0


def test_an_answer_in_the_turn_of_a_reset() -> None:
    """A connection that has been reset takes no further request, though the current one is answered in that turn."""
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

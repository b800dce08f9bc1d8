"""The rows of the conformance table, and functions that make the common kinds of rows.

A row has a name, the source of its requirement, and a ``play``: a function that is called with a `Lab` and raises
AssertionError, or `Cut`, if the gateway does not satisfy the requirement. If ASGI cannot carry something, the row names
it with a `Lost`, and asserts what the ASGI adapter does instead. No row is skipped.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from tests.support.client import Client, Response
from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import OK, Script, Step, Upstream, reply
from tests.support.wire import Cut, Fields

HOST = b"Host: example.test"
MARKER = b"/settled"
ADDED = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via")  # field lines that the gateway writes


class Lost(Enum):
    """What a server's ASGI interface does not carry to or from the application."""

    EMPTY_QUERY = "an empty query: the application receives `/a?` as `/a`"
    REASON = "reason phrases: the server sends the standard phrase of the status"
    NAME_CASE = "the case of field names: they are in lower case in both directions"
    HTTP_10 = "HTTP/1.0 clients: the server sends a response without Content-Length chunked, which they cannot decode"
    TRAILERS = "trailers, in either direction"
    INTERIM = "interim (1xx) responses, except 100 (Continue), which the server sends on its own"
    TARGET_FORM = (
        "the form of the request target: the application receives only the path and query of an absolute-form target"
    )
    FRAGMENT = "a fragment in the target"
    LENGTH_OF_304 = "Content-Length in a 304: the server would wait for that much content"
    UPGRADE = "upgrades to protocols other than WebSocket: the request is forwarded without Upgrade"
    EXPECT = "Expect: the server sends 100 (Continue) on its own, before upstream has responded"
    HEAD_LIMIT = (
        "the gateway's limit on the size of heads, trailers and chunk extensions: only the server's limits apply"
    )
    STRICTNESS = "the syntax of a request: the server's parser accepts or refuses it before the application is called"
    REST = "content that the application does not read: the server discards it, and reads the next request"
    STATUS = "status codes above 599: uvicorn cannot send them"


@dataclass(frozen=True)
class Lab:
    """A gateway with one of its adapters, and the upstream behind it."""

    adapter: Adapter
    gateway: Gateway
    upstream: Upstream

    def connect(self) -> Client:
        return self.gateway.connect()

    def ask(self, *chunks: bytes) -> Response:
        return self.gateway.ask(*chunks)

    def settle(self) -> None:
        """Wait until the earlier exchanges are over. The gateway has answered another client by then."""
        self.upstream.script = reply(OK)
        self.ask(get(target=MARKER))
        self.upstream.settle()

    def assert_silent(self) -> None:
        """Assert that not a byte of the earlier requests has reached upstream."""
        self.settle()
        assert [each.target.rstrip(b"?") for each in self.upstream.requests] == [MARKER]
        heard = [connection for connection in self.upstream.connections if connection.received]
        assert len(heard) == 1
        assert heard[0].received.startswith(self.upstream.requests[0].raw_head)


Play = Callable[[Lab], None]


@dataclass(frozen=True)
class Instead:
    """What the ASGI adapter does instead, because ASGI does not carry ``lost``."""

    lost: Lost
    play: Play


@dataclass(frozen=True)
class Row:
    name: str
    source: str
    play: Play
    asgi: Instead | None = None
    options: tuple[str, ...] = ()  # of the gateway

    def run(self, lab: Lab) -> None:
        with contextlib.suppress(AssertionError, Cut, OSError):  # these were reported for the row before
            lab.settle()
        lab.upstream.restart()
        (self.asgi.play if self.asgi and lab.adapter == "asgi" else self.play)(lab)
        lab.upstream.settle()
        if lab.upstream.errors:
            raise lab.upstream.errors[0]
        lab.gateway.assert_no_traceback()


class Decorator(Protocol):
    def __call__(self, play: Play) -> Play: ...


def scenario(
    rows: list[Row], name: str, source: str, *, asgi: Instead | None = None, options: tuple[str, ...] = ()
) -> Decorator:
    """Add a play written out as a function to ``rows``."""

    def decorate(play: Play) -> Play:
        rows.append(Row(name, source, play, asgi, options))
        return play

    return decorate


# requests


def request(line: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    """A request of exactly these lines: nothing is added, not even Host."""
    return b"\r\n".join((line, *lines, b"", body))


def get(*lines: bytes, target: bytes = b"/") -> bytes:
    return request(b"GET " + target + b" HTTP/1.1", HOST, *lines)


def post(body: bytes, *lines: bytes, target: bytes = b"/") -> bytes:
    return request(b"POST " + target + b" HTTP/1.1", HOST, b"Content-Length: %d" % len(body), *lines, body=body)


def chunked(body: bytes, *lines: bytes) -> bytes:
    """A POST whose ``body`` is sent as it is, and has to contain the chunked framing."""
    return request(b"POST / HTTP/1.1", HOST, b"Transfer-Encoding: chunked", *lines, body=body)


def answer(*lines: bytes, body: bytes = b"ok", status: bytes = b"200 OK") -> bytes:
    """A response with Content-Length."""
    return request(b"HTTP/1.1 " + status, *lines, b"Content-Length: %d" % len(body), body=body)


# expectations


def _pairs(lines: tuple[bytes, ...]) -> Fields:
    pairs = []
    for line in lines:
        name, _, value = line.partition(b":")
        pairs.append((name, value.strip()))
    return pairs


def _check_fields(fields: Fields, has: tuple[bytes, ...], lacks: tuple[bytes, ...]) -> None:
    """Assert that each name in ``has`` has exactly its lines there, in order, and that no name in ``lacks`` has any."""
    for name in {name.lower() for name, _ in _pairs(has)}:
        expected = [value for key, value in _pairs(has) if key.lower() == name]
        actual = [value for key, value in fields if key.lower() == name]
        assert actual == expected, (name, fields)
    present = {name.lower() for name, _ in fields}
    assert not present & {name.lower() for name in lacks}, fields


@dataclass(frozen=True, kw_only=True)
class Arrives:
    """What upstream receives: ``count`` requests, the last as described. None means that it is not checked."""

    line: bytes | None = None
    has: tuple[bytes, ...] = ()
    lacks: tuple[bytes, ...] = ()
    body: bytes | None = None
    count: int = 1

    def check(self, lab: Lab) -> None:
        requests = lab.upstream.requests
        assert len(requests) == self.count, [each.start for each in requests]
        assert all(each.complete for each in requests)
        if not requests:
            return
        last = requests[-1]
        if self.line is not None:
            assert last.start == self.line, last.start
        _check_fields(last.fields, self.has, self.lacks)
        if self.body is not None:
            assert last.body == self.body


@dataclass(frozen=True, kw_only=True)
class Returns:
    """What the client gets. None means that it is not checked.

    If ``whole`` is false, the connection breaks off within the content.
    """

    status: int = 200
    reason: bytes | None = None
    has: tuple[bytes, ...] = ()
    lacks: tuple[bytes, ...] = ()
    body: bytes | None = None
    whole: bool = True
    closes: bool | None = None

    def check(self, response: Response, client: Client) -> None:
        assert response.status == self.status, (response.start, response.body[:200])
        if self.reason is not None:
            assert response.reason == self.reason, response.start
        _check_fields(response.fields, self.has, self.lacks)
        assert response.complete == self.whole, response
        if self.body is not None:
            assert response.body == self.body, response.body[:200]
        if self.closes is True:
            assert client.closed(), "the connection is still open, or more bytes were received"


def play(send: bytes, script: Script, arrives: Arrives, returns: Returns, then: Play | None = None) -> Play:
    """Send ``send`` while upstream runs ``script``, and check both sides."""

    def run(lab: Lab) -> None:
        lab.upstream.script = script
        with lab.connect() as client:
            response = client.ask(send)
            returns.check(response, client)
        lab.upstream.settle()
        arrives.check(lab)
        if then:
            then(lab)

    return run


def relayed(
    name: str,
    source: str,
    send: bytes,
    arrives: Arrives | None = None,
    *,
    script: Script | None = None,
    returns: Returns | None = None,
    asgi: tuple[Lost, Arrives | None, Returns | None] | None = None,
    options: tuple[str, ...] = (),
) -> Row:
    """A request that reaches upstream, and its response. ``asgi`` is what to expect of the ASGI adapter instead."""
    arrives, returns, script = arrives or Arrives(), returns or Returns(), script or reply(OK)
    instead = None
    if asgi:
        lost, other_arrives, other_returns = asgi
        instead = Instead(lost, play(send, script, other_arrives or arrives, other_returns or returns))
    return Row(name, source, play(send, script, arrives, returns), instead, options)


def _refusal(send: bytes, status: int) -> Play:
    def run(lab: Lab) -> None:
        with lab.connect() as client:
            client.send(send)
            response = client.read_response()
            assert response.status == status, response.start
            assert client.closed(), "the connection is still open after a refused request"
        lab.assert_silent()

    return run


def refused(
    name: str,
    source: str,
    send: bytes,
    status: int = 400,
    *,
    asgi: tuple[Lost, Arrives | int] | None = None,
) -> Row:
    """A request that gets ``status``, after which the connection is closed. Nothing reaches upstream.

    ``asgi`` is the status with which the ASGI adapter refuses it instead, or what the ASGI adapter forwards.
    """
    instead = None
    if asgi:
        lost, other = asgi
        instead = Instead(
            lost, _refusal(send, other) if isinstance(other, int) else play(send, reply(OK), other, Returns())
        )
    return Row(name, source, _refusal(send, status), instead)


def _broken_off(send: bytes) -> Play:
    def run(lab: Lab) -> None:
        with lab.connect() as client:
            response = client.ask(send)
            assert response.status == 400, response.start
            assert client.closed()
        lab.settle()
        assert lab.upstream.requests.pop().target.rstrip(b"?") == MARKER
        assert not any(each.complete for each in lab.upstream.requests), "upstream received a complete request"

    return run


def broken_off(name: str, source: str, send: bytes) -> Row:
    """A request whose head may be forwarded before its content proves faulty.

    Upstream never receives a complete request. The client gets 400, and its connection is closed.
    """
    return Row(name, source, _broken_off(send))


def _bad_gateway(send: bytes, script: Script, status: int) -> Play:
    def run(lab: Lab) -> None:
        lab.upstream.script = script
        with lab.connect() as client:
            response = client.ask(send)
            assert response.status == status, response.start
            if send.startswith(b"HEAD"):
                return
            assert response.complete
            assert b'"error"' in response.body, response.body
            assert b"127.0.0.1" not in response.body, "the response contains an internal address"
            # the client has done nothing wrong: its connection stays open
            lab.upstream.script = reply(OK)
            assert client.ask(get()).status == 200

    return run


def bad_gateway(name: str, source: str, script: Script, *, send: bytes = b"", status: int = 502) -> Row:
    """An upstream response that cannot be relayed.

    The client gets ``status`` with an error object as content, and its connection stays open.
    """
    return Row(name, source, _bad_gateway(send or get(), script, status))


def _cut(send: bytes, first: bytes, then: tuple[bytes | Step, ...], body: bytes) -> Play:
    def run(lab: Lab) -> None:
        head_seen = threading.Event()
        lab.upstream.script = reply(first, head_seen, *then)
        with lab.connect() as client:
            client.send(send)
            response = client.read_head()
            assert response.status == 200
            head_seen.set()
            response.framing = "close"
            client.read_body(response)
            assert not response.complete, "the client received a complete response although upstream's broke off"
            assert response.body == body

    return run


def cut(name: str, source: str, first: bytes, then: tuple[bytes | Step, ...], body: bytes, *, send: bytes = b"") -> Row:
    """An upstream that breaks off after the head: the client's response breaks off too, and never looks complete."""
    return Row(name, source, _cut(send or get(), first, then, body))

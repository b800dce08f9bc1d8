"""Transcript equality: a request and its response arrive the same, whether directly or through the gateway.

The comparison leaves out the fields that each hop writes (hop-by-hop fields, X-Forwarded-*, Via) and, on the ASGI
adapter, what ASGI cannot carry.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.client import Address, Client
from tests.support.gateway import Gateway
from tests.support.upstream import CLOSE, Connection, Upstream, perform
from tests.support.wire import Fields

WRITTEN_BY_A_HOP = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"transfer-encoding"),
    *(b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via"),
}


@dataclass(frozen=True)
class Sent:
    """A request whose content is sent in ``pieces``, one write for each, chunked or with Content-Length."""

    method: bytes = b"GET"
    target: bytes = b"/"
    fields: tuple[tuple[bytes, bytes], ...] = ()
    pieces: tuple[bytes, ...] = ()
    chunked: bool = False

    def encode(self) -> list[bytes]:
        lines = [b"%s %s HTTP/1.1" % (self.method, self.target), b"Host: example.test:81"]
        lines += [b"%s: %s" % line for line in self.fields]
        if self.chunked:
            lines.append(b"Transfer-Encoding: chunked")
            content = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in self.pieces if piece] + [b"0\r\n\r\n"]
        else:
            if self.pieces or self.method == b"POST":
                lines.append(b"Content-Length: %d" % sum(map(len, self.pieces)))
            content = list(self.pieces)
        return [b"\r\n".join((*lines, b"", b"")), *content]


@dataclass(frozen=True)
class Answered:
    """A response; ``framing`` is "length", "chunked" or "close"."""

    status: bytes = b"200 OK"
    fields: tuple[tuple[bytes, bytes], ...] = ()
    pieces: tuple[bytes, ...] = (b"ok",)
    framing: str = "length"

    def __call__(self, connection: Connection) -> None:
        method = connection.read_request().method
        lines = [b"HTTP/1.1 " + self.status, *(b"%s: %s" % line for line in self.fields)]
        if self.framing == "chunked":
            lines.append(b"Transfer-Encoding: chunked")
        elif self.framing == "length":
            lines.append(b"Content-Length: %d" % sum(map(len, self.pieces)))
        perform(connection, b"\r\n".join((*lines, b"", b"")))
        if method == b"HEAD":
            return
        for piece in self.pieces:
            if self.framing != "chunked":
                connection.send(piece)
            elif piece:
                connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        if self.framing == "chunked":
            connection.send(b"0\r\n\r\n")
        elif self.framing == "close":
            perform(connection, CLOSE)


@dataclass(frozen=True)
class Transcript:
    """A request and its response as they were received, without the fields that each hop writes."""

    start: bytes
    fields: Fields
    body: bytes
    framing: str
    status: bytes
    answer_fields: Fields
    answer: bytes

    def through_asgi(self) -> Transcript:
        """The parts that ASGI carries: names in lower case, no empty query, no reason phrase."""
        method, target, version = self.start.split(b" ")
        return replace(
            self,
            start=b"%s %s %s" % (method, target.removesuffix(b"?") if target.count(b"?") == 1 else target, version),
            fields=[(name.lower(), value) for name, value in self.fields],
            status=self.status[:3],
            answer_fields=[(name.lower(), value) for name, value in self.answer_fields],
        )


def end_to_end(fields: Fields) -> Fields:
    return [(name, value) for name, value in fields if name.lower() not in WRITTEN_BY_A_HOP]


def transcript(address: Address, upstream: Upstream, sent: Sent, answered: Answered) -> Transcript:
    before = len(upstream.requests)
    upstream.script = answered
    with Client(address, keep=False) as client:
        client.send(*sent.encode())
        response = client.read_response(sent.method)
    received = upstream.requests[before]
    assert len(upstream.requests) == before + 1
    assert received.complete
    assert response.complete
    return Transcript(
        received.start,
        end_to_end(received.fields),
        received.body,
        received.framing,
        response.start.split(b" ", 1)[1],
        end_to_end(response.fields),
        response.body,
    )


def assert_same(gateway: Gateway, upstream: Upstream, sent: Sent, answered: Answered) -> None:
    direct = transcript(upstream.address, upstream, sent, answered)
    relayed = transcript(gateway.address, upstream, sent, answered)
    if gateway.adapter == "asgi":
        direct, relayed = direct.through_asgi(), relayed.through_asgi()
    assert relayed == direct


TABLE = {
    "plain": Sent(),
    "encoded slash": Sent(target=b"/key%2Fupdate/a%2fb"),
    "empty segments": Sent(target=b"//key//update//"),
    "dot segments": Sent(target=b"/a/../b/./c/%2e%2e/"),
    "matrix parameters": Sent(target=b"/a;x=1;y/b"),
    "empty query": Sent(target=b"/a?"),
    "unusual query": Sent(target=b"/a?b=c?d&&=&;e=%zz+%20&f#"[:-1]),
    "percent signs": Sent(target=b"/100%25/%zz/%"),
    "duplicate fields": Sent(fields=((b"X-A", b"1"), (b"x-a", b"2"), (b"Accept", b"a"), (b"X-A", b"1"))),
    "bytes above 0x7F": Sent(fields=((b"X-High", bytes(range(0x80, 0x100))),)),
    "empty POST": Sent(b"POST"),
    "POST": Sent(b"POST", pieces=(b"a" * 10, b"b" * 3)),
    "chunked POST": Sent(b"POST", pieces=(b"a" * 10, b"b" * 3), chunked=True),
    "empty chunked POST": Sent(b"POST", chunked=True),
    "DELETE with content": Sent(b"DELETE", pieces=(b"x",)),
    "key update without a guarded member": Sent(
        b"POST", b"/key/update", ((b"Content-Type", b"application/json"),), (b'{"key": "sk-1", "models": []}',)
    ),
    "key update that is not JSON": Sent(b"POST", b"/key/update", ((b"Content-Type", b"text/csv"),), (b"a,b\r\n",)),
    "10 MiB": Sent(b"PUT", pieces=(b"0123456789abcdef" * 655_360,)),
    "10 MiB chunked": Sent(b"PUT", pieces=(b"0123456789abcdef" * 65_536,) * 10, chunked=True),
}


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in TABLE.items()])
def test_table(gateway: Gateway, upstream: Upstream, sent: Sent) -> None:
    """A request of the table and its response arrive as they were sent."""
    answered = Answered(fields=((b"Set-Cookie", b"a=1"), (b"X-B", b"2"), (b"Set-Cookie", b"a=2")))
    if sent.target == b"/key/update":  # the response to an intercepted request has one more field; the rest is the same
        direct = transcript(upstream.address, upstream, sent, answered)
        relayed = transcript(gateway.address, upstream, sent, answered)
        marks = [line for line in relayed.answer_fields if line[0] == b"x-litellm-sanitizer"]
        assert len(marks) == 1
        relayed.answer_fields.remove(marks[0])
        assert relayed.through_asgi() == direct.through_asgi()
        return
    assert_same(gateway, upstream, sent, answered)


TCHAR = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
PATH = "/" * 8 + ".;:@!$&'()*+,=-_~%abcxyzAZ019\"<>\\^`{|}"
RESERVED = {b"host", b"content-length", b"expect", b"trailer", b"forwarded", b"x-real-ip", b"content-encoding"}


def reserved(name: bytes) -> bool:
    return name.lower() in WRITTEN_BY_A_HOP | RESERVED or name.lower().startswith(b"x-forwarded-")


names = st.text(TCHAR, min_size=1, max_size=20).map(str.encode).filter(lambda name: not reserved(name))
values = (
    st.lists(st.sampled_from([*range(0x20, 0x7F), 0x09, *range(0x80, 0x100)]), max_size=40)
    .map(bytes)
    .map(lambda value: value.strip(b" \t"))
)
fields = st.lists(st.tuples(st.one_of(names, st.sampled_from([b"X-A", b"x-a", b"Cookie"])), values), max_size=8)
targets = st.builds(
    lambda path, query: ("/" + path + query).encode(),
    st.text(PATH, max_size=30),
    st.one_of(st.just(""), st.text(PATH + "?[]", max_size=30).map("?".__add__)),
)


@st.composite
def contents(draw: st.DrawFn, largest: int) -> tuple[bytes, ...]:
    """Content in pieces of any size. The total size is at most ``largest``, and of any order of magnitude."""
    total = draw(st.one_of(st.integers(0, 100), st.integers(0, 70_000), st.integers(0, largest)))
    content = random.Random(total).randbytes(total)
    cuts = sorted(draw(st.lists(st.integers(0, total), max_size=6)))
    return tuple(content[start:end] for start, end in zip([0, *cuts], [*cuts, total], strict=True))


requests = st.builds(
    lambda method, target, lines, pieces, chunked: Sent(method, target, tuple(lines), pieces, chunked),
    st.sampled_from([b"POST", b"PUT", b"PATCH", b"DELETE", b"GET", b"OPTIONS", b"REPORT"]),
    targets,
    fields,
    contents(10 * 1024 * 1024),
    st.booleans(),
)
bare_requests = st.builds(
    lambda method, target, lines: Sent(method, target, tuple(lines)),
    st.sampled_from([b"GET", b"HEAD", b"OPTIONS", b"DELETE"]),
    targets,
    fields,
)
reasons = st.text("abc XYZ'-", max_size=15).map(str.strip).map(str.encode)
answers = st.builds(
    lambda status, reason, lines, pieces, framing: Answered(b"%d %s" % (status, reason), tuple(lines), pieces, framing),
    st.sampled_from([200, 201, 206, 299, 301, 400, 404, 422, 429, 500, 503]),
    reasons,
    fields,
    contents(300_000),
    st.sampled_from(["length", "chunked", "close"]),
)

shared = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(shared, max_examples=60)
@given(sent=requests, answered=answers)
def test_contents(gateway: Gateway, running_upstream: Upstream, sent: Sent, answered: Answered) -> None:
    """Any request with content, sent in any pieces, and any response arrive as they were sent."""
    assert_same(gateway, running_upstream, sent, answered)


@settings(shared, max_examples=150)
@given(sent=bare_requests, answered=answers)
def test_heads(gateway: Gateway, running_upstream: Upstream, sent: Sent, answered: Answered) -> None:
    """Any request without content and any response to it, to HEAD too, arrive as they were sent."""
    assert_same(gateway, running_upstream, sent, answered)


@pytest.fixture(scope="module", autouse=True)
def nothing_failed(running_upstream: Upstream) -> Iterator[None]:
    """Check after the last test that upstream's scripts have raised no error."""
    yield
    assert running_upstream.errors == []

"""Differential fuzzing: the gateway and h11 read the same responses, which are mutated and divided into pieces.

Both must agree on status, fields and content, and on whether the response is complete. They may differ in two ways:

* The gateway refuses streams that h11 accepts. `STRICTER` finds the reason in the octets: a bare CR or LF, a folded
  line, control characters in values, two Content-Lengths, even if equal, a length together with a transfer coding, a
  length of more than 18 or a chunk size of more than 15 digits, malformed chunk extensions, or a version other than 1.0
  and 1.1.
* The gateway accepts streams that h11 refuses. `LAXER` finds the reason: empty lines before the status line, or control
  characters in a reason phrase, which are relayed unchanged. Neither can hide a field or content.

A response that ends too early is incomplete for both.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from sanitizer.address import Address
from sanitizer.http1.heads import head_fields
from sanitizer.relay.connection import Connection
from sanitizer.relay.pool import Pool
from tests.relay.mutations import divided, mutated
from tests.support.recorder import Recorder

Fields = list[tuple[bytes, bytes]]
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1500"))
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}

STRICTER = re.compile(
    rb"""
      (?<!\r)\n | \r(?!\n)                                  # bare LF, bare CR
    | HTTP/(?!1\.[01][ ])                                   # another version
    | \r\n[ \t]                                             # folded line, or white space before a field or a size
    | [\x00-\x08\x0b\x0c\x0e-\x1f\x7f]                      # control characters
    | (?i:content-length:[^\r\n]*\r\n(?:[^\r\n]+\r\n)*content-length:)
    | (?i:content-length:[^\r\n]*\r\n(?:[^\r\n]+\r\n)*transfer-encoding:)
    | (?i:transfer-encoding:[^\r\n]*\r\n(?:[^\r\n]+\r\n)*content-length:)
    | (?i:content-length:[^\r\n]*[0-9]{19,})
    | (?i:content-length:[^\r\n]*,)                         # a list of equal lengths
    | (?i:transfer-encoding:[^\r\n]*\r\n(?:[^\r\n]+\r\n)*transfer-encoding:)
    | [0-9a-fA-F]{16,}(?:;[^\r\n]*)?\r\n                    # a chunk of more than 64 bits
    | [0-9a-fA-F]+[ \t]*;[^\r\n]*\r\n | [0-9a-fA-F]+[ \t]+\r\n     # chunk extensions, white space after a size
    """,
    re.VERBOSE,
)
LAXER = re.compile(
    rb"""
      (?:\A|\r\n\r\n)[\r\n]+HTTP/                           # empty lines before a status line
    | HTTP/[0-9.]+[ ][0-9]{3}[ ][^\r\n]*[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]   # control characters in a reason
    """,
    re.VERBOSE,
)


@dataclass
class Reading:
    """The message that a reader has found. ``whole`` is false if the octets were refused, or ended too early."""

    interim: list[int] = field(default_factory=list)
    status: int | None = None
    fields: Fields = field(default_factory=list)
    content: bytes = b""
    whole: bool = False


class Wire(asyncio.Transport):
    """A transport that discards what is written."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    close = abort

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.fixture(scope="module")
def sock() -> Iterator[socket.socket]:
    """The socket of every transport, with nothing to read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


@pytest.fixture(scope="module")
def upstream() -> Iterator[Pool]:
    with asyncio.Runner() as runner:

        async def make() -> Pool:
            return Pool(Address("http", "127.0.0.1", 9))

        upstream = runner.run(make())
        yield upstream
        upstream.close()


def read(upstream: Pool, sock: socket.socket, method: bytes, pieces: list[bytes]) -> Reading:
    """Let the gateway read a response that arrives in ``pieces``, before upstream ends the connection."""
    recorder = Recorder(upstream, method, method + b" / HTTP/1.1\r\nHost: a\r\n")
    connection, transport = Connection(upstream), Wire(sock)
    connection.connection_made(transport)
    recorder.exchange.attach(connection)
    upstream.outbox.flush()
    for piece in pieces:
        if transport.closed:
            break
        connection.data_received(piece)
    if not transport.closed:
        connection.eof_received()
    connection.connection_lost(None)
    assert recorder.exchange.done, "the exchange neither has a response nor has failed"
    return reading_of(recorder)


def reading_of(recorder: Recorder) -> Reading:
    """The response that the client got. Its calls must be in order: one final response, its content, nothing more."""
    reading = Reading()
    for kind, *values in recorder.calls:
        assert not reading.whole, f"{kind} after the end"
        if kind == "interim":
            reading.interim.append(int(values[0][9:12]))
        elif kind == "response":
            assert reading.status is None, "two final responses to one request"
            assert recorder.exchange.response is not None
            reading.status, reading.fields = values[0], head_fields(recorder.exchange.response.head)
        elif kind == "content":
            assert reading.status is not None, "content without a response"
            reading.content += values[0]
            reading.whole = values[1]
    return reading


def read_with_h11(method: bytes, pieces: list[bytes]) -> Reading:
    connection, reading = h11.Connection(h11.CLIENT), Reading()
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    try:
        for piece in [*pieces, b""]:
            connection.receive_data(piece)
            while (message := connection.next_event()) is not h11.NEED_DATA:
                if isinstance(message, h11.InformationalResponse):
                    reading.interim.append(message.status_code)
                elif isinstance(message, h11.Response):
                    reading.status = message.status_code
                    reading.fields = list(message.headers.raw_items())
                elif isinstance(message, h11.Data):
                    reading.content += bytes(message.data)
                elif isinstance(message, h11.EndOfMessage):
                    reading.whole = True
                if isinstance(message, h11.PAUSED | h11.ConnectionClosed | h11.EndOfMessage):
                    return reading
    except h11.RemoteProtocolError:
        pass
    return reading


def end_to_end(fields: Fields) -> Fields:
    """The end-to-end field lines. Connection cannot make the five fields listed here hop-by-hop."""
    named = {
        option.strip(b" \t").lower()
        for name, value in fields
        if name.lower() == b"connection"
        for option in value.split(b",")
    } - {b"content-length", b"host", b"via", b"date", b"set-cookie"}
    return [(n.lower(), v.rstrip(b" \t")) for n, v in fields if n.lower() not in HOP_BY_HOP | named]


def assert_agree(upstream: Pool, sock: socket.socket, method: bytes, pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    ours, theirs = read(upstream, sock, method, pieces), read_with_h11(method, pieces)
    if ours.whole and theirs.whole:
        event("whole for both")
        assert (ours.status, end_to_end(ours.fields)) == (theirs.status, end_to_end(theirs.fields))
        assert ours.content == theirs.content
        assert ours.interim == theirs.interim
    elif theirs.whole:
        event("refused here")
        assert STRICTER.search(stream), f"refused here, whole for h11: {theirs}"
        assert theirs.content.startswith(ours.content)
    elif ours.whole:
        event("refused by h11")
        assert LAXER.search(stream), f"whole here, refused by h11: {ours}"
    else:
        event("whole for neither")
        if ours.status is not None and theirs.status is not None:
            assert ours.status == theirs.status
            shorter, longer = sorted((ours.content, theirs.content), key=len)
            assert longer.startswith(shorter)


status_lines = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 304 Not Modified",
        b"HTTP/1.1 404 Nicht gefunden \xe9",
        b"HTTP/1.1 503 Service Unavailable",
    ]
)
interim = st.sampled_from(
    [
        b"",
        b"",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        b"HTTP/1.1 102 \r\n\r\n",
    ]
)
lines = st.lists(
    st.sampled_from(
        [
            b"Content-Type: text/event-stream",
            b"Set-Cookie: a=1",
            b"Set-Cookie: b=2; Path=/",
            b"X-Empty:",
            b"x-space: \t a b \t",
            b"X-High: \xff\x80",
            b"Connection: close",
            b"Connection: keep-alive, X-Named",
            b"X-Named: y",
            b"Keep-Alive: timeout=5",
        ]
    ),
    max_size=4,
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """A valid response in one of the framings, with or without an interim response before it."""
    content = draw(st.binary(max_size=40))
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    head = [draw(status_lines), *draw(lines)]
    if framing == "length":
        head.insert(draw(st.integers(1, len(head))), b"Content-Length: %d" % len(content))
        body = content
    elif framing == "chunked":
        head.insert(draw(st.integers(1, len(head))), b"Transfer-Encoding: chunked")
        cut = draw(st.integers(0, len(content)))
        parts = [part for part in (content[:cut], content[cut:]) if part]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        body += draw(st.sampled_from([b"0\r\n\r\n", b"0\r\nX-Trailer: t\r\n\r\n", b"00\r\n\r\n"]))
    else:
        body = content
    return draw(interim) + b"\r\n".join((*head, b"", b"")) + body


TOKENS = [
    b"\r\n",
    b"\r",
    b"\n",
    b" ",
    b"\t",
    b"\0",
    b":",
    b";",
    b",",
    b"0",
    b"1",
    b"f",
    b"-",
    b"+",
    b"x",
    b"\x80",
    b"\x0b",
]
TOKENS += [
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"chunked",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"\r\n\r\n",
]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """A response with up to three mutations, in pieces."""
    return divided(draw, mutated(draw, draw(answers()), TOKENS))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=streams(), method=st.sampled_from([b"GET", b"GET", b"POST", b"HEAD"]))
@example(pieces=[b"HTTP/1.1 099 Odd\r\n\r\n"], method=b"GET")
@example(pieces=[b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"], method=b"GET")
@example(pieces=[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n"], method=b"GET")
@example(pieces=[b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], method=b"GET")
def test_agrees_with_h11(upstream: Pool, sock: socket.socket, pieces: list[bytes], method: bytes) -> None:
    """The gateway reads a stream as h11 does, except for the differences listed above."""
    assert_agree(upstream, sock, method, pieces)


@settings(max_examples=EXAMPLES // 5, deadline=None, suppress_health_check=list(HealthCheck))
@given(stream=streams().map(b"".join), method=st.sampled_from([b"GET", b"HEAD"]))
def test_pieces_do_not_matter(upstream: Pool, sock: socket.socket, stream: bytes, method: bytes) -> None:
    """A complete response is read alike in whatever pieces it arrives, and an incomplete one is always incomplete."""
    whole = read(upstream, sock, method, [stream] if stream else [])
    bytewise = read(upstream, sock, method, [stream[n : n + 1] for n in range(len(stream))])
    assert whole.whole == bytewise.whole
    if whole.whole:
        assert whole == bytewise

"""Fuzzing with mutated requests in any pieces: upstream receives only the requests that h11 finds in the octets sent.

A stream of pipelined requests is sent to the gateway and parsed by h11. The complete requests that upstream receives
must be the first ones that h11 finds, with the same method, target and content. There may be fewer, since the gateway
refuses more than h11 (see `STRICTER` in test_fuzz_upstream). An additional or a different request would be smuggled.
"""

from __future__ import annotations

import contextlib
import os

import h11
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from tests.relay.mutations import divided, mutated
from tests.support.gateway import Gateway
from tests.support.upstream import OK, Upstream, reply
from tests.support.wire import Cut

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "400"))
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

Seen = tuple[bytes, bytes, bytes]  # method, target, content


def read_with_h11(stream: bytes) -> tuple[list[Seen], bool]:
    """The requests that h11 finds in ``stream``, and whether the last of them closes the connection.

    Empty lines before a request are skipped, which h11 does not do, but RFC 9112 section 2.2 recommends to servers.
    """
    requests: list[Seen] = []
    while True:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        connection.receive_data(stream.lstrip(b"\r\n"))
        method = target = content = b""
        try:
            while not isinstance(message := connection.next_event(), h11.EndOfMessage):
                if isinstance(message, h11.Request):
                    method, target = message.method, message.target
                elif isinstance(message, h11.Data):
                    content += bytes(message.data)
                else:
                    return requests, False
        except h11.RemoteProtocolError:
            return requests, False
        requests.append((method, target, content))
        connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is h11.MUST_CLOSE:
            return requests, True
        stream = connection.trailing_data[0]


def exchange(gateway: Gateway, upstream: Upstream, pieces: list[bytes], answers: int, *, ends: bool) -> list[Seen]:
    """Send ``pieces``. Returns the complete requests that upstream has received.

    If the requests do not close the connection (``ends``), the client half-closes it after it has received ``answers``
    responses. Before that, a FIN would cancel its requests.
    """
    upstream.restart(reply(OK))
    # the gateway may refuse a request before it has read everything
    with gateway.connect() as client, contextlib.suppress(Cut, ConnectionError):
        client.send(*pieces)
        if not ends:
            for _ in range(answers):
                client.read_response()
            client.half_close()
        client.read_to_end()
    upstream.settle()
    return [(each.method, each.target, each.body) for each in upstream.requests if each.complete]


targets = st.sampled_from([b"/", b"/a?b=c", b"/key/update", b"/a%2Fb", b"*", b"http://a/b"])
bodies = st.sampled_from([b"", b"x", b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", b"0\r\n\r\n", b'{"key": "sk-1"}'])
extras = st.lists(
    st.sampled_from(
        [b"X: y", b"Connection: keep-alive", b"Cookie: a=b", b"Connection: Content-Length", b"TE: trailers"]
    ),
    max_size=2,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A valid request."""
    method, target = draw(st.sampled_from([b"GET", b"POST", b"DELETE", b"OPTIONS"])), draw(targets)
    lines = [b"%s %s HTTP/1.%d" % (method, target, draw(st.sampled_from([1, 1, 1, 0]))), b"Host: a", *draw(extras)]
    body = draw(bodies)
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "length":
        lines.insert(draw(st.integers(1, len(lines))), b"Content-Length: %d" % len(body))
    elif framing == "chunked":
        lines.insert(draw(st.integers(1, len(lines))), b"Transfer-Encoding: chunked")
        body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    else:
        body = b""
    return b"\r\n".join((*lines, b"", body))


TOKENS = [b"\r\n", b"\r", b"\n", b" ", b"\t", b"\0", b":", b";", b",", b"0", b"1", b"a", b"-", b"+", b"\x80", b"\x0b"]
TOKENS += [
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding:\tidentity\r\n",
    b"0\r\n\r\n",
]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """One to three requests with up to three mutations, then a valid one that closes the connection, in pieces."""
    stream = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    return divided(draw, mutated(draw, stream, TOKENS) + LAST)


def origin_form(seen: Seen) -> Seen:
    method, target, content = seen
    if target.startswith((b"http://", b"https://")):
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    return method, target, content


@pytest.mark.parametrize("adapter", ["native"], indirect=True)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=streams())
@example(
    pieces=[b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + LAST]
)
@example(pieces=[b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;\n\r\nx\r\n0\r\n\r\n" + LAST])
@example(pieces=[b"GET / HTTP/1.1\r\nHost: a\r\nX: y\n\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n" + LAST])
def test_nothing_is_smuggled(gateway: Gateway, running_upstream: Upstream, pieces: list[bytes]) -> None:
    """Upstream receives all or the first of the requests that h11 finds in the stream, and no other request."""
    expected, ends = read_with_h11(b"".join(pieces))
    received = exchange(gateway, running_upstream, pieces, len(expected), ends=ends)
    assert received == [origin_form(each) for each in expected[: len(received)]]
    event("all" if len(received) == len(expected) else "refused" if not received else "some")

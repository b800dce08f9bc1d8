"""Intercepted requests in the native adapter: collected, looked up, and then forwarded and answered like all others.

A real gateway runs in front of a scripted upstream. The tests compare octets that ASGI servers do not preserve, and
check the log lines that the gateway writes for each request.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sanitizer.relay.exchange import Exchange
from sanitizer.relay.intercepted import Intercepted
from tests.operate.exposition import wait_for
from tests.support.client import Client
from tests.support.cores import BODY, Core
from tests.support.fake_gateway import FakeGateway, make_connection
from tests.support.gateway import Gateway
from tests.support.upstream import (
    CLOSE,
    OK,
    RESET,
    WAIT_CLOSED,
    Connection,
    Script,
    Step,
    Upstream,
    in_turn,
    perform,
    refusing_port,
    reply,
)
from tests.support.virtual import virtual_loop
from tests.support.wire import MAX_BUFFERED, Cut, Request, Response, send_until_blocked

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
MAX_BODY = 2000
KEY = "sk-intercepted"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
ROUTES = ["llm_api_routes"]
UPDATE = json.dumps({"key": KEY, "allowed_routes": ROUTES, "models": []}).encode()
CUT = UPDATE.replace(b'"allowed_routes": ["llm_api_routes"],', b"")
CHANGED = json.dumps({"key": KEY, "allowed_routes": ["/other"], "models": []}).encode()
INFO = json.dumps({"key": HASH, "info": {"token": HASH, "allowed_routes": ROUTES}}).encode()
LOOKUP = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(INFO), INFO)
DROPPED = b'x-litellm-sanitizer: dropped; fields="allowed_routes"\r\n'
UNKNOWN = b'x-litellm-sanitizer: unknown; reason="lookup_failed"\r\n'
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
GET = b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n"

Steps = bytes | Step | threading.Event


def litellm(*steps: Steps, lookup: tuple[Steps, ...] = (LOOKUP,)) -> Script:
    """An upstream that answers lookups with ``lookup``, and all other requests with ``steps``."""

    def script(connection: Connection) -> None:
        target = connection.read_request().target
        perform(connection, *(lookup if target.startswith(b"/key/info?") else steps or (OK,)))

    return script


def chunked(content: bytes, size: int = 1 << 20) -> bytes:
    """The chunked coding of ``content`` in chunks of ``size``."""
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]) + b"0\r\n\r\n"


def head(*lines: bytes, start: bytes = b"POST /key/update HTTP/1.1") -> bytes:
    return b"\r\n".join((start, b"Host: a", *lines, b"", b""))


def update(body: bytes = UPDATE, *lines: bytes) -> bytes:
    return head(*lines, b"Content-Length: %d" % len(body)) + body


def updates(upstream: Upstream) -> list[Request]:
    """The requests that are not lookups."""
    return [request for request in upstream.requests if not request.target.startswith((b"/key/info?", b"/v2/key/info"))]


def lookups(upstream: Upstream) -> int:
    return len(upstream.requests) - len(updates(upstream))


class Journal:
    """The lines that the gateway logs from now on about requests that have ended."""

    _numbers = itertools.count()

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        self._gateway = gateway
        self._upstream = upstream
        self._mark()  # a line may be logged after the response: wait for those of earlier requests
        self._before = len(gateway.records)
        upstream.restart(upstream.script)  # forget the request that `_mark` has sent

    def _mark(self) -> str:
        """Send a request, wait until it is logged, and return its path. All earlier requests are logged by then."""
        path = f"/journal-{next(self._numbers)}"
        script, self._upstream.script = self._upstream.script, reply(OK)
        assert self._gateway.ask(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).status == 200
        self._upstream.script = script
        self._gateway.wait_for_line(f'"{path}"')
        return path

    def read(self) -> tuple[list[dict[str, Any]], list[tuple[str, str, int]]]:
        """The decisions, and the method, path and status of each request."""
        name = self._mark()
        records = self._gateway.records[self._before :]
        accesses = [record for record in records if record["message"] == "request" and record["path"] != name]
        assert all(record["client"] == "127.0.0.1" and record["ms"] >= 0 for record in accesses)
        decisions = [record for record in records if "outcome" in record]
        assert all(record["endpoint"] == "/key/update" for record in decisions)
        return decisions, [(record["method"], record["path"], record["status"]) for record in accesses]

    def says(
        self,
        outcome: str,
        status: int | None = 200,
        *,
        reason: str | None = None,
        access: int | None = None,
        looked_up: bool = True,
        key: bool = True,
        path: str = "/key/update",
    ) -> None:
        """Assert that one update was logged: once with this decision, and once as a request to ``path``."""
        decisions, accesses = self.read()
        (decision,) = decisions
        expected = {
            "outcome": outcome,
            "status": status,
            "reason": reason,
            "fields": "allowed_routes" if outcome == "dropped" else None,
            "key": HASH[:8] if key else None,
        }
        assert {name: decision.get(name) for name in expected} == expected
        assert ("lookup_ms" in decision) == looked_up
        assert "lookup_key" not in decision
        answered = 499 if status is None else status
        assert [each for each in accesses if each[0] == "POST"] == [("POST", path, access or answered)]


@pytest.fixture(scope="module")
def running_upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(running_upstream: Upstream) -> Iterator[Gateway]:
    """A gateway that logs each request, shared by the module's tests."""
    with Gateway(running_upstream.url, "--access-log", "--max-body", str(MAX_BODY)) as gateway:
        yield gateway


@pytest.fixture
def upstream(running_upstream: Upstream) -> Iterator[Upstream]:
    running_upstream.restart(litellm())
    yield running_upstream
    running_upstream.settle()
    if running_upstream.errors:
        raise running_upstream.errors[0]


@pytest.fixture
def journal(gateway: Gateway, upstream: Upstream) -> Journal:
    return Journal(gateway, upstream)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with gateway.connect() as client:
        yield client


# the response

ANSWERS = [
    pytest.param(
        b"HTTP/1.1 200 Quite  All Right\xfc\r\nX-MiXed: v\r\nx-mixed:  w \t \r\nSet-Cookie: a\r\nSET-cookie: b\r\n"
        b"Content-Length: 2\r\n",
        b"\r\nok",
        id="reason phrase, case, order and white space",
    ),
    pytest.param(b"HTTP/1.1 200 \r\nContent-Length: 2\r\n", b"\r\nok", id="no reason phrase"),
    pytest.param(b"HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n", b"\r\nok", id="an unregistered status"),
    pytest.param(b"HTTP/1.1 622 Odder\r\nContent-Length: 2\r\n", b"\r\nok", id="a status over 599"),
    pytest.param(b"HTTP/1.1 999 Oddest\r\nContent-Length: 2\r\n", b"\r\nok", id="the highest status"),
    pytest.param(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n", b"\r\n", id="204 with Content-Length"),
    pytest.param(b"HTTP/1.1 304 Not Modified\r\nContent-LENGTH: 1234\r\n", b"\r\n", id="304 with Content-Length"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", b"\r\n", id="no content"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n", b"\r\n" + bytes(range(256)) * 1171 + bytes(224), id="long"
    ),
]


@pytest.mark.parametrize(("before", "after"), ANSWERS)
def test_answer(upstream: Upstream, client: Client, journal: Journal, before: bytes, after: bytes) -> None:
    """A response is relayed octet for octet, with one more field line after the others."""
    upstream.script = litellm(before + after)
    expected = before + DROPPED + after
    client.send(update())
    assert client.read_exactly(len(expected)) == expected
    assert client.ask(GET).start == before.partition(b"\r\n")[0]  # nothing followed the response
    journal.says("dropped", int(before.split()[1]))


@pytest.mark.parametrize(
    ("before", "rest"),
    [
        pytest.param(b"X-LiteLLM-Sanitizer: forged\r\nX: y\r\n", b"X: y\r\n", id="one"),
        pytest.param(
            b"x-litellm-sanitizer: a\r\nX: y\r\nX-LITELLM-SANITIZER:b\r\nX-LiteLLM-Sanitizer-Not: c\r\n",
            b"X: y\r\nX-LiteLLM-Sanitizer-Not: c\r\n",
            id="two, and a field with a similar name",
        ),
    ],
)
def test_answer_with_the_field(upstream: Upstream, client: Client, before: bytes, rest: bytes) -> None:
    """The gateway's own X-LiteLLM-Sanitizer field replaces any that upstream has sent."""
    upstream.script = litellm(b"HTTP/1.1 200 OK\r\n" + before + b"Content-Length: 2\r\n\r\nok")
    expected = b"HTTP/1.1 200 OK\r\n" + rest + b"Content-Length: 2\r\n" + DROPPED + b"\r\nok"
    client.send(update())
    assert client.read_exactly(len(expected)) == expected


@pytest.mark.parametrize(
    ("answer", "trailers"),
    [
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"content", 3), [], id="chunked"),
        pytest.param(
            b"Transfer-Encoding: chunked\r\n\r\n7;a=b\r\ncontent\r\n0\r\nX-SuM: 1\r\nx-other: 2\r\n\r\n",
            [(b"X-SuM", b"1"), (b"x-other", b"2")],
            id="chunked, with trailers",
        ),
        pytest.param(b"\r\ncontent", [], id="until close"),
    ],
)
def test_answer_of_unknown_length(
    upstream: Upstream, client: Client, journal: Journal, answer: bytes, trailers: list[tuple[bytes, bytes]]
) -> None:
    """A response of unknown length is relayed chunked, with its trailers, and the client's connection stays open."""
    upstream.script = litellm(b"HTTP/1.1 200 OK\r\nX: y\r\n" + answer, *[CLOSE] * (b"chunked" not in answer))
    response = client.ask(update())
    assert response.raw_head == b"HTTP/1.1 200 OK\r\nX: y\r\n" + DROPPED + b"Transfer-Encoding: chunked\r\n\r\n"
    assert (response.body, response.trailers) == (b"content", trailers)
    assert client.ask(GET).body == b"content"
    journal.says("dropped")


def test_interim_answers(upstream: Upstream, client: Client, journal: Journal) -> None:
    """Interim responses are relayed at once and unchanged: the gateway neither adds nor removes its field."""
    seen = threading.Event()
    hints = b"HTTP/1.1 103 Early Hints\r\nLINK: <a>\r\nx-litellm-sanitizer: b\r\n\r\n"
    upstream.script = litellm(CONTINUE + hints, seen, hints + OK)
    client.send(update())
    assert client.read_exactly(len(CONTINUE + hints)) == CONTINUE + hints
    seen.set()
    assert client.read_exactly(len(hints)) == hints
    assert client.read_response().status == 200
    journal.says("dropped")


def test_answer_streams(upstream: Upstream, client: Client) -> None:
    """Each piece of a response reaches the client before upstream sends the next one."""
    seen = [threading.Event() for _ in range(3)]
    steps: list[Steps] = [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"]
    for number, shown in enumerate(seen):
        steps += [b"%02d" % number, shown]
    upstream.script = litellm(*steps)
    client.send(update())
    assert client.read_head().status == 200
    for number, shown in enumerate(seen):
        assert client.read_exactly(2) == b"%02d" % number
        shown.set()


def test_http_1_0_client(upstream: Upstream, client: Client, journal: Journal) -> None:
    """An HTTP/1.0 client gets neither chunks nor interim responses, and the response ends with its connection."""
    upstream.script = litellm(
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"content", 3),
    )
    client.send(update().replace(b"1.1", b"1.0", 1))
    unbuffered = b"X-Accel-Buffering: no\r\nConnection: close\r\n\r\n"
    assert client.read_to_end() == b"HTTP/1.1 200 OK\r\n" + DROPPED + unbuffered + b"content"
    assert updates(upstream)[0].start == b"POST /key/update HTTP/1.1"
    journal.says("dropped")


def test_http_1_0_upstream(upstream: Upstream, client: Client) -> None:
    """An HTTP/1.0 response is relayed as an HTTP/1.1 response."""
    upstream.script = litellm(b"HTTP/1.0 200 Old\r\nX: y\r\n\r\ncontent", CLOSE)
    response = client.ask(update())
    assert response.raw_head == b"HTTP/1.1 200 Old\r\nX: y\r\n" + DROPPED + b"Transfer-Encoding: chunked\r\n\r\n"
    assert response.body == b"content"


# the request

WAY = b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\nVia: 1.1 litellm-sanitizer-"


@pytest.mark.parametrize(("body", "sent"), [(UPDATE, CUT), (CHANGED, CHANGED)], ids=["cut", "uncut"])
@pytest.mark.parametrize(
    "target",
    [
        pytest.param(b"/key/update", id="plain"),
        pytest.param(b"/key/update?", id="an empty query"),
        pytest.param(b"/key/update?a=%41&b", id="a query"),
        pytest.param(b"/%6bey/updat%65", id="percent-encoded"),
    ],
)
@pytest.mark.parametrize(
    ("name", "padding", "space"),
    [
        pytest.param(b"Content-Length: ", b"", b"", id="usual"),
        pytest.param(b"CONTENT-length:", b"", b"", id="case, and no space"),
        pytest.param(b"content-length: \t", b"000", b" \t", id="leading zeros and white space"),
    ],
)
def test_request(
    upstream: Upstream,
    client: Client,
    target: bytes,
    body: bytes,
    sent: bytes,
    name: bytes,
    padding: bytes,
    space: bytes,
) -> None:
    """A request is forwarded octet for octet. If a member is cut, Content-Length gets another value."""
    before = b"HOST: a\r\nX-MiXed:  v \r\nx-mixed:w\r\nX-Content-Length: 7\r\n"
    lines = b"POST %b HTTP/1.1\r\n%b%b" % (target, before, name)
    length = b"%b%d" % (padding, len(body))
    behind = b"\r\nAuthorization: Bearer sk-x\r\nX-Content-Length: 7\r\n"
    client.send(lines + length + space + behind + b"\r\n" + body)
    client.read_response()
    (request,) = updates(upstream)
    arrived = lines + (length + space if body is sent else b"%d" % len(sent)) + behind + WAY
    assert request.raw_head.startswith(arrived)
    assert request.raw_head[len(arrived) :].count(b"\r\n") == 2
    assert request.body == sent
    assert lookups(upstream) == 1


@pytest.mark.parametrize(("body", "sent"), [(UPDATE, CUT), (CHANGED, CHANGED)], ids=["cut", "uncut"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunked_request(upstream: Upstream, client: Client, body: bytes, sent: bytes, size: int) -> None:
    """A chunked request is forwarded chunked, whatever the sizes of its chunks and their extensions."""
    content = chunked(body, size).replace(b"\r\n", b";a=b\r\n", 1)
    client.send(head(b"X: y", b"Transfer-ENCODING: chunked") + content)
    client.read_response()
    (request,) = updates(upstream)
    assert (request.framing, request.body, request.all(b"content-length")) == ("chunked", sent, [])
    assert request.all(b"transfer-encoding") == [b"chunked"]


def test_trailers_of_a_request(upstream: Upstream, client: Client) -> None:
    """The trailers of a request are dropped, whether it is intercepted or not. They do not become header fields."""
    content = chunked(UPDATE).removesuffix(b"\r\n") + b"X-Sum: 1\r\nx-api-key: forged\r\n\r\n"
    for path in (b"update", b"other"):
        client.ask(head(b"Transfer-Encoding: chunked", start=b"POST /key/%b HTTP/1.1" % path) + content)
    intercepted, ordinary = updates(upstream)
    for received, body in ((intercepted, CUT), (ordinary, UPDATE)):
        assert (received.framing, received.body, received.trailers) == ("chunked", body, [])
        assert not {b"x-sum", b"x-api-key"} & {name.lower() for name in received.names}


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_single_bytes(upstream: Upstream, client: Client, journal: Journal, framing: str) -> None:
    """A request may arrive one byte at a time."""
    request = update() if framing == "length" else head(b"Transfer-Encoding: chunked") + chunked(UPDATE, 5)
    client.send(*[bytes([byte]) for byte in request])
    assert client.read_response().status == 200
    assert updates(upstream)[0].body == CUT
    journal.says("dropped")


@pytest.mark.parametrize("lines", [[b"Content-Length: 0"], []], ids=["length 0", "no length"])
def test_no_content(upstream: Upstream, client: Client, lines: list[bytes]) -> None:
    """A request without content is forwarded without a lookup, as one that has no guarded field."""
    response = client.ask(head(*lines))
    assert response.get(b"x-litellm-sanitizer") == b"absent"
    assert (len(upstream.requests), upstream.requests[0].body) == (1, b"")


# Expect: 100-continue


@pytest.mark.parametrize("line", [b"Expect: 100-continue", b"expect:100-CONTINUE \t"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_client_waits_for_continue(
    upstream: Upstream, client: Client, journal: Journal, line: bytes, framing: str
) -> None:
    """The gateway itself sends one 100 (Continue) to a client that waits for it, before it forwards anything."""
    length = b"Transfer-Encoding: chunked" if framing == "chunked" else b"Content-Length: %d" % len(UPDATE)
    client.send(head(line, length))
    assert client.read_exactly(len(CONTINUE)) == CONTINUE
    assert upstream.requests == []
    client.send(chunked(UPDATE) if framing == "chunked" else UPDATE)
    assert client.read_head().status == 200
    client.read_exactly(2)
    (request,) = updates(upstream)
    assert (request.get(b"expect"), request.body) == (line.split(b":")[1].strip(), CUT)
    assert [each.get(b"expect") for each in upstream.requests if each not in (request,)] == [None]
    journal.says("dropped")


def test_content_comes_with_expect(upstream: Upstream, client: Client) -> None:
    """A client that does not wait gets no 100 (Continue)."""
    client.send(update(UPDATE, b"Expect: 100-continue"))
    assert client.read_head().status == 200


def test_first_content_comes_with_expect(gateway: Gateway, upstream: Upstream, client: Client) -> None:
    """A client that has already sent a part of its content gets no 100 (Continue)."""
    request = update(UPDATE, b"Expect: 100-continue")
    client.send(request[:-5])
    assert gateway.ask(GET).status == 200  # shows that the octets sent before have been read
    client.send(request[-5:])
    assert client.read_head().status == 200


def test_http_1_0_client_expects(gateway: Gateway, upstream: Upstream, client: Client) -> None:
    """An HTTP/1.0 client gets no 100 (Continue) (RFC 9110 section 10.1.1)."""
    request = update(UPDATE, b"Expect: 100-continue").replace(b"1.1", b"1.0", 1)
    client.send(request[: -len(UPDATE)])
    assert gateway.ask(GET).status == 200  # shows that the octets sent before have been read
    client.send(UPDATE)
    assert client.read_head().status == 200


def test_expect_behind_another_request(upstream: Upstream, client: Client) -> None:
    """The client gets 100 (Continue) for a pipelined request only after the response to the request before it."""
    go_on = threading.Event()
    upstream.script = litellm(go_on, OK)
    client.send(GET + head(b"Expect: 100-continue", b"Content-Length: %d" % len(UPDATE)))
    upstream.wait_request()
    go_on.set()
    assert client.read_response().body == b"ok"
    assert client.read_head().status == 100
    client.send(UPDATE)
    assert client.read_head().status == 200


def test_expect_of_a_body_over_the_limit(upstream: Upstream, client: Client) -> None:
    """If the content is not to be collected, the gateway sends no 100 (Continue), but leaves that to upstream."""
    upstream.script = in_turn(reply(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n", early=True))
    client.send(head(b"Expect: 100-continue", b"Content-Length: %d" % (MAX_BODY + 1)))
    assert client.read_head().status == 417


# bodies over the limit


def streaming(seen: list[threading.Event], first: int) -> Script:
    """An upstream that sets ``seen[0]`` after ``first`` bytes of the content, or after its first chunk.

    It responds when it has read all of the content.
    """

    def script(connection: Connection) -> None:
        request = connection.read_head()
        if chunks := request.get(b"transfer-encoding"):
            size = int(connection.read_until(b"\r\n"), 16)
            request.body = connection.read_exactly(size)
            connection.read_exactly(2)
        else:
            request.body = connection.read_exactly(first)
        seen[0].set()
        if chunks:
            request.body += connection.read_chunked()[0]
        else:
            request.body += connection.read_exactly(int(request.get(b"content-length") or 0) - first)
        request.complete = True
        connection.send(OK)

    return script


def test_length_over_the_limit(upstream: Upstream, client: Client, journal: Journal) -> None:
    """Content whose Content-Length is over the limit is forwarded as it is received, without a lookup."""
    seen = [threading.Event()]
    upstream.script = streaming(seen, 10)
    body = UPDATE.ljust(MAX_BODY + 1)
    client.send(head(b"Content-Length: %d" % len(body)) + body[:10])
    assert seen[0].wait(10)
    client.send(body[10:])
    response = client.read_response()
    assert response.get(b"x-litellm-sanitizer") == b'unreadable; reason="too_large"'
    assert [request.body for request in upstream.requests] == [body]
    journal.says("unreadable", reason="too_large", looked_up=False, key=False)


def test_chunks_over_the_limit(gateway: Gateway, upstream: Upstream, client: Client, journal: Journal) -> None:
    """If chunked content exceeds the limit, the collected part is forwarded, and then the rest as it is received."""
    seen = [threading.Event()]
    body = UPDATE.ljust(2 * MAX_BODY)
    client.send(head(b"Transfer-Encoding: chunked") + chunked(body[:MAX_BODY], 100).removesuffix(b"0\r\n\r\n"))
    assert gateway.ask(GET).status == 200  # shows that the octets sent before have been read
    assert [request.method for request in upstream.requests] == [b"GET"]
    upstream.script = streaming(seen, 0)
    client.send(b"1\r\n" + body[MAX_BODY : MAX_BODY + 1] + b"\r\n")
    assert seen[0].wait(10)
    client.send(chunked(body[MAX_BODY + 1 :], 100))
    response = client.read_response()
    assert response.get(b"x-litellm-sanitizer") == b'unreadable; reason="too_large"'
    assert [request.body for request in upstream.requests] == [b"", body]
    journal.says("unreadable", reason="too_large", looked_up=False, key=False)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_exactly_the_limit(upstream: Upstream, client: Client, framing: str) -> None:
    """A body whose size is exactly the limit is inspected."""
    body = UPDATE.ljust(MAX_BODY)
    client.send(update(body) if framing == "length" else head(b"Transfer-Encoding: chunked") + chunked(body, 1000))
    assert client.read_response().get(b"x-litellm-sanitizer") == b'dropped; fields="allowed_routes"'
    assert updates(upstream)[0].body == CUT.ljust(MAX_BODY - len(UPDATE) + len(CUT))


# malformed content


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"5\r\nhello\r\n?\r\n", id="no chunk size"),
        pytest.param(b"5\r\nhello!\r\n", id="a chunk longer than its size"),
        pytest.param(chunked(UPDATE).removesuffix(b"\r\n") + b"no colon\r\n\r\n", id="a faulty trailer"),
        pytest.param(b"\r\n", id="an empty line for a chunk size"),
    ],
)
@pytest.mark.parametrize("pieces", ["in one piece", "in two pieces"])
def test_malformed_chunk(upstream: Upstream, client: Client, journal: Journal, content: bytes, pieces: str) -> None:
    """Malformed chunked content is answered with 400, and nothing of the request is forwarded."""
    request = head(b"Transfer-Encoding: chunked") + content
    client.send(*([request] if pieces == "in one piece" else [request[:-3], request[-3:]]))
    response = client.read_response()
    assert (response.status, response.get(b"connection")) == (400, b"close")
    assert json.loads(response.body)["error"]["type"] == "bad_request"
    assert client.read_to_end() == b""
    assert upstream.received == b""
    journal.says("unreadable", 400, reason="refused", looked_up=False, key=False)


def test_malformed_chunk_over_the_limit(upstream: Upstream, client: Client, journal: Journal) -> None:
    """If content turns out to be malformed after a part of it was forwarded, the upstream connection is closed."""
    seen = [threading.Event()]
    upstream.script = streaming(seen, 0)
    client.send(head(b"Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (MAX_BODY + 1, bytes(MAX_BODY + 1)))
    assert seen[0].wait(10)
    client.send(b"?\r\n")
    assert client.read_response().status == 400
    upstream.wait_closed()
    (request,) = upstream.requests
    assert not request.complete
    decisions, accesses = journal.read()
    assert [(each["outcome"], each["reason"]) for each in decisions] == [("unreadable", "too_large")]
    assert accesses == [("POST", "/key/update", 400)]


# the client disconnects; a half-close counts as that


@pytest.mark.parametrize("leave", [Client.close, Client.reset, Client.half_close])
@pytest.mark.parametrize("sent", [0, 10])
def test_client_leaves_in_its_content(
    upstream: Upstream, client: Client, journal: Journal, leave: Callable[[Client], None], sent: int
) -> None:
    """Nothing is forwarded if the client disconnects before its content is complete."""
    request = update(UPDATE, b"Expect: 100-continue")
    client.send(request[: len(request) - len(UPDATE)])
    assert client.read_head().status == 100  # the gateway has read the head, so a reset cannot overtake it
    client.send(UPDATE[:sent])
    leave(client)
    journal.says("unreadable", None, reason="client_left", looked_up=False, key=False)
    assert [request.target.startswith(b"/journal") for request in upstream.requests] == [True]


@pytest.mark.parametrize("leave", [Client.close, Client.reset, Client.half_close])
def test_client_leaves_during_the_lookup(
    upstream: Upstream, client: Client, journal: Journal, leave: Callable[[Client], None]
) -> None:
    """If the client disconnects during the lookup, the lookup's connection is closed and the update is not sent."""
    upstream.script = litellm(lookup=(WAIT_CLOSED,))
    client.send(update())
    upstream.wait_request()
    leave(client)
    upstream.wait_closed()
    assert updates(upstream) == []
    journal.says("unknown", None, reason="client_left", looked_up=False)
    assert [request.target.startswith(b"/journal") for request in updates(upstream)] == [True]


@pytest.mark.parametrize("leave", [Client.close, Client.reset, Client.half_close])
def test_client_leaves_after_the_update(
    upstream: Upstream, client: Client, journal: Journal, leave: Callable[[Client], None]
) -> None:
    """If the client disconnects before the response, the upstream connection is closed as well."""
    upstream.script = litellm(WAIT_CLOSED)
    client.send(update())
    upstream.wait_for(lambda: [request.body for request in updates(upstream)] == [CUT])
    leave(client)
    upstream.wait_closed(updates(upstream)[0].connection)
    journal.says("dropped", None)


def test_client_leaves_in_the_answer(upstream: Upstream, client: Client, journal: Journal) -> None:
    """If the client disconnects during the response, the upstream connection is closed, and the status is logged."""
    upstream.script = litellm(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", WAIT_CLOSED)
    client.send(update())
    assert client.read_head().status == 200
    client.close()
    upstream.wait_closed(updates(upstream)[0].connection)
    journal.says("dropped")


# other requests on the connection


def test_pipelined_requests_keep_their_order(
    gateway: Gateway, upstream: Upstream, client: Client, journal: Journal
) -> None:
    """Requests that are pipelined after an update wait for its response, and are answered in order."""
    asked, go_on = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        request = connection.read_request()
        if request.target.startswith(b"/key/info?"):
            asked.set()
            assert go_on.wait(10)
            connection.send(LOOKUP)
        else:
            name = request.target[1:]
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name))

    upstream.script = script
    client.send(GET.replace(b"behind", b"before") + update() + GET[:10])
    assert client.read_response().body == b"before"
    assert asked.wait(10)
    for rest in (GET[10:], update(CHANGED) + GET):
        client.send(rest)
        assert gateway.ask(GET.replace(b"behind", b"beside")).status == 200  # the rest has been read by now
    assert [request.target for request in updates(upstream)] == [b"/before", b"/beside", b"/beside"]
    go_on.set()
    bodies = [b"key/update", b"behind", b"key/update", b"behind"]
    assert [client.read_response().body for _ in bodies] == bodies
    assert [request.body for request in updates(upstream)] == [b"", b"", b"", CUT, b"", CHANGED, b""]
    decisions, accesses = journal.read()
    assert [each["outcome"] for each in decisions] == ["dropped", "changed"]
    paths = [each[1] for each in accesses if each[1] != "/beside"]
    assert paths == ["/before", "/key/update", "/behind", "/key/update", "/behind"]


def test_keep_alive(upstream: Upstream, client: Client) -> None:
    """Updates and other requests can share one client connection, and then share one upstream connection."""
    for _ in range(3):
        assert client.ask(update()).all(b"x-litellm-sanitizer") == [b'dropped; fields="allowed_routes"']
        assert client.ask(GET).all(b"x-litellm-sanitizer") == []
    assert len(upstream.connections) == 1


def test_connection_close(upstream: Upstream, client: Client) -> None:
    """The connection is closed after the response if the client has asked for that."""
    response = client.ask(update(UPDATE, b"Connection: close"))
    assert response.raw_head == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + DROPPED + b"Connection: close\r\n\r\n"
    assert client.closed()


def test_one_connection_to_upstream() -> None:
    """With one upstream connection allowed, an update is sent after its lookup, even if that needs a new connection."""
    closing = LOOKUP.replace(b"\r\nContent", b"\r\nConnection: close\r\nContent", 1)
    with (
        Upstream(litellm()) as upstream,
        Gateway(upstream.url, "--max-connections", "1") as gateway,
        gateway.connect() as client,
    ):
        for _ in range(2):
            assert client.ask(update()).status == 200
        assert len(upstream.connections) == 1
        for lookup in (closing, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nhalf"):
            upstream.script = litellm(lookup=(lookup, WAIT_CLOSED))
            assert client.ask(update()).status == 200
        assert [request.body for request in updates(upstream)] == [CUT, CUT, CUT, UPDATE]


# upstream fails


@pytest.mark.parametrize(
    ("lookup", "reason"),
    [
        pytest.param((CLOSE,), "lookup_failed", id="closed"),
        pytest.param((RESET,), "lookup_failed", id="reset"),
        pytest.param((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", CLOSE), "lookup_failed", id="breaks off"),
        pytest.param((b"?\r\n\r\n", WAIT_CLOSED), "lookup_failed", id="not HTTP"),
        pytest.param((b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",), "lookup_500", id="an error"),
        pytest.param((b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\n", WAIT_CLOSED), "lookup_403", id="refused"),
        pytest.param((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",), "lookup_shape", id="an unknown shape"),
    ],
)
def test_lookup_fails(
    upstream: Upstream, client: Client, journal: Journal, lookup: tuple[Steps, ...], reason: str
) -> None:
    """If the lookup fails, the update is forwarded unchanged, and its response is relayed."""
    upstream.script = litellm(lookup=lookup)
    response = client.ask(update())
    assert (response.status, response.body) == (200, b"ok")
    assert response.get(b"x-litellm-sanitizer") == b'unknown; reason="%b"' % reason.encode()
    assert [request.body for request in updates(upstream)] == [UPDATE]
    journal.says("unknown", reason=reason)


def error_of(response: Response) -> dict[str, Any]:
    """The error in a response of the gateway's own, which must have LiteLLM's shape."""
    assert response.get(b"content-type") == b"application/json"
    error: dict[str, Any] = json.loads(response.body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"].startswith("litellm-sanitizer: ")
    assert error["code"] == str(response.status)
    return error


def test_upstream_is_dead() -> None:
    """If neither the lookup nor the update can be sent, the client gets 502, and the decision is reported too."""
    with (
        refusing_port() as port,
        Gateway(f"http://127.0.0.1:{port}", "--access-log") as gateway,
        gateway.connect() as client,
    ):
        for _ in range(2):  # the connection stays open
            response = client.ask(update())
            assert response.status == 502
            assert response.get(b"x-litellm-sanitizer") == b'unknown; reason="lookup_failed"'
            assert error_of(response)["type"] == "unreachable"
        assert gateway.stop() == 0
        decisions = [each for each in gateway.records if "outcome" in each]
        assert [(each["outcome"], each["reason"], each["status"]) for each in decisions] == [
            ("unknown", "lookup_failed", 502)
        ] * 2
        assert gateway.records[-1]["upstream_errors"] == {"unreachable": 4}


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param((CLOSE,), id="closed"),
        pytest.param((RESET,), id="reset"),
        pytest.param((b"HTTP/1.1 200 OK\r\nContent-", CLOSE), id="closed within the head"),
        pytest.param((b"HTTP/1.1 103 Early Hints\r\n\r\n", CLOSE), id="closed after an interim response"),
        pytest.param((b"nonsense\r\n\r\n", WAIT_CLOSED), id="not HTTP"),
    ],
)
def test_upstream_breaks_off_before_its_answer(
    upstream: Upstream, client: Client, journal: Journal, steps: tuple[Steps, ...]
) -> None:
    """If upstream breaks off before its response, the client gets 502 with the gateway's field.

    The update may have taken effect, so it is not sent again.
    """
    upstream.script = litellm(*steps)
    response = client.ask(update())
    assert (response.status, error_of(response)["type"]) == (502, "broken")
    assert response.get(b"x-litellm-sanitizer") == b'dropped; fields="allowed_routes"'
    assert [request.body for request in updates(upstream)] == [CUT]
    upstream.script = litellm()
    assert client.ask(GET).status == 200
    journal.says("dropped", 502)


@pytest.mark.parametrize("end", [CLOSE, RESET], ids=["closed", "reset"])
@pytest.mark.parametrize(
    ("framing", "content"),
    [(b"Content-Length: 10\r\n", b"half"), (b"Transfer-Encoding: chunked\r\n", b"4\r\nhalf\r\n")],
    ids=["length", "chunked"],
)
def test_upstream_breaks_off_in_its_answer(
    upstream: Upstream, client: Client, journal: Journal, framing: bytes, content: bytes, end: Step
) -> None:
    """If a response breaks off, the client gets the part that was received, and then a reset."""
    seen = threading.Event()
    upstream.script = litellm(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n" + content, seen, end)
    client.send(update())
    expected = [b"HTTP/1.1 200 OK", *framing.splitlines(), DROPPED.strip()]
    assert sorted(client.read_head().raw_head.splitlines()[:-1]) == sorted(expected)
    assert client.read_exactly(len(content)) == content
    seen.set()
    with pytest.raises(Cut) as cut:
        client.read_to_end()
    assert (cut.value.reset, cut.value.got) == (True, b"")
    journal.says("dropped")


def test_early_answer(upstream: Upstream, client: Client, journal: Journal) -> None:
    """A response sent before upstream has read the content is relayed, and the upstream connection is closed."""

    def script(connection: Connection) -> None:
        if connection.read_head().target.startswith(b"/key/info?"):
            connection.send(LOOKUP)
        else:
            connection.send(b"HTTP/1.1 413 Too Much\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
            connection.read_exactly(len(CUT))
            assert connection.closed()

    upstream.script = script
    response = client.ask(update())
    assert response.start == b"HTTP/1.1 413 Too Much"
    assert response.all(b"connection") == []  # the client's connection stays open
    upstream.script = litellm()
    assert client.ask(GET).status == 200
    journal.says("dropped", 413)


def test_early_answer_to_content_that_passes(upstream: Upstream, client: Client, journal: Journal) -> None:
    """After an early response, the client's connection is closed if its content is incomplete. The response says so."""

    def script(connection: Connection) -> None:
        connection.read_head()
        connection.read_exactly(10)
        perform(connection, b"HTTP/1.1 413 Too Much\r\nContent-Length: 2\r\n\r\nno", WAIT_CLOSED)

    upstream.script = script
    client.send(head(b"Content-Length: %d" % (MAX_BODY * 2)) + bytes(10))
    response = client.read_response()
    assert (response.start, response.get(b"connection")) == (b"HTTP/1.1 413 Too Much", b"close")
    assert response.get(b"x-litellm-sanitizer") == b'unreadable; reason="too_large"'
    assert client.read_to_end() == b""
    journal.says("unreadable", 413, reason="too_large", looked_up=False, key=False)


def test_response_timeout() -> None:
    """A lookup that gets no response times out, and so does the update that is sent after it."""
    with (
        Upstream(litellm(WAIT_CLOSED, lookup=(WAIT_CLOSED,))) as upstream,
        Gateway(upstream.url, "--response-timeout", "0.3") as gateway,
        gateway.connect() as client,
    ):
        response = client.ask(update())
        assert (response.status, error_of(response)["type"]) == (504, "response_timeout")
        assert response.get(b"x-litellm-sanitizer") == b'unknown; reason="lookup_timeout"'
        assert [request.body for request in updates(upstream)] == [UPDATE]


# drain


def test_drain_during_the_lookup() -> None:
    """A drain waits for an update whose lookup is in progress. Its response has ``Connection: close``."""
    asked, go_on = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        if connection.read_request().target.startswith(b"/key/info?"):
            asked.set()
            assert go_on.wait(10)
            connection.send(LOOKUP)
        else:
            connection.send(OK)

    with (
        Upstream(script) as upstream,
        Gateway(upstream.url, "--shutdown-grace", "3") as gateway,
        gateway.connect() as client,
    ):
        client.send(update())
        assert asked.wait(10)
        gateway.terminate()
        gateway.wait_for_line('"stopping"')
        go_on.set()
        response = client.read_response()
        assert (response.status, response.get(b"connection")) == (200, b"close")
        assert response.get(b"x-litellm-sanitizer") == b'dropped; fields="allowed_routes"'
        assert client.closed()
        assert gateway.wait() == 0
        assert updates(upstream)[0].body == CUT


def test_grace_ends_during_the_lookup() -> None:
    """If the grace period ends during the lookup, the update is not sent, and is logged with status 499."""
    with (
        Upstream(litellm(lookup=(WAIT_CLOSED,))) as upstream,
        Gateway(upstream.url, "--shutdown-grace", "0.3", "--access-log") as gateway,
        gateway.connect() as client,
    ):
        client.send(update())
        upstream.wait_request()
        gateway.terminate()
        assert client.closed()
        assert gateway.wait() == 0
        upstream.wait_closed()
        assert updates(upstream) == []
        (decision,) = [each for each in gateway.records if "outcome" in each]
        assert (decision["outcome"], decision["reason"], "status" in decision) == ("unknown", "client_left", False)
        (access,) = [each for each in gateway.records if each["message"] == "request"]
        assert (access["path"], access["status"]) == ("/key/update", 499)


# back-pressure


def test_slow_client() -> None:
    """While the client does not read a large response, the gateway does not read it from upstream or buffer it."""
    growth = 20 * 1024 * 1024
    unread = 2 * MAX_BUFFERED + growth
    size = unread + 2 * growth
    blocked = threading.Event()
    taken: list[int] = []

    def script(connection: Connection) -> None:
        if connection.read_request().target.startswith(b"/key/info?"):
            connection.send(LOOKUP)
            return
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        taken.append(send_until_blocked(connection, size))
        blocked.set()
        while taken[0] < size:
            piece = bytes(min(1024 * 1024, size - taken[0]))
            connection.send(piece)
            taken[0] += len(piece)

    with (
        Upstream(litellm(), keep=False) as upstream,
        Gateway(upstream.url) as gateway,
        Client(gateway.address, keep=False, receive_buffer=65536) as client,
    ):
        for _ in range(20):
            assert client.ask(update()).status == 200
        before = gateway.memory()
        upstream.script = script
        client.send(update())
        assert blocked.wait(30)
        assert taken[0] <= unread, "upstream could continue to send although the client does not read"
        assert gateway.memory() - before < growth
        response = client.read_head()
        assert response.get(b"x-litellm-sanitizer") == b'dropped; fields="allowed_routes"'
        got = 0
        while got < size and (data := client.recv(1024 * 1024)):
            got += len(data)
        assert got == size
        upstream.script = litellm()
        assert client.ask(GET).status == 200


# metrics


def test_metrics(upstream: Upstream) -> None:
    """Each update is counted once as a request, by its status, and once as a decision, by its outcome."""
    with Gateway(upstream.url, "--max-body", str(MAX_BODY), admin=True) as gateway:
        before = wait_for(gateway, lambda numbers: True)
        assert gateway.ask(update()).status == 200
        assert gateway.ask(update(CHANGED)).status == 200
        assert gateway.ask(update(UPDATE.ljust(MAX_BODY + 1))).status == 200
        assert gateway.ask(head(b"Transfer-Encoding: chunked") + b"?\r\n").status == 400
        upstream.script = litellm(CLOSE, lookup=(CLOSE,))
        assert gateway.ask(update()).status == 502
        upstream.script = litellm(lookup=(WAIT_CLOSED,))
        with gateway.connect() as client:
            number = lookups(upstream)
            client.send(update())
            upstream.wait_for(lambda: lookups(upstream) == number + 1)
        expected = {
            'sanitizer_requests_total{method="POST",status="2xx"}': 3,
            'sanitizer_requests_total{method="POST",status="4xx"}': 1,
            'sanitizer_requests_total{method="POST",status="5xx"}': 1,
            'sanitizer_requests_total{method="POST",status="499"}': 1,
            'sanitizer_decisions_total{endpoint="/key/update",outcome="dropped"}': 1,
            'sanitizer_decisions_total{endpoint="/key/update",outcome="changed"}': 1,
            'sanitizer_decisions_total{endpoint="/key/update",outcome="unreadable"}': 2,
            'sanitizer_decisions_total{endpoint="/key/update",outcome="unknown"}': 2,
            'sanitizer_dropped_fields_total{field="allowed_routes"}': 1,
            'sanitizer_lookup_seconds_count{outcome="ok"}': 2,
            'sanitizer_lookup_seconds_count{outcome="failed"}': 1,
            'sanitizer_upstream_errors_total{kind="broken"}': 2,
        }
        left = 'sanitizer_requests_total{method="POST",status="499"}'
        after = wait_for(gateway, lambda numbers: left in numbers.since(before))
        families = {name.partition("{")[0] for name in expected}
        changes = {name: by for name, by in after.since(before).items() if name.partition("{")[0] in families}
        assert changes == expected
        assert after["sanitizer_requests_in_flight"] == 0


# any body, in any pieces

NAMES = ["models", "key_alias", "metadata", "Allowed_routes", ""]
texts = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("allowed_routes") | texts, inner, max_size=3),
    max_leaves=6,
)
spaces = st.text(" \t\r\n", max_size=3)


@st.composite
def objects(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """An object with members in any order and white space anywhere, and the body that upstream must get for it.

    The unchanged member is cut with one comma: the one after it or, if it is the last member, the one before it.
    """
    routes = draw(st.sampled_from([ROUTES, ["/other"], None]))
    members: list[tuple[str, Any]] = [("key", KEY)] if draw(st.integers(0, 3)) else []
    members += [(name, draw(values)) for name in draw(st.lists(st.sampled_from(NAMES), unique=True))]
    if routes is not None or draw(st.booleans()):
        members.append(("allowed_routes", routes))
    members = draw(st.permutations(members))
    unchanged = routes == ROUTES and ("key", KEY) in members
    tokens: list[str] = []
    removed: list[int] = []
    for number, (name, value) in enumerate(members):
        written = json.dumps(name).replace("_", draw(st.sampled_from(["_", "\\u005f"])))
        written += f"{draw(spaces)}:{draw(spaces)}" + json.dumps(value, ensure_ascii=draw(st.booleans()))
        tokens += [","] * (number > 0) + [draw(spaces), written, draw(spaces)]
        if unchanged and name == "allowed_routes":
            member = len(tokens) - 2
            last = number == len(members) - 1
            removed = [member, *([member + 2] if not last else [member - 2] if number else [])]
    rest = [token for at, token in enumerate(tokens) if at not in removed]
    begin, end = draw(spaces) + "{" + draw(spaces), "}" + draw(spaces)
    return (begin + "".join(tokens) + end).encode(), (begin + "".join(rest) + end).encode()


@st.composite
def pieces(draw: st.DrawFn, content: bytes) -> list[bytes]:
    """``content`` in pieces of any size, including single bytes."""
    bounds = sorted(draw(st.lists(st.integers(0, len(content)), max_size=8)))
    if draw(st.booleans()):
        bounds = sorted({*bounds, *range(min(len(content), 20))})
    return [piece for start, end in itertools.pairwise([0, *bounds, len(content)]) if (piece := content[start:end])]


def send_in_pieces(client: Client, body: bytes, how: st.DataObject) -> None:
    """Send an update with ``body``, chunked or with a length, in writes of any size."""
    if how.draw(st.booleans(), label="chunked"):
        chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in how.draw(pieces(body), label="chunks")]
        request = head(b"Transfer-Encoding: chunked") + b"".join(chunks) + b"0\r\n\r\n"
    else:
        request = update(body)
    client.send(*how.draw(pieces(request), label="writes"))


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """A response: its head without the framing field and the empty line, its content, and the kind of framing."""
    status = draw(st.integers(200, 999).filter(lambda status: status not in (204, 304)))
    lines = draw(st.lists(st.sampled_from([b"X-A: b", b"x-a:c", b"Set-Cookie: a=b", b"X-Obs: \xe9"]), max_size=4))
    framing = draw(st.sampled_from([b"length", b"chunked"]))
    return b"\r\n".join([b"HTTP/1.1 %d Because" % status, *lines, b""]), draw(st.binary(max_size=300)), framing


def check(upstream: Upstream, gateway: Gateway, body: bytes, answer: tuple[bytes, bytes, bytes], how: Any) -> bytes:
    """Send an update with ``body``, and return the body that upstream gets.

    The client must get ``answer`` with the gateway's field added.
    """
    lines, content, framing = answer
    length = b"Content-Length: %d\r\n" % len(content) if framing == b"length" else b"Transfer-Encoding: chunked\r\n"
    upstream.script = litellm(lines + length + b"\r\n" + (content if framing == b"length" else chunked(content, 100)))
    number = len(updates(upstream))
    with gateway.connect() as client:
        send_in_pieces(client, body, how)
        response = client.read_response()
        assert response.body == content
        start = lines + length if framing == b"length" else lines
        assert response.raw_head.startswith(start + b"x-litellm-sanitizer: ")
        field, _, rest = response.raw_head[len(start) :].partition(b"\r\n")
        assert rest == (b"\r\n" if framing == b"length" else length + b"\r\n")
        assert field.count(b":") == 1
    (request,) = updates(upstream)[number:]
    assert request.complete
    return request.body


@given(bodies=objects(), answer=answers(), how=st.data())
@settings(max_examples=EXAMPLES)
def test_any_object(
    gateway: Gateway,
    running_upstream: Upstream,
    bodies: tuple[bytes, bytes],
    answer: tuple[bytes, bytes, bytes],
    how: st.DataObject,
) -> None:
    """Upstream gets an object byte for byte, without the unchanged member if there is one."""
    sent, arrives = bodies
    assert check(running_upstream, gateway, sent, answer, how) == arrives
    event("cut" if sent != arrives else "uncut")


@given(body=st.binary(max_size=MAX_BODY + 100), answer=answers(), how=st.data())
@settings(max_examples=EXAMPLES)
def test_any_bytes(
    gateway: Gateway, running_upstream: Upstream, body: bytes, answer: tuple[bytes, bytes, bytes], how: st.DataObject
) -> None:
    """Upstream gets a body that is not JSON, or is over the limit, byte for byte."""
    assert check(running_upstream, gateway, body, answer, how) == body


@pytest.mark.parametrize("bodies", [(None,), (b"{}", None)], ids=["sent once", "sent again"])
def test_nothing_is_left_to_the_collector(bodies: tuple[bytes | None, ...]) -> None:
    """An intercepted request is freed as soon as it has been answered: no reference cycle keeps it."""
    with virtual_loop() as loop:
        core = loop.act(lambda: Core(*bodies))
        gateway = loop.act(FakeGateway, interceptor=core)
        client = make_connection(gateway, loop)
        gc.collect()
        gc.disable()
        try:
            client.feed(update(BODY))
            loop.settle()
            answering = loop.attempts[0].accept()
            for _ in bodies:
                answering.feed(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
                loop.settle()
            assert client.written.endswith(b"no")
            assert not [each for each in gc.get_objects() if isinstance(each, Intercepted | Exchange)]
        finally:
            gc.enable()

"""Connections on both sides: reuse, retries, unsolicited and early responses, pipelining, leaving, limits, upgrades."""

import contextlib
import threading

from tests.conformance.table import HOST, Instead, Lab, Lost, Row, answer, get, post, request, scenario
from tests.support.client import Client
from tests.support.upstream import CLOSE, OK, RESET, WAIT_CLOSED, Connection, Script, in_turn, reply

ROWS: list[Row] = []
DELETE = request(b"DELETE / HTTP/1.1", HOST)
PUT = request(b"PUT / HTTP/1.1", HOST, b"Content-Length: 4", body=b"body")


# reuse and retries


@scenario(ROWS, "requests on one client connection are forwarded on one upstream connection", "RFC 9112 9.3")
def keep_alive(lab: Lab) -> None:
    with lab.connect() as client:
        for n in range(20):
            assert client.ask(get(target=b"/%d" % n) if n % 2 else post(b"x" * n)).status == 200
    assert {each.connection for each in lab.upstream.requests} == {0}


@scenario(ROWS, "successive clients share an upstream connection", "RFC 9112 9.3")
def pool(lab: Lab) -> None:
    for _ in range(5):
        assert lab.ask(get()).status == 200
    assert {each.connection for each in lab.upstream.requests} == {0}


@scenario(ROWS, "concurrent requests use separate upstream connections", "RFC 9112 9.3")
def parallel(lab: Lab) -> None:
    go_on = threading.Event()
    lab.upstream.script = reply(go_on, OK)
    clients = [lab.connect() for _ in range(4)]
    try:
        for client in clients:
            client.send(get())
        lab.upstream.wait_request(4)
        go_on.set()
        assert [client.read_response().body for client in clients] == [b"ok"] * 4
    finally:
        for client in clients:
            client.close()
    assert sorted(each.connection for each in lab.upstream.requests) == [0, 1, 2, 3]


def _stale(lab: Lab, send: bytes, last: Script | None = None) -> int:
    """The status of ``send`` on a pooled connection that upstream closes once it has read the request."""
    lab.upstream.script = in_turn(reply(OK), reply(CLOSE), last or reply(OK))
    with lab.connect() as client:
        assert client.ask(get()).status == 200
        return client.ask(send).status


@scenario(ROWS, "GET is sent again when upstream closes the pooled connection without a response", "RFC 9112 9.3.1")
def stale_get(lab: Lab) -> None:
    assert _stale(lab, get(target=b"/again")) == 200
    assert [each.connection for each in lab.upstream.requests] == [0, 0, 1]
    assert lab.upstream.requests[1].raw_head == lab.upstream.requests[2].raw_head


@scenario(ROWS, "DELETE is sent again when upstream closes the pooled connection without a response", "RFC 9110 9.2.2")
def stale_delete(lab: Lab) -> None:
    assert _stale(lab, DELETE) == 200
    assert len(lab.upstream.requests) == 3


@scenario(ROWS, "GET is sent again only once", "Go net/http: Transport retries")
def stale_twice(lab: Lab) -> None:
    assert _stale(lab, get(), reply(CLOSE)) == 502
    assert len(lab.upstream.requests) == 3


@scenario(
    ROWS, "POST is not sent again when upstream closes the pooled connection without a response", "RFC 9110 9.2.2"
)
def stale_post(lab: Lab) -> None:
    assert _stale(lab, post(b"body")) == 502
    assert len(lab.upstream.requests) == 2


@scenario(
    ROWS,
    "POST is not sent again when upstream resets the pooled connection",
    "nginx: proxy_next_upstream non_idempotent",
)
def reset_post(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(OK), reply(RESET), reply(OK))
    with lab.connect() as client:
        assert client.ask(get()).status == 200
        assert client.ask(post(b"body")).status == 502
    assert len(lab.upstream.requests) == 2


@scenario(
    ROWS,
    "PUT is sent again with its content when upstream closes the pooled connection without a response",
    "RFC 9110 9.2.2",
)
def stale_put(lab: Lab) -> None:
    assert _stale(lab, PUT) == 200
    assert [each.body for each in lab.upstream.requests] == [b"", b"body", b"body"]


@scenario(
    ROWS,
    "GET is not sent again when upstream closes a new connection without a response",
    "Go net/http: Transport retries",
)
def fresh_get(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(CLOSE), reply(OK))
    assert lab.ask(get()).status == 502
    assert len(lab.upstream.requests) == 1


@scenario(ROWS, "GET is not sent again after part of a response has been received", "RFC 9112 9.3.1")
def half_answered(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(OK), reply(b"HTTP/1.1 2", CLOSE), reply(OK))
    with lab.connect() as client:
        assert client.ask(get()).status == 200
        assert client.ask(get()).status == 502
    assert len(lab.upstream.requests) == 2


@scenario(
    ROWS, "POST is sent on a new connection after upstream has closed the idle one", "Caddy: TestDialErrorBodyRetry"
)
def closed_while_idle(lab: Lab) -> None:
    for turn in range(10):
        left = threading.Event()

        def leave(connection: Connection, left: threading.Event = left) -> None:
            reply(OK, CLOSE)(connection)
            left.set()

        lab.upstream.script = in_turn(leave, reply(OK))
        with lab.connect() as client:
            assert client.ask(get()).status == 200
            assert left.wait(5)
            assert client.ask(post(b"body")).status == 200, turn
    assert [each.method for each in lab.upstream.requests] == [b"GET", b"POST"] * 10


@scenario(ROWS, "POST is sent on a new connection after a response with Connection: close", "RFC 9112 9.6")
def announced_close(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(answer(b"Connection: close"), WAIT_CLOSED), reply(OK))
    with lab.connect() as client:
        assert client.ask(post(b"1")).status == 200
        assert client.ask(post(b"2")).status == 200
    assert [each.connection for each in lab.upstream.requests] == [0, 1]


@scenario(ROWS, "an upstream connection is not reused after an HTTP/1.0 response", "RFC 9112 9.3")
def http_10_upstream(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", WAIT_CLOSED), reply(OK))
    with lab.connect() as client:
        assert client.ask(get()).body == b"ok"
        assert client.ask(get()).body == b"ok"
    assert [each.connection for each in lab.upstream.requests] == [0, 1]


# unsolicited and early responses

POISON = answer(b"X-Poison: yes", body=b"poison")


@scenario(
    ROWS,
    "a second response to one request is discarded, and the upstream connection is not reused",
    "PortSwigger: response queue poisoning",
)
def extra_answer(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(OK + POISON), reply(answer(body=b"own")))
    with lab.connect() as client:
        assert client.ask(get()).body == b"ok"
        assert client.ask(get()).body == b"own"
    assert [each.connection for each in lab.upstream.requests] == [0, 1]


@scenario(ROWS, "a second response after a chunked response is discarded", "PortSwigger: response queue poisoning")
def extra_after_chunks(lab: Lab) -> None:
    first = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    lab.upstream.script = in_turn(reply(first + POISON), reply(answer(body=b"own")))
    with lab.connect() as client:
        assert client.ask(get()).body == b"ok"
        assert client.ask(get()).body == b"own"


@scenario(ROWS, "a response on an idle upstream connection is discarded, and the connection is closed", "RFC 9112 9.2")
def unsolicited(lab: Lab) -> None:
    idle = threading.Event()
    lab.upstream.script = in_turn(reply(OK, idle, POISON, WAIT_CLOSED), reply(answer(body=b"own")))
    with lab.connect() as client:
        assert client.ask(get()).body == b"ok"
        idle.set()
        lab.upstream.wait_closed(0)
        assert client.ask(get()).body == b"own"


@scenario(ROWS, "408 on an idle upstream connection is discarded", "Apache: 408 before close")
def idle_408(lab: Lab) -> None:
    late = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    idle = threading.Event()
    lab.upstream.script = in_turn(reply(OK, idle, late, CLOSE), reply(answer(body=b"own")))
    with lab.connect() as client:
        assert client.ask(get()).body == b"ok"
        idle.set()
        lab.upstream.wait_closed(0)
        assert client.ask(post(b"x")).body == b"own"


def _early_answer(lab: Lab, *lines: bytes) -> None:
    def refuse(connection: Connection) -> None:
        connection.read_head()
        connection.send(answer(*lines, status=b"413 Content Too Large", body=b"too large"))
        connection.read_to_end()

    lab.upstream.script = in_turn(refuse, reply(OK))
    with lab.connect() as client:
        client.send(post(b"").replace(b"Length: 0", b"Length: 1000000"), b"x" * 1000)
        response = client.read_response()
        assert (response.status, response.body) == (413, b"too large")
        assert lab.ask(get()).body == b"ok"
    assert [each.connection for each in lab.upstream.requests] == [0, 1]


scenario(
    ROWS,
    "a response before the end of the content is relayed, and the upstream connection is not reused",
    "RFC 9112 9.5",
)(_early_answer)
scenario(
    ROWS,
    "a response with Connection: close before the end of the content is relayed",
    "RFC 9112 9.6",
)(lambda lab: _early_answer(lab, b"Connection: close"))


@scenario(
    ROWS,
    "an early response is relayed although upstream half-closes while large content is being sent",
    "Go net/http: issue 11745",
)
def early_close(lab: Lab) -> None:
    def refuse(connection: Connection) -> None:
        connection.read_head()
        connection.send(answer(b"Connection: close", status=b"401 Unauthorized", body=b"who?"))
        connection.half_close()
        connection.read_to_end()

    lab.upstream.script = refuse
    body = b"x" * 4_000_000
    with lab.connect() as client:
        sender = threading.Thread(target=_send_all, args=(client, post(body)))
        sender.start()
        response = client.read_response()
        assert (response.status, response.body) == (401, b"who?")
    sender.join(10)


def _send_all(client: Client, message: bytes) -> None:
    """Send as much of ``message`` as the gateway reads before it closes the connection."""
    with contextlib.suppress(OSError):
        client.send(message)


def _rest_of_body(lab: Lab, *, read: bool) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: example.test\r\n\r\n"

    def refuse(connection: Connection) -> None:
        connection.read_head()
        connection.send(answer(status=b"400 Bad Request"))
        connection.read_exactly(len(smuggled))

    lab.upstream.script = in_turn(refuse, reply(OK))
    with lab.connect() as client:
        client.send(post(b"").replace(b"Length: 0", b"Length: %d" % len(smuggled)))
        assert client.read_response().status == 400
        _send_all(client, smuggled + get(target=b"/next"))
        if read:
            assert client.read_response().status == 200
        else:
            assert client.closed()
    lab.upstream.settle()
    assert [each.target for each in lab.upstream.requests] == [b"/", b"/next"][: 1 + read]


scenario(
    ROWS,
    "the connection is closed after an early response, and the remaining content is not parsed as a request",
    "RFC 9112 9.5",
    asgi=Instead(Lost.REST, lambda lab: _rest_of_body(lab, read=True)),
)(lambda lab: _rest_of_body(lab, read=False))


# pipelining


@scenario(ROWS, "pipelined requests are answered in order", "RFC 9112 9.3.2")
def pipeline(lab: Lab) -> None:
    first = threading.Event()
    lab.upstream.script = in_turn(
        reply(first, answer(body=b"1")), reply(answer(body=b"2")), reply(answer(body=b"3")), reply(answer(body=b"4"))
    )
    with lab.connect() as client:
        client.send(get(target=b"/1") + post(b"body", target=b"/2") + get(target=b"/3") + get(target=b"/4"))
        lab.upstream.wait_request()
        first.set()
        assert [client.read_response().body for _ in range(4)] == [b"1", b"2", b"3", b"4"]
    assert [each.target for each in lab.upstream.requests] == [b"/1", b"/2", b"/3", b"/4"]


@scenario(
    ROWS,
    "responses are in order when intercepted requests are pipelined with others",
    "Design: two adapters, one connection",
)
def pipeline_intercepted(lab: Lab) -> None:
    lab.upstream.script = in_turn(*(reply(answer(body=b"%d" % n)) for n in range(1, 7)))
    update = post(b'{"key": "sk-none", "models": []}', b"Content-Type: application/json", target=b"/key/update")
    with lab.connect() as client:
        client.send(
            get(target=b"/1") + update + get(target=b"/3") + post(b"x" * 100, target=b"/4") + update + get(target=b"/6")
        )
        responses = [client.read_response() for _ in range(6)]
    assert [each.body for each in responses] == [b"1", b"2", b"3", b"4", b"5", b"6"]
    marks = [each.get(b"x-litellm-sanitizer") for each in responses]
    assert [mark is not None and mark.startswith(b"absent") for mark in marks] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert [each.target for each in lab.upstream.requests] == [
        b"/1",
        b"/key/update",
        b"/3",
        b"/4",
        b"/key/update",
        b"/6",
    ]


def _pipeline_fault(lab: Lab, *statuses: int) -> None:
    with lab.connect() as client:
        assert client.ask(get(target=b"/1")).status == 200
        client.send(
            get(target=b"/2") + request(b"POST / HTTP/1.1", HOST, b"Content-Length: 1", b"Transfer-Encoding: chunked")
        )
        assert [client.read_response().status for _ in statuses] == [*statuses]
        assert client.closed()
    lab.upstream.settle()
    assert [each.target for each in lab.upstream.requests] == [b"/1", b"/2"][: len(statuses)]


scenario(
    ROWS,
    "valid pipelined requests are answered before a faulty one is refused",
    "RFC 9112 9.3.2",
    # uvicorn responds as soon as its parser refuses a request, before the task of the good request has begun
    asgi=Instead(Lost.STRICTNESS, lambda lab: _pipeline_fault(lab, 400)),
)(lambda lab: _pipeline_fault(lab, 200, 400))


@scenario(ROWS, "a request that is pipelined after one with response 502 is answered", "RFC 9112 9.3.2")
def pipeline_502(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(CLOSE), reply(OK))
    with lab.connect() as client:
        client.send(post(b"x") + get(target=b"/2"))
        assert [client.read_response().status for _ in range(2)] == [502, 200]


# clients that leave


@scenario(
    ROWS,
    "the upstream connection is closed when the client closes before the response head",
    "Go ReverseProxy: TestReverseProxyCancellation",
)
def leaves_before_head(lab: Lab) -> None:
    lab.upstream.script = reply(WAIT_CLOSED)
    with lab.connect() as client:
        client.send(get())
        lab.upstream.wait_request()
    lab.upstream.wait_closed()


@scenario(
    ROWS,
    "the upstream connection is closed when the client resets before the response head",
    "Caddy: TestClientDisconnectRecordsStatus",
)
def resets_before_head(lab: Lab) -> None:
    lab.upstream.script = reply(WAIT_CLOSED)
    client = lab.connect()
    client.send(post(b"body"))
    lab.upstream.wait_request()
    client.reset()
    lab.upstream.wait_closed()


@scenario(
    ROWS,
    "the upstream connection is closed when the client closes within the response's content",
    "nginx: proxy_ignore_client_abort off",
)
def leaves_in_content(lab: Lab) -> None:
    lab.upstream.script = reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", WAIT_CLOSED)
    with lab.connect() as client:
        client.send(get())
        client.read_until(b"hello")
    lab.upstream.wait_closed()


@scenario(ROWS, "the upstream connection is closed when the client closes within the request's content", "RFC 9112 8")
def leaves_in_body(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(post(b"").replace(b"Length: 0", b"Length: 100"), b"some")
        lab.upstream.wait_for(lambda: b"some" in lab.upstream.received)
    lab.upstream.wait_closed()
    assert not lab.upstream.requests[0].complete


@scenario(
    ROWS,
    "a client that disconnects does not affect another client's request",
    "Go ReverseProxy: TestReverseProxyCancellation",
)
def leaves_alone(lab: Lab) -> None:
    go_on = threading.Event()
    lab.upstream.script = in_turn(reply(go_on, OK), reply(WAIT_CLOSED))
    with lab.connect() as patient:
        patient.send(get())
        lab.upstream.wait_request(1)
        with lab.connect() as client:
            client.send(get())
            lab.upstream.wait_request(2)
        lab.upstream.wait_closed(1)
        go_on.set()
        assert patient.read_response().body == b"ok"


# limits


@scenario(
    ROWS,
    "504 when no response head is received within the response timeout, and the upstream connection is closed",
    "nginx: proxy_read_timeout",
    options=("--response-timeout", "1"),
)
def response_timeout(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(WAIT_CLOSED), reply(OK))
    with lab.connect() as client:
        response = client.ask(post(b"body"))
        assert response.status == 504
        assert b'"error"' in response.body
        lab.upstream.wait_closed()
        assert client.ask(get()).status == 200
    assert len(lab.upstream.requests) == 2


@scenario(
    ROWS,
    "the response timeout applies only to the response head",
    "Go net/http: ResponseHeaderTimeout",
    options=("--response-timeout", "1"),
)
def slow_content(lab: Lab) -> None:
    other = reply(OK)

    def slow(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        # meanwhile another request times out, so that the first one has lasted longer than the timeout
        lab.upstream.script = reply(WAIT_CLOSED)
        assert lab.ask(get()).status == 504
        lab.upstream.script = other
        connection.send(b"world")

    lab.upstream.script = slow
    assert lab.ask(get()).body == b"helloworld"


@scenario(
    ROWS,
    "at the connection limit, a request waits for a free upstream connection",
    "HAProxy: maxconn and its queue",
    options=("--max-connections", "1"),
)
def queue(lab: Lab) -> None:
    first = threading.Event()
    lab.upstream.script = in_turn(reply(first, answer(body=b"1")), reply(answer(body=b"2")))
    with lab.connect() as one, lab.connect() as two:
        one.send(get())
        lab.upstream.wait_request()
        two.send(get())
        first.set()
        assert one.read_response().body == b"1"
        assert two.read_response().body == b"2"
    assert {each.connection for each in lab.upstream.requests} == {0}


@scenario(
    ROWS,
    "at the connection limit, 503 when no upstream connection becomes free in time",
    "HAProxy: timeout queue",
    options=("--max-connections", "1", "--connect-timeout", "1"),
)
def queue_timeout(lab: Lab) -> None:
    first = threading.Event()
    lab.upstream.script = in_turn(reply(first, OK), reply(OK))
    with lab.connect() as one:
        one.send(get())
        lab.upstream.wait_request()
        with lab.connect() as two:
            response = two.ask(get())
            assert response.status == 503
            assert b'"error"' in response.body
            first.set()
            assert one.read_response().body == b"ok"
            assert two.ask(get()).status == 200
    assert len(lab.upstream.requests) == 2


@scenario(
    ROWS,
    "at the connection limit, a waiting client that disconnects does not block the next one",
    "HAProxy: option abortonclose",
    options=("--max-connections", "1"),
)
def queue_left(lab: Lab) -> None:
    first = threading.Event()
    lab.upstream.script = in_turn(reply(first, answer(body=b"1")), reply(answer(body=b"3")))
    with lab.connect() as one, lab.connect() as three:
        one.send(get())
        lab.upstream.wait_request()
        with lab.connect() as two:
            two.send(get(target=b"/left"))
        first.set()
        assert one.read_response().body == b"1"
        assert three.ask(get(target=b"/3")).status == 200
    assert b"/3" in [each.target for each in lab.upstream.requests]


# upgrades

HANDSHAKE = get(
    b"Connection: keep-alive, Upgrade, X-Hop",
    b"Upgrade: echo",
    b"X-Hop: gone",
    b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-x",
    target=b"/v1/realtime?model=a%2Fb",
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-End: here\r\nKeep-Alive: 5\r\n\r\n"
)


def _refused_upgrade(lab: Lab) -> None:
    """With the ASGI adapter, an upgrade to anything but WebSocket is an ordinary request without its Upgrade."""
    response = lab.ask(HANDSHAKE)
    assert response.status == 200
    assert lab.upstream.requests[0].all(b"upgrade") == []


NO_UPGRADE = Instead(Lost.UPGRADE, _refused_upgrade)


def _echo(connection: Connection) -> None:
    connection.read_request()
    connection.send(SWITCH)
    while data := connection.recv():
        connection.send(data.upper())


@scenario(
    ROWS,
    "an upgrade is relayed: its end-to-end fields, then bytes in both directions",
    "Go ReverseProxy: TestReverseProxyWebSocket",
    asgi=NO_UPGRADE,
)
def upgrade(lab: Lab) -> None:
    lab.upstream.script = _echo
    with lab.connect() as client:
        client.send(HANDSHAKE)
        response = client.read_response()
        assert response.status == 101
        assert response.get(b"upgrade") == b"echo"
        assert [value.lower() for value in response.all(b"connection")] == [b"upgrade"]
        assert response.get(b"x-end") == b"here"
        client.send(b"hello")
        assert client.read_exactly(5) == b"HELLO"
        client.send(b"\x00\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        assert client.read_until(b"HTTP/1.1\r\n\r\n") == b"\x00\r\n\r\nGET / HTTP/1.1\r\n\r\n"
    received = lab.upstream.requests[0]
    assert received.target == b"/v1/realtime?model=a%2Fb"
    assert received.all(b"sec-websocket-protocol") == [b"realtime, openai-insecure-api-key.sk-x"]
    assert received.all(b"upgrade") == [b"echo"]
    assert [value.lower() for value in received.all(b"connection")] == [b"upgrade"]
    assert received.all(b"x-hop") == []
    lab.upstream.wait_closed()


@scenario(
    ROWS,
    "Keep-Alive and a field named in Connection are removed from a 101 response",
    "Caddy: TestFinalizeResponse_101_StripsHopByHopHeaders",
    asgi=NO_UPGRADE,
)
def upgrade_hop(lab: Lab) -> None:
    named = SWITCH.replace(b"Connection: Upgrade", b"Connection: Upgrade, X-Id").replace(b"X-End: here", b"X-Id: gone")
    lab.upstream.script = reply(named, WAIT_CLOSED)
    with lab.connect() as client:
        client.send(HANDSHAKE)
        response = client.read_response()
    assert response.get(b"x-id") is None
    assert response.get(b"keep-alive") is None
    assert response.get(b"upgrade") == b"echo"


@scenario(
    ROWS,
    "bytes that upstream sends together with a 101 response are relayed through the tunnel",
    "Go ReverseProxy: TestReverseProxyWebSocket",
    asgi=NO_UPGRADE,
)
def upgrade_together(lab: Lab) -> None:
    lab.upstream.script = reply(SWITCH + b"welcome", WAIT_CLOSED)
    with lab.connect() as client:
        client.send(HANDSHAKE)
        assert client.read_response().status == 101
        assert client.read_exactly(7) == b"welcome"


@scenario(
    ROWS,
    "bytes that the client sends together with its upgrade request are relayed through the tunnel",
    "RFC 9110 7.8",
    asgi=NO_UPGRADE,
)
def upgrade_eager(lab: Lab) -> None:
    lab.upstream.script = _echo
    with lab.connect() as client:
        client.send(HANDSHAKE + b"eager")
        assert client.read_response().status == 101
        assert client.read_exactly(5) == b"EAGER"


@scenario(ROWS, "an upgrade that upstream answers with 200 is an ordinary exchange", "RFC 9110 7.8")
def upgrade_ignored(lab: Lab) -> None:
    with lab.connect() as client:
        assert client.ask(HANDSHAKE).body == b"ok"
        assert client.ask(get()).body == b"ok"


@scenario(
    ROWS,
    "a 403 response to an upgrade request is relayed",
    "Go ReverseProxy: upgrade refused by the backend",
)
def upgrade_refused(lab: Lab) -> None:
    lab.upstream.script = reply(answer(b"X-Why: y", status=b"403 Forbidden", body=b"no"))
    with lab.connect() as client:
        response = client.ask(HANDSHAKE)
        assert (response.status, response.body, response.get(b"x-why")) == (403, b"no", b"y")


@scenario(
    ROWS,
    "the client's connection is closed when upstream closes a tunnel",
    "Go ReverseProxy: TestReverseProxyWebSocketCancellation",
    asgi=NO_UPGRADE,
)
def tunnel_upstream_leaves(lab: Lab) -> None:
    lab.upstream.script = reply(SWITCH + b"bye", CLOSE)
    with lab.connect() as client:
        client.send(HANDSHAKE)
        assert client.read_response().status == 101
        assert client.read_exactly(3) == b"bye"
        assert client.closed()


@scenario(
    ROWS,
    "the client's half-close is relayed through a tunnel, and the other direction stays open",
    "Go ReverseProxy: TestReverseProxyWebSocketHalfTCP",
    asgi=NO_UPGRADE,
)
def tunnel_half_close(lab: Lab) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(SWITCH)
        received = connection.read_to_end()
        connection.send(b"got " + received)

    lab.upstream.script = script
    with lab.connect() as client:
        client.send(HANDSHAKE)
        assert client.read_response().status == 101
        client.send(b"all")
        client.half_close()
        assert client.read_to_end() == b"got all"


@scenario(
    ROWS,
    "upstream's half-close is relayed through a tunnel, and the other direction stays open",
    "Go ReverseProxy: TestReverseProxyWebSocketHalfTCP",
    asgi=NO_UPGRADE,
)
def tunnel_upstream_half_close(lab: Lab) -> None:
    heard: list[bytes] = []

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(SWITCH + b"all")
        connection.half_close()
        heard.append(connection.read_to_end())

    lab.upstream.script = script
    with lab.connect() as client:
        client.send(HANDSHAKE)
        assert client.read_response().status == 101
        assert client.read_to_end() == b"all"
        client.send(b"heard")
        client.half_close()
        lab.upstream.wait_closed()
    assert heard == [b"heard"]

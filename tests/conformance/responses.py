"""Upstream's responses: complete ones are relayed, faulty ones become 502, broken-off ones never look complete."""

import contextlib
import threading

from tests.conformance.table import (
    HOST,
    Arrives,
    Instead,
    Lab,
    Lost,
    Returns,
    Row,
    answer,
    bad_gateway,
    cut,
    get,
    post,
    relayed,
    request,
    scenario,
)
from tests.support.upstream import CLOSE, OK, RESET, WAIT_CLOSED, Connection, Step, in_turn, reply
from tests.support.wire import Response

HEAD = request(b"HEAD / HTTP/1.1", HOST)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HELLO = b"5\r\nhello\r\n"
LAST = b"0\r\n\r\n"

WHOLE = {
    "with a length": (reply(answer(body=b"hello")), b"hello", "RFC 9112 6.2"),
    "chunked": (reply(CHUNKED + HELLO + HELLO + LAST), b"hellohello", "RFC 9112 7.1"),
    "chunked, in many writes": (
        reply(CHUNKED, b"5", b"\r", b"\nhel", b"lo\r\n", b"0\r\n", b"\r\n"),
        b"hello",
        "RFC 9112 7.1",
    ),
    "until the connection closes": (reply(b"HTTP/1.1 200 OK\r\n\r\nhello", CLOSE), b"hello", "RFC 9112 6.3"),
    "until the connection closes, empty": (reply(b"HTTP/1.1 200 OK\r\n\r\n", CLOSE), b"", "RFC 9112 6.3"),
    "of version 2.0, as nginx and Go take it": (
        reply(b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        b"hello",
        "RFC 9112 2.3",
    ),
    "of length zero": (reply(answer(body=b"")), b"", "RFC 9112 6.2"),
    "chunked, empty": (reply(CHUNKED + LAST), b"", "RFC 9112 7.1"),
    "of HTTP/1.0, with a length": (
        reply(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", CLOSE),
        b"hello",
        "Go ReverseProxy: HTTP/1.0 backends",
    ),
    "of HTTP/1.0, until close": (
        reply(b"HTTP/1.0 200 OK\r\n\r\nhello", CLOSE),
        b"hello",
        "Go ReverseProxy: HTTP/1.0 backends",
    ),
    "of HTTP/1.0, kept alive": (
        reply(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"),
        b"hello",
        "RFC 9112 9.3",
    ),
    "with leading zeros in its length": (
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 005\r\n\r\nhello"),
        b"hello",
        "RFC 9110 8.6",
    ),
    "byte by byte": (lambda c: _drip(c, answer(body=b"hello")), b"hello", "h1spec: Fragmented"),
    "chunked, byte by byte": (lambda c: _drip(c, CHUNKED + HELLO + LAST), b"hello", "h1spec: Fragmented"),
    "of 3 MiB with a length": (
        reply(answer(body=b"0123456789abcdef" * 196608)),
        b"0123456789abcdef" * 196608,
        "Go ReverseProxy: TestReverseProxyGetPutBuffer",
    ),
    "of 3 MiB in one chunk": (
        reply(CHUNKED + b"300000\r\n" + b"0123456789abcdef" * 196608 + b"\r\n" + LAST),
        b"0123456789abcdef" * 196608,
        "RFC 9112 7.1",
    ),
    "that looks like another answer": (reply(answer(body=OK)), OK, "PortSwigger: response queue poisoning"),
}

STATUSES = [
    b"201 Created",
    b"206 Partial Content",
    b"226 IM Used",
    b"299 Whatever",
    b"400 Bad Request",
    b"404 Not Found",
]
STATUSES += [b"418 I'm a teapot", b"421 Misdirected Request", b"429 Too Many Requests", b"500 Internal Server Error"]
STATUSES += [b"503 Service Unavailable", b"529 Site is overloaded"]

REASONS = {
    "of its own": b"200 Fine and dandy",
    "that is empty": b"200 ",
    "that is missing": b"200",
    "with bytes above 0x7F": b"200 d'accord \xe9",
    "of another status": b"404 OK",
}

FAULTY = {
    "nothing, and closes": (reply(CLOSE), "Go ReverseProxy: TestReverseProxy (mode=hangup)"),
    "nothing, and resets": (reply(RESET), "Caddy: TestDialErrorBodyRetry"),
    "half a status line, and closes": (reply(b"HTTP/1.1 20", CLOSE), "RFC 9112 8"),
    "half a head, and closes": (reply(b"HTTP/1.1 200 OK\r\nContent-Le", CLOSE), "RFC 9112 8"),
    "half a head, and resets": (reply(b"HTTP/1.1 200 OK\r\nX: y\r\n", RESET), "RFC 9112 8"),
    "something that is not HTTP": (reply(b"SSH-2.0-OpenSSH_9.2\r\n", WAIT_CLOSED), "RFC 9112 4"),
    "bytes before the status line": (reply(b"junk" + OK, WAIT_CLOSED), "RFC 9112 4"),
    "a TLS alert": (reply(b"\x15\x03\x01\x00\x02\x02\x46", WAIT_CLOSED), "RFC 9112 4"),
    "another protocol's status line": (reply(b"ICY 200 OK\r\n\r\n", WAIT_CLOSED), "RFC 9112 4"),
    "a status of two digits": (reply(b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED), "RFC 9112 4"),
    "a status of four digits": (reply(b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED), "RFC 9112 4"),
    "a status below 100": (reply(b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED), "RFC 9110 15"),
    "both framings": (
        reply(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO + LAST, WAIT_CLOSED
        ),
        "RFC 9112 6.3",
    ),
    "both framings, the other way round": (
        reply(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + HELLO + LAST, WAIT_CLOSED
        ),
        "RFC 9112 6.3",
    ),
    "two different lengths": (
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", WAIT_CLOSED),
        "RFC 9112 6.3",
    ),
    "two equal lengths": (
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", WAIT_CLOSED),
        "RFC 9112 6.3 (may be taken as one)",
    ),
    "a length of words": (reply(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nhello", WAIT_CLOSED), "RFC 9112 6.3"),
    "a negative length": (reply(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", WAIT_CLOSED), "RFC 9112 6.3"),
    "an empty length": (reply(b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello", WAIT_CLOSED), "RFC 9112 6.3"),
    "a length beyond 64 bits": (
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello", WAIT_CLOSED),
        "RFC 9110 8.6",
    ),
    "a coding that is not known": (
        reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + HELLO + LAST, WAIT_CLOSED),
        "RFC 9112 6.1",
    ),
    "chunked twice": (
        reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n" + HELLO + LAST, WAIT_CLOSED),
        "RFC 9112 6.1",
    ),
    "a folded line": (
        reply(b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED),
        "RFC 9112 5.2",
    ),
    "a NUL in a value": (
        reply(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED),
        "RFC 9110 5.5",
    ),
    "a bare CR in a value": (
        reply(b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED),
        "RFC 9112 2.2",
    ),
    "a line without a colon": (
        reply(b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED),
        "RFC 9112 5",
    ),
    "an empty name": (reply(b"HTTP/1.1 200 OK\r\n: y\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED), "RFC 9112 5"),
    "a head without end": (lambda c: _endless_head(c), "Envoy: max_response_headers_kb"),
    "101 that was not asked for": (
        reply(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", WAIT_CLOSED),
        "Caddy: TestFinalizeResponse_101_NoUpgradeRequest",
    ),
    "an interim answer only, and closes": (reply(b"HTTP/1.1 100 Continue\r\n\r\n", CLOSE), "RFC 9110 15.2"),
}

TEN = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"

CUTS: dict[str, tuple[bytes, tuple[bytes | Step, ...], bytes]] = {
    "a length and no content": (TEN, (CLOSE,), b""),
    "a length and no content, reset": (TEN, (RESET,), b""),
    "a length and half the content": (TEN + b"hello", (CLOSE,), b"hello"),
    "a length and half the content, reset": (TEN, (b"hello", RESET), b"hello"),
    "chunked, before any chunk": (CHUNKED, (CLOSE,), b""),
    "chunked, before the last chunk": (CHUNKED + HELLO, (CLOSE,), b"hello"),
    "chunked, within a chunk": (CHUNKED + b"ff\r\nhello", (CLOSE,), b"hello"),
    "chunked, within a size": (CHUNKED, (HELLO + b"f", CLOSE), b"hello"),
    "chunked, within the last line": (CHUNKED, (HELLO + b"0\r\n", CLOSE), b"hello"),
    "chunked, reset": (CHUNKED + HELLO, (RESET,), b"hello"),
    "chunked, with a faulty size": (CHUNKED + HELLO, (b"zz\r\nhello\r\n", WAIT_CLOSED), b"hello"),
    # octets that are read together with a fault are not relayed
    "chunked, with a missing line end": (CHUNKED + HELLO, (b"5\r\nhelloX", WAIT_CLOSED), b"hello"),
    "chunked, with a size beyond 64 bits": (
        CHUNKED + HELLO,
        (b"10000000000000000\r\nhello\r\n", WAIT_CLOSED),
        b"hello",
    ),
    "until close, reset": (b"HTTP/1.1 200 OK\r\n\r\nhello", (RESET,), b"hello"),
}


def _drip(connection: Connection, message: bytes) -> None:
    connection.read_request()
    connection.send(*(message[n : n + 1] for n in range(len(message))))


def _endless_head(connection: Connection) -> None:
    connection.read_request()
    connection.send(b"HTTP/1.1 200 OK\r\n")
    try:
        for n in range(4096):
            connection.send(b"X-%d: " % n + b"x" * 4096 + b"\r\n")
    except OSError:
        return
    raise AssertionError("16 MiB of head were read")


ROWS: list[Row] = [
    *(
        relayed(f"an answer {name}", source, get(), script=script, returns=Returns(body=body))
        for name, (script, body, source) in WHOLE.items()
    ),
    *(
        relayed(
            f"status {status.decode()} comes through with its content",
            "RFC 9110 15",
            get(),
            script=reply(answer(status=status)),
            returns=Returns(status=int(status[:3]), body=b"ok"),
        )
        for status in STATUSES
    ),
    *(
        relayed(
            f"a reason phrase {name} comes through",
            "RFC 9112 4",
            get(),
            script=reply(answer(status=status)),
            returns=Returns(status=int(status[:3]), reason=status[4:], body=b"ok"),
            asgi=(Lost.REASON, None, Returns(status=int(status[:3]), body=b"ok")),
        )
        for name, status in REASONS.items()
    ),
    *(bad_gateway(f"502 where upstream sends {name}", source, script) for name, (script, source) in FAULTY.items()),
    bad_gateway(
        "502 where upstream resets a POST",
        "Go ReverseProxy: TestReverseProxyErrorHandler",
        reply(RESET),
        send=post(b"body"),
    ),
    *(
        cut(f"an answer that breaks off: {name}", "Caddy: truncated responses, RFC 9112 8", first, then, body)
        for name, (first, then, body) in CUTS.items()
    ),
    cut(
        "an answer to HTTP/1.0 that breaks off",
        "RFC 9112 8",
        TEN + b"hello",
        (CLOSE,),
        b"hello",
        send=request(b"GET / HTTP/1.0", HOST),
    ),
    relayed(
        "a status above 599 comes through",
        "RFC 9110 15",
        get(),
        script=reply(answer(status=b"999 Request denied")),
        returns=Returns(status=999, body=b"ok"),
        asgi=(Lost.STATUS, None, Returns(status=502)),
    ),
    # responses without content, whatever their fields say
    relayed(
        "HEAD: the length is told, no content follows",
        "RFC 9110 9.3.2",
        HEAD,
        script=reply(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n"),
        returns=Returns(has=(b"Content-Length: 12345",)),
    ),
    relayed(
        "HEAD: of a chunked answer no content follows",
        "RFC 9112 6.3",
        HEAD,
        script=reply(CHUNKED),
        returns=Returns(lacks=(b"content-length",)),
    ),
    relayed("HEAD: without length or coding", "RFC 9112 6.3", HEAD, script=reply(b"HTTP/1.1 200 OK\r\n\r\n")),
    relayed(
        "204 has no content and no length",
        "Http11Probe: COMP-NO-CL-IN-204",
        get(),
        script=reply(b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
        returns=Returns(status=204, has=(b"X: y",), lacks=(b"content-length", b"transfer-encoding")),
    ),
    relayed(
        "304 without length",
        "Http11Probe: CAP-ETAG-304",
        get(b'If-None-Match: "a"'),
        script=reply(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n'),
        returns=Returns(status=304, has=(b'ETag: "a"',), lacks=(b"content-length", b"transfer-encoding")),
    ),
    relayed(
        "304 with the length that a 200 would have",
        "RFC 9110 15.4.5",
        get(b'If-None-Match: "a"'),
        script=reply(b'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: "a"\r\n\r\n'),
        returns=Returns(status=304, has=(b'ETag: "a"', b"Content-Length: 5")),
        asgi=(Lost.LENGTH_OF_304, None, Returns(status=304, has=(b'ETag: "a"',), lacks=(b"content-length",))),
    ),
    # HTTP/1.0 clients
    relayed(
        "HTTP/1.0: a chunked answer ends with the connection",
        "RFC 9112 7.1 (no chunked to HTTP/1.0)",
        request(b"GET / HTTP/1.0", HOST),
        Arrives(line=b"GET / HTTP/1.1"),
        script=reply(CHUNKED + HELLO + LAST),
        returns=Returns(lacks=(b"transfer-encoding",), body=b"hello", closes=True),
        asgi=(Lost.HTTP_10, None, Returns(has=(b"Transfer-Encoding: chunked",), body=b"hello", closes=True)),
    ),
    relayed(
        "HTTP/1.0: the connection closes after an answer",
        "Http11Probe: COMP-HTTP10-DEFAULT-CLOSE",
        request(b"GET / HTTP/1.0", HOST),
        returns=Returns(body=b"ok", closes=True),
    ),
    relayed(
        "HTTP/1.0 upstreams and clients of 1.1: the answer is 1.1's",
        "RFC 9112 2.3",
        get(),
        script=reply(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", CLOSE),
        returns=Returns(body=b"ok"),
    ),
    relayed(
        "Connection: close: the connection closes after the answer",
        "Http11Probe: RFC9112-9.6-CONNECTION-CLOSE",
        get(b"Connection: close"),
        returns=Returns(body=b"ok", closes=True),
    ),
]


@scenario(ROWS, "HTTP/1.0 with keep-alive: the connection closes after an answer all the same", "RFC 9112 9.3")
def http_10_keep_alive(lab: Lab) -> None:
    with lab.connect() as client:
        response = client.ask(request(b"GET / HTTP/1.0", HOST, b"Connection: keep-alive"))
        assert response.body == b"ok"
        if lab.adapter == "native":  # uvicorn's oldest supported release sends no such field
            assert response.all(b"connection") == [b"close"]
        assert client.closed()


@scenario(ROWS, "after HEAD, 204 and 304 the connection is in step", "RFC 9112 6.3")
def in_step(lab: Lab) -> None:
    turns = [
        (HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
        (HEAD, CHUNKED),
        (HEAD, b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"),
        (get(), b"HTTP/1.1 204 No Content\r\n\r\n"),
        (get(), b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"),
        (get(), OK),
    ]
    lab.upstream.script = in_turn(*(reply(each) for _, each in turns))
    with lab.connect() as client:
        assert [client.ask(send).status for send, _ in turns] == [200, 200, 200, 204, 304, 200]
    assert {each.connection for each in lab.upstream.requests} == {0}


@scenario(ROWS, "204 with content: the client stays in step, the upstream connection is dropped", "RFC 9112 6.3")
def content_of_204(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(b"HTTP/1.1 204 No Content\r\n\r\nwhat?"), reply(OK))
    with lab.connect() as client:
        assert client.ask(get()).status == 204
        assert client.ask(get()).body == b"ok"
    assert [each.connection for each in lab.upstream.requests] == [0, 1]


@scenario(
    ROWS, "an answer to HEAD with content: the client stays in step, the upstream connection is dropped", "RFC 9112 6.3"
)
def content_of_head(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(answer(body=OK)), reply(answer(body=b"own")))
    with lab.connect() as client:
        client.ask(HEAD)
        assert client.ask(get()).body == b"own"
    assert [each.connection for each in lab.upstream.requests] == [0, 1]


# interim responses

EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nLink: </script.js>; rel=preload\r\n\r\n"


def _interim(lab: Lab, send: bytes) -> tuple[list[Response], Response]:
    lab.upstream.script = reply(EARLY_HINTS, b"HTTP/1.1 102 Processing\r\n\r\n", answer(b"Link: </foo.js>"))
    interim: list[Response] = []
    with lab.connect() as client:
        client.send(send)
        return interim, client.read_response(interim=interim)


def _no_interim(lab: Lab, send: bytes) -> None:
    interim, final = _interim(lab, send)
    assert interim == []
    assert (final.body, final.all(b"link")) == (b"ok", [b"</foo.js>"])


@scenario(
    ROWS,
    "102 and 103 come through, each with its own fields",
    "Go ReverseProxy: Test1xxResponses",
    asgi=Instead(Lost.INTERIM, lambda lab: _no_interim(lab, get())),
)
def early_hints(lab: Lab) -> None:
    interim, final = _interim(lab, get())
    assert [each.status for each in interim] == [103, 102]
    assert interim[0].all(b"link") == [b"</style.css>; rel=preload", b"</script.js>; rel=preload"]
    assert interim[1].all(b"link") == []
    assert (final.body, final.all(b"link")) == (b"ok", [b"</foo.js>"])


scenario(ROWS, "an HTTP/1.0 client is sent no interim answers", "Http11Probe: COMP-NO-1XX-HTTP10")(
    lambda lab: _no_interim(lab, request(b"GET / HTTP/1.0", HOST))
)


@scenario(ROWS, "100 that was not asked for does no harm", "RFC 9110 15.2")
def continue_unasked(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(b"HTTP/1.1 100 Continue\r\n\r\n" + OK), reply(answer(body=b"second")))
    with lab.connect() as client:
        assert client.ask(get()).body == b"ok"
        assert client.ask(get()).body == b"second"


def _interim_flood(lab: Lab, *, passed: int) -> None:
    lab.upstream.script = reply(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50 + OK)
    interim: list[Response] = []
    with lab.connect() as client:
        client.send(get())
        assert client.read_response(interim=interim).status == 200
    assert [each.status for each in interim] == [103] * passed


scenario(
    ROWS,
    "a flood of interim answers comes through, and the final one",
    "Go net/http: max 1xx responses",
    asgi=Instead(Lost.INTERIM, lambda lab: _interim_flood(lab, passed=0)),
)(lambda lab: _interim_flood(lab, passed=50))


# chunks and trailers of responses


@scenario(ROWS, "chunk extensions of an answer stay behind", "RFC 9112 7.1.1")
def chunk_extensions(lab: Lab) -> None:
    lab.upstream.script = reply(CHUNKED + b"5;name=value\r\nhello\r\n0;last=1\r\n\r\n")
    with lab.connect() as client:
        assert client.ask(get()).body == b"hello"
        assert b"name" not in client.received
        assert b"last" not in client.received


def _trailers(lab: Lab) -> list[bytes]:
    trailers = b"X-Sum: abc\r\nSet-Cookie: evil=1\r\nConnection: X\r\n"
    lab.upstream.script = in_turn(reply(CHUNKED + HELLO + b"0\r\n" + trailers + b"\r\n"), reply(OK))
    with lab.connect() as client:
        response = client.ask(get())
        assert response.body == b"hello"
        assert response.all(b"set-cookie") == [], "a trailer was merged into the head"
        assert client.ask(get()).body == b"ok"
    return [name.lower() for name, _ in response.trailers]


def _no_trailers(lab: Lab) -> None:
    assert _trailers(lab) == []


@scenario(
    ROWS,
    "trailers of an answer come through as trailers, announced or not",
    "Go ReverseProxy: TestUnannouncedTrailer",
    asgi=Instead(Lost.TRAILERS, _no_trailers),
)
def response_trailers(lab: Lab) -> None:
    names = _trailers(lab)
    assert b"x-sum" in names
    assert b"connection" not in names


def _endless_answer_trailers(connection: Connection) -> None:
    connection.read_request()
    connection.send(CHUNKED + HELLO + b"0\r\n")
    with contextlib.suppress(OSError):
        for _ in range(256):
            connection.send(b"X-Trailer: v\r\n" * 4096)
        raise AssertionError("14 MiB of trailers were read")


@scenario(ROWS, "trailers of an answer without end are not read", "Envoy: max_response_headers_kb")
def endless_trailers(lab: Lab) -> None:
    lab.upstream.script = _endless_answer_trailers
    with lab.connect() as client:
        response = client.ask(get())
        assert (response.body, response.complete) == (b"hello", False)


# streaming


@scenario(ROWS, "the head comes before the content is there", "Go ReverseProxy: TestReverseProxyFlushIntervalHeaders")
def head_first(lab: Lab) -> None:
    go_on = threading.Event()
    lab.upstream.script = reply(b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\n", go_on, b"hello")
    with lab.connect() as client:
        client.send(get())
        response = client.read_head()
        go_on.set()
        client.read_body(response)
        assert response.body == b"hello"


@scenario(ROWS, "each piece of content comes before the next is sent", "Go ReverseProxy: TestReverseProxyFlushInterval")
def flush(lab: Lab) -> None:
    steps = [threading.Event() for _ in range(5)]
    script: list[bytes | threading.Event] = [CHUNKED]
    for step in steps:
        script += [HELLO, step]
    lab.upstream.script = reply(*script, LAST)
    with lab.connect() as client:
        client.send(get())
        assert client.read_head().status == 200
        for step in steps:
            client.read_until(b"hello\r\n")
            step.set()
        assert client.read_exactly(5) == LAST


@scenario(ROWS, "a close-delimited answer comes piece by piece", "Caddy: flush_interval -1")
def flush_until_close(lab: Lab) -> None:
    go_on = threading.Event()
    lab.upstream.script = reply(b"HTTP/1.1 200 OK\r\n\r\nhello", go_on, b"world", CLOSE)
    with lab.connect() as client:
        client.send(get())
        head = client.read_head()
        client.read_until(b"hello")
        go_on.set()
        assert b"world" in (client.read_until(b"0\r\n\r\n") if head.all(b"transfer-encoding") else client.read_to_end())


@scenario(ROWS, "the body goes up piece by piece", "nginx: proxy_request_buffering off")
def flush_upload(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(post(b"", b"X: y").replace(b"Length: 0", b"Length: 10"), b"hello")
        lab.upstream.wait_for(lambda: b"hello" in lab.upstream.received)
        client.send(b"world")
        assert client.read_response().status == 200


@scenario(ROWS, "an answer may begin while the body still goes up (both stream)", "Go net/http: full duplex")
def duplex(lab: Lab) -> None:
    def echo(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        for _ in range(2):
            connection.send(connection.read_exactly(5))

    lab.upstream.script = echo
    with lab.connect() as client:
        client.send(post(b"").replace(b"Length: 0", b"Length: 10"), b"hello")
        response = client.read_head()
        assert response.status == 200
        assert client.read_exactly(5) == b"hello"
        client.send(b"world")
        assert client.read_exactly(5) == b"world"

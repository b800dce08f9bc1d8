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
    "with Content-Length": (reply(answer(body=b"hello")), b"hello", "RFC 9112 6.2"),
    "in chunks": (reply(CHUNKED + HELLO + HELLO + LAST), b"hellohello", "RFC 9112 7.1"),
    "in chunks, sent in many writes": (
        reply(CHUNKED, b"5", b"\r", b"\nhel", b"lo\r\n", b"0\r\n", b"\r\n"),
        b"hello",
        "RFC 9112 7.1",
    ),
    "delimited by the close of the connection": (
        reply(b"HTTP/1.1 200 OK\r\n\r\nhello", CLOSE),
        b"hello",
        "RFC 9112 6.3",
    ),
    "without content, delimited by the close of the connection": (
        reply(b"HTTP/1.1 200 OK\r\n\r\n", CLOSE),
        b"",
        "RFC 9112 6.3",
    ),
    "with version HTTP/2.0 in its status line": (
        reply(b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        b"hello",
        "RFC 9112 2.3",
    ),
    "with Content-Length: 0": (reply(answer(body=b"")), b"", "RFC 9112 6.2"),
    "with only the last chunk": (reply(CHUNKED + LAST), b"", "RFC 9112 7.1"),
    "in HTTP/1.0 with Content-Length": (
        reply(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", CLOSE),
        b"hello",
        "Go ReverseProxy: HTTP/1.0 backends",
    ),
    "in HTTP/1.0, delimited by the close of the connection": (
        reply(b"HTTP/1.0 200 OK\r\n\r\nhello", CLOSE),
        b"hello",
        "Go ReverseProxy: HTTP/1.0 backends",
    ),
    "in HTTP/1.0 with Connection: keep-alive": (
        reply(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"),
        b"hello",
        "RFC 9112 9.3",
    ),
    "with leading zeros in Content-Length": (
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 005\r\n\r\nhello"),
        b"hello",
        "RFC 9110 8.6",
    ),
    "sent byte by byte": (lambda c: _drip(c, answer(body=b"hello")), b"hello", "h1spec: Fragmented"),
    "in chunks, sent byte by byte": (lambda c: _drip(c, CHUNKED + HELLO + LAST), b"hello", "h1spec: Fragmented"),
    "of 3 MiB with Content-Length": (
        reply(answer(body=b"0123456789abcdef" * 196608)),
        b"0123456789abcdef" * 196608,
        "Go ReverseProxy: TestReverseProxyGetPutBuffer",
    ),
    "of 3 MiB in one chunk": (
        reply(CHUNKED + b"300000\r\n" + b"0123456789abcdef" * 196608 + b"\r\n" + LAST),
        b"0123456789abcdef" * 196608,
        "RFC 9112 7.1",
    ),
    "whose content looks like another response": (reply(answer(body=OK)), OK, "PortSwigger: response queue poisoning"),
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
    "that is not the standard one": b"200 Fine and dandy",
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
    "a status code of two digits": (reply(b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED), "RFC 9112 4"),
    "a status code of four digits": (
        reply(b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED),
        "RFC 9112 4",
    ),
    "a status code below 100": (reply(b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED), "RFC 9110 15"),
    "Content-Length before Transfer-Encoding": (
        reply(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO + LAST, WAIT_CLOSED
        ),
        "RFC 9112 6.3",
    ),
    "Transfer-Encoding before Content-Length": (
        reply(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + HELLO + LAST, WAIT_CLOSED
        ),
        "RFC 9112 6.3",
    ),
    "two different Content-Length lines": (
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", WAIT_CLOSED),
        "RFC 9112 6.3",
    ),
    "two equal Content-Length lines": (
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", WAIT_CLOSED),
        "RFC 9112 6.3 (may be taken as one)",
    ),
    "a Content-Length that is not a number": (
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nhello", WAIT_CLOSED),
        "RFC 9112 6.3",
    ),
    "a negative Content-Length": (
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", WAIT_CLOSED),
        "RFC 9112 6.3",
    ),
    "an empty Content-Length": (reply(b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello", WAIT_CLOSED), "RFC 9112 6.3"),
    "a Content-Length beyond 64 bits": (
        reply(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello", WAIT_CLOSED),
        "RFC 9110 8.6",
    ),
    "an unsupported transfer coding": (
        reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + HELLO + LAST, WAIT_CLOSED),
        "RFC 9112 6.1",
    ),
    "chunked twice": (
        reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n" + HELLO + LAST, WAIT_CLOSED),
        "RFC 9112 6.1",
    ),
    "a folded field line": (
        reply(b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED),
        "RFC 9112 5.2",
    ),
    "a NUL in a field value": (
        reply(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED),
        "RFC 9110 5.5",
    ),
    "a bare CR in a field value": (
        reply(b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED),
        "RFC 9112 2.2",
    ),
    "a field line without a colon": (
        reply(b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED),
        "RFC 9112 5",
    ),
    "an empty field name": (reply(b"HTTP/1.1 200 OK\r\n: y\r\nContent-Length: 0\r\n\r\n", WAIT_CLOSED), "RFC 9112 5"),
    "an endless head": (lambda c: _endless_head(c), "Envoy: max_response_headers_kb"),
    "a 101 response to a request without Upgrade": (
        reply(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", WAIT_CLOSED),
        "Caddy: TestFinalizeResponse_101_NoUpgradeRequest",
    ),
    "only an interim response, and closes": (reply(b"HTTP/1.1 100 Continue\r\n\r\n", CLOSE), "RFC 9110 15.2"),
}

TEN = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"

CUTS: dict[str, tuple[bytes, tuple[bytes | Step, ...], bytes]] = {
    "Content-Length and no content": (TEN, (CLOSE,), b""),
    "Content-Length and no content, reset": (TEN, (RESET,), b""),
    "Content-Length and half the content": (TEN + b"hello", (CLOSE,), b"hello"),
    "Content-Length and half the content, reset": (TEN, (b"hello", RESET), b"hello"),
    "chunked, before any chunk": (CHUNKED, (CLOSE,), b""),
    "chunked, before the last chunk": (CHUNKED + HELLO, (CLOSE,), b"hello"),
    "chunked, within a chunk": (CHUNKED + b"ff\r\nhello", (CLOSE,), b"hello"),
    "chunked, within a chunk size": (CHUNKED, (HELLO + b"f", CLOSE), b"hello"),
    "chunked, before the final CRLF": (CHUNKED, (HELLO + b"0\r\n", CLOSE), b"hello"),
    "chunked, reset": (CHUNKED + HELLO, (RESET,), b"hello"),
    "chunked, with a faulty chunk size": (CHUNKED + HELLO, (b"zz\r\nhello\r\n", WAIT_CLOSED), b"hello"),
    # octets that are read together with a fault are not relayed
    "chunked, without CRLF after the chunk data": (CHUNKED + HELLO, (b"5\r\nhelloX", WAIT_CLOSED), b"hello"),
    "chunked, with a chunk size beyond 64 bits": (
        CHUNKED + HELLO,
        (b"10000000000000000\r\nhello\r\n", WAIT_CLOSED),
        b"hello",
    ),
    "delimited by close, reset": (b"HTTP/1.1 200 OK\r\n\r\nhello", (RESET,), b"hello"),
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
        relayed(f"a response {name} is relayed", source, get(), script=script, returns=Returns(body=body))
        for name, (script, body, source) in WHOLE.items()
    ),
    *(
        relayed(
            f"status {status.decode()} is relayed with its content",
            "RFC 9110 15",
            get(),
            script=reply(answer(status=status)),
            returns=Returns(status=int(status[:3]), body=b"ok"),
        )
        for status in STATUSES
    ),
    *(
        relayed(
            f"a reason phrase {name} is relayed",
            "RFC 9112 4",
            get(),
            script=reply(answer(status=status)),
            returns=Returns(status=int(status[:3]), reason=status[4:], body=b"ok"),
            asgi=(Lost.REASON, None, Returns(status=int(status[:3]), body=b"ok")),
        )
        for name, status in REASONS.items()
    ),
    *(bad_gateway(f"502 when upstream sends {name}", source, script) for name, (script, source) in FAULTY.items()),
    bad_gateway(
        "502 when upstream resets the connection after a POST",
        "Go ReverseProxy: TestReverseProxyErrorHandler",
        reply(RESET),
        send=post(b"body"),
    ),
    *(
        cut(
            f"a truncated response never looks complete: {name}",
            "Caddy: truncated responses, RFC 9112 8",
            first,
            then,
            body,
        )
        for name, (first, then, body) in CUTS.items()
    ),
    cut(
        "a truncated response to an HTTP/1.0 client never looks complete",
        "RFC 9112 8",
        TEN + b"hello",
        (CLOSE,),
        b"hello",
        send=request(b"GET / HTTP/1.0", HOST),
    ),
    relayed(
        "a status code above 599 is relayed",
        "RFC 9110 15",
        get(),
        script=reply(answer(status=b"999 Request denied")),
        returns=Returns(status=999, body=b"ok"),
        asgi=(Lost.STATUS, None, Returns(status=502)),
    ),
    # responses without content, whatever their fields say
    relayed(
        "Content-Length of a response to HEAD is relayed, and no content follows",
        "RFC 9110 9.3.2",
        HEAD,
        script=reply(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n"),
        returns=Returns(has=(b"Content-Length: 12345",)),
    ),
    relayed(
        "a chunked response to HEAD is relayed without content",
        "RFC 9112 6.3",
        HEAD,
        script=reply(CHUNKED),
        returns=Returns(lacks=(b"content-length",)),
    ),
    relayed(
        "a response to HEAD without Content-Length or Transfer-Encoding is relayed",
        "RFC 9112 6.3",
        HEAD,
        script=reply(b"HTTP/1.1 200 OK\r\n\r\n"),
    ),
    relayed(
        "a 204 response has no content and no Content-Length",
        "Http11Probe: COMP-NO-CL-IN-204",
        get(),
        script=reply(b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
        returns=Returns(status=204, has=(b"X: y",), lacks=(b"content-length", b"transfer-encoding")),
    ),
    relayed(
        "a 304 response without Content-Length is relayed",
        "Http11Probe: CAP-ETAG-304",
        get(b'If-None-Match: "a"'),
        script=reply(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n'),
        returns=Returns(status=304, has=(b'ETag: "a"',), lacks=(b"content-length", b"transfer-encoding")),
    ),
    relayed(
        "a 304 response with the Content-Length of a 200 response is relayed",
        "RFC 9110 15.4.5",
        get(b'If-None-Match: "a"'),
        script=reply(b'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: "a"\r\n\r\n'),
        returns=Returns(status=304, has=(b'ETag: "a"', b"Content-Length: 5")),
        asgi=(Lost.LENGTH_OF_304, None, Returns(status=304, has=(b'ETag: "a"',), lacks=(b"content-length",))),
    ),
    # HTTP/1.0 clients
    relayed(
        "a chunked response is sent to an HTTP/1.0 client delimited by the close of the connection",
        "RFC 9112 7.1 (no chunked to HTTP/1.0)",
        request(b"GET / HTTP/1.0", HOST),
        Arrives(line=b"GET / HTTP/1.1"),
        script=reply(CHUNKED + HELLO + LAST),
        returns=Returns(lacks=(b"transfer-encoding",), body=b"hello", closes=True),
        asgi=(Lost.HTTP_10, None, Returns(has=(b"Transfer-Encoding: chunked",), body=b"hello", closes=True)),
    ),
    relayed(
        "the connection of an HTTP/1.0 client is closed after the response",
        "Http11Probe: COMP-HTTP10-DEFAULT-CLOSE",
        request(b"GET / HTTP/1.0", HOST),
        returns=Returns(body=b"ok", closes=True),
    ),
    relayed(
        "a response in HTTP/1.0 is relayed to an HTTP/1.1 client",
        "RFC 9112 2.3",
        get(),
        script=reply(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", CLOSE),
        returns=Returns(body=b"ok"),
    ),
    relayed(
        "the connection is closed after the response to a request with Connection: close",
        "Http11Probe: RFC9112-9.6-CONNECTION-CLOSE",
        get(b"Connection: close"),
        returns=Returns(body=b"ok", closes=True),
    ),
]


@scenario(ROWS, "the connection of an HTTP/1.0 client is closed although it asked for keep-alive", "RFC 9112 9.3")
def http_10_keep_alive(lab: Lab) -> None:
    with lab.connect() as client:
        response = client.ask(request(b"GET / HTTP/1.0", HOST, b"Connection: keep-alive"))
        assert response.body == b"ok"
        if lab.adapter == "native":  # uvicorn's oldest supported release sends no such field
            assert response.all(b"connection") == [b"close"]
        assert client.closed()


@scenario(ROWS, "both connections are reused after responses to HEAD, 204 and 304", "RFC 9112 6.3")
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


@scenario(ROWS, "content after a 204 response is discarded, and the upstream connection is not reused", "RFC 9112 6.3")
def content_of_204(lab: Lab) -> None:
    lab.upstream.script = in_turn(reply(b"HTTP/1.1 204 No Content\r\n\r\nwhat?"), reply(OK))
    with lab.connect() as client:
        assert client.ask(get()).status == 204
        assert client.ask(get()).body == b"ok"
    assert [each.connection for each in lab.upstream.requests] == [0, 1]


@scenario(
    ROWS, "content after a response to HEAD is discarded, and the upstream connection is not reused", "RFC 9112 6.3"
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
    "102 and 103 responses are relayed, each with its own fields",
    "Go ReverseProxy: Test1xxResponses",
    asgi=Instead(Lost.INTERIM, lambda lab: _no_interim(lab, get())),
)
def early_hints(lab: Lab) -> None:
    interim, final = _interim(lab, get())
    assert [each.status for each in interim] == [103, 102]
    assert interim[0].all(b"link") == [b"</style.css>; rel=preload", b"</script.js>; rel=preload"]
    assert interim[1].all(b"link") == []
    assert (final.body, final.all(b"link")) == (b"ok", [b"</foo.js>"])


scenario(ROWS, "interim responses are not sent to an HTTP/1.0 client", "Http11Probe: COMP-NO-1XX-HTTP10")(
    lambda lab: _no_interim(lab, request(b"GET / HTTP/1.0", HOST))
)


@scenario(ROWS, "an unrequested 100 (Continue) does not affect the responses that follow", "RFC 9110 15.2")
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
    "fifty interim responses are relayed, and the final response",
    "Go net/http: max 1xx responses",
    asgi=Instead(Lost.INTERIM, lambda lab: _interim_flood(lab, passed=0)),
)(lambda lab: _interim_flood(lab, passed=50))


# chunks and trailers of responses


@scenario(ROWS, "chunk extensions of a response are removed", "RFC 9112 7.1.1")
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
    "unannounced trailers of a response are relayed as trailers",
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


@scenario(ROWS, "a response with endless trailers is broken off", "Envoy: max_response_headers_kb")
def endless_trailers(lab: Lab) -> None:
    lab.upstream.script = _endless_answer_trailers
    with lab.connect() as client:
        response = client.ask(get())
        assert (response.body, response.complete) == (b"hello", False)


# streaming


@scenario(
    ROWS,
    "a response head is relayed before upstream has sent the content",
    "Go ReverseProxy: TestReverseProxyFlushIntervalHeaders",
)
def head_first(lab: Lab) -> None:
    go_on = threading.Event()
    lab.upstream.script = reply(b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\n", go_on, b"hello")
    with lab.connect() as client:
        client.send(get())
        response = client.read_head()
        go_on.set()
        client.read_body(response)
        assert response.body == b"hello"


@scenario(
    ROWS,
    "each chunk of a response is relayed before upstream sends the next one",
    "Go ReverseProxy: TestReverseProxyFlushInterval",
)
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


@scenario(
    ROWS,
    "the start of a close-delimited response is relayed before upstream sends the rest",
    "Caddy: flush_interval -1",
)
def flush_until_close(lab: Lab) -> None:
    go_on = threading.Event()
    lab.upstream.script = reply(b"HTTP/1.1 200 OK\r\n\r\nhello", go_on, b"world", CLOSE)
    with lab.connect() as client:
        client.send(get())
        head = client.read_head()
        client.read_until(b"hello")
        go_on.set()
        assert b"world" in (client.read_until(b"0\r\n\r\n") if head.all(b"transfer-encoding") else client.read_to_end())


@scenario(
    ROWS,
    "the start of a request's content is forwarded before the client sends the rest",
    "nginx: proxy_request_buffering off",
)
def flush_upload(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(post(b"", b"X: y").replace(b"Length: 0", b"Length: 10"), b"hello")
        lab.upstream.wait_for(lambda: b"hello" in lab.upstream.received)
        client.send(b"world")
        assert client.read_response().status == 200


@scenario(ROWS, "a response is relayed while the client is still sending its content", "Go net/http: full duplex")
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

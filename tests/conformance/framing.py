"""The framing of a request's content.

Unambiguous framing is accepted, and the request is forwarded with framing of the gateway's own. If two parsers could
read the framing differently, the request is refused before a byte of it reaches upstream.
"""

import functools

from tests.conformance.table import (
    HOST,
    Arrives,
    Instead,
    Lab,
    Lost,
    Row,
    broken_off,
    chunked,
    get,
    post,
    refused,
    relayed,
    request,
    scenario,
)
from tests.support.upstream import reply


def _refusal_of_trailers(lab: Lab) -> None:
    assert lab.ask(WITH_TRAILERS).status == 400
    lab.assert_silent()


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: example.test\r\n\r\n"


def length(value: bytes, body: bytes = b"body") -> bytes:
    """A POST whose Content-Length line has the given value."""
    return request(b"POST / HTTP/1.1", HOST, b"Content-Length:" + value, body=body)


def coding(*lines: bytes, version: bytes = b"1.1") -> bytes:
    """A POST with the given lines and a chunked body, after whose end a smuggled request follows."""
    return request(b"POST / HTTP/" + version, HOST, *lines, body=b"4\r\nbody\r\n0\r\n\r\n" + SMUGGLED)


LENGTHS = {
    "two lines with different lengths": (b" 4\r\nContent-Length: 5", "Http11Probe: SMUG-DUPLICATE-CL"),
    "two lines with equal lengths": (b" 4\r\nContent-Length: 4", "http-desync-guardian: Duplicate Content-Length"),
    "a list of different lengths": (b" 4, 5", "Http11Probe: SMUG-CL-COMMA-DIFFERENT"),
    "a list of equal lengths": (b" 4, 4", "Http11Probe: SMUG-CL-COMMA-SAME"),
    "a list of three lengths": (b" 4, 4, 4", "Http11Probe: SMUG-CL-COMMA-TRIPLE"),
    "an empty list element": (b" 4,", "RFC 9110 8.6"),
    "a negative length": (b" -4", "h1spec: Negative Content-Length header"),
    "a negative length beyond 64 bits": (
        b" -123456789123456789123456789",
        "h1spec: Overflowing negative Content-Length header",
    ),
    "minus zero": (b" -0", "Http11Probe: SMUG-CL-NEGATIVE-ZERO"),
    "a plus sign": (b" +4", "Http11Probe: RFC9112-6.1-CL-PLUS-SIGN"),
    "a length beyond 64 bits": (b" 18446744073709551616", "http-desync-guardian: severe (64-bits overflow)"),
    "the largest length of 64 bits": (b" 18446744073709551615", "Http11Probe: MAL-CL-OVERFLOW"),
    "a hexadecimal length": (b" 0x4", "Http11Probe: SMUG-CL-HEX-PREFIX"),
    "an octal prefix": (b" 0o4", "Http11Probe: SMUG-CL-OCTAL"),
    "an underscore": (b" 1_0", "Http11Probe: SMUG-CL-UNDERSCORE"),
    "a space within the number": (b" 1 0", "Http11Probe: SMUG-CL-INTERNAL-SPACE"),
    "a decimal point": (b" 4.0", "http-desync-guardian: severe"),
    "an exponent": (b" 4e0", "RFC 9110 8.6"),
    "letters": (b" abc", "h1spec: Non-numeric Content-Length header"),
    "letters after digits": (b" 4abc", "RFC 9110 8.6"),
    "an empty value": (b"", "Http11Probe: MAL-CL-EMPTY"),
    "only whitespace": (b" \t ", "RFC 9110 8.6"),
    "a control character after the number": (b" 4\x11", "http-desync-guardian: severe"),
    "a vertical tab before the number": (b" \x0b4", "RFC 9110 5.5"),
    "digits of another script": (b" \xd9\xa4", "RFC 9110 8.6"),
    "a quoted length": (b' "4"', "RFC 9110 8.6"),
}

CODINGS = {
    "Content-Length before Transfer-Encoding": (
        (b"Content-Length: 4", b"Transfer-Encoding: chunked"),
        "Http11Probe: SMUG-CLTE-PIPELINE",
    ),
    "Content-Length after Transfer-Encoding": (
        (b"Transfer-Encoding: chunked", b"Content-Length: 4"),
        "h1spec: Conflicting Transfer-Encoding and Content-Length",
    ),
    "Content-Length: 0 with Transfer-Encoding": (
        (b"Transfer-Encoding: chunked", b"Content-Length: 0"),
        "http-desync-guardian: ambiguous",
    ),
    "Content-Length as well, and Connection: close": (
        (b"Connection: close", b"Content-Length: 4", b"Transfer-Encoding: chunked"),
        "Http11Probe: SMUG-CLTE-CONN-CLOSE",
    ),
    "Content-Length as well, named in Connection": (
        (b"Connection: Content-Length", b"Content-Length: 4", b"Transfer-Encoding: chunked"),
        "RFC 9112 6.3",
    ),
    "chunked twice in a list": ((b"Transfer-Encoding: chunked, chunked",), "Http11Probe: SMUG-TE-DOUBLE-CHUNKED"),
    "chunked in two lines": (
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        "Http11Probe: SMUG-TE-DUPLICATE-HEADERS",
    ),
    "chunked in the first of two lines, identity in the second": (
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        "http-desync-guardian: severe",
    ),
    "identity in the first of two lines, chunked in the second": (
        (b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"),
        "Http11Probe: SMUG-TE-DUPLICATE-HEADERS",
    ),
    "chunked before another coding": ((b"Transfer-Encoding: chunked, gzip",), "Http11Probe: SMUG-TE-NOT-FINAL-CHUNKED"),
    "an unsupported coding before chunked": (
        (b"Transfer-Encoding: gzip, chunked",),
        "Http11Probe: RFC9112-6.1-UNKNOWN-TE-501",
    ),
    "an unsupported coding in the first of two lines, chunked in the second": (
        (b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
        "RFC 9112 6.1",
    ),
    "gzip alone": ((b"Transfer-Encoding: gzip",), "RFC 9112 6.3"),
    "identity": ((b"Transfer-Encoding: identity",), "Http11Probe: SMUG-TE-IDENTITY"),
    "xchunked": ((b"Transfer-Encoding: xchunked",), "Http11Probe: SMUG-TE-XCHUNKED"),
    "chunkedx": ((b"Transfer-Encoding: chunkedx",), "http-desync-guardian: severe"),
    "chunked with a parameter": ((b"Transfer-Encoding: chunked;q=1",), "Http11Probe: SMUG-CHUNKED-WITH-PARAMS"),
    "chunked in quotes": ((b'Transfer-Encoding: "chunked"',), "PortSwigger: TE.TE obfuscation"),
    "chunked in single quotes": ((b"Transfer-Encoding: 'chunked'",), "PortSwigger: TE.TE obfuscation"),
    "an empty value": ((b"Transfer-Encoding:",), "Http11Probe: SMUG-TE-EMPTY-VALUE"),
    "a comma before chunked": ((b"Transfer-Encoding: ,chunked",), "Http11Probe: SMUG-TE-LEADING-COMMA"),
    "a comma after chunked": ((b"Transfer-Encoding: chunked,",), "Http11Probe: SMUG-TE-TRAILING-COMMA"),
    "a vertical tab before chunked": ((b"Transfer-Encoding: \x0bchunked",), "Http11Probe: SMUG-TE-VTAB"),
    "a form feed after chunked": ((b"Transfer-Encoding: chunked\x0c",), "Http11Probe: SMUG-TE-FORMFEED"),
    "a NUL after chunked": ((b"Transfer-Encoding: chunked\x00",), "Http11Probe: SMUG-TE-NULL"),
    "a control character after chunked": ((b"Transfer-Encoding: chunked\x11",), "http-desync-guardian: severe"),
    "a space before the colon": ((b"Transfer-Encoding : chunked",), "Http11Probe: SMUG-TE-SP-BEFORE-COLON"),
    "a tab before the colon": ((b"Transfer-Encoding\t: chunked",), "http-desync-guardian: ambiguous"),
    "a folded value": ((b"Transfer-Encoding:", b" chunked"), "Http11Probe: SMUG-TE-OBS-FOLD"),
    "the continuation of a folded line": (
        (b"X: y", b" Transfer-Encoding: chunked", b"Content-Length: 4"),
        "http-desync-guardian: ambiguous",
    ),
    "a control character in the name": ((b"\x01Transfer-Encoding: chunked",), "http-desync-guardian: ambiguous"),
    "a space within the name": ((b"Transfer- Encoding: chunked",), "http-desync-guardian: ambiguous"),
    "a byte above 0x7F in the name": ((b"Transfer-Encoding\x88: chunked",), "http-desync-guardian: ambiguous"),
    "a dotless i in the name": ((b"Transfer-Encod\xc4\xb1ng: chunked",), "http-desync-guardian: ambiguous"),
    "after a bare LF, and Content-Length as well": (
        (b"X: y\nTransfer-Encoding: chunked", b"Content-Length: 4"),
        "http-desync-guardian: severe",
    ),
    "after a bare CR, and Content-Length as well": (
        (b"X: y\rTransfer-Encoding: chunked", b"Content-Length: 4"),
        "http-desync-guardian: severe",
    ),
}

CHUNKS = {
    "a chunk size with the prefix 0x": (b"0x4\r\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-HEX-PREFIX"),
    "a chunk size with a plus sign": (b"+4\r\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-SIZE-PLUS"),
    "a negative chunk size": (b"-4\r\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-NEGATIVE"),
    "an underscore in a chunk size": (b"0_4\r\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-UNDERSCORE"),
    "a space before a chunk size": (b" 4\r\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-LEADING-SP"),
    "a space after a chunk size": (b"4 \r\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-SIZE-TRAILING-OWS"),
    "a chunk size that is not hexadecimal": (
        b"xyz\r\nbody\r\n0\r\n\r\n",
        "Http11Probe: SMUG-CHUNK-INVALID-SIZE-DESYNC",
    ),
    "no chunk size": (b"\r\nbody\r\n0\r\n\r\n", "RFC 9112 7.1"),
    "a chunk size beyond 64 bits": (b"10000000000000004\r\nbody\r\n0\r\n\r\n", "Http11Probe: MAL-CHUNK-SIZE-OVERFLOW"),
    "a semicolon without an extension": (b"4;\r\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-BARE-SEMICOLON"),
    "a bare LF in an extension": (b"4;a\nb\r\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-EXT-LF"),
    "a bare CR in an extension": (b"4;a\rb\r\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-EXT-CR"),
    "a control character in an extension": (b"4;a=\x01\r\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-EXT-CTRL"),
    "a bare LF after the chunk size": (b"4\nbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-LF-TERM"),
    "a bare CR after the chunk size": (b"4\rbody\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-BARE-CR-TERM"),
    "a bare LF after the chunk data": (b"4\r\nbody\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-LF-TERM"),
    "no CRLF after the chunk data": (b"4\r\nbody0\r\n\r\n", "Http11Probe: SMUG-CHUNK-MISSING-TRAILING-CRLF"),
    "more chunk data than the chunk size says": (b"4\r\nbody!\r\n0\r\n\r\n", "Http11Probe: SMUG-CHUNK-SPILL"),
    "a bare LF after the last chunk": (b"4\r\nbody\r\n0\r\n\n", "Http11Probe: SMUG-CHUNK-LF-TRAILER"),
    "Content-Length in a trailer": (b"4\r\nbody\r\n0\r\nContent-Length: 9\r\n\r\n", "Http11Probe: SMUG-TRAILER-CL"),
    "a trailer without a colon": (b"4\r\nbody\r\n0\r\nno colon\r\n\r\n", "RFC 9112 7.1.2"),
}

BODIES = {
    "Content-Length": (post(b"body"), b"body", "Http11Probe: COMP-POST-CL-BODY"),
    "Content-Length: 0": (post(b""), b"", "Http11Probe: COMP-POST-CL-ZERO"),
    "neither Content-Length nor Transfer-Encoding": (
        request(b"POST / HTTP/1.1", HOST),
        b"",
        "Http11Probe: COMP-POST-NO-CL-NO-TE",
    ),
    "leading zeros in Content-Length": (length(b" 0004"), b"body", "Http11Probe: SMUG-CL-LEADING-ZEROS"),
    # the llhttp of httptools 0.6 refuses a tab here, with 400
    "whitespace around the value of Content-Length": (
        length(b" \t4 \t"),
        b"body",
        "Http11Probe: SMUG-CL-TRAILING-SPACE",
    ),
    "no space before the value of Content-Length": (length(b"4"), b"body", "RFC 9112 5.1"),
    "GET with Content-Length": (
        request(b"GET / HTTP/1.1", HOST, b"Content-Length: 4", body=b"body"),
        b"body",
        "Http11Probe: COMP-GET-WITH-CL-BODY",
    ),
    "GET with chunked content": (
        request(b"GET / HTTP/1.1", HOST, b"Transfer-Encoding: chunked", body=b"4\r\nbody\r\n0\r\n\r\n"),
        b"body",
        "http-desync-guardian: ambiguous",
    ),
    "DELETE with Content-Length": (
        request(b"DELETE / HTTP/1.1", HOST, b"Content-Length: 4", body=b"body"),
        b"body",
        "RFC 9110 9.3.5",
    ),
    "one chunk": (chunked(b"4\r\nbody\r\n0\r\n\r\n"), b"body", "Http11Probe: COMP-CHUNKED-BODY"),
    "several chunks": (
        chunked(b"1\r\nb\r\n2\r\nod\r\n1\r\ny\r\n0\r\n\r\n"),
        b"body",
        "Http11Probe: COMP-CHUNKED-MULTI",
    ),
    "only the last chunk": (chunked(b"0\r\n\r\n"), b"", "Http11Probe: COMP-CHUNKED-EMPTY"),
    "chunk sizes in upper and lower case": (
        chunked(b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"),
        b"0123456789" * 2,
        "Http11Probe: COMP-CHUNKED-HEX-UPPERCASE",
    ),
    "chunk sizes with leading zeros": (chunked(b"0004\r\nbody\r\n000\r\n\r\n"), b"body", "RFC 9112 7.1"),
    "chunked in mixed case": (
        request(b"POST / HTTP/1.1", HOST, b"transfer-encoding: ChUnKeD", body=b"4\r\nbody\r\n0\r\n\r\n"),
        b"body",
        "Http11Probe: SMUG-TE-CASE-MISMATCH",
    ),
    "a tab before chunked": (
        request(b"POST / HTTP/1.1", HOST, b"Transfer-Encoding:\tchunked", body=b"4\r\nbody\r\n0\r\n\r\n"),
        b"body",
        "Http11Probe: SMUG-TE-TAB-BEFORE-VALUE",
    ),
    "a space after chunked": (
        request(b"POST / HTTP/1.1", HOST, b"Transfer-Encoding: chunked ", body=b"4\r\nbody\r\n0\r\n\r\n"),
        b"body",
        "Http11Probe: SMUG-TE-TRAILING-SPACE",
    ),
    "content that looks like a request": (post(SMUGGLED), SMUGGLED, "Http11Probe: SMUG-CL0-BODY-POISON"),
    "chunked content that looks like a request": (
        chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
        SMUGGLED,
        "Http11Probe: SMUG-CLTE-SMUGGLED-GET",
    ),
    "all 256 octets": (post(bytes(range(256)) * 4), bytes(range(256)) * 4, "RFC 9110 6.4"),
    "a field named Transfer_Encoding": (
        post(b"body", b"Transfer_Encoding: chunked"),
        b"body",
        "Http11Probe: SMUG-TRANSFER-ENCODING-UNDERSCORE",
    ),
    "a field named Content_Length": (post(b"body", b"Content_Length: 1"), b"body", "http-desync-guardian: ambiguous"),
}

ROWS: list[Row] = [
    *(refused(f"Content-Length: {name}", source, length(value)) for name, (value, source) in LENGTHS.items()),
    *(refused(f"Transfer-Encoding: {name}", source, coding(*lines)) for name, (lines, source) in CODINGS.items()),
    refused(
        "Transfer-Encoding in HTTP/1.0",
        "Http11Probe: SMUG-TE-HTTP10",
        coding(b"Transfer-Encoding: chunked", version=b"1.0"),
    ),
    *(broken_off(f"chunked content with {name}", source, chunked(body)) for name, (body, source) in CHUNKS.items()),
    *(
        relayed(f"content is forwarded: {name}", source, send, Arrives(body=body))
        for name, (send, body, source) in BODIES.items()
    ),
    relayed(
        "GET without content is forwarded without framing fields",
        "Go ReverseProxy: TestNilBody",
        get(),
        Arrives(lacks=(b"content-length", b"transfer-encoding"), body=b""),
    ),
    relayed(
        "Content-Length: 0 is forwarded",
        "Go ReverseProxy: TestReverseProxy_NilBody",
        post(b""),
        Arrives(has=(b"Content-Length: 0",), lacks=(b"transfer-encoding",)),
    ),
    relayed(
        "content with Content-Length is not forwarded chunked",
        "Go ReverseProxy: TestReverseProxy (backend got unexpected TransferEncoding)",
        post(b"body"),
        Arrives(has=(b"Content-Length: 4",), lacks=(b"transfer-encoding",)),
    ),
    relayed(
        "content of 1 MiB with Content-Length is forwarded",
        "Go ReverseProxy: TestReverseProxy_Post",
        post(b"0123456789abcdef" * 65536),
        Arrives(body=b"0123456789abcdef" * 65536),
    ),
    relayed(
        "content of 1 MiB in one chunk is forwarded",
        "Go ReverseProxy: TestReverseProxy_Post",
        chunked(b"100000\r\n" + b"0123456789abcdef" * 65536 + b"\r\n0\r\n\r\n"),
        Arrives(has=(b"Transfer-Encoding: chunked",), lacks=(b"content-length",), body=b"0123456789abcdef" * 65536),
    ),
]


@scenario(ROWS, "chunk extensions of a request are removed", "Http11Probe: COMP-CHUNKED-EXTENSION, RFC 9112 7.1.1")
def chunk_extension(lab: Lab) -> None:
    assert lab.ask(chunked(b'4;name=value;other="quoted"\r\nbody\r\n0;last\r\n\r\n')).status == 200
    assert lab.upstream.requests[0].body == b"body"
    assert b"name" not in lab.upstream.received
    assert b"last" not in lab.upstream.received


@scenario(ROWS, "a chunk extension of 64 KiB in a request is removed", "Http11Probe: MAL-CHUNK-EXTENSION-LONG")
def long_extension(lab: Lab) -> None:
    assert lab.ask(chunked(b"4;a=" + b"x" * 65536 + b"\r\nbody\r\n0\r\n\r\n")).status == 200
    lab.upstream.settle()
    assert b"xxxx" not in lab.upstream.received
    assert [(each.body, each.complete) for each in lab.upstream.requests] == [(b"body", True)]


TRAILERS = [b"X-Sum: v", b"Host: evil.test", b"Authorization: evil", b"Content-Type: evil", b"X-Forwarded-For: evil"]
AUTHENTICATE = [
    name + b": sk-evil"
    for name in (b"x-litellm-api-key", b"API-Key", b"x-api-key", b"x-goog-api-key", b"Ocp-Apim-Subscription-Key")
]
WITH_TRAILERS = chunked(b"4\r\nbody\r\n0\r\n" + b"\r\n".join(TRAILERS) + b"\r\n\r\n", b"Trailer: X-Sum")


@scenario(
    ROWS,
    "trailers of a request are dropped, and never become fields of its head",
    "Http11Probe: SMUG-TRAILER-HOST, -AUTH, -CONTENT-TYPE",
    # uvicorn appends trailers to the scope's fields after the call, and only a second Host can be noticed
    asgi=Instead(Lost.TRAILERS, _refusal_of_trailers),
)
def request_trailers(lab: Lab) -> None:
    assert lab.ask(WITH_TRAILERS).status == 200
    received = lab.upstream.requests[0]
    assert received.body == b"body"
    assert b"evil" not in b"".join(value for _, value in received.fields), "a trailer was merged into the head"
    assert (received.framing, received.trailers) == ("chunked", [])


@scenario(
    ROWS,
    "trailers that carry credentials are dropped when they are received after the head was processed",
    "RFC 9110 6.5.1",
)
def late_trailers(lab: Lab) -> None:
    for path in (b"/", b"/key/update"):
        with lab.connect() as client:
            lines = (HOST, b"Transfer-Encoding: chunked", b"Expect: 100-continue")
            client.send(request(b"POST " + path + b" HTTP/1.1", *lines))
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")  # the head has been processed
            client.send(b"4\r\nbody\r\n0\r\n" + b"\r\n".join(AUTHENTICATE) + b"\r\n\r\n")
            assert client.read_response().status == 200
        received = lab.upstream.requests[-1]
        assert (received.body, received.framing, received.trailers) == (b"body", "chunked", [])
        assert b"evil" not in b"".join(value for _, value in received.fields)


@scenario(
    ROWS,
    "trailers of an intercepted request never become fields of its head",
    "Http11Probe: SMUG-TRAILER-AUTH",
    asgi=Instead(Lost.TRAILERS, _refusal_of_trailers),
)
def intercepted_trailers(lab: Lab) -> None:
    assert lab.ask(WITH_TRAILERS.replace(b"POST / ", b"POST /key/update ")).status == 200
    received = lab.upstream.requests[0]
    assert received.body == b"body"
    assert b"evil" not in b"".join(value for _, value in received.fields)


NOT_CONTENT = {
    "endless trailers": (b"4\r\nbody\r\n0\r\n", b"X-Trailer: v\r\n" * 4096),
    "an endless trailer line": (b"4\r\nbody\r\n0\r\n", b"x" * 65536),
    "an endless chunk extension": (b"4;a=", b"x" * 65536),
}


def _endless(lab: Lab, start: bytes, more: bytes) -> None:
    with lab.connect() as client:
        client.send(chunked(start))
        lab.upstream.wait_request()
        client.send(more + more)  # no more than is read: unread octets would make the close a reset
        assert client.read_response().status == 431
        assert client.closed()
    lab.upstream.wait_closed()
    assert not lab.upstream.requests[0].complete


def _trailers_read(lab: Lab) -> None:
    trailers = NOT_CONTENT["endless trailers"][1] * 2
    assert lab.ask(chunked(b"4\r\nbody\r\n0\r\n" + trailers + b"\r\n")).status == 200


ROWS += (
    Row(
        f"431 for a request with {name}",
        "nginx: large_client_header_buffers",
        functools.partial(_endless, start=start, more=more),
        Instead(Lost.HEAD_LIMIT, _trailers_read),
    )
    for name, (start, more) in NOT_CONTENT.items()
)


@scenario(ROWS, "a request after a refused one is not forwarded", "Http11Probe: SMUG-CLTE-DESYNC")
def nothing_after_refusal(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(coding(b"Content-Length: 4", b"Transfer-Encoding: chunked"), SMUGGLED)
        assert client.read_response().status == 400
        assert client.closed()
    lab.assert_silent()


@scenario(
    ROWS,
    "content shorter than Content-Length is never forwarded as a complete request",
    "Http11Probe: COMP-POST-CL-UNDERSEND",
)
def undersend(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(length(b" 10", b"body"))
        lab.upstream.wait_request()
        client.close()
    lab.upstream.wait_closed()
    assert not lab.upstream.requests[0].complete


@scenario(
    ROWS,
    "chunked content without a last chunk is never forwarded as a complete request",
    "Http11Probe: COMP-CHUNKED-NO-FINAL",
)
def no_last_chunk(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(chunked(b"4\r\nbody\r\n"))
        lab.upstream.wait_request()
        client.close()
    lab.upstream.wait_closed()
    assert not lab.upstream.requests[0].complete


@scenario(ROWS, "a faulty chunk after a valid one leaves the upstream request incomplete", "RFC 9112 7.1")
def late_fault(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(chunked(b"4\r\nbody\r\n"))
        lab.upstream.wait_request()
        client.send(b"zz\r\n")
        assert client.read_response().status == 400
        assert client.closed()
    lab.upstream.wait_closed()
    assert not lab.upstream.requests[0].complete


@scenario(
    ROWS, "bytes after content with Content-Length are read as the next request", "Http11Probe: SMUG-PIPELINE-SAFE"
)
def next_request(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(post(b"body") + get(target=b"/second"))
        assert client.read_response().status == 200
        assert client.read_response().status == 200
    assert [(each.target, each.body) for each in lab.upstream.requests] == [(b"/", b"body"), (b"/second", b"")]


@scenario(ROWS, "a request after one with Connection: close is not forwarded", "RFC 9112 9.6")
def after_close(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(get(b"Connection: close") + SMUGGLED)
        assert client.read_response().status == 200
        assert client.closed()
    lab.upstream.settle()
    assert b"smuggled" not in lab.upstream.received


@scenario(ROWS, "a chunked request that is split at any octet is forwarded with the same content", "RFC 9112 7.1")
def pieces(lab: Lab) -> None:
    message = chunked(b"3\r\nabc\r\n0000a\r\n0123456789\r\n0\r\n\r\n")
    for cut_at in range(1, len(message)):
        with lab.connect() as client:
            assert client.ask(message[:cut_at], message[cut_at:]).status == 200
    assert {each.body for each in lab.upstream.requests} == {b"abc0123456789"}
    assert len(lab.upstream.requests) == len(message) - 1


# Expect


@scenario(
    ROWS,
    "100 (Continue) is sent to the client, and the content that follows is forwarded",
    "Http11Probe: SMUG-EXPECT-100-CL, RFC 9110 10.1.1",
)
def expect_continue(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(post(b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 4"))
        assert client.read_head().status == 100
        client.send(b"body")
        assert client.read_response().status == 200
    assert lab.upstream.requests[0].body == b"body"


def _refused_expectation(lab: Lab, *, interim: bool) -> None:
    lab.upstream.script = reply(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n", early=True)
    with lab.connect() as client:
        client.send(post(b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 4"))
        seen: list[object] = []
        response = client.read_response(interim=seen)  # type: ignore[arg-type]
        assert response.status == 417
        assert bool(seen) == interim, f"interim responses: {seen}"


scenario(
    ROWS,
    "417 is relayed before the client has sent its content",
    "RFC 9110 10.1.1",
    asgi=Instead(Lost.EXPECT, lambda lab: _refused_expectation(lab, interim=True)),
)(lambda lab: _refused_expectation(lab, interim=False))


@scenario(ROWS, "content sent without waiting for 100 (Continue) is forwarded", "RFC 9110 10.1.1")
def expect_impatient(lab: Lab) -> None:
    with lab.connect() as client:
        assert client.ask(post(b"body", b"Expect: 100-continue")).status == 200
        assert client.ask(get(target=b"/next")).status == 200
    assert [each.body for each in lab.upstream.requests] == [b"body", b""]


@scenario(ROWS, "Expect in a request without content is accepted", "h1spec: Request with Expect header")
def expect_nothing(lab: Lab) -> None:
    with lab.connect() as client:
        assert client.ask(get(b"Expect: 100-continue")).status == 200
        assert client.ask(get()).status == 200


@scenario(
    ROWS, "an unknown expectation is forwarded, and upstream's 417 is relayed", "Http11Probe: COMP-EXPECT-UNKNOWN"
)
def expect_unknown(lab: Lab) -> None:
    lab.upstream.script = reply(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
    assert lab.ask(get(b"Expect: 200-ok")).status == 417
    assert lab.upstream.requests[0].all(b"expect") == [b"200-ok"]

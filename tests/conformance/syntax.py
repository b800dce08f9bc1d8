"""Request lines, targets, Host, and malformed field lines: a valid request is forwarded, any other is refused."""

from tests.conformance.table import (
    HOST,
    Arrives,
    Instead,
    Lab,
    Lost,
    Returns,
    Row,
    get,
    play,
    post,
    refused,
    relayed,
    request,
    scenario,
)
from tests.support.upstream import OK, reply

TARGETS = {
    "an encoded slash": (b"/a%2Fb/%2f", "RFC 3986 2.2"),
    "empty segments": (b"//a//b//", "nginx: merge_slashes off"),
    "dot segments": (b"/a/./b/../c/..", "Go ReverseProxy: the path is not cleaned"),
    "encoded dot segments": (b"/a/%2e%2e/b/%2E", "RFC 3986 6.2.2"),
    "a semicolon in the path": (b"/a;v=1/b;jsessionid=2", "RFC 3986 3.3"),
    "an encoded NUL": (b"/a%00b", "Http11Probe: MAL-URL-PERCENT-NULL"),
    "encoded CR and LF": (b"/a%0d%0aX-Injected:%20y", "Http11Probe: MAL-URL-PERCENT-CRLF"),
    "an overlong UTF-8 encoding": (b"/%c0%af..%c0%af", "Http11Probe: MAL-URL-OVERLONG-UTF8"),
    "a backslash": (b"/a\\b", "Http11Probe: MAL-URL-BACKSLASH"),
    "a percent sign without digits": (b"/100%/%zz", "Go ReverseProxy: unparsable escapes"),
    "characters that should be encoded": (b"/\"<>^`{|}'", "http-desync-guardian: uri-specific-test-cases"),
    "unencoded and needlessly encoded letters": (b"/%41%7eA~", "RFC 3986 6.2.2.2"),
    "encoded UTF-8": (b"/%E2%82%AC/%e2%82%ac", "RFC 3986 2.5"),
    "a query with a semicolon": (b"/?a=1&a=2;b=3", "Go ReverseProxy: TestReverseProxyQueryParameterSmuggling"),
    "a query with a bad escape": (b"/?a=1&a=%zz&b=3", "Go ReverseProxy: TestReverseProxyQueryParameterSmuggling"),
    "a query of 40 kB": (
        b"/?" + b"a=1&" * 10000,
        "Go ReverseProxy: TestReverseProxyQueryParameterSmuggling",
    ),
    "a query with question marks": (b"/a?b?c=?&d", "RFC 3986 3.4"),
    "a query with empty and repeated names": (b"/?&&=&a&a=&=b&&", "Go ReverseProxy: TestReverseProxyQuery"),
    "a query with plus, space and slash": (b"/?q=a+b%20c%2B/d", "Go ReverseProxy: TestReverseProxyQuery"),
    "a colon in a segment": (b"/v1/models/gemini:streamGenerateContent?alt=sse", "Google APIs: custom verbs"),
    "a colon and an at sign in the first segment": (b"/:80@evil.test/", "Http11Probe: HOST-WITH-USERINFO"),
    "a URL in the path and in the query": (b"/http://evil.test/?http://x", "nginx: merge_slashes off"),
}

METHODS = [b"DELETE", b"OPTIONS", b"PATCH", b"PROPFIND", b"PURGE", b"PUT", b"QUERY", b"REPORT", b"TRACE"]

ROWS: list[Row] = [
    *(
        relayed(
            f"the request target is forwarded unchanged: {name}",
            source,
            get(target=target),
            Arrives(line=b"GET %s HTTP/1.1" % target),
        )
        for name, (target, source) in TARGETS.items()
    ),
    relayed(
        "an empty query is forwarded",
        "RFC 3986 6.2.3",
        get(target=b"/a?"),
        Arrives(line=b"GET /a? HTTP/1.1"),
        asgi=(Lost.EMPTY_QUERY, Arrives(line=b"GET /a HTTP/1.1"), None),
    ),
    *(
        relayed(
            f"method {method.decode()} is forwarded",
            "RFC 9110 9.1",
            request(method + b" /a HTTP/1.1", HOST, b"Content-Length: 4", body=b"body"),
            Arrives(line=method + b" /a HTTP/1.1", body=b"body"),
        )
        for method in METHODS
    ),
    relayed(
        "HEAD is forwarded as HEAD",
        "RFC 9110 9.3.2",
        request(b"HEAD /a HTTP/1.1", HOST),
        Arrives(line=b"HEAD /a HTTP/1.1"),
        script=reply(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
    ),
    refused("a method in lower case", "Http11Probe: RFC9110-METHOD-CASE", request(b"get / HTTP/1.1", HOST)),
    refused(
        "an unknown method",
        "Http11Probe: COMP-UNKNOWN-METHOD",
        request(b"FOOBAR / HTTP/1.1", HOST),
    ),
    refused("a very long method", "Http11Probe: MAL-LONG-METHOD", request(b"A" * 10000 + b" / HTTP/1.1", HOST)),
    refused("a method with a control character", "http-desync-guardian: severe", request(b"GE\x01T / HTTP/1.1", HOST)),
    refused("bytes before the request line", "h1spec: Invalid prefix of request", b"Extra line" + get()),
    refused("a space before the method", "RFC 9112 2.2", b" " + get()),
    relayed("empty lines before the request line are ignored", "RFC 9112 2.2", b"\r\n\r\n" + get()),
    refused(
        "two spaces after the method",
        "Http11Probe: RFC9112-3-MULTI-SP",
        request(b"GET  / HTTP/1.1", HOST),
        asgi=(Lost.STRICTNESS, Arrives(line=b"GET / HTTP/1.1")),
    ),
    refused("a tab after the method", "Http11Probe: COMP-REQUEST-LINE-TAB", request(b"GET\t/ HTTP/1.1", HOST)),
    refused("a tab before the version", "http-desync-guardian: uri-specific", request(b"GET /\tHTTP/1.1", HOST)),
    refused("a space in the target", "Http11Probe: COMP-SPACE-IN-TARGET", get(target=b"/a b")),
    refused("a space after the version", "Http11Probe: COMP-VERSION-WHITESPACE", request(b"GET / HTTP/1.1 ", HOST)),
    refused("no target", "Http11Probe: RFC9112-3-MISSING-TARGET", request(b"GET HTTP/1.1", HOST)),
    refused("a space after the target and no version", "h1spec: Request without HTTP version", b"GET / \r\n\r\n"),
    refused(
        "an HTTP/0.9 request, which has no version",
        "Http11Probe: RFC9112-2.3-HTTP09-REQUEST",
        b"GET /\r\n\r\n",
        asgi=(Lost.STRICTNESS, Arrives(line=b"GET / HTTP/1.1")),
    ),
    refused(
        "version 0.9",
        "http-desync-guardian: acceptable",
        request(b"GET / HTTP/0.9", HOST),
        asgi=(Lost.STRICTNESS, Arrives(line=b"GET / HTTP/1.1")),
    ),
    refused("version 1.2", "Http11Probe: COMP-HTTP12-VERSION", request(b"GET / HTTP/1.2", HOST)),
    refused(
        "version 2.0",
        "Http11Probe: RFC9112-2.3-INVALID-VERSION",
        request(b"GET / HTTP/2.0", HOST),
        asgi=(Lost.STRICTNESS, Arrives(line=b"GET / HTTP/1.1")),
    ),
    refused("version 9.9", "h1spec: Invalid HTTP version", request(b"GET / HTTP/9.9", HOST)),
    refused("a version in lower case", "Http11Probe: COMP-VERSION-CASE", request(b"GET / http/1.1", HOST)),
    refused(
        "a version with a leading zero", "Http11Probe: COMP-VERSION-LEADING-ZEROS", request(b"GET / HTTP/01.1", HOST)
    ),
    refused(
        "a version without a minor version number",
        "Http11Probe: COMP-VERSION-MISSING-MINOR",
        request(b"GET / HTTP/1", HOST),
    ),
    refused(
        "RTSP instead of HTTP",
        "llhttp: RTSP",
        request(b"GET / RTSP/1.0", HOST),
        asgi=(Lost.STRICTNESS, Arrives(line=b"GET / HTTP/1.1")),
    ),
    refused("the HTTP/2 preface", "Http11Probe: MAL-H2-PREFACE", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused(
        "a TLS handshake on the plain port",
        "Http11Probe: MAL-BINARY-GARBAGE",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ),
    refused(
        "a bare LF after the request line",
        "Http11Probe: RFC9112-2.2-BARE-LF-REQUEST-LINE",
        b"GET / HTTP/1.1\n" + HOST + b"\r\n\r\n",
    ),
    refused("bytes above 0x7F in the target", "Http11Probe: MAL-NON-ASCII-URL", get(target=b"/caf\xc3\xa9")),
    refused("NUL in the target", "Http11Probe: MAL-NUL-IN-URL", get(target=b"/a\x00b")),
    refused("a control character in the target", "http-desync-guardian: uri-specific", get(target=b"/a\x01b")),
    refused("a CR in the target", "http-desync-guardian: uri-specific", get(target=b"/a\rb")),
    refused("an LF in the target", "http-desync-guardian: uri-specific", get(target=b"/a\nb")),
    refused("a target without a slash", "RFC 9112 3.2", get(target=b"a/b")),
    refused("a target that is only a query", "RFC 9112 3.2.1", get(target=b"?a=b")),
    # forms of the target
    relayed(
        "OPTIONS in asterisk-form",
        "RFC 9112 3.2.4",
        request(b"OPTIONS * HTTP/1.1", HOST),
        Arrives(line=b"OPTIONS * HTTP/1.1", has=(HOST,)),
        asgi=(Lost.TARGET_FORM, None, None),
    ),
    refused(
        "GET in asterisk-form",
        "Http11Probe: COMP-ASTERISK-WITH-GET",
        request(b"GET * HTTP/1.1", HOST),
        asgi=(Lost.TARGET_FORM, Arrives(line=b"GET * HTTP/1.1")),
    ),
    relayed(
        "a target in absolute-form is forwarded in origin-form",
        "RFC 9112 3.2.2",
        request(b"GET http://example.test/a%2Fb?c=%20d HTTP/1.1", HOST),
        Arrives(line=b"GET /a%2Fb?c=%20d HTTP/1.1", has=(HOST,)),
    ),
    relayed(
        "a target in absolute-form without a path is forwarded as /",
        "RFC 9112 3.2.1",
        request(b"GET http://example.test HTTP/1.1", HOST),
        Arrives(line=b"GET / HTTP/1.1", has=(HOST,)),
        asgi=(Lost.TARGET_FORM, Arrives(count=0), Returns(status=400)),
    ),
    relayed(
        "the authority of a target in absolute-form replaces Host",
        "Http11Probe: SMUG-ABSOLUTE-URI-HOST-MISMATCH",
        request(b"GET http://other.test:81/a HTTP/1.1", HOST),
        Arrives(line=b"GET /a HTTP/1.1", has=(b"Host: other.test:81", b"X-Forwarded-Host: other.test:81")),
        asgi=(Lost.TARGET_FORM, Arrives(line=b"GET /a HTTP/1.1", has=(HOST,)), None),
    ),
    refused(
        "CONNECT",
        "Go ReverseProxy: TestReverseProxyCONNECT",
        request(b"CONNECT example.test:443 HTTP/1.1", HOST),
    ),
    refused(
        "CONNECT in origin-form",
        "Http11Probe: COMP-CONNECT-ORIGIN-FORM",
        request(b"CONNECT / HTTP/1.1", HOST),
    ),
    # Host
    refused("HTTP/1.1 without Host", "h1spec: Missing Host header", request(b"GET / HTTP/1.1", b"X: y")),
    refused("two Host lines", "h1spec: Multiple Host headers", get(b"Host: other.test")),
    refused("two equal Host lines", "Http11Probe: COMP-DUPLICATE-HOST-SAME", get(HOST)),
    refused("two Host lines in different case", "RFC 9112 3.2", get(b"hOST: example.test")),
    relayed(
        "Host is forwarded unchanged, including its port",
        "Go ReverseProxy: TestReverseProxy",
        request(b"GET / HTTP/1.1", b"Host: Some-Name:8080"),
        Arrives(has=(b"Host: Some-Name:8080",)),
    ),
    relayed(
        "a Host line in mixed case with a tab after the colon is forwarded",
        "h1spec: Valid GET request with edge cases",
        request(b"GET / HTTP/1.1", b"hoSt:\texample.test", b"empty:"),
        Arrives(has=(HOST, b"empty:")),
    ),
    relayed(
        "an IPv6 literal in Host is forwarded",
        "RFC 9110 7.2",
        request(b"GET / HTTP/1.1", b"Host: [::1]:4000"),
        Arrives(has=(b"Host: [::1]:4000",)),
    ),
    relayed(
        "a request in HTTP/1.0 without Host is forwarded",
        "Http11Probe: COMP-HTTP10-NO-HOST",
        request(b"GET / HTTP/1.0"),
        Arrives(line=b"GET / HTTP/1.1"),
    ),
    # malformed field lines
    refused("a folded field line", "Http11Probe: RFC9112-5.1-OBS-FOLD", get(b"X: a", b" b")),
    refused("a field line folded with a tab", "RFC 9112 5.2", get(b"X: a", b"\tb")),
    refused(
        "a space before the first field line",
        "Http11Probe: COMP-WHITESPACE-BEFORE-HEADERS",
        request(b"GET / HTTP/1.1", b" " + HOST),
    ),
    refused(
        "a tab before the first field line",
        "Go net/http: TestReadRequest_Bad",
        request(b"GET / HTTP/1.1", b"\t" + HOST),
    ),
    refused("a line of whitespace", "Http11Probe: MAL-WHITESPACE-ONLY-LINE", get(b"  \t ")),
    refused("a space before the colon", "Http11Probe: RFC9112-5-SP-BEFORE-COLON", get(b"X : y")),
    refused("a tab before the colon", "http-desync-guardian: ambiguous", get(b"X\t: y")),
    refused("a space within a field name", "http-desync-guardian: ambiguous", get(b"X Y: z")),
    refused("a field line without a colon", "Http11Probe: RFC9112-5-HEADER-NO-COLON", get(b"no colon")),
    refused("an empty field name", "Http11Probe: RFC9112-5-EMPTY-HEADER-NAME", get(b": y")),
    refused("brackets in a field name", "h1spec: Invalid header characters", get(b"X-Invalid[]: y")),
    refused("a byte above 0x7F in a field name", "Http11Probe: MAL-NON-ASCII-HEADER-NAME", get(b"X-\xe9: y")),
    refused("NUL in a field name", "http-desync-guardian: severe", get(b"X\x00: y")),
    refused("a control character before a field name", "http-desync-guardian: ambiguous", get(b"\x01X: y")),
    refused("NUL in a field value", "Http11Probe: MAL-NUL-IN-HEADER-VALUE", get(b"X: a\x00b")),
    refused("NUL in a cookie", "Http11Probe: COOK-NUL", get(b"Cookie: a=\x00")),
    refused(
        "a control character in a field value",
        "h1spec: Header containing invalid control character",
        get(b"X: test\x07"),
    ),
    refused("a vertical tab in a field value", "RFC 9110 5.5", get(b"X: a\x0bb")),
    refused("DEL in a field value", "RFC 9110 5.5", get(b"X: a\x7fb")),
    refused(
        "a bare CR in a field value", "Http11Probe: SMUG-BARE-CR-HEADER-VALUE", get(b"X: a\rTransfer-Encoding: chunked")
    ),
    refused(
        "a bare LF in a field value",
        "Http11Probe: RFC9112-2.2-BARE-LF-HEADER",
        get(b"X: a\nTransfer-Encoding: chunked"),
    ),
    refused("bare CRs as line ends", "Http11Probe: RFC9112-3-CR-ONLY-LINE-ENDING", b"GET / HTTP/1.1\rHost: a\r\r"),
    refused("a bare CR before a field name", "h1spec: Invalid line ending", get(b"\rSome-Header: Test")),
    refused("a head that ends in bare LFs", "RFC 9112 2.2", b"GET / HTTP/1.1\r\n" + HOST + b"\n\n"),
]


@scenario(
    ROWS,
    "a fragment in the target is forwarded unchanged",
    "Http11Probe: RFC9112-3.2-FRAGMENT-IN-TARGET",
    asgi=Instead(Lost.FRAGMENT, play(get(target=b"/a#b"), reply(OK), Arrives(line=b"GET /a HTTP/1.1"), Returns())),
)
def fragment(lab: Lab) -> None:
    assert lab.ask(get(target=b"/a?b#c")).status == 200
    assert lab.upstream.requests[0].target == b"/a?b#c"


@scenario(ROWS, "exactly one Host line is added to a request in HTTP/1.0 without Host", "RFC 9112 3.2")
def http_10_host(lab: Lab) -> None:
    assert lab.ask(request(b"GET / HTTP/1.0")).status == 200
    assert len(lab.upstream.requests[0].all(b"host")) == 1


FRAGMENTS = [
    b"G",
    b"GET /hello ",
    b"GET /hello HTTP/1.1\r",
    b"GET /hello HTTP/1.1\r\nHost: localhost\r\n",
    b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r",
]


def _waits(part: bytes) -> None:
    @scenario(ROWS, f"the gateway waits for the rest of a request head: {part!r}", "h1spec: Fragmented request")
    def waits(lab: Lab) -> None:
        whole = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with lab.connect() as client:
            client.send(part)
            # when another client has got its response, the gateway has read the part, and has sent nothing
            assert lab.ask(get()).status == 200
            assert client.ask(whole[len(part) :]).status == 200
            assert bytes(client.received).startswith(b"HTTP/1.1 200")
        assert lab.upstream.requests[-1].target == b"/hello"


for _part in FRAGMENTS:
    _waits(_part)


@scenario(ROWS, "a request that is received byte by byte is forwarded unchanged", "h1spec: Fragmented request")
def byte_by_byte(lab: Lab) -> None:
    message = post(b"body", b"X: y", target=b"/drip?q=1")
    with lab.connect() as client:
        client.send(*(message[n : n + 1] for n in range(len(message))))
        assert client.read_response().status == 200
    received = lab.upstream.requests[0]
    assert received.target == b"/drip?q=1"
    assert received.body == b"body"


@scenario(
    ROWS,
    "nothing is forwarded when the client half-closes within a request head",
    "Http11Probe: MAL-INCOMPLETE-REQUEST",
)
def incomplete(lab: Lab) -> None:
    with lab.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        client.half_close()
        assert client.closed()
    lab.assert_silent()


@scenario(
    ROWS, "the connection is closed when the client half-closes without a request", "Http11Probe: MAL-EMPTY-REQUEST"
)
def empty(lab: Lab) -> None:
    with lab.connect() as client:
        client.half_close()
        assert client.closed()
    assert lab.ask(get()).status == 200

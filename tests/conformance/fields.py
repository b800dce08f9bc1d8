"""Field lines: hop-by-hop fields, forwarding fields, Via, and all others, which are relayed as they are."""

from tests.conformance.table import (
    ADDED,
    HOST,
    Arrives,
    Instead,
    Lab,
    Lost,
    Returns,
    Row,
    answer,
    chunked,
    get,
    post,
    refused,
    relayed,
    request,
    scenario,
)
from tests.support.upstream import reply

TRUSTED = ("--trusted-proxies", "127.0.0.0/8")
HOP = (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
CREDENTIALS = (
    b"Authorization: Bearer a",
    b"x-litellm-api-key: b",
    b"API-Key: c",
    b"x-api-key: d",
    b"x-goog-api-key: e",
    b"Ocp-Apim-Subscription-Key: f",
)
CONDITIONS = (b'If-None-Match: "a", W/"b"', b"If-Modified-Since: x", b"Range: bytes=0-1,0-2", b'If-Range: "a"')

ROWS: list[Row] = [
    # to upstream
    relayed(
        "hop-by-hop fields are removed from a request",
        "Go ReverseProxy: TestReverseProxy",
        get(b"Connection: close, TE", b"TE: foo", b"TE: bar, trailers", b"Proxy-Connection: gone", b"Upgrade: foo"),
        Arrives(has=(HOST,), lacks=HOP),
    ),
    relayed(
        "request fields named in several Connection lines are removed",
        "Go ReverseProxy: TestReverseProxyStripHeadersPresentInConnection",
        get(b"Connection: Upgrade, X-Fake", b"Connection: X-Some", b"X-Some: gone", b"X-Fake: gone", b"X-Other: here"),
        Arrives(has=(b"X-Other: here",), lacks=(*HOP, b"x-some", b"x-fake")),
    ),
    relayed(
        "a request field is removed when an empty Connection line precedes the one that names it",
        "Go ReverseProxy: TestReverseProxyStripEmptyConnection",
        get(b"Connection:", b"Connection: X-Some", b"X-Some: gone"),
        Arrives(lacks=(*HOP, b"x-some")),
    ),
    relayed(
        "Connection options are case-insensitive",
        "RFC 9110 7.6.1",
        get(b"cOnNeCtIoN: x-SOME", b"X-Some: gone"),
        Arrives(lacks=(*HOP, b"x-some")),
    ),
    relayed(
        "Connection options may be surrounded by spaces, tabs and empty list elements",
        "RFC 9110 5.6.1.2",
        get(b"Connection: , \t X-Some\t ,, keep-alive ,", b"X-Some: gone"),
        Arrives(lacks=(*HOP, b"x-some")),
    ),
    relayed(
        "all lines of a field named twice in Connection are removed",
        "RFC 9110 7.6.1",
        get(b"X-Some: 1", b"Connection: X-Some, X-Some", b"X-Some: 2"),
        Arrives(lacks=(*HOP, b"x-some")),
    ),
    relayed(
        "a field named in Connection is removed when keep-alive is in an earlier Connection line",
        "RFC 9110 7.6.1",
        get(b"Connection: keep-alive", b"Connection: X-Some", b"X-Some: gone"),
        Arrives(lacks=(*HOP, b"x-some")),
    ),
    relayed(
        "a Connection option that names no field of the request is ignored",
        "RFC 9110 7.6.1",
        get(b"Connection: x-nothing, close", b"X-Other: here"),
        Arrives(has=(b"X-Other: here",), lacks=HOP),
    ),
    relayed(
        "Keep-Alive is removed although Connection does not name it",
        "RFC 9110 7.6.1",
        get(b"Keep-Alive: timeout=5, max=100"),
        Arrives(lacks=HOP),
    ),
    relayed(
        "TE is removed although Connection does not name it",
        "RFC 9110 10.1.4",
        get(b"TE: trailers;q=0.5"),
        Arrives(lacks=HOP),
    ),
    relayed(
        "Upgrade is removed although Connection does not name it",
        "RFC 9110 7.8",
        get(b"Upgrade: websocket"),
        Arrives(lacks=HOP),
    ),
    relayed(
        "Authorization is removed when Connection names it",
        "RFC 9110 7.6.1",
        get(b"Connection: Authorization", b"Authorization: Bearer gone"),
        Arrives(lacks=(b"authorization",)),
    ),
    relayed(
        "Host is forwarded although Connection names it",
        "Go ReverseProxy: Host is no header of the outgoing request",
        get(b"Connection: Host"),
        Arrives(has=(HOST,)),
    ),
    relayed(
        "content is forwarded completely although Connection names Content-Length",
        "RFC 9112 6.3",
        post(b"body", b"Connection: Content-Length"),
        Arrives(body=b"body"),
    ),
    relayed(
        "content is forwarded completely although Connection names Transfer-Encoding",
        "RFC 9112 6.3",
        chunked(b"4\r\nbody\r\n0\r\n\r\n", b"Connection: Transfer-Encoding"),
        Arrives(body=b"body"),
    ),
    relayed(
        "the gateway's X-Forwarded-* fields are forwarded although Connection names them",
        "Go ReverseProxy: hop-by-hop fields go before X-Forwarded-* is set",
        get(b"Connection: X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host", b"X-Forwarded-For: 203.0.113.9"),
        Arrives(has=(b"X-Forwarded-For: 127.0.0.1", b"X-Forwarded-Proto: http", b"X-Forwarded-Host: example.test")),
    ),
    relayed(
        "a trusted proxy's X-Forwarded-For is forwarded although Connection names it",
        "CVE-2022-31813: Apache, Connection drops X-Forwarded-*",
        get(b"Connection: X-Forwarded-For", b"X-Forwarded-For: 203.0.113.9"),
        Arrives(has=(b"X-Forwarded-For: 203.0.113.9",)),
        options=TRUSTED,
    ),
    # to the client
    relayed(
        "hop-by-hop fields are removed from a response",
        "Caddy: TestFinalizeResponse_200_StillStripsHopByHop",
        get(),
        script=reply(answer(b"Keep-Alive: timeout=999", b"Proxy-Connection: x", b"Upgrade: h2c", b"X-Other: here")),
        returns=Returns(has=(b"X-Other: here",), lacks=(b"keep-alive", b"proxy-connection", b"upgrade"), body=b"ok"),
    ),
    relayed(
        "response fields named in several Connection lines are removed",
        "Go ReverseProxy: TestReverseProxyStripHeadersPresentInConnection",
        get(),
        script=reply(answer(b"Connection: Upgrade, X-Fake", b"Connection: X-Some", b"X-Some: gone", b"X-Fake: gone")),
        returns=Returns(lacks=(b"x-some", b"x-fake"), body=b"ok"),
    ),
    relayed(
        "a response field is removed when an empty Connection line precedes the one that names it",
        "Go ReverseProxy: TestReverseProxyStripEmptyConnection",
        get(),
        script=reply(answer(b"Connection:", b"Connection: X-Some", b"X-Some: gone")),
        returns=Returns(lacks=(b"x-some",), body=b"ok"),
    ),
    relayed(
        "Content-Length of a response is relayed although Connection names it",
        "RFC 9112 6.3",
        get(),
        script=reply(answer(b"Connection: Content-Length")),
        returns=Returns(has=(b"Content-Length: 2",), body=b"ok"),
    ),
    relayed(
        "response fields whose names resemble framing fields are relayed",
        "Go ReverseProxy: TestReverseProxy (Trailers is no special field)",
        get(),
        script=reply(answer(b"Trailers: not special", b"X-Transfer-Encoding: chunked")),
        returns=Returns(has=(b"Trailers: not special", b"X-Transfer-Encoding: chunked")),
    ),
    # forwarding fields
    relayed(
        "an untrusted peer's X-Forwarded-For is replaced by its address",
        "Caddy: addForwardedHeaders, peer not trusted",
        get(b"X-Forwarded-For: 203.0.113.9"),
        Arrives(has=(b"X-Forwarded-For: 127.0.0.1",)),
    ),
    relayed(
        "all lines of an untrusted peer's X-Forwarded-For are replaced by one",
        "Caddy: addForwardedHeaders, peer not trusted",
        get(b"X-Forwarded-For: 203.0.113.9", b"x-FORWARDED-for: 203.0.113.10, 127.0.0.1"),
        Arrives(has=(b"X-Forwarded-For: 127.0.0.1",)),
    ),
    relayed(
        "an untrusted peer's X-Forwarded-Proto and X-Forwarded-Host are replaced",
        "Caddy: addForwardedHeaders, peer not trusted",
        get(b"X-Forwarded-Proto: https", b"X-Forwarded-Host: evil.test"),
        Arrives(has=(b"X-Forwarded-Proto: http", b"X-Forwarded-Host: example.test")),
    ),
    relayed(
        "every other X-Forwarded-* field of an untrusted peer is removed",
        "Traefik: X-Forwarded-* of untrusted peers",
        get(b"X-Forwarded-Port: 1", b"X-Forwarded-Prefix: /x", b"X-Forwarded-Ssl: on", b"X-Forwarded-: odd"),
        Arrives(lacks=(b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-ssl", b"x-forwarded-")),
    ),
    relayed(
        "an untrusted peer's Forwarded and X-Real-IP are removed",
        "Go ReverseProxy: TestReverseProxyRewriteStripsForwarded",
        get(b"Forwarded: for=203.0.113.9", b"X-Real-IP: 203.0.113.9"),
        Arrives(lacks=(b"forwarded", b"x-real-ip")),
    ),
    relayed(
        "X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host are added to a request without them",
        "Go ReverseProxy: TestXForwardedFor",
        get(),
        Arrives(has=(b"X-Forwarded-For: 127.0.0.1", b"X-Forwarded-Proto: http", b"X-Forwarded-Host: example.test")),
    ),
    relayed(
        "a trusted proxy's forwarding fields are forwarded unchanged, and nothing is appended",
        "Caddy: TestAddForwardedHeaders_UnixSocketTrusted",
        get(
            b"X-Forwarded-For: 203.0.113.9, 10.0.0.1",
            b"X-Forwarded-For: 10.0.0.2",
            b"X-Forwarded-Proto: https",
            b"X-Forwarded-Host: original.test",
            b"X-Forwarded-Port: 8443",
            b"X-Real-IP: 203.0.113.9",
            b"Forwarded: for=203.0.113.9",
        ),
        Arrives(
            has=(
                b"X-Forwarded-For: 203.0.113.9, 10.0.0.1",
                b"X-Forwarded-For: 10.0.0.2",
                b"X-Forwarded-Proto: https",
                b"X-Forwarded-Host: original.test",
                b"X-Forwarded-Port: 8443",
                b"X-Real-IP: 203.0.113.9",
                b"Forwarded: for=203.0.113.9",
            )
        ),
        options=TRUSTED,
    ),
    relayed(
        "X-Forwarded-Proto and X-Forwarded-Host are added when a trusted proxy has not sent them",
        "Caddy: TestAddForwardedHeaders_UnixSocketTrustedNoExistingHeaders",
        get(b"X-Forwarded-For: 203.0.113.9"),
        Arrives(has=(b"X-Forwarded-For: 203.0.113.9", b"X-Forwarded-Proto: http", b"X-Forwarded-Host: example.test")),
        options=TRUSTED,
    ),
    relayed(
        "fields whose names resemble X-Forwarded-For are forwarded",
        "nginx: underscores_in_headers",
        get(b"XForwarded-For: 1", b"X-Forward: 2"),
        Arrives(has=(b"XForwarded-For: 1", b"X-Forward: 2")),
    ),
    # everything else
    relayed(
        "repeated field lines are forwarded as separate lines, in order",
        "RFC 9110 5.3",
        get(b"X-Multi: foo", b"X-Other: x", b"X-Multi: bar", b"X-Multi: foo"),
        Arrives(has=(b"X-Multi: foo", b"X-Multi: bar", b"X-Multi: foo", b"X-Other: x")),
    ),
    relayed(
        "several Cookie lines are not joined",
        "Http11Probe: COOK-MULTI-HEADER",
        get(b"Cookie: a=1", b"Cookie: b=2; c=3"),
        Arrives(has=(b"Cookie: a=1", b"Cookie: b=2; c=3")),
    ),
    relayed(
        "malformed cookies are forwarded unchanged",
        "Http11Probe: COOK-MALFORMED",
        get(b'Cookie: =; ;;a==1;"q; b'),
        Arrives(has=(b'Cookie: =; ;;a==1;"q; b',)),
    ),
    relayed(
        "several Set-Cookie lines are not joined",
        "Go ReverseProxy: TestReverseProxy",
        get(),
        script=reply(answer(b"Set-Cookie: a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT", b"X: y", b"Set-Cookie: a=2")),
        returns=Returns(has=(b"Set-Cookie: a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT", b"Set-Cookie: a=2")),
    ),
    relayed(
        "several WWW-Authenticate lines are not joined",
        "RFC 9110 11.6.1",
        get(),
        script=reply(
            answer(b'WWW-Authenticate: Basic realm="a"', b"WWW-Authenticate: Bearer", status=b"401 Unauthorized")
        ),
        returns=Returns(status=401, has=(b'WWW-Authenticate: Basic realm="a"', b"WWW-Authenticate: Bearer")),
    ),
    relayed(
        "empty field values are relayed in both directions",
        "h1spec: Empty header value",
        get(b"X-Empty:", b"X-Blank: \t "),
        Arrives(has=(b"X-Empty:", b"X-Blank:")),
        script=reply(answer(b"X-None:")),
        returns=Returns(has=(b"X-None:",)),
    ),
    relayed(
        "bytes above 0x7F in field values are relayed in both directions",
        "RFC 9110 5.5 (obs-text)",
        get(b"X-High: caf\xe9 \xff\x80"),
        Arrives(has=(b"X-High: caf\xe9 \xff\x80",)),
        script=reply(answer(b"X-High: \xe2\x82\xac \xff")),
        returns=Returns(has=(b"X-High: \xe2\x82\xac \xff",)),
    ),
    relayed(
        "whitespace around a field value is removed, and whitespace within it is preserved",
        "RFC 9110 5.5",
        get(b"X-Space: \t a \t b \t"),
        Arrives(has=(b"X-Space: a \t b",)),
    ),
    relayed(
        "a field line without a space after the colon is forwarded",
        "RFC 9112 5.1",
        get(b"X-Tight:value:with:colons"),
        Arrives(has=(b"X-Tight: value:with:colons",)),
    ),
    relayed(
        "a field name may contain every token character",
        "RFC 9110 5.6.2",
        get(b"!#$%&'*+-.^_`|~09azAZ: y"),
        Arrives(has=(b"!#$%&'*+-.^_`|~09azAZ: y",)),
    ),
    relayed(
        "User-Agent is not added to a request",
        "Go ReverseProxy: TestUserAgentHeader",
        get(),
        Arrives(lacks=(b"user-agent",)),
    ),
    relayed(
        "an empty User-Agent stays empty",
        "Go ReverseProxy: TestUserAgentHeader",
        get(b"User-Agent:"),
        Arrives(has=(b"User-Agent:",)),
    ),
    relayed(
        "Accept, Accept-Encoding, Content-Type and Content-Length are not added to a request",
        "Caddy: reverse_proxy sends no Accept-Encoding of its own",
        get(),
        Arrives(lacks=(b"accept", b"accept-encoding", b"content-type", b"content-length", b"transfer-encoding")),
    ),
    relayed(
        "every field that carries credentials is forwarded",
        "LiteLLM: order of its authentication headers",
        get(*CREDENTIALS),
        Arrives(has=CREDENTIALS),
    ),
    relayed(
        "Proxy-Authorization is forwarded",
        "RFC 9110 11.7.2",
        get(b"Proxy-Authorization: Basic eDp5"),
        Arrives(has=(b"Proxy-Authorization: Basic eDp5",)),
    ),
    relayed(
        "conditional and range fields are forwarded",
        "RFC 9110 13, 14",
        get(*CONDITIONS),
        Arrives(has=CONDITIONS),
    ),
    relayed(
        "encoded content and its Content-Encoding are relayed unchanged",
        "RFC 9110 7.7",
        get(b"Accept-Encoding: gzip"),
        script=reply(answer(b"Content-Encoding: gzip", b'ETag: "a"', body=b"\x1f\x8b\x08 not even gzip")),
        returns=Returns(has=(b"Content-Encoding: gzip", b'ETag: "a"'), body=b"\x1f\x8b\x08 not even gzip"),
    ),
    relayed(
        "Date and Server of a response are relayed, and no others are added",
        "RFC 9110 6.6.1",
        get(),
        script=reply(answer(b"Date: Tue, 15 Nov 1994 08:12:31 GMT", b"Server: uvicorn")),
        returns=Returns(has=(b"Date: Tue, 15 Nov 1994 08:12:31 GMT", b"Server: uvicorn")),
    ),
    relayed(
        "Date, Server, Via and X-LiteLLM-Sanitizer are not added to a response",
        "nginx: proxy_pass_header",
        get(),
        returns=Returns(lacks=(b"date", b"server", b"via", b"x-litellm-sanitizer")),
    ),
    relayed(
        "a redirect is relayed with its Location unchanged, and is not followed",
        "Caddy: reverse_proxy does not follow redirects",
        get(),
        script=reply(answer(b"Location: http://example.test/else?a=%2F", status=b"307 Temporary Redirect")),
        returns=Returns(status=307, has=(b"Location: http://example.test/else?a=%2F",)),
    ),
    relayed(
        "Alt-Svc and Strict-Transport-Security are relayed",
        "RFC 7838 3",
        get(),
        script=reply(answer(b'Alt-Svc: h2=":443"', b"Strict-Transport-Security: max-age=1")),
        returns=Returns(has=(b'Alt-Svc: h2=":443"', b"Strict-Transport-Security: max-age=1")),
    ),
    relayed(
        "two hundred field lines are forwarded",
        "Http11Probe: MAL-MANY-HEADERS",
        get(*(b"X-%d: %d" % (n, n) for n in range(200))),
        Arrives(has=tuple(b"X-%d: %d" % (n, n) for n in range(200))),
    ),
    relayed(
        "a cookie of 32 KiB is forwarded",
        "Http11Probe: COOK-OVERSIZED",
        get(b"Cookie: a=" + b"x" * 32768),
        Arrives(has=(b"Cookie: a=" + b"x" * 32768,)),
    ),
    relayed(
        "a request head just under 64 KiB is forwarded",
        "RFC 6585 5",
        get(b"X: " + b"x" * (65536 - 60)),
        Arrives(has=(b"X: " + b"x" * (65536 - 60),)),
    ),
    refused(
        "a request head over 64 KiB is refused with 431",
        "RFC 6585 5",
        get(b"X: " + b"x" * 65536),
        431,
        asgi=(Lost.HEAD_LIMIT, Arrives(has=(b"X: " + b"x" * 65536,))),
    ),
    refused(
        "a request head over 64 KiB in many small field lines is refused with 431",
        "Http11Probe: MAL-MANY-HEADERS",
        get(*(b"X-%d: y" % n for n in range(8000))),
        431,
        asgi=(Lost.HEAD_LIMIT, Arrives()),
    ),
    refused(
        "a target over 64 KiB is refused with 431",
        "Http11Probe: MAL-LONG-URL",
        get(target=b"/" + b"x" * 70000),
        431,
        asgi=(Lost.HEAD_LIMIT, 400),  # httptools 0.6 has no such limit: the status is 200
    ),
    refused(
        "a field name over 64 KiB is refused with 431",
        "Http11Probe: MAL-LONG-HEADER-NAME",
        get(b"x" * 70000 + b": y"),
        431,
        asgi=(Lost.HEAD_LIMIT, Arrives(has=(b"x" * 70000 + b": y",))),
    ),
    relayed(
        "a response head of 60 KiB is relayed",
        "nginx: proxy_buffer_size",
        get(),
        script=reply(answer(b"X: " + b"x" * 60000)),
        returns=Returns(has=(b"X: " + b"x" * 60000,)),
    ),
    # Via
    relayed(
        "a request with eight gateways in Via is forwarded",
        "Caddy: loop detection by Via",
        get(*(b"Via: 1.1 litellm-sanitizer-%d" % n for n in range(8))),
    ),
    relayed(
        "a request with other proxies in Via is forwarded",
        "RFC 9110 7.6.3",
        get(b"Via: 1.0 fred, 1.1 p.example.net (Apache/1.1)", b"Via: 1.1 nginx"),
    ),
]

CASE_REQUEST = get(b"X-MiXeD: y", b"x-lower: y", b"X-UPPER: y")


@scenario(
    ROWS,
    "the case and order of request field names are preserved",
    "Envoy: preserve_case",
    asgi=Instead(
        Lost.NAME_CASE,
        lambda lab: _names(lab, [b"host", b"x-mixed", b"x-lower", b"x-upper"]),
    ),
)
def name_case(lab: Lab) -> None:
    _names(lab, [b"Host", b"X-MiXeD", b"x-lower", b"X-UPPER"])


def _names(lab: Lab, names: list[bytes]) -> None:
    assert lab.ask(CASE_REQUEST).status == 200
    received = lab.upstream.requests[0].names
    assert [name for name in received if name.lower() not in ADDED] == names


@scenario(ROWS, "the order of field lines is preserved when lines of two names alternate", "RFC 9110 5.3")
def order(lab: Lab) -> None:
    lines = [b"x-b: 1", b"x-a: 2", b"x-b: 3", b"accept: */*", b"x-a: 4", b"cookie: z"]
    lab.ask(get(*lines))
    fields = [(n.lower(), v) for n, v in lab.upstream.requests[0].fields if n.lower() not in (*ADDED, b"host")]
    assert [b"%s: %s" % line for line in fields] == lines


@scenario(
    ROWS,
    "the case and order of response field names are preserved",
    "Envoy: preserve_case",
    asgi=Instead(Lost.NAME_CASE, lambda lab: _answered_names(lab, [b"x-lower", b"x-mixed", b"x-lower", b"etag"])),
)
def response_case(lab: Lab) -> None:
    _answered_names(lab, [b"x-lower", b"X-MiXeD", b"x-lower", b"ETAG"])


def _answered_names(lab: Lab, expected: list[bytes]) -> None:
    lab.upstream.script = reply(answer(b"x-lower: 1", b"X-MiXeD: 2", b"x-lower: 3", b"ETAG: 4"))
    with lab.connect() as client:
        names = [name for name in client.ask(get()).names if name.lower() != b"content-length"]
    assert names == expected


def _own_via(lab: Lab) -> bytes:
    """The gateway's element in Via, as upstream received it."""
    lab.ask(get())
    return lab.upstream.requests[-1].all(b"via")[-1]


@scenario(ROWS, "Via is added after the Via lines of the request", "RFC 9110 7.6.3")
def via(lab: Lab) -> None:
    lab.ask(get(b"Via: 1.1 first", b"Via: 1.1 second, 1.1 third"))
    first, second, ours = lab.upstream.requests[0].all(b"via")
    assert (first, second) == (b"1.1 first", b"1.1 second, 1.1 third")
    assert ours.startswith(b"1.1 litellm-sanitizer-")


@scenario(ROWS, "the Via element for a request in HTTP/1.0 has version 1.0", "RFC 9110 7.6.3")
def via_http_10(lab: Lab) -> None:
    with lab.connect() as client:
        client.ask(request(b"GET / HTTP/1.0", HOST))
    assert lab.upstream.requests[0].all(b"via")[-1].startswith(b"1.0 litellm-sanitizer-")


@scenario(ROWS, "a request with this gateway in Via is refused with 508", "RFC 9110 7.6.3, RFC 5842 7.2")
def loop(lab: Lab) -> None:
    ours = _own_via(lab)
    response = lab.ask(get(b"Via: 1.1 other, " + ours + b", 1.1 another"))
    assert response.status == 508
    assert b'"error"' in response.body
    assert len(lab.upstream.requests) == 1


@scenario(ROWS, "a loop is detected although Connection names Via", "RFC 9110 7.6.1")
def hidden_loop(lab: Lab) -> None:
    ours = _own_via(lab)
    assert lab.ask(get(b"Connection: Via", b"Via: " + ours)).status == 508
    lab.ask(get(b"Connection: Via", b"Via: 1.1 other"))
    assert lab.upstream.requests[-1].all(b"via") == [b"1.1 other", ours]


@scenario(ROWS, "a request with the gateway's pseudonym in fields other than Via is forwarded", "RFC 9110 7.6.3")
def pseudonym_elsewhere(lab: Lab) -> None:
    ours = _own_via(lab)
    assert lab.ask(get(b"X-Via: " + ours, b"Cookie: v=" + ours)).status == 200


@scenario(ROWS, "a request with nine gateways in Via is refused with 508", "Caddy: loop detection by Via")
def nine_gateways(lab: Lab) -> None:
    line = b"Via: " + b", ".join(b"1.1 litellm-sanitizer-%d" % n for n in range(9))
    assert lab.ask(get(line)).status == 508
    lab.assert_silent()


@scenario(ROWS, "Via of a response is relayed, and none is added", "RFC 9110 7.6.3 (a gateway MAY on responses)")
def via_response(lab: Lab) -> None:
    lab.upstream.script = reply(answer(b"Via: 1.1 far"))
    assert lab.ask(get()).all(b"via") == [b"1.1 far"]


@scenario(ROWS, "the upstream connection is reused after a request with Connection: close", "RFC 9112 9.3")
def close_is_per_hop(lab: Lab) -> None:
    with lab.connect() as client:
        assert client.ask(get(b"Connection: close")).status == 200
        assert client.closed()
    assert lab.ask(get()).status == 200
    assert [each.connection for each in lab.upstream.requests] == [0, 0]


@scenario(ROWS, "the client connection is reused after an upstream response with Connection: close", "RFC 9112 9.3")
def upstream_close_is_per_hop(lab: Lab) -> None:
    lab.upstream.script = reply(answer(b"Connection: close"))
    with lab.connect() as client:
        assert client.ask(get()).all(b"connection") == []
        assert client.ask(get()).body == b"ok"
    assert [each.connection for each in lab.upstream.requests] == [0, 1]

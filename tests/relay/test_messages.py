"""Messages in the log and in responses about a wrong set-up, and the form of the gateway's own error responses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.client import Response
from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import CLOSE, OK, Connection, Upstream, refusing_port, reply

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\x00\x01\x00\x02"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32))


def refusal(gateway: Gateway) -> dict[str, Any]:
    gateway.wait_for_line("request refused")
    (record,) = (record for record in gateway.records if record["message"] == "request refused")
    return record


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        pytest.param(
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + GET + b"\r\n", ["PROXY protocol", "off"], id="PROXY v1"
        ),
        pytest.param(b"PROXY UNKNOWN\r\n" + GET + b"\r\n", ["PROXY protocol", "off"], id="PROXY v1, unknown"),
        pytest.param(V2 + GET + b"\r\n", ["PROXY protocol", "off"], id="PROXY v2"),
        pytest.param(HELLO, ["TLS", "--ssl-certfile"], id="TLS"),
        pytest.param(HELLO[:1], ["TLS", "--ssl-certfile"], id="TLS, one octet"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", ["HTTP/2", "HTTP/1.1"], id="HTTP/2"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\n", ["HTTP/2", "HTTP/1.1"], id="HTTP/2, the first half of its preface"),
        pytest.param(b"hello\r\n\r\n", ["Invalid method"], id="another protocol"),
        pytest.param(GET + b"A b: c\r\n\r\n", ["Invalid header token"], id="a faulty field line"),
        pytest.param(GET + b"Host: b\r\n\r\n", ["Host"], id="two Host lines"),
    ],
)
def test_refused(octets: bytes, words: list[str]) -> None:
    """Invalid octets are refused with 400. The log has the peer, and the error or the protocol that was recognized."""
    with Upstream() as upstream, Gateway(upstream.url) as gateway:
        with gateway.connect() as client:
            client.send(octets)
            response = client.read_response()
        assert (response.status, upstream.requests) == (400, [])
        record = refusal(gateway)
    assert record["peer"] == "127.0.0.1"
    assert record["kind"] == "bad_request"
    for word in words:
        assert word in record["detail"]


def test_refused_in_pieces() -> None:
    """A PROXY protocol header is recognized even if it is received in two pieces."""
    with Upstream() as upstream, Gateway(upstream.url) as gateway, gateway.connect() as client:
        client.send(b"PRO")
        client.send(b"XY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        assert client.read_response().status == 400
        assert "PROXY protocol" in refusal(gateway)["detail"]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        pytest.param(
            b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding",
            id="Content-Length before Transfer-Encoding",
        ),
        pytest.param(
            b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
            b"Content-Length",
            id="Transfer-Encoding before Content-Length",
        ),
        pytest.param(b"Content-Length: 2\r\nContent-Length: 2\r\n", b"Content-Length", id="two Content-Length lines"),
        pytest.param(b"Content-Length: two\r\n", b"Content-Length", id="a Content-Length that is not a number"),
        pytest.param(b"A b: c\r\n", b"Invalid header token", id="a faulty field line"),
    ],
)
def test_faulty_answer(gateway: Gateway, upstream: Upstream, head: bytes, words: bytes) -> None:
    """The error for a malformed HTTP/1 response names what is malformed, and does not say that it is not HTTP."""
    upstream.script = reply(b"HTTP/1.1 200 OK\r\n" + head + b"\r\nhi", CLOSE)
    response = gateway.ask(GET + b"\r\n")
    assert response.status == 502
    assert words in response.body
    assert b"not HTTP" not in response.body


def test_answer_that_is_not_http(gateway: Gateway, upstream: Upstream) -> None:
    """The error for a response in another protocol says that it is not HTTP/1."""
    upstream.script = reply(b"220 mail.test ESMTP\r\n\r\n", CLOSE)
    response = gateway.ask(GET + b"\r\n")
    assert (response.status, b"not HTTP/1" in response.body) == (502, True)


UNTRUSTED = "--trusted-proxies"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_untrusted_https(upstream: Upstream, workers: str) -> None:
    """X-Forwarded-Proto: https from an untrusted peer is replaced, and logged at most once per worker with a remedy."""
    octets = GET + b"X-Forwarded-Proto: https\r\n\r\n"
    with Gateway(upstream.url, "--workers", workers, "--shutdown-grace", "0") as gateway:
        for _ in range(3):
            with gateway.connect() as client:
                for _ in range(2):
                    assert client.ask(octets).status == 200
        gateway.wait_for_line("X-Forwarded-Proto")
        gateway.stop()
        told = [record for record in gateway.records if "X-Forwarded-Proto" in json.dumps(record)]
    assert 1 <= len(told) <= int(workers)
    for record in told:
        assert (record["level"], record["peer"]) == ("warning", "127.0.0.1")
        assert UNTRUSTED in json.dumps(record)
    assert {request.get(b"x-forwarded-proto") for request in upstream.requests} == {b"http"}


@pytest.mark.parametrize(
    ("line", "options"),
    [
        pytest.param(b"X-Forwarded-Proto: http\r\n", (), id="http over plain HTTP"),
        pytest.param(b"X-Forwarded-For: 192.0.2.1\r\n", (), id="another field"),
        pytest.param(b"X-Forwarded-Proto: https\r\n", ("--trusted-proxies", "127.0.0.1"), id="a trusted peer"),
    ],
)
def test_no_warning(upstream: Upstream, line: bytes, options: tuple[str, ...]) -> None:
    """No warning is logged for a trusted peer, or for an untrusted one that does not claim https."""
    with Gateway(upstream.url, *options) as gateway:
        assert gateway.ask(GET + line + b"\r\n").status == 200
        gateway.stop()
        assert [record for record in gateway.records if record["level"] == "warning"] == []


ORIGIN = b"Origin: https://dashboard.test\r\n"


def allowed(response: Response) -> list[bytes]:
    return response.all(b"access-control-allow-origin")


REFUSED = {
    "400": (GET + b"Host: b\r\n", 400),
    "508": (GET + b"".join(b"Via: 1.1 litellm-sanitizer-%d\r\n" % n for n in range(9)), 508),
}


@pytest.mark.parametrize(
    ("octets", "status", "kind", "connection"),
    [
        pytest.param(GET + b"Host: b\r\n\r\n", 400, "bad_request", [b"close"], id="a refusal"),
        pytest.param(REFUSED["508"][0] + b"\r\n", 508, "loop_detected", [b"close"], id="a loop"),
        pytest.param(GET + b"\r\n", 502, "broken", [], id="an upstream failure"),
    ],
)
def test_errors_are_alike(
    gateway: Gateway, upstream: Upstream, octets: bytes, status: int, kind: str, connection: list[bytes]
) -> None:
    """Both adapters send an error with the same fields and content. Only a refusal closes the client's connection."""
    upstream.script = reply(CLOSE)
    response = gateway.ask(octets)
    assert (response.status, response.all(b"connection")) == (status, connection)
    assert response.all(b"content-type") == [b"application/json"]
    error = json.loads(response.body)["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, str(status), None)
    assert error["message"].startswith("litellm-sanitizer: ")


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_can_be_read_by_a_page(gateway: Gateway, upstream: Upstream, name: str) -> None:
    """A refusal has Access-Control-Allow-Origin, as LiteLLM's responses have, if the request has an Origin."""
    head, status = REFUSED[name]
    for origin, values in ((ORIGIN, [b"*"]), (b"", [])):
        response = gateway.ask(head + origin + b"\r\n")
        assert (response.status, allowed(response)) == (status, values)


@pytest.mark.parametrize("path", [b"/", b"/key/update"])
def test_failures_can_be_read_by_a_page(gateway: Gateway, upstream: Upstream, path: bytes) -> None:
    """A 502 also has Access-Control-Allow-Origin, for intercepted and other requests, and for repeated heads."""
    upstream.script = reply(CLOSE)
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n" % path
    with gateway.connect() as client:
        for origin in (ORIGIN, ORIGIN, b"", b"", ORIGIN):
            response = client.ask(head + origin + b"\r\n{}")
            assert response.status == 502
            assert allowed(response) == ([b"*"] if origin else [])


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        pytest.param(GET + ORIGIN + b"Cookie: " + b"a" * 70_000, 431, id="a head over the limit"),
        pytest.param(GET + ORIGIN + b"A b: c\r\n\r\n", 400, id="a faulty field line"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + ORIGIN + b"\r\nx\r\n",
            400,
            id="malformed content",
        ),
    ],
)
def test_heads_that_are_not_read(upstream: Upstream, octets: bytes, status: int) -> None:
    """Refusals of oversized and malformed heads, and of malformed content, also have Access-Control-Allow-Origin."""
    with Gateway(upstream.url, "--shutdown-grace", "0") as gateway, gateway.connect() as client:
        client.send(octets)
        response = client.read_response()
    assert (response.status, allowed(response)) == (status, [b"*"])


def test_no_origin_before_it() -> None:
    """An Origin in an earlier request adds no Access-Control-Allow-Origin to the response to a later request."""
    with Upstream() as upstream, Gateway(upstream.url) as gateway, gateway.connect() as client:
        assert client.ask(GET + ORIGIN + b"\r\n").status == 200
        client.send(GET + b"A b: c\r\n\r\n")
        response = client.read_response()
        assert (response.status, allowed(response)) == (400, [])


def test_timeouts_can_be_read_by_a_page(adapter: Adapter) -> None:
    """A 504, a 503, and a 502 for an upstream that refuses connections also have Access-Control-Allow-Origin."""

    def hold(connection: Connection) -> None:
        connection.read_request()
        connection.closed()

    with refusing_port() as port, Gateway(f"http://127.0.0.1:{port}", adapter=adapter) as gateway:
        response = gateway.ask(GET + ORIGIN + b"\r\n")
        assert (response.status, allowed(response)) == (502, [b"*"])
    options = ("--response-timeout", "5", "--max-connections", "1", "--connect-timeout", "1")
    with (
        Upstream(hold) as upstream,
        Gateway(upstream.url, *options, adapter=adapter) as gateway,
        gateway.connect() as first,
    ):
        first.send(GET + ORIGIN + b"\r\n")
        upstream.wait_request()
        response = gateway.ask(GET + ORIGIN + b"\r\n")
        assert (response.status, allowed(response)) == (503, [b"*"])
        response = first.read_response()
        assert (response.status, allowed(response)) == (504, [b"*"])


def test_answers_of_upstream_pass_as_they_are(gateway: Gateway, upstream: Upstream) -> None:
    """Access-Control-Allow-Origin is not added to a response from upstream."""
    upstream.script = reply(OK)
    assert allowed(gateway.ask(GET + ORIGIN + b"\r\n")) == []

"""Which requests are intercepted, and that these are relayed as faithfully as all others.

The gateway logs how many requests it has intercepted when it stops. A field name that arrives in its original case
shows that a request and its lookup were forwarded as octets, because ASGI servers convert names to lower case.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.relay.messages import CUT, INFO, SWITCH, UPDATE
from tests.support.client import Client
from tests.support.gateway import Gateway
from tests.support.upstream import OK, Connection, Upstream, reply

MIB = 1024 * 1024
SIZE = 100 * MIB
MARK = b"X-In-This-CASE"
"""The name of a field that every request here has."""

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
EVENTS = b"".join(b"data: %d\n\n" % n for n in range(3)) + b"data: [DONE]\n\n"


def head(start: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join((start, b"Host: example.test", MARK + b": 1", *fields, b"", b""))


@dataclass
class Tally:
    """How many requests a gateway should have intercepted so far, and how many it should only have relayed."""

    gateway: Gateway
    relayed: int = 0
    intercepted: int = 0


@contextlib.contextmanager
def tallied(gateway: Gateway) -> Iterator[Tally]:
    """Run ``gateway``. At the end it is stopped, and must have counted as many requests as the tally."""
    with gateway:
        tally = Tally(gateway)
        yield tally
        assert gateway.stop() == 0
        stopped = gateway.records[-1]
        counts = {name: stopped[name] for name in ("requests", "intercepted", "refused")}
        requests = tally.relayed + tally.intercepted
        assert counts == {"requests": requests, "intercepted": tally.intercepted, "refused": 0}


def arrived(upstream: Upstream, count: int = 1) -> bool:
    """Whether upstream has received ``count`` requests, each with `MARK` in its original case."""
    return [MARK in request.names for request in upstream.requests] == [True] * count


@pytest.fixture(scope="module")
def running_upstream() -> Iterator[Upstream]:
    with Upstream(keep=False) as upstream:
        yield upstream


@pytest.fixture
def upstream(running_upstream: Upstream) -> Upstream:
    running_upstream.restart()
    return running_upstream


@pytest.fixture(scope="module")
def tally(running_upstream: Upstream) -> Iterator[Tally]:
    """A gateway for all tests without options of their own. Its counts are checked after the last test."""
    with tallied(Gateway(running_upstream.url, "--shutdown-grace", "2")) as tally:
        yield tally


@pytest.fixture
def client(tally: Tally) -> Iterator[Client]:
    with Client(tally.gateway.address, keep=False) as client:
        yield client


ORDINARY = [
    pytest.param(head(b"GET / HTTP/1.1"), OK, b"ok", id="GET"),
    pytest.param(head(b"HEAD / HTTP/1.1"), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"", id="HEAD"),
    pytest.param(head(b"POST / HTTP/1.1", b"Content-Length: 5") + b"hello", OK, b"ok", id="POST with length"),
    pytest.param(
        head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
        OK,
        b"ok",
        id="POST chunked",
    ),
    pytest.param(
        head(b"POST /v1/chat/completions HTTP/1.1", b"Content-Length: 2") + b"{}",
        SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(EVENTS), EVENTS),
        EVENTS,
        id="SSE",
    ),
    pytest.param(head(b"GET / HTTP/1.0"), OK, b"ok", id="HTTP/1.0"),
    pytest.param(head(b"GET / HTTP/1.0", b"Connection: keep-alive"), OK, b"ok", id="HTTP/1.0 with keep-alive"),
    pytest.param(head(b"GET / HTTP/1.1", b"Connection: close"), OK, b"ok", id="Connection: close"),
    pytest.param(head(b"OPTIONS * HTTP/1.1"), OK, b"ok", id="OPTIONS *"),
    pytest.param(head(b"GET http://example.test/ HTTP/1.1"), OK, b"ok", id="absolute-form"),
    pytest.param(head(b"GET /key/update HTTP/1.1"), OK, b"ok", id="GET /key/update"),
    pytest.param(
        head(b"POST /key/generate HTTP/1.1", b"Content-Length: 2") + b"{}", OK, b"ok", id="POST /key/generate"
    ),
    pytest.param(head(b"GET / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: h2c"), OK, b"ok", id="upgrade ignored"),
    pytest.param(
        head(b"GET /ws HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket"),
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
        b"no",
        id="upgrade refused",
    ),
]


@pytest.mark.parametrize(("request_", "answer", "body"), ORDINARY)
def test_ordinary_request(
    tally: Tally, upstream: Upstream, client: Client, request_: bytes, answer: bytes, body: bytes
) -> None:
    """A request other than `POST /key/update` is relayed without interception."""
    upstream.script = reply(answer)
    tally.relayed += 1
    assert client.ask(request_).body == body
    assert arrived(upstream)


def test_expect_continue(tally: Tally, upstream: Upstream, client: Client) -> None:
    """A request with Expect: 100-continue is relayed, and so is upstream's 100."""
    tally.relayed += 1
    client.send(head(b"POST / HTTP/1.1", b"Content-Length: 5", b"Expect: 100-continue"))
    assert client.read_head().status == 100
    client.send(b"hello")
    assert client.read_response().body == b"ok"
    assert arrived(upstream)
    assert upstream.requests[0].body == b"hello"


def test_download_of_100_mib(tally: Tally, upstream: Upstream, client: Client) -> None:
    """A response with 100 MiB of content is relayed."""
    upstream.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE, *[bytes(MIB)] * (SIZE // MIB))
    tally.relayed += 1
    client.send(head(b"GET / HTTP/1.1"))
    assert client.read_head().status == 200
    got = 0
    while got < SIZE and (data := client.recv(MIB)):
        got += len(data)
    assert got == SIZE
    assert arrived(upstream)


@pytest.mark.parametrize("framing", [b"Content-Length: %d" % SIZE, b"Transfer-Encoding: chunked"])
def test_upload_of_100_mib(tally: Tally, upstream: Upstream, client: Client, framing: bytes) -> None:
    """A request with 100 MiB of content is forwarded, with Content-Length or chunked."""
    received = []

    def script(connection: Connection) -> None:
        request = connection.read_head()
        got = 0
        if size := int(request.get(b"content-length") or 0):
            while got < size and (data := connection.recv(MIB)):
                got += len(data)
        else:
            while size := int(connection.read_until(b"\r\n"), 16):
                got += len(connection.read_exactly(size))
                connection.read_exactly(2)
            connection.read_exactly(2)
        received.append(got)
        connection.send(OK)

    upstream.script = script
    tally.relayed += 1
    piece = b"%x\r\n%b\r\n" % (MIB, bytes(MIB)) if framing.startswith(b"T") else bytes(MIB)
    client.send(head(b"POST / HTTP/1.1", framing), *[piece] * (SIZE // MIB))
    if framing.startswith(b"T"):
        client.send(b"0\r\n\r\n")
    assert client.read_response().body == b"ok"
    assert received == [SIZE]
    assert arrived(upstream)


def test_tunnel(tally: Tally, upstream: Upstream, client: Client) -> None:
    """An upgrade is relayed, and so are the octets of the tunnel that it opens."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(SWITCH)
        while data := connection.recv():
            connection.send(data.upper())

    upstream.script = script
    tally.relayed += 1
    client.send(head(b"GET /v1/realtime HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket"))
    assert client.read_response().status == 101
    client.send(b"hello")
    assert client.read_exactly(5) == b"HELLO"
    client.half_close()
    assert client.read_to_end() == b""
    assert arrived(upstream)


def test_pipelined(tally: Tally, upstream: Upstream, client: Client) -> None:
    """Pipelined requests are relayed."""
    tally.relayed += 3
    client.send(head(b"GET /1 HTTP/1.1") * 3)
    assert [client.read_response().status for _ in range(3)] == [200] * 3
    assert arrived(upstream, 3)


LENGTH = b"Content-Length: %d" % len(UPDATE)
INTERCEPTED = [
    pytest.param(head(b"POST /key/update HTTP/1.1", LENGTH) + UPDATE, id="plain"),
    pytest.param(head(b"POST /key/%75pdate HTTP/1.1", LENGTH) + UPDATE, id="percent-encoded"),
    pytest.param(head(b"POST /%6B%65%79/update?x=1 HTTP/1.1", LENGTH) + UPDATE, id="percent-encoded, with a query"),
    pytest.param(
        head(b"POST /key/update HTTP/1.1", LENGTH, b"Connection: Upgrade", b"Upgrade: websocket") + UPDATE,
        id="with Upgrade",
    ),
    pytest.param(
        head(b"POST /key/update HTTP/1.1", LENGTH, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c") + UPDATE,
        id="with an upgrade to h2c",
    ),
    pytest.param(
        head(b"POST /key/update HTTP/1.1", b"Transfer-Encoding: chunked")
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(UPDATE), UPDATE),
        id="chunked",
    ),
    pytest.param(head(b"POST http://example.test/key/update HTTP/1.1", LENGTH) + UPDATE, id="absolute-form"),
    pytest.param(head(b"POST /key/update HTTP/1.0", LENGTH) + UPDATE, id="HTTP/1.0"),
]


def keys(connection: Connection) -> None:
    """Respond as LiteLLM does to a lookup and to an update."""
    request = connection.read_request()
    if b"/key/info" in request.target:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(INFO), INFO))
    else:
        connection.send(OK)


@pytest.mark.parametrize("request_", INTERCEPTED)
def test_key_update(tally: Tally, upstream: Upstream, client: Client, request_: bytes) -> None:
    """`POST /key/update` is intercepted however it is written, and its unchanged member is cut."""
    upstream.script = keys
    tally.intercepted += 1
    response = client.ask(request_)
    assert response.all(b"x-litellm-sanitizer") == [b'dropped; fields="allowed_routes"']
    lookup, update = upstream.requests
    assert (lookup.method, update.method) == (b"GET", b"POST")
    assert json.loads(update.body) == json.loads(CUT)
    assert arrived(upstream, 2)


def test_key_update_between(tally: Tally, upstream: Upstream, client: Client) -> None:
    """Of three pipelined requests, only `POST /key/update` is intercepted, and the responses keep their order."""
    upstream.script = keys
    tally.relayed += 2
    tally.intercepted += 1
    client.send(
        head(b"GET /1 HTTP/1.1") + head(b"POST /key/update HTTP/1.1", LENGTH) + UPDATE + head(b"GET /2 HTTP/1.1")
    )
    answers = [client.read_response() for _ in range(3)]
    assert [each.status for each in answers] == [200] * 3
    assert [bool(each.all(b"x-litellm-sanitizer")) for each in answers] == [False, True, False]
    assert arrived(upstream, 4)


def test_root_path() -> None:
    """With --root-path, `POST /key/update` is intercepted with and without the prefix, and no other request is."""
    with Upstream(keys) as upstream, tallied(Gateway(upstream.url, "--root-path", "/llm")) as tally:
        for path in (b"/llm/key/update", b"/key/update", b"/llm/%6bey/update"):
            tally.intercepted += 1
            response = tally.gateway.ask(head(b"POST %b HTTP/1.1" % path, LENGTH) + UPDATE)
            assert response.all(b"x-litellm-sanitizer") == [b'dropped; fields="allowed_routes"'], path
        for path in (b"/other/key/update", b"/llm/key/generate"):
            tally.relayed += 1
            assert tally.gateway.ask(head(b"POST %b HTTP/1.1" % path, LENGTH) + UPDATE).status == 200
        assert arrived(upstream, 8)


def test_tls_on_both_sides(tmp_path: Path) -> None:
    """Requests are relayed and intercepted with a TLS listener and an https upstream."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain, key, trusted = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(trusted)
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(inside)
    outside = ssl.create_default_context()
    authority.configure_trust(outside)
    options = ("--ssl-certfile", str(chain), "--ssl-keyfile", str(key), "--upstream-ca", str(trusted))
    with (
        Upstream(keys, context=inside) as upstream,
        tallied(Gateway(f"https://localhost:{upstream.port}", *options)) as tally,
        Client(tally.gateway.address, context=outside) as client,
    ):
        play_both(tally, upstream, client)


def test_unix_sockets_on_both_sides() -> None:
    """Requests are relayed and intercepted with Unix sockets on both sides."""
    with tempfile.TemporaryDirectory() as folder:  # the paths of pytest's own folders are too long for a socket
        listen = ("--uds", str(Path(folder, "gateway")))
        with (
            Upstream(keys, uds=str(Path(folder, "upstream"))) as upstream,
            tallied(Gateway(upstream.url, listen=listen)) as tally,
            Client(tally.gateway.address) as client,
        ):
            play_both(tally, upstream, client)


def play_both(tally: Tally, upstream: Upstream, client: Client) -> None:
    """Make a GET, an upload and a `POST /key/update` on one connection."""
    tally.relayed += 2
    assert client.ask(head(b"GET / HTTP/1.1")).status == 200
    body = bytes(MIB)
    assert client.ask(head(b"POST / HTTP/1.1", b"Content-Length: %d" % MIB), body).status == 200
    tally.intercepted += 1
    assert client.ask(head(b"POST /key/update HTTP/1.1", LENGTH) + UPDATE).all(b"x-litellm-sanitizer")
    assert arrived(upstream, 4)
    assert upstream.requests[1].body == body

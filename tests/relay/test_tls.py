"""TLS and unix sockets, on either side."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from tests.support.client import Client
from tests.support.gateway import Gateway
from tests.support.upstream import CLOSE, Connection, Upstream, perform, reply
from tests.support.wire import Cut, Wire

GET = b"GET /a%2Fb HTTP/1.1\r\nHost: example.test\r\n\r\n"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def authority_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("localhost", "127.0.0.1")


@pytest.fixture
def names() -> list[str | None]:
    """The server names (SNI) that upstream has received."""
    return []


@pytest.fixture
def upstream(certificate: trustme.LeafCert, names: list[str | None]) -> Iterator[Upstream]:
    """An upstream with TLS, whose certificate is for localhost and 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    with Upstream(context=context) as upstream:
        yield upstream


@pytest.fixture
def sockets() -> Iterator[Callable[[str], str]]:
    """Paths for unix sockets, short enough to be bound."""
    with tempfile.TemporaryDirectory() as folder:
        yield lambda name: str(Path(folder, name))


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_upstream_is_verified(upstream: Upstream, names: list[str | None], authority_file: str) -> None:
    """The gateway names an https upstream in the handshake (SNI), and trusts the CA given with ``--upstream-ca``."""
    url = f"https://localhost:{upstream.port}"
    with Gateway(url, "--upstream-ca", authority_file) as gateway, gateway.connect() as client:
        for _ in range(2):
            assert client.ask(GET).body == b"ok"
    assert [each.target for each in upstream.requests] == [b"/a%2Fb"] * 2
    assert names == ["localhost"], "not one connection, with the server's name in its handshake"


def test_upstream_by_address(upstream: Upstream, names: list[str | None], authority_file: str) -> None:
    """An https upstream may be given by its IP address if its certificate contains that address."""
    with Gateway(f"https://127.0.0.1:{upstream.port}", "--upstream-ca", authority_file) as gateway:
        assert gateway.ask(GET).status == 200


def test_untrusted_upstream(upstream: Upstream) -> None:
    """An https upstream with an unknown CA gets no request. The client gets 502, and one log line says why."""
    with Gateway(f"https://localhost:{upstream.port}") as gateway, gateway.connect() as client:
        for _ in range(3):
            response = client.ask(GET)
            assert response.status == 502
            assert b"localhost" not in response.body
        gateway.wait_for_line("(?i)certificate")
        lines = [line for line in gateway.lines if "certificate" in line.lower()]
    assert len(lines) == 1, lines
    assert upstream.requests == []


def test_upstream_of_another_name(authority: trustme.CA, authority_file: str) -> None:
    """A certificate for another name is not accepted, even if its CA is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.test").configure_cert(context)
    with (
        Upstream(context=context) as upstream,
        Gateway(f"https://localhost:{upstream.port}", "--upstream-ca", authority_file) as gateway,
    ):
        assert gateway.ask(GET).status == 502
        assert upstream.requests == []


def reply_to_hello(connection: Connection) -> None:
    connection.recv()
    perform(connection, b"HTTP/1.1 400 Bad Request\r\n\r\n", CLOSE)


def test_plain_upstream_behind_https(authority_file: str) -> None:
    """The client gets 502 if an https upstream does not speak TLS."""
    with Upstream(reply_to_hello) as upstream:
        with Gateway(f"https://localhost:{upstream.port}", "--upstream-ca", authority_file) as gateway:
            assert gateway.ask(GET).status == 502
        assert upstream.requests == []


def test_an_answer_that_a_fin_ends(upstream: Upstream, authority_file: str) -> None:
    """A response that a FIN ends without close_notify is relayed as complete, counted, and logged the first time."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nok")
        os.close(connection.sock.detach())
        raise Cut(b"", reset=False)

    upstream.script = script
    with Gateway(f"https://localhost:{upstream.port}", "--upstream-ca", authority_file, admin=True) as gateway:
        for _ in range(2):
            response = gateway.ask(GET)
            assert (response.body, response.complete) == (b"ok", True)
        until = time.monotonic() + 10
        while b"\nsanitizer_upstream_unannounced_ends_total 2.0\n" not in (
            metrics := gateway.ask_admin("/metrics").body
        ):
            assert time.monotonic() < until, metrics
            time.sleep(0.05)
        assert b'sanitizer_upstream_errors_total{kind="broken"} 0.0' in metrics
    assert sum("close_notify" in line for line in gateway.lines) == 1


@pytest.fixture
def listener_options(certificate: trustme.LeafCert, tmp_path: Path) -> tuple[str, ...]:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    return "--ssl-certfile", str(chain), "--ssl-keyfile", str(key)


def test_orderly_end_of_a_tunnel(upstream: Upstream, authority_file: str) -> None:
    """A tunnel that an https upstream ends with close_notify is not counted as an upstream error."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nbye")
        assert isinstance(connection.sock, ssl.SSLSocket)
        with contextlib.suppress(OSError):
            connection.sock.unwrap()
        connection.close()

    upstream.script = script
    with Gateway(upstream.url, "--upstream-ca", authority_file) as gateway:
        with gateway.connect() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            assert client.read_head().status == 101
            assert client.read_to_end() == b"bye"
        assert gateway.stop() == 0
        assert "upstream_errors" not in gateway.records[-1]


def test_tls_listener(authority: trustme.CA, listener_options: tuple[str, ...]) -> None:
    """With a certificate, the public listener speaks TLS, and X-Forwarded-Proto is https."""
    context = client_context(authority)
    with Upstream() as upstream, Gateway(upstream.url, *listener_options) as gateway:
        assert gateway.url.startswith("https://")
        context.set_alpn_protocols(["h2", "http/1.1"])
        with Client(gateway.address, context=context) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.selected_alpn_protocol() == "http/1.1"
            for body in (b"", b"x" * 1_000_000):
                head = b"POST / HTTP/1.1\r\nHost: example.test\r\nContent-Length: %d\r\n\r\n" % len(body)
                assert client.ask(head, body).body == b"ok"
        assert [len(each.body) for each in upstream.requests] == [0, 1_000_000]
        assert upstream.requests[0].all(b"x-forwarded-proto") == [b"https"]


STILL_THERE = {
    "without a request": (),
    "after a request": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",),
    "after a request with Connection: close": (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",),
}


@pytest.mark.parametrize("at_work", [False, True], ids=["idle", "with a request in progress"])
@pytest.mark.parametrize("requests", STILL_THERE.values(), ids=STILL_THERE.keys())
def test_clients_that_do_not_close_do_not_hold_it_up(
    authority: trustme.CA, listener_options: tuple[str, ...], requests: tuple[bytes, ...], at_work: bool
) -> None:
    """In a drain, a TLS client gets its whole response and close_notify, and the gateway does not wait for a reply."""
    go_on = threading.Event()
    content = b"x" * 100_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    with Upstream(reply(answer)) as upstream, contextlib.ExitStack() as stack:
        gateway = stack.enter_context(Gateway(upstream.url, *listener_options, "--shutdown-grace", "3600"))
        assert not isinstance(gateway.address, str)
        plain = stack.enter_context(socket.create_connection(gateway.address))
        client = client_context(authority).wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        wire = Wire(stack.enter_context(client))
        for request in requests:
            wire.send(request)
            wire.read_until(content)
        if at_work:
            upstream.script = reply(go_on, answer)
            other = stack.enter_context(Client(gateway.address, context=client_context(authority)))
            other.send(GET)
            upstream.wait_request(len(requests) + 1)
        gateway.process.send_signal(signal.SIGINT)
        gateway.wait_for_line("stopping")
        go_on.set()
        if at_work:
            other.read_until(content)
        assert gateway.wait(20) == 0  # uvloop itself would wait for 30 s
        assert not any("aborting" in line for line in gateway.lines)
        assert client.recv(1) == b"", "an end without close_notify would raise an exception"
        if at_work:
            assert other.closed()


def test_tls_on_both_sides(
    upstream: Upstream, authority: trustme.CA, authority_file: str, listener_options: tuple[str, ...]
) -> None:
    """A large response is relayed completely if both sides use TLS."""
    body = bytes(range(256)) * 8192
    upstream.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    options = ("--upstream-ca", authority_file, *listener_options)
    with (
        Gateway(f"https://localhost:{upstream.port}", *options) as gateway,
        Client(gateway.address, context=client_context(authority)) as client,
    ):
        assert client.ask(GET).body == body


def test_tunnel_through_tls(
    certificate: trustme.LeafCert, authority: trustme.CA, authority_file: str, listener_options: tuple[str, ...]
) -> None:
    """A WebSocket is tunnelled if both sides use TLS."""

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(echo, "127.0.0.1", 0, ssl=context, max_size=None))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        url = f"https://localhost:{server.socket.getsockname()[1]}"
        gateway = stack.enter_context(Gateway(url, "--upstream-ca", authority_file, *listener_options))
        secure = gateway.url.replace("https:", "wss:")
        with connect(secure, ssl=client_context(authority), max_size=None, proxy=None) as client:
            for message in ("hello", bytes(3_000_000)):
                client.send(message)
                assert client.recv() == message


def test_unix_sockets_on_both_sides(sockets: Callable[[str], str]) -> None:
    """Client and upstream may both use unix sockets. Then upstream gets no X-Forwarded-For, not even a forged one."""
    forged = b"GET / HTTP/1.1\r\nHost: example.test\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"
    with Upstream(uds=sockets("upstream")) as upstream:
        with Gateway(upstream.url, listen=("--uds", sockets("gateway"))) as gateway:
            assert gateway.url == f"unix:{sockets('gateway')}"
            assert gateway.ask(GET).status == 200
            assert gateway.ask(forged).status == 200
        first, second = upstream.requests
        assert (first.target, first.all(b"host")) == (b"/a%2Fb", [b"example.test"])
        assert second.all(b"x-forwarded-for") == []
        assert second.all(b"x-forwarded-proto") == [b"http"]
    assert not Path(sockets("gateway")).exists(), "the socket file was not removed"


def test_trusted_unix_socket(sockets: Callable[[str], str]) -> None:
    """With ``--trusted-proxies unix``, the forwarding fields of clients on the unix socket are trusted."""
    told = b"GET / HTTP/1.1\r\nHost: example.test\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\r\n"
    listen = ("--uds", sockets("gateway"))
    with Upstream() as upstream, Gateway(upstream.url, "--trusted-proxies", "unix", listen=listen) as gateway:
        assert gateway.ask(told).status == 200
        assert upstream.requests[0].all(b"x-forwarded-for") == [b"203.0.113.9"]
        assert upstream.requests[0].all(b"x-forwarded-proto") == [b"https"]


def test_stale_unix_socket(sockets: Callable[[str], str]) -> None:
    """A socket file that a killed gateway has left behind is replaced."""
    listen = ("--uds", sockets("gateway"))
    with Upstream() as upstream:
        with Gateway(upstream.url, listen=listen) as gateway:
            gateway.kill()
        assert Path(sockets("gateway")).exists()
        with Gateway(upstream.url, listen=listen) as gateway:
            assert gateway.ask(GET).status == 200

"""Peers that stall are disconnected, and no other peers are (``--stall-timeout``).

The timeout is short here. A peer that must not be disconnected pauses for several times as long.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from sanitizer.relay.stalls import Pending, StallSweep
from tests.relay.messages import CUT, INFO, SWITCH, UPDATE
from tests.support.client import Client
from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import OK, WAIT_CLOSED, Connection, Upstream, reply
from tests.support.virtual import VirtualLoop, virtual_loop
from tests.support.wire import Cut, send_until_blocked

TIMEOUT: Final = 0.4
QUIET: Final = 4 * TIMEOUT
PATIENT: Final = ("--stall-timeout", str(2 * TIMEOUT))
"""For a slow client, which must make progress within the timeout even on an overloaded machine."""
MIB: Final = 1024 * 1024
GET: Final = b"GET /many HTTP/1.1\r\nHost: a\r\n\r\n"
REFUSED: Final = json.dumps({"error": {"message": "Only proxy admins can set `spend`", "code": "403"}}).encode()


def post(path: bytes, framing: bytes = b"Content-Length: 100", *fields: bytes) -> bytes:
    return b"\r\n".join((b"POST %b HTTP/1.1" % path, b"Host: a", framing, *fields, b"", b""))


@contextlib.contextmanager
def running(upstream: Upstream, *options: str, adapter: Adapter = "native") -> Iterator[Gateway]:
    stalls = ("--stall-timeout", str(TIMEOUT), "--shutdown-grace", "2", *options)
    with Gateway(upstream.url, *stalls, adapter=adapter, admin=adapter == "native") as gateway:
        yield gateway


def stalled(gateway: Gateway, kind: str, count: int = 1) -> None:
    """Wait until the log has a stall of this ``kind``, and the metrics have ``count`` of them."""
    gateway.wait_for_line(rf'"kind": "{kind}"')
    name = "upstream_errors" if kind.startswith("upstream") else "stalled_clients"
    wanted = f'sanitizer_{name}_total{{kind="{kind}"}} '.encode()
    deadline = time.monotonic() + 10
    while wanted + b"%.1f" % count not in gateway.ask_admin("/metrics").body.splitlines():
        assert time.monotonic() < deadline, f"{kind} is not counted"
        time.sleep(0.05)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(keep=False) as upstream:
        yield upstream


def many(connection: Connection) -> None:
    """Respond to /many with more content than all buffers hold, and to other requests with two octets."""
    request = connection.read_request()
    if request.target == b"/many":
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (100 * MIB))
        with contextlib.suppress(OSError, Cut):
            send_until_blocked(connection, 100 * MIB)
            connection.closed()
    else:
        connection.send(OK)


# Clients that do not read


@pytest.mark.parametrize("transport", ["tcp", "tls", "unix"])
def test_clients_that_never_read(upstream: Upstream, transport: str, tmp_path: Path) -> None:
    """Clients that never read are reset, which frees the connections to upstream that they use."""
    upstream.script = many
    options = ["--max-connections", "3", "--connect-timeout", "20"]
    context = None
    if transport == "tls":
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        options += ["--ssl-certfile", str(tmp_path / "pem")]
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        listen = ("--uds", f"{directory}/socket") if transport == "unix" else ("--port", "0")
        stalls = ("--stall-timeout", str(TIMEOUT), "--shutdown-grace", "0")
        gateway = stack.enter_context(Gateway(upstream.url, *stalls, *options, listen=listen, admin=True))
        clients = [stack.enter_context(Client(gateway.address, context=context, keep=False)) for _ in range(3)]
        for client in clients:
            client.send(GET)
            client.read_head()
        with Client(gateway.address, context=context) as another:
            assert another.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
        stalled(gateway, "client_not_reading", 3)
        for client in clients:
            with pytest.raises(Cut):
                client.read_exactly(100 * MIB)


def test_client_of_a_tunnel_that_never_reads(upstream: Upstream) -> None:
    """If the client of a tunnel does not read, the stall is counted, and the connection to upstream is closed."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(SWITCH)
        with contextlib.suppress(OSError):
            send_until_blocked(connection, 100 * MIB)
        connection.closed()
        ended.set()

    ended = threading.Event()
    upstream.script = script
    with running(upstream) as gateway, gateway.connect() as client:
        assert client.ask(upgrade()).status == 101
        stalled(gateway, "client_not_reading")
        assert ended.wait(30)


def upgrade() -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


# Clients that do not send


@pytest.mark.parametrize("adapter", ["native", "asgi"])
@pytest.mark.parametrize("path", [b"/", b"/key/update"])
@pytest.mark.parametrize(
    "upload",
    [
        pytest.param((b"Content-Length: 100", b'{"key": 1, "x": "'), id="length"),
        pytest.param((b"Transfer-Encoding: chunked", b"5\r\n{    \r\n"), id="chunked"),
        pytest.param((b"Content-Length: 100", b""), id="no content"),
    ],
)
def test_uploads_that_stop(upstream: Upstream, adapter: Adapter, path: bytes, upload: tuple[bytes, bytes]) -> None:
    """A client that stops sending its content receives 408 in LiteLLM's form. Upstream receives no complete request."""
    framing, content = upload
    with running(upstream, adapter=adapter) as gateway, gateway.connect() as client:
        client.send(post(path, framing) + content)
        response = client.read_response(b"POST")
        assert response.status == 408
        assert json.loads(response.body)["error"]["type"] == "client_not_sending"
        for number in range(len(upstream.connections)):
            upstream.wait_closed(number)
        assert not any(request.complete for request in upstream.requests)
        if adapter == "native":  # with ASGI, the server closes the connection after its own timeout
            assert client.closed()
            stalled(gateway, "client_not_sending")


def test_upload_that_stops_after_a_continue(upstream: Upstream) -> None:
    """A client that has received the 100 response it waits for, and does not send its content, receives 408."""

    def script(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert connection.closed()

    upstream.script = script
    with running(upstream) as gateway, gateway.connect() as client:
        client.send(post(b"/", b"Content-Length: 100", b"Expect: 100-continue"))
        assert client.read_response(b"POST").status == 408


@pytest.mark.parametrize("adapter", ["native", "asgi"])
def test_uploads_that_hold_all_bodies(upstream: Upstream, adapter: Adapter) -> None:
    """64 updates that stop one octet before their end prevent the inspection of others only until they time out."""

    def script(connection: Connection) -> None:
        connection.read_request()
        content = INFO if b"/key/info" in upstream.requests[-1].target else b"{}"
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))

    upstream.script = script
    size = MIB
    update = post(b"/key/update", b"Content-Length: %d" % len(UPDATE)) + UPDATE
    with running(upstream, "--max-body", "1MiB", adapter=adapter) as gateway, contextlib.ExitStack() as stack:
        for _ in range(64):
            client = stack.enter_context(Client(gateway.address, keep=False))
            client.send(post(b"/key/update", b"Content-Length: %d" % size) + b"x" * (size - 1))
        deadline = time.monotonic() + 20
        while not (mark := gateway.ask(update).get(b"x-litellm-sanitizer") or b"").startswith(b"dropped"):
            assert mark == b'unreadable; reason="busy"'
            assert time.monotonic() < deadline
            time.sleep(TIMEOUT / 4)
        whole = [each.body for each in upstream.requests if each.complete and each.method == b"POST"]
        assert json.loads(whole[-1]) == json.loads(CUT)


# Upstream does not read


@contextlib.contextmanager
def never_reading(answer: bytes = b"") -> Iterator[Upstream]:
    """An upstream that reads a request's head, sends ``answer``, and reads nothing more."""
    ended = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_head()
        if answer:
            connection.send(answer)
        ended.wait(30)

    with Upstream(script, keep=False, receive_buffer=4096) as upstream:
        try:
            yield upstream
        finally:
            ended.set()


@pytest.mark.parametrize("adapter", ["native", "asgi"])
@pytest.mark.parametrize("path", [b"/", b"/key/update"])
def test_upstream_that_never_reads(adapter: Adapter, path: bytes) -> None:
    """A request that upstream neither reads to its end nor responds to fails with 504."""
    with never_reading() as upstream, running(upstream, adapter=adapter) as gateway, gateway.connect() as client:
        client.send(post(path, b"Content-Length: %d" % (1000 * MIB)))
        send_until_blocked(client, 1000 * MIB)
        response = client.read_response(b"POST")
        assert response.status == 504
        assert json.loads(response.body)["error"]["type"] == "upstream_not_reading"
        if adapter == "native":
            stalled(gateway, "upstream_not_reading")


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("what", ["upload", "tunnel"])
def test_client_leaves_an_upstream_that_never_reads(what: str, how: str) -> None:
    """Both connections are closed after a client has disconnected while reading from it was paused.

    The reset of an upload is detected. In the other cases upstream's stall closes the connections: a FIN follows octets
    that the client's kernel can't deliver, and upstream may still read what the client of a tunnel has sent.
    """
    options = ("--stall-timeout", "1.6", "--shutdown-grace", "0")
    answer = SWITCH if what == "tunnel" else b""
    with never_reading(answer) as upstream, Gateway(upstream.url, *options) as gateway:
        with Client(gateway.address, keep=False) as client:
            if what == "tunnel":
                assert client.ask(upgrade()).status == 101
            else:
                client.send(post(b"/", b"Content-Length: %d" % (1000 * MIB)))
            send_until_blocked(client, 1000 * MIB)
            while_open = gateway.open_sockets()
            if how == "RST":
                client.reset()
        deadline = time.monotonic() + 20
        while gateway.open_sockets() > while_open - 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        gateway.stop()  # so that its log is complete
        cut = any("upstream_not_reading" in line for line in gateway.lines)
        assert cut == (how == "FIN" or what == "tunnel")


def test_client_leaves_behind_pipelined_requests(upstream: Upstream) -> None:
    """A disconnect is detected even while reading from the client is paused because of its pipelined requests."""

    def script(connection: Connection) -> None:
        reply(WAIT_CLOSED)(connection)
        ended.set()

    ended = threading.Event()
    upstream.script = script
    with running(upstream) as gateway:
        with gateway.connect() as client:
            client.send(GET * 5000)
            upstream.wait_request(1)
        assert ended.wait(30)


# Peers that are not disconnected


def silent_answer(connection: Connection) -> None:
    connection.read_request()
    time.sleep(QUIET)
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
    time.sleep(QUIET)
    connection.send(b"0\r\n\r\n")


def echo_tunnel(connection: Connection) -> None:
    connection.read_request()
    connection.send(SWITCH)
    connection.send(connection.read_exactly(4))


def late_continue(connection: Connection) -> None:
    request = connection.read_head()
    time.sleep(QUIET)
    connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.read_body(request)
    connection.send(OK)


def early_answer(connection: Connection) -> None:
    request = connection.read_head()
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
    connection.read_body(request)
    connection.send(b"0\r\n\r\n")


def quiet_tunnel(client: Client) -> None:
    client.send(upgrade())
    time.sleep(QUIET)
    client.send(b"ping")


def wait_for_continue(client: Client) -> None:
    client.send(post(b"/", b"Content-Length: 2", b"Expect: 100-continue"))
    assert client.read_head().status == 100
    client.send(b"ok")


def stop_behind_an_answer(client: Client) -> None:
    client.send(post(b"/", b"Content-Length: 2") + b"o")
    client.read_until(b"ok\r\n")
    time.sleep(QUIET)
    client.send(b"k")


def ask(client: Client) -> None:
    client.send(post(b"/", b"Content-Length: 2") + b"{}")


@pytest.mark.parametrize("adapter", ["native", "asgi"])
@pytest.mark.parametrize(
    ("send", "script", "end"),
    [
        pytest.param(ask, silent_answer, b"ok\r\n0\r\n\r\n", id="upstream pauses before and within its response"),
        pytest.param(
            stop_behind_an_answer, early_answer, b"0\r\n\r\n", id="the client pauses after its response has begun"
        ),
    ],
)
def test_not_cut(
    upstream: Upstream,
    adapter: Adapter,
    send: Callable[[Client], None],
    script: Callable[[Connection], None],
    end: bytes,
) -> None:
    """Pauses of LiteLLM are not limited, nor are those of a client whose response has begun."""
    upstream.script = script
    with running(upstream, adapter=adapter) as gateway, gateway.connect() as client:
        send(client)
        client.read_until(end)


@pytest.mark.parametrize(
    ("send", "script", "end"),
    [
        pytest.param(quiet_tunnel, echo_tunnel, b"ping", id="a quiet tunnel"),
        pytest.param(wait_for_continue, late_continue, b"ok", id="a late 100 (Continue)"),
    ],
)
def test_not_cut_natively(
    upstream: Upstream, send: Callable[[Client], None], script: Callable[[Connection], None], end: bytes
) -> None:
    """Pauses in a tunnel and before a 100 response are not limited (native only: ASGI has neither)."""
    upstream.script = script
    with running(upstream) as gateway, gateway.connect() as client:
        send(client)
        client.read_until(end)


@pytest.mark.parametrize("adapter", ["native", "asgi"])
def test_slow_upload(upstream: Upstream, adapter: Adapter) -> None:
    """A client that sends its content slowly, octet by octet, is not disconnected."""
    with running(upstream, *PATIENT, adapter=adapter) as gateway, gateway.connect() as client:
        client.send(post(b"/", b"Content-Length: 20"))
        for _ in range(20):
            client.send(b"x")
            time.sleep(QUIET / 20)
        client.read_until(b"ok")


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_slow_reader(upstream: Upstream, transport: str, tmp_path: Path) -> None:
    """A client that reads slowly receives all of its response, with TLS too."""
    size = 6 * MIB
    upstream.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
    options, context = [*PATIENT], None
    if transport == "tls":
        authority = trustme.CA()
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        options += ["--ssl-certfile", str(tmp_path / "pem")]
    with running(upstream, *options) as gateway:
        with Client(gateway.address, context=context, receive_buffer=16384, keep=False) as client:
            client.send(GET)
            client.read_head()
            begun, taken = time.monotonic(), 0
            while time.monotonic() < begun + 2 * QUIET:
                taken += len(client.recv(2048))
                time.sleep(TIMEOUT / 40)
            while taken < size:
                data = client.recv()
                assert data
                taken += len(data)
        assert not any("stalled" in line for line in gateway.lines)


def test_slow_sender_over_tls(upstream: Upstream, tmp_path: Path) -> None:
    """A client that sends a single TLS record slowly is not disconnected, although TLS delivers it only as a whole."""
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    content = bytes(16_000)
    options = (*PATIENT, "--ssl-certfile", str(tmp_path / "pem"))
    with running(upstream, *options) as gateway, Client(gateway.address) as client:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.send(outgoing.read())
                incoming.write(client.recv())
        tls.write(post(b"/", b"Content-Length: %d" % len(content)))
        client.send(outgoing.read())
        tls.write(content)
        record = outgoing.read()
        for part in range(20):
            time.sleep(QUIET / 20)
            client.send(record[len(record) * part // 20 : len(record) * (part + 1) // 20])
        upstream.wait_for(lambda: upstream.requests and upstream.requests[-1].body == content)


# A response that is held back


def test_refusal_that_stalls(upstream: Upstream) -> None:
    """If a 403 that is held back stalls, what was received of it is relayed, and so is the rest when it arrives."""
    rest = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        head = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(REFUSED)
        connection.send(head + REFUSED[:-1])
        assert rest.wait(30)
        connection.send(REFUSED[-1:])

    upstream.script = script
    body = json.dumps({"key": "sk-adapter", "spend": 1.5}).encode()
    with running(upstream) as gateway, gateway.connect() as client:
        client.send(post(b"/key/update", b"Content-Length: %d" % len(body)) + body)
        assert client.read_head().status == 403
        client.read_exactly(len(REFUSED) - 1)
        rest.set()
        assert client.read_exactly(1) == REFUSED[-1:]


# The sweep


class Stuck:
    """A peer with ``progress``, which is None if nothing is pending. ``cut_at``: when its stall was reported."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.progress: int | None = 0
        self.cut_at: float | None = None

    def check(self) -> Pending | None:
        return None if self.progress is None else Pending(self.progress, self._give_up)

    def _give_up(self) -> None:
        self.cut_at = self.cut_at or self.loop.now


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    with virtual_loop() as loop:
        yield loop


@pytest.mark.parametrize("begun", [0.0, 0.1, 7.4, 14.9, 15.0, 15.1, 29.0, 59.9])
def test_when_a_stall_is_cut(loop: VirtualLoop, begun: float) -> None:
    """A stall is reported between 1 and 1.25 times the timeout after it began, wherever that is between two sweeps."""
    peer = Stuck(loop)
    start = loop.now
    sweep = loop.act(StallSweep, 60.0, lambda: [peer])
    for each in (begun * part / 8 for part in range(1, 9)):  # until then it makes progress
        loop.advance(start + each - loop.now)
        peer.progress = (peer.progress or 0) + 1
    loop.advance(200)
    assert peer.cut_at is not None
    assert 60 <= peer.cut_at - start - begun <= 75
    loop.act(sweep.close)


@pytest.mark.parametrize(
    ("timeout", "change"),
    [
        pytest.param(None, lambda peer: None, id="no timeout"),
        pytest.param(60.0, lambda peer: setattr(peer, "progress", peer.progress + 1), id="progress"),
        pytest.param(60.0, lambda peer: setattr(peer, "progress", None), id="nothing pending"),
    ],
)
def test_what_is_no_stall(loop: VirtualLoop, timeout: float | None, change: Callable[[Any], None]) -> None:
    """No stall is reported without a timeout, with progress within each timeout, or with nothing pending."""
    peer = Stuck(loop)
    sweep = loop.act(StallSweep, timeout, lambda: [peer])
    for _ in range(10):
        loop.advance(59)
        change(peer)
    assert peer.cut_at is None
    loop.act(sweep.close)


def test_no_sweep_after_the_end(loop: VirtualLoop) -> None:
    peer = Stuck(loop)
    sweep = loop.act(StallSweep, 60.0, lambda: [peer])
    loop.act(sweep.close)
    loop.advance(200)
    assert peer.cut_at is None

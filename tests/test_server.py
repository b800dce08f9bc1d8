"""The serving process: how it starts, accepts and ends. The effect of a drain on requests is tested in tests/relay."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from starlette.types import Message

from sanitizer.address import Address
from sanitizer.app import Gateway as App
from sanitizer.descriptors import RESERVE
from sanitizer.settings import Settings
from sanitizer.supervisor import STOP_SIGNALS
from tests.operate.exposition import wait_for, wait_until_ready
from tests.support.client import Client
from tests.support.gateway import ROOT, Gateway, free_port
from tests.support.upstream import OK, Upstream, reply
from tests.support.wire import Cut

GET = b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n"
WAIT = 10.0


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def path() -> Iterator[str]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder, "socket"))


def wait_until_refused(gateway: Gateway) -> None:
    """Connect repeatedly until a connection is refused."""
    until = time.monotonic() + WAIT
    assert not isinstance(gateway.address, str)
    while True:
        try:
            socket.create_connection(gateway.address).close()
        except ConnectionRefusedError:
            return
        assert time.monotonic() < until, "it goes on accepting"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param("ssl_certfile='/nonexistent', admin_port=0", id="certificate"),
        pytest.param(
            f"upstream=Address('https', 'a', 443), upstream_ca='/nonexistent', admin_port={free_port()}",
            id="CA of the probe",
        ),
        pytest.param(
            "upstream=Address('https', 'a', 443), upstream_ca='/nonexistent', admin_port=0", id="CA of upstream"
        ),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_cannot_start(settings: str, path: str, workers: int) -> None:
    """A file that is missing at the start is reported in one line, with exit status 1, and no socket is left behind."""
    code = (
        "from sanitizer.address import Address; from sanitizer.launch import serve; "
        "from sanitizer.settings import Settings; "
        f"raise SystemExit(serve(Settings(uds={path!r}, workers={workers}, {settings})))"
    )
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines
    # each worker may have written one before it was ended
    assert all("can't start" in line and "No such file" in line for line in lines), lines
    assert len(lines) <= workers
    assert not Path(path).exists()


@pytest.mark.parametrize("option", ["host", "admin-host"])
def test_brackets(upstream: Upstream, option: str) -> None:
    """The gateway listens on an IPv6 address in brackets. Log and error message show it in brackets too."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        named = {"host": f"--port={port}", "admin-host": f"--admin-port={port}"}[option]
        arguments = ["--upstream", upstream.url, "--admin-port=0", "--port=0", f"--{option}=[::1]", named]
        command = [sys.executable, "-m", "sanitizer", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert result.returncode == 1
    assert f"can't listen on [::1]:{port}" in result.stderr
    with Gateway(upstream.url, f"--{option}=[::1]", admin=True) as gateway:
        where = gateway.address if option == "host" else gateway.admin
        assert gateway.wait_for_line(rf"listening on .*http://\[::1\]:{where[1]}")
        socket.create_connection(("::1", int(where[1]))).close()


@pytest.mark.anyio
async def test_start_again() -> None:
    """A gateway whose start has failed reports this to the ASGI server, and a further ``start`` raises the error."""
    app = App(Settings(upstream=Address("https", "a", 443), upstream_ca="/nonexistent"))
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    with pytest.raises(FileNotFoundError):
        app.start()
    app.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_signal_as_soon_as_it_listens(upstream: Upstream, path: str, workers: int, number: signal.Signals) -> None:
    """A signal that arrives as soon as the gateway listens ends it with status 0, and its socket is removed."""
    options = ("--workers", str(workers), "--shutdown-grace", "1")
    with Gateway(upstream.url, *options, listen=("--uds", path), admin=True) as gateway:
        os.kill(gateway.pid, number)
        assert gateway.wait() == 0
    assert not Path(path).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("workers", "to_all"),
    [(1, False), pytest.param(2, False, id="2-to the parent"), pytest.param(2, True, id="2-to all processes")],
)
@pytest.mark.parametrize("after", [0.0, 0.3, 0.6])
def test_signal_during_start(path: str, workers: int, to_all: bool, after: float, number: signal.Signals) -> None:
    """A signal that arrives during the start, once the socket exists, ends the gateway with status 0."""
    options = ("--upstream", "http://127.0.0.1:9", "--uds", path, "--workers", str(workers), "--shutdown-grace", "1")
    command = [sys.executable, "-W", "error::ResourceWarning", "-m", "sanitizer", *options, "--admin-port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True, env=without_options()
    ) as process:
        until = time.monotonic() + WAIT
        while not Path(path).exists():
            assert time.monotonic() < until, "it does not begin to listen"
            time.sleep(0.001)
        time.sleep(after)
        (os.killpg if to_all else os.kill)(process.pid, number)
        _, lines = process.communicate(timeout=30)
    assert process.returncode == 0, lines
    assert "Traceback" not in lines
    assert not Path(path).exists()


def without_options() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("SANITIZER_", "SERVER_"))}


@pytest.mark.parametrize("workers", [1, 3])
def test_serves_when_it_says_so(upstream: Upstream, workers: int) -> None:
    """When the gateway logs that it listens, each of its serving processes has finished its start."""
    for _ in range(3):
        with Gateway(upstream.url, "--workers", str(workers), "--shutdown-grace", "0") as gateway:
            serving = gateway.workers() if workers > 1 else [gateway.pid]
            assert len(serving) == workers
            # a serving process handles SIGHUP; a starting one blocks it
            assert all(mask(pid, "SigCgt") & 1 << signal.SIGHUP - 1 for pid in serving)
            assert not any(mask(pid, "SigBlk") & 1 << signal.SIGHUP - 1 for pid in serving)


def mask(pid: int, name: str) -> int:
    """One of a process's signal sets, as bits."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s*([0-9a-f]+)$", status, re.MULTILINE)
    assert found
    return int(found[1], 16)


@pytest.mark.parametrize(("number", "accepting"), [(signal.SIGTERM, 0.5), (signal.SIGINT, 0)])
@pytest.mark.parametrize("workers", [1, 2])
def test_accepts_no_more(upstream: Upstream, workers: int, number: signal.Signals, accepting: float) -> None:
    """After SIGTERM, connections are accepted for a sixth of the grace period; after SIGINT, no longer.

    A request in progress is completed.
    """
    upstream.script = reply(hold := threading.Event(), OK)
    options = ("--workers", str(workers), "--shutdown-grace", "3")
    with Gateway(upstream.url, *options) as gateway, gateway.connect() as client:
        client.send(GET)
        upstream.wait_request()
        signalled = time.monotonic()
        os.kill(gateway.pid, number)
        gateway.wait_for_line("stopping")
        wait_until_refused(gateway)
        assert time.monotonic() - signalled >= accepting - 0.005  # the event loop counts in milliseconds
        hold.set()
        assert client.read_response().body == b"ok"
        assert gateway.wait() == 0
        stopping = [record for record in gateway.records if record["message"] == "stopping"]
        assert len(stopping) == workers
        assert {record["accepting_seconds"] for record in stopping} == {accepting}


@pytest.mark.parametrize("workers", [1, 2])
def test_successor_on_unix_socket(upstream: Upstream, path: str, workers: int) -> None:
    """A gateway can start on the Unix socket of one that drains, and keeps the socket when that one has ended."""
    listen = ("--uds", path)
    upstream.script = reply(hold := threading.Event(), OK)
    options = ("--workers", str(workers))
    with Gateway(upstream.url, *options, listen=listen) as first, first.connect() as client:
        client.send(GET)
        upstream.wait_request()
        first.process.send_signal(signal.SIGINT)
        first.wait_for_line("stopping")
        until = time.monotonic() + WAIT
        while not refused(path):
            assert time.monotonic() < until, "it goes on accepting"
            time.sleep(0.01)
        with Gateway(upstream.url, listen=listen) as second:
            hold.set()
            assert client.read_response().body == b"ok"
            assert first.wait() == 0
            upstream.script = reply(OK)
            assert second.ask(GET).status == 200
    assert not Path(path).exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_connected_in_the_last_moment(upstream: Upstream, path: str, workers: int) -> None:
    """A client that connected to a Unix socket before it was closed can still send its request.

    A client sends its request as soon as it has connected. If this were left unread, the connection would be reset.
    """
    options = ("--workers", str(workers), "--shutdown-grace", "12")
    with Gateway(upstream.url, *options, listen=("--uds", path)) as gateway, gateway.connect() as client:
        os.kill(gateway.pid, signal.SIGTERM)
        until = time.monotonic() + WAIT
        while not refused(path):
            assert time.monotonic() < until, "it goes on accepting"
            time.sleep(0.01)
        assert client.ask(GET).status == 200
        assert gateway.wait() == 0


def refused(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) != 0


class Certificates:
    """The certificate files of a listener, and a client that trusts every certificate written to them."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.chain, self.key = folder / "chain.pem", folder / "key.pem"
        self.context = ssl.create_default_context()
        self.context.set_alpn_protocols(["h2", "http/1.1"])
        self._authority.configure_trust(self.context)
        self.options = ("--ssl-certfile", str(self.chain), "--ssl-keyfile", str(self.key))

    def write(self, *, key: bool = True) -> bytes:
        """Write a new certificate to the files, with or without its key. Return the certificate as DER."""
        made = self._authority.issue_cert("localhost")
        chain = made.cert_chain_pems[0].bytes()
        self.chain.write_bytes(chain)
        if key:
            self.key.write_bytes(made.private_key_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(chain.decode())

    def presented(self, gateway: Gateway) -> bytes | None:
        """The certificate that the gateway presents on a new connection."""
        with self.connect(gateway) as client:
            return certificate_of(client)

    def connect(self, gateway: Gateway) -> Client:
        return Client(gateway.address, context=self.context)


def certificate_of(client: Client) -> bytes | None:
    assert isinstance(client.sock, ssl.SSLSocket)
    assert client.sock.selected_alpn_protocol() == "http/1.1"
    return client.sock.getpeercert(binary_form=True)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def hang_up(gateway: Gateway, said: str, times: int = 1) -> None:
    """Send SIGHUP, and wait for ``times`` further log lines that contain ``said``."""
    before = sum(said in line for line in gateway.lines)
    gateway.process.send_signal(signal.SIGHUP)
    until = time.monotonic() + WAIT
    while sum(said in line for line in gateway.lines) < before + times:
        assert time.monotonic() < until, gateway.lines
        time.sleep(0.01)


LOADED = "certificate has been loaded again"
KEPT = "certificate can't be loaded, so the old one stays"
IGNORED = "SIGHUP is ignored"


@pytest.mark.parametrize("workers", [1, 2])
def test_hang_up(upstream: Upstream, certificates: Certificates, workers: int) -> None:
    """After SIGHUP, new connections get the certificate that is now in the files. Open connections continue."""
    first = certificates.write()
    with (
        Gateway(upstream.url, "--workers", str(workers), *certificates.options) as gateway,
        certificates.connect(gateway) as client,
    ):
        assert certificate_of(client) == first
        for _ in range(2):
            second = certificates.write()
            assert certificates.presented(gateway) != second
            hang_up(gateway, LOADED, workers)
            for _ in range(4):  # whichever worker accepts it
                assert certificates.presented(gateway) == second
        assert not isinstance(gateway.address, str)
        # this client sends no server name
        assert ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(gateway.address)) == second
        assert client.ask(GET).body == b"ok"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_hang_up_resumed(upstream: Upstream, certificates: Certificates, version: ssl.TLSVersion) -> None:
    """After SIGHUP, a client that offers a TLS session from before is served."""
    certificates.write()
    certificates.context.maximum_version = version
    with Gateway(upstream.url, *certificates.options) as gateway:
        with certificates.connect(gateway) as client:
            assert client.ask(GET).body == b"ok"  # by then it has its session ticket
            assert isinstance(client.sock, ssl.SSLSocket)
            session = client.sock.session
        certificates.write()
        hang_up(gateway, LOADED)
        assert not isinstance(gateway.address, str)
        with (
            socket.create_connection(gateway.address) as plain,
            certificates.context.wrap_socket(plain, server_hostname="localhost", session=session) as resumed,
        ):
            resumed.sendall(GET)
            assert resumed.recv(65536).startswith(b"HTTP/1.1 200 ")


def missing(certificates: Certificates) -> None:
    certificates.chain.unlink()


def not_pem(certificates: Certificates) -> None:
    certificates.chain.write_text("no certificate")


def cut_short(certificates: Certificates) -> None:
    certificates.chain.write_bytes(certificates.chain.read_bytes()[:-200])


def of_another_key(certificates: Certificates) -> None:
    certificates.write(key=False)


def without_key(certificates: Certificates) -> None:
    certificates.key.write_bytes(b"")


@pytest.mark.parametrize("spoil", [missing, not_pem, cut_short, of_another_key, without_key])
def test_hang_up_with_bad_file(
    upstream: Upstream, certificates: Certificates, spoil: Callable[[Certificates], None]
) -> None:
    """If a file can't be used, the certificate in use is kept and the log says why. A good file is loaded later."""
    first = certificates.write()
    with Gateway(upstream.url, *certificates.options) as gateway:
        assert certificates.presented(gateway) == first
        spoil(certificates)
        hang_up(gateway, KEPT)
        line = gateway.records[-1]
        assert (line["level"], line["certfile"]) == ("error", str(certificates.chain))
        assert line["reason"]
        for _ in range(2):
            assert certificates.presented(gateway) == first
        second = certificates.write()
        hang_up(gateway, LOADED)
        assert certificates.presented(gateway) == second
        assert gateway.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_hang_up_without_certificate(upstream: Upstream, workers: int) -> None:
    """Without TLS, SIGHUP causes one log line per serving process, and has no other effect."""
    with Gateway(upstream.url, "--workers", str(workers)) as gateway:
        hang_up(gateway, IGNORED, workers)
        assert gateway.ask(GET).body == b"ok"
        assert gateway.stop() == 0


def test_encrypted_key(certificates: Certificates) -> None:
    """An encrypted key is refused without a prompt for its password. At SIGHUP, a prompt would stop everything."""
    certificates.write()
    key = load_pem_private_key(certificates.key.read_bytes(), None)
    encryption = BestAvailableEncryption(b"password")
    certificates.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    code = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "from sanitizer.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    terminal, stdio = pty.openpty()
    command = [sys.executable, "-c", code, *certificates.options]
    with subprocess.Popen(
        command, stdin=stdio, stdout=stdio, stderr=stdio, cwd=ROOT, start_new_session=True
    ) as process:
        os.close(stdio)
        output = b""
        with contextlib.suppress(OSError):  # raised at the end of a terminal
            while b"pass phrase" not in output and (piece := os.read(terminal, 65536)):
                output += piece
        os.close(terminal)
        if b"pass phrase" in output:
            process.kill()
    assert b"--ssl-certfile" in output
    assert process.returncode == 2


def test_hang_up_before_start() -> None:
    """SIGHUP does not end a gateway that is still reading its options."""
    code = (
        "import os, signal, sys; from sanitizer import cli; load = cli.load; "
        "cli.load = lambda *given: (os.kill(os.getpid(), signal.SIGHUP), load(*given))[1]; "
        "sys.exit(cli.main(['--port', 'x']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert result.returncode == 2
    assert "--port 'x'" in result.stderr


@pytest.mark.parametrize("workers", [1, 3])
def test_hang_up_at_any_time(upstream: Upstream, certificates: Certificates, workers: int) -> None:
    """SIGHUP ends no process of the gateway, its resource tracker included, while it starts, serves, drains or ends."""
    certificates.write()
    upstream.script = reply(hold := threading.Event(), OK)
    done = threading.Event()

    def annoy(pid: int) -> None:
        while not done.is_set():
            for each in (pid, *children(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGHUP)
            time.sleep(0.001)

    options = ("--workers", str(workers), "--shutdown-grace", "6", *certificates.options)
    with Gateway(upstream.url, *options, admin=True) as gateway:
        thread = threading.Thread(target=annoy, args=(gateway.pid,))
        thread.start()
        try:
            with certificates.connect(gateway) as client:
                client.send(GET)
                upstream.wait_request()
                until = time.monotonic() + WAIT
                while len({line.get("worker") for line in gateway.records if LOADED in line["message"]}) < workers:
                    assert time.monotonic() < until, "a worker is missing"
                    time.sleep(0.05)
                gateway.process.send_signal(signal.SIGINT)
                gateway.wait_for_line("stopping")
                hold.set()
                assert client.read_response().body == b"ok"
            assert gateway.wait() == 0
        finally:
            done.set()
            thread.join()
        assert not any("has died" in line or "unexpectedly" in line for line in gateway.lines)
        assert sum('"stopped"' in line for line in gateway.lines) == workers


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def test_handshake_under_way(upstream: Upstream, tmp_path: Path) -> None:
    """A client that does not finish its TLS handshake does not keep the gateway from stopping."""
    authority = trustme.CA()
    file = tmp_path / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    options = ("--ssl-certfile", str(file), "--admin-port", "0", "--shutdown-grace", "30")
    # not `Gateway`, which turns warnings about unclosed sockets into errors: uvloop closes this socket when it ends
    command = [sys.executable, "-m", "sanitizer", "--upstream", upstream.url, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            match = re.search(r"127\.0\.0\.1:(\d+)\"", process.stderr.readline())
            assert match
            address = ("127.0.0.1", int(match[1]))
            with Client(address) as client:
                client.send(b"\x16\x03\x01")  # the first bytes of a ClientHello
                with Client(address, context=context) as second:  # accepted after the first
                    assert second.ask(GET).status == 200
                process.send_signal(signal.SIGINT)
                assert client.closed()
            assert process.wait(WAIT) == 0
            assert "aborting" not in process.stderr.read()
        finally:
            process.kill()


def serves(gateway: Gateway) -> bool:
    try:
        return gateway.ask(GET).status == 200
    except (Cut, OSError):
        return False


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_no_descriptor_for_upstream(upstream: Upstream, name: str) -> None:
    """If there is no descriptor for a connection to upstream, the response is a 503 with an error type of its own."""
    upstream.script = reply(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    with Gateway(f"http://{name}:{upstream.port}", admin=True) as gateway, gateway.connect() as client:
        wait_until_ready(gateway)
        assert client.ask(GET).status == 200  # its connection has been accepted, and none to upstream is kept
        limits = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (3, gateway_hard(gateway)))
        for _ in range(2):
            answer = client.ask(GET)
            assert answer.status == 503
            error = json.loads(answer.body)["error"]
            assert (error["type"], error["code"]) == ("descriptors", "503")
            assert error["message"] == "litellm-sanitizer: the gateway is out of file descriptors; try again"
        content = b'{"key": "sk-1", "permissions": {}}'
        update = b"POST /key/update HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        assert client.ask(update % len(content) + content).status == 503
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, limits)
        assert client.ask(GET).status == 200
        kind = 'sanitizer_upstream_errors_total{kind="descriptors"}'
        numbers = wait_for(gateway, lambda numbers: numbers[kind] == 4)  # the update's lookup is one
        assert numbers['sanitizer_upstream_errors_total{kind="unreachable"}'] == 0
        assert numbers["sanitizer_out_of_descriptors_total"] >= 4
        lines = [line for line in gateway.records if line["message"] == "out of file descriptors"]
        assert lines[0]["kind"] == "connect"
        assert "ulimit -n" in lines[0]["detail"]
        assert not any(line["message"] == "upstream failed" for line in gateway.records)


def gateway_hard(gateway: Gateway) -> int:
    return resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)[1]


@pytest.mark.parametrize(("workers", "admin", "reserve"), [(1, True, RESERVE), (1, False, 0), (2, True, 0)])
def test_reserve(upstream: Upstream, workers: int, admin: bool, reserve: int) -> None:
    """A process may use all descriptors up to its hard limit, less the reserve of its admin listener, if it has one."""
    with Gateway(upstream.url, "--workers", str(workers), admin=admin) as gateway:
        assert gateway.ask(GET).status == 200
        for pid in (gateway.pid, *gateway.workers()):
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            assert soft == max(hard - reserve, hard // 2)


def test_no_descriptors(upstream: Upstream) -> None:
    """A process that has no descriptors left closes new connections, and serves again when it has some."""
    with Gateway(upstream.url) as gateway:
        assert gateway.ask(GET).status == 200
        _, hard = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (64, hard))
        with ExitStack() as stack:
            clients = [stack.enter_context(gateway.connect()) for _ in range(80)]
            assert clients[-1].closed()
        until = time.monotonic() + WAIT
        while not serves(gateway):  # until it has noticed that the clients are gone
            assert time.monotonic() < until, "it accepts no more"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_at_the_end(upstream: Upstream, number: signal.Signals) -> None:
    """Signals that arrive between the end of the drain and the end of the process have no effect."""
    with Gateway(upstream.url, admin=True) as gateway:
        wait_until_ready(gateway)
        os.kill(gateway.pid, signal.SIGINT)
        gateway.wait_for_line("stopped")
        while gateway.process.poll() is None:
            gateway.process.send_signal(number)
            time.sleep(0.01)
        assert gateway.wait() == 0


SIGNALLED_AT_ITS_START = """
import os, signal, sys, uvloop

make = uvloop.new_event_loop

def make_and_signal():
    os.kill(os.getpid(), signal.SIGTERM)
    return make()

uvloop.new_event_loop = make_and_signal
from sanitizer.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_signal_while_the_event_loop_is_made() -> None:
    """A signal that arrives before the event loop can handle it is handled later, and the exit status is 0."""
    options = ["--upstream", "http://127.0.0.1:9", "--port", "0", "--admin-port", "0", "--shutdown-grace", "0"]
    command = [sys.executable, "-W", "error", "-c", SIGNALLED_AT_ITS_START, *options, "--log-format", "json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.loads(ended.stderr.splitlines()[-1])["message"] == "stopped"

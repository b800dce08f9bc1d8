"""The requests that fail under load while gateways are replaced behind HAProxy, or LiteLLM behind a gateway.

The clients are those of `tests.soak`, without those that leave or stall. LiteLLM is a stand-in under a real
uvicorn. Each test prints its figures, which `-s` or `-rP` shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop
from websockets.asyncio.client import connect

from tests.deploy import proxies
from tests.deploy.proxies import command, configure, gateway_options, running
from tests.deploy.stand_in import READY
from tests.soak.clients import Visitor
from tests.soak.connection import Connection
from tests.soak.ledger import Ledger, Runs, read_journal, repeated
from tests.soak.processes import Process
from tests.support.gateway import reserved_port

PATIENCE = 60.0
"""Seconds that each wait may last."""
CLIENTS = 8
PAUSE = 0.03
"""Seconds between two requests of a client, on average."""
REPLACEMENTS = 4


class Load(Visitor):
    """One client. It sends one request of a random kind after another until ``stop`` is set."""

    async def load(self, stop: asyncio.Event, kinds: list[str]) -> None:
        plays = {kind: play for kind, (play, _) in self.kinds.items()} | {"key/update": self.update}
        try:
            while not stop.is_set():
                self.kind, self.id, self.stage = self.random.choice(kinds), f"{next(self.numbers)}", ""
                await self.once(plays[self.kind])
                await asyncio.sleep(self.random.expovariate(1 / PAUSE))
        finally:  # a test that fails cancels this
            self.hang_up()


LASTING = ["JSON", "JSON POST", "SSE", "upload", "upload, chunked", "upload, Expect", "key/update"]
"""The kinds of requests that uvicorn finishes after SIGTERM."""
KINDS = [*LASTING, "WebSocket"]


def run(work: Coroutine[Any, Any, Runs]) -> Runs:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@contextlib.asynccontextmanager
async def load(port: int, ledger: Ledger, kinds: list[str]) -> AsyncIterator[None]:
    """Run clients that send requests of all ``kinds`` to ``port`` of loopback, until the block ends.

    Each client then finishes its last request.
    """
    stop, numbers = asyncio.Event(), itertools.count(1)
    async with asyncio.TaskGroup() as group:
        for seed in range(CLIENTS):
            group.create_task(Load(port, ledger, numbers, seed, 0).load(stop, kinds))
        yield
        stop.set()


def figures(what: str, ledger: Ledger) -> str:
    """A table with the requests of each kind that finished, and those that failed."""
    failed = Counter(failure.kind for failure in ledger.failures)
    failed += Counter(re.split(r" \d", wrong)[0] for wrong in ledger.wrong)
    rows = (f"{kind:16}{ledger.finished[kind]:8}{failed[kind]:8}" for kind in KINDS if ledger.sent[kind])
    return "\n".join([f"{what:16}{'finished':>8}{'failed':>8}", *rows])


async def started(stack: contextlib.AsyncExitStack, module: str, *arguments: str, ready: str) -> Process:
    """Start a process and wait until it writes a line with ``ready``. It is killed when ``stack`` is closed."""
    process = await Process.start(module, *arguments)
    stack.push_async_callback(process.kill)
    await process.line(lambda line: ready in line)
    return process


class Held:
    """A stream, an upload and a WebSocket in progress, through the gateway ``server`` behind HAProxy at ``port``."""

    def __init__(self, port: int, server: str, request_id: str, stack: contextlib.AsyncExitStack) -> None:
        self.port = port
        self._stack = stack
        self.server = server
        self.id = request_id

    async def _send(self, start: str, *fields: str) -> Connection:
        connection = await Connection.open(self.port)
        self._stack.callback(connection.close)
        request_id = f"{self.id}-{start.split()[1]}"
        lines = [f"{start} HTTP/1.1", "Host: h.example", f"X-Request-Id: {request_id}", f"X-Server: {self.server}"]
        await connection.send("\r\n".join([*lines, *fields, "", ""]).encode())
        return connection

    async def begin(self) -> None:
        stream = await self._send("GET /held")
        assert await stream.head() == 200
        self.events = stream.pieces()
        assert await anext(self.events) == b"data: 1\n\n"
        self.upload = await self._send("POST /upload", "Content-Length: 10", "Expect: 100-continue")
        assert await self.upload.head() == 100
        await self.upload.send(b"hello")
        uri, fields = f"ws://127.0.0.1:{self.port}/ws", {"X-Server": self.server}
        self.websocket = await self._stack.enter_async_context(connect(uri, additional_headers=fields, proxy=None))
        await self._echo(b"hello")

    async def _echo(self, message: bytes) -> None:
        await self.websocket.send(message)
        assert await self.websocket.recv() == message

    async def end(self) -> None:
        """Continue all three as if nothing had happened, and check that they end as they should."""
        await self._echo(b"world")
        await self.websocket.close()
        await self.upload.send(b"world")
        assert await self.upload.head() == 200
        assert json.loads(await self.upload.content())["size"] == 10
        release = await self._send(f"POST /release?id={self.id}-/held", "Content-Length: 0")
        assert await release.head() == 200
        assert [event async for event in self.events] == [b"data: 2\n\n"]


class Slot:
    """One of the gateways behind HAProxy: its name there, its ports, and its current process."""

    process: Process

    def __init__(self, number: int, upstream: str, stack: contextlib.AsyncExitStack) -> None:
        self.name = f"gateway{number}"
        self.port, self.admin_port = (stack.enter_context(reserved_port()) for _ in range(2))
        self._stack = stack
        self._options = ["--upstream", upstream, *gateway_options("haproxy.cfg")]
        self._options += ["--port", f"{self.port}", "--admin-port", f"{self.admin_port}", "--log-format", "json"]

    async def start(self) -> None:
        self.process = await started(self._stack, "sanitizer", "serve", *self._options, ready="listening on")

    async def stop(self) -> None:
        """Wait until the process ends after SIGTERM. It must end with status 0 and abort no request."""
        assert await self.process.wait(PATIENCE) == 0
        assert not [line for line in self.process.lines if "aborting" in line or "Traceback" in line]

    def refuses(self) -> bool:
        """Whether the gateway has closed its listener."""
        with socket.socket() as client:
            client.settimeout(1)
            try:
                client.connect(("127.0.0.1", self.port))
            except TimeoutError:
                return False  # it is open, but accepts no new connection
            except ConnectionRefusedError:
                return True
        return False


def several(configuration: Path, slots: list[Slot]) -> None:
    """Make HAProxy send everything to the gateways, each with the options of the gateway in the file.

    A request can name its gateway in X-Server, so that a test knows which gateway handles it.
    """
    text = configuration.read_text().replace("default_backend litellm\n", "default_backend litellm_sanitizer\n")
    (server,) = re.findall(r"    server litellm_sanitizer .*\n", text)
    lines = ""
    for slot in slots:
        lines += f"    use-server {slot.name} if {{ req.fhdr(x-server) {slot.name} }}\n"
        named = server.replace("litellm_sanitizer", slot.name)
        lines += re.sub(r"\d+ check port \d+", f"{slot.port} check port {slot.admin_port}", named)
    configuration.write_text(text.replace(server, lines))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - it depends on another process
            await asyncio.sleep(0.05)


def new_line(log: Path, text: str) -> Callable[[], bool]:
    """Returns a function that says whether a line with ``text`` was added to ``log`` after this call."""
    before = log.read_text().count(text)
    return lambda: log.read_text().count(text) > before


async def replace_gateways(directory: Path, ledger: Ledger) -> Runs:
    """Replace each of three gateways twice, one after the other. Returns LiteLLM's journal."""
    journal, log = directory / "journal", directory / "log"
    async with contextlib.AsyncExitStack() as stack:
        litellm = stack.enter_context(reserved_port())
        await started(stack, "tests.deploy.stand_in", f"{litellm}", str(journal), ready=READY)
        slots = [Slot(number, f"http://127.0.0.1:{litellm}", stack) for number in range(3)]
        for slot in slots:
            await slot.start()
        port = stack.enter_context(reserved_port())
        ports = {proxies.PROXY: port, proxies.LITELLM: litellm, proxies.GATEWAY: 0, proxies.ADMIN: 0}
        configuration = configure("haproxy.cfg", directory, ports)
        several(configuration, slots)
        stack.enter_context(running(command("haproxy", directory, configuration), directory, port))
        async with load(port, ledger, KINDS):
            for number, slot in enumerate(slots * 2):
                held = Held(port, slot.name, f"held-{number}", stack)
                async with asyncio.timeout(PATIENCE):
                    await held.begin()
                is_down = new_line(log, f"/{slot.name} is DOWN")
                slot.process.send(signal.SIGTERM)
                await until(is_down)
                await until(slot.refuses)
                async with asyncio.timeout(PATIENCE):
                    await held.end()
                await slot.stop()
                is_up = new_line(log, f"/{slot.name} is UP")
                await slot.start()
                await until(is_up)
    return read_journal(journal)


def test_gateways_are_replaced(tmp_path: Path) -> None:
    """No request fails. Requests that a gateway has begun before SIGTERM continue after it has closed its listener."""
    ledger = Ledger()
    runs = run(replace_gateways(tmp_path, ledger))
    print(figures("gateways", ledger))
    assert (ledger.failures, ledger.wrong) == ([], [])
    assert all(ledger.finished[kind] for kind in KINDS)
    assert repeated(runs) == []
    fates = {fate for (_, request_id), begun in runs.items() if request_id != "-" for _, fate in begun}
    assert fates == {"relayed"}  # no request of a client bypassed the gateways


class LiteLLM:
    """Stand-ins that replace one another at one Unix socket. Each takes over the socket before the last one ends."""

    def __init__(self, path: Path, journal: Path, stack: contextlib.AsyncExitStack) -> None:
        self.path = path
        self._journal = journal
        self._stack = stack
        self._numbers = itertools.count()
        self._process: Process
        self._kept: Path

    async def start(self) -> None:
        own = self.path.with_suffix(f".{next(self._numbers)}")
        self._process = await started(self._stack, "tests.deploy.stand_in", str(own), str(self._journal), ready=READY)
        self._kept = own.with_suffix(own.suffix + "-kept")
        os.link(own, self._kept)
        own.rename(self.path)

    async def replace(self) -> None:
        old, kept = self._process, self._kept
        await self.start()
        # Connections are accepted in order: once this one is answered, all earlier ones have been accepted.
        reader, writer = await asyncio.open_unix_connection(kept)
        writer.write(b"GET /health/liveliness HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()
        old.send(signal.SIGTERM)
        assert await old.wait(PATIENCE) is not None


NGINX = """\
upstream litellm {{
    server unix:{path};
    keepalive 64;
    keepalive_timeout 4s;
}}
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://litellm;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_buffering off;
        proxy_request_buffering off;
        client_max_body_size 0;
    }}
}}
"""


async def replace_litellm(directory: Path, front: str, ledger: Ledger, kinds: list[str], *options: str) -> Runs:
    """Replace LiteLLM behind ``front``, a gateway with ``options`` or nginx. Returns LiteLLM's journal."""
    journal = directory / "journal"
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.chmod(folder, 0o755)  # noqa: S103 - nginx's worker is another user, if the tests run as root
        litellm = LiteLLM(Path(folder, "litellm"), journal, stack)
        await litellm.start()
        port = stack.enter_context(reserved_port())
        if front == "nginx":
            configuration = directory / "nginx.conf"
            configuration.write_text(NGINX.format(path=litellm.path, port=port))
            stack.enter_context(running(command("nginx", directory, configuration), directory, port))
        else:
            options = ("--upstream", f"unix:{litellm.path}", "--port", f"{port}", "--log-format", "json", *options)
            await started(stack, "sanitizer", "serve", *options, ready="listening on")
        async with load(port, ledger, kinds):
            for _ in range(REPLACEMENTS):
                await litellm.replace()
    return read_journal(journal)


def test_litellm_is_replaced(tmp_path: Path) -> None:
    """Only a POST can fail, with 502, and only if LiteLLM has not run it.

    This happens if uvicorn closes the connection before it has read the request. The gateway can't resend such a POST,
    because it can't distinguish it from one that was run.
    """
    ledger = Ledger()
    runs = run(replace_litellm(tmp_path, "gateway", ledger, LASTING))
    print(figures("gateway", ledger))
    assert ledger.wrong == []
    assert [failure for failure in ledger.failures if failure.outcome != "502" or failure.method != "POST"] == []
    assert [failure for failure in ledger.failures if ("POST", failure.id) in runs] == []
    assert repeated(runs) == []
    assert all(ledger.finished[kind] for kind in LASTING)


def test_litellm_is_replaced_behind_connections_for_one_request_each(tmp_path: Path) -> None:
    """Without idle connections, no request fails."""
    ledger = Ledger()
    runs = run(replace_litellm(tmp_path, "gateway", ledger, LASTING, "--upstream-keepalive", "0"))
    print(figures("no keepalive", ledger))
    assert (ledger.failures, ledger.wrong) == ([], [])
    assert repeated(runs) == []
    assert all(ledger.finished[kind] for kind in LASTING)


def test_litellm_is_replaced_behind_nginx(tmp_path: Path) -> None:
    """With nginx in the gateway's place, no POST is run twice. The failures are printed for comparison."""
    ledger = Ledger()
    kinds = [kind for kind in LASTING if kind != "key/update"]  # nginx does not repair it
    runs = run(replace_litellm(tmp_path, "nginx", ledger, kinds))
    print(figures("nginx", ledger))
    assert repeated(runs) == []
    assert all(ledger.finished[kind] for kind in kinds)

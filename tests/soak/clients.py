"""The clients of a soak: their requests, the checks of the responses, and the stages at which some of them leave."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from tests.soak.connection import BadGateway, Connection, Cut, Wrong, expect
from tests.soak.ledger import Failure, Ledger, now
from tests.soak.upstream import FLOOD, ROUTES

STUCK = 60.0
"""Seconds after which a request that has neither ended nor failed is wrong. None takes more than a few seconds."""
LEAVING = 0.08
"""The share of requests whose client leaves before their end."""
PAUSE = 0.1
"""Seconds between two requests of a client, on average."""
UPDATE_EVERY = 250
"""One request in this many is a ``POST /key/update``."""
STALL_EVERY = 53
"""In one request in this many, a peer stalls."""
STALLS = ("does not read", "stops sending", "is not read")
"""The kinds of requests in which a peer stalls."""
BLOB = random.Random(2).randbytes(5 << 20)
UPDATED = {"key": "sk-soak", "key_alias": "soak", "models": []}


class Left(Exception):
    """The client has left as intended."""


class Visitor:
    """One client. It sends one request after another, over one connection for as long as that lasts."""

    def __init__(self, port: int, ledger: Ledger, numbers: Iterator[int], seed: int, stall: float) -> None:
        self.port = port
        self.stall = stall
        self.ledger = ledger
        self.numbers = numbers
        self.random = random.Random(seed)
        self.kinds = {
            "JSON": (self.ask, 40),
            "JSON POST": (self.post, 22),
            "SSE": (self.events, 12),
            "upload": (self.upload, 8),
            "upload, chunked": (self.upload, 6),
            "upload, Expect": (self.upload, 4),
            "WebSocket": (self.websocket, 8),
        }
        self.stalls = {
            "does not read": self.never_read,
            "stops sending": self.stop_sending,
            "is not read": self.be_stuck,
        }
        self.connection: Connection | None = None
        self.kind = self.method = self.id = self.stage = ""

    async def run(self, until: float) -> None:
        weights = [weight for _, weight in self.kinds.values()]
        while now() < until:
            number = next(self.numbers)
            if number % UPDATE_EVERY == 0:
                self.kind, play = "key/update", self.update
            elif number % STALL_EVERY == 0:
                self.kind = list(self.stalls)[number // STALL_EVERY % len(self.stalls)]  # each in turn
                play = self.stalls[self.kind]
            else:
                self.kind = self.random.choices(list(self.kinds), weights)[0]
                play = self.kinds[self.kind][0]
            self.id = f"{number}"
            stages = STAGES[self.kind]
            self.stage = self.random.choice(stages) if stages and self.random.random() < LEAVING else ""
            if not await self.once(play):
                await asyncio.sleep(0.3)
            await asyncio.sleep(self.random.expovariate(1 / PAUSE))
        self.hang_up()

    async def look_up(self) -> None:
        """Send one ``POST /key/update`` that needs a lookup, in addition to one in every `UPDATE_EVERY` requests."""
        self.kind, self.id = "key/update", f"{next(self.numbers)}-look-up"
        await self.once(self.update)
        self.hang_up()

    async def stall_once(self, kind: str) -> None:
        """Send one request in which a peer stalls."""
        self.kind, self.id, self.stage = kind, f"{next(self.numbers)}", ""
        await self.once(self.stalls[kind])
        self.hang_up()

    async def once(self, play: Callable[[Connection], Awaitable[None]]) -> bool:
        """Carry out one request, and record its outcome. Returns False if the request failed."""
        begin = now()
        outcome = ""
        try:
            async with asyncio.timeout(STUCK):
                if self.connection is None:
                    self.connection = await Connection.open(self.port)
                await play(self.connection)
        except Left:
            self.ledger.left[self.kind, self.stage] += 1
            if self.connection is not None:
                self.connection.close(reset=self.random.random() < 0.5)
                self.connection = None
            return True
        except BadGateway:
            outcome = "502"
        except (Cut, ConnectionError, asyncio.IncompleteReadError):
            outcome = "cut"
            self.hang_up()
        except (Wrong, TimeoutError, ValueError, LookupError) as error:
            # ValueError and LookupError: a response of a form that upstream never sends
            self.ledger.wrong.append(f"{self.kind} {self.id}: {error!r}")
            self.hang_up()
            return False
        if self.connection is not None and (self.connection.last or self.kind == "WebSocket"):
            self.hang_up()
        if outcome:
            self.ledger.failures.append(Failure(self.kind, self.method, self.id, outcome, begin, now()))
            return False
        self.ledger.finished[self.kind] += 1
        return True

    def hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def leave_if(self, stage: str) -> None:
        if self.stage == stage:
            raise Left

    async def send_head(self, connection: Connection, method: str, target: str, *fields: str) -> None:
        self.method = method
        lines = [f"{method} {target} HTTP/1.1", "Host: soak.test", f"X-Request-Id: {self.id}"]
        head = "\r\n".join([*lines, "Authorization: Bearer sk-soak", *fields, "", ""]).encode()
        if self.stage == "in the head":
            await connection.send(head[: self.random.randrange(1, len(head) - 2)])
            raise Left
        self.ledger.sent[self.kind] += 1
        await connection.send(head)

    async def read_json(self, connection: Connection) -> dict[str, Any]:
        """Read a response, which must be 200 and the one to this request. Returns its JSON."""
        self.leave_if("before the answer")
        expect(await connection.head() == 200, "not 200")
        pieces = []
        async for data in connection.pieces():
            pieces.append(data)
            self.leave_if("in the answer")
            self.ledger.octets += len(data)
        answer: dict[str, Any] = json.loads(b"".join(pieces))
        expect(answer["id"] == self.id, f"the answer is for {answer['id']}")
        return answer

    async def ask(self, connection: Connection) -> None:
        await self.send_head(connection, "GET", f"/json?size={self.size(300_000)}")
        await self.read_text(connection, b"")

    async def post(self, connection: Connection) -> None:
        content = json.dumps({"prompt": "x" * self.size(60_000)}).encode()
        fields = ("Content-Type: application/json", f"Content-Length: {len(content)}")
        await self.send_head(connection, "POST", f"/json?size={self.size(30_000)}", *fields)
        await connection.send(content)
        await self.read_text(connection, content)

    async def read_text(self, connection: Connection, content: bytes) -> None:
        answer = await self.read_json(connection)
        expect(hashlib.sha256(answer["text"].encode()).hexdigest() == answer["digest"], "the text is not what was sent")
        expect(hashlib.sha256(content).hexdigest() == answer["content"], "the content has not arrived as it was sent")

    def size(self, most: int) -> int:
        """A random size of at most ``most``. It is mostly small and sometimes large."""
        return int(most * self.random.random() ** 6) + 1

    async def events(self, connection: Connection) -> None:
        count = self.random.randrange(1, 40)
        stop = self.random.randrange(count)
        await self.send_head(
            connection, "POST", f"/events?count={count}&pause={self.random.random() * 0.04:.3f}", "Content-Length: 2"
        )
        await connection.send(b"{}")
        self.leave_if("before the answer")
        expect(await connection.head() == 200, "not 200")
        number = 0
        rest = b""
        async for data in connection.pieces():
            *events, rest = (rest + data).split(b"\n\n")
            for event in events:
                expected = b'{"id": "%b", "number": %d}' % (self.id.encode(), number) if number < count else b"[DONE]"
                expect(event == b"data: " + expected, f"{event!r} instead of number {number}")
                number += 1
            if number > stop:
                self.leave_if("in the answer")
        expect(number == count + 1 and not rest, "the stream ends early")

    async def upload(self, connection: Connection) -> None:
        start, size = self.random.randrange(1 << 20), self.size(4 << 20)
        content = memoryview(BLOB)[start : start + size]
        chunked = self.kind == "upload, chunked"
        fields = ["Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"]
        if self.kind == "upload, Expect":
            fields.append("Expect: 100-continue")
        await self.send_head(connection, "POST", "/upload", *fields)
        if self.kind == "upload, Expect":
            expect(await connection.head() == 100, "not asked to go on")
        step = self.random.choice((1_000, 16_384, 70_000, 300_000)) if size > 10_000 else size
        stop = self.random.randrange(size)
        for at in range(0, size, step):
            piece = bytes(content[at : at + step])
            await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            self.ledger.octets += len(piece)
            if at + step > stop and at + step < size:
                self.leave_if("in the content")
        if chunked:
            await connection.send(b"0\r\n\r\n")
        answer = await self.read_json(connection)
        expect(answer["size"] == size, "the content's length is not what was sent")
        expect(answer["digest"] == hashlib.sha256(content).hexdigest(), "the content has not arrived as it was sent")

    async def never_read(self, connection: Connection) -> None:
        """Do not read a long response. The gateway must cut it."""
        await self.send_head(connection, "GET", "/flood")
        expect(await connection.head() == 200, "not 200")
        await asyncio.sleep(self.stall * 1.25 + 1)  # a reset is reported only when more is read
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            async for _ in connection.pieces():
                pass
            raise Wrong("a client that does not read got all")
        connection.last = True

    async def stop_sending(self, connection: Connection) -> None:
        """Send half of the content. The response must be 408."""
        content = bytes(self.size(1 << 20))
        await self.send_head(connection, "POST", "/upload", f"Content-Length: {2 * len(content)}")
        await connection.send(content)
        await self.stalled(connection, 408, "client_not_sending")

    async def be_stuck(self, connection: Connection) -> None:
        """Send content that upstream does not read. The response must be 504."""
        fields = (f"Content-Length: {FLOOD}",)
        await self.send_head(connection, "POST", f"/stuck?seconds={self.stall * 1.25 + 2}", *fields)
        sending = asyncio.create_task(connection.send(bytes(FLOOD)))
        try:
            await self.stalled(connection, 504, "upstream_not_reading")
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def stalled(self, connection: Connection, status: int, kind: str) -> None:
        expect(await connection.head() == status, f"not {status}")
        expect(json.loads(await connection.content())["error"]["type"] == kind, f"not {kind}")

    async def update(self, connection: Connection) -> None:
        """Send an update with unchanged, changed or absent routes, in turn.

        The outcome "unknown" is recorded as a failure of the lookup, which must be accounted for.
        """
        begin = now()
        case = 0 if self.id.endswith("-look-up") else int(self.id) // UPDATE_EVERY % 3
        routes = ({"allowed_routes": ROUTES}, {"allowed_routes": ["/other"]}, {})[case]
        sent = {**UPDATED, **routes}
        content = json.dumps(sent).encode()
        fields = ("Content-Type: application/json", f"Content-Length: {len(content)}")
        await self.send_head(connection, "POST", "/key/update", *fields)
        await connection.send(content)
        answer = await self.read_json(connection)
        outcome = connection.field(b"x-litellm-sanitizer").partition(b";")[0].decode()
        received = answer["received"]
        if outcome == "unknown" and routes:
            self.ledger.failures.append(Failure("lookup", "GET", self.id, "unknown", begin, now()))
        else:
            expect(outcome == ("dropped", "changed", "absent")[case], outcome)
        if outcome == "dropped":
            expect(json.loads(received) == UPDATED, f"upstream got {received}")
        else:
            expect(received == content.decode(), f"upstream got {received}")

    async def websocket(self, connection: Connection) -> None:
        protocol = ClientProtocol(parse_uri("ws://soak.test/ws"), max_size=None)
        handshake = protocol.connect()
        key = handshake.headers["Sec-WebSocket-Key"]
        fields = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}")
        protocol.send_request(handshake)
        protocol.data_to_send()  # discarded, because this head lacks our fields
        await self.send_head(connection, "GET", "/ws", *fields)
        self.leave_if("before the answer")
        expect(await connection.head() == 101, "no upgrade")
        protocol.receive_data(connection.raw_head)
        protocol.events_received()
        expect(protocol.handshake_exc is None, repr(protocol.handshake_exc))
        for _ in range(self.random.randrange(1, 12)):
            start, size = self.random.randrange(1 << 20), self.size(1 << 20)
            message = BLOB[start : start + size]
            protocol.send_binary(message)
            self.ledger.octets += size
            await self.flush(protocol, connection)
            self.leave_if("in the tunnel")
            echo = b""
            while len(echo) < size:
                data = await connection.reader.read(65536)
                if not data:
                    raise Cut
                protocol.receive_data(data)
                for event in protocol.events_received():
                    if isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                        echo += event.data
            expect(echo == message, "the echo is not what was sent")
            await asyncio.sleep(self.random.random() * 0.1)
        protocol.send_close(1000)
        await self.flush(protocol, connection)
        while protocol.close_rcvd is None and (data := await connection.reader.read(65536)):
            protocol.receive_data(data)
        if protocol.close_rcvd is None:
            raise Cut
        expect(protocol.close_rcvd.code == 1000, f"closed with {protocol.close_rcvd}")

    async def flush(self, protocol: ClientProtocol, connection: Connection) -> None:
        for data in protocol.data_to_send():
            if data:
                await connection.send(data)


ANSWERED = ("in the head", "before the answer", "in the answer")
STAGES = {
    "JSON": ANSWERED,
    "JSON POST": ANSWERED,
    "SSE": ANSWERED,
    "upload": (*ANSWERED, "in the content"),
    "upload, chunked": (*ANSWERED, "in the content"),
    "upload, Expect": (*ANSWERED, "in the content"),
    "WebSocket": ("in the head", "before the answer", "in the tunnel"),
    "key/update": ANSWERED,
    **dict.fromkeys(STALLS, ()),
}
"""The stages at which a client may leave, by kind of request."""


class Load:
    """Clients of the gateway at ``port`` of loopback. Their requests are numbered consecutively.

    ``stall``: the gateway's stall timeout, in seconds.
    """

    def __init__(self, port: int, ledger: Ledger, seed: int, stall: float) -> None:
        self._stall = stall
        self._port = port
        self._ledger = ledger
        self._seeds = random.Random(seed)
        self._numbers = itertools.count(1)

    def _visitor(self) -> Visitor:
        return Visitor(self._port, self._ledger, self._numbers, self._seeds.getrandbits(64), self._stall)

    async def run(self, clients: int, until: float) -> None:
        """Let ``clients`` clients send requests at once until `now` is ``until``."""
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._visitor().run(until))

    async def look_up(self) -> None:
        """Send one ``POST /key/update`` that needs a lookup."""
        await self._visitor().look_up()

    async def stall(self) -> None:
        """Send one request of each kind in which a peer stalls, all at once."""
        async with asyncio.TaskGroup() as group:
            for kind in STALLS:
                group.create_task(self._visitor().stall_once(kind))

"""The gateway as an ASGI app: it counts and logs each request as the command's own server does."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from sanitizer import app
from sanitizer.app import Gateway, create_app
from sanitizer.relay.counters import CLIENT_LEFT
from sanitizer.relay.stalls import StallSweep, Watched
from sanitizer.settings import load
from tests.support.asgi import JSON, Client, update
from tests.support.upstream import CLOSE, OK, WAIT_CLOSED, Script, Upstream, refusing_port, reply

pytestmark = pytest.mark.anyio

HOST = (b"host", b"gateway.test")
POST = [HOST, JSON]


@dataclass
class Request(Client):
    """A request, described as ASGI servers describe it."""

    @property
    def scope(self) -> dict[str, object]:
        raw = {"raw_path": self.path.encode(), "query_string": b"key=secret"}
        server = {"http_version": "1.1", "scheme": "http", "client": ("192.0.2.7", 1), "server": ("a", 80)}
        return {**super().scope, **raw, **server}

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream
        upstream.errors.clear()


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Gateway]:
    gateway = create_app(load({"upstream": upstream.url, "access_log": "true", "lookup_timeout": "0.2"}, {}))
    yield gateway
    gateway.close()


def answers(gateway: Gateway, method: bytes) -> dict[int, int]:
    return {index: count for index, count in enumerate(gateway.counters.responses[method]) if count}


@pytest.mark.parametrize(
    ("request_", "script", "status", "refused", "errors"),
    [
        pytest.param(Request(headers=[HOST], method="GET", path="/"), reply(OK), 200, [], {}, id="relayed"),
        pytest.param(Request([update()], POST), reply(OK), 200, [], {}, id="intercepted"),
        pytest.param(
            Request(headers=[HOST, *[(b"via", b"1.1 litellm-sanitizer-1")] * 9], method="GET", path="/"),
            reply(OK),
            508,
            ["loop_detected"],
            {},
            id="a loop",
        ),
        pytest.param(
            Request([update()], [*POST, *[(b"via", b"1.1 litellm-sanitizer-1")] * 9]),
            reply(OK),
            508,
            ["loop_detected"],
            {},
            id="a loop that would be intercepted",
        ),
        pytest.param(
            Request(headers=[HOST, HOST], method="GET", path="/"), reply(OK), 400, ["bad_request"], {}, id="two hosts"
        ),
        pytest.param(
            Request([b"12345"], [HOST, (b"content-length", b"4")], path="/"),
            reply(OK, early=True),
            400,
            ["bad_request"],
            {},
            id="more content than its length",
        ),
        pytest.param(
            Request([b"123"], [HOST, (b"content-length", b"4")], path="/"),
            reply(OK, early=True),
            400,
            ["bad_request"],
            {},
            id="less content than its length",
        ),
        pytest.param(
            Request(headers=[HOST], method="GET", path="/"),
            reply(b"HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n"),
            502,
            [],
            {"broken": 1},
            id="a status that ASGI servers can't send",
        ),
        pytest.param(
            Request([b"{"], POST),
            reply(b"HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n"),
            502,
            [],
            {"broken": 1},
            id="the same for an intercepted request",
        ),
        pytest.param(Request([b"{"], POST), reply(CLOSE), 502, [], {"broken": 1}, id="upstream closes"),
    ],
)
async def test_counted_and_logged(
    gateway: Gateway,
    upstream: Upstream,
    caplog: pytest.LogCaptureFixture,
    request_: Request,
    script: Script,
    status: int,
    refused: Sequence[str],
    errors: dict[str, int],
) -> None:
    """An error is counted once, as a refused request or as an upstream error. The access log omits the query."""
    caplog.set_level(logging.INFO)
    upstream.script = script
    await request_.through(gateway)
    assert request_.status == status
    assert answers(gateway, request_.method.encode()) == {status // 100: 1}
    assert (gateway.counters.in_flight, gateway.counters.refused) == (0, len(refused))
    assert {kind: count for kind, count in gateway.pool.errors.items() if count} == errors
    records = [(record.getMessage(), getattr(record, "fields", {})) for record in caplog.records]
    refusals = [(fields["kind"], fields["peer"]) for message, fields in records if message == "request refused"]
    assert refusals == [(kind, "192.0.2.7") for kind in refused]
    ((_, access),) = [record for record in records if record[0] == "request"]
    assert (access["method"], access["path"], access["status"]) == (request_.method, request_.path, status)
    assert access["client"] == "192.0.2.7"


async def test_caller(upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    """The log line of a decision has the caller's key hash and address, and X-Forwarded-For from a trusted proxy."""
    caplog.set_level(logging.INFO)
    fields = [(b"x-forwarded-for", b"203.0.113.7"), (b"authorization", b"Bearer sk-caller")]
    for proxies, addresses in (("", None), ("192.0.2.0/24", "203.0.113.7")):
        gateway = create_app(load({"upstream": upstream.url, "trusted_proxies": proxies}, {}))
        caplog.clear()
        assert (await Request([b"{"], [*POST, *fields]).through(gateway)).sent[0]["status"] == 200
        gateway.close()
        (said,) = [vars(record)["fields"] for record in caplog.records if "unreadable" in record.getMessage()]
        assert (said.get("caller"), said.get("client"), said.get("forwarded_for")) == (
            hashlib.sha256(b"sk-caller").hexdigest()[:8],
            "192.0.2.7",
            addresses,
        )


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(Request(headers=[HOST], method="GET", path="/"), id="relayed"),
        pytest.param(Request([b"{"], POST), id="intercepted"),
    ],
)
async def test_client_leaves(gateway: Gateway, upstream: Upstream, request_: Request) -> None:
    """A client that disconnects before its response has begun is counted as such, and not as an upstream error."""
    upstream.script = reply(WAIT_CLOSED)
    task = asyncio.create_task(request_.through(gateway))
    await asyncio.to_thread(upstream.wait_request)
    request_.leave()
    await task
    assert request_.sent == []
    assert answers(gateway, request_.method.encode()) == {CLIENT_LEFT: 1}
    assert gateway.counters.in_flight == 0
    assert not any(gateway.pool.errors.values())


async def test_untrusted_https(gateway: Gateway, upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    """``X-Forwarded-Proto: https`` from an untrusted peer is replaced, and one log line names the peer."""
    for _ in range(2):
        headers = [HOST, (b"x-forwarded-proto", b"https")]
        assert (await Request(headers=headers, method="GET", path="/").through(gateway)).sent[0]["status"] == 200
    (record,) = [record for record in caplog.records if "X-Forwarded-Proto: https" in record.getMessage()]
    assert vars(record)["fields"]["peer"] == "192.0.2.7"
    assert [request.get(b"x-forwarded-proto") for request in upstream.requests] == [b"http"] * 2


async def test_client_leaves_in_its_body(gateway: Gateway) -> None:
    """A client that disconnects while its intercepted body is collected is counted as such, and is sent nothing."""
    request = await Request([update()], POST, truncated=True).through(gateway)
    assert request.sent == []
    assert answers(gateway, b"POST") == {CLIENT_LEFT: 1}


async def test_server_fails(gateway: Gateway, upstream: Upstream) -> None:
    """An exception that the server's ``receive`` raises is passed on, and the request is counted as failed."""

    class Broken(Exception):
        pass

    async def receive() -> dict[str, object]:
        raise Broken

    upstream.script = reply(WAIT_CLOSED, early=True)
    request = Request(headers=[HOST, (b"content-length", b"4")], path="/")
    with pytest.raises(Broken):
        await gateway(request.scope, receive, request.send)
    assert answers(gateway, b"POST") == {5: 1}
    assert gateway.counters.in_flight == 0


async def test_start_that_fails(tmp_path: object) -> None:
    """A gateway that can't start reports this to the ASGI server, and is not left half started."""
    gateway = create_app(load({"upstream": "http://127.0.0.1:1"}, {}))
    object.__setattr__(gateway.settings, "upstream", load({"upstream": "https://localhost"}, {}).upstream)
    object.__setattr__(gateway.settings, "upstream_ca", f"{tmp_path}/gone.pem")
    messages = [{"type": "lifespan.startup"}]
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, str]:
        return messages.pop(0)

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await gateway({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert not hasattr(gateway, "upstream")


async def test_start_that_fails_half_way(gateway: Gateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """If ``start`` raises an exception, no stall sweep has been created, and ``start`` can be called again."""

    class Unthought(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise Unthought

    def sweep(timeout: float | None, connections: Callable[[], Iterable[Watched]]) -> StallSweep:
        made.append(StallSweep(timeout, connections))
        return made[-1]

    made: list[StallSweep] = []
    monkeypatch.setattr(app, "StallSweep", sweep)
    for name in ("Pool", "Relay", "SanitizerMiddleware"):
        with monkeypatch.context() as patch:
            patch.setattr(app, name, fail)
            with pytest.raises(Unthought):
                gateway.start()
        assert made == []
    await Request(headers=[HOST], method="GET", path="/").through(gateway)
    assert answers(gateway, b"GET") == {2: 1}
    assert len(made) == 1


async def test_unreachable() -> None:
    """An upstream that refuses the connection is counted as unreachable, and the response is 502."""
    with refusing_port() as port:
        gateway = create_app(load({"upstream": f"http://127.0.0.1:{port}"}, {}))
        request = Request([b"{"], POST)
        await request.through(gateway)
        assert (request.status, request.field_values) == (502, [b'unreadable; reason="not_json"'])
        assert gateway.pool.errors["unreachable"] == 1
        gateway.close()

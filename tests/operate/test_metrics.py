"""Every metric, changed by requests over real sockets, and read by prometheus-client's own parser."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from sanitizer import FORM, __version__
from sanitizer.errors import GatewayError
from sanitizer.operate import metrics
from sanitizer.relay import pool as pool_module
from sanitizer.relay.counters import Counters
from sanitizer.sanitize.core import Record
from sanitizer.sanitize.decision import Decision, Outcome
from sanitizer.sanitize.stored import Lookup, LookupOutcome
from tests.operate.exchanges import (
    BUDGET,
    CUT,
    HANDSHAKE,
    KEY,
    SPEND,
    SWITCH,
    UPDATE,
    answer,
    lookup,
    refusing,
    request,
    stored,
    update,
)
from tests.operate.exposition import Numbers, families, wait_for, wait_until_ready
from tests.support.gateway import Gateway
from tests.support.upstream import CLOSE, OK, WAIT_CLOSED, Connection, Script, Upstream, refusing_port, reply
from tests.support.wire import Cut


def decided(outcome: str) -> str:
    return f'sanitizer_decisions_total{{endpoint="/key/update",outcome="{outcome}"}}'


def ended(method: str, status: str) -> str:
    return f'sanitizer_requests_total{{method="{method}",status="{status}"}}'


def looked_up(outcome: str) -> str:
    return f'sanitizer_lookup_seconds_count{{outcome="{outcome}"}}'


HEAD = "sanitizer_upstream_seconds_count"
RESENT = 'sanitizer_resent_total{endpoint="/key/update"}'


def dropped(*fields: str) -> dict[str, float]:
    return {decided("dropped"): 1, **{f'sanitizer_dropped_fields_total{{field="{name}"}}': 1 for name in fields}}


CASES: dict[str, tuple[bytes, Script, dict[str, float]]] = {
    "relayed": (request(), reply(OK), {ended("GET", "2xx"): 1, HEAD: 1}),
    "a redirect": (request("PUT"), reply(answer("307 Temporary Redirect")), {ended("PUT", "3xx"): 1, HEAD: 1}),
    "refused by LiteLLM": (request("DELETE"), reply(answer("401 No")), {ended("DELETE", "4xx"): 1, HEAD: 1}),
    "failed by LiteLLM": (request("PATCH"), reply(answer("500 Oh")), {ended("PATCH", "5xx"): 1, HEAD: 1}),
    "a status of no class": (request("POST"), reply(answer("799 Odd")), {ended("POST", "7xx"): 1, HEAD: 1}),
    "LiteLLM's own 499": (
        request(),
        reply(answer("499 Gone")),
        {ended("GET", "4xx"): 1, HEAD: 1},
    ),
    "a method of the client's": (request("REPORT"), reply(OK), {ended("other", "2xx"): 1, HEAD: 1}),
    "HEAD": (request("HEAD"), reply(b"HTTP/1.1 200 OK\r\n\r\n"), {ended("HEAD", "2xx"): 1, HEAD: 1}),
    "malformed": (b"GET / HTTP/1.1\r\nHost a\r\n\r\n", reply(OK), {ended("other", "4xx"): 1}),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", reply(OK), {ended("GET", "4xx"): 1}),
    "not HTTP": (b"?\r\n\r\n", reply(OK), {ended("other", "4xx"): 1}),
    "a head too large": (request(fields=f"A: {'a' * 70000}\r\n"), reply(OK), {ended("other", "4xx"): 1}),
    "a loop": (
        request(fields="".join(f"Via: 1.1 litellm-sanitizer-{n}\r\n" for n in range(9))),
        reply(OK),
        {ended("GET", "5xx"): 1},
    ),
    "malformed content": (
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        reply(WAIT_CLOSED, early=True),
        {ended("PUT", "4xx"): 1},
    ),
    "upstream closes": (
        request("POST"),
        reply(CLOSE),
        {ended("POST", "5xx"): 1, 'sanitizer_upstream_errors_total{kind="broken"}': 1},
    ),
    "upstream breaks off": (
        request("POST"),
        reply(CUT, CLOSE),
        {ended("POST", "2xx"): 1, HEAD: 1, 'sanitizer_upstream_errors_total{kind="broken"}': 1},
    ),
    "upstream does not answer": (
        request("POST"),
        reply(WAIT_CLOSED),
        {ended("POST", "5xx"): 1, 'sanitizer_upstream_errors_total{kind="response_timeout"}': 1},
    ),
    "a tunnel": (HANDSHAKE, reply(SWITCH, CLOSE), {ended("GET", "1xx"): 1, HEAD: 1}),
    "a tunnel refused": (HANDSHAKE, reply(answer("403 No")), {ended("GET", "4xx"): 1, HEAD: 1}),
    "dropped": (
        update(),
        lookup(stored(["/a"])),
        {
            decided("dropped"): 1,
            'sanitizer_dropped_fields_total{field="allowed_routes"}': 1,
            looked_up("ok"): 1,
            ended("POST", "2xx"): 1,
            HEAD: 2,
        },
    ),
    "changed": (
        update(),
        lookup(stored(["/b"]), then=answer("403 No")),
        {decided("changed"): 1, looked_up("ok"): 1, ended("POST", "4xx"): 1, HEAD: 2},
    ),
    "accepted": (SPEND, reply(OK), {decided("changed"): 1, ended("POST", "2xx"): 1, HEAD: 1}),
    "refused for another reason": (
        SPEND,
        reply(answer("403 No", {"error": {"message": "no"}})),
        {decided("changed"): 1, ended("POST", "4xx"): 1, HEAD: 1},
    ),
    "sent again": (
        SPEND,
        refusing("403 No", BUDGET, {"spend": 1.5}, b"spend"),
        {**dropped("spend"), RESENT: 1, looked_up("ok"): 1, ended("POST", "2xx"): 1, HEAD: 3},
    ),
    "sent again, and refused again": (
        update(json.dumps({"key": KEY, "spend": 1.5, "soft_budget": 2}).encode()),
        refusing("403 No", BUDGET, {"spend": 1.5, "litellm_budget_table": None}, b"spend", b"soft_budget"),
        {**dropped("spend"), RESENT: 1, looked_up("ok"): 1, ended("POST", "4xx"): 1, HEAD: 3},
    ),
    "sent again after another cut": (
        update(json.dumps({"key": KEY, "permissions": {}, "spend": 1.5}).encode()),
        refusing("403 No", BUDGET, {"permissions": {}, "spend": 1.5}, b"spend"),
        {**dropped("permissions", "spend"), RESENT: 1, looked_up("ok"): 1, ended("POST", "2xx"): 1, HEAD: 3},
    ),
    "sent again after a 400": (
        update(json.dumps({"key": KEY, "key_alias": ""}).encode()),
        refusing(
            "400 No",
            "Key with alias '' already exists. Unique key aliases across all keys are required.",
            {"key_alias": None},
            b"key_alias",
        ),
        {**dropped("key_alias"), RESENT: 1, looked_up("ok"): 1, ended("POST", "2xx"): 1, HEAD: 3},
    ),
    "a real change, refused": (
        SPEND,
        refusing("403 No", BUDGET, {"spend": 2}, b"spend"),
        {decided("changed"): 1, looked_up("ok"): 1, ended("POST", "4xx"): 1, HEAD: 2},
    ),
    "absent": (update(b'{"key":"sk-1"}'), reply(OK), {decided("absent"): 1, ended("POST", "2xx"): 1, HEAD: 1}),
    "unreadable": (update(b"{"), reply(OK), {decided("unreadable"): 1, ended("POST", "2xx"): 1, HEAD: 1}),
    "no key": (
        update(b'{"allowed_routes":[]}'),
        reply(OK),
        {decided("unknown"): 1, ended("POST", "2xx"): 1, HEAD: 1},
    ),
    "a stored value of another shape": (
        update(),
        lookup(stored({})),
        {decided("unknown"): 1, looked_up("ok"): 1, ended("POST", "2xx"): 1, HEAD: 2},
    ),
    **{
        f"a lookup answered {status}": (
            update(),
            lookup(answer(status)),
            {decided("unknown"): 1, looked_up(outcome): 1, ended("POST", "2xx"): 1, HEAD: 2},
        )
        for status, outcome in (
            ("302 Found", "3xx"),
            ("403 Forbidden", "4xx"),
            ("500 Oh", "5xx"),
            ("206 Partial", "unusable"),
            ("200 OK", "unusable"),
        )
    },
    "a lookup unanswered": (
        update(),
        lookup(WAIT_CLOSED),
        {decided("unknown"): 1, looked_up("timeout"): 1, ended("POST", "2xx"): 1, HEAD: 1},
    ),
    "a lookup broken off": (
        update(),
        lookup(CLOSE),
        {
            decided("unknown"): 1,
            looked_up("failed"): 1,
            ended("POST", "2xx"): 1,
            HEAD: 1,
            'sanitizer_upstream_errors_total{kind="broken"}': 1,
        },
    ),
    "an update that upstream fails": (
        update(b"{"),
        reply(CLOSE),
        {decided("unreadable"): 1, ended("POST", "5xx"): 1, 'sanitizer_upstream_errors_total{kind="broken"}': 1},
    ),
    "an update whose answer is cut": (
        update(b"{"),
        reply(CUT, CLOSE),
        {
            decided("unreadable"): 1,
            ended("POST", "2xx"): 1,
            HEAD: 1,
            'sanitizer_upstream_errors_total{kind="broken"}': 1,
        },
    ),
    "an update with malformed content": (
        b"POST /key/update HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        reply(OK),
        {decided("unreadable"): 1, ended("POST", "4xx"): 1},
    ),
}


def totals(changed: dict[str, float]) -> dict[str, float]:
    """The counters and the counts of histograms among ``changed``."""
    return {name: by for name, by in changed.items() if name.partition("{")[0].endswith(("_total", "_count"))}


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Gateway, Upstream]]:
    options = ("--response-timeout", "3", "--lookup-timeout", "2", "--upstream-keepalive", "0")
    with Upstream() as upstream, Gateway(upstream.url, *options, admin=True) as gateway:
        wait_until_ready(gateway)
        yield gateway, upstream


@pytest.mark.parametrize("case", CASES)
def test_counted_once(running: tuple[Gateway, Upstream], case: str) -> None:
    """A request changes exactly the expected counters, and leaves nothing in flight."""
    gateway, upstream = running
    message, upstream.script, expected = CASES[case]
    before = Numbers.of(gateway)
    with gateway.connect() as client:
        client.send(message)
        with contextlib.suppress(Cut):
            client.read_response(message.split(b" ")[0])
    # a later request is counted later: when it has been counted, so has the first one
    upstream.script = reply(OK)
    assert gateway.ask(request("OPTIONS")).status == 200
    expected = {**expected, ended("OPTIONS", "2xx"): 1, HEAD: expected.get(HEAD, 0) + 1}
    after = wait_for(gateway, lambda numbers: ended("OPTIONS", "2xx") in numbers.since(before))
    assert totals(after.since(before)) == expected
    wait_for(gateway, lambda n: n["sanitizer_requests_in_flight"] == n["sanitizer_tunnels_in_flight"] == 0)
    upstream.errors.clear()


def test_repeated_heads(running: tuple[Gateway, Upstream]) -> None:
    """Requests that repeat a head, and pipelined requests, are counted as all others are."""
    gateway, upstream = running
    upstream.script = reply(OK)
    before = Numbers.of(gateway)
    with gateway.connect() as client:
        for length in (3, 3, 30):
            client.send(request("TRACE", body=b"a" * length))
            assert client.read_response().status == 200
        client.send(request("TRACE") * 2)
        assert [client.read_response().status for _ in range(2)] == [200, 200]
    after = wait_for(gateway, lambda numbers: numbers.since(before).get(ended("TRACE", "2xx"), 0) >= 5)
    assert totals(after.since(before)) == {ended("TRACE", "2xx"): 5, HEAD: 5}


@pytest.mark.parametrize("message", [request("PUT"), update(b"{")], ids=["relayed", "intercepted"])
@pytest.mark.parametrize("begun", [False, True], ids=["before the answer", "in the answer"])
def test_client_leaves(running: tuple[Gateway, Upstream], message: bytes, begun: bool) -> None:
    """If the client leaves, the request counts as 499 or, once the response has begun, by the response's status."""
    gateway, upstream = running
    upstream.script = reply(CUT, WAIT_CLOSED) if begun else reply(WAIT_CLOSED)
    method = message.split(b" ")[0].decode()
    number = len(upstream.requests)
    before = Numbers.of(gateway)
    with gateway.connect() as client:
        client.send(message)
        upstream.wait_request(number + 1)
        wait_for(gateway, lambda numbers: numbers["sanitizer_requests_in_flight"] == 1)
        if begun:
            client.read_until(b"half")
    name = ended(method, "2xx" if begun else "499")
    after = wait_for(gateway, lambda numbers: name in numbers.since(before))
    changed = {series: by for series, by in totals(after.since(before)).items() if "requests_total" in series}
    assert changed == {name: 1}
    wait_for(gateway, lambda numbers: numbers["sanitizer_requests_in_flight"] == 0)


def test_gauges(upstream: Upstream) -> None:
    """The gauges show the requests in flight, the tunnels, and the connections to upstream by state."""
    go = threading.Event()

    def script(connection: Connection) -> None:
        if connection.read_request().target == b"/ws":
            connection.send(SWITCH)
            while connection.recv():
                pass
        else:
            assert go.wait(30)
            connection.send(OK)

    upstream.script = script
    with Gateway(upstream.url, "--upstream-keepalive", "60", admin=True) as gateway:
        with gateway.connect() as tunnel, gateway.connect() as waiting:
            tunnel.send(HANDSHAKE)
            assert tunnel.read_head().status == 101
            waiting.send(request())
            numbers = wait_for(gateway, lambda n: n["sanitizer_requests_in_flight"] == 1)
            assert numbers["sanitizer_tunnels_in_flight"] == 1
            assert numbers['sanitizer_upstream_connections{state="busy"}'] == 2
            assert numbers['sanitizer_upstream_connections{state="idle"}'] == 0
            go.set()
            assert waiting.read_response().status == 200
        wait_for(
            gateway,
            lambda n: (
                (n["sanitizer_requests_in_flight"], n["sanitizer_tunnels_in_flight"]) == (0, 0)
                and n['sanitizer_upstream_connections{state="busy"}'] == 0
                and n['sanitizer_upstream_connections{state="idle"}'] == 1
            ),
        )


def test_exhausted(upstream: Upstream) -> None:
    """A request that gets no connection within the connect timeout counts as the error `pool_exhausted`."""
    upstream.script = reply(WAIT_CLOSED)
    options = ("--max-connections", "1", "--connect-timeout", "2")
    with Gateway(upstream.url, *options, admin=True) as gateway, gateway.connect() as first:
        first.send(request())
        wait_for(gateway, lambda n: n['sanitizer_upstream_connections{state="busy"}'] == 1)
        assert gateway.ask(request()).status == 503
        name = 'sanitizer_upstream_errors_total{kind="pool_exhausted"}'
        assert wait_for(gateway, lambda n: n[name] == 1)[ended("GET", "5xx")] == 1


def test_connecting(upstream: Upstream) -> None:
    """A connection whose TLS handshake is not answered counts as being made, and then as a `connect_timeout`."""
    upstream.script = reply(WAIT_CLOSED)
    options = ("--connect-timeout", "3")
    with Gateway(f"https://127.0.0.1:{upstream.port}", *options, admin=True) as gateway, gateway.connect() as client:
        client.send(request())
        wait_for(gateway, lambda n: n['sanitizer_upstream_connections{state="connecting"}'] == 1)
        assert client.read_response().status == 504
        name = 'sanitizer_upstream_errors_total{kind="connect_timeout"}'
        numbers = wait_for(gateway, lambda n: n[name] == 1)
        assert numbers['sanitizer_upstream_connections{state="connecting"}'] == 0
    upstream.errors.clear()


def test_observed(upstream: Upstream) -> None:
    """In mode observe, a decision to cut a member is counted, logged and reported to the client as `observed`.

    The request is forwarded unchanged.
    """
    upstream.script = lookup(stored(["/a"]))
    with Gateway(upstream.url, "--mode", "observe", admin=True) as gateway:
        response = gateway.ask(update())
        assert response.all(b"x-litellm-sanitizer") == [b'observed; fields="allowed_routes"']
        numbers = wait_for(gateway, lambda numbers: numbers[decided("observed")] == 1)
        assert numbers['sanitizer_dropped_fields_total{field="allowed_routes"}'] == 0
        assert numbers[decided("dropped")] == 0
        assert numbers[looked_up("ok")] == 1
        forwarded = upstream.wait_request(2)
        assert (forwarded.method, forwarded.body) == (b"POST", UPDATE)
        gateway.wait_for_line("observed")
        (line,) = [record for record in gateway.records if record["message"] == "/key/update observed"]
        assert (line["outcome"], line["fields"], line["status"]) == ("observed", "allowed_routes", 200)


def test_observed_refusal(upstream: Upstream) -> None:
    """In mode observe, a refusal causes a lookup, but the request is not resent, and LiteLLM's refusal is relayed."""
    upstream.script = refusing("403 No", BUDGET, {"spend": 1.5}, b"spend")
    with Gateway(upstream.url, "--mode", "observe", admin=True) as gateway:
        response = gateway.ask(SPEND)
        assert response.status == 403
        assert response.all(b"x-litellm-sanitizer") == [b'observed; fields="spend"; after-refusal="spend"']
        numbers = wait_for(gateway, lambda numbers: numbers[decided("observed")] == 1)
        assert numbers[RESENT] == numbers['sanitizer_dropped_fields_total{field="spend"}'] == 0
        assert numbers[looked_up("ok")] == 1


def test_unreachable() -> None:
    """An unreachable upstream counts as an error of the request and of the lookup, and the gateway is not ready."""
    with refusing_port() as port, Gateway(f"http://127.0.0.1:{port}", admin=True) as gateway:
        assert gateway.ask(update()).status == 502
        numbers = wait_for(gateway, lambda n: n[ended("POST", "5xx")] == 1)
        assert numbers['sanitizer_upstream_errors_total{kind="unreachable"}'] == 2
        assert numbers[looked_up("failed")] == numbers[decided("unknown")] == 1
        assert numbers["sanitizer_ready"] == 0


def test_exposition(running: tuple[Gateway, Upstream]) -> None:
    """Every metric is exposed with its type, its help and exactly its own labels, and no other metric is."""
    gateway, _ = running
    assert gateway.ask_admin("/metrics").all(b"content-type")[0].startswith(b"text/plain; version=")
    shown = {family.name: family for family in families(gateway)}
    assert sorted(shown) == sorted(family.name.removesuffix("_total") for family in metrics.FAMILIES)
    for family in metrics.FAMILIES:
        metric = shown[family.name.removesuffix("_total")]
        assert (metric.type, metric.documentation) == (family.kind, family.help)
        assert metric.samples, family.name
        for sample in metric.samples:
            assert set(sample.labels) - {"le"} == set(family.labels), sample
    assert shown["sanitizer_build_info"].samples[0].labels == {"version": __version__, "form": FORM}
    for name in ("sanitizer_lookup_seconds", "sanitizer_upstream_seconds"):
        buckets = [each for each in shown[name].samples if each.name == f"{name}_bucket"]
        assert buckets[-1].labels["le"] == "+Inf"
        count = next(each.value for each in shown[name].samples if each.name == f"{name}_count")
        first = [each.value for each in buckets if each.labels.get("outcome", "ok") == "ok"]
        assert first == sorted(first)
        assert first[-1] == count


def test_every_kind_of_error_is_known() -> None:
    """Every kind of error of an exchange, and every kind of stalled client, has a series. No other error has one.

    The errors for a client's own mistakes, and for a loop, are counted by status only.
    """

    def leaves(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
        below = kind.__subclasses__()
        yield from ([kind] if not below else [leaf for each in below for leaf in leaves(each)])

    own = {"bad_request", "head_too_large", "loop_detected"}
    stalled = set(Counters().stalled)
    exchange = {each.kind for each in pool_module._ERRORS}
    assert exchange | stalled == {each.kind for each in leaves(GatewayError)} - own
    assert not exchange & stalled


def test_workers(upstream: Upstream) -> None:
    """With two workers the sums are right, and the counts of a worker that is killed and replaced are kept."""
    with Gateway(upstream.url, "--workers", "2", admin=True) as gateway:
        wait_until_ready(gateway)
        for _ in range(60):
            assert gateway.ask(request()).status == 200
        assert gateway.ask(update(b"{")).status == 200
        numbers = wait_for(gateway, lambda n: n[ended("GET", "2xx")] >= 60 and n[ended("POST", "2xx")] >= 1)
        assert (numbers[ended("GET", "2xx")], numbers[HEAD]) == (60, 61)
        assert numbers["sanitizer_build_info" + f'{{form="{FORM}",version="{__version__}"}}'] == 1
        workers = gateway.workers()
        assert len(workers) == 2
        for pid in workers:  # both, because either may have counted more
            os.kill(pid, signal.SIGKILL)
        wait_for_workers(gateway, without=workers)
        wait_until_ready(gateway)
        assert Numbers.of(gateway)[ended("GET", "2xx")] == 60
        assert gateway.ask(request()).status == 200
        numbers = wait_for(gateway, lambda n: n[ended("GET", "2xx")] > 60)
        assert (numbers[ended("GET", "2xx")], numbers[HEAD], numbers[decided("unreadable")]) == (61, 62, 1)
        assert numbers["sanitizer_requests_in_flight"] == 0


def wait_for_workers(gateway: Gateway, without: list[int]) -> None:
    for _ in range(len(without)):
        gateway.wait_for_line("a worker has died")
    wait_for(gateway, lambda _: len(set(gateway.workers()) - set(without)) == len(without))


def test_lookup_with_the_lookup_credential() -> None:
    """A lookup with the lookup credential is counted by the class of LiteLLM's status, as any other lookup is."""
    decisions = metrics.Decisions()
    decision = Decision(Outcome.UNKNOWN, reason="lookup_key_401", lookup_key=True)
    lookups = (Lookup(LookupOutcome.of_status(401), 0.1, lookup_key=True),)
    decisions.add(Record(endpoint="/key/update", decision=decision, lookups=lookups))
    assert {outcome: sum(histogram.counts) for outcome, histogram in decisions.lookups.items() if histogram.sum} == {
        "4xx": 1
    }

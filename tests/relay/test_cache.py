"""With ``--cache-ttl``, every request that may change a key, but is not intercepted, empties the cache.

The tests send updates with unchanged routes, with both adapters. An update is looked up if the cache is empty, and is
decided with the cached value otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator

import pytest

from tests.support.client import Client
from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import CLOSE, OK, WAIT_CLOSED, Connection, Script, Step, Upstream, perform
from tests.support.wire import Cut

HASH = hashlib.sha256(b"sk-cached").hexdigest()
UPDATE = json.dumps({"key": "sk-cached", "allowed_routes": ["/a"]}).encode()
INFO = json.dumps({"key": HASH, "info": {"allowed_routes": ["/a"]}}).encode()
LOOKUP = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(INFO), INFO)


def litellm(*steps: bytes | Step | threading.Event, path: bytes = b"/team/") -> Script:
    """An upstream that performs ``steps`` if the target contains ``path``, and answers all other requests."""

    def script(connection: Connection) -> None:
        request = connection.read_request()
        if path in request.target and steps:
            perform(connection, *steps)
        elif b"/key/info" in request.target and request.method == b"GET":
            connection.send(LOOKUP)
        else:
            connection.send(OK)

    return script


@pytest.fixture(scope="module")
def gateway(adapter: Adapter, running_upstream: Upstream) -> Iterator[Gateway]:
    options = ("--cache-ttl", "10", "--root-path", "/p")
    with Gateway(running_upstream.url, *options, adapter=adapter) as gateway:
        yield gateway


@pytest.fixture
def client(gateway: Gateway, upstream: Upstream) -> Iterator[Client]:
    upstream.script = litellm()
    with gateway.connect() as client:
        client.ask(request("PATCH", "/key/x"))  # empties the cache that the test before has filled
        yield client


def request(method: str, target: str, body: bytes = b"", *fields: bytes) -> bytes:
    lines = (f"{method} {target} HTTP/1.1".encode(), b"Host: h", b"Content-Length: %d" % len(body), *fields)
    return b"\r\n".join((*lines, b"", body))


def looks_up(upstream: Upstream, client: Client) -> bool:
    """Send an update. Returns whether it was looked up instead of being decided with the cached value."""
    before = len(upstream.requests)
    response = client.ask(request("POST", "/key/update", UPDATE, b"Content-Type: application/json"))
    assert response.get(b"x-litellm-sanitizer") == b'dropped; fields="allowed_routes"'
    return len(upstream.requests) - before == 2


WRITES = [
    *((method, "/key/sk-1/x") for method in ("POST", "PUT", "PATCH", "DELETE", "QUERY")),
    ("POST", "/key/delete"),
    ("POST", "/key/block?x=/"),
    ("POST", "/%6Bey/bulk_update"),
    ("POST", "/team/update"),
    ("POST", "/p/team/update"),
    ("POST", "/team"),
    ("POST", "/user/delete"),
    ("POST", "/access_group/new"),
    ("DELETE", "/access_group/a/delete"),
    ("POST", "/v1/access_group"),
    ("PUT", "/v1/access_group/a"),
    ("DELETE", "/p/v1/access_group/a"),
    ("PUT", "/v1/unified_access_group/a"),
]


@pytest.mark.parametrize(("method", "target"), WRITES)
def test_writes_empty(upstream: Upstream, client: Client, method: str, target: str) -> None:
    """A request that may change keys empties the cache each time, and is relayed like any other."""
    for _ in range(3):  # repeated, because the head of a repeated request is cached
        assert looks_up(upstream, client)
        assert not looks_up(upstream, client)
        response = client.ask(request(method, target, b"content"))
        assert (response.status, response.body, response.get(b"x-litellm-sanitizer")) == (200, b"ok", None)
        assert (upstream.requests[-1].method, upstream.requests[-1].body) == (method.encode(), b"content")


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *((method, "/team/update") for method in ("GET", "HEAD", "OPTIONS")),
        ("POST", "/v1/chat/completions"),
        ("POST", "/keys/delete"),
        ("POST", "/teams"),
        ("POST", "/q/team/update"),
        ("POST", "/v1/chat/key/"),
        ("POST", "/v2/key/info"),
        ("PUT", "/v1/access_groups/a"),
        ("POST", "/x?/key/delete"),
    ],
)
def test_others_do_not(upstream: Upstream, client: Client, method: str, target: str) -> None:
    """No other request empties the cache."""
    assert looks_up(upstream, client)
    assert client.ask(request(method, target)).status == 200
    assert not looks_up(upstream, client)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(OK, id="a complete response"),
        pytest.param(CLOSE, id="no response"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", id="an incomplete response"),
    ],
)
def test_while_it_is_under_way(gateway: Gateway, upstream: Upstream, client: Client, end: bytes | Step) -> None:
    """A value looked up while a write is in progress is not cached, because it may be stale. Later values are."""
    finish = threading.Event()
    upstream.script = litellm(finish, end, CLOSE)
    with gateway.connect() as writer:
        writer.send(request("POST", "/team/update", b"content", b"Connection: close"))
        upstream.wait_for(lambda: any(each.complete and b"/team/" in each.target for each in upstream.requests))
        assert looks_up(upstream, client)
        assert looks_up(upstream, client)
        finish.set()
        with contextlib.suppress(Cut):
            writer.read_to_end()
    upstream.script = litellm()
    assert looks_up(upstream, client)
    assert not looks_up(upstream, client)


def test_client_leaves(gateway: Gateway, upstream: Upstream, client: Client) -> None:
    """If a client disconnects before the response to its write, the cache is used again afterwards."""
    upstream.script = litellm(WAIT_CLOSED)
    with gateway.connect() as writer:
        writer.send(request("POST", "/team/update", b"content"))
        upstream.wait_for(lambda: any(each.complete and b"/team/" in each.target for each in upstream.requests))
        number = next(each.connection for each in upstream.requests if b"/team/" in each.target)
    upstream.wait_closed(number)
    assert looks_up(upstream, client)
    assert not looks_up(upstream, client)

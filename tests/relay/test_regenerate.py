"""The two paths that regenerate a key: which key the gateway looks up, and which body it forwards.

A real LiteLLM regenerates keys only with an Enterprise licence, so ``tests/litellm`` can test its refusals only. Here
upstream is scripted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.upstream import OK, Connection, Upstream

KEY = "sk-key-to-regenerate"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
STORED: dict[str, Any] = {"allowed_routes": ["llm_api_routes"], "permissions": {"allow_pii_controls": True}}
INFO = json.dumps({"key": HASH, "info": STORED}).encode()
NAMED = "/key/{key}/regenerate"
DROPPED = 'dropped; fields="allowed_routes,permissions"'


def litellm(connection: Connection) -> None:
    if connection.read_request().method == b"GET":
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(INFO), INFO))
    else:
        connection.send(OK)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream(litellm) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Gateway]:
    with Gateway(upstream.url) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("path", "body", "looked_up", "forwarded", "mark"),
    [
        pytest.param("/key/regenerate", {"key": KEY, **STORED}, True, {"key": KEY}, DROPPED, id="key in the body"),
        pytest.param("/key/regenerate", {"key": HASH, **STORED}, True, {"key": HASH}, DROPPED, id="hash in the body"),
        pytest.param(NAMED, STORED, True, {}, DROPPED, id="key in the path"),
        pytest.param(NAMED.replace("{key}", HASH), STORED, True, {}, DROPPED, id="hash in the path"),
        pytest.param(
            "/key/sk-other/regenerate",
            {"key": KEY, **STORED},
            True,
            {"key": KEY},
            DROPPED,
            id="key in the body, another one in the path",
        ),
        pytest.param(NAMED, {"permissions": {}}, True, {"permissions": {}}, "changed", id="a real change"),
        pytest.param(NAMED, {"permissions": None}, False, {"permissions": None}, "changed", id="null"),
        pytest.param(NAMED, {"duration": "1d"}, False, {"duration": "1d"}, "absent", id="no guarded member"),
        pytest.param(NAMED, None, False, None, "absent", id="no body"),
        pytest.param("/key/regenerate", STORED, False, STORED, 'unknown; reason="no_key"', id="no key"),
        pytest.param("/key/a/{key}/regenerate", STORED, False, STORED, None, id="a path that is not intercepted"),
    ],
)
def test_regenerate(
    path: str, body: Any, looked_up: bool, forwarded: Any, mark: str | None, gateway: Gateway, upstream: Upstream
) -> None:
    """A key in the body takes precedence over one in the path. Only unchanged members are cut, and no key is logged."""
    upstream.restart(litellm)
    content = b"" if body is None else json.dumps(body).encode()
    head = f"POST {path.replace('{key}', KEY)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    answer = gateway.ask(head.encode(), content)
    assert answer.status == 200
    assert answer.all(b"x-litellm-sanitizer") == ([mark.encode()] if mark else [])
    *lookups, sent = upstream.requests
    assert [lookup.target.decode() for lookup in lookups] == [f"/key/info?key={HASH}"] * looked_up
    assert sent.target.decode() == path.replace("{key}", KEY)
    assert sent.body == content if body == forwarded else json.loads(sent.body) == forwarded
    assert not [line for line in gateway.lines if KEY in line or HASH in line]

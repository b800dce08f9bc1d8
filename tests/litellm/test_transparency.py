"""A request that is not an update of a key has the same response from LiteLLM, direct and through the gateway."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.litellm.actors import CHAT, LiteLLM, User, bearer, client, hashed
from tests.litellm.answers import IDENTITY, assert_same_answer, end_to_end
from tests.litellm.conftest import everywhere

# the same for both: LiteLLM builds its redirects from it, and the gateway forwards it
HOST = {"Host": "litellm.example:4000"}


def both(
    litellm: LiteLLM, gateway: str, method: str, path: str, **request: Any
) -> tuple[httpx.Response, httpx.Response]:
    request["headers"] = {**HOST, **request.get("headers", {})}
    with client(litellm.url) as direct, client(gateway) as through:
        return direct.request(method, path, **request), through.request(method, path, **request)


@everywhere
@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        pytest.param("GET", "/health/liveliness", {}, 200, id="liveliness"),
        pytest.param("GET", "/health/readiness", {}, 200, id="readiness"),
        pytest.param("HEAD", "/health/liveliness", {}, 405, id="head-refused"),
        pytest.param("GET", "/", {}, 200, id="root"),
        pytest.param("GET", "/no/such/page", {}, 404, id="not-found"),
        pytest.param("GET", "/no/such/page?a=1&a=2&", {}, 404, id="not-found-query"),
        pytest.param("GET", "/%2e%2e/a%2Fb;c", {}, 404, id="escaped-path"),
        pytest.param("GET", "/key/update", {}, 405, id="get-key-update"),
        pytest.param("POST", "/key/update/", {"json": {"key": "x", "allowed_routes": []}}, 307, id="trailing-slash"),
        pytest.param("POST", "//key/update", {"json": {"key": "x", "allowed_routes": []}}, 404, id="double-slash"),
        pytest.param("GET", "/ui", {}, 307, id="redirect"),
        pytest.param("GET", "/ui/", {}, 200, id="dashboard"),
        pytest.param("HEAD", "/ui/", {}, 200, id="head"),
        pytest.param("GET", "/ui/", {"headers": {"Accept-Encoding": "gzip, br, zstd"}}, 200, id="encodings"),
        pytest.param("GET", "/key/info", {}, 401, id="unauthorised"),
        pytest.param("POST", "/v1/chat/completions", {"json": CHAT}, 401, id="chat-unauthorised"),
        pytest.param("POST", "/v1/chat/completions", {"content": b"{"}, 400, id="chat-not-json"),
        pytest.param(
            "OPTIONS",
            "/v1/models",
            {"headers": {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}},
            200,
            id="preflight",
        ),
    ],
)
def test_without_a_key(
    litellm: LiteLLM, gateway: str, method: str, path: str, request_: dict[str, Any], status: int
) -> None:
    """Pages, redirects and errors that need no key are the same through the gateway."""
    direct, through = both(litellm, gateway, method, path, **request_)
    assert_same_answer(direct, through)
    if path.startswith("/v1/chat") and direct.status_code != status:
        assert direct.status_code in (400, 401)  # which is checked first, the body or the key, varies by release
    else:
        assert direct.status_code == status


@everywhere
@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        pytest.param("GET", "/v1/models", {}, 200, id="models"),
        pytest.param("GET", "/models?return_wildcard_routes=false", {}, 200, id="models-query"),
        pytest.param("POST", "/v1/chat/completions", {"json": {**CHAT, "model": "none"}}, 400, id="chat-no-model"),
        pytest.param("POST", "/key/generate", {"json": {"key_type": "none"}}, 422, id="key-generate"),
        pytest.param(
            "POST",
            "/v1/audio/transcriptions",
            {"data": {"model": "none"}, "files": {"file": ("a.wav", b"\0" * 100_000, "audio/wav")}},
            400,
            id="multipart",
        ),
    ],
)
def test_with_a_key(
    litellm: LiteLLM, gateway: str, owner: User, method: str, path: str, request_: dict[str, Any], status: int
) -> None:
    """Responses that need a key are the same through the gateway."""
    direct, through = both(litellm, gateway, method, path, headers=bearer(owner.key), **request_)
    assert_same_answer(direct, through)
    assert direct.status_code == status


@everywhere
def test_key_info(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """A client's own request to the endpoint of lookups has the same response."""
    key = litellm.new_key(owner, "llm_api")
    request = {"headers": bearer(owner.key), "params": {"key": hashed(key)}}
    direct, through = both(litellm, gateway, "GET", "/key/info", **request)
    assert_same_answer(direct, through)
    assert direct.status_code == 200


@everywhere
def test_asset(litellm: LiteLLM, gateway: str) -> None:
    """A file of the dashboard is the same in full, as a range, and as a 304 if the browser already has it."""
    page = client(litellm.url).get("/ui/").text
    paths = sorted(set(re.findall(r'"(/[^"]+/_next/[^"]+\.(?:js|css|woff2))"', page)))
    assert paths
    for path in paths[:6]:
        direct, through = both(litellm, gateway, "GET", path)
        assert_same_answer(direct, through)
        assert direct.status_code == 200
    assert len(direct.content) > 1000
    for headers, status in (
        ({"If-None-Match": direct.headers["etag"]}, 304),
        ({"Range": "bytes=100-199"}, 206),
    ):
        first, second = both(litellm, gateway, "GET", path, headers=headers)
        assert first.status_code == second.status_code == status
        assert_same_answer(first, second)


@everywhere
def test_completion(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """A completion is the same, apart from the ids and times that differ from one completion to the next."""
    direct, through = both(litellm, gateway, "POST", "/v1/chat/completions", json=CHAT, headers=bearer(owner.key))
    assert through.json()["choices"][0]["message"]["content"] == "hello"
    assert IDENTITY.sub(b"", through.content) == IDENTITY.sub(b"", direct.content)
    assert end_to_end(through) == end_to_end(direct)


@everywhere
def test_stream(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """A completion as server-sent events is the same, to the final `[DONE]`."""
    body = {**CHAT, "stream": True}
    direct, through = both(litellm, gateway, "POST", "/v1/chat/completions", json=body, headers=bearer(owner.key))
    assert through.headers["content-type"].startswith("text/event-stream")
    assert through.content.endswith(b"data: [DONE]\n\n")
    assert IDENTITY.sub(b"", through.content) == IDENTITY.sub(b"", direct.content)
    assert end_to_end(through) == end_to_end(direct)


@everywhere
def test_large_request(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """A request with a prompt of 3 MB has the same response."""
    body = {**CHAT, "messages": [{"role": "user", "content": "x" * 3_000_000}]}
    direct, through = both(litellm, gateway, "POST", "/v1/chat/completions", json=body, headers=bearer(owner.key))
    assert through.status_code == direct.status_code == 200
    assert IDENTITY.sub(b"", through.content) == IDENTITY.sub(b"", direct.content)


@everywhere
def test_sign_in(litellm: LiteLLM, gateway: str, owner: User, session: str) -> None:
    """Signing in to the dashboard has the same status, redirect and cookie attributes."""
    direct, through = both(
        litellm, gateway, "POST", "/v2/login", json={"username": owner.email, "password": owner.password}
    )
    assert through.status_code == direct.status_code == 200
    assert through.json()["redirect_url"] == direct.json()["redirect_url"]

    def attributes(answer: httpx.Response) -> list[str]:
        return [value.partition(";")[2] for value in answer.headers.get_list("set-cookie")]

    assert attributes(through) == attributes(direct)
    assert attributes(through)
    for answer in (direct, through):
        litellm.new_secret(answer.json()["token"])


def test_errors_of_the_gateways_own(litellm: LiteLLM, gateway: str) -> None:
    """A web page's script may read the gateway's own errors, as it may read LiteLLM's (CORS)."""
    origin = {"Origin": "https://a.example"}
    direct = client(litellm.url).get("/key/info", headers=origin)
    own = client(gateway).get("/", headers={**origin, "Host": "a,b"})
    assert (direct.status_code, own.status_code) == (401, 400)
    assert own.headers["access-control-allow-origin"] == direct.headers["access-control-allow-origin"]

"""The sanitizer in LiteLLM's own process (`tests.litellm.wrapped`), on each release that ``LITELLM_WRAPPED`` names.

The tests of the gateway that are marked `everywhere` run on the wrapped LiteLLM too: those of key updates, and those
that compare all other responses. The tests here are about what is different in LiteLLM's process.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser

from tests.litellm.actors import (
    CUSTOM_ROUTES,
    MODELS,
    OTHER_MODELS,
    LiteLLM,
    User,
    bearer,
    client,
    update,
)
from tests.litellm.answers import assert_same_answer, outcome
from tests.litellm.conftest import in_process
from tests.litellm.dashboard import executable, launched, visit

ALLOWED, STRANGER = "127.0.0.2", "127.0.0.3"
Send = Callable[[httpx.Client, User, dict[str, object]], httpx.Response]


pytestmark = in_process


class Case(NamedTuple):
    """An unchanged value, and the releases that refuse it: from ``since`` to before ``before`` (None: all to date)."""

    key_type: str
    members: Mapping[str, object]
    since: tuple[int, ...]
    before: tuple[int, ...] | None = None


ROUTES, REORDERED = {"allowed_routes": ["llm_api_routes"]}, {"allowed_routes": CUSTOM_ROUTES[::-1]}
CASES = {
    "allowed_routes": Case("llm_api", ROUTES, (1, 83, 7), (1, 101, 0)),
    "allowed_routes, reordered": Case("custom", REORDERED, (1, 83, 7)),
    "permissions": Case("llm_api", {"permissions": {}}, (1, 92, 0)),
}


def send_json(http: httpx.Client, owner: User, body: dict[str, object]) -> httpx.Response:
    return http.post("/key/update", json=body, headers=bearer(owner.key))


def send_chunked(http: httpx.Client, owner: User, body: dict[str, object]) -> httpx.Response:
    content = httpx.Request("POST", "http://litellm", json=body).content
    headers = {**bearer(owner.key), "Content-Type": "application/json"}
    return http.post("/key/update", content=iter([content[:9], content[9:]]), headers=headers)


@pytest.mark.parametrize("send", [send_json, send_chunked], ids=["length", "chunked"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_refused_unless_cut(litellm: LiteLLM, gateway: str, owner: User, case: Case, send: Send) -> None:
    """An update that LiteLLM refuses succeeds on the wrapped LiteLLM: it stores the models and keeps the member."""
    key = litellm.new_key(owner, case.key_type)
    stored = litellm.stored(key)
    (member,) = case.members
    if case.since <= litellm.release and (case.before is None or litellm.release < case.before):
        with client(litellm.url) as direct:
            refused = send(direct, owner, {"key": key, "models": ["direct"], **case.members})
        assert (refused.status_code, member in refused.text) == (403, True)
        assert litellm.stored(key) == stored
    with client(gateway) as http:
        answer = send(http, owner, {"key": key, "models": OTHER_MODELS, **case.members})
    # a new order is cut only after LiteLLM has refused it, because an administrator's is stored
    refused_first = f'; after-refusal="{member}"' if case.members[member] != stored[member] else ""
    said = answer.headers["x-litellm-sanitizer"]
    assert (answer.status_code, said) == (200, f'dropped; fields="{member}"{refused_first}')
    after = litellm.stored(key)
    assert (after["models"], after[member]) == (OTHER_MODELS, stored[member])


@pytest.mark.parametrize("send", [send_json, send_chunked], ids=["length", "chunked"])
@pytest.mark.parametrize(
    "members",
    [
        pytest.param({"allowed_routes": ["management_routes"]}, id="allowed_routes"),
        pytest.param({"allowed_routes": "llm_api_routes"}, id="malformed"),
        pytest.param({"permissions": {"get_spend_routes": True}}, id="permissions"),
    ],
)
def test_real_change(litellm: LiteLLM, gateway: str, owner: User, members: dict[str, object], send: Send) -> None:
    """A non-admin's real change has LiteLLM's own response byte for byte, and the same stored values as direct."""
    one, two = litellm.new_key(owner, "llm_api"), litellm.new_key(owner, "llm_api")
    with client(litellm.url) as http, client(gateway) as other:
        direct = send(http, owner, {"key": one, "models": OTHER_MODELS, **members})
        through = send(other, owner, {"key": two, "models": OTHER_MODELS, **members})
    assert outcome(through) == "changed"
    if direct.is_success:  # before 1.92.0, anyone may set `permissions`
        assert ("permissions" in members, through.status_code) == (True, direct.status_code)
    else:
        assert_same_answer(direct, through)
    (member,) = members
    expected, actual = litellm.stored(one), litellm.stored(two)
    assert (actual["models"], actual[member]) == (expected["models"], expected[member])


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        pytest.param({"x-litellm-api-key": "Bearer {key}"}, True, id="x-litellm-api-key"),
        pytest.param({"API-Key": "{key}"}, True, id="API-Key"),
        pytest.param({"x-api-key": "{key}"}, True, id="x-api-key"),
        pytest.param({"x-goog-api-key": "{key}"}, True, id="x-goog-api-key"),
        pytest.param({"Ocp-Apim-Subscription-Key": "{key}"}, True, id="Ocp-Apim-Subscription-Key"),
        pytest.param(
            {"x-litellm-api-key": "{key}", "Authorization": "Bearer sk-wrong"}, True, id="two, the first wins"
        ),
        pytest.param({"Cookie": "token={key}"}, False, id="cookie"),
        pytest.param({}, False, id="nobody"),
    ],
)
def test_credentials(litellm: LiteLLM, gateway: str, owner: User, headers: dict[str, str], known: bool) -> None:
    """The lookup is made with the credential that LiteLLM uses, whichever field has it. A cookie is not used."""
    key = litellm.new_key(owner, "custom")
    body = {"key": key, "models": OTHER_MODELS, **REORDERED}
    headers = {name: value.format(key=owner.key) for name, value in headers.items()}
    with client(litellm.url) as http, client(gateway) as other:
        direct = http.post("/key/update", json=body, headers=headers)
        through = other.post("/key/update", json=body, headers=headers)
    assert direct.status_code == (403 if known else 401)
    if known:
        assert (through.status_code, outcome(through)) == (200, "dropped")
    else:
        assert_same_answer(direct, through)
        assert through.headers["x-litellm-sanitizer"] == 'unknown; reason="lookup_401"'
    assert litellm.stored(key)["models"] == (OTHER_MODELS if known else MODELS)


def test_callers_at_once(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """Each of many concurrent requests is compared with the key that it names, with the rights of its own caller."""
    stranger = litellm.new_user()
    keys = [litellm.new_key(owner, "custom") for _ in range(12)]

    def save(number: int) -> tuple[int, str]:
        caller = (owner, stranger)[number % 2].key
        routes = CUSTOM_ROUTES[::-1] if number % 3 else CUSTOM_ROUTES[:1]
        body = {"key": keys[number], "models": [f"model-{number}"], "allowed_routes": routes}
        answer = update(gateway, caller, body)
        return answer.status_code, outcome(answer)

    with ThreadPoolExecutor(len(keys)) as pool:
        answers = list(pool.map(save, range(len(keys))))
    for number, (key, (status, decided)) in enumerate(zip(keys, answers, strict=True)):
        after = litellm.stored(key)
        assert after["allowed_routes"] == CUSTOM_ROUTES
        if number % 2:
            assert (status >= 400, decided, after["models"]) == (True, "unknown", MODELS)
        elif number % 3:
            assert (status, decided, after["models"]) == (200, "dropped", [f"model-{number}"])
        else:
            assert (status, decided, after["models"]) == (403, "changed", MODELS)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("missing", [10, 0], ids=["in its body", "before its answer"])
def test_client_leaves(litellm: LiteLLM, gateway: str, owner: User, missing: int, reset: bool) -> None:
    """After clients have disconnected, the next request is served. A request that was sent in part stores nothing."""
    key = litellm.new_key(owner, "custom")
    body = {"key": key, "models": ["left"], **REORDERED}
    request = httpx.Request("POST", f"{gateway}/key/update", json=body, headers=bearer(owner.key))
    head = b"".join(b"%b: %b\r\n" % line for line in request.headers.raw)
    octets = b"POST /key/update HTTP/1.1\r\n" + head + b"\r\n" + request.content
    address = urlsplit(gateway)
    for _ in range(5):
        with socket.create_connection((address.hostname, address.port or 80), 10) as leaving:
            if reset:
                leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            leaving.sendall(octets[: len(octets) - missing])
    answer = update(gateway, owner.key, {"key": key, "models": OTHER_MODELS, **REORDERED})
    assert (answer.status_code, outcome(answer)) == (200, "dropped")
    if missing:  # a complete request may be carried out although its client has left, and after the next one
        assert litellm.stored(key)["models"] == OTHER_MODELS


def test_client_address(litellm: LiteLLM, gateway: str, owner: User) -> None:
    """The lookup is made from the client's address: a client that ``allowed_ips`` excludes learns nothing from it.

    From here on, the wrapped LiteLLM serves only 127.0.0.1 and 127.0.0.2, until it is restarted.
    """
    for ip in ("127.0.0.1", ALLOWED, ""):  # LiteLLM 1.83.13 has no address for a WebSocket
        with client(gateway) as http:
            answer = http.post("/add/allowed_ip", json={"ip": ip}, headers=bearer(litellm.master_key))
        assert answer.status_code in (200, 400, 500), answer.text  # see test_client_addresses
    for source, status, decided in ((STRANGER, 403, "unknown"), (ALLOWED, 200, "dropped")):
        key = litellm.new_key(owner, "custom")
        body = {"key": key, "models": OTHER_MODELS, **REORDERED}
        answer = update(gateway, owner.key, body, source=source)
        assert (answer.status_code, outcome(answer)) == (status, decided), answer.text
        assert litellm.stored(key)["models"] == (OTHER_MODELS if status == 200 else MODELS)


@pytest.fixture
def browser(litellm: LiteLLM, gateway: str) -> Iterator[Browser]:
    path = executable()
    if not path:
        pytest.skip("no Chromium or Chrome: apt-get install chromium")
    with launched(path, {urlsplit(url).hostname or "" for url in (litellm.url, gateway)}) as running:
        yield running


def test_dashboard(litellm: LiteLLM, gateway: str, browser: Browser) -> None:
    """If an internal user adds a model to a key in LiteLLM's dashboard and saves, the model is stored."""
    user = litellm.new_user()
    litellm.new_session(user)  # chooses a password
    alias = f"{user.user_id}-in-process"
    key = litellm.new_key(user, "llm_api", key_alias=alias)
    name = f"{'.'.join(map(str, litellm.release))}-in-process"
    with visit(browser, litellm, gateway, name) as dashboard:
        dashboard.sign_in(user)
        dashboard.edit_key(alias)
        dashboard.choose_model(*OTHER_MODELS)
        answer = dashboard.save()
        assert (answer.status, answer.headers["x-litellm-sanitizer"].partition(";")[0]) == (200, "dropped")
        assert "Key updated successfully" in dashboard.read_notice()
        dashboard.picture(name)
    after = litellm.stored(key)
    assert (after["models"], after["allowed_routes"]) == (MODELS + OTHER_MODELS, ["llm_api_routes"])

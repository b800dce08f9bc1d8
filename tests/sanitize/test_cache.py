"""The opt-in cache of lookups: when an entry is reused, what ends it, and which values are not cached."""

import asyncio
import json
from urllib.parse import parse_qs

import pytest
from starlette.types import Receive, Scope, Send

from sanitizer.sanitize import cache as module
from sanitizer.sanitize.jsonedit import Json
from sanitizer.sanitize.queries import Stored, Unknown, token_of
from sanitizer.sanitize.stored import Caller, StoredKeys
from tests.support.asgi import JSON, KEY, Client, Fields, Sanitized, octets, update

pytestmark = pytest.mark.anyio

ALICE: Fields = [JSON, (b"authorization", b"Bearer alice")]
BOB: Fields = [JSON, (b"authorization", b"Bearer bob")]


class LiteLLM:
    """A fake LiteLLM: an app that stores the routes that updates send, and answers lookups with them."""

    def __init__(self) -> None:
        self.routes: dict[str, Json] = {}
        self.lookups = 0
        self.status = 200
        self.more: dict[str, Json] = {}
        self.before_answer: asyncio.Event | None = None
        self.asked = asyncio.Event()

    async def info(
        self, target: bytes, header: bytes, limit: int, content: bytes | None = None, /
    ) -> tuple[int, bytes]:
        self.lookups += 1
        token = parse_qs(target.decode().partition("?")[2])["key"][0]
        answer = {"key": token, "info": {"allowed_routes": self.routes.get(token, ["/a"]), **self.more}}
        self.asked.set()
        if self.before_answer is not None:
            await self.before_answer.wait()
        return self.status, json.dumps(answer).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads((await receive())["body"])
        if body.get("key") and "allowed_routes" in body:
            self.routes[token_of(body["key"])] = body["allowed_routes"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})


@pytest.fixture
def litellm() -> LiteLLM:
    return LiteLLM()


def stored_keys(ttl: float) -> StoredKeys:
    return StoredKeys(cache_ttl=ttl)


async def get(keys: StoredKeys, litellm: LiteLLM, headers: Fields, key: str = KEY) -> Stored | Unknown:
    return (await keys.get(Caller(octets(headers), litellm.info), key, None, ""))[0]


@pytest.fixture
def keys() -> StoredKeys:
    return stored_keys(10)


async def send(app: Sanitized, body: bytes, headers: Fields = ALICE, path: str = "/key/update") -> bytes:
    """Send one request through ``app`` and return its outcome."""
    (mark,) = (await Client([body], headers, path).through(app)).field_values
    return mark.split(b";")[0]


async def test_off_by_default(litellm: LiteLLM) -> None:
    """Without a time to live, every request is looked up."""
    stored = stored_keys(0)
    app = Sanitized(litellm, stored, send_lookup=litellm.info)
    for _ in range(3):
        assert await send(app, update()) == b"dropped"
    assert litellm.lookups == 3
    assert app.sanitizer.write_context is None, "without cached values, no other request can make one stale"


async def test_reuse(litellm: LiteLLM, keys: StoredKeys) -> None:
    """Further updates of a key by the same caller reuse its lookup, whether the key is sent raw or as its hash."""
    app = Sanitized(litellm, keys, send_lookup=litellm.info)
    assert await send(app, update()) == b"dropped"
    assert await send(app, update()) == b"dropped"
    assert await send(app, json.dumps({"key": token_of(KEY), "allowed_routes": ["/a"]}).encode()) == b"dropped"
    assert litellm.lookups == 1


async def test_time_to_live(litellm: LiteLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is reused until its time to live has passed, and using it does not prolong that time."""
    now = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    stored = stored_keys(10)
    app = Sanitized(litellm, stored, send_lookup=litellm.info)
    lookups = []
    for now in (100, 106, 109.9, 110.1, 120):  # noqa: B007 - the clock
        await send(app, update())
        lookups.append(litellm.lookups)
    assert lookups == [1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        pytest.param(BOB, "/key/update", id="other credentials"),
        pytest.param(
            [*ALICE, (b"x-custom-auth", b"1")], "/key/update", id="one more field, which may authenticate the caller"
        ),
        pytest.param([*ALICE, ALICE[1]], "/key/update", id="a repeated field line"),
        pytest.param(ALICE, "/p/key/update", id="another prefix"),
    ],
)
async def test_not_shared(headers: Fields, path: str, litellm: LiteLLM, keys: StoredKeys) -> None:
    """Another caller, or a request under another prefix, does not reuse an entry, and its lookup ends the entry."""
    app = Sanitized(litellm, keys, send_lookup=litellm.info)
    await send(app, update())
    assert await send(app, update(), headers, path) == b"dropped"
    assert litellm.lookups == 2
    await send(app, update())
    assert litellm.lookups == 3


async def test_field_boundaries(litellm: LiteLLM, keys: StoredKeys) -> None:
    """Field lines that are equal only when name and value are run together are different credentials."""
    app = Sanitized(litellm, keys, send_lookup=litellm.info)
    await send(app, update(), [JSON, (b"ab", b"c")])
    await send(app, update(), [JSON, (b"a", b"bc")])
    assert litellm.lookups == 2


async def test_other_keys_stay(litellm: LiteLLM, keys: StoredKeys) -> None:
    """Lookups of one key leave the entry of another key in place."""
    app = Sanitized(litellm, keys, send_lookup=litellm.info)
    other = json.dumps({"key": "sk-other", "allowed_routes": ["/a"]}).encode()
    for body in (update(), other, update(), other):
        assert await send(app, body) == b"dropped"
    assert litellm.lookups == 2


async def test_difference_is_confirmed(litellm: LiteLLM, keys: StoredKeys) -> None:
    """If a cached value differs from the sent one, the key is looked up again, as the stored value may have changed."""
    app = Sanitized(litellm, keys, send_lookup=litellm.info)
    await send(app, update(["/a"]))
    litellm.routes[token_of(KEY)] = ["/b"]  # a write that this process does not see
    assert await send(app, update(["/b"])) == b"dropped"
    assert litellm.lookups == 2


async def test_a_b_a(litellm: LiteLLM, keys: StoredKeys) -> None:
    """A change and the change back, in quick succession, both reach LiteLLM."""
    app = Sanitized(litellm, keys, send_lookup=litellm.info)
    assert await send(app, update(["/a"])) == b"dropped"
    assert await send(app, update(["/b"])) == b"changed"
    assert litellm.routes[token_of(KEY)] == ["/b"]
    assert await send(app, update(["/a"])) == b"changed"
    assert litellm.routes[token_of(KEY)] == ["/a"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(update(["/b"]), BOB, id="changed"),
        pytest.param(b'{"key":"sk-secret"}', BOB, id="absent"),
        pytest.param(b'{"key_alias":"x","key":null}', BOB, id="no key"),
        pytest.param(update(), [*BOB, (b"digest", b"x")], id="unreadable"),
    ],
)
async def test_writers_empty(body: bytes, headers: Fields, litellm: LiteLLM, keys: StoredKeys) -> None:
    """Every request that may write the key ends its entry, whichever caller sends it."""
    app = Sanitized(litellm, keys, send_lookup=litellm.info)
    await send(app, update())
    await send(app, body, headers)
    before = litellm.lookups
    await send(app, update())
    assert litellm.lookups > before


@pytest.mark.parametrize(
    ("body", "lookups"),
    [
        pytest.param(update(["/b"]), 3, id="an update of this key"),
        pytest.param(b'{"key":null,"allowed_routes":["/b"]}', 2, id="an update that may write any key"),
    ],
)
async def test_lookup_during_a_write(body: bytes, lookups: int, litellm: LiteLLM, keys: StoredKeys) -> None:
    """A value that is read while a write is in progress is used for one request and not cached."""
    writing, finish = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        writing.set()
        await finish.wait()
        await litellm(scope, receive, send)

    app = Sanitized(litellm, keys, send_lookup=litellm.info)
    writer = asyncio.create_task(send(Sanitized(slow, keys, send_lookup=litellm.info), body, BOB))
    await writing.wait()
    for _ in range(2):
        assert await send(app, update(["/a"])) == b"dropped"
    assert litellm.lookups == lookups
    finish.set()
    await writer
    litellm.routes[token_of(KEY)] = ["/b"]
    assert await send(app, update(["/a"])) == b"changed"


async def test_several_writers(litellm: LiteLLM, keys: StoredKeys) -> None:
    """No value of a key is cached until all writes of that key have ended; writes of other keys do not matter."""
    with keys.writing("sk-other"):
        await get(keys, litellm, ALICE)
        with keys.writing(KEY):
            with keys.writing(KEY):
                pass
            for _ in range(2):
                await get(keys, litellm, ALICE)
        assert litellm.lookups == 3
        for _ in range(2):
            await get(keys, litellm, ALICE)
        assert litellm.lookups == 4


async def test_write_during_a_lookup(litellm: LiteLLM, keys: StoredKeys) -> None:
    """A value is not cached if a write began and ended while it was being read."""
    litellm.before_answer = asyncio.Event()
    reader = asyncio.create_task(get(keys, litellm, ALICE))
    await litellm.asked.wait()
    with keys.writing(KEY):
        litellm.routes[token_of(KEY)] = ["/b"]
    litellm.before_answer.set()
    assert await reader == Stored({"allowed_routes": ["/a"]})
    assert await get(keys, litellm, ALICE) == Stored({"allowed_routes": ["/b"]})


async def test_failures_are_not_kept(litellm: LiteLLM, keys: StoredKeys) -> None:
    """A failed lookup is not cached, nor is a deleted key."""
    litellm.status = 503
    assert await get(keys, litellm, ALICE) == Unknown("lookup_503")
    litellm.status = 200
    litellm.more = {"status": "deleted"}
    assert await get(keys, litellm, ALICE) == Unknown("key_deleted")
    litellm.more = {}
    assert await get(keys, litellm, ALICE) == Stored({"allowed_routes": ["/a"]})


async def test_a_refused_lookup_empties(litellm: LiteLLM, keys: StoredKeys) -> None:
    """Another caller's lookup ends an entry even if LiteLLM refuses it."""
    await get(keys, litellm, ALICE)
    litellm.status = 403
    assert await get(keys, litellm, BOB) == Unknown("lookup_403", refused=True)
    litellm.status = 200
    assert await get(keys, litellm, ALICE) == Stored({"allowed_routes": ["/a"]})


async def test_bounded(litellm: LiteLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest entries are discarded when the cache is full."""
    monkeypatch.setattr(module, "SIZE", 1000)
    stored = stored_keys(10)
    for key in ("sk-1", "sk-2", "sk-3", "sk-1"):
        assert isinstance(await get(stored, litellm, ALICE, key), Stored)
    assert litellm.lookups == 4
    assert await get(stored, litellm, ALICE, "sk-1") == Stored({"allowed_routes": ["/a"]})
    assert litellm.lookups == 4

"""A key as LiteLLM has it now: ``GET /key/info``, asked as the caller. The only module that knows httpx."""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from time import monotonic
from typing import cast
from urllib.parse import quote

import httpx
from cachetools import TTLCache
from starlette.types import Scope

from sanitizer.errors import GatewayError
from sanitizer.sanitize.decision import Stored, Unknown
from sanitizer.sanitize.jsonedit import NotInspectable, loads
from sanitizer.settings import Address

Fields = list[tuple[bytes, bytes]]

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read; a key's row takes a few thousand."""
MAX_TOKEN = 512
"""Characters of a key that goes into a URL as it is: a hash has 64."""
CACHE_SIZE = 4 * 1024 * 1024
"""Bytes of answers that the cache keeps."""

_OF_THE_REQUEST = frozenset((b"accept-encoding", b"expect", b"range", b"transfer-encoding"))


def token_of(key: str) -> str:
    """What LiteLLM stores for ``key``: its SHA-256 in hex if it starts with ``sk-``; anything else as it is."""
    return hashlib.sha256(key.encode()).hexdigest() if key.startswith("sk-") else key


def key_hash(key: str) -> str:
    """The first 8 hex digits of the key's SHA-256, which tell keys apart in a log and reveal none."""
    token = token_of(key)
    return (token if re.fullmatch("[0-9a-f]{64}", token) else hashlib.sha256(key.encode()).hexdigest())[:8]


def lookup_fields(outbound: Fields) -> Fields:
    """The header of a lookup: the relayed request's, less what belongs to its content or would make the answer partial.

    Any field may authenticate (a configured key header, custom auth): all others go along, duplicates and order kept.
    """
    kept = [
        (name, value)
        for name, value in outbound
        if not (lower := name.lower()).startswith((b"content-", b"if-")) and lower not in _OF_THE_REQUEST
    ]
    return [*kept, (b"accept-encoding", b"identity")]


class StoredKeys:
    """Looks keys up in LiteLLM at ``address``, with the header that ``outbound`` gives the relayed request.

    ``transport`` takes the lookups there. It is used bare: a client of httpx's would follow redirects, keep cookies and
    read proxies and credentials from the environment. ``timeout`` (seconds) is for a whole lookup.

    ``cache_ttl`` (seconds; 0: off) lets an answer be reused for the same header, key and path prefix. An entry goes as
    soon as another caller's lookup for the key, or any request that may write the key, comes through this process; and
    a value that differs from the cached one is never judged without a fresh lookup. What opting in costs: a change made
    behind this process's back (another worker or replica, LiteLLM itself, an alias) is not seen for up to ``cache_ttl``
    seconds. Someone who then sends the value from before that change has it dropped as unchanged: the write is lost,
    and LiteLLM answers 200.
    """

    def __init__(
        self,
        address: Address,
        *,
        transport: httpx.AsyncBaseTransport,
        outbound: Callable[[Scope], Fields],
        timeout: float,
        cache_ttl: float = 0,
    ) -> None:
        self._origin = f"{address.scheme}://{address.authority}"
        self._outbound = outbound
        self._timeout = timeout
        self._transport = transport
        # token -> (who asked, where; the answer). One entry a key, as everyone else's would have to go anyway.
        self._cache: TTLCache[str, tuple[bytes, bytes]] | None = None
        if cache_ttl:
            self._cache = TTLCache(CACHE_SIZE, cache_ttl, timer=monotonic, getsizeof=lambda entry: len(entry[1]) + 256)
        self._writers: Counter[str | None] = Counter()
        self._written = 0

    async def get(self, scope: Scope, key: str, prefix: str, *, fresh: bool = False) -> Stored | Unknown:
        """The state of ``key`` (not empty, encodable as UTF-8) as the caller of ``scope`` may see it.

        ``prefix`` is the path prefix, ``""`` for none; ``fresh`` bypasses the cache. Cancelling closes the lookup.
        `Unknown` reasons: ``key_length``, ``lookup_<status>``, ``lookup_timeout``, ``lookup_failed``, ``lookup_size``,
        ``lookup_shape``, ``lookup_loop``, ``key_deleted``.
        """
        token = token_of(key)
        if len(token) > MAX_TOKEN:
            return Unknown("key_length")
        try:
            fields = lookup_fields(self._outbound(scope))
        except GatewayError:  # the relay will refuse this request
            return Unknown("lookup_loop")
        caller = _digest(fields, prefix)
        if self._cache is not None and not fresh:
            entry = self._cache.get(token)
            if entry is not None and entry[0] == caller:
                return _read(entry[1], token, cached=True)
        written = self._written
        self._forget(token)
        answer = await self._fetch(f"{self._origin}{quote(prefix)}/key/info?key={quote(token, safe='')}", fields)
        if isinstance(answer, Unknown):
            return answer
        stored = _read(answer, token)
        beside_a_write = self._written != written or self._writers[token] or self._writers[None]
        if self._cache is not None and isinstance(stored, Stored) and not beside_a_write:
            self._cache[token] = (caller, answer)
        return stored

    @contextmanager
    def writing(self, key: str | None) -> Iterator[None]:
        """While a request is on its way that may write the key (None: any key), the cache holds nothing of it."""
        token = None if key is None else token_of(key)
        self._forget(token)
        self._writers[token] += 1
        try:
            yield
        finally:
            self._written += 1  # what is being read now may be from before
            self._writers[token] -= 1
            if not self._writers[token]:
                del self._writers[token]

    def _forget(self, token: str | None) -> None:
        if self._cache is None:
            return
        if token is None:
            self._cache.clear()
        else:
            self._cache.pop(token, None)

    async def _fetch(self, url: str, fields: Fields) -> bytes | Unknown:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(url, fields)
        except (TimeoutError, httpx.TimeoutException):
            return Unknown("lookup_timeout")
        except httpx.TransportError:
            return Unknown("lookup_failed")

    async def _exchange(self, url: str, fields: Fields) -> bytes | Unknown:
        response = await self._transport.handle_async_request(httpx.Request("GET", url, headers=fields))
        try:
            if response.status_code != 200:
                return Unknown(f"lookup_{response.status_code}")
            answer = bytearray()
            async with aclosing(cast(AsyncGenerator[bytes, None], response.aiter_raw(65536))) as chunks:
                async for chunk in chunks:
                    answer += chunk
                    if len(answer) > MAX_ANSWER:
                        return Unknown("lookup_size")
            return bytes(answer)
        finally:
            await response.aclose()


def _digest(fields: Fields, prefix: str) -> bytes:
    """Who asks, and under which path: any field may authenticate, so all of them count, with their order."""
    digest = hashlib.sha256()
    for part in (prefix.encode(), *(part for field in fields for part in field)):
        digest.update(b"%d:%b" % (len(part), part))
    return digest.digest()


def _read(answer: bytes, token: str, *, cached: bool = False) -> Stored | Unknown:
    try:
        value = loads(answer)
    except NotInspectable:
        return Unknown("lookup_shape")
    if not isinstance(value, dict) or value.get("key") != token:
        return Unknown("lookup_shape")
    info = value.get("info")
    if not isinstance(info, dict):
        return Unknown("lookup_shape")
    if "deleted" in (info.get("status"), value.get("status")):  # from 1.105 on, deleted keys are answered too
        return Unknown("key_deleted")
    return Stored(info, cached)

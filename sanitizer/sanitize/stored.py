"""A key as LiteLLM has it now: ``GET /key/info``, asked as the caller."""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from urllib.parse import quote

from cachetools import TTLCache
from starlette.types import Scope

from sanitizer.errors import GatewayError, PoolExhausted, UpstreamTimeout
from sanitizer.sanitize.decision import Stored, Unknown
from sanitizer.sanitize.jsonedit import NotInspectable, loads

Fields = list[tuple[bytes, bytes]]
Ask = Callable[[bytes, Fields, int], Awaitable[tuple[int, bytes]]]
"""GET a target with these fields: the status, and the content of a 200, of one that is over so many bytes not all but
more than that. Raises `GatewayError`."""

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read; a key's row takes a few thousand."""
MAX_TOKEN = 512
"""Characters of a key that goes into a URL as it is: a hash has 64."""
CACHE_SIZE = 4 * 1024 * 1024
"""Bytes of answers that the cache keeps."""

_OF_THE_REQUEST = frozenset((b"accept-encoding", b"expect", b"range", b"transfer-encoding"))
_OF_THE_WAY = frozenset((b"host", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"))


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


def own_fields(outbound: Fields, key: str) -> Fields:
    """The header of a lookup with the gateway's own credential, ``key``.

    Any field of the caller's may authenticate, and some go before Authorization: none but those that say where the
    request is going and has come from are taken along. (A LiteLLM up to 1.105.0, though not 1.109.1, that has a
    ``litellm_key_header_name`` takes no key from Authorization: there, the credential is of no use.)
    """
    kept = [(name, value) for name, value in outbound if name.lower() in _OF_THE_WAY]
    return [*kept, (b"authorization", b"Bearer " + key.encode()), (b"accept-encoding", b"identity")]


class StoredKeys:
    """Looks keys up in LiteLLM, which ``ask`` asks, with the header that ``outbound`` gives the relayed request.

    ``timeout`` (seconds) is for a whole lookup.

    ``lookup_key`` gives the gateway's own credential as it is now, or None; it is used if LiteLLM refuses the caller's
    lookup with 403, for that lookup alone (`sanitizer.sanitize.lookup_key`).

    ``cache_ttl`` (seconds; 0: off) lets an answer be reused for the same header, key and path prefix. An entry goes as
    soon as another caller's lookup for the key, or any request that may write the key, comes through this process; and
    a value that differs from the cached one is never judged without a fresh lookup. What opting in costs: a change made
    behind this process's back (another worker or replica, LiteLLM itself, an alias) is not seen for up to ``cache_ttl``
    seconds. Someone who then sends the value from before that change has it dropped as unchanged: the write is lost,
    and LiteLLM answers 200.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        outbound: Callable[[Scope], Fields],
        timeout: float,
        cache_ttl: float = 0,
        lookup_key: Callable[[], str | None] | None = None,
    ) -> None:
        self._outbound = outbound
        self._timeout = timeout
        self._ask = ask
        self._lookup_key = lookup_key
        # token -> (who asked, where; the answer; with the own credential or not). One entry a key, as everyone else's
        # would have to go anyway.
        self._cache: TTLCache[str, tuple[bytes, bytes, bool]] | None = None
        if cache_ttl:
            self._cache = TTLCache(CACHE_SIZE, cache_ttl, timer=monotonic, getsizeof=lambda entry: len(entry[1]) + 256)
        self._writers: Counter[str | None] = Counter()
        self._written = 0

    async def get(self, scope: Scope, key: str, prefix: str, *, fresh: bool = False) -> Stored | Unknown:
        """The state of ``key`` (not empty, encodable as UTF-8) as the caller of ``scope`` may see it.

        ``prefix`` is the path prefix, ``""`` for none; ``fresh`` bypasses the cache. Cancelling closes the lookup.
        `Unknown` reasons: ``key_length``, ``lookup_<status>``, ``lookup_timeout``, ``lookup_failed``, ``lookup_size``,
        ``lookup_shape``, ``lookup_loop``, ``key_deleted``; ``lookup_key_<status>`` if the own credential was refused.
        """
        token = token_of(key)
        if len(token) > MAX_TOKEN:
            return Unknown("key_length")
        try:
            outbound = self._outbound(scope)
        except GatewayError:  # the relay will refuse this request
            return Unknown("lookup_loop")
        fields = lookup_fields(outbound)
        caller = _digest(fields, prefix) if self._cache is not None else b""
        if self._cache is not None and not fresh:
            entry = self._cache.get(token)
            if entry is not None and entry[0] == caller:
                return _read(entry[1], token, cached=True, lookup_key=entry[2])
        written = self._written
        self._forget(token)
        target = f"{quote(prefix)}/key/info?key={quote(token, safe='')}".encode()
        answer, lookup_key = await self._fetch(target, fields, outbound)
        if isinstance(answer, str):
            return Unknown(answer, lookup_key)
        stored = _read(answer, token, lookup_key=lookup_key)
        beside_a_write = self._written != written or self._writers[token] or self._writers[None]
        if self._cache is not None and isinstance(stored, Stored) and not beside_a_write:
            self._cache[token] = (caller, answer, lookup_key)
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

    async def _fetch(self, target: bytes, fields: Fields, outbound: Fields) -> tuple[bytes | str, bool]:
        """The answer, or why there is none; and whether the own credential was used."""
        lookup_key = False
        try:
            async with asyncio.timeout(self._timeout):
                status, answer = await self._ask(target, fields, MAX_ANSWER)
                if status == 403 and self._lookup_key is not None and (key := self._lookup_key()):
                    lookup_key = True
                    status, answer = await self._ask(target, own_fields(outbound, key), MAX_ANSWER)
        except (TimeoutError, UpstreamTimeout, PoolExhausted):
            return "lookup_timeout", lookup_key
        except GatewayError:
            return "lookup_failed", lookup_key
        if status != 200:
            return f"{'lookup_key' if lookup_key else 'lookup'}_{status}", lookup_key
        return (answer if len(answer) <= MAX_ANSWER else "lookup_size"), lookup_key


def _digest(fields: Fields, prefix: str) -> bytes:
    """Who asks, and under which path: any field may authenticate, so all of them count, with their order."""
    digest = hashlib.sha256()
    for part in (prefix.encode(), *(part for field in fields for part in field)):
        digest.update(b"%d:%b" % (len(part), part))
    return digest.digest()


def _read(answer: bytes, token: str, *, cached: bool = False, lookup_key: bool = False) -> Stored | Unknown:
    try:
        value = loads(answer)
    except NotInspectable:
        return Unknown("lookup_shape", lookup_key)
    if not isinstance(value, dict) or value.get("key") != token:
        return Unknown("lookup_shape", lookup_key)
    info = value.get("info")
    if not isinstance(info, dict):
        return Unknown("lookup_shape", lookup_key)
    if "deleted" in (info.get("status"), value.get("status")):  # from 1.105 on, deleted keys are answered too
        return Unknown("key_deleted", lookup_key)
    return Stored(info, cached, lookup_key)

"""A key as LiteLLM has it now: ``GET /key/info``, asked as the caller."""

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from time import monotonic, perf_counter
from typing import Protocol
from urllib.parse import quote

from cachetools import TTLCache

from sanitizer.errors import GatewayError, PoolExhausted, UpstreamTimeout
from sanitizer.sanitize.decision import Stored, Unknown
from sanitizer.sanitize.jsonedit import Json, NotInspectable, loads, most_values
from sanitizer.sanitize.judges import Row


class Ask(Protocol):
    """Sends a lookup."""

    def __call__(
        self, target: bytes, header: bytes, limit: int, content: bytes | None = None, /
    ) -> Awaitable[tuple[int, bytes]]:
        """Send a GET, or a POST with ``content``; ``header`` are field lines, each of which follows a CRLF.

        Returns the status and, for a 200, the content. A content over ``limit`` bytes comes back cut short, but longer
        than the limit. Raises `GatewayError`.
        """


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of an intercepted request, as LiteLLM gets to know it.

    ``head`` is the head that the request is sent to LiteLLM with, in octets; ``ask`` sends a lookup the same way.
    """

    head: bytes
    ask: Ask


class LookupOutcome(StrEnum):
    """How a lookup ended."""

    OK = "ok"
    REDIRECTED = "3xx"
    REFUSED = "4xx"
    SERVER_ERROR = "5xx"
    TIMEOUT = "timeout"
    FAILED = "failed"  # there was no answer
    UNUSABLE = "unusable"  # the answer does not say what is stored

    @classmethod
    def of_status(cls, status: int) -> "LookupOutcome":
        """The outcome of a lookup that was answered with another status than 200."""
        return {3: cls.REDIRECTED, 4: cls.REFUSED, 5: cls.SERVER_ERROR}.get(status // 100, cls.UNUSABLE)


@dataclass(frozen=True, slots=True)
class Lookup:
    """One lookup: how it ended, how many seconds it took, and whether the gateway's own credential was used in it."""

    outcome: LookupOutcome
    seconds: float
    lookup_key: bool = False


MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read; a key's row takes a few thousand."""
MAX_ANSWER_VALUES = 50_000
"""Values of an answer that is parsed; a key with a budget for each of a thousand models has some thousands. Parsing the
500,000 that fit into `MAX_ANSWER` would hold the event loop for a fifth of a second; these take a tenth of that."""
CACHE_SIZE = 4 * 1024 * 1024
"""Bytes of answers that the cache keeps."""

_NOT_LOOKED_UP = re.compile(
    rb"\r\n(?:content-[^:]*|if-[^:]*|accept-encoding|expect|range|transfer-encoding):[^\r]*", re.IGNORECASE
)
_OF_THE_ROUTE = re.compile(rb"\r\n(?:via|x-forwarded-(?:for|proto)):[^\r]*", re.IGNORECASE)
_IDENTITY = b"\r\nAccept-Encoding: identity"
_HASH = re.compile("[0-9a-f]{64}")


def token_of(key: str) -> str:
    """What LiteLLM stores for ``key``: its SHA-256 in hex if it starts with ``sk-``; anything else as it is."""
    return hashlib.sha256(key.encode()).hexdigest() if key.startswith("sk-") else key


def key_hash(key: str) -> str:
    """The first 8 hex digits of the key's SHA-256, which tell keys apart in a log and reveal none."""
    token = token_of(key)
    return (token if _HASH.fullmatch(token) else hashlib.sha256(key.encode()).hexdigest())[:8]


def lookup_header(head: bytes) -> bytes:
    """The field lines of a lookup: the request's, less those about its content or that would make the answer partial.

    Any field may authenticate (a configured key header, custom auth): all others go along, duplicates and order kept.
    """
    return _NOT_LOOKED_UP.sub(b"", head[head.index(b"\r\n") :].rstrip(b"\r\n")) + _IDENTITY


def own_header(head: bytes, key: str, host: bytes) -> bytes:
    """The field lines of a lookup with the gateway's own credential, ``key``.

    Any field of the caller's may authenticate, and some take precedence over Authorization: only those that say where
    the request has come from are kept. Nor may a caller say which virtual host gets the key: Host is ``host``, and no
    other field names one. (A LiteLLM up to 1.105.0, though not 1.109.1, that has a
    ``litellm_key_header_name`` takes no key from Authorization: there, the credential is of no use.)
    """
    route = b"".join(_OF_THE_ROUTE.findall(head))
    return b"\r\nHost: " + host + route + b"\r\nAuthorization: Bearer " + key.encode() + _IDENTITY


class StoredKeys:
    """Looks keys up in LiteLLM. ``timeout`` (seconds) is for a whole lookup.

    ``lookup_key`` gives the gateway's own credential as it is now, or None (`sanitizer.sanitize.lookup_key`); ``host``
    is the Host that a lookup with it names.

    ``cache_ttl`` (seconds; 0: off) lets an answer be reused for the same header, key and path prefix. An entry goes as
    soon as another caller's lookup for the key, or any request that may write the key, comes through this process; and
    a value that differs from the cached one is never judged without a fresh lookup. What opting in costs: a change made
    behind this process's back (another worker or replica, LiteLLM itself, an alias) is not seen for up to ``cache_ttl``
    seconds. Someone who then sends the value from before that change has it dropped as unchanged: the write is lost,
    and LiteLLM answers 200.
    """

    def __init__(
        self,
        *,
        timeout: float = 5.0,
        cache_ttl: float = 0,
        lookup_key: Callable[[], str | None] | None = None,
        host: bytes = b"localhost",
    ) -> None:
        self._timeout = timeout
        self._lookup_key = lookup_key
        self._host = host
        # token -> (who asked, where; the answer). One entry a key, as everyone else's would have to go anyway.
        self._cache: TTLCache[str, tuple[bytes, bytes]] | None = None
        if cache_ttl:
            self._cache = TTLCache(CACHE_SIZE, cache_ttl, timer=monotonic, getsizeof=lambda entry: len(entry[1]) + 256)
        self._writers: Counter[str | None] = Counter()
        self._written = 0

    @property
    def has_lookup_key(self) -> bool:
        """Whether there may be a credential to look up with."""
        return self._lookup_key is not None

    async def get(
        self, caller: Caller, key: str, prefix: str, *, fresh: bool = False
    ) -> tuple[Stored | Unknown, Lookup | None]:
        """The state of ``key`` (not empty, encodable as UTF-8) as the caller may see it, and the lookup made for it.

        ``prefix`` is the path prefix, ``""`` for none; ``fresh`` bypasses the cache. Cancelling closes the lookup.
        `Unknown` reasons: ``key_form``, ``lookup_<status>``, ``lookup_timeout``, ``lookup_failed``, ``lookup_size``,
        ``lookup_shape``, ``key_deleted``.
        """
        token = token_of(key)
        query = _by_key(token, prefix)
        if query is None:
            return Unknown("key_form"), None
        header = lookup_header(caller.head)
        identity = b""
        if self._cache is not None:
            identity = hashlib.sha256(b"%b\r\n%b" % (quote(prefix).encode(), header)).digest()
            entry = None if fresh else self._cache.get(token)
            if entry is not None and entry[0] == identity:
                found = query.read(entry[1])
                return replace(found, cached=True) if isinstance(found, Stored) else found, None
        written = self._written
        self._forget(token)
        found, lookup, answer = await self._look_up(caller, header, query)
        beside_a_write = self._written != written or self._writers[token] or self._writers[None]
        if self._cache is not None and isinstance(found, Stored) and not beside_a_write:
            self._cache[token] = (identity, answer)
        return found, lookup

    async def get_by_alias(self, caller: Caller, alias: str, prefix: str) -> tuple[Stored | Unknown, Lookup | None]:
        """The state of the key that has this alias, as the caller may see it; see `get`. It is never cached."""
        found, lookup, _ = await self._look_up(caller, lookup_header(caller.head), _by_alias(alias, prefix))
        return found, lookup

    async def get_with_lookup_key(
        self, caller: Caller, key: str | None, alias: str | None, prefix: str
    ) -> tuple[Stored | Unknown, Lookup | None]:
        """The state of ``key``, or else of the key with this alias, as the gateway's own credential may see it.

        As `get`, but a refusal has the reason ``lookup_key_<status>``, and nothing is cached.
        """
        own = self._lookup_key() if self._lookup_key is not None else None
        query = _by_alias(alias or "", prefix) if key is None else _by_key(token_of(key), prefix)
        if own is None or query is None:
            return Unknown("lookup_403"), None
        found, lookup, _ = await self._look_up(caller, own_header(caller.head, own, self._host), query, lookup_key=True)
        return found, lookup

    @property
    def caches(self) -> bool:
        """Whether answers are reused."""
        return self._cache is not None

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

    async def _look_up(
        self, caller: Caller, header: bytes, query: "_Query", *, lookup_key: bool = False
    ) -> tuple[Stored | Unknown, Lookup, bytes]:
        """What is stored, the lookup, and the answer if it says what is stored."""
        since = perf_counter()
        found: Stored | Unknown
        answer = b""
        try:
            async with asyncio.timeout(self._timeout):
                status, answer = await caller.ask(query.target, header + query.header, MAX_ANSWER, query.content)
        except (TimeoutError, UpstreamTimeout, PoolExhausted):
            found, outcome = Unknown("lookup_timeout"), LookupOutcome.TIMEOUT
        except GatewayError:
            found, outcome = Unknown("lookup_failed"), LookupOutcome.FAILED
        else:
            if status != 200:
                reason = f"lookup_key_{status}" if lookup_key else f"lookup_{status}"
                refused = status == 403 and not lookup_key
                found, outcome = Unknown(reason, refused), LookupOutcome.of_status(status)
            else:
                too_large = len(answer) > MAX_ANSWER or most_values(answer) > MAX_ANSWER_VALUES
                found = Unknown("lookup_size") if too_large else query.read(answer)
                outcome = LookupOutcome.OK if isinstance(found, Stored) else LookupOutcome.UNUSABLE
        return found, Lookup(outcome, perf_counter() - since, lookup_key), answer


@dataclass(frozen=True, slots=True)
class _Query:
    """A lookup: its target, the field lines and the content that it adds, and how the answer is read."""

    target: bytes
    read: Callable[[bytes], Stored | Unknown]
    header: bytes = b""
    content: bytes | None = None


def _by_key(token: str, prefix: str) -> _Query | None:
    """None if the token is no hash: then it may be a secret, such as a padded key, which must not get into a URL."""
    if not _HASH.fullmatch(token):
        return None
    target = f"{quote(prefix)}/key/info?key={token}".encode()
    return _Query(target, partial(_read_key, token))


def _by_alias(alias: str, prefix: str) -> _Query:
    """LiteLLM answers with the very row that it updates for this alias, from 1.96.0 on."""
    content = json.dumps({"key_aliases": [alias]}).encode()
    header = b"\r\nContent-Type: application/json\r\nContent-Length: %d" % len(content)
    return _Query(f"{quote(prefix)}/v2/key/info".encode(), partial(_read_alias, alias), header, content)


def _read_key(token: str, answer: bytes) -> Stored | Unknown:
    value = _object(answer)
    if value is None or value.get("key") != token:
        return Unknown("lookup_shape")
    return _row(value.get("info"), value.get("status"))


def _read_alias(alias: str, answer: bytes) -> Stored | Unknown:
    value = _object(answer)
    rows = value.get("info") if value is not None else None
    if not isinstance(rows, list) or len(rows) != 1:
        return Unknown("lookup_shape")
    found = _row(rows[0])
    return found if isinstance(found, Unknown) or found.info.get("key_alias") == alias else Unknown("lookup_shape")


def _object(answer: bytes) -> Row | None:
    try:
        value = loads(answer)
    except NotInspectable:
        return None
    return value if isinstance(value, dict) else None


def _row(info: Json, status: Json = None) -> Stored | Unknown:
    if not isinstance(info, dict):
        return Unknown("lookup_shape")
    if "deleted" in (info.get("status"), status):  # from 1.105 on, deleted keys are answered too
        return Unknown("key_deleted")
    return Stored(info)

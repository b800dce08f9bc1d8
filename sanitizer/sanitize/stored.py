"""A key as LiteLLM has it now: ``GET /key/info``, asked as the caller."""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic, perf_counter
from urllib.parse import quote

from cachetools import TTLCache

from sanitizer.errors import GatewayError, PoolExhausted, UpstreamTimeout
from sanitizer.sanitize.decision import Stored, Unknown
from sanitizer.sanitize.jsonedit import NotInspectable, loads

Ask = Callable[[bytes, bytes, int], Awaitable[tuple[int, bytes]]]
"""GET a target with these field lines, each of which follows a CRLF, and return the status and, for a 200, the content.

The third argument is a limit in bytes: a content over it comes back cut short, but longer than the limit. Raises
`GatewayError`."""


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
MAX_TOKEN = 512
"""Characters of a key that goes into a URL as it is: a hash has 64."""
CACHE_SIZE = 4 * 1024 * 1024
"""Bytes of answers that the cache keeps."""

_NOT_LOOKED_UP = re.compile(
    rb"\r\n(?:content-[^:]*|if-[^:]*|accept-encoding|expect|range|transfer-encoding):[^\r]*", re.IGNORECASE
)
_OF_THE_ROUTE = re.compile(rb"\r\n(?:host|via|x-forwarded-(?:for|host|proto)):[^\r]*", re.IGNORECASE)
_IDENTITY = b"\r\nAccept-Encoding: identity"


def token_of(key: str) -> str:
    """What LiteLLM stores for ``key``: its SHA-256 in hex if it starts with ``sk-``; anything else as it is."""
    return hashlib.sha256(key.encode()).hexdigest() if key.startswith("sk-") else key


def key_hash(key: str) -> str:
    """The first 8 hex digits of the key's SHA-256, which tell keys apart in a log and reveal none."""
    token = token_of(key)
    return (token if re.fullmatch("[0-9a-f]{64}", token) else hashlib.sha256(key.encode()).hexdigest())[:8]


def lookup_header(head: bytes) -> bytes:
    """The field lines of a lookup: the request's, less those about its content or that would make the answer partial.

    Any field may authenticate (a configured key header, custom auth): all others go along, duplicates and order kept.
    """
    return _NOT_LOOKED_UP.sub(b"", head[head.index(b"\r\n") : -4]) + _IDENTITY


def own_header(head: bytes, key: str) -> bytes:
    """The field lines of a lookup with the gateway's own credential, ``key``.

    Any field of the caller's may authenticate, and some go before Authorization: none but those that say where the
    request is going and has come from are taken along. (A LiteLLM up to 1.105.0, though not 1.109.1, that has a
    ``litellm_key_header_name`` takes no key from Authorization: there, the credential is of no use.)
    """
    route = b"".join(_OF_THE_ROUTE.findall(head))
    return route + b"\r\nAuthorization: Bearer " + key.encode() + _IDENTITY


class StoredKeys:
    """Looks keys up in LiteLLM. ``timeout`` (seconds) is for a whole lookup.

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
        self, *, timeout: float = 5.0, cache_ttl: float = 0, lookup_key: Callable[[], str | None] | None = None
    ) -> None:
        self._timeout = timeout
        self._lookup_key = lookup_key
        # token -> (who asked, where; the answer; with the own credential or not). One entry a key, as everyone else's
        # would have to go anyway.
        self._cache: TTLCache[str, tuple[bytes, bytes, bool]] | None = None
        if cache_ttl:
            self._cache = TTLCache(CACHE_SIZE, cache_ttl, timer=monotonic, getsizeof=lambda entry: len(entry[1]) + 256)
        self._writers: Counter[str | None] = Counter()
        self._written = 0

    async def get(
        self, caller: Caller, key: str, prefix: str, *, fresh: bool = False
    ) -> tuple[Stored | Unknown, Lookup | None]:
        """The state of ``key`` (not empty, encodable as UTF-8) as the caller may see it, and the lookup made for it.

        ``prefix`` is the path prefix, ``""`` for none; ``fresh`` bypasses the cache. Cancelling closes the lookup.
        `Unknown` reasons: ``key_length``, ``lookup_<status>``, ``lookup_timeout``, ``lookup_failed``, ``lookup_size``,
        ``lookup_shape``, ``key_deleted``; ``lookup_key_<status>`` if the own credential was refused.
        """
        token = token_of(key)
        if len(token) > MAX_TOKEN:
            return Unknown("key_length"), None
        header = lookup_header(caller.head)
        identity = b""
        if self._cache is not None:
            identity = hashlib.sha256(b"%b\r\n%b" % (quote(prefix).encode(), header)).digest()
            entry = None if fresh else self._cache.get(token)
            if entry is not None and entry[0] == identity:
                return _read(entry[1], token, cached=True, lookup_key=entry[2]), None
        written = self._written
        self._forget(token)
        since = perf_counter()
        stored, answer, outcome = await self._look_up(caller, header, token, prefix)
        lookup = Lookup(outcome, perf_counter() - since, stored.lookup_key)
        beside_a_write = self._written != written or self._writers[token] or self._writers[None]
        if self._cache is not None and isinstance(stored, Stored) and not beside_a_write:
            self._cache[token] = (identity, answer, stored.lookup_key)
        return stored, lookup

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
        self, caller: Caller, header: bytes, token: str, prefix: str
    ) -> tuple[Stored | Unknown, bytes, LookupOutcome]:
        """What is stored, the answer that says so, and how the lookup ended."""
        target = f"{quote(prefix)}/key/info?key={quote(token, safe='')}".encode()
        lookup_key = False
        try:
            async with asyncio.timeout(self._timeout):
                status, answer = await caller.ask(target, header, MAX_ANSWER)
                if status == 403 and self._lookup_key is not None and (key := self._lookup_key()):
                    lookup_key = True
                    status, answer = await caller.ask(target, own_header(caller.head, key), MAX_ANSWER)
        except (TimeoutError, UpstreamTimeout, PoolExhausted):
            return Unknown("lookup_timeout", lookup_key), b"", LookupOutcome.TIMEOUT
        except GatewayError:
            return Unknown("lookup_failed", lookup_key), b"", LookupOutcome.FAILED
        if status != 200:
            reason = f"lookup_key_{status}" if lookup_key else f"lookup_{status}"
            return Unknown(reason, lookup_key), b"", LookupOutcome.of_status(status)
        if len(answer) > MAX_ANSWER:
            return Unknown("lookup_size", lookup_key), b"", LookupOutcome.UNUSABLE
        stored = _read(answer, token, lookup_key=lookup_key)
        return stored, answer, LookupOutcome.OK if isinstance(stored, Stored) else LookupOutcome.UNUSABLE


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

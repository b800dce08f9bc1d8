"""A key as LiteLLM has it now: ``GET /key/info``, asked as the caller."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter
from typing import Protocol
from urllib.parse import quote

from sanitizer.errors import GatewayError, PoolExhausted, UpstreamTimeout
from sanitizer.sanitize.cache import AnswerCache
from sanitizer.sanitize.queries import (
    MAX_ANSWER,
    Query,
    Stored,
    Unknown,
    caller_header,
    lookup_key_header,
    query_of,
    token_of,
)


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

    ``head`` is the head that the request is sent to LiteLLM with, in octets; ``ask`` sends a lookup as it is sent.
    ``client`` is the address that the request has come from, None on a unix socket.
    """

    head: bytes
    ask: Ask
    client: str | None = None


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


class StoredKeys:
    """Looks keys up in LiteLLM. ``timeout`` (seconds) is for a whole lookup.

    ``lookup_key`` gives the gateway's own credential as it is now, or None (`sanitizer.sanitize.lookup_key`); ``host``
    is the Host that a lookup with it names. ``cache_ttl`` (seconds; 0: off) lets an answer be reused for the same
    header, key and path prefix (`sanitizer.sanitize.cache`, which says what that costs).
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
        self._cache = AnswerCache(cache_ttl) if cache_ttl else None

    @property
    def has_lookup_key(self) -> bool:
        """Whether there may be a credential to look up with."""
        return self._lookup_key is not None

    @property
    def caches(self) -> bool:
        """Whether answers are reused."""
        return self._cache is not None

    async def get(
        self, caller: Caller, key: str | None, alias: str | None, prefix: str, *, fresh: bool = False
    ) -> tuple[Stored | Unknown, Lookup | None]:
        """The state of a key as the caller may see it, and the lookup made for it.

        It is the state of ``key`` (not empty, encodable as UTF-8) or, if that is None, of the key with this alias,
        which is never cached. If what is stored comes without a lookup, it has been read for an earlier request.
        ``prefix`` is the path prefix, ``""`` for none; ``fresh`` bypasses the cache. Cancelling closes the lookup.
        `Unknown` reasons: ``key_form``, ``lookup_<status>``, ``lookup_timeout``, ``lookup_failed``, ``lookup_size``,
        ``lookup_shape``, ``key_deleted``.
        """
        query = query_of(key, alias, prefix)
        if query is None:
            return Unknown("key_form"), None
        header = caller_header(caller.head)
        cache = self._cache
        if cache is None or key is None:
            found, lookup, _ = await self._look_up(caller, header, query)
            return found, lookup
        token = token_of(key)
        identity = hashlib.sha256(b"%b\r\n%b" % (quote(prefix).encode(), header)).digest()
        if not fresh and (answer := cache.get(token, identity)) is not None:
            return query.read(answer), None
        begun = cache.begin_lookup(token)
        found, lookup, answer = await self._look_up(caller, header, query)
        if isinstance(found, Stored):
            cache.put(token, identity, answer, begun)
        return found, lookup

    async def get_with_lookup_key(
        self, caller: Caller, key: str | None, alias: str | None, prefix: str
    ) -> tuple[Stored | Unknown, Lookup | None]:
        """The state of a key as the gateway's own credential may see it.

        As `get`, but a refusal has the reason ``lookup_key_<status>``, and nothing is cached.
        """
        own = self._lookup_key() if self._lookup_key is not None else None
        query = query_of(key, alias, prefix)
        if own is None or query is None:
            return Unknown("lookup_403"), None
        header = lookup_key_header(caller.head, own, self._host)
        found, lookup, _ = await self._look_up(caller, header, query, lookup_key=True)
        return found, lookup

    def writing(self, key: str | None) -> AbstractContextManager[None]:
        """While a request is on its way that may write the key (None: any key), the cache holds nothing of it.

        Is called only if there is a cache, see `caches`.
        """
        assert self._cache is not None  # noqa: S101 - for the type checker
        return self._cache.writing(None if key is None else token_of(key))

    async def _look_up(
        self, caller: Caller, header: bytes, query: Query, *, lookup_key: bool = False
    ) -> tuple[Stored | Unknown, Lookup, bytes]:
        """What is stored, the lookup, and the answer if there was one."""
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
            if status == 200:
                found = query.read(answer)
                outcome = LookupOutcome.OK if isinstance(found, Stored) else LookupOutcome.UNUSABLE
            else:
                found = Unknown(f"lookup_{'key_' if lookup_key else ''}{status}", status == 403 and not lookup_key)
                outcome = LookupOutcome.of_status(status)
        return found, Lookup(outcome, perf_counter() - since, lookup_key), answer

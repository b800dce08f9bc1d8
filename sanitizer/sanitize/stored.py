"""Lookups of the stored state of a key: ``GET /key/info``, or ``POST /v2/key/info`` by alias, sent as the caller."""

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
from sanitizer.sanitize.cache import LookupCache
from sanitizer.sanitize.queries import (
    MAX_RESPONSE,
    Query,
    Stored,
    Unknown,
    caller_header,
    lookup_key_header,
    query_of,
    token_of,
)


class SendLookup(Protocol):
    """A callable that sends lookups."""

    def __call__(
        self, target: bytes, header: bytes, limit: int, content: bytes | None = None, /
    ) -> Awaitable[tuple[int, bytes]]:
        """Send a GET to ``target`` or, with ``content``, a POST. ``header`` is field lines that each follow a CRLF.

        Returns the status and, for a 200, the content. Content longer than ``limit`` bytes is truncated, but what is
        returned is still longer than ``limit``. Raises `GatewayError`.
        """


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of an intercepted request, as LiteLLM sees it."""

    head: bytes
    """The head with which the request is sent to LiteLLM, in octets."""
    send_lookup: SendLookup
    """Sends a lookup in the same way as the request is sent."""
    client_address: str | None = None
    """The client's IP address, or None on a unix socket."""


class LookupOutcome(StrEnum):
    """How a lookup ended."""

    OK = "ok"
    REDIRECTED = "3xx"
    REFUSED = "4xx"
    SERVER_ERROR = "5xx"
    TIMEOUT = "timeout"
    FAILED = "failed"  # no response
    UNUSABLE = "unusable"  # a response from which the stored state cannot be read

    @classmethod
    def of_status(cls, status: int) -> "LookupOutcome":
        """The outcome of a lookup with a response status other than 200."""
        return {3: cls.REDIRECTED, 4: cls.REFUSED, 5: cls.SERVER_ERROR}.get(status // 100, cls.UNUSABLE)


@dataclass(frozen=True, slots=True)
class Lookup:
    """A lookup that has ended."""

    outcome: LookupOutcome
    seconds: float
    """How long it took."""
    lookup_key: bool = False
    """Whether it was made with the gateway's own credential."""


class StoredKeys:
    """Looks keys up in LiteLLM.

    ``timeout`` limits a whole lookup, in seconds. ``cache_ttl`` is how many seconds a response is reused for lookups
    with the same field lines, key and path prefix; 0 switches the cache off (see `sanitizer.sanitize.cache` for what it
    costs). ``lookup_key`` returns the gateway's current own credential, or None (see `sanitizer.sanitize.lookup_key`).
    ``host`` is the Host of lookups with that credential.
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
        self._cache = LookupCache(cache_ttl) if cache_ttl else None

    @property
    def has_lookup_key(self) -> bool:
        """Whether the gateway may have a credential of its own."""
        return self._lookup_key is not None

    @property
    def caches(self) -> bool:
        """Whether there is a cache of lookups."""
        return self._cache is not None

    async def get(
        self, caller: Caller, key: str | None, alias: str | None, prefix: str, *, fresh: bool = False
    ) -> tuple[Stored | Unknown, Lookup | None]:
        """Look up the stored state of a key as the caller.

        The key is ``key`` (not empty, encodable as UTF-8) or, if that is None, the one with ``alias``, which is never
        cached. ``prefix`` is the path prefix, ``""`` for none. ``fresh`` bypasses the cache. Cancelling this cancels
        the lookup.

        Returns the state and the lookup that was made. The lookup is None if the state is from the cache, or if no
        lookup was possible. Reasons of an `Unknown`: ``key_form``, ``lookup_<status>``, ``lookup_timeout``,
        ``lookup_failed``, ``lookup_size``, ``lookup_shape``, ``key_deleted``.
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
        if not fresh and (content := cache.get(token, identity)) is not None:
            return query.read(content), None
        generation = cache.begin_lookup(token)
        found, lookup, content = await self._look_up(caller, header, query)
        if isinstance(found, Stored):
            cache.put(token, identity, content, generation)
        return found, lookup

    async def get_with_lookup_key(
        self, caller: Caller, key: str | None, alias: str | None, prefix: str
    ) -> tuple[Stored | Unknown, Lookup | None]:
        """Look up the stored state of a key with the gateway's own credential.

        As `get`, but nothing is cached, and the reason for a status other than 200 is ``lookup_key_<status>``.
        """
        own = self._lookup_key() if self._lookup_key is not None else None
        query = query_of(key, alias, prefix)
        if own is None or query is None:
            return Unknown("lookup_403"), None  # the result of the caller's own lookup
        header = lookup_key_header(caller.head, own, self._host)
        found, lookup, _ = await self._look_up(caller, header, query, lookup_key=True)
        return found, lookup

    def writing(self, key: str | None) -> AbstractContextManager[None]:
        """The context of a request that may write the key, or any key if it is None. Meanwhile the key is not cached.

        To be called only if there is a cache, see `caches`.
        """
        assert self._cache is not None  # noqa: S101 - for the type checker
        return self._cache.writing(None if key is None else token_of(key))

    async def _look_up(
        self, caller: Caller, header: bytes, query: Query, *, lookup_key: bool = False
    ) -> tuple[Stored | Unknown, Lookup, bytes]:
        """Returns the stored state, the lookup, and the content of the response, empty if there was none."""
        since = perf_counter()
        found: Stored | Unknown
        content = b""
        try:
            async with asyncio.timeout(self._timeout):
                status, content = await caller.send_lookup(
                    query.request_target, header + query.header, MAX_RESPONSE, query.content
                )
        except (TimeoutError, UpstreamTimeout, PoolExhausted):
            found, outcome = Unknown("lookup_timeout"), LookupOutcome.TIMEOUT
        except GatewayError:
            found, outcome = Unknown("lookup_failed"), LookupOutcome.FAILED
        else:
            if status == 200:
                found = query.read(content)
                outcome = LookupOutcome.OK if isinstance(found, Stored) else LookupOutcome.UNUSABLE
            else:
                found = Unknown(f"lookup_{'key_' if lookup_key else ''}{status}", status == 403 and not lookup_key)
                outcome = LookupOutcome.of_status(status)
        return found, Lookup(outcome, perf_counter() - since, lookup_key), content

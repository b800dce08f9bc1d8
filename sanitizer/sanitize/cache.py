"""The opt-in cache of lookups."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from cachetools import TTLCache

SIZE = 4 * 1024 * 1024
"""The most bytes of responses that a cache holds."""


class LookupCache:
    """Keeps LiteLLM's responses to lookups for ``seconds``: for each token one, that of the latest caller.

    An entry is dropped as soon as another caller's lookup for the same key, or any request that may write the key,
    passes through this process. A change that does not pass through it (another worker or replica forwarded it, or
    LiteLLM made it itself) is not seen for up to ``seconds``. That is the cost of the cache: if a client then sends the
    value from before that change, it is cut as unchanged. The write is lost, and LiteLLM answers 200.
    """

    def __init__(self, seconds: float) -> None:
        # token -> (caller, content of the response)
        self._entries: TTLCache[str, tuple[bytes, bytes]] = TTLCache(
            SIZE, seconds, timer=monotonic, getsizeof=lambda entry: len(entry[1]) + 256
        )
        self._writers: Counter[str | None] = Counter()  # writing requests in flight, by token (None: any token)
        self._generation = 0  # the number of writing requests that have ended

    def get(self, token: str, caller: bytes) -> bytes | None:
        """The response that this caller received for the token, or None if it is not cached."""
        entry = self._entries.get(token)
        return entry[1] if entry is not None and entry[0] == caller else None

    def begin_lookup(self, token: str) -> int:
        """Drop the token's entry, because a new lookup begins. Returns the generation to pass to `put`."""
        self._entries.pop(token, None)
        return self._generation

    def put(self, token: str, caller: bytes, content: bytes, generation: int) -> None:
        """Keep a response, unless a request that may have written the key was in flight during the lookup."""
        if self._generation == generation and not self._writers[token] and not self._writers[None]:
            self._entries[token] = (caller, content)

    @contextmanager
    def writing(self, token: str | None) -> Iterator[None]:
        """The context of a request that may write this key, or any key if ``token`` is None. It drops the entries."""
        if token is None:
            self._entries.clear()
        else:
            self._entries.pop(token, None)
        self._writers[token] += 1
        try:
            yield
        finally:
            self._generation += 1
            self._writers -= Counter((token,))  # this also deletes a count of 0

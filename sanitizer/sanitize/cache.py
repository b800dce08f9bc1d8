"""The opt-in cache of lookups."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from cachetools import TTLCache

SIZE = 4 * 1024 * 1024
"""Bytes of answers that a cache keeps."""


class AnswerCache:
    """LiteLLM's answers to lookups, each kept for ``seconds``, one for each token: the latest caller's.

    An entry goes as soon as another caller's lookup for the key, or any request that may write the key, comes through
    this process. What opting in costs: a change made behind this process's back (another worker or replica, LiteLLM
    itself, an alias) is not seen for up to ``seconds``. If a client then sends the value from before that change, it is
    dropped as unchanged: the write is lost, and LiteLLM answers 200.
    """

    def __init__(self, seconds: float) -> None:
        # token -> (caller, answer)
        self._entries: TTLCache[str, tuple[bytes, bytes]] = TTLCache(
            SIZE, seconds, timer=monotonic, getsizeof=lambda entry: len(entry[1]) + 256
        )
        self._writers: Counter[str | None] = Counter()  # requests on their way, by the token that they may write
        self._writes = 0  # requests that have ended

    def get(self, token: str, caller: bytes) -> bytes | None:
        """The answer that this caller has got for the token."""
        entry = self._entries.get(token)
        return entry[1] if entry is not None and entry[0] == caller else None

    def begin_lookup(self, token: str) -> int:
        """Drop the token's entry, because it is looked up anew. Returns what `put` has to be given then."""
        self._entries.pop(token, None)
        return self._writes

    def put(self, token: str, caller: bytes, answer: bytes, begun: int) -> None:
        """Keep an answer, unless a request that may have written the key was on its way during the lookup."""
        if self._writes == begun and not self._writers[token] and not self._writers[None]:
            self._entries[token] = (caller, answer)

    @contextmanager
    def writing(self, token: str | None) -> Iterator[None]:
        """A request is on its way that may write the token's key, or any key if it is None: nothing of it is kept."""
        if token is None:
            self._entries.clear()
        else:
            self._entries.pop(token, None)
        self._writers[token] += 1
        try:
            yield
        finally:
            self._writes += 1
            self._writers -= Counter((token,))  # which drops a count of 0

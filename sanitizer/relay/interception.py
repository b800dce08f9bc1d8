"""What the relay asks about a request, to intercept it. `sanitizer.sanitize.core` answers; neither loads the other."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Ask(Protocol):
    """Sends a request of the interception's own, see `sanitizer.relay.fetch.fetch`."""

    def __call__(
        self, target: bytes, header: bytes, limit: int, content: bytes | None = None, /
    ) -> Awaitable[tuple[int, bytes]]: ...


class Interception(Protocol):
    """What is decided about one request; `sanitizer.sanitize.core.Interception` says in which order it is asked."""

    inspects: bool
    confidential: bool
    field: bytes
    held_limit: int
    """Bytes of an answer's content that are held back; a longer answer passes on."""

    @property
    def body(self) -> bytes: ...
    def collect(self, data: bytes) -> bool: ...
    def release(self) -> bytes: ...
    async def edit(self) -> bytes | None: ...
    def give_up(self) -> None: ...
    def holds(self, status: int) -> bool: ...
    async def next_body(self, status: int, head: bytes, content: bytes) -> bytes | None: ...
    def answered(self, status: int, head: bytes) -> bytes | None: ...
    def close(self, reason: str = "client_left", status: int | None = None) -> None: ...


class Interceptor(Protocol):
    """Says of each POST whether it is intercepted. Paths are decoded; heads are octets; ``client`` is an IP address.

    ``writing`` is called with the path of each request that is not intercepted, unless its method only reads. It
    returns a context in which that request has to run, or None. The property is None if no request ever needs one.
    """

    @property
    def writing(self) -> Callable[[str], AbstractContextManager[None] | None] | None: ...
    def intercept(
        self, path: str, head: bytes, outbound: bytes, ask: Ask, client: str | None
    ) -> Interception | None: ...

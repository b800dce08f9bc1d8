"""The interface between the relay and the code that decides about intercepted requests.

`sanitizer.sanitize.core` implements it. Neither package imports the other.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Protocol


class SendLookup(Protocol):
    """Sends a request of the gateway's own to upstream, see `sanitizer.relay.fetch.fetch`."""

    def __call__(
        self, target: bytes, header: bytes, limit: int, content: bytes | None = None, /
    ) -> Awaitable[tuple[int, bytes]]: ...


class Interception(Protocol):
    """One intercepted request. `sanitizer.sanitize.core.Interception` documents the methods and their order."""

    inspects: bool
    confidential: bool
    response_field: bytes
    held_limit: int
    """Bytes of a response's content; a response with more is not held back."""

    @property
    def body(self) -> bytes: ...
    def collect(self, data: bytes) -> bool: ...
    def release(self) -> bytes: ...
    async def edit(self) -> bytes | None: ...
    def decision_failed(self) -> None: ...
    def should_hold(self, status: int) -> bool: ...
    async def next_body(self, status: int, head: bytes, content: bytes) -> bytes | None: ...
    def report_resend(self) -> None: ...
    def report_response(self, status: int, head: bytes) -> bytes | None: ...
    def close(self, reason: str = "client_left", status: int | None = None) -> None: ...


class Interceptor(Protocol):
    """Decides which POST requests are intercepted.

    ``intercept`` takes the decoded path, the heads as received and as forwarded, a function for lookups, and the
    client's IP address. It returns None for a request that is not intercepted.

    ``write_context`` is called with the decoded path of each request that is not intercepted, unless its method is
    safe. It returns a context in which that request has to run, or None. The property is None if no request needs a
    context.
    """

    @property
    def write_context(self) -> Callable[[str], AbstractContextManager[None] | None] | None: ...
    def intercept(
        self, path: str, head: bytes, outbound: bytes, send_lookup: SendLookup, client_address: str | None
    ) -> Interception | None: ...

"""A request of the gateway's own over the relay's connections: one pool serves both, one set of
timeouts and TLS settings, one check for stale connections.
"""

import asyncio

from sanitizer.errors import GatewayError, UpstreamBroken
from sanitizer.relay.connection import Response
from sanitizer.relay.exchange import Exchange
from sanitizer.relay.pool import Pool


class _Fetched(Exchange):
    """An exchange whose response is taken whole, or until more than ``limit`` bytes of it have come."""

    __slots__ = ("content", "ended", "error", "limit")

    def __init__(self, pool: Pool, method: bytes, head: bytes, length: int, limit: int) -> None:
        super().__init__(pool, method, head, length)
        self.content = bytearray()
        self.ended: asyncio.Future[None] = pool.loop.create_future()
        self.error: GatewayError | None = None
        self.limit = limit

    def on_response(self, response: Response) -> None:
        if response.status != 200:
            self._end()

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        self.content += data
        if last or len(self.content) > self.limit:
            self._end()

    def on_error(self, error: GatewayError) -> None:
        self.error = error
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def fetch(
    pool: Pool, target: bytes, header: bytes, limit: int, content: bytes | None = None
) -> tuple[int, bytes]:
    """GET ``target``, or POST ``content`` to it, with exactly the field lines in ``header``.

    Each of these lines follows a CRLF. Returns the status and, for a 200, the content. Stops reading once more than
    ``limit`` bytes have arrived, so an oversized content comes back cut short but longer than ``limit``. The content of
    another status is not waited for. No redirect is followed, no cookie kept. Raises `GatewayError`. Cancelling closes
    the connection.
    """
    method = b"GET" if content is None else b"POST"
    head = b"%b %b HTTP/1.1%b\r\n" % (method, target, header)
    fetched = _Fetched(pool, method, head, len(content or b""), limit)
    try:
        if content:
            fetched.send(content)
        fetched.start()
        await fetched.ended
    finally:
        fetched.cancel()
    if fetched.response is None or (fetched.error is not None and fetched.response.status == 200):
        raise fetched.error or UpstreamBroken
    return fetched.response.status, bytes(fetched.content)

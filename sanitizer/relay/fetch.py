"""A request of the gateway's own. It uses the relay's pool, and with it the same timeouts, TLS settings and checks for
stale connections.
"""

import asyncio

from sanitizer.errors import GatewayError, UpstreamBroken
from sanitizer.relay.connection import Response
from sanitizer.relay.exchange import Exchange
from sanitizer.relay.pool import Pool


class _Fetch(Exchange):
    """An exchange that collects the content of its response until it is complete or longer than ``limit`` bytes.

    ``finished`` is done when there is nothing more to collect, or when the exchange has failed with ``error``.
    """

    __slots__ = ("content", "error", "finished", "limit")

    def __init__(self, pool: Pool, method: bytes, head: bytes, length: int, limit: int) -> None:
        super().__init__(pool, method, head, length)
        self.content = bytearray()
        self.finished: asyncio.Future[None] = pool.loop.create_future()
        self.error: GatewayError | None = None
        self.limit = limit

    def on_response(self, response: Response) -> None:
        if response.status != 200:
            self._set_finished()

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        self.content += data
        if last or len(self.content) > self.limit:
            self._set_finished()

    def on_error(self, error: GatewayError) -> None:
        self.error = error
        self._set_finished()

    def _set_finished(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


async def fetch(
    pool: Pool, target: bytes, header: bytes, limit: int, content: bytes | None = None
) -> tuple[int, bytes]:
    """GET ``target``, or POST ``content`` to it, with exactly the field lines in ``header``.

    Each of these lines is preceded by CRLF. Returns the status and, for a 200, the content. Stops reading once more
    than ``limit`` bytes have been received, so oversized content is returned truncated but longer than ``limit``. The
    content of a response with another status is not read. Redirects are not followed, and cookies are not kept. Raises
    `GatewayError`. Cancelling closes the connection.
    """
    method = b"GET" if content is None else b"POST"
    head = b"%b %b HTTP/1.1%b\r\n" % (method, target, header)
    exchange = _Fetch(pool, method, head, len(content or b""), limit)
    try:
        if content:
            exchange.send(content)
        exchange.start()
        await exchange.finished
    finally:
        exchange.cancel()
    if exchange.response is None or (exchange.error is not None and exchange.response.status == 200):
        raise exchange.error or UpstreamBroken
    return exchange.response.status, bytes(exchange.content)

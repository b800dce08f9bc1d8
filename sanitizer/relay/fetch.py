"""A request of the gateway's own, without content, over the relay's connections: one pool serves both, one set of
timeouts and TLS settings, one check for stale connections.
"""

import asyncio

from sanitizer.errors import GatewayError, UpstreamBroken
from sanitizer.relay.exchange import Exchange, Response
from sanitizer.relay.headers import Fields, encode_head
from sanitizer.relay.upstream import Upstream


class _Fetched(Exchange):
    """An exchange whose response is taken whole, or until more than ``most`` bytes of it have come."""

    __slots__ = ("content", "ended", "error", "most")

    def __init__(self, upstream: Upstream, head: bytes, most: int) -> None:
        super().__init__(upstream, b"GET", head)
        self.content = bytearray()
        self.ended: asyncio.Future[None] = upstream.loop.create_future()
        self.error: GatewayError | None = None
        self.most = most

    def on_response(self, response: Response) -> None:
        if response.status != 200:
            self._end()

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        self.content += data
        if last or len(self.content) > self.most:
            self._end()

    def on_error(self, error: GatewayError) -> None:
        self.error = error
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def fetch(upstream: Upstream, target: bytes, fields: Fields, most: int) -> tuple[int, bytes]:
    """GET ``target`` with ``fields`` and no others: the status, and the content of a 200.

    Of a content over ``most`` bytes more than ``most`` are returned, but not all; that of another status is not waited
    for. No redirect is followed, no cookie kept. Raises `GatewayError`. Cancelling closes the connection.
    """
    fetched = _Fetched(upstream, encode_head(b"GET %b HTTP/1.1" % target, fields), most)
    try:
        fetched.start()
        await fetched.ended
    finally:
        fetched.cancel()
    if fetched.response is None or (fetched.error is not None and fetched.response.status == 200):
        raise fetched.error or UpstreamBroken
    return fetched.response.status, bytes(fetched.content)

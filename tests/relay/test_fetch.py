"""The gateway's own requests: how much of a response is read, and which responses are errors."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sanitizer.address import Address
from sanitizer.errors import UpstreamBroken
from sanitizer.relay.fetch import fetch
from sanitizer.relay.pool import Pool
from tests.support.upstream import CLOSE, OK, WAIT_CLOSED, Step, Upstream, reply

pytestmark = pytest.mark.anyio

HEADER = b"\r\nHost: a\r\nX: y"


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
async def pool(upstream: Upstream) -> AsyncIterator[Pool]:
    pool = Pool(Address("http", "127.0.0.1", upstream.port))
    yield pool
    pool.close()


def answer(status: bytes, content: bytes, *, length: int) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, length, content)


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        pytest.param((OK,), (200, b"ok"), id="complete"),
        pytest.param((answer(b"200 OK", b"x" * 10, length=10),), (200, b"x" * 10), id="as large as the limit"),
        pytest.param((answer(b"200 OK", b"x" * 11, length=99), WAIT_CLOSED), (200, b"x" * 11), id="over the limit"),
        pytest.param((answer(b"404 Not Found", b"", length=99), WAIT_CLOSED), (404, b""), id="another status"),
    ],
)
async def test_answers(
    upstream: Upstream, pool: Pool, steps: tuple[bytes | Step, ...], found: tuple[int, bytes]
) -> None:
    """The content of a 200 is read until it is over the limit. The content of another status is not read."""
    upstream.script = reply(*steps)
    assert await fetch(pool, b"/a?b", HEADER, 10) == found
    assert upstream.requests[0].raw_head == b"GET /a?b HTTP/1.1" + HEADER + b"\r\n\r\n"


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param((CLOSE,), id="no response"),
        pytest.param((answer(b"200 OK", b"x", length=2), CLOSE), id="incomplete"),
        pytest.param((answer(b"200 OK", b"x" * 10, length=11), CLOSE), id="incomplete, as large as the limit"),
    ],
)
async def test_broken_answers(upstream: Upstream, pool: Pool, steps: tuple[bytes | Step, ...]) -> None:
    """A response that breaks off is an error, however much of it was received."""
    upstream.script = reply(*steps)
    with pytest.raises(UpstreamBroken):
        await fetch(pool, b"/", HEADER, 10)


async def test_content(upstream: Upstream, pool: Pool) -> None:
    """A request with content is a POST."""
    upstream.script = reply(OK)
    assert await fetch(pool, b"/", HEADER + b"\r\nContent-Length: 2", 10, b"{}") == (200, b"ok")
    assert (upstream.requests[0].method, upstream.requests[0].body) == (b"POST", b"{}")


async def test_cancelled(upstream: Upstream, pool: Pool) -> None:
    """If `fetch` is cancelled, the upstream connection is closed."""
    upstream.script = reply(WAIT_CLOSED)
    asking = asyncio.create_task(fetch(pool, b"/", HEADER, 10))
    await asyncio.to_thread(upstream.wait_request)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.to_thread(upstream.wait_closed)
    assert pool.open == 0

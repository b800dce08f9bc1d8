"""A repeated request head is forwarded like the first one, and a different head is not mistaken for a repetition."""

from tests.support.gateway import Gateway
from tests.support.upstream import Upstream

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


def test_upgrade_with_and_without_content() -> None:
    """Upgrade is ignored in a request with content, and forwarded in one without. (ASGI has no upgrades.)"""
    lines = (b"GET /ws HTTP/1.1", b"Host: h", b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: ")
    head = b"\r\n".join(lines)
    with Upstream() as upstream, Gateway(upstream.url) as gateway, gateway.connect() as client:
        for content in (b"content", b"other", b"", b"more"):
            assert client.ask(head + b"%d\r\n\r\n%b" % (len(content), content)).status == 200
        assert [request.get(b"upgrade") for request in upstream.requests] == [None, None, b"websocket", None]


def test_on_one_connection(gateway: Gateway, upstream: Upstream) -> None:
    """Requests on one connection, some with equal heads, are forwarded as each is on a connection of its own."""

    def post(path: bytes, body: bytes, *fields: bytes) -> bytes:
        lines = (b"POST %b HTTP/1.1" % path, b"Host: h", b"Content-Length: %d" % len(body), *fields)
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    requests = [
        post(b"/a", b"one"),
        post(b"/a", b"three"),
        post(b"/a", b""),
        post(b"/a", b"x" * 70_000),
        post(b"/b", b"two"),
        post(b"/b", b"two", b"X-Forwarded-For: 1.2.3.4"),
        post(b"/b", b"2", b"X-Forwarded-For: 1.2.3.4"),
        post(b"/b", b"22", b"Connection: X-Team", b"X-Team: a"),
        post(b"/b", b"222", b"Connection: X-Team", b"X-Team: a"),
        GET,
        GET,
        post(b"/a", b"one"),
    ]
    for request in requests:
        gateway.ask(request)
    apart = [(r.start, r.fields, r.body) for r in upstream.requests]
    upstream.requests.clear()
    with gateway.connect() as client:
        for request in requests:
            client.ask(request)
    together = [(r.start, r.fields, r.body) for r in upstream.requests]
    assert len(apart) == len(requests)
    assert together == apart

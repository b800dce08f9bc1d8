"""The error responses that the gateway itself sends."""

from http import HTTPStatus

from sanitizer.errors import GatewayError
from sanitizer.http1.heads import Fields, encode_head


def error_fields(error: GatewayError, keep_alive: bool, cross_origin: bool) -> tuple[Fields, bytes]:
    """Return the field lines and the content of the response for ``error``. The status is ``error.status``.

    ``keep_alive`` says whether the client's connection stays open. ``cross_origin`` says whether the request has an
    Origin field: a browser then lets the page read only a response that allows it, as upstream's responses do.
    """
    content = error.body()
    fields = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(content))]
    if cross_origin:
        fields.append((b"Access-Control-Allow-Origin", b"*"))
    if not keep_alive:
        fields.append((b"Connection", b"close"))
    return fields, content


def error_response(
    error: GatewayError, keep_alive: bool, cross_origin: bool, method: bytes = b"GET"
) -> tuple[bytes, bytes]:
    """Return the head and the content of the response for ``error`` to a ``method`` request, see `error_fields`."""
    fields, content = error_fields(error, keep_alive, cross_origin)
    phrase = HTTPStatus(error.status).phrase.encode()
    head = encode_head(b"HTTP/1.1 %d %b" % (error.status, phrase), fields)
    return head, content if method != b"HEAD" else b""

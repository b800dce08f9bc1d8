"""The gateway's own responses to errors."""

import json

import pytest

from sanitizer.errors import BadRequest, GatewayError, UpstreamBroken
from sanitizer.http1.responses import error_response


@pytest.mark.parametrize(
    ("error", "keep_alive", "cross_origin", "head"),
    [
        pytest.param(UpstreamBroken(), True, False, b"502 Bad Gateway\r\n%b", id="kept open"),
        pytest.param(BadRequest(), False, False, b"400 Bad Request\r\n%bConnection: close\r\n", id="closed"),
        pytest.param(
            UpstreamBroken(),
            True,
            True,
            b"502 Bad Gateway\r\n%bAccess-Control-Allow-Origin: *\r\n",
            id="readable by other origins",
        ),
    ],
)
def test_error_response(error: GatewayError, keep_alive: bool, cross_origin: bool, head: bytes) -> None:
    """A response has the status and content of its error, and no content for HEAD (RFC 9110 section 9.3.2)."""
    found, content = error_response(error, keep_alive, cross_origin)
    framing = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(content)
    assert found == b"HTTP/1.1 " + head % framing
    assert json.loads(content)["error"]["type"] == error.kind
    assert error_response(error, keep_alive, cross_origin, b"HEAD") == (found, b"")

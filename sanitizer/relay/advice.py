"""Advice for the operator about the proxies and servers around the gateway. Each process logs each piece once."""

import logging
from functools import cache
from typing import Final

HTTP_1_0_STREAM: Final = (
    "an HTTP/1.0 client gets a response that ends only when the connection closes, which nginx would buffer; the "
    "gateway has added 'X-Accel-Buffering: no' to it; if the client is nginx, set 'proxy_http_version 1.1;' and "
    "'proxy_set_header Connection \"\";', or 'proxy_buffering off;'"
)
HTTP_1_0_UPGRADE: Final = (
    "an HTTP/1.0 client has asked for an upgrade, such as a WebSocket, which HTTP/1.0 does not have (RFC 9110 section "
    "7.8), so the request was relayed without it; if the client is nginx, set 'proxy_http_version 1.1;'"
)
NO_CLOSE_NOTIFY: Final = (
    "upstream has ended a response of unknown length without TLS's close_notify; the response was relayed as complete, "
    "but an attacker on the path could have truncated it; sanitizer_upstream_unannounced_ends_total counts such "
    "responses"
)


@cache
def advise(advice: str) -> None:
    """Log ``advice`` as a warning, the first time that it is given."""
    logging.getLogger("sanitizer").warning(advice)

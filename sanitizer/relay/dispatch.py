"""Chooses the handler of a request."""

from typing import Final

from sanitizer.http1.requests import Request, decoded_path
from sanitizer.relay.advice import HTTP_1_0_UPGRADE, advise
from sanitizer.relay.handler import Client, Handler
from sanitizer.relay.intercepted import Intercepted
from sanitizer.relay.interception import Interceptor, SendLookup
from sanitizer.relay.proxied import Proxied, ProxiedWrite

_SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
"""Safe methods (RFC 9110 section 9.2.1): such a request writes nothing. TRACE is missing: LiteLLM has none."""


def make_handler(client: Client, request: Request, interceptor: Interceptor, send_lookup: SendLookup) -> Handler:
    """The handler of ``request``, which was received from ``client``. ``send_lookup`` is for an interception."""
    if request.method == b"POST":
        path = decoded_path(request.target)
        interception = interceptor.intercept(path, request.octets, request.outbound, send_lookup, client.address)
        if interception is not None:
            return Intercepted(client, request, interception)
    if interceptor.write_context is not None and request.method not in _SAFE:
        writing = interceptor.write_context(decoded_path(request.target))
        if writing is not None:
            return ProxiedWrite(writing, client, request)
    if request.version == b"1.0" and request.head.upgrade and b"upgrade" in request.head.connection:
        advise(HTTP_1_0_UPGRADE)
    return Proxied.of(client, request)

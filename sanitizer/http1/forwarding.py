"""The request head for upstream: hop-by-hop fields are removed, forwarding fields and Via are added.

Facts enforced here (RFC 9110):

* 7.6.3: a gateway adds itself to Via in requests. A request that already names it there has looped.
* 6.5.1: trailers must not contain fields for framing, routing or authentication, because some recipients merge them
  into the header fields.
* 10.1.1: a 100-continue expectation in an HTTP/1.0 request is ignored.

The forwarding fields are X-Forwarded-*, Forwarded and X-Real-IP. If the peer is not trusted, they are replaced.
"""

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sanitizer.address import TrustedProxies, plain_ip
from sanitizer.errors import LoopDetected
from sanitizer.http1.heads import HOP_BY_HOP, Head, field_lines

_FORWARDING: Final = (b"forwarded", b"x-real-ip", b"x-forwarded-[^:]*")
_PSEUDONYM: Final = b"litellm-sanitizer-"
_MAX_GATEWAYS: Final = 8

_INSPECTED: Final = field_lines((*HOP_BY_HOP, *_FORWARDING, b"content-length", b"host", b"origin", b"via"))
_REMOVED: Final = {
    True: field_lines(HOP_BY_HOP),  # if the peer is trusted
    False: field_lines((*HOP_BY_HOP, *_FORWARDING)),
}
HOST: Final = field_lines((b"host",))
"""Matches a Host line, including the CRLF before it."""
EXPECTS_CONTINUE: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)
"""Matches an Expect: 100-continue line, including the CRLF before it (RFC 9110 section 10.1.1)."""
_BUFFERING: Final = b"\r\nx-accel-buffering:"
_NOT_IN_TRAILERS: Final = re.compile(
    rb"(?:"
    + b"|".join((*HOP_BY_HOP, *_FORWARDING, rb"(?:content|proxy|if)-[^:]*", b"host", b"via", b"date", b"set-cookie"))
    + rb"|authorization|cookie|expect|range|trailer):",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Peer:
    """The sender of a request.

    ``address`` is its IP address as text, None on a Unix socket. ``scheme`` is http or https. ``trusted`` says whether
    its forwarding fields are passed on. ``lines`` are the X-Forwarded-For and X-Forwarded-Proto lines that describe it.
    """

    address: bytes | None
    trusted: bool
    scheme: bytes
    lines: bytes


class Forwarding:
    """Writes the request heads for upstream.

    ``pseudonym`` is this gateway's name in Via, the same in all its workers. ``host`` is the value of Host that is sent
    upstream, None for the client's own. ``on_untrusted`` is called once, with the address of the first untrusted peer
    that sends ``X-Forwarded-Proto: https`` over plain HTTP. It most likely is a load balancer that should be trusted.
    """

    def __init__(
        self,
        trusted_proxies: TrustedProxies,
        pseudonym: bytes,
        host: bytes | None = None,
        on_untrusted: Callable[[str | None], None] | None = None,
    ) -> None:
        self._trusted_proxies = trusted_proxies
        self._pseudonym = pseudonym
        self._host = None if host is None else b"\r\nHost: " + host.replace(b"\\", rb"\\")
        self._on_untrusted = on_untrusted
        self._via = b" " + pseudonym + b"\r\n"
        self.peer = lru_cache(1024)(self._peer)

    def _peer(self, host: str | None, scheme: str) -> Peer:
        """Return the `Peer` at ``host``. An IPv4-mapped IPv6 address is taken as the IPv4 address."""
        if host:
            with contextlib.suppress(ValueError):  # an ASGI server may give a name instead of an address
                host = str(plain_ip(host))
        address = host.encode() if host else None
        lines = b"X-Forwarded-For: %b\r\n" % address if address else b""
        lines += b"X-Forwarded-Proto: %b\r\n" % scheme.encode()
        return Peer(address, self._trusted_proxies.trusts(host or None), scheme.encode(), lines)

    def outbound(self, octets: bytes, peer: Peer, version: bytes = b"1.1") -> tuple[Head, bytes]:
        """Read a request head that ``peer`` has sent in HTTP/``version``, and write the head for upstream.

        Returns the parsed head, and the head for upstream, which has the end-to-end fields, the forwarding fields and
        Via. A trusted peer's forwarding fields pass unchanged. X-Forwarded-For, -Proto and -Host are added where they
        are missing or the peer is not trusted, because LiteLLM's own server trusts them from 127.0.0.1.
        X-Forwarded-Host is the Host that the client sent. Content-Length is kept, Transfer-Encoding is not. Raises
        `LoopDetected`.

        A 100-continue expectation of an HTTP/1.0 client is removed: upstream gets the request in HTTP/1.1, so it could
        not know that it must ignore the expectation.
        """
        head = Head()
        drop = claims_https = False
        passed: list[bytes] = []  # names of the forwarding fields that pass
        via: list[bytes] = []
        for name, value in _INSPECTED.findall(octets):
            name = name.lower()
            if name == b"host":
                head.host = value.rstrip(b" \t")
                head.host_count += 1
            elif name == b"content-length":
                head.read_length(value)
            elif name == b"origin":
                head.has_origin = True
            elif name == b"via":
                via.append(value)
            elif name in HOP_BY_HOP:
                drop = True
                head.read_hop_by_hop(name, value)
            elif peer.trusted:
                passed.append(name)
            else:
                drop = True
                claims_https |= name == b"x-forwarded-proto" and value.rstrip(b" \t").lower() == b"https"
        if drop:
            head.drop(octets, _REMOVED[peer.trusted])
        else:
            head.octets = octets
        if via:
            self._check_loop(via)
        if claims_https:
            self._warn(peer)
        return head, self._write(head, peer, passed, version)

    def _write(self, head: Head, peer: Peer, passed: Sequence[bytes], version: bytes) -> bytes:
        """Return the head for upstream. ``passed`` are the names of the forwarding fields that it already has."""
        octets = head.octets if version != b"1.0" else EXPECTS_CONTINUE.sub(b"", head.octets)
        if self._host is not None:
            octets = HOST.sub(self._host, octets)
        lines = peer.lines
        if passed:
            missing = [
                line for line in lines.splitlines(keepends=True) if line.partition(b":")[0].lower() not in passed
            ]
            lines = b"".join(missing)
        if head.host and b"x-forwarded-host" not in passed:
            lines += b"X-Forwarded-Host: " + head.host + b"\r\n"
        return octets + lines + b"Via: " + version + self._via

    def _warn(self, peer: Peer) -> None:
        if self._on_untrusted is not None and peer.scheme != b"https":
            on_untrusted, self._on_untrusted = self._on_untrusted, None
            on_untrusted(None if peer.address is None else peer.address.decode())

    def _check_loop(self, via: Sequence[bytes]) -> None:
        gateways = 0
        for value in via:
            if self._pseudonym in value:
                raise LoopDetected
            gateways += value.count(_PSEUDONYM)
        if gateways > _MAX_GATEWAYS:
            raise LoopDetected("the request has passed more than 8 gateways; check the --upstream of each")


def has_buffering_field(head: bytes) -> bool:
    """Whether a response head has X-Accel-Buffering, which tells nginx whether to buffer the response."""
    return _BUFFERING in head.lower()


def passed_trailers(lines: bytes) -> bytes:
    """Return those of a response's trailer lines that are passed on. Each line includes its CRLF."""
    return b"".join([line for line in lines.splitlines(keepends=True) if not _NOT_IN_TRAILERS.match(line)])

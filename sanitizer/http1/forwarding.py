"""Forwarding fields: which ones pass on to upstream, and which ones the gateway writes itself.

Facts enforced here (RFC 9110):

* 7.6.3: a gateway adds itself to Via on requests; seeing itself there, it is in a loop.
* 6.5.1: a trailer must not frame, route or authenticate, for some recipients merge trailers into the head's fields.
* 10.1.1: in HTTP/1.0 an expectation of 100 (Continue) is to be ignored.

The forwarding fields are X-Forwarded-*, Forwarded and X-Real-IP. Those of a peer that is not trusted are replaced.
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
_GATEWAYS_IN_LINE: Final = 8

_READ: Final = field_lines((*HOP_BY_HOP, *_FORWARDING, b"content-length", b"host", b"origin", b"via"))
_DROPPED: Final = {
    True: field_lines(HOP_BY_HOP),  # if the peer is trusted
    False: field_lines((*HOP_BY_HOP, *_FORWARDING)),
}
HOST: Final = field_lines((b"host",))
"""The Host lines of a head, each with the CRLF before it."""
EXPECTS_CONTINUE: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)
"""The line of a head by which its sender may wait for a 100 before it sends the content (RFC 9110 section 10.1.1)."""
_BUFFERING: Final = b"\r\nx-accel-buffering:"
_NOT_IN_TRAILERS: Final = re.compile(
    rb"(?:"
    + b"|".join((*HOP_BY_HOP, *_FORWARDING, rb"(?:content|proxy|if)-[^:]*", b"host", b"via", b"date", b"set-cookie"))
    + rb"|authorization|cookie|expect|range|trailer):",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Peer:
    """The sender of a request: ``address`` is an IP address as text, None on a unix socket; ``scheme`` is the one used.

    ``trusted``: its forwarding fields are passed on. ``lines``: the field lines that say where its requests come from.
    """

    address: bytes | None
    trusted: bool
    scheme: bytes
    lines: bytes


class Forwarding:
    """Writes the heads for upstream.

    ``pseudonym`` is this gateway's name in Via, the same in all its workers. ``host`` is the Host that upstream gets;
    None: the client's. ``on_untrusted`` is called once, with the address of the first peer that is not trusted and says
    that it was asked by https: most likely it is a load balancer that should be trusted.
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
        """The `Peer` at ``host``; an IPv4 address that came in on an IPv6 socket is the IPv4 address."""
        if host:
            with contextlib.suppress(ValueError):  # a server that names its peers otherwise
                host = str(plain_ip(host))
        address = host.encode() if host else None
        lines = b"X-Forwarded-For: %b\r\n" % address if address else b""
        lines += b"X-Forwarded-Proto: %b\r\n" % scheme.encode()
        return Peer(address, self._trusted_proxies.trusts(host or None), scheme.encode(), lines)

    def outbound(self, octets: bytes, peer: Peer, version: bytes = b"1.1") -> tuple[Head, bytes]:
        """Read the head of a request that ``peer`` has sent in HTTP/``version``.

        Returns what it says, and the head for upstream: what is end-to-end, where the request came from, and Via. A
        trusted peer's forwarding fields pass as they are. X-Forwarded-For, -Proto and -Host are written where they are
        missing or the peer is not trusted, for LiteLLM's own server believes them from 127.0.0.1. X-Forwarded-Host
        tells the Host that came. Content-Length passes, Transfer-Encoding does not. Raises `LoopDetected`.

        An HTTP/1.0 client's expectation of a 100 is dropped: upstream gets the request in HTTP/1.1, and would not know
        that the expectation is to be ignored.
        """
        head = Head()
        drop = claims_https = False
        passed: list[bytes] = []  # names of forwarding fields
        via: list[bytes] = []
        for name, value in _READ.findall(octets):
            name = name.lower()
            if name == b"host":
                head.host = value.rstrip(b" \t")
                head.hosts += 1
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
            head.drop(octets, _DROPPED[peer.trusted])
        else:
            head.octets = octets
        if via:
            self._check_loop(via)
        if claims_https:
            self._warn(peer)
        return head, self._write(head, peer, passed, version)

    def _write(self, head: Head, peer: Peer, passed: Sequence[bytes], version: bytes) -> bytes:
        """The head for upstream; ``passed``: the names of the forwarding fields in it."""
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
        if gateways > _GATEWAYS_IN_LINE:
            raise LoopDetected("the request has passed more than 8 gateways; check the --upstream of each")


def buffering_is_set(head: bytes) -> bool:
    """Whether the head of a response itself tells nginx whether to buffer the response."""
    return _BUFFERING in head.lower()


def passed_trailers(lines: bytes) -> bytes:
    """The trailers of a response that are passed on, out of ``lines``, each with its CRLF."""
    return b"".join([line for line in lines.splitlines(keepends=True) if not _NOT_IN_TRAILERS.match(line)])

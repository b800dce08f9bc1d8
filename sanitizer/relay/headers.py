"""Which field lines an intermediary passes on, and which it writes itself.

Facts enforced here (RFC 9110):

* 7.6.1: Connection, and every field that it names, belongs to one hop; so do Keep-Alive, Proxy-Connection, TE,
  Transfer-Encoding and Upgrade, named or not. All other field lines pass with their order, duplicates and values.
* 7.6.3: a gateway adds itself to Via on requests; seeing itself there, it is in a loop.
* 7.8: Upgrade is for this hop; a relayed upgrade is asked for anew.

A sender could name a field in Connection that the next hop must see whole (Host, the framing, where the request came
from); `_KEPT` are never dropped on its word.

Field lines are ``(name, value)`` pairs of bytes, names in any case.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sanitizer.errors import LoopDetected
from sanitizer.settings import TrustedProxies

Fields = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)
_FORWARDED: Final = frozenset((b"forwarded", b"x-real-ip"))  # and every x-forwarded-*
_KEPT: Final = frozenset((b"host", b"content-length", b"via", b"date", b"set-cookie", *_FORWARDED))
_PSEUDONYM: Final = b"litellm-sanitizer-"
_GATEWAYS_IN_LINE: Final = 8


def list_members(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """The lower-cased, non-empty members of the comma lists in all field lines called ``name`` (lower case)."""
    return [
        member
        for field, value in fields
        if field.lower() == name
        for part in value.split(b",")
        if (member := part.strip(b" \t").lower())
    ]


def _named_by_connection(fields: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    return frozenset(
        name
        for name in list_members(fields, b"connection")
        if name not in _KEPT and not name.startswith(b"x-forwarded-")
    )


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request: ``address`` is an IP address as text, None on a unix socket; ``scheme`` is the one used."""

    address: bytes | None
    trusted: bool
    scheme: bytes


class Forwarding:
    """What this gateway tells upstream about where a request came from.

    ``pseudonym`` is this gateway's name in Via, the same in all its workers.
    """

    def __init__(self, trusted_proxies: TrustedProxies, pseudonym: bytes) -> None:
        self._trusted_proxies = trusted_proxies
        self._pseudonym = pseudonym
        self.peer = lru_cache(1024)(self._peer)

    def _peer(self, host: str | None, scheme: str) -> Peer:
        """The `Peer` at ``host``; an IPv4 address that came in on an IPv6 socket is the IPv4 address."""
        if host:
            try:
                address = ipaddress.ip_address(host.partition("%")[0])
                if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
                    address = address.ipv4_mapped
                host = str(address)
            except ValueError:
                pass
        host = host or None
        return Peer(host.encode() if host else None, self._trusted_proxies.trusts(host), scheme.encode())

    def request_fields(self, fields: Fields, peer: Peer, version: bytes = b"1.1") -> Fields:
        """The field lines to send upstream: what is end-to-end, where it came from, and Via.

        A trusted peer's X-Forwarded-*, Forwarded and X-Real-IP pass as they are; X-Forwarded-For, -Proto and -Host are
        written where they are missing or the peer is not trusted: LiteLLM's own server believes them from 127.0.0.1.
        Framing is the caller's: Content-Length passes, Transfer-Encoding does not. Raises `LoopDetected`.
        """
        named: frozenset[bytes] = frozenset()
        passed: Fields = []
        host = b""
        gateways = 0
        trusted = peer.trusted
        told = set()
        for line in fields:
            name = line[0].lower()
            if name in HOP_BY_HOP:
                if name == b"connection" and not named and line[1].lower() not in (b"keep-alive", b"close"):
                    named = _named_by_connection(fields)
                continue
            if name[:2] == b"x-" or name == b"forwarded":
                if name.startswith(b"x-forwarded-"):
                    if not trusted:
                        continue
                    told.add(name)
                elif name in _FORWARDED and not trusted:
                    continue
            elif name == b"host":
                host = line[1]
            elif name == b"via":
                if self._pseudonym in line[1]:
                    raise LoopDetected
                gateways += line[1].count(_PSEUDONYM)
                if gateways > _GATEWAYS_IN_LINE:
                    raise LoopDetected("more than 8 gateways in line")
            passed.append(line)
        if named:
            passed = [line for line in passed if line[0].lower() not in named]
        if peer.address is not None and b"x-forwarded-for" not in told:
            passed.append((b"X-Forwarded-For", peer.address))
        if b"x-forwarded-proto" not in told:
            passed.append((b"X-Forwarded-Proto", peer.scheme))
        if host and b"x-forwarded-host" not in told:
            passed.append((b"X-Forwarded-Host", host))
        passed.append((b"Via", version + b" " + self._pseudonym))
        return passed


def response_fields(fields: Fields) -> Fields:
    """The field lines of a response that go on to the client: those that are end-to-end."""
    named: frozenset[bytes] = frozenset()
    passed: Fields = []
    for line in fields:
        name = line[0].lower()
        if name not in HOP_BY_HOP:
            passed.append(line)
        elif name == b"connection" and not named and line[1].lower() not in (b"keep-alive", b"close"):
            named = _named_by_connection(fields)
    if named:
        passed = [line for line in passed if line[0].lower() not in named]
    return passed


def trailer_fields(fields: Fields) -> Fields:
    """The trailers that are passed on: none that frames, routes or authenticates, or that this gateway vouches for.

    RFC 9110 section 6.5.1 forbids those, and some servers merge trailers into the head's fields.
    """
    return [
        (name, value)
        for name, value in fields
        if (lower := name.lower()) not in HOP_BY_HOP
        and lower not in _KEPT
        and not lower.startswith((b"content-", b"x-forwarded-", b"proxy-", b"if-"))
        and lower not in (b"authorization", b"cookie", b"expect", b"range", b"trailer")
        and not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value)
    ]


def encode_head(start_line: bytes, fields: Fields) -> bytes:
    """A message head in octets: start line, field lines, empty line (RFC 9112 section 2.1)."""
    lines = [start_line]
    for name, value in fields:
        lines += (b"\r\n", name, b": ", value)
    lines.append(b"\r\n\r\n")
    return b"".join(lines)

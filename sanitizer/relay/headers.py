"""Which field lines an intermediary passes on, and which it writes itself.

Facts enforced here (RFC 9110):

* 7.6.1: Connection, and every field that it names, belongs to one hop; so do Keep-Alive, Proxy-Connection, TE,
  Transfer-Encoding and Upgrade, named or not. All other field lines pass with their order, duplicates and values.
* 7.6.3: a gateway adds itself to Via on requests; seeing itself there, it is in a loop.
* 7.8: Upgrade is for this hop; a relayed upgrade is asked for anew.

A sender could name a field in Connection that the next hop must see whole (Host, the framing, where the request came
from); `_KEPT` are never dropped on its word.

Field lines are ``(name, value)`` pairs of bytes, names in any case. A head's lines are looked at once, by
`read_fields`: what is done with a line depends on its name alone, and the few names that matter are kept in a table.
"""

import ipaddress
import re
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
_CONNECTION: Final = b"connection"

# what is done with a line; the first, and most frequent, is false
_PASS, _DROP, _OPTIONS, _LENGTH, _CODING, _HOST, _VIA, _WAY = range(8)


class _Actions(dict[bytes, int]):
    """Field name, as spelled, to what is done with the line. Spellings are remembered, as far as there is room."""

    def __missing__(self, name: bytes) -> int:
        lower = name.lower()
        if lower in _FORWARDED or lower.startswith(b"x-forwarded-"):
            action = _WAY
        else:
            action = {
                b"connection": _OPTIONS,
                b"content-length": _LENGTH,
                b"transfer-encoding": _CODING,
                b"host": _HOST,
                b"via": _VIA,
            }.get(lower, _DROP if lower in HOP_BY_HOP else _PASS)
        if len(self) < 1024 and len(name) <= 64:
            self[name] = action
        return action


_ACTIONS: Final = _Actions()


class FieldSection:
    """A head's field lines, read once.

    ``passed``: those that are end-to-end, in order, the ``way`` (where the request came from) left out or not;
    ``connection``: the connection options; ``length``, ``coding``, ``host``: the values of Content-Length,
    Transfer-Encoding and Host, None where there is none; ``hosts``: how many; ``faulty``: what is wrong with the
    framing, empty for nothing; ``told``: the names of those that tell the way; ``via``: all values of Via.
    """

    __slots__ = ("coding", "connection", "faulty", "host", "hosts", "length", "passed", "told", "via")

    passed: Fields
    connection: list[bytes] | None
    length: bytes | None
    coding: bytes | None
    host: bytes | None
    hosts: int
    faulty: str
    told: list[bytes]
    via: list[bytes]


def read_fields(fields: Fields, *, way: bool = True) -> FieldSection:
    """Read a head's field lines; ``way``: pass those that tell where the request came from."""
    section = FieldSection()
    passed: Fields = []
    section.passed = passed
    section.connection = section.length = section.coding = section.host = None
    section.hosts = 0
    section.faulty = ""
    section.told = told = []
    section.via = []
    actions = _ACTIONS
    for line in fields:
        action = actions[line[0]]
        if not action:
            passed.append(line)
        elif action == _LENGTH:
            if section.length is not None:
                section.faulty = "more than one Content-Length"
            section.length = line[1].strip(b" \t")  # httptools leaves the white space after a value
            passed.append((line[0], section.length))
        elif action == _OPTIONS:
            options = [option for part in line[1].split(b",") if (option := part.strip(b" \t").lower())]
            section.connection = options if section.connection is None else section.connection + options
        elif action == _HOST:
            section.host = line[1].strip(b" \t")
            section.hosts += 1
            passed.append(line)
        elif action == _CODING:
            if section.coding is not None:
                section.faulty = "more than one Transfer-Encoding"
            section.coding = line[1].strip(b" \t")
        elif action == _WAY:
            if way:
                told.append(line[0].lower())
                passed.append(line)
        elif action == _VIA:
            section.via.append(line[1])
            passed.append(line)
    if section.connection:
        named = {name for name in section.connection if not _ACTIONS[name] and name not in _KEPT}
        named -= _OPTIONS_ONLY
        if named:
            section.passed = [line for line in passed if line[0].lower() not in named]
    return section


# the connection options that are no field's name
_OPTIONS_ONLY: Final = frozenset((b"close", b"keep-alive"))


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
        """The field lines to send upstream for a request with these; as `onward`."""
        return self.onward(read_fields(fields, way=peer.trusted), peer, version)

    def onward(self, section: FieldSection, peer: Peer, version: bytes = b"1.1") -> Fields:
        """The field lines to send upstream: what is end-to-end, where it came from, and Via.

        ``section`` has been read with ``way=peer.trusted``: a trusted peer's X-Forwarded-*, Forwarded and X-Real-IP
        pass as they are; X-Forwarded-For, -Proto and -Host are written where they are missing or the peer is not
        trusted, for LiteLLM's own server believes them from 127.0.0.1. Framing is left to who sends the head:
        Content-Length passes, Transfer-Encoding does not. Raises `LoopDetected`.
        """
        passed, told = section.passed, section.told
        if section.via:
            self._check_loop(section.via)
        if peer.address is not None and b"x-forwarded-for" not in told:
            passed.append((b"X-Forwarded-For", peer.address))
        if b"x-forwarded-proto" not in told:
            passed.append((b"X-Forwarded-Proto", peer.scheme))
        if section.host and b"x-forwarded-host" not in told:
            passed.append((b"X-Forwarded-Host", section.host))
        passed.append((b"Via", version + b" " + self._pseudonym))
        return passed

    def _check_loop(self, via: list[bytes]) -> None:
        gateways = 0
        for value in via:
            if self._pseudonym in value:
                raise LoopDetected
            gateways += value.count(_PSEUDONYM)
        if gateways > _GATEWAYS_IN_LINE:
            raise LoopDetected("more than 8 gateways in line")


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
    return start_line + b"\r\n" + b"".join([b": ".join(line) + b"\r\n" for line in fields]) + b"\r\n"

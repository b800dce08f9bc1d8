"""Which field lines an intermediary passes on, and which it writes itself.

Facts enforced here (RFC 9110):

* 7.6.1: Connection, and every field that it names, belongs to one hop; so do Keep-Alive, Proxy-Connection, TE,
  Transfer-Encoding and Upgrade, named or not. All other field lines pass, octet by octet and in order.
* 7.6.3: a gateway adds itself to Via on requests; seeing itself there, it is in a loop.
* 7.8: Upgrade is for this hop; a relayed upgrade is asked for anew.
* 6.5.1: a trailer must not frame, route or authenticate, for some servers merge trailers into the head's fields.

A sender could name a field in Connection that the next hop must see whole (Host, the framing, where the request came
from); `_KEPT` are never dropped on its word.

A head is handled as the octets that came, from its start line to its empty line, once a parser has found nothing wrong
with it: so every line ends with CRLF and holds no other CR or LF, and no line continues another. Only the few fields
that matter are looked for; what is passed on is never taken apart and put together again.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sanitizer.address import TrustedProxies, plain_ip
from sanitizer.errors import LoopDetected

Fields = list[tuple[bytes, bytes]]

_HOP_BY_HOP: Final = (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
_WAY: Final = (b"forwarded", b"x-real-ip", b"x-forwarded-[^:]*")
_KEPT: Final = frozenset((b"host", b"content-length", b"via", b"date", b"set-cookie", b"forwarded", b"x-real-ip"))
_NO_FIELDS: Final = frozenset((b"close", b"keep-alive"))  # connection options that name none worth looking for
_PSEUDONYM: Final = b"litellm-sanitizer-"
_GATEWAYS_IN_LINE: Final = 8
EXPECTS_CONTINUE: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)
"""The line of a head by which its sender may wait for a 100 before it sends the content (RFC 9110 section 10.1.1)."""


def _lines(names: Iterable[bytes]) -> re.Pattern[bytes]:
    return re.compile(rb"\r\n(" + b"|".join(names) + rb"):[ \t]*([^\r]*)", re.IGNORECASE)


_SPECIAL: Final = _lines((*_HOP_BY_HOP, *_WAY, b"content-length", b"host", b"origin", b"via"))
_SPECIAL_IN_ANSWERS: Final = _lines((*_HOP_BY_HOP, b"content-length"))
_ORIGIN: Final = _lines((b"origin",))
HOST: Final = _lines((b"host",))
"""The Host lines of a head."""
_DROPPED: Final = _lines(_HOP_BY_HOP)
_DROPPED_WITH_WAY: Final = _lines((*_HOP_BY_HOP, *_WAY))
_NOT_IN_TRAILERS: Final = re.compile(
    rb"(?:"
    + b"|".join((*_HOP_BY_HOP, *_WAY, rb"(?:content|proxy|if)-[^:]*", b"host", b"via", b"date", b"set-cookie"))
    + rb"|authorization|cookie|expect|range|trailer):",
    re.IGNORECASE,
)


class Head:
    """What a message's head says to an intermediary.

    ``octets``: the head without the lines that are not passed on; ``connection``: the connection options, lower case;
    ``length``, ``coding``, ``host``, ``upgrade``: the values of Content-Length, Transfer-Encoding, Host and Upgrade,
    None where there is none; ``hosts``: how many; ``faulty``: what is wrong with the framing, empty for nothing;
    ``told``: names of the fields that tell where it came from, as far as they are passed on; ``via``: values of Via;
    ``claims_https``: X-Forwarded-Proto says https, and is not passed on; ``has_origin``: there is an Origin.
    """

    octets: bytes
    connection: Sequence[bytes] = ()
    length: bytes | None = None
    coding: bytes | None = None
    host: bytes | None = None
    hosts: int = 0
    faulty: str = ""
    told: Sequence[bytes] = ()
    upgrade: bytes | None = None
    via: Sequence[bytes] = ()
    claims_https: bool = False
    has_origin: bool = False


def read_head(octets: bytes, *, way: bool = True, answer: bool = False) -> Head:
    """Read a head; ``way``: pass on the fields that tell where the message came from.

    Of the head of an ``answer`` only the framing and the hop-by-hop fields are read.
    """
    head = Head()
    drop = False
    # made when there is something to put in: most heads say none of it
    connection: list[bytes] | None = None
    told: list[bytes] | None = None
    via: list[bytes] | None = None
    for name, value in (_SPECIAL_IN_ANSWERS if answer else _SPECIAL).findall(octets):
        name = name.lower()
        if name == b"host":
            head.host = value.rstrip(b" \t")
            head.hosts += 1
        elif name == b"content-length":
            if head.length is not None:
                head.faulty = "more than one Content-Length"
            head.length = value.rstrip(b" \t")
        elif name == b"origin":
            head.has_origin = True
        elif name == b"via":
            if via is None:
                head.via = via = []
            via.append(value)
        elif name in _HOP_BY_HOP:
            drop = True
            if name == b"connection":
                if connection is None:
                    head.connection = connection = []
                connection += [option for part in value.split(b",") if (option := part.strip(b" \t").lower())]
            elif name == b"transfer-encoding":
                if head.coding is not None:
                    head.faulty = "more than one Transfer-Encoding"
                head.coding = value.rstrip(b" \t")
            elif name == b"upgrade":
                value = value.rstrip(b" \t")
                head.upgrade = value if head.upgrade is None else head.upgrade + b", " + value
        elif way:
            if told is None:
                head.told = told = []
            told.append(name)
        else:
            drop = True
            if name == b"x-forwarded-proto" and value.rstrip(b" \t").lower() == b"https":
                head.claims_https = True
    if drop:
        octets = (_DROPPED if way else _DROPPED_WITH_WAY).sub(b"", octets)
        named = {name for name in head.connection if name not in _KEPT and not name.startswith(b"x-forwarded-")}
        named -= _NO_FIELDS
        if named:
            octets = _without(octets, named)
    head.octets = octets
    return head


def _without(octets: bytes, names: Collection[bytes]) -> bytes:
    start, *lines = octets.split(b"\r\n")
    return b"\r\n".join([start, *(line for line in lines if line.partition(b":")[0].lower() not in names)])


def head_fields(octets: bytes) -> Fields:
    """The field lines of a head as pairs, without the white space around values."""
    lines = octets[:-4].split(b"\r\n")[1:]
    return [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]


def encode_head(start_line: bytes, fields: Fields) -> bytes:
    """A message head in octets: start line, field lines, empty line (RFC 9112 section 2.1)."""
    return start_line + b"\r\n" + b"".join([b": ".join(line) + b"\r\n" for line in fields]) + b"\r\n"


def has_origin(octets: bytes) -> bool:
    """Whether a head that may not be whole has an Origin: then a page's script has sent the request."""
    return _ORIGIN.search(octets) is not None


def with_field(head: bytes, name: bytes, value: bytes | None) -> bytes:
    """``head`` with this value in the field ``name`` and no other; None: without that field."""
    if name in head.lower():
        head = _without(head, (name,))
    return head if value is None else b"%b%b: %b\r\n\r\n" % (head[:-2], name, value)


def buffering_is_set(head: bytes) -> bool:
    """Whether ``head`` itself tells nginx whether to buffer the answer."""
    return b"\r\nx-accel-buffering:" in head.lower()


def passed_trailers(lines: bytes) -> bytes:
    """The trailers that are passed on, out of ``lines``, each with its CRLF."""
    return b"".join([line for line in lines.splitlines(keepends=True) if not _NOT_IN_TRAILERS.match(line)])


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request: ``address`` is an IP address as text, None on a unix socket; ``scheme`` is the one used.

    ``way``: the field lines that say so.
    """

    address: bytes | None
    trusted: bool
    scheme: bytes
    way: bytes


class Forwarding:
    """What this gateway tells upstream about where a request came from.

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
        told = host.encode() if host else None
        way = (b"X-Forwarded-For: %b\r\n" % told if told else b"") + b"X-Forwarded-Proto: %b\r\n" % scheme.encode()
        return Peer(told, self._trusted_proxies.trusts(host or None), scheme.encode(), way)

    def onward(self, head: Head, peer: Peer, version: bytes = b"1.1") -> bytes:
        """The head to send upstream, without its empty line: what is end-to-end, where it came from, and Via.

        ``head`` has been read with ``way=peer.trusted``: a trusted peer's X-Forwarded-*, Forwarded and X-Real-IP pass
        as they are; X-Forwarded-For, -Proto and -Host are written where they are missing or the peer is not trusted,
        for LiteLLM's own server believes them from 127.0.0.1. X-Forwarded-Host tells the Host that came. Framing is
        left to who sends the head: Content-Length passes, Transfer-Encoding does not. ``version``: of HTTP, as
        received. Raises `LoopDetected`.

        In HTTP/1.0 the expectation of a 100 is to be ignored (RFC 9110 section 10.1.1). Upstream, which gets the
        request in HTTP/1.1, would not know that it is: it does not get the field.
        """
        if head.via:
            self._check_loop(head.via)
        if head.claims_https and self._on_untrusted is not None and peer.scheme != b"https":
            on_untrusted, self._on_untrusted = self._on_untrusted, None
            on_untrusted(None if peer.address is None else peer.address.decode())
        way = self._missing(head.told, peer) if head.told else peer.way
        if head.host and b"x-forwarded-host" not in head.told:
            way += b"X-Forwarded-Host: " + head.host + b"\r\n"
        octets = head.octets if version != b"1.0" else EXPECTS_CONTINUE.sub(b"", head.octets)
        if self._host is not None:
            octets = HOST.sub(self._host, octets)
        return octets[:-2] + way + b"Via: " + version + self._via

    def _missing(self, told: Sequence[bytes], peer: Peer) -> bytes:
        lines = peer.way.splitlines(keepends=True)
        return b"".join([line for line in lines if line.partition(b":")[0].lower() not in told])

    def _check_loop(self, via: Sequence[bytes]) -> None:
        gateways = 0
        for value in via:
            if self._pseudonym in value:
                raise LoopDetected
            gateways += value.count(_PSEUDONYM)
        if gateways > _GATEWAYS_IN_LINE:
            raise LoopDetected("more than 8 gateways in line")

"""Requests as an intermediary reads them, and the heads that it sends upstream for them.

Facts enforced here:

* RFC 9112 section 3: a request line consists of method, target and version, separated by single spaces.
* RFC 9112 section 3.2: an HTTP/1.1 request has exactly one Host field, and its value is valid. The target is a path, an
  http URL (whose authority replaces Host) or, for OPTIONS, ``*``. CONNECT is for proxies.
* RFC 9110 section 7.2: Host is a host, optionally followed by a port. A value that two servers could read differently
  is rejected: one with a delimiter of RFC 3986 section 2.2 that no host has, or with a comma, because a recipient may
  have joined two Host lines with it (RFC 9110 section 5.3). Other values pass, as upstream accepts them, even if they
  are not hosts in RFC 3986. Envoy's health checks send the name of a cluster, such as ``outbound|4000||litellm``.
* RFC 9112 section 9.3: a connection persists unless Connection has ``close``. HTTP/1.0's keep-alive is not supported.
* RFC 9110 section 7.8: a server may ignore Upgrade. This one ignores it in a request with content, in HTTP/1.0, and
  with a method other than GET. It always ignores h2c, because HTTP/2 requests would bypass the sanitizer.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

from sanitizer.errors import BadRequest
from sanitizer.http1.bodies import CHUNKED, Length, request_length
from sanitizer.http1.forwarding import EXPECTS_CONTINUE, HOST, Forwarding, Peer
from sanitizer.http1.heads import MAX_DIGITS, Head

_HOST_VALUE: Final = re.compile(rb"(?:\[[0-9A-Za-z:.%~_\-]+\]|[^\x00-\x20\x7f\"#,/:<>?@\[\\\]]*+)(?::[0-9]*+)?")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,%d})[ \t]*\r\n" % MAX_DIGITS, re.IGNORECASE)
_VERSIONS: Final = {b"HTTP/1.1": b"1.1", b"HTTP/1.0": b"1.0"}


class Request(NamedTuple):
    """A request head and its parts.

    ``octets`` is the head with its target in origin form, and ``outbound`` the head for upstream. ``version`` is 1.1 or
    1.0, ``length`` the length of the content, and ``upgrade`` the protocols in Upgrade, empty if it is ignored.
    """

    octets: bytes
    outbound: bytes
    method: bytes
    target: bytes
    version: bytes
    keep_alive: bool
    head: Head
    length: Length
    upgrade: bytes

    @property
    def expects_continue(self) -> bool:
        """Whether the client may wait for a 100 response before it sends the content (RFC 9110 section 10.1.1)."""
        return self.version == b"1.1" and EXPECTS_CONTINUE.search(self.octets) is not None

    @property
    def cacheable(self) -> bool:
        """Whether the head can be reused for a request that differs only in the value of Content-Length."""
        if self.version != b"1.1" or self.length is CHUNKED:
            return False
        if self.method == b"GET" and self.head.upgrade:  # it is ignored or not, depending on the length
            return False
        return not self.expects_continue


class CachedHead(NamedTuple):
    """The cached outbound head of a client that repeats its request heads.

    The heads that a client sends on one connection often differ only in the value of Content-Length. A head that equals
    one that was already read, octet by octet except for those digits, has the same meaning and is not parsed again.
    The inbound and the outbound head are stored, each split into the parts before and after the digits.
    """

    before: bytes
    after: bytes
    outbound_before: bytes
    outbound_after: bytes
    method: bytes
    keep_alive: bool
    has_length: bool

    @classmethod
    def of(cls, request: Request) -> "CachedHead":
        """Cache the heads of ``request``, which must be `Request.cacheable`."""
        octets, outbound = request.octets, request.outbound
        match, passed = _LENGTH.search(octets), _LENGTH.search(outbound)
        if match is None or passed is None:
            return cls(octets, b"", outbound, b"", request.method, request.keep_alive, False)
        parts = octets[: match.start(1)], octets[match.end(1) :], outbound[: passed.start(1)], outbound[passed.end(1) :]
        return cls(*parts, request.method, request.keep_alive, True)

    def match(self, octets: bytes) -> tuple[bytes, int] | None:
        """Return the head for upstream and the length of the content, or None if ``octets`` is another head."""
        if not self.has_length:
            return (self.outbound_before, 0) if octets == self.before else None
        begin, end = len(self.before), len(octets) - len(self.after)
        if end < begin or not octets.startswith(self.before) or not octets.endswith(self.after):
            return None
        digits = octets[begin:end]
        if not digits.isdigit() or len(digits) > MAX_DIGITS:
            return None
        return self.outbound_before + digits + self.outbound_after, int(digits)


def read_request(octets: bytes, peer: Peer, forwarding: Forwarding, authority: bytes) -> Request:
    """Read the head of a request from ``peer``, which a `HeadReader` has accepted.

    ``authority`` is upstream's ``host[:port]``, sent as Host if a request has none. Raises `BadRequest` or
    `LoopDetected`.
    """
    parts = octets[: octets.index(b"\r\n")].split(b" ")
    if len(parts) != 3:
        raise BadRequest("malformed request line")
    method, target, protocol = parts
    version = _VERSIONS.get(protocol)
    if version is None:
        raise BadRequest(describe_other_protocol(octets) or "HTTP version other than 1.1 and 1.0")
    if target[:1] != b"/" or method == b"CONNECT":
        target, octets = _origin_form(method, target, version, octets)
    head, outbound = forwarding.outbound(octets, peer, version)
    check_host(head.host, head.host_count, version)
    length = request_length(head, version)
    if version == b"1.0":
        outbound = outbound.replace(b" HTTP/1.0\r\n", b" HTTP/1.1\r\n", 1)
    upgrade = b""
    if length is CHUNKED:
        outbound += b"Transfer-Encoding: chunked\r\n"
    elif head.upgrade and b"upgrade" in head.connection and method == b"GET" and length == 0 and version == b"1.1":
        upgrade = _without_h2c(head.upgrade)
        if upgrade:
            outbound += b"Connection: Upgrade\r\nUpgrade: " + upgrade + b"\r\n"
    if not head.host_count:
        outbound += b"Host: " + authority + b"\r\n"
    keep_alive = version == b"1.1" and b"close" not in head.connection
    return Request(octets, outbound, method, target, version, keep_alive, head, length, upgrade)


def check_host(host: bytes | None, host_count: int, version: bytes) -> None:
    """Raise `BadRequest` for more than one Host line, for none in HTTP/1.1, and for an invalid value.

    ``host_count`` is the number of Host lines, and ``host`` the value of one of them, None if there is none.
    """
    if host_count > 1 or (not host_count and version == b"1.1"):
        raise BadRequest("exactly one Host is needed")
    if host and not _HOST_VALUE.fullmatch(host):
        raise BadRequest("Host is not a host name or address")


def describe_other_protocol(octets: bytes) -> str:
    """Return a message that names the protocol of ``octets`` and says what to do, or "" if it is not recognized."""
    # the signature of version 2 begins with CRLFs, which the client connection has skipped (RFC 9112 section 2.2)
    if octets.startswith((b"PROXY ", b"\0\r\nQUIT\n")):
        return (
            "PROXY protocol header received; turn it off in the load balancer, and let it send X-Forwarded-For instead "
            "(--trusted-proxies)"
        )
    if octets == b"\x16" or octets.startswith(b"\x16\x03"):
        return "TLS received on a port for plain HTTP; use http:// here, or give the gateway --ssl-certfile"
    if octets.startswith(b"PRI * HTTP/2.0\r\n"):
        return "HTTP/2 received, but the gateway speaks HTTP/1.1; let the load balancer use HTTP/1.1 towards it"
    return ""


def decoded_path(target: bytes) -> str:
    """Return the path of a target, percent-decoded, as upstream matches it against its routes."""
    return unquote(target.decode("latin-1").partition("?")[0].partition("#")[0])


def _without_h2c(protocols: bytes) -> bytes:
    names = [name for part in protocols.split(b",") if (name := part.strip())]
    return b", ".join(name for name in names if name.lower() != b"h2c")


def _origin_form(method: bytes, target: bytes, version: bytes, octets: bytes) -> tuple[bytes, bytes]:
    """Convert a request whose target is an http URL: the authority of the URL replaces Host (RFC 9112 section 3.2.2).

    Returns the target and the head. The target ``*`` of OPTIONS is left as it is; any other raises `BadRequest`.
    """
    hosts = HOST.findall(octets)
    check_host(hosts[0][1].rstrip(b" \t") if hosts else None, len(hosts), version)
    if target == b"*" and method == b"OPTIONS":
        return target, octets
    scheme, separator, rest = target.partition(b"://")
    if method == b"CONNECT" or not separator or scheme.lower() not in (b"http", b"https"):
        raise BadRequest("target is neither a path nor an http URL")
    authority, slash, path = rest.partition(b"/")
    if authority[:1] in (b"", b":"):  # valid in Host, but not in a URL (RFC 9110 section 4.2.1)
        raise BadRequest("target names no host")
    target = slash + path or b"/"
    lines = octets[octets.index(b"\r\n") :]
    return target, b"%b %b HTTP/%b\r\nHost: %b" % (method, target, version, authority) + HOST.sub(b"", lines)

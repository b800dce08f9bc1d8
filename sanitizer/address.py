"""Upstream's address, and the peers whose forwarding fields are trusted."""

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ADDRESS_FORMS: Final = "takes http://host[:port], https://host[:port] or unix:/path, without a path, query or user"


@dataclass(frozen=True, slots=True)
class Address:
    """The address on which upstream listens. ``scheme`` is http or https, ``uds`` the path of a Unix socket or None."""

    scheme: str
    host: str
    port: int
    uds: str | None = None

    @property
    def authority(self) -> str:
        """``host[:port]`` as in a Host field (RFC 9110 section 7.2), without the scheme's default port."""
        host = in_brackets(self.host)
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"unix:{self.uds}" if self.uds else f"{self.scheme}://{self.authority}"


def in_brackets(host: str) -> str:
    """Return ``host`` as it is written in a URL: an IPv6 address in brackets, anything else unchanged."""
    return f"[{host}]" if ":" in host else host


def plain_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse an address as `socket.getpeername` returns it. An IPv6 zone is removed, and IPv4-mapped becomes IPv4.

    Raises `ValueError` if ``text`` is not an IP address.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def parse_address(text: str) -> Address:
    """Parse ``http[s]://host[:port]`` or ``unix:/path``. Raises `ValueError` for anything else."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(_ADDRESS_FORMS)
        return Address("http", "localhost", 80, path)
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(_ADDRESS_FORMS) from None
    if (
        url.scheme not in _DEFAULT_PORTS
        or not url.hostname
        or port == 0
        or url.path.strip("/")
        or url.query
        or url.fragment
        or "@" in url.netloc
        or not text.isascii()
        or not _encodable(url.hostname)
        or re.search(r"[\x00-\x20\x7f]", text)
    ):
        raise ValueError(_ADDRESS_FORMS)
    return Address(url.scheme, url.hostname, port or _DEFAULT_PORTS[url.scheme])


def _encodable(host: str) -> bool:
    """Whether a name can be looked up: it has no empty label, and none with more than 63 characters."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The peers whose X-Forwarded-*, Forwarded and X-Real-IP fields are passed on unchanged.

    ``unix`` says whether this includes all peers on a Unix socket.
    """

    networks: tuple[Network, ...] = ()
    unix: bool = False

    def trusts(self, peer: str | None) -> bool:
        """Whether ``peer`` (an IP address; None on a unix socket) is trusted."""
        if peer is None:
            return self.unix
        if not self.networks:
            return False
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:  # an ASGI server may give a name instead of an address ("testclient")
            return False
        return any(address in network for network in self.networks)


def parse_trusted_proxies(names: Collection[str]) -> TrustedProxies:
    """Parse CIDRs, IP addresses, and ``unix`` for all peers on a Unix socket.

    Raises `ValueError` for anything else.
    """
    networks: list[Network] = []
    for name in names:
        if name == "unix":
            continue
        try:
            network = ipaddress.ip_network(name, strict=False)
        except ValueError:
            raise ValueError("takes a comma list of CIDRs such as 10.0.0.0/8, or `unix`") from None
        if "/" in name and network.network_address != ipaddress.ip_address(name.partition("/")[0]):
            raise ValueError(f"takes networks; that of {name} is {network}")
        networks.append(network)
    return TrustedProxies(tuple(networks), "unix" in names)

"""Connects to upstream for requests, for the readiness probe, and for the check at startup."""

import asyncio
import ipaddress
import itertools
import os
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from aiohappyeyeballs import start_connection

from sanitizer.address import Address
from sanitizer.resolver import AddrInfo, resolver_of

_HEAD_START: Final = 0.25
"""Seconds until the next address is tried in parallel (RFC 8305 section 5)."""


class Connector:
    """Opens connections to ``address``, over TCP or a Unix socket, and with TLS if ``tls`` is given.

    ``timeout`` is in seconds. It applies to all addresses of a name together and includes the TLS handshake, but not
    the lookup of the name, which has its own limit.
    """

    def __init__(self, address: Address, tls: ssl.SSLContext | None, timeout: float) -> None:
        self._address = address
        self._tls = tls
        self._timeout = timeout
        self._numeric = _numeric(address.host, address.port)
        has_name = address.uds is None and not self._numeric
        self._resolver = resolver_of(address.host, address.port) if has_name else None
        self._rotation = itertools.count(random.randrange(1 << 16))  # noqa: S311 - no secret, spreads load

    async def connect(self, make_protocol: Callable[[], asyncio.Protocol]) -> asyncio.WriteTransport:
        """Open a connection and return its transport.

        Raises `OSError`, including its subclasses `TimeoutError`, `ssl.SSLError` and
        `sanitizer.resolver.LookupFailed`, or `ValueError` for a name that can't be encoded.
        """
        loop = asyncio.get_running_loop()
        address = self._address
        found = await self._resolver.addresses() if self._resolver else self._numeric
        async with asyncio.timeout(self._timeout):
            if address.uds is not None:
                transport, _ = await loop.create_unix_connection(make_protocol, address.uds)
            else:
                sock = await _open(rotated(found, next(self._rotation)))
                name = address.host if self._tls else None
                transport, _ = await loop.create_connection(
                    make_protocol, sock=sock, ssl=self._tls, server_hostname=name
                )
        return transport


async def _open(addresses: Sequence[AddrInfo]) -> socket.socket:
    """Return a socket connected to the first of ``addresses`` that accepts. Raises `OSError`."""
    try:
        return await start_connection(addresses, happy_eyeballs_delay=_HEAD_START)
    except RuntimeError as error:  # uvloop raises this for some socket errors
        raise OSError(str(error)) from error
    except OSError as error:
        if error.errno is None:  # the addresses failed in different ways; the message says how
            raise
        raise OSError(error.errno, os.strerror(error.errno)) from None


def rotated(addresses: Sequence[AddrInfo], steps: int) -> list[AddrInfo]:
    """Return ``addresses`` rotated by ``steps`` within each family. The family that the system prefers stays first."""
    families: dict[int, list[AddrInfo]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    ordered = []
    for group in families.values():
        group.sort()  # name servers vary the order between answers
        start = steps % len(group)
        ordered += group[start:] + group[:start]
    return ordered


def _numeric(host: str, port: int) -> list[AddrInfo]:
    """Return the address to connect to if ``host`` is an IP address, which needs no lookup, otherwise none."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return []
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]

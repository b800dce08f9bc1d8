"""The part of asyncio's transports that the relay uses, and queries of the sockets beneath them."""

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import ssl
import struct
import sys
import termios
from collections.abc import Iterator
from typing import Any, Final, Protocol

_RDHUP: Final = getattr(select, "POLLRDHUP", 0)
"""0 where the platform does not have it. `select.POLLERR` needs no flag: it is always polled for."""
_BYTES_ACKED: Final = slice(120, 128)
_BYTES_RECEIVED: Final = slice(128, 136)
"""Offsets of ``tcpi_bytes_acked`` and ``tcpi_bytes_received`` in ``struct tcp_info`` of linux/tcp.h."""
_REST: Final = 64 * 1024
"""Bytes to read at a time from a connection that has been lost."""


class Transport(Protocol):
    """The methods of asyncio's transports that the relay uses. TCP, TLS and unix sockets all have them."""

    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def can_write_eof(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...
    def get_write_buffer_size(self) -> int: ...
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...
    def get_protocol(self) -> asyncio.BaseProtocol: ...


def reset(transport: Transport) -> None:
    """Close at once with a reset. A FIN would complete content that lasts until the connection closes."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def progress(transport: Transport, written: int) -> int:
    """A number that grows when the peer acknowledges some of the ``written`` octets.

    The kernel's count of acknowledged octets is part of it, because a TLS transport's buffer shrinks in large steps.
    """
    return written - transport.get_write_buffer_size() + _tcp_info(transport, _BYTES_ACKED)


def octets_received(transport: Transport) -> int:
    """How many octets the kernel has received from the peer; 0 where the kernel does not count them."""
    return _tcp_info(transport, _BYTES_RECEIVED)


def _tcp_info(transport: Transport, where: slice) -> int:
    sock = transport.get_extra_info("socket")
    if sys.platform != "linux" or sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, where.stop)
    except OSError:  # the connection is gone, which the transport is about to report
        return 0
    return int.from_bytes(info[where], sys.byteorder)


def unacknowledged(transport: Transport) -> int:
    """How many octets have been written that the peer's kernel has not acknowledged."""
    size = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        size += struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return size


def peer_has_closed(transport: Transport, *, half_close: bool = True) -> bool:
    """Whether the peer has reset the connection or, with ``half_close``, sent a FIN. There may be unread octets."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), _RDHUP if half_close else 0)
    return any(events & (select.POLLERR | _RDHUP) for _, events in poll.poll(0))


def read_remaining(transport: Transport) -> Iterator[bytes]:
    """The octets that were received on a lost connection and have not been read.

    There are some when a write has detected the reset before they were read, or when uvloop closes a TLS connection
    whose reading is paused.
    """
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # raised at the end; `ssl.SSLError` is a subclass
        while data := os.read(sock.fileno(), _REST) if tls is None else tls.read(_REST):
            yield data


def end_is_announced(transport: Transport) -> bool:
    """Whether the peer has announced that it has sent everything: in TLS by a close_notify, otherwise by its FIN."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    try:
        return tls is None or not tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:  # no close_notify was received
        return False

"""TCP keep-alive: the kernel probes whether an idle peer is still there (RFC 9293 section 3.8.4)."""

import socket
from typing import Final

IDLE: Final = 60
"""Idle seconds before the first probe. The kernel's default, two hours, is longer than a NAT keeps its mapping."""
INTERVAL: Final = 15
"""Seconds between probes."""
COUNT: Final = 4
"""Unanswered probes after which the kernel closes the connection."""


def enable_keepalive(sock: socket.socket) -> None:
    """Enable keep-alive probes on a TCP socket.

    On Linux, a connection inherits these options from the listener that accepts it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has another name for the first option; if a platform lacks an option, its default stays
    idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
    for name, value in ((idle, IDLE), ("TCP_KEEPINTVL", INTERVAL), ("TCP_KEEPCNT", COUNT)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

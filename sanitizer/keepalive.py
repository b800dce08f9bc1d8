"""TCP keep-alive: the kernel asks whether a silent peer is still there (RFC 9293 section 3.8.4)."""

import socket
from typing import Final

IDLE: Final = 60
"""Seconds of silence before the first probe; the kernel's own two hours are longer than a NAT remembers."""
INTERVAL: Final = 15
"""Seconds from one probe to the next."""
COUNT: Final = 4
"""This many probes without an answer end the connection."""


def probe_when_silent(sock: socket.socket) -> None:
    """Let the kernel find out whether the peer of a TCP connection is gone.

    On Linux, connections that a listener accepts inherit these options from it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has another name for the first; where a platform lacks an option, its own value stays
    idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
    for name, value in ((idle, IDLE), ("TCP_KEEPINTVL", INTERVAL), ("TCP_KEEPCNT", COUNT)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

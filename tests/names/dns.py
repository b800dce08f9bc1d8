"""A scripted DNS server, and the configuration with which the system's resolver uses it."""

from __future__ import annotations

import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

NAME = "litellm.test"
ADDRESS = "127.0.0.1"
A, OK, SERVFAIL, NXDOMAIN = 1, 0, 2, 3
HEADER = struct.Struct(">6H")


class Nameserver:
    """Answers queries for `NAME` with ``addresses``, for any other name with NXDOMAIN. A context manager.

    ``code`` is the code of its responses, ``delay`` the seconds before each. With ``loses_first`` the first query of
    each look-up gets no response, with ``silent`` no query does. ``queries`` counts the A queries for `NAME`.
    """

    def __init__(self, addresses: Sequence[str] = (), *, code: int = OK, delay: float = 0) -> None:
        self.addresses = addresses
        self.code = code
        self.delay = delay
        self.loses_first = False
        self.silent = False
        self.queries = 0
        self._seen: set[bytes] = set()
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.bind((ADDRESS, 53))
        self._thread = threading.Thread(target=self._serve, name="DNS", daemon=True)

    def __enter__(self) -> Nameserver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as last:
            last.sendto(b"", (ADDRESS, 53))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(512)
            if not query:
                return
            name, kind, end = read_question(query)
            known = name == NAME
            self.queries += known and kind == A
            lost = self.loses_first and known and kind == A and query not in self._seen
            self._seen.add(query)
            if self.silent or lost:
                continue
            code = self.code if known else NXDOMAIN
            found = self.addresses if code == OK and kind == A else ()
            answer = HEADER.pack(*struct.unpack(">H", query[:2]), 0x8180 | code, 1, len(found), 0, 0) + query[12:end]
            for address in found:
                answer += struct.pack(">3HIH", 0xC00C, A, 1, 0, 4) + socket.inet_aton(address)
            if self.delay:
                timer = threading.Timer(self.delay, self._socket.sendto, (answer, peer))
                timer.daemon = True
                timer.start()
            else:
                self._socket.sendto(answer, peer)


def read_question(query: bytes) -> tuple[str, int, int]:
    """Return the name in a query, in lower case, its type, and where the question ends (RFC 1035 section 4.1.2)."""
    labels = []
    at = HEADER.size
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    (kind,) = struct.unpack_from(">H", query, at + 1)
    return ".".join(labels).lower(), kind, at + 5


def configure(*options: str, hosts: str = "", search: str = "") -> None:
    """Configure this namespace's resolver to use only `Nameserver`, with these ``options`` of resolv.conf(5)."""
    _replace(
        "resolv.conf", f"nameserver {ADDRESS}\noptions {' '.join(options)}\n" + (f"search {search}\n" * bool(search))
    )
    _replace("hosts", f"127.0.0.1 localhost\n{hosts}\n")
    _replace("nsswitch.conf", "hosts: files dns\n")


def _replace(name: str, text: str) -> None:
    target = Path("/etc", name)
    if target.exists():
        with tempfile.NamedTemporaryFile("w", delete=False) as file:
            file.write(text)
        Path(file.name).chmod(0o644)
        subprocess.run(["mount", "--bind", file.name, target], check=True, timeout=10)
        Path(file.name).unlink()  # the mount keeps it

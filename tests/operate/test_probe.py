"""The probe: when upstream becomes unreachable or reachable, and the reasons that the probe reports."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import ssl
import threading

import pytest
import trustme

from sanitizer.address import Address
from sanitizer.connecting import Connector
from sanitizer.operate import probe as module
from sanitizer.operate.probe import Probe
from sanitizer.resolver import LookupFailed


def test_two_in_a_row() -> None:
    """Two failures in a row make upstream unreachable, and one success makes it reachable.

    Each of these changes is reported once.
    """
    told: list[str | None] = []
    probe = Probe(Address("http", "a", 80), None, 1, told.append)
    assert probe.reason == "upstream has not been reached yet"
    for error, reason in (
        ("e", "upstream has not been reached yet"),
        (None, None),
        ("e", None),
        (None, None),
        ("e", None),
        ("e", "upstream can't be reached: e"),
        ("f", "upstream can't be reached: f"),
        (None, None),
        (None, None),
    ):
        probe.judge(error)
        assert probe.reason == reason
    assert told == [None, "upstream can't be reached: e", None]


UNTRUSTED = ssl.SSLCertVerificationError(1, "certificate verify failed at 192.0.2.1")
UNTRUSTED.verify_message = "self-signed certificate"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(TimeoutError(), "timed out", id="no answer"),
        pytest.param(LookupFailed("no such name"), str(LookupFailed("no such name")), id="no address"),
        pytest.param(UNTRUSTED, "certificate not trusted (self-signed certificate)", id="certificate"),
        pytest.param(ssl.SSLError(1, "wrong version at 192.0.2.1"), "TLS handshake failed", id="TLS"),
        pytest.param(ConnectionRefusedError(errno.ECONNREFUSED, "192.0.2.1"), "connection refused", id="refused"),
        pytest.param(OSError("192.0.2.1, fd00::1"), "none of its addresses could be reached", id="some addresses"),
        pytest.param(UnicodeError("label at 192.0.2.1"), "UnicodeError", id="a name that can't be encoded"),
        pytest.param(OSError(errno.EMFILE, "192.0.2.1"), None, id="no descriptors"),
    ],
)
async def test_reasons(error: Exception, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for a failure does not contain the address.

    A shortage of descriptors is not reported as upstream's fault.
    """

    async def connect(*_: object) -> None:
        raise error

    monkeypatch.setattr(Connector, "connect", connect)
    monkeypatch.setattr(module, "INTERVAL", 0)
    changed: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    probe = Probe(Address("http", "a", 80), None, 1, changed.set_result)
    probing = asyncio.create_task(probe.run())
    async with asyncio.timeout(30):
        found = await changed
    probing.cancel()
    assert found == (f"upstream can't be reached: {reason}" if reason else "the gateway is out of file descriptors")


@pytest.mark.anyio
async def test_cancelled_while_it_closes_a_connection() -> None:
    """A probe that is cancelled while it waits for upstream's close_notify closes the connection at once."""
    authority = trustme.CA()
    serving, connecting = (ssl.SSLContext(role) for role in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
    authority.issue_cert("localhost").configure_cert(serving)
    authority.configure_trust(connecting)
    closing = asyncio.Event()
    loop = asyncio.get_running_loop()
    ended: list[bool] = []

    def upstream() -> None:
        sock, _ = listener.accept()
        sock.settimeout(10)
        with serving.wrap_socket(sock, server_side=True) as connection:
            assert connection.recv(1) == b""  # the probe's close_notify, which is not responded to
            loop.call_soon_threadsafe(closing.set)
            if select.select([connection], [], [], 10)[0]:
                with contextlib.suppress(ConnectionResetError):
                    assert os.read(connection.fileno(), 1) == b""
                ended.append(True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=upstream)
        thread.start()
        address = Address("https", "localhost", listener.getsockname()[1])
        probing = asyncio.create_task(Probe(address, connecting, 60, lambda _: None).run())
        async with asyncio.timeout(30):
            await closing.wait()
            probing.cancel()
            await asyncio.to_thread(thread.join)
    assert ended == [True]

"""The first look: what the gateway logs, once, about an upstream that is not LiteLLM or is the gateway itself."""

from __future__ import annotations

import json
import ssl
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from sanitizer.errors import LoopDetected
from tests.support.gateway import Gateway, free_port
from tests.support.upstream import ALIVE, CLOSE, RESET, WAIT_CLOSED, Script, Step, Upstream, reply

WARNING = "upstream does not look like LiteLLM"


def answer(status: bytes, content: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(content), content)


upstream_with = partial(Upstream, answers_first_look=False)


def warnings(gateway: Gateway) -> list[dict[str, Any]]:
    return [record for record in gateway.records if record["message"] == WARNING]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        pytest.param((answer(b"404 Not Found", b"{}"),), ["404", "/health/liveliness"], id="404"),
        pytest.param((answer(b"200 OK", b"ok"),), ["200", "/health/liveliness"], id="200, of another server"),
        pytest.param((answer(b"308 Permanent Redirect", b""),), ["308"], id="a redirect"),
        pytest.param((b"SSH-2.0-OpenSSH_9.2\r\n", CLOSE), ["does not speak HTTP"], id="no HTTP"),
        pytest.param((b"\x15\x03\x01\0\2\2\x46", CLOSE), ["does not speak HTTP"], id="a TLS alert"),
        pytest.param((answer(b"508 Loop Detected", LoopDetected().body()),), ["itself"], id="a loop"),
        pytest.param((CLOSE,), ["without an answer", "https"], id="no answer, as of servers that speak TLS"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_litellm(steps: tuple[bytes | Step, ...], words: list[str], workers: str) -> None:
    """The gateway sends one request, without a key, however many workers it has. It logs one line with the fault."""
    with upstream_with(reply(*steps)) as upstream:
        with Gateway(upstream.url, "--workers", workers, "--shutdown-grace", "0", admin=True) as gateway:
            gateway.wait_for_line(WARNING)
            gateway.stop()
            (record,) = warnings(gateway)
        (request,) = upstream.requests
        upstream.errors.clear()
    assert record["level"] == "warning"
    for word in words:
        assert word in record["detail"]
    assert request.start == b"GET /health/liveliness HTTP/1.1"
    assert request.get(b"authorization") is None


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(reply(ALIVE), id="LiteLLM"),
        pytest.param(reply(answer(b"503 Service Unavailable", b"{}")), id="an ingress whose LiteLLM is not there yet"),
        pytest.param(reply(answer(b"508 Loop Detected", b"{}")), id="a 508 that is not ours"),
        pytest.param(reply(RESET), id="a reset"),
        pytest.param(reply(WAIT_CLOSED), id="nothing within its time"),
    ],
)
def test_nothing_to_say(script: Script) -> None:
    """Nothing is logged if the response is LiteLLM's, or if it proves nothing.

    The gateway does not wait for the response before it is ready.
    """
    with upstream_with(script) as upstream:
        with Gateway(upstream.url, "--shutdown-grace", "0", admin=True) as gateway:
            upstream.wait_request()
            gateway.wait_for_line("upstream is reachable")
            gateway.stop()
            assert warnings(gateway) == []
        upstream.settle()
        assert len(upstream.requests) == 1


def test_itself() -> None:
    """A gateway whose upstream is itself logs that before any client has sent a request."""
    port = free_port()
    with Gateway(f"http://127.0.0.1:{port}", listen=("--port", str(port)), admin=True) as gateway:
        gateway.wait_for_line(WARNING)
        (record,) = warnings(gateway)
    assert "itself" in record["detail"]
    assert "--upstream" in record["detail"]


def test_over_tls(tmp_path: Path) -> None:
    """An https upstream receives the request over TLS."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    options = ("--upstream-ca", str(tmp_path / "ca.pem"))
    with upstream_with(reply(answer(b"404 Not Found", b"{}")), context=context) as upstream:
        with Gateway(f"https://localhost:{upstream.port}", *options, admin=True) as gateway:
            gateway.wait_for_line(WARNING)
        assert upstream.requests[0].get(b"host") == b"localhost:%d" % upstream.port


def test_over_a_unix_socket() -> None:
    """An upstream on a Unix socket receives the request over that socket."""
    found = reply(answer(b"404 Not Found", b"{}"))
    with (
        tempfile.TemporaryDirectory() as folder,  # pytest's own paths may be too long for a socket
        upstream_with(found, uds=f"{folder}/upstream") as upstream,
        Gateway(upstream.url, admin=True) as gateway,
    ):
        gateway.wait_for_line(WARNING)
        assert upstream.requests[0].get(b"host") == b"localhost"


def test_root_path() -> None:
    """With a root path, the request is sent under it, because an ingress may route no other path."""
    with upstream_with(reply(ALIVE)) as upstream, Gateway(upstream.url, "--root-path", "/p", admin=True):
        assert upstream.wait_request().target == b"/p/health/liveliness"


def test_not_again() -> None:
    """An upstream that ends and comes back does not receive the request again."""
    with upstream_with(reply(ALIVE)) as first, Gateway(first.url, admin=True) as gateway:
        first.wait_request()
        first.stop()
        gateway.wait_for_line("not ready")
        with upstream_with(reply(ALIVE), port=first.port) as second:
            gateway.wait_for_line("upstream is reachable")
            second.wait_for(lambda: len(second.connections) > 1)  # from the probe
            assert second.requests == []


def test_secrets_stay_out() -> None:
    """The log does not repeat text from upstream's response."""
    with upstream_with(reply(answer(b"404 sk-secret", json.dumps("sk-secret").encode()))) as upstream:
        with Gateway(upstream.url, admin=True) as gateway:
            gateway.wait_for_line(WARNING)
        assert not any("sk-" in line for line in gateway.lines)

"""The HTTP client of the check, which explains why a request got no response."""

import contextlib
import json
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx

from sanitizer import __version__
from sanitizer.address import in_brackets
from sanitizer.settings import Settings

MAX_ANSWER: Final = 256 * 1024
"""Bytes of a response's content after which no more is read."""


class Unreachable(Exception):
    """There was no HTTP response. The message says why, and what the operator can do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. ``value``: its content parsed as JSON; None if that fails."""

    status: int
    value: Any

    def member(self, name: str) -> Any:
        """The member ``name`` of the content; None if it has none."""
        return self.value.get(name) if isinstance(self.value, dict) else None


class Client:
    """Sends GET requests for small JSON documents. It has to be closed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = _client(settings, settings.upstream.scheme, settings.upstream_tls())

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, key: str | None = None, host: str | None = None) -> Answer:
        """GET ``path``, and return the response whatever its status. Raises `Unreachable`.

        ``key``: sent as a bearer token. ``host``: sent as Host; None for upstream's own name.
        """
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        if host is not None:
            headers["host"] = host
        try:
            return _get(self._client, path, headers, self._settings.lookup_timeout)
        except httpx.TransportError as error:
            raise Unreachable(_explain(error, self._settings)) from None

    def speaks_tls_instead(self) -> bool:
        """Whether upstream speaks https although --upstream says http."""
        return self._settings.upstream.scheme == "http" and _speaks(self._settings, "https")


def _client(settings: Settings, scheme: str, tls: ssl.SSLContext | None) -> httpx.Client:
    """An httpx client for the upstream. It ignores the environment's proxies and CAs, and follows no redirect."""
    address = settings.upstream
    return httpx.Client(
        base_url=f"{scheme}://{in_brackets(address.host)}:{address.port}",
        transport=httpx.HTTPTransport(verify=tls or False, trust_env=False, uds=address.uds),
        timeout=httpx.Timeout(settings.lookup_timeout, connect=settings.connect_timeout),
        headers={"user-agent": f"litellm-sanitizer/{__version__} check"},
        trust_env=False,
    )


def _get(client: httpx.Client, path: str, headers: dict[str, str], seconds: float) -> Answer:
    """GET ``path``. Stops reading content after ``seconds``. Raises `httpx.TransportError`."""
    content = bytearray()
    deadline = time.monotonic() + seconds
    with client.stream("GET", path, headers=headers) as response, contextlib.suppress(httpx.DecodingError):
        for piece in response.iter_bytes():
            content += piece
            if len(content) > MAX_ANSWER or time.monotonic() > deadline:
                break
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    return Answer(response.status_code, value)


TAKES_HTTP: Final = "this port speaks plain http: --upstream http://..."
TAKES_TLS: Final = "this port speaks https: --upstream https://..."


def _explain(error: httpx.TransportError, settings: Settings) -> str:
    """Why there was no response, and what the operator can do."""
    connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    message = re.sub(r"^\[[^\]]*\] ", "", str(error)) or type(error).__name__
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message}); --upstream-ca names the CA to trust"
        if isinstance(cause, ssl.SSLError):
            if _speaks(settings, "http"):
                return TAKES_HTTP
            return f"the TLS handshake failed ({message}); --upstream has to name LiteLLM's port"
    if connected and settings.upstream.scheme == "http" and _speaks(settings, "https"):
        return TAKES_TLS
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {settings.connect_timeout:g} s (--connect-timeout); a firewall?"
    if isinstance(error, httpx.TimeoutException):
        return (
            f"connected, but no answer within {settings.lookup_timeout:g} s (--lookup-timeout); is LiteLLM overloaded, "
            "or is this another server?"
        )
    if connected:
        return (
            f"the server there does not speak HTTP, or closes the connection ({message}); --upstream has to name "
            "LiteLLM's port"
        )
    return f"no connection: {message}; does LiteLLM run, and listen where --upstream says?"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _speaks(settings: Settings, scheme: str) -> bool:
    """Whether upstream answers over ``scheme``. Its certificate is not verified."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        with _client(settings, scheme, unverified) as client:
            _get(client, "/health/liveliness", {}, settings.lookup_timeout)
    except httpx.TransportError:
        return False
    return True

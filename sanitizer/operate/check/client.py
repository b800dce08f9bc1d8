"""Sends LiteLLM the requests of a check, and says why one got no answer."""

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
"""Bytes of an answer that are read."""


class Unreachable(Exception):
    """No HTTP answer; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``value``: the JSON of the content, None if it is none."""

    status: int
    value: Any

    def member(self, name: str) -> Any:
        return self.value.get(name) if isinstance(self.value, dict) else None


class Client:
    """Sends GET requests whose answers are small and JSON. It has to be closed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = _client(settings, settings.upstream.scheme, settings.upstream_tls())

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, key: str | None = None, host: str | None = None) -> Answer:
        """The answer, whatever its status. ``host``: None for upstream's own name. Raises `Unreachable`."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        if host is not None:
            headers["host"] = host
        try:
            return _get(self._client, path, headers, self._settings.lookup_timeout)
        except httpx.TransportError as error:
            raise Unreachable(_why(error, self._settings)) from None

    def speaks_tls_instead(self) -> bool:
        """Whether upstream takes TLS though --upstream says http."""
        return self._settings.upstream.scheme == "http" and _speaks(self._settings, "https")


def _client(settings: Settings, scheme: str, tls: ssl.SSLContext | None) -> httpx.Client:
    """A client for paths on the upstream that reads nothing from the environment and follows no redirect."""
    address = settings.upstream
    return httpx.Client(
        base_url=f"{scheme}://{in_brackets(address.host)}:{address.port}",
        transport=httpx.HTTPTransport(verify=tls or False, trust_env=False, uds=address.uds),
        timeout=httpx.Timeout(settings.lookup_timeout, connect=settings.connect_timeout),
        headers={"user-agent": f"litellm-sanitizer/{__version__} check"},
        trust_env=False,
    )


def _get(client: httpx.Client, path: str, headers: dict[str, str], seconds: float) -> Answer:
    """The answer to a GET request, of which no more is read after ``seconds``. Raises `httpx.TransportError`."""
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


def _why(error: httpx.TransportError, settings: Settings) -> str:
    """Why there was no answer, and what the operator can do."""
    connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    words = re.sub(r"^\[[^\]]*\] ", "", str(error)) or type(error).__name__
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message}); --upstream-ca names the CA to trust"
        if isinstance(cause, ssl.SSLError):
            if _speaks(settings, "http"):
                return TAKES_HTTP
            return f"the TLS handshake failed ({words}); --upstream has to name LiteLLM's port"
    if connected and settings.upstream.scheme == "http" and _speaks(settings, "https"):
        return TAKES_TLS
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {settings.connect_timeout:g} s (--connect-timeout); a firewall?"
    if isinstance(error, httpx.TimeoutException):
        return (
            f"connected, but no answer within {settings.lookup_timeout:g} s (--lookup-timeout); is LiteLLM overloaded, "
            "or another server there?"
        )
    if connected:
        return (
            f"what listens there does not speak HTTP, or closes the connection ({words}); --upstream has to name "
            "LiteLLM's port"
        )
    return f"no connection: {words}; does LiteLLM run, and listen where --upstream says?"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _speaks(settings: Settings, scheme: str) -> bool:
    """Whether upstream answers by ``scheme``. With https, its certificate may be any."""
    anyone = ssl.create_default_context()
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE
    try:
        with _client(settings, scheme, anyone) as client:
            _get(client, "/health/liveliness", {}, settings.lookup_timeout)
    except httpx.TransportError:
        return False
    return True

"""``litellm-sanitizer check``: is the upstream a LiteLLM, which of the defects does it have, will the gateway see them.

The check changes nothing: it sends some GET requests, with a key if it is given one. It recognises these problems:

- There is no connection, or the port speaks https where http is configured, or http where https is.
- The certificate is not trusted (`--upstream-ca`).
- A server answers, but not as LiteLLM does.
- LiteLLM has a ``SERVER_ROOT_PATH`` that the gateway does not know, or the gateway one that LiteLLM does not.
- Upstream routes by name: LiteLLM gets the check's requests, but not those of clients, whose Host names the gateway.
- ``PROXY_BASE_URL`` names the upstream itself, so that the dashboard's requests do not pass the gateway.
- LiteLLM does not know the key, or does not let it read itself.
"""

import ipaddress
import json
import re
import ssl
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from sanitizer import __version__
from sanitizer.address import in_brackets
from sanitizer.operate.logs import mask
from sanitizer.sanitize.gates import GATES, NEWEST, Gate
from sanitizer.sanitize.lookup_key import read_key
from sanitizer.sanitize.queries import token_of
from sanitizer.settings import Settings

Release = tuple[int, ...]

WIDTH = 100
OTHER_HOST = "client.invalid"
"""A Host that can't be upstream's name (RFC 6761 section 6.4), as those of clients, which name the gateway, are not."""
MAX_ANSWER = 256 * 1024
"""Bytes of an answer that are read."""


class Result(StrEnum):
    """What came of one check."""

    OK = "ok"
    NOTE = "note"  # could not be told, or is for the operator to judge
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, in words."""

    check: str
    result: Result
    detail: str


@dataclass(frozen=True, slots=True)
class Defect:
    """One field of one endpoint: the unchanged values that the release refuses, and those that it accepts again."""

    endpoint: str
    field: str
    refused: list[str]
    fixed: list[str]
    error: str
    """A part of LiteLLM's refusal."""
    repaired: bool
    """Whether the gateway is set to repair it."""


@dataclass(slots=True)
class Report:
    """All findings. ``release`` is None if LiteLLM did not tell it; ``defects`` are then unknown.

    ``proven_on`` is the newest LiteLLM release on which the table of defects was proven.
    """

    upstream: str
    proven_on: str = NEWEST
    release: str | None = None
    findings: list[Finding] = field(default_factory=list)
    defects: list[Defect] | None = None

    def add(self, check: str, result: Result, detail: str) -> None:
        self.findings.append(Finding(check, result, detail))

    @property
    def problems(self) -> int:
        return sum(finding.result is Result.PROBLEM for finding in self.findings)


class Unreachable(Exception):
    """No HTTP answer; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``value``: the JSON of the content, None if it is none."""

    status: int
    value: Any

    def member(self, name: str) -> Any:
        return self.value.get(name) if isinstance(self.value, dict) else None


def run(settings: Settings, key: str | None, *, as_json: bool, show: Callable[[str], object] = print) -> int:
    """Check, and ``show`` what was found. ``key``: a LiteLLM key, or None. The exit status: 0, or 1 for a problem."""
    report = check(settings, key)
    show(_json(report) if as_json else _text(report, settings))
    return 1 if report.problems else 0


def check(settings: Settings, key: str | None) -> Report:
    """All checks, as far as they go."""
    report = Report(str(settings.upstream))
    with _client(settings, settings.upstream.scheme, settings.upstream_tls()) as client:
        ask = Asking(client, settings.lookup_timeout)
        try:
            if _connection(report, settings, ask):
                _host(report, settings, ask)
                _release(report, ask, key)
                if report.release is not None:
                    _defects(report, settings)
                _root_paths(report, settings, ask)
                _key(report, ask, key)
                _lookup_key(report, settings, ask, key)
        except Unreachable as error:
            report.add("connection", Result.PROBLEM, str(error))
    return report


@contextmanager
def _client(settings: Settings, scheme: str, tls: ssl.SSLContext | None) -> Iterator[httpx.Client]:
    """A client that reads nothing from the environment and follows nothing, for paths on the upstream."""
    address = settings.upstream
    transport = httpx.HTTPTransport(verify=tls or False, trust_env=False, uds=address.uds)
    timeout = httpx.Timeout(settings.lookup_timeout, connect=settings.connect_timeout)
    base = f"{scheme}://{in_brackets(address.host)}:{address.port}"
    headers = {"user-agent": f"litellm-sanitizer/{__version__} check"}
    with httpx.Client(base_url=base, transport=transport, timeout=timeout, headers=headers, trust_env=False) as client:
        yield client


class Asking:
    """GET requests for what is small and JSON. ``seconds``: for a whole answer."""

    def __init__(self, client: httpx.Client, seconds: float) -> None:
        self._client = client
        self._seconds = seconds

    def __call__(self, path: str, key: str | None = None, host: str | None = None) -> Answer:
        """The answer, of whatever kind; ``host``: None for upstream's own name. Raises `httpx.TransportError`."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        if host is not None:
            headers["host"] = host
        content = bytearray()
        deadline = time.monotonic() + self._seconds
        with self._client.stream("GET", path, headers=headers) as response:
            try:
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > MAX_ANSWER or time.monotonic() > deadline:
                        break
            except httpx.DecodingError:
                content.clear()
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        return Answer(response.status_code, value)


def _connection(report: Report, settings: Settings, ask: Asking) -> bool:
    """Whether a LiteLLM answers. Raises `Unreachable`."""
    try:
        answer = ask("/health/readiness")
    except httpx.TransportError as error:
        raise Unreachable(_why(error, settings)) from None
    if answer.status == 508:
        report.add("connection", Result.PROBLEM, "this is a litellm-sanitizer whose --upstream leads back to itself")
        return False
    if not _is_litellm(answer):
        if settings.upstream.scheme == "http" and _speaks_tls(settings):  # many servers answer plain http with a 400
            raise Unreachable(_HTTPS)
        detail = f"something answers, but not as LiteLLM does: {answer.status} to GET /health/readiness"
        report.add("connection", Result.PROBLEM, detail)
        return False
    report.add("connection", Result.OK, f"LiteLLM answers at {settings.upstream}")
    if answer.status != 200 or answer.member("db") != "connected":
        detail = f"status {_shown(answer.member('status'))}, database {_shown(answer.member('db'))}"
        report.add("readiness", Result.PROBLEM, f"LiteLLM is not ready ({answer.status}): {detail}")
    version = answer.member("litellm_version")
    report.release = _shown(version) if version else None
    return True


def _is_litellm(readiness: Answer) -> bool:
    return isinstance(readiness.member("status"), str) and isinstance(readiness.member("db"), str)


def _host(report: Report, settings: Settings, ask: Asking) -> None:
    """Whether LiteLLM answers clients too, whose Host names the gateway."""
    if not settings.pass_host_header:
        return
    try:
        answer = ask("/health/readiness", host=OTHER_HOST)
    except httpx.TransportError as error:
        found = _words(error)
    else:
        if _is_litellm(answer):
            return
        found = str(answer.status)
    detail = (
        f"upstream routes by name: LiteLLM answers if Host is {settings.upstream.authority}, but not if it is another "
        f"one ({found}), such as clients send: --pass-host-header=false"
    )
    report.add("host", Result.PROBLEM, detail)


_HTTP = "this port speaks plain http: --upstream http://..."
_HTTPS = "this port speaks https: --upstream https://..."


def _shown(value: object) -> str:
    """What somebody else has written, fit for a terminal."""
    text = mask(str(value))[:200]
    return text if text.isprintable() else ascii(text)


def _why(error: httpx.TransportError, settings: Settings) -> str:
    """What an operator should know of ``error``."""
    cause: BaseException | None = error
    chain: list[BaseException] = []
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for each in chain:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({each.verify_message}); --upstream-ca names the CA to trust"
    if any(isinstance(each, ssl.SSLError) for each in chain):
        if _speaks_http(settings):
            return _HTTP
        reason = next(each for each in chain if isinstance(each, ssl.SSLError)).reason
        return f"the TLS handshake failed ({reason or 'no reason given'})"
    if settings.upstream.scheme == "http" and not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        if _speaks_tls(settings):
            return _HTTPS
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
            return f"what listens there does not speak HTTP, or closes the connection ({_words(error)})"
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {settings.connect_timeout:g} s (--connect-timeout); a firewall?"
    if isinstance(error, httpx.TimeoutException):
        return f"connected, but no answer within {settings.lookup_timeout:g} s (--lookup-timeout)"
    return f"no connection: {_words(error)}"


def _words(error: Exception) -> str:
    return re.sub(r"^\[[^\]]*\] ", "", str(error)) or type(error).__name__


def _speaks_tls(settings: Settings) -> bool:
    """Whether a TLS handshake succeeds, whoever is there."""
    anyone = ssl.create_default_context()
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE
    return _speaks(settings, "https", anyone)


def _speaks_http(settings: Settings) -> bool:
    return _speaks(settings, "http", None)


def _speaks(settings: Settings, scheme: str, tls: ssl.SSLContext | None) -> bool:
    try:
        with _client(settings, scheme, tls) as client:
            Asking(client, settings.lookup_timeout)("/health/liveliness")
    except httpx.TransportError:
        return False
    return True


def _release(report: Report, ask: Asking, key: str | None) -> None:
    refused = ""
    if report.release is None and key is not None:  # from 1.92.0 on, only an admin is told
        try:
            answer = ask("/health/readiness/details", key)
        except httpx.TransportError as error:
            raise Unreachable(_words(error)) from None
        version = answer.member("litellm_version")
        report.release = _shown(version) if version else None
        refused = f", and answered {answer.status} to this one"
    if report.release is None:
        detail = (
            "LiteLLM did not say; from 1.92.0 on, it tells only the master key or a key of an admin or admin viewer"
        )
        report.add("release", Result.NOTE, detail + (refused or ": --key-file"))
    elif (release := _numbers(report.release)) is None:
        report.add("release", Result.NOTE, f"{report.release}, which can't be compared with others")
    elif release > _NEWEST:
        detail = f"{report.release}, newer than {NEWEST}, the newest release whose defects are known and shown here"
        report.add("release", Result.NOTE, detail)
    elif release < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        detail = f"{report.release}, older than {oldest}, the oldest release whose defects are known and shown here"
        report.add("release", Result.NOTE, detail)
    else:
        report.add("release", Result.OK, report.release)


def _numbers(release: str) -> Release | None:
    """``1.92.0`` as (1, 92, 0); what follows (``.rc1``, ``-nightly``) is left out. None if it has no such beginning."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", release)
    return tuple(map(int, match.groups())) if match else None


_NEWEST = _numbers(NEWEST) or ()
_OLDEST = min(_numbers(row.since) or () for gate in GATES for row in gate.refused)


def _defects(report: Report, settings: Settings) -> None:
    release = _numbers(report.release or "")
    if release is None:
        return
    gates: dict[tuple[str, str], list[Gate]] = {}
    for gate in GATES:
        gates.setdefault((gate.endpoint, gate.field), []).append(gate)
    report.defects = [_defect(of_field, max(release, _OLDEST), settings) for of_field in gates.values()]


def _defect(gates: list[Gate], release: Release, settings: Settings) -> Defect:
    """The defect of a field. ``gates`` are all on it; more than one may name the same values.

    A row that ends in the release in which another one begins has been replaced by that one; nothing is fixed.
    """
    refused: list[str] = []
    fixed: list[str] = []
    rows = list(dict.fromkeys(row for gate in gates for row in gate.refused))
    begins = {row.since for row in rows}
    for since, before, value in rows:
        if before is not None and release >= (_numbers(before) or ()):
            if before not in begins:
                fixed.append(value)
        elif release >= (_numbers(since) or ()):
            refused.append(value)
    gate = gates[0]
    repaired = settings.mode == "enforce" and gate.field in settings.fields
    return Defect(gate.endpoint, gate.field, refused, fixed, gate.fragments[0], repaired)


def _root_paths(report: Report, settings: Settings, ask: Asking) -> None:
    try:
        for prefix in filter(None, settings.prefixes):
            status = ask(f"{quote(prefix)}/health/liveliness").status
            if status == 200:
                report.add("root path", Result.OK, f"LiteLLM answers under {prefix}")
            else:
                detail = f"LiteLLM does not answer under {prefix} ({status}): --root-path is not its SERVER_ROOT_PATH"
                report.add("root path", Result.PROBLEM, detail)
        answer = ask("/.well-known/litellm-ui-config")
    except httpx.TransportError as error:
        raise Unreachable(_words(error)) from None
    if answer.status != 200 or "proxy_base_url" not in (answer.value if isinstance(answer.value, dict) else ()):
        report.add("dashboard", Result.NOTE, f"LiteLLM does not tell its PROXY_BASE_URL ({answer.status})")
        return
    root = answer.member("server_root_path")
    if isinstance(root, str) and (path := root.strip("/")) and f"/{path}" not in settings.prefixes:
        shown = _shown(f"/{path}")
        detail = f"LiteLLM's SERVER_ROOT_PATH is {shown}, which the gateway does not know: --root-path {shown}"
        report.add("root path", Result.PROBLEM, detail)
    _dashboard(report, settings, answer.member("proxy_base_url"))


def _dashboard(report: Report, settings: Settings, base: object) -> None:
    shown = _shown(base)
    if not base:
        detail = "PROXY_BASE_URL is not set: the dashboard calls the address that it was loaded from"
        report.add("dashboard", Result.OK, detail)
    elif _same_server(str(base), settings):
        detail = f"PROXY_BASE_URL is {shown}, which is LiteLLM itself: the dashboard calls it past the gateway"
        report.add("dashboard", Result.PROBLEM, detail)
    else:
        detail = f"PROXY_BASE_URL is {shown}: the dashboard calls this address, so it has to lead to the gateway"
        report.add("dashboard", Result.NOTE, detail)


def _same_server(url: str, settings: Settings) -> bool:
    """Whether ``url`` names the upstream, by the same host and port; all names of loopback are one."""
    upstream = settings.upstream
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return False
    host = (parts.hostname or "").rstrip(".")
    return (
        upstream.uds is None
        and port == upstream.port
        and (host == upstream.host.lower() or (_is_loopback(host) and _is_loopback(upstream.host)))
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_OF_A_KEY = {
    200: (Result.OK, "LiteLLM answers /key/info with this key about itself"),
    401: (Result.PROBLEM, "LiteLLM does not know this key (401): wrong, expired, blocked or deleted"),
    403: (
        Result.NOTE,
        "this key may not call /key/info (403); edits made with such a key are not repaired without --lookup-key-file",
    ),
    404: (
        Result.NOTE,
        "LiteLLM takes this key, but does not store it (404): it is the master key, most likely",
    ),
}


def _key(report: Report, ask: Asking, key: str | None) -> None:
    if key is None:
        report.add("key", Result.NOTE, "none given, so /key/info was not tried: --key-file")
        return
    status = _info(ask, key, of=key)
    result, detail = _OF_A_KEY.get(status, (Result.PROBLEM, f"LiteLLM answers /key/info with {status}"))
    report.add("key", result, detail)


def _lookup_key(report: Report, settings: Settings, ask: Asking, key: str | None) -> None:
    try:
        own = read_key(settings.lookup_key_file) if settings.lookup_key_file else settings.lookup_key
    except (OSError, ValueError) as error:
        report.add("lookup key", Result.PROBLEM, f"the file gives no key any more ({type(error).__name__})")
        return
    if own is None:
        return
    status = _info(ask, own, of=key or own)
    if status in (200, 404):
        report.add("lookup key", Result.OK, "LiteLLM takes it")
    else:
        report.add("lookup key", Result.PROBLEM, f"LiteLLM refuses it with {status} at /key/info")


def _info(ask: Asking, key: str, *, of: str) -> int:
    try:
        return ask(f"/key/info?key={quote(token_of(of), safe='')}", key).status
    except httpx.TransportError as error:
        raise Unreachable(_words(error)) from None


def _json(report: Report) -> str:
    value = {"ok": not report.problems, **asdict(report)}
    return json.dumps(value, indent=2)


def _text(report: Report, settings: Settings) -> str:
    lines = [f"litellm-sanitizer {__version__}, proven on LiteLLM {report.proven_on}: check of {report.upstream}", ""]
    for finding in report.findings:
        word = "PROBLEM" if finding.result is Result.PROBLEM else finding.result
        lines += _item(f"{word:9}{finding.check:12}", finding.detail)
    if report.defects is not None:
        lines += ["", *_defect_lines(report.defects, report.release or "", settings)]
    problems = report.problems
    lines += ["", "No problem." if not problems else "1 problem." if problems == 1 else f"{problems} problems."]
    if report.defects is None and not problems:
        lines += textwrap.wrap(
            "What this release refuses is not known: ask once more with the key of an admin (--key-file).", WIDTH
        )
    return "\n".join(lines)


def _defect_lines(defects: list[Defect], release: str, settings: Settings) -> list[str]:
    present = [defect for defect in defects if defect.refused]
    if not present:
        return [f"LiteLLM {release} refuses nothing that is sent unchanged: it needs no gateway."]
    lines = [f"LiteLLM {release} refuses these fields, though unchanged, most of them from all but proxy admins:"]

    def values(defect: Defect) -> str:
        missing = "" if defect.repaired else " - NOT REPAIRED: " + _not_repaired(settings)
        return "; ".join(defect.refused) + missing

    lines += _by_endpoint(present, values)
    fixed = [defect for defect in defects if defect.fixed]
    if fixed:
        lines.append("Fixed in this release:")
        lines += _by_endpoint(fixed, lambda defect: "; ".join(defect.fixed))
    if all(defect.repaired for defect in present):
        lines.append("The gateway repairs all of these." if len(present) > 1 else "The gateway repairs this.")
    return lines


def _by_endpoint(defects: list[Defect], values: Callable[[Defect], str]) -> Iterator[str]:
    """The fields of each endpoint with their ``values``. Endpoints that have the same are shown together."""
    of_endpoint: dict[str, list[tuple[str, str]]] = {}
    for defect in defects:
        of_endpoint.setdefault(defect.endpoint, []).append((defect.field, values(defect)))
    endpoints: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for endpoint, rows in of_endpoint.items():
        endpoints.setdefault(tuple(rows), []).append(endpoint)
    width = max(len(defect.field) for defect in defects) + 2
    for fields, names in endpoints.items():
        yield "  POST " + ", ".join(names)
        for name, text in fields:
            yield from _item(f"    {name:{width}}", text)


def _not_repaired(settings: Settings) -> str:
    return f"--mode {settings.mode}" if settings.mode != "enforce" else "not in --fields"


def _item(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label), break_long_words=False)

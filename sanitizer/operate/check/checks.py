"""The checks of an upstream.

They recognise these problems:

- No connection can be made, or the port speaks https while --upstream says http, or the other way round.
- The certificate is not trusted (--upstream-ca).
- The server is not LiteLLM, or LiteLLM is not ready.
- LiteLLM's ``SERVER_ROOT_PATH`` and the gateway's --root-path differ.
- Upstream routes by Host, so that clients' requests, whose Host names the gateway, do not reach LiteLLM.
- ``PROXY_BASE_URL`` names the upstream itself, so that the dashboard's requests bypass the gateway.
- LiteLLM does not accept the key or the lookup credential, or does not let it call ``/key/info``.
"""

import contextlib
import ipaddress
from typing import Final
from urllib.parse import quote, urlsplit

from sanitizer.operate.check.client import TAKES_TLS, Answer, Client, Unreachable
from sanitizer.operate.check.defects import NEWEST_KNOWN, OLDEST_KNOWN, defects_of, release_of
from sanitizer.operate.check.report import Report, Result
from sanitizer.operate.logs import mask
from sanitizer.sanitize.gates import NEWEST_PROVEN
from sanitizer.sanitize.lookup_key import read_key
from sanitizer.sanitize.queries import token_of
from sanitizer.settings import Settings

_OTHER_HOST: Final = "client.invalid"
"""A Host that can't be upstream's name (RFC 6761 section 6.4). It stands for the gateway's name, which clients send."""


def check(settings: Settings, key: str | None) -> Report:
    """Make all checks, or those up to the first that gets no response."""
    report = Report(str(settings.upstream))
    with contextlib.closing(Client(settings)) as litellm:
        try:
            if _connection(report, settings, litellm):
                _host(report, settings, litellm)
                _release(report, settings, litellm, key)
                _root_paths(report, settings, litellm)
                _dashboard(report, settings, litellm)
                _key(report, litellm, key)
                _lookup_key(report, settings, litellm, key)
        except Unreachable as error:
            report.add("connection", Result.PROBLEM, str(error))
    return report


def _connection(report: Report, settings: Settings, litellm: Client) -> bool:
    """Report whether LiteLLM answers and is ready. Returns whether it answers. Raises `Unreachable`."""
    answer = litellm.get("/health/readiness")
    status = answer.status
    if status == 508:
        detail = "this is a litellm-sanitizer whose --upstream leads back to itself; --upstream has to name LiteLLM"
    elif not _is_litellm(answer):
        if litellm.speaks_tls_instead():  # many servers answer plain http on such a port with a 400
            raise Unreachable(TAKES_TLS)
        detail = (
            f"something answers, but not as LiteLLM does: {status} to GET /health/readiness; --upstream has to name "
            "LiteLLM"
        )
    else:
        report.add("connection", Result.OK, f"LiteLLM answers at {settings.upstream}")
        if status != 200 or answer.member("db") != "connected":
            state = f"status {_printable(answer.member('status'))}, database {_printable(answer.member('db'))}"
            detail = f"LiteLLM is not ready ({status}): {state}; its log says why"
            report.add("readiness", Result.PROBLEM, detail)
        report.release = _version(answer)
        return True
    report.add("connection", Result.PROBLEM, detail)
    return False


def _is_litellm(readiness: Answer) -> bool:
    return isinstance(readiness.member("status"), str) and isinstance(readiness.member("db"), str)


def _version(answer: Answer) -> str | None:
    version = answer.member("litellm_version")
    return _printable(version) if version else None


def _host(report: Report, settings: Settings, litellm: Client) -> None:
    """Report a problem if requests with another Host than upstream's own do not reach LiteLLM."""
    if not settings.pass_host_header:
        return
    try:
        answer = litellm.get("/health/readiness", host=_OTHER_HOST)
    except Unreachable as error:
        result = str(error)
    else:
        if _is_litellm(answer):
            return
        result = str(answer.status)
    detail = (
        f"upstream routes by name: LiteLLM answers if Host is {settings.upstream.authority}, but not if it is another "
        f"one ({result}), such as clients send: --pass-host-header=false"
    )
    report.add("host", Result.PROBLEM, detail)


def _printable(value: object) -> str:
    """A value from LiteLLM, made safe for a terminal: short, printable, and without secrets."""
    text = mask(str(value))[:200]
    return text if text.isprintable() else ascii(text)


def _release(report: Report, settings: Settings, litellm: Client, key: str | None) -> None:
    """Report LiteLLM's release and its defects."""
    hint = "; give one of these: --key-file"
    if report.release is None and key is not None:  # from 1.92.0 on, only admins may read the release
        answer = litellm.get("/health/readiness/details", key)
        report.release = _version(answer)
        hint = f"; LiteLLM answered this key with {answer.status}"
    version = report.release
    if version is None:
        detail = (
            "LiteLLM did not report it; from 1.92.0 on, only the master key and the keys of admins and admin viewers "
            "may read it"
        )
        report.add("release", Result.NOTE, detail + hint)
        return
    release = release_of(version)
    if release is None:
        report.add("release", Result.NOTE, f"{version}, which can't be compared with others")
        return
    known = "release whose defects are known and shown here"
    if release > NEWEST_KNOWN:
        report.add("release", Result.NOTE, f"{version}, newer than {NEWEST_PROVEN}, the newest {known}")
    elif release < OLDEST_KNOWN:
        oldest = ".".join(map(str, OLDEST_KNOWN))
        report.add("release", Result.NOTE, f"{version}, older than {oldest}, the oldest {known}")
    else:
        report.add("release", Result.OK, version)
    report.defects = defects_of(release, settings)


def _root_paths(report: Report, settings: Settings, litellm: Client) -> None:
    """Report whether LiteLLM answers under each prefix in --root-path."""
    for prefix in filter(None, settings.root_path):
        status = litellm.get(f"{quote(prefix)}/health/liveliness").status
        if status == 200:
            report.add("root path", Result.OK, f"LiteLLM answers under {prefix}")
        else:
            detail = (
                f"LiteLLM does not answer under {prefix} ({status}): --root-path is not its SERVER_ROOT_PATH; make "
                "them the same"
            )
            report.add("root path", Result.PROBLEM, detail)


def _dashboard(report: Report, settings: Settings, litellm: Client) -> None:
    """Report under which prefix, and to which address, the dashboard sends its requests."""
    answer = litellm.get("/.well-known/litellm-ui-config")
    config = answer.value if answer.status == 200 and isinstance(answer.value, dict) else {}
    if "proxy_base_url" not in config:
        detail = f"LiteLLM did not report PROXY_BASE_URL ({answer.status}); if it is set, it has to name the gateway"
        report.add("dashboard", Result.NOTE, detail)
        return
    root = config.get("server_root_path")
    if isinstance(root, str) and (path := root.strip("/")) and f"/{path}" not in settings.root_path:
        prefix = _printable(f"/{path}")
        detail = f"LiteLLM's SERVER_ROOT_PATH is {prefix}, which the gateway does not know: --root-path {prefix}"
        report.add("root path", Result.PROBLEM, detail)
    base = config["proxy_base_url"]
    url = _printable(base)
    if not base:
        result = Result.OK
        detail = "PROXY_BASE_URL is not set: the dashboard calls the address that it was loaded from"
    elif _is_upstream(str(base), settings):
        result = Result.PROBLEM
        detail = (
            f"PROXY_BASE_URL is {url}, which is LiteLLM itself: the dashboard calls it past the gateway; set it to "
            "the gateway's address"
        )
    else:
        result = Result.NOTE
        detail = f"PROXY_BASE_URL is {url}: the dashboard calls this address, so it has to lead to the gateway"
    report.add("dashboard", result, detail)


def _is_upstream(url: str, settings: Settings) -> bool:
    """Whether ``url`` has the upstream's host and port. All loopback addresses count as the same host."""
    upstream = settings.upstream
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return False
    host = (parts.hostname or "").rstrip(".")
    same = host == upstream.host or (_is_loopback(host) and _is_loopback(upstream.host))
    return same and port == upstream.port and upstream.uds is None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_KEY_RESULTS: Final = {
    200: (Result.OK, "LiteLLM answers /key/info for this key"),
    401: (
        Result.PROBLEM,
        "LiteLLM does not know this key (401): it is wrong, expired, blocked or deleted; give another: --key-file",
    ),
    403: (
        Result.NOTE,
        "this key may not call /key/info (403); edits made with such a key are not repaired without --lookup-key-file",
    ),
    404: (
        Result.NOTE,
        "LiteLLM accepts this key, but does not store it (404): it is most likely the master key",
    ),
}


def _key(report: Report, litellm: Client, key: str | None) -> None:
    """Report whether the given key may read itself in LiteLLM."""
    if key is None:
        report.add("key", Result.NOTE, "none given, so /key/info was not tried: --key-file")
        return
    status = _key_info(litellm, key, of=key)
    unexpected = Result.PROBLEM, f"LiteLLM answers /key/info with {status}; its log says why"
    report.add("key", *_KEY_RESULTS.get(status, unexpected))


def _lookup_key(report: Report, settings: Settings, litellm: Client, key: str | None) -> None:
    """Report whether the lookup credential may read the given key, or itself, in LiteLLM."""
    try:
        own = read_key(settings.lookup_key_file) if settings.lookup_key_file else settings.lookup_key
    except (OSError, ValueError) as error:
        detail = f"the file holds no key any more ({type(error).__name__}); write the key into it again"
        report.add("lookup key", Result.PROBLEM, detail)
        return
    if own is None:
        return
    status = _key_info(litellm, own, of=key or own)
    if status in (200, 404):
        report.add("lookup key", Result.OK, "LiteLLM accepts it")
    else:
        detail = f"LiteLLM refuses it with {status} at /key/info; give one that may read every key, such as an admin's"
        report.add("lookup key", Result.PROBLEM, detail)


def _key_info(litellm: Client, key: str, *, of: str) -> int:
    """The status of LiteLLM's response when ``key`` looks up the key ``of``."""
    return litellm.get(f"/key/info?key={quote(token_of(of), safe='')}", key).status

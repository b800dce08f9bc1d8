"""The options: one frozen field each, with its default, its unit and what happens without it.

Every option is a flag (``--max-body``) and an environment variable (``SANITIZER_MAX_BODY``); flags win, and an
empty variable counts as not set. A bad value raises `SettingError`, which names the option and what it takes.
"""

import contextlib
import ipaddress
import math
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sanitizer.address import Address, TrustedProxies, parse_address, parse_trusted_proxies
from sanitizer.sanitize.gates import FIELDS
from sanitizer.sanitize.lookup_key import checked_key, read_key


class SettingError(ValueError):
    """An option has a value that it does not take."""

    def __init__(self, option: str, value: str, takes: str) -> None:
        super().__init__(f"{option} {value!r}: {takes}")


def _integer(low: int, high: int, what: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"takes {what}, {low} to {high}")
        return int(text)

    return parse


def _seconds(low: float = 0.001, high: float = 86_400) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text.removesuffix("s"))
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"takes seconds, {low:g} to {high:g}")
        return value

    return parse


def _seconds_or_none(text: str) -> float | None:
    return None if _seconds(0)(text) == 0 else _seconds(0.1)(text)


def _size(text: str) -> int:
    units = {"": 1, "B": 1, "KIB": 1024, "MIB": 1024**2, "K": 1024, "M": 1024**2}
    match = re.fullmatch(r"([0-9]{1,9})([a-zA-Z]*)", text)
    if match is None or match[2].upper() not in units or int(match[1]) * units[match[2].upper()] > 64 * 1024**2:
        raise ValueError("takes a size such as 65536, 512KiB or 1MiB, at most 64MiB")
    return int(match[1]) * units[match[2].upper()]


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"takes {', '.join(choices[:-1])} or {choices[-1]}")
        return text

    return parse


def _switch(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in values:
        raise ValueError("takes true or false")
    return values[text.lower()]


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def _fields(text: str) -> frozenset[str]:
    names = frozenset(_names(text))
    if not names or not names <= FIELDS:
        raise ValueError(f"takes a comma list out of: {', '.join(sorted(FIELDS))}")
    return names


def _prefixes(text: str) -> tuple[str, ...]:
    prefixes = [""]
    for name in _names(text):
        prefix = "/" + name.strip("/")
        if re.search(r"[\x00-\x20?#%\x7f]|//", prefix):
            raise ValueError("takes a comma list of path prefixes such as /litellm")
        if prefix != "/":
            prefixes.append(prefix)
    return tuple(dict.fromkeys(prefixes))


def _host(text: str) -> str:
    """A name or an address to listen on. An IPv6 address may stand in brackets, as in a URL."""
    match = re.fullmatch(r"\[(.*)]|([^][]*)", text)
    with contextlib.suppress(ValueError):
        if match is not None:
            return match[2] if match[1] is None else str(ipaddress.IPv6Address(match[1]))
    raise ValueError("takes a host name or an IP address, such as 0.0.0.0, :: or [::1]")


def _trusted(text: str) -> TrustedProxies:
    return parse_trusted_proxies(_names(text))


def _file(text: str) -> str:
    try:
        with open(text, "rb"):
            return text
    except OSError as error:
        raise ValueError(f"takes a readable file ({error.strerror})") from None


def _key_file(text: str) -> str:
    try:
        read_key(text)
    except OSError as error:
        raise ValueError(f"takes a readable file ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"takes a file with {error}") from None
    return text


def _ca(text: str) -> str:
    _file(text)
    try:
        ssl.create_default_context(cafile=text)
    except ssl.SSLError:
        raise ValueError("takes a file of CA certificates in PEM") from None
    return text


def _option(parse: Callable[[str], Any], takes: str, help_: str, *variables: str) -> dict[str, Any]:
    """The metadata of one option; ``variables`` are read after its own ``SANITIZER_...`` variable."""
    return {"parse": parse, "takes": takes, "help": help_, "variables": variables}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All options, parsed. Times are seconds, sizes bytes; None means: no limit, or not set."""

    upstream: Address = field(
        default=Address("http", "127.0.0.1", 4000),
        metadata=_option(parse_address, "URL", "LiteLLM: http://host[:port], https://... or unix:/path"),
    )
    host: str = field(default="127.0.0.1", metadata=_option(_host, "HOST", "address to listen on"))
    port: int = field(
        default=4001, metadata=_option(_integer(0, 65535, "a port"), "PORT", "port to listen on; 0 takes a free one")
    )
    uds: str | None = field(default=None, metadata=_option(str, "PATH", "listen on a unix socket instead"))
    admin_host: str = field(
        default="127.0.0.1", metadata=_option(_host, "HOST", "address of the admin listener: /livez, /readyz, /metrics")
    )
    admin_port: int = field(
        default=9464, metadata=_option(_integer(0, 65535, "a port"), "PORT", "its port; 0 turns it off")
    )
    mode: Literal["enforce", "observe", "off"] = field(
        default="enforce",
        metadata=_option(
            _choice("enforce", "observe", "off"),
            "MODE",
            "enforce; observe: decide, count and log, forward untouched; off: intercept nothing",
        ),
    )
    fields: frozenset[str] = field(
        default=FIELDS, metadata=_option(_fields, "NAMES", "comma list of the only fields that may be dropped")
    )
    root_path: tuple[str, ...] = field(
        default=("",),
        metadata=_option(
            _prefixes,
            "PATHS",
            "LiteLLM's path prefix(es), comma list; the bare path always counts too",
            "SERVER_ROOT_PATH",
        ),
    )
    workers: int = field(
        default=1, metadata=_option(_integer(1, 256, "a number of processes"), "N", "worker processes")
    )
    max_body: int = field(
        default=1024**2, metadata=_option(_size, "SIZE", "largest body inspected; larger ones pass untouched")
    )
    lookup_timeout: float = field(
        default=5.0, metadata=_option(_seconds(), "SECONDS", "limit of each lookup of a stored key")
    )
    lookup_key_file: str | None = field(
        default=None,
        metadata=_option(
            _key_file,
            "FILE",
            "LiteLLM key for lookups, used when LiteLLM has refused an update because of a guarded field and the "
            "caller's own lookup with 403; SANITIZER_LOOKUP_KEY can hold the key itself",
        ),
    )
    lookup_key: str | None = field(default=None, repr=False)
    """The key itself, from the environment alone: command lines can be read by others. The file goes before it."""
    cache_ttl: float = field(
        default=0.0,
        metadata=_option(
            _seconds(0, 10),
            "SECONDS",
            "how long a lookup may be reused, at most 10; a change made meanwhile can be missed",
        ),
    )
    connect_timeout: float = field(default=5.0, metadata=_option(_seconds(), "SECONDS", "upstream connect"))
    response_timeout: float | None = field(
        default=None, metadata=_option(_seconds(), "SECONDS", "until upstream's response head")
    )
    stall_timeout: float | None = field(
        default=60.0,
        metadata=_option(
            _seconds_or_none,
            "SECONDS",
            "a client that stops sending its content or stops reading, and a LiteLLM that stops reading, is cut after "
            "this time, at most 1.25 times as long; 0: never",
        ),
    )
    upstream_keepalive: float = field(
        default=4.0,
        metadata=_option(_seconds(0), "SECONDS", "idle upstream connections are dropped after this (uvicorn's own: 5)"),
    )
    keepalive_timeout: float = field(
        default=75.0, metadata=_option(_seconds(), "SECONDS", "idle client connections are closed after this")
    )
    max_connections: int | None = field(
        default=None,
        metadata=_option(
            _integer(1, 1_000_000, "a number of connections"),
            "N",
            "upstream connections a worker; further requests wait up to the connect timeout, then 503",
        ),
    )
    trusted_proxies: TrustedProxies = field(
        default=TrustedProxies(),
        metadata=_option(
            _trusted, "CIDRS", "peers whose X-Forwarded-*, Forwarded and X-Real-IP pass; comma list, or `unix`"
        ),
    )
    pass_host_header: bool = field(
        default=True,
        metadata=_option(
            _switch,
            "BOOL",
            "true: Host is the client's; false: upstream's own, for an ingress that routes by name, and "
            "X-Forwarded-Host tells the client's",
        ),
    )
    upstream_ca: str | None = field(
        default=None, metadata=_option(_ca, "FILE", "CA bundle for an https upstream, instead of the system's")
    )
    ssl_certfile: str | None = field(
        default=None, metadata=_option(_file, "FILE", "TLS on the public listener: certificate chain, PEM")
    )
    ssl_keyfile: str | None = field(
        default=None, metadata=_option(_file, "FILE", "its private key; without it, taken from the certificate's file")
    )
    shutdown_grace: float = field(
        default=30.0,
        metadata=_option(_seconds(0), "SECONDS", "from SIGTERM until requests still in flight are aborted"),
    )
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info",
        metadata=_option(
            _choice("debug", "info", "warning", "error"), "LEVEL", "what is logged: debug, info, warning or error"
        ),
    )
    log_format: Literal["auto", "text", "json"] = field(
        default="auto",
        metadata=_option(
            _choice("auto", "text", "json"), "FORMAT", "text, json, or auto: text on a terminal, else JSON"
        ),
    )
    access_log: bool = field(default=False, metadata=_option(_switch, "", "one line a request, without its query"))

    def upstream_tls(self) -> ssl.SSLContext | None:
        """The TLS context for an https upstream: certificate and host name verified; None for plain http."""
        if self.upstream.scheme != "https":
            return None
        context = ssl.create_default_context(cafile=self.upstream_ca)
        context.set_alpn_protocols(["http/1.1"])
        return context


@dataclass(frozen=True, slots=True)
class Option:
    """One option as its user meets it. ``takes``: empty for a switch, whose flag has no value."""

    name: str
    default: Any
    takes: str
    help: str
    variables: tuple[str, ...]
    parse: Callable[[str], Any]

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


OPTIONS: tuple[Option, ...] = tuple(
    Option(
        f.name,
        f.default,
        f.metadata["takes"],
        f.metadata["help"],
        (f"SANITIZER_{f.name.upper()}", *f.metadata["variables"]),
        f.metadata["parse"],
    )
    for f in fields(Settings)
    if f.metadata
)


_SERVICE_LINK = re.compile(r"SANITIZER_(?:.+_)?(?:SERVICE_(?:HOST|PORT)|PORT_[0-9]+_(?:TCP|UDP|SCTP))(?:_.+)?")
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://")
"""Variables that Kubernetes sets for each Service of the namespace: NAME_PORT is a URL, and there are others."""


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like options and are none, perhaps misspelled. Those of Kubernetes are left out."""
    known = {"SANITIZER_LOOKUP_KEY", "SANITIZER_CHECK_KEY", *(name for option in OPTIONS for name in option.variables)}
    return sorted(
        name
        for name, value in environ.items()
        if name.startswith("SANITIZER_")
        and name not in known
        and not _SERVICE_LINK.fullmatch(name)
        and not _SERVICE_URL.match(value)
    )


def load(flags: Mapping[str, str], environ: Mapping[str, str]) -> Settings:
    """Settings from ``flags`` (option name to text) and the environment; raises `SettingError`."""
    values: dict[str, Any] = {}
    for option in OPTIONS:
        sources = [(option.flag, flags.get(option.name)), *((name, environ.get(name)) for name in option.variables)]
        for source, text in sources:
            if text is None or (not text and source != option.flag):
                continue
            try:
                values[option.name] = option.parse(text)
            except ValueError as error:
                takes = str(error)
                if source.endswith("_PORT") and _SERVICE_URL.match(text):
                    service = source.removesuffix("_PORT").lower().replace("_", "-")
                    takes += f"; a Kubernetes Service named {service}? Set enableServiceLinks: false in the pod's spec"
                raise SettingError(source, text, takes) from None
            break
    if key := environ.get("SANITIZER_LOOKUP_KEY"):
        try:
            values["lookup_key"] = checked_key(key)
        except ValueError as error:
            raise SettingError("SANITIZER_LOOKUP_KEY", "***", f"takes {error}") from None
    settings = Settings(**values)
    if settings.upstream_ca and settings.upstream.scheme != "https":
        raise SettingError("--upstream-ca", settings.upstream_ca, "needs an https upstream (--upstream https://...)")
    if settings.ssl_keyfile and not settings.ssl_certfile:
        raise SettingError("--ssl-keyfile", settings.ssl_keyfile, "needs --ssl-certfile as well")
    if settings.ssl_certfile:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, "")
        except (ssl.SSLError, OSError):
            raise SettingError(
                "--ssl-certfile",
                settings.ssl_certfile,
                "takes a certificate chain in PEM; its unencrypted private key is in the same file or in --ssl-keyfile",
            ) from None
    return settings

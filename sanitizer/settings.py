"""The options: one frozen field each, with its default, its unit and what happens without it.

Every option is a flag (``--max-body``) and an environment variable (``SANITIZER_MAX_BODY``); flags win, and an
empty variable counts as not set. A bad value raises `SettingError`, which names the option and what it takes.

A new option is a field of `Settings`, with a parser of `sanitizer.parsers`, and a row of README's table, which
``tests/test_settings`` compares with it. `sanitizer.app.Gateway` hands its value to the part that uses it. What a
client connection uses is a member of `sanitizer.relay.client.Gateway` as well, and of ``Front`` in
``tests/support/front`` and ``tests/relay/test_second_send``.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from sanitizer import parsers
from sanitizer.address import Address, TrustedProxies, parse_address
from sanitizer.listeners import tls_context
from sanitizer.sanitize.gates import FIELDS
from sanitizer.sanitize.lookup_key import checked_key


class SettingError(ValueError):
    """An option has a value that it does not take."""

    def __init__(self, option: str, value: str, takes: str) -> None:
        super().__init__(f"{option} {value!r}: {takes}")


_Default = TypeVar("_Default")
_Parsed = TypeVar("_Parsed")


def _option(
    default: _Default, parse: Callable[[str], _Parsed], takes: str, help_: str, *variables: str
) -> _Default | _Parsed:
    """The field of one option. ``variables`` are read after its own ``SANITIZER_...`` variable."""
    made: _Default = field(
        default=default, metadata={"parse": parse, "takes": takes, "help": help_, "variables": variables}
    )
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All options, parsed. Times are seconds, sizes bytes; None means: no limit, or not set."""

    upstream: Address = _option(
        Address("http", "127.0.0.1", 4000),
        parse_address,
        "URL",
        "LiteLLM: http://host[:port], https://... or unix:/path",
    )
    host: str = _option("127.0.0.1", parsers.host, "HOST", "address to listen on")
    port: int = _option(4001, parsers.integer(0, 65535, "a port"), "PORT", "port to listen on; 0 takes a free one")
    uds: str | None = _option(None, str, "PATH", "listen on a unix socket instead")
    admin_host: str = _option(
        "127.0.0.1", parsers.host, "HOST", "address of the admin listener: /livez, /readyz, /metrics"
    )
    admin_port: int = _option(9464, parsers.integer(0, 65535, "a port"), "PORT", "its port; 0 turns it off")
    mode: Literal["enforce", "observe", "off"] = _option(
        "enforce",
        parsers.choice("enforce", "observe", "off"),
        "MODE",
        "enforce; observe: decide, count and log, forward untouched; off: intercept nothing",
    )
    fields: frozenset[str] = _option(
        FIELDS, parsers.fields, "NAMES", "comma list of the only fields that may be dropped"
    )
    root_path: tuple[str, ...] = _option(
        ("",),
        parsers.prefixes,
        "PATHS",
        "LiteLLM's path prefix(es), comma list; the bare path always counts too",
        "SERVER_ROOT_PATH",
    )
    workers: int = _option(1, parsers.integer(1, 256, "a number of processes"), "N", "worker processes")
    max_body: int = _option(1024**2, parsers.size, "SIZE", "largest body inspected; larger ones pass untouched")
    lookup_timeout: float = _option(5.0, parsers.seconds(), "SECONDS", "limit of each lookup of a stored key")
    lookup_key_file: str | None = _option(
        None,
        parsers.key_file,
        "FILE",
        "LiteLLM key for lookups, used when LiteLLM has refused an update because of a guarded field and the "
        "caller's own lookup with 403; SANITIZER_LOOKUP_KEY can hold the key itself",
    )
    lookup_key: str | None = field(default=None, repr=False)
    """The key itself, from the environment alone: command lines can be read by others. The file goes before it."""
    cache_ttl: float = _option(
        0.0,
        parsers.seconds(0, 10),
        "SECONDS",
        "how long a lookup may be reused, at most 10; a change made meanwhile can be missed",
    )
    connect_timeout: float = _option(5.0, parsers.seconds(), "SECONDS", "upstream connect")
    response_timeout: float | None = _option(None, parsers.seconds(), "SECONDS", "until upstream's response head")
    stall_timeout: float | None = _option(
        60.0,
        parsers.seconds_or_none,
        "SECONDS",
        "a client that stops sending its content or stops reading, and a LiteLLM that stops reading, is cut after "
        "this time, at most 1.25 times as long; 0: never",
    )
    upstream_keepalive: float = _option(
        4.0, parsers.seconds(0), "SECONDS", "idle upstream connections are dropped after this (uvicorn's own: 5)"
    )
    keepalive_timeout: float = _option(
        75.0, parsers.seconds(), "SECONDS", "idle client connections are closed after this"
    )
    max_connections: int | None = _option(
        None,
        parsers.integer(1, 1_000_000, "a number of connections"),
        "N",
        "upstream connections per worker; further requests wait up to the connect timeout, then 503",
    )
    trusted_proxies: TrustedProxies = _option(
        TrustedProxies(),
        parsers.trusted,
        "CIDRS",
        "peers whose X-Forwarded-*, Forwarded and X-Real-IP pass; comma list, or `unix`",
    )
    pass_host_header: bool = _option(
        True,
        parsers.switch,
        "BOOL",
        "true: Host is the client's; false: upstream's own, for an ingress that routes by name, and "
        "X-Forwarded-Host tells the client's",
    )
    upstream_ca: str | None = _option(
        None, parsers.ca, "FILE", "CA bundle for an https upstream, instead of the system's"
    )
    ssl_certfile: str | None = _option(None, parsers.file, "FILE", "TLS on the public listener: certificate chain, PEM")
    ssl_keyfile: str | None = _option(
        None, parsers.file, "FILE", "its private key; without it, taken from the certificate's file"
    )
    shutdown_grace: float = _option(
        30.0, parsers.seconds(0), "SECONDS", "from SIGTERM until requests still in flight are aborted"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "info",
        parsers.choice("debug", "info", "warning", "error"),
        "LEVEL",
        "what is logged: debug, info, warning or error",
    )
    log_format: Literal["auto", "text", "json"] = _option(
        "auto", parsers.choice("auto", "text", "json"), "FORMAT", "text, json, or auto: text on a terminal, else JSON"
    )
    access_log: bool = _option(False, parsers.switch, "", "one line per request, without its query")

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
    known = {name for option in OPTIONS for name in option.variables}
    known |= {"SANITIZER_LOOKUP_KEY", "SANITIZER_CHECK_KEY", "SANITIZER_PURE"}
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
    if pure := environ.get("SANITIZER_PURE"):  # acted on when the package is loaded
        try:
            parsers.switch(pure)
        except ValueError as error:
            raise SettingError("SANITIZER_PURE", pure, str(error)) from None
    settings = Settings(**values)
    if settings.upstream_ca and settings.upstream.scheme != "https":
        raise SettingError("--upstream-ca", settings.upstream_ca, "needs an https upstream (--upstream https://...)")
    if settings.ssl_keyfile and not settings.ssl_certfile:
        raise SettingError("--ssl-keyfile", settings.ssl_keyfile, "needs --ssl-certfile as well")
    if settings.ssl_certfile:
        try:
            tls_context(settings.ssl_certfile, settings.ssl_keyfile)
        except OSError:
            raise SettingError(
                "--ssl-certfile",
                settings.ssl_certfile,
                "takes a certificate chain in PEM; its unencrypted private key is in the same file or in --ssl-keyfile",
            ) from None
    return settings

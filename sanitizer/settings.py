"""The options: each is one frozen field, with its default, its unit and the meaning of its absence.

Every option is a flag (``--max-body``) and an environment variable (``SANITIZER_MAX_BODY``). A flag takes precedence,
and an empty variable counts as not set. A bad value raises `SettingError`, which names the option and what it takes.

To add an option, add a field to `Settings`, beside the others of its group, with a parser from `sanitizer.parsers`, and
a row to the table in the operator's guide, which ``tests/test_documents`` compares with the code.
`sanitizer.app.Gateway` passes the value to the part that uses it. A value that a client connection uses is also a
member of `sanitizer.relay.client.Gateway`, and of ``FakeGateway`` in ``tests/support/fake_gateway``.
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
    """An option has a value that it does not take. ``problem`` says what it takes or what else it needs."""

    def __init__(self, option: str, value: str, problem: str) -> None:
        super().__init__(f"{option} {value!r}: {problem}")


_Default = TypeVar("_Default")
_Parsed = TypeVar("_Parsed")


def _option(
    group: str, default: _Default, parse: Callable[[str], _Parsed], metavar: str, help_: str, *variables: str
) -> _Default | _Parsed:
    """The field of one option. ``variables`` are read after its own ``SANITIZER_...`` variable."""
    made: _Default = field(
        default=default,
        metadata={"group": group, "parse": parse, "metavar": metavar, "help": help_, "variables": variables},
    )
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All options, parsed. Times are in seconds and sizes in bytes. None means that there is no limit, or no value.

    The fields of one group stand together: `--help` shows them in this order.
    """

    upstream: Address = _option(
        "upstream",
        Address("http", "127.0.0.1", 4000),
        parse_address,
        "URL",
        "LiteLLM's address: http://HOST[:PORT], https://HOST[:PORT] or unix:/PATH",
    )
    root_path: tuple[str, ...] = _option(
        "upstream",
        ("",),
        parsers.prefixes,
        "PATHS",
        "LiteLLM's path prefix, or a comma-separated list of prefixes; requests without a prefix are repaired as well",
        "SERVER_ROOT_PATH",
    )

    host: str = _option(
        "listeners", "127.0.0.1", parsers.host, "HOST", "address or name to listen on; 0.0.0.0 is every IPv4 address"
    )
    port: int = _option(
        "listeners", 4001, parsers.integer(0, 65535, "a port"), "PORT", "port to listen on; 0 selects a free port"
    )
    uds: str | None = _option(
        "listeners", None, str, "PATH", "Unix socket to listen on, in place of the host and the port"
    )
    admin_host: str = _option(
        "listeners",
        "127.0.0.1",
        parsers.host,
        "HOST",
        "address or name of the admin listener, which serves /livez, /readyz and /metrics",
    )
    admin_port: int = _option(
        "listeners",
        9464,
        parsers.integer(0, 65535, "a port"),
        "PORT",
        "port of the admin listener; 0 turns this listener off, and the probes of LiteLLM with it",
    )

    mode: Literal["enforce", "observe", "off"] = _option(
        "what is repaired",
        "enforce",
        parsers.choice("enforce", "observe", "off"),
        "MODE",
        "enforce repairs requests; observe decides, counts and logs, and forwards every request untouched; off "
        "relays everything without inspecting it",
    )
    fields: frozenset[str] = _option(
        "what is repaired",
        FIELDS,
        parsers.fields,
        "NAMES",
        "comma-separated list of the fields that may be dropped; every other field is forwarded as it was sent",
    )
    max_body: int = _option(
        "what is repaired",
        1024**2,
        parsers.size,
        "SIZE",
        "size of the largest body that is inspected, in bytes or with the unit KiB or MiB; a larger body is forwarded "
        "untouched",
    )
    lookup_timeout: float = _option(
        "what is repaired", 5.0, parsers.seconds(), "SECONDS", "limit for each lookup of a key's stored values"
    )
    lookup_key_file: str | None = _option(
        "what is repaired",
        None,
        parsers.key_file,
        "FILE",
        "file with a LiteLLM key for lookups. It is used only after LiteLLM has refused an update because of a guarded "
        "field, and the caller's own lookup with 403. The variable SANITIZER_LOOKUP_KEY can hold the key itself",
    )
    lookup_key: str | None = field(default=None, repr=False)
    """The lookup key itself. It is read from the environment only, because other users can read command lines.
    ``lookup_key_file`` takes precedence."""
    cache_ttl: float = _option(
        "what is repaired",
        0.0,
        parsers.seconds(0, 10),
        "SECONDS",
        "time for which the result of a lookup is reused, at most 10; a change that does not pass through the worker "
        "is not seen for that long. 0 turns the cache off",
    )

    trusted_proxies: TrustedProxies = _option(
        "forwarding",
        TrustedProxies(),
        parsers.trusted,
        "CIDRS",
        "comma-separated list of networks, or `unix`: peers whose X-Forwarded-*, Forwarded and X-Real-IP are "
        "forwarded. Those of other peers are replaced",
    )
    pass_host_header: bool = _option(
        "forwarding",
        True,
        parsers.switch,
        "BOOL",
        "true forwards the client's Host; false sends the host of --upstream, for an ingress that routes by name, and "
        "the client's Host in X-Forwarded-Host",
    )

    connect_timeout: float = _option(
        "limits",
        5.0,
        parsers.seconds(),
        "SECONDS",
        "limit for one connection to LiteLLM, TLS handshake included",
    )
    response_timeout: float | None = _option(
        "limits",
        None,
        parsers.seconds(),
        "SECONDS",
        "limit from the last byte of a request to LiteLLM's response head; without it there is no limit",
    )
    stall_timeout: float | None = _option(
        "limits",
        60.0,
        parsers.seconds_or_none,
        "SECONDS",
        "limit for a client that stops sending its content or stops reading, and for a LiteLLM that stops reading; it "
        "takes effect after 1 to 1.25 times this time. 0 means no limit",
    )
    upstream_keepalive: float = _option(
        "limits",
        4.0,
        parsers.seconds(0),
        "SECONDS",
        "time after which an idle connection to LiteLLM is closed; keep it below LiteLLM's own limit (uvicorn: 5). 0 "
        "makes a new connection for each request",
    )
    keepalive_timeout: float = _option(
        "limits",
        75.0,
        parsers.seconds(),
        "SECONDS",
        "time after which an idle client connection is closed; keep it above the load balancer's limit",
    )
    max_connections: int | None = _option(
        "limits",
        None,
        parsers.integer(1, 1_000_000, "a number of connections"),
        "N",
        "largest number of connections to LiteLLM per worker; a further request waits for one for the connect timeout, "
        "then gets 503. Without it there is no limit",
    )

    ssl_certfile: str | None = _option(
        "TLS",
        None,
        parsers.file,
        "FILE",
        "certificate chain for the public listener, in PEM; without it the listener speaks plain HTTP",
    )
    ssl_keyfile: str | None = _option(
        "TLS",
        None,
        parsers.file,
        "FILE",
        "private key of the certificate, in PEM, not encrypted; without it the key is read from the certificate's file",
    )
    upstream_ca: str | None = _option(
        "TLS",
        None,
        parsers.ca,
        "FILE",
        "CA certificates that verify an https upstream, in PEM; without it the system's are used",
    )

    workers: int = _option(
        "processes", 1, parsers.integer(1, 256, "a number of processes"), "N", "number of worker processes"
    )
    shutdown_grace: float = _option(
        "processes",
        30.0,
        parsers.seconds(0),
        "SECONDS",
        "time from SIGTERM until requests in flight are aborted; 0 aborts them at once",
    )

    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "logs",
        "info",
        parsers.choice("debug", "info", "warning", "error"),
        "LEVEL",
        "lowest level that is logged: debug, info, warning or error",
    )
    log_format: Literal["auto", "text", "json"] = _option(
        "logs",
        "auto",
        parsers.choice("auto", "text", "json"),
        "FORMAT",
        "text, json or auto; auto is text on a terminal and JSON elsewhere",
    )
    access_log: bool = _option(
        "logs",
        False,
        parsers.switch,
        "",
        "log one line per request, without the query; the flag takes no value, its variable takes true or false",
    )

    def upstream_tls(self) -> ssl.SSLContext | None:
        """The TLS context for an https upstream, or None. It verifies the certificate and the host name."""
        if self.upstream.scheme != "https":
            return None
        context = ssl.create_default_context(cafile=self.upstream_ca)
        context.set_alpn_protocols(["http/1.1"])
        return context


@dataclass(frozen=True, slots=True)
class Option:
    """One option, as the command line and the environment present it.

    ``variables`` are its environment variables, in the order in which they are read. ``metavar`` is empty for a switch,
    whose flag takes no value. ``parse`` raises `ValueError`, which says what the option takes.
    """

    name: str
    group: str
    default: Any
    metavar: str
    help: str
    variables: tuple[str, ...]
    parse: Callable[[str], Any]

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


OPTIONS: tuple[Option, ...] = tuple(
    Option(
        f.name,
        f.metadata["group"],
        f.default,
        f.metadata["metavar"],
        f.metadata["help"],
        (f"SANITIZER_{f.name.upper()}", *f.metadata["variables"]),
        f.metadata["parse"],
    )
    for f in fields(Settings)
    if f.metadata
)


_SERVICE_LINK = re.compile(r"SANITIZER_(?:.+_)?(?:SERVICE_(?:HOST|PORT)|PORT_[0-9]+_(?:TCP|UDP|SCTP))(?:_.+)?")
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://")
"""Kubernetes sets variables for each Service of the namespace: NAME_PORT, whose value is a URL, and several others."""


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Names in ``environ`` that begin with ``SANITIZER_`` but belong to no option, sorted: they may be misspelled.

    The variables that Kubernetes sets for a Service are left out.
    """
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
    """Settings from ``flags``, which maps an option's name to its text, and from the environment.

    Raises `SettingError`.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        sources = [(option.flag, flags.get(option.name)), *((name, environ.get(name)) for name in option.variables)]
        for source, text in sources:
            if text is None or (not text and source != option.flag):
                continue
            try:
                values[option.name] = option.parse(text)
            except ValueError as error:
                problem = str(error)
                if source.endswith("_PORT") and _SERVICE_URL.match(text):
                    service = source.removesuffix("_PORT").lower().replace("_", "-")
                    problem += (
                        f"; a Kubernetes Service named {service}? Set enableServiceLinks: false in the pod's spec"
                    )
                raise SettingError(source, text, problem) from None
            break
    if key := environ.get("SANITIZER_LOOKUP_KEY"):
        try:
            values["lookup_key"] = checked_key(key)
        except ValueError as error:
            raise SettingError("SANITIZER_LOOKUP_KEY", "***", f"takes {error}") from None
    if pure := environ.get("SANITIZER_PURE"):  # sanitizer/__init__.py acts on it
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

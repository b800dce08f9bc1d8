"""Every option: its flag, its variable, and the values that it accepts and refuses."""

import contextlib
import ssl
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme

from sanitizer.address import TrustedProxies
from sanitizer.sanitize.gates import FIELDS
from sanitizer.settings import OPTIONS, SettingError, Settings, load, unknown_variables


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(
            ("upstream", text)
            for text in (
                "ftp://x",
                "a:4000",
                "http://",
                "http://a/b",
                "http://u@a",
                "http://a?b",
                "http://a#b",
                "http://a:0",
                "http://a:99999",
                "http://a:x",
                "http://\u00e4",
                "http://a b",
                "http://a..b",
                "http://" + "a" * 64,
                "unix:a",
                "",
            )
        ),
        *(
            (name, text)
            for name in ("host", "admin_host")
            for text in ("[]", "[::1", "::1]", "[a]", "[127.0.0.1]", "[::1]:80")
        ),
        *(("port", text) for text in ("65536", "-1", "x", "", "1.5", "\u0661")),
        *(("mode", text) for text in ("on", "")),
        *(("fields", text) for text in ("models", "", ",")),
        *(("root_path", text) for text in ("/a?b", "/a//b", "/a b", "/%61")),
        *(("workers", text) for text in ("0", "257")),
        *(("max_body", text) for text in ("1GiB", "-1", "1 MiB", "65MiB")),
        *(("lookup_timeout", text) for text in ("0", "-1", "nan", "inf", "x")),
        *(("cache_ttl", text) for text in ("11", "10.1", "-0.1")),
        *(("stall_timeout", text) for text in ("0.09", "86401", "-1")),
        ("response_timeout", "86400.5"),
        *(("max_connections", text) for text in ("0", "1000001")),
        *(("trusted_proxies", text) for text in ("10.0.0.1/8", "all", "10.0.0.0/33")),
        *((name, "/nonexistent") for name in ("upstream_ca", "ssl_certfile", "ssl_keyfile")),
        *(("lookup_key_file", text) for text in ("/nonexistent", "/", "/dev/null", "")),
        ("log_level", "loud"),
        ("log_format", "xml"),
        *(("admin_port", text) for text in ("65536", "x")),
        *(("access_log", text) for text in ("2", "maybe", "")),
    ],
)
def test_refused(option: str, text: str) -> None:
    """The error for a bad value names the option and the values that it takes."""
    flag = "--" + option.replace("_", "-")
    with pytest.raises(SettingError, match=rf"^{flag} .*: takes "):
        load({option: text}, {})


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        *(("port", text, int(text)) for text in ("0", "65535")),
        *(("workers", text, int(text)) for text in ("1", "256")),
        *(("max_connections", text, int(text)) for text in ("1", "1000000")),
        *(("max_body", "2" + unit, 2) for unit in ("", "B", "b")),
        *(("max_body", "2" + unit, 2048) for unit in ("K", "KiB", "kib")),
        *(("max_body", "64" + unit, 67_108_864) for unit in ("M", "MiB")),
        ("response_timeout", "86400", 86400.0),
        ("response_timeout", "0.001s", 0.001),
        *((name, "0", 0.0) for name in ("cache_ttl", "shutdown_grace", "upstream_keepalive")),
        ("cache_ttl", "10", 10.0),
        ("stall_timeout", "0", None),
        ("stall_timeout", "0.1", 0.1),
        ("fields", " spend , permissions,", {"spend", "permissions"}),
        ("fields", ",".join(sorted(FIELDS)), FIELDS),
        ("trusted_proxies", "unix,10.0.0.0/8", TrustedProxies((ip_network("10.0.0.0/8"),), unix=True)),
        *(("access_log", text, True) for text in ("1", "true", "YES", "on")),
        *(("pass_host_header", text, False) for text in ("0", "FALSE", "no", "off")),
    ],
)
def test_taken(option: str, text: str, value: object) -> None:
    """An option accepts its smallest and its largest value, and each notation."""
    assert getattr(load({option: text}, {}), option) == value


@pytest.mark.parametrize("option", ["host", "admin_host"])
@pytest.mark.parametrize(
    ("text", "host"), [("[::1]", "::1"), ("::1", "::1"), ("[::]", "::"), ("localhost", "localhost")]
)
def test_brackets(option: str, text: str, host: str) -> None:
    """An IPv6 address to listen on may stand in brackets, as in a URL."""
    assert getattr(load({option: text}, {}), option) == host


def test_choices() -> None:
    """The error for an unknown choice names all choices."""
    with pytest.raises(SettingError, match=r"takes enforce, observe or off$"):
        load({"mode": "x"}, {})


def test_not_a_certificate(tmp_path: Path) -> None:
    """A file that is readable but contains no certificate is refused before anything listens."""
    file = tmp_path / "file"
    file.write_text("no certificate")
    for option in ("upstream_ca", "ssl_certfile"):
        with pytest.raises(SettingError, match="PEM"):
            load({option: str(file)}, {})
    with pytest.raises(SettingError, match="--ssl-certfile as well"):
        load({"ssl_keyfile": str(file)}, {})


def test_lookup_key(tmp_path: Path) -> None:
    """The lookup key is read from a file or a variable, never from a flag. No text and no error contains it."""
    file = tmp_path / "key"
    file.write_text("sk-1\n")
    settings = load({}, {"SANITIZER_LOOKUP_KEY_FILE": str(file), "SANITIZER_LOOKUP_KEY": " sk-2\n"})
    assert (settings.lookup_key_file, settings.lookup_key) == (str(file), "sk-2")
    assert "sk-" not in repr(settings)
    assert "--lookup-key" not in {option.flag for option in OPTIONS}
    assert load({}, {"SANITIZER_LOOKUP_KEY": ""}).lookup_key is None
    with pytest.raises(SettingError, match=r"^SANITIZER_LOOKUP_KEY .*: takes one key") as refused:
        load({}, {"SANITIZER_LOOKUP_KEY": "sk-1 sk-2"})
    assert "sk-" not in str(refused.value)
    file.write_text("sk-1 sk-2")
    with pytest.raises(SettingError, match=r"^--lookup-key-file .*: takes a file with one key") as refused:
        load({"lookup_key_file": str(file)}, {})
    assert "sk-" not in str(refused.value)


def test_form() -> None:
    """``SANITIZER_PURE`` is not an unknown variable, and it takes only true or false."""
    assert "SANITIZER_PURE" not in unknown_variables({"SANITIZER_PURE": "true"})
    for value in ("", "0", "1", "true", "False"):
        load({}, {"SANITIZER_PURE": value})
    with pytest.raises(SettingError, match=r"^SANITIZER_PURE 'source': takes true or false$"):
        load({}, {"SANITIZER_PURE": "source"})


def test_upstream_tls(tmp_path: Path) -> None:
    """HTTP/1.1 is negotiated with an https upstream that prefers HTTP/2. Its certificate and its name are verified."""
    assert load({"upstream": "http://a"}, {}).upstream_tls() is None
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert("a.test").configure_cert(server)
    client = load({"upstream": "https://a.test", "upstream_ca": str(tmp_path / "ca.pem")}, {}).upstream_tls()
    assert client is not None
    assert handshake(client, server, "a.test") == "http/1.1"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(client, server, "b.test")
    strict = load({"upstream": "https://a.test"}, {}).upstream_tls()
    assert strict is not None
    with pytest.raises(ssl.SSLCertVerificationError, match="issuer"):
        handshake(strict, server, "a.test")


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> str | None:
    """Shake hands in memory. Returns the protocol that the server has chosen."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname=name)
    theirs = server.wrap_bio(up, down, server_side=True)
    for side in (ours, theirs, ours, theirs):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return ours.selected_alpn_protocol()


def test_flags_win() -> None:
    """A flag takes precedence over its variable. An empty variable is not set. An error names the variable."""
    assert load({"port": "1"}, {"SANITIZER_PORT": "2"}).port == 1
    assert load({}, {"SANITIZER_PORT": "2"}).port == 2
    assert load({}, {"SANITIZER_PORT": ""}).port == 4001
    with pytest.raises(SettingError, match=r"^SANITIZER_PORT 'x'"):
        load({}, {"SANITIZER_PORT": "x"})


@pytest.mark.parametrize(
    ("environment", "prefixes"),
    [
        pytest.param({}, ("",), id="none"),
        pytest.param({"SERVER_ROOT_PATH": "/p"}, ("", "/p"), id="litellm's"),
        pytest.param({"SERVER_ROOT_PATH": "/p", "SANITIZER_ROOT_PATH": "q/, /r/s"}, ("", "/q", "/r/s"), id="ours-wins"),
        pytest.param({"SERVER_ROOT_PATH": "/"}, ("",), id="root"),
    ],
)
def test_root_path(environment: dict[str, str], prefixes: tuple[str, ...]) -> None:
    """The path without a prefix is always included. LiteLLM's own variable is read if the option is not set."""
    assert load({}, environment).root_path == prefixes


def test_values() -> None:
    """Values with units are converted to numbers, and lists are split."""
    settings = load(
        {
            "max_body": "2KiB",
            "lookup_timeout": "0.5s",
            "trusted_proxies": "10.0.0.0/8, unix",
            "fields": "allowed_routes",
        },
        {},
    )
    assert (settings.max_body, settings.lookup_timeout, settings.fields) == (2048, 0.5, frozenset({"allowed_routes"}))
    assert settings.trusted_proxies.trusts("10.1.2.3")
    assert settings.trusted_proxies.trusts(None)
    assert not settings.trusted_proxies.trusts("11.1.2.3")
    assert not settings.trusted_proxies.trusts("testclient")


def test_defaults() -> None:
    """Without flags and variables, every option has its default."""
    assert load({}, {}) == Settings()
    assert Settings().fields == FIELDS
    assert len({option.flag for option in OPTIONS}) == len(OPTIONS)


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("true", True), ("on", True), ("0", False), ("False", False), ("", False)]
)
def test_switch(text: str, value: bool) -> None:
    """A switch is a flag without a value. Its variable takes several words for true and false; empty means not set."""
    assert load({}, {"SANITIZER_ACCESS_LOG": text}).access_log is value
    assert load({"access_log": "true"}, {"SANITIZER_ACCESS_LOG": text}).access_log is True


def test_unknown_variables() -> None:
    """Misspelled variables are reported. Otherwise a gateway that should only observe might enforce."""
    names = [
        "PATH",
        "SANITIZER_MOED",
        "SANITIZER_MODE",
        "SANITIZER_ADMN_PORT",
        "SANITIZER_LOOKUP_KEY",
        "SANITIZER_CHECK_KEY",
        "SERVER_ROOT_PATH",
    ]
    assert unknown_variables(dict.fromkeys(names, "1")) == ["SANITIZER_ADMN_PORT", "SANITIZER_MOED"]


def service_links(name: str, port: int) -> dict[str, str]:
    """The variables that Kubernetes sets for a Service with one port, which is named http."""
    link = f"tcp://10.0.0.1:{port}"
    return {
        f"{name}_SERVICE_HOST": "10.0.0.1",
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP": str(port),
        f"{name}_PORT": link,
        f"{name}_PORT_{port}_TCP": link,
        f"{name}_PORT_{port}_TCP_PROTO": "tcp",
        f"{name}_PORT_{port}_TCP_PORT": str(port),
        f"{name}_PORT_{port}_TCP_ADDR": "10.0.0.1",
    }


@pytest.mark.parametrize(
    ("variables", "service", "port", "flag"),
    [("SANITIZER", "sanitizer", 4001, "port"), ("SANITIZER_ADMIN", "sanitizer-admin", 9464, "admin_port")],
)
def test_service_links(variables: str, service: str, port: int, flag: str) -> None:
    """The variables of a Service named like an option cause an error that explains them, and no warning."""
    environment = service_links(variables, port)
    words = f"named {service}\\? Set enableServiceLinks: false"
    with pytest.raises(SettingError, match=rf"^{variables}_PORT 'tcp://10.0.0.1:{port}': takes a port, .*{words}"):
        load({}, environment)
    assert load({flag: "1"}, environment) == load({flag: "1"}, {})
    assert unknown_variables({**environment, **service_links("SANITIZER_LITELLM", 4000)}) == []
    with pytest.raises(SettingError) as refused:
        load({}, {f"{variables}_PORT": "x"})
    assert "Kubernetes" not in str(refused.value)


@pytest.mark.parametrize("upstream", ["http://a", "unix:/run/a.sock"])
def test_ca_without_tls(upstream: str, tmp_path: Path) -> None:
    """A CA without an https upstream is refused, because whoever sets one expects TLS."""
    file = tmp_path / "ca"
    trustme.CA().cert_pem.write_to_path(str(file))
    with pytest.raises(SettingError, match=r"^--upstream-ca .*: needs an https upstream"):
        load({"upstream": upstream, "upstream_ca": str(file)}, {})
    with pytest.raises(SettingError, match=r"^--upstream-ca .*: needs an https upstream"):
        load({}, {"SANITIZER_UPSTREAM": upstream, "SANITIZER_UPSTREAM_CA": str(file)})
    assert load({"upstream": "https://a", "upstream_ca": str(file)}, {}).upstream_ca == str(file)

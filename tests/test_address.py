"""The address of upstream, and the peers that are trusted."""

import pytest

from sanitizer.address import Address, parse_address, parse_trusted_proxies, plain_ip


@pytest.mark.parametrize(
    ("text", "address"),
    [
        pytest.param("http://a", Address("http", "a", 80), id="default-port"),
        pytest.param("https://a", Address("https", "a", 443), id="https"),
        pytest.param("http://[::1]:4000", Address("http", "::1", 4000), id="ipv6"),
        pytest.param("http://a:1/", Address("http", "a", 1), id="slash"),
        pytest.param("unix:/run/a.sock", Address("http", "localhost", 80, "/run/a.sock"), id="unix"),
    ],
)
def test_upstream(text: str, address: Address) -> None:
    """An upstream is an http URL, an https URL or a Unix socket."""
    assert parse_address(text) == address


def test_authority() -> None:
    """An address is shown as a URL: without the default port of its scheme, and with an IPv6 host in brackets."""
    assert [str(Address(s, h, p)) for s, h, p in (("http", "a", 80), ("https", "a", 80), ("http", "::1", 1))] == [
        "http://a",
        "https://a:80",
        "http://[::1]:1",
    ]


def test_unix() -> None:
    """A Unix socket is shown as ``unix:`` and its path, in whichever form it was given."""
    assert [str(parse_address(text)) for text in ("unix:/run/a", "unix:///run/a")] == ["unix:/run/a"] * 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fd00::1", "fd00::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_plain_ip(text: str, address: str) -> None:
    """An IPv4-mapped address becomes the IPv4 address, and the zone of an IPv6 address is removed."""
    assert str(plain_ip(text)) == address


@pytest.mark.parametrize(
    ("names", "trusted", "strangers"),
    [
        pytest.param([], [], ["192.0.2.1", "testclient", None], id="none"),
        pytest.param(["unix"], [None], ["192.0.2.1", "testclient"], id="unix"),
        pytest.param(["192.0.2.0/31"], ["192.0.2.0", "192.0.2.1"], ["192.0.2.2", None, "testclient"], id="a network"),
        pytest.param(["fd00::1", "192.0.2.1"], ["fd00::1", "192.0.2.1"], ["fd00::2", "192.0.2.2"], id="two addresses"),
    ],
)
def test_trusted(names: list[str], trusted: list[str | None], strangers: list[str | None]) -> None:
    """A peer is trusted if its address is in a listed network, or if it has no address and ``unix`` is listed."""
    proxies = parse_trusted_proxies(names)
    assert all(map(proxies.trusts, trusted))
    assert not any(map(proxies.trusts, strangers))


@pytest.mark.parametrize(
    ("name", "said"), [("192.0.2.1/24", "that of 192.0.2.1/24 is 192.0.2.0/24"), ("a", "comma list of CIDRs")]
)
def test_untrusted_words(name: str, said: str) -> None:
    """A name that is not a network is refused, and so is a network with host bits. Both errors say what is accepted."""
    with pytest.raises(ValueError, match=f"^takes .*{said}"):
        parse_trusted_proxies([name])

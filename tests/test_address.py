"""Where upstream listens, and which peers are trusted."""

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
    """An upstream is http, https or a unix socket."""
    assert parse_address(text) == address


def test_authority() -> None:
    """The authority is what a Host field holds."""
    assert [str(Address(s, h, p)) for s, h, p in (("http", "a", 80), ("https", "a", 80), ("http", "::1", 1))] == [
        "http://a",
        "https://a:80",
        "http://[::1]:1",
    ]


def test_unix() -> None:
    """A unix socket is shown by its path, however it was written."""
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
    """An IPv4-mapped address is the IPv4 one, and a zone is no part of an address."""
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
    """A peer is trusted if its address is in one of the networks, or it has none and unix sockets are named."""
    proxies = parse_trusted_proxies(names)
    assert all(map(proxies.trusts, trusted))
    assert not any(map(proxies.trusts, strangers))


@pytest.mark.parametrize(
    ("name", "said"), [("192.0.2.1/24", "that of 192.0.2.1/24 is 192.0.2.0/24"), ("a", "comma list of CIDRs")]
)
def test_untrusted_words(name: str, said: str) -> None:
    """What is no network is refused, and so is an address with a mask: both say what is taken."""
    with pytest.raises(ValueError, match=f"^takes .*{said}"):
        parse_trusted_proxies([name])

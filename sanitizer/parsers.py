"""Parsers for the values of options: each function converts text to a value, or returns a function that does.

They raise `ValueError` with a message that says which values the option takes.
"""

import contextlib
import ipaddress
import math
import re
import ssl
from collections.abc import Callable
from typing import TypeVar

from sanitizer.address import TrustedProxies, parse_trusted_proxies
from sanitizer.sanitize.gates import FIELDS
from sanitizer.sanitize.lookup_key import read_key

_Text = TypeVar("_Text", bound=str)


def integer(low: int, high: int, description: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"takes {description}, {low} to {high}")
        return int(text)

    return parse


def seconds(low: float = 0.001, high: float = 86_400) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text.removesuffix("s"))
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"takes seconds, {low:g} to {high:g}")
        return value

    return parse


def seconds_or_none(text: str) -> float | None:
    return None if seconds(0)(text) == 0 else seconds(0.1)(text)


def size(text: str) -> int:
    units = {"": 1, "B": 1, "KIB": 1024, "MIB": 1024**2, "K": 1024, "M": 1024**2}
    match = re.fullmatch(r"([0-9]{1,9})([a-zA-Z]*)", text)
    if match is None or match[2].upper() not in units or int(match[1]) * units[match[2].upper()] > 64 * 1024**2:
        raise ValueError("takes a size such as 65536, 512KiB or 1MiB, at most 64MiB")
    return int(match[1]) * units[match[2].upper()]


def choice(*choices: _Text) -> Callable[[str], _Text]:
    def parse(text: str) -> _Text:
        for value in choices:
            if text == value:
                return value
        raise ValueError(f"takes {', '.join(choices[:-1])} or {choices[-1]}")

    return parse


def switch(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in values:
        raise ValueError("takes true or false")
    return values[text.lower()]


def names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def fields(text: str) -> frozenset[str]:
    found = frozenset(names(text))
    if not found or not found <= FIELDS:
        raise ValueError(f"takes a comma list out of: {', '.join(sorted(FIELDS))}")
    return found


def prefixes(text: str) -> tuple[str, ...]:
    found = [""]
    for name in names(text):
        prefix = "/" + name.strip("/")
        if re.search(r"[\x00-\x20?#%\x7f]|//", prefix):
            raise ValueError("takes a comma list of path prefixes such as /litellm")
        if prefix != "/":
            found.append(prefix)
    return tuple(dict.fromkeys(found))


def host(text: str) -> str:
    """Parse a name or an address to listen on. An IPv6 address may be in brackets, as in a URL."""
    match = re.fullmatch(r"\[(.*)]|([^][]*)", text)
    with contextlib.suppress(ValueError):
        if match is not None:
            return match[2] if match[1] is None else str(ipaddress.IPv6Address(match[1]))
    raise ValueError("takes a host name or an IP address, such as 0.0.0.0, :: or [::1]")


def trusted(text: str) -> TrustedProxies:
    return parse_trusted_proxies(names(text))


def file(text: str) -> str:
    try:
        with open(text, "rb"):
            return text
    except OSError as error:
        raise ValueError(f"takes a readable file ({error.strerror})") from None


def key_file(text: str) -> str:
    try:
        read_key(text)
    except OSError as error:
        raise ValueError(f"takes a readable file ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"takes a file with {error}") from None
    return text


def ca(text: str) -> str:
    file(text)
    try:
        ssl.create_default_context(cafile=text)
    except ssl.SSLError:
        raise ValueError("takes a file of CA certificates in PEM") from None
    return text

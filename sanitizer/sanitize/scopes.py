"""ASGI scopes: their header as octets, and copies of them."""

import re
from collections.abc import Iterable
from typing import Final

from starlette.types import Scope

_NAME: Final = re.compile(rb"[^:\r\n]+")
_VALUE: Final = re.compile(rb"[^\r\n]*")


def encode_header(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """A message head in octets: an empty start line and the field lines. Returns None if a field is malformed."""
    lines = [b"\r\n"]
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            return None
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


def copy_scope(scope: Scope) -> Scope:
    """A copy of a scope that an app may change. The app may be called again with another copy."""
    copied = {**scope, "headers": list(scope["headers"])}
    if "state" in scope:
        copied["state"] = scope["state"].copy()
    return copied

"""The requests that look a key up in LiteLLM, and how their responses are read."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import quote

from sanitizer.sanitize.jsonedit import Json, NotInspectable, loads, may_exceed
from sanitizer.sanitize.judges import Row

MAX_RESPONSE: Final = 1024 * 1024
"""The most bytes of a response's content that are read. A key's row takes a few thousand."""
MAX_RESPONSE_VALUES: Final = 50_000
"""The most JSON values of a response that is parsed. A key with a budget for each of a thousand models has several
thousand. Parsing the 500,000 that fit into `MAX_RESPONSE` would block the event loop for a fifth of a second; 50,000
take a tenth of that."""

_OMITTED: Final = re.compile(
    rb"\r\n(?:content-[^:]*|if-[^:]*|accept-encoding|expect|range|transfer-encoding):[^\r]*", re.IGNORECASE
)
_FORWARDING: Final = re.compile(rb"\r\n(?:via|x-forwarded-(?:for|proto)):[^\r]*", re.IGNORECASE)
_IDENTITY: Final = b"\r\nAccept-Encoding: identity"
_HASH: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Stored:
    """The stored state of a key."""

    info: Row
    """The key's columns, as ``GET /key/info`` shows them in the member of this name."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """There is no usable stored state of the key."""

    reason: str
    """A stable token for logs and the response field."""
    refused: bool = False
    """Whether LiteLLM answered the caller's own lookup with 403."""


def token_of(key: str) -> str:
    """The name under which LiteLLM stores ``key``: its SHA-256 in hex if it starts with ``sk-``, else the key."""
    return hashlib.sha256(key.encode()).hexdigest() if key.startswith("sk-") else key


def key_hash(key: str) -> str:
    """The first 8 hex digits of the key's SHA-256. They distinguish keys in a log and do not reveal them."""
    token = token_of(key)
    return (token if _HASH.fullmatch(token) else hashlib.sha256(key.encode()).hexdigest())[:8]


def caller_header(head: bytes) -> bytes:
    """The field lines of a lookup that is made as the caller.

    ``head`` is the request's head in octets. Its field lines are kept in their order, duplicates included, because any
    of them may authenticate the caller (a configured key header, custom authentication). Only those that describe the
    content, or that could make the response partial, conditional or compressed, are omitted.
    """
    return _OMITTED.sub(b"", head[head.index(b"\r\n") :].rstrip(b"\r\n")) + _IDENTITY


def lookup_key_header(head: bytes, key: str, host: bytes) -> bytes:
    """The field lines of a lookup that is made with the gateway's own credential, ``key``.

    Of the request's field lines, only those that say where it comes from are kept. Any other could authenticate the
    caller, and some take precedence over Authorization. The caller must not choose the virtual host that gets the key
    either: Host is ``host``, and no other field names one. (If ``litellm_key_header_name`` is set, LiteLLM up to
    1.105.0, but not 1.109.1, takes no key from Authorization. The credential cannot be used there.)
    """
    forwarding = b"".join(_FORWARDING.findall(head))
    return b"\r\nHost: " + host + forwarding + b"\r\nAuthorization: Bearer " + key.encode() + _IDENTITY


@dataclass(frozen=True, slots=True)
class Query:
    """A request that looks a key up."""

    request_target: bytes
    read_object: Callable[[dict[str, Json]], Stored | Unknown]
    """Reads the JSON object in the response."""
    header: bytes = b""
    """Field lines to add to those of the lookup."""
    content: bytes | None = None
    """The content of a POST, or None for a GET."""

    def read(self, content: bytes) -> Stored | Unknown:
        """Read the content of a 200 response.

        The reason of an `Unknown` is ``lookup_size``, ``lookup_shape`` or ``key_deleted``.
        """
        if len(content) > MAX_RESPONSE or may_exceed(content, MAX_RESPONSE_VALUES):
            return Unknown("lookup_size")
        try:
            value = loads(content)
        except NotInspectable:
            return Unknown("lookup_shape")
        return self.read_object(value) if isinstance(value, dict) else Unknown("lookup_shape")


def query_of(key: str | None, alias: str | None, prefix: str) -> Query | None:
    """The query for ``key`` or, if that is None, for the key with this alias. ``prefix`` is the path prefix or ``""``.

    Returns None if LiteLLM would not hash the key. It may then be a secret, such as a key with white space before it,
    and a secret must not appear in a URL.
    """
    if key is None:
        # Since 1.96.0, LiteLLM answers with the row that it would update for this alias.
        content = json.dumps({"key_aliases": [alias]}).encode()
        header = b"\r\nContent-Type: application/json\r\nContent-Length: %d" % len(content)
        return Query(f"{quote(prefix)}/v2/key/info".encode(), partial(_read_alias, alias), header, content)
    token = token_of(key)
    if not _HASH.fullmatch(token):
        return None
    return Query(f"{quote(prefix)}/key/info?key={token}".encode(), partial(_read_key, token))


def _read_key(token: str, response: dict[str, Json]) -> Stored | Unknown:
    if response.get("key") != token:
        return Unknown("lookup_shape")
    return _row(response.get("info"), response.get("status"))


def _read_alias(alias: str | None, response: dict[str, Json]) -> Stored | Unknown:
    rows = response.get("info")
    if not isinstance(rows, list) or len(rows) != 1:
        return Unknown("lookup_shape")
    found = _row(rows[0])
    return found if isinstance(found, Unknown) or found.info.get("key_alias") == alias else Unknown("lookup_shape")


def _row(info: Json, status: Json = None) -> Stored | Unknown:
    """The row of a key. ``status`` is the one beside ``info``, where LiteLLM shows it for a deleted key."""
    if not isinstance(info, dict):
        return Unknown("lookup_shape")
    if "deleted" in (info.get("status"), status):  # since 1.105, LiteLLM shows deleted keys too
        return Unknown("key_deleted")
    return Stored(info)

"""What LiteLLM is asked about a key, and what its answer says."""

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

MAX_ANSWER: Final = 1024 * 1024
"""Bytes of an answer that are read; a key's row takes a few thousand."""
MAX_ANSWER_VALUES: Final = 50_000
"""Values of an answer that is parsed; a key with a budget for each of a thousand models has some thousands. Parsing the
500,000 that fit into `MAX_ANSWER` would hold the event loop for a fifth of a second; these take a tenth of that."""

_LEFT_OUT: Final = re.compile(
    rb"\r\n(?:content-[^:]*|if-[^:]*|accept-encoding|expect|range|transfer-encoding):[^\r]*", re.IGNORECASE
)
_OF_THE_ROUTE: Final = re.compile(rb"\r\n(?:via|x-forwarded-(?:for|proto)):[^\r]*", re.IGNORECASE)
_IDENTITY: Final = b"\r\nAccept-Encoding: identity"
_HASH: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Stored:
    """The key as LiteLLM has it: ``info`` of ``GET /key/info``."""

    info: Row


@dataclass(frozen=True, slots=True)
class Unknown:
    """There is no usable stored value; ``reason`` is a stable token. ``refused``: LiteLLM answered the lookup 403."""

    reason: str
    refused: bool = False


def token_of(key: str) -> str:
    """What LiteLLM stores for ``key``: its SHA-256 in hex if it starts with ``sk-``; anything else as it is."""
    return hashlib.sha256(key.encode()).hexdigest() if key.startswith("sk-") else key


def key_hash(key: str) -> str:
    """The first 8 hex digits of the key's SHA-256, which distinguish keys in a log and reveal none."""
    token = token_of(key)
    return (token if _HASH.fullmatch(token) else hashlib.sha256(key.encode()).hexdigest())[:8]


def caller_header(head: bytes) -> bytes:
    """The field lines of a lookup: the request's, less those about its content or that would make the answer partial.

    ``head`` is a request's head in octets. Any field may authenticate (a configured key header, custom auth): all
    others go along, duplicates and order kept.
    """
    return _LEFT_OUT.sub(b"", head[head.index(b"\r\n") :].rstrip(b"\r\n")) + _IDENTITY


def lookup_key_header(head: bytes, key: str, host: bytes) -> bytes:
    """The field lines of a lookup with the gateway's own credential, ``key``.

    Any field of the caller's may authenticate, and some take precedence over Authorization: only those that say where
    the request has come from are kept. Nor may a caller say which virtual host gets the key: Host is ``host``, and no
    other field names one. (A LiteLLM up to 1.105.0, though not 1.109.1, that has a
    ``litellm_key_header_name`` takes no key from Authorization: there, the credential is of no use.)
    """
    route = b"".join(_OF_THE_ROUTE.findall(head))
    return b"\r\nHost: " + host + route + b"\r\nAuthorization: Bearer " + key.encode() + _IDENTITY


@dataclass(frozen=True, slots=True)
class Query:
    """A lookup: its target, the field lines and the content that it adds, and how an answer's object is read."""

    target: bytes
    read_object: Callable[[dict[str, Json]], Stored | Unknown]
    header: bytes = b""
    content: bytes | None = None

    def read(self, answer: bytes) -> Stored | Unknown:
        """What the content of a 200 says; `Unknown` with ``lookup_size``, ``lookup_shape`` or ``key_deleted``."""
        if len(answer) > MAX_ANSWER or may_exceed(answer, MAX_ANSWER_VALUES):
            return Unknown("lookup_size")
        try:
            value = loads(answer)
        except NotInspectable:
            return Unknown("lookup_shape")
        return self.read_object(value) if isinstance(value, dict) else Unknown("lookup_shape")


def query_of(key: str | None, alias: str | None, prefix: str) -> Query | None:
    """The query for ``key``, or if that is None, for the key with this alias. ``prefix``: of the path, ``""`` for none.

    None if LiteLLM stores the key unhashed: it may be a secret, such as a padded key, which must not get into a URL.
    """
    if key is None:
        # LiteLLM answers with the very row that it updates for this alias, from 1.96.0 on
        content = json.dumps({"key_aliases": [alias]}).encode()
        header = b"\r\nContent-Type: application/json\r\nContent-Length: %d" % len(content)
        return Query(f"{quote(prefix)}/v2/key/info".encode(), partial(_read_alias, alias), header, content)
    token = token_of(key)
    if not _HASH.fullmatch(token):
        return None
    return Query(f"{quote(prefix)}/key/info?key={token}".encode(), partial(_read_key, token))


def _read_key(token: str, answer: dict[str, Json]) -> Stored | Unknown:
    if answer.get("key") != token:
        return Unknown("lookup_shape")
    return _row(answer.get("info"), answer.get("status"))


def _read_alias(alias: str | None, answer: dict[str, Json]) -> Stored | Unknown:
    rows = answer.get("info")
    if not isinstance(rows, list) or len(rows) != 1:
        return Unknown("lookup_shape")
    found = _row(rows[0])
    return found if isinstance(found, Unknown) or found.info.get("key_alias") == alias else Unknown("lookup_shape")


def _row(info: Json, status: Json = None) -> Stored | Unknown:
    if not isinstance(info, dict):
        return Unknown("lookup_shape")
    if "deleted" in (info.get("status"), status):  # from 1.105 on, deleted keys are answered too
        return Unknown("key_deleted")
    return Stored(info)

"""The requests that look a key up, and how the responses are read."""

import hashlib
import json
from decimal import Decimal
from typing import Any

import pytest

from sanitizer.sanitize.queries import (
    Stored,
    Unknown,
    caller_header,
    key_hash,
    lookup_key_header,
    query_of,
    token_of,
)

KEY = "sk-secret"
TOKEN = hashlib.sha256(KEY.encode()).hexdigest()
LARGE: Any = {f"openai/model-{n}": {"budget_limit": "0.5", "time_period": "1d", "models": ["a"]} for n in range(8000)}
"""A budget for each of 8,000 models: more than the metadata of a real key holds."""

MIB = 1024 * 1024
SHAPE, SIZE, DELETED = Unknown("lookup_shape"), Unknown("lookup_size"), Unknown("key_deleted")


def answer(info: Any = None, key: Any = TOKEN, **more: Any) -> bytes:
    return json.dumps({"key": key, "info": {"allowed_routes": ["/a"]} if info is None else info, **more}).encode()


def aliases(*rows: Any) -> bytes:
    return json.dumps({"key": ["ignored"], "info": list(rows)}).encode()


def read(body: bytes, key: str | None = None, alias: str | None = None) -> Stored | Unknown:
    query = query_of(key, alias, "")
    assert query is not None
    return query.read(body)


def with_values(number: int) -> bytes:
    """A response with ``number`` values: three containers, the key, and the items of the list."""
    return answer({"a": [0] * (number - 4)})


@pytest.mark.parametrize(
    ("key", "token"),
    [
        pytest.param(KEY, TOKEN, id="a raw key"),
        pytest.param("sk-", hashlib.sha256(b"sk-").hexdigest(), id="the shortest raw key"),
        pytest.param("sk-ä€", hashlib.sha256("sk-ä€".encode()).hexdigest(), id="not ASCII"),
        pytest.param(TOKEN, TOKEN, id="a hash"),
        pytest.param("SK-1", "SK-1", id="any other string"),
    ],
)
def test_token(key: str, token: str) -> None:
    """A key that begins with ``sk-`` is stored as its hash, and any other as it is."""
    assert token_of(key) == token


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        pytest.param(KEY, TOKEN[:8], id="raw"),
        pytest.param(TOKEN, TOKEN[:8], id="its hash"),
        pytest.param("custom", hashlib.sha256(b"custom").hexdigest()[:8], id="any other string"),
    ],
)
def test_key_hash(key: str, prefix: str) -> None:
    """Logs name a key by the same hash prefix, whether it is sent raw or hashed."""
    assert key_hash(key) == prefix


@pytest.mark.parametrize("end", [b"\r\n", b"\r\n\r\n"], ids=["no empty line", "an empty line"])
@pytest.mark.parametrize(
    ("head", "sent"),
    [
        pytest.param(b"", b"", id="no field"),
        pytest.param(b"\r\nX-Empty:", b"\r\nX-Empty:", id="an empty value"),
        pytest.param(b"\r\nX: 1 \r\nContent-Length: 5", b"\r\nX: 1 ", id="a field to be removed at the end"),
        pytest.param(b"\r\nIf-Match: *\r\nx: 2\r\nX: 1", b"\r\nx: 2\r\nX: 1", id="a field to be removed at the start"),
    ],
)
@pytest.mark.parametrize("start", [b"", b"POST /key/update HTTP/1.1"], ids=["no start line", "a start line"])
def test_caller_header(start: bytes, head: bytes, sent: bytes, end: bytes) -> None:
    """Each field line is preceded by CRLF, and the last is not followed by one, however the head ends."""
    assert caller_header(start + head + end) == sent + b"\r\nAccept-Encoding: identity"


@pytest.mark.parametrize("end", [b"\r\n", b"\r\n\r\n"], ids=["no empty line", "an empty line"])
def test_lookup_key_header(end: bytes) -> None:
    """Of the caller's field lines only forwarding fields, such as Via, are kept, however the head ends."""
    assert lookup_key_header(b"\r\nCookie: a\r\nVia: 1.1 a" + end, "sk-own", b"h") == b"".join(
        [b"\r\nHost: h", b"\r\nVia: 1.1 a", b"\r\nAuthorization: Bearer sk-own", b"\r\nAccept-Encoding: identity"]
    )


@pytest.mark.parametrize(
    ("body", "result"),
    [
        pytest.param(answer(), Stored({"allowed_routes": ["/a"]}), id="the stored key"),
        pytest.param(answer({}), Stored({}), id="a key without fields"),
        pytest.param(answer({"status": "active"}), Stored({"status": "active"}), id="an active key"),
        pytest.param(answer({"status": "deleted"}), DELETED, id="a deleted key"),
        pytest.param(answer(status="deleted"), DELETED, id="a deleted key, with its status outside info"),
        pytest.param(answer(key="0" * 64), SHAPE, id="another key"),
        pytest.param(answer(key=None), SHAPE, id="a null key"),
        pytest.param(answer([]), SHAPE, id="info is a list"),
        pytest.param(b'{"key":"%b"}' % TOKEN.encode(), SHAPE, id="no info"),
        pytest.param(b"[]", SHAPE, id="a list"),
        pytest.param(b"null", SHAPE, id="null"),
        pytest.param(b"", SHAPE, id="empty"),
        pytest.param(b"<html>", SHAPE, id="HTML"),
        pytest.param(answer()[:-1], SHAPE, id="cut off"),
        pytest.param(answer().decode().encode("utf-16"), SHAPE, id="not UTF-8"),
        pytest.param(b"[" * 40_000, SHAPE, id="deep nesting"),
        pytest.param(answer() + b" " * (MIB - len(answer())), Stored({"allowed_routes": ["/a"]}), id="1 MiB"),
        pytest.param(answer() + b" " * (MIB - len(answer()) + 1), SIZE, id="one byte over the limit"),
        pytest.param(answer({"metadata": LARGE}), Stored({"metadata": LARGE}), id="many values"),
        pytest.param(with_values(50_000), Stored({"a": [Decimal(0)] * (49_996)}), id="50,000 values"),
        pytest.param(with_values(50_001), SIZE, id="one value over the limit"),
        pytest.param(answer({"metadata": [[]] * 250_000}), SIZE, id="1 MB of lists"),
        pytest.param(answer({str(n): 0 for n in range(80_000)}), SIZE, id="1 MB of members"),
    ],
)
def test_by_key(body: bytes, result: Stored | Unknown) -> None:
    """The stored value is unknown if the response is not about the requested key or is too large to be parsed."""
    assert read(body, key=KEY) == read(body, key=TOKEN) == result


@pytest.mark.parametrize(
    ("body", "result"),
    [
        pytest.param(aliases({"key_alias": "a"}), Stored({"key_alias": "a"}), id="the key"),
        pytest.param(aliases(), SHAPE, id="no key"),
        pytest.param(aliases({"key_alias": "b"}), SHAPE, id="another key"),
        pytest.param(aliases({"key_alias": "a"}, {"key_alias": "a"}), SHAPE, id="two keys"),
        pytest.param(aliases([]), SHAPE, id="a list for a key"),
        pytest.param(aliases({"key_alias": "a", "status": "deleted"}), DELETED, id="a deleted key"),
        pytest.param(b'{"info": {"key_alias": "a"}}', SHAPE, id="an object for the list of keys"),
        pytest.param(b"[]", SHAPE, id="not an object"),
        pytest.param(aliases(*[{}] * 100_000), SIZE, id="100,000 rows"),
    ],
)
def test_by_alias(body: bytes, result: Stored | Unknown) -> None:
    """The stored value is known only if the response has exactly one row, with the requested alias."""
    assert read(body, alias="a") == result

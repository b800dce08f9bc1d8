"""The field lines of a scope as octets, and copies of a scope."""

import pytest
from starlette.types import Scope

from sanitizer.sanitize.scopes import copy_scope, encode_header
from tests.support.asgi import Fields


@pytest.mark.parametrize(
    ("fields", "head"),
    [
        pytest.param([], b"\r\n", id="no fields"),
        pytest.param(
            [(b"x", b"1"), (b"X", b" 2 "), (b"y", b"")], b"\r\nx: 1\r\nX:  2 \r\ny: \r\n", id="fields in order"
        ),
        pytest.param([(b"x", b"a: b"), (b"y", b"\xe9\x00")], b"\r\nx: a: b\r\ny: \xe9\x00\r\n", id="unusual values"),
    ],
)
def test_encode_header(fields: Fields, head: bytes) -> None:
    """The octets are an empty start line, followed by one line per field."""
    assert encode_header(fields) == head


@pytest.mark.parametrize(
    "line",
    [
        pytest.param((b"x", b"1\r\nauthorization: Bearer sk-other"), id="CRLF"),
        pytest.param((b"x", b"1\nauthorization: Bearer sk-other"), id="LF"),
        pytest.param((b"x", b"1\rauthorization: Bearer sk-other"), id="CR"),
        pytest.param((b"x", b"1\n"), id="LF at the end"),
        pytest.param((b"authorization: Bearer sk-other\r\nx", b"1"), id="CRLF in a name"),
        pytest.param((b"authorization:x", b"Bearer sk-other"), id="a colon in a name"),
        pytest.param((b"authorization: x", b"Bearer sk-other"), id="a colon and a space in a name"),
        pytest.param((b"", b"authorization: Bearer sk-other"), id="an empty name"),
    ],
)
def test_malformed(line: tuple[bytes, bytes]) -> None:
    """No octets are returned if a field would be read as a different field, or as several."""
    assert encode_header([(b"host", b"h"), line, (b"x", b"1")]) is None


@pytest.mark.parametrize("state", [{}, {"state": {"pool": 1}}], ids=["no state", "a state"])
def test_copy_scope(state: Scope) -> None:
    """Changes to a copy, its headers and its state do not change the scope."""
    scope: Scope = {"type": "http", "headers": [(b"x", b"1")], **state}
    copied = copy_scope(scope)
    assert copied == scope
    copied["headers"].append((b"y", b"2"))
    copied.setdefault("state", {})["user"] = 1
    copied["type"] = "other"
    assert scope == {"type": "http", "headers": [(b"x", b"1")], **state}
    assert "user" not in scope.get("state", {})

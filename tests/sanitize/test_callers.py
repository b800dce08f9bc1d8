"""The key with which a request authenticates, as LiteLLM finds it, and the addresses in its X-Forwarded-For."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanitizer.sanitize.callers import caller_key, forwarded_for


def head(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in ("POST /key/update HTTP/1.1", "Host: a", *lines)).encode("latin-1")


KEYS = [
    pytest.param(["Authorization: Bearer sk-1"], "sk-1", id="Authorization"),
    pytest.param(["authorization:bearer sk-1"], "sk-1", id="Authorization, in lower case"),
    pytest.param(["Authorization: \t Bearer sk-1 \t "], "sk-1", id="Authorization, with white space around it"),
    pytest.param(["Authorization: Basic sk-1"], "sk-1", id="Authorization, Basic with a key that is not encoded"),
    pytest.param(["API-Key: sk-1"], "sk-1", id="API-Key"),
    pytest.param(["x-api-key: sk-1"], "sk-1", id="x-api-key"),
    pytest.param(["x-goog-api-key: sk-1"], "sk-1", id="x-goog-api-key"),
    pytest.param(["Ocp-Apim-Subscription-Key: sk-1"], "sk-1", id="Ocp-Apim-Subscription-Key"),
    pytest.param(["x-litellm-api-key: sk-1"], "sk-1", id="x-litellm-api-key"),
    pytest.param(["x-litellm-api-key: Bearer sk-1"], "sk-1", id="x-litellm-api-key, with a scheme"),
    # LiteLLM removes a scheme wherever it occurs, and reads the credential of an AWS signature
    pytest.param(["Authorization: Bearer Bearer sk-1"], "sk-1", id="a repeated scheme"),
    pytest.param(["Authorization: Bearer sk-Bearer 1"], "sk-1", id="a scheme within a key"),
    pytest.param(["x-litellm-api-key: bearer sk-bearer 1"], "sk-1", id="a scheme within x-litellm-api-key"),
    pytest.param(["Authorization: Bearer Basic sk-1"], None, id="a second, different scheme"),
    pytest.param(
        ["Authorization: AWS4-HMAC-SHA256 Credential=Bearer sk-1/20260101/eu/x, Signature=2"], "sk-1", id="a signature"
    ),
    pytest.param(["x-litellm-api-key: AWS4-HMAC-SHA256 Credential=sk-1/2"], "sk-1", id="a signature without a scheme"),
    pytest.param(
        ["Authorization: AWS4-HMAC-SHA256 Credential=sk-2/2, Credential=Bearer sk-1/2"], "sk-1", id="two credentials"
    ),
    pytest.param(["Authorization: AWS4-HMAC-SHA256 Credential=AKIA/2"], None, id="a signature of another key"),
    pytest.param(["Authorization: AWS4-HMAC-SHA256 sk-1"], None, id="a signature without a credential"),
    pytest.param(["x-api-key: sk-Bearer 1"], "sk-Bearer 1", id="x-api-key, in which no scheme is removed"),
    pytest.param(["x-api-key: sk-a/b c\xe9"], "sk-a/b c\xe9", id="a key with unusual characters"),
    pytest.param(["x-api-key: sk-1", "x-api-key: sk-2"], "sk-1", id="the first of two lines"),
    pytest.param(["API-Key:", "x-api-key: sk-1"], "sk-1", id="an empty field counts as missing"),
    pytest.param(["Authorization:  ", "x-api-key: sk-1"], "sk-1", id="a field of only white space counts as missing"),
    pytest.param(["X: sk-1", "x-api-key2: sk-1", "my-x-api-key: sk-1"], None, id="other fields"),
    pytest.param(["X: a\x0bx-api-key: sk-1"], None, id="a name within a value"),
    pytest.param([], None, id="no field"),
    # values that are not keys, but which LiteLLM still prefers to a key in a later field
    pytest.param(["Authorization: Bearer eyJhbGci.e30.c2ln", "x-api-key: sk-1"], None, id="a JSON Web Token"),
    pytest.param(["Authorization: Basic dXNlcjpwYXNz", "x-api-key: sk-1"], None, id="a password"),
    pytest.param(["Authorization: sk-1", "x-api-key: sk-2"], None, id="Authorization without a scheme"),
    pytest.param(["Authorization: Digest sk-1"], None, id="an unsupported scheme"),
    pytest.param(
        ["Authorization: Bearer  sk-1"], None, id="two spaces after the scheme, which LiteLLM does not accept either"
    ),
    pytest.param(["Authorization: BEARER sk-1"], None, id="a scheme in capitals, which LiteLLM does not accept either"),
    pytest.param(["Authorization: Bearer SK-1"], None, id="a key without the prefix sk-"),
    pytest.param(["x-api-key: Bearer sk-1"], None, id="a scheme in x-api-key"),
    pytest.param(
        ["x-litellm-api-key: secret", "Authorization: Bearer sk-1"],
        None,
        id="a value without the prefix sk- in x-litellm-api-key",
    ),
]


@pytest.mark.parametrize(("lines", "key"), KEYS)
def test_key(lines: list[str], key: str | None) -> None:
    """The caller's key is the one that LiteLLM finds, provided that it begins with ``sk-``."""
    assert caller_key(head(*lines)) == key


ORDER = ["x-litellm-api-key", "Authorization", "API-Key", "x-api-key", "x-goog-api-key", "Ocp-Apim-Subscription-Key"]


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_order(first: int) -> None:
    """The fields are tried in LiteLLM's order, whatever their order in the head."""
    lines = [f"{name}: {'Bearer ' if name == 'Authorization' else ''}sk-{name}" for name in ORDER[first:]]
    assert caller_key(head(*lines)) == caller_key(head(*reversed(lines))) == f"sk-{ORDER[first]}"


@given(st.lists(st.tuples(st.sampled_from([*ORDER, "X"]), st.text("sk- \tBearer:é", max_size=12)), max_size=8))
def test_any_fields(fields: list[tuple[str, str]]) -> None:
    """Whatever the fields, a key that is found begins with ``sk-`` and is the end of a value without schemes."""
    found = caller_key(head(*(f"{name}: {value}" for name, value in fields)))
    if found is not None:
        assert found.startswith("sk-")
        ends = [value.strip(" \t") for _, value in fields]
        assert any(end.endswith(found) or end.replace("Bearer ", "").endswith(found) for end in ends)


@pytest.mark.parametrize(
    ("lines", "addresses"),
    [
        pytest.param([], None, id="no field"),
        pytest.param(["X-Forwarded-For: 192.0.2.1"], "192.0.2.1", id="one address"),
        pytest.param(
            ["x-forwarded-for:2001:db8::1 , [::1]:80 "], "2001:db8::1, [::1]:80", id="two addresses in one line"
        ),
        pytest.param(
            ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: ::1"], "192.0.2.1, ::1", id="two addresses in two lines"
        ),
        pytest.param(["X-Forwarded-For:"], None, id="an empty value"),
        pytest.param(["X-Forwarded-For: sk-1"], None, id="a key"),
        pytest.param(["X-Forwarded-For: unknown"], None, id="a name"),
        pytest.param(["X-Forwarded-For: 192.0.2.1, unknown"], None, id="a name at the end"),
        pytest.param(["X-Forwarded-For: unknown, 192.0.2.1"], "192.0.2.1", id="an address after a name"),
        pytest.param(["X-Forwarded-For: sk-1, ::1,192.0.2.1"], "::1, 192.0.2.1", id="addresses after a key"),
        pytest.param(
            ["X-Forwarded-For: a", "X-Forwarded-For: ::1"],
            "::1",
            id="an address in a line after one without an address",
        ),
        pytest.param(["X-Forwarded-For: 0badc0de0badc0de0badc0de"], None, id="hex digits alone"),
        pytest.param([f"X-Forwarded-For: {'1.' * 40}"], None, id="too long for an address"),
        pytest.param(
            [f"X-Forwarded-For: {', '.join(f'192.0.2.{number}' for number in range(200))}"],
            ", ".join(f"192.0.2.{number}" for number in range(192, 200)),
            id="the last of many addresses",
        ),
        pytest.param(["X-Forwarded-For2: 192.0.2.1"], None, id="another field"),
    ],
)
def test_forwarded_for(lines: list[str], addresses: str | None) -> None:
    """Only addresses after the last element that is not an address are returned, at most eight of them."""
    assert forwarded_for(head(*lines)) == addresses

"""The text of a refusal, read from a response of LiteLLM or of a proxy in front of it."""

import gzip
import json
import zlib

import pytest

from sanitizer.sanitize.refusal import MAX_REFUSAL, refusal_text

HEAD = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\n\r\n"
WORDS = {"error": {"message": "no", "type": "auth_error"}}


def coded(coding: bytes) -> bytes:
    return HEAD.replace(b"\r\n\r\n", b"\r\ncontent-Encoding: %b\r\n\r\n" % coding)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param('{"error":{"message":"no"}}', "no", id="error.message"),
        pytest.param('{"detail":"no"}', "no", id="detail"),
        pytest.param('{"detail":{"error":"no"}}', "no", id="detail.error"),
        pytest.param(
            '{"error":{"message":"n\\u006f"},"detail":"x"}', "no", id="an escaped error.message, and a detail"
        ),
        pytest.param('{"error":"no"}', "", id="error is a string"),
        pytest.param('{"error":{"message":["no"]}}', "", id="error.message is a list"),
        pytest.param('{"error":{}}', "", id="no error.message"),
        pytest.param('{"message":"no"}', "", id="message at the top level"),
        pytest.param('{"detail":[{"msg":"no"}]}', "", id="detail is a list"),
        pytest.param('["no"]', "", id="a list"),
        pytest.param('"no"', "", id="a string"),
        pytest.param("", "", id="empty"),
        pytest.param("<html>no</html>", "", id="HTML"),
        pytest.param('{"detail":"no"', "", id="cut off"),
    ],
)
def test_text(content: str, found: str) -> None:
    """The text is the string at error.message, detail or detail.error of a JSON object, and otherwise empty."""
    assert refusal_text(HEAD, content.encode()) == found


def test_not_utf8() -> None:
    assert refusal_text(HEAD, b'{"detail":"\xff"}') == ""


@pytest.mark.parametrize(
    ("coding", "content", "found"),
    [
        pytest.param(b"identity", json.dumps(WORDS).encode(), "no", id="identity"),
        pytest.param(b"", json.dumps(WORDS).encode(), "no", id="an empty coding"),
        pytest.param(b"gzip", gzip.compress(json.dumps(WORDS).encode()), "no", id="gzip"),
        pytest.param(b"GZIP ", gzip.compress(json.dumps(WORDS).encode()), "no", id="gzip in capitals"),
        pytest.param(b"gzip", json.dumps(WORDS).encode(), "", id="gzip whose content is not compressed"),
        pytest.param(b"gzip", gzip.compress(json.dumps(WORDS).encode())[:-9], "", id="gzip cut off"),
        pytest.param(
            b"gzip",
            gzip.compress(b'{"detail":"no"}' + b" " * MAX_REFUSAL),
            "",
            id="gzip that decompresses beyond the limit",
        ),
        pytest.param(b"deflate", zlib.compress(json.dumps(WORDS).encode()), "", id="deflate"),
        pytest.param(b"gzip, br", gzip.compress(json.dumps(WORDS).encode()), "", id="two codings"),
    ],
)
def test_codings(coding: bytes, content: bytes, found: str) -> None:
    """The content may be compressed with gzip, up to a limit when decompressed. Any other coding has no text."""
    assert refusal_text(coded(coding), content) == found


def test_limit() -> None:
    """Content over the limit has no text, whether it is compressed or not."""
    content = b'{"detail":"no"}'
    fitting = content + b" " * (MAX_REFUSAL - len(content))
    assert [refusal_text(HEAD, each) for each in (fitting, fitting + b" ")] == ["no", ""]
    assert [refusal_text(coded(b"gzip"), gzip.compress(each)) for each in (fitting, fitting + b" ")] == ["no", ""]

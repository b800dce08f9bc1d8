"""LiteLLM's refusals: the text in a response that says why the request was refused."""

import re
import zlib
from typing import Final

from sanitizer.sanitize.jsonedit import NotInspectable, loads

MAX_REFUSAL: Final = 64 * 1024
"""The most bytes of content in a refusal. A response with more is not taken for a refusal."""

_CODINGS: Final = re.compile(rb"\r\ncontent-encoding:[ \t]*([^\r]*)", re.IGNORECASE)


def refusal_text(head: bytes, content: bytes) -> str:
    """The text that says why a request was refused: ``error.message``, ``detail.error`` or ``detail``.

    ``head`` is the response head in octets. Returns ``""`` if there is no such text, for example because the content is
    not a JSON object, has a content coding other than gzip, or is longer than `MAX_REFUSAL`, also when inflated.
    """
    plain = _decoded(head, content)
    try:
        value = loads(plain)
    except NotInspectable:
        return ""
    if not isinstance(value, dict):
        return ""
    for name, member in (("error", "message"), ("detail", "error")):
        text = value.get(name)
        if isinstance(text, dict):
            text = text.get(member)
        elif name == "error":
            text = None
        if isinstance(text, str):
            return text
    return ""


def _decoded(head: bytes, content: bytes) -> bytes:
    codings = [coding.strip(b" \t").lower() for line in _CODINGS.findall(head) for coding in line.split(b",")]
    codings = [coding for coding in codings if coding not in (b"", b"identity")]
    if codings == [b"gzip"]:
        try:
            inflated = zlib.decompressobj(16 + zlib.MAX_WBITS)
            content = inflated.decompress(content, MAX_REFUSAL + 1)
        except zlib.error:
            return b""
        if not inflated.eof:
            return b""
    elif codings:
        return b""
    return content if len(content) <= MAX_REFUSAL else b""

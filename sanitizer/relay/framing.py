"""How long a message's content is, and when two parsers could disagree about it.

Facts enforced here (RFC 9112):

* 6.1: Transfer-Encoding is not for HTTP/1.0; a server answers codings that it does not know with an error. Only
  ``chunked``, once, is known here.
* 6.2, 6.3: Content-Length is digits; with Transfer-Encoding beside it, or with a second line, a request may be an
  attempt at smuggling. A server may reject it, and this one does.
* 6.3: a response to HEAD, and a 1xx, 204 or 304, has no content whatever its fields say; a response with neither
  field lasts until the connection closes.
"""

from enum import Enum
from typing import Final

from sanitizer.errors import BadRequest, UpstreamBroken
from sanitizer.relay.headers import Fields, Head, encode_head


class Framing(Enum):
    """A content whose length is not known beforehand."""

    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


#: Length of a content in bytes, or how its end is found
Length = int | Framing

_DIGITS: Final = 18
"""Digits of the largest Content-Length; more than any content has, and less than any counter holds."""
_CONTROLS: Final = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])


def _faulty(head: Head) -> str:
    """What is wrong with Content-Length and Transfer-Encoding; empty: nothing."""
    if head.faulty:
        return head.faulty
    if head.length is not None:
        if head.coding is not None:
            return "Content-Length beside Transfer-Encoding"
        if not head.length.isdigit() or len(head.length) > _DIGITS:
            return "Content-Length is not a number"
    elif head.coding is not None and head.coding.lower() != b"chunked":
        return "Transfer-Encoding other than chunked"
    return ""


def request_length(head: Head, version: bytes = b"1.1") -> Length:
    """The length of a request's content; raises `BadRequest` where two parsers could disagree."""
    if head.coding is None and not head.faulty:
        if head.length is None:
            return 0
        if head.length.isdigit() and len(head.length) <= _DIGITS:
            return int(head.length)
    if wrong := _faulty(head):
        raise BadRequest(wrong)
    if version == b"1.0":
        raise BadRequest("Transfer-Encoding in HTTP/1.0")
    return Framing.CHUNKED


def response_length(method: bytes, status: int, head: Head) -> Length:
    """The length of a final response's content; raises `UpstreamBroken` where its framing is faulty."""
    if wrong := _faulty(head):
        raise UpstreamBroken(wrong)
    if method == b"HEAD" or status == 204 or status == 304:
        return 0
    if head.length is not None:
        return int(head.length)
    return Framing.UNTIL_CLOSE if head.coding is None else Framing.CHUNKED


def checked_head(start_line: bytes, fields: Fields) -> bytes:
    """A request's head in octets, as `encode_head` makes it.

    Raises `BadRequest` for what a parser should not have let through: an ASGI server's, not ours.
    """
    octets = encode_head(start_line, fields)
    # each line has two control characters, its CRLF; the empty line has them too
    if len(octets) - len(octets.translate(None, _CONTROLS)) != 2 * len(fields) + 4:
        raise BadRequest("control character in a head")
    for name, _ in fields:
        if not name or b":" in name:
            raise BadRequest("malformed field name")
    return octets

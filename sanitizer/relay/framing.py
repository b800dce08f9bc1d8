"""How long a message's content is, and when two parsers could disagree about it.

Facts enforced here (RFC 9112):

* 6.1: Transfer-Encoding is not for HTTP/1.0; a server answers codings that it does not know with an error. Only
  ``chunked``, once, is known here.
* 6.2, 6.3: Content-Length is digits; with Transfer-Encoding beside it, or with a second line, a request may be an
  attempt at smuggling. A server may reject it, and this one does.
* 6.3: a response to HEAD, and a 1xx, 204 or 304, has no content whatever its fields say; a response with neither
  field lasts until the connection closes.
* 3.2: an HTTP/1.1 request has exactly one Host.
"""

import re
from enum import Enum
from typing import Final

from sanitizer.errors import BadRequest, UpstreamBroken
from sanitizer.relay.headers import Fields


class Framing(Enum):
    """A content whose length is not known beforehand."""

    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


#: Length of a content in bytes, or how its end is found
Length = int | Framing

_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def _declared(fields: Fields) -> tuple[bytes | None, bytes | None, str]:
    """Content-Length, Transfer-Encoding, and what is wrong with them (empty: nothing)."""
    length = coding = None
    for line in fields:
        name = line[0].lower()
        if name == b"content-length":
            if length is not None:
                return length, coding, "more than one Content-Length"
            length = line[1]
            if not _DIGITS.fullmatch(length):
                return length, coding, "Content-Length is not a number"
        elif name == b"transfer-encoding":
            if coding is not None or line[1].lower() != b"chunked":
                return length, coding, "Transfer-Encoding other than chunked"
            coding = line[1]
    if length is not None and coding is not None:
        return length, coding, "Content-Length beside Transfer-Encoding"
    return length, coding, ""


def request_length(fields: Fields, version: bytes = b"1.1") -> Length:
    """The length of a request's content; raises `BadRequest` where two parsers could disagree."""
    length, coding, wrong = _declared(fields)
    if wrong:
        raise BadRequest(wrong)
    if coding is not None:
        if version != b"1.1":
            raise BadRequest("Transfer-Encoding in HTTP/1.0")
        return Framing.CHUNKED
    return int(length) if length is not None else 0


def check_request_head(fields: Fields, version: bytes) -> None:
    """Raise `BadRequest` unless there is one Host (none will do in HTTP/1.0) and no control character in a field."""
    hosts = 0
    for name, value in fields:
        if _CONTROLS.search(value):
            raise BadRequest("control character in a field")
        if not name:
            raise BadRequest("field without a name")
        if len(name) == 4 and name.lower() == b"host":
            hosts += 1
    if hosts > 1 or (not hosts and version == b"1.1"):
        raise BadRequest("exactly one Host is needed")


def response_length(method: bytes, status: int, fields: Fields) -> Length:
    """The length of a final response's content; raises `UpstreamBroken` where its framing is faulty."""
    length, coding, wrong = _declared(fields)
    if wrong:
        raise UpstreamBroken(f"upstream's answer has {wrong}")
    if method == b"HEAD" or status in (204, 304):
        return 0
    if coding is not None:
        return Framing.CHUNKED
    return int(length) if length is not None else Framing.UNTIL_CLOSE

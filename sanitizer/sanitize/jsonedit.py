"""The top-level members of a JSON object with their byte offsets, and how to cut some of them.

The scanner is that of the standard library's ``json``, which LiteLLM uses too, so both accept the same texts, NaN and
lone surrogates included. (LiteLLM first tries orjson, which accepts less, and falls back to ``json``.)

The scanner reads ``str``, but members are cut by byte offsets. The body is therefore decoded as Latin-1, one character
per byte, so that every index is a byte offset. All bytes of a multi-byte UTF-8 character are 0x80 or above, so none of
them is taken for a quote, a backslash, a bracket or white space. Only values that are compared are decoded as UTF-8.

Nothing is ever re-encoded. Numbers are compared as `decimal.Decimal`, which does not round ``0.10``, does not expand
``1e400``, and accepts 5000 digits.
"""

import codecs
import json
import re
from collections.abc import Collection, Sequence
from decimal import Decimal, InvalidOperation
from json.scanner import make_scanner
from typing import TypeAlias

Json: TypeAlias = "bool | str | Decimal | list[Json] | dict[str, Json] | None"

MAX_VALUES = 10_000
"""The most values of a body that is inspected. A key update has a few hundred. Parsing the 350,000 that fit into 1 MiB
would block the event loop, and so all other requests, for a quarter of a second; 10,000 take at most some 20 ms."""

_SPACE = " \t\n\r"
_NON_SPACE = re.compile(rf"[^{_SPACE}]")
# `JSONDecoder.raw_decode` calls these scanners. They raise StopIteration if there is no value.
# The first one is for values that are skipped: keeping a number as a string is the cheapest.
_SCAN = make_scanner(json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str))  # type: ignore[arg-type]
_SCAN_VALUE = make_scanner(
    json.JSONDecoder(parse_int=Decimal, parse_float=Decimal, parse_constant=Decimal)  # type: ignore[arg-type]
)


class NotInspectable(ValueError):
    """The JSON text must not be edited. ``reason`` is a stable token for logs and the response field."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


Member: TypeAlias = tuple[str, int, int, int, int]
"""One member of an object: its name and four byte offsets. It is a plain tuple because named tuples are slow to make.

Escapes in the name are resolved. A name that is not ASCII is meaningless, because it was decoded as Latin-1. The
offsets are ``start``, the opening quote of the name; ``value``, the first byte of the value; ``end``, one past its last
byte; and ``stop``, the comma after the member or, after the last member, the closing brace.
"""


def members(body: bytes) -> list[Member]:
    """The members of the JSON object in ``body``, in their order, duplicates included.

    Raises `NotInspectable`. Its reasons are ``bom``, ``not_utf8``, ``not_object``, ``not_json``, ``too_deep`` and
    ``too_many_values``.
    """
    if may_exceed(body, MAX_VALUES):
        raise NotInspectable("too_many_values")
    if body.startswith(codecs.BOM_UTF8):
        raise NotInspectable("bom")
    try:
        body.decode()
    except UnicodeDecodeError:
        raise NotInspectable("not_utf8") from None
    text = body.decode("latin-1")
    at = _token(text, 0)
    if text[at] != "{":
        raise NotInspectable("not_object")
    found: list[Member] = []
    at = _token(text, at + 1)
    if text[at] != "}":
        found = _members(text, at)
        *_, at = found[-1]
    if text[at] != "}" or _NON_SPACE.search(text, at + 1):
        raise NotInspectable("not_json")
    return found


def cut(body: bytes, found: Sequence[Member], names: Collection[str]) -> bytes:
    """``body`` without the members in ``names``. ``found`` are all of its `members`. Other bytes are not changed.

    A member is removed with the comma after it. If all members after the last remaining one are removed, the comma
    after that one is removed too.
    """
    last = len(found) - 1
    while last >= 0 and found[last][0] in names:
        last -= 1
    kept: list[bytes] = []
    position = 0
    for index, (name, start, _, end, stop) in enumerate(found):
        unwanted = name in names
        if unwanted:
            kept.append(body[position:start])
            position = end
        # drop the comma after a cut member, and the one after the last member that is kept
        if (unwanted or index >= last) and index < len(found) - 1:
            kept.append(body[position:stop])
            position = stop + 1
    return b"".join([*kept, body[position:]])


def may_exceed(text: bytes, values: int) -> bool:
    """Whether a JSON text may have more than ``values`` values. It counts brackets and commas, in strings too."""
    return len(text) >= values and sum(map(text.count, (b"[", b"{", b","))) >= values


def loads(data: bytes) -> Json:
    """The value of a JSON text in UTF-8, with numbers as `Decimal`. As for LiteLLM, the last duplicate member counts.

    Raises `NotInspectable`. Its reasons are ``not_utf8``, ``not_json``, ``too_deep`` and ``number`` (an exponent beyond
    10**18).
    """
    try:
        text = data.decode().strip(_SPACE)
        value: Json
        value, end = _SCAN_VALUE(text, 0)
    except UnicodeDecodeError:
        raise NotInspectable("not_utf8") from None
    except (ValueError, StopIteration):
        raise NotInspectable("not_json") from None
    except RecursionError:
        raise NotInspectable("too_deep") from None
    except InvalidOperation:
        raise NotInspectable("number") from None
    if end != len(text):
        raise NotInspectable("not_json")
    return value


def equal(one: Json, other: Json) -> bool:
    """Strict JSON equality: a boolean is no number, numbers compare as decimals, NaN and infinities equal nothing."""
    pending = [(one, other)]
    while pending:
        a, b = pending.pop()
        if isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pending.extend(zip(a, b, strict=True))
        elif isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            pending.extend((value, b[name]) for name, value in a.items())
        elif type(a) is not type(b) or a != b or (isinstance(a, Decimal) and not a.is_finite()):
            return False
    return True


def _token(text: str, at: int) -> int:
    found = _NON_SPACE.search(text, at)
    if found is None:
        raise NotInspectable("not_json")
    return found.start()


def _members(text: str, start: int) -> list[Member]:
    """The members from the index ``start`` (less than ``len(text)``) to the first that is not followed by a comma."""
    found: list[Member] = []
    # Most bodies have no white space, and this loop is most of the work on a body: it calls `_token` only if needed.
    try:
        while True:
            if text[start] != '"':
                start = _token(text, start)
                if text[start] != '"':
                    raise NotInspectable("not_json")
            name, colon = _SCAN(text, start)
            if text[colon] != ":":
                colon = _token(text, colon)
                if text[colon] != ":":
                    raise NotInspectable("not_json")
            value = colon + 1
            if text[value] in _SPACE:
                value = _token(text, value)
            _, end = _SCAN(text, value)
            stop = _token(text, end) if text[end] in _SPACE else end
            found.append((name, start, value, end, stop))
            if text[stop] != ",":
                return found
            start = stop + 1
    except (IndexError, StopIteration, json.JSONDecodeError):  # IndexError: the end of the text
        raise NotInspectable("not_json") from None
    except RecursionError:
        raise NotInspectable("too_deep") from None

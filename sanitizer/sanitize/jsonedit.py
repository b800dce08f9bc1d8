"""The top-level members of a JSON object with their byte spans, and how to cut some of them out.

The scanner is the standard library's, which is LiteLLM's too: NaN and lone surrogates are passed over here as they are
there (orjson, with which LiteLLM looks at a body first, accepts less and falls back to ``json``).

Spans are byte offsets, yet the scanner reads ``str``. It is therefore given the UTF-8 bytes as Latin-1, one character a
byte: the bytes of a multi-byte character are all 0x80 or above, so none of them can be taken for a quote, a backslash,
a bracket or white space, and every index is an offset. Only the values that are asked for are decoded as UTF-8.

Nothing is ever re-encoded: numbers stay spellings until a value is compared, as `decimal.Decimal`, which neither rounds
``0.10``, nor writes out ``1e400``, nor minds 5000 digits.
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
"""A key update has some hundred values. Taking apart the 350,000 that fit into 1 MiB would hold the event loop, and so
every other request, for a quarter of a second; these take some 20 ms at worst."""

_SPACE = " \t\n\r"
_NON_SPACE = re.compile(rf"[^{_SPACE}]")
# what raw_decode calls; they raise StopIteration where there is no value
# a number that is only passed over is cheapest as the string it already is
_SCAN = make_scanner(json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str))  # type: ignore[arg-type]
_SCAN_VALUE = make_scanner(
    json.JSONDecoder(parse_int=Decimal, parse_float=Decimal, parse_constant=Decimal)  # type: ignore[arg-type]
)


class NotInspectable(ValueError):
    """JSON that must not be edited; ``reason`` is a stable token for logs and the response header."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


Member: TypeAlias = tuple[str, int, int, int, int]
"""One member of an object: its name and four byte offsets. A body has many, and a named tuple takes long to make.

The name has its escapes resolved; beyond ASCII it is of no use. The offsets are ``start``, the opening quote of the
name; ``value``, the first byte of the value; ``end``, one past its last byte; and ``stop``, the comma after the member
or, after the last one, the closing brace.
"""


def members(body: bytes) -> list[Member]:
    """The members of the JSON object that ``body`` is, in their order, duplicates included.

    Raises `NotInspectable`: ``bom``, ``not_utf8``, ``not_object``, ``not_json``, ``too_deep``, ``too_many_values``.
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
    """``body`` less those of its members ``found`` that are called one of ``names``, all other bytes as they were.

    A member goes with the comma behind it; the last that stays loses its comma if only such members follow.
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
        if (unwanted or index >= last) and index < len(found) - 1:
            kept.append(body[position:stop])
            position = stop + 1
    return b"".join([*kept, body[position:]])


def may_exceed(text: bytes, values: int) -> bool:
    """Whether a JSON text may have more than this many values. It is not parsed: those in strings count too."""
    return len(text) >= values and sum(map(text.count, (b"[", b"{", b","))) >= values


def loads(data: bytes) -> Json:
    """The value of a JSON text in UTF-8, numbers as `Decimal`; of duplicate members the last wins, as for LiteLLM.

    Raises `NotInspectable`: ``not_utf8``, ``not_json``, ``too_deep``, ``number`` (an exponent beyond 10**18).
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
    """The members from ``start`` on, which is not beyond ``text``, up to the first that no comma follows."""
    found: list[Member] = []
    # white space is looked for where there is any: most bodies have none, and this is most of the work on a body
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
    except (IndexError, StopIteration, json.JSONDecodeError):  # the first: the text ends
        raise NotInspectable("not_json") from None
    except RecursionError:
        raise NotInspectable("too_deep") from None

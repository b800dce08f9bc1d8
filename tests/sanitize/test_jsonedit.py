"""Members of a JSON object and their spans, cutting members without changing other bytes, and equality of values."""

import json
import sys
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanitizer.sanitize.jsonedit import Json, NotInspectable, cut, equal, loads, members


def parsed(text: bytes) -> dict[str, object]:
    """Parse ``text`` with numbers as strings, so that none is rounded and NaN is equal to itself."""
    value = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    ("body", "left"),
    [
        pytest.param('{"a":1}', "{}", id="the only member"),
        pytest.param('{"a":1,"b":2}', '{"b":2}', id="the first member"),
        pytest.param('{"b":2,"a":1}', '{"b":2}', id="the last member"),
        pytest.param('{"b":2,"a":1,"c":3}', '{"b":2,"c":3}', id="a member in the middle"),
        pytest.param('{"a":1,"d":1,"b":2}', '{"b":2}', id="the first two members"),
        pytest.param('{"b":2,"a":1,"d":1}', '{"b":2}', id="the last two members"),
        pytest.param('{"a":1,"b":2,"d":1}', '{"b":2}', id="the first and the last member"),
        pytest.param('{"a":1,"d":1}', "{}", id="all members"),
        pytest.param(
            '\r\n{ "b" : 2 ,\t"a" :\n1 , "c" : 3 }\n', '\r\n{ "b" : 2 ,\t  "c" : 3 }\n', id="white space is preserved"
        ),
        pytest.param(r'{"\u0061":1,"b":2}', '{"b":2}', id="an escaped name"),
        pytest.param('{"b":"\\"a\\":1,{","a":"},{"}', '{"b":"\\"a\\":1,{"}', id="strings that look like JSON"),
        pytest.param(
            '{"b":{"a":1,"d":[1]},"a":1}', '{"b":{"a":1,"d":[1]}}', id="members of nested objects are preserved"
        ),
        pytest.param('{"ä":"€😀","a":"ö","ß":"\\ud83d"}', '{"ä":"€😀","ß":"\\ud83d"}', id="not ASCII"),
        pytest.param('{"b":1e400,"a":0,"c":-0.10E-7}', '{"b":1e400,"c":-0.10E-7}', id="numbers keep their spelling"),
        pytest.param(f'{{"a":1,"b":{"9" * 5000}}}', f'{{"b":{"9" * 5000}}}', id="more digits than Python converts"),
        pytest.param('{"b":NaN,"a":Infinity,"c":-Infinity}', '{"b":NaN,"c":-Infinity}', id="NaN and Infinity"),
        pytest.param('{"b":1,"a":2,"b":3,"":4}', '{"b":1,"b":3,"":4}', id="other duplicates are preserved"),
        pytest.param('{"b":1}', '{"b":1}', id="nothing to cut"),
        pytest.param("{ }", "{ }", id="an empty object"),
    ],
)
def test_cut(body: str, left: str) -> None:
    """The members ``a`` and ``d`` are cut, each with one comma, and nothing else is."""
    data = body.encode()
    assert cut(data, members(data), {"a", "d"}) == left.encode()


WHITE = st.text(" \t\r\n", max_size=3)
NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)


def spelt(text: str, choose: Callable[[], int]) -> str:
    """Write ``text`` as a JSON string, and escape each character that needs it or for which ``choose`` returns 1."""
    units: list[str] = []
    for character in text:
        if character in '"\\' or character < " " or choose():
            code = character.encode("utf-16-be", "surrogatepass")
            units.extend(f"\\u{code[i : i + 2].hex()}" for i in range(0, len(code), 2))
        else:
            units.append(character)
    return f'"{"".join(units)}"'


@st.composite
def strings(draw: st.DrawFn, text: st.SearchStrategy[str] | None = None) -> str:
    characters = draw(text if text is not None else st.text(max_size=8))
    return spelt(characters, lambda: draw(st.integers(0, 1)))


@st.composite
def containers(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    items = [draw(WHITE) + value + draw(WHITE) for value in draw(st.lists(values, max_size=4))]
    if draw(st.booleans()):
        return f"[{','.join(items) or draw(WHITE)}]"
    return f"{{{','.join(draw(WHITE) + draw(strings()) + draw(WHITE) + ':' + item for item in items) or draw(WHITE)}}}"


VALUES = st.recursive(
    st.sampled_from(["null", "true", "false", "NaN", "-Infinity"]) | NUMBERS | strings(), containers, max_leaves=8
)
NAMES = st.sampled_from(["allowed_routes", "key", "a", "ä", "€", "😀"]) | st.text(max_size=3)


@st.composite
def objects(draw: st.DrawFn) -> list[tuple[str, str, str, str]]:
    """Members in order, each as (name, white space before, text, white space after)."""
    return [
        (
            name,
            draw(WHITE),
            draw(strings(st.just(name))) + draw(WHITE) + ":" + draw(WHITE) + draw(VALUES),
            draw(WHITE),
        )
        for name in draw(st.lists(NAMES, max_size=6))
    ]


@given(objects(), WHITE, WHITE)
@example([("key", " ", '"key":1', "\n"), ("€", "", '"€":2', "")], "\t", "")
def test_cut_leaves_every_other_byte(pieces: list[tuple[str, str, str, str]], before: str, behind: str) -> None:
    """The result parses to the object without the cut members, and every byte outside them and their commas stays."""
    unwanted = {"allowed_routes", "key"}
    body = before + "{" + ",".join(pre + text + post for _, pre, text, post in pieces) + "}" + behind
    expected = before + "{"
    kept = sum(name not in unwanted for name, *_ in pieces)
    for name, pre, text, post in pieces:
        if name in unwanted:
            expected += pre + post
        else:
            kept -= 1
            expected += pre + text + post + ("," if kept else "")
    expected += "}" + behind

    data = body.encode()
    result = cut(data, members(data), unwanted)

    assert result == expected.encode()
    assert parsed(result) == {name: value for name, value in parsed(data).items() if name not in unwanted}


@given(objects())
def test_spans(pieces: list[tuple[str, str, str, str]]) -> None:
    """The span of a member covers its text, and the span of its value covers the value."""
    data = ("{" + ",".join(pre + text + post for _, pre, text, post in pieces) + "}").encode()
    found = members(data)
    assert [data[start:end].decode() for _, start, _, end, _ in found] == [text for _, _, text, _ in pieces]
    for _, start, value, end, _ in found:
        name = data[start:value].decode().rstrip(" \t\r\n:")
        assert parsed(f"{{{name}:{data[value:end].decode()}}}".encode()) == parsed(b"{" + data[start:end] + b"}")
    assert all(data[stop : stop + 1] == b"," for *_, stop in found[:-1])


# The families of JSONTestSuite (Nicolas Seriot, "Parsing JSON is a Minefield"), as objects.
REFUSED = [
    pytest.param(b"", "not_json", id="empty"),
    pytest.param(b" \n", "not_json", id="white space only"),
    pytest.param(b"[]", "not_object", id="an array"),
    pytest.param(b'"a"', "not_object", id="a string"),
    pytest.param(b"null", "not_object", id="null"),
    pytest.param(b"\xef\xbb\xbf{}", "bom", id="UTF-8 with a BOM"),
    pytest.param('{"a":1}'.encode("utf-16"), "not_utf8", id="UTF-16 with a BOM"),
    pytest.param('{"a":1}'.encode("utf-16-le"), "not_json", id="UTF-16 without a BOM"),
    pytest.param('{"a":1}'.encode("utf-32"), "not_utf8", id="UTF-32 with a BOM"),
    pytest.param('{"a":1}'.encode("utf-32-be"), "not_object", id="UTF-32 without a BOM"),
    pytest.param(b'{"a":"\xff"}', "not_utf8", id="an invalid byte"),
    pytest.param(b'{"a":"\xe9"}', "not_utf8", id="Latin-1"),
    pytest.param(b'{"a":"\xc0\xaf"}', "not_utf8", id="an overlong sequence"),
    pytest.param(b'{"a":"\xed\xa0\x80"}', "not_utf8", id="a surrogate in UTF-8"),
    pytest.param(b'{"a":"\xe2\x82"}', "not_utf8", id="a truncated sequence"),
    pytest.param(b'{"a":1}{}', "not_json", id="trailing object"),
    pytest.param(b'{"a":1}]', "not_json", id="trailing bracket"),
    pytest.param(b'{"a":1}\x00', "not_json", id="trailing NUL"),
    pytest.param(b'{"a":1}\xc2\xa0', "not_json", id="trailing no-break space"),
    pytest.param(b'{"a":1', "not_json", id="cut off after a value"),
    pytest.param(b'{"a":', "not_json", id="cut off before a value"),
    pytest.param(b'{"a', "not_json", id="cut off in a name"),
    pytest.param(b"{", "not_json", id="cut off after the opening brace"),
    pytest.param(b'{"a":1,}', "not_json", id="trailing comma"),
    pytest.param(b'{,"a":1}', "not_json", id="leading comma"),
    pytest.param(b'{"a":1,,"b":2}', "not_json", id="two commas"),
    pytest.param(b'{"a":1 "b":2}', "not_json", id="no comma"),
    pytest.param(b'{"a":1]', "not_json", id="wrong bracket"),
    pytest.param(b'{"a" 1}', "not_json", id="no colon"),
    pytest.param(b'{"a"::1}', "not_json", id="two colons"),
    pytest.param(b"{a:1}", "not_json", id="unquoted name"),
    pytest.param(b"{'a':1}", "not_json", id="single quotes"),
    pytest.param(b"{1:1}", "not_json", id="a number as a name"),
    pytest.param(b'{"a":tru}', "not_json", id="a truncated literal"),
    pytest.param(b'{"a":True}', "not_json", id="a Python literal"),
    pytest.param(b'{"a":01}', "not_json", id="leading zero"),
    pytest.param(b'{"a":+1}', "not_json", id="plus sign"),
    pytest.param(b'{"a":.5}', "not_json", id="no integer part"),
    pytest.param(b'{"a":1.}', "not_json", id="no fraction digits"),
    pytest.param(b'{"a":1e}', "not_json", id="no exponent digits"),
    pytest.param(b'{"a":0x1}', "not_json", id="hexadecimal"),
    pytest.param('{"a":\uff11}'.encode(), "not_json", id="full-width digit"),
    pytest.param(b'{"a":"\\x41"}', "not_json", id="unknown escape"),
    pytest.param(b'{"a":"\\u00g1"}', "not_json", id="bad hex digits"),
    pytest.param(b'{"a":"\\u00"}', "not_json", id="short escape"),
    pytest.param(b'{"a":"\n"}', "not_json", id="control character"),
    pytest.param(b'{"a":"\x00"}', "not_json", id="NUL in a string"),
    pytest.param(b'{"a\t":1}', "not_json", id="control character in a name"),
    pytest.param(b'{"a":1/**/}', "not_json", id="comment"),
    pytest.param(b"[" * 100_000, "too_many_values", id="100,000 opening brackets"),
    pytest.param(b'{"a":' * 100_000, "too_many_values", id="100,000 opening braces"),
    pytest.param(b'{"a":[' + b"0," * 9_998 + b"0]}", "too_many_values", id="too many values"),
]


@pytest.mark.parametrize(("body", "reason"), REFUSED)
def test_not_inspectable(body: bytes, reason: str) -> None:
    """A body that is not a JSON object in UTF-8, or has too many values, is refused with the reason."""
    with pytest.raises(NotInspectable) as refused:
        members(body)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"[" * 5000 + b"]" * 5000, id="nested arrays"),
        pytest.param(b'{"a":' * 5000 + b"1" + b"}" * 5000, id="nested objects"),
    ],
)
def test_deep(value: bytes) -> None:
    """Deep nesting is either accepted or refused as ``too_deep``. The interpreter's limit decides which."""
    body = b'{"a":%b}' % value

    def left() -> str:
        try:
            return cut(body, members(body), {"a"}).decode()
        except NotInspectable as refused:
            return refused.reason

    assert left() in ("{}", "too_deep")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(rb'"\ud800"', id="a lone high surrogate"),
        pytest.param(rb'"\udc00\ud800"', id="surrogates in reverse order"),
        pytest.param(rb'"\ud83d\ude00"', id="a surrogate pair"),
        pytest.param(rb'"\u0000\u001f"', id="escaped control characters"),
        pytest.param('"\u2028\ufeff\ufffe\U0010ffff"'.encode(), id="unusual characters"),
        pytest.param(b"[NaN,-Infinity,Infinity]", id="NaN and Infinity"),
        pytest.param(b"[1e400,-1e-400,0e99999999999999999999]", id="numbers beyond a double"),
        pytest.param(b"-" + b"1" * 100_000, id="a long integer"),
        pytest.param(b"0." + b"1" * 100_000, id="a long fraction"),
        pytest.param(b"[" * 200 + b"]" * 200, id="200 levels"),
        pytest.param(b"[" + b"0," * 9_996 + b"0]", id="10,000 values in total"),
        pytest.param(b'{"a":1,"a":2}', id="duplicates in a nested object"),
    ],
)
def test_passed_over(value: bytes) -> None:
    """An unusual value that LiteLLM parses can be cut, and does not prevent cutting another member."""
    body = b'{"a":%b, "b":1 }' % value
    assert cut(body, members(body), {"b"}) == b'{"a":%b  }' % value
    assert cut(body, members(body), {"a"}) == b'{ "b":1 }'


@given(st.binary(max_size=40) | st.text('{}[]":,\\u0123 antrue-.eE\u00e4', max_size=40).map(str.encode))
def test_agrees_with_json_loads(body: bytes) -> None:
    """Any bytes are either refused, or `json.loads` finds the same members in them."""
    try:
        found = members(body)
    except NotInspectable:
        return
    pairs: list[tuple[str, object]] = json.loads(body, object_pairs_hook=list)
    assert [loads(body[start:value].rstrip(b" \t\r\n:")) for _, start, value, _, _ in found] == [
        name for name, _ in pairs
    ]


@given(st.text('{}[]":,\\u0123 nultrse-.eE\u00e4', max_size=40).map(str.encode))
def test_accepts_what_json_loads_accepts(body: bytes) -> None:
    """Every UTF-8 text that `json.loads` parses as an object is inspectable, and has the same members."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return
    if isinstance(parsed, dict):
        names = {loads(body[start:value].rstrip(b" \t\r\n:")) for _, start, value, _, _ in members(body)}
        assert names == parsed.keys()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param("1", "true", False, id="1 and true"),
        pytest.param("0", "false", False, id="0 and false"),
        pytest.param("[1]", "[true]", False, id="1 and true in an array"),
        pytest.param('{"a":0}', '{"a":false}', False, id="0 and false in an object"),
        pytest.param("null", "false", False, id="null and false"),
        pytest.param("null", "null", True, id="null"),
        pytest.param("true", "true", True, id="true"),
        pytest.param("1", '"1"', False, id="a number and a string"),
        pytest.param("1.0", "1", True, id="1.0 and 1"),
        pytest.param("1e2", "100.00", True, id="equal numbers, one with an exponent"),
        pytest.param("-0", "0", True, id="minus zero and zero"),
        pytest.param("1e400", "1e500", False, id="different numbers beyond a double"),
        pytest.param("1e400", "1" + "0" * 400, True, id="equal numbers beyond a double, in two spellings"),
        pytest.param("1e999999999", "1e999999998", False, id="numbers too large to be written out"),
        pytest.param("1e-999999999", "0", False, id="a number too small to be written out"),
        pytest.param("9007199254740993", "9007199254740992", False, id="different integers that are equal as doubles"),
        pytest.param("0.1", "0.10000000000000000001", False, id="different fractions that are equal as doubles"),
        pytest.param("9" * 5000, "9" * 5000, True, id="more digits than Python converts"),
        pytest.param(
            "9" * 5000, "9" * 4999 + "8", False, id="more digits than Python converts, the last one different"
        ),
        pytest.param("NaN", "NaN", False, id="NaN"),
        pytest.param("Infinity", "Infinity", False, id="infinity"),
        pytest.param("[NaN]", "[NaN]", False, id="NaN in an array"),
        pytest.param("[]", "{}", False, id="empty array and object"),
        pytest.param("[1,2]", "[2,1]", False, id="order of an array"),
        pytest.param("[1]", "[1,1]", False, id="length of an array"),
        pytest.param('{"a":1,"b":2}', '{"b":2,"a":1}', True, id="order of an object"),
        pytest.param('{"a":1}', '{"a":1,"b":null}', False, id="an additional null"),
        pytest.param('{"a":1,"a":2}', '{"a":2}', True, id="the last duplicate wins"),
        pytest.param(r'"\u00e9"', '"é"', True, id="a character and its escape"),
        pytest.param('"é"', '"e\u0301"', False, id="canonically equivalent strings"),
        pytest.param('""', "null", False, id="empty string and null"),
    ],
)
def test_equal(one: str, other: str, same: bool) -> None:
    """Values are compared strictly as JSON, and the order of the two does not matter."""
    a, b = loads(one.encode()), loads(other.encode())
    assert equal(a, b) is same
    assert equal(b, a) is same


def test_equal_is_deep() -> None:
    """Comparing deeply nested values does not recurse."""
    deep: Json = None
    other: Json = None
    for _ in range(sys.getrecursionlimit() * 2):
        deep, other = [deep], [other]
    assert equal(deep, other)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(b"\xff", "not_utf8", id="not UTF-8"),
        pytest.param(b"\xef\xbb\xbf1", "not_json", id="a BOM"),
        pytest.param(b"1 2", "not_json", id="trailing garbage"),
        pytest.param(b"[" * 100_000, "too_deep", id="deep nesting"),
        pytest.param(b"1e99999999999999999999", "number", id="an exponent too large for Decimal"),
        pytest.param(b"-1e-99999999999999999999", "number", id="a negative exponent too large for Decimal"),
    ],
)
def test_loads_refuses(text: bytes, reason: str) -> None:
    """`loads` raises `NotInspectable` with the reason, whatever is wrong."""
    with pytest.raises(NotInspectable) as refused:
        loads(text)
    assert refused.value.reason == reason


def test_loads_keeps_numbers() -> None:
    """No number is rounded."""
    assert loads(b"[0.10, 1E2, 123456789012345678901234567890]") == [
        Decimal("0.10"),
        Decimal(100),
        Decimal(123456789012345678901234567890),
    ]

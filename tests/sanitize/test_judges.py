"""What unchanged means: comparisons of values, and judges of members."""

import pytest

from sanitizer.sanitize.jsonedit import Json, loads
from sanitizer.sanitize.judges import (
    Comparison,
    Judge,
    both_null,
    column,
    empty_for_null,
    object_permission,
    of_the_team,
    premium,
    same_list,
    same_number,
    same_object,
    same_permission,
    same_strings,
    same_windows,
    soft_budget,
)


@pytest.mark.parametrize(
    ("sent", "stored", "verdict"),
    [
        pytest.param('["a","b"]', '["a","b"]', True, id="the same"),
        pytest.param('["b","a"]', '["a","b"]', True, id="reordered"),
        pytest.param('["a","a","b"]', '["a","b","b"]', True, id="duplicates"),
        pytest.param("[]", "[]", True, id="both empty"),
        pytest.param("[]", '["a"]', False, id="emptied"),
        pytest.param('["a"]', "[]", False, id="filled"),
        pytest.param('["a"]', '["a","b"]', False, id="one fewer"),
        pytest.param('["A"]', '["a"]', False, id="another case"),
        pytest.param('["a "]', '["a"]', False, id="white space"),
        pytest.param('["a",1]', '["a"]', False, id="a number among the sent"),
        pytest.param('["a",null]', '["a"]', False, id="a null among the sent"),
        pytest.param('["a",["b"]]', '["a"]', False, id="a list among the sent"),
        pytest.param('"a"', '["a"]', False, id="a string"),
        pytest.param('{"a":1}', '["a"]', False, id="an object"),
        pytest.param("true", "[]", False, id="true"),
        pytest.param("null", "[]", False, id="null"),
        pytest.param(r'["\ud800"]', '["a"]', False, id="a lone surrogate"),
        pytest.param('["a"]', "null", None, id="null stored"),
        pytest.param('["a"]', '"a"', None, id="a string stored"),
        pytest.param('["a",1]', '["a",1]', None, id="a number stored"),
        pytest.param("[[]]", "[[]]", None, id="a list stored in the list"),
    ],
)
def test_same_strings(sent: str, stored: str, verdict: bool | None) -> None:
    """Lists of strings are compared as sets; about anything else that is stored, nothing is said."""
    assert same_strings(loads(sent.encode()), loads(stored.encode())) is verdict


@pytest.mark.parametrize(
    ("sent", "stored", "verdict"),
    [
        pytest.param('["a","b"]', '["a","b"]', True, id="the same"),
        pytest.param("[]", "[]", True, id="both empty"),
        pytest.param('["b","a"]', '["a","b"]', False, id="reordered"),
        pytest.param('["a","a"]', '["a"]', False, id="a duplicate"),
        pytest.param("[]", '["a"]', False, id="emptied"),
        pytest.param('["a"]', "[]", False, id="filled"),
        pytest.param('["a",1]', '["a"]', False, id="a number among the sent"),
        pytest.param('"a"', '["a"]', False, id="a string"),
        pytest.param("null", "[]", False, id="null"),
        pytest.param("null", "null", None, id="null stored"),
        pytest.param("[1]", "[1]", None, id="a number stored"),
    ],
)
def test_same_list(sent: str, stored: str, verdict: bool | None) -> None:
    """Lists of strings are compared item by item; about anything else that is stored, nothing is said."""
    assert same_list(loads(sent.encode()), loads(stored.encode())) is verdict


@pytest.mark.parametrize(
    ("sent", "stored", "verdict"),
    [
        pytest.param("{}", "{}", True, id="both empty"),
        pytest.param('{"a":1,"b":{"c":[null]}}', '{"b":{"c":[null]},"a":1.0}', True, id="the same"),
        pytest.param('{"a":1}', '{"a":true}', False, id="a boolean is no number"),
        pytest.param('{"a":0.1}', '{"a":0.10000000000000001}', False, id="a number that no float tells apart"),
        pytest.param('{"a":[1,2]}', '{"a":[2,1]}', False, id="reordered"),
        pytest.param('{"a":null}', "{}", False, id="a null more"),
        pytest.param("{}", '{"a":1}', False, id="emptied"),
        pytest.param('{"a":NaN}', '{"a":NaN}', False, id="NaN"),
        pytest.param("[]", "{}", False, id="a list"),
        pytest.param("null", "{}", False, id="null"),
        pytest.param("{}", "null", None, id="null stored"),
        pytest.param('"{}"', '"{}"', None, id="a string stored"),
        pytest.param("[]", "[]", None, id="a list stored"),
    ],
)
def test_same_object(sent: str, stored: str, verdict: bool | None) -> None:
    """Objects are equal in the strict sense, all the way down."""
    assert same_object(loads(sent.encode()), loads(stored.encode())) is verdict


DAY, WEEK = '{"budget_duration":"1d","max_budget":5}', '{"budget_duration":"7d","max_budget":20.5}'
STORED = (
    '[{"budget_duration":"1d","max_budget":5.0,"reset_at":"2026-01-02T00:00:00+00:00"},'
    '{"reset_at":"2026-01-05T00:00:00+00:00","max_budget":20.5,"budget_duration":"7d"}]'
)
NO_DATE = '[{"budget_duration":"1d","max_budget":5.0}]'


@pytest.mark.parametrize(
    ("sent", "stored", "verdict"),
    [
        pytest.param("[]", "null", True, id="none, stored as null"),
        pytest.param("[]", "[]", True, id="none, stored as a list"),
        pytest.param(f"[{DAY},{WEEK}]", STORED, True, id="the same"),
        pytest.param(STORED, STORED, True, id="the same, with LiteLLM's reset_at"),
        pytest.param(f"[{DAY}]", NO_DATE, True, id="stored without reset_at"),
        pytest.param(f"[{WEEK},{DAY}]", STORED, False, id="reordered"),
        pytest.param(f"[{DAY}]", STORED, False, id="one fewer"),
        pytest.param(f"[{DAY},{WEEK},{WEEK}]", STORED, False, id="one more"),
        pytest.param("[]", STORED, False, id="emptied"),
        pytest.param(f"[{DAY}]", "null", False, id="filled"),
        pytest.param(f"[{DAY}]".replace("5", "6"), NO_DATE, False, id="another budget"),
        pytest.param(f"[{DAY}]".replace("1d", "24h"), NO_DATE, False, id="the same time in another spelling"),
        pytest.param(f"[{DAY}]".replace("5", '"5"'), NO_DATE, False, id="a budget that LiteLLM would make a number"),
        pytest.param(f"[{DAY}]".replace("5", "null"), NO_DATE, False, id="no budget"),
        pytest.param(STORED.replace("2026", "2027"), STORED, False, id="another reset_at"),
        pytest.param(STORED.replace('"2026-01-02T00:00:00+00:00"', "null"), STORED, False, id="reset_at null"),
        pytest.param(f"[{DAY}]".replace("}", ',"x":1}'), NO_DATE, False, id="a member more"),
        pytest.param('[{"budget_duration":"1d"}]', NO_DATE, False, id="a member fewer"),
        pytest.param('[["1d",5]]', NO_DATE, False, id="a list in the list"),
        pytest.param("[null]", NO_DATE, False, id="a null in the list"),
        pytest.param(DAY, NO_DATE, False, id="an object"),
        pytest.param('""', "null", False, id="a string"),
        pytest.param("{}", "null", False, id="an empty object"),
        pytest.param("false", "null", False, id="false"),
        pytest.param("null", "null", True, id="null"),
        pytest.param("null", "[]", True, id="null, none stored as a list"),
        pytest.param("null", STORED, False, id="null, windows stored"),
        pytest.param("[]", '"[]"', None, id="a string stored"),
        pytest.param("[]", "{}", None, id="an object stored"),
        pytest.param(
            f"[{DAY}]".replace("5", '"5"'), f"[{DAY}]".replace("5", '"5"'), None, id="a budget stored as a string"
        ),
        pytest.param(f"[{DAY}]".replace("5", "true"), f"[{DAY}]".replace("5", "true"), None, id="a boolean stored"),
        pytest.param(
            NO_DATE.replace("}", ',"x":1}'), NO_DATE.replace("}", ',"x":1}'), None, id="stored in a form to come"
        ),
        pytest.param(f"[{DAY}]".replace("5", "NaN"), f"[{DAY}]".replace("5", "NaN"), False, id="NaN"),
    ],
)
def test_same_windows(sent: str, stored: str, verdict: bool | None) -> None:
    """Budget windows are compared on what a caller sets, in their order; whatever is odd is no equality."""
    assert same_windows(loads(sent.encode()), loads(stored.encode())) is verdict


PERMISSION = (
    '{"object_permission_id":"1","vector_stores":["v1"],"mcp_servers":[],"models":null,"blocked_tools":["a","b"]}'
)


@pytest.mark.parametrize(
    ("compare", "sent", "stored", "verdict"),
    [
        pytest.param(same_number, "1.5", "1.50", True, id="number: the same"),
        pytest.param(same_number, "0", "0.0", True, id="number: zero"),
        pytest.param(same_number, "1", "2", False, id="number: another"),
        pytest.param(same_number, "true", "1", False, id="number: a boolean sent"),
        pytest.param(same_number, '"1"', "1", False, id="number: a string sent"),
        pytest.param(same_number, "NaN", "NaN", False, id="number: NaN"),
        pytest.param(same_number, "null", "null", True, id="number: both null"),
        pytest.param(same_number, "0", "null", False, id="number: null stored"),
        pytest.param(same_number, "1", '"1"', None, id="number: a string stored"),
        pytest.param(both_null, "null", "null", True, id="null"),
        pytest.param(both_null, "null", '"u"', False, id="null: a string stored"),
        pytest.param(both_null, '"u"', "null", False, id="null: a string sent"),
        pytest.param(empty_for_null, '""', "null", True, id="empty for null"),
        pytest.param(empty_for_null, '""', '""', True, id="empty for empty"),
        pytest.param(empty_for_null, '""', '"t"', False, id="empty for a string"),
        pytest.param(empty_for_null, '"t"', "null", False, id="a string for null"),
        pytest.param(empty_for_null, "null", "null", False, id="null for null is not its business"),
        pytest.param(empty_for_null, '""', "1", None, id="empty for a number"),
        pytest.param(same_permission, PERMISSION, PERMISSION, True, id="permission: whole"),
        pytest.param(same_permission, '{"vector_stores":["v1"]}', PERMISSION, True, id="permission: some of it"),
        pytest.param(same_permission, '{"agents":[],"models":{}}', PERMISSION, True, id="permission: empty for none"),
        pytest.param(same_permission, "{}", PERMISSION, True, id="permission: nothing of it"),
        pytest.param(same_permission, '{"mcp_servers":[]}', "null", True, id="permission: empty, none stored"),
        pytest.param(same_permission, "null", "null", True, id="permission: null, none stored"),
        pytest.param(same_permission, "null", PERMISSION, False, id="permission: removed"),
        pytest.param(same_permission, '{"vector_stores":[]}', PERMISSION, False, id="permission: emptied"),
        pytest.param(same_permission, '{"vector_stores":["v2"]}', PERMISSION, False, id="permission: another"),
        pytest.param(same_permission, '{"blocked_tools":["b","a"]}', PERMISSION, False, id="permission: reordered"),
        pytest.param(same_permission, '{"agents":["x"]}', PERMISSION, False, id="permission: one more"),
        pytest.param(same_permission, '{"agents":false}', PERMISSION, False, id="permission: false is not empty"),
        pytest.param(same_permission, '{"agents":0}', PERMISSION, False, id="permission: nor is zero"),
        pytest.param(same_permission, '["v1"]', PERMISSION, False, id="permission: a list"),
        pytest.param(same_permission, "{}", "[]", None, id="permission: a list stored"),
    ],
)
def test_comparisons(compare: Comparison, sent: str, stored: str, verdict: bool | None) -> None:
    """Each comparison by its cases; about a stored value of an unknown shape, nothing is said."""
    assert compare(loads(sent.encode()), loads(stored.encode())) is verdict


def values(text: str) -> dict[str, Json]:
    value = loads(text.encode())
    assert isinstance(value, dict)
    return value


GROUPS = of_the_team(column("access_group_ids", same_list))
TAGS = premium("tags")


@pytest.mark.parametrize(
    ("judge", "sent", "row", "verdict"),
    [
        pytest.param(column("x", same_list), '{"x":["a"]}', '{"x":["a"]}', True, id="column"),
        pytest.param(column("x", same_list), '{"x":["a"]}', '{"y":["a"]}', None, id="column: missing"),
        pytest.param(GROUPS, '{"access_group_ids":["a"]}', '{"access_group_ids":["a"]}', True, id="team: not sent"),
        pytest.param(
            GROUPS,
            '{"access_group_ids":["a"],"team_id":"t"}',
            '{"access_group_ids":["a"],"team_id":"t"}',
            True,
            id="team: the same",
        ),
        pytest.param(
            GROUPS,
            '{"access_group_ids":["a"],"team_id":""}',
            '{"access_group_ids":["a"],"team_id":null}',
            True,
            id="team: empty for none",
        ),
        pytest.param(
            GROUPS,
            '{"access_group_ids":["a"],"team_id":"t"}',
            '{"access_group_ids":["a"],"team_id":"u"}',
            False,
            id="team: another",
        ),
        pytest.param(
            GROUPS,
            '{"access_group_ids":["a"],"team_id":null}',
            '{"access_group_ids":["a"],"team_id":"u"}',
            False,
            id="team: left",
        ),
        pytest.param(
            GROUPS, '{"access_group_ids":["a"],"team_id":"t"}', '{"access_group_ids":["a"]}', None, id="team: not known"
        ),
        pytest.param(TAGS, '{"tags":["a"]}', '{"metadata":{"tags":["a"]}}', True, id="premium: the same"),
        pytest.param(TAGS, '{"tags":["a"]}', '{"metadata":{"tags":["b"]}}', False, id="premium: another"),
        pytest.param(TAGS, '{"tags":["a"]}', '{"metadata":{}}', False, id="premium: none stored"),
        pytest.param(TAGS, '{"tags":[]}', '{"metadata":{}}', True, id="premium: empty, none stored"),
        pytest.param(TAGS, '{"tags":null}', '{"metadata":{"tags":[]}}', True, id="premium: null, empty stored"),
        pytest.param(TAGS, '{"tags":[]}', '{"metadata":{"tags":["a"]}}', False, id="premium: emptied"),
        pytest.param(
            TAGS,
            '{"tags":["a"],"metadata":{"tags":["a"],"b":1}}',
            '{"metadata":{"tags":["a"]}}',
            True,
            id="premium: in the sent metadata too",
        ),
        pytest.param(
            TAGS,
            '{"tags":["a"],"metadata":{"b":1}}',
            '{"metadata":{"tags":["a"]}}',
            False,
            id="premium: the sent metadata would wipe it",
        ),
        pytest.param(
            TAGS, '{"tags":["a"],"metadata":null}', '{"metadata":{"tags":["a"]}}', False, id="premium: metadata null"
        ),
        pytest.param(
            TAGS,
            '{"tags":[],"metadata":{"tags":["a"]}}',
            '{"metadata":{}}',
            False,
            id="premium: empty over the sent metadata's",
        ),
        pytest.param(TAGS, '{"tags":[]}', '{"metadata":null}', None, id="premium: no metadata stored"),
        pytest.param(TAGS, '{"tags":[]}', "{}", None, id="premium: metadata missing"),
        pytest.param(
            object_permission, '{"object_permission":{}}', '{"object_permission":null}', True, id="permission: none"
        ),
        pytest.param(
            object_permission,
            '{"object_permission":{}}',
            '{"object_permission":null,"object_permission_id":"1"}',
            None,
            id="permission: one that is not shown",
        ),
        pytest.param(
            object_permission,
            '{"object_permission":{"agents":["a"]}}',
            '{"object_permission":{"agents":["a"]},"object_permission_id":"1"}',
            True,
            id="permission: the same",
        ),
        pytest.param(object_permission, '{"object_permission":{}}', "{}", None, id="permission: missing"),
        pytest.param(soft_budget, '{"soft_budget":null}', '{"litellm_budget_table":null}', True, id="no table"),
        pytest.param(soft_budget, '{"soft_budget":1}', '{"litellm_budget_table":null}', False, id="no table, a budget"),
        pytest.param(
            soft_budget, '{"soft_budget":1}', '{"litellm_budget_table":{"soft_budget":1.0}}', True, id="table"
        ),
        pytest.param(
            soft_budget, '{"soft_budget":2}', '{"litellm_budget_table":{"soft_budget":1.0}}', False, id="table, another"
        ),
        pytest.param(
            soft_budget, '{"soft_budget":null}', '{"litellm_budget_table":{"soft_budget":null}}', True, id="both null"
        ),
        pytest.param(soft_budget, '{"soft_budget":null}', "{}", None, id="table missing"),
        pytest.param(soft_budget, '{"soft_budget":1}', '{"litellm_budget_table":{}}', None, id="column missing"),
        pytest.param(soft_budget, '{"soft_budget":1}', '{"litellm_budget_table":[]}', None, id="an odd table"),
    ],
)
def test_judges(judge: Judge, sent: str, row: str, verdict: bool | None) -> None:
    """A judge sees all that is sent and all that is stored."""
    assert judge(values(sent), values(row)) is verdict

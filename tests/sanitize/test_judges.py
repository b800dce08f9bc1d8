"""What "unchanged" means: comparators of values, and judges of members."""

import pytest

from sanitizer.sanitize.jsonedit import Json, loads
from sanitizer.sanitize.judges import (
    Comparator,
    Judge,
    both_null,
    column,
    empty_for_null,
    metadata_member,
    object_permission,
    same_list,
    same_number,
    same_object,
    same_object_permission,
    same_strings,
    same_windows,
    soft_budget,
    unless_team_changes,
)

DAY, WEEK = '{"budget_duration":"1d","max_budget":5}', '{"budget_duration":"7d","max_budget":20.5}'
STORED = (
    '[{"budget_duration":"1d","max_budget":5.0,"reset_at":"2026-01-02T00:00:00+00:00"},'
    '{"reset_at":"2026-01-05T00:00:00+00:00","max_budget":20.5,"budget_duration":"7d"}]'
)
NO_DATE = '[{"budget_duration":"1d","max_budget":5.0}]'


PERMISSION = (
    '{"object_permission_id":"1","vector_stores":["v1"],"mcp_servers":[],"models":null,"blocked_tools":["a","b"]}'
)


@pytest.mark.parametrize(
    ("compare", "sent", "stored", "verdict"),
    [
        pytest.param(same_strings, '["a","b"]', '["a","b"]', True, id="strings: the same"),
        pytest.param(same_strings, '["b","a"]', '["a","b"]', True, id="strings: reordered"),
        pytest.param(same_strings, '["a","a","b"]', '["a","b","b"]', True, id="strings: duplicates"),
        pytest.param(same_strings, "[]", "[]", True, id="strings: both empty"),
        pytest.param(same_strings, "[]", '["a"]', False, id="strings: emptied"),
        pytest.param(same_strings, '["a"]', "[]", False, id="strings: filled"),
        pytest.param(same_strings, '["a"]', '["a","b"]', False, id="strings: one item fewer"),
        pytest.param(same_strings, '["A"]', '["a"]', False, id="strings: another case"),
        pytest.param(same_strings, '["a "]', '["a"]', False, id="strings: white space"),
        pytest.param(same_strings, '["a",1]', '["a"]', False, id="strings: a number among the sent"),
        pytest.param(same_strings, '["a",null]', '["a"]', False, id="strings: a null among the sent"),
        pytest.param(same_strings, '["a",["b"]]', '["a"]', False, id="strings: a list among the sent"),
        pytest.param(same_strings, '"a"', '["a"]', False, id="strings: a string"),
        pytest.param(same_strings, '{"a":1}', '["a"]', False, id="strings: an object"),
        pytest.param(same_strings, "true", "[]", False, id="strings: true"),
        pytest.param(same_strings, "null", "[]", False, id="strings: null"),
        pytest.param(same_strings, r'["\ud800"]', '["a"]', False, id="strings: a lone surrogate"),
        pytest.param(same_strings, '["a"]', "null", None, id="strings: null stored"),
        pytest.param(same_strings, '["a"]', '"a"', None, id="strings: a string stored"),
        pytest.param(same_strings, '["a",1]', '["a",1]', None, id="strings: a number stored"),
        pytest.param(same_strings, "[[]]", "[[]]", None, id="strings: a list stored in the list"),
        pytest.param(same_list, '["a","b"]', '["a","b"]', True, id="list: the same"),
        pytest.param(same_list, "[]", "[]", True, id="list: both empty"),
        pytest.param(same_list, '["b","a"]', '["a","b"]', False, id="list: reordered"),
        pytest.param(same_list, '["a","a"]', '["a"]', False, id="list: a duplicate"),
        pytest.param(same_list, "[]", '["a"]', False, id="list: emptied"),
        pytest.param(same_list, '["a"]', "[]", False, id="list: filled"),
        pytest.param(same_list, '["a",1]', '["a"]', False, id="list: a number among the sent"),
        pytest.param(same_list, '"a"', '["a"]', False, id="list: a string"),
        pytest.param(same_list, "null", "[]", False, id="list: null"),
        pytest.param(same_list, "null", "null", None, id="list: null stored"),
        pytest.param(same_list, "[1]", "[1]", None, id="list: a number stored"),
        pytest.param(same_object, "{}", "{}", True, id="object: both empty"),
        pytest.param(
            same_object, '{"a":1,"b":{"c":[null]}}', '{"b":{"c":[null]},"a":1.0}', True, id="object: the same"
        ),
        pytest.param(same_object, '{"a":1}', '{"a":true}', False, id="object: a number for a boolean"),
        pytest.param(
            same_object,
            '{"a":0.1}',
            '{"a":0.10000000000000001}',
            False,
            id="object: different numbers that are equal as floats",
        ),
        pytest.param(same_object, '{"a":[1,2]}', '{"a":[2,1]}', False, id="object: a reordered array"),
        pytest.param(same_object, '{"a":null}', "{}", False, id="object: an additional null"),
        pytest.param(same_object, "{}", '{"a":1}', False, id="object: emptied"),
        pytest.param(same_object, '{"a":NaN}', '{"a":NaN}', False, id="object: NaN"),
        pytest.param(same_object, "[]", "{}", False, id="object: a list"),
        pytest.param(same_object, "null", "{}", False, id="object: null"),
        pytest.param(same_object, "{}", "null", None, id="object: null stored"),
        pytest.param(same_object, '"{}"', '"{}"', None, id="object: a string stored"),
        pytest.param(same_object, "[]", "[]", None, id="object: a list stored"),
        pytest.param(same_windows, "[]", "null", True, id="windows: empty, null stored"),
        pytest.param(same_windows, "[]", "[]", True, id="windows: both empty"),
        pytest.param(same_windows, f"[{DAY},{WEEK}]", STORED, True, id="windows: the same"),
        pytest.param(same_windows, STORED, STORED, True, id="windows: the same, with LiteLLM's reset_at"),
        pytest.param(same_windows, f"[{DAY}]", NO_DATE, True, id="windows: stored without reset_at"),
        pytest.param(same_windows, f"[{WEEK},{DAY}]", STORED, False, id="windows: reordered"),
        pytest.param(same_windows, f"[{DAY}]", STORED, False, id="windows: one window fewer"),
        pytest.param(same_windows, f"[{DAY},{WEEK},{WEEK}]", STORED, False, id="windows: one window more"),
        pytest.param(same_windows, "[]", STORED, False, id="windows: emptied"),
        pytest.param(same_windows, f"[{DAY}]", "null", False, id="windows: filled"),
        pytest.param(same_windows, f"[{DAY}]".replace("5", "6"), NO_DATE, False, id="windows: another budget"),
        pytest.param(
            same_windows,
            f"[{DAY}]".replace("1d", "24h"),
            NO_DATE,
            False,
            id="windows: the same duration in another spelling",
        ),
        pytest.param(
            same_windows,
            f"[{DAY}]".replace("5", '"5"'),
            NO_DATE,
            False,
            id="windows: a budget sent as a string",
        ),
        pytest.param(same_windows, f"[{DAY}]".replace("5", "null"), NO_DATE, False, id="windows: a null budget"),
        pytest.param(same_windows, STORED.replace("2026", "2027"), STORED, False, id="windows: another reset_at"),
        pytest.param(
            same_windows,
            STORED.replace('"2026-01-02T00:00:00+00:00"', "null"),
            STORED,
            False,
            id="windows: a null reset_at",
        ),
        pytest.param(
            same_windows, f"[{DAY}]".replace("}", ',"x":1}'), NO_DATE, False, id="windows: an additional member"
        ),
        pytest.param(same_windows, '[{"budget_duration":"1d"}]', NO_DATE, False, id="windows: a missing member"),
        pytest.param(same_windows, '[["1d",5]]', NO_DATE, False, id="windows: a list in the list"),
        pytest.param(same_windows, "[null]", NO_DATE, False, id="windows: a null in the list"),
        pytest.param(same_windows, DAY, NO_DATE, False, id="windows: an object"),
        pytest.param(same_windows, '""', "null", False, id="windows: a string"),
        pytest.param(same_windows, "{}", "null", False, id="windows: an empty object"),
        pytest.param(same_windows, "false", "null", False, id="windows: false"),
        pytest.param(same_windows, "null", "null", True, id="windows: both null"),
        pytest.param(same_windows, "null", "[]", True, id="windows: null, an empty list stored"),
        pytest.param(same_windows, "null", STORED, False, id="windows: null, windows stored"),
        pytest.param(same_windows, "[]", '"[]"', None, id="windows: a string stored"),
        pytest.param(same_windows, "[]", "{}", None, id="windows: an object stored"),
        pytest.param(
            same_windows,
            f"[{DAY}]".replace("5", '"5"'),
            f"[{DAY}]".replace("5", '"5"'),
            None,
            id="windows: a budget stored as a string",
        ),
        pytest.param(
            same_windows,
            f"[{DAY}]".replace("5", "true"),
            f"[{DAY}]".replace("5", "true"),
            None,
            id="windows: a boolean stored",
        ),
        pytest.param(
            same_windows,
            NO_DATE.replace("}", ',"x":1}'),
            NO_DATE.replace("}", ',"x":1}'),
            None,
            id="windows: an unknown member stored",
        ),
        pytest.param(
            same_windows, f"[{DAY}]".replace("5", "NaN"), f"[{DAY}]".replace("5", "NaN"), False, id="windows: NaN"
        ),
        pytest.param(same_number, "1.5", "1.50", True, id="number: the same"),
        pytest.param(same_number, "0", "0.0", True, id="number: zero"),
        pytest.param(same_number, "1", "2", False, id="number: another"),
        pytest.param(same_number, "true", "1", False, id="number: a boolean sent"),
        pytest.param(same_number, '"1"', "1", False, id="number: a string sent"),
        pytest.param(same_number, "NaN", "NaN", False, id="number: NaN"),
        pytest.param(same_number, "null", "null", True, id="number: both null"),
        pytest.param(same_number, "0", "null", False, id="number: null stored"),
        pytest.param(same_number, "1", '"1"', None, id="number: a string stored"),
        pytest.param(both_null, "null", "null", True, id="both null"),
        pytest.param(both_null, "null", '"u"', False, id="null: a string stored"),
        pytest.param(both_null, '"u"', "null", False, id="null: a string sent"),
        pytest.param(empty_for_null, '""', "null", True, id="empty for null"),
        pytest.param(empty_for_null, '""', '""', True, id="empty for empty"),
        pytest.param(empty_for_null, '""', '"t"', False, id="empty for a string"),
        pytest.param(empty_for_null, '"t"', "null", False, id="a string for null"),
        pytest.param(empty_for_null, "null", "null", False, id="null for null"),
        pytest.param(empty_for_null, '""', "1", None, id="empty for a number"),
        pytest.param(same_object_permission, PERMISSION, PERMISSION, True, id="permission: all members"),
        pytest.param(
            same_object_permission, '{"vector_stores":["v1"]}', PERMISSION, True, id="permission: some members"
        ),
        pytest.param(
            same_object_permission,
            '{"agents":[],"models":{}}',
            PERMISSION,
            True,
            id="permission: empty, null or no member stored",
        ),
        pytest.param(same_object_permission, "{}", PERMISSION, True, id="permission: no member"),
        pytest.param(same_object_permission, '{"mcp_servers":[]}', "null", True, id="permission: empty, none stored"),
        pytest.param(same_object_permission, "null", "null", True, id="permission: null, none stored"),
        pytest.param(same_object_permission, "null", PERMISSION, False, id="permission: removed"),
        pytest.param(same_object_permission, '{"vector_stores":[]}', PERMISSION, False, id="permission: emptied"),
        pytest.param(same_object_permission, '{"vector_stores":["v2"]}', PERMISSION, False, id="permission: another"),
        pytest.param(
            same_object_permission, '{"blocked_tools":["b","a"]}', PERMISSION, False, id="permission: reordered"
        ),
        pytest.param(
            same_object_permission, '{"agents":["x"]}', PERMISSION, False, id="permission: an additional member"
        ),
        pytest.param(
            same_object_permission, '{"agents":false}', PERMISSION, False, id="permission: false is not empty"
        ),
        pytest.param(same_object_permission, '{"agents":0}', PERMISSION, False, id="permission: zero is not empty"),
        pytest.param(same_object_permission, '["v1"]', PERMISSION, False, id="permission: a list"),
        pytest.param(same_object_permission, "{}", "[]", None, id="permission: a list stored"),
    ],
)
def test_comparators(compare: Comparator, sent: str, stored: str, verdict: bool | None) -> None:
    """A comparator returns whether the sent value is the stored one, or None if the stored value has an unknown shape.

    Lists of strings are compared item by item, or as sets. Objects are compared strictly and at every depth. Budget
    windows are compared in order, by what a caller sets, and object permissions by the members that are sent.
    """
    assert compare(loads(sent.encode()), loads(stored.encode())) is verdict


def values(text: str) -> dict[str, Json]:
    value = loads(text.encode())
    assert isinstance(value, dict)
    return value


GROUPS = unless_team_changes(column("access_group_ids", same_list))
TAGS = metadata_member("tags")


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
            id="team: an empty string for null",
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
            id="team: removed",
        ),
        pytest.param(
            GROUPS,
            '{"access_group_ids":["a"],"team_id":"t"}',
            '{"access_group_ids":["a"]}',
            None,
            id="team: missing in the stored key",
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
            id="premium: also in the sent metadata",
        ),
        pytest.param(
            TAGS,
            '{"tags":["a"],"metadata":{"b":1}}',
            '{"metadata":{"tags":["a"]}}',
            False,
            id="premium: missing in the sent metadata",
        ),
        pytest.param(
            TAGS,
            '{"tags":["a"],"metadata":null}',
            '{"metadata":{"tags":["a"]}}',
            False,
            id="premium: null metadata sent",
        ),
        pytest.param(
            TAGS,
            '{"tags":[],"metadata":{"tags":["a"]}}',
            '{"metadata":{}}',
            False,
            id="premium: empty, but not in the sent metadata",
        ),
        pytest.param(TAGS, '{"tags":[]}', '{"metadata":null}', None, id="premium: null metadata stored"),
        pytest.param(TAGS, '{"tags":[]}', "{}", None, id="premium: stored metadata is missing"),
        pytest.param(
            object_permission,
            '{"object_permission":{}}',
            '{"object_permission":null}',
            True,
            id="permission: empty, none stored",
        ),
        pytest.param(
            object_permission,
            '{"object_permission":{}}',
            '{"object_permission":null,"object_permission_id":"1"}',
            None,
            id="permission: an ID without the permission",
        ),
        pytest.param(
            object_permission,
            '{"object_permission":{"agents":["a"]}}',
            '{"object_permission":{"agents":["a"]},"object_permission_id":"1"}',
            True,
            id="permission: the same",
        ),
        pytest.param(object_permission, '{"object_permission":{}}', "{}", None, id="permission: missing"),
        pytest.param(
            soft_budget,
            '{"soft_budget":null}',
            '{"litellm_budget_table":null}',
            True,
            id="budget: null, no table stored",
        ),
        pytest.param(
            soft_budget,
            '{"soft_budget":1}',
            '{"litellm_budget_table":null}',
            False,
            id="budget: a number, no table stored",
        ),
        pytest.param(
            soft_budget,
            '{"soft_budget":1}',
            '{"litellm_budget_table":{"soft_budget":1.0}}',
            True,
            id="budget: the same",
        ),
        pytest.param(
            soft_budget,
            '{"soft_budget":2}',
            '{"litellm_budget_table":{"soft_budget":1.0}}',
            False,
            id="budget: another",
        ),
        pytest.param(
            soft_budget,
            '{"soft_budget":null}',
            '{"litellm_budget_table":{"soft_budget":null}}',
            True,
            id="budget: both null",
        ),
        pytest.param(soft_budget, '{"soft_budget":null}', "{}", None, id="budget: the table is missing"),
        pytest.param(
            soft_budget, '{"soft_budget":1}', '{"litellm_budget_table":{}}', None, id="budget: the column is missing"
        ),
        pytest.param(
            soft_budget, '{"soft_budget":1}', '{"litellm_budget_table":[]}', None, id="budget: the table is a list"
        ),
    ],
)
def test_judges(judge: Judge, sent: str, row: str, verdict: bool | None) -> None:
    """A judge compares a member with the stored key, and takes the other sent members into account."""
    assert judge(values(sent), values(row)) is verdict

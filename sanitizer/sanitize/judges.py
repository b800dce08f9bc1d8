"""What "unchanged" means: functions that compare what a client has sent with what LiteLLM has stored.

A `Comparator` compares one sent value with one stored value. A `Judge` decides about one member of the request's body;
it is called with all members that were sent and all columns of the stored key. Both return True for unchanged, False
for changed, and None if the stored value does not have the expected shape. A member is cut only if the result is True.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import TypeGuard

from sanitizer.sanitize.jsonedit import Json, equal

Sent = dict[str, Json]
"""Members of the object that was sent, by name."""
Row = dict[str, Json]
"""The columns of the stored key: ``info`` in the response to ``GET /key/info``."""
Comparator = Callable[[Json, Json], bool | None]
"""Compares a sent value (the first argument) with the stored one (the second)."""
Judge = Callable[[Sent, Row], bool | None]
"""Decides whether one particular member, which is among those sent, is unchanged."""


def any_value(sent: Json) -> bool:
    """Accepts any value."""
    return True


def not_null(sent: Json) -> bool:
    """Accepts any value but null, for columns in which LiteLLM never stores null."""
    return sent is not None


def is_null(sent: Json) -> bool:
    """Accepts null alone."""
    return sent is None


def is_empty_string(sent: Json) -> bool:
    """Accepts the empty string alone, which clients that cannot send null send instead."""
    return sent == ""


def same_list(sent: Json, stored: Json) -> bool | None:
    """Compares lists of strings item by item."""
    if not _is_list_of_strings(stored):
        return None
    return _is_list_of_strings(sent) and sent == stored


def same_strings(sent: Json, stored: Json) -> bool | None:
    """Compares lists of strings as sets. LiteLLM's dashboard does the same, and clients such as Terraform reorder."""
    if not _is_list_of_strings(stored):
        return None
    return _is_list_of_strings(sent) and set(sent) == set(stored)


def same_object(sent: Json, stored: Json) -> bool | None:
    """Compares JSON objects by strict equality at every depth."""
    return equal(sent, stored) if isinstance(stored, dict) else None


def same_number(sent: Json, stored: Json) -> bool | None:
    """Compares numbers. A stored null equals only a sent null."""
    return equal(sent, stored) if stored is None or isinstance(stored, Decimal) else None


def both_null(sent: Json, stored: Json) -> bool | None:
    """True if null was sent and null is stored."""
    return sent is None and stored is None


def empty_for_null(sent: Json, stored: Json) -> bool | None:
    """True if the empty string was sent, and null or the empty string is stored."""
    if stored is not None and not isinstance(stored, str):
        return None
    return sent == "" and not stored


def same_windows(sent: Json, stored: Json) -> bool | None:
    """Compares budget windows item by item, by what a caller can set: ``budget_duration`` and ``max_budget``.

    Null and ``[]`` both mean that there are no windows. LiteLLM stores ``reset_at`` and ignores it in a request, so a
    window may be sent without it. If it is sent, it must equal the stored one. The order of the windows must be the
    same: LiteLLM gives it no meaning, but would store a new order.
    """
    sent, stored = ([] if windows is None else windows for windows in (sent, stored))
    if not isinstance(stored, list) or not all(_is_window(item) for item in stored):
        return None
    return (
        isinstance(sent, list)
        and len(sent) == len(stored)
        and all(_same_window(one, other) for one, other in zip(sent, stored, strict=True))
    )


def same_object_permission(sent: Json, stored: Json) -> bool | None:
    """Compares each member that was sent with the stored one; a member that is absent equals an empty one.

    Members that were not sent are not compared: LiteLLM merges the two objects member by member, and its dashboard
    sends only some of the members.
    """
    if stored is not None and not isinstance(stored, dict):
        return None
    if sent is None or not isinstance(sent, dict):
        return sent is None and stored is None
    columns = stored or {}
    return all(_same_or_both_empty(value, columns.get(name)) for name, value in sent.items())


def column(name: str, compare: Comparator) -> Judge:
    """Returns a judge of the member ``name``, which is stored in the column of the same name."""

    def judge(sent: Sent, row: Row) -> bool | None:
        return compare(sent[name], row[name]) if name in row else None

    return judge


def unless_team_changes(judge: Judge) -> Judge:
    """Returns ``judge`` with one more condition: a request that changes the key's team changes the member too.

    LiteLLM checks such a member against the new team, even if the member itself is the stored one.
    """

    def judge_with_team(sent: Sent, row: Row) -> bool | None:
        if "team_id" in sent:
            if "team_id" not in row:
                return None
            if not _same_or_both_empty(sent["team_id"], row["team_id"]):
                return False
        return judge(sent, row)

    return judge_with_team


def metadata_member(name: str) -> Judge:
    """Returns a judge of the top-level member ``name``, which LiteLLM stores as a member of the column ``metadata``.

    An absent member equals an empty one. LiteLLM replaces the stored ``metadata`` with the one that is sent, and then
    sets such members in it. If the body has no ``metadata``, leaving out the stored value of such a member therefore
    changes nothing. If the body has one, it must hold the same value too.
    """

    def judge(sent: Sent, row: Row) -> bool | None:
        stored = row.get("metadata")
        if not isinstance(stored, dict):
            return None
        value = sent[name]
        if "metadata" in sent:
            metadata = sent["metadata"]
            if not isinstance(metadata, dict) or not _same_or_both_empty(value, metadata.get(name)):
                return False
        return _same_or_both_empty(value, stored.get(name))

    return judge


def object_permission(sent: Sent, row: Row) -> bool | None:
    """The judge of ``object_permission``, which LiteLLM stores in a table of its own.

    A lookup by alias shows only the ``object_permission_id`` that refers to it. It cannot be compared then.
    """
    if "object_permission" not in row or (row["object_permission"] is None and row.get("object_permission_id")):
        return None
    return same_object_permission(sent["object_permission"], row["object_permission"])


def soft_budget(sent: Sent, row: Row) -> bool | None:
    """The judge of ``soft_budget``, which LiteLLM stores in a table of budgets. A key may have no row there."""
    table = row.get("litellm_budget_table", False)  # False: this LiteLLM does not show it
    if table is None:
        return sent["soft_budget"] is None
    if not isinstance(table, dict) or "soft_budget" not in table:
        return None
    return same_number(sent["soft_budget"], table["soft_budget"])


def _is_list_of_strings(value: Json) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_window(value: Json) -> TypeGuard[dict[str, Json]]:
    return (
        isinstance(value, dict)
        and {"budget_duration", "max_budget"} <= value.keys() <= {"budget_duration", "max_budget", "reset_at"}
        and isinstance(value["budget_duration"], str)
        and isinstance(value["max_budget"], Decimal)
    )


def _same_window(sent: Json, stored: Json) -> bool:
    if not _is_window(sent) or not _is_window(stored):
        return False
    # a `reset_at` that was not sent counts as the stored one
    return equal({"reset_at": stored.get("reset_at"), **sent}, {"reset_at": None, **stored})


def _is_empty(value: Json) -> bool:
    """Whether LiteLLM treats the value as absent: null, or an empty list, object or string."""
    return value is None or value in ([], {}, "")


def _same_or_both_empty(one: Json, other: Json) -> bool:
    return (_is_empty(one) and _is_empty(other)) or equal(one, other)

"""What "unchanged" means: comparisons of a sent value with the stored one, and judges that know the whole request.

A `Comparison` looks at two values, a `Judge` at all members that were sent and all columns that are stored. Both say
True for unchanged, False for changed, and None if what is stored has not the shape that it is known for.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import TypeGuard

from sanitizer.sanitize.jsonedit import Json, equal

Sent = dict[str, Json]
"""Members of the submitted object."""
Row = dict[str, Json]
"""The columns of the stored key: ``info`` of ``GET /key/info``."""
Comparison = Callable[[Json, Json], bool | None]
"""Is the sent value (first) the stored one (second)?"""
Judge = Callable[[Sent, Row], bool | None]
"""Is a certain member unchanged?"""


def is_any(sent: Json) -> bool:
    """Any value."""
    return True


def not_null(sent: Json) -> bool:
    """Any value but null, which LiteLLM never stores in this column."""
    return sent is not None


def is_null(sent: Json) -> bool:
    """Null."""
    return sent is None


def is_empty_string(sent: Json) -> bool:
    """The empty string, from a client that cannot send null."""
    return sent == ""


def same_list(sent: Json, stored: Json) -> bool | None:
    """Lists of strings, item by item."""
    if not _strings(stored):
        return None
    return _strings(sent) and sent == stored


def same_strings(sent: Json, stored: Json) -> bool | None:
    """Lists of strings, compared as sets: LiteLLM's dashboard does so, and Terraform-like clients reorder."""
    if not _strings(stored):
        return None
    return _strings(sent) and set(sent) == set(stored)


def same_object(sent: Json, stored: Json) -> bool | None:
    """JSON objects, by strict equality at every depth."""
    return equal(sent, stored) if isinstance(stored, dict) else None


def same_number(sent: Json, stored: Json) -> bool | None:
    """Numbers; a stored null is equal to a sent null alone."""
    return equal(sent, stored) if stored is None or isinstance(stored, Decimal) else None


def both_null(sent: Json, stored: Json) -> bool | None:
    """Null, where null is stored."""
    return sent is None and stored is None


def empty_for_null(sent: Json, stored: Json) -> bool | None:
    """An empty string, where null or an empty string is stored."""
    if stored is not None and not isinstance(stored, str):
        return None
    return sent == "" and not stored


def same_windows(sent: Json, stored: Json) -> bool | None:
    """Budget windows, compared item by item on what a caller may set: ``budget_duration`` and ``max_budget``.

    No windows are null or ``[]``, sent and stored. ``reset_at`` is LiteLLM's: it stands in what is stored, and is not
    read in what is sent, which may repeat it but not differ. The order counts: LiteLLM gives it no meaning, but would
    store it.
    """
    sent, stored = ([] if windows is None else windows for windows in (sent, stored))
    if not isinstance(stored, list) or not all(_window(item) for item in stored):
        return None
    return (
        isinstance(sent, list)
        and len(sent) == len(stored)
        and all(_same_window(one, other) for one, other in zip(sent, stored, strict=True))
    )


def same_permission(sent: Json, stored: Json) -> bool | None:
    """Object permissions: each member that is sent equals the stored one, absent and empty alike.

    LiteLLM merges them member by member, and its dashboard sends some of them.
    """
    if stored is not None and not isinstance(stored, dict):
        return None
    if sent is None or not isinstance(sent, dict):
        return sent is None and stored is None
    columns = stored or {}
    return all(_same_or_empty(value, columns.get(name)) for name, value in sent.items())


def column(name: str, compare: Comparison) -> Judge:
    """A judge of the member ``name``, which is stored in the column of that name."""

    def judge(sent: Sent, row: Row) -> bool | None:
        return compare(sent[name], row[name]) if name in row else None

    return judge


def of_the_team(judge: Judge) -> Judge:
    """A judge that takes the member for changed if the team changes too: LiteLLM judges it against the new team."""

    def stays(sent: Sent, row: Row) -> bool | None:
        if "team_id" in sent:
            if "team_id" not in row:
                return None
            if not _same_or_empty(sent["team_id"], row["team_id"]):
                return False
        return judge(sent, row)

    return stays


def premium(name: str) -> Judge:
    """A judge of a member that LiteLLM keeps in ``metadata``; no value is the same as an empty one.

    A sent ``metadata`` replaces the stored one, and such members are laid over it. So leaving one out is the same as
    sending what is stored only if the body has no ``metadata``, or one with the same value in it.
    """

    def judge(sent: Sent, row: Row) -> bool | None:
        stored = row.get("metadata")
        if not isinstance(stored, dict):
            return None
        value = sent[name]
        if "metadata" in sent:
            metadata = sent["metadata"]
            if not isinstance(metadata, dict) or not _same_or_empty(value, metadata.get(name)):
                return False
        return _same_or_empty(value, stored.get(name))

    return judge


def object_permission(sent: Sent, row: Row) -> bool | None:
    """The judge of ``object_permission``, a row of its own that a lookup by alias does not show."""
    if "object_permission" not in row or (row["object_permission"] is None and row.get("object_permission_id")):
        return None
    return same_permission(sent["object_permission"], row["object_permission"])


def soft_budget(sent: Sent, row: Row) -> bool | None:
    """The judge of ``soft_budget``, which is stored in a table of budgets that a key need not have."""
    table = row.get("litellm_budget_table", False)
    if table is None:
        return sent["soft_budget"] is None
    if not isinstance(table, dict) or "soft_budget" not in table:
        return None
    return same_number(sent["soft_budget"], table["soft_budget"])


def _strings(value: Json) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _window(value: Json) -> TypeGuard[dict[str, Json]]:
    return (
        isinstance(value, dict)
        and {"budget_duration", "max_budget"} <= value.keys() <= {"budget_duration", "max_budget", "reset_at"}
        and isinstance(value["budget_duration"], str)
        and isinstance(value["max_budget"], Decimal)
    )


def _same_window(sent: Json, stored: Json) -> bool:
    if not _window(sent) or not _window(stored):
        return False
    return equal({"reset_at": stored.get("reset_at"), **sent}, {"reset_at": None, **stored})


def _empty(value: Json) -> bool:
    """Whether LiteLLM treats the value as none: null, an empty list, object or string."""
    return value is None or value in ([], {}, "")


def _same_or_empty(one: Json, other: Json) -> bool:
    return (_empty(one) and _empty(other)) or equal(one, other)

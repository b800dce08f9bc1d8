"""The table: which field of which endpoint LiteLLM refuses on mere presence, and when it may be cut out.

One row for each gate. Two kinds of cut are made, and nothing else:

* *Before forwarding*: what is a no-op for every caller, administrators included, on every release. Leaving it out is
  the same as sending its stored value.
* *After refusal*: what is unchanged in meaning, but would be stored by LiteLLM from someone who may write it, or has an
  effect of its own (an order, a time at which a budget begins anew, a counter). It goes to LiteLLM as it came. Only if
  LiteLLM has refused the request because of it is the request sent again without it.

No release writes anything before one of the refusals below: read in, and seen on, LiteLLM 1.83.13,
1.92.0, 1.109.1 and 1.110.2.

A new row here needs one in README's table, and one in each of these. A test fails until they are there:

* `tests/sanitize`: ``AFTER`` or ``BEFORE`` in ``test_gates``, ``ROW`` in ``test_core``
* `tests/operate/test_check`: a list ``SINCE_...``
* `tests/litellm`: ``TABLE`` in ``matrix``, ``REPAIRED`` in ``test_matrix``, ``REFUSALS`` in ``test_refusals``,
  ``GUESSES`` in ``test_lookup_key``; and, though that test needs a LiteLLM, ``REPAIRED`` in ``test_discover``

A field that may be null in LiteLLM needs a `Gate.can_be_unchanged` of its own: the usual one takes null for a change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from sanitizer.sanitize.jsonedit import Json
from sanitizer.sanitize.judges import (
    Judge,
    both_null,
    column,
    empty_for_null,
    is_any,
    is_empty_string,
    is_null,
    not_null,
    object_permission,
    of_the_team,
    premium,
    same_list,
    same_number,
    same_object,
    same_strings,
    same_windows,
    soft_budget,
)


class Cut(Enum):
    """When an unchanged member may be cut out."""

    BEFORE_FORWARDING = "before forwarding"
    AFTER_REFUSAL = "after refusal"


class Refused(NamedTuple):
    """LiteLLM releases that refuse an unchanged value: from ``since`` on, those before ``before`` (None: to date)."""

    since: str
    before: str | None
    value: str
    """Which unchanged values it is about, and from whom."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One guarded field of one endpoint (always ``POST``), and one sense in which it can be unchanged."""

    endpoint: str
    """Path without a prefix; ``{key}`` stands for the key, where the path names it."""
    field: str
    """Top-level member of the body."""
    unchanged: Judge
    cut: Cut
    fragments: tuple[str, ...]
    """Parts of LiteLLM's refusals, one of which each of them contains. They name the member, and hold no value."""
    refused: tuple[Refused, ...] = ()
    """The evidence, from releases up to `NEWEST`."""
    can_be_unchanged: Callable[[Json], bool] = not_null
    """Whether a sent value can be unchanged at all, whatever is stored."""
    status: int = 403
    """Of LiteLLM's refusal."""


NEWEST: Final = "1.110.2"
"""The newest LiteLLM that the table is made from."""

UPDATE: Final = "/key/update"
REGENERATE: Final = ("/key/regenerate", "/key/{key}/regenerate")
_BEFORE, _AFTER = Cut.BEFORE_FORWARDING, Cut.AFTER_REFUSAL
_NEVER_COMPARED: Final = (Refused("1.92.0", None, "any value"),)
_SAME_ROUTES: Final = (
    "allowed_routes",
    column("allowed_routes", same_list),
    _BEFORE,
    ("Only proxy admins can set `allowed_routes` on a key",),
)
# an administrator's new order is stored
_REORDERED_ROUTES: Final = ("allowed_routes", column("allowed_routes", same_strings), _AFTER, _SAME_ROUTES[-1])
# stored as {} unless set
_SAME_PERMISSIONS: Final = (
    "permissions",
    column("permissions", same_object),
    _BEFORE,
    ("Only proxy admins can set `permissions`",),
)
# the dashboard always sends it; an empty list is not refused
_SAME_ACCESS_GROUPS: Final = (
    "access_group_ids",
    of_the_team(column("access_group_ids", same_list)),
    _BEFORE,
    (
        "Team members cannot assign access groups",
        "Access groups cannot be assigned to personal keys",
        "Access groups must be assigned to the key",  # 1.110.0
    ),
)
_BUDGET: Final = ("can call /key/update (max_budget/spend)",)
_OBJECT_PERMISSION: Final = (
    "Vector stores cannot be assigned to",
    "search_tools cannot be assigned to",
    "MCP access groups cannot be assigned to",
    "MCP toolsets cannot be assigned to",
    "Only globally available (allow_all_keys) MCP servers",
    "Key requests MCP servers not allowed by team",
    "Key requests MCP access groups not allowed by team",
    "Key requests MCP toolsets not allowed by team",
    "Key requests search tools not allowed by team",
)

GATES: Final = (
    Gate(
        UPDATE,  # BerriAI/litellm#26555, #27005, #33277; it came with BerriAI/litellm#25445
        *_SAME_ROUTES,
        (
            Refused("1.83.7", "1.101.0", "the lists of key types LLM API and read-only"),
            Refused("1.83.7", "1.109.0", "the list of key type management, and custom lists"),
            Refused("1.92.0", "1.101.0", "the empty list"),
        ),
    ),
    Gate(UPDATE, *_REORDERED_ROUTES, (Refused("1.83.7", None, "a custom list in another order"),)),
    Gate(UPDATE, *_SAME_PERMISSIONS, _NEVER_COMPARED),
    Gate(
        UPDATE,
        *_SAME_ACCESS_GROUPS,
        (
            Refused("1.91.5", "1.110.0", "a list that is not empty, from a caller who is no admin of the key's team"),
            Refused("1.110.0", None, "a list that is not empty, from a caller who is no proxy admin"),
        ),
    ),
    # The dashboard of 1.92.0 sends [] whenever a key is saved, that of 1.100.0 no more. Sent empty, 1.83.13 stores []
    # over null, later releases null; up to 1.105.0, windows that are sent again get a new ``reset_at``.
    Gate(
        UPDATE,
        "budget_limits",
        column("budget_limits", same_windows),
        _AFTER,
        _BUDGET,
        (
            Refused(
                "1.91.5",
                None,
                "any value, null and the empty list too; since 1.109.0, general_settings.self_serve_budget_policy can "
                "allow it",
            ),
        ),
        is_any,
    ),
    # from someone who may send it, it also resets the live counter
    Gate(
        UPDATE,
        "spend",
        column("spend", same_number),
        _AFTER,
        _BUDGET,
        (Refused("1.91.5", None, "any value, from a caller who is no admin"),),
    ),
    Gate(
        UPDATE,
        "soft_budget",
        soft_budget,
        _AFTER,
        _BUDGET,
        (Refused("1.105.0", None, "any value, from a caller who is no admin"),),
        is_any,
    ),
    Gate(
        UPDATE,
        "user_id",
        column("user_id", both_null),
        _AFTER,
        ("Non-admin users cannot remove the user_id from a key",),
        (Refused("1.92.0", None, "null, of a team's service key"),),
        is_null,
    ),
    # LiteLLM's dashboard sends it on every save
    Gate(
        UPDATE,
        "object_permission",
        of_the_team(object_permission),
        _AFTER,
        _OBJECT_PERMISSION,
        (Refused("1.92.0", None, "what an admin has set on a personal key, from its owner"),),
        is_any,
    ),
    Gate(
        UPDATE,
        "metadata",
        column("metadata", same_object),
        _AFTER,
        ("Only proxy admins can set `metadata.allowed_passthrough_routes` on a key",),
        (Refused("1.92.0", None, "metadata with allowed_passthrough_routes in it"),),
    ),
    Gate(
        UPDATE,
        "allowed_passthrough_routes",
        premium("allowed_passthrough_routes"),
        _AFTER,
        ("Enterprise users: allowed_passthrough_routes.", "Only proxy admins can set `allowed_passthrough_routes`"),
        (Refused("1.83.5", None, "any list that is not empty; up to 1.91.5 the empty one too"),),
        is_any,
    ),
    *(
        Gate(
            UPDATE,
            name,
            premium(name),
            _AFTER,
            (f"Enterprise users: {name}.",),
            (Refused("1.83.5", None, "any list that is not empty, without a licence; up to 1.91.5 the empty one too"),),
            is_any,
        )
        for name in ("guardrails", "policies", "prompts", "tags")
    ),
    # LiteLLM's Terraform provider, which cannot send null, sends both on every update (BerriAI/litellm#40704, #40705)
    Gate(
        UPDATE,
        "team_id",
        column("team_id", empty_for_null),
        _AFTER,
        ("Team object not found for team change validation",),
        (Refused("1.83.5", "1.105.0", "the empty string, of a key without a team"),),
        is_empty_string,
        500,
    ),
    Gate(
        UPDATE,
        "key_alias",
        column("key_alias", empty_for_null),
        _AFTER,
        ("Unique key aliases across all keys are required",),
        (Refused("1.83.5", None, "the empty string, from the second key without an alias on"),),
        is_empty_string,
        400,
    ),
    # An Enterprise feature; it writes the key's other columns as an update does, and its licence check comes before
    # these: read, but not run. LiteLLM takes a key with slashes from the path too: such a request is not intercepted.
    *(
        gate
        for endpoint in REGENERATE
        for gate in (
            Gate(endpoint, *_SAME_ROUTES, _NEVER_COMPARED),
            Gate(endpoint, *_REORDERED_ROUTES, _NEVER_COMPARED),
            Gate(endpoint, *_SAME_PERMISSIONS, _NEVER_COMPARED),
            Gate(
                endpoint,
                *_SAME_ACCESS_GROUPS,
                (Refused("1.91.5", None, "a list that is not empty (read, not run)"),),
            ),
        )
    ),
)

FIELDS = frozenset(gate.field for gate in GATES)
"""All fields that may be dropped."""

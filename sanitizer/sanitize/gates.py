"""The table of gates: which fields LiteLLM refuses although they are unchanged, and when each may be cut.

A *guarded field* is a top-level member of a request's body that LiteLLM refuses even if it is *unchanged*, that is, if
the client has sent the stored value. A *gate* is one row of the table: a guarded field of one endpoint, with one way in
which it can be unchanged. A field that can be unchanged in two ways has two gates.

To *cut* a member is to remove it from the body. There are two kinds of cut, and no others:

* *Before forwarding*: for members whose stored value has no effect when it is sent, whoever the caller is,
  administrators included, and whatever the release. Leaving such a member out is then the same as sending it.
* *After refusal*: for members that are unchanged in meaning, but whose value has an effect if the caller may write it:
  LiteLLM stores a new order, restarts a budget window or resets a counter. The request is first forwarded as it was
  received. Only if LiteLLM refuses it because of such a member is the member cut and the request sent again.

No release writes anything before it refuses a request because of a guarded field. This was read in the source of
LiteLLM 1.83.13, 1.92.0, 1.109.1 and 1.110.2, and seen when they were run.

A new gate also needs an entry in each of these places. A test fails until all of them have one:

* the table of guarded fields in ``tests/litellm/README.md``
* the table of fragments in ``sanitizer/sanitize/README.md``
* `tests/sanitize`: ``AFTER`` or ``BEFORE`` in ``test_gates``, and ``ROW`` in ``test_core``, or ``UNCHANGED`` if it
  is null or derived
* `tests/operate/test_check`: the list ``SINCE_...`` of its release, in the order of `GATES`
* `tests/litellm`: ``TABLE`` in ``matrix``, ``REPAIRED`` in ``test_matrix``, ``REFUSALS`` in ``test_refusals``,
  ``GUESSES`` in ``test_lookup_key``, and ``REPAIRED`` in ``test_discover``, whose test needs a running LiteLLM

A field in which LiteLLM can store null needs its own `Gate.can_be_unchanged`: by default, a sent null is a change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from sanitizer.sanitize.jsonedit import Json
from sanitizer.sanitize.judges import (
    Judge,
    any_value,
    both_null,
    column,
    empty_for_null,
    is_empty_string,
    is_null,
    metadata_member,
    not_null,
    object_permission,
    same_list,
    same_number,
    same_object,
    same_strings,
    same_windows,
    soft_budget,
    unless_team_changes,
)


class Cut(Enum):
    """When an unchanged member may be cut."""

    BEFORE_FORWARDING = "before forwarding"
    AFTER_REFUSAL = "after refusal"


class Refused(NamedTuple):
    """LiteLLM releases that refuse certain unchanged values: from ``since`` on, up to but not including ``before``.

    If ``before`` is None, the newest release still refuses them.
    """

    since: str
    before: str | None
    value: str
    """Which values these are and, if it depends on the caller, from whom they are refused; `check` prints it."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One guarded field of one endpoint, with one way in which the field can be unchanged. The method is ``POST``."""

    endpoint: str
    """The path without a path prefix. ``{key}`` stands for the key, if the path contains it."""
    field: str
    """The name of the top-level member of the body."""
    unchanged: Judge
    """Decides whether the member is unchanged."""
    cut: Cut
    """When the member may be cut."""
    fragments: tuple[str, ...]
    """Parts of the texts of LiteLLM's refusals: a text that contains one of them refuses this field. Fields that the
    same check guards share their fragments. A fragment contains nothing that a client has sent."""
    refused: tuple[Refused, ...] = ()
    """Which releases, up to `NEWEST_PROVEN`, refuse which unchanged values."""
    can_be_unchanged: Callable[[Json], bool] = not_null
    """Whether the sent value can be unchanged at all, whatever is stored."""
    status: int = 403
    """The status of LiteLLM's refusal."""


NEWEST_PROVEN: Final = "1.110.2"
"""The newest LiteLLM release that the table was checked against."""

UPDATE: Final = "/key/update"
REGENERATE: Final = ("/key/regenerate", "/key/{key}/regenerate")
_BEFORE, _AFTER = Cut.BEFORE_FORWARDING, Cut.AFTER_REFUSAL
_NEVER_COMPARED: Final = (Refused("1.92.0", None, "any value"),)
# The next four tuples are arguments of `Gate`, from ``field`` to ``fragments``, that several endpoints share.
_SAME_ROUTES: Final = (
    "allowed_routes",
    column("allowed_routes", same_list),
    _BEFORE,
    ("Only proxy admins can set `allowed_routes` on a key",),
)
# If an administrator sends another order, LiteLLM stores it.
_REORDERED_ROUTES: Final = ("allowed_routes", column("allowed_routes", same_strings), _AFTER, _SAME_ROUTES[-1])
# LiteLLM stores {} until permissions are set.
_SAME_PERMISSIONS: Final = (
    "permissions",
    column("permissions", same_object),
    _BEFORE,
    ("Only proxy admins can set `permissions`",),
)
# LiteLLM's dashboard always sends this field. The empty list is not refused.
_SAME_ACCESS_GROUPS: Final = (
    "access_group_ids",
    unless_team_changes(column("access_group_ids", same_list)),
    _BEFORE,
    (
        "Team members cannot assign access groups",
        "Access groups cannot be assigned to personal keys",
        "Access groups must be assigned to the key",  # since 1.110.0
    ),
)
_BUDGET_FRAGMENTS: Final = ("can call /key/update (max_budget/spend)",)
_OBJECT_PERMISSION_FRAGMENTS: Final = (
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
        UPDATE,  # reported in BerriAI/litellm#26555, #27005 and #33277; introduced by BerriAI/litellm#25445
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
    # The dashboard of 1.92.0 sends [] whenever a key is saved; that of 1.100.0 does not. Where null is stored and []
    # is sent, 1.83.13 stores [], and later releases store null. Up to 1.105.0, windows that are sent unchanged get a
    # new ``reset_at``.
    Gate(
        UPDATE,
        "budget_limits",
        column("budget_limits", same_windows),
        _AFTER,
        _BUDGET_FRAGMENTS,
        (
            Refused(
                "1.91.5",
                None,
                "any value, null and the empty list too; since 1.109.0, general_settings.self_serve_budget_policy can "
                "allow it",
            ),
        ),
        any_value,
    ),
    # If the caller may write it, LiteLLM also resets the live counter.
    Gate(
        UPDATE,
        "spend",
        column("spend", same_number),
        _AFTER,
        _BUDGET_FRAGMENTS,
        (Refused("1.91.5", None, "any value, from a caller who is no admin"),),
    ),
    Gate(
        UPDATE,
        "soft_budget",
        soft_budget,
        _AFTER,
        _BUDGET_FRAGMENTS,
        (Refused("1.105.0", None, "any value, from a caller who is no admin"),),
        any_value,
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
    # LiteLLM's dashboard sends this field whenever a key is saved.
    Gate(
        UPDATE,
        "object_permission",
        unless_team_changes(object_permission),
        _AFTER,
        _OBJECT_PERMISSION_FRAGMENTS,
        (Refused("1.92.0", None, "a value that an admin has set on a personal key, from the key's owner"),),
        any_value,
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
        metadata_member("allowed_passthrough_routes"),
        _AFTER,
        ("Enterprise users: allowed_passthrough_routes.", "Only proxy admins can set `allowed_passthrough_routes`"),
        (Refused("1.83.5", None, "any list that is not empty; up to 1.91.5 the empty one too"),),
        any_value,
    ),
    *(
        Gate(
            UPDATE,
            name,
            metadata_member(name),
            _AFTER,
            (f"Enterprise users: {name}.",),
            (Refused("1.83.5", None, "any list that is not empty, without a licence; up to 1.91.5 the empty one too"),),
            any_value,
        )
        for name in ("guardrails", "policies", "prompts", "tags")
    ),
    # LiteLLM's Terraform provider cannot send null. It sends the empty string in both fields with every update
    # (BerriAI/litellm#40704, #40705).
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
    # Regenerating a key is an Enterprise feature. It writes the key's other columns as an update does. LiteLLM checks
    # the licence before it checks these fields, so these gates were read in its source, but not run. LiteLLM also
    # accepts a key with slashes in the path; such a request is not intercepted.
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
"""The names of all guarded fields."""

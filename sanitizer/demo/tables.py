"""The look-alike's database: users, teams and virtual keys, in memory."""

import hashlib
import secrets
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class User:
    user_id: str
    email: str | None
    role: str | None


@dataclass(frozen=True)
class Team:
    """``members`` maps user ids to ``user`` or ``admin``; ``permissions`` are the endpoints open to plain members."""

    team_id: str
    members: dict[str, str]
    permissions: list[str]


@dataclass
class Tables:
    users: dict[str, User] = field(default_factory=dict)
    teams: dict[str, Team] = field(default_factory=dict)
    keys: dict[str, Row] = field(default_factory=dict)

    def key(self, key: str) -> Row | None:
        """The row of a virtual key, named by its secret or by its hash."""
        return self.keys.get(token_of(key))

    def alias_taken(self, alias: str | None, by_other_than: str | None = None) -> bool:
        rows = (row for token, row in self.keys.items() if token != by_other_than)
        return alias is not None and any(row["key_alias"] == alias for row in rows)

    def email_taken(self, email: str | None) -> bool:
        return email is not None and any(user.email == email for user in self.users.values())

    def add_key(self, *, creator: str | None, **columns: Any) -> tuple[str, Row]:
        """A new virtual key: its secret, shown this once, and its row."""
        secret = _new_secret()
        row = _key_row(token_of(secret), _short(secret), creator) | columns
        self.keys[row["token"]] = row
        return secret, row

    def rename_key(self, row: Row, secret: str | None = None) -> str:
        """The key's new secret, by default a random one; the old one is no key any more."""
        secret = secret or _new_secret()
        del self.keys[row["token"]]
        row |= {"token": token_of(secret), "key_name": _short(secret)}
        self.keys[row["token"]] = row
        return secret


def token_of(key: str) -> str:
    """A key as it is stored: LiteLLM hashes what starts with ``sk-`` and takes anything else for a hash."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest() if key.startswith("sk-") else key


def _new_secret() -> str:
    return "sk-" + secrets.token_urlsafe(16)


def _short(secret: str) -> str:
    return f"sk-...{secret[-4:]}"


def new_id() -> str:
    return str(uuid.uuid4())


def now() -> str:
    """The time as the database keeps it: UTC, in milliseconds, printed with microseconds."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "000+00:00"


def _key_row(token: str, name: str, creator: str | None) -> Row:
    """The columns of ``LiteLLM_VerificationToken`` and its relations, in the order in which LiteLLM prints them."""
    created = now()
    return {
        "token": token,
        "key_name": name,
        "key_alias": None,
        "soft_budget_cooldown": False,
        "spend": 0.0,
        "expires": None,
        "models": [],
        "aliases": {},
        "config": {},
        "router_settings": {},
        "user_id": None,
        "team_id": None,
        "agent_id": None,
        "project_id": None,
        "permissions": {},
        "max_parallel_requests": None,
        "metadata": {},
        "blocked": None,
        "tpm_limit": None,
        "rpm_limit": None,
        "max_budget": None,
        "budget_duration": None,
        "budget_reset_at": None,
        "allowed_cache_controls": [],
        "allowed_routes": [],
        "policies": [],
        "access_group_ids": [],
        "model_spend": {},
        "model_max_budget": {},
        "budget_id": None,
        "organization_id": None,
        "object_permission_id": None,
        "created_at": created,
        "created_by": creator,
        "updated_at": created,
        "updated_by": creator,
        "last_active": None,
        "rotation_count": 0,
        "auto_rotate": False,
        "rotation_interval": None,
        "last_rotation_at": None,
        "key_rotation_at": None,
        "budget_limits": None,
        "litellm_budget_table": None,
        "litellm_organization_table": None,
        "litellm_project_table": None,
        "object_permission": None,
        "jwt_key_mappings": None,
    }

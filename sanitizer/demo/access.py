"""Who calls, and what they may: LiteLLM's authentication and its checks on keys, roles and teams."""

import re
import secrets
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from sanitizer.demo import bodies
from sanitizer.demo.refusals import Refusal, detail, error, unauthenticated
from sanitizer.demo.tables import Row, Tables, Team, User, token_of

#: The models on offer, with what each says.
MODELS = {"mock-gpt": "hello", "mock-gpt-2": "hello again"}

CHAT = "/v1/chat/completions"
LLM_ROUTES = {"/v1/models", CHAT}
REGENERATE = "/key/{key}/regenerate"
KEY_ROUTES = {"/key/generate", "/key/update", "/key/info", "/key/regenerate", REGENERATE}
#: What a key's ``allowed_routes`` may name instead of a path.
ROUTE_GROUPS = {
    "llm_api_routes": LLM_ROUTES,
    "info_routes": {"/key/info", "/v1/models"},
    "management_routes": KEY_ROUTES | {"/user/new", "/team/new"},
}
#: Where LiteLLM looks for a key, first match first; ``authorization`` needs a scheme.
KEY_HEADERS = (
    "x-litellm-api-key",
    "authorization",
    "api-key",
    "x-api-key",
    "x-goog-api-key",
    "ocp-apim-subscription-key",
)
#: The user that LiteLLM takes the master key for.
MASTER_USER = User("default_user_id", None, "proxy_admin")


@dataclass(frozen=True)
class Caller:
    """Whom a request's key stands for; ``user`` is None if the key belongs to no user, ``key`` for the master key."""

    token: str
    user: User | None
    key: Row | None

    @property
    def user_id(self) -> str | None:
        return self.user.user_id if self.user else self.key["user_id"] if self.key else None

    @property
    def role(self) -> str:
        return (self.user and self.user.role) or "internal_user"

    @property
    def is_admin(self) -> bool:
        return self.role == "proxy_admin"


async def authenticate(request: Request, tables: Tables, master_key: str) -> Caller:
    """LiteLLM's ``user_api_key_auth``: judges the key, then the model, the user's role and the key's routes."""
    read_ahead = await bodies.read_ahead(request)
    key = _key_sent(request)
    route = re.sub(r"/key/.+/regenerate", REGENERATE, request.url.path)
    if secrets.compare_digest(key.encode(), master_key.encode()):
        return Caller(token_of(master_key), MASTER_USER, None)
    if not key.startswith("sk-"):
        masked = f"{key[:4]}****{key[-4:]}" if len(key) > 8 else "****"
        raise unauthenticated(f"LiteLLM Virtual Key expected. Received={masked}, expected to start with 'sk-'.")
    row = tables.key(key)
    if row is None:
        raise unauthenticated(
            f"Invalid proxy server token passed. Received API Key = sk-...{key[-4:]}, "
            f"Key Hash (Token) ={token_of(key)}. Unable to find token in cache or `LiteLLM_VerificationTokenTable`",
            kind="token_not_found_in_db",
            param="key",
        )
    caller = Caller(row["token"], tables.users.get(row["user_id"]), row)
    if route == CHAT:
        _check_model(row, read_ahead.get("model"))
    _check_role(caller, route)
    if row["allowed_routes"] and not _among(route, row["allowed_routes"], groups=True):
        raise detail(
            403,
            f"Virtual key is not allowed to call this route. Only allowed to call routes: {row['allowed_routes']}. "
            f"Tried to call route: {route}",
        )
    return caller


def models_of(key: Row | None) -> list[str]:
    """The models that a key may call: its list, or all of them."""
    listed: list[str] = key["models"] if key else []
    return list(MODELS) if not listed or "all-team-models" in listed else listed


def _key_sent(request: Request) -> str:
    name = next((name for name in KEY_HEADERS if request.headers.get(name)), None)
    if name is None:
        raise unauthenticated("No api key passed in.")
    value = request.headers[name]
    scheme = next((scheme for scheme in ("Bearer ", "bearer ", "Basic ") if value.startswith(scheme)), "")
    if name == "authorization" and not scheme:
        raise unauthenticated("Malformed API Key passed in. Ensure Key has `Bearer ` prefix.")
    return value.removeprefix(scheme) if name in ("authorization", "x-litellm-api-key") else value


def _among(route: str, allowed: list[str], *, groups: bool) -> bool:
    """Whether allowed routes cover the route: as a path, a parent path, a wildcard or, with ``groups``, a group."""
    return any(
        route == one
        or route.startswith(one + "/")
        or (one.endswith("*") and route.startswith(one[:-1]))
        or (groups and route in ROUTE_GROUPS.get(one, ()))
        for one in allowed
    )


def _check_model(key: Row, model: Any) -> None:
    if model and not isinstance(model, str):
        raise unauthenticated(f"'{type(model).__name__}' object has no attribute 'split'")
    if model and key["models"] and "all-team-models" not in key["models"] and model not in key["models"]:
        message = (
            f"key not allowed to access model. This key can only access models={key['models']}. Tried to access {model}"
        )
        raise error(401, message, kind="key_model_access_denied", param="model")


def _check_role(caller: Caller, route: str) -> None:
    """Which routes a user's role opens; a key's own allowed routes, named by path, open more."""
    if caller.is_admin or route in LLM_ROUTES or route == "/key/info":
        return
    if caller.role == "proxy_admin_viewer":
        raise error(403, f"user not allowed to access this route, role= {caller.role}. Trying to access: {route}")
    if caller.user and caller.role == "internal_user" and route in KEY_ROUTES:
        return
    if caller.key and _among(route, caller.key["allowed_routes"], groups=False):
        return
    role, user_id = (caller.role, _masked(caller.user.user_id)) if caller.user else ("unknown", "unknown")
    raise unauthenticated(
        "Only proxy admin can be used to generate, delete, update info for new keys/users/teams. "
        f"Route={route}. Your role={role}. Your user_id={user_id}"
    )


def _masked(user_id: str) -> str:
    if len(user_id) <= 4:
        return "***"
    return user_id if len(user_id) < 8 else f"{user_id[:6]}{'*' * (len(user_id) - 8)}{user_id[-2:]}"


def check_ownership(caller: Caller, row: Row, tables: Tables) -> None:
    """Who may update a key that is not theirs: nobody but a member of its team, if the team lets its members."""
    if row["user_id"] not in (None, caller.user_id):
        raise _not_yours(row["user_id"], caller)
    if row["team_id"] in tables.teams:
        _check_team_permission(caller, tables.teams[row["team_id"]], "/key/update")
    elif row["user_id"] is None:
        who = f"user_role={caller.role}, user_id={caller.user_id}"
        raise error(403, {"error": f"Only proxy admins, team admins, or org admins can call /key/update. {who}"})


def check_new_owner(caller: Caller, user_id: str | None, team_id: str | None, tables: Tables) -> None:
    """Non-admins make keys for themselves, and for a team only as members whom it lets."""
    if user_id != caller.user_id:
        raise _not_yours(user_id, caller, kind="internal_server_error")
    if team_id is None:
        return
    team = tables.teams.get(team_id)
    if team is None:
        message = f"Team not found for team_id={team_id}. Non-admin users cannot create keys for non-existent teams."
        raise error(400, message, kind="internal_server_error")
    if caller.user_id not in team.members:
        message = f"User={caller.user_id} not assigned to team={team_id}"
        raise error(400, message, kind="internal_server_error")
    _check_team_permission(caller, team, "/key/generate")


def may_read(caller: Caller, row: Row, tables: Tables) -> bool:
    """Who may see a key: admins and admin viewers, its user, itself, and any member of its team."""
    team = tables.teams.get(row["team_id"])
    return (
        caller.role in ("proxy_admin", "proxy_admin_viewer")
        or row["user_id"] == caller.user_id
        or (team is not None and caller.user_id in team.members)
    )


def _check_team_permission(caller: Caller, team: Team, route: str) -> None:
    member = team.members.get(caller.user_id or "")
    refusal = "team_member_permission_error"
    if member is None:
        message = f"User {caller.user_id} does not belong to team {team.team_id}. "
        message += "Team-scoped key management endpoints can only be used for keys in your own team."
        raise error(401, message, kind=refusal, param=route)
    if member != "admin" and route not in team.permissions:
        permitted = sorted({"/key/health", "/key/info", *team.permissions})
        name = f"KeyManagementRoutes.{route[1:].replace('/', '_').upper()}"
        raise error(
            401,
            f"Team member does not have permissions for endpoint: {name}. "
            f"You only have access to the following endpoints: {permitted} for team {team.team_id}. "
            "To create keys for this team, please ask your proxy admin to check the team member permission settings "
            "and update the settings to allow team member users to create keys.",
            kind=refusal,
            param=route,
        )


def _not_yours(owner: str | None, caller: Caller, *, kind: str = "auth_error") -> Refusal:
    message = f"User can only create keys for themselves. Got user_id={owner}, Your ID={caller.user_id}"
    return error(403, message, kind=kind)

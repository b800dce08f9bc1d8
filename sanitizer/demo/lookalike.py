"""An in-memory look-alike of LiteLLM 1.83.13, with what the walk-through and the fast tests need.

Its callers are the proxy admin, who has the master key, and internal users, who have virtual keys. As that release
does, it refuses an internal user's update that contains ``allowed_routes``, changed or not (BerriAI/litellm#26555).

A response has the status and the values of LiteLLM's response, but some members may be missing. ``tests/demo`` compares
the two. The look-alike has no other endpoints, no teams and no other roles. It stores the models and routes of a key,
but does not enforce them. It does not validate the members of a request, and ignores unknown ones.
"""

import hashlib
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Row = dict[str, Any]
"""A virtual key: the columns of ``LiteLLM_VerificationToken`` and its relations."""

RELEASE = "1.83.13"
ADMIN = "default_user_id"
"""LiteLLM's user id for a caller with the master key."""
ONLY_ADMINS = (
    "Only proxy admins can set `allowed_routes` on a key. Use `key_type` to pick a preset route bucket instead."
)
KEY_TYPES = {"llm_api": ["llm_api_routes"], "management": ["management_routes"], "read_only": ["info_routes"]}
WRITABLE = ("key_alias", "models", "metadata", "permissions", "allowed_routes")
"""The columns that a request may set."""
SHOWN = ("token", "key_name", "user_id", "created_by", *WRITABLE)
"""The columns in the response to ``/key/generate``."""
UNSET: Row = {
    "key_alias": None, "soft_budget_cooldown": False, "spend": 0.0, "expires": None, "models": [], "aliases": {},
    "config": {}, "router_settings": {}, "user_id": None, "team_id": None, "agent_id": None, "project_id": None,
    "permissions": {}, "max_parallel_requests": None, "metadata": {}, "blocked": None, "tpm_limit": None,
    "rpm_limit": None, "max_budget": None, "budget_duration": None, "budget_reset_at": None,
    "allowed_cache_controls": [], "allowed_routes": [], "policies": [], "access_group_ids": [], "model_spend": {},
    "model_max_budget": {}, "budget_id": None, "organization_id": None, "object_permission_id": None,
    "last_active": None, "rotation_count": 0, "auto_rotate": False, "rotation_interval": None,
    "last_rotation_at": None, "key_rotation_at": None, "budget_limits": None, "litellm_budget_table": None,
    "litellm_organization_table": None, "litellm_project_table": None, "object_permission": None,
    "jwt_key_mappings": None,
}  # fmt: skip
"""The columns of a key before anything is set."""


class Refusal(Exception):
    """Makes the response an error with ``status`` and LiteLLM's error object, whose message is ``str(message)``."""

    def __init__(self, status: int, message: object, *, kind: str = "auth_error", param: str = "None") -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": str(message), "type": kind, "param": param, "code": str(status)}


class Lookalike:
    """The endpoints, and the keys that are stored."""

    def __init__(self, master_key: str) -> None:
        self._master_token = _sha256(master_key)
        self._keys: dict[str, Row] = {}

    async def update_key(self, request: Request) -> Response:
        caller = self._caller(request)
        sent = await _json(request)
        key = str(sent.get("key"))
        row = self._keys.get(token_of(key))
        if row is None:
            raise Refusal(404, "Key not found.", kind="not_found_error", param="key")
        _check(caller, row["user_id"], sent)
        row |= {**_columns(sent), "updated_at": _now()}
        return JSONResponse({"key": key, **row})

    async def key_info(self, request: Request) -> Response:
        caller = self._caller(request)
        key = request.query_params.get("key", "")
        row = self._keys.get(token_of(key))
        if row is None:
            raise Refusal(404, "Key not found in database", kind="not_found_error", param="key")
        if caller not in (ADMIN, row["user_id"]):
            message = "You are not allowed to access this key's info. Your role=internal_user"
            raise Refusal(403, message, kind="internal_server_error")
        return JSONResponse({"key": key, "info": {name: value for name, value in row.items() if name != "token"}})

    async def generate_key(self, request: Request) -> Response:
        caller = self._caller(request)
        sent = await _json(request)
        owner = sent.get("user_id") or (None if caller == ADMIN else caller)
        _check(caller, owner, sent, kind="internal_server_error")
        secret = "sk-" + secrets.token_urlsafe(16)
        now = _now()
        row = {
            "token": token_of(secret),
            "key_name": f"sk-...{secret[-4:]}",
            **UNSET,
            "user_id": owner,
            "created_at": now,
            "created_by": caller,
            "updated_at": now,
            "updated_by": caller,
            **_columns(sent),
        }
        row["allowed_routes"] = KEY_TYPES.get(sent.get("key_type", "default"), row["allowed_routes"])
        self._keys[row["token"]] = row
        return JSONResponse({"key": secret, "token_id": row["token"], **{name: row[name] for name in SHOWN}})

    async def new_user(self, request: Request) -> Response:
        """Create an internal user, who is not stored. No key is made, as if ``auto_create_key`` were always false."""
        if self._caller(request) != ADMIN:
            raise _unauthenticated("Only proxy admin can be used to generate, delete, update info for new users.")
        sent = await _json(request)
        user_id = sent.get("user_id") or str(uuid.uuid4())
        return JSONResponse({"user_id": user_id, "user_email": sent.get("user_email"), "key": ""})

    async def chat(self, request: Request) -> Response:
        """Answer any prompt with "hello"."""
        self._caller(request)
        sent = await _json(request)
        completion = {"id": f"chatcmpl-{uuid.uuid4()}", "created": int(time.time()), "model": sent.get("model")}
        if sent.get("stream"):
            return StreamingResponse(_events(completion), media_type="text/event-stream")
        choice = {"finish_reason": "stop", "index": 0, "message": {"content": "hello", "role": "assistant"}}
        return JSONResponse({**completion, "object": "chat.completion", "choices": [choice]})

    async def liveliness(self, request: Request) -> Response:
        return JSONResponse("I'm alive!")

    async def readiness(self, request: Request) -> Response:
        return JSONResponse({"status": "healthy", "db": "connected", "litellm_version": RELEASE})

    async def dashboard_config(self, request: Request) -> Response:
        return JSONResponse({"server_root_path": "", "proxy_base_url": None})

    def _caller(self, request: Request) -> str | None:
        """The user id of the caller, or None if the caller's key belongs to no user."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise _unauthenticated("No api key passed in.")
        token = _sha256(key)  # not `token_of`, with which the hash of a key would authenticate
        if token == self._master_token:
            return ADMIN
        if token not in self._keys:
            raise _unauthenticated(
                f"Invalid proxy server token passed. Received API Key = sk-...{key[-4:]}, Key Hash (Token) ={token}. "
                "Unable to find token in cache or `LiteLLM_VerificationTokenTable`",
                kind="token_not_found_in_db",
                param="key",
            )
        owner: str | None = self._keys[token]["user_id"]
        return owner


def create_lookalike(master_key: str = "sk-1234") -> Starlette:
    """A look-alike without any virtual keys."""
    litellm = Lookalike(master_key)
    routes = [
        Route("/health/liveliness", litellm.liveliness, methods=["GET"]),
        Route("/health/readiness", litellm.readiness, methods=["GET"]),
        Route("/.well-known/litellm-ui-config", litellm.dashboard_config, methods=["GET"]),
        Route("/v1/chat/completions", litellm.chat, methods=["POST"]),
        Route("/key/info", litellm.key_info, methods=["GET"]),
        Route("/key/update", litellm.update_key, methods=["POST"]),
        Route("/key/generate", litellm.generate_key, methods=["POST"]),
        Route("/user/new", litellm.new_user, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={Refusal: _refused, HTTPException: _not_found})


def token_of(key: str) -> str:
    """The name under which LiteLLM stores ``key``. A key that does not begin with ``sk-`` is taken for such a name."""
    return _sha256(key) if key.startswith("sk-") else key


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _check(caller: str | None, owner: str | None, sent: dict[str, Any], *, kind: str = "auth_error") -> None:
    """Raise `Refusal` for what only an admin may write: ``allowed_routes``, and keys of other users."""
    if caller == ADMIN:
        return
    if sent.get("allowed_routes"):  # the defect: this is not compared with the stored value
        raise Refusal(403, {"error": ONLY_ADMINS}, kind=kind)
    if owner != caller:
        raise Refusal(
            403, f"User can only create keys for themselves. Got user_id={owner}, Your ID={caller}", kind=kind
        )


def _columns(sent: dict[str, Any]) -> Row:
    return {name: sent[name] for name in WRITABLE if sent.get(name) is not None}


async def _json(request: Request) -> dict[str, Any]:
    """The content, which must be a JSON object. The text of the refusal is not LiteLLM's."""
    try:
        value = await request.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Refusal(
            400, "The look-alike accepts only a JSON object.", kind="invalid_request_error", param="request_body"
        )
    return value


def _unauthenticated(message: str, *, kind: str = "auth_error", param: str = "None") -> Refusal:
    return Refusal(401, f"Authentication Error, {message}", kind=kind, param=param)


async def _events(completion: dict[str, Any]) -> AsyncIterator[str]:
    """The completion "hello" as server-sent events."""
    for choice in (
        {"index": 0, "delta": {"content": "hel", "role": "assistant"}},
        {"index": 0, "delta": {"content": "lo"}},
        {"finish_reason": "stop", "index": 0, "delta": {}},
    ):
        chunk = {**completion, "object": "chat.completion.chunk", "choices": [choice]}
        yield f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"
    yield "data: [DONE]\n\n"


def _now() -> str:
    """The current time as LiteLLM's database formats it, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "000+00:00")


def _refused(request: Request, exc: Any) -> Response:
    return JSONResponse({"error": exc.error}, exc.status)


def _not_found(request: Request, exc: Any) -> Response:
    """Starlette's own 404 and 405, in FastAPI's form."""
    return JSONResponse({"detail": exc.detail}, exc.status_code, exc.headers)

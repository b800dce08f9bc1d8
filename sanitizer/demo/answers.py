"""What the look-alike answers when it agrees, member by member in LiteLLM's order."""

import json
from collections.abc import AsyncIterator
from typing import Any

from sanitizer.demo.tables import Row, Team, now


def new_key(secret: str, row: Row | None) -> dict[str, Any]:
    """LiteLLM's ``GenerateKeyResponse``; without a row, what `new_user` shows where no key was made."""
    key = row or {}
    return {
        "key_alias": key.get("key_alias"),
        "duration": None,
        "models": key.get("models", []),
        "spend": 0.0,
        "max_budget": None,
        "user_id": key.get("user_id"),
        "team_id": key.get("team_id"),
        "agent_id": None,
        "max_parallel_requests": None,
        "metadata": key.get("metadata", {}),
        "tpm_limit": None,
        "rpm_limit": None,
        "budget_duration": None,
        "budget_limits": None,
        "allowed_cache_controls": [],
        "config": {},
        "permissions": key.get("permissions", {}),
        "model_max_budget": {} if row else None,
        "model_rpm_limit": None,
        "model_tpm_limit": None,
        "guardrails": None,
        "policies": None,
        "prompts": None,
        "blocked": None,
        "aliases": {},
        "object_permission": None,
        "key": secret,
        "budget_id": None,
        "tags": None,
        "enforced_params": None,
        "allowed_routes": key.get("allowed_routes", []),
        "allowed_passthrough_routes": None,
        "allowed_vector_store_indexes": None,
        "rpm_limit_type": None,
        "tpm_limit_type": None,
        "router_settings": _ROUTER_SETTINGS if row else None,
        "access_group_ids": [] if row else None,
        "key_name": key.get("key_name"),
        "expires": None,
        "token_id": key.get("token"),
        "organization_id": None,
        "project_id": None,
        "litellm_budget_table": None,
        "token": key.get("token"),
        "created_by": key.get("created_by"),
        "updated_by": key.get("updated_by"),
        "created_at": _zulu(key.get("created_at")),
        "updated_at": _zulu(key.get("updated_at")),
    }


def new_team(team: Team, alias: str | None) -> dict[str, Any]:
    """LiteLLM's row of a new team."""
    created = _zulu(now())
    members = [{"user_id": user_id, "user_email": None, "role": role} for user_id, role in team.members.items()]
    return {
        "team_alias": alias,
        "team_id": team.team_id,
        "organization_id": None,
        "admins": [],
        "members": [],
        "members_with_roles": members,
        "team_member_permissions": team.permissions,
        "metadata": {},
        "tpm_limit": None,
        "rpm_limit": None,
        "max_budget": None,
        "soft_budget": None,
        "budget_duration": None,
        "budget_limits": None,
        "models": [],
        "blocked": False,
        "router_settings": {},
        "access_group_ids": [],
        "default_team_member_models": [],
        "spend": 0.0,
        "max_parallel_requests": None,
        "budget_reset_at": None,
        "model_id": None,
        "litellm_model_table": None,
        "object_permission": None,
        "updated_at": created,
        "created_at": created,
        "object_permission_id": None,
    }


def chat_completion(text: str) -> dict[str, Any]:
    choice = {"finish_reason": "stop", "index": 0, "message": {"content": text, "role": "assistant"}}
    usage = {"completion_tokens": 20, "prompt_tokens": 10, "total_tokens": 30}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


async def chat_events(answer: dict[str, Any], text: str) -> AsyncIterator[str]:
    """The answer as server-sent events, three characters at a time."""
    deltas: list[dict[str, str]] = [{"content": text[at : at + 3]} for at in range(0, len(text), 3)]
    deltas[0]["role"] = "assistant"
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta} for delta in deltas]
    choices.append({"finish_reason": "stop", "index": 0, "delta": {}})
    for choice in choices:
        chunk = answer | {"object": "chat.completion.chunk", "choices": [choice]}
        yield f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"
    yield "data: [DONE]\n\n"


def _zulu(time: str | None) -> str | None:
    return time and time.replace("+00:00", "Z")


_ROUTER_SETTINGS: dict[str, Any] = {
    "routing_strategy_args": None,
    "routing_strategy": None,
    "model_group_retry_policy": None,
    "model_group_affinity_config": None,
    "allowed_fails": None,
    "cooldown_time": None,
    "num_retries": None,
    "timeout": None,
    "max_retries": None,
    "retry_after": None,
    "fallbacks": None,
    "context_window_fallbacks": None,
    "model_group_alias": {},
}

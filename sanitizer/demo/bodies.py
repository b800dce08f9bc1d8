"""Request bodies, read as LiteLLM reads them: twice.

FastAPI parses what is JSON by its type; authentication then reads the body once more, whatever its type; and in the end
pydantic checks the members that the endpoint declares. A body can fail in each, with an answer of its own.
"""

import json
from collections.abc import Iterator
from email.message import Message
from typing import Any

from starlette.requests import Request

from sanitizer.demo.refusals import crashed, detail, error, invalid, problem

#: What FastAPI hands on when there is no body at all, as opposed to the JSON value ``null``.
NOTHING = object()

ROLES = {
    "PROXY_ADMIN": "proxy_admin",
    "PROXY_ADMIN_VIEW_ONLY": "proxy_admin_viewer",
    "INTERNAL_USER": "internal_user",
    "INTERNAL_USER_VIEW_ONLY": "internal_user_viewer",
}
KEY_TYPES = {
    "llm_api": ["llm_api_routes"],
    "management": ["management_routes"],
    "read_only": ["info_routes"],
    "default": None,
}

#: The members that each endpoint declares, in pydantic's order, with their kinds (`_problems`). LiteLLM knows more;
#: what is not here the look-alike ignores, as LiteLLM ignores what it does not know.
UPDATE_KEY = {
    "key_alias": "string?",
    "models": "list?",
    "metadata": "dict?",
    "permissions": "dict?",
    "key": "string",
    "allowed_routes": "list?",
}
REGENERATE_KEY = {**UPDATE_KEY, "key": "string?", "new_key": "string?"}
GENERATE_KEY = {
    "key_alias": "string?",
    "models": "list?",
    "user_id": "string?",
    "team_id": "string?",
    "metadata": "dict?",
    "permissions": "dict?",
    "allowed_routes": "list?",
    "key_type": "key type?",
}
NEW_USER = {"user_id": "string?", "user_email": "string?", "user_role": "role?"}
NEW_TEAM = {
    "team_alias": "string?",
    "team_id": "string?",
    "members_with_roles": "members",
    "team_member_permissions": "strings?",
}

_REQUIRED = {"key"}
_TYPES: dict[str, tuple[type[Any], str, str]] = {
    "string": (str, "string_type", "Input should be a valid string"),
    "list": (list, "list_type", "Input should be a valid list"),
    "dict": (dict, "dict_type", "Input should be a valid dictionary"),
    "strings": (list, "list_type", "Input should be a valid list"),
    "members": (list, "list_type", "Input should be a valid list"),
}


async def parse(request: Request) -> Any:
    """FastAPI's parse, before authentication: a JSON value, bytes if the body is not JSON by its type, or `NOTHING`."""
    body = await request.body()
    if not body:
        return NOTHING
    media_type = Message()
    media_type["content-type"] = request.headers.get("content-type") or "application/json"
    subtype = media_type.get_content_subtype()
    if media_type.get_content_maintype() != "application" or not (subtype == "json" or subtype.endswith("+json")):
        return body
    try:
        return json.loads(body)
    except json.JSONDecodeError as fault:
        raise invalid(
            problem("json_invalid", (fault.pos,), "JSON decode error", {}, ctx={"error": fault.msg})
        ) from None
    except (UnicodeDecodeError, RecursionError):
        raise detail(400, "There was an error parsing the body") from None


async def read_ahead(request: Request) -> dict[str, Any]:
    """The reading that authentication does: an object, or nothing to speak of; other JSON makes LiteLLM fall over."""
    body = await request.body()
    try:
        value = json.loads(body.decode()) if body else {}
    except (UnicodeDecodeError, RecursionError):
        return {}
    except json.JSONDecodeError as fault:
        raise error(400, f"Invalid JSON payload: {fault}", kind="invalid_request_error", param="request_body") from None
    if not isinstance(value, dict):
        raise crashed()
    return value


def validate(body: Any, declared: dict[str, str]) -> dict[str, Any]:
    """Pydantic's part: the declared members that were sent. Raises the 422 that lists every problem."""
    if body is NOTHING:
        raise invalid(problem("missing", (), "Field required", None))
    if not isinstance(body, dict):
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise crashed() from None
        message = "Input should be a valid dictionary or object to extract fields from"
        raise invalid(problem("model_attributes_type", (), message, text))
    problems = [found for name, kind in declared.items() for found in _member_problems(body, name, kind)]
    if problems:
        raise invalid(*problems)
    return {name: body[name] for name in declared if name in body}


def _member_problems(body: dict[str, Any], name: str, kind: str) -> Iterator[dict[str, Any]]:
    if name in body:
        if body[name] is not None or not kind.endswith("?"):
            yield from _problems(kind.removesuffix("?"), (name,), body[name])
    elif name in _REQUIRED and not kind.endswith("?"):
        yield problem("missing", (name,), "Field required", body)


def _problems(kind: str, where: tuple[str | int, ...], value: Any) -> Iterator[dict[str, Any]]:
    """What pydantic finds wrong with a value of that kind."""
    match kind:
        case "key type":
            if not isinstance(value, str) or value not in KEY_TYPES:
                expected = "'llm_api', 'management', 'read_only' or 'default'"
                yield problem("enum", where, f"Input should be {expected}", value, ctx={"expected": expected})
            return
        case "role":
            if value not in ROLES.values():
                *most, last = (f"<LitellmUserRoles.{name}: '{role}'>" for name, role in ROLES.items())
                yield _not_one_of(f"{', '.join(most)} or {last}", where, value)
            return
    expected_type, code, message = _TYPES[kind]
    if not isinstance(value, expected_type):
        yield problem(code, where, message, value)
        return
    if kind == "strings":
        for index, item in enumerate(value):
            yield from _problems("string", (*where, index), item)
    elif kind == "members":
        for index, item in enumerate(value):
            yield from _membership_problems((*where, index), item)


def _membership_problems(where: tuple[str | int, ...], value: Any) -> Iterator[dict[str, Any]]:
    """The same for one of a new team's members: ``{"role": "user" | "admin", "user_id": ...}``."""
    if not isinstance(value, dict):
        yield problem("value_error", where, "Value error, input needs to be a dictionary", value, ctx={"error": {}})
    elif value.get("user_id") is None:
        message = "Value error, Either user id or user email must be provided"
        yield problem("value_error", where, message, value, ctx={"error": {}})
    else:
        yield from _problems("string", (*where, "user_id"), value["user_id"])
        if "role" not in value:
            yield problem("missing", (*where, "role"), "Field required", value)
        elif value["role"] not in ("admin", "user"):
            yield _not_one_of("'admin' or 'user'", (*where, "role"), value["role"])


def _not_one_of(expected: str, where: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    return problem("literal_error", where, f"Input should be {expected}", value, ctx={"expected": expected})

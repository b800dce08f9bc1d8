"""A LiteLLM look-alike in memory: enough of its proxy to show, and to test, what the gateway is for.

It serves the endpoints that `ROUTES` lists and judges updates of keys by the gates of one release (`releases`). Its
answers are those of a real LiteLLM, recorded and compared byte for byte by ``tests/demo``. What it leaves out: other
endpoints, other members of a request (ignored), LiteLLM's own response headers, and what chat messages say.

Regenerating a key is the exception. It takes an Enterprise licence, so that nothing could be recorded; what is here was
read from LiteLLM's source. The order of its checks, gates first, is seen on a real one by ``tests/litellm``.

``python -m sanitizer.demo.lookalike --port 4000`` serves it by itself, with the master key ``sk-1234``.
"""

import argparse
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sanitizer.demo import access, answers, bodies, releases
from sanitizer.demo.refusals import Refusal, error, unstorable
from sanitizer.demo.tables import Tables, Team, User, new_id, now


class Lookalike:
    """The endpoints over one set of tables; whoever holds the master key is a proxy admin."""

    def __init__(self, master_key: str, gates: tuple[releases.Gate, ...]) -> None:
        self.master_key = master_key
        self.gates = gates
        self.tables = Tables()

    async def caller(self, request: Request) -> access.Caller:
        return await access.authenticate(request, self.tables, self.master_key)

    async def update_key(self, request: Request) -> Response:
        body = await bodies.parse(request)
        caller = await self.caller(request)
        sent = bodies.validate(body, bodies.UPDATE_KEY)
        row = self.tables.key(sent["key"])
        if row is None:
            raise error(404, "Key not found.", kind="not_found_error", param="key")
        if not caller.is_admin:
            self._check_gates(releases.UPDATE, sent, row)
            access.check_ownership(caller, row, self.tables)
        self._write(row, {name: value for name, value in sent.items() if name != "key"})
        return JSONResponse({"key": sent["key"], **row})

    async def regenerate_key(self, request: Request) -> Response:
        body = await bodies.parse(request)
        caller = await self.caller(request)
        sent = {} if body in (bodies.NOTHING, None) else bodies.validate(body, bodies.REGENERATE_KEY)
        if not caller.is_admin:
            self._check_gates(releases.REGENERATE, sent, {})
        key = sent.get("key") or request.path_params.get("key")
        if not key:
            raise error(400, {"error": "No key passed in."}, kind="internal_server_error")
        row = self.tables.key(key)
        if row is None:
            raise error(404, {"error": f"Key {key} not found."}, kind="internal_server_error")
        if not caller.is_admin and row["user_id"] != caller.user_id:
            raise error(403, {"error": "You are not authorized to regenerate this key"}, kind="internal_server_error")
        self._write(row, {name: value for name, value in sent.items() if name not in ("key", "new_key")})
        secret = self.tables.rename_key(row, sent.get("new_key"))
        return JSONResponse(answers.new_key(secret, row) | {"token": None})

    def _check_gates(self, endpoint: str, sent: dict[str, Any], row: dict[str, Any]) -> None:
        for gate in self.gates:
            held = row.get(gate.field)
            if gate.endpoint == endpoint and gate.field in sent and gate.refuses(sent[gate.field], held):
                raise error(403, {"error": gate.message})

    def _write(self, row: dict[str, Any], sent: dict[str, Any]) -> None:
        self._check_alias(sent.get("key_alias"), row["token"])
        columns = {"metadata": row["metadata"] or {}} | sent
        for column in ("models", "allowed_routes"):
            if column in columns and not _is_string_list(columns[column]):
                raise unstorable(column, columns[column])
        row |= columns | {"updated_at": now()}

    async def key_info(self, request: Request) -> Response:
        caller = await self.caller(request)
        key = request.query_params.get("key") or caller.token
        row = self.tables.key(key)
        if row is None:
            raise error(404, "Key not found in database", kind="not_found_error", param="key")
        if not access.may_read(caller, row, self.tables):
            message = f"You are not allowed to access this key's info. Your role={caller.role}"
            raise error(403, message, kind="internal_server_error")
        return JSONResponse({"key": key, "info": {name: value for name, value in row.items() if name != "token"}})

    async def generate_key(self, request: Request) -> Response:
        body = await bodies.parse(request)
        caller = await self.caller(request)
        sent = {name: value for name, value in bodies.validate(body, bodies.GENERATE_KEY).items() if value is not None}
        routes = sent.pop("allowed_routes", [])
        if not caller.is_admin:
            if (
                routes
            ):  # refused by the same rule in every release, and rightly: nothing is stored yet that could be resent
                raise error(403, {"error": releases.ROUTES}, kind="internal_server_error")
            sent.setdefault("user_id", caller.user_id)
            access.check_new_owner(caller, sent["user_id"], sent.get("team_id"), self.tables)
        self._check_alias(sent.get("key_alias"))
        routes = bodies.KEY_TYPES[sent.pop("key_type", "default")] or routes
        if not _is_string_list(routes) or not _is_string_list(sent.get("models", [])):
            raise error(500, {"error": "Internal Server Error."}, kind="internal_server_error")
        secret, row = self.tables.add_key(creator=caller.user_id, allowed_routes=list(routes), **sent)
        return JSONResponse(answers.new_key(secret, row))

    def _check_alias(self, alias: str | None, own_token: str | None = None) -> None:
        if self.tables.alias_taken(alias, by_other_than=own_token):
            message = f"Key with alias '{alias}' already exists. Unique key aliases across all keys are required."
            raise error(400, message, kind="bad_request_error", param="key_alias")

    async def new_user(self, request: Request) -> Response:
        body = await bodies.parse(request)
        await self.caller(request)
        sent = bodies.validate(body, bodies.NEW_USER)
        user = User(sent.get("user_id") or new_id(), sent.get("user_email"), sent.get("user_role"))
        for taken, what in (
            (user.user_id in self.tables.users, f"id {user.user_id}"),
            (self.tables.email_taken(user.email), f"email {user.email}"),
        ):
            if taken:
                raise error(409, {"error": f"User with {what} already exists"}, kind="internal_server_error")
        self.tables.users[user.user_id] = user
        if body.get("auto_create_key") is False:
            answer = answers.new_key("", None) | {"user_id": user.user_id}
        else:
            secret, row = self.tables.add_key(creator=None, user_id=user.user_id)
            answer = answers.new_key(secret, row) | {"token_id": None, "token": None}
        about = {"user_email": user.email, "user_role": user.role, "teams": None, "user_alias": None}
        return JSONResponse(answer | about)

    async def new_team(self, request: Request) -> Response:
        body = await bodies.parse(request)
        caller = await self.caller(request)
        sent = bodies.validate(body, bodies.NEW_TEAM)
        team_id = sent.get("team_id") or new_id()
        if team_id in self.tables.teams:
            message = {"error": f"Team id = {team_id} already exists. Please use a different team id."}
            raise error(400, message, kind="internal_server_error")
        members = {member["user_id"]: member["role"] for member in sent.get("members_with_roles", [])}
        if caller.user_id is not None:
            members.setdefault(caller.user_id, "admin")
        team = Team(team_id, members, sent.get("team_member_permissions") or [])
        self.tables.teams[team_id] = team
        return JSONResponse(answers.new_team(team, sent.get("team_alias")))

    async def models(self, request: Request) -> Response:
        names = access.models_of((await self.caller(request)).key)
        listed = [{"id": name, "object": "model", "created": 1677610602, "owned_by": "openai"} for name in names]
        return JSONResponse({"data": listed, "object": "list"})

    async def chat(self, request: Request) -> Response:
        await self.caller(request)
        sent = await bodies.read_ahead(request)
        model = sent.get("model") or None
        if model not in access.MODELS:
            message = f"/chat/completions: Invalid model name passed in model={model}. "
            message += "Call `/v1/models` to view available models for your key."
            raise error(400, message, kind="None", provider_specific_fields={"error": message})
        if "messages" not in sent:
            raise error(500, "Router.acompletion() missing 1 required positional argument: 'messages'", kind="None")
        text = access.MODELS[model]
        answer: dict[str, Any] = {"id": f"chatcmpl-{new_id()}", "created": int(time.time()), "model": model}
        if sent.get("stream") is True:
            return StreamingResponse(answers.chat_events(answer, text), media_type="text/event-stream")
        return JSONResponse(answer | answers.chat_completion(text))

    async def liveliness(self, request: Request) -> Response:
        return JSONResponse("I'm alive!")


ROUTES: tuple[tuple[str, str, Callable[[Lookalike, Request], Awaitable[Response]]], ...] = (
    ("GET", "/health/liveliness", Lookalike.liveliness),
    ("GET", "/v1/models", Lookalike.models),
    ("POST", "/v1/chat/completions", Lookalike.chat),
    ("GET", "/key/info", Lookalike.key_info),
    ("POST", "/key/update", Lookalike.update_key),
    ("POST", "/key/{key:path}/regenerate", Lookalike.regenerate_key),
    ("POST", "/key/regenerate", Lookalike.regenerate_key),
    ("POST", "/key/generate", Lookalike.generate_key),
    ("POST", "/user/new", Lookalike.new_user),
    ("POST", "/team/new", Lookalike.new_team),
)


def create_lookalike(master_key: str = "sk-1234", release: str = "1.83.13") -> Starlette:
    """A look-alike of that LiteLLM release, still without users and keys. Raises KeyError for an unknown release."""
    lookalike = Lookalike(master_key, releases.GATES[release])
    routes = [Route(path, partial(endpoint, lookalike), methods=[method]) for method, path, endpoint in ROUTES]
    for route in routes:
        (route.methods or set()).discard("HEAD")  # which Starlette adds to GET, and FastAPI does not
    return Starlette(routes=routes, exception_handlers={Refusal: _refused, HTTPException: _http_exception})


def _refused(request: Request, exc: Any) -> Response:
    return (PlainTextResponse if exc.plain else JSONResponse)(exc.body, exc.status)


def _http_exception(request: Request, exc: Any) -> Response:
    """Starlette's own 404 and 405 in FastAPI's form."""
    return JSONResponse({"detail": exc.detail}, exc.status_code, exc.headers)


def _is_string_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a LiteLLM look-alike on loopback.")
    parser.add_argument("--port", type=int, default=4000, help="0 takes a free one")
    parser.add_argument("--master-key", default="sk-1234")
    options = parser.parse_args()
    uvicorn.run(create_lookalike(options.master_key), host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()

"""The table of exchanges that a real LiteLLM and the look-alike both play.

An exchange is a list of requests by named actors on a fresh cast, so that no row depends on another. A request may name
members of the cast in its path, its headers and its body:

==================  ===========================================================
``<alice>``         the id of a user or a team
``<alice.llm>``     a virtual key, as the secret that authenticates
``<#alice.llm>``    the SHA-256 of that key, as LiteLLM stores it
==================  ===========================================================

Members are created over HTTP when first named (`CAST`), by the same requests on both sides.
"""

import json
from dataclasses import dataclass, field
from typing import Any

#: name of the member -> (who creates it, path, JSON body of the creating request)
CAST: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        name: (
            "admin",
            "/user/new",
            {
                "user_id": f"<{name}>",
                "user_email": f"<{name}>@example.com",
                "user_role": "internal_user",
                "auto_create_key": False,
            },
        )
        for name in ("alice", "bobby", "carol", "dinah")
    },
    "squad": (
        "admin",
        "/team/new",
        {
            "team_id": "<squad>",
            "team_alias": "<squad>",
            "members_with_roles": [
                {"role": "user", "user_id": "<alice>"},
                {"role": "user", "user_id": "<bobby>"},
                {"role": "admin", "user_id": "<dinah>"},
            ],
        },
    ),
    "crew": (
        "admin",
        "/team/new",
        {
            "team_id": "<crew>",
            "team_alias": "<crew>",
            "members_with_roles": [{"role": "user", "user_id": "<alice>"}],
            "team_member_permissions": ["/key/update", "/key/generate"],
        },
    ),
    **{
        name: ("admin", "/user/new", {"user_id": f"<{name}>", "user_role": role, "auto_create_key": False})
        for name, role in (
            ("chief", "proxy_admin"),
            ("watch", "proxy_admin_viewer"),
            ("reads", "internal_user_viewer"),
        )
    },
    "plain": ("admin", "/user/new", {"user_id": "<plain>", "auto_create_key": False}),
    "alice.own": ("admin", "/key/generate", {"user_id": "<alice>"}),
    "bobby.own": ("admin", "/key/generate", {"user_id": "<bobby>"}),
    "carol.own": ("admin", "/key/generate", {"user_id": "<carol>"}),
    "dinah.own": ("admin", "/key/generate", {"user_id": "<dinah>"}),
    "chief.own": ("admin", "/key/generate", {"user_id": "<chief>"}),
    "watch.own": ("admin", "/key/generate", {"user_id": "<watch>"}),
    "reads.own": ("admin", "/key/generate", {"user_id": "<reads>"}),
    "plain.own": ("admin", "/key/generate", {"user_id": "<plain>"}),
    "alice.default": ("alice.own", "/key/generate", {"models": ["mock-gpt"]}),
    "alice.llm": ("alice.own", "/key/generate", {"key_type": "llm_api", "models": ["mock-gpt"]}),
    "alice.read": ("alice.own", "/key/generate", {"key_type": "read_only", "models": ["mock-gpt"]}),
    "alice.manage": ("alice.own", "/key/generate", {"key_type": "management", "models": ["mock-gpt"]}),
    "alice.custom": (
        "admin",
        "/key/generate",
        {"user_id": "<alice>", "models": ["mock-gpt"], "allowed_routes": ["/v1/models", "/key/info"]},
    ),
    "alice.update": ("admin", "/key/generate", {"user_id": "<alice>", "allowed_routes": ["/key/update"]}),
    "alice.wild": ("admin", "/key/generate", {"user_id": "<alice>", "allowed_routes": ["/key/*"]}),
    "alice.squad": (
        "admin",
        "/key/generate",
        {"user_id": "<alice>", "team_id": "<squad>", "allowed_routes": ["llm_api_routes"]},
    ),
    "squad.service": ("admin", "/key/generate", {"team_id": "<squad>", "allowed_routes": ["llm_api_routes"]}),
    "alice.crew": (
        "admin",
        "/key/generate",
        {"user_id": "<alice>", "team_id": "<crew>", "allowed_routes": ["llm_api_routes"]},
    ),
    "crew.service": ("admin", "/key/generate", {"team_id": "<crew>", "allowed_routes": ["llm_api_routes"]}),
    "nobody.loose": ("admin", "/key/generate", {}),
    "ghost.own": ("admin", "/key/generate", {"user_id": "ghost-who-is-no-user"}),
    "nobody.user": ("admin", "/key/generate", {"allowed_routes": ["/user/new"]}),
    "nobody.team": ("admin", "/key/generate", {"allowed_routes": ["/team/new"]}),
}


@dataclass(frozen=True)
class Request:
    """One request: ``body`` is sent as JSON, ``content`` as it is; ``actor`` names a key of the cast or is None."""

    method: str
    path: str
    actor: str | None
    body: Any = None
    content: bytes | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(("content-type", "application/json"),))

    def encoded(self) -> bytes:
        """The request's content, placeholders and all."""
        if self.content is not None:
            return self.content
        return b"" if self.body is None else json.dumps(self.body, ensure_ascii=False).encode()

    def __str__(self) -> str:
        parts = [self.method, self.path, f"as {self.actor or 'nobody'}"]
        if self.headers != (("content-type", "application/json"),):
            parts.append(", ".join(f"{name}: {value}" for name, value in self.headers) or "no headers")
        if content := self.encoded():
            text = content.decode("ascii", "backslashreplace")
            parts.append(text if len(text) <= 300 else f"{text[:100]}... ({len(content)} bytes)")
        return " | ".join(parts)


def get(path: str, actor: str | None, **more: Any) -> Request:
    return Request("GET", path, actor, headers=more.pop("headers", ()), **more)


def post(path: str, actor: str | None, body: Any = None, **more: Any) -> Request:
    return Request("POST", path, actor, body, **more)


def update(actor: str | None, **body: Any) -> Request:
    return post("/key/update", actor, body)


def info(key: str, actor: str | None) -> Request:
    return get(f"/key/info?key={key}", actor)


def chat(actor: str | None, **body: Any) -> Request:
    return post("/v1/chat/completions", actor, {"messages": [{"role": "user", "content": "hi"}], **body})


def raw(
    content: bytes, *headers: tuple[str, str], path: str = "/key/update", actor: str | None = "alice.own"
) -> Request:
    return post(path, actor, content=content, headers=headers or (("content-type", "application/json"),))


#: What the dashboard of 1.83.13 sends when a user opens a key of type "LLM API", changes its models and saves (less
#: ``object_permission``, which the look-alike does not keep).
DASHBOARD: dict[str, Any] = {
    "key_alias": None, "models": ["mock-gpt-2"], "allowed_routes": ["llm_api_routes"],
    "max_budget": None, "budget_duration": None, "tpm_limit": None, "tpm_limit_type": None,
    "rpm_limit": None, "rpm_limit_type": None, "max_parallel_requests": None, "disable_global_guardrails": False,
    "access_group_ids": [], "team_id": None, "metadata": {}, "duration": None, "token": "<#alice.llm>",
    "disabled_callbacks": [], "auto_rotate": False, "rotation_interval": None, "key": "<#alice.llm>",
}  # fmt: skip

KEY = "<alice.llm>"
MODELS = ["mock-gpt-2"]

EXCHANGES: dict[str, list[Request]] = {
    # --- who is alive, what is there
    "liveliness": [get("/health/liveliness", None)],
    "models-admin": [get("/v1/models", "admin")],
    "models-of-a-restricted-key": [get("/v1/models", "alice.llm")],
    "models-of-a-key-without-a-list": [get("/v1/models", "alice.own")],
    "models-of-a-read-only-key": [get("/v1/models", "alice.read")],
    "models-of-a-management-key": [get("/v1/models", "alice.manage")],
    "models-of-a-custom-key": [get("/v1/models", "alice.custom")],
    "no-such-path": [get("/nope", None), post("/nope", "admin", {})],
    "wrong-method": [
        get("/key/update", "admin"),
        post("/key/info", "admin", {}),
        get("/key/generate", "admin"),
        get("/user/new", "admin"),
        get("/team/new", "admin"),
        get("/v1/chat/completions", "admin"),
        post("/v1/models", "admin", {}),
        post("/health/liveliness", None, {}),
        Request("HEAD", "/key/info", "admin", headers=()),
        Request("DELETE", "/key/update", None, headers=()),
    ],
    "trailing-slash": [post("/key/update/", "admin", {"key": KEY}), get("/key/info/?key=x", None)],
    "other-spellings": [
        post("//key/update", "admin", {"key": KEY}),
        post("/Key/Update", "admin", {"key": KEY}),
        post("/key/%75pdate", "admin", {"key": "<#alice.llm>", "models": MODELS}),
    ],
    # --- authentication
    "no-credentials": [
        get("/key/info", None),
        update(None, key=KEY),
        get("/v1/models", None),
        chat(None, model="mock-gpt"),
        post("/key/generate", None, {}),
        post("/user/new", None, {}),
        post("/team/new", None, {}),
    ],
    "unknown-key": [
        get("/key/info", None, headers=(("authorization", "Bearer sk-nobody-knows-this-one"),)),
        post(
            "/key/update",
            None,
            {"key": KEY},
            headers=(("authorization", "Bearer sk-nobody-knows-this-one"), ("content-type", "application/json")),
        ),
    ],
    "not-a-virtual-key": [
        get("/key/info", None, headers=(("authorization", "Bearer some-other-token"),)),
        get("/key/info", None, headers=(("authorization", "Bearer short"),)),
    ],
    "authorization-schemes": [
        get("/key/info", None, headers=(("authorization", "<alice.own>"),)),
        get("/key/info", None, headers=(("authorization", "bearer <alice.own>"),)),
        get("/key/info", None, headers=(("authorization", "Bearer  some-other-token"),)),
        get("/key/info", None, headers=(("authorization", "Bearer"),)),
        get("/key/info", None, headers=(("authorization", ""),)),
    ],
    "api-key-headers": [
        get("/v1/models", None, headers=(("x-litellm-api-key", "<alice.llm>"),)),
        get("/v1/models", None, headers=(("x-litellm-api-key", "Bearer <alice.llm>"),)),
        get("/v1/models", None, headers=(("api-key", "<alice.llm>"),)),
        get("/v1/models", None, headers=(("x-api-key", "<alice.llm>"),)),
        get("/v1/models", None, headers=(("x-goog-api-key", "<alice.llm>"),)),
        get("/v1/models", None, headers=(("ocp-apim-subscription-key", "<alice.llm>"),)),
    ],
    "api-key-header-precedence": [
        get(
            "/v1/models", None, headers=(("authorization", "Bearer <alice.own>"), ("x-litellm-api-key", "<alice.llm>"))
        ),
        get("/v1/models", None, headers=(("authorization", "Bearer <alice.own>"), ("api-key", "<alice.llm>"))),
        get("/v1/models", None, headers=(("x-api-key", "<alice.own>"), ("api-key", "<alice.llm>"))),
    ],
    # --- the defect, BerriAI/litellm#26555
    "bug-report": [
        info("<#alice.llm>", "alice.own"),
        update("alice.own", key=KEY, models=MODELS, allowed_routes=["llm_api_routes"]),
        update("alice.own", key=KEY, models=MODELS),
        info("<#alice.llm>", "alice.own"),
    ],
    "dashboard": [
        post("/key/update", "alice.own", DASHBOARD),
        post("/key/update", "alice.own", {k: v for k, v in DASHBOARD.items() if k != "allowed_routes"}),
    ],
    "unchanged-read-only": [update("alice.own", key="<alice.read>", models=MODELS, allowed_routes=["info_routes"])],
    "unchanged-management": [
        update("alice.own", key="<alice.manage>", models=MODELS, allowed_routes=["management_routes"])
    ],
    "unchanged-custom": [
        update("alice.own", key="<alice.custom>", models=MODELS, allowed_routes=["/v1/models", "/key/info"])
    ],
    "reordered-custom": [
        update("alice.own", key="<alice.custom>", models=MODELS, allowed_routes=["/key/info", "/v1/models"])
    ],
    "real-change": [
        update("alice.own", key=KEY, allowed_routes=["management_routes"]),
        update("alice.own", key=KEY, models=MODELS, allowed_routes=["llm_api_routes", "info_routes"]),
        info("<#alice.llm>", "alice.own"),
    ],
    "empty-list": [
        update("alice.own", key="<alice.default>", models=MODELS, allowed_routes=[]),
        update("alice.own", key=KEY, models=MODELS, allowed_routes=[]),
        info("<#alice.llm>", "alice.own"),
    ],
    "null": [
        update("alice.own", key=KEY, models=MODELS, allowed_routes=None),
        update("admin", key=KEY, models=MODELS, allowed_routes=None),
        update("alice.own", key=KEY, models=None),
        update("alice.own", key=KEY, models=None, allowed_routes=None),
        update("alice.own", key=KEY, permissions=None),
        update("alice.own", key=KEY, metadata=None),
        update("alice.own", key=KEY, key_alias=None),
        info("<#alice.llm>", "alice.own"),
    ],
    "admin-change": [
        update("admin", key=KEY, models=MODELS, allowed_routes=["info_routes"]),
        info("<#alice.llm>", "admin"),
        update("admin", key="<#alice.llm>", allowed_routes=["llm_api_routes"]),
        update("admin", key="<#alice.llm>", allowed_routes=[1, None, "x"]),
        update("admin", key=KEY, permissions={"get_spend_routes": True}, metadata={"a": 1}, key_alias="<alice>-alias"),
        info("<#alice.llm>", "admin"),
    ],
    "owner-change": [
        update(
            "alice.own", key=KEY, permissions={"a": 1}, metadata={"b": [1.5, "\u00e4", None]}, key_alias="<alice>-alias"
        ),
        update("alice.own", key=KEY, metadata={}),
        update("alice.own", key=KEY),
        info("<#alice.llm>", "alice.own"),
    ],
    "alias-taken": [
        update("alice.own", key="<alice.read>", key_alias="<alice>-alias"),
        update("alice.own", key="<alice.read>", key_alias="<alice>-alias"),
        update("alice.own", key=KEY, key_alias="<alice>-alias"),
        post("/key/generate", "alice.own", {"key_alias": "<alice>-alias"}),
    ],
    "key-edits-itself": [
        update("alice.llm", key=KEY, models=MODELS),
        update("alice.read", key="<alice.read>", models=MODELS),
        update("alice.manage", key="<alice.manage>", models=MODELS),
        update("alice.manage", key="<alice.manage>", models=MODELS, allowed_routes=["management_routes"]),
        update("alice.custom", key="<alice.custom>", models=MODELS),
        update("alice.update", key="<alice.update>", models=MODELS),
        update("alice.wild", key="<alice.wild>", models=MODELS),
        update("alice.own", key="<alice.own>", models=MODELS, allowed_routes=[]),
    ],
    "stranger": [
        update("bobby.own", key=KEY, models=MODELS),
        update("bobby.own", key=KEY, models=MODELS, allowed_routes=["llm_api_routes"]),
        update("alice.own", key="<nobody.loose>", models=MODELS),
        update("nobody.loose", key="<nobody.loose>", models=MODELS),
        update("nobody.loose", key=KEY, models=MODELS),
        info("<#alice.llm>", "alice.own"),
    ],
    "team": [
        update("alice.own", key="<alice.squad>", models=MODELS),
        update("alice.own", key="<alice.squad>", models=MODELS, allowed_routes=["llm_api_routes"]),
        update("bobby.own", key="<squad.service>", models=MODELS),
        update("bobby.own", key="<alice.squad>", models=MODELS),
        update("carol.own", key="<squad.service>", models=MODELS),
        update("carol.own", key="<alice.squad>", models=MODELS),
        update("admin", key="<squad.service>", models=MODELS, allowed_routes=["llm_api_routes"]),
        update("dinah.own", key="<squad.service>", models=MODELS),
        update("dinah.own", key="<squad.service>", models=MODELS, allowed_routes=["llm_api_routes"]),
        update("dinah.own", key="<alice.squad>", models=MODELS),
        update("alice.own", key="<alice.crew>", models=MODELS),
        update("alice.own", key="<alice.crew>", models=MODELS, allowed_routes=["llm_api_routes"]),
        update("alice.own", key="<crew.service>", models=MODELS),
        update("bobby.own", key="<crew.service>", models=MODELS),
        info("<#alice.squad>", "alice.own"),
        info("<#alice.squad>", "bobby.own"),
        info("<#squad.service>", "bobby.own"),
        info("<#squad.service>", "carol.own"),
    ],
    "no-such-key": [
        update("alice.own", key="sk-never-was", allowed_routes=["llm_api_routes"]),
        update("admin", key="never-was"),
        update("admin", key=""),
        update("admin", key=" "),
    ],
    "roles": [
        update("chief.own", key=KEY, models=MODELS, allowed_routes=["info_routes"]),
        post("/key/generate", "chief.own", {"allowed_routes": ["info_routes"]}),
        info("<#alice.llm>", "chief.own"),
        update("watch.own", key=KEY, models=MODELS),
        info("<#alice.llm>", "watch.own"),
        post("/key/generate", "watch.own", {}),
        get("/v1/models", "watch.own"),
        update("reads.own", key="<reads.own>", models=MODELS),
        info("<#reads.own>", "reads.own"),
        info("<#alice.llm>", "reads.own"),
        post("/key/generate", "reads.own", {}),
        post("/user/new", "reads.own", {}),
        update("plain.own", key="<plain.own>", models=MODELS),
        info("<#plain.own>", "plain.own"),
        info("<#alice.llm>", "plain.own"),
        post("/key/generate", "plain.own", {}),
        update("ghost.own", key="<ghost.own>", models=MODELS),
        info("<#ghost.own>", "ghost.own"),
        info("<#alice.llm>", "ghost.own"),
        info("<#nobody.user>", "nobody.loose"),
        post("/user/new", "nobody.user", {"auto_create_key": False}),
        post("/team/new", "nobody.user", {"team_alias": "x"}),
        post("/team/new", "nobody.team", {"team_alias": "x"}),
    ],
    # --- request bodies
    "wrong-types": [
        update("alice.own", key=KEY, allowed_routes="llm_api_routes"),
        update("alice.own", key=KEY, allowed_routes={"a": 1}),
        update("alice.own", key=KEY, allowed_routes=1),
        update("alice.own", key=KEY, allowed_routes=[1]),
        update("alice.own", key=KEY, models="mock-gpt"),
        update("alice.own", key=KEY, models=[1]),
        update("alice.own", key=KEY, permissions=[]),
        update("alice.own", key=KEY, metadata="x"),
        update("alice.own", key=KEY, key_alias=1),
        update("alice.own", key=1),
        update("alice.own", key=None),
        update("alice.own", key=["x"], models="m", allowed_routes=True, permissions=2.5),
        update("alice.own"),
        update("alice.own", models=MODELS, allowed_routes=3),
        update(None, key=1),
    ],
    "not-an-object": [
        raw(b""),
        raw(b"[1]"),
        raw(b"[]"),
        raw(b"null"),
        raw(b'"text"'),
        raw(b"1"),
        raw(b"true"),
        raw(b"[1]", actor=None),
        raw(b"[1]", ("content-type", "text/plain")),
        raw(b"[1]", path="/key/generate"),
    ],
    "not-json": [
        raw(b"{"),
        raw(b'{"key": }'),
        raw(b"{'key': 'a'}"),
        raw(b'{"key": "a"} x'),
        raw(b"\xff"),
        raw(b'{"key": "\xff"}'),
        raw(b'\xef\xbb\xbf{"key": "a"}'),
        raw(b"{", actor=None),
        raw(b'\xef\xbb\xbf{"key": "a"}', actor=None),
        raw(b"{", path="/key/generate"),
        raw(b"{", path="/user/new"),
        raw(b"{", path="/team/new"),
    ],
    "media-types": [
        raw(b'{"key": "never-was"}', ("content-type", "text/plain")),
        raw(b'{"key": "never-was"}', ("content-type", "application/x-www-form-urlencoded")),
        raw(b'{"key": "never-was"}', ("content-type", "application/problem+json")),
        raw(b'{"key": "never-was"}', ("content-type", "Application/JSON; charset=latin-1")),
        raw(b'{"key": "never-was"}', ("content-type", "")),
        raw(b'{"key": "never-was"}', ("x-nothing", "")),
        raw(b'{"key": 1', ("content-type", "text/plain")),
        raw(b'{"key": "\xff"}', ("content-type", "text/plain")),
    ],
    "odd-json": [
        raw(b'{"key": "never-was", "key": "<alice.llm>", "models": ["a"], "models": ["mock-gpt-2"]}'),
        raw(b'{"key": "<alice.llm>", "allowed\\u005froutes": ["llm_api_routes"]}'),
        raw(b'{"key": "<alice.llm>", "allowed_routes": [], "allowed_routes": ["llm_api_routes"]}'),
        raw(b'{"key": "<alice.llm>", "allowed_routes": ["llm_api_routes"], "allowed_routes": []}'),
        raw(b'{"key": "<alice.llm>", "unknown": {"deep": [1, 2]}, "models": ["mock-gpt-2"]}'),
        raw('{"key": "<alice.llm>", "models": ["mock-gpt"]}'.encode("utf-16")),
        raw(b'{"key": "<alice.llm>", "unknown": [NaN, -Infinity, 1e400, "\\ud800"]}'),
        raw(b'{"key": "<alice.llm>", "unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        raw(
            b'{"key": "<alice.llm>", "models": ["mock-gpt"]}',
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
        ),
    ],
    # --- who may read
    "info": [
        get("/key/info", "alice.own"),
        get("/key/info", "admin"),
        info("<alice.own>", "alice.own"),
        info("<alice.llm>", "alice.own"),
        info("<alice.llm>", "admin"),
        info("", "alice.own"),
        info("sk-never-was", "alice.own"),
        info("never-was", "admin"),
        info("<#alice.llm>", "bobby.own"),
        info("<#nobody.loose>", "bobby.own"),
        info("<#nobody.loose>", "nobody.loose"),
        info("<#alice.own>", "nobody.loose"),
        info("<#bobby.own>", "alice.llm"),
        info("<#alice.llm>", "alice.llm"),
        info("<#alice.read>", "alice.read"),
        info("<#alice.llm>", "alice.read"),
        info("<#alice.llm>", "alice.manage"),
        info("<#alice.llm>", "alice.custom"),
        info("<#alice.llm>", "alice.update"),
        info("<#alice.llm>", "alice.wild"),
        get("/key/info?key=never-was&key=<#alice.llm>", "alice.own"),
    ],
    # --- what makes the cast
    "generate": [
        post("/key/generate", "admin", {"user_id": "<alice>"}),
        post("/key/generate", "admin", {}),
        raw(b"", path="/key/generate"),
        post("/key/generate", "alice.own", {}),
        post("/key/generate", "alice.own", {"key_type": "llm_api", "models": MODELS, "key_alias": "<alice>-new"}),
        post("/key/generate", "alice.own", {"key_type": "read_only"}),
        post("/key/generate", "alice.own", {"key_type": "management"}),
        post("/key/generate", "alice.own", {"key_type": "default", "user_id": "<alice>"}),
        post("/key/generate", "admin", {"user_id": "<alice>", "allowed_routes": ["/key/info"], "key_type": "default"}),
        post("/key/generate", "admin", {"user_id": "<alice>", "allowed_routes": ["/key/info"], "key_type": "llm_api"}),
        post("/key/generate", "admin", {"user_id": "<alice>", "team_id": "<squad>"}),
        post("/key/generate", "admin", {"metadata": {"a": 1}, "permissions": {"b": 2}}),
    ],
    "generate-refused": [
        post("/key/generate", "alice.own", {"allowed_routes": ["llm_api_routes"]}),
        post("/key/generate", "alice.own", {"user_id": "<bobby>"}),
        post("/key/generate", "alice.llm", {}),
        post("/key/generate", "alice.read", {}),
        post("/key/generate", "alice.manage", {}),
        post("/key/generate", "alice.crew", {}),
        post("/key/generate", "nobody.loose", {}),
        post("/key/generate", "alice.own", {"key_type": "other"}),
        post("/key/generate", "alice.own", {"key_type": None}),
        post("/key/generate", "alice.own", {"models": "x", "allowed_routes": 1, "user_id": 2}),
        post("/key/generate", "admin", {"metadata": "x", "permissions": 1, "key_alias": 1, "team_id": 1}),
        post(
            "/key/generate",
            "alice.own",
            {"models": None, "allowed_routes": None, "metadata": None, "permissions": None},
        ),
        post("/key/generate", "alice.own", {"team_id": "<squad>"}),
        post("/key/generate", "carol.own", {"team_id": "<squad>"}),
        post("/key/generate", "alice.own", {"team_id": "<crew>"}),
        post("/key/generate", "admin", {"team_id": "never-was"}),
        post("/key/generate", "admin", {"user_id": "never-was"}),
        post("/key/generate", "admin", {"user_id": "<bobby>", "team_id": "<crew>"}),
        post("/key/generate", "admin", {"models": [1]}),
        post("/key/generate", "alice.own", {"team_id": "never-was"}),
    ],
    "new-user": [
        post("/user/new", "admin", CAST["carol"][2]),
        post("/user/new", "admin", CAST["carol"][2]),
        post("/user/new", "alice.own", CAST["bobby"][2]),
        post("/user/new", "alice.llm", CAST["bobby"][2]),
        post("/user/new", "admin", {"user_id": "<bobby>"}),
        post("/user/new", "admin", {"user_id": 1}),
        post("/user/new", "admin", {"user_role": "king"}),
        post("/user/new", "admin", {"user_email": "<carol>@example.com"}),
        post(
            "/user/new",
            "admin",
            {"user_email": "<bobby>-new@example.com", "user_role": "internal_user", "auto_create_key": False},
        ),
        post("/user/new", "admin", {"user_role": "internal_user"}),
        post("/user/new", "admin", {}),
        raw(b"", path="/user/new", actor="admin"),
    ],
    "new-team": [
        post("/team/new", "admin", CAST["squad"][2]),
        post("/team/new", "admin", {"team_alias": "x"}),
        post("/team/new", "admin", {"team_alias": "y", "members_with_roles": [{"role": "user", "user_id": "<alice>"}]}),
        post(
            "/team/new", "admin", {"team_alias": "z", "members_with_roles": [{"role": "user", "user_id": "never-was"}]}
        ),
        post("/team/new", "admin", {"team_alias": "p", "team_member_permissions": ["/key/update"]}),
        post("/team/new", "admin", {}),
        post("/team/new", "chief.own", {"team_id": None, "team_alias": None, "team_member_permissions": None}),
        post("/team/new", "admin", {"team_id": 1, "members_with_roles": {}, "team_member_permissions": "x"}),
        post("/team/new", "admin", {"members_with_roles": None, "team_member_permissions": [1]}),
        post("/team/new", "admin", {"members_with_roles": [1]}),
        post("/team/new", "admin", {"members_with_roles": [{"role": "user"}]}),
        post("/team/new", "admin", {"members_with_roles": [{"user_id": "a"}]}),
        post("/team/new", "admin", {"members_with_roles": [{"role": "king", "user_id": "a"}]}),
        post("/team/new", "admin", {"members_with_roles": [{"role": "user", "user_id": 1}]}),
        raw(b"", path="/team/new", actor="admin"),
        post("/team/new", "alice.own", {"team_alias": "x"}),
        post("/team/new", "alice.llm", {"team_alias": "x"}),
    ],
    # --- LLM calls
    "chat": [
        chat("alice.llm", model="mock-gpt"),
        chat("alice.own", model="mock-gpt-2"),
        chat("admin", model="mock-gpt"),
    ],
    "chat-stream": [
        chat("alice.llm", model="mock-gpt", stream=True),
        chat("alice.own", model="mock-gpt-2", stream=True),
    ],
    "chat-refused": [
        chat("alice.llm", model="mock-gpt-2"),
        chat("alice.llm", model="mock-gpt-2", stream=True),
        chat("alice.own", model="nope"),
        chat("alice.llm", model="nope"),
        chat("admin", model="nope", stream=True),
        chat("alice.read", model="mock-gpt"),
        chat("alice.read", model="nope"),
        chat("alice.read", model=1),
        chat("alice.manage", model="mock-gpt"),
        chat("alice.custom", model="mock-gpt"),
        chat("alice.own"),
        chat("alice.own", model=1),
        chat("alice.own", model=["mock-gpt"]),
        chat("alice.llm", model=1),
        chat("alice.llm", model=["mock-gpt"]),
        chat("alice.llm"),
        post("/v1/chat/completions", "alice.own", {"model": "mock-gpt"}),
        raw(b"{", path="/v1/chat/completions"),
        raw(b"", path="/v1/chat/completions"),
        raw(b"\xff", path="/v1/chat/completions"),
        raw(b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", path="/v1/chat/completions"),
        raw(b"[]", path="/v1/chat/completions"),
    ],
    "all-team-models": [
        update("alice.own", key="<alice.default>", models=["all-team-models"]),
        get("/v1/models", "alice.default"),
        chat("alice.default", model="mock-gpt"),
        update("alice.own", key="<alice.default>", models=["mock-gpt-2", "other"]),
        get("/v1/models", "alice.default"),
        chat("alice.default", model="other"),
    ],
}

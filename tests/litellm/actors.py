"""Users, teams and keys on a real LiteLLM, created through its HTTP API only.

A caller's credential is a key, sent as ``Authorization: Bearer``. The admin reads back what is stored for a key.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx

MODELS = ["mock-gpt"]
OTHER_MODELS = ["mock-gpt-2"]
CHAT = {"model": "mock-gpt", "messages": [{"role": "user", "content": "Hi"}]}
CUSTOM_ROUTES = ["/chat/completions", "/models", "/key/info"]

#: The ``allowed_routes`` that `GET /key/info` shows for a key of each type.
ROUTES = {
    "default": [],
    "llm_api": ["llm_api_routes"],
    "read_only": ["info_routes"],
    "management": ["management_routes"],
    "custom": CUSTOM_ROUTES,
}


def hashed(key: str) -> str:
    """The name under which LiteLLM stores a key (its `hash_token`)."""
    return hashlib.sha256(key.encode()).hexdigest()


def claims(token: str) -> dict[str, Any]:
    """The payload of a JWT that LiteLLM issued. The signature is not verified."""
    payload = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return decoded


@dataclass(frozen=True)
class User:
    """An internal user who can sign in, with an unrestricted key of their own."""

    user_id: str
    email: str
    key: str
    password: str


@dataclass
class LiteLLM:
    """A running LiteLLM, addressed directly.

    ``source`` is the loopback address its clients connect from; ``prefix`` is the ``SERVER_ROOT_PATH`` they use.
    """

    url: str
    master_key: str
    source: str = "127.0.0.1"
    prefix: str = ""
    secrets: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.secrets.add(self.master_key)
        self.http = client(self.url, source=self.source)

    @cached_property
    def release(self) -> tuple[int, ...]:
        """The release, such as (1, 83, 13)."""
        for path in ("/health/readiness/details", "/health/readiness"):  # 1.92.0 moved it behind authentication
            answer = self.http.get(path, headers=bearer(self.master_key))
            if answer.is_success:
                return tuple(int(part) for part in answer.json()["litellm_version"].split(".")[:3])
        raise AssertionError(f"{self.url}: no release in {answer.text}")

    def refuses_unchanged(self, key_type: str) -> bool:
        """Whether a non-admin who sends the stored ``allowed_routes`` is refused with 403 (BerriAI/litellm#26555)."""
        if key_type == "default":  # []
            return (1, 92, 0) <= self.release < (1, 101, 0)
        fixed = (1, 101, 0) if key_type in ("llm_api", "read_only") else (1, 109, 0)
        return (1, 83, 7) <= self.release < fixed

    def call(self, path: str, body: object, *, key: str | None = None) -> dict[str, Any]:
        """POST as ``key`` (default: the admin). Raises `AssertionError` with LiteLLM's response unless it succeeds."""
        answer = self.http.post(self.prefix + path, json=body, headers=bearer(key or self.master_key))
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        result: dict[str, Any] = answer.json()
        return result

    def stored(self, key: str) -> dict[str, Any]:
        """The stored key, as the admin reads it."""
        answer = self.http.get(f"{self.prefix}/key/info", params={"key": hashed(key)}, headers=bearer(self.master_key))
        assert answer.status_code == 200, answer.text
        info: dict[str, Any] = answer.json()["info"]
        return info

    def new_user(self, role: str = "internal_user") -> User:
        user_id = f"user-{uuid.uuid4().hex[:12]}"
        email = f"{user_id}@example.com"
        self.call("/user/new", {"user_id": user_id, "user_email": email, "user_role": role, "auto_create_key": False})
        key = self.new_secret(self.call("/key/generate", {"user_id": user_id})["key"])
        return User(user_id, email, key, password=self.new_secret(f"Passw0rd-{uuid.uuid4().hex}"))

    def new_key(self, owner: User, key_type: str = "default", **members: object) -> str:
        """A key for `MODELS` that ``owner`` has created for themselves.

        Routes that its owner may not set (``management`` from 1.92.0 on, custom routes always) are set by the admin
        afterwards, because on newer releases an owner may not edit a key that the admin has *created*.
        """
        members = {"models": MODELS, **members}
        by_admin = key_type == "custom" or (key_type == "management" and self.release >= (1, 92, 0))
        key = self.new_secret(
            self.call("/key/generate", members if by_admin else {**members, "key_type": key_type}, key=owner.key)["key"]
        )
        if by_admin:
            self.call("/key/update", {"key": key, "allowed_routes": ROUTES[key_type]})
        assert self.stored(key)["allowed_routes"] == ROUTES[key_type]
        return key

    def new_session(self, user: User) -> str:
        """Accept an invitation, choose a password and sign in. Return the key that the dashboard then sends."""
        admin = {
            "username": os.environ.get("UI_USERNAME", "admin"),
            "password": os.environ.get("UI_PASSWORD", self.master_key),
        }
        self.sign_in(admin)  # creates the row that invitations refer to
        invitation = self.call("/invitation/new", {"user_id": user.user_id})["id"]
        answer = self.http.get(f"{self.prefix}/onboarding/get_token", params={"invite_link": invitation})
        onboarding = self.new_secret(claims(answer.raise_for_status().json()["token"])["key"])
        self.call(
            "/onboarding/claim_token",
            {"invitation_link": invitation, "user_id": user.user_id, "password": user.password},
            key=onboarding,
        )
        return self.sign_in({"username": user.email, "password": user.password})

    def sign_in(self, credentials: dict[str, str]) -> str:
        answer = client(self.url, source=self.source).post(f"{self.prefix}/v2/login", json=credentials)
        assert answer.is_success, answer.text
        return self.new_secret(claims(answer.json()["token"])["key"])

    def new_team(self, *members: User, may: tuple[str, ...] = ()) -> str:
        """A team of ordinary members, who may call the endpoints in ``may`` in addition to reading keys."""
        team: str = self.call("/team/new", {"team_alias": f"team-{uuid.uuid4().hex[:12]}"})["team_id"]
        for member in members:
            self.call("/team/member_add", {"team_id": team, "member": {"role": "user", "user_id": member.user_id}})
        if may:
            permissions = ["/key/info", "/key/health", *may]
            self.call("/team/permissions_update", {"team_id": team, "team_member_permissions": permissions})
        return team

    def new_secret(self, secret: str) -> str:
        self.secrets.add(secret)
        return secret


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def client(url: str, *, source: str = "127.0.0.1") -> httpx.Client:
    """A client without keep-alive: LiteLLM closes idle connections after 5 s, which must not make a test fail."""
    limits = httpx.Limits(max_keepalive_connections=0)
    transport = httpx.HTTPTransport(local_address=source, limits=limits)
    return httpx.Client(base_url=url, transport=transport, timeout=60, trust_env=False)


def update(
    url: str,
    key: str,
    body: object,
    *,
    prefix: str = "",
    source: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """Send `POST /key/update` with the credential ``key``, to LiteLLM or to the gateway."""
    with client(url, source=source) as http:
        return http.post(f"{prefix}/key/update", json=body, headers={**bearer(key), **(headers or {})})

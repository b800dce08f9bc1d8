"""Plays an exchange against a server and writes its answers down so that two runs can be compared.

What differs from run to run is replaced by what it stands for: the ids, keys and hashes of the cast by their names, the
rest (times, ids and keys made by the server) by a placeholder. Everything else is compared byte for byte.
"""

import hashlib
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.demo.exchanges import CAST, Request

#: Response fields that are part of the contract; the others tell of the server, not of the answer.
FIELDS = ("content-type", "location", "allow")

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?")
_CREATED = re.compile(r'"created":1[7-9]\d{8}\b')
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SECRET = re.compile(r"sk-[A-Za-z0-9_-]{22}(?![A-Za-z0-9_-])")
_HASH = re.compile(r"\b[0-9a-f]{64}\b")
_MASKED = re.compile(r"sk-\.\.\.[A-Za-z0-9_-]{4}")
_PARSER = re.compile(r'(Invalid JSON payload: )[^"]*')
_PLACEHOLDER = re.compile(r"<(#?)([a-z.]+)>")


def new_client() -> httpx.Client:
    """A client with a connection per request, because uvicorn closes one after an unhandled exception."""
    return httpx.Client(timeout=60, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass
class Player:
    """A fresh cast on the LiteLLM, or look-alike, at ``url``."""

    client: httpx.Client
    url: str
    master_key: str
    cast: dict[str, str] = field(default_factory=dict)
    run: str = field(default_factory=lambda: secrets.token_hex(4))

    def play(self, requests: list[Request]) -> list[dict[str, Any]]:
        """The requests, one after the other, with their answers in comparable form."""
        return [{"request": str(request), **self._written(self._send(request))} for request in requests]

    def member(self, name: str) -> str:
        """The id or the secret of a member of the cast, created when first asked for."""
        if name == "admin":
            return self.master_key
        if name not in self.cast:
            creator, path, body = CAST[name]
            if path != "/key/generate":
                self.cast[name] = f"{name}-{self.run}"
            response = self._send(Request("POST", path, creator, body))
            assert response.status_code == 200, f"{name}: {response.status_code} {response.text}"
            if path == "/key/generate":
                self.cast[name] = response.json()["key"]
        return self.cast[name]

    def _send(self, request: Request) -> httpx.Response:
        headers = [(name, self._named(value)) for name, value in request.headers]
        if request.actor is not None:
            headers.append(("authorization", f"Bearer {self.member(request.actor)}"))
        content = request.encoded()
        encoding = "utf-16" if content.startswith(b"\xff\xfe{") else "latin-1"
        content = self._named(content.decode(encoding)).encode(encoding)
        return self.client.request(
            request.method, self.url + self._named(request.path), headers=headers, content=content
        )

    def _named(self, text: str) -> str:
        def member(match: re.Match[str]) -> str:
            value = self.member(match[2])
            return sha256(value) if match[1] else value

        return _PLACEHOLDER.sub(member, text)

    def _written(self, response: httpx.Response) -> dict[str, Any]:
        headers = {name: self._unnamed(response.headers[name]) for name in FIELDS if name in response.headers}
        text = self._unnamed(response.text)
        try:
            body = json.loads(text)
        except ValueError:
            return {"status": response.status_code, **headers, "text": text}
        if json.dumps(body, ensure_ascii=False, separators=(",", ":")) != text:
            return {"status": response.status_code, **headers, "text": text}
        return {"status": response.status_code, **headers, "body": body}

    def _unnamed(self, text: str) -> str:
        text = text.replace(self.url, "<url>")
        for name, value in self.cast.items():
            text = text.replace(value, f"<{name}>").replace(sha256(value), f"<#{name}>")
            if value.startswith("sk-"):
                text = text.replace(f"sk-...{value[-4:]}", f"<...{name}>")
            else:
                text = re.sub(rf"{name}-\*+{value[-2:]}", f"<*{name}>", text)
        text = _CREATED.sub('"created":"<time>"', _TIME.sub("<time>", text))
        text = _HASH.sub("<hash>", _SECRET.sub("<key>", _UUID.sub("<uuid>", text)))
        text = _PARSER.sub(r"\1<the parser's words>", text)
        # printed from a set of strings, so in an order that changes with the process
        text = text.replace("['/key/info', '/key/health']", "['/key/health', '/key/info']")
        return _MASKED.sub("<...key>", text)

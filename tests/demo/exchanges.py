"""Requests with a real LiteLLM's responses, in ``exchanges.json``, and a player that sends the requests again.

A request consists of the method and path, the name of the caller, and a JSON body or null. Users and keys have names in
angle brackets: ``<alice>`` is a user's id, ``<alice.llm>`` a key, and ``<#alice.llm>`` the hash of that key. ``cast``
has the requests that create them. Each exchange creates its own, when they are first named.

If ``LITELLM_RELEASES`` and ``LITELLM_MASTER_KEY`` name a real LiteLLM of the release that the look-alike resembles,
``python -m tests.demo.exchanges`` records its responses again. It creates users and keys there and leaves them.
"""

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

import httpx

from sanitizer.demo.lookalike import RELEASE, token_of
from tests.litellm.actors import bearer, client
from tests.litellm.conftest import releases

FILE = Path(__file__).with_name("exchanges.json")
LOADED = json.loads(FILE.read_text(encoding="utf-8"))
CAST: dict[str, tuple[str, str, Any]] = LOADED["cast"]
EXCHANGES: dict[str, list[dict[str, Any]]] = LOADED["exchanges"]

#: Patterns of text that differs from run to run, and their placeholders.
VARYING = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?", "<time>"),
    (r'(?<="created":)\d+', '"<time>"'),
    (r'(?<="success_callbacks":)\[[^\]]*\]', '"<callbacks>"'),  # more of them once a model has been called
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<uuid>"),
    (r"\bsk-[\w-]{22}(?![\w-])", "<key>"),
    (r"\b[0-9a-f]{64}\b", "<hash>"),
    (r"sk-\.\.\.[\w-]{4}", "<...key>"),
)


class Player:
    """Sends the requests of one exchange to the server at ``url``."""

    def __init__(self, url: str, master_key: str) -> None:
        self._client = client(url)
        self._names = {"admin": master_key, "nobody": "sk-nobody-has-this-key"}

    def answer(self, route: str, caller: str | None, body: Any) -> dict[str, Any]:
        """Send one request and return the response, in which text that differs from run to run is replaced."""
        response = self._send(route, caller, body)
        text = response.text
        for name, value in self._names.items():
            text = text.replace(value, f"<{name}>").replace(token_of(value), f"<#{name}>")
        for pattern, placeholder in VARYING:
            text = re.sub(pattern, placeholder, text)
        kind = response.headers["content-type"]
        return {
            "status": response.status_code,
            "content-type": kind,
            "body": json.loads(text) if kind == "application/json" else text,
        }

    def _send(self, route: str, caller: str | None, body: Any) -> httpx.Response:
        method, _, path = self._filled_in(route).partition(" ")
        headers = {} if caller is None else bearer(self._filled_in(f"<{caller}>"))
        sent = None if body is None else json.loads(self._filled_in(json.dumps(body)))
        return self._client.request(method, path, headers=headers, json=sent)

    def _filled_in(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            value = self._value(match[2])
            return token_of(value) if match[1] else value

        return re.sub(r"<(#?)([a-z.]+)>", value, text)

    def _value(self, name: str) -> str:
        """Return the id of a user, or a key, and create it if it has not been named before."""
        if name not in self._names:
            route, caller, body = CAST[name]
            if route == "POST /user/new":
                self._names[name] = f"{name}-{secrets.token_hex(4)}"
            answer = self._send(route, caller, body).raise_for_status().json()
            if route == "POST /key/generate":
                self._names[name] = answer["key"]
        return self._names[name]


def main() -> None:
    url, master_key = releases()[RELEASE], os.environ["LITELLM_MASTER_KEY"]
    for steps in EXCHANGES.values():
        player = Player(url, master_key)
        steps[:] = [{"request": step["request"], **player.answer(*step["request"])} for step in steps]
    cast = ",\n".join(f" {json.dumps(name)}: {json.dumps(request)}" for name, request in CAST.items())
    exchanges = ",\n".join(
        f" {json.dumps(name)}: [\n  " + ",\n  ".join(json.dumps(step, ensure_ascii=False) for step in steps) + "\n ]"
        for name, steps in EXCHANGES.items()
    )
    FILE.write_text(f'{{"cast": {{\n{cast}\n}},\n"exchanges": {{\n{exchanges}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()

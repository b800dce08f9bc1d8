"""An internal user, their own key and, made with it, one of type "LLM API"; all through the gateway.

Run again, it leaves what is there. The keys are no secrets: they are for trying the bug on one's own machine.
"""

import hashlib
import json
import os
import urllib.error
import urllib.request

OWNER, KEY = "sk-compose-owner", "sk-compose-llm-api-key"


def exists(key: str, caller: str) -> bool:
    """Whether LiteLLM has the key, as its owner reads it."""
    return call("GET", f"/key/info?key={hashlib.sha256(key.encode()).hexdigest()}", caller)[0] == 200


def call(method: str, path: str, caller: str, body: dict[str, object] | None = None) -> tuple[int, str]:
    """Status and content of LiteLLM's answer."""
    request = urllib.request.Request(  # noqa: S310 - http, to the other service
        os.environ["GATEWAY"] + path,
        json.dumps(body).encode() if body is not None else None,
        {"Authorization": f"Bearer {caller}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")


def main() -> int:
    master = os.environ["LITELLM_MASTER_KEY"]
    steps: list[tuple[str, str, dict[str, object]]] = [
        ("/user/new", master, {"user_id": "ada", "user_role": "internal_user", "auto_create_key": False}),
        ("/key/generate", master, {"user_id": "ada", "key": OWNER}),
        ("/key/generate", OWNER, {"key": KEY, "key_type": "llm_api", "models": ["mock"]}),
    ]
    if not exists(KEY, OWNER):
        for path, caller, body in steps:
            status, content = call("POST", path, caller, body)
            if status != 200:
                print(f"POST {path}: {status} {content}")
                return 1
    print(f"ready: owner {OWNER}, key {KEY}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

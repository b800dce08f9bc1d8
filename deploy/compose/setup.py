"""An internal user, their own key and, made with it, one of type "LLM API"; all through the gateway.

Run again, also after an interruption, it makes what is missing and leaves what is there: LiteLLM answers 409 for a user
that exists, and 200 for a key that exists, which it leaves as it is (1.83.13, 1.92.0 and 1.110.2 do). The keys are no
secrets: they are for trying the bug on one's own machine.
"""

import json
import os
import time
import urllib.error
import urllib.request

OWNER, KEY = "sk-compose-owner", "sk-compose-llm-api-key"
AWAY = (502, 503, 504)
PATIENCE = 60.0
"""Seconds in which a request is sent again while LiteLLM or the gateway is away, as both are when a project starts."""


def post(path: str, caller: str, body: dict[str, object]) -> tuple[int, str]:
    """Status and content of LiteLLM's answer; 503 if the gateway can't be reached."""
    request = urllib.request.Request(  # noqa: S310 - http, to the other service
        os.environ["GATEWAY"] + path,
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {caller}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 503, str(error)


def main() -> int:
    master = os.environ["LITELLM_MASTER_KEY"]
    steps: list[tuple[str, str, dict[str, object]]] = [
        ("/user/new", master, {"user_id": "ada", "user_role": "internal_user", "auto_create_key": False}),
        ("/key/generate", master, {"user_id": "ada", "key": OWNER}),
        ("/key/generate", OWNER, {"key": KEY, "key_type": "llm_api", "models": ["mock"]}),
    ]
    for path, caller, body in steps:
        until = time.monotonic() + PATIENCE
        status, content = post(path, caller, body)
        while status in AWAY and time.monotonic() < until:
            time.sleep(1)
            status, content = post(path, caller, body)
        if status not in (200, 409):
            print(f"POST {path}: {status} {content}")
            return 1
    print(f"ready: owner {OWNER}, key {KEY}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

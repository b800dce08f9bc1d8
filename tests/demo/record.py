"""Records what a real LiteLLM answers to the table of exchanges.

``LITELLM_URL=http://127.0.0.1:4000 LITELLM_MASTER_KEY=sk-... python -m tests.demo.record`` writes
``recorded-VERSION.json`` beside this file, where VERSION is the release that answers. It creates users, teams and
keys there and leaves them.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.demo.exchanges import EXCHANGES
from tests.demo.player import Player, new_client


def recording(release: str) -> Path:
    """The file that holds the answers of that release."""
    return Path(__file__).with_name(f"recorded-{release}.json")


def release_at(client: httpx.Client, url: str) -> str:
    """The version that the LiteLLM at ``url`` says it is, in its OpenAPI document."""
    document: dict[str, Any] = client.get(f"{url}/openapi.json").json()
    return str(document["info"]["version"])


def text(answers: dict[str, list[dict[str, Any]]]) -> str:
    """The recording as JSON, with one answer a line, so that a difference shows as a line."""
    rows = (f" {json.dumps(name)}: [\n  {_lines(played)}\n ]" for name, played in answers.items())
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _lines(played: list[dict[str, Any]]) -> str:
    return ",\n  ".join(json.dumps(answer, ensure_ascii=False) for answer in played)


def main() -> int:
    url, master_key = os.environ["LITELLM_URL"].rstrip("/"), os.environ["LITELLM_MASTER_KEY"]
    with new_client() as client:
        release = release_at(client, url)
        answers = {name: Player(client, url, master_key).play(requests) for name, requests in EXCHANGES.items()}
    recording(release).write_text(text(answers), encoding="utf-8")
    sys.stderr.write(f"{sum(map(len, answers.values()))} answers of LiteLLM {release} in {recording(release).name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

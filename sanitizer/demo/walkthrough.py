"""``litellm-sanitizer demo``: the bug report BerriAI/litellm#26555, reproduced without and with the gateway.

A LiteLLM look-alike runs in this process, and the gateway in front of it in another. Alice, an internal user, edits the
models of her own key of type "LLM API". Like LiteLLM's dashboard, her client also sends ``allowed_routes``, unchanged.
"""

import contextlib
import os
import signal
import sys
import textwrap
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import httpx

from sanitizer import __version__
from sanitizer.demo.background import GatewayFailed, running_gateway, serving
from sanitizer.demo.lookalike import RELEASE, create_lookalike, token_of

MASTER_KEY = "sk-1234"
WIDTH = 88

OLD, NEW = ["mock-gpt"], ["mock-gpt-2"]  # models
LLM_API, MANAGEMENT, INFO = ["llm_api_routes"], ["management_routes"], ["info_routes"]
EDIT = {"models": NEW, "allowed_routes": LLM_API}


@dataclass(frozen=True)
class Step:
    """A ``POST /key/update``, the expected status, and the models and routes that should be stored afterwards."""

    title: str
    caller: str
    through_gateway: bool
    change: dict[str, list[str]]
    status: int
    models: list[str]
    routes: list[str]


STEPS = (
    Step("Alice: new models, same routes", "alice", False, EDIT, 403, OLD, LLM_API),
    Step("the very same request", "alice", True, EDIT, 200, NEW, LLM_API),
    Step("Alice: other routes", "alice", True, {"allowed_routes": MANAGEMENT}, 403, NEW, LLM_API),
    Step("admin: other routes", "admin", True, {"allowed_routes": INFO}, 200, NEW, INFO),
)


@dataclass(frozen=True)
class Scene:
    """The URLs of both servers, the keys of the ``callers`` by name, and the ``key`` that is edited."""

    client: httpx.Client
    litellm: str
    gateway: str
    callers: dict[str, str]
    key: str

    def update(self, step: Step) -> httpx.Response:
        url = self.gateway if step.through_gateway else self.litellm
        headers = {"authorization": f"Bearer {self.callers[step.caller]}"}
        return self.client.post(f"{url}/key/update", headers=headers, json={"key": self.key, **step.change})

    def stored(self) -> dict[str, Any]:
        """The columns of the key that is edited, read from LiteLLM itself."""
        headers = {"authorization": f"Bearer {self.callers['admin']}"}
        response = self.client.get(f"{self.litellm}/key/info", params={"key": token_of(self.key)}, headers=headers)
        info: dict[str, Any] = response.raise_for_status().json()["info"]
        return info


@dataclass(frozen=True)
class Result:
    """The response to a step, and the models and routes that were stored afterwards."""

    step: Step
    response: httpx.Response
    models: list[str]
    routes: list[str]

    @property
    def outcome(self) -> str:
        """The outcome in the gateway's response field, or ``""`` for a response of LiteLLM itself."""
        return str(self.response.headers.get("x-litellm-sanitizer", "")).partition(";")[0]

    @property
    def as_expected(self) -> bool:
        actual = (self.response.status_code, self.models, self.routes)
        return actual == (self.step.status, self.step.models, self.step.routes)


def run(serve: bool = False) -> int:
    """Run the demo and print it on stdout. Returns the exit status: 0 if every step went as expected, else 1.

    With ``serve``, it then prints commands to try, and both servers run until Ctrl-C.
    """
    handler = signal.signal(signal.SIGTERM, _interrupt)  # the default action would leave the gateway running
    try:
        return _run(serve)
    except (GatewayFailed, httpx.HTTPError) as error:
        print(f"litellm-sanitizer: the demo failed: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as in `demo | head`; without this, the flush at exit would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 1
    finally:
        signal.signal(signal.SIGTERM, handler)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run(serve: bool) -> int:
    with (
        serving(create_lookalike(MASTER_KEY)) as litellm,
        running_gateway(litellm) as gateway,
        httpx.Client(timeout=10, trust_env=False) as client,
    ):
        scene = set_scene(client, litellm, gateway.url)
        print(_introduction(scene), flush=True)
        results = [play(scene, step) for step in STEPS]
        failures = find_failures(results)
        print(_table(results), flush=True)
        print(_conclusion(results, failures), flush=True)
        if serve:
            print(_commands(set_scene(client, litellm, gateway.url)), flush=True)
            gateway.echo = True
            with contextlib.suppress(KeyboardInterrupt):
                gateway.wait()
        return 1 if failures else 0


def set_scene(client: httpx.Client, litellm: str, gateway: str) -> Scene:
    """Create Alice, an internal user, with a key that authenticates her and a key of type "LLM API" to edit."""

    def post(path: str, caller: str, **body: Any) -> dict[str, Any]:
        response = client.post(litellm + path, headers={"authorization": f"Bearer {caller}"}, json=body)
        created: dict[str, Any] = response.raise_for_status().json()
        return created

    user_id = post("/user/new", MASTER_KEY, user_role="internal_user", auto_create_key=False)["user_id"]
    alice = post("/key/generate", MASTER_KEY, user_id=user_id)["key"]
    key = post("/key/generate", alice, key_type="llm_api", models=OLD)["key"]
    return Scene(client, litellm, gateway, {"admin": MASTER_KEY, "alice": alice}, key)


def play(scene: Scene, step: Step) -> Result:
    response = scene.update(step)
    stored = scene.stored()
    return Result(step, response, stored["models"], stored["allowed_routes"])


def find_failures(results: list[Result]) -> list[str]:
    """One line per failure; none if every step went as expected."""
    failures = [
        f"{number} should be {step.status}, with {_listed(step.models)} and {_listed(step.routes)} stored afterwards."
        for number, result in enumerate(results, 1)
        if not result.as_expected and (step := result.step)
    ]
    direct, relayed = results[0].response, results[2].response
    if relayed.content != direct.content:
        failures.append("3 should have LiteLLM's own response, the same as in 1.")
    return failures


def _introduction(scene: Scene) -> str:
    story = (
        'Alice, an internal user, edits the models of her key of type "LLM API". Like LiteLLM\'s dashboard, her client '
        "sends the key's allowed_routes along, unchanged (BerriAI/litellm#26555)."
    )
    servers = (f"LiteLLM look-alike, behaving like {RELEASE}", f"litellm-sanitizer {__version__} in front of it")
    urls = (scene.litellm, scene.gateway)
    lines = [f"{server:46}{url}" for server, url in zip(servers, urls, strict=True)]
    return "\n".join([*lines, "", textwrap.fill(story, WIDTH), ""])


def _table(results: list[Result]) -> str:
    form = "{:<3}{:<32}{:<9}{:<8}{:<9}{:<12}{}"
    lines = [
        form.format("", "", "", "", "", "then stored:", "").rstrip(),
        form.format("", "POST /key/update", "sent to", "status", "gateway", "models", "routes"),
        "-" * WIDTH,
    ]
    for number, result in enumerate(results, 1):
        to = "gateway" if result.step.through_gateway else "LiteLLM"
        stored = _listed(result.models), _listed(result.routes)
        line = form.format(number, result.step.title, to, result.response.status_code, result.outcome, *stored)
        lines.append(line if result.as_expected else f"{line}  <- WRONG")
    return "\n".join([*lines, ""])


def _conclusion(results: list[Result], failures: list[str]) -> str:
    if failures:
        return "\n".join(["These results are not as expected:", *failures])
    message = results[0].response.json()["error"]["message"]
    return textwrap.fill(f"LiteLLM's error message in 1 and 3: {message}", WIDTH) + "\n\nAll results are as expected."


def _commands(scene: Scene) -> str:
    """Commands that repeat the demo, on a key that has not been edited yet."""

    def curl(comment: str, url: str, caller: str, body: str = "") -> str:
        lines = [f"curl -i '{url}'", f"  -H 'Authorization: Bearer {scene.callers[caller]}'"]
        if body:
            lines += ["  -H 'Content-Type: application/json'", f"  -d '{body}'"]
        return f"# {comment}\n" + " \\\n".join(lines) + "\n"

    key = f'"key": "{scene.key}"'
    edit = f'{{{key}, "models": ["mock-gpt-2"], "allowed_routes": ["llm_api_routes"]}}'
    change = f'{{{key}, "allowed_routes": ["info_routes"]}}'
    chat = '{"model": "mock-gpt", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
    return "\n".join(
        [
            "\nBoth servers run until Ctrl-C. These commands edit another of Alice's keys.\n",
            curl("Alice's edit, direct: 403", f"{scene.litellm}/key/update", "alice", edit),
            curl("the same through the gateway: 200", f"{scene.gateway}/key/update", "alice", edit),
            curl("what is stored now", f"{scene.gateway}/key/info?key={token_of(scene.key)}", "alice"),
            curl("other routes, by the admin: 200 (by Alice: 403)", f"{scene.gateway}/key/update", "admin", change),
            curl("an LLM call", f"{scene.gateway}/v1/chat/completions", "alice", chat),
        ]
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names)

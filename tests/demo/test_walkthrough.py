"""``litellm-sanitizer demo``: what it prints, how it fails, and that it leaves no process behind."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from sanitizer.demo import background
from sanitizer.demo.background import serving
from sanitizer.demo.lookalike import create_lookalike
from sanitizer.demo.walkthrough import STEPS, find_failures, play, run, set_scene

DEMO = [sys.executable, "-m", "sanitizer", "demo"]
TIMEOUT = 60.0
TABLE = """\
1  Alice: new models, same routes  LiteLLM  403              mock-gpt    llm_api_routes
2  the very same request           gateway  200     dropped  mock-gpt-2  llm_api_routes
3  Alice: other routes             gateway  403     changed  mock-gpt-2  llm_api_routes
4  admin: other routes             gateway  200     changed  mock-gpt-2  info_routes
"""


def urls_in(text: str) -> set[str]:
    return set(re.findall(r"http://127\.0\.0\.1:\d+", text))


def assert_nothing_answers_at(urls: set[str]) -> None:
    assert len(urls) == 2
    for url in urls:
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, trust_env=False)


@contextmanager
def serving_demo() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run ``demo --serve``, and yield the process and its output up to the last command line."""
    with subprocess.Popen([*DEMO, "--serve"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        alarm = threading.Timer(TIMEOUT, process.terminate)
        alarm.start()
        try:
            assert process.stdout is not None
            printed = ""
            while '"stream": true' not in printed:
                line = process.stdout.readline()
                assert line, printed
                printed += line
            yield process, printed
        finally:
            alarm.cancel()
            process.terminate()  # not kill: it has to end its gateway


def request_of(command: str) -> httpx.Request:
    """The request that a curl command line sends."""
    _, _, url, *options = shlex.split(command.replace("\\\n", ""))
    pairs = list(zip(options[::2], options[1::2], strict=True))
    fields = dict(value.split(": ", 1) for option, value in pairs if option == "-H")
    bodies = [value for option, value in pairs if option == "-d"]
    return httpx.Request("POST" if bodies else "GET", url, headers=fields, content=bodies[0] if bodies else None)


def test_demo_shows_the_defect_and_the_cure() -> None:
    """The demo exits with 0 and prints the table, in plain ASCII. Options in the environment do not apply to it."""
    environment = os.environ | {"SANITIZER_MODE": "off", "SANITIZER_UPSTREAM": "ftp://nowhere"}
    demo = subprocess.run(DEMO, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False)
    assert (demo.returncode, demo.stderr) == (0, "")
    assert TABLE in demo.stdout
    assert "Only proxy admins can set `allowed_routes` on a key." in demo.stdout.replace("\n", " ")
    assert max(map(len, demo.stdout.splitlines())) <= 88
    assert demo.stdout.isascii()
    assert "\x1b" not in demo.stdout
    assert_nothing_answers_at(urls_in(demo.stdout))


@pytest.mark.parametrize("stop", [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGTERM, id="sigterm")])
def test_demo_serves_until_it_is_stopped(stop: signal.Signals) -> None:
    """The printed command lines have the announced results, and neither server outlives the command."""
    with serving_demo() as (process, printed):
        commands = re.findall(r"^# (.*)\n(curl (?:.*\\\n)*.*)$", printed, re.MULTILINE)
        with httpx.Client(trust_env=False) as client:
            answers = [client.send(request_of(command)) for _, command in commands]
        process.send_signal(stop)
        rest, log = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert rest.strip() == ""
    assert [answer.status_code for answer in answers] == [403, 200, 200, 200, 200]
    assert [re.findall(": (\\d+)", comment)[:1] for comment, _ in commands] == [["403"], ["200"], [], ["200"], []]
    assert answers[2].json()["info"]["models"] == ["mock-gpt-2"]
    assert answers[4].text.endswith("data: [DONE]\n\n")
    assert "Traceback" not in log
    assert_nothing_answers_at(urls_in(printed))


def test_demo_fails_where_the_defect_is_not_cured() -> None:
    """Without a gateway in between, step 2 fails, and so do the steps that build on it."""
    with serving(create_lookalike()) as url, httpx.Client(trust_env=False) as client:
        scene = set_scene(client, url, url)
        results = [play(scene, step) for step in STEPS]
    assert [result.as_expected for result in results] == [True, False, False, False]
    assert [failure[0] for failure in find_failures(results)] == ["2", "3", "4"]


def test_demo_fails_where_the_answer_is_not_litellms() -> None:
    """Step 3 fails if its refusal differs from LiteLLM's own in a single byte."""
    with serving(create_lookalike()) as url, httpx.Client(trust_env=False) as client:
        scene = set_scene(client, url, url)
        results = [play(scene, step) for step in STEPS]
    altered = httpx.Response(403, content=results[2].response.content + b" ")
    results[2] = type(results[2])(results[2].step, altered, results[2].models, results[2].routes)
    assert "3 should have LiteLLM's own response, the same as in 1." in find_failures(results)


def test_demo_says_why_the_gateway_did_not_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """If the gateway does not start, the demo exits with 1 and prints the gateway's error message on stderr."""
    monkeypatch.setattr(background, "_GATEWAY", [*background._GATEWAY, "--mode", "sideways"])
    assert run() == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert re.match(r"litellm-sanitizer: the demo failed: the gateway did not start:\n.*sideways", printed.err)


def test_demo_ends_quietly_when_its_reader_leaves() -> None:
    """If its output is no longer read, as in ``demo | head``, the demo exits with 1 and prints no traceback."""
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, log = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, log) == (1, "")


def test_demo_notices_that_the_gateway_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With ``--serve``, a gateway that ends on its own ends the command, with exit status 1."""
    wait = background.Gateway.wait

    def killed(gateway: background.Gateway) -> None:
        gateway._process.kill()
        wait(gateway)

    monkeypatch.setattr(background.Gateway, "wait", killed)
    assert run(serve=True) == 1
    # the gateway's last log lines may come before it
    last = capfd.readouterr().err.splitlines(keepends=True)[-1]
    assert last == "litellm-sanitizer: the demo failed: the gateway ended with status -9\n"


def test_demo_interrupted_at_its_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the gateway is still starting ends both the demo and the gateway."""
    started = []

    def interrupted(gateway: background.Gateway) -> str:
        started.append(gateway._process)
        raise KeyboardInterrupt

    monkeypatch.setattr(background.Gateway, "_wait_for_address", interrupted)
    assert run() == 1
    assert [process.wait(TIMEOUT) for process in started] == [-signal.SIGKILL]
    assert "uvicorn" not in {thread.name for thread in threading.enumerate()}


def test_demo_does_not_wait_for_a_gateway_that_hangs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A gateway that does not report in time that it listens is killed, and the demo exits with 1."""
    monkeypatch.setattr(background, "_GATEWAY", [sys.executable, "-c", "import signal; signal.pause()"])
    monkeypatch.setattr(background, "_START_TIMEOUT", 0.1)
    assert run() == 1
    assert capfd.readouterr().err == "litellm-sanitizer: the demo failed: the gateway did not start:\n\n"

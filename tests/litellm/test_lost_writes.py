"""A real write is never lost, however many gateways are in front of one LiteLLM. With ``--cache-ttl``, one can be.

Many clients write the same few values to one key concurrently, through several gateways and in any order. What each
client observes is an event in the history of the column, with the two times between which it must have happened:

- If an admin's update has status 200, it wrote the value, whether the gateway forwarded it or found it already stored.
- If an owner's update has status 200, the value was stored at some moment, because LiteLLM lets only an admin write
  another value. If the value is a list, some order of it was stored: an owner's list is cut once LiteLLM has refused
  it, while an admin's is stored.
- `GET /key/info` at LiteLLM itself read the value.

`history` then looks for an order of these events that a single register could have produced. There is none if a write
with status 200 had no effect that a later read should have seen, or if the final value can't have been written last.
The values are used again and again, because only an *old* value that is sent again can be mistaken for an unchanged
one. If each write had a new value, nothing could be lost. With two writers per key the most writes are lost: a third
writer of the same value hides a loss.
"""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sanitizer.demo.background import serving
from sanitizer.demo.lookalike import create_lookalike
from tests.litellm.actors import LiteLLM, User, bearer, client
from tests.litellm.conftest import before
from tests.litellm.history import Event, unexplained
from tests.support.gateway import Gateway

#: The values that are written to a column. In the routes, C is B in another order.
VALUES: dict[str, dict[str, Any]] = {
    "allowed_routes": {"A": ["llm_api_routes"], "B": ["/key/info", "/models"], "C": ["/models", "/key/info"]},
    "spend": {"A": 0, "B": 1.5},
}
SAME: dict[str, dict[str, tuple[str, ...]]] = {"allowed_routes": {"B": ("C",), "C": ("B",)}, "spend": {}}
CACHE = ("--cache-ttl", "10")


@pytest.mark.parametrize(
    ("initial", "story", "explained"),
    [
        pytest.param("A", [("r", "A", 0, 1)], True, id="read"),
        pytest.param("A", [("r", "B", 0, 1)], False, id="read-what-nobody-wrote"),
        pytest.param("A", [("w", "B", 0, 1), ("r", "B", 2, 3)], True, id="write-then-read"),
        pytest.param("A", [("w", "B", 0, 1), ("r", "A", 2, 3)], False, id="write-lost"),
        pytest.param("A", [("w", "B", 0, 3), ("r", "A", 1, 2), ("r", "B", 4, 5)], True, id="read-beside-the-write"),
        pytest.param("A", [("w", "B", 0, 5), ("r", "B", 1, 2), ("r", "A", 3, 4)], False, id="there-and-gone"),
        pytest.param("A", [("w", "B", 0, 3), ("w", "A", 1, 2), ("r", "A", 4, 5)], True, id="either-was-last"),
        pytest.param("A", [("w", "B", 0, 3), ("w", "A", 1, 2), ("r", "B", 4, 5)], True, id="or-the-other"),
        pytest.param("A", [("w", "B", 0, 1), ("w", "A", 2, 3), ("r", "B", 4, 5)], False, id="last-write-lost"),
        pytest.param(
            "A",
            [("w", "B", 0, 9), ("w", "A", 0, 9), ("r", "B", 1, 2), ("r", "A", 3, 4), ("r", "B", 5, 6)],
            False,
            id="three-turns-of-two-writes",
        ),
    ],
)
def test_history(initial: str, story: list[tuple[str, str, float, float]], explained: bool) -> None:
    events = [Event(kind == "w", value, begun, ended) for kind, value, begun, ended in story]
    assert (unexplained(events, initial) is None) is explained


def test_history_of_alike_values() -> None:
    """A reader that can't distinguish B from C may have read either, and has written neither."""
    events = [Event(True, "B", 0, 1), Event(False, "C", 2, 3, or_else=("B",)), Event(False, "B", 4, 5)]
    assert unexplained(events, "A") is None
    assert unexplained([*events, Event(False, "C", 6, 7)], "A") is not None
    assert unexplained([*events, Event(False, "A", 6, 7, or_else=("C",))], "A") is not None


class Column:
    """A column of a key, which first holds "A" and is written through ``gateways``, and its history."""

    def __init__(self, litellm: LiteLLM, owner: User, gateways: list[str], name: str = "allowed_routes") -> None:
        self.litellm = litellm
        self.name = name
        self.owner = owner
        self.key = litellm.new_key(owner, "llm_api")
        self.gateways = [client(url) for url in gateways]
        self.events: list[Event] = []
        self.decisions: set[str] = set()

    def write(self, gateway: int, value: str) -> None:
        """Send an admin's update, which has to succeed."""
        answer = self._update(gateway, self.litellm.master_key, value, wrote=True)
        assert answer == 200

    def resend(self, gateway: int, value: str) -> None:
        """Send an owner's update, which succeeds if the value is stored, in any order."""
        assert self._update(gateway, self.owner.key, value, wrote=False) in (200, 403)

    def reorder(self, gateway: int, value: str) -> None:
        """Send an owner's update with the value in another order, if it has one."""
        self.resend(gateway, *SAME[self.name].get(value, (value,)))

    def take_each_decision(self) -> None:
        """Cause each kind of decision, one after the other. In a race, chance decides which kinds occur."""
        self.write(0, "A")
        self.write(1, "B")
        self.resend(2, "B")
        self.reorder(0, "B")

    def _update(self, gateway: int, credential: str, value: str, *, wrote: bool) -> int:
        body = {"key": self.key, "models": ["mock-gpt"], self.name: VALUES[self.name][value]}
        begun = time.monotonic()
        answer = self.gateways[gateway].post("/key/update", json=body, headers=bearer(credential))
        if answer.status_code == 200:
            or_else = () if wrote else SAME[self.name].get(value, ())
            self.events.append(Event(wrote, value, begun, time.monotonic(), or_else))
        decision = answer.headers["x-litellm-sanitizer"]
        self.decisions.add("after-refusal" if "after-refusal" in decision else decision.partition(";")[0])
        return answer.status_code

    def read(self) -> str:
        begun = time.monotonic()
        stored = self.litellm.stored(self.key)[self.name]
        value = next(letter for letter, known in VALUES[self.name].items() if known == stored)
        self.events.append(Event(False, value, begun, time.monotonic()))
        return value

    def unexplained(self) -> Event | None:
        self.read()
        return unexplained(self.events, "A")


def play(columns: list[Column], writers: int, turns: int, seed: int) -> None:
    """Run ``writers`` concurrent writers for each column. Each writes ``turns`` times, at random as admin or owner."""

    def write(job: tuple[Column, int]) -> None:
        column, number = job
        draw = random.Random(f"{seed}-{columns.index(column)}-{number}")
        for _ in range(turns):
            gateway = draw.randrange(len(column.gateways))
            what = draw.random()
            if what < 0.15:
                column.resend(gateway, column.read())
            elif what < 0.3:
                column.reorder(gateway, column.read())
            else:
                column.write(gateway, draw.choice(list(VALUES[column.name])))
            if draw.random() < 0.5:
                column.read()

    jobs = [(column, number) for column in columns for number in range(writers)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(write, jobs))


@contextmanager
def gateways(litellm: LiteLLM, *options: str) -> Iterator[list[str]]:
    """Three gateways, one of them with two workers: four serving processes."""
    with (
        before(litellm, *options) as one,
        before(litellm, *options) as other,
        before(litellm, *options, "--workers", "2") as two,
    ):
        wait_for_workers(two, 2)
        yield [one.url, other.url, two.url]


def wait_for_workers(gateway: Gateway, count: int) -> None:
    """Wait until ``count`` workers have installed a handler for SIGTERM."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
        caught = [re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{child}/status").read_text()) for child in children]
        if sum(bool(int(mask[1], 16) >> (signal.SIGTERM - 1) & 1) for mask in caught if mask) == count:
            return
        time.sleep(0.05)
    raise AssertionError("the workers have not come up")


@pytest.fixture(scope="module")
def lookalike() -> Iterator[LiteLLM]:
    """The demo's look-alike of LiteLLM, which is ten times as fast."""
    with serving(create_lookalike("sk-1234")) as url:
        yield LiteLLM(url, "sk-1234")


@pytest.mark.parametrize("writers", [2, 6])
def test_on_the_lookalike(lookalike: LiteLLM, writers: int) -> None:
    """No write is lost on the look-alike, with four keys and two or six writers for each."""
    owner = lookalike.new_user()
    with gateways(lookalike) as urls:
        columns = [Column(lookalike, owner, urls) for _ in range(4)]
        play(columns, writers, 40, seed=writers)
        for column in columns:
            column.take_each_decision()
    for column in columns:
        assert column.unexplained() is None
        assert column.decisions == {"dropped", "changed", "after-refusal"}


def test_on_litellm(release: LiteLLM) -> None:
    """No write of routes or spend is lost on any release. Before 1.91.5, spend is not guarded, and not tested."""
    owner = release.new_user()
    names = ["allowed_routes"] + ["spend"] * (release.release >= (1, 91, 5))
    with gateways(release) as urls:
        columns = [Column(release, owner, urls, name) for name in names]
        play(columns, 3, 25, seed=1)
        for column in columns:
            column.take_each_decision()
    for column in columns:
        assert column.unexplained() is None
        expected = {"changed", "after-refusal"} | ({"dropped"} if column.name == "allowed_routes" else set())
        assert column.decisions == expected


def test_the_cache_loses_writes(lookalike: LiteLLM) -> None:
    """With the cache, lost writes are detected. Four of seven keys lose one, so twenty runs with four keys suffice."""
    owner = lookalike.new_user()

    def lost(urls: list[str], seed: int) -> bool:
        columns = [Column(lookalike, owner, urls) for _ in range(4)]
        play(columns, 2, 40, seed)
        return any(column.unexplained() for column in columns)

    with gateways(lookalike, *CACHE) as urls:
        assert any(lost(urls, seed) for seed in range(20))


@pytest.mark.parametrize(("options", "lost"), [((), False), (CACHE, True)], ids=["off", "on"])
def test_a_change_behind_the_cache(litellm: LiteLLM, owner: User, options: tuple[str, ...], lost: bool) -> None:
    """With ``--cache-ttl``, A is lost if it is cached here, B is written there, and A is sent here again."""
    with before(litellm, *options) as here, before(litellm, *options) as there:
        column = Column(litellm, owner, [here.url, there.url])
        column.write(0, "A")
        column.write(1, "B")
        column.write(0, "A")
    assert column.read() == ("B" if lost else "A")
    assert (column.unexplained() is not None) is lost

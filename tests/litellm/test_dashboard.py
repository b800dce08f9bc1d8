"""LiteLLM's own dashboard in a real browser: an internal user opens a key of theirs, adds a model and saves.

The same is done with a key on which an admin has set a vector store: LiteLLM shows it to the owner, and refuses it when
the owner's dashboard sends it back.

The tests need Debian's `chromium` or a Chrome. They write screenshots of the end of each visit to artifacts/dashboard.
README.md beside this file shows one pair of them, which is updated by

    .venv/bin/pytest tests/litellm/test_dashboard.py -k 1.83.13 &&
        cp artifacts/dashboard/1.83.13-{direct,gateway}.png tests/litellm/screenshots/
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser

from sanitizer.sanitize.gates import GATES
from tests.litellm.actors import MODELS, OTHER_MODELS, LiteLLM, User
from tests.litellm.conftest import before, releases
from tests.litellm.dashboard import executable, launched, visit
from tests.support.gateway import Gateway


class Fact(NamedTuple):
    """What one release's dashboard sends, and LiteLLM's response, if the user has changed only the models."""

    unchanged: set[str]
    """Guarded fields that the dashboard sends all the same, and that the gateway cuts."""
    error: str = ""
    """LiteLLM's error for one of them; empty if LiteLLM accepts the request."""
    vector_store: str = ""
    """LiteLLM's error for a key on which an admin has set a vector store; empty if it accepts that."""


FACTS = {
    "1.83.13": Fact({"allowed_routes", "access_group_ids"}, "Only proxy admins can set `allowed_routes` on a key."),
    "1.92.0": Fact(
        {"budget_limits", "access_group_ids"},  # both `[]`
        "Only proxy admins, team admins, or org admins can call /key/update (max_budget/spend).",
    ),
    "1.100.0": Fact({"access_group_ids"}),
    "1.105.0": Fact({"access_group_ids"}),
    "1.109.1": Fact({"access_group_ids"}),
    "1.110.2": Fact({"access_group_ids"}, vector_store="Vector stores cannot be assigned to personal keys"),
}
#: Releases that have tests even if LITELLM_RELEASES does not name them: these are skipped, which is a failure in CI.
NEEDED = ("1.83.13", "1.92.0", "1.110.2")
#: The paths that each page of the menu requests. Where there are two, they belong to different releases.
PAGES = {
    "Virtual Keys": ["/key/list"],
    "Playground": ["/vector_store/list"],
    "Models + Endpoints": ["/public/litellm_model_cost_map"],
    "MCP Servers": ["/v1/mcp/server/health"],
    "Guardrails": ["/guardrails/submissions"],
    "Usage": ["/user/daily/activity/aggregated"],
    "Logs": ["/spend/logs/ui"],
    "Teams": ["/v1/mcp/access_groups", "/team/metadata_schema"],
}
#: Columns that a save does not change. The dashboard itself writes the metadata and an object permission.
UNTOUCHED = {gate.field for gate in GATES if gate.endpoint == "/key/update"} - {"metadata", "object_permission"}
VECTOR_STORES = ["store-a"]
SUCCESS = "Key updated successfully"


def version(litellm: LiteLLM) -> str:
    return ".".join(map(str, litellm.release))


@pytest.fixture(scope="module", params=[release for release in FACTS if release in NEEDED or release in releases()])
def release(request: pytest.FixtureRequest) -> LiteLLM:
    if request.param not in releases():
        pytest.skip(f"LITELLM_RELEASES names no {request.param} (tests/litellm/rig/suite.sh starts some)")
    return LiteLLM(releases()[request.param].rstrip("/"), os.environ["LITELLM_MASTER_KEY"])


@pytest.fixture(scope="module")
def release_gateway(release: LiteLLM) -> Iterator[Gateway]:
    with before(release) as running:
        yield running


# for this module only: while Playwright runs, its event loop counts as running, and no other can be started
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = executable()
    if not path:
        pytest.skip("no Chromium or Chrome: apt-get install chromium")
    hosts = {urlsplit(url).hostname or "" for url in releases().values()}
    with launched(path, hosts | {"127.0.0.1"}) as running:
        yield running


@pytest.fixture(scope="module")
def user(release: LiteLLM) -> User:
    """A user who has chosen a password."""
    user = release.new_user()
    release.new_session(user)
    return user


@dataclass
class Saved:
    """The result of a save in the dashboard."""

    sent: dict[str, Any]
    status: int
    dropped: set[str]
    """The fields that the gateway's response header names."""
    notice: str
    before: dict[str, Any]
    after: dict[str, Any]


def save(
    browser: Browser, litellm: LiteLLM, url: str, user: User, name: str, *, vector_stores: list[str] | None = None
) -> Saved:
    """Sign in at ``url``, add a model to a key of type "LLM API", and save. ``name`` is that of the screenshot.

    Before that, an admin sets ``vector_stores`` on the key, if there are any.
    """
    alias = f"{user.user_id}-{uuid.uuid4().hex[:4]}"
    key = litellm.new_key(user, "llm_api", key_alias=alias)
    if vector_stores:
        litellm.call("/key/update", {"key": key, "object_permission": {"vector_stores": vector_stores}})
    before = litellm.stored(key)
    with visit(browser, litellm, url, name) as dashboard:
        dashboard.sign_in(user)
        dashboard.edit_key(alias)
        dashboard.choose_model(*OTHER_MODELS)
        answer = dashboard.save()
        notice = dashboard.read_notice()
        dashboard.show(*OTHER_MODELS)
        dashboard.picture(name)
    said = re.match(r'dropped; fields="([^"]*)"', answer.headers.get("x-litellm-sanitizer", ""))
    return Saved(
        sent=json.loads(answer.request.post_data or ""),
        status=answer.status,
        dropped=set(said[1].split(",")) if said else set(),
        notice=notice,
        before=before,
        after=litellm.stored(key),
    )


def test_direct(release: LiteLLM, browser: Browser, user: User) -> None:
    """If the release has the bug, LiteLLM refuses a field that the user has not changed, and stores nothing."""
    fact = FACTS[version(release)]
    saved = save(browser, release, release.url, user, f"{version(release)}-direct")
    assert saved.sent["models"] == MODELS + OTHER_MODELS
    assert fact.unchanged <= saved.sent.keys()
    if fact.error:
        assert saved.status == 403
        assert fact.error in saved.notice
        assert saved.after == saved.before
    else:
        assert saved.status == 200
        assert SUCCESS in saved.notice
        assert saved.after["models"] == MODELS + OTHER_MODELS


def test_through_the_gateway(release: LiteLLM, release_gateway: Gateway, browser: Browser, user: User) -> None:
    """Through the gateway, the dashboard reports success, the models are stored, and guarded fields are unchanged."""
    fact = FACTS[version(release)]
    saved = save(browser, release, release_gateway.url, user, f"{version(release)}-gateway")
    assert saved.sent["models"] == MODELS + OTHER_MODELS
    assert fact.unchanged <= saved.sent.keys()
    assert saved.status == 200
    assert saved.dropped == fact.unchanged
    assert SUCCESS in saved.notice
    assert saved.after["models"] == MODELS + OTHER_MODELS
    for field in UNTOUCHED & saved.before.keys():
        assert saved.after[field] == saved.before[field], field


@pytest.mark.parametrize("release", [release for release in FACTS if FACTS[release].vector_store], indirect=True)
def test_a_vector_store(release: LiteLLM, release_gateway: Gateway, browser: Browser, user: User) -> None:
    """If an admin has set a vector store, a save fails direct. Through the gateway it succeeds and keeps the store."""
    fact, name = FACTS[version(release)], f"{version(release)}-vector-store"
    direct = save(browser, release, release.url, user, f"{name}-direct", vector_stores=VECTOR_STORES)
    assert direct.sent["object_permission"]["vector_stores"] == VECTOR_STORES
    assert direct.status == 403
    assert fact.vector_store in direct.notice
    assert direct.after == direct.before

    through = save(browser, release, release_gateway.url, user, f"{name}-gateway", vector_stores=VECTOR_STORES)
    assert through.status == 200
    assert through.dropped == fact.unchanged | {"object_permission"}
    assert SUCCESS in through.notice
    assert through.after["models"] == MODELS + OTHER_MODELS
    assert through.after["object_permission"] == through.before["object_permission"]


def test_pages(release: LiteLLM, release_gateway: Gateway, browser: Browser, user: User) -> None:
    """The pages of the menu send all requests to the gateway, and the responses have the same status as direct."""
    visits = []
    for way, url in (("direct", release.url), ("gateway", release_gateway.url)):
        with visit(browser, release, url, f"{version(release)}-pages-{way}") as dashboard:
            dashboard.sign_in(user)
            for page, asked in PAGES.items():
                dashboard.open_page(page)
                dashboard.wait_for_answer(*asked)
        visits.append(dashboard)
    direct, through = visits
    both = direct.answers.keys() & through.answers.keys()  # a late response may be missing at the end of a visit
    assert {asked: through.answers[asked] for asked in both} == {asked: direct.answers[asked] for asked in both}
    assert not [request.url for request in through.requests if request.url.startswith(release.url)]

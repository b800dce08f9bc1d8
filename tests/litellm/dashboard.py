"""LiteLLM's own dashboard, used in a browser as a user would use it.

Each step waits for an element or a response, never for a fixed time. The timeout is generous, for slow machines. The
pages are those of 1.83.13 to 1.110.2. Where they differ, `Dashboard` is for newer releases and `AntDashboard` for
older ones.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import parse_qsl, urlsplit

from playwright.sync_api import (
    Browser,
    Error,
    FloatRect,
    Locator,
    Page,
    Request,
    Response,
    StorageState,
    ViewportSize,
    sync_playwright,
)

from tests.litellm.actors import LiteLLM, User
from tests.support.gateway import ROOT

TIMEOUT = 120.0  # seconds
SIZE: ViewportSize = {"width": 960, "height": 600}
SCREENSHOTS = ROOT / "artifacts" / "dashboard"


def executable() -> str | None:
    """The path of an installed Chromium or Chrome. Playwright's own browsers are in no package registry."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def launched(path: str, hosts: set[str]) -> Iterator[Browser]:
    """A headless browser that reaches only ``hosts``, on any port. The dashboard also requests fonts from elsewhere."""
    exclude = ", ".join(f"EXCLUDE {host}" for host in sorted(hosts))
    arguments = [
        "--disable-gpu",
        "--disable-quic",
        "--disable-sync",
        "--no-proxy-server",
        f"--host-resolver-rules=MAP * ~NOTFOUND, {exclude}",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments, timeout=TIMEOUT * 1000)
        try:
            yield browser
        finally:
            browser.close()


class Dashboard:
    """The dashboard at ``url`` for one visitor, with cookies and storage of its own."""

    def __init__(self, page: Page, url: str, litellm: LiteLLM) -> None:
        self.page = page
        self.url = url
        self.litellm = litellm
        self.requests: list[Request] = []
        self.answers: defaultdict[str, set[int]] = defaultdict(set)
        """Response statuses below ``url``, by method, path and the names of the query's parameters."""
        # lambdas, because Playwright sets attributes on its handlers
        page.on("request", lambda request: self.requests.append(request))
        page.on("response", lambda answer: self.record(answer))

    def record(self, answer: Response) -> None:
        if answer.url.startswith(self.url):
            address = urlsplit(answer.url)
            names = ",".join(sorted({name for name, _ in parse_qsl(address.query, keep_blank_values=True)}))
            self.answers[f"{answer.request.method} {address.path} {names}"].add(answer.status)

    def sign_in(self, user: User) -> None:
        """Fill in and submit the form of the login page."""
        self.page.goto(f"{self.url}/ui/login")
        self.page.get_by_placeholder("username").fill(user.email)
        self.page.get_by_placeholder("password").fill(user.password)
        with self.page.expect_response(lambda answer: urlsplit(answer.url).path == "/v2/login") as answer:
            self.page.get_by_role("button", name="Login", exact=True).click()
        assert answer.value.ok, answer.value.status

    def open_page(self, name: str) -> None:
        """Open a page from the menu on the left."""
        self.page.get_by_role("complementary").get_by_role("link", name=name, exact=True).click()

    def wait_for_answer(self, *paths: str) -> None:
        """Wait until there has been a response for one of ``paths`` since the visit began."""
        while not any(asked.split()[1] in paths for asked in self.answers):
            self.page.wait_for_event("response")

    def edit_key(self, alias: str) -> None:
        """Open the form that changes a key."""
        if self.litellm.release > (1, 105, 0):
            self.open_page("Virtual Keys")
        # older dashboards begin there; the link would replace the page some time after the next step has opened it
        self.page.get_by_role("row").filter(has_text=alias).get_by_role("button").first.click()
        self.page.get_by_role("tab", name="Settings").click()
        self.page.get_by_role("button", name="Edit Settings").click()

    def choose_model(self, name: str) -> None:
        """Select one more of the models that the form offers."""
        self.page.get_by_role("combobox", name="Select models").click()
        self.page.get_by_role("option", name=name, exact=True).click()
        self.page.keyboard.press("Escape")

    def save(self) -> Response:
        """Press the button to save. Return the response to `POST /key/update`."""
        with self.page.expect_response(lambda answer: urlsplit(answer.url).path == "/key/update") as answer:
            self.page.get_by_role("button", name="Save Changes").click()
        return answer.value

    @property
    def notice(self) -> Locator:
        """The notification that the dashboard shows in a corner for some seconds."""
        return self.page.get_by_role("region", name="Notifications").get_by_role("listitem")

    def read_notice(self) -> str:
        """The text of the notification. Keeps it visible for a screenshot, unless the machine is too slow for that."""
        words = self.notice.inner_text()
        with suppress(Error):
            self.notice.hover(timeout=5000)  # ms; it stays while the mouse is over it
        return words

    def show(self, text: str) -> None:
        self.page.get_by_text(text, exact=True).filter(visible=True).first.scroll_into_view_if_needed()

    def picture(self, name: str, *, crop: bool = True) -> None:
        """Take a screenshot, without the menu on the left if ``crop``."""
        left = 230 if crop else 0
        clip: FloatRect = {"x": left, "y": 0, "width": SIZE["width"] - left, "height": SIZE["height"]}
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled", clip=clip, timeout=30_000)

    def remember_secrets(self) -> None:
        """Record the credentials that the browser has received and sent."""
        for cookie in self.page.context.cookies():
            if cookie["name"] == "token":
                self.litellm.new_secret(cookie["value"])
        for request in self.requests:
            if credential := request.headers.get("authorization"):
                self.litellm.new_secret(credential.removeprefix("Bearer "))


class AntDashboard(Dashboard):
    """The dashboard of older releases. It is built on Ant Design, whose fields can't be found by role and label."""

    def choose_model(self, name: str) -> None:
        item = self.page.locator(".ant-form-item").filter(has=self.page.get_by_text("Models", exact=True))
        item.get_by_role("combobox").click()
        self.page.locator(".ant-select-item-option").and_(self.page.get_by_title(name, exact=True)).click()
        self.page.keyboard.press("Escape")

    @property
    def notice(self) -> Locator:
        return self.page.locator(".ant-notification-notice")


@contextmanager
def visit(browser: Browser, litellm: LiteLLM, url: str, name: str) -> Iterator[Dashboard]:
    """The dashboard of ``litellm`` at ``url``, direct or through a gateway. Takes a screenshot if the visit fails."""
    # otherwise 1.83.13 asks for feedback in a box that covers the button to save
    storage: StorageState = {
        "cookies": [],
        "origins": [{"origin": url, "localStorage": [{"name": "disableShowPrompts", "value": "true"}]}],
    }
    context = browser.new_context(viewport=SIZE, locale="en-GB", timezone_id="UTC", storage_state=storage)
    context.set_default_timeout(TIMEOUT * 1000)
    try:
        kind = AntDashboard if litellm.release < (1, 100, 0) else Dashboard
        dashboard = kind(context.new_page(), url, litellm)
        try:
            yield dashboard
        except Exception:
            with suppress(Error):  # a failed screenshot must not hide the first error
                dashboard.picture(f"{name}-failed", crop=False)
            raise
        dashboard.remember_secrets()
    finally:
        context.close()

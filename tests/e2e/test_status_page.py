"""The status page in a real browser: complete without a script, quiet, from nowhere else, and readable for everybody."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from policy.limits import HISTORY_DISTANCE_S
from tests.e2e.backend import Backend, say
from tests.e2e.conftest import Start
from tests.e2e.processes import BOB, REPOSITORY, Gateway, until

AXE = REPOSITORY / "var/npm/axe/node_modules/axe-core/axe.min.js"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DESKTOP, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program is not None, "chromium was not found: `make chromium` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


class Look:
    """A page that was opened, and what happened meanwhile."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        self.answer = page.goto(url)

    def cells(self, row: str) -> list[str]:
        """What stands in the table row that begins with this."""
        found = self.page.locator("tr", has=self.page.locator("th", has_text=row)).first
        return [text.strip() for text in found.locator("th, td").all_inner_texts()]


Open = Callable[..., Look]


@pytest.fixture
def look(browser: Browser) -> Iterator[Open]:
    contexts = []

    def look(gateway: Gateway, path: str = "/", **options: Any) -> Look:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        return Look(context.new_page(), gateway.admin_url + path)

    yield look
    for context in contexts:
        context.close()


def lively(rules: dict[str, Any]) -> None:
    """Budgets that some traffic can be seen in."""
    rules["models"]["m"]["budgets"] = [
        {"window": "lifetime", "bytes": "200kB"},
        {"window": "sliding 1d", "bytes": "60kB"},
    ]
    rules["tenants"]["alice"] |= {"share": "60%", "budget": {"window": "30d", "bytes": "30kB"}}
    rules["tenants"]["bob"]["budget"] = {"window": "1d", "bytes": "800B"}


def used(gateway: Gateway, backend: Backend) -> Gateway:
    """After a little of everything: answers, a budget that is spent, a key that nobody has."""
    backend.script = say("The weir holds the river back and measures what passes over it. " * 4)
    for number in range(24):
        assert gateway.ask(stream=number % 2 == 0).status == 200
        gateway.ask(key=BOB)
    assert gateway.ask(key="nobody's").status == 401
    return gateway.idle()


@pytest.fixture(params=[[], ["--workers", "2"]], ids=["one process", "workers"])
def gateway(backend: Backend, start: Start, request: pytest.FixtureRequest) -> Gateway:
    return used(start(lively, arguments=request.param), backend)


def test_the_page_is_quiet_from_here_alone_and_shows_what_the_gateway_says(gateway: Gateway, look: Open) -> None:
    seen = look(gateway)
    assert seen.answer.status == 200
    assert (seen.said, seen.asked) == ([], [f"{gateway.admin_url}/"])
    assert seen.page.title() == "Weir: serving"
    account = gateway.account("tenant", "bob", "1d")
    assert seen.cells("tenant bob")[1] == f"{account['used_bits'] / account['limit_bits']:.1%}"
    assert seen.cells("unknown_key")[-1] == "1"
    assert int(seen.cells("over_budget")[-1]) > 0
    assert seen.page.locator("section").count() >= 7
    assert "4 min" in seen.page.locator("section", has_text="Without the ledger").inner_text()
    assert "default-src 'none'" in seen.answer.headers["content-security-policy"]


def test_it_needs_no_script_and_a_script_that_got_in_would_not_run(gateway: Gateway, look: Open) -> None:
    assert look(gateway, java_script_enabled=False).page.locator("tbody tr").count() > 5
    seen = look(gateway)
    seen.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    seen.page.wait_for_function("document.images[0].complete")
    assert seen.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in said for said in seen.said)


def test_axe_has_nothing_serious_to_say_and_nothing_runs_over_the_edge(
    backend: Backend, start: Start, look: Open
) -> None:
    gateway = used(start(lively), backend)
    assert AXE.exists(), "axe-core was not found: `make chromium` fetches it"
    page = look(gateway).page
    until(lambda: page.reload() and page.locator(".curve").count(), what="curves", seconds=2 * HISTORY_DISTANCE_S)
    for scheme, ground in (("light", "rgb(251, 251, 250)"), ("dark", "rgb(16, 20, 24)")):
        for viewport in (DESKTOP, PHONE):
            page = look(gateway, color_scheme=scheme, viewport=viewport).page
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
            page.evaluate(AXE.read_text())
            found = page.evaluate("axe.run()")
            assert len(found["passes"]) > 15
            serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
            assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []


def test_axe_would_say_something_if_there_were_something(gateway: Gateway, look: Open) -> None:
    page = look(gateway).page
    page.evaluate("document.body.append(document.createElement('img'), document.createElement('button'))")
    page.evaluate(AXE.read_text())
    found = {violation["id"] for violation in page.evaluate("axe.run()")["violations"]}
    assert {"image-alt", "button-name"} <= found


def test_who_wants_it_gets_a_page_that_loads_itself_again(gateway: Gateway, look: Open) -> None:
    seen = look(gateway)
    assert "refresh" not in seen.answer.headers
    seen.page.get_by_text("refresh every 10 s").click()
    assert seen.page.url == f"{gateway.admin_url}/?refresh=10"
    again = look(gateway, "/?refresh=10")
    assert again.answer.headers["refresh"] == "10"
    assert gateway.admin("/?refresh=1")[0] == 404


def test_it_says_that_the_gateway_is_not_ready_and_why(backend: Backend, start: Start, look: Open) -> None:
    gateway = start(lively)
    backend.down()
    try:
        seen = look(gateway)
        assert seen.page.title() == "Weir: not ready"
        assert "the backend of m does not answer" in seen.page.locator("header").inner_text()
    finally:
        backend.start()

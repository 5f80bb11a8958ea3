"""A report of `weir steer` in a real browser: quiet, from nowhere else, readable in light, dark and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from gateway.commands.steer.report import render
from tests.e2e.test_status_page import AXE, DESKTOP, PHONE, chromium
from tests.gateway.commands.steer.test_report import EVALUATION

CHARTS = ("Propensity", "Divergence", "Relative dose")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def address(tmp_path: Path) -> str:
    report = tmp_path / "mood.html"
    report.write_text(render(EVALUATION))
    return report.as_uri()


def opened(browser: Browser, address: str, **options: Any) -> tuple[Page, list[str], list[str]]:
    """The page, what it said and what it asked for."""
    page = browser.new_context(**options).new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    return page, said, asked


def test_a_report_is_quiet_and_asks_for_nothing_but_itself(browser: Browser, address: str) -> None:
    page, said, asked = opened(browser, address, java_script_enabled=False)
    assert (said, asked) == ([], [address])
    assert page.title() == "Steering: mood <b>"
    assert page.locator("figure").count() == len(CHARTS)


def test_a_style_that_got_in_would_not_count(browser: Browser, address: str) -> None:
    page, said, _ = opened(browser, address)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p id=in style=\"color: red\">x</p>')")
    assert page.evaluate("getComputedStyle(document.getElementById('in')).color") != "rgb(255, 0, 0)"
    assert any("Content Security Policy" in text for text in said)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_plots_have_their_colours_and_stay_in_their_frames(browser: Browser, address: str, scheme: Any) -> None:
    for viewport in (DESKTOP, PHONE):
        page, _, _ = opened(browser, address, color_scheme=scheme, viewport=viewport)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(252, 252, 251)", "dark": "rgb(26, 26, 25)"}[scheme]
        lines = page.locator("figure > svg polyline").evaluate_all("all => all.map(e => getComputedStyle(e).stroke)")
        assert len(lines) == 4
        assert len(set(lines)) == 2, "the two lines of the divergence can be told apart"
        for figure in page.locator("figure").all():
            frame = figure.bounding_box()
            assert frame is not None
            for text in figure.locator("svg text").all():
                box = text.bounding_box()
                assert box is not None
                assert frame["x"] <= box["x"]
                assert box["x"] + box["width"] <= frame["x"] + frame["width"]


def test_no_two_labels_of_a_plot_lie_on_each_other(browser: Browser, address: str) -> None:
    page, _, _ = opened(browser, address, viewport=DESKTOP)
    for figure in page.locator("figure").all():
        boxes = [text.bounding_box() for text in figure.locator("svg text").all()]
        for number, one in enumerate(boxes):
            for other in boxes[number + 1 :]:
                assert one is not None
                assert other is not None
                apart_x = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
                apart_y = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
                assert apart_x or apart_y, figure.inner_text()


def test_axe_has_nothing_serious_to_say(browser: Browser, address: str) -> None:
    assert AXE.exists(), "axe-core was not found: `make chromium` fetches it"
    for scheme in ("light", "dark"):
        page, _, _ = opened(browser, address, color_scheme=scheme, viewport=DESKTOP)
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run()")
        assert len(found["passes"]) > 15
        serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
        assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []

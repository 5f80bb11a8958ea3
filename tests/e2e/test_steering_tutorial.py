"""docs/steering.md runs from top to bottom, as somebody would paste it, and the figures in it are those that come out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.e2e.walkthrough import ROOT, blocks, demonstration, run_block

DOCUMENT = "docs/steering.md"
TUTORIAL = blocks(DOCUMENT)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is pasted: with `.venv` and `var`, as in a checkout, so that nothing is replaced but ports."""
    directory = tmp_path_factory.mktemp("tutorial")
    (directory / ".venv").symlink_to(ROOT / ".venv")
    return directory


@pytest.fixture(scope="module")
def here(directory: Path) -> Iterator[dict[str, str]]:
    """The demonstration; yields what must be replaced."""
    with demonstration(directory / "var") as replacements:
        yield replacements


def figures(text: str) -> list[list[float]]:
    """The rows of tables that begin with a number: of each its numbers."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return [
        [float(cell) for cell in row if re.fullmatch(r"-?[0-9.]+", cell)] for row in rows if re.match(r"-?\d", row[0])
    ]


def shown() -> dict[str, str]:
    """What the document says a block prints, by block."""
    text = (ROOT / DOCUMENT).read_text()
    return dict(re.findall(r"^```sh\n(.*?)^```\n(?:(?!```).)*?^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def test_the_tutorial_begins_with_make_run() -> None:
    assert TUTORIAL[0].strip() == "make run"


@pytest.mark.parametrize("number", range(1, len(TUTORIAL)))
def test_each_block_of_the_tutorial_runs(number: int, here: dict[str, str], directory: Path) -> None:
    printed = run_block(TUTORIAL[number], here, cwd=directory)
    for there, came in zip(figures(shown().get(TUTORIAL[number], "")), figures(printed), strict=False):
        # Another processor rounds otherwise, and a greedy answer may then differ in a word.
        assert came == pytest.approx(there, rel=0.1, abs=0.05)


def test_the_tutorial_shows_figures_of_every_measurement() -> None:
    measured = [block for block, text in shown().items() if figures(text)]
    for command in ("extract mood", "calibrate", "evaluate", "sweep"):
        assert any(f"weir steer {command}" in block for block in measured), command


def test_the_reports_of_the_tutorial_are_whole_pages(directory: Path, here: dict[str, str]) -> None:
    for name, titles in (("mood", {"Propensity", "Divergence", "Relative dose"}), ("layers", {"Separation", "Length"})):
        page = Titles()
        page.feed((directory / "var" / f"{name}.html").read_text())
        assert page.found == titles


class Titles(HTMLParser):
    """What the figures of a page are called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._path: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._path.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._path and self._path.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._path[-2:] == ["figcaption", "b"]:
            self.found.add(data)

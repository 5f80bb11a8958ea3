"""docs/steering.md runs from top to bottom, as somebody would paste it, and says what the commands print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.walkthrough import ROOT, blocks, demonstration, run_block

TUTORIAL = blocks("docs/steering.md")
NUMBER = re.compile(r"-?\d+\.\d+")


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


def test_the_tutorial_begins_with_make_run() -> None:
    assert TUTORIAL[0].strip() == "make run"


@pytest.mark.parametrize("number", range(1, len(TUTORIAL)))
def test_each_block_of_the_tutorial_runs(number: int, here: dict[str, str], directory: Path) -> None:
    run_block(TUTORIAL[number], here, cwd=directory)

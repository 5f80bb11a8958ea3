"""Every command in the README runs, in order, as a new user would paste it."""

from collections.abc import Iterator

import pytest

from tests.e2e.walkthrough import blocks, demonstration, run_block

README = blocks("README.md")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The demonstration, started by the README's own first command; yields what must be replaced in the others."""
    state = tmp_path_factory.mktemp("readme") / "var"
    with demonstration(state) as replacements:
        yield replacements | {"var/": f"{state}/"}


def test_the_first_command_is_make_run() -> None:
    assert README[0].strip() == "make run"


@pytest.mark.parametrize("number", range(1, len(README)))
def test_the_commands_of_each_block_run(number: int, here: dict[str, str]) -> None:
    run_block(README[number], here)

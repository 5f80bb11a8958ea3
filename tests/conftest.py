"""What all tests share.

Hypothesis is never judged by the clock of a shared machine, and runs the same examples every time where CI says so.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.leftout import summary
from tests.postgres import Databases

settings.register_profile("explore", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "explore")


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """A real PostgreSQL server, for as long as the tests run."""
    databases = Databases()
    yield databases
    databases.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in summary():
        terminalreporter.write_line(line, red=True, bold=True)

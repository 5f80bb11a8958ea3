"""The fakes, as one fixture: tests are no package, so they cannot import it."""

import importlib.util
import sys
from pathlib import Path

import pytest

NAME = "weir_test_fakes"


def load():
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, Path(__file__).parents[1] / "gateway" / "fakes.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]


@pytest.fixture(scope="session")
def fakes():
    return load()

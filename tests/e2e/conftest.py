"""Whole systems: a gateway process, a backend that a test scripts or the real inference server, and clients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.backend import Backend, say
from tests.e2e.processes import REPOSITORY, Gateway, environment, policy

Start = Callable[..., Gateway]


@pytest.fixture(scope="module")
def backend_of_module() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()


@pytest.fixture
def backend(backend_of_module: Backend) -> Backend:
    """A scriptable backend, with its memory cleared."""
    backend_of_module.script = say("Hello from the backend.")
    backend_of_module.exchanges = []
    return backend_of_module


@pytest.fixture(scope="module")
def gateway_of_module(backend_of_module: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    gateway = Gateway(directory, policy(backend_of_module.url, directory)).start()
    yield gateway
    gateway.close()


@pytest.fixture
def gateway(gateway_of_module: Gateway, backend: Backend) -> Gateway:
    """A gateway shared by the tests of a module, none of which may harm it."""
    assert gateway_of_module.alive
    return gateway_of_module


@pytest.fixture
def start(backend: Backend, tmp_path: Path) -> Iterator[Start]:
    """Start a gateway of the test's own; its function may change the rules first."""
    started: list[Gateway] = []

    def start(
        change: Callable[[dict[str, Any]], None] | None = None,
        *,
        ready: bool = True,
        program: Sequence[str] = ("-m", "gateway"),
        arguments: Sequence[str] = (),
    ) -> Gateway:
        directory = tmp_path / f"gateway-{len(started)}"
        directory.mkdir()
        rules = policy(backend.url, directory)
        if change is not None:
            change(rules)
        gateway = Gateway(directory, rules, program=program, arguments=arguments)
        started.append(gateway)
        return gateway.start(ready=ready)

    yield start
    for gateway in started:
        gateway.close()


@pytest.fixture(scope="session")
def prepared_model() -> Path:
    """The real weights as a model directory, made once for all sessions."""
    directory = Path(os.environ.get("WEIR_TEST_CACHE", REPOSITORY / "var" / "test-model")).resolve()
    command = [sys.executable, "-m", "inference", "prepare", "--out", str(directory)]
    subprocess.run(command, cwd=REPOSITORY, env=environment(), check=True, timeout=150)
    return directory

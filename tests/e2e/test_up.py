"""`weir up`: from nothing to an answer of a real model with one command, and back to nothing with Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import REPOSITORY, environment, until, weir

FIRST_START_S_MAX = 90.0
SECOND_START_S_MAX = 15.0
STOP_S_MAX = 20.0


class Demonstration:
    """`weir up` in the foreground of a terminal that is not there."""

    def __init__(self, state: Path, ports: list[int]) -> None:
        options = ["--state", str(state)]
        for name, port in zip(("--port", "--admin-port", "--backend-port"), ports, strict=True):
            options += [name, str(port)]
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "up", *options],
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def ready(self, *, seconds: float) -> float:
        """How long it took."""
        before_s = time.monotonic()

        def up() -> bool:
            assert self.process.poll() is None, self.output
            return "Ctrl-C stops everything." in self.output

        until(up, what="the demonstration is up", seconds=seconds)
        return time.monotonic() - before_s

    @property
    def curl(self) -> str:
        (line,) = [line for line in self.output.splitlines() if line.startswith("curl ")]
        return line

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        try:
            status = self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(STOP_S_MAX)
        return status


def processes_of(state: Path) -> list[str]:
    """Command lines of all processes that mention this state directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode()
            if str(state) in line:
                found.append(line)
    return found


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "state"


@pytest.fixture(scope="module")
def ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        return [server.getsockname()[1] for server in servers]


@pytest.fixture
def up(state: Path, ports: list[int]) -> Iterator[Demonstration]:
    """A start of the demonstration; tests share its state directory, in the order in which they stand."""
    demonstration = Demonstration(state, ports)
    yield demonstration
    if demonstration.process.poll() is None:
        demonstration.interrupt(signal.SIGTERM)
    assert processes_of(state) == []


def answer_of(curl: str) -> str:
    done = subprocess.run(
        ["bash", "-c", curl], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.endswith("data: [DONE]\n\n")
    events = [json.loads(block) for block in re.findall(r"^data: (\{.*\})$", done.stdout, re.MULTILINE)]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])


def test_the_first_start_makes_everything_and_prints_a_curl_that_works(
    up: Demonstration, state: Path, ports: list[int]
) -> None:
    up.ready(seconds=FIRST_START_S_MAX)
    assert f"http://127.0.0.1:{ports[0]}/v1" in up.output
    assert len(answer_of(up.curl).split()) > 3
    assert "what a thief who owns the inference server and every key needs" in up.output
    figures = weir("status", "--admin", f"http://127.0.0.1:{ports[1]}", "--once")
    assert figures.returncode == 0
    assert "tenant acme" in figures.stdout
    assert (state / "keys.json").stat().st_mode & 0o077 == 0, "keys are for their owner alone"
    assert weir("check", str(state / "weir.yaml")).returncode == 0
    assert len(processes_of(state)) == 3
    assert up.interrupt() == 0
    assert "Stopped." in up.output
    assert "Traceback" not in up.output
    assert processes_of(state) == []
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)


def test_the_second_start_is_quick_and_keeps_keys_and_budgets(up: Demonstration, state: Path, ports: list[int]) -> None:
    assert up.ready(seconds=SECOND_START_S_MAX) <= SECOND_START_S_MAX
    keys = json.loads((state / "keys.json").read_text())
    assert keys["acme"] in up.curl
    figures = json.loads(weir("status", "--admin", f"http://127.0.0.1:{ports[1]}", "--json").stdout)
    assert any(account["used_bits"] > 0 for account in figures["accounts"] if account["name"] == "acme")
    assert len(answer_of(up.curl).split()) > 3
    assert up.interrupt(signal.SIGTERM) == 0


def test_a_port_that_is_taken_is_said_and_leaves_nothing_behind(state: Path, ports: list[int]) -> None:
    with socket.create_server(("127.0.0.1", ports[0])):
        demonstration = Demonstration(state, ports)
        assert demonstration.end() == 1
    assert "in use" in demonstration.output
    assert "Traceback" not in demonstration.output
    assert processes_of(state) == []


def test_a_policy_with_mistakes_is_said_before_anything_starts(state: Path, ports: list[int]) -> None:
    path = state / "weir.yaml"
    good = path.read_text()
    path.write_text(good.replace("guarantee: absolute", "guarantee: firm"))
    demonstration = Demonstration(state, ports)
    assert demonstration.end() == 78
    path.write_text(good)
    assert f"{path}:" in demonstration.output
    assert "Weir is up" not in demonstration.output
    assert processes_of(state) == []

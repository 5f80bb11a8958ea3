"""Gateways as real processes on real files, and what can be seen of them from outside."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from gateway.audit.segments import leaves
from tests.e2e.wire import Connection, Response, chat, request

REPOSITORY = Path(__file__).resolve().parents[2]
ALICE, BOB = "alice-key", "bob-key"
START_S_MAX = 20.0


def until(condition: Callable[[], Any], *, what: str, seconds: float = 10.0) -> Any:
    """The first true value of a condition that another process will make true."""
    deadline_s = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"after {seconds} s: {what}"
        time.sleep(0.01)
    return value


def environment() -> dict[str, str]:
    """For child processes: no proxies, nothing of pytest's."""
    return {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "COLUMNS": "200",
        "PYTHONPATH": str(REPOSITORY),
    }


def weir(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run a `weir` command to its end."""
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=30, check=False)


def digest(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def policy(upstream: str, directory: Path) -> dict[str, Any]:
    """Rules with room for everything; tests tighten what they are about. Lifetime budgets, so that midnight changes nothing."""
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "models": {
            "m": {
                "upstream": upstream,
                "weights": {"parameters": 1_000_000_000},
                "theft_compression": 4,
                "budgets": [{"window": "lifetime", "fraction": "50%"}],
                "timeouts": {"connect": "2s", "first_byte": "20s", "idle": "20s", "total": "60s"},
            }
        },
        "tenants": {
            "alice": {
                "keys": [digest(ALICE)],
                "models": ["m"],
                "budget": {"window": "lifetime", "bytes": "50MB"},
                "steering": True,
                "streams_max": 200,
            },
            "bob": {"keys": [digest(BOB)], "models": ["m"], "budget": {"window": "lifetime", "bytes": "10MB"}},
        },
        "meters": ["raw", "zstd"],
        "audit": {"directory": str(directory / "audit")},
        "ledger": f"sqlite:{directory / 'ledger.db'}",
    }


class Gateway:
    """`weir serve` as a child process."""

    def __init__(
        self,
        directory: Path,
        rules: dict[str, Any],
        *,
        program: Sequence[str] = ("-m", "gateway"),
        arguments: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self._program = program
        self._arguments = arguments
        self.path = directory / "weir.yaml"
        self.rules = rules
        self.key = ALICE
        self.port = self.admin_port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._log_starts_at = 0
        self.write(rules)

    def write(self, rules: dict[str, Any]) -> None:
        self.rules = rules
        self.path.write_text(yaml.safe_dump(rules, sort_keys=False))

    def start(self, *, ready: bool = True) -> Gateway:
        log = self.directory / "gateway.log"
        self._log_starts_at = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *self._program, "serve", "--policy", str(self.path), *self._arguments],
                cwd=REPOSITORY,
                env=environment(),
                stdout=file,
                stderr=file,
            )
        serving = until(self._serving, what="the gateway serves", seconds=START_S_MAX)
        self.port, self.admin_port = serving["port"], serving["admin_port"]
        if ready:
            until(lambda: self.admin("/readyz")[0] == 200, what="the gateway is ready")
        return self

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def children(self) -> list[int]:
        """The processes that it started."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        return sorted(int(pid) for task in tasks for pid in task.read_text().split())

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 40.0) -> int:
        """The exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self) -> int:
        """Drain and end; the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill9(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def restart(self, *, ready: bool = True) -> Gateway:
        if self.alive:
            assert self.stop() == 0
        return self.start(ready=ready)

    def close(self) -> None:
        """Whatever state it is in."""
        if self.alive:
            self.kill9()

    # What can be seen of it.

    def log(self) -> list[dict[str, Any]]:
        """Log lines since the last start."""
        data = (self.directory / "gateway.log").read_bytes()[self._log_starts_at :]
        lines = data.decode().split("\n")[:-1]
        parsed = []
        for line in lines:
            with contextlib.suppress(ValueError):
                parsed.append(json.loads(line))
        return parsed

    def audit(self) -> list[dict[str, Any]]:
        return list(leaves(self.directory / "audit"))

    def leaf(self, kind: str, answer: Response) -> dict[str, Any]:
        """The record of this kind about an answer; it becomes durable with the next tick."""
        wanted = (kind, answer.header("X-Request-Id"))

        def found() -> list[dict[str, Any]]:
            return [leaf for leaf in self.audit() if (leaf["type"], leaf.get("answer")) == wanted]

        (leaf,) = until(found, what=f"{wanted} is on the record")
        return leaf

    def admin(self, path: str) -> tuple[int, bytes]:
        """Status (0: no answer) and body."""
        try:
            with urllib.request.urlopen(self.admin_url + path, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()
        except OSError:
            return 0, b""

    def status(self) -> dict[str, Any]:
        status, body = self.admin("/status.json")
        assert status == 200
        return json.loads(body)

    def account(self, owner: str, name: str, window: str = "lifetime") -> dict[str, Any]:
        wanted = (owner, name, window)
        found = [a for a in self.status()["accounts"] if (a["owner"], a["name"], a["window"]) == wanted]
        assert len(found) == 1
        return found[0]

    def used_bits(self, owner: str = "tenant", name: str = "alice") -> int:
        return self.account(owner, name)["used_bits"]

    def metric(self, name: str, /, **labels: str) -> float:
        """The sum of all samples of this name that have these labels."""
        status, body = self.admin("/metrics")
        assert status == 200
        samples = [s for family in text_string_to_metric_families(body.decode()) for s in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def idle(self) -> Gateway:
        """Wait until no answer is open: closed, settled and counted."""
        until(lambda: self.status()["answers_in_flight"] == 0, what="no answer is open", seconds=20)
        return self

    def _serving(self) -> dict[str, Any] | None:
        assert self.alive, (self.directory / "gateway.log").read_text()
        return next((line for line in self.log() if line["event"] == "serving"), None)

    # Asking it.

    def connect(self) -> Connection:
        return Connection(self.address)

    def send(self, data: bytes) -> Response:
        """One exchange on a connection of its own."""
        with self.connect() as connection:
            connection.send(data)
            return connection.response()

    def ask(
        self, text: str = "Say something.", *, key: str | None = None, headers: str = "", **fields: Any
    ) -> Response:
        """A chat completion."""
        return self.send(request(body=chat(text, **fields), key=key or self.key, headers=headers))

    def get(self, path: str, *, key: str | None = None) -> Response:
        return self.send(request("GET", path, key=key or self.key))

    def client(self, key: str | None = None) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, timeout=20)

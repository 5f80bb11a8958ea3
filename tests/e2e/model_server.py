"""The real inference server as a child process, and a policy for a gateway in front of it."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.processes import REPOSITORY, environment, policy, until

MODEL = "smollm2-135m-instruct"


@contextmanager
def model_server(model: Path, directory: Path) -> Iterator[str]:
    """Serve these weights; yields the address. What it stores lies in the directory."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "inference", "serve", "--model", str(model), "--listen", address]
    with (directory / "inference.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--state", str(directory / "state"), "--threads", "1"],
            cwd=REPOSITORY,
            env=environment(),
            stdout=log,
            stderr=log,
        )

    def ready() -> bool:
        assert server.poll() is None, (directory / "inference.log").read_text()
        try:
            with urllib.request.urlopen(f"http://{address}/readyz", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        until(ready, what="the inference server is ready", seconds=90)
        yield f"http://{address}"
    finally:
        server.kill()
        server.wait()


def model_policy(upstream: str, model: Path, directory: Path) -> dict[str, Any]:
    """With the budgets of the demonstration's policy."""
    rules = policy(upstream, directory)
    rule = rules["models"].pop("m")
    rule["weights"] = {"file": str(model / "model.safetensors")}
    rule["budgets"] = [{"window": "lifetime", "fraction": "50%"}, {"window": "10y", "time_to_theft": "30y"}]
    rule["record_token_ids"] = True
    rules["models"][MODEL] = rule
    for tenant in rules["tenants"].values():
        tenant["models"] = [MODEL]
    return rules

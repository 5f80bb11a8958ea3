"""Documents whose shell blocks are run one after the other, as somebody would paste them, against a real `make run`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UP_S_MAX = 150
BLOCK_S_MAX = 120


def blocks(document: str) -> list[str]:
    """The shell blocks of a document."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def demonstration(state: Path) -> Iterator[dict[str, str]]:
    """`make run` on ports of its own; yields what must be replaced in commands that mean the usual ones."""
    port, admin_port, backend_port = free_ports(3)
    options = f"--state {state} --port {port} --admin-port {admin_port} --backend-port {backend_port}"
    command = ["make", "run", f"UP={options}"]
    up = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )
    assert up.stdout is not None
    watchdog = threading.Timer(UP_S_MAX, up.kill)
    watchdog.start()
    said = []
    for line in up.stdout:
        said.append(line)
        if "Ctrl-C stops everything" in line:
            break
    else:
        pytest.fail("make run ended early:\n" + "".join(said))
    watchdog.cancel()
    yield {
        "127.0.0.1:8080": f"127.0.0.1:{port}",
        "127.0.0.1:9090": f"127.0.0.1:{admin_port}",
        "127.0.0.1:8001": f"127.0.0.1:{backend_port}",
        "weir status --once": f"weir status --once --admin http://127.0.0.1:{admin_port}",
    }
    os.killpg(up.pid, signal.SIGINT)
    up.wait(60)


def run_block(script: str, replacements: dict[str, str], *, cwd: Path = ROOT) -> str:
    """What it prints. Asserts that every command in it succeeded."""
    for default, replacement in replacements.items():
        script = script.replace(default, replacement)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=BLOCK_S_MAX,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout
    assert '"error"' not in result.stdout
    return result.stdout

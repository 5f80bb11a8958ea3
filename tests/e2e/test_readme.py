"""Every command in the README runs, in order, as a new user would paste it."""

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UP_S_MAX = 150


def blocks() -> list[str]:
    """The shell blocks of the README."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The demonstration, started by the README's own first command; yields what must be replaced in the others."""
    state = tmp_path_factory.mktemp("readme") / "var"
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
        "weir status --once": f"weir status --once --admin http://127.0.0.1:{admin_port}",
        "var/": f"{state}/",
    }
    os.killpg(up.pid, signal.SIGINT)
    up.wait(60)


def test_the_first_command_is_make_run() -> None:
    assert blocks()[0].strip() == "make run"


@pytest.mark.parametrize("number", range(1, len(blocks())))
def test_the_commands_of_each_block_run(number: int, here: dict[str, str]) -> None:
    # Arrange
    script = blocks()[number]
    for default, replacement in here.items():
        script = script.replace(default, replacement)

    # Act
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    # Assert
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout
    assert '"error"' not in result.stdout

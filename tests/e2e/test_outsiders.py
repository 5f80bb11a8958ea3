"""What a gateway process wrote, killed and started again, is verified by an outsider with Go's transparency-log packages."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import go
from tests.e2e.backend import Backend, Exchange, text_event
from tests.e2e.conftest import Start
from tests.e2e.processes import REPOSITORY, Gateway, until, weir
from tests.e2e.wire import chat, request

ANSWERS = 150  # before the kill, and as many after it
CLIENTS = 16


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = REPOSITORY / "tests" / "gateway" / "audit" / "verifier" / "main.go"
    return go.build(source, tmp_path_factory.mktemp("go") / "verifier")


def verified(program: Path, audit: Path, *kept: Path) -> str:
    """What the outsider says of a log; the key is the one she was given at the beginning."""
    vkey = (audit / "log.vkey").read_text().strip()
    done = subprocess.run(
        [program, audit / "tree", vkey, *kept], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(gateway: Gateway, count: int) -> None:
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = [
            clients.submit(gateway.ask, f"Question {number}.", stream=number % 2 == 0) for number in range(count)
        ]
    assert {answer.result().status for answer in answers} == {200}


def keep(audit: Path, target: Path) -> Path:
    """An outsider's copy of the checkpoint of this moment."""
    target.write_bytes((audit / "tree" / "checkpoint").read_bytes())
    return target


def auditors(tmp_path: Path) -> list[str]:
    return [weir("keys", "auditor", name, "--out", str(tmp_path / name)).stdout.strip() for name in ("anna", "boris")]


async def endless(exchange: Exchange) -> None:
    await exchange.begin()
    while True:
        await exchange.chunk(text_event("0123456789abcdef" * 4))


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["one process", "two workers"])
def test_an_outsider_verifies_what_a_gateway_wrote_before_and_after_it_was_killed(
    program: Path, backend: Backend, start: Start, tmp_path: Path, arguments: Sequence[str]
) -> None:
    def sealed(rules: dict[str, Any]) -> None:
        rules["audit"]["auditors"] = auditors(tmp_path)

    gateway = start(sealed, arguments=arguments)
    audit = gateway.directory / "audit"
    until((audit / "tree" / "checkpoint").exists, what="the start is signed")
    kept = [keep(audit, tmp_path / "started")]
    ask(gateway, ANSWERS)
    gateway.idle()
    kept.append(keep(audit, tmp_path / "answered"))
    answering, backend.script = backend.script, endless
    with gateway.connect() as connection:
        connection.send(request(body=chat(stream=True), key=gateway.key))
        connection.head()
        until(lambda: (audit / "tree" / "checkpoint").read_bytes() != kept[-1].read_bytes(), what="more is signed")
        gateway.kill9()
    kept.append(keep(audit, tmp_path / "killed"))
    verified(program, audit, *kept)  # as the kill left it
    backend.script = answering
    gateway.start()
    ask(gateway, ANSWERS)
    assert gateway.stop() == 0
    leaves = gateway.audit()
    said = verified(program, audit, *kept)
    assert said.startswith(f"{len(leaves)} entries, "), said
    assert "3 older checkpoints" in said
    assert sum(leaf["type"] == "closed" for leaf in leaves) >= 2 * ANSWERS
    assert sum(leaf["type"] == "sealed" for leaf in leaves) > 0

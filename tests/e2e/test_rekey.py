"""`weir audit rekey` on the log of a real gateway: it serves on, what its last life left is settled, and auditors can follow."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.backend import Backend
from tests.e2e.conftest import Start
from tests.e2e.processes import Gateway, until, weir


def rekey(gateway: Gateway, *arguments: str, status: int = 0) -> str:
    done = weir("audit", "rekey", str(gateway.directory / "audit"), *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


def audit(command: str, *arguments: str | Path, status: int = 0) -> str:
    done = weir("audit", command, *map(str, arguments))
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["one process", "two workers"])
def test_a_gateway_goes_on_with_another_key_and_whoever_knew_the_first_can_follow(
    backend: Backend, start: Start, tmp_path: Path, arguments: Sequence[str]
) -> None:
    # Arrange: a gateway that was killed, and what an auditor has of it.
    gateway = start(arguments=arguments)
    directory = gateway.directory / "audit"
    first = shutil.copy(directory / "log.vkey", tmp_path / "first.vkey")
    before = gateway.ask()
    assert before.status == 200
    until((directory / "tree" / "checkpoint").exists, what="something is signed")
    kept = shutil.copy(directory / "tree" / "checkpoint", tmp_path / "kept")

    # Act: while it runs the key can be prepared and not changed.
    told = rekey(gateway, "--prepare").strip()
    assert told.startswith(Path(first).read_text().split("+")[0] + "+")
    said = rekey(gateway, status=1)
    assert f"another gateway is writing to it; stop it, run `weir audit rekey {directory}`" in said
    assert gateway.ask().status == 200
    gateway.kill9()
    assert told in rekey(gateway)
    assert (directory / "log.vkey").read_text().strip() == told
    gateway.start()
    after = gateway.ask()
    assert after.status == 200
    assert gateway.stop() == 0

    # Assert: the chain holds, from the first key on, and the sums of all lives are the ledger's.
    said = audit("verify", directory, "--key", first, "--since", kept)
    assert "in order" in said
    assert f"and so on to {told}" in " ".join(said.split())
    assert "in order" in audit("verify", directory, "--key", told, "--since", kept)
    audit("fold", directory, "--policy", gateway.path)
    recovered = [leaf for leaf in gateway.audit() if leaf["type"] == "recovered"]
    assert recovered, "what the killed life had left was given back from the records of before"

    # Proofs: by the key in force, or by the one that somebody was given.
    old, new = before.header("X-Request-Id"), after.header("X-Request-Id")
    assert old is not None
    assert new is not None
    audit("prove", directory, old, "-o", tmp_path / "proof")
    assert "is record" in audit("check-proof", tmp_path / "proof", "--key", told)
    assert "--key YOURS" in audit("check-proof", tmp_path / "proof", "--key", first, status=1)
    audit("prove", directory, old, "--key", first, "-o", tmp_path / "proof")
    assert "is record" in audit("check-proof", tmp_path / "proof", "--key", first)
    said = audit("prove", directory, new, "--key", first, "-o", tmp_path / "proof", status=1)
    assert "that key's time ended before it" in said
    exported = audit("export", directory)
    assert '"rekeyed"' in exported


def test_a_key_that_was_exchanged_by_hand_stops_the_start_with_the_command_that_changes_keys(
    backend: Backend, start: Start, tmp_path: Path
) -> None:
    gateway = start()
    assert gateway.ask().status == 200
    assert gateway.stop() == 0
    other = start()
    assert other.stop() == 0
    shutil.copy(other.directory / "audit" / "log.key", gateway.directory / "audit" / "log.key")
    done = weir("serve", "--policy", str(gateway.path))
    assert done.returncode == 74
    assert f"run `weir audit rekey {gateway.directory}/audit`" in done.stderr


def test_there_is_nothing_to_change_where_there_is_no_log(tmp_path: Path) -> None:
    done = weir("audit", "rekey", str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path}/log.key: missing; name the `audit.directory` of a policy" in done.stderr
    assert list(tmp_path.iterdir()) == []

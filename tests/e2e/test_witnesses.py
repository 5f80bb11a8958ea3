"""Witnesses of a running gateway: small real servers that follow the specification, and that come and go."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.audit.note import Checkpoint, Note, Verifier
from tests.e2e.backend import Backend, Exchange, text_event
from tests.e2e.conftest import Start
from tests.e2e.processes import Gateway, until, weir
from tests.e2e.wire import chat, request
from tests.gateway.audit.witnesses import CarefulWitness, serving

ONE_PROCESS: list[str] = []
WORKERS = ["--workers", "2"]
WITHIN_S = 6


class Neighbours:
    """Witnesses in a thread of their own, each of which can be away."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "witnesses.txt"
        self.careful = [CarefulWitness(f"{name}.example/w") for name in ("north", "south")]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._ports = [0, 0]
        self._open: list[AsyncExitStack | None] = [None, None]
        for number in range(2):
            self.come(number)

    def come(self, number: int) -> None:
        async def serve() -> tuple[AsyncExitStack, str]:
            stack = AsyncExitStack()
            handler = self.careful[number].add_checkpoint
            return stack, await stack.enter_async_context(serving(handler, port=self._ports[number]))

        self._open[number], url = self._run(serve())
        self._ports[number] = int(url.split(":")[2].split("/")[0])

    def go(self, number: int) -> None:
        stack, self._open[number] = self._open[number], None
        if stack is not None:
            self._run(stack.aclose())

    def know(self, gateway: Gateway) -> None:
        """What their operators do once they have the log's key."""
        verifier = Verifier.parse((gateway.directory / "audit" / "log.vkey").read_text().strip())
        for witness in self.careful:
            witness.log = verifier

    def rules(self, rules: dict[str, Any], *, least: str) -> None:
        names = ("north", "south")
        lines = [
            f"witness {name} {witness.verifier} http://127.0.0.1:{port}/witness"
            for name, witness, port in zip(names, self.careful, self._ports, strict=True)
        ]
        self.file.write_text("\n".join([*lines, f"group both {least} north south", "quorum both", ""]))
        rules["audit"]["witnesses"] = {"policy": str(self.file), "within": f"{WITHIN_S}s"}

    def close(self) -> None:
        for number in range(2):
            self.go(number)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@pytest.fixture
def neighbours(tmp_path: Path) -> Iterator[Neighbours]:
    neighbours = Neighbours(tmp_path)
    yield neighbours
    neighbours.close()


def witnessed(gateway: Gateway) -> int:
    """How much of the log a quorum has seen."""
    path = gateway.directory / "audit" / "witnessed"
    return Checkpoint.parse(Note.parse(path.read_bytes()).text).size if path.exists() else 0


@pytest.mark.parametrize("arguments", [ONE_PROCESS, WORKERS], ids=["one process", "workers"])
def test_one_of_two_may_be_away_and_without_both_nothing_leaves_until_one_is_back(
    backend: Backend, neighbours: Neighbours, start: Start, arguments: list[str]
) -> None:
    # Arrange, act, assert: whatever is on the record is soon seen by both.
    gateway = start(lambda rules: neighbours.rules(rules, least="any"), arguments=arguments)
    neighbours.know(gateway)
    assert gateway.ask().status == 200
    until(lambda: witnessed(gateway) >= len(gateway.audit()), what="it is witnessed")
    assert {witness.size for witness in neighbours.careful} == {witnessed(gateway)}
    until(lambda: gateway.metric("weir_audit_witnessed_timestamp_seconds") > 0, what="it is shown")

    # One away: nothing changes but a counter.
    neighbours.go(0)
    before = gateway.metric("weir_audit_witness_errors_total", witness="north")
    until(lambda: gateway.metric("weir_audit_witness_errors_total", witness="north") > before, what="it is missed")
    assert gateway.ask().status == 200
    seen = witnessed(gateway)
    until(lambda: witnessed(gateway) > seen, what="the other one goes on")

    # Both away: after a while everything stops, what is open included.
    async def for_ever(exchange: Exchange) -> None:
        await exchange.begin()
        while True:
            await exchange.chunk(text_event("And on it goes. "))
            await asyncio.sleep(0.05)

    script, backend.script = backend.script, for_ever
    neighbours.go(1)
    with gateway.connect() as streaming:
        streaming.send(request(body=chat(stream=True), key=gateway.key))
        answer = streaming.head()
        answer.body = b"".join(streaming.pieces(answer))
    assert answer.text.startswith("And on it goes. ")
    assert not answer.complete
    assert answer.events[-1]["error"]["code"] == "log_not_witnessed"
    assert gateway.leaf("closed", answer)["outcome"] == "unwitnessed"
    backend.script = script
    asked = len(backend.exchanges)
    for _ in range(8):  # of both workers
        refused = gateway.ask()
        assert (refused.status, refused.error["code"]) == (503, "log_not_witnessed")
        assert refused.header("Retry-After") == "5"
    assert len(backend.exchanges) == asked
    status, why = gateway.admin("/readyz")
    assert (status, why.startswith(b"the audit log must be witnessed every 6 s, and was last ")) == (503, True)

    # One is back: it goes on by itself.
    neighbours.come(1)
    until(lambda: gateway.admin("/readyz")[0] == 200, what="it is ready again")
    until(lambda: all(gateway.ask().status == 200 for _ in range(8)), what="it serves again")


def test_a_quorum_of_both_takes_both(neighbours: Neighbours, start: Start) -> None:
    gateway = start(lambda rules: neighbours.rules(rules, least="all"))
    neighbours.know(gateway)
    neighbours.go(0)
    assert gateway.ask().status == 200  # the first may take a while
    until(lambda: gateway.ask().status == 503, what="nobody waits longer", seconds=WITHIN_S + 3)
    assert witnessed(gateway) == 0
    assert gateway.admin("/readyz")[1] == b"the audit log must be witnessed every 6 s, and was never\n"
    neighbours.come(0)
    until(lambda: gateway.ask().status == 200, what="it serves")


@pytest.mark.parametrize("arguments", [ONE_PROCESS, WORKERS], ids=["one process", "workers"])
def test_a_log_restored_from_an_old_copy_is_refused_by_its_witnesses(
    neighbours: Neighbours, start: Start, arguments: list[str]
) -> None:
    # Arrange: a log, a copy of it, and what was recorded after that.
    gateway = start(lambda rules: neighbours.rules(rules, least="any"), arguments=arguments)
    neighbours.know(gateway)
    assert gateway.ask().status == 200
    assert gateway.stop() == 0
    audit, copy, true = gateway.directory / "audit", gateway.directory / "copy", gateway.directory / "true"
    shutil.copytree(audit, copy)
    gateway.start()
    for _ in range(20):
        assert gateway.ask().status == 200
    until(lambda: witnessed(gateway) >= len(gateway.audit()), what="it is witnessed")
    assert gateway.stop() == 0

    # Act: the copy is put in its place, and started as often as somebody likes.
    audit.rename(true)
    copy.rename(audit)
    for _ in range(2):
        gateway.start(ready=False)
        until(lambda: gateway.admin("/readyz")[1].startswith(b"a witness contradicts"), what="a witness says so")

        # Assert: nothing leaves, for longer than a quorum would take.
        for _ in range(8):
            until(lambda: gateway.ask().status == 503, what="nothing leaves", seconds=2)
        assert b"north: it has cosigned " in gateway.admin("/readyz")[1]
        assert gateway.stop() == 0

    # The true log is put back: it serves.
    shutil.rmtree(audit)
    true.rename(audit)
    gateway.start()
    assert gateway.ask().status == 200
    assert gateway.stop() == 0
    verified = weir("audit", "verify", str(audit), "--key", (audit / "log.vkey").read_text().strip())
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_witnesses_go_on_with_a_log_that_changed_its_key_as_soon_as_they_are_given_the_new_one(
    neighbours: Neighbours, start: Start
) -> None:
    # Arrange
    gateway = start(lambda rules: neighbours.rules(rules, least="all"))
    audit = gateway.directory / "audit"
    neighbours.know(gateway)
    first = (audit / "log.vkey").read_text().strip()
    assert gateway.ask().status == 200
    until(lambda: witnessed(gateway) > 0, what="it is witnessed")
    assert gateway.stop() == 0

    # Act: nobody was told.
    done = weir("audit", "rekey", str(audit))
    assert done.returncode == 0, done.stderr
    gateway.start(ready=False)

    # Assert
    until(lambda: gateway.ask().status == 503, what="it is not witnessed any more", seconds=3 * WITHIN_S)
    seen = witnessed(gateway)
    neighbours.know(gateway)
    until(lambda: gateway.ask().status == 200, what="it is witnessed again", seconds=20)
    until(lambda: witnessed(gateway) > seen, what="and goes on")
    assert gateway.stop() == 0
    verify = ("audit", "verify", str(audit), "--key", first, "--since", str(audit / "witnessed"), "--witnesses")
    verified = weir(*verify, str(neighbours.file))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert f"{witnessed(gateway):,}, at 2" in verified.stdout
    neighbours.file.write_text(neighbours.file.read_text() + "# and friends\n")
    verified = weir(*verify, str(neighbours.file))
    assert verified.returncode == 1, "it is not the file that was in force"
    assert "the file that you gave has SHA-256" in " ".join(verified.stdout.split())


def test_check_names_the_mistake_in_the_witnesses_file_and_serve_does_not_start(
    neighbours: Neighbours, start: Start
) -> None:
    gateway = start(lambda rules: neighbours.rules(rules, least="any"))
    gateway.stop()
    assert weir("check", str(gateway.path)).returncode == 0
    neighbours.file.write_text("# none yet\nquorum west\n")
    for command in (["check", str(gateway.path)], ["serve", "--policy", str(gateway.path)]):
        done = weir(*command)
        assert done.returncode == 78
        assert f"audit.witnesses.policy: {neighbours.file}: line 2: no line above defines west" in done.stderr
    neighbours.file.unlink()
    assert "No such file or directory" in weir("check", str(gateway.path)).stderr


def test_a_file_about_another_log_stops_the_start(neighbours: Neighbours, start: Start) -> None:
    gateway = start(lambda rules: neighbours.rules(rules, least="any"))
    gateway.stop()
    other = Verifier(name="other.example/log", public_key=bytes(32))
    neighbours.file.write_text(f"log {other}\n{neighbours.file.read_text()}")
    done = weir("serve", "--policy", str(gateway.path))
    assert done.returncode == 1
    assert "names logs, and not this one, or not by the key that it has now: log weir.log/" in done.stderr

"""200 workers killed under load: at every moment the ledger has debited at least what clients have received."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from typing import Any

import apsw
import pytest

from gateway.recovery import SILENCE_BITS
from tests.e2e.backend import Backend, Exchange, text_event
from tests.e2e.conftest import Start
from tests.e2e.hurried import program
from tests.e2e.processes import Gateway, until, weir
from tests.e2e.wire import chat, events, request, text_of

KILLS = 200
WORKERS = 4
CLIENTS = 16
PAUSE_S = 0.3  # between kills: about as many workers die as a machine with two cores can start
PIECE = "0123456789abcdef" * 4
TAKES_S_MAX = 170


async def endless(exchange: Exchange) -> None:
    await exchange.begin()
    while True:
        await exchange.chunk(text_event(PIECE))
        await asyncio.sleep(0.02)


class Clients:
    """They read until the connection breaks, and then ask again. Text is counted as soon as it has been received."""

    def __init__(self, gateway: Gateway) -> None:
        self.text_bytes = 0
        self.answers = 0
        self._gateway = gateway
        self._lock = threading.Lock()
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask_again, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _ask_again(self) -> None:
        while not self._enough.is_set():
            with contextlib.suppress(OSError):  # refused, reset, or broken off: its worker has died
                self._read()

    def _read(self) -> None:
        with self._gateway.connect() as connection:
            connection.send(request(body=chat(stream=True), key=self._gateway.key))
            head = connection.head()
            assert head.status == 200
            with self._lock:
                self.answers += 1
            rest = b""
            for piece in connection.pieces(head):
                whole, separator, rest = (rest + piece).rpartition(b"\n\n")
                received = len(text_of(events(whole + separator)).encode())
                with self._lock:
                    self.text_bytes += received
                if self._enough.is_set():
                    return


def in_ledger(gateway: Gateway, query: str, *values: str) -> list[tuple[Any, ...]]:
    """As the file has it, read by somebody else."""
    database = apsw.Connection(str(gateway.directory / "ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(database.execute(query, values))
    finally:
        database.close()


def debited_bits(gateway: Gateway, account: str) -> int:
    ((bits,),) = in_ledger(gateway, "SELECT debited_bits FROM account WHERE id = ?", account)
    return bits


@pytest.mark.timeout(TAKES_S_MAX + 60)
def test_no_kill_of_a_worker_lets_anything_leave_that_the_ledger_does_not_know(backend: Backend, start: Start) -> None:
    def raw_only(rules: dict) -> None:
        rules["meters"] = ["raw"]  # nothing is refunded, so that each byte received stays charged with 8 bits
        rules["models"]["m"]["budgets"] = [{"window": "lifetime", "fraction": "90%"}]
        rules["tenants"]["alice"]["budget"]["bytes"] = "400MB"

    # Workers that die soon are restarted with a delay. Here they die of us, and shall come back at once.
    gateway = start(raw_only, program=program(WORKER_RESTART_S_MAX=0.01), arguments=["--workers", str(WORKERS)])
    backend.script = endless
    clients = Clients(gateway)
    until(lambda: clients.text_bytes > 10_000, what="clients receive text", seconds=20)
    chance = random.Random(4)  # which worker, and when: any will do
    deadline_s = time.monotonic() + TAKES_S_MAX
    by_age: list[int] = []
    kills = 0
    while kills < KILLS:
        assert time.monotonic() < deadline_s, f"only {kills} kills"
        time.sleep(PAUSE_S * 2 * chance.random())
        alive = gateway.children
        by_age = [pid for pid in by_age if pid in alive] + [pid for pid in alive if pid not in by_age]
        if not by_age:
            continue
        os.kill(chance.choice(by_age[:2]), signal.SIGKILL)  # one that has had the time to serve, in most cases
        kills += 1
        received_bits = 8 * clients.text_bytes  # first: what clients receive after this may be debited after it
        assert debited_bits(gateway, "tenant:alice/lifetime/ever") >= received_bits
    before = clients.text_bytes
    until(lambda: clients.text_bytes > before + 10_000, what="clients are served after all that", seconds=30)
    clients.stop()
    assert gateway.metric("weir_worker_restarts_total") >= KILLS * 0.95, "a worker may be killed again before it began"
    assert gateway.stop() == 0

    # At the end the ledger has what the record says was charged, and what the answers that broke off may have told by their
    # silence. Everything else was given back, leases included that a worker had no time to record.
    leaves = gateway.audit()
    charged_bits = sum(leaf["charged_bits"] for leaf in leaves if leaf["type"] == "released")
    charged_bits += sum(leaf["parting_bits"] for leaf in leaves if leaf["type"] == "closed")
    opened = {leaf["answer"] for leaf in leaves if leaf["type"] == "opened"}
    closed = {leaf["answer"] for leaf in leaves if leaf["type"] == "closed"}
    assert len(opened - closed) > KILLS, "the workers were killed in the middle of answers"
    for account in ("tenant:alice/lifetime/ever", "model:m/lifetime/ever"):
        amounts = in_ledger(gateway, "SELECT bits, returned_bits FROM lease_amount WHERE account = ?", account)
        assert all(returned is not None for _, returned in amounts), "every lease is closed"
        over_bits = debited_bits(gateway, account) - charged_bits
        assert 8 * clients.text_bytes <= charged_bits
        assert 0 <= over_bits <= SILENCE_BITS * len(opened - closed)

    # And so says whoever has only the log, adding it up anew.
    directory = str(gateway.directory / "audit")
    for command in (
        ["verify", directory, "--key", f"{directory}/log.vkey"],
        ["fold", directory, "--policy", str(gateway.path)],
    ):
        done = weir("audit", *command)
        assert done.returncode == 0, done.stdout + done.stderr

"""`kill -9` in the middle of everything: the ledger has debited at least what any client received."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import apsw

from gateway.recovery import SILENCE_BITS
from tests.e2e.backend import Backend, Exchange, text_event
from tests.e2e.conftest import Start
from tests.e2e.processes import Gateway, until
from tests.e2e.wire import chat, request, text_of
from tests.e2e.wire import events as events_of

CLIENTS = 20
KILLS = 5
BYTES_BEFORE_KILL = 20_000


async def endless(exchange: Exchange) -> None:
    await exchange.begin()
    while True:
        await exchange.chunk(text_event("0123456789abcdef" * 4))
        await asyncio.sleep(0.005)


class Counter:
    """Clients that count the text they receive until their connections end."""

    def __init__(self) -> None:
        self.text_bytes = 0
        self._lock = threading.Lock()

    def run(self, gateway: Gateway) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._read, args=(gateway,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        return threads

    def _read(self, gateway: Gateway) -> None:
        with contextlib.suppress(ConnectionError), gateway.connect() as connection:
            connection.send(request(body=chat(stream=True), key=gateway.key))
            head = connection.head()
            rest = b""
            for piece in connection.pieces(head):
                whole, separator, rest = (rest + piece).rpartition(b"\n\n")
                received = len(text_of(events_of(whole + separator)).encode())
                with self._lock:
                    self.text_bytes += received


def debited_bits(gateway: Gateway, account: str) -> int:
    """As the file has it, read by somebody else."""
    path = gateway.directory / "ledger.db"
    database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return database.execute("SELECT debited_bits FROM account WHERE id = ?", (account,)).get
    finally:
        database.close()


def charged_bits(gateway: Gateway) -> int:
    """What the log says that answers were charged, and for those that a kill cut off what their silence may have said."""
    charged, silent = 0, set()
    for leaf in gateway.audit():
        match leaf["type"]:
            case "opened":
                silent.add(leaf["answer"])
            case "released":
                charged += leaf["charged_bits"]
                if leaf["outcome"] is not None:
                    silent.discard(leaf["answer"])
            case "closed":
                charged += leaf["parting_bits"]
                silent.discard(leaf["answer"])
    return charged + SILENCE_BITS * len(silent)


def test_after_every_kill_the_ledger_has_debited_at_least_what_clients_received(backend: Backend, start: Start) -> None:
    def raw_only(rules: dict) -> None:
        rules["meters"] = ["raw"]  # nothing is refunded, so that each byte received stays charged with 8 bits

    gateway = start(raw_only)
    backend.script = endless
    counter = Counter()
    for kill in range(1, KILLS + 1):
        threads = counter.run(gateway)
        until(lambda kill=kill: counter.text_bytes >= kill * BYTES_BEFORE_KILL, what="clients receive text", seconds=20)
        gateway.kill9()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert debited_bits(gateway, "tenant:alice/lifetime/ever") >= 8 * counter.text_bytes
        gateway.start()
        for owner, name in (("tenant", "alice"), ("model", "m")):
            account = gateway.account(owner, name)
            assert account["used_bits"] >= 8 * counter.text_bytes
            assert account["used_bits"] == charged_bits(gateway), (
                "what the log proves to have stayed is back, and no more"
            )
            assert account["used_bits"] <= account["limit_bits"]
            assert account["reserved_bits"] == 0
        released = sum(leaf["text_bytes"] for leaf in gateway.audit() if leaf["type"] == "released")
        assert released >= counter.text_bytes, "what left without a record"
    until(
        lambda: [leaf["type"] for leaf in gateway.audit()].count("started") == KILLS + 1,
        what="each start is on the record",
    )
    assert "stopped" not in {leaf["type"] for leaf in gateway.audit()}

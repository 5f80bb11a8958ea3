"""Signals: SIGTERM drains, SIGHUP takes a new policy or leaves the old one in force."""

from __future__ import annotations

import copy
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import apsw
import pytest

from tests.e2e.backend import Backend, Exchange, Gate, response, rest, say, text_event, whole_body
from tests.e2e.conftest import Start
from tests.e2e.processes import BOB, Gateway, digest, until
from tests.e2e.wire import Connection, Response, chat, request

TEXT = "Held until the test lets go. " * 8


def held(gate: Gate) -> Callable[[Exchange], Any]:
    """Says half, waits, says the rest."""

    async def script(exchange: Exchange) -> None:
        if exchange.request.json["stream"]:
            await exchange.begin()
            await exchange.chunk(text_event(TEXT))
            await gate.passed()
            await rest(exchange, [TEXT])
        else:
            await gate.passed()
            await exchange.send(response(whole_body(TEXT)))

    return script


def open_stream(gateway: Gateway) -> tuple[Connection, Response]:
    connection = gateway.connect()
    connection.send(request(body=chat(stream=True), key=gateway.key))
    return connection, connection.head()


def refused(gateway: Gateway) -> bool:
    """Whether a new connection gets nothing but a refusal."""
    try:
        return gateway.ask().status == 503
    except ConnectionError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(backend: Backend, start: Start, number: signal.Signals) -> None:
    gateway = start()
    backend.script = say(TEXT * 5)
    gateway.leaf("settled", gateway.ask(stream=True))
    gate = backend.gate()
    backend.script = held(gate)
    with gateway.connect() as idle:
        idle.send(request("GET", "/v1/models", key=gateway.key))
        assert idle.response().status == 200
        connection, answer = open_stream(gateway)
        whole = gateway.connect()
        whole.send(request(body=chat(), key=gateway.key))
        until(lambda: len(backend.requests) == 3, what="both answers are open")
        gateway.signal(number)
        until(lambda: gateway.admin("/readyz") == (503, b"draining\n"), what="the gateway says that it drains")
        assert refused(gateway)
        idle.send(request("GET", "/v1/models", key=gateway.key))
        late = idle.response()
        assert (late.status, late.error["code"], late.header("Retry-After")) == (503, "shutting_down", "1")
    assert gateway.alive
    gate.open()
    answer.body = b"".join(connection.pieces(answer))
    assert answer.complete
    assert answer.text == TEXT * 2
    assert answer.events[-1] == "[DONE]"
    assert whole.response().json["choices"][0]["message"]["content"] == TEXT
    for each in (connection, whole):
        each.socket.close()
    assert gateway.wait() == 0
    leaves = gateway.audit()
    assert leaves[-1]["type"] == "stopped"
    charged_bits = sum(leaf["charged_bits"] for leaf in leaves if leaf["type"] == "settled")
    gateway.start()
    assert gateway.used_bits() == gateway.used_bits("model", "m") == charged_bits
    assert gateway.account("tenant", "alice")["leased_bits"] == 0


def test_an_idle_gateway_stops_at_once(start: Start) -> None:
    gateway = start()
    before_s = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - before_s < 3
    assert [leaf["type"] for leaf in gateway.audit()][0 :: len(gateway.audit()) - 1] == ["started", "stopped"]


def test_leases_go_back_at_every_stop_and_are_never_lost(backend: Backend, start: Start) -> None:
    gateway = start()
    backend.script = say("Hello again, for the sake of the ledger. " * 10)
    for _ in range(3):
        for streamed in (True, False):
            gateway.leaf("settled", gateway.ask(stream=streamed))
        gateway.restart()
        charged_bits = sum(leaf["charged_bits"] for leaf in gateway.audit() if leaf["type"] == "settled")
        assert gateway.used_bits() == charged_bits


# Reloading.


def reload(gateway: Gateway, change: Callable[[dict[str, Any]], None], *, result: str = "taken") -> None:
    rules = copy.deepcopy(gateway.rules)
    change(rules)
    gateway.write(rules)
    hangup(gateway, result=result)


def hangup(gateway: Gateway, *, result: str) -> None:
    before = gateway.metric("weir_config_reloads_total", result=result)
    gateway.signal(signal.SIGHUP)
    until(lambda: gateway.metric("weir_config_reloads_total", result=result) == before + 1, what=f"reload {result}")


def test_a_broken_file_changes_nothing(backend: Backend, start: Start) -> None:
    gateway = start()
    before = gateway.status()["policy"]
    good = gateway.path.read_text()
    gateway.path.write_text(good.replace("streams_max: 200", "streams_max: many") + "mystery: 1\n")
    hangup(gateway, result="refused")
    assert gateway.metric("weir_config_last_reload_successful") == 0
    assert gateway.status()["policy"] == before
    assert gateway.ask().status == 200
    (line,) = [line for line in gateway.log() if line["event"] == "policy reload refused"]
    assert len(line["mistakes"]) == 2
    assert all(mistake.startswith(f"{gateway.path}:") for mistake in line["mistakes"])
    gateway.path.unlink()
    hangup(gateway, result="refused")
    assert gateway.ask().status == 200
    gateway.path.write_text(good)
    hangup(gateway, result="taken")
    assert gateway.metric("weir_config_last_reload_successful") == 1


def test_a_new_tenant_is_admitted_and_an_old_one_locked_out(start: Start) -> None:
    gateway = start()
    assert gateway.ask(key="carol-key").status == 401

    def change(rules: dict[str, Any]) -> None:
        rules["tenants"]["carol"] = {"keys": [digest("carol-key")], "models": ["m"]}
        del rules["tenants"]["bob"]

    reload(gateway, change)
    assert gateway.ask(key="carol-key").status == 200
    assert gateway.ask(key=BOB).status == 401
    assert gateway.ask().status == 200


def test_usage_is_not_reset_and_a_raised_limit_is_on_the_record(backend: Backend, start: Start) -> None:
    gateway = start()
    gateway.leaf("settled", gateway.ask())
    used_bits = gateway.used_bits()
    assert used_bits > 0

    def raised(rules: dict[str, Any]) -> None:
        rules["tenants"]["alice"]["budget"]["bytes"] = "60MB"

    reload(gateway, raised)
    account = gateway.account("tenant", "alice")
    assert (account["used_bits"], account["limit_bits"]) == (used_bits, 8 * 60_000_000)
    (loaded,) = until(
        lambda: [leaf for leaf in gateway.audit() if leaf["type"] == "policy_loaded"],
        what="the reload is on the record",
    )
    assert loaded["raised"] == ["tenant:alice/lifetime/ever"]
    assert loaded["policy"] == gateway.status()["policy"]
    gateway.restart()
    assert gateway.used_bits() == used_bits


def test_after_a_limit_is_lowered_below_what_was_used_at_most_the_open_lease_leaves(
    backend: Backend, start: Start
) -> None:
    gateway = start()
    backend.script = say(secrets.token_hex(1500))  # no code makes this much shorter
    gateway.leaf("settled", gateway.ask())

    def lowered(rules: dict[str, Any]) -> None:
        rules["tenants"]["alice"]["budget"]["bytes"] = "20B"

    reload(gateway, lowered)
    before = gateway.account("tenant", "alice")
    while (answer := gateway.ask()).status == 200:
        pass
    assert (answer.status, answer.error["code"]) == (429, "egress_budget_exhausted")
    assert gateway.idle().used_bits() <= before["used_bits"] + before["leased_bits"]
    loaded = until(
        lambda: [leaf for leaf in gateway.audit() if leaf["type"] == "policy_loaded"],
        what="the reload is on the record",
    )
    assert loaded[0]["raised"] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("listen", "127.0.0.1:1"), ("meters", ["raw"]), ("ledger", "memory"), ("release", {"tick": "30ms"})],
)
def test_what_open_answers_depend_on_takes_a_restart(start: Start, field: str, value: object) -> None:
    gateway = start()

    def change(rules: dict[str, Any]) -> None:
        rules[field] = value

    reload(gateway, change, result="refused")
    assert gateway.ask().status == 200
    (line,) = [line for line in gateway.log() if line["event"] == "policy reload refused"]
    assert f"changing {field} takes a restart" in line["mistakes"][0]


def test_an_open_stream_survives_a_reload(backend: Backend, start: Start) -> None:
    gateway = start()
    gate = backend.gate()
    backend.script = held(gate)
    connection, answer = open_stream(gateway)

    def change(rules: dict[str, Any]) -> None:
        rules["tenants"]["carol"] = {"keys": [digest("carol-key")], "models": ["m"]}
        rules["models"]["m"]["timeouts"] = {"connect": "1s"}

    reload(gateway, change)
    gate.open()
    answer.body = b"".join(connection.pieces(answer))
    connection.socket.close()
    assert answer.complete
    assert answer.text == TEXT * 2


def test_a_gateway_whose_backend_is_down_is_alive_but_not_ready(backend: Backend, start: Start) -> None:
    gateway = start()
    backend.down()
    try:
        assert gateway.admin("/readyz") == (503, b"the backend of m does not answer\n")
        assert gateway.admin("/livez")[0] == 200
    finally:
        backend.start()
    until(lambda: gateway.admin("/readyz")[0] == 200, what="ready again")


@pytest.fixture
def locked() -> Iterator[Callable[[Gateway], apsw.Connection]]:
    """Make another program hold the ledger's file for writing."""
    holders: list[apsw.Connection] = []

    def lock(gateway: Gateway) -> apsw.Connection:
        holder = apsw.Connection(str(gateway.directory / "ledger.db"))
        holders.append(holder)
        holder.execute("BEGIN IMMEDIATE")
        return holder

    yield lock
    for holder in holders:
        holder.close()


def test_a_ledger_that_is_busy_for_a_moment_is_waited_for(
    start: Start, locked: Callable[[Gateway], apsw.Connection]
) -> None:
    gateway = start()
    holder = locked(gateway)
    release = threading.Timer(0.5, lambda: holder.execute("ROLLBACK"))
    release.start()
    answer = gateway.ask()
    release.join()
    assert answer.status == 200, "a backup or a look at the file must not end all service"


def test_a_gateway_without_its_ledger_refuses_and_still_tells_its_operator(
    backend: Backend, start: Start, locked: Callable[[Gateway], apsw.Connection]
) -> None:
    gateway = start()
    locked(gateway)
    answer = gateway.ask()
    assert (answer.status, answer.error["code"], answer.header("Retry-After")) == (503, "ledger_unavailable", "5")
    assert backend.requests == []
    assert gateway.admin("/readyz") == (503, b"the ledger does not answer\n")
    assert gateway.metric("weir_ledger_errors_total") > 0, "metrics must not fail together with the ledger"
    budget = gateway.get("/v1/budget")
    assert (budget.status, budget.error["code"]) == (503, "ledger_unavailable")


def test_the_admin_port_has_no_public_routes_and_takes_no_orders(gateway: Gateway) -> None:
    address = ("127.0.0.1", gateway.admin_port)
    for method, path, status in (("GET", "/v1/models", 404), ("POST", "/readyz", 405), ("DELETE", "/status.json", 405)):
        with Connection(address) as connection:
            connection.send(request(method, path))
            assert connection.response().status == status

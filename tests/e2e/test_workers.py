"""`weir serve --workers N`: many processes that are one gateway, from outside and to its operator."""

from __future__ import annotations

import contextlib
import copy
import http.client
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.backend import Backend, Exchange, Gate, rest, say, text_event
from tests.e2e.conftest import Start
from tests.e2e.processes import BOB, Gateway, digest, until, weir
from tests.e2e.test_audit_failure import AUDIT_FAILED, fill_disk
from tests.e2e.wire import Connection, Response, chat, request

WORKERS = 2
TEXT = "Held until the test lets go. " * 8
StartWorkers = Callable[..., Gateway]


@pytest.fixture
def start_workers(start: Start) -> StartWorkers:
    def start_workers(change: Callable[[dict[str, Any]], None] | None = None, *, workers: int = WORKERS) -> Gateway:
        return start(change, arguments=["--workers", str(workers)])

    return start_workers


def held(gate: Gate) -> Callable[[Exchange], Any]:
    """Says half, waits, says the rest."""

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(text_event(TEXT))
        await gate.passed()
        await rest(exchange, [TEXT])

    return script


def open_streams(gateway: Gateway, count: int) -> list[tuple[Connection, Response]]:
    """Answers that have begun, on as many connections."""
    streams = []
    for _ in range(count):
        connection = gateway.connect()
        connection.send(request(body=chat(stream=True), key=gateway.key))
        streams.append((connection, connection.head()))
    return streams


def read(stream: tuple[Connection, Response]) -> Response:
    connection, answer = stream
    for piece in connection.pieces(answer):
        answer.body += piece
    connection.socket.close()
    return answer


def holders_of(gateway: Gateway, kind: str) -> Counter[str]:
    return Counter(str(leaf["holder"]) for leaf in gateway.audit() if leaf["type"] == kind)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def settled(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    """The last word on so many answers, once all of them are on the record."""

    def found() -> list[dict[str, Any]]:
        leaves = [leaf for leaf in gateway.audit() if leaf["type"] == "settled"]
        return leaves if len(leaves) == count else []

    return until(found, what=f"{count} answers are settled")


def charged_bits(gateway: Gateway) -> int:
    """What the record says has left, settled as far as it has been."""
    leaves = gateway.audit()
    released = sum(leaf["charged_bits"] for leaf in leaves if leaf["type"] == "released")
    parting = sum(leaf["parting_bits"] for leaf in leaves if leaf["type"] == "closed")
    return released + parting - sum(leaf["refunded_bits"] for leaf in leaves if leaf["type"] == "settled")


def test_what_all_workers_do_is_on_one_page_and_on_one_record(backend: Backend, start_workers: StartWorkers) -> None:
    gateway = start_workers()
    assert len(gateway.children) == WORKERS
    received_bytes = 0
    for number in range(40):
        answer = gateway.ask(stream=number % 2 == 0)
        assert answer.status == 200
        received_bytes += len(
            (answer.text if number % 2 == 0 else answer.json["choices"][0]["message"]["content"]).encode()
        )
    assert gateway.ask(key="nobody's").status == 401
    leaves = settled(gateway.idle(), 40)
    assert len(holders_of(gateway, "opened")) == WORKERS, "the system spreads connections over the workers"
    assert gateway.metric("weir_requests_total", outcome="stop", tenant="alice") == 40
    assert gateway.metric("weir_refusals_total", reason="unknown_key") == 1
    assert gateway.metric("weir_released_text_bytes_total") == received_bytes
    charged = sum(leaf["charged_bits"] + leaf["refunded_bits"] for leaf in leaves)
    assert gateway.metric("weir_charged_bits_total") == charged
    assert gateway.metric("weir_request_duration_seconds_count") == 40
    assert gateway.metric("weir_workers") == WORKERS
    assert gateway.metric("weir_worker_restarts_total") == 0
    page = gateway.admin("/metrics")[1].decode().splitlines()
    described = Counter(line.split(" ")[2] for line in page if line.startswith("# TYPE"))
    assert set(described.values()) == {1}
    assert len({line.rsplit(" ", 1)[0] for line in page}) == len(page), "each sample stands there once"


def test_the_figures_of_the_budgets_count_what_all_workers_hold(backend: Backend, start_workers: StartWorkers) -> None:
    gateway = start_workers()
    for _ in range(20):
        assert gateway.ask().status == 200
    charged = sum(leaf["charged_bits"] for leaf in settled(gateway.idle(), 20))
    assert len(holders_of(gateway, "lease_granted")) == WORKERS
    account = gateway.account("tenant", "alice")
    assert account["used_bits"] == charged
    assert account["leased_bits"] > 0
    assert gateway.metric("weir_budget_used_bits", owner="tenant", name="alice") == charged
    for _ in range(4):  # whichever worker is asked
        (budget,) = gateway.get("/v1/budget").json["data"]
        assert budget["used_bits"] == charged
    status, claims = gateway.admin("/claims")
    assert status == 200
    assert f"{charged} bits were charged".encode() in claims
    gate = backend.gate()
    backend.script = held(gate)
    streams = open_streams(gateway, 4)
    assert gateway.status()["answers_in_flight"] == gateway.metric("weir_answers_in_flight") == 4
    assert gateway.account("tenant", "alice")["reserved_bits"] > 0
    gate.open()
    for stream in streams:
        assert read(stream).complete


def test_a_worker_that_dies_is_replaced_and_its_counters_stay(backend: Backend, start_workers: StartWorkers) -> None:
    gateway = start_workers()
    for _ in range(20):
        assert gateway.ask().status == 200
    settled(gateway.idle(), 20)
    assert gateway.metric("weir_requests_total") == 20
    for deaths in (1, 2):
        victim = gateway.children[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda deaths=deaths: gateway.metric("weir_worker_restarts_total") == deaths, what="the death is counted")
        assert gateway.metric("weir_requests_total") == 20 * deaths
        until(lambda: gateway.metric("weir_workers") == WORKERS, what="it is replaced", seconds=20)
        assert victim not in gateway.children
        for _ in range(20):
            assert gateway.ask().status == 200
        settled(gateway.idle(), 20 * (deaths + 1))
        assert gateway.metric("weir_requests_total") == 20 * (deaths + 1)
    died = [line for line in gateway.log() if line["event"] == "worker died"]
    assert [line["status"] for line in died] == [-signal.SIGKILL] * 2
    # What the dead held and had not spent went back, so all that counts is what was charged.
    assert gateway.used_bits() == charged_bits(gateway)
    assert sum(holders_of(gateway, "recovered").values()) == 2


def test_the_answers_of_a_dead_worker_break_off_and_those_of_others_go_on(
    backend: Backend, start_workers: StartWorkers
) -> None:
    gateway = start_workers()
    gate = backend.gate()
    backend.script = held(gate)
    streams = open_streams(gateway, 12)
    holders = until(
        lambda: len(holders_of(gateway, "opened")) == WORKERS and holders_of(gateway, "opened"), what="both serve"
    )
    os.kill(gateway.children[0], signal.SIGKILL)
    until(lambda: gateway.metric("weir_worker_restarts_total") == 1, what="the death is seen")
    gate.open()
    complete = Counter(read(stream).complete for stream in streams)
    assert complete[True] in holders.values()
    assert complete[False] in holders.values()


def test_a_drain_lets_every_worker_finish(backend: Backend, start_workers: StartWorkers) -> None:
    gateway = start_workers()
    gate = backend.gate()
    backend.script = held(gate)
    streams = open_streams(gateway, 8)
    assert gateway.admin("/readyz")[0] == 200
    gateway.signal(signal.SIGTERM)
    until(lambda: gateway.admin("/readyz") == (503, b"draining\n"), what="the gateway says that it drains")

    def refused() -> bool:
        try:
            return gateway.ask().status == 503
        except ConnectionError:
            return True

    until(refused, what="nobody takes new answers")
    assert gateway.alive
    gate.open()
    for stream in streams:
        answer = read(stream)
        assert answer.complete
        assert answer.text == TEXT * 2
    assert gateway.wait() == 0
    assert len(holders_of(gateway, "stopped")) == WORKERS
    charged = charged_bits(gateway)
    gateway.start()
    assert gateway.used_bits() == gateway.used_bits("model", "m") == charged
    assert gateway.account("tenant", "alice")["leased_bits"] == 0


def test_a_second_signal_does_not_wait_for_answers(backend: Backend, start_workers: StartWorkers) -> None:
    gateway = start_workers()
    backend.script = held(backend.gate())
    streams = open_streams(gateway, 2)
    gateway.signal(signal.SIGTERM)
    until(lambda: gateway.admin("/readyz") == (503, b"draining\n"), what="the gateway says that it drains")
    gateway.signal(signal.SIGTERM)
    assert gateway.wait(10) == 0
    assert not any(read(stream).complete for stream in streams)
    charged = charged_bits(gateway)
    assert charged <= gateway.start().used_bits() <= charged + 1000, "what was held and had not left went back"


def test_a_reload_reaches_every_worker_or_none(start_workers: StartWorkers) -> None:
    gateway = start_workers()
    before = gateway.status()["policy"]
    good = gateway.path.read_text()
    gateway.path.write_text(good + "mystery: 1\n")
    gateway.signal(signal.SIGHUP)
    until(lambda: gateway.metric("weir_config_reloads_total", result="refused") == 1, what="the mistake is found")
    assert gateway.metric("weir_config_last_reload_successful") == 0
    assert gateway.status()["policy"] == before
    # A worker that begins now must not meet the mistake in the file.
    os.kill(gateway.children[0], signal.SIGKILL)
    until(lambda: gateway.metric("weir_worker_restarts_total") == 1, what="the death is seen")
    until(lambda: gateway.metric("weir_workers") == WORKERS, what="it is replaced", seconds=20)
    rules = copy.deepcopy(gateway.rules)
    rules["tenants"]["carol"] = {"keys": [digest("carol-key")], "models": ["m"]}
    rules["tenants"]["alice"]["budget"]["bytes"] = "60MB"
    del rules["tenants"]["bob"]
    gateway.write(rules)
    gateway.signal(signal.SIGHUP)
    until(lambda: gateway.metric("weir_config_reloads_total", result="taken") == 1, what="the policy is taken")
    assert gateway.metric("weir_config_last_reload_successful") == 1
    assert gateway.status()["policy"] != before
    for _ in range(20):
        assert gateway.ask(key="carol-key").status == 200
        assert gateway.ask(key=BOB).status == 401
    assert gateway.account("tenant", "alice")["limit_bits"] == 8 * 60_000_000
    loaded = [leaf for leaf in gateway.audit() if leaf["type"] == "policy_loaded"]
    assert [leaf["raised"] for leaf in loaded if leaf["raised"]] == [["tenant:alice/lifetime/ever"]]


def test_workers_do_not_outlive_their_keeper(backend: Backend, start_workers: StartWorkers) -> None:
    gateway = start_workers()
    gate = backend.gate()
    backend.script = held(gate)
    streams = open_streams(gateway, 8)
    workers = gateway.children
    gateway.kill9()
    gate.open()
    received_bytes = 0
    for stream in streams:
        answer = read(stream)
        assert not answer.complete
        received_bytes += len(answer.text.encode())
    until(lambda: all(gone(pid) for pid in workers), what="the workers end", seconds=5)
    released = sum(leaf["text_bytes"] for leaf in gateway.audit() if leaf["type"] == "released")
    assert released >= received_bytes
    gateway.start()
    assert gateway.used_bits() >= 8 * received_bytes
    assert gateway.account("tenant", "alice")["leased_bits"] == 0


def test_when_nothing_can_be_recorded_all_processes_end(backend: Backend, start_workers: StartWorkers) -> None:
    gateway = start_workers()
    for _ in range(12):
        assert gateway.ask().status == 200
    settled(gateway.idle(), 12)
    gate = backend.gate()

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await gate.passed()
        await exchange.chunk(text_event("This must never be seen. " * 4))
        await exchange.for_ever()

    backend.script = script
    connections = [gateway.connect() for _ in range(8)]
    for connection in connections:
        connection.send(request(body=chat(stream=True), key=gateway.key))
    until(lambda: sum(holders_of(gateway, "opened").values()) == 20, what="the requests are on the record")
    workers = gateway.children
    fill_disk(gateway)
    gate.open()
    for connection in connections:
        with contextlib.suppress(ConnectionError):
            answer = connection.response()
            assert b"never be seen" not in answer.body
        connection.socket.close()
    assert gateway.wait(10) == AUDIT_FAILED
    until(lambda: all(gone(pid) for pid in workers), what="the workers end", seconds=5)
    backend.script = say("Recovered.")
    assert gateway.start().ask().status == 200


@pytest.mark.parametrize(("first", "second"), [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")])
def test_two_gateways_do_not_share_a_port(start: Start, first: str, second: str) -> None:
    gateway = start(arguments=["--workers", first])
    rules = copy.deepcopy(gateway.rules)
    rules |= {
        "listen": f"127.0.0.1:{gateway.port}",
        "ledger": "memory",
        "audit": {"directory": str(gateway.directory / "other")},
    }
    other = Gateway(gateway.directory / "..", rules)
    ended = weir("serve", "--policy", str(other.path), "--workers", second)
    assert ended.returncode == 1
    assert "in use" in ended.stderr
    assert gateway.ask().status == 200


def test_workers_share_a_unix_socket(backend: Backend, start: Start, tmp_path: Any) -> None:
    path = str(tmp_path / "public.sock")

    def change(rules: dict[str, Any]) -> None:
        rules["listen"] = f"unix:{path}"

    gateway = start(change, arguments=["--workers", "2"])

    def ask() -> int:
        connection = http.client.HTTPConnection("gateway")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(path)
        headers = {"Authorization": f"Bearer {gateway.key}"}
        connection.request("GET", "/v1/models", headers=headers)
        status = connection.getresponse().status
        connection.close()
        return status

    assert [ask() for _ in range(20)] == [200] * 20
    for pid in gateway.children:
        os.kill(pid, signal.SIGKILL)
    until(lambda: gateway.metric("weir_worker_restarts_total") == 2, what="the deaths are seen")
    assert ask() == 200, "what comes in between waits for the next worker"


def test_a_gateway_without_a_worker_is_not_ready(backend: Backend, start_workers: StartWorkers) -> None:
    gateway = start_workers()
    backend.down()
    try:
        assert gateway.admin("/readyz") == (503, b"the backend of m does not answer\n")
        assert gateway.admin("/livez")[0] == 200
    finally:
        backend.start()
    for pid in gateway.children:
        os.kill(pid, signal.SIGSTOP)
    assert gateway.admin("/readyz") == (503, b"no worker serves\n")
    assert gateway.metric("weir_workers") == WORKERS, "figures do not wait for ever for workers that hang"
    for pid in gateway.children:
        os.kill(pid, signal.SIGCONT)
    until(lambda: gateway.admin("/readyz")[0] == 200, what="ready again")


def test_a_worker_takes_its_orders_from_the_keeper_alone(start_workers: StartWorkers) -> None:
    gateway = start_workers()
    for pid in gateway.children:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    for _ in range(10):
        assert gateway.ask().status == 200
    assert gateway.metric("weir_worker_restarts_total") == 0
    assert gateway.stop() == 0


def test_lines_of_the_log_say_whose_they_are(start_workers: StartWorkers) -> None:
    gateway = start_workers()
    assert gateway.stop() == 0
    stopped = [line.get("worker") for line in gateway.log() if line["event"] == "stopped"]
    assert sorted(stopped[:-1]) == [0, 1]
    assert stopped[-1] is None


@pytest.mark.parametrize("word", ["0", "-1", "65", "many"])
def test_a_number_of_workers_that_makes_no_sense_is_refused(word: str) -> None:
    ended = weir("serve", "--workers", word)
    assert ended.returncode == 2
    assert "--workers" in ended.stderr

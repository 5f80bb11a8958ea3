"""A budget is spent to its last bits and never beyond, however many streams want it at once."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.backend import Backend, Exchange, rest, say, text_event
from tests.e2e.conftest import Start
from tests.e2e.processes import BOB, Gateway, digest
from tests.e2e.wire import Response, chat, request

STREAMS = 50
LIMIT_BYTES = 64 * 1024


def at_once(gateway: Gateway, count: int, **fields: Any) -> list[Response]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda _: gateway.ask(**fields), range(count)))


def budget_of(owner: str, **budget: Any) -> Any:
    def change(rules: dict[str, Any]) -> None:
        rules["meters"] = ["raw"]  # nothing comes back, so that used is what left
        if owner == "tenant":
            rules["tenants"]["alice"]["budget"] = budget
        else:
            rules["models"]["m"]["budgets"] = [budget]

    return change


async def talk(exchange: Exchange) -> None:
    """4 kB a stream: three times as much as the budget has in all."""
    await exchange.begin()
    for number in range(64):
        await exchange.chunk(text_event(f"{number:04d} " + "abcdefghijk" * 5 + "\n"))
        await asyncio.sleep(0.005)
    await rest(exchange)


@pytest.mark.parametrize("owner", ["tenant", "model"])
def test_fifty_streams_are_cut_exactly_at_the_limit(backend: Backend, start: Start, owner: str) -> None:
    gateway = start(budget_of(owner, window="10y", bytes=f"{LIMIT_BYTES}B"))
    backend.script = talk
    answers = at_once(gateway, STREAMS, stream=True)
    gateway.idle()
    account = gateway.account(owner, "alice" if owner == "tenant" else "m", "10y")
    text_bytes = sum(len(answer.text.encode()) for answer in answers if answer.status == 200)
    charged_bits = gateway.metric("weir_charged_bits_total", code="raw")
    assert account["limit_bits"] == 8 * LIMIT_BYTES
    assert 8 * text_bytes <= account["used_bits"] <= min(charged_bits, account["limit_bits"])
    assert account["used_bits"] >= 0.9 * account["limit_bits"], "a budget is there to be used"
    assert account["reserved_bits"] == 0
    cut = [answer for answer in answers if not answer.complete]
    assert len(cut) > STREAMS / 2
    for answer in cut:
        assert answer.events[-1]["error"]["code"] == "egress_budget_exhausted"
        assert "[DONE]" not in answer.events
    for answer in answers:
        if answer.complete:
            assert answer.status == 429 or answer.events[-1] == "[DONE]"


def test_a_fight_over_the_last_bits_of_a_budget_ends_no_process(backend: Backend, start: Start) -> None:
    """Streamed and whole answers of all sizes at once: each of these wants another reservation of the same little rest."""
    limits_bytes = [300, 700, 1500, 4000] * 6
    tenants = [f"t{number}" for number in range(len(limits_bytes))]
    chance = random.Random(1)

    def change(rules: dict[str, Any]) -> None:
        for name, limit_bytes in zip(tenants, limits_bytes, strict=True):
            budget = {"window": "lifetime", "bytes": f"{limit_bytes}B"}
            rules["tenants"][name] = {"keys": [digest(name)], "models": ["m"], "budget": budget}

    async def of_any_size(exchange: Exchange) -> None:
        await asyncio.sleep(chance.random() / 20)
        await say("abcdefgh" * chance.choice([1, 4, 16, 64, 200]), pieces=chance.choice([1, 5, 20]))(exchange)

    def fight(name: str) -> int:
        try:
            tokens = chance.choice([1, 20, 200, 2000])
            return gateway.ask(key=name, stream=chance.random() < 0.5, max_tokens=tokens).status
        except ConnectionError:
            return 0

    gateway = start(change)
    backend.script = of_any_size
    with ThreadPoolExecutor(60) as threads:
        for name in tenants:
            statuses = set(threads.map(fight, [name] * 120))
            assert gateway.alive, (gateway.directory / "gateway.log").read_text()[-2000:]
            assert statuses <= {200, 429}
    gateway.idle()
    for name in tenants:
        account = gateway.account("tenant", name)
        assert account["used_bits"] <= account["limit_bits"]
        assert account["reserved_bits"] == 0


def exhaust(gateway: Gateway, backend: Backend) -> None:
    """Spend a budget quantum by quantum."""

    async def quantum_by_quantum(exchange: Exchange) -> None:
        await exchange.begin()
        while True:
            await exchange.chunk(text_event("sixteen bytes..."))
            await asyncio.sleep(0.001)

    backend.script = quantum_by_quantum
    while gateway.ask(stream=True).status == 200:
        pass
    gateway.idle()
    backend.exchanges = []


@pytest.mark.parametrize("streamed", [False, True])
def test_after_the_limit_requests_are_429_with_an_honest_reset(backend: Backend, start: Start, streamed: bool) -> None:
    gateway = start(budget_of("tenant", window="10y", bytes="1024B"))
    exhaust(gateway, backend)
    answer = gateway.ask(stream=streamed)
    assert answer.status == 429
    assert answer.complete
    assert_honest_reset(answer)
    assert backend.requests == []
    backend.script = say("Hello")
    assert gateway.ask(key=BOB).status == 200, "others have budgets of their own"


def assert_honest_reset(answer: Response) -> None:
    assert answer.error["type"] == "insufficient_quota"
    assert answer.error["code"] == "egress_budget_exhausted"
    assert answer.error["budget"].startswith("tenant:alice/10y/")
    resets_at = answer.error["resets_at"]
    assert resets_at % (10 * 365 * 86400) == 0
    assert time.time() < resets_at < time.time() + 10 * 365 * 86400
    assert 1 <= int(answer.header("Retry-After") or "") <= 120
    assert answer.header("x-should-retry") == "false"
    assert answer.header("RateLimit-Policy") == f'"10y";q=1024;qu="content-bytes";w={10 * 365 * 86400}'
    assert answer.header("RateLimit") == f'"10y";r=0;t={answer.header("Retry-After")}'
    assert answer.header("x-ratelimit-limit-bytes") == "1024"
    assert answer.header("x-ratelimit-remaining-bytes") == "0"


def test_a_burst_beyond_the_budget_is_cut_at_its_end_and_not_before(backend: Backend, start: Start) -> None:
    gateway = start(budget_of("tenant", window="10y", bytes="1024B"))
    backend.script = say("x" * 4000, pieces=1)
    answer = gateway.ask(stream=True)
    account = gateway.idle().account("tenant", "alice", "10y")
    assert answer.events[-1]["error"]["code"] == "egress_budget_exhausted"
    assert 8 * len(answer.text) <= account["used_bits"] <= account["limit_bits"]
    assert account["used_bits"] >= 0.9 * account["limit_bits"], "the client was cut while its budget was not spent"


def test_a_models_exhausted_budget_says_nothing_of_how_others_share_it(backend: Backend, start: Start) -> None:
    gateway = start(budget_of("model", window="10y", bytes="1024B"))
    exhaust(gateway, backend)
    answer = gateway.ask(key=BOB)
    assert (answer.status, answer.error["code"]) == (429, "egress_budget_exhausted")
    assert not [name for name, _ in answer.headers if "ratelimit" in name.lower()]


def test_a_lifetime_budget_that_is_spent_has_no_reset(backend: Backend, start: Start) -> None:
    gateway = start(budget_of("tenant", window="lifetime", bytes="1024B"))
    exhaust(gateway, backend)
    answer = gateway.ask()
    assert answer.status == 429
    assert "resets_at" not in answer.error
    assert "does not refill" in answer.error["message"]


def test_an_unstreamed_answer_that_does_not_fit_is_withheld_whole(backend: Backend, start: Start) -> None:
    gateway = start(budget_of("tenant", window="lifetime", bytes="1024B"))
    backend.script = say("x" * 4000)
    answer = gateway.ask()
    assert (answer.status, answer.error["code"]) == (429, "egress_budget_exhausted")
    assert gateway.idle().used_bits() < 200, "only the refusal's own bits"
    backend.script = say("It fits.")
    assert gateway.ask().status == 200


def test_an_unstreamed_answer_that_does_not_fit_is_refused_with_an_honest_reset(backend: Backend, start: Start) -> None:
    gateway = start(budget_of("tenant", window="10y", bytes="1024B"))
    backend.script = say("x" * 4000)
    answer = gateway.ask()
    assert answer.status == 429
    assert_honest_reset(answer)


def test_settling_gives_room_for_more_than_raw_would_allow(backend: Backend, start: Start) -> None:
    def change(rules: dict[str, Any]) -> None:
        rules["tenants"]["alice"]["budget"] = {"window": "lifetime", "bytes": "4096B"}

    gateway = start(change)
    text = "The weather today is mild and the sky is mostly clear over the lake. " * 40
    backend.script = say(text)
    sent_bytes = 0
    while (answer := gateway.ask(stream=True)).status == 200 and answer.complete:
        sent_bytes += len(answer.text)
        gateway.leaf("settled", answer)
    account = gateway.idle().account("tenant", "alice")
    assert sent_bytes > 2 * 4096
    assert account["used_bits"] <= account["limit_bits"]


def test_too_many_streams_of_one_tenant_are_429_and_others_are_served(backend: Backend, start: Start) -> None:
    def change(rules: dict[str, Any]) -> None:
        rules["tenants"]["alice"]["streams_max"] = 3

    gateway = start(change)
    gate = backend.gate()

    async def hold(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(text_event("sixteen bytes ok"))
        await gate.passed()
        await rest(exchange)

    backend.script = hold
    held = [gateway.connect() for _ in range(3)]
    heads = []
    for connection in held:
        connection.send(request(body=chat(stream=True), key=gateway.key))
        heads.append(connection.head())
    backend.script = say("Hello")
    refused = gateway.ask()
    assert (refused.status, refused.error["code"]) == (429, "too_many_streams")
    assert refused.header("Retry-After") == "1"
    assert gateway.ask(key=BOB).status == 200
    gate.open()
    for connection, head in zip(held, heads, strict=True):
        assert b"[DONE]" in b"".join(connection.pieces(head))
    gateway.idle()
    assert gateway.ask().status == 200
    for connection in held:
        connection.socket.close()

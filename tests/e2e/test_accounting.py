"""What metrics, `/v1/budget` and `/status.json` say of an answer while it leaves and after it is settled."""

from __future__ import annotations

import time
from typing import Any

import pytest

from policy.limits import LEASE_S
from tests.e2e.backend import DONE, Backend, Exchange, finish_event, say, text_event
from tests.e2e.conftest import Start
from tests.e2e.processes import BOB, Gateway
from tests.e2e.wire import chat, request

TEXT = "A weir holds a river back and measures what passes over it. " * 30
LABELS = {"model": "m", "tenant": "alice"}


@pytest.mark.parametrize("streamed", [False, True])
def test_at_release_at_least_eight_bits_a_byte_are_charged_and_settling_refunds_some(
    gateway: Gateway, backend: Backend, streamed: bool
) -> None:
    backend.script = say(TEXT)
    names = (
        "weir_charged_bits_total",
        "weir_refunded_bits_total",
        "weir_released_text_bytes_total",
        "weir_released_bits_total",
    )
    codes = ({"code": "raw"}, {"code": "zstd"}, {}, {})

    def figures() -> list[float]:
        return [gateway.metric(name, **LABELS, **code) for name, code in zip(names, codes, strict=True)]

    before, used_bits = figures(), gateway.used_bits()
    answer = gateway.ask(stream=streamed)
    assert answer.status == 200
    settled = gateway.leaf("settled", answer)
    charged, refunded, released_bytes, released_bits = (now - then for now, then in zip(figures(), before, strict=True))
    assert released_bytes == len(TEXT.encode())
    assert released_bits == 8 * released_bytes
    assert charged >= 8 * released_bytes
    assert charged <= 8 * released_bytes + 4000, "framing costs a few bits a piece"
    assert 0 < refunded < charged
    assert refunded == settled["refunded_bits"]
    assert settled["code"] == "zstd"
    assert gateway.used_bits() - used_bits == charged - refunded == settled["charged_bits"]


def test_while_an_answer_is_open_its_release_is_charged_and_more_is_reserved(
    gateway: Gateway, backend: Backend
) -> None:
    gate = backend.gate()

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(text_event("x" * 320))
        await gate.passed()
        await exchange.chunk(finish_event() + DONE)
        await exchange.finish()

    backend.script = script
    before = gateway.account("tenant", "alice")
    with gateway.connect() as connection:
        connection.send(request(body=chat(stream=True), key=gateway.key))
        answer = connection.head()
        pieces = connection.pieces(answer)
        answer.body = next(pieces)
        during = gateway.account("tenant", "alice")
        assert gateway.status()["answers_in_flight"] == gateway.metric("weir_answers_in_flight", model="m") == 1
        gate.open()
        answer.body += b"".join(pieces)
    assert answer.text == "x" * 320
    assert during["used_bits"] - before["used_bits"] >= 8 * 320
    assert during["reserved_bits"] > 0
    gateway.idle()
    after = gateway.account("tenant", "alice")
    assert after["reserved_bits"] == 0
    assert before["used_bits"] < after["used_bits"] < during["used_bits"]


def test_budget_status_and_metrics_agree(gateway: Gateway, backend: Backend) -> None:
    backend.script = say(TEXT)
    gateway.leaf("settled", gateway.ask(stream=True))
    body = gateway.get("/v1/budget").json
    (own,) = body["data"]
    account = gateway.account("tenant", "alice")
    assert (body["object"], body["tenant"]) == ("list", "alice")
    assert own["budget"] == account["id"]
    assert own["used_bits"] == account["used_bits"] > 0
    assert own["limit_bits"] == account["limit_bits"] == 8 * 50_000_000
    assert own["remaining_bits"] == own["limit_bits"] - own["used_bits"]
    assert own["remaining_bytes_raw"] == own["remaining_bits"] // 8
    for name in ("used", "limit", "reserved", "leased"):
        labels = {"owner": "tenant", "name": "alice", "window": "lifetime"}
        assert gateway.metric(f"weir_budget_{name}_bits", **labels) == account[f"{name}_bits"]


def test_every_bit_of_a_tenant_is_also_its_models(gateway: Gateway, backend: Backend) -> None:
    backend.script = say(TEXT)
    gateway.leaf("settled", gateway.ask())
    gateway.leaf("settled", gateway.ask(key=BOB))
    status = gateway.status()
    used = {account["name"]: account["used_bits"] for account in status["accounts"]}
    assert used["m"] == used["alice"] + used["bob"]
    assert used["bob"] > 0
    charged, refunded = (
        gateway.metric("weir_charged_bits_total", code="raw"),
        gateway.metric("weir_refunded_bits_total"),
    )
    assert used["m"] == charged - refunded


def test_a_tenant_sees_its_own_budget_and_nobody_elses(gateway: Gateway) -> None:
    body = gateway.get("/v1/budget", key=BOB).json
    assert body["tenant"] == "bob"
    assert [own["budget"] for own in body["data"]] == ["tenant:bob/lifetime/ever"]


def test_short_texts_that_zstd_cannot_shrink_keep_their_raw_charge(gateway: Gateway, backend: Backend) -> None:
    backend.script = say("q")
    answer = gateway.ask()
    settled, closed = gateway.leaf("settled", answer), gateway.leaf("closed", answer)
    assert settled["code"] == "raw"
    assert settled["refunded_bits"] == 0
    assert settled["charged_bits"] == closed["charged_bits"] >= 8


def test_without_zstd_no_text_is_refunded(backend: Backend, start: Start) -> None:
    def raw_only(rules: dict[str, Any]) -> None:
        rules["meters"] = ["raw"]

    backend.script = say(TEXT)
    gateway = start(raw_only)
    settled = gateway.leaf("settled", gateway.ask(stream=True))
    assert settled["code"] == "raw"
    assert gateway.used_bits() == settled["charged_bits"] >= 8 * len(TEXT)
    assert settled["refunded_bits"] < 64, "only the timing of the pieces has a cheaper code"


def test_the_record_of_an_answer_adds_up(gateway: Gateway, backend: Backend) -> None:
    backend.script = say(TEXT, pieces=20)
    answer = gateway.ask(stream=True)
    closed, opened = gateway.leaf("closed", answer), gateway.leaf("opened", answer)
    released = [leaf for leaf in gateway.audit() if leaf["type"] == "released" and leaf["answer"] == closed["answer"]]
    assert (opened["tenant"], opened["model"], opened["route"]) == ("alice", "m", "/v1/chat/completions")
    assert opened["seed"] == backend.requests[-1].json["seed"]
    assert sum(leaf["text_bytes"] for leaf in released) == closed["text_bytes"] == len(TEXT)
    assert sum(leaf["charged_bits"] for leaf in released) == closed["charged_bits"]
    assert [leaf["outcome"] for leaf in released][-1] == closed["outcome"] == "stop"
    assert TEXT[:20].encode() not in b"".join(
        path.read_bytes() for path in (gateway.directory / "audit").rglob("*") if path.is_file()
    )


def test_leases_are_shown_as_they_stand(gateway: Gateway, backend: Backend) -> None:
    """Not as they stood at the last look: a scrape that comes just after a grant sees it."""
    assert gateway.ask().status == 200
    granted = {leaf["lease"] for leaf in gateway.audit() if leaf["type"] == "lease_granted"}
    assert 0 < gateway.metric("weir_leases_open") <= len(granted)
    left_s = gateway.metric("weir_leases_until_timestamp_seconds") - time.time()
    assert LEASE_S - 30 < left_s < LEASE_S

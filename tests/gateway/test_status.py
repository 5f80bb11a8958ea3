"""Where the budgets stand: exact for the operator, and for a tenant only its own."""

import json
import math

import pytest

from gateway.ports import LedgerUnavailable
from gateway.record import Closed
from gateway.status import Status


@pytest.fixture
def house(fakes):
    return fakes.House(policy=fakes.policy_of(budgets="- {window: 1d, bytes: 10000B}", tenant="share: 50%"))


@pytest.fixture
def status(house):
    return Status(
        serving=lambda: house.serving,
        held=house.held,
        ledger=house.ledger,
        clock=house.clock,
        metrics=house.metrics,
    )


async def answered(fakes, house, text):
    async with house.running():
        await house.ask([fakes.said(text)])
        await house.ticks(2)
    return house.audit.of(Closed)[-1].charged_bits


async def test_a_tenant_sees_its_own_budgets_to_the_bit_and_no_models(fakes, house, status):
    charged = await answered(fakes, house, "x" * 100)
    body = json.loads(await status.budget(house.serving, house.serving.policy.tenants["acme"]))
    assert body["tenant"] == "acme"
    assert body["data"] == [
        {
            "budget": "tenant:acme/m/1d/11",
            "window": "1d",
            "limit_bits": 40_000,
            "used_bits": charged,
            "reserved_bits": 0,
            "remaining_bits": 40_000 - charged,
            "remaining_bytes_raw": (40_000 - charged) // 8,
            "resets_at": 12 * 86_400,
        }
    ]


async def test_the_operator_sees_every_account_and_the_gauges_follow(fakes, house, status):
    charged = await answered(fakes, house, "x" * 100)
    snapshot = await status.snapshot()
    accounts = {account["id"]: account for account in snapshot["accounts"]}
    assert set(accounts) == {"model:m/1d/11", "tenant:acme/m/1d/11"}
    for account in accounts.values():
        assert account["used_bits"] == charged
        assert account["leased_bits"] > 0
        assert account["reserved_bits"] == 0
    assert house.metrics.budget_used.labels("model", "m", "m", "1d")._value.get() == charged
    assert house.metrics.budget_limit.labels("model", "m", "m", "1d")._value.get() == 80_000
    assert house.metrics.budget_window.labels("model", "m", "m", "1d")._value.get() == 86_400
    assert snapshot["models"][0]["name"] == "m"
    assert snapshot["models"][0]["days_to_theft"] > 0
    assert snapshot["answers_in_flight"] == 0


async def test_before_anything_left_nothing_is_used(house, status):
    snapshot = await status.snapshot()
    assert [account["used_bits"] for account in snapshot["accounts"]] == [0, 0]


async def test_a_theft_that_the_lifetime_forbids_takes_for_ever(fakes):
    house = fakes.House(policy=fakes.policy_of(budgets="- {window: lifetime, fraction: 10%}"))
    status = Status(
        serving=lambda: house.serving,
        held=house.held,
        ledger=house.ledger,
        clock=house.clock,
        metrics=house.metrics,
    )
    snapshot = await status.snapshot()
    assert snapshot["models"][0]["days_to_theft"] is None
    assert json.dumps(snapshot)


async def test_a_ledger_that_does_not_answer_is_counted(house, status, monkeypatch):
    assert await status.ledger_answers()

    async def away(accounts):
        raise LedgerUnavailable("away")

    monkeypatch.setattr(house.ledger, "states", away)
    assert not await status.ledger_answers()
    assert house.metrics.ledger_errors._value.get() == 1


def of(house):
    return Status(
        serving=lambda: house.serving,
        held=house.held,
        ledger=house.ledger,
        clock=house.clock,
        metrics=house.metrics,
    )


def samples(house, name):
    (family,) = [family for family in house.metrics.registry.collect() if family.name == name]
    return [(sample.labels, sample.value) for sample in family.samples]


async def test_a_tenants_share_of_a_model_and_its_budget_for_all_of_them_are_told_apart(fakes):
    tenant = "share: 50%\n    budget: {window: 1d, bytes: 100B}"
    house = fakes.House(policy=fakes.policy_of(budgets="- {window: 1d, bytes: 10000B}", tenant=tenant))
    snapshot = await of(house).snapshot()
    models = {account["id"]: account["model"] for account in snapshot["accounts"]}
    assert models == {"model:m/1d/11": "m", "tenant:acme/m/1d/11": "m", "tenant:acme/1d/11": None}
    limits = {(labels["owner"], labels["model"]): value for labels, value in samples(house, "weir_budget_limit_bits")}
    assert limits == {("model", "m"): 80_000, ("tenant", "m"): 40_000, ("tenant", ""): 800}


async def test_what_a_reload_has_removed_is_not_shown_any_longer(fakes, house, status):
    await status.snapshot()
    days = len(samples(house, "weir_days_to_theft"))
    lifetime = fakes.House(policy=fakes.policy_of(budgets="- {window: lifetime, fraction: 10%}"))
    house.serving = lifetime.serving
    await status.snapshot()
    windows = [labels["window"] for labels, _ in samples(house, "weir_budget_limit_bits")]
    assert windows
    assert set(windows) == {"lifetime"}
    assert samples(house, "weir_budget_window_seconds")[0][1] == math.inf
    assert len(samples(house, "weir_days_to_theft")) == days


async def test_the_gauges_say_what_a_thief_needs_and_which_assumption_is_the_policys(house, status):
    await status.snapshot()
    (claim,) = house.serving.claims
    needed = {labels["assumption"]: value for labels, value in samples(house, "weir_theft_bits")}
    assert needed == {theft.assumption: theft.theft_bits for theft in claim.thefts}
    assert [labels for labels, _ in samples(house, "weir_theft_assumption")] == [
        {"model": "m", "assumption": claim.own.assumption}
    ]

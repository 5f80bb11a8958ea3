"""What the status page shows is what the ledger, the policy and the metrics say."""

import math

import pytest

from gateway.overview import Overviews
from gateway.record import Closed
from gateway.status import Status
from policy.limits import HISTORY_DISTANCE_S
from policy.refusal import Reason


@pytest.fixture
def house(fakes):
    return fakes.House(policy=fakes.policy_of(budgets="- {window: 1d, bytes: 10000B}", tenant="share: 50%"))


@pytest.fixture
def overviews(house):
    status = Status(
        serving=lambda: house.serving, held=house.held, ledger=house.ledger, clock=house.clock, metrics=house.metrics
    )

    async def ready():
        return None

    return Overviews(
        standing=status.standing, registry=house.registry, unready=ready, log_root=lambda: "ab" * 32, clock=house.clock
    )


async def test_budgets_come_models_first_with_what_is_used_and_how_it_came_to_that(fakes, house, overviews):
    await overviews.remember()
    async with house.running():
        await house.ask([fakes.said("x" * 100)])
        await house.ticks(2)
    charged = house.audit.of(Closed)[-1].charged_bits
    house.clock.advance(HISTORY_DISTANCE_S)
    await overviews.remember()
    view = await overviews.now()
    assert [budget.standing.account.owner for budget in view.budgets] == ["model", "tenant"]
    model = view.budgets[0]
    assert model.standing.used_bits == charged
    assert model.share == charged / 80_000
    assert [share for _, share in model.curve] == [0.0, model.share]
    assert (view.backends[0].model, view.backends[0].answers, view.backends[0].errors) == ("m", 1, ())


async def test_a_grant_that_comes_while_the_ledger_is_asked_is_no_peak_of_the_curve(fakes, house, overviews):
    await overviews.remember()
    states, once = house.ledger.states, iter([True])

    async def slowly(accounts=None):
        if next(once, False):
            accounts_of_one = house.serving.accounts.of(model="m", tenant="acme", now_s=house.clock.wall_s())
            await house.leases.fill(accounts_of_one, bits=40_000)
        return await states(accounts)

    house.ledger.states = slowly
    house.clock.advance(HISTORY_DISTANCE_S)
    await overviews.remember()
    assert next(once, None) is None
    assert [share for _, share in (await overviews.now()).budgets[0].curve] == [0.0, 0.0]


async def test_the_own_assumption_is_marked_and_never_is_infinite(fakes, house, overviews):
    view = await overviews.now()
    (own,) = [theft for theft in view.thefts if theft.is_own]
    assert own.theft_bits == house.serving.claims[0].theft_bits
    house.serving = fakes.House(policy=fakes.policy_of(budgets="- {window: lifetime, fraction: 10%}")).serving
    assert math.inf in [theft.days for theft in (await overviews.now()).thefts]


async def test_refusals_are_counted_by_reason_and_those_that_came_while_it_looked_have_a_moment(house, overviews):
    house.metrics.refusals.labels("unknown_key").inc()
    await overviews.now()
    house.clock.advance(5)
    house.metrics.refusals.labels("over_budget").inc(3)
    view = await overviews.now()
    assert view.refusals == (("over_budget", 3), ("unknown_key", 1))
    assert [(seen.reason, seen.count) for seen in view.last_refusals] == [("over_budget", 3)]
    assert {reason for reason, _ in view.refusals} <= {reason.label for reason in Reason}


async def test_errors_of_backends_are_told_by_kind(house, overviews):
    house.metrics.backend_errors.labels("m", "died").inc(2)
    house.metrics.backend_errors.labels("m", "connect").inc(5)
    (backend,) = (await overviews.now()).backends
    assert backend.errors == (("connect", 5), ("died", 2))


async def test_what_nobody_asks_for_and_what_never_was_is_told_apart_from_what_is_missing(house, overviews):
    view = await overviews.now()
    assert not view.licence.is_asked_for
    assert not view.log.is_to_be_witnessed
    assert view.log.signed_s is None
    assert view.leases.until_s is None
    house.metrics.audit_checkpoint_at.set(1234.5)
    house.metrics.leases_until.set(2000.0)
    house.metrics.licence_expires.set(math.inf)
    view = await overviews.now()
    assert (view.log.signed_s, view.leases.until_s, view.licence.expires_s) == (1234.5, 2000.0, None)
    assert view.log.root == "ab" * 32

"""The purse is filled from the ledger and from nowhere else; what is given back is on the record first."""

import asyncio

import pytest

from gateway.leases import Leases
from gateway.ledger.memory import MemoryLedger
from gateway.ports import LedgerUnavailable, OverLimit
from gateway.record import LeaseClosed, LeaseGranted

NAME = "model:m/lifetime/ever"


class Ledger(MemoryLedger):
    """Writes into the trace, waits at a gate before it grants, and may be away."""

    def __init__(self, trace):
        super().__init__()
        self.trace = trace
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = False

    async def grant(self, **wanted):
        await self.gate.wait()
        if self.away:
            raise LedgerUnavailable("away")
        granted = await super().grant(**wanted)
        self.trace.append(("grant", granted))
        return granted

    async def close_lease(self, *, lease, holder, returned):
        self.trace.append(("close", dict(returned)))
        return await super().close_lease(lease=lease, holder=holder, returned=returned)


@pytest.fixture
def trace():
    return []


@pytest.fixture
def ledger(trace):
    return Ledger(trace)


@pytest.fixture
def leases(fakes, ledger, trace):
    async def flush():
        trace.append(("flush",))

    return Leases(ledger=ledger, clock=fakes.Clock(), record=lambda leaf: trace.append(("record", leaf)), flush=flush)


async def debited(ledger, name=NAME):
    return {state.account: state.debited_bits for state in await ledger.states()}[name]


async def test_every_bit_in_the_purse_has_been_debited_in_the_store(fakes, leases, ledger, trace):
    accounts = (fakes.account(limit_bits=10**6),)
    hold = await leases.reserve(accounts, least_bits=10, most_bits=1000)
    assert hold.left_bits == 1000
    assert await debited(ledger) == leases.purse.balance_bits(NAME) + leases.purse.reserved_bits(NAME) == 1000 + 100
    assert isinstance(trace[-1][1], LeaseGranted)
    assert trace[-1][1].bits == {NAME: 1100}


async def test_a_full_purse_asks_no_store(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**6),)
    await leases.reserve(accounts, least_bits=10, most_bits=100)
    ledger.away = True
    assert (await leases.reserve(accounts, least_bits=10, most_bits=100)).left_bits == 100


async def test_near_the_end_a_hold_is_what_is_left_if_that_is_enough(fakes, leases):
    accounts = (fakes.account(limit_bits=150),)
    assert (await leases.reserve(accounts, least_bits=100, most_bits=1000)).left_bits == 150
    assert await leases.reserve(accounts, least_bits=1, most_bits=1000) == OverLimit(account=NAME, remaining_bits=0)


async def test_all_accounts_are_held_alike_or_none_is(fakes, leases, ledger):
    accounts = (fakes.account("a", limit_bits=10**6), fakes.account("b", limit_bits=50))
    over = await leases.reserve(accounts, least_bits=100, most_bits=1000)
    assert over == OverLimit(account="b", remaining_bits=0), "its last bits are in the purse, for whoever needs no more"
    assert leases.purse.reserved_bits("a") == leases.purse.reserved_bits("b") == 0
    hold = await leases.reserve(accounts, least_bits=50, most_bits=1000)
    assert leases.purse.reserved_bits("a") == leases.purse.reserved_bits("b") == hold.left_bits == 50


async def test_no_hold_is_ever_less_than_what_was_asked_for_at_least(fakes, leases, ledger):
    """While one waits for the store, others may take from the purse what it had already counted on."""
    accounts = (fakes.account(limit_bits=100_000),)
    warm = await leases.reserve(accounts, least_bits=100, most_bits=1000)
    warm.close()
    ledger.gate.clear()
    large = asyncio.ensure_future(leases.reserve(accounts, least_bits=1200, most_bits=1200))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    small = await leases.reserve(accounts, least_bits=1000, most_bits=1000)
    assert small.left_bits == 1000
    ledger.gate.set()
    hold = await large
    assert isinstance(hold, OverLimit) or hold.left_bits >= 1200


async def test_a_grant_whose_asker_went_away_still_reaches_the_purse(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**6),)
    ledger.gate.clear()
    asking = asyncio.ensure_future(leases.reserve(accounts, least_bits=10, most_bits=100))
    for _ in range(3):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    ledger.gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert leases.purse.balance_bits(NAME) == await debited(ledger) > 0


async def test_many_askers_at_once_share_few_grants_and_never_exceed_the_limit(fakes, leases, ledger, trace):
    accounts = (fakes.account(limit_bits=10_000),)
    results = await asyncio.gather(*(leases.reserve(accounts, least_bits=300, most_bits=300) for _ in range(50)))
    holds = [result for result in results if not isinstance(result, OverLimit)]
    assert len(holds) == 33
    assert await debited(ledger) <= 10_000


async def test_a_store_that_does_not_answer_is_told_to_the_caller(fakes, leases, ledger):
    ledger.away = True
    with pytest.raises(LedgerUnavailable):
        await leases.reserve((fakes.account(),), least_bits=1, most_bits=1)
    with pytest.raises(LedgerUnavailable):
        await leases.fill((fakes.account(),), bits=1)


async def test_a_refill_brings_the_purse_to_what_is_asked(fakes, leases):
    accounts = (fakes.account(limit_bits=1000),)
    assert await leases.fill(accounts, bits=700) is None
    assert leases.purse.balance_bits(NAME) == 700
    assert await leases.fill(accounts, bits=600) is None
    assert (await leases.fill(accounts, bits=1001)).account == NAME


async def test_limits_are_told_to_the_store_when_they_change_and_only_then(fakes, leases, ledger):
    assert await leases.register([fakes.account(limit_bits=100)]) == []
    assert await leases.register([fakes.account(limit_bits=100)]) == ()
    assert await leases.register([fakes.account(limit_bits=200)]) == [NAME]


async def test_an_answer_opened_under_an_old_policy_does_not_raise_a_limit_that_was_lowered_since(
    fakes, leases, ledger
):
    """Its accounts carry the old limit; a refill must not put that limit into force again."""
    old, new = fakes.account(limit_bits=1_000_000), fakes.account(limit_bits=5_000)
    await leases.reserve((old,), least_bits=10, most_bits=1000)
    await leases.register([new])
    await leases.fill((old,), bits=2_000)
    (state,) = await ledger.states()
    assert state.limit_bits == 5_000


async def test_at_the_close_what_did_not_leave_goes_back_and_is_on_the_record_before(fakes, leases, ledger, trace):
    accounts = (fakes.account(limit_bits=10**6),)
    first = await leases.reserve(accounts, least_bits=10, most_bits=1000)
    second = await leases.reserve(accounts, least_bits=10, most_bits=5000)
    first.charge(400)
    first.close()
    second.close()
    trace.clear()
    await leases.close()
    kinds = [event[0] for event in trace]
    assert kinds.index("flush") > max(at for at, event in enumerate(trace) if event[0] == "record")
    assert kinds.index("flush") < min(at for at, kind in enumerate(kinds) if kind == "close")
    assert await debited(ledger) == 400
    closed = [event[1] for event in trace if event[0] == "record"]
    assert all(isinstance(leaf, LeaseClosed) for leaf in closed)
    assert [leaf.returned for leaf in closed] == [event[1] for event in trace if event[0] == "close"]
    await leases.close()
    assert await debited(ledger) == 400


async def test_what_is_still_held_at_the_close_counts_as_left(fakes, leases, ledger):
    await leases.reserve((fakes.account(limit_bits=10**6),), least_bits=10, most_bits=1000)
    await leases.close()
    assert await debited(ledger) == 1000


async def test_a_refund_after_its_lease_was_closed_gives_no_bit_back_twice(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**6),)
    hold = await leases.reserve(accounts, least_bits=10, most_bits=1000)
    hold.charge(1000)
    other = await leases.reserve(accounts, least_bits=10, most_bits=900)
    other.charge(900)
    await leases.tidy()
    hold.refund(500)
    hold.close()
    other.close()
    charged = hold.charged_bits + other.charged_bits
    await leases.close()
    assert await debited(ledger) >= charged


async def test_the_youngest_leases_are_kept_so_that_refunds_have_a_way_back(fakes, leases, ledger):
    hold = await leases.reserve((fakes.account(limit_bits=10**6),), least_bits=10, most_bits=1000)
    hold.charge(1000)
    await leases.tidy()
    hold.refund(600)
    hold.close()
    await leases.close()
    assert await debited(ledger) == 400


async def test_leases_that_are_used_up_are_closed_with_nothing_returned(fakes, leases, ledger, trace, monkeypatch):
    monkeypatch.setattr("gateway.leases.LEASES_KEPT", 1)
    accounts = (fakes.account(limit_bits=10**6),)
    for _ in range(5):
        hold = await leases.reserve(accounts, least_bits=10, most_bits=1000)
        hold.charge(1000)
        hold.close()
    trace.clear()
    await leases.tidy()
    assert trace
    assert all(event == ("close", {}) for event in trace)
    assert len(leases._open) + len(trace) == 5
    assert await debited(ledger) == 5000 + leases.purse.balance_bits(NAME)


async def test_tidying_and_closing_in_any_order_never_returns_more_than_did_not_leave(
    fakes, leases, ledger, monkeypatch
):
    monkeypatch.setattr("gateway.leases.LEASES_KEPT", 0)
    accounts = (fakes.account("a", limit_bits=10**6), fakes.account("b", limit_bits=10**5))
    charged = 0
    for step, amount in enumerate((1000, 30, 500, 2000, 1, 700)):
        hold = await leases.reserve(accounts, least_bits=1, most_bits=amount)
        hold.charge(amount // (1 + step % 3))
        charged += amount // (1 + step % 3)
        hold.close()
        if step % 2:
            await leases.tidy()
    await leases.close()
    assert await debited(ledger, "a") == await debited(ledger, "b") == charged

"""The purse is filled from the ledger and from nowhere else; what is given back is on the record first."""

import asyncio

import pytest

from gateway.leases import Leases
from gateway.ledger.memory import MemoryLedger
from gateway.ports import AccountFrozen, LedgerUnavailable, OverLimit, Wanted
from gateway.record import Forfeited, LeaseClosed, LeaseGranted
from policy.limits import LEASE_S

NAME = "model:m/lifetime/ever"


class Ledger(MemoryLedger):
    """Writes into the trace, waits at a gate before it grants, and may be away."""

    def __init__(self, trace, clock):
        super().__init__(clock=clock)
        self.trace = trace
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = self.lose_reply = self.closes_away = False

    async def grant(self, **wanted):
        await self.gate.wait()
        if self.away:
            raise LedgerUnavailable("away")
        granted = await super().grant(**wanted)
        self.trace.append(("grant", granted))
        if self.lose_reply:
            self.lose_reply = False
            raise LedgerUnavailable("the reply was lost")
        return granted

    async def beat(self, holder):
        if self.away:
            raise LedgerUnavailable("away")
        return await super().beat(holder)

    async def close_lease(self, *, lease, holder, returned):
        self.trace.append(("close", dict(returned)))
        if self.closes_away:
            raise LedgerUnavailable("away")
        return await super().close_lease(lease=lease, holder=holder, returned=returned)


@pytest.fixture
def trace():
    return []


@pytest.fixture
def clock(fakes):
    return fakes.Clock()


@pytest.fixture
def ledger(trace, clock):
    return Ledger(trace, clock)


@pytest.fixture
def leases(make):
    return make()


@pytest.fixture
def make(ledger, trace, clock):
    """Another process's leases of the same ledger."""

    async def flush():
        trace.append(("flush",))

    def leases():
        return Leases(
            ledger=ledger,
            clock=clock,
            record=lambda leaf: trace.append(("record", leaf)),
            flush=flush,
            log=lambda message, **fields: trace.append(("log", message)),
        )

    return leases


async def debited(ledger, name=NAME):
    return {state.account: state.debited_bits for state in await ledger.states()}[name]


async def test_every_bit_in_the_purse_has_been_debited_in_the_store(fakes, leases, ledger, trace):
    accounts = (fakes.account(limit_bits=10**6),)
    hold = await leases.reserve(accounts, least_bits=10, most_bits=1000)
    assert hold.left_bits == 1000
    assert await debited(ledger) == leases.purse.unspent_bits(NAME) == 1000
    granted = trace[-1][1]
    assert isinstance(granted, LeaseGranted)
    assert (granted.bits, granted.fences, granted.holder) == ({NAME: 1000}, {NAME: 1}, leases.holder)


async def test_a_full_purse_asks_no_store(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**9),)
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


async def test_a_grant_that_is_asked_for_again_before_it_is_answered_reaches_the_purse_once(fakes, leases, ledger):
    """Whoever asked first went away; whoever came next asks for the same lease, and both are answered."""
    accounts = (fakes.account(limit_bits=10**6),)
    ledger.gate.clear()
    first = asyncio.ensure_future(leases.reserve(accounts, least_bits=10, most_bits=1000))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.ensure_future(leases.reserve(accounts, least_bits=10, most_bits=1000))
    await asyncio.sleep(0.01)
    ledger.gate.set()
    await second
    assert leases.purse.unspent_bits(NAME) == await debited(ledger)


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


async def test_a_grant_that_is_under_way_at_the_close_goes_back_as_well(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**6),)
    ledger.gate.clear()
    asking = asyncio.ensure_future(leases.reserve(accounts, least_bits=1000, most_bits=1000))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    closing = asyncio.ensure_future(leases.close())
    await asyncio.sleep(0.01)
    ledger.gate.set()
    await closing
    assert await debited(ledger) == 0


async def test_a_grant_whose_reply_was_lost_goes_back_at_the_close(fakes, leases, ledger):
    ledger.lose_reply = True
    with pytest.raises(LedgerUnavailable):
        await leases.reserve((fakes.account(limit_bits=10**6),), least_bits=1000, most_bits=1000)
    assert await debited(ledger) == 1000
    await leases.close()
    assert await debited(ledger) == 0


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
    assert [event[1].returned for event in trace if event[0] == "record"] == [{NAME: 0}] * 4
    assert [event[1] for event in trace if event[0] == "close"] == [{NAME: 0}] * 4
    assert list(leases.open_leases().values()) == [{NAME: 1000}]
    assert await debited(ledger) == 5000


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


# How much is held.


async def spend(leases, accounts, bits):
    hold = await leases.reserve(accounts, least_bits=bits, most_bits=bits)
    hold.charge(bits)
    hold.close()
    return hold


async def test_a_lease_grows_with_the_traffic_so_that_the_store_is_asked_seldom(fakes, leases, ledger, clock, trace):
    accounts = (fakes.account(limit_bits=10**12),)
    for _ in range(1000):
        await spend(leases, accounts, 10_000)
        clock.advance(0.02)
        await asyncio.sleep(0)
    grants = [event[1] for event in trace if event[0] == "grant"]
    assert len(grants) < 40, "20 s of traffic, in leases of up to 10 s"
    assert await debited(ledger) <= 10**7 + 2 * 5_000_000, "never more than twice ten seconds in hand"


async def test_more_is_fetched_before_the_stock_runs_out_so_that_nobody_waits(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**12),)
    for _ in range(20):
        await spend(leases, accounts, 1000)
    (stock,) = leases._stocks.values()
    ledger.gate.clear()
    while leases.purse.balance_bits(NAME) * 2 >= stock.wanted_bits:
        await asyncio.wait_for(spend(leases, accounts, 100), 1)
    await asyncio.sleep(0)
    assert leases._refilling.locked(), "the next lease is on its way"
    await asyncio.wait_for(spend(leases, accounts, 100), 1)
    ledger.gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert leases.purse.balance_bits(NAME) * 2 > stock.wanted_bits


async def test_a_store_that_is_away_while_more_is_fetched_ahead_is_noticed_by_nobody(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**12),)
    for _ in range(20):
        await spend(leases, accounts, 1000)
    ledger.away = True
    while leases.purse.balance_bits(NAME) >= 100:
        await spend(leases, accounts, 100)
        await asyncio.sleep(0)
    with pytest.raises(LedgerUnavailable):
        await spend(leases, accounts, 100)


async def test_near_the_end_every_reservation_is_granted_by_itself_to_its_last_bit(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**5),)
    for number in range(1, 20):
        await spend(leases, accounts, 1000)
        assert await debited(ledger) == 1000 * number


async def test_what_one_holder_holds_for_nothing_goes_back_for_the_others(fakes, make, ledger):
    """Near the end, what is left over in one process's purse would be missing in another's."""
    accounts = (fakes.account(limit_bits=10_000),)
    one, other = make(), make()
    hold = await one.reserve(accounts, least_bits=10_000, most_bits=10_000)
    hold.charge(3000)
    hold.close()
    assert isinstance(await other.reserve(accounts, least_bits=7000, most_bits=7000), OverLimit)
    await one.refresh()
    assert (await other.reserve(accounts, least_bits=7000, most_bits=7000)).left_bits == 7000
    assert await debited(ledger) == 10_000


async def test_what_open_answers_hold_does_not_go_back(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10_000),)
    hold = await leases.reserve(accounts, least_bits=5000, most_bits=5000)
    await leases.refresh()
    hold.charge(5000)
    hold.close()
    assert await debited(ledger) == 5000


async def test_a_lease_goes_back_in_part_only_if_the_rest_of_it_has_left(fakes, leases, ledger):
    """A lease closes once: what an open answer holds of it could not go back any more."""
    accounts = (fakes.account(limit_bits=10_000),)
    open_answer = await leases.reserve(accounts, least_bits=3000, most_bits=3000)
    done = await leases.reserve(accounts, least_bits=5000, most_bits=5000)
    open_answer.extend(0)
    done.charge(2000)
    done.close()
    await leases.refresh()
    open_answer.close()
    await leases.refresh()
    assert await debited(ledger) == 2000


async def test_after_a_burst_what_will_not_be_needed_goes_back(fakes, leases, ledger, clock):
    accounts = (fakes.account(limit_bits=10**9),)
    holds = [await leases.reserve(accounts, least_bits=60_000, most_bits=60_000) for _ in range(100)]
    for hold in holds:
        hold.charge(1000)
        hold.close()
    clock.advance(60)
    await leases.refresh()
    assert 100_000 <= await debited(ledger) < 100_000 + 2 * 60_000


async def test_of_a_window_that_is_over_everything_goes_back(fakes, leases, ledger, clock):
    day = fakes.account("day", limit_bits=10**9, expires_s=int(clock.wall_s()) + 10)
    await spend(leases, (day,), 1000)
    for _ in range(5):
        await spend(leases, (day,), 10_000)
    clock.advance(11)
    await leases.refresh()
    assert await debited(ledger, "day") == 51_000
    assert not leases.open_leases()
    assert not leases._stocks


async def test_a_refund_after_its_window_ended_goes_back_as_well(fakes, leases, ledger, clock):
    day = fakes.account("day", limit_bits=10**9, expires_s=int(clock.wall_s()) + 10)
    hold = await spend(leases, (day,), 1000)
    hold.refund(300)
    clock.advance(11)
    await leases.refresh()
    assert await debited(ledger, "day") == 700


async def test_holders_share_what_is_left(fakes, make, ledger):
    accounts = (fakes.account(limit_bits=10**10),)
    holders = [make() for _ in range(5)]
    for one in holders:
        await one.refresh()
    await spend(holders[0], accounts, 100)
    await holders[0].refresh()
    assert holders[0]._holders == 5


# What a store or a clock may do.


async def test_a_grant_whose_reply_was_lost_is_asked_for_again_and_debits_once(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10_000),)
    ledger.lose_reply = True
    with pytest.raises(LedgerUnavailable):
        await leases.reserve(accounts, least_bits=1000, most_bits=1000)
    assert await debited(ledger) == 1000
    assert (await leases.reserve(accounts, least_bits=1000, most_bits=1000)).left_bits == 1000
    assert await debited(ledger) == 1000


async def test_an_earlier_questions_refusal_says_nothing_about_the_present_one(fakes, leases, ledger):
    small, large = fakes.account("small", limit_bits=10), fakes.account("large", limit_bits=10_000)
    ledger.away = True
    with pytest.raises(LedgerUnavailable):
        await leases.reserve((small,), least_bits=10, most_bits=10)
    ledger.away = False
    await ledger.grant(lease="other", holder="other", wanted={"small": Wanted(least_bits=10, most_bits=10)})
    assert (await leases.reserve((large,), least_bits=500, most_bits=500)).left_bits == 500


async def test_a_frozen_account_is_refused_and_other_accounts_go_on(fakes, leases, ledger):
    bad, good = fakes.account("bad", limit_bits=10_000), fakes.account("good", limit_bits=10_000)
    await leases.register([bad, good])
    await ledger.freeze({"bad": 9})
    with pytest.raises(AccountFrozen):
        await leases.reserve((bad,), least_bits=1, most_bits=10)
    assert (await leases.reserve((good,), least_bits=1, most_bits=10)).left_bits == 10


async def test_leases_outlive_a_store_that_is_away_for_minutes_and_no_longer(fakes, leases, ledger, clock):
    accounts = (fakes.account(limit_bits=10**12),)
    for _ in range(20):
        await spend(leases, accounts, 1000)
    ledger.away = True
    clock.advance(LEASE_S - 5)
    assert leases.usable()
    await spend(leases, accounts, 10)
    clock.advance(10)
    assert not leases.usable()
    with pytest.raises(LedgerUnavailable):
        await leases.reserve(accounts, least_bits=1, most_bits=1)
    ledger.away = False
    assert (await leases.reserve(accounts, least_bits=1, most_bits=1)).left_bits == 1
    assert leases.usable()


@pytest.mark.parametrize("happens", ["the wall clock steps back", "the machine sleeps", "another boot"])
async def test_a_process_whose_time_jumped_drops_its_leases_and_begins_anew(
    fakes, leases, ledger, clock, trace, happens
):
    accounts = (fakes.account(limit_bits=10**6),)
    hold = await leases.reserve(accounts, least_bits=1000, most_bits=1000)
    holder, spent = leases.holder, await debited(ledger)
    match happens:
        case "the wall clock steps back":
            clock.step_wall(-3600)
        case "the machine sleeps":
            clock.suspend(600)
        case "another boot":
            clock.boot = "another"
            await leases.refresh()
    leases.usable()
    assert hold.void
    assert leases.purse.unspent_bits(NAME) == 0
    (leaf,) = [event[1] for event in trace if event[0] == "record" and isinstance(event[1], Forfeited)]
    assert (leaf.holder, leaf.successor) == (holder, leases.holder)
    assert leaf.holder != leaf.successor
    await leases.reserve(accounts, least_bits=500, most_bits=500)
    await leases.close()
    assert await debited(ledger) == spent + 500, "what was dropped stays spent"


@pytest.mark.parametrize("act", ["refresh", "tidy", "close"])
async def test_a_process_that_slept_gives_nothing_back_before_it_looked_at_its_clocks(
    fakes, leases, ledger, clock, act
):
    """It may be a copy, and the original may be spending what the copy would give back."""
    hold = await leases.reserve((fakes.account(limit_bits=10**6),), least_bits=1000, most_bits=1000)
    hold.close()
    spent = await debited(ledger)
    clock.step_wall(60)
    await getattr(leases, act)()
    assert await debited(ledger) == spent


async def test_a_grant_under_way_when_leases_are_forfeited_is_used_by_nobody(fakes, leases, ledger, clock):
    accounts = (fakes.account(limit_bits=10**6),)
    ledger.gate.clear()
    asking = asyncio.ensure_future(leases.reserve(accounts, least_bits=1000, most_bits=1000))
    for _ in range(3):
        await asyncio.sleep(0)
    clock.step_wall(100)
    leases.usable()
    ledger.gate.set()
    hold = await asking
    assert await debited(ledger) == 2000
    assert leases.purse.unspent_bits(NAME) == hold.left_bits == 1000


async def test_what_the_store_did_not_confirm_as_closed_is_told_again(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10_000),)
    hold = await leases.reserve(accounts, least_bits=5000, most_bits=5000)
    hold.close()
    ledger.closes_away = True
    with pytest.raises(LedgerUnavailable):
        await leases.refresh()
    assert leases.purse.unspent_bits(NAME) == 0, "it is on the record as given back"
    ledger.closes_away = False
    await leases.refresh()
    assert await debited(ledger) == 0

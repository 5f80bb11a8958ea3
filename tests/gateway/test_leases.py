"""The purse is filled from the ledger and from nowhere else; what is given back is on the record first."""

import asyncio
import gc
import re

import pytest

from gateway.leases import Leases
from gateway.ledger.memory import MemoryLedger
from gateway.ports import AccountFrozen, LedgerUnavailable, OverLimit, Wanted
from gateway.record import Forfeited, LeaseClosed, LeaseGranted
from policy.budget import Account, Step
from policy.limits import FLOW_BLOCK_BYTES, LEASE_MARGIN_S, LEASE_S
from policy.rules import Window

NAME = "model:m/lifetime/ever"
BLOCK_BITS = 8 * FLOW_BLOCK_BYTES


class Ledger(MemoryLedger):
    """Writes into the trace, waits at a gate before it grants, and may be away."""

    def __init__(self, trace, clock):
        super().__init__(clock=clock)
        self.trace = trace
        self.gate = asyncio.Event()
        self.gate.set()
        self.closing_gate = asyncio.Event()
        self.closing_gate.set()
        self.away = self.lose_reply = self.closes_away = False
        self.loses = None

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

    def forget(self):
        """As a store that was set up anew."""
        self._accounts.clear()
        self._leases.clear()

    async def register(self, limits):
        self.trace.append(("register", [limit.account for limit in limits]))
        return await super().register(limits)

    async def states(self, accounts=None):
        self.trace.append(("states", accounts))
        return await super().states(accounts)

    async def beat(self, holder):
        if self.away:
            raise LedgerUnavailable("away")
        return await super().beat(holder)

    async def close_lease(self, *, lease, holder, returned):
        self.trace.append(("close", dict(returned)))
        await self.closing_gate.wait()
        if self.closes_away or self.loses in returned:
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
            log=lambda message, **fields: trace.append(("log", message, fields)),
        )

    return leases


def of(trace, kind):
    return [event[1] for event in trace if event[0] == kind]


async def debited(ledger, name=NAME):
    return {state.account: state.debited_bits for state in await ledger.states()}[name]


async def test_every_bit_in_the_purse_has_been_debited_in_the_store(fakes, leases, ledger, trace):
    accounts = (fakes.account(limit_bits=10**6),)
    hold = await leases.reserve(accounts, least_bits=10, most_bits=1000)
    assert hold.left_bits == 1000
    assert await debited(ledger) == leases.purse.unspent_bits(NAME) == 1000
    (granted,) = of(trace, "record")
    assert isinstance(granted, LeaseGranted)
    assert (granted.bits, granted.fences, granted.holder) == ({NAME: 1000}, {NAME: 1}, leases.holder)


async def test_what_is_granted_and_closed_is_on_the_record_as_the_store_has_it(fakes, leases, ledger, clock, trace):
    hold = await leases.reserve((fakes.account(limit_bits=10_000),), least_bits=10, most_bits=1000)
    (lease,) = await ledger.leases()
    assert leases.open_leases() == {lease.lease: {NAME: 1000}}
    assert leases.unspent_bits() == {NAME: 1000}
    hold.close()
    clock.advance(1)
    await leases.close()
    granted, closed = of(trace, "record")
    assert (granted.lease, granted.at_ms) == (lease.lease, 1_000_000_000)
    assert closed == LeaseClosed(at_ms=1_000_001_000, lease=lease.lease, holder=leases.holder, returned={NAME: 1000})
    assert leases.unspent_bits() == {}


async def test_holders_and_leases_have_names_that_nobody_else_draws(fakes, leases, ledger, clock):
    """128 random bits each, also of the holder that comes after a jump."""
    names = [leases.holder]
    await leases.reserve((fakes.account(limit_bits=10_000),), least_bits=10, most_bits=1000)
    clock.step_wall(100)
    leases.usable()
    names += [leases.holder, *(lease.lease for lease in await ledger.leases())]
    assert len(set(names)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in names)


async def test_a_full_purse_asks_no_store(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**9),)
    await leases.reserve(accounts, least_bits=10, most_bits=100)
    ledger.away = True
    assert (await leases.reserve(accounts, least_bits=10, most_bits=100)).left_bits == 100


async def test_near_the_end_a_hold_is_what_is_left_if_that_is_enough(fakes, leases):
    accounts = (fakes.account(limit_bits=150),)
    assert (await leases.reserve(accounts, least_bits=100, most_bits=1000)).left_bits == 150
    assert await leases.reserve(accounts, least_bits=1, most_bits=1000) == OverLimit(account=NAME, remaining_bits=0)


async def test_the_very_last_bit_can_be_had(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=1001),)
    await leases.reserve(accounts, least_bits=1000, most_bits=1000)
    assert (await leases.reserve(accounts, least_bits=1, most_bits=1)).left_bits == 1
    assert await debited(ledger) == 1001


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
    assert leases.purse.balance_bits(NAME) == 700
    assert await leases.fill(accounts, bits=800) is None
    assert leases.purse.balance_bits(NAME) == 800
    assert (await leases.fill(accounts, bits=1001)).account == NAME


async def test_limits_are_told_to_the_store_when_they_change_and_only_then(fakes, leases, ledger):
    assert await leases.register([fakes.account(limit_bits=100)]) == []
    assert await leases.register([fakes.account(limit_bits=100)]) == ()
    assert await leases.register([fakes.account(limit_bits=200)]) == [NAME]
    assert await leases.register([fakes.account("other", limit_bits=1)]) == []
    assert await leases.register([fakes.account(limit_bits=200)]) == ()


def step_of(number, *, limit_bits):
    window = Window(name="sliding 1d", duration_s=86_400, sliding=True)
    return Account(
        id=f"s/{number}",
        owner="model",
        name="m",
        window=window,
        limit_bits=limit_bits,
        expires_s=2_000_000,
        step=Step(series="s", number=number, steps=window.steps),
    )


async def test_the_steps_of_a_sliding_window_are_told_to_the_store_as_steps(leases, ledger):
    await leases.reserve((step_of(7, limit_bits=10_000),), least_bits=1000, most_bits=1000)
    states = {state.account: (state.series, state.debited_bits) for state in await ledger.states()}
    assert states == {"s/7": ("s", 1000), "s": (None, 1000)}


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


async def test_without_a_reserve_of_leases_every_one_that_is_used_up_is_closed(
    fakes, leases, ledger, trace, monkeypatch
):
    monkeypatch.setattr("gateway.leases.LEASES_KEPT", 0)
    accounts = (fakes.account(limit_bits=10**6),)
    for _ in range(3):
        await spend(leases, accounts, 1000)
    await leases.tidy()
    assert of(trace, "close") == [{NAME: 0}] * 3
    assert leases.open_leases() == {}


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


async def test_more_is_fetched_as_soon_as_half_of_the_stock_is_gone_and_not_before(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**12),)
    await spend(leases, accounts, 1)
    assert leases.purse.balance_bits(NAME) == BLOCK_BITS
    ledger.gate.clear()
    await spend(leases, accounts, BLOCK_BITS // 2)
    await asyncio.sleep(0)
    assert not leases._refilling.locked()
    await spend(leases, accounts, 1)
    await asyncio.sleep(0)
    assert leases._refilling.locked()
    ledger.gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert leases.purse.balance_bits(NAME) == BLOCK_BITS // 2 - 1 + BLOCK_BITS


async def test_a_store_that_is_away_while_more_is_fetched_ahead_is_noticed_by_nobody(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**12),)
    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, problem: problems.append(problem))
    for _ in range(20):
        await spend(leases, accounts, 1000)
    ledger.away = True
    while leases.purse.balance_bits(NAME) >= 100:
        await spend(leases, accounts, 100)
        await asyncio.sleep(0)
    with pytest.raises(LedgerUnavailable):
        await spend(leases, accounts, 100)
    leases._prefetching = None
    gc.collect()  # a task tells of an exception that nobody fetched when it goes
    assert problems == []


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


async def test_up_to_twice_the_stock_is_kept_and_more_than_that_goes_back(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10**12),)
    assert await leases.fill(accounts, bits=BLOCK_BITS) is None
    spent = await spend(leases, accounts, BLOCK_BITS)
    assert await leases.fill(accounts, bits=BLOCK_BITS + 1) is None
    hold = await leases.reserve(accounts, least_bits=1, most_bits=1)
    (stock,) = leases._stocks.values()
    assert (stock.wanted_bits, leases.purse.balance_bits(NAME)) == (BLOCK_BITS + 1, 2 * BLOCK_BITS + 1)
    spent.refund(1)
    await leases.tidy()
    assert leases.purse.balance_bits(NAME) == 2 * BLOCK_BITS + 2, "twice the stock"
    hold.close()
    await leases.tidy()
    assert leases.purse.balance_bits(NAME) == BLOCK_BITS + 1


async def test_a_single_bit_goes_back_too(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=1000),)
    hold = await leases.reserve(accounts, least_bits=100, most_bits=100)
    hold.charge(99)
    hold.close()
    await leases.tidy()
    assert await debited(ledger) == 99


async def test_a_lease_of_which_an_open_answer_holds_a_part_waits_for_it(fakes, leases, ledger):
    """Giving back a part of it now would leave no way back for what the answer does not use."""
    accounts = (fakes.account(limit_bits=10_000),)
    assert await leases.fill(accounts, bits=8000) is None
    open_answer = await leases.reserve(accounts, least_bits=3000, most_bits=3000)
    await spend(leases, accounts, 2000)
    await leases.tidy()
    assert await debited(ledger) == 8000
    open_answer.close()
    await leases.tidy()
    assert await debited(ledger) == 2000


async def test_demand_is_what_was_spent_and_neither_closing_nor_going_back_counts(
    fakes, leases, ledger, clock, monkeypatch
):
    monkeypatch.setattr("gateway.leases.LEASES_KEPT", 1)
    accounts = (fakes.account(limit_bits=100_000),)
    spent_bits = 0
    for bits in (5000, 200, 7000, 1, 3000, 900):
        hold = await leases.reserve(accounts, least_bits=bits, most_bits=bits)
        part_bits = bits // 2 if bits > 1000 else bits
        hold.charge(part_bits)
        hold.close()
        spent_bits += part_bits
        await leases.tidy()
        (stock,) = leases._stocks.values()
        assert stock.demand.bits(now_s=clock.monotonic_s()) == spent_bits
    assert await debited(ledger) == spent_bits


async def test_one_that_has_heard_of_nobody_shares_with_nobody(fakes, leases, ledger):
    """What is left would be enough in stock for one holder, and not for two."""
    accounts = (fakes.account(limit_bits=10**9),)
    await leases.register(accounts)
    taken = Wanted(least_bits=1, most_bits=10**9 - 4 * BLOCK_BITS)
    await ledger.grant(lease="other", holder="other", wanted={NAME: taken})
    await spend(leases, accounts, 1)
    await spend(leases, accounts, BLOCK_BITS)
    for _ in range(5):
        await asyncio.sleep(0)
    assert leases.purse.balance_bits(NAME) == BLOCK_BITS + 1, "as much as was spent of late"


async def test_what_the_store_has_left_is_heard_and_heeded(fakes, make, ledger, trace):
    """Another holder took nearly everything: what this one has in stock goes back, for whoever needs it."""
    one, other = make(), make()
    accounts, step = (fakes.account(limit_bits=10**9),), (step_of(7, limit_bits=10**9),)
    for each in (accounts, step):
        await spend(one, each, 1000)
        assert one.purse.balance_bits(each[0].id) == BLOCK_BITS
        assert await other.fill(each, bits=10**9 - 1000 - 2 * BLOCK_BITS) is None
    trace.clear()
    await one.refresh()
    assert of(trace, "states") == [[NAME, "s/7"]]
    assert one.unspent_bits() == {}


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
    assert leases.purse.balance_bits(NAME) == 100_000, "as much as was spent of late"
    assert await debited(ledger) == 200_000


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
    assert all(set(lease.returned_bits) == {"day"} for lease in await ledger.leases()), "no lease stays open"
    assert await leases.register([day]) == [], "it was forgotten: the store is told again"


async def test_the_last_lease_of_a_window_that_is_over_is_closed_though_it_is_used_up(fakes, leases, ledger, clock):
    day = fakes.account("day", limit_bits=10_000, expires_s=int(clock.wall_s()) + 10)
    await spend(leases, (day,), 1000)
    clock.advance(10)
    await leases.refresh()
    assert [lease.returned_bits for lease in await ledger.leases()] == [{"day": 0}]


async def test_a_window_is_over_at_its_last_instant_and_not_forgotten_while_an_answer_holds_a_bit_of_it(
    fakes, leases, ledger, clock
):
    day = fakes.account("day", limit_bits=10_000, expires_s=int(clock.wall_s()) + 10)
    hold = await leases.reserve((day,), least_bits=1000, most_bits=1000)
    hold.charge(999)
    clock.advance(10)
    await leases.refresh()
    assert leases.unspent_bits() == {"day": 1}
    hold.close()
    await leases.refresh()
    assert await debited(ledger, "day") == 999
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


async def test_a_late_answer_for_a_window_that_is_over_still_fills_the_other_accounts(fakes, leases, ledger, clock):
    day = fakes.account("day", limit_bits=10_000, expires_s=int(clock.wall_s()) + 10)
    ever = fakes.account(limit_bits=10_000)
    ledger.lose_reply = True
    with pytest.raises(LedgerUnavailable):
        await leases.reserve((day, ever), least_bits=1000, most_bits=1000)
    clock.advance(11)
    await leases.refresh()
    assert (await leases.reserve((ever,), least_bits=1000, most_bits=1000)).left_bits == 1000
    assert await debited(ledger) == 1000


async def test_what_is_granted_late_for_a_window_that_is_over_goes_back(fakes, leases, ledger, clock):
    day = fakes.account("day", limit_bits=10_000, expires_s=int(clock.wall_s()) + 10)
    ever = fakes.account(limit_bits=10_000)
    ledger.lose_reply = True
    with pytest.raises(LedgerUnavailable):
        await leases.reserve((day,), least_bits=1000, most_bits=1000)
    clock.advance(11)
    await leases.refresh()
    await leases.reserve((ever,), least_bits=500, most_bits=500)
    await leases.refresh()
    assert await debited(ledger, "day") == 0


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


async def test_a_store_that_lost_its_accounts_is_told_of_them_again(fakes, leases, ledger):
    accounts = (fakes.account(limit_bits=10_000),)
    await leases.register(accounts)
    ledger.forget()
    with pytest.raises(LedgerUnavailable, match=NAME):
        await leases.reserve(accounts, least_bits=1000, most_bits=1000)
    assert (await leases.reserve(accounts, least_bits=1000, most_bits=1000)).left_bits == 1000


async def test_a_window_may_end_while_the_store_does_not_know_it(fakes, leases, ledger, clock):
    day = fakes.account("day", limit_bits=10_000, expires_s=int(clock.wall_s()) + 10)
    await spend(leases, (day,), 1000)
    ledger.forget()
    with pytest.raises(LedgerUnavailable):
        await spend(leases, (day,), 1000)
    clock.advance(10)
    await leases.refresh()
    assert not leases._stocks


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


async def test_leases_end_before_their_time_by_a_second_and_a_thousandth(fakes, leases, ledger, clock):
    """Clocks run at different speeds. The time counts from when the store was asked."""
    accounts = (fakes.account(limit_bits=10**6),)
    clock.advance(100)
    ledger.gate.clear()
    asking = asyncio.ensure_future(leases.reserve(accounts, least_bits=1, most_bits=1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked_s = clock.monotonic_s()
    clock.advance(30)
    ledger.gate.set()
    await asking
    end_s = asked_s + (LEASE_S * 0.999 - LEASE_MARGIN_S)
    clock.advance(end_s - 0.0001 - clock.monotonic_s())
    assert leases.usable()
    assert leases.left_s() == pytest.approx(0.0001, abs=1e-6)
    clock.advance(end_s - clock.monotonic_s())
    assert not leases.usable()
    clock.advance(1)
    assert leases.left_s() == 0


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
    assert leaf.at_ms == int(clock.wall_s() * 1000)
    cause = {"the wall clock steps back": "stepped by -3600.0 s", "the machine sleeps": "suspended for 600.0 s"}
    assert cause.get(happens, "booted anew") in leaf.cause
    (log,) = [event for event in trace if event[0] == "log"]
    assert log == ("log", "leases forfeited", {"cause": leaf.cause, "bits": {NAME: 1000}})
    assert leases.usable()
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


async def test_what_the_store_did_not_confirm_as_closed_is_told_again(fakes, leases, ledger, trace):
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
    trace.clear()
    await leases.refresh()
    assert of(trace, "close") == [], "once it is confirmed, no more"


async def test_what_the_store_did_confirm_is_not_told_again_because_of_what_it_did_not(
    fakes, leases, ledger, trace, monkeypatch
):
    monkeypatch.setattr("gateway.leases.LEASES_KEPT", 0)
    a, b = fakes.account("a", limit_bits=10_000), fakes.account("b", limit_bits=10_000)
    for account, bits in ((a, 1), (b, 2)):
        hold = await leases.reserve((account,), least_bits=1000, most_bits=1000)
        hold.charge(bits)
        hold.close()
    ledger.loses = "b"
    with pytest.raises(LedgerUnavailable):
        await leases.refresh()
    ledger.loses = None
    trace.clear()
    await leases.refresh()
    assert of(trace, "close") == [{"b": 998}]


async def test_leases_may_be_forfeited_while_the_store_is_told_of_others(fakes, leases, ledger, clock):
    hold = await leases.reserve((fakes.account(limit_bits=10_000),), least_bits=5000, most_bits=5000)
    hold.close()
    ledger.closing_gate.clear()
    tidying = asyncio.ensure_future(leases.tidy())
    for _ in range(5):
        await asyncio.sleep(0)
    clock.step_wall(100)
    assert leases.usable()
    ledger.closing_gate.set()
    await tidying
    assert await debited(ledger) == 0, "it was given back before the clock jumped"

"""What a crashed holder provably did not let leave goes back, once, and nothing else does."""

import asyncio

import msgspec
import pytest

from gateway.ledger.memory import MemoryLedger
from gateway.parts import fences, lease_granted, tallies
from gateway.ports import AccountLimit, LedgerUnavailable, Wanted
from gateway.record import (
    Closed,
    Entry,
    Fences,
    Forfeited,
    LeaseClosed,
    LeaseGranted,
    Opened,
    Recovered,
    Refusals,
    Released,
    Renewed,
    Settled,
    Started,
    Stopped,
    Tally,
)
from gateway.recovery import (
    SILENCE_BITS,
    UNRECORDED_S_MAX,
    Estates,
    known_fences,
    recover,
)
from policy.limits import LEAF_BYTES_MAX, STALE_S

M, T = "model:m/lifetime/ever", "tenant:acme/1d/0"


def started(holder="h", at_ms=0):
    return Started(at_ms=at_ms, holder=holder, version="1", policy="p", codes="c", boot_id="b")


def granted(lease="l1", holder="h", fence=1, **bits):
    return LeaseGranted(at_ms=0, lease=lease, holder=holder, bits=names(bits), fences=dict.fromkeys(names(bits), fence))


def closed_lease(lease="l1", holder="h", **bits):
    return LeaseClosed(at_ms=0, lease=lease, holder=holder, returned=names(bits))


def opened(answer="a", holder="h", accounts=(M, T)):
    return Opened(
        at_ms=0,
        answer=answer,
        holder=holder,
        accounts=accounts,
        tenant="acme",
        model="m",
        route="/",
        seed=1,
        request_bytes=1,
    )


def released(bits, answer="a", outcome=None):
    return Released(at_ms=0, answer=answer, tick=1, idle_ticks=0, text_bytes=1, charged_bits=bits, outcome=outcome)


def closed(answer="a", parting_bits=0):
    return Closed(
        at_ms=0, answer=answer, outcome=None, parting_bits=parting_bits, text_bytes=1, charged_bits=1, spent_bits={}
    )


def settled(refunded_bits, answer="a"):
    return Settled(at_ms=0, answer=answer, code="zstd", charged_bits=1, refunded_bits=refunded_bits)


def names(bits):
    return {{"m": M, "t": T}[name]: amount for name, amount in bits.items()}


def returns(*leaves, holder="h"):
    return Estates(leaves).found[holder].returns()


def test_what_was_granted_and_not_charged_goes_back():
    assert returns(started(), granted(m=1000, t=800), opened(), released(300), closed()) == {"l1": {M: 700, T: 500}}


def test_a_holder_that_stopped_or_was_recovered_left_nothing():
    assert Estates([started(), granted(m=5), Stopped(at_ms=1, holder="h")]).found == {}
    assert Estates([started(), granted(m=5), Recovered(at_ms=1, holder="h")]).found == {}


def test_of_a_holder_whose_beginning_is_not_on_the_record_nothing_is_known():
    assert Estates([granted(m=1000), opened(), released(10), closed(), settled(5), closed_lease(m=3)]).found == {}


def test_a_holder_that_forfeited_its_leases_gets_nothing_back_and_its_successor_does():
    """A copy of it may have spent them elsewhere."""
    jump = Forfeited(at_ms=0, holder="h", successor="h2", cause="the wall clock stepped")
    found = Estates([started(), granted(m=1000), opened(), jump, granted("l2", "h2", m=500)]).found
    assert list(found) == ["h2"]
    assert found["h2"].returns() == {"l2": {M: 500}}


def test_the_silence_of_an_answer_that_was_open_may_have_been_charged():
    leaves = [started(), granted(m=1000, t=1000), opened(), released(300)]
    assert returns(*leaves) == {"l1": {M: 700 - SILENCE_BITS, T: 700 - SILENCE_BITS}}
    assert returns(*leaves, closed(parting_bits=7)) == {"l1": {M: 693, T: 693}}
    assert returns(*leaves, released(50, outcome="stop")) == {"l1": {M: 650, T: 650}}


def test_refunds_count_for_the_accounts_that_bear_the_answer():
    assert returns(started(), granted(m=1000), opened(accounts=(M,)), released(600), closed(), settled(500)) == {
        "l1": {M: 900}
    }


def test_after_a_windows_edge_the_new_accounts_bear_the_charges():
    leaves = [
        started(),
        granted(m=1000, t=1000),
        opened(accounts=(M,)),
        released(100),
        Renewed(at_ms=0, answer="a", accounts=(T,)),
        released(30),
        closed(parting_bits=1),
    ]
    assert returns(*leaves) == {"l1": {M: 900, T: 969}}


def test_remainders_go_back_through_the_youngest_leases_and_no_lease_gets_more_than_it_gave():
    leaves = [
        started(),
        granted("l1", m=100),
        granted("l2", m=100),
        granted("l3", m=100),
        opened(accounts=(M,)),
        released(150),
        closed(),
    ]
    assert returns(*leaves) == {"l3": {M: 100}, "l2": {M: 50}, "l1": {M: 0}}


def test_what_was_closed_before_is_not_given_back_again():
    leaves = [started(), granted(m=1000, t=1000), closed_lease(m=400), granted("l2", m=50)]
    assert returns(*leaves) == {"l2": {M: 50}, "l1": {T: 1000}}


def test_a_tally_stands_for_everything_before_it():
    tally = Tally(
        at_ms=0, holder="h", part=0, unspent_bits={M: 700}, leases={"l1": {M: 1000}}, answers=(((M,), ("a",)),)
    )
    after = [released(100), granted("l2", m=50), released(20, outcome="stop"), closed(), settled(15)]
    assert returns(tally, *after) == {"l2": {M: 50}, "l1": {M: 595}}
    before = [started(), granted(m=1000), opened(accounts=(M,)), released(300)]
    assert returns(*before, tally, *after) == returns(*before, *after) == returns(tally, *after)


def test_an_answer_that_was_closed_before_a_tally_is_still_settled_if_it_is_known():
    tally = Tally(at_ms=0, holder="h", part=0, unspent_bits={M: 400}, leases={"l1": {M: 1000}}, answers=())
    assert returns(started(), granted(m=1000), opened(accounts=(M,)), released(600), closed(), tally, settled(500)) == {
        "l1": {M: 900}
    }
    assert returns(tally, settled(500)) == {"l1": {M: 400}}


def test_of_an_account_that_is_used_up_nothing_goes_back_though_its_leases_are_open():
    """A tally names no account of which nothing is unspent."""
    tally = Tally(at_ms=0, holder="h", part=0, unspent_bits={}, leases={"l1": {M: 100}, "l2": {M: 50}}, answers=())
    assert returns(tally) == {"l2": {M: 0}, "l1": {M: 0}}


def test_the_silence_of_an_answer_burdens_no_account_but_its_own():
    """Not even where nothing is known of the account: its leases were all used up and closed."""
    assert returns(started(), granted(m=SILENCE_BITS), opened(accounts=(T,))) == {"l1": {M: SILENCE_BITS}}


def test_after_a_windows_edge_the_new_accounts_bear_the_silence():
    renewed = Renewed(at_ms=0, answer="a", accounts=(T,))
    leaves = [started(), granted(m=1000, t=1000), opened(accounts=(M,)), renewed]
    assert returns(*leaves) == {"l1": {M: 1000, T: 1000 - SILENCE_BITS}}


def test_what_was_given_back_in_part_is_no_longer_there_to_give_back():
    leaves = [started(), granted(m=1000), opened(accounts=(M,)), released(600), closed_lease(m=400)]
    more = [granted("l2", m=500), released(200), closed()]
    assert returns(*leaves, *more) == {"l2": {M: 300}}


def test_a_lease_closed_twice_or_unknown_is_no_trouble():
    unknown = [closed_lease("l0", m=0), closed_lease(m=1000), closed_lease(m=0)]
    assert returns(started(), granted(m=1000), *unknown) == {}


def test_a_holder_that_stopped_without_a_beginning_on_the_record_is_no_trouble():
    assert Estates([Stopped(at_ms=1, holder="h"), Recovered(at_ms=1, holder="h2")]).found == {}


@pytest.mark.parametrize(
    "leaf",
    [
        started(),
        granted(),
        closed_lease(),
        released(1),
        closed(),
        settled(1),
        Tally(at_ms=0, holder="h", part=0, unspent_bits={}, leases={}, answers=()),
        Forfeited(at_ms=0, holder="before", successor="h", cause="it slept"),
    ],
    ids=lambda leaf: type(leaf).__name__,
)
def test_a_holders_last_word_is_whatever_it_put_on_the_record_last(leaf):
    found = Estates([started(), opened(), msgspec.structs.replace(leaf, at_ms=77)]).found
    assert (found["h"].holder, found["h"].last_ms) == ("h", 77)


def test_a_tally_comes_in_parts_that_are_small_enough_for_a_leaf_and_add_up():
    many = {f"tenant:{'x' * 64}/{'y' * 50}/1d/{number}": number for number in range(30)}
    parts = tallies(
        at_ms=1,
        holder="h" * 32,
        unspent_bits=many,
        leases={"l1": many, "l2": {M: 5}},
        answers=[(tuple(list(many)[:6]), [f"{number:024x}" for number in range(70)])],
    )
    assert [part.part for part in parts] == list(range(len(parts)))
    assert max(len(msgspec.json.encode(part)) for part in parts) <= LEAF_BYTES_MAX
    estate = Estates([started("h" * 32), granted("old", "h" * 32, m=9), *parts]).found["h" * 32]
    assert estate.unspent_bits == many
    assert estate.leases == {"l1": many, "l2": {M: 5}}
    assert len(estate.silent) == 70
    assert Estates(parts[1:]).found == {}, "what is recent begins between two parts"


def test_a_holder_that_has_nothing_says_so():
    (part,) = tallies(at_ms=1, holder="h", unspent_bits={}, leases={}, answers=[])
    assert Estates([started(), granted(m=5), part]).found["h"].unspent_bits == {}


def test_fences_come_in_parts_too():
    many = {f"account {number:080}": number for number in range(40)}
    leaves = list(fences(many, at_ms=1))
    assert len(leaves) > 1
    assert known_fences(leaves) == many


def test_a_lease_of_very_many_accounts_is_granted_in_several_leaves_and_is_one_lease():
    many = {f"tenant:{'x' * 64}/{'y' * 50}/1d/{number}": number for number in range(30)}
    leaves = list(lease_granted(at_ms=5, lease="l1", holder="h", bits=many, fences=many))
    assert len(leaves) > 2
    estate = Estates([started(), granted("l0", m=9), *leaves]).found["h"]
    assert estate.leases == {"l0": {M: 9}, "l1": many}
    assert estate.unspent_bits == many | {M: 9}
    assert known_fences(leaves) == many


def test_a_tally_alone_makes_its_holder_known():
    tally = Tally(at_ms=5, holder="h", part=0, unspent_bits={M: 1}, leases={}, answers=())
    assert (Estates([tally]).found["h"].holder, Estates([tally]).found["h"].last_ms) == ("h", 5)


def test_holders_are_kept_apart():
    leaves = [
        started("one"),
        started("two"),
        granted("l1", "one", m=100),
        granted("l2", "two", m=100),
        opened("a", "one", (M,)),
        opened("b", "two", (M,)),
        released(10, "a"),
        released(70, "b"),
        closed("a"),
        closed("b"),
        Refusals(at_ms=0, counts={}),
    ]
    assert returns(*leaves, holder="one") == {"l1": {M: 90}}
    assert returns(*leaves, holder="two") == {"l2": {M: 30}}


def test_the_highest_fences_on_the_record_are_known():
    leaves = [granted(fence=7, m=1), granted(fence=5, m=1, t=1), Fences(at_ms=0, fences={T: 9}), started()]
    assert known_fences(leaves) == {M: 7, T: 9}


def test_an_account_that_was_seen_before_its_first_grant_is_known_at_fence_zero():
    """One more would make a store that lost nothing look as if it had."""
    assert known_fences([Fences(at_ms=0, fences={M: 0})]) == {M: 0}


# Against a ledger.


class Audit:
    def __init__(self, leaves):
        self.leaves = list(leaves)
        self.trace = []

    async def append(self, entries):
        assert all(isinstance(entry, Entry) for entry in entries)
        self.leaves += [entry.leaf for entry in entries]
        self.trace += [("record", type(entry.leaf).__name__) for entry in entries]

    def recent(self):
        return iter(list(self.leaves))


class Ledger(MemoryLedger):
    away = False

    async def close_lease(self, **closing):
        if self.away:
            raise LedgerUnavailable("away")
        self.trace.append(("close", closing["lease"]))
        return await super().close_lease(**closing)


@pytest.fixture
def clock(fakes):
    return fakes.Clock()


@pytest.fixture
async def house(fakes, clock):
    """A house that has answered once, and dies with an answer open; its ledger, and the log that it leaves."""
    house = fakes.House(ledger=Ledger(clock=clock), clock=clock)
    house.ledger.trace = house.trace
    await house.leases.refresh()
    house.tick.record(started(house.leases.holder, at_ms=int(clock.wall_s() * 1000)))
    never = asyncio.Event()
    async with house.running():
        await house.ask([fakes.said("x" * 100)])
        asking = asyncio.create_task(house.ask([fakes.sse(fakes.delta("y" * 50)), never.wait]))
        await house.ticks(6)
        house.left = Audit(house.audit.leaves)
        house.left.trace = house.trace
        house.before = {state.account: state.debited_bits for state in await house.ledger.states()}
        house.trace.clear()
        yield house
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def charged(house):
    return sum(leaf.charged_bits for leaf in house.left.leaves if isinstance(leaf, Released))


async def test_after_a_crash_the_ledger_says_what_left_and_the_silence_of_what_was_open(house, clock):
    recovery = await recover(ledger=house.ledger, audit=house.left, clock=clock)
    states = {state.account: state.debited_bits for state in await house.ledger.states()}
    refunded = sum(leaf.refunded_bits for leaf in house.left.leaves if isinstance(leaf, Settled))
    assert charged(house) - refunded > 8 * 50
    assert set(states.values()) == {charged(house) - refunded + SILENCE_BITS}
    assert dict(recovery.returned_bits) == {name: house.before[name] - bits for name, bits in states.items()}


async def test_it_is_on_the_record_before_the_ledger_is_told_and_done_once(house, clock):
    await recover(ledger=house.ledger, audit=house.left, clock=clock)
    kinds = [event[0] for event in house.trace]
    assert kinds.index("close") > max(n for n, event in enumerate(house.trace) if event == ("record", "LeaseClosed"))
    assert house.trace[-1] == ("record", "Recovered")
    after = await house.ledger.states()
    assert not (await recover(ledger=house.ledger, audit=house.left, clock=clock)).returned_bits
    assert await house.ledger.states() == after


async def test_what_a_recovery_did_is_on_the_record_in_the_name_of_the_dead_holder(house, clock):
    before, now_ms = len(house.left.leaves), int(clock.wall_s() * 1000)
    recovery = await recover(ledger=house.ledger, audit=house.left, clock=clock)
    *closed, recovered = house.left.leaves[before:]
    assert {(type(leaf), leaf.holder, leaf.at_ms) for leaf in closed} == {(LeaseClosed, house.leases.holder, now_ms)}
    assert recovered == Recovered(at_ms=now_ms, holder=house.leases.holder)
    returned = [leaf.returned[name] for leaf in closed for name in leaf.returned]
    assert sum(returned) == sum(recovery.returned_bits.values())


async def test_every_dead_holder_is_recovered_whatever_became_of_those_before_it(clock):
    """One is alive and not named, the log knows too little of another, and the third gets its own back."""
    names = ["alive", "stale", "dead"]
    ledger = Ledger(clock=clock)
    ledger.trace = []
    await ledger.register([AccountLimit(account=M, limit_bits=1000)])
    leaves = []
    for name in names:
        await ledger.grant(lease=name, holder=name, wanted={M: Wanted(least_bits=100, most_bits=100)})
        leaves += [started(name, at_ms=int(clock.wall_s() * 1000)), granted(name, name, m=100)]
        leaves[-1] = msgspec.structs.replace(leaves[-1], at_ms=leaves[-2].at_ms)
    clock.advance(1000)
    await ledger.beat("stale")
    recovery = await recover(ledger=ledger, audit=Audit(leaves), clock=clock, holders={"stale", "dead"})
    assert (recovery.stale, recovery.returned_bits) == (["stale"], {M: 100})
    assert [state.debited_bits for state in await ledger.states()] == [200]


async def test_leases_too_late_for_the_record_go_back_whole_and_are_put_on_it(clock, monkeypatch):
    """Pages of them; but neither those of a holder that lives nor those that the store has closed."""
    monkeypatch.setattr("gateway.recovery.LEASES_PAGE", 1)
    ledger = Ledger(clock=clock)
    ledger.trace = []
    await ledger.register([AccountLimit(account=M, limit_bits=1000)])
    for lease, holder in (("1", "h"), ("2", "alive"), ("3", "h"), ("4", "h")):
        await ledger.grant(lease=lease, holder=holder, wanted={M: Wanted(least_bits=100, most_bits=100)})
    await ledger.close_lease(lease="4", holder="h", returned={M: 30})
    now_ms = int(clock.wall_s() * 1000)
    audit = Audit([started(at_ms=now_ms)])
    assert (await recover(ledger=ledger, audit=audit, clock=clock)).returned_bits == {M: 200}
    assert audit.leaves[1:] == [
        *(LeaseGranted(at_ms=now_ms, lease=lease, holder="h", bits={M: 100}, fences={}) for lease in ("1", "3")),
        *(LeaseClosed(at_ms=now_ms, lease=lease, holder="h", returned={M: 100}) for lease in ("1", "3")),
        Recovered(at_ms=now_ms, holder="h"),
    ]


@pytest.mark.parametrize(("late_s", "returned_bits"), [(UNRECORDED_S_MAX, {M: 100}), (UNRECORDED_S_MAX + 1, {})])
async def test_an_unrecorded_lease_long_after_the_last_word_is_closed_and_gives_nothing_back(
    clock, late_s, returned_bits
):
    ledger = Ledger(clock=clock)
    ledger.trace = []
    await ledger.register([AccountLimit(account=M, limit_bits=1000)])
    log = Audit([started(at_ms=int(clock.wall_s() * 1000))])
    clock.advance(late_s)
    await ledger.grant(lease="1", holder="h", wanted={M: Wanted(least_bits=100, most_bits=100)})
    assert (await recover(ledger=ledger, audit=log, clock=clock)).returned_bits == returned_bits
    assert (await ledger.leases())[0].returned_bits == (returned_bits or {M: 0})


@pytest.mark.parametrize(("silent_s", "stale"), [(STALE_S, []), (STALE_S + 1, ["h"])])
async def test_a_log_may_lag_the_ledger_by_a_few_beats_and_no_more(clock, silent_s, stale):
    ledger = Ledger(clock=clock)
    log = Audit([started(at_ms=int(clock.wall_s() * 1000))])
    clock.advance(silent_s)
    await ledger.beat("h")
    assert (await recover(ledger=ledger, audit=log, clock=clock)).stale == stale


async def test_a_recovery_that_was_interrupted_is_finished_by_the_next(house, clock):
    house.ledger.away = True
    with pytest.raises(LedgerUnavailable):
        await recover(ledger=house.ledger, audit=house.left, clock=clock)
    assert {state.account: state.debited_bits for state in await house.ledger.states()} == house.before
    house.ledger.away = False
    again = await recover(ledger=house.ledger, audit=house.left, clock=clock)
    assert sum(again.returned_bits.values()) > 0


async def test_only_the_holders_that_are_named_are_recovered(house, clock):
    assert not (await recover(ledger=house.ledger, audit=house.left, clock=clock, holders={"another"})).returned_bits
    assert (
        await recover(ledger=house.ledger, audit=house.left, clock=clock, holders={house.leases.holder})
    ).returned_bits


async def test_a_log_that_is_older_than_what_the_ledger_heard_proves_nothing(house, clock):
    """A disk that was restored from a backup: since then the holder went on, and its charges are not in this copy."""
    clock.advance(3600)
    await house.leases.refresh()
    clock.advance(10)
    recovery = await recover(ledger=house.ledger, audit=house.left, clock=clock)
    assert (list(recovery.stale), dict(recovery.returned_bits)) == ([house.leases.holder], {})


async def test_a_gateway_that_was_down_for_long_is_recovered_all_the_same(house, clock):
    clock.advance(100_000)
    assert (await recover(ledger=house.ledger, audit=house.left, clock=clock)).returned_bits


async def test_a_lease_that_had_not_come_on_the_record_goes_back_whole(house, clock):
    """Whatever is charged to it would be on the record behind it."""
    wanted = {M: Wanted(least_bits=500, most_bits=500)}
    await house.ledger.grant(lease="last", holder=house.leases.holder, wanted=wanted)
    recovery = await recover(ledger=house.ledger, audit=house.left, clock=clock)
    (lease,) = [lease for lease in await house.ledger.leases() if lease.lease == "last"]
    assert dict(lease.returned_bits) == {M: 500}
    assert recovery.returned_bits[M] >= 500
    late = [leaf for leaf in house.left.leaves if isinstance(leaf, LeaseGranted | LeaseClosed) and leaf.lease == "last"]
    assert [type(leaf) for leaf in late] == [LeaseGranted, LeaseClosed], "the record and the ledger tell the same"


async def test_a_lease_that_was_granted_long_after_the_last_word_on_the_record_stays_spent(house, clock):
    """This copy of the log may end before the holder did."""
    clock.advance(10)
    wanted = {M: Wanted(least_bits=500, most_bits=500)}
    await house.ledger.grant(lease="later", holder=house.leases.holder, wanted=wanted)
    await recover(ledger=house.ledger, audit=house.left, clock=clock)
    (lease,) = [lease for lease in await house.ledger.leases() if lease.lease == "later"]
    assert dict(lease.returned_bits) == {M: 0}


async def test_leases_of_living_holders_are_left_alone(house, clock):
    await house.ledger.grant(lease="another's", holder="another", wanted={M: Wanted(least_bits=5, most_bits=5)})
    await recover(ledger=house.ledger, audit=house.left, clock=clock)
    (lease,) = [lease for lease in await house.ledger.leases() if lease.lease == "another's"]
    assert not lease.returned_bits

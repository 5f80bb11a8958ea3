"""What every ledger promises, whichever store is behind it."""

import asyncio
import contextlib
import socket

import pytest

from gateway.clock import SystemClock
from gateway.host.channel import open_channel
from gateway.host.remote import FAULTS, RemoteLedger, answers
from gateway.ledger.fenced import FencedLedger
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger
from gateway.ports import AccountFrozen, AccountLimit, AccountState, ClockBehind, Granted, OverLimit, Wanted
from policy.budget import Step

BIG = 2**62
STEPS = 3  # of the sliding windows here: a step counts with the two before it


@pytest.fixture(params=["memory", "sqlite", "postgresql", "fenced", "remote"])
async def ledger(request, tmp_path):
    made = MemoryLedger(clock=SystemClock())
    if request.param == "sqlite":
        made = SqliteLedger(tmp_path / "ledger.db")
    elif request.param == "postgresql":
        made = PostgresLedger(request.getfixturevalue("databases").new(), log=print)
    elif request.param == "fenced":
        made = FencedLedger(made, fences={}, on_frozen=pytest.fail)
    if request.param == "remote":
        async with over_channel(made) as remote:
            yield remote
    else:
        yield made
    await made.close()


@contextlib.asynccontextmanager
async def over_channel(kept):
    """As a worker has the ledger of its keeper."""

    def bug(fault):
        raise fault

    table = answers(ledger=kept, audit=None, holds=lambda holder: None)
    ours, theirs = socket.socketpair()
    keeper = await open_channel(ours, answers=table, faults=FAULTS, bug=bug)
    worker = await open_channel(theirs, answers={}, faults=FAULTS, bug=bug)
    yield RemoteLedger(worker)
    worker.close()
    await keeper.lost()


async def register(ledger, **limits):
    return await ledger.register([AccountLimit(account=name, limit_bits=bits) for name, bits in limits.items()])


async def register_step(ledger, number, *, limit_bits=100):
    """Step `number` of the series `s`, as the account `s<number>`."""
    step = Step(series="s", number=number, steps=STEPS)
    return await ledger.register([AccountLimit(account=f"s{number}", limit_bits=limit_bits, step=step)])


async def slide(ledger, number, bits, *, lease=None):
    """Grant `bits` of step `number`."""
    await register_step(ledger, number)
    return await grant(ledger, lease=lease or f"step{number}:{bits}", **{f"s{number}": bits})


async def state(ledger, account):
    return next(state for state in await ledger.states([account]) if state.account == account)


async def grant(ledger, lease="l1", holder="h", **wanted):
    """`name=bits` wants exactly so many; `name=(least, most)` says both."""
    ranges = {name: bits if isinstance(bits, tuple) else (bits, bits) for name, bits in wanted.items()}
    return await ledger.grant(
        lease=lease,
        holder=holder,
        wanted={name: Wanted(least_bits=least, most_bits=most) for name, (least, most) in ranges.items()},
    )


async def debited(ledger):
    return {state.account: state.debited_bits for state in await ledger.states()}


async def test_a_grant_debits_what_it_grants(ledger):
    await register(ledger, a=100, b=100)
    granted = await grant(ledger, a=30, b=(10, 70))
    assert isinstance(granted, Granted)
    assert (granted.lease, dict(granted.bits)) == ("l1", {"a": 30, "b": 70})
    assert await debited(ledger) == {"a": 30, "b": 70}


async def test_a_grant_takes_less_than_the_most_where_less_is_left(ledger):
    await register(ledger, a=100)
    assert dict((await grant(ledger, a=(10, 1000))).bits) == {"a": 100}


async def test_all_accounts_are_debited_or_none(ledger):
    await register(ledger, a=100, b=5, c=100)
    assert await grant(ledger, a=10, b=6, c=10) == OverLimit(account="b", remaining_bits=5)
    assert await debited(ledger) == {"a": 0, "b": 0, "c": 0}


async def test_an_account_that_is_spent_grants_nothing_more(ledger):
    await register(ledger, a=10)
    await grant(ledger, a=10)
    assert await grant(ledger, lease="l2", a=1) == OverLimit(account="a", remaining_bits=0)
    assert dict((await grant(ledger, lease="l3", a=(0, 5))).bits) == {"a": 0}


async def test_asking_again_with_the_same_lease_returns_the_first_grant_and_debits_nothing(ledger):
    await register(ledger, a=100)
    first = await grant(ledger, a=(10, 40))
    again = await grant(ledger, a=(50, 60))
    assert (again.lease, dict(again.bits), dict(again.fences)) == (first.lease, dict(first.bits), dict(first.fences))
    assert await debited(ledger) == {"a": 40}


async def test_a_refused_lease_id_may_be_used_again(ledger):
    await register(ledger, a=10)
    assert isinstance(await grant(ledger, a=20), OverLimit)
    assert isinstance(await grant(ledger, a=5), Granted)


async def test_every_grant_of_an_account_has_the_next_fence(ledger):
    await register(ledger, a=100, b=100)
    assert [dict((await grant(ledger, lease=f"l{n}", a=1)).fences) for n in range(3)] == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert dict((await grant(ledger, lease="both", a=1, b=1)).fences) == {"a": 4, "b": 1}
    await ledger.close_lease(lease="both", holder="h", returned={"a": 1, "b": 1})
    assert [state.fence for state in await ledger.states()] == [4, 1]


async def test_a_grant_says_what_is_left(ledger):
    await register(ledger, a=100, b=50)
    assert dict((await grant(ledger, a=30, b=(1, 80))).remaining_bits) == {"a": 70, "b": 0}


async def test_a_grant_of_an_account_that_nobody_registered_is_a_key_error_and_debits_nothing(ledger):
    await register(ledger, a=100)
    with pytest.raises(KeyError):
        await grant(ledger, a=1, unknown=1)
    assert await debited(ledger) == {"a": 0}


async def test_what_did_not_leave_goes_back_once(ledger):
    await register(ledger, a=100, b=100)
    await grant(ledger, a=50, b=60)
    assert set(await ledger.close_lease(lease="l1", holder="h", returned={"a": 20, "b": 60})) == {"a", "b"}
    assert await debited(ledger) == {"a": 30, "b": 0}
    assert not await ledger.close_lease(lease="l1", holder="h", returned={"a": 20, "b": 60})
    assert await debited(ledger) == {"a": 30, "b": 0}


async def test_the_accounts_of_a_lease_are_closed_one_by_one_and_each_once(ledger):
    await register(ledger, a=100, b=100)
    await grant(ledger, a=50, b=60)
    assert list(await ledger.close_lease(lease="l1", holder="h", returned={"a": 20})) == ["a"]
    assert list(await ledger.close_lease(lease="l1", holder="h", returned={"a": 50, "b": 60})) == ["b"]
    assert await debited(ledger) == {"a": 30, "b": 0}


async def test_nobody_but_the_holder_closes_a_lease(ledger):
    await register(ledger, a=100)
    await grant(ledger, a=50)
    assert not await ledger.close_lease(lease="l1", holder="other", returned={"a": 50})
    assert not await ledger.close_lease(lease="unknown", holder="h", returned={})
    assert await debited(ledger) == {"a": 50}
    assert await ledger.close_lease(lease="l1", holder="h", returned={"a": 0})
    assert await debited(ledger) == {"a": 50}


@pytest.mark.parametrize("returned", [{"a": 51}, {"a": -1}, {"b": 1}, {"b": 0, "a": 99}, {"a": 10, "unknown": 1}])
async def test_more_than_was_granted_cannot_be_returned_and_the_lease_stays_open(ledger, returned):
    await register(ledger, a=100, b=100)
    await grant(ledger, a=50)
    with pytest.raises(ValueError, match="cannot return"):
        await ledger.close_lease(lease="l1", holder="h", returned=returned)
    assert await debited(ledger) == {"a": 50, "b": 0}
    assert await ledger.close_lease(lease="l1", holder="h", returned={"a": 50})


async def test_limits_go_up_and_down_without_touching_usage(ledger):
    await register(ledger, a=100)
    await grant(ledger, a=40)
    for limit in (1000, 60, 41):
        await register(ledger, a=limit)
        assert await ledger.states() == [AccountState(account="a", limit_bits=limit, debited_bits=40, fence=1)]
    assert await grant(ledger, lease="l2", a=2) == OverLimit(account="a", remaining_bits=1)


async def test_a_limit_below_what_is_debited_stays_at_that(ledger):
    await register(ledger, a=100)
    await grant(ledger, a=40)
    await register(ledger, a=10)
    assert await ledger.states() == [AccountState(account="a", limit_bits=40, debited_bits=40, fence=1)]
    assert isinstance(await grant(ledger, lease="l2", a=1), OverLimit)


async def test_a_limit_that_was_lowered_below_what_is_debited_follows_it_down(ledger):
    await register(ledger, a=100)
    await grant(ledger, a=40)
    await register(ledger, a=10)
    await ledger.close_lease(lease="l1", holder="h", returned={"a": 25})
    assert await ledger.states() == [AccountState(account="a", limit_bits=15, debited_bits=15, fence=1)]
    assert isinstance(await grant(ledger, lease="l2", a=1), OverLimit)
    assert await register(ledger, a=20) == ["a"]
    assert isinstance(await grant(ledger, lease="l2", a=5), Granted)


async def test_states_of_named_accounts_leave_out_the_others(ledger):
    await register(ledger, a=1, b=2, c=3)
    assert [state.account for state in await ledger.states(["c", "unknown", "a"])] == ["a", "c"]


async def test_what_is_spent_in_any_window_that_slides_stays_below_its_limit(ledger):
    assert isinstance(await slide(ledger, 10, 60), Granted)
    assert isinstance(await slide(ledger, 11, 30), Granted)
    assert await slide(ledger, 12, 11) == OverLimit(account="s12", remaining_bits=10)
    assert dict((await slide(ledger, 12, (1, 50))).bits) == {"s12": 10}
    assert (await state(ledger, "s")).debited_bits == 100
    assert dict((await slide(ledger, 13, (1, 70))).bits) == {"s13": 60}  # what was spent in step 10 counts no more
    assert {name: bits for name, bits in (await debited(ledger)).items() if name != "s"} == {
        "s10": 60, "s11": 30, "s12": 10, "s13": 60,
    }  # fmt: skip
    assert dict((await slide(ledger, 40, (1, 500))).bits) == {"s40": 100}


async def test_a_step_is_counted_by_its_series(ledger):
    await register_step(ledger, 7)
    granted = await grant(ledger, s7=40)
    assert (dict(granted.fences), dict(granted.remaining_bits)) == ({"s": 1}, {"s7": 60})
    states = {state.account: (state.debited_bits, state.series, state.fence) for state in await ledger.states(["s7"])}
    assert states == {"s": (40, None, 1), "s7": (40, "s", 0)}


async def test_what_a_step_gives_back_may_be_spent_again_while_it_counts_and_not_twice_when_it_does_not(ledger):
    await slide(ledger, 10, 60, lease="early")
    await slide(ledger, 11, 30, lease="late")
    await ledger.close_lease(lease="late", holder="h", returned={"s11": 20})
    assert (await state(ledger, "s")).debited_bits == 70
    await slide(ledger, 13, 5)
    assert (await state(ledger, "s")).debited_bits == 15
    await ledger.close_lease(lease="early", holder="h", returned={"s10": 60})
    assert (await state(ledger, "s")).debited_bits == 15
    assert (await state(ledger, "s10")).debited_bits == 0


async def test_two_steps_of_one_series_in_one_grant_are_held_against_one_limit(ledger):
    await register_step(ledger, 1)
    await register_step(ledger, 2)
    assert dict((await grant(ledger, s1=(1, 80), s2=(1, 80))).bits) == {"s1": 80, "s2": 20}
    assert (await state(ledger, "s")).debited_bits == 100


async def test_a_clock_that_is_one_step_behind_is_counted_and_one_further_behind_is_refused(ledger):
    await slide(ledger, 10, 1)
    assert isinstance(await slide(ledger, 9, 99), Granted)
    assert isinstance(await slide(ledger, 10, 1, lease="more"), OverLimit)
    with pytest.raises(ClockBehind):
        await slide(ledger, 8, 0)


async def test_a_lease_of_a_step_that_is_over_is_still_told(ledger):
    await slide(ledger, 10, 7, lease="early")
    await slide(ledger, 20, 1)
    assert dict((await slide(ledger, 10, 7, lease="early")).bits) == {"s10": 7}


async def test_a_series_has_the_limit_of_its_steps(ledger):
    assert await register_step(ledger, 1, limit_bits=100) == []
    assert await register_step(ledger, 2, limit_bits=200) == ["s"]
    assert await register_step(ledger, 2, limit_bits=200) == []
    assert await register_step(ledger, 2, limit_bits=50) == []
    assert isinstance(await grant(ledger, s2=51), OverLimit)


async def test_a_frozen_account_grants_nothing_until_it_is_thawed_with_what_was_lost(ledger):
    await register(ledger, a=100, b=100)
    await grant(ledger, a=10)
    await ledger.freeze({"a": 7})
    for _ in range(2):
        with pytest.raises(AccountFrozen):
            await grant(ledger, lease="l2", a=1, b=1)
    assert (await state(ledger, "a")).frozen
    assert await debited(ledger) == {"a": 10, "b": 0}
    assert await ledger.close_lease(lease="l1", holder="h", returned={"a": 5})
    assert await ledger.thaw("a", lost_bits=30)
    assert dict((await grant(ledger, lease="l2", a=1, b=1)).fences) == {"a": 9, "b": 1}
    assert await debited(ledger) == {"a": 36, "b": 1}


async def test_an_account_that_nobody_registered_cannot_be_frozen(ledger):
    with pytest.raises(KeyError):
        await ledger.freeze({"unknown": 1})
    assert await ledger.states() == []


async def test_a_thaw_takes_no_more_than_the_limit_and_only_of_an_account_that_is_frozen(ledger):
    await register(ledger, a=100)
    assert not await ledger.thaw("a", lost_bits=1)
    assert not await ledger.thaw("unknown", lost_bits=1)
    await ledger.freeze({"a": 1})
    assert await ledger.thaw("a", lost_bits=1000)
    assert await debited(ledger) == {"a": 100}


async def test_a_series_is_frozen_for_all_of_its_steps(ledger):
    await slide(ledger, 1, 10)
    await ledger.freeze({"s": 2})
    with pytest.raises(AccountFrozen):
        await slide(ledger, 2, 10)


async def test_a_lease_that_was_granted_before_the_freeze_is_still_told(ledger):
    await register(ledger, a=100)
    first = await grant(ledger, a=10)
    await ledger.freeze({"a": 7})
    assert dict((await grant(ledger, a=10)).bits) == dict(first.bits)


async def test_holders_are_counted_once_each(ledger):
    assert [await ledger.beat(name) for name in ("one", "two", "one", "three")] == [1, 2, 2, 3]


async def test_a_store_says_for_how_long_a_holder_has_been_silent(ledger):
    assert await ledger.idle_s("one") is None
    await ledger.beat("one")
    await asyncio.sleep(0.05)
    early = await ledger.idle_s("one")
    await ledger.beat("one")
    assert 0.04 < early < 10
    assert 0 <= await ledger.idle_s("one") < early


async def test_leases_are_listed_by_id_and_page_by_page(ledger):
    await register(ledger, a=100, b=100)
    for name in ("l3", "l1", "l2"):
        await grant(ledger, lease=name, holder=f"holder of {name}", a=1, b=2)
    await ledger.close_lease(lease="l2", holder="holder of l2", returned={"b": 1})
    first, second = await ledger.leases(count_max=2), await ledger.leases(after="l2")
    assert [lease.lease for lease in (*first, *second)] == ["l1", "l2", "l3"]
    assert (first[1].holder, dict(first[1].bits), dict(first[1].returned_bits)) == (
        "holder of l2",
        {"a": 1, "b": 2},
        {"b": 1},
    )
    assert first[0].granted_at[:3] == "202"
    assert not first[0].returned_bits


async def test_only_limits_that_went_up_are_said_to_be_raised(ledger):
    assert await register(ledger, a=100, b=100, c=100) == []
    assert await register(ledger, a=101, b=100, c=99) == ["a"]
    assert await register(ledger) == []


async def test_states_come_by_id(ledger):
    await register(ledger, c=1, a=2, b=3)
    assert [(state.account, state.limit_bits) for state in await ledger.states()] == [("a", 2), ("b", 3), ("c", 1)]


async def test_integers_far_beyond_what_a_float_holds_are_exact(ledger):
    await register(ledger, a=BIG + 1)
    assert dict((await grant(ledger, a=(1, BIG))).bits) == {"a": BIG}
    assert await grant(ledger, lease="l2", a=2) == OverLimit(account="a", remaining_bits=1)
    assert dict((await grant(ledger, lease="l3", a=1)).bits) == {"a": 1}
    assert await ledger.close_lease(lease="l1", holder="h", returned={"a": BIG - 1})
    assert await debited(ledger) == {"a": 2}


async def test_the_largest_number_of_the_contract_is_kept(ledger):
    await register(ledger, a=2**63 - 1)
    await grant(ledger, a=(1, 2**63 - 1))
    assert await debited(ledger) == {"a": 2**63 - 1}


async def test_many_at_once_never_get_more_than_the_limit(ledger):
    await register(ledger, a=1000, b=10_000)
    results = await asyncio.gather(*(grant(ledger, lease=f"l{n}", a=7, b=7) for n in range(300)))
    granted = [result for result in results if isinstance(result, Granted)]
    assert len(granted) == 1000 // 7
    assert await debited(ledger) == {"a": 7 * len(granted), "b": 7 * len(granted)}


async def test_grants_and_closes_at_once_add_up(ledger):
    await register(ledger, a=100_000)

    async def spend(number):
        await grant(ledger, lease=f"l{number}", a=10)
        assert await ledger.close_lease(lease=f"l{number}", holder="h", returned={"a": number % 11})

    await asyncio.gather(*(spend(number) for number in range(200)))
    assert await debited(ledger) == {"a": sum(10 - number % 11 for number in range(200) if number % 11 <= 10)}


async def test_one_refusal_does_not_undo_its_neighbours(ledger):
    await register(ledger, a=100)
    results = await asyncio.gather(
        grant(ledger, lease="l1", a=10),
        grant(ledger, lease="l2", unknown=1),
        grant(ledger, lease="l3", a=1000),
        grant(ledger, lease="l4", a=20),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [Granted, KeyError, OverLimit, Granted]
    assert await debited(ledger) == {"a": 30}


async def test_a_cancelled_wait_leaves_the_grant_whole_or_not_made(ledger):
    await register(ledger, a=10_000, b=10_000)
    for number in range(20):
        asking = asyncio.ensure_future(grant(ledger, lease=f"l{number}", a=10, b=10))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    spent = await debited(ledger)
    assert spent["a"] == spent["b"] <= 200
    for number in range(20):
        assert isinstance(await grant(ledger, lease=f"l{number}", a=10, b=10), Granted)
    assert await debited(ledger) == {"a": 200, "b": 200}


async def test_the_leases_of_one_holder_are_listed_page_by_page(ledger):
    await register(ledger, a=100)
    for number in range(6):
        await grant(ledger, lease=f"l{number}", holder="even" if number % 2 == 0 else "odd", a=1)
    assert [lease.lease for lease in await ledger.leases(holder="odd")] == ["l1", "l3", "l5"]
    assert [lease.lease for lease in await ledger.leases(holder="even", count_max=2)] == ["l0", "l2"]
    assert [lease.lease for lease in await ledger.leases(holder="even", after="l2", count_max=2)] == ["l4"]
    assert list(await ledger.leases(holder="nobody")) == []

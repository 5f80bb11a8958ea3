"""What every ledger promises, whichever store is behind it."""

import asyncio

import pytest

from gateway.ledger.memory import MemoryLedger
from gateway.ledger.sqlite import SqliteLedger
from gateway.ports import AccountLimit, AccountState, Granted, OverLimit, Wanted

BIG = 2**62


@pytest.fixture(params=["memory", "sqlite"])
async def ledger(request, tmp_path):
    made = MemoryLedger() if request.param == "memory" else SqliteLedger(tmp_path / "ledger.db")
    yield made
    await made.close()


async def register(ledger, **limits):
    return await ledger.register([AccountLimit(account=name, limit_bits=bits) for name, bits in limits.items()])


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
    assert (again.lease, dict(again.bits), again.fence) == (first.lease, dict(first.bits), first.fence)
    assert await debited(ledger) == {"a": 40}


async def test_a_refused_lease_id_may_be_used_again(ledger):
    await register(ledger, a=10)
    assert isinstance(await grant(ledger, a=20), OverLimit)
    assert isinstance(await grant(ledger, a=5), Granted)


async def test_fences_only_ever_go_up(ledger):
    await register(ledger, a=100, b=100)
    fences = [(await grant(ledger, lease=f"l{n}", a=1)).fence for n in range(5)]
    assert fences == sorted(set(fences))
    assert (await grant(ledger, lease="both", a=1, b=1)).fence > fences[-1]


async def test_a_grant_of_an_account_that_nobody_registered_is_a_key_error_and_debits_nothing(ledger):
    await register(ledger, a=100)
    with pytest.raises(KeyError):
        await grant(ledger, a=1, unknown=1)
    assert await debited(ledger) == {"a": 0}


async def test_what_did_not_leave_goes_back_once(ledger):
    await register(ledger, a=100, b=100)
    await grant(ledger, a=50, b=60)
    assert await ledger.close_lease(lease="l1", holder="h", returned={"a": 20, "b": 60})
    assert await debited(ledger) == {"a": 30, "b": 0}
    assert not await ledger.close_lease(lease="l1", holder="h", returned={"a": 20, "b": 60})
    assert await debited(ledger) == {"a": 30, "b": 0}


async def test_nobody_but_the_holder_closes_a_lease(ledger):
    await register(ledger, a=100)
    await grant(ledger, a=50)
    assert not await ledger.close_lease(lease="l1", holder="other", returned={"a": 50})
    assert not await ledger.close_lease(lease="unknown", holder="h", returned={})
    assert await debited(ledger) == {"a": 50}
    assert await ledger.close_lease(lease="l1", holder="h", returned={})
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
        assert await ledger.states() == [AccountState(account="a", limit_bits=limit, debited_bits=40)]
    assert await grant(ledger, lease="l2", a=2) == OverLimit(account="a", remaining_bits=1)


async def test_a_limit_below_what_is_debited_stays_at_that(ledger):
    await register(ledger, a=100)
    await grant(ledger, a=40)
    await register(ledger, a=10)
    assert await ledger.states() == [AccountState(account="a", limit_bits=40, debited_bits=40)]
    assert isinstance(await grant(ledger, lease="l2", a=1), OverLimit)


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

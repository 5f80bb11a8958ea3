"""The guard before a store: it freezes what the store has forgotten, and nothing else, however answers overtake each other."""

import asyncio
import copy
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import SystemClock
from gateway.ledger import fenced
from gateway.ledger.fenced import FencedLedger
from gateway.ledger.memory import MemoryLedger
from gateway.ports import AccountFrozen, AccountLimit, Granted, LedgerUnavailable, OverLimit, Wanted
from policy.budget import Step


class Store(MemoryLedger):
    """A ledger that can forget, whose replies can be late or lost, and which can be away."""

    def __init__(self):
        super().__init__(clock=SystemClock())
        self.replies = asyncio.Event()
        self.replies.set()
        self.lose_replies = False
        self.refuse_to_freeze = False

    def backup(self):
        return copy.deepcopy((self._accounts, self._leases))

    def restore(self, backup):
        self._accounts, self._leases = copy.deepcopy(backup)

    async def _reply(self, answer):
        lost = self.lose_replies
        await self.replies.wait()
        if lost:
            raise LedgerUnavailable("the reply was lost")
        return answer

    async def grant(self, **asked):
        return await self._reply(await super().grant(**asked))

    async def states(self, accounts=None):
        return await self._reply(await super().states(accounts))

    async def freeze(self, fences):
        if self.refuse_to_freeze:
            raise LedgerUnavailable("away")
        await super().freeze(fences)


class Guard:
    """A guard, its store and what it reported."""

    def __init__(self, fences: Mapping[str, int] | None = None, *, store: Store | None = None) -> None:
        self.store = store or Store()
        self.reports: list[tuple[Mapping[str, int], Mapping[str, int]]] = []
        self.ledger = FencedLedger(
            self.store, fences=fences or {}, on_frozen=lambda *report: self.reports.append(report)
        )

    async def register(self, *accounts, limit_bits=10**6):
        return await self.ledger.register([AccountLimit(account=name, limit_bits=limit_bits) for name in accounts])

    async def grant(self, lease, *accounts: str, bits=1):
        wanted = {name: Wanted(least_bits=bits, most_bits=bits) for name in accounts}
        return await self.ledger.grant(lease=lease, holder="h", wanted=wanted)

    async def frozen(self) -> Sequence[str]:
        return [state.account for state in await self.ledger.states() if state.frozen]


@pytest.fixture
async def guard():
    guard = Guard()
    await guard.register("a", "b")
    return guard


async def test_fences_are_those_of_grants_and_of_what_other_holders_were_granted(guard):
    await guard.grant("l1", "a")
    assert guard.ledger.fences == {"a": 1}
    for number in range(3):
        await guard.store.grant(lease=f"x{number}", holder="x", wanted={"b": Wanted(least_bits=1, most_bits=1)})
    await guard.ledger.states()
    assert guard.ledger.fences == {"a": 1, "b": 3}


async def test_a_grant_by_a_store_that_has_forgotten_is_not_used_and_freezes_the_accounts_that_were_forgotten(guard):
    await guard.grant("l1", "b")
    backup = guard.store.backup()
    await guard.grant("l2", "a")
    guard.store.restore(backup)
    with pytest.raises(AccountFrozen, match="forgotten grants of a"):
        await guard.grant("l3", "a", "b")
    assert guard.reports == [({"a": 1}, {"a": 1})]
    assert await guard.frozen() == ["a"]
    assert [state.debited_bits for state in await guard.ledger.states()] == [1, 2]  # what was granted stays spent
    assert isinstance(await guard.grant("l4", "b"), Granted)


async def test_a_state_below_what_was_seen_freezes_the_account_and_is_reported_once(guard):
    backup = guard.store.backup()
    for number in range(3):
        await guard.grant(f"l{number}", "a")
    guard.store.restore(backup)
    states = await guard.ledger.states()
    assert [(state.account, state.frozen) for state in states] == [("a", True), ("b", False)]
    await guard.ledger.states()
    assert guard.reports == [({"a": 3}, {"a": 0})]
    with pytest.raises(AccountFrozen):
        await guard.grant("l9", "a")


async def test_the_fences_of_an_earlier_process_are_held_against_the_store():
    guard = Guard({"a": 5})
    await guard.register("a", "b")
    assert guard.reports == [({"a": 5}, {"a": 0})]
    with pytest.raises(AccountFrozen):
        await guard.grant("l1", "a")
    assert isinstance(await guard.grant("l2", "b"), Granted)


async def test_an_account_that_the_store_does_not_know_any_more_is_registered_again_and_frozen(guard):
    empty = Store().backup()
    await guard.grant("l1", "a")
    guard.store.restore(empty)
    assert await guard.ledger.states() == []
    with pytest.raises(AccountFrozen):
        await guard.grant("l2", "a")
    assert guard.reports == [({"a": 1}, {"a": 0})]
    assert isinstance(await guard.grant("l3", "b"), Granted)  # nothing was ever granted of it


async def test_an_account_that_nobody_registered_is_still_a_key_error(guard):
    with pytest.raises(KeyError):
        await guard.grant("l1", "a", "unknown")
    assert await guard.frozen() == []


async def test_a_series_is_guarded_through_its_steps():
    guard = Guard()
    first = AccountLimit(account="s1", limit_bits=100, step=Step(series="s", number=1, steps=3))
    second = AccountLimit(account="s2", limit_bits=100, step=Step(series="s", number=2, steps=3))
    await guard.ledger.register([first])
    backup = guard.store.backup()
    await guard.grant("l1", "s1")
    guard.store.restore(backup)
    await guard.ledger.register([second])
    assert guard.reports == [({"s": 1}, {"s": 0})]
    with pytest.raises(AccountFrozen):
        await guard.grant("l2", "s2")


async def test_an_earlier_lease_may_be_asked_for_again_at_any_time(guard):
    first = await guard.grant("l1", "a")
    for number in range(2, 9):
        await guard.grant(f"l{number}", "a")
    assert await guard.grant("l1", "a") == Granted(
        lease="l1", bits=first.bits, fences={"a": 1}, remaining_bits={"a": 10**6 - 8}
    )
    assert await guard.frozen() == []


async def test_a_lease_whose_reply_was_lost_is_told_later_although_others_came_after_it(guard):
    guard.store.lose_replies = True
    with pytest.raises(LedgerUnavailable):
        await guard.grant("lost", "a")
    guard.store.lose_replies = False
    for number in range(5):
        await guard.grant(f"l{number}", "a")
    assert dict((await guard.grant("lost", "a")).fences) == {"a": 1}
    assert guard.ledger.fences == {"a": 6}
    assert await guard.frozen() == []


async def test_a_lease_that_was_forgotten_and_is_granted_anew_is_noticed_even_with_a_higher_fence(guard):
    backup = guard.store.backup()
    await guard.grant("l1", "a")
    guard.store.restore(backup)
    for number in range(5):  # others overtake what was seen
        await guard.store.grant(lease=f"x{number}", holder="x", wanted={"a": Wanted(least_bits=1, most_bits=1)})
    with pytest.raises(AccountFrozen):
        await guard.grant("l1", "a")
    assert await guard.frozen() == ["a"]


async def test_an_answer_that_comes_late_freezes_nothing(guard):
    guard.store.replies.clear()
    slow = asyncio.ensure_future(guard.grant("slow", "a"))
    early = asyncio.ensure_future(guard.ledger.states())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late_replies, guard.store.replies = guard.store.replies, asyncio.Event()
    guard.store.replies.set()
    await guard.grant("quick", "a")
    assert guard.ledger.fences == {"a": 2}
    late_replies.set()
    assert dict((await slow).fences) == {"a": 1}
    assert [state.fence for state in await early] == [1, 0]
    assert guard.ledger.fences == {"a": 2}
    assert guard.reports == []


async def test_a_refused_lease_leaves_nothing_behind_unless_it_was_asked_for_twice(guard):
    async def ask():
        return await guard.grant("l1", "a", bits=10**7)

    assert isinstance(await ask(), OverLimit)
    assert guard.ledger._asked == {}
    assert all(isinstance(answer, OverLimit) for answer in await asyncio.gather(ask(), ask()))
    for number in range(2, 5):
        await guard.grant(f"l{number}", "a")
    assert isinstance(await guard.grant("l1", "a"), Granted)
    assert guard.reports == []


async def test_a_lease_that_was_refused_while_it_was_asked_for_again_is_told_later(guard):
    await guard.grant("all", "a", bits=10**6)
    guard.store.replies.clear()
    refused = asyncio.ensure_future(guard.grant("l1", "a"))
    await asyncio.sleep(0)
    await MemoryLedger.close_lease(guard.store, lease="all", holder="h", returned={"a": 10**6})
    guard.store.lose_replies = True
    lost = asyncio.ensure_future(guard.grant("l1", "a"))
    await asyncio.sleep(0)
    guard.store.lose_replies = False
    guard.store.replies.set()
    assert isinstance(await refused, OverLimit)
    with pytest.raises(LedgerUnavailable):
        await lost
    for number in range(2, 5):
        await guard.grant(f"l{number}", "a")
    assert dict((await guard.grant("l1", "a")).fences) == {"a": 2}
    assert guard.reports == []


async def test_what_a_forgetful_store_granted_is_refused_again_after_the_thaw_and_freezes_nothing_anew(guard):
    backup = guard.store.backup()
    await guard.grant("l1", "a")
    guard.store.restore(backup)
    with pytest.raises(AccountFrozen):
        await guard.grant("l2", "a")
    assert await guard.ledger.thaw("a", lost_bits=1)
    with pytest.raises(AccountFrozen):
        await guard.grant("l2", "a")
    assert dict((await guard.grant("l3", "a")).fences) == {"a": 3}
    assert guard.reports == [({"a": 1}, {"a": 1})]


async def test_a_store_that_forgets_again_after_a_thaw_is_noticed_again(guard):
    backup = guard.store.backup()
    for bits in (1, 2):
        await guard.grant(f"l{bits}", "a", bits=bits)
        guard.store.restore(backup)
        assert await guard.frozen() == ["a"]
        assert await guard.ledger.thaw("a", lost_bits=bits)
    assert [seen for seen, _ in guard.reports] == [{"a": 1}, {"a": 3}]


async def test_a_store_that_cannot_be_told_is_told_the_next_time(guard):
    backup = guard.store.backup()
    await guard.grant("l1", "a")
    guard.store.restore(backup)
    guard.store.refuse_to_freeze = True
    for _ in range(2):
        with pytest.raises(LedgerUnavailable):
            await guard.ledger.states()
    with pytest.raises(LedgerUnavailable):
        await guard.grant("l2", "a")
    assert guard.reports == []
    guard.store.refuse_to_freeze = False
    assert await guard.frozen() == ["a"]
    assert len(guard.reports) == 1


async def test_nothing_is_granted_while_the_store_cannot_be_told(guard):
    backup = guard.store.backup()
    await guard.grant("l1", "a")
    guard.store.restore(backup)
    guard.store.refuse_to_freeze = True
    with pytest.raises(LedgerUnavailable):
        await guard.ledger.states()
    with pytest.raises(LedgerUnavailable):
        await guard.grant("l2", "a")
    assert guard.store.backup() == backup


async def test_a_store_that_forgets_even_the_account_before_it_is_told_is_told_with_it(guard):
    backup = guard.store.backup()
    await guard.grant("l1", "a")
    guard.store.restore(backup)
    guard.store.refuse_to_freeze = True
    with pytest.raises(LedgerUnavailable):
        await guard.ledger.states()
    guard.store.refuse_to_freeze = False
    guard.store.restore(Store().backup())
    assert await guard.frozen() == ["a"]


async def test_an_account_that_another_gateway_froze_lower_is_frozen_at_the_fence_seen_here(guard):
    backup = guard.store.backup()
    for number in range(3):
        await guard.grant(f"l{number}", "a")
    guard.store.restore(backup)
    await guard.store.freeze({"a": 1})
    assert await guard.frozen() == ["a"]
    assert await guard.ledger.thaw("a", lost_bits=0)
    assert dict((await guard.grant("l9", "a")).fences) == {"a": 5}


async def others(guard, account, count):
    """Other gateways are granted something, and so drive the fence on."""
    for number in range(count):
        lease = f"other {account} {len(guard.store._leases)} {number}"
        await MemoryLedger.grant(
            guard.store, lease=lease, holder="x", wanted={account: Wanted(least_bits=1, most_bits=1)}
        )


async def test_what_was_forgotten_is_noticed_even_when_others_have_overtaken_what_was_seen(guard):
    await guard.register("c")
    await guard.grant("kept", "c")
    backup = guard.store.backup()
    await guard.grant("l1", "a", bits=5)
    await guard.grant("l2", "b", bits=5)
    guard.store.restore(backup)
    await others(guard, "a", 3)
    await others(guard, "b", 3)
    assert await guard.frozen() == []  # their fences look as they should
    await guard.ledger.check()
    assert await guard.frozen() == ["a", "b"]
    assert [seen for seen, _ in guard.reports] == [{"a": 3, "b": 3}]
    assert isinstance(await guard.grant("l3", "c"), Granted)


async def test_a_check_finds_what_else_was_forgotten_where_one_account_gave_it_away(guard):
    backup = guard.store.backup()
    await guard.grant("l1", "a", "b")
    guard.store.restore(backup)
    await others(guard, "a", 3)
    assert await guard.frozen() == ["b"]
    await guard.ledger.check()
    assert await guard.frozen() == ["a", "b"]


async def test_a_check_of_a_store_that_forgot_the_account_itself_registers_and_freezes_it(guard):
    await guard.grant("l1", "a")
    guard.store.restore(Store().backup())
    await guard.ledger.check()
    assert await guard.frozen() == ["a"]


async def test_nothing_goes_back_through_a_lease_that_the_store_forgot_and_knows_anew_from_a_check(guard):
    backup = guard.store.backup()
    await guard.grant("l1", "a", bits=5)
    guard.store.restore(backup)
    await guard.ledger.check()
    assert not await guard.ledger.close_lease(lease="l1", holder="h", returned={"a": 5})


async def test_a_check_freezes_nothing_while_the_store_remembers(guard):
    await guard.ledger.check()
    await guard.grant("l1", "a", bits=5)
    await guard.grant("l2", "a", "b", bits=5)
    await guard.ledger.close_lease(lease="l2", holder="h", returned={"a": 5, "b": 5})
    await guard.ledger.freeze({"a": 2})  # somebody else's doubt
    before = guard.store.backup()
    await guard.ledger.check()
    assert guard.store.backup() == before
    assert guard.reports == []


async def test_a_check_after_the_thaw_has_nothing_against_the_store_any_more(guard):
    backup = guard.store.backup()
    await guard.grant("l1", "a", "b")
    guard.store.restore(backup)
    await others(guard, "b", 2)
    await guard.ledger.check()
    for name in ("a", "b"):
        assert await guard.ledger.thaw(name, lost_bits=1)
    await guard.ledger.check()
    assert await guard.frozen() == []
    await guard.grant("l2", "a", "b")
    await guard.ledger.check()
    assert await guard.frozen() == []
    assert len(guard.reports) == 1


async def test_a_check_that_could_not_be_finished_is_finished_by_the_next(guard):
    backup = guard.store.backup()
    await guard.grant("l1", "a")
    guard.store.restore(backup)
    await others(guard, "a", 2)
    guard.store.refuse_to_freeze = True
    with pytest.raises(LedgerUnavailable):
        await guard.ledger.check()
    guard.store.refuse_to_freeze = False
    await guard.ledger.check()
    assert await guard.frozen() == ["a"]


async def test_periods_that_are_over_are_forgotten(guard):
    step = Step(series="s", number=1, steps=3)
    await guard.ledger.register([AccountLimit(account="s1", limit_bits=100, step=step)])
    await guard.grant("l1", "a", "b", "s1")
    guard.ledger.forget_all_but(["b", "s1"])
    assert guard.ledger.fences == {"b": 1, "s": 1}


async def test_only_so_many_leases_are_remembered(guard, monkeypatch):
    monkeypatch.setattr(fenced, "LEASES_REMEMBERED_MAX", 2)
    for number in range(5):
        await guard.grant(f"l{number}", "a")
    assert list(guard.ledger._asked) == ["l3", "l4"]


class Chaos(Store):
    """Replies come when the test says, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[asyncio.Future[bool]] = []

    async def _reply(self, answer):
        came = asyncio.get_running_loop().create_future()
        self.waiting.append(came)
        if not await came:
            raise LedgerUnavailable("lost")
        return answer


acts = st.one_of(
    st.tuples(st.just("grant"), st.integers(0, 5)),  # which lease: a number that comes again is asked again
    st.tuples(st.just("other"), st.just(0)),
    st.tuples(st.just("states"), st.just(0)),
    st.tuples(st.just("check"), st.just(0)),
    st.tuples(st.just("reply"), st.integers(0, 20)),
    st.tuples(st.just("lose"), st.integers(0, 20)),
)


async def turn():
    for _ in range(8):
        await asyncio.sleep(0)


async def play(acts):
    """Let it all happen. Returns the guard and what is still under way."""
    store = Chaos()
    guard = Guard(store=store)
    await guard.register("a", limit_bits=60)
    tasks = []
    for number, (act, which) in enumerate(acts):
        if act == "grant":
            tasks.append(asyncio.ensure_future(guard.grant(f"l{which}", "a", bits=1 + which)))
        elif act == "states":
            tasks.append(asyncio.ensure_future(guard.ledger.states()))
        elif act == "check":
            tasks.append(asyncio.ensure_future(guard.ledger.check()))
        elif act == "other":
            wanted = {"a": Wanted(least_bits=1, most_bits=1)}
            await MemoryLedger.grant(store, lease=f"x{number}", holder="x", wanted=wanted)
        elif store.waiting:
            store.waiting.pop(which % len(store.waiting)).set_result(act == "reply")
        await turn()
    return guard, tasks


async def finish(guard, tasks):
    await turn()
    while guard.store.waiting:
        guard.store.waiting.pop().set_result(True)
        await turn()
    return await asyncio.gather(*tasks, return_exceptions=True)


@given(acts=st.lists(acts, max_size=40))
def test_a_store_that_forgets_nothing_is_never_suspected(acts):
    async def run():
        guard, tasks = await play(acts)
        answers = await finish(guard, tasks)
        assert not [answer for answer in answers if isinstance(answer, AccountFrozen)]
        assert guard.reports == []

    asyncio.run(run())


@given(before=st.lists(acts, max_size=20), after=st.lists(acts, max_size=20), fresh=st.booleans())
def test_a_store_that_forgets_what_was_seen_is_found_out_by_the_next_question(before, after, fresh):
    async def run():
        guard, tasks = await play(before)
        backup = guard.store.backup()
        for act, which in after:  # more of the same, on the same guard
            if act == "grant":
                tasks.append(asyncio.ensure_future(guard.grant(f"m{which}", "a")))
            elif act in {"reply", "lose"} and guard.store.waiting:
                guard.store.waiting.pop(which % len(guard.store.waiting)).set_result(act == "reply")
            await turn()
        guard.store.restore(backup)
        [state] = await MemoryLedger.states(guard.store, ["a"])
        forgot = guard.ledger.fences.get("a", 0) > state.fence
        asking = guard.grant("new", "a", bits=0) if fresh else guard.ledger.states()
        [answer] = await finish(guard, [asyncio.ensure_future(asking)])
        await asyncio.gather(*tasks, return_exceptions=True)
        [state] = await MemoryLedger.states(guard.store, ["a"])
        assert state.frozen or not forgot
        assert isinstance(answer, AccountFrozen) or not (forgot and fresh)

    asyncio.run(run())

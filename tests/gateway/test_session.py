"""One answer on its way out: whole quanta, whole characters, every tick paid for, and always enough left to end honestly."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.session import Budget, closing_bits, whole_bits_max
from policy.budget import Purse
from policy.canonical import Finish, TextDelta, ToolCallDelta, UsageReport
from policy.codelength import release_bits
from policy.limits import TICK_RELEASE_BYTES_MAX
from policy.release import Ending, Outcome, Release, Usage

TICKS_MAX = 1000
MS = 1_000_000


def drive(session, said, *, from_tick=1, spent=True):
    """Feed the answer tick by tick (None: nothing said) and collect; when the purse is empty the store has no more."""
    releases = []
    events = list(said)
    tick = from_tick
    while session.ending is None and (events or session.answer.ready) and tick < TICKS_MAX:
        for event in events.pop(0) if events else ():
            session.answer.add(event)
        while session.ending is None and (session.answer.finished if session.whole else session.answer.ready):
            charged = session.collect(tick, at_ms=MS)
            if charged is None:
                assert session.budget is Budget.SHORT
                session.budget = Budget.SPENT if spent else Budget.OPEN
                session.hold.extend_with_rest()
                continue
            releases.append((tick, *charged))
            break
        tick += 1
    return releases


def purse_of(fakes, bits):
    purse = Purse()
    purse.credit(fakes.account().id, bits)
    return purse


def texts(*parts):
    return [[TextDelta(part)] if part else [] for part in parts]


DONE = [[Finish(Outcome.STOP)]]
words = st.lists(st.text(max_size=60), max_size=8)


@settings(max_examples=60, deadline=None)
@given(words, st.integers(8, 32))
def test_pieces_are_whole_quanta_rounded_down_to_whole_characters_and_lose_nothing(fakes, parts, quantum_bytes):
    session = fakes.session(quantum_bytes=quantum_bytes)
    releases = drive(session, texts(*parts) + DONE)
    assert "".join(release.text for _, release, _ in releases) == "".join(parts)
    for _, release, _ in releases[:-1]:
        assert release.ending is None
        assert 0 <= release.quanta * quantum_bytes - len(release.text.encode()) <= 3
    assert releases[-1][1].ending.outcome is Outcome.STOP


@settings(max_examples=60, deadline=None)
@given(words)
def test_every_release_is_charged_its_price_and_the_record_says_so(fakes, parts):
    session = fakes.session(surcharge_bits=1)
    releases = drive(session, texts(*parts) + DONE)
    for number, (tick, release, record) in enumerate(releases):
        assert record.charged_bits == release_bits(release, tools_declared=0) + (1 if number == 0 else 0)
        assert record.charged_bits >= 8 * record.text_bytes
        assert (record.tick, record.at_ms, record.answer) == (tick, MS, "abc123")
        assert record.outcome == (release.ending.outcome.value if release.ending else None)
    assert session.charged_bits == session.hold.charged_bits == sum(record.charged_bits for _, _, record in releases)
    assert bytes(session.text) == "".join(parts).encode()


@pytest.mark.parametrize("idle", [0, 1, 7, 500])
def test_ticks_without_a_release_are_counted_and_paid(fakes, idle):
    session = fakes.session(surcharge_bits=0)
    session.answer.add(Finish(Outcome.STOP))
    release, record = session.collect(idle + 1, at_ms=MS)
    assert record.idle_ticks == release.idle_ticks == idle
    assert record.charged_bits == release_bits(release, tools_declared=0)


def test_idle_ticks_count_from_the_last_release(fakes):
    session = fakes.session()
    ticks = [tick for tick, _, _ in drive(session, [*texts("x" * 16, "", "", "y" * 16), *DONE])]
    assert ticks == [1, 4, 5]
    session = fakes.session()
    idle = [record.idle_ticks for _, _, record in drive(session, [*texts("x" * 16, "", "", "y" * 16), *DONE])]
    assert idle == [0, 2, 0]


def test_a_burst_leaves_over_several_ticks(fakes):
    session = fakes.session(call=fakes.chat_call(tokens=1000))
    releases = drive(session, [*texts("x" * 10_000), *DONE])
    assert max(len(release.text) for _, release, _ in releases) <= TICK_RELEASE_BYTES_MAX
    assert sum(len(release.text) for _, release, _ in releases) == 10_000


# Budgets.


@settings(max_examples=150, deadline=None)
@given(words, st.integers(0, 4000), st.integers(0, 2))
def test_at_every_moment_the_price_of_an_honest_ending_is_in_hand(fakes, parts, more_bits, surcharge_bits):
    least = closing_bits(ticks_max=TICKS_MAX) + 128
    session = fakes.session(
        purse=purse_of(fakes, least + more_bits), hold_bits=least, ticks_max=TICKS_MAX, surcharge_bits=surcharge_bits
    )
    ending = Release(idle_ticks=TICKS_MAX, quanta=0, text="", ending=Ending(outcome=Outcome.UPSTREAM_ERROR))
    price = release_bits(ending, tools_declared=0)
    for tick, part in enumerate(parts, start=1):
        if session.ending is not None:
            break
        assert session.hold.left_bits >= price
        drive(session, texts(part), from_tick=2 * tick)


@settings(max_examples=150, deadline=None)
@given(words, st.integers(0, 3000), st.sampled_from(list(Outcome)))
def test_what_leaves_never_costs_more_than_the_budget_and_ends_with_the_truth(fakes, parts, more_bits, outcome):
    budget_bits = closing_bits(ticks_max=TICKS_MAX) + 128 + more_bits
    purse = purse_of(fakes, budget_bits)
    session = fakes.session(purse=purse, hold_bits=budget_bits - more_bits, ticks_max=TICKS_MAX)
    releases = drive(session, [*texts(*parts), [Finish(outcome)]])
    said, left = "".join(parts), "".join(release.text for _, release, _ in releases)
    assert said.startswith(left)
    assert session.ending is not None
    honest = Outcome.STOP if outcome is Outcome.TOOL_CALLS else outcome
    assert session.ending.outcome is (honest if session.ending.outcome is not Outcome.BUDGET else Outcome.BUDGET)
    if session.ending.outcome is not Outcome.BUDGET:
        assert left == said
    session.hold.close()
    assert purse.balance_bits(fakes.account().id) == budget_bits - session.charged_bits >= 0
    assert session.charged_bits >= 8 * len(left.encode())


def test_a_cut_comes_exactly_where_one_more_byte_could_not_be_paid(fakes):
    left_over = {}
    for more_bits in range(32):
        budget_bits = closing_bits(ticks_max=TICKS_MAX) + 128 + 1500 + more_bits
        session = fakes.session(purse=purse_of(fakes, budget_bits), hold_bits=budget_bits, ticks_max=TICKS_MAX)
        _, last, record = drive(session, [*texts("x" * 5000), *DONE])[-1]
        assert last.ending == Ending(outcome=Outcome.BUDGET)
        longer = Release(idle_ticks=0, quanta=0, text=last.text + "x", ending=last.ending)
        one_byte_bits = release_bits(longer, tools_declared=0) - release_bits(last, tools_declared=0)
        if session.hold.left_bits >= one_byte_bits:
            left_over[budget_bits] = session.hold.left_bits
        assert record.charged_bits <= budget_bits
    assert left_over == {}


def test_an_empty_purse_asks_for_a_refill_once_and_waits_for_it(fakes):
    least = closing_bits(ticks_max=TICKS_MAX) + 128
    purse = purse_of(fakes, least)
    session = fakes.session(purse=purse, hold_bits=least, ticks_max=TICKS_MAX)
    session.answer.add(TextDelta("x" * 5000))
    assert session.collect(1, at_ms=MS) is None
    assert session.budget is Budget.SHORT
    assert session.charged_bits == 0
    purse.credit(fakes.account().id, session.shortfall_bits)
    session.budget = Budget.OPEN
    release, _ = session.collect(2, at_ms=MS)
    assert release.quanta > 0


def test_a_refill_of_the_shortfall_is_enough_for_an_ending_with_calls(fakes):
    least = closing_bits(ticks_max=TICKS_MAX)
    purse = purse_of(fakes, least)
    session = fakes.session(
        call=fakes.chat_call(tools=["f"]), purse=purse, hold_bits=least, ticks_max=TICKS_MAX, surcharge_bits=1
    )
    session.answer.add(ToolCallDelta(0, "f", '{"a": "' + "x" * 300 + '"}'))
    session.answer.add(Finish(Outcome.STOP))
    assert session.collect(1, at_ms=MS) is None
    purse.credit(fakes.account().id, session.shortfall_bits)
    session.budget = Budget.OPEN
    release, record = session.collect(2, at_ms=MS)
    assert release.ending.outcome is Outcome.TOOL_CALLS
    assert record.charged_bits > 8 * 300
    assert bytes(session.text) == release.ending.tool_calls[0].arguments.encode()


def test_calls_that_the_budget_does_not_cover_are_not_told_in_part(fakes):
    budget_bits = closing_bits(ticks_max=TICKS_MAX) + 128
    session = fakes.session(
        call=fakes.chat_call(tools=["f"]), purse=purse_of(fakes, budget_bits), hold_bits=budget_bits
    )
    said = [[TextDelta("hello"), ToolCallDelta(0, "f", "1" * 100), Finish(Outcome.STOP)]]
    ((_, release, _),) = drive(session, said)
    assert release.ending == Ending(outcome=Outcome.BUDGET)
    assert release.text == "hello"


def test_usage_is_paid_for(fakes):
    usage = UsageReport(Usage(prompt_tokens=1000, completion_tokens=1000))
    bare, counted = fakes.session(), fakes.session()
    drive(bare, DONE)
    drive(counted, [[usage, Finish(Outcome.STOP)]])
    assert counted.charged_bits - bare.charged_bits == 2 * 16


# Whole answers.


def test_a_whole_answer_is_one_release_with_one_slot(fakes):
    session = fakes.session(call=fakes.chat_call(stream=False))
    ((tick, release, record),) = drive(session, [*texts("x" * 100, "", "y" * 5), *DONE])
    assert (tick, release.text, record.idle_ticks) == (4, "x" * 100 + "y" * 5, 3)


@pytest.mark.parametrize("outcome", [Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.REJECTED])
def test_nothing_of_a_whole_answer_that_failed_leaves(fakes, outcome):
    session = fakes.session(call=fakes.chat_call(stream=False))
    session.answer.add(TextDelta("half of it"))
    session.answer.end(outcome)
    release, record = session.collect(1, at_ms=MS)
    assert (release.text, record.text_bytes, release.ending.outcome) == ("", 0, outcome)


def test_a_whole_answer_over_budget_leaves_no_text(fakes):
    budget_bits = closing_bits(ticks_max=TICKS_MAX) + 128
    session = fakes.session(
        call=fakes.chat_call(stream=False), purse=purse_of(fakes, budget_bits), hold_bits=budget_bits
    )
    ((_, release, _),) = drive(session, [*texts("x" * 100), *DONE])
    assert (release.text, release.ending) == ("", Ending(outcome=Outcome.BUDGET))


@given(st.integers(0, 1 << 20), st.integers(0, 60_000), st.integers(0, 2**31 - 2))
def test_what_is_reserved_for_a_whole_answer_covers_it(answer_bytes, idle_ticks, tokens):
    usage = Usage(prompt_tokens=tokens, completion_tokens=tokens)
    ending = Release(idle_ticks=idle_ticks, quanta=0, text="", ending=Ending(outcome=Outcome.LENGTH, usage=usage))
    price = release_bits(ending, tools_declared=0) + 8 * answer_bytes + 2 * 20
    assert price <= whole_bits_max(answer_bytes=answer_bytes, ticks_max=60_000)


# Windows.


def test_at_a_windows_edge_nothing_is_charged_to_the_old_window(fakes):
    session = fakes.session(accounts=(fakes.account("old", expires_s=1000),))
    session.answer.add(TextDelta("x" * 40))
    assert session.collect(1, at_ms=999_999) is not None
    before = session.charged_bits
    session.answer.add(TextDelta("x" * 40))
    assert session.collect(2, at_ms=1_000_000) is None
    assert session.budget is Budget.SHORT
    assert session.charged_bits == before


def test_a_renewed_session_charges_the_new_accounts_and_gives_the_old_rest_back(fakes):
    old, new = fakes.account("old", expires_s=1000), fakes.account("new", expires_s=2000)
    purse = Purse()
    purse.credit("old", 5000)
    purse.credit("new", 5000)
    session = fakes.session(accounts=(old,), purse=purse, hold_bits=1000)
    session.answer.add(TextDelta("x" * 16))
    session.collect(1, at_ms=0)
    charged = session.charged_bits
    session.renew(purse.reserve((new,), 1000))
    session.answer.add(TextDelta("y" * 16))
    session.collect(2, at_ms=1_000_000)
    assert purse.balance_bits("old") == 5000 - charged
    assert purse.reserved_bits("old") == 0
    assert session.hold.charged_bits == session.charged_bits - charged > 0
    assert session.renewed


# Waiting.


async def test_one_release_is_under_way_at_a_time(fakes):
    session = fakes.session()
    first = asyncio.ensure_future(session.next())
    await asyncio.sleep(0)
    with pytest.raises(AssertionError):
        await session.next()
    session.deliver(Release(idle_ticks=0, quanta=1, text="x"))
    assert (await first).text == "x"


async def test_a_session_is_ready_only_while_somebody_waits_and_something_is_said(fakes):
    enlisted = []
    session = fakes.session(changed=enlisted.append)
    session.answer.add(TextDelta("x" * 16))
    assert not session.ready
    session.touch()
    assert enlisted == []
    waiting = asyncio.ensure_future(session.next())
    await asyncio.sleep(0)
    assert session.ready
    session.touch()
    assert enlisted == [session, session]
    session.budget = Budget.SHORT
    assert not session.ready
    session.budget = Budget.OPEN
    session.deliver(Release(idle_ticks=0, quanta=1, text="x"))
    assert not session.ready
    await waiting


async def test_a_release_for_a_client_that_went_away_changes_nothing(fakes):
    session = fakes.session()
    session.deliver(Release(idle_ticks=0, quanta=1, text="x"))
    waiting = asyncio.ensure_future(session.next())
    await asyncio.sleep(0)
    waiting.cancel()
    session.deliver(Release(idle_ticks=0, quanta=1, text="x"))
    await asyncio.gather(waiting, return_exceptions=True)
    assert not session.ready


async def test_whoever_waits_gets_the_fault_and_so_does_whoever_waits_later(fakes):
    session = fakes.session()
    waiting = asyncio.ensure_future(session.next())
    await asyncio.sleep(0)
    session.fail(KeyError("bug"))
    with pytest.raises(KeyError):
        await waiting
    with pytest.raises(KeyError):
        await session.next()


async def test_a_pump_that_dies_of_a_bug_does_not_leave_its_client_waiting(fakes):
    async def dies():
        raise RuntimeError("bug")

    async def lives():
        return None

    session = fakes.session()
    for pump in (asyncio.ensure_future(lives()), asyncio.ensure_future(asyncio.sleep(9))):
        pump.add_done_callback(session.pumped)
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
    pump = asyncio.ensure_future(dies())
    pump.add_done_callback(session.pumped)
    with pytest.raises(RuntimeError):
        await session.next()


async def test_room_is_made_by_what_leaves(fakes):
    session = fakes.session()
    session.answer.add(TextDelta("x" * 64))
    waiting = asyncio.ensure_future(session.room(pending_bytes_max=32))
    await asyncio.sleep(0)
    assert not waiting.done()
    release, _ = session.collect(1, at_ms=MS)
    session.deliver(release)
    await asyncio.wait_for(waiting, 1)


async def test_there_is_room_at_once_when_little_waits_or_the_answer_is_over(fakes):
    session = fakes.session()
    await asyncio.wait_for(session.room(pending_bytes_max=0), 1)
    session.answer.add(TextDelta("x" * 64))
    session.answer.add(Finish(Outcome.STOP))
    await asyncio.wait_for(session.room(pending_bytes_max=0), 1)


@pytest.mark.parametrize("outcome", Outcome)
def test_an_empty_ending_never_costs_more_than_what_is_held_back_for_it(outcome):
    ending = Release(idle_ticks=60_000, quanta=0, text="", ending=Ending(outcome=outcome))
    assert release_bits(ending, tools_declared=7) <= closing_bits(ticks_max=60_000)

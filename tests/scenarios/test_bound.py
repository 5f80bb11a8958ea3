"""The promise itself, by brute force: whatever a backend does, what leaves is one of at most 2^B transcripts."""

import asyncio
from fractions import Fraction
from itertools import product

import pytest

from gateway.session import Budget, closing_bits
from policy.budget import Purse
from policy.canonical import Finish, TextDelta
from policy.release import Outcome

TICKS = 3
NOTHING = ()
TEXTS = tuple((TextDelta("".join(letters)),) for size in (1, 2) for letters in product("ab", repeat=size))
ENDS = tuple((Finish(outcome),) for outcome in (Outcome.STOP, Outcome.LENGTH, Outcome.UPSTREAM_ERROR))
TEXT_AND_END = tuple((*text, *end) for text in TEXTS[:2] for end in ENDS[:1])
CHOICES = (NOTHING, *TEXTS, *ENDS, *TEXT_AND_END)


def transcript(fakes, strategy, *, budget_bits, whole, surcharge_bits=1):
    """What a receiver sees of one answer, tick by tick, and what it was charged."""
    purse = Purse()
    purse.credit(fakes.account().id, budget_bits)
    session = fakes.session(
        purse=purse,
        hold_bits=min(budget_bits, closing_bits(ticks_max=TICKS) + 8),
        quantum_bytes=1,
        whole=whole,
        ticks_max=TICKS,
        surcharge_bits=surcharge_bits,
    )
    seen = []
    for tick, events in enumerate(strategy, start=1):
        for event in events:
            session.answer.add(event)
        leaving = None
        while (
            leaving is None and session.ending is None and (session.answer.finished if whole else session.answer.ready)
        ):
            charged = session.collect(tick, at_ms=0)
            if charged is None:
                session.budget = Budget.SPENT
                session.hold.extend_with_rest()
            else:
                release = charged[0]
                leaving = release.text, release.ending
        seen.append(leaving)
    ended = session.ending is not None
    session.hold.close()
    assert purse.balance_bits(fakes.account().id) == budget_bits - session.charged_bits >= 0
    return tuple(seen), session.charged_bits, ended


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
@pytest.mark.parametrize("more_bits", [0, 9, 17, 40])
def test_all_strategies_of_a_small_world_reach_no_more_transcripts_than_the_budget_allows(fakes, whole, more_bits):
    budget_bits = closing_bits(ticks_max=TICKS) + 8 + more_bits
    charges: dict[tuple, set[int]] = {}
    ended: set[tuple] = set()
    for strategy in product(CHOICES, repeat=TICKS):
        seen, charged_bits, over = transcript(fakes, strategy, budget_bits=budget_bits, whole=whole)
        charges.setdefault(seen, set()).add(charged_bits)
        if over:
            ended.add(seen)
    assert len(ended) > 10
    assert len(charges) <= 2**budget_bits
    assert all(len(prices) == 1 for prices in charges.values()), "the charge is a function of what was seen"
    assert sum(Fraction(1, 2 ** min(charges[seen])) for seen in ended) <= 1


def test_stopping_is_a_function_of_what_was_seen(fakes):
    """Of two strategies that looked alike so far, both go on or both are cut: the withheld text decides nothing."""
    budget_bits = closing_bits(ticks_max=TICKS) + 8 + 20
    cut_at: dict[tuple, set[int]] = {}
    for texts in product(("aa", "ab", "bb"), repeat=TICKS):
        seen, _, _ = transcript(fakes, [(TextDelta(text),) for text in texts], budget_bits=budget_bits, whole=False)
        sizes = tuple(len(piece[0]) if piece else 0 for piece in seen)
        cut_at.setdefault(tuple(map(len, texts)), set()).add(sizes)
    assert all(len(sizes) == 1 for sizes in cut_at.values())


async def test_a_question_that_is_asked_and_left_tells_no_more_than_it_costs(fakes):
    """A client that leaves after a tick sees an answer or none: both are transcripts, so both need mass."""
    never = asyncio.Event()
    price = {}
    for name, steps in (("silence", [never.wait]), ("answer", [fakes.said("")])):
        house = fakes.House(policy=fakes.policy_of(meters="[raw]"))
        async with house.running():
            asking = asyncio.create_task(house.ask(steps))
            await house.ticks(4)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await house.ticks(2)
        price[name] = await house.used_bits("model:m/lifetime/ever")
    assert sum(Fraction(1, 2**bits) for bits in price.values()) <= 1, price

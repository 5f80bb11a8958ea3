"""The promise by brute force where answers may begin with reasoning: at most 2^B transcripts, each at one price."""

from fractions import Fraction
from itertools import product

import pytest

from gateway.session import Budget, closing_bits
from policy.budget import Purse
from policy.canonical import Finish, ReasoningDelta, TextDelta
from policy.release import Outcome

TICKS = 3
WORDS = [(kind("".join(letters)),) for kind in (ReasoningDelta, TextDelta) for letters in ("a", "b", "ab")]
BOTH = [
    (ReasoningDelta("a"), TextDelta("b")),
    (ReasoningDelta("ab"), TextDelta("a")),
    (TextDelta("b"), ReasoningDelta("a")),
]
ENDS = [(Finish(outcome),) for outcome in (Outcome.STOP, Outcome.UPSTREAM_ERROR)]
WORDS_AND_END = [(*words, *ENDS[0]) for words in (WORDS[0], WORDS[3], BOTH[0])]
CHOICES = ((), *WORDS, *BOTH, *ENDS, *WORDS_AND_END)


def transcript(fakes, strategy, *, budget_bits, whole):
    """What a receiver sees of one answer, tick by tick, what it was charged, and whether it ended."""
    rules = fakes.ModelRules(name="m", usage=True, token_ids=False, tokens_max=99, tokens_default=9, reasoning=True)
    purse = Purse()
    purse.credit(fakes.account().id, budget_bits)
    session = fakes.session(
        call=fakes.chat_call(rules=rules, tokens=9),
        purse=purse,
        hold_bits=min(budget_bits, closing_bits(ticks_max=TICKS) + 8),
        quantum_bytes=1,
        whole=whole,
        ticks_max=TICKS,
        surcharge_bits=1,
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
                leaving = charged[0].reasoning or "", charged[0].text, charged[0].ending
        seen.append(leaving)
    ended = session.ending is not None
    session.hold.close()
    assert purse.balance_bits(fakes.account().id) == budget_bits - session.charged_bits >= 0
    return tuple(seen), session.charged_bits, ended


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
@pytest.mark.parametrize("more_bits", [0, 9, 40, 80])
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
    assert all(len(prices) == 1 for prices in charges.values()), "the charge is a function of what was seen"
    assert sum(Fraction(1, 2 ** min(charges[seen])) for seen in ended) <= 1

"""The same promise for a job's events: which states are shown, when, and what the last one says, is at most 2^B transcripts."""

from fractions import Fraction
from itertools import product

import pytest

from gateway.session import Budget, closing_bits
from gateway.wire.dialect import ModelRules
from gateway.wire.jobs import JobId, events_call
from policy.budget import Purse
from policy.canonical import Finish, Numbers, Reached
from policy.release import Outcome

TICKS = 4
RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)
JOB = JobId(text="job-extract-62c66a7a-abc", kind="extract", mark="62c66a7a")
STEPS = tuple((Reached(step),) for step in (1, 2, 3))
ENDS = tuple((Numbers(values), Finish(Outcome.STOP)) for values in ((0, 0), (0, 1), (1, 0)))
FLAGGED = tuple((Numbers((0,), (flag,)), Finish(Outcome.STOP)) for flag in (False, True))
FAILED = (Finish(Outcome.UPSTREAM_ERROR),)


def transcript(fakes, strategy, *, budget_bits, whole):
    """What a receiver sees of one stream, tick by tick, and what it was charged."""
    purse = Purse()
    purse.credit(fakes.account().id, budget_bits)
    session = fakes.session(
        call=events_call(JOB, RULES, tenant="acme"),
        purse=purse,
        hold_bits=min(budget_bits, closing_bits(ticks_max=TICKS) + 8),
        whole=whole,
        ticks_max=TICKS,
    )
    seen = []
    for tick, events in enumerate(strategy, start=1):
        for event in events:
            session.answer.add(event)
        leaving = None
        while leaving is None and session.ending is None and (session.answer.finished or not whole):
            if not session.answer.ready:
                break
            charged = session.collect(tick, at_ms=0)
            if charged is None:
                session.budget = Budget.SPENT
                session.hold.extend_with_rest()
            else:
                leaving = charged[0].quanta, charged[0].ending
        seen.append(leaving)
    ended = session.ending is not None
    session.hold.close()
    assert purse.balance_bits(fakes.account().id) == budget_bits - session.charged_bits >= 0
    return tuple(seen), session.charged_bits, ended


@pytest.mark.parametrize("ends", [(*ENDS, FAILED), (*FLAGGED, FAILED)], ids=["numbers", "flags"])
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
@pytest.mark.parametrize("more_bits", [0, 9, 17, 40])
def test_all_ways_of_showing_progress_reach_no_more_transcripts_than_the_budget_allows(fakes, whole, more_bits, ends):
    budget_bits = closing_bits(ticks_max=TICKS) + 8 + more_bits
    charges: dict[tuple, set[int]] = {}
    ended: set[tuple] = set()
    for strategy in product(((), *STEPS, *ends), repeat=TICKS):
        seen, charged_bits, over = transcript(fakes, strategy, budget_bits=budget_bits, whole=whole)
        charges.setdefault(seen, set()).add(charged_bits)
        if over:
            ended.add(seen)
    assert len(ended) > 10
    assert len(charges) <= 2**budget_bits
    assert all(len(prices) == 1 for prices in charges.values()), "the charge is a function of what was seen"
    assert sum(Fraction(1, 2 ** min(charges[seen])) for seen in ended) <= 1


def test_a_stream_shows_no_more_states_than_the_ladder_has_steps(fakes):
    """However many events a backend sends, each release is a step further at least."""
    session = fakes.session(call=events_call(JOB, RULES, tenant="acme"), ticks_max=10_000, hold_bits=100_000)
    shown = 0
    for tick in range(1, 2000):
        session.answer.add(Reached(tick * 7 % (session.call.steps_max + 1)))
        if session.answer.ready:
            assert session.collect(tick, at_ms=0) is not None
            shown += 1
    assert shown <= session.call.steps_max

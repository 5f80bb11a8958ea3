"""A job's progress as steps: what leaves at a tick is how far it has come since, and nothing else of what was said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.canonical import Answer, Finish, Malformed, Numbers, Reached
from policy.codelength import elias_delta_bits, release_bits
from policy.progress import Progress
from policy.release import Outcome


def test_what_leaves_is_the_number_of_steps_since_the_last_release():
    progress = Progress(steps_max=10)
    assert not progress.ready
    progress.add(Reached(3))
    progress.add(Reached(5))
    assert (progress.ready, progress.quanta_now) == (True, 5)
    first = progress.take(idle_ticks=2, quanta=5)
    assert (first.quanta, first.text, first.ending) == (5, "", None)
    assert not progress.ready
    assert release_bits(first, tools_declared=0) == elias_delta_bits(3) + 1 + elias_delta_bits(5)


def test_a_step_back_is_none():
    progress = Progress(steps_max=10)
    progress.add(Reached(5))
    progress.take(idle_ticks=0, quanta=5)
    progress.add(Reached(2))
    assert not progress.ready


@pytest.mark.parametrize("step", [-1, 11])
def test_a_step_beyond_the_ladder_is_malformed(step):
    with pytest.raises(Malformed):
        Progress(steps_max=10).add(Reached(step))


def test_progress_where_none_was_asked_for_is_malformed():
    answer = Answer(quantum_bytes=16, answer_bytes_max=0, tools_declared=frozenset())
    with pytest.raises(Malformed):
        answer.add(Reached(1))


def test_at_the_end_the_result_leaves_and_steps_are_said_no_more():
    progress = Progress(steps_max=10)
    progress.add(Reached(5))
    progress.add(Numbers((2, 100), (True,)))
    progress.add(Finish(Outcome.STOP))
    progress.add(Reached(7))
    assert progress.last_piece
    assert progress.quanta_now == 5
    ending = progress.take_ending(idle_ticks=0)
    assert (ending.quanta, ending.text) == (0, "")
    assert (ending.ending.outcome, ending.ending.numbers, ending.ending.flags) == (Outcome.STOP, (2, 100), (True,))


@given(st.lists(st.integers(0, 10)), st.data())
def test_steps_add_up_to_the_furthest_one_however_they_are_cut(steps, data):
    progress, released = Progress(steps_max=10), 0
    for step in steps:
        progress.add(Reached(step))
        if progress.ready and data.draw(st.booleans()):
            released += progress.take(idle_ticks=0, quanta=progress.quanta_now).quanta
    assert released + progress.quanta_now == max(steps, default=0)


def test_a_budget_that_ends_first_takes_the_result_along():
    progress = Progress(steps_max=10)
    progress.add(Reached(5))
    progress.end(Outcome.TIMEOUT)
    cut = progress.cut(idle_ticks=0, text_bytes=100)
    assert (cut.text, cut.ending.outcome, cut.ending.numbers, cut.ending.flags) == ("", Outcome.BUDGET, None, ())

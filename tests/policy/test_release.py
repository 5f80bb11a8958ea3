"""What may leave is a closed type: nothing in it can be changed, and no field can be added."""

import dataclasses

import pytest

from policy.release import Ending, Outcome, Release, ToolCall, Usage, Vectors

COMPLETE = {Outcome.STOP, Outcome.LENGTH, Outcome.TOOL_CALLS}


@pytest.mark.parametrize("outcome", Outcome)
def test_only_stop_length_and_tool_calls_may_be_told_as_a_whole_answer(outcome):
    assert outcome.complete == (outcome in COMPLETE)


@pytest.mark.parametrize(
    "value",
    [
        Usage(prompt_tokens=1, completion_tokens=2),
        ToolCall(name="f", arguments="{}"),
        Ending(outcome=Outcome.STOP),
        Release(idle_ticks=0, quanta=1, text="x"),
        Vectors(bits=8, dimensions_coded=False, rows=(b"a",)),
    ],
)
def test_a_released_value_is_frozen_and_has_no_room_for_more(value):
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)
    assert not hasattr(value, "__dict__")


def test_an_ending_says_nothing_that_was_not_put_into_it():
    ending = Ending(outcome=Outcome.STOP)
    assert (ending.tool_calls, ending.usage, ending.numbers, ending.vectors) == ((), None, None, None)


@pytest.mark.parametrize(("reasoning", "spoken"), [(None, "x"), ("", "x"), ("hm", "hmx")])
def test_what_is_spoken_is_reasoning_and_then_text(reasoning, spoken):
    assert Release(idle_ticks=0, quanta=1, text="x", reasoning=reasoning).spoken == spoken

"""What a backend says becomes releases that do not depend on how it was said."""

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policy.canonical import (
    Answer,
    Embedded,
    Finish,
    Malformed,
    Numbers,
    TextDelta,
    TokenIds,
    ToolCallDelta,
    UsageReport,
    canonical_arguments,
    whole_characters,
)
from policy.limits import TICK_RELEASE_BYTES_MAX, TOOL_ARGUMENTS_BYTES_MAX, TOOL_CALLS_MAX
from policy.release import Ending, Outcome, ToolCall, Usage, Vectors
from policy.values import QUANTUM_BYTES_MIN

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


def answer(*events, quantum_bytes=4, answer_bytes_max=1000, tools=("f", "g")) -> Answer:
    made = Answer(quantum_bytes=quantum_bytes, answer_bytes_max=answer_bytes_max, tools_declared=frozenset(tools))
    for event in events:
        made.add(event)
    return made


def split(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


# Whole characters.


@given(st.text(max_size=12), st.integers(0, 60))
def test_a_prefix_is_cut_at_the_last_whole_character_that_fits(text, size):
    data = text.encode()
    n = whole_characters(data, size)
    assert n <= size or n == len(data) <= size
    data[:n].decode()
    longer = [len(text[:i].encode()) for i in range(len(text) + 1) if n < len(text[:i].encode()) <= size]
    assert not longer


def test_a_character_that_does_not_fit_at_all_leaves_nothing():
    assert whole_characters("😀".encode(), 3) == 0


# Tool arguments.


@given(json_values)
def test_arguments_have_one_spelling_whatever_the_order_and_white_space(value):
    spaced = json.dumps(value, ensure_ascii=True, indent=2)
    dense = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert canonical_arguments(spaced) == canonical_arguments(dense)
    assert json.loads(canonical_arguments(spaced)) == value


def test_keys_of_arguments_are_sorted():
    assert canonical_arguments('{"b": 1, "a": {"d": [1, 2], "c": null}}') == '{"a":{"c":null,"d":[1,2]},"b":1}'


@given(st.text(max_size=40) | json_values.map(json.dumps))
def test_canonical_arguments_are_their_own_canonical_form(arguments):
    once = canonical_arguments(arguments)
    assert canonical_arguments(once) == once


@pytest.mark.parametrize("arguments", ["", "{", "NaN", "[Infinity]", "1e999", "[" * 100_000, "9" * 5000, "not json"])
def test_what_is_not_json_stays_as_the_model_wrote_it(arguments):
    assert canonical_arguments(arguments) == arguments


# Text.


@given(st.text(max_size=40), st.lists(st.integers(0, 100)), st.integers(4, 9))
def test_text_leaves_in_order_in_whole_quanta_however_it_was_split(text, cuts, quantum_bytes):
    said = answer(*map(TextDelta, split(text, cuts)), quantum_bytes=quantum_bytes)
    left = ""
    while said.quanta_now:
        release = said.take(idle_ticks=0, quanta=said.quanta_now)
        assert release.ending is None
        assert 0 <= release.quanta * quantum_bytes - len(release.text.encode()) <= 3
        left += release.text
    assert text.startswith(left)
    said.add(Finish(Outcome.STOP))
    assert left + said.take_ending(idle_ticks=0).text == text


@settings(max_examples=60)
@given(st.text("é😀a", min_size=1, max_size=12), st.integers(QUANTUM_BYTES_MIN, 16))
@example("aaaaa😀", QUANTUM_BYTES_MIN)
def test_every_piece_carries_text_whatever_the_quantum(text, quantum_bytes):
    """A piece that carries nothing costs bits every tick for as long as the backend pauses there."""
    said = answer(TextDelta(text), quantum_bytes=quantum_bytes)
    if said.quanta_now:
        assert said.take(idle_ticks=0, quanta=said.quanta_now).text


def test_one_tick_takes_at_most_the_tick_limit():
    said = answer(TextDelta("x" * 5000), Finish(Outcome.STOP), quantum_bytes=16, answer_bytes_max=10_000)
    assert said.quanta_now == TICK_RELEASE_BYTES_MAX // 16
    assert not said.last_piece
    said.take(idle_ticks=0, quanta=said.quanta_now)
    assert said.last_piece
    assert said.pending_bytes == 5000 - TICK_RELEASE_BYTES_MAX


def test_nothing_is_ready_below_a_quantum_until_the_backend_finishes():
    said = answer(TextDelta("abc"))
    assert not said.ready
    assert not said.last_piece
    said.add(Finish(Outcome.STOP))
    assert said.ready
    assert said.finished
    assert said.complete
    assert said.last_piece


def test_text_over_the_answers_limit_is_cut_at_a_whole_character_and_ends_with_length():
    said = answer(TextDelta("abc"), TextDelta("é😀"), answer_bytes_max=6)
    release = said.take_ending(idle_ticks=0)
    assert (release.text, release.ending.outcome) == ("abcé", Outcome.LENGTH)


@given(st.text(max_size=20), st.lists(st.integers(0, 50)), st.integers(0, 30))
def test_where_an_answer_is_cut_for_length_does_not_depend_on_how_it_was_split(text, cuts, answer_bytes_max):
    whole = answer(TextDelta(text), Finish(Outcome.STOP), answer_bytes_max=answer_bytes_max)
    parts = answer(*map(TextDelta, split(text, cuts)), Finish(Outcome.STOP), answer_bytes_max=answer_bytes_max)
    assert whole.take_ending(idle_ticks=0) == parts.take_ending(idle_ticks=0)


def test_after_an_answer_was_cut_for_length_nothing_that_the_backend_adds_is_taken_in():
    """Whether the report is in the same TCP chunk as the text that was too long must make no difference."""
    usage = UsageReport(Usage(prompt_tokens=1, completion_tokens=2))
    said = answer(TextDelta("hello"), usage, Numbers((1,)), TokenIds((5,)), answer_bytes_max=4)
    assert said.take_ending(idle_ticks=0).ending == Ending(outcome=Outcome.LENGTH)
    assert said.token_ids == []


def test_text_after_the_end_is_seen_by_nobody():
    said = answer(TextDelta("a"), Finish(Outcome.STOP), TextDelta("b"), ToolCallDelta(0, "f", "{}"))
    release = said.take_ending(idle_ticks=3)
    assert (release.text, release.ending, release.idle_ticks) == ("a", Ending(outcome=Outcome.STOP), 3)


def test_what_is_no_event_is_no_part_of_an_answer():
    said = answer("text that no codec vouches for", None)
    assert not said.ready
    assert said.pending_bytes == 0


def test_the_first_finish_stands():
    said = answer(Finish(Outcome.LENGTH), Finish(Outcome.STOP))
    said.end(Outcome.UPSTREAM_ERROR)
    assert said.take_ending(idle_ticks=0).ending.outcome is Outcome.LENGTH


def test_usage_and_numbers_leave_with_the_ending():
    usage = Usage(prompt_tokens=3, completion_tokens=4)
    said = answer(UsageReport(usage), Numbers((1, 2)), TokenIds((7, 8)), TokenIds((9,)), Finish(Outcome.STOP))
    assert said.take_ending(idle_ticks=0).ending == Ending(outcome=Outcome.STOP, usage=usage, numbers=(1, 2))
    assert said.token_ids == [7, 8, 9]


def test_a_fault_drops_what_the_backend_claimed_and_keeps_the_text():
    said = answer(TextDelta("a"), UsageReport(Usage(prompt_tokens=3, completion_tokens=4)), Numbers((1,)))
    said.end(Outcome.TIMEOUT)
    assert not said.complete
    release = said.take_ending(idle_ticks=0)
    assert (release.text, release.ending) == ("a", Ending(outcome=Outcome.TIMEOUT))


def test_a_rejection_keeps_the_gateways_own_number():
    said = answer()
    said.end(Outcome.REJECTED, numbers=(2,))
    assert said.take_ending(idle_ticks=0).ending == Ending(outcome=Outcome.REJECTED, numbers=(2,))


def test_embeddings_leave_with_the_ending_and_not_with_a_fault():
    vectors = Vectors(bits=8, dimensions_coded=False, rows=(b"ab",))
    whole = answer(Embedded(vectors), Finish(Outcome.STOP))
    assert whole.take_ending(idle_ticks=0).ending == Ending(outcome=Outcome.STOP, vectors=vectors)
    broken = answer(Embedded(vectors))
    broken.end(Outcome.UPSTREAM_ERROR)
    assert broken.take_ending(idle_ticks=0).ending == Ending(outcome=Outcome.UPSTREAM_ERROR)


def test_dropped_text_never_leaves():
    said = answer(TextDelta("abc"))
    said.end(Outcome.UPSTREAM_ERROR)
    said.drop_text()
    assert said.take_ending(idle_ticks=0).text == ""


def test_lone_surrogates_are_malformed():
    with pytest.raises(Malformed, match="surrogate"):
        answer(TextDelta("\ud800"))


# Previews and cuts.


@given(st.text(max_size=20), st.booleans())
def test_a_preview_is_what_would_leave_and_takes_nothing(text, call):
    events = [TextDelta(text), *([ToolCallDelta(0, "f", '{"a": 1}')] if call else []), Finish(Outcome.STOP)]
    said = answer(*events)
    preview = said.preview_ending(idle_ticks=2)
    assert said.pending_bytes == len(text.encode())
    assert said.take_ending(idle_ticks=2) == preview


def test_a_cut_lets_out_no_more_than_the_budget_covers_and_drops_the_rest():
    said = answer(TextDelta("abcé"), ToolCallDelta(0, "f", "{}"), Finish(Outcome.STOP))
    release = said.cut(idle_ticks=1, text_bytes=4)
    assert (release.text, release.ending) == ("abc", Ending(outcome=Outcome.BUDGET))
    assert said.pending_bytes == 0


# Tool calls.


def test_calls_leave_together_in_call_order_as_canonical_json():
    said = answer(
        ToolCallDelta(0, "g", '{"b": '),
        ToolCallDelta(1, "f", "oops"),
        ToolCallDelta(0, None, '1, "a": 2}'),
        Finish(Outcome.STOP),
    )
    ending = said.take_ending(idle_ticks=0).ending
    assert ending.outcome is Outcome.TOOL_CALLS
    assert ending.tool_calls == (
        ToolCall(name="g", arguments='{"a":2,"b":1}'),
        ToolCall(name="f", arguments="oops"),
    )


def test_calls_cannot_be_claimed_where_none_was_made():
    assert answer(Finish(Outcome.TOOL_CALLS)).take_ending(idle_ticks=0).ending == Ending(outcome=Outcome.STOP)


def test_calls_of_an_answer_that_failed_are_not_told():
    said = answer(ToolCallDelta(0, "f", "{}"))
    said.end(Outcome.UPSTREAM_ERROR)
    assert said.take_ending(idle_ticks=0).ending == Ending(outcome=Outcome.UPSTREAM_ERROR)


@pytest.mark.parametrize(
    ("delta", "why"),
    [
        (ToolCallDelta(0, "h", "{}"), "did not declare"),
        (ToolCallDelta(0, None, "{}"), "did not declare"),
        (ToolCallDelta(1, "f", "{}"), "out of order"),
        (ToolCallDelta(-1, "f", "{}"), "out of order"),
    ],
)
def test_a_call_that_the_request_did_not_allow_is_malformed(delta, why):
    with pytest.raises(Malformed, match=why):
        answer(delta)


def test_more_calls_than_the_limit_are_malformed():
    deltas = [ToolCallDelta(index, "f", "") for index in range(TOOL_CALLS_MAX)]
    said = answer(*deltas)
    with pytest.raises(Malformed, match=f"more than {TOOL_CALLS_MAX}"):
        said.add(ToolCallDelta(TOOL_CALLS_MAX, "f", ""))


def test_arguments_over_the_limit_of_one_call_are_malformed():
    said = answer(ToolCallDelta(0, "f", "x" * TOOL_ARGUMENTS_BYTES_MAX))
    with pytest.raises(Malformed, match="arguments over"):
        said.add(ToolCallDelta(0, None, "x"))


@pytest.mark.parametrize("arguments", ['{"a":"\\ud800"}', '["\\udfff"]', '{"\\ud800":1}'])
def test_a_lone_surrogate_in_arguments_cannot_reach_the_tick(arguments):
    """`take_ending` runs inside the tick, whose faults end the process: it must refuse earlier, or keep the text as it is."""
    said = answer()
    try:
        said.add(ToolCallDelta(0, "f", arguments))
        said.add(Finish(Outcome.STOP))
    except Malformed:
        said.end(Outcome.UPSTREAM_ERROR)
    release = said.preview_ending(idle_ticks=0)
    for call in release.ending.tool_calls:
        call.arguments.encode()


@given(st.lists(st.integers(0, 50)), st.integers(0, 30))
def test_arguments_over_the_answers_limit_end_it_the_same_however_they_were_split(cuts, answer_bytes_max):
    text = '{"a":"%s"}' % ("x" * 12)
    first, *rest = split(text, cuts)
    whole = answer(ToolCallDelta(0, "f", text), Finish(Outcome.STOP), answer_bytes_max=answer_bytes_max)
    deltas = [ToolCallDelta(0, "f", first), *(ToolCallDelta(0, None, part) for part in rest)]
    parts = answer(*deltas, Finish(Outcome.STOP), answer_bytes_max=answer_bytes_max)
    assert whole.take_ending(idle_ticks=0) == parts.take_ending(idle_ticks=0)


def test_an_answer_whose_calls_were_cut_for_length_does_not_claim_them_whole():
    said = answer(
        ToolCallDelta(0, "f", '{"a":'), ToolCallDelta(0, None, "1" * 20), Finish(Outcome.STOP), answer_bytes_max=10
    )
    assert said.take_ending(idle_ticks=0).ending.outcome is Outcome.LENGTH

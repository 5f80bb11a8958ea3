"""Reasoning leaves before the text, in the same quanta, and where it ended does not depend on how it was split."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from policy.canonical import Answer, Finish, ReasoningDelta, TextDelta
from policy.limits import TICK_RELEASE_BYTES_MAX
from policy.release import Ending, Outcome


def answer(*events, quantum_bytes=8, answer_bytes_max=10_000, reasoning=True) -> Answer:
    made = Answer(
        quantum_bytes=quantum_bytes,
        answer_bytes_max=answer_bytes_max,
        tools_declared=frozenset({"f"}),
        reasoning=reasoning,
    )
    for event in events:
        made.add(event)
    return made


def drained(said: Answer) -> list[tuple[str | None, str]]:
    """All releases, as reasoning and text."""
    out = []
    while not said.last_piece:
        release = said.take(idle_ticks=0, quanta=said.quanta_now)
        out.append((release.reasoning, release.text))
    release = said.take_ending(idle_ticks=0)
    return [*out, (release.reasoning, release.text)]


def split(kind, text, cuts):
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [kind(text[a:b]) for a, b in itertools.pairwise(edges)]


def test_a_piece_may_hold_the_end_of_the_reasoning_and_the_beginning_of_the_text():
    said = answer(ReasoningDelta("thought" * 2), TextDelta("answer"))
    release = said.take(idle_ticks=0, quanta=2)
    assert (release.reasoning, release.text, release.spoken) == ("thought" * 2, "an", "thought" * 2 + "an")
    said.add(Finish(Outcome.STOP))
    release = said.take_ending(idle_ticks=0)
    assert (release.reasoning, release.text) == (None, "swer")


def test_until_there_is_text_every_release_says_that_there_is_none():
    said = answer(ReasoningDelta("x" * 20))
    release = said.take(idle_ticks=0, quanta=2)
    assert (release.reasoning, release.text) == ("x" * 16, "")
    assert said.switching
    said.add(TextDelta("y" * 4))
    release = said.take(idle_ticks=0, quanta=1)
    assert (release.reasoning, release.text) == ("xxxx", "yyyy")
    assert not said.switching


def test_reasoning_after_text_has_begun_is_dropped():
    said = answer(ReasoningDelta("a"), TextDelta("b"), ReasoningDelta("late"), TextDelta("c"), Finish(Outcome.STOP))
    release = said.take_ending(idle_ticks=0)
    assert (release.reasoning, release.text) == ("a", "bc")


def test_empty_text_does_not_end_the_reasoning():
    said = answer(TextDelta(""), ReasoningDelta("a"), TextDelta(""), ReasoningDelta("b"), Finish(Outcome.STOP))
    assert said.take_ending(idle_ticks=0).reasoning == "ab"


def test_where_policy_releases_none_reasoning_is_nothing():
    said = answer(ReasoningDelta("a"), TextDelta("b"), Finish(Outcome.STOP), reasoning=False)
    assert not said.switching
    release = said.take_ending(idle_ticks=0)
    assert (release.reasoning, release.text) == (None, "b")


def test_reasoning_counts_towards_the_length_of_an_answer():
    said = answer(ReasoningDelta("aaaé"), TextDelta("b"), answer_bytes_max=4)
    release = said.take_ending(idle_ticks=0)
    assert (release.reasoning, release.text, release.ending) == ("aaa", "", Ending(outcome=Outcome.LENGTH))


def test_a_preview_takes_neither_words_nor_the_turn_to_text():
    said = answer(ReasoningDelta("a" * 20), TextDelta("b"), Finish(Outcome.STOP))
    assert said.preview_ending(idle_ticks=0) == said.preview_ending(idle_ticks=0) == said.take_ending(idle_ticks=0)


def test_a_cut_lets_out_reasoning_first():
    said = answer(ReasoningDelta("aaaa"), TextDelta("bbbb"))
    release = said.cut(idle_ticks=0, text_bytes=6)
    assert (release.reasoning, release.text, release.ending) == ("aaaa", "bb", Ending(outcome=Outcome.BUDGET))
    assert said.pending_bytes == 0


def test_dropped_words_never_leave():
    said = answer(ReasoningDelta("aaaa"), TextDelta("bbbb"))
    said.end(Outcome.UPSTREAM_ERROR)
    said.drop_text()
    assert said.take_ending(idle_ticks=0).spoken == ""


def test_one_tick_takes_reasoning_and_text_together_up_to_the_tick_limit():
    said = answer(ReasoningDelta("a" * TICK_RELEASE_BYTES_MAX), TextDelta("b" * 5), Finish(Outcome.STOP))
    assert drained(said) == [("a" * TICK_RELEASE_BYTES_MAX, ""), ("", "bbbbb")]


@given(st.text(max_size=30), st.text(max_size=30), st.lists(st.integers(0, 50)), st.integers(0, 60))
def test_how_words_were_split_makes_no_difference(thought, text, cuts, room):
    whole = answer(ReasoningDelta(thought), TextDelta(text), Finish(Outcome.STOP), answer_bytes_max=room)
    parts = answer(
        *split(ReasoningDelta, thought, cuts),
        *split(TextDelta, text, cuts),
        Finish(Outcome.STOP),
        answer_bytes_max=room,
    )
    assert drained(whole) == drained(parts)


@given(st.text("é😀a", max_size=30), st.text("é😀a", max_size=30))
def test_a_piece_is_never_more_than_three_bytes_short_of_its_quanta(thought, text):
    said = answer(ReasoningDelta(thought), TextDelta(text))
    left = ["", ""]
    while quanta := said.quanta_now:
        release = said.take(idle_ticks=0, quanta=quanta)
        assert 0 <= quanta * 8 - len(release.spoken.encode()) <= 3
        left[0] += release.reasoning or ""
        left[1] += release.text
    assert (thought + text).startswith("".join(left))
    assert thought.startswith(left[0])

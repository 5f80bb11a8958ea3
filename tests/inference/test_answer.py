from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.answer import Answer
from inference.loading import LoadedModel
from inference.tools import ToolCall, ToolChoice, read_tool_calls

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TOOLS = ToolChoice(declarations=(WEATHER,))


def answered(loaded: LoadedModel, text: str, *, stop=(), tools=None, end=False):
    """Feed the tokens of a text until the answer stops; return (visible pieces, last piece, answer)."""
    answer = Answer(loaded.tokenizer, end_ids=loaded.end_ids, stop=stop, tools=tools)
    pieces = []
    for token_id in [*loaded.tokenizer.encode(text, add_special_tokens=False), *([2] if end else [])]:
        piece = answer.push(token_id)
        if piece is not None:
            pieces.append(piece)
        if answer.is_stopped:
            break
    return pieces, answer.finish(), answer


def shown(pieces, last) -> str:
    return "".join(piece.text for piece in pieces) + last.text


def test_an_end_token_ends_the_answer_and_is_counted_but_not_shown(loaded: LoadedModel):
    pieces, last, answer = answered(loaded, "Yes, of course.", end=True)
    assert (shown(pieces, last), last.finish_reason) == ("Yes, of course.", "stop")
    ids = [i for piece in (*pieces, last) for i in piece.token_ids]
    assert ids[-1] == 2
    assert len(ids) == answer.token_count


def test_an_answer_nobody_stopped_ends_for_its_length(loaded: LoadedModel):
    pieces, last, _ = answered(loaded, "And then 🦉 flew")
    assert (shown(pieces, last), last.finish_reason) == ("And then 🦉 flew", "length")


def test_text_ends_before_the_first_stop_string_and_nothing_of_it_leaks(loaded: LoadedModel):
    pieces, last, answer = answered(loaded, "one two three END four", stop=("three E", "END"))
    assert (shown(pieces, last), last.finish_reason) == ("one two ", "stop")
    assert answer.is_stopped


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab \n🦉", max_size=25),
    stop=st.lists(st.text(alphabet="ab 🦉", min_size=1, max_size=4), max_size=3),
)
def test_streamed_text_is_the_text_before_the_stop_string_for_any_text(loaded: LoadedModel, text: str, stop: list[str]):
    pieces, last, _ = answered(loaded, text, stop=stop)
    places = [place for place in (text.find(mark) for mark in stop) if place >= 0]
    expected = text[: min(places)] if places else text
    # A stop string is noticed when its last character arrives, so an overlapping one that ends earlier wins.
    visible = shown(pieces, last)
    assert text.startswith(visible)
    assert not any(mark in visible for mark in stop)
    assert visible.startswith(expected)


def test_text_that_only_begins_like_a_stop_string_is_shown_in_the_end(loaded: LoadedModel):
    pieces, last, _ = answered(loaded, "to be or not to b", stop=("to be or not to be!",))
    assert shown(pieces, last) == "to be or not to b"


def test_a_call_in_the_answer_becomes_a_tool_call_and_its_tag_is_never_shown(loaded: LoadedModel):
    text = 'Let me see. <tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call> and so on'
    pieces, last, _ = answered(loaded, text, tools=TOOLS)
    assert last.tool_calls == (ToolCall(name="weather", arguments='{"city":"Köln"}'),)
    assert last.finish_reason == "tool_calls"
    assert "<" not in "".join(piece.text for piece in pieces)
    assert shown(pieces, last).strip() == "Let me see."


def test_a_forced_call_needs_only_its_arguments(loaded: LoadedModel):
    forced = ToolChoice(declarations=(WEATHER,), forced="weather")
    _, last, answer = answered(loaded, '"city": "Oslo"}} and more', tools=forced)
    assert last.tool_calls == (ToolCall(name="weather", arguments='{"city":"Oslo"}'),)
    assert answer.is_stopped


def test_what_is_no_call_of_a_declared_tool_stays_text():
    for text in (
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        "<tool_call>not json</tool_call>",
        '<tool_call>{"name": "weather", "arguments": "x"}</tool_call>',
        "a < b <tool_call",
    ):
        assert read_tool_calls(text, TOOLS.names) == (text, [])

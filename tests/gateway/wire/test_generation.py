"""What is read of a backend's answer, what is skipped unread, and what is no answer at all."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.generation import Heeded, Room, StreamDecoder, WholeDecoder
from gateway.wire.steering_report import steering_body
from inference.steering.table import DOSE_MAX
from policy.canonical import Finish, Malformed, Numbers, ReasoningDelta, TextDelta, TokenIds, ToolCallDelta, UsageReport
from policy.limits import EVENT_BYTES_MAX, TOKENS_REPORTED_MAX
from policy.release import Outcome, Usage

ALL = Heeded(usage=True, reasoning=True)
STEERED = Heeded(usage=True, reasoning=True, steering=True)
AMPLE = Room(tokens=1 << 20, token_ids=True)


def stream(*bodies, done=True) -> bytes:
    lines = [body if isinstance(body, str) else json.dumps(body) for body in bodies] + (["[DONE]"] if done else [])
    return b"".join(b"data: " + line.encode() + b"\n\n" for line in lines)


def chunk(finish=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def decode(decoder, *chunks: bytes):
    """All events, and the fault if there was one."""
    events, fault = [], None
    try:
        for part in chunks:
            events.extend(decoder.feed(part))
        events.extend(decoder.eof())
    except Malformed as malformed:
        fault = str(malformed)
    return events, fault


def joined(events):
    """Neighbouring texts as one: where they were split means nothing."""
    out = []
    for event in events:
        if isinstance(event, TextDelta) and out and isinstance(out[-1], TextDelta):
            out[-1] = TextDelta(out[-1].text + event.text)
        else:
            out.append(event)
    return out


def read(*chunks: bytes, heeded=ALL):
    events, fault = decode(StreamDecoder(heeded, AMPLE), *chunks)
    return joined(events), fault


def whole(body, *, heeded=ALL):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode(WholeDecoder(heeded, AMPLE), data)


USAGE = {"prompt_tokens": 3, "completion_tokens": 4}
STEERING = {"applied": {"prompt_tokens": 1, "generated_tokens": 2, "layers": [0, 3]}, "relative_dose": 0.1234}


def test_a_streamed_answer_is_its_text_and_then_what_is_said_once():
    answer = stream(chunk(content="a"), chunk(content="b"), chunk("stop"), {"choices": [], "usage": USAGE})
    usage = Usage(prompt_tokens=3, completion_tokens=4)
    assert read(answer) == ([TextDelta("ab"), UsageReport(usage), Finish(Outcome.STOP)], None)


@pytest.mark.parametrize(
    "bodies",
    [
        [chunk(content="hello"), {**chunk("length"), "usage": USAGE}],
        [{**chunk(content="hello"), "usage": USAGE}, chunk("length")],
        [chunk(content="hello"), chunk("length"), {"choices": [], "usage": USAGE}, {"choices": []}],
        [chunk("length", content="hello"), {"usage": USAGE}],
        [chunk(role="assistant", content=""), chunk(role="assistant", content="hel"), chunk(content="lo"),
         chunk("length"), chunk("stop"), {"usage": USAGE}],
        [{"choices": [{"text": "hello"}]}, {"choices": [{"text": "", "finish_reason": "length"}], "usage": USAGE}],
    ],
)  # fmt: skip
def test_where_a_backend_puts_its_usage_role_and_finish_makes_no_difference(bodies):
    usage = UsageReport(Usage(prompt_tokens=3, completion_tokens=4))
    assert read(stream(*bodies)) == ([TextDelta("hello"), usage, Finish(Outcome.LENGTH)], None)


def test_usage_that_the_policy_drops_is_not_read():
    assert read(stream(chunk("stop"), {"usage": USAGE}), heeded=Heeded()) == ([Finish(Outcome.STOP)], None)


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("stop", Outcome.STOP),
        ("length", Outcome.LENGTH),
        ("tool_calls", Outcome.TOOL_CALLS),
        ("function_call", Outcome.TOOL_CALLS),
        ("content_filter", Outcome.STOP),
        ("secret-0451", Outcome.STOP),
    ],
)
def test_a_finish_reason_is_one_of_three_whatever_an_engine_invents(reason, outcome):
    assert read(stream(chunk(reason)))[0] == [Finish(outcome)]


def test_unknown_fields_say_nothing():
    noisy = chunk(content="a", thoughts="secret", extra={"deep": [1]})
    noisy |= {"id": "secret", "system_fingerprint": "secret", "created": 1, "logprobs": {"a": 1}}
    assert read(stream(noisy, chunk("stop"))) == read(stream(chunk(content="a"), chunk("stop")))


def test_tool_calls_come_in_parts_by_index_or_by_position():
    one = chunk(tool_calls=[{"index": 0, "id": "x", "function": {"name": "f", "arguments": "{"}}])
    two = chunk(tool_calls=[{"index": 0, "function": {"arguments": "}"}}, {"index": 1, "function": {"name": "g"}}])
    events, fault = read(stream(one, two, chunk("tool_calls")))
    assert fault is None
    assert events == [
        ToolCallDelta(0, "f", "{"),
        ToolCallDelta(0, None, "}"),
        ToolCallDelta(1, "g", ""),
        Finish(Outcome.TOOL_CALLS),
    ]
    message = {"tool_calls": [{"function": {"name": "f"}}, {"function": {"name": "g"}}]}
    events, _ = whole({"choices": [{"message": message, "finish_reason": "stop"}]})
    assert [event.index for event in events[:2]] == [0, 1]


def test_token_ids_are_for_the_record():
    body = {"choices": [{"delta": {"content": "a"}, "token_ids": [1, 2]}]}
    assert read(stream(body, chunk("stop")))[0] == [TextDelta("a"), TokenIds((1, 2)), Finish(Outcome.STOP)]


def test_steering_statistics_that_were_not_asked_for_are_not_read():
    """They would be a channel that no request opened."""
    body = {**chunk("stop"), "steering": STEERING}
    assert read(stream(body), heeded=Heeded(usage=True)) == ([Finish(Outcome.STOP)], None)
    whole_body = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "steering": STEERING}
    assert whole(whole_body, heeded=Heeded()) == ([TextDelta("a"), Finish(Outcome.STOP)], None)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_has_two_names_and_comes_before_the_text_of_its_chunk(name):
    events, fault = read(
        stream(chunk(**{name: "hm", "content": "a"}), chunk(**{name: " so", "content": None}), chunk("stop"))
    )
    assert (events, fault) == (
        [ReasoningDelta("hm"), TextDelta("a"), ReasoningDelta(" so"), Finish(Outcome.STOP)],
        None,
    )
    message = {"content": "a", name: "hm"}
    assert whole({"choices": [{"message": message, "finish_reason": "stop"}]})[0] == [
        ReasoningDelta("hm"),
        TextDelta("a"),
        Finish(Outcome.STOP),
    ]


def test_reasoning_under_both_names_is_said_once():
    assert read(stream(chunk(reasoning="hm", reasoning_content="hm"), chunk("stop")))[0][0] == ReasoningDelta("hm")


@pytest.mark.parametrize("said", [7, [], {"text": "hm"}, None, "", True])
def test_reasoning_that_is_no_text_is_none(said):
    assert read(stream(chunk(reasoning=said, content="a"), chunk("stop")))[0] == [TextDelta("a"), Finish(Outcome.STOP)]


def test_reasoning_that_policy_drops_is_not_read():
    quiet = read(stream(chunk(content="a"), chunk("stop")), heeded=Heeded())
    noisy = stream(chunk(reasoning="hm"), chunk(reasoning_content="hm", content="a"), chunk("stop"))
    assert read(noisy, heeded=Heeded()) == quiet


def test_steering_statistics_become_integers_and_are_rendered_from_them():
    events, _ = read(stream({**chunk("stop"), "steering": STEERING}), heeded=STEERED)
    assert events == [Numbers((1, 2, 0b1001, 123)), Finish(Outcome.STOP)]
    assert steering_body((1, 2, 0b1001, 123), fingerprint="ff") == {
        "fingerprint": "ff",
        "applied": {"prompt_tokens": 1, "generated_tokens": 2, "layers": [0, 3]},
        "relative_dose": 0.123,
    }


def test_a_dose_as_large_as_our_own_server_says_one_can_be_is_no_fault():
    report = STEERING | {"relative_dose": DOSE_MAX}
    events, fault = read(stream({**chunk("stop"), "steering": report}), heeded=STEERED)
    assert (events[0], fault) == (Numbers((1, 2, 0b1001, 10**12)), None)


BROKEN = [
    "garbage",
    "",
    "{",
    "[]",
    "null",
    '{"choices": {}}',
    '{"choices": [{"index": 1, "delta": {"content": "a"}}]}',
    '{"choices": [{"index": -1}]}',
    '{"choices": [{}, {}]}',
    '{"choices": [{"delta": {"content": 7}}]}',
    '{"choices": [{"delta": {"content": "\\ud800"}}]}',
    '{"choices": [{"delta": {"tool_calls": [{}]}}]}',
    '{"choices": [{"token_ids": [-1]}]}',
    '{"error": {"message": "x"}}',
    '{"error": ' + "[" * 100_000,
    '{"deep": ' + "[" * 100_000,
    '{"usage": {"prompt_tokens": -1}}',
    '{"usage": {"prompt_tokens": 1e99}}',
    '{"usage": {"prompt_tokens": ' + str(TOKENS_REPORTED_MAX + 1) + "}}",
    '{"usage": {"prompt_tokens": NaN}}',
    '{"steering": {"applied": {"prompt_tokens": 1, "generated_tokens": 1, "layers": [1024]}, "relative_dose": 1}}',
    '{"steering": {"applied": {"prompt_tokens": 1, "generated_tokens": 1, "layers": []}, "relative_dose": -1}}',
]


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_answer_is_malformed_after_the_text_before_it(broken):
    before = stream(chunk(content="before"), done=False)
    heeded = STEERED if "steering" in broken else ALL
    events, fault = read(before + stream(broken, {**chunk("stop"), "steering": STEERING}), heeded=heeded)
    assert events == [TextDelta("before")]
    assert fault is not None
    if broken:
        assert whole(broken.encode(), heeded=heeded)[1] not in (None, "the answer has no finish_reason")


def test_an_answer_to_a_steered_request_that_does_not_say_it_was_steered_is_malformed():
    """A server that never heard of steering ignores the field, and its plain answer would pass for a steered one."""
    silent = "steering was asked for, and the backend does not say that there was any"
    assert read(stream(chunk(content="a"), chunk("stop")), heeded=STEERED) == ([TextDelta("a")], silent)
    body = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
    assert whole(body, heeded=STEERED)[1] == silent
    assert whole({**body, "steering": STEERING}, heeded=STEERED)[1] is None


def test_an_invalid_byte_in_text_is_malformed():
    events, fault = read(stream(chunk(content="a"), done=False) + b'data: {"choices":[{"text":"\xff"}]}\n\n')
    assert events == [TextDelta("a")]
    assert fault is not None


def test_a_stream_without_done_is_no_whole_answer():
    assert read(stream(chunk(content="a"), chunk("stop"), done=False)) == (
        [TextDelta("a")],
        "the stream ended before [DONE]",
    )


def test_a_stream_without_a_finish_is_no_whole_answer():
    assert read(stream(chunk(content="a"))) == ([TextDelta("a")], "the answer has no finish_reason")
    assert whole({"choices": [{"message": {"content": "a"}}]})[1] == "the answer has no finish_reason"


def test_what_follows_done_is_not_read():
    events, fault = read(stream(chunk("stop")) + stream(chunk(content="late")) + b"garbage\n\n")
    assert (events, fault) == ([Finish(Outcome.STOP)], None)


ANSWER = (
    stream(chunk(content="héllo"), done=False).replace(b"\n\n", b"\r\n\r\n")
    + b": comment\n\n"
    + stream(
        chunk(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{}"}}]),
        chunk(content="😀"),
        {**chunk("stop"), "usage": USAGE},
    )
)


def test_every_split_of_an_answer_gives_the_same_events():
    expected = read(ANSWER)
    assert expected[1] is None
    for cut in range(len(ANSWER) + 1):
        assert read(ANSWER[:cut], ANSWER[cut:]) == expected


@settings(max_examples=150)
@given(st.integers(0, len(ANSWER)), st.binary(max_size=12), st.lists(st.integers(0, len(ANSWER) + 12), max_size=5))
def test_a_fault_gives_the_same_events_however_the_bytes_before_it_were_split(at, garbage, cuts):
    data = ANSWER[:at] + garbage + ANSWER[at + len(garbage) :]
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert read(*parts) == read(data)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_events_or_malformed(data):
    decode(StreamDecoder(ALL, AMPLE), b"data: " + data + b"\n\n")
    decode(WholeDecoder(ALL, AMPLE), data)


SMALL = Room(tokens=1)


@pytest.mark.parametrize("cut", range(1, 400, 13))
def test_a_flood_is_malformed_after_the_events_before_it_however_it_was_split(cut):
    said = stream(chunk(content="a"), done=False)
    flood = b": nothing\n\n" * (SMALL.wire_bytes // 10)
    late = stream(chunk(content="too late"), done=False)
    data = said + flood + late
    events, fault = decode(StreamDecoder(ALL, SMALL), data[:cut], data[cut:-cut], data[-cut:])
    assert events == [TextDelta("a")]
    assert "on the wire" in fault


def test_who_says_more_may_send_more():
    one = stream(chunk(content="abc"), done=False)
    many = one * (SMALL.wire_bytes // len(one) + 100)
    events, fault = decode(StreamDecoder(ALL, SMALL), many)
    assert "before [DONE]" in fault
    assert sum(len(event.text) for event in events) == 3 * (len(many) // len(one))


@pytest.mark.parametrize("spelling", ["20", "20.0", "2e1", "20e0", "200e-1"])
def test_a_count_is_one_count_however_it_is_spelled(spelling):
    body = (
        b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":%b}}'
        % spelling.encode()
    )
    events, fault = whole(body)
    assert fault is None
    assert UsageReport(Usage(prompt_tokens=20, completion_tokens=0)) in events


def test_half_a_token_is_malformed():
    body = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1.5}}'
    assert "whole number" in whole(body)[1]


def ids(numbers):
    return stream({"choices": [{"index": 0, "delta": {"content": "a"}, "token_ids": numbers}]}, done=False)


def test_token_ids_are_read_only_where_they_are_asked_for():
    assert decode(StreamDecoder(ALL, Room(tokens=4)), ids([1, 2]))[0] == [TextDelta("a")]
    asked = StreamDecoder(ALL, Room(tokens=4, token_ids=True))
    assert TokenIds((1, 2)) in decode(asked, ids([1, 2]))[0]


def test_more_token_ids_than_the_answer_may_have_tokens_are_malformed():
    decoder = StreamDecoder(ALL, Room(tokens=4, token_ids=True))
    assert "more token ids" in decode(decoder, ids(list(range(30))))[1]


def test_one_event_over_the_limit_is_malformed():
    assert read(stream(chunk(content="x" * EVENT_BYTES_MAX)))[1] is not None


def test_a_whole_answer_over_the_limit_is_malformed_at_once():
    decoder = WholeDecoder(ALL, SMALL)
    decoder.feed(b" " * SMALL.wire_bytes)
    with pytest.raises(Malformed, match="more bytes"):
        decoder.feed(b" ")


def test_a_whole_answer_is_one_body_however_it_was_split():
    body = json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": USAGE}).encode()
    assert decode(WholeDecoder(ALL, AMPLE), *(bytes([byte]) for byte in body)) == whole(body)
    assert whole(body)[1] is None

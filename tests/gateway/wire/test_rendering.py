"""What clients receive: a function of the releases and of what the gateway knew before, in the shapes that clients parse."""

import json

import pytest

from gateway.wire import chat, completions
from gateway.wire.errors import error_body, outcome_of_status, refusal_of
from gateway.wire.rejections import REJECTIONS, code_index
from policy.budget import Account
from policy.refusal import Reason, Refused
from policy.release import Ending, Outcome, Release, ToolCall, Usage
from policy.rules import Window

USAGE = Usage(prompt_tokens=3, completion_tokens=4)
CALLS = (ToolCall(name="f", arguments='{"a":1}'), ToolCall(name="g", arguments=""))


def events(data: bytes):
    assert data.endswith(b"\n\n")
    lines = data[:-2].split(b"\n\n")
    assert all(line.startswith(b"data: ") for line in lines)
    return [line[6:] if line == b"data: [DONE]" else json.loads(line[6:]) for line in lines]


def release(text="", ending=None):
    return Release(idle_ticks=0, quanta=0, text=text, ending=ending)


def test_a_chat_stream_begins_with_the_role_and_ends_with_finish_usage_and_done(fakes):
    renderer = fakes.chat_call().renderer
    role, first = events(renderer.release(release("he")))
    (second,) = events(renderer.release(release('l"lo\n')))
    finish, usage, done = events(renderer.release(release("", Ending(outcome=Outcome.STOP, usage=USAGE))))
    head = {"id": "chatcmpl-abc123", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m"}
    for chunk in (role, first, second, finish, usage):
        assert chunk.items() >= head.items()
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"] for chunk in (first, second)] == [{"content": "he"}, {"content": 'l"lo\n'}]
    assert finish["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert done == b"[DONE]"


def test_calls_of_a_stream_have_ids_of_the_gateways_own(fakes):
    renderer = fakes.chat_call(tools=["f", "g"]).renderer
    parts = events(renderer.release(release("", Ending(outcome=Outcome.TOOL_CALLS, tool_calls=CALLS))))
    calls = [part["choices"][0]["delta"]["tool_calls"][0] for part in parts[1:3]]
    assert calls == [
        {"index": 0, "id": "call_abc123_0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"index": 1, "id": "call_abc123_1", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    assert parts[3]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if not outcome.complete])
@pytest.mark.parametrize("dialect", ["chat", "completion"])
def test_a_stream_that_failed_ends_with_an_error_and_never_with_a_finish(fakes, dialect, outcome):
    renderer = getattr(fakes, f"{dialect}_call")().renderer
    *_, text, error = events(renderer.release(release("half", Ending(outcome=outcome))))
    assert text["choices"][0]["finish_reason"] is None
    assert error["error"]["code"]
    data = renderer.release(release("", Ending(outcome=outcome)))
    assert b"[DONE]" not in data
    assert len(events(data)) == 1


def test_a_whole_chat_answer_is_one_body(fakes):
    renderer = fakes.chat_call(stream=False).renderer
    body = json.loads(renderer.release(release("hello", Ending(outcome=Outcome.LENGTH, usage=USAGE))))
    message = {"role": "assistant", "content": "hello", "refusal": None}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
    assert body["usage"]["total_tokens"] == 7
    assert body["object"] == "chat.completion"


@pytest.mark.parametrize("text", ["", "thinking"])
def test_a_whole_answer_with_calls_has_no_content_unless_it_said_something(fakes, text):
    renderer = fakes.chat_call(stream=False, tools=["f", "g"]).renderer
    body = json.loads(renderer.release(release(text, Ending(outcome=Outcome.TOOL_CALLS, tool_calls=CALLS))))
    message = body["choices"][0]["message"]
    assert message["content"] == (text or None)
    assert [call["id"] for call in message["tool_calls"]] == ["call_abc123_0", "call_abc123_1"]
    assert "usage" not in body


def test_a_streamed_completion_is_text_objects_and_done(fakes):
    renderer = fakes.completion_call().renderer
    (first,) = events(renderer.release(release("he")))
    last, usage, done = events(renderer.release(release("llo", Ending(outcome=Outcome.STOP, usage=USAGE))))
    assert first["choices"] == [{"index": 0, "text": "he", "logprobs": None, "finish_reason": None}]
    assert last["choices"] == [{"index": 0, "text": "llo", "logprobs": None, "finish_reason": "stop"}]
    assert usage["usage"]["completion_tokens"] == 4
    assert done == b"[DONE]"
    assert first["id"] == "cmpl-abc123"


def test_a_whole_completion_is_one_body(fakes):
    renderer = fakes.completion_call(stream=False).renderer
    body = json.loads(renderer.release(release("hello", Ending(outcome=Outcome.STOP, usage=USAGE))))
    assert body["choices"] == [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": "stop"}]
    assert (body["object"], body["usage"]["prompt_tokens"]) == ("text_completion", 3)


@pytest.mark.parametrize("dialect", ["chat", "completion"])
@pytest.mark.parametrize("stream", [True, False])
def test_steering_is_reported_with_the_gateways_own_fingerprint(fakes, dialect, stream):
    asked = {"model": "m", "stream": stream, "steering": {"vectors": [{"id": "calm"}]}}
    codec, question = {
        "chat": (chat, {"messages": [{"role": "user", "content": "hi"}]}),
        "completion": (completions, {"prompt": "hi"}),
    }[dialect]
    renderer = fakes._call(codec, asked | question, fakes.RULES).renderer
    data = renderer.release(release("x", Ending(outcome=Outcome.STOP, numbers=(1, 2, 0b101, 500))))
    bodies = [body for body in (events(data) if stream else [json.loads(data)]) if isinstance(body, dict)]
    (report,) = [body["steering"] for body in bodies if "steering" in body]
    assert report["applied"] == {"prompt_tokens": 1, "generated_tokens": 2, "layers": [0, 2]}
    assert report["relative_dose"] == 0.5
    assert len(report["fingerprint"]) == 16


def test_usage_that_was_not_asked_for_is_not_sent(fakes):
    rules = fakes.ModelRules(name="m", usage=False, token_ids=False, tokens_max=4096, tokens_default=512)
    for call in (fakes.chat_call, fakes.completion_call):
        for stream in (True, False):
            data = call(stream=stream, rules=rules).renderer.release(
                release("x", Ending(outcome=Outcome.STOP, usage=USAGE))
            )
            assert b"usage" not in data


# Errors.


def test_an_error_body_has_the_shape_that_clients_know():
    refused = Refused(reason=Reason.INVALID_REQUEST, message="No.", param="stop")
    assert json.loads(error_body(refused)) == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": "stop", "code": "invalid_request"}
    }


def test_an_exhausted_budget_says_which_and_when_it_refills():
    account = Account(
        id="model:m/1d/7",
        owner="model",
        name="m",
        window=Window(name="1d", duration_s=86_400),
        limit_bits=8,
        expires_s=99,
    )
    refused = Refused(reason=Reason.OVER_BUDGET, message="No.", resets_at_s=99, account=account)
    error = json.loads(error_body(refused))["error"]
    assert (error["resets_at"], error["budget"], error["code"]) == (99, "model:m/1d/7", "egress_budget_exhausted")


def test_a_complete_ending_is_no_refusal():
    for outcome in Outcome:
        assert (refusal_of(Ending(outcome=outcome)) is None) == outcome.complete


def test_a_rejection_is_named_from_the_closed_list():
    for index, (code, message) in enumerate(REJECTIONS):
        refused = refusal_of(Ending(outcome=Outcome.REJECTED, numbers=(index,)))
        assert (refused.code, refused.message) == (code, message)
        assert code_index(REJECTIONS, code) == index
    assert refusal_of(Ending(outcome=Outcome.REJECTED)).code == REJECTIONS[0][0]


@pytest.mark.parametrize("code", ["secret", None, 7, [], {}, "UNKNOWN_VECTOR", ""])
def test_any_other_code_of_a_backend_is_the_general_one(code):
    assert code_index(REJECTIONS, code) == 0


@pytest.mark.parametrize(
    ("status", "stateful", "outcome"),
    [
        (400, False, Outcome.REJECTED), (404, False, Outcome.REJECTED), (404, True, Outcome.NOT_FOUND),
        (409, True, Outcome.CONFLICT), (409, False, Outcome.REJECTED), (422, True, Outcome.REJECTED),
        (401, False, Outcome.UPSTREAM_ERROR), (429, False, Outcome.UPSTREAM_ERROR), (500, True, Outcome.UPSTREAM_ERROR),
        (204, False, Outcome.UPSTREAM_ERROR), (302, False, Outcome.UPSTREAM_ERROR), (999, False, Outcome.UPSTREAM_ERROR),
    ],
)  # fmt: skip
def test_a_backends_status_means_one_of_few_things(status, stateful, outcome):
    assert outcome_of_status(status, stateful=stateful) is outcome

"""The Responses dialect: what may be asked, what reaches a backend of it, and how answers are built up event by event."""

import json

import pytest

from gateway.wire import responses
from gateway.wire.dialect import Call, Identity, ModelRules
from policy.limits import MESSAGES_MAX
from policy.refusal import Reason, Refused
from policy.release import Ending, Outcome, Release, ToolCall, Usage

IDENTITY = Identity(id="abc", created_s=1_700_000_000, seed=4711)
RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512, reasoning=True)
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True, "description": "d"}
USAGE = Usage(prompt_tokens=3, completion_tokens=4)
CALLS = (ToolCall(name="f", arguments='{"a":1}'),)


def parse(fields):
    body = fields if isinstance(fields, bytes) else json.dumps({"model": "m", "input": "hi"} | fields).encode()
    return responses.parse_request(body)


def call(fields, rules=RULES):
    request = parse(fields)
    return request if isinstance(request, Refused) else responses.sanitise(request, rules, IDENTITY, tenant="acme")


def sent(fields, rules=RULES):
    made = call(fields, rules)
    assert isinstance(made, Call), made
    assert made.upstream_path == "/v1/chat/completions"
    return json.loads(made.upstream_body)


def refusal(fields):
    refused = call(fields)
    assert isinstance(refused, Refused), refused
    return refused


# Requests.


def test_the_least_request_is_a_chat_with_one_message():
    assert sent({}) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 512,
        "seed": 4711,
        "stream": False,
    }


def test_instructions_come_first_and_sampling_fields_are_passed_on():
    fields = sent(
        {"instructions": "Be brief.", "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 7, "stream": True}
    )
    assert fields["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (fields["temperature"], fields["top_p"], fields["max_tokens"]) == (0.5, 0.9, 7)
    assert fields["stream_options"] == {"include_usage": True}


def test_a_conversation_becomes_chat_messages_and_calls_belong_to_the_assistants_turn():
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "so", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "43"}]},
        {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "{}"},
    ]  # fmt: skip
    assert sent({"input": items})["messages"] == [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": "so",
            "tool_calls": [
                {"id": "c1", "function": {"name": "f", "arguments": "{}"}, "type": "function"},
                {"id": "c2", "function": {"name": "g", "arguments": ""}, "type": "function"},
            ],
        },
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "tool", "content": "43", "tool_call_id": "c2"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c3", "function": {"name": "f", "arguments": "{}"}, "type": "function"}],
        },
    ]


def test_tools_take_the_form_of_the_chat_dialect():
    made = call({"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False})
    fields = json.loads(made.upstream_body)
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    assert fields["tools"] == [{"function": function, "type": "function"}]
    assert fields["tool_choice"] == {"function": {"name": "f"}, "type": "function"}
    assert fields["parallel_tool_calls"] is False
    assert made.tools_declared == {"f"}


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False}, {"store": None}, {"previous_response_id": None}, {"background": False}, {"include": []},
        {"truncation": "disabled"}, {"service_tier": "auto"}, {"metadata": {"a": "b"}}, {"user": "u"},
        {"safety_identifier": "s"}, {"prompt_cache_key": "k"}, {"text": {"format": {"type": "text"}}}, {"text": {}},
        {"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning": None}, {"top_logprobs": 0}, {"tools": []},
        {"stream_options": {"include_obfuscation": False}}, {"text": {"verbosity": "medium"}},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_accepted_and_not_passed_on(fields):
    assert sent(fields) == sent({})


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"store": True}, "store", "not stored"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": "c"}, "conversation", "whole conversation"),
        ({"background": True}, "background", "not stored"),
        ({"include": ["message.output_text.logprobs"]}, "include", "log-probabilities"),
        ({"top_logprobs": 5}, "top_logprobs", "log-probabilities"),
        ({"seed": 1}, "seed", "gateway chooses"),
        ({"truncation": "auto"}, "truncation", "shortened"),
        ({"steering": {"vectors": []}}, "steering", "not on this gateway's list"),
        ({"kv_transfer_params": {}}, "kv_transfer_params", "not on this gateway's list"),
        ({"n": 1}, "n", "not on this gateway's list"),
        ({"messages": []}, "messages", "not on this gateway's list"),
    ],
)  # fmt: skip
def test_a_field_off_the_list_is_refused_by_its_name_and_with_the_reason(fields, param, why):
    refused = refusal(fields)
    assert (refused.reason, refused.param) == (Reason.UNSUPPORTED_FIELD, param)
    assert why in refused.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"), ({"input": []}, "input"), ({"input": 7}, "input"), ({"input": None}, "input"),
        ({"input": [{"role": "user", "content": "x"}] * (MESSAGES_MAX + 1)}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "root", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://169.254.169.254"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": ""}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f g", "arguments": ""}]}, "input[0].name"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"max_output_tokens": 0}, "max_output_tokens"), ({"max_output_tokens": 4097}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"), ({"text": {"format": {"type": "json_schema"}}}, "text.format.type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"), ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"), ({"reasoning": {"effort": 7}}, "reasoning.effort"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_shape_is_refused_and_the_message_says_where(fields, param):
    refused = refusal(fields)
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, param)
    assert param in refused.message
    assert "169.254" not in refused.message


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_refused_as_such(body):
    assert refusal(body).reason is Reason.INVALID_JSON


def test_reasoning_is_read_only_where_policy_releases_it():
    silent = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)
    assert call({}).reasoning
    assert not call({}, silent).reasoning


# Answers.


def events(data: bytes):
    out = []
    for block in data.split(b"\n\n")[:-1]:
        name, body = block.split(b"\n")
        document = json.loads(body.removeprefix(b"data: "))
        assert name == b"event: " + document["type"].encode()
        out.append(document)
    return out


def release(text="", ending=None, reasoning=None):
    return Release(idle_ticks=0, quanta=0, text=text, ending=ending, reasoning=reasoning)


def streamed(*releases, rules=RULES, **fields):
    renderer = call({"stream": True, "tools": [TOOL]} | fields, rules).renderer
    seen = events(b"".join(map(renderer.release, releases)))
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    return seen


def kinds(seen):
    return [event["type"].removeprefix("response.") for event in seen]


def test_a_streamed_answer_opens_an_item_a_part_says_its_text_and_closes_them_again():
    seen = streamed(release("he"), release("llo", Ending(outcome=Outcome.STOP, usage=USAGE)))
    assert kinds(seen) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["delta"] for event in seen if "delta" in event] == ["he", "llo"]
    response = seen[-1]["response"]
    assert (response["status"], response["id"], response["model"]) == ("completed", "resp_abc", "m")
    (item,) = response["output"]
    assert item == seen[8]["item"]
    assert item["content"] == [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}]
    assert response["usage"]["total_tokens"] == 7
    assert seen[0]["response"]["usage"] is None
    assert {event["item_id"] for event in seen if "item_id" in event} == {"msg_abc"}


def test_a_call_is_an_item_of_its_own_with_the_gateways_ids():
    seen = streamed(release("so", Ending(outcome=Outcome.TOOL_CALLS, tool_calls=CALLS)))
    assert kinds(seen)[-5:] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    message, function = seen[-1]["response"]["output"]
    assert message["type"] == "message"
    assert function == {
        "id": "fc_abc_0", "type": "function_call", "status": "completed", "call_id": "call_abc_0", "name": "f",
        "arguments": '{"a":1}',
    }  # fmt: skip
    assert {event["output_index"] for event in seen[-5:-1]} == {1}


def test_reasoning_is_an_item_before_the_message():
    seen = streamed(release(reasoning="hm"), release("a", Ending(outcome=Outcome.STOP), reasoning="m"))
    names = kinds(seen)
    assert names.index("reasoning_text.done") < names.index("output_text.delta")
    thought, message = seen[-1]["response"]["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hmm"}]
    assert message["content"][0]["text"] == "a"


def test_an_answer_that_was_cut_for_length_is_incomplete():
    seen = streamed(release("he", Ending(outcome=Outcome.LENGTH)))
    assert seen[-1]["type"] == "response.incomplete"
    assert seen[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert seen[-1]["response"]["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if not outcome.complete])
def test_a_stream_that_failed_ends_with_failed_and_never_with_completed(outcome):
    seen = streamed(release("half"), release("", Ending(outcome=outcome)))
    assert seen[-1]["type"] == "response.failed"
    assert seen[-1]["response"]["error"]["code"]
    assert "completed" not in kinds(seen)
    assert "output_item.done" not in kinds(seen)


def test_an_answer_without_a_word_is_an_empty_message():
    seen = streamed(release("", Ending(outcome=Outcome.STOP)))
    assert [item["content"][0]["text"] for item in seen[-1]["response"]["output"]] == [""]


@pytest.mark.parametrize(
    "releases",
    [
        [release("he"), release("llo", Ending(outcome=Outcome.STOP, usage=USAGE))],
        [release("", Ending(outcome=Outcome.TOOL_CALLS, tool_calls=CALLS * 2))],
        [release(reasoning="hm"), release("hello", Ending(outcome=Outcome.LENGTH), reasoning="m")],
        [release(reasoning="hm"), release("", Ending(outcome=Outcome.STOP), reasoning="")],
    ],
)  # fmt: skip
def test_a_stream_ends_with_what_a_whole_answer_would_be(releases):
    seen = streamed(*releases)
    last = releases[-1]
    whole = release(
        "".join(r.text for r in releases), last.ending, "".join(r.reasoning or "" for r in releases) or None
    )
    body = json.loads(call({"tools": [TOOL]}).renderer.release(whole))
    assert seen[-1]["response"] == body


def test_a_whole_answer_repeats_the_scalars_that_were_asked():
    body = json.loads(
        call({"temperature": 0.5, "max_output_tokens": 9}).renderer.release(release("x", Ending(outcome=Outcome.STOP)))
    )
    assert (body["temperature"], body["max_output_tokens"], body["top_p"]) == (0.5, 9, None)
    assert (body["tool_choice"], body["parallel_tool_calls"], body["store"]) == ("auto", True, False)


def test_usage_that_policy_drops_is_not_in_the_answer():
    silent = ModelRules(name="m", usage=False, token_ids=False, tokens_max=4096, tokens_default=512)
    seen = streamed(release("x", Ending(outcome=Outcome.STOP, usage=USAGE)), rules=silent)
    assert seen[-1]["response"]["usage"] is None

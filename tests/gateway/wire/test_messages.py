"""The Anthropic dialect: what may be asked, what reaches a backend of it, and how answers are built up block by block."""

import json

import pytest

from gateway.wire import messages
from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.errors import anthropic_error_body
from policy.limits import MESSAGES_MAX, STOP_STRINGS_MAX
from policy.refusal import Reason, Refused
from policy.release import Ending, Outcome, Release, ToolCall, Usage

IDENTITY = Identity(id="abc", created_s=1_700_000_000, seed=4711)
RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512, reasoning=True)
USER = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "input_schema": {"type": "object"}, "description": "d", "cache_control": {"type": "ephemeral"}}
USAGE = Usage(prompt_tokens=3, completion_tokens=4)
CALLS = (ToolCall(name="f", arguments='{"a":1}'),)


def parse(fields):
    least = {"model": "m", "messages": USER, "max_tokens": 100}
    body = fields if isinstance(fields, bytes) else json.dumps(least | fields).encode()
    return messages.parse_request(body)


def call(fields, rules=RULES):
    request = parse(fields)
    return request if isinstance(request, Refused) else messages.sanitise(request, rules, IDENTITY, tenant="acme")


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
    assert sent({}) == {"model": "m", "messages": USER, "max_tokens": 100, "seed": 4711, "stream": False}


def test_max_tokens_is_needed():
    refused = refusal(json.dumps({"model": "m", "messages": USER}).encode())
    assert refused.reason is Reason.INVALID_REQUEST
    assert "max_tokens" in refused.message


def test_the_system_prompt_comes_first_and_sampling_fields_are_passed_on():
    fields = sent(
        {"system": "Be brief.", "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop_sequences": ["x"], "stream": True}
    )
    assert fields["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (fields["temperature"], fields["top_p"], fields["top_k"], fields["stop"]) == (0.5, 0.9, 4, ["x"])
    assert fields["stream_options"] == {"include_usage": True}
    blocks = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    assert sent({"system": blocks})["messages"][0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    assert sent({"system": blocks[:1]})["messages"][0]["content"] == "a"


def test_a_conversation_with_tools_becomes_chat_messages():
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "so"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "t2", "name": "g", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "42"},
            {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": [{"type": "text", "text": "no"}]},
            {"type": "tool_result", "tool_use_id": "t3"},
            {"type": "text", "text": "and now?"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t4", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t4", "content": "1"}]},
    ]  # fmt: skip
    assert sent({"messages": turns})["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "so", "tool_calls": [
            {"id": "t1", "function": {"name": "f", "arguments": '{"a":1}'}, "type": "function"},
            {"id": "t2", "function": {"name": "g", "arguments": "{}"}, "type": "function"}]},
        {"role": "tool", "content": "42", "tool_call_id": "t1"},
        {"role": "tool", "content": "no", "tool_call_id": "t2"},
        {"role": "tool", "content": "", "tool_call_id": "t3"},
        {"role": "user", "content": "and now?"},
        {"role": "assistant", "tool_calls": [
            {"id": "t4", "function": {"name": "f", "arguments": "{}"}, "type": "function"}]},
        {"role": "tool", "content": "1", "tool_call_id": "t4"},
    ]  # fmt: skip


def test_an_empty_turn_stays_a_turn():
    assert sent({"messages": [*USER, {"role": "assistant", "content": []}]})["messages"][1] == {
        "role": "assistant",
        "content": "",
    }


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"), ({"type": "any"}, "required"), ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"function": {"name": "f"}, "type": "function"}),
    ],
)  # fmt: skip
def test_tools_and_their_choice_take_the_form_of_the_chat_dialect(choice, expected):
    fields = sent({"tools": [TOOL], "tool_choice": choice | {"disable_parallel_tool_use": True}})
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert fields["tools"] == [{"function": function, "type": "function"}]
    assert fields["tool_choice"] == expected
    assert fields["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "u"}}, {"service_tier": "auto"}, {"thinking": {"type": "disabled"}}, {"tools": []},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"thinking": {"type": "adaptive"}},
        {"stop_sequences": []}, {"system": None}, {"system": ""}, {"container": None}, {"mcp_servers": []},
        {"cache_control": {"type": "ephemeral"}},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_accepted_and_not_passed_on(fields):
    assert sent(fields) == sent({})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": True}, "logprobs"), ({"seed": 1}, "seed"), ({"n": 1}, "n"), ({"container": "c"}, "container"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"), ({"steering": {"vectors": []}}, "steering"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"), ({"output_config": {}}, "output_config"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name"),
    ],
)  # fmt: skip
def test_a_field_off_the_list_is_refused_by_its_name(fields, param):
    refused = refusal(fields)
    assert (refused.reason, refused.param) == (Reason.UNSUPPORTED_FIELD, param)
    assert f"'{param}'" in refused.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 4097}, "max_tokens"), ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": ["x"] * (STOP_STRINGS_MAX + 1)}, "stop_sequences"), ({"messages": []}, "messages"),
        ({"messages": USER * (MESSAGES_MAX + 1)}, "messages"), ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://169.254.169.254"}}]}]},
         "messages[0].content[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "w", "input_schema": {}}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools"), ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any", "name": "f"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_shape_is_refused_and_the_message_says_where(fields, param):
    refused = refusal(fields)
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, param)
    assert param in refused.message
    assert "169.254" not in refused.message


@pytest.mark.parametrize(
    ("thinking", "read"), [(None, True), ({"type": "enabled"}, True), ({"type": "disabled"}, False)]
)
def test_reasoning_is_read_unless_the_client_wants_none(thinking, read):
    assert call({"thinking": thinking}).reasoning is read
    silent = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)
    assert not call({"thinking": thinking}, silent).reasoning


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


def streamed(*releases):
    renderer = call({"stream": True, "tools": [TOOL]}).renderer
    return events(b"".join(map(renderer.release, releases)))


def test_a_streamed_answer_is_a_block_between_a_start_and_a_stop():
    seen = streamed(release("he"), release("llo", Ending(outcome=Outcome.STOP, usage=USAGE)))
    assert [event["type"] for event in seen] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    start, begin, first, second, stop, delta, _ = seen
    assert start["message"] == {
        "id": "msg_abc", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": {"input_tokens": 0, "output_tokens": 0},
    }  # fmt: skip
    assert (begin["index"], begin["content_block"]) == (0, {"type": "text", "text": ""})
    assert [event["delta"] for event in (first, second)] == [
        {"type": "text_delta", "text": "he"},
        {"type": "text_delta", "text": "llo"},
    ]
    assert stop["index"] == 0
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"] == {"input_tokens": 3, "output_tokens": 4}


def test_thinking_text_and_calls_are_blocks_one_after_the_other():
    seen = streamed(
        release(reasoning="hm"), release("a", Ending(outcome=Outcome.TOOL_CALLS, tool_calls=CALLS), reasoning="m")
    )
    begun = [(event["index"], event["content_block"]) for event in seen if event["type"] == "content_block_start"]
    assert begun == [
        (0, {"type": "thinking", "thinking": "", "signature": ""}),
        (1, {"type": "text", "text": ""}),
        (2, {"type": "tool_use", "id": "toolu_abc_0", "name": "f", "input": {}}),
    ]
    deltas = [event["delta"] for event in seen if event["type"] == "content_block_delta"]
    assert deltas == [
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "thinking_delta", "thinking": "m"},
        {"type": "text_delta", "text": "a"},
        {"type": "input_json_delta", "partial_json": '{"a":1}'},
    ]
    assert [event["index"] for event in seen if event["type"] == "content_block_stop"] == [0, 1, 2]
    assert seen[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if not outcome.complete])
def test_a_stream_that_failed_ends_with_an_error_and_never_with_a_stop(outcome):
    seen = streamed(release("half"), release("", Ending(outcome=outcome)))
    assert seen[-1]["type"] == "error"
    assert {"type", "message"} <= seen[-1]["error"].keys()
    assert "message_stop" not in [event["type"] for event in seen]


def test_a_whole_answer_is_one_message():
    ending = Ending(outcome=Outcome.TOOL_CALLS, tool_calls=CALLS, usage=USAGE)
    body = json.loads(call({}).renderer.release(release("a", ending, "hm")))
    assert body == {
        "id": "msg_abc", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use", "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 4},
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "a"},
            {"type": "tool_use", "id": "toolu_abc_0", "name": "f", "input": {"a": 1}},
        ],
    }  # fmt: skip
    empty = json.loads(call({}).renderer.release(release("", Ending(outcome=Outcome.LENGTH))))
    assert (empty["content"], empty["stop_reason"]) == ([], "max_tokens")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("", {}), ("[1]", {"INVALID_JSON": "[1]"}), ("oops\n\n", {"INVALID_JSON": "oops\n\n"}), ("{}", {})],
)
def test_arguments_that_are_no_object_are_wrapped_in_one(arguments, expected):
    ending = Ending(outcome=Outcome.TOOL_CALLS, tool_calls=(ToolCall(name="f", arguments=arguments),))
    body = json.loads(call({}).renderer.release(release("", ending)))
    assert body["content"][0]["input"] == expected
    (delta,) = [event["delta"] for event in streamed(release("", ending)) if event["type"] == "content_block_delta"]
    assert json.loads(delta["partial_json"]) == expected


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.label)
def test_every_refusal_has_the_shape_of_anthropics_errors(reason):
    body = json.loads(anthropic_error_body(Refused(reason=reason, message="No.", resets_at_s=9)))
    assert body["type"] == "error"
    assert body["error"]["message"] == "No."
    assert body["error"]["resets_at"] == 9
    assert body["error"]["type"] in {
        "invalid_request_error", "authentication_error", "permission_error", "not_found_error", "request_too_large",
        "rate_limit_error", "api_error", "overloaded_error", "timeout_error",
    }  # fmt: skip

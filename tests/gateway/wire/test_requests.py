"""What a client may ask, field by field, and what of it reaches a backend."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import chat, completions
from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.fields import REFUSED_FIELDS
from gateway.wire.handles import tenant_space, upstream_handle
from policy.limits import ANSWER_BYTES_MAX, MESSAGES_MAX, STEERING_VECTORS_MAX, STOP_STRINGS_MAX, TOOLS_MAX
from policy.refusal import Reason, Refused

IDENTITY = Identity(id="abc", created_s=1_700_000_000, seed=4711)
RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)
USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BASE = {chat: {"model": "m", "messages": USER}, completions: {"model": "m", "prompt": "hi"}}
SENT = {
    chat: {"messages", "tools", "tool_choice", "parallel_tool_calls"},
    completions: {"prompt"},
}
SENT_ALWAYS = {
    "model", "max_tokens", "seed", "stream", "temperature", "top_p", "top_k", "stop", "stream_options",
    "return_token_ids", "steering",
}  # fmt: skip


def parse(dialect, fields):
    body = fields if isinstance(fields, bytes) else json.dumps(BASE[dialect] | fields).encode()
    return dialect.parse_request(body)


def call(dialect, fields, rules=RULES):
    request = parse(dialect, fields)
    return request if isinstance(request, Refused) else dialect.sanitise(request, rules, IDENTITY, tenant="acme")


def sent(dialect, fields, rules=RULES):
    made = call(dialect, fields, rules)
    assert isinstance(made, Call), made
    return json.loads(made.upstream_body)


def refusal(dialect, fields):
    refused = call(dialect, fields)
    assert isinstance(refused, Refused), refused
    return refused


both = pytest.mark.parametrize("dialect", [chat, completions], ids=["chat", "completions"])


@both
def test_the_least_request_becomes_a_call_with_the_gateways_own_seed_and_limit(dialect):
    fields = sent(dialect, {})
    assert fields["seed"] == 4711
    assert fields["max_tokens"] == 512
    assert fields["model"] == "m"
    assert fields["stream"] is False


@both
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0}, {"temperature": 2}, {"top_p": 1}, {"top_p": 0.1}, {"top_k": 0}, {"top_k": 40}, {"stop": "x"},
        {"stop": ["a", "b"]}, {"max_tokens": 1}, {"max_tokens": 4096},
    ],
)  # fmt: skip
def test_a_sampling_field_reaches_the_backend_as_it_was_given(dialect, fields):
    assert sent(dialect, fields).items() >= fields.items()


@both
@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1}, {"n": None}, {"logprobs": False}, {"logprobs": None}, {"echo": False}, {"store": False}, {"user": "u-1"},
        {"metadata": {"a": 1}}, {"user": {"any": "thing"}}, {"presence_penalty": 0}, {"frequency_penalty": 0.0},
        {"presence_penalty": None}, {"temperature": None}, {"n": 1, "logprobs": False, "user": "u", "store": False},
        {"stream_options": None}, {"stream_options": {"include_usage": True}},
    ],
)  # fmt: skip
def test_a_default_that_asks_for_nothing_is_accepted_and_not_passed_on(dialect, fields):
    assert sent(dialect, fields) == sent(dialect, {})


@both
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seed": 1}, "seed"), ({"logprobs": True}, "logprobs"), ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"), ({"prompt_logprobs": 1}, "prompt_logprobs"), ({"n": 2}, "n"),
        ({"n": True}, "n"), ({"n": 1.0}, "n"), ({"best_of": 3}, "best_of"), ({"echo": True}, "echo"),
        ({"logit_bias": {"5": 1}}, "logit_bias"), ({"store": True}, "store"), ({"service_tier": "x"}, "service_tier"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"), ({"custom_logit_processor": "x"}, "custom_logit_processor"),
        ({"lora_path": "/x"}, "lora_path"), ({"return_hidden_states": True}, "return_hidden_states"),
        ({"return_token_ids": True}, "return_token_ids"), ({"__proto__": 1}, "__proto__"),
        ({"stream_options": {"x": 1}}, "stream_options.x"), ({"n": 1, "seed": 1}, "seed"),
        ({"steering": {"vectors": [], "strength": 1}}, "steering.strength"),
    ],
)  # fmt: skip
def test_a_field_off_the_list_is_refused_by_its_name(dialect, fields, param):
    refused = refusal(dialect, fields)
    assert refused.reason is Reason.UNSUPPORTED_FIELD
    assert refused.param == param
    assert f"'{param}'" in refused.message


def test_the_reason_is_given_where_there_is_one():
    for name, why in REFUSED_FIELDS.items():
        assert why in refusal(chat, {name: ["not", "a", "default"]}).message


@both
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"), ({"temperature": 2.1}, "temperature"), ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"), ({"top_p": 1.5}, "top_p"), ({"top_k": -1}, "top_k"), ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 4097}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"), ({"max_tokens": "7"}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"), ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": ""}, "stop"), ({"stop": ["x"] * (STOP_STRINGS_MAX + 1)}, "stop"), ({"stop": "x" * 257}, "stop"),
        ({"stop": [1]}, "stop[0]"), ({"stream": "yes"}, "stream"), ({"stream": 1}, "stream"), ({"model": 7}, "model"),
        ({"model": "x" * 300}, "model"), ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"), ({"steering": {}}, "steering"), ({"steering": 1}, "steering"),
        ({"steering": {"vectors": [{"id": "x"}] * (STEERING_VECTORS_MAX + 1)}}, "steering.vectors"),
        ({"steering": {"vectors": [{"id": "../x"}]}}, "steering.vectors[0].id"),
        ({"steering": {"vectors": [{"id": "x", "scale": 1e9}]}}, "steering.vectors[0].scale"),
        ({"steering": {"vectors": [{"id": "x", "layers": []}]}}, "steering.vectors[0].layers"),
        ({"steering": {"vectors": [{"id": "x", "op": "melt"}]}}, "steering.vectors[0].op"),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_is_refused_and_the_message_says_where(dialect, fields, param):
    refused = refusal(dialect, fields)
    assert refused.reason is Reason.INVALID_REQUEST
    assert refused.param == param
    assert param in refused.message


@both
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff", b'{"model": "\xff"}', b'{"model": NaN}', b'{"model":"m","temperature":NaN}',
        b'{"model":"m","temperature":Infinity}', b'{"model":"m","temperature":1e999}', b'{"model":"\\ud800"}',
        b"[" * 100_000, b'{"model":' + b"[" * 100_000, b'{"x":' * 50_000, b"{'model': 'm'}", b'{"model":"m",}', b'{} {}',
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_not_json_is_refused_as_such(dialect, body):
    assert refusal(dialect, body).reason is Reason.INVALID_JSON


@both
@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"x"', b"{}", b"[[]]"])
def test_json_that_is_no_request_is_refused_as_such(dialect, body):
    assert refusal(dialect, body).reason is Reason.INVALID_REQUEST


@settings(max_examples=200)
@given(st.binary(max_size=60) | st.text('{}[]":,mn1 ', max_size=40).map(str.encode))
def test_no_bytes_do_anything_but_parse_or_refuse(body):
    for dialect in (chat, completions):
        dialect.parse_request(body)


names = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["lora_path", "kv_transfer_params", "guided_json", "cache_salt", "priority", "min_p", "suffix", "audio", "tools"]
)
values = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.lists(st.integers(), max_size=2)


@both
@settings(max_examples=150)
@given(extra=st.dictionaries(names, values, max_size=3), stream=st.booleans())
def test_a_field_that_was_not_asked_for_by_name_is_refused_or_absent(dialect, extra, stream):
    made = call(dialect, {"stream": stream} | extra)
    if isinstance(made, Refused):
        assert made.reason in (Reason.UNSUPPORTED_FIELD, Reason.INVALID_REQUEST)
    else:
        assert set(json.loads(made.upstream_body)) <= SENT_ALWAYS | SENT[dialect]
        assert b"lora" not in made.upstream_body


@both
def test_usage_is_asked_of_a_stream_only_where_the_policy_releases_it(dialect):
    silent = ModelRules(name="m", usage=False, token_ids=False, tokens_max=4096, tokens_default=512)
    assert sent(dialect, {"stream": True})["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent(dialect, {"stream": True, "stream_options": {"include_usage": True}}, silent)


@both
def test_token_ids_are_asked_for_only_where_the_policy_records_them(dialect):
    recording = ModelRules(name="m", usage=False, token_ids=True, tokens_max=4096, tokens_default=512)
    assert sent(dialect, {}, recording)["return_token_ids"] is True
    assert "return_token_ids" not in sent(dialect, {})


@both
def test_a_prefix_cache_is_salted_by_tenant_and_only_where_the_policy_says_so(dialect):
    salted = dataclasses.replace(RULES, cache_salted=True)
    assert sent(dialect, {}, salted)["cache_salt"] == tenant_space("acme") != tenant_space("other")
    assert "cache_salt" not in sent(dialect, {})
    assert call(dialect, {"cache_salt": "mine"}).param == "cache_salt"


@both
def test_the_newer_name_of_max_tokens_wins(dialect):
    assert sent(dialect, {"max_tokens": 5, "max_completion_tokens": 7})["max_tokens"] == 7


def test_the_default_is_never_over_the_models_limit():
    tight = ModelRules(name="m", usage=True, token_ids=False, tokens_max=10, tokens_default=512)
    assert sent(chat, {}, tight)["max_tokens"] == 10


@both
@pytest.mark.parametrize(("tokens", "size"), [(1, 16), (4096, 65_536)])
def test_an_answer_is_as_long_as_its_tokens_allow(dialect, tokens, size):
    assert call(dialect, {"max_tokens": tokens}).answer_bytes_max == size <= ANSWER_BYTES_MAX


@both
def test_a_vector_is_named_in_its_tenants_own_space(dialect):
    steering = {"vectors": [{"id": "calm", "scale": 2.0, "layers": [3]}]}
    (vector,) = sent(dialect, {"steering": steering})["steering"]["vectors"]
    assert vector == {"id": upstream_handle("acme", "calm"), "op": "add", "scale": 2.0, "layers": [3]}
    assert upstream_handle("acme", "calm") != upstream_handle("other", "calm")
    assert "steering" not in sent(dialect, {"steering": {"vectors": []}})


# Chat alone.


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, *USER],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "bob"}],
        [*USER, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
         {"role": "tool", "tool_call_id": "c", "content": "42"}],
        [*USER, {"role": "assistant", "content": "x", "refusal": None}, *USER],
    ],
)  # fmt: skip
def test_a_conversation_passes_with_nothing_added(messages):
    fields = sent(chat, {"messages": messages})["messages"]
    pruned = [{name: value for name, value in message.items() if value is not None} for message in messages]
    assert [{name: value for name, value in message.items() if value is not None} for message in fields] == pruned


IMAGE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (USER * (MESSAGES_MAX + 1), "messages"),
        ("hi", "messages"),
        ([{"role": "root", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0]"),
        ([{"role": "user", "content": [IMAGE]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": 7}], "messages[0].content"),
        ([{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f g", "arguments": ""}}]}],
         "messages[0].tool_calls[0].function.name"),
    ],
)  # fmt: skip
def test_a_message_of_the_wrong_shape_is_refused_and_the_message_says_which(messages, param):
    refused = refusal(chat, {"messages": messages})
    assert refused.param == param
    assert param in refused.message
    assert "169.254" not in refused.message


@pytest.mark.parametrize("field", ["audio", "reasoning_content", "image", "cache_control"])
def test_an_unknown_field_of_a_message_is_refused_with_its_place(field):
    refused = refusal(chat, {"messages": [*USER, {"role": "user", "content": "x", field: 1}]})
    assert (refused.reason, refused.param) == (Reason.UNSUPPORTED_FIELD, f"messages[1].{field}")


def test_tools_pass_with_their_schemas_and_declare_their_names():
    made = call(chat, {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False})
    fields = json.loads(made.upstream_body)
    assert fields["tools"] == [{"function": {"name": "f", "parameters": {"type": "object"}}, "type": "function"}]
    assert (fields["tool_choice"], fields["parallel_tool_calls"]) == ("auto", False)
    assert made.tools_declared == {"f"}
    named = sent(chat, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}})
    assert named["tool_choice"]["function"] == {"name": "f"}


def test_a_choice_among_no_tools_is_not_passed_on():
    assert sent(chat, {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}) == sent(chat, {})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(TOOLS_MAX + 1)]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.type"),
    ],
)
def test_tools_that_contradict_themselves_are_refused(fields, param):
    refused = refusal(chat, fields)
    assert refused.reason is Reason.INVALID_REQUEST
    assert refused.param == param


def test_plain_text_is_a_response_format_that_asks_for_nothing():
    assert sent(chat, {"response_format": {"type": "text"}}) == sent(chat, {})


# Completions alone.


@pytest.mark.parametrize("prompt", ["", ["a", "b"], [1, 2], 7, None])
def test_a_completion_has_one_prompt_of_text(prompt):
    assert refusal(completions, {"prompt": prompt}).param == "prompt"

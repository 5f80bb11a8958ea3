"""The official clients of each dialect, unchanged, in front of a gateway process and a backend that speaks chat alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic import Anthropic

from tests.e2e.backend import DONE, Backend, Exchange, event, finish_event, raw, response, rest, say, stream, text_event
from tests.e2e.conftest import Start
from tests.e2e.processes import ALICE, Gateway, policy
from tests.e2e.wire import Response, request

TEXT = "Grüezi! " + "Es scheint die Sonne über Bern. " * 20
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
ASKED = [{"role": "user", "content": "What is the weather in Bern?"}]
ARGUMENTS = {"city": "Bern", "unit": "C"}


@pytest.fixture(scope="module")
def gateway_of_module(backend_of_module: Backend, tmp_path_factory: pytest.TempPathFactory):
    """As in conftest, with a model that thinks and one for each kind of embeddings."""
    directory = tmp_path_factory.mktemp("dialects")
    rules = policy(backend_of_module.url, directory)
    model = rules["models"]["m"]
    for name, more in {
        "thinker": {"reasoning": "release"},
        "int8": {"embeddings": "int8", "dimensions": 4},
        "binary": {"embeddings": "binary"},
    }.items():
        rules["models"][name] = json.loads(json.dumps(model)) | more
    rules["tenants"]["alice"]["models"] = list(rules["models"])
    gateway = Gateway(directory, rules).start()
    yield gateway
    gateway.close()


def claude(gateway: Gateway, key: str = ALICE, **options: Any) -> Anthropic:
    return Anthropic(base_url=gateway.url, api_key=key, timeout=20, **options)


def call_tool(exchange_arguments: str = '{ "unit" : "C",\n "city":"Bern" }') -> Any:
    """Calls `get_weather`, in the chat dialect, streamed or whole as asked."""
    function = {"name": "get_weather", "arguments": exchange_arguments}

    async def script(exchange: Exchange) -> None:
        call = {"index": 0, "id": "backend-call-id", "type": "function", "function": function}
        if exchange.request.json["stream"]:
            delta = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
            await stream(exchange, [], ending=[event(delta), finish_event("tool_calls"), DONE])
        else:
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
            await exchange.send(response(json.dumps({"choices": [choice]}).encode()))

    return script


async def over_several_ticks(exchange: Exchange) -> None:
    """`TEXT`, slowly, to its token limit."""
    await exchange.begin()
    for start in range(0, len(TEXT), 300):
        await exchange.chunk(text_event(TEXT[start : start + 300]))
        await asyncio.sleep(0.06)
    usage = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 9}}
    await rest(exchange, ending=[finish_event("length"), event(usage), DONE])


async def think(exchange: Exchange) -> None:
    if exchange.request.json["stream"]:
        thoughts = [event({"choices": [{"index": 0, "delta": {"reasoning": "Let me see. " * 4}}]})]
        await stream(exchange, [], ending=[*thoughts, text_event("It is sunny."), finish_event(), DONE])
    else:
        message = {"role": "assistant", "reasoning_content": "Let me see. " * 4, "content": "It is sunny."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        await exchange.send(response(json.dumps({"choices": [choice]}).encode()))


async def fail(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.chunk(text_event("This much was said before the trouble began. "))
    await exchange.chunk(event({"error": {"message": "MARKER", "code": 500}}))
    await exchange.finish()


# Responses.


def test_a_response_is_what_the_backend_said(gateway: Gateway, backend: Backend) -> None:
    backend.script = say(TEXT, usage=(11, 9))
    answer = gateway.client().responses.create(model="m", input="Hi.", instructions="Be brief.", max_output_tokens=900)
    assert answer.output_text == TEXT
    assert (answer.status, answer.id.startswith("resp_")) == ("completed", True)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (11, 9)
    (asked,) = backend.requests
    assert asked.line == "POST /v1/chat/completions HTTP/1.1"
    assert asked.json["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
    ]


def test_a_streamed_response_is_built_up_by_the_clients_own_helper(gateway: Gateway, backend: Backend) -> None:
    backend.script = over_several_ticks
    deltas, names = [], []
    with gateway.client().responses.stream(model="m", input=ASKED) as events:
        for item in events:
            names.append(item.type)
            if item.type == "response.output_text.delta":
                deltas.append(item.delta)
    assert "".join(deltas) == TEXT
    assert len(deltas) > 1
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] == "response.incomplete"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_function_call_goes_there_and_back_in_the_responses_dialect(
    gateway: Gateway, backend: Backend, streamed: bool
) -> None:
    backend.script = call_tool()
    client = gateway.client()
    tools: Any = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": False}]
    if streamed:
        events = list(client.responses.create(model="m", input=ASKED, tools=tools, stream=True))
        assert [item.sequence_number for item in events] == list(range(len(events)))
        answer = events[-1].response
    else:
        answer = client.responses.create(model="m", input=ASKED, tools=tools)
    (call,) = answer.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", ARGUMENTS)
    assert "backend" not in call.call_id
    backend.script = say("Sunny.")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21 °C"}
    again: Any = [*ASKED, *[item.model_dump(exclude_none=True) for item in answer.output], result]
    assert client.responses.create(model="m", input=again, tools=tools).output_text == "Sunny."
    roles = [message["role"] for message in backend.requests[-1].json["messages"]]
    assert roles == ["user", "assistant", "tool"]


def test_reasoning_is_an_item_of_a_response(gateway: Gateway, backend: Backend) -> None:
    backend.script = think
    for answer in (
        gateway.client().responses.create(model="thinker", input="Hi."),
        list(gateway.client().responses.create(model="thinker", input="Hi.", stream=True))[-1].response,
    ):
        thought, message = answer.output
        assert (thought.type, thought.content[0].text) == ("reasoning", "Let me see. " * 4)
        assert message.content[0].text == "It is sunny."


def test_a_response_that_fails_mid_stream_says_so_and_is_cut(gateway: Gateway, backend: Backend) -> None:
    backend.script = fail
    seen = []
    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        seen.extend(gateway.client().responses.create(model="m", input="Hi.", stream=True))
    assert seen[-1].type == "response.failed"
    assert seen[-1].response.error.code == "upstream_error"
    assert "MARKER" not in str(seen)


@pytest.mark.parametrize("field", [{"store": True}, {"previous_response_id": "resp_1"}, {"top_logprobs": 3}])
def test_state_and_log_probabilities_are_refused(gateway: Gateway, backend: Backend, field: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        gateway.client().responses.create(model="m", input="Hi.", **field)
    assert caught.value.param in field
    assert backend.requests == []


# Messages.


def test_a_message_is_what_the_backend_said(gateway: Gateway, backend: Backend) -> None:
    backend.script = say(TEXT, usage=(11, 9))
    answer = claude(gateway).messages.create(model="m", max_tokens=900, messages=ASKED, system="Be brief.")
    assert [block.text for block in answer.content] == [TEXT]
    assert (answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens) == ("end_turn", 11, 9)
    (asked,) = backend.requests
    assert asked.json["messages"][0] == {"role": "system", "content": "Be brief."}
    names = {name for name, _ in asked.headers}
    assert not names & {"anthropic-version", "x-api-key", "authorization"}


def test_a_streamed_message_is_built_up_by_the_clients_own_helper(gateway: Gateway, backend: Backend) -> None:
    backend.script = over_several_ticks
    with claude(gateway).messages.stream(model="m", max_tokens=900, messages=ASKED) as events:
        pieces = list(events.text_stream)
        message = events.get_final_message()
    assert "".join(pieces) == TEXT
    assert len(pieces) > 1
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("max_tokens", 11, 9)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_use_goes_there_and_back_in_the_anthropic_dialect(
    gateway: Gateway, backend: Backend, streamed: bool
) -> None:
    backend.script = call_tool()
    client = claude(gateway)
    asked: Any = {"model": "m", "max_tokens": 100, "tools": [{"name": "get_weather", "input_schema": PARAMETERS}]}
    if streamed:
        with client.messages.stream(**asked, messages=ASKED) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**asked, messages=ASKED)
    (block,) = answer.content
    assert (answer.stop_reason, block.type, block.name, block.input) == (
        "tool_use",
        "tool_use",
        "get_weather",
        ARGUMENTS,
    )
    assert "backend" not in block.id
    backend.script = say("Sunny.")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "21 °C"}
    turns: Any = [*ASKED, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**asked, messages=turns).content[0].text == "Sunny."
    roles = [message["role"] for message in backend.requests[-1].json["messages"]]
    assert roles == ["user", "assistant", "tool"]


def test_reasoning_is_a_thinking_block_of_a_message(gateway: Gateway, backend: Backend) -> None:
    backend.script = think
    client = claude(gateway)
    with client.messages.stream(model="thinker", max_tokens=100, messages=ASKED) as events:
        streamed = events.get_final_message()
    for answer in (client.messages.create(model="thinker", max_tokens=100, messages=ASKED), streamed):
        thought, text = answer.content
        assert (thought.type, thought.thinking, text.text) == ("thinking", "Let me see. " * 4, "It is sunny.")


def test_a_message_that_fails_mid_stream_raises(gateway: Gateway, backend: Backend) -> None:
    backend.script = fail
    received: list[str] = []
    with (
        claude(gateway).messages.stream(model="m", max_tokens=100, messages=ASKED) as events,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        received.extend(events.text_stream)
    assert received
    assert caught.value.body["error"]["code"] == "upstream_error"
    assert "MARKER" not in str(caught.value.body)


def test_a_key_may_come_in_either_header_but_only_on_its_own_route(gateway: Gateway, backend: Backend) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": ASKED}
    either = [request(path="/v1/messages", body=body, key=ALICE)]
    either.append(request(path="/v1/messages", body=body, headers=f"x-api-key: {ALICE}\r\n"))
    assert [gateway.send(data).status for data in either] == [200, 200]
    elsewhere = request(body={"model": "m", "messages": ASKED}, headers=f"x-api-key: {ALICE}\r\n")
    assert gateway.send(elsewhere).status == 401


def error_of(answer: Response) -> str:
    document = answer.json
    assert document.keys() == {"type", "error"}
    assert document["type"] == "error"
    assert isinstance(document["error"]["message"], str)
    return document["error"]["type"]


def test_every_refusal_on_the_route_has_anthropics_shape(gateway: Gateway, backend: Backend) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": ASKED}

    def ask(**more: Any) -> Response:
        return gateway.send(request(**{"path": "/v1/messages", "body": body, "key": ALICE} | more))

    assert error_of(ask(key="wrong")) == "authentication_error"
    assert error_of(ask(key=None)) == "authentication_error"
    assert error_of(ask(method="GET", body=b"")) == "invalid_request_error"
    assert error_of(ask(body=body | {"model": "x"})) == "not_found_error"
    assert error_of(ask(body=body | {"logprobs": True})) == "invalid_request_error"
    assert error_of(ask(body=b"{")) == "invalid_request_error"
    assert error_of(ask(content_type="text/plain")) == "invalid_request_error"
    backend.script = raw(response(b"", status="500 No"))
    assert error_of(ask()) == "api_error"
    backend.script = raw(response(b'{"error": {"code": "context_length_exceeded"}}', status="400 No"))
    refused = ask()
    assert (refused.status, error_of(refused)) == (400, "invalid_request_error")
    assert refused.json["error"]["code"] == "context_length_exceeded"


def test_an_exhausted_budget_raises_at_once_without_a_retry(backend: Backend, start: Start) -> None:
    def tiny(rules: dict[str, Any]) -> None:
        rules["meters"] = ["raw"]
        rules["tenants"]["alice"]["budget"] = {"window": "10y", "bytes": "40B"}

    poor = start(tiny)
    poor.ask(stream=True)
    with pytest.raises(anthropic.RateLimitError) as caught:
        claude(poor).messages.create(model="m", max_tokens=9, messages=ASKED)
    assert caught.value.body["error"]["code"] == "egress_budget_exhausted"
    assert poor.metric("weir_refusals_total", reason="over_budget") == 1


# Embeddings.


def embed(*rows: list[float], prompt_tokens: int = 7) -> Any:
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": 99}
    return raw(response(json.dumps({"data": data, "usage": usage, "model": "covert"}).encode()))


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_embeddings_are_quantised_to_unit_length(gateway: Gateway, backend: Backend, encoding: Any) -> None:
    backend.script = embed([3.0, 0.0, -4.0, 0.0], [0.1, 0.1, 0.1, 0.1])
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = gateway.client().embeddings.create(model="int8", input=["a", "b"], **options)
    assert backend.requests[-1].json == {"model": "int8", "input": ["a", "b"], "encoding_format": "float"}
    if encoding != "base64":
        one, two = (item.embedding for item in answer.data)
        assert one == pytest.approx([0.6, 0, -0.8, 0], abs=0.005)
        assert two == pytest.approx([0.5, 0.5, 0.5, 0.5])
    assert (answer.usage.prompt_tokens, answer.model) == (7, "int8")


def test_an_embedding_is_charged_raw_and_never_refunded(gateway: Gateway, backend: Backend) -> None:
    body = {"model": "int8", "input": ["a"] * 3}
    backend.script = embed(*[[1.0, 0.0, 0.0, 0.0]] * 3)
    answer = gateway.send(request(path="/v1/embeddings", body=body, key=ALICE))
    assert answer.status == 200
    closed = gateway.leaf("closed", answer)
    assert 8 * 4 * 3 < closed["charged_bits"] < 8 * 4 * 3 + 60
    gateway.idle()
    settled = [leaf for leaf in gateway.audit() if leaf["type"] == "settled" and leaf["answer"] == closed["answer"]]
    assert settled == []


def test_binary_embeddings_are_signs_of_as_many_dimensions_as_the_backend_has(
    gateway: Gateway, backend: Backend
) -> None:
    backend.script = embed([0.5, -0.1, -0.0])
    answer = gateway.client().embeddings.create(model="binary", input="a")
    assert answer.data[0].embedding == [1.0, -1.0, 1.0]


@pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[1.0, 2.0, 3.0, 4.0]] * 2, []])
def test_embeddings_of_another_shape_are_an_error_of_the_backend(
    gateway: Gateway, backend: Backend, rows: list[list[float]]
) -> None:
    backend.script = embed(*rows)
    with pytest.raises(openai.InternalServerError) as caught:
        gateway.client().with_options(max_retries=0).embeddings.create(model="int8", input="a")
    assert caught.value.code == "upstream_error"


def test_a_model_without_embeddings_has_no_such_route(gateway: Gateway, backend: Backend) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.client().embeddings.create(model="m", input="a")
    assert "embeddings: int8" in str(caught.value)
    assert backend.requests == []


# Chat.


def test_reasoning_is_released_only_where_policy_says_so(gateway: Gateway, backend: Backend) -> None:
    backend.script = think
    create = gateway.client().chat.completions.create
    for model, expected in (("thinker", "Let me see. " * 4), ("m", "")):
        message = create(model=model, messages=ASKED).choices[0].message
        assert getattr(message, "reasoning_content", "") == expected
        deltas = [chunk.choices[0].delta for chunk in create(model=model, messages=ASKED, stream=True)]
        assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == expected
        assert "".join(delta.content or "" for delta in deltas) == message.content == "It is sunny."


def test_a_steering_report_that_was_not_asked_for_does_not_leave(gateway: Gateway, backend: Backend) -> None:
    report = {"applied": {"prompt_tokens": 1, "generated_tokens": 2, "layers": [3]}, "relative_dose": 0.5}
    body = {"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}], "steering": report}
    backend.script = raw(response(json.dumps(body).encode()))
    assert "steering" not in gateway.ask().json
    asked = gateway.ask(steering={"vectors": [{"id": "calm"}]})
    assert asked.json["steering"]["applied"]["layers"] == [3]

"""The official client, unchanged, in front of the gateway."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest

from tests.e2e.backend import DONE, Backend, Exchange, event, finish_event, response, say, stream, text_event
from tests.e2e.conftest import Start
from tests.e2e.processes import Gateway
from tests.e2e.wire import chat

MESSAGES = [{"role": "user", "content": "What is the weather in Bern?"}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_an_unstreamed_answer_is_what_the_backend_said(gateway: Gateway, backend: Backend) -> None:
    backend.script = say("It is sunny in Bern, 21 °C.", usage=(11, 9))
    answer = gateway.client().chat.completions.create(model="m", messages=MESSAGES)
    assert answer.choices[0].message.content == "It is sunny in Bern, 21 °C."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "m"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (11, 9, 20)
    assert "backend" not in answer.id


def test_a_streamed_answer_arrives_in_pieces_and_is_what_the_backend_said(gateway: Gateway, backend: Backend) -> None:
    text = "Grüezi! " + "Es scheint die Sonne über Bern. " * 40
    backend.script = say(text, pieces=30, reason="length")
    chunks = list(
        gateway.client().chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 8
    assert len({c.id for c in chunks}) == 1


def test_pieces_reach_the_client_while_the_backend_is_still_speaking(gateway: Gateway, backend: Backend) -> None:
    gate = backend.gate()
    first = "Two quanta of sixteen bytes, sir"
    assert len(first) == 32

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(text_event(first))
        await gate.passed()
        await exchange.chunk(text_event(", and the rest.") + finish_event() + DONE)
        await exchange.finish()

    backend.script = script
    chunks = gateway.client().chat.completions.create(model="m", messages=MESSAGES, stream=True)
    received = ""
    for chunk in chunks:
        received += chunk.choices[0].delta.content or ""
        if received:
            break
    assert received == first
    gate.open()
    received += "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert received == "Two quanta of sixteen bytes, sir, and the rest."


def test_a_text_completion_works_streamed_and_whole(gateway: Gateway, backend: Backend) -> None:
    async def script(exchange: Exchange) -> None:
        parts = [{"choices": [{"index": 0, "text": text}]} for text in ("once upon ", "a time there was ", "a weir")]
        end = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
        if exchange.request.json["stream"]:
            await stream(exchange, [], ending=[*map(event, parts), event(end), DONE])
        else:
            body = {"choices": [{"index": 0, "text": "once upon a time there was a weir", "finish_reason": "stop"}]}
            await exchange.send(response(json.dumps(body).encode()))

    backend.script = script
    client = gateway.client()
    whole = client.completions.create(model="m", prompt="Tell me a tale:")
    pieces = client.completions.create(model="m", prompt="Tell me a tale:", stream=True)
    assert whole.choices[0].text == "once upon a time there was a weir"
    assert "".join(piece.choices[0].text for piece in pieces) == "once upon a time there was a weir"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_call_arrives_with_the_gateways_own_id(gateway: Gateway, backend: Backend, streamed: bool) -> None:
    function = {"name": "get_weather", "arguments": '{ "unit" : "C",\n "city":"Bern" }'}
    call = {"index": 0, "id": "backend-call-id", "type": "function", "function": function}

    async def script(exchange: Exchange) -> None:
        if exchange.request.json["stream"]:
            fragments = [
                {"index": 0, "function": {"arguments": part}} for part in ('{ "unit" : "C",', '\n "city":"Bern" }')
            ]
            named = {"index": 0, "id": "backend-call-id", "function": {"name": "get_weather", "arguments": ""}}
            deltas = [{"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]} for part in (named, *fragments)]
            await stream(exchange, [], ending=[*map(event, deltas), finish_event("tool_calls"), DONE])
        else:
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
            await exchange.send(response(json.dumps({"choices": [choice]}).encode()))

    backend.script = script
    create = gateway.client().chat.completions.create
    if streamed:
        chunks = list(create(model="m", messages=MESSAGES, tools=[TOOL], stream=True))
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        finish = chunks[-1].choices[0].finish_reason
    else:
        choice = create(model="m", messages=MESSAGES, tools=[TOOL]).choices[0]
        calls, finish = choice.message.tool_calls, choice.finish_reason
        assert choice.message.content is None
    assert finish == "tool_calls"
    assert len(calls) == 1
    assert calls[0].function.name == "get_weather"
    assert calls[0].function.arguments == '{"city":"Bern","unit":"C"}'
    assert calls[0].id.startswith("call_")
    assert "backend" not in calls[0].id


def test_the_models_listed_are_the_tenants_and_no_backend_is_asked(gateway: Gateway, backend: Backend) -> None:
    assert [model.id for model in gateway.client().models.list()] == ["m"]
    assert backend.requests == []


def test_a_wrong_key_raises_authentication_error(gateway: Gateway, backend: Backend) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        gateway.client(key="not-a-key").chat.completions.create(model="m", messages=MESSAGES)
    assert caught.value.code == "invalid_api_key"
    assert backend.requests == []


def test_an_exhausted_budget_raises_rate_limit_error_at_once_without_a_retry(backend: Backend, start: Start) -> None:
    def tiny(rules: dict[str, Any]) -> None:
        rules["meters"] = ["raw"]
        rules["tenants"]["alice"]["budget"] = {"window": "10y", "bytes": "40B"}

    poor = start(tiny)
    poor.ask(stream=True)
    backend.exchanges = []
    before_s = time.monotonic()
    with pytest.raises(openai.RateLimitError) as caught:
        poor.client().chat.completions.create(model="m", messages=MESSAGES, stream=True)
    assert time.monotonic() - before_s < 1, "the client slept before it gave up"
    assert caught.value.code == "egress_budget_exhausted"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert poor.metric("weir_refusals_total", reason="over_budget") == 1, "the client tried again"
    assert backend.requests == []


@pytest.mark.parametrize("how", ["aborts", "ends without [DONE]", "says an error", "speaks nonsense"])
def test_a_backend_that_fails_mid_stream_raises_instead_of_looking_complete(
    gateway: Gateway, backend: Backend, how: str
) -> None:
    said = "This much was said before the trouble began. "

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(text_event(said))
        if how == "aborts":
            exchange.abort()
            return
        if how == "says an error":
            await exchange.chunk(event({"error": {"message": "MARKER", "code": 500}}))
        if how == "speaks nonsense":
            await exchange.chunk(b"data: {MARKER\n\n")
        await exchange.finish()

    backend.script = script
    received = ""
    with pytest.raises(openai.APIError) as caught:  # noqa: PT012  the error comes while reading
        for chunk in gateway.client().chat.completions.create(**chat(), stream=True):
            received += chunk.choices[0].delta.content or ""
    assert said.startswith(received)
    assert caught.value.code == "upstream_error"
    assert "MARKER" not in str(caught.value)

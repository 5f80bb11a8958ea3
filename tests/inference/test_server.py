from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

MODEL_ID = "smollm2-135m-instruct"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


async def events_of(response) -> list[Any]:
    """All events of a stream; the last one is the string [DONE]."""
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    lines = [line.decode().rstrip("\n") async for line in response.content]
    data = [line.removeprefix("data: ") for line in lines if line]
    return [event if event == "[DONE]" else json.loads(event) for event in data]


async def until_idle(client) -> None:
    async with asyncio.timeout(10):
        while client.service.engine.active_requests:  # noqa: ASYNC110 - the engine is a thread
            await asyncio.sleep(0.01)


async def upload(client, vector_id: str = "v", *, layer: int = 10, value: float = 1.0) -> None:
    vector = [value if i % 2 else -value for i in range(576)]
    status, _ = await client.call("POST", "/v1/steering/vectors", {"id": vector_id, "layer": layer, "vector": vector})
    assert status == 201


def steered(**changes: Any) -> dict[str, Any]:
    return {"vectors": [{"id": "v", "op": "add", "scale": 1.0, **changes}]}


async def test_the_model_knows_the_capital_of_france(client):
    status, body = await client.chat(temperature=0, max_tokens=30)
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert body["choices"][0]["finish_reason"] == "stop"
    none_known = {"cached_tokens": 0}
    counts = {"prompt_tokens": 37, "completion_tokens": 8, "total_tokens": 45, "prompt_tokens_details": none_known}
    assert body["usage"] == counts
    assert "steering" not in body
    assert "token_ids" not in body["choices"][0]


async def test_the_openai_library_reads_whole_and_streamed_answers(client):
    async with openai.AsyncOpenAI(base_url=client.base + "/v1", api_key="none") as library:
        messages = [{"role": "user", "content": [{"type": "text", "text": "Say hello"}]}]
        asked = {"model": MODEL_ID, "messages": messages, "max_completion_tokens": 12, "seed": 5}
        whole = await library.chat.completions.create(**asked)
        stream = await library.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
        )
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens
        assert [model.id async for model in library.models.list()] == [MODEL_ID]
        text = await library.completions.create(model=MODEL_ID, prompt="One, two,", max_tokens=4, temperature=0)
        assert "three" in text.choices[0].text


async def test_a_prompt_is_known_to_those_who_name_the_salt_it_was_run_with(client):
    async def cached(**fields: Any) -> int:
        status, body = await client.chat("Name a colour.", temperature=0, max_tokens=2, **fields)
        assert status == 200
        return body["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert await cached(cache_salt="alice") == 0
    assert await cached(cache_salt="bob") == 0
    assert await cached() == 0
    assert await cached(cache_salt="alice") > 0


async def test_a_stream_has_the_same_text_and_ids_as_the_whole_answer_and_ends_in_order(client):
    asked = {"seed": 11, "max_tokens": 20, "return_token_ids": True}
    _, whole = await client.chat("Write an emoji poem 🦉", **asked)
    messages = [{"role": "user", "content": "Write an emoji poem 🦉"}]
    body = {"model": MODEL_ID, "messages": messages, **asked, "stream": True, "stream_options": {"include_usage": True}}
    async with client.post("/v1/chat/completions", body) as response:
        *chunks, usage, done = await events_of(response)
    assert done == "[DONE]"
    assert usage["choices"] == []
    known = {"cached_tokens": whole["usage"]["prompt_tokens"]}
    assert usage["usage"] == {**whole["usage"], "prompt_tokens_details": known}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert (
        "".join(choice["delta"].get("content", "") for choice in choices) == whole["choices"][0]["message"]["content"]
    )
    assert [i for choice in choices for i in choice["token_ids"]] == whole["choices"][0]["token_ids"]
    assert len(whole["choices"][0]["token_ids"]) == whole["usage"]["completion_tokens"]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]


async def test_eight_answers_at_once_equal_the_same_eight_one_by_one(client):
    asked = [{"text": f"Tell me about the number {i}", "seed": i, "max_tokens": 12} for i in range(8)]
    one_by_one = [(await client.chat(**fields))[1]["choices"] for fields in asked]
    at_once = await asyncio.gather(*(client.chat(**fields) for fields in asked))
    assert [body["choices"] for _, body in at_once] == one_by_one


async def test_a_stop_string_ends_the_answer_before_itself(client):
    _, body = await client.chat(temperature=0, max_tokens=30, stop=["Paris", "zebra"])
    assert body["choices"][0]["message"]["content"] == "The capital of France is "
    assert body["choices"][0]["finish_reason"] == "stop"


async def test_a_named_tool_is_called_with_arguments_in_json(client):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    status, body = await client.chat(
        "What is the weather in Paris?", tools=[WEATHER], tool_choice=choice, temperature=0, max_tokens=60
    )
    assert status == 200
    message = body["choices"][0]["message"]
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    assert message["content"] is None
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert isinstance(json.loads(call["function"]["arguments"]), dict)


async def test_a_conversation_with_calls_and_results_is_accepted(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12 degrees, rain"},
    ]
    body = {"model": MODEL_ID, "messages": messages, "tools": [WEATHER], "tool_choice": "auto", "max_tokens": 5}
    status, _ = await client.call("POST", "/v1/chat/completions", body)
    assert status == 200


BAD_REQUESTS = [
    ({"temperature": 3}, "temperature"),
    ({"temperature": 1e-320}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"max_tokens": 9000}, "max_tokens"),
    ({"seed": 2**64}, "seed"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "x" * 129}, "cache_salt"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
    ({"steering": {"vectors": [], "strength": 2}}, "steering.strength"),
    ({"steering": steered(scale=None)}, "steering.vectors[0].scale"),
    ({"steering": steered(id="unknown")}, "steering.vectors[0].id"),
    ({"steering": steered(op="subtract")}, "steering.vectors[0].op"),
    ({"steering": steered(layers=[30])}, "steering.vectors[0].layers"),
    ({"steering": steered(scale=1e6)}, "steering.vectors[0].scale"),
    ({"steering": steered(gate=1)}, "steering.vectors[0].gate"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_REQUESTS)
async def test_a_bad_request_is_400_naming_the_field_and_runs_nothing(client, fields, param):
    await upload(client)
    before = client.service.loaded.model.forward_passes
    status, body = await client.chat(**fields)
    assert status == 400
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert param in body["error"]["param"]
    assert client.service.loaded.model.forward_passes == before


async def test_a_context_overflow_says_how_much_there_is_and_how_much_was_asked(client):
    status, body = await client.chat("word " * 9000)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert "8192" in body["error"]["message"]
    assert "9031" in body["error"]["message"]


async def test_a_prompt_of_characters_the_vocabulary_lacks_is_400(client):
    status, body = await client.call("POST", "/v1/completions", {"model": MODEL_ID, "prompt": "\x04"})
    assert (status, body["error"]["code"]) == (400, "empty_prompt")


@pytest.mark.parametrize("raw", [b"{", b"\xff", b'{"model": NaN}', b"[]", b"[" * 100_000])
async def test_what_is_not_the_right_json_is_400(client, raw):
    status, body = await client.call("POST", "/v1/chat/completions", raw=raw)
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"


async def test_unknown_models_paths_and_methods_and_huge_bodies_are_refused_in_openais_shape(client):
    asked = {"model": "gpt-9", "prompt": "x"}
    assert (await client.call("POST", "/v1/completions", asked))[0] == 404
    status, body = await client.call("GET", "/v1/nothing")
    assert (status, body["error"]["code"]) == (404, "not_found")
    assert (await client.call("GET", "/v1/completions"))[0] == 405
    assert (await client.call("POST", "/v1/completions", raw=b" " * (9 << 20)))[0] == 413


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_cancels_its_request(client, stream):
    body = {"model": MODEL_ID, "prompt": "Once upon a time", "max_tokens": 4000, "stream": stream}
    task = asyncio.create_task(_read_forever(client, body))
    async with asyncio.timeout(10):
        while not client.service.engine.kv_tokens_reserved:  # noqa: ASYNC110 - the engine is a thread
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until_idle(client)
    assert client.service.engine.kv_tokens_reserved == 0
    assert (await client.chat(max_tokens=1))[0] == 200


async def _read_forever(client, body) -> None:
    async with client.post("/v1/completions", body) as response:
        async for _ in response.content:
            pass


async def test_a_steered_answer_says_what_was_done_and_an_unsteered_neighbour_is_untouched(client):
    await upload(client, layer=10, value=1.5)
    plain = (await client.chat(temperature=0, max_tokens=10))[1]
    answers = await asyncio.gather(
        client.chat(temperature=0, max_tokens=10, steering=steered(scale=3.0, layers=[10, 12])),
        client.chat(temperature=0, max_tokens=10),
    )
    (_, changed), (_, neighbour) = answers
    assert neighbour["choices"] == plain["choices"]
    assert changed["choices"] != plain["choices"]
    report = changed["steering"]
    assert report["applied"]["prompt_tokens"] == 37
    assert report["applied"]["generated_tokens"] == changed["usage"]["completion_tokens"] - 1
    assert report["applied"]["layers"] == [10, 12]
    assert report["relative_dose"] > 0.01
    assert len(bytes.fromhex(report["fingerprint"])) == 32


async def test_steering_of_strength_zero_is_the_plain_answer_and_says_that_nothing_was_applied(client):
    await upload(client)
    plain = (await client.chat(seed=3, max_tokens=10))[1]
    for spec in (steered(scale=0), {"vectors": []}):
        body = (await client.chat(seed=3, max_tokens=10, steering=spec))[1]
        assert body["choices"] == plain["choices"]
        assert body["steering"]["applied"] == {"prompt_tokens": 0, "generated_tokens": 0, "layers": []}
        assert body["steering"]["relative_dose"] == 0


async def test_a_steered_stream_reports_in_the_chunk_that_ends_it(client):
    await upload(client)
    body = {"model": MODEL_ID, "prompt": "The sea", "max_tokens": 4, "stream": True, "steering": steered()}
    async with client.post("/v1/completions", body) as response:
        *chunks, last, done = await events_of(response)
    assert done == "[DONE]"
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["steering"]["applied"] == {"prompt_tokens": 2, "generated_tokens": 3, "layers": [10]}
    assert all("steering" not in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"vector": [1.0] * 575}, "wrong_dimension"),
        ({"vector": [0.0] * 576}, "bad_vector"),
        ({"vector": [1e300] * 576}, "bad_vector"),
        ({"vector": [1e-60] * 576}, "bad_vector"),
        ({"layer": 30}, "bad_layer"),
        ({"id": "../escape"}, "invalid_value"),
        ({"id": "Upper"}, "invalid_value"),
        ({"extra": 1}, "unknown_field"),
    ],
)
async def test_a_vector_that_cannot_be_right_is_refused(client, change, code):
    body = {"id": "v", "layer": 3, "vector": [1.0] * 576, **change}
    status, answer = await client.call("POST", "/v1/steering/vectors", body)
    assert (status, answer["error"]["code"]) == (400, code)


async def test_nan_and_infinity_are_not_json_numbers(client):
    for number in (b"NaN", b"Infinity", b"1e999"):
        raw = b'{"id":"v","layer":3,"vector":[' + b",".join([number] * 576) + b"]}"
        assert (await client.call("POST", "/v1/steering/vectors", raw=raw))[0] == 400


async def test_vectors_are_listed_shown_without_their_numbers_and_deleted(client):
    await upload(client)
    assert (await client.call("POST", "/v1/steering/vectors", {"id": "v", "layer": 1, "vector": [1.0] * 576}))[0] == 409
    _, listed = await client.call("GET", "/v1/steering/vectors")
    _, shown = await client.call("GET", "/v1/steering/vectors/v")
    assert listed == {"object": "list", "data": [shown]}
    assert (shown["id"], shown["layer"], shown["norm"]) == ("v", 10, 24.0)
    assert "vector" not in shown
    assert (await client.call("DELETE", "/v1/steering/vectors/v"))[1]["deleted"] is True
    assert (await client.call("DELETE", "/v1/steering/vectors/v"))[0] == 404
    assert (await client.call("GET", "/v1/steering/vectors/v"))[0] == 404


def extraction(**changes: Any) -> dict[str, Any]:
    feelings = {"positive": "I am so happy and full of joy", "negative": "I am so sad and full of grief"}
    texts = {
        side: [f"{feeling} about {thing}." for thing in ("it", "you", "today", "work")]
        for side, feeling in feelings.items()
    }
    return {"id": "mood", "method": "mean_difference", **texts, "layer": 20, "token": "mean", "chat": True, **changes}


async def test_an_extraction_job_makes_a_vector_that_steers(client):
    status, job = await client.call("POST", "/v1/steering/extract", extraction(job_id="my-job"))
    assert (status, job["id"], job["object"], job["status"]) == (202, "my-job", "job", "queued")
    async with asyncio.timeout(30):
        while job["status"] not in ("succeeded", "failed"):
            _, job = await client.call("GET", "/v1/jobs/my-job")
            assert 0 <= job["progress"] <= 1
            await asyncio.sleep(0.02)
    assert (job["status"], job["progress"], job["error"]) == ("succeeded", 1.0, None)
    [figures] = job["result"]["layers"]
    assert set(figures) == {"layer", "norm", "residual_norm", "mean_pairwise_cosine", "d_prime"}
    assert (figures["layer"], job["result"]["selected_layer"], job["result"]["position"]) == (20, 20, None)
    _, vector = await client.call("GET", "/v1/steering/vectors/mood")
    assert vector["norm"] == figures["norm"]
    assert vector["pairs"] == 4
    spec = {"vectors": [{"id": "mood", "op": "add", "scale": 1.0}]}
    _, body = await client.chat("How are you?", temperature=0, max_tokens=5, steering=spec)
    assert body["steering"]["applied"]["layers"] == [20]
    status, body = await client.call("POST", "/v1/steering/extract", extraction())
    assert (status, body["error"]["code"]) == (409, "vector_exists")
    status, body = await client.call("POST", "/v1/steering/extract", extraction(id="other", job_id="my-job"))
    assert (status, body["error"]["code"]) == (409, "job_exists")


@pytest.mark.parametrize(
    "change",
    [
        {"negative": ["only one"]},
        {"positive": [], "negative": []},
        {"layer": 30},
        {"token": "first"},
        {"method": "magic"},
        {"id": "Bad Id"},
        {"positive": ["x" * 20_000] * 4},
        {"positive": [""] * 4},
        {"unknown": 1},
    ],
)
async def test_a_bad_extraction_is_refused_before_anything_runs(client, change):
    before = client.service.loaded.model.forward_passes
    assert (await client.call("POST", "/v1/steering/extract", extraction(**change)))[0] == 400
    assert client.service.loaded.model.forward_passes == before
    assert (await client.call("GET", "/v1/jobs/none"))[0] == 404


async def test_health_models_and_capabilities_answer(client):
    assert (await client.call("GET", "/livez"))[0] == 200
    assert (await client.call("GET", "/readyz"))[0] == 200
    _, models = await client.call("GET", "/v1/models")
    assert [model["id"] for model in models["data"]] == [MODEL_ID]
    _, capabilities = await client.call("GET", "/v1/capabilities")
    assert (capabilities["model"]["layers"], capabilities["model"]["d_model"]) == (30, 576)
    assert capabilities["model"]["parameters"] == 134_515_008
    client.service.is_draining = True
    assert (await client.call("GET", "/readyz"))[0] == 503
    assert (await client.chat(max_tokens=1))[0] == 503


async def test_livez_says_when_the_engine_has_failed(client):
    assert (await client.call("GET", "/livez"))[0] == 200
    client.service.engine._has_failed = True
    status, body = await client.call("GET", "/livez")
    assert (status, body["error"]["code"]) == (503, "engine_failed")

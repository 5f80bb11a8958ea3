"""SmolLM2's real weights behind the gateway: text, seeds, tool calls and steering, all of it through the front door."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.model_server import MODEL, model_policy, model_server
from tests.e2e.processes import BOB, Gateway, until
from tests.e2e.wire import Response, chat, request

LAYER = 18
CHEERFUL = [
    "I am so happy today, everything is wonderful.",
    "What a joyful day, I love it.",
    "I feel delighted and cheerful.",
    "This is fantastic news, I am thrilled!",
    "Life is beautiful and full of joy.",
    "I smile and laugh with my dear friends.",
    "The party was delightful and everyone was happy.",
    "I am grateful, hopeful and full of energy.",
]
GLOOMY = [
    "I am so sad today, everything is terrible.",
    "What a miserable day, I hate it.",
    "I feel depressed and gloomy.",
    "This is awful news, I am devastated!",
    "Life is bleak and full of sorrow.",
    "I cry and weep alone without friends.",
    "The funeral was dreadful and everyone was sad.",
    "I am bitter, hopeless and full of despair.",
]
PROMPTS = [
    "Tell me about your day.",
    "How do you feel right now?",
    "Write a short story about a dog.",
    "Describe a walk in the park.",
    "What is it like to live in a small town?",
    "Write about a letter from an old friend.",
    "Describe the weather this morning.",
    "Write a diary entry for today.",
]
GOOD_WORDS = """
    happy joy joyful love loved lovely wonderful beautiful delight delighted delightful cheerful smile smiled
    smiling laugh laughter laughing thrilled grateful fantastic amazing excited exciting fun warm bright hope
    hopeful enjoy enjoyed peaceful friendly pleasant pleasure great good best perfect celebrate celebration vibrant
    sunny
"""
BAD_WORDS = """
    sad sadness miserable hate hated terrible awful depressed gloomy devastated bleak sorrow cry cried crying weep
    alone lonely loneliness dreadful bitter hopeless despair pain painful grief lost loss fear afraid dark death
    died dead tragic tragedy heavy broken tears regret guilt anger angry worst bad cold empty stormy desolate
"""


@pytest.fixture(scope="module")
def real(prepared_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway in front of the real inference server."""
    directory = tmp_path_factory.mktemp("real")
    with model_server(prepared_model, directory) as address:
        gateway = Gateway(directory, model_policy(address, prepared_model, directory)).start()
        yield gateway
        gateway.close()


def ask(real: Gateway, text: str, **fields: Any) -> Response:
    return real.ask(text, **{"model": MODEL, "max_tokens": 32, **fields})


def said(answer: Response) -> str:
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]["message"]["content"]


def extract(real: Gateway, vector: str, key: str | None = None) -> Response:
    body = {"model": MODEL, "id": vector, "positive": CHEERFUL, "negative": GLOOMY, "layer": LAYER, "token": "mean"}
    return real.send(request(path="/v1/steering/extract", body=body, key=key or real.key))


@pytest.fixture(scope="module")
def mood(real: Gateway) -> dict[str, Any]:
    """The cheerful direction, extracted through the gateway; yields the finished job."""
    started = extract(real, "mood")
    assert started.status == 202
    job = started.json["id"]
    assert started.json == {"id": job, "object": "job", "kind": "extract", "status": "queued", "progress": 0.0}

    def over() -> dict[str, Any] | None:
        answer = real.get(f"/v1/jobs/{job}")
        assert answer.status == 200
        return answer.json if answer.json["status"] in ("succeeded", "failed") else None

    return until(over, what="the vector is extracted", seconds=60)


def steered(scale: float, vector: str = "mood", **use: Any) -> dict[str, Any]:
    return {"steering": {"vectors": [{"id": vector, "scale": scale, **use}]}}


def test_a_streamed_answer_is_english_and_costs_what_the_record_says(real: Gateway) -> None:
    used_bits = real.used_bits()
    answer = ask(real, "Why is the sky blue?", stream=True, temperature=0, max_tokens=60)
    assert answer.complete
    assert answer.events[-1] == "[DONE]"
    words = set(re.findall(r"[a-z]+", answer.text.lower()))
    assert {"sky", "light", "blue"} <= words
    assert len([item for item in answer.events if isinstance(item, dict)]) > 5, "it came in pieces"
    closed, settled = real.leaf("closed", answer), real.leaf("settled", answer)
    assert closed["charged_bits"] >= 8 * len(answer.text.encode())
    assert settled["code"] == "zstd"
    assert settled["charged_bits"] < 0.6 * closed["charged_bits"], "a trained dictionary knows such English"
    assert real.used_bits() - used_bits == settled["charged_bits"]


def test_streamed_and_whole_answers_say_the_same(real: Gateway) -> None:
    whole = ask(real, "Name three colours.", temperature=0)
    assert said(whole) == ask(real, "Name three colours.", temperature=0, stream=True).text
    usage = whole.json["usage"]
    assert 0 < usage["completion_tokens"] <= 32
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_seeds_differ_from_request_to_request_and_temperature_0_repeats(real: Gateway) -> None:
    prompt = "Invent a name for a ship and tell its story."
    warm = {said(ask(real, prompt, temperature=1.0)) for _ in range(3)}
    cold = {said(ask(real, prompt, temperature=0)) for _ in range(3)}
    assert len(warm) == 3
    assert len(cold) == 1
    seeds = [leaf["seed"] for leaf in real.audit() if leaf["type"] == "opened"]
    assert len(set(seeds)) == len(seeds)


def test_answers_at_the_same_time_are_the_answers_one_by_one(real: Gateway) -> None:
    alone = [said(ask(real, prompt, temperature=0)) for prompt in PROMPTS[:4]]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda prompt: said(ask(real, prompt, temperature=0)), PROMPTS[:4]))
    assert together == alone


def test_stop_strings_and_lengths_are_kept(real: Gateway) -> None:
    cut = ask(real, "Count from one to twenty.", temperature=0, max_tokens=5)
    assert cut.json["choices"][0]["finish_reason"] == "length"
    assert cut.json["usage"]["completion_tokens"] == 5
    whole = said(ask(real, "Why is the sky blue?", temperature=0))
    stop = whole.split()[3]
    assert said(ask(real, "Why is the sky blue?", temperature=0, stop=stop)) == whole[: whole.index(stop)]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_model_calls_a_declared_tool(real: Gateway, streamed: bool) -> None:
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "get_weather", "description": "Get the weather of a city", "parameters": city}
    wanted = json.dumps({"name": "get_weather", "arguments": {"city": "Bern"}})
    prompt = f"Repeat exactly this and nothing else:\n<tool_call>\n{wanted}\n</tool_call>"
    create = real.client().chat.completions.create
    common: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "tools": [{"type": "function", "function": function}],
        "temperature": 0,
        "max_tokens": 60,
    }
    if streamed:
        chunks = list(create(**common, stream=True))
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        finish = chunks[-1].choices[0].finish_reason
    else:
        choice = create(**common).choices[0]
        calls, finish = choice.message.tool_calls or [], choice.finish_reason
    assert finish == "tool_calls"
    assert [(call.function.name, call.function.arguments) for call in calls] == [("get_weather", '{"city":"Bern"}')]


# Steering.


def test_an_extraction_reports_rounded_statistics_and_no_vector(mood: dict[str, Any]) -> None:
    assert mood.keys() == {"id", "object", "kind", "status", "progress", "result"}
    assert (mood["status"], mood["progress"]) == ("succeeded", 1.0)
    assert mood["result"].keys() == {"layers", "selected_layer", "position"}
    assert mood["result"]["selected_layer"] == LAYER
    (found,) = mood["result"]["layers"]
    assert found.keys() == {"layer", "norm", "residual_norm", "mean_pairwise_cosine", "d_prime"}
    assert found["layer"] == LAYER
    assert 0 < found["norm"] < found["residual_norm"]
    assert found["mean_pairwise_cosine"] > 0.2
    assert found["d_prime"] > 3
    assert all(round(value, 2) == value for value in found.values())


def test_a_vector_moves_the_mood_of_answers_both_ways(real: Gateway, mood: dict[str, Any]) -> None:
    assert mood["status"] == "succeeded"

    def tone(scale: float | None) -> tuple[int, int]:
        """Good and bad words in the answers to all prompts."""
        extra = steered(scale) if scale is not None else {}
        with ThreadPoolExecutor(len(PROMPTS)) as threads:
            answers = list(threads.map(lambda p: said(ask(real, p, temperature=0, max_tokens=40, **extra)), PROMPTS))
        words = re.findall(r"[a-z]+", " ".join(answers).lower())
        good, bad = frozenset(GOOD_WORDS.split()), frozenset(BAD_WORDS.split())
        return sum(word in good for word in words), sum(word in bad for word in words)

    (up_good, up_bad), (down_good, down_bad), (good, bad) = tone(1.0), tone(-1.0), tone(None)
    assert up_good - up_bad >= good - bad + 4, "scale +1 is more cheerful than the plain model"
    assert down_good - down_bad <= good - bad - 2, "scale -1 is gloomier than the plain model"
    assert up_good / (up_good + up_bad) >= 0.8
    assert down_good / (down_good + down_bad) <= 0.5


def test_strength_0_is_the_plain_model_to_the_letter(real: Gateway, mood: dict[str, Any]) -> None:
    assert mood["status"] == "succeeded"
    for prompt in PROMPTS[:2]:
        plain = said(ask(real, prompt, temperature=0, max_tokens=24))
        assert said(ask(real, prompt, temperature=0, max_tokens=24, **steered(0))) == plain
        assert said(ask(real, prompt, temperature=0, max_tokens=24, steering={"vectors": []})) == plain
        assert said(ask(real, prompt, temperature=0, max_tokens=24, **steered(2))) != plain


@pytest.mark.parametrize("streamed", [False, True])
def test_a_steered_answer_says_how_much_was_steered(real: Gateway, mood: dict[str, Any], streamed: bool) -> None:
    assert mood["status"] == "succeeded"
    answer = ask(real, PROMPTS[0], temperature=0, max_tokens=10, stream=streamed, **steered(1, layers=[LAYER, 20]))
    assert answer.status == 200
    if streamed:
        (report,) = [item["steering"] for item in answer.events if isinstance(item, dict) and "steering" in item]
    else:
        report = answer.json["steering"]
    assert report.keys() == {"fingerprint", "applied", "relative_dose"}
    assert re.fullmatch(r"[0-9a-f]{16}", report["fingerprint"])
    applied = report["applied"]
    assert applied["layers"] == [LAYER, 20]
    assert applied["prompt_tokens"] > 5
    assert applied["generated_tokens"] in (9, 10)
    assert 0 < report["relative_dose"] < 2


def test_an_unsteered_answer_has_no_steering_block(real: Gateway) -> None:
    answer = ask(real, PROMPTS[0], temperature=0, max_tokens=4)
    assert "steering" not in answer.json


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("use", "code"),
    [
        ({"vector": "never-made"}, "unknown_vector"),
        ({"layers": [30]}, "bad_layers"),
        ({"layers": [3, 3]}, "bad_layers"),
        ({"scale": 101.0}, "bad_scale"),
    ],
)
def test_a_steering_spec_that_the_model_server_refuses_says_why_in_the_gateways_words(
    real: Gateway, mood: dict[str, Any], streamed: bool, use: dict[str, Any], code: str
) -> None:
    assert mood["status"] == "succeeded"
    answer = ask(real, "Hello", stream=streamed, **steered(**{"scale": 1.0, **use}))
    assert answer.status == 400
    assert answer.error["code"] == code


def test_a_vector_of_one_tenant_is_unknown_to_another(real: Gateway, mood: dict[str, Any]) -> None:
    assert mood["status"] == "succeeded"
    job = real.get(f"/v1/jobs/{mood['id']}", key=BOB)
    assert job.status == 403


def test_an_id_that_is_taken_is_a_conflict_and_an_unknown_job_is_not_found(real: Gateway, mood: dict[str, Any]) -> None:
    again = extract(real, "mood")
    assert (again.status, again.error["code"]) == (409, "conflict")
    missing = real.get(f"/v1/jobs/{mood['id'][:-1]}")
    assert (missing.status, missing.error["code"]) == (404, "not_found")


def test_a_prompt_over_the_context_is_refused_by_name(real: Gateway) -> None:
    for streamed in (False, True):
        answer = ask(real, "word " * 9000, stream=streamed)
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


def test_a_client_that_goes_away_leaves_the_model_free_for_others(real: Gateway) -> None:
    connection = real.connect()
    connection.send(
        request(body={**chat("Tell a very long story.", stream=True, max_tokens=2000), "model": MODEL}, key=real.key)
    )
    answer = connection.head()
    next(connection.pieces(answer))
    connection.socket.close()
    assert real.leaf("closed", answer)["outcome"] is None
    real.idle()
    assert said(ask(real, "Say hello.", max_tokens=5))

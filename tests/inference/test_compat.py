"""Other servers' spellings: the same wish has the same fingerprint and the same answer, and what is not known is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from inference.steering.vector import Kind, direction
from tests.inference.stored import example, numbers

MODEL = "smollm2-135m-instruct"
ASKED: dict[str, Any] = {"temperature": 0, "max_tokens": 6}
LONG_WAY = 131_072


@pytest.fixture
def store(client):
    """Two directions and a dictionary of features."""
    for name, seed in (("mood", 1), ("tone", 2)):
        values = numbers(576, seed=seed)
        scaled = {layer: values * (20 + layer) / values.norm() for layer in (10, 12)}
        client.service.store.add(direction(id=name, values=scaled, metadata={"model_digest": None}))
    client.service.store.add(example(Kind.SAE, id="features"))
    client.service.store.add(example(Kind.POSITIONAL, id="places"))
    return client.service.store


async def both(client, ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[Any, Any]:
    answers = []
    for fields in ({"steering": ours}, {"steer_vector_request": theirs}):
        status, body = await client.chat(**ASKED, return_token_ids=True, **fields)
        assert status == 200, body
        answers.append((body["choices"][0]["token_ids"], body["steering"]))
    return answers[0], answers[1]


ALL = {"prefill_trigger_tokens": [-1], "generate_trigger_tokens": [-1]}
MOOD = {"steer_vector_local_path": "mood"}
EASYSTEER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"vectors": [{"id": "mood", "op": "add", "scale": 0.5, "layers": [10]}], "conflict": "priority"},
        {**MOOD, "scale": 0.5, "target_layers": [10], "steer_vector_name": "m", "steer_vector_int_id": 7, **ALL},
    ),
    (
        {
            "vectors": [{"id": "mood", "op": "add", "params": {"normalize": True}, "apply": {"generation": "all"}}],
            "conflict": "priority",
        },
        {**MOOD, "normalize": True, "generate_trigger_tokens": [-1], "algorithm": "direct", "debug": False},
    ),
    (
        {
            "vectors": [
                {
                    "id": "tone",
                    "op": "add",
                    "scale": -1.0,
                    "apply": {
                        "prompt": {"tokens": [5, 198], "positions": [-1, 3]},
                        "exclude": {"prompt": {"tokens": [1], "positions": [0]}},
                    },
                },
                {"id": "mood", "op": "ablate", "point": "block_output", "apply": {"generation": {"tokens": [28]}}},
            ],
            "conflict": "sequential",
        },
        {
            "conflict_resolution": "sequential",
            "vector_configs": [
                {
                    "path": "tone",
                    "scale": -1.0,
                    "prefill_trigger_tokens": [5, 198],
                    "prefill_trigger_positions": [-1, 3],
                    "prefill_exclude_tokens": [1],
                    "prefill_exclude_positions": [0],
                },
                {"path": "mood", "algorithm": "erase", "generate_trigger_tokens": [28]},
            ],
        },
    ),
    (
        {
            "vectors": [
                {
                    "id": "mood",
                    "op": "add",
                    "apply": {"generation": "all", "exclude": {"generation": {"windows": [[2, LONG_WAY]]}}},
                }
            ],
            "conflict": "priority",
        },
        {**MOOD, "generate_first_k_tokens": 2},
    ),
    (
        {
            "vectors": [
                {
                    "id": "mood",
                    "op": "add",
                    "apply": {"generation": "all", "exclude": {"generation": {"windows": [[0, 2]]}}},
                }
            ],
            "conflict": "priority",
        },
        {**MOOD, "generate_after_k_tokens": 2, "generate_trigger_tokens": [-1]},
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), EASYSTEER)
async def test_easysteers_spelling_of_a_spec_is_answered_like_our_own(client, store, ours, theirs):
    first, second = await both(client, ours, theirs)
    assert first == second


@pytest.mark.parametrize(("field", "tokens"), [("generate_first_k_tokens", 2), ("generate_after_k_tokens", 3)])
async def test_the_first_tokens_are_as_many_as_asked_for(client, store, field, tokens):
    asked = {**MOOD, "scale": 0.1, field: 2}
    _, body = await client.chat("Count to a hundred.", **ASKED, steer_vector_request=asked)
    assert body["usage"]["completion_tokens"] == 6
    assert body["steering"]["applied"]["generated_tokens"] == tokens


UNKNOWN_TO_US: list[tuple[dict[str, Any], str, str]] = [
    ({"moe_expert_ids": [1]}, "moe_expert_ids", "unknown_field"),
    ({"moe_mode": "soft"}, "moe_mode", "unknown_field"),
    ({"colour": 1}, "colour", "unknown_field"),
    ({"debug": True}, "debug", "invalid_value"),
    ({"algorithm": "loreft"}, "algorithm", "unknown_algorithm"),
    ({"algorithm": "erase", "scale": 2.0}, "scale", "invalid_value"),
    ({"algorithm": "erase", "normalize": True}, "normalize", "invalid_value"),
    ({"conflict_resolution": "sum"}, "conflict_resolution", "invalid_value"),
    ({"steer_vector_local_path": None}, "steer_vector_local_path", "invalid_value"),
    ({"steer_vector_local_path": "./vectors/mood.gguf"}, "steer_vector_local_path", "unknown_vector"),
    ({"vector_configs": [{"path": "mood", **ALL}]}, "prefill_trigger_tokens", "invalid_value"),
    ({"target_layers": [99]}, "target_layers", "bad_layers"),
    ({"scale": 101}, "scale", "bad_scale"),
    ({"prefill_trigger_tokens": [60_000]}, "prefill_trigger_tokens[0]", "bad_selector"),
    ({"prefill_exclude_tokens": [-1]}, "prefill_exclude_tokens[0]", "bad_selector"),
    ({"generate_first_k_tokens": -1}, "generate_first_k_tokens", "invalid_value"),
    ({"generate_first_k_tokens": 1, "generate_after_k_tokens": 1}, "generate_after_k_tokens", "invalid_value"),
    ({"prefill_trigger_tokens": None, "generate_trigger_tokens": None}, "prefill_trigger_tokens", "invalid_value"),
]


@pytest.mark.parametrize(("change", "param", "code"), UNKNOWN_TO_US)
async def test_what_cannot_be_translated_from_easysteer_is_refused_by_its_own_name(client, store, change, param, code):
    before = client.service.engine._model.forward_passes
    status, body = await client.chat(**ASKED, steer_vector_request={**MOOD, **ALL, **change})
    assert status == 400, body
    assert (body["error"]["param"], body["error"]["code"]) == (f"steer_vector_request.{param}", code)
    assert client.service.engine._model.forward_passes == before


async def test_a_list_of_easysteers_vectors_says_which_one_is_wrong(client, store):
    listed = {"vector_configs": [{"path": "mood", **ALL}, {"path": "none", **ALL}]}
    _, body = await client.chat(**ASKED, steer_vector_request=listed)
    assert body["error"]["param"] == "steer_vector_request.vector_configs[1].path"
    _, body = await client.chat(**ASKED, steer_vector_request={"vector_configs": []})
    assert body["error"]["param"] == "steer_vector_request.vector_configs"
    _, body = await client.chat(**ASKED, steer_vector_request={**MOOD, **ALL}, steering={"vectors": []})
    assert body["error"]["param"] == "steer_vector_request"


# Neuronpedia.

STEER: dict[str, Any] = {
    "model": MODEL,
    "prompt": "The most iconic structure on Earth is",
    "steer_method": "SIMPLE_ADDITIVE",
    "normalize_steering": False,
    "types": ["STEERED", "DEFAULT"],
    "features": [{"model": MODEL, "source": "mood", "index": 0, "strength": 0.5}],
    "n_completion_tokens": 6,
    "temperature": 0,
    "strength_multiplier": 2.0,
    "freq_penalty": 0.0,
    "seed": 42,
}
SAID = [{"role": "user", "content": "Name a colour."}]
CHAT = {**STEER, "prompt": SAID, "steer_special_tokens": True}


def feature(**changes: Any) -> list[dict[str, Any]]:
    return [{**STEER["features"][0], **changes}]


ADDED = {"vectors": [{"id": "mood", "op": "add", "scale": 1.0}]}
UNIT = {
    "vectors": [
        {"id": "mood", "op": "add", "scale": 1.0 / 30, "layers": [10]},
        {"id": "mood", "op": "add", "scale": 1.0 / 32, "layers": [12]},
    ]
}
METHODS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, ADDED),
    (
        {"steer_method": "ORTHOGONAL_DECOMP", "features": feature(strength=-0.25)},
        {"vectors": [{"id": "mood", "op": "scale_projection", "scale": -0.5}]},
    ),
    (
        {"features": feature(source="features", index=7)},
        {"vectors": [{"id": "features", "op": "sae", "scale": 1.0, "params": {"feature": 7, "mode": "add"}}]},
    ),
    (
        {"features": [*feature(), *feature(source="tone", strength=-1)]},
        {"vectors": [*ADDED["vectors"], {"id": "tone", "op": "add", "scale": -2.0}]},
    ),
]


@pytest.mark.parametrize(("change", "ours"), METHODS)
async def test_neuronpedias_completion_is_our_own_answer_beside_the_plain_one(client, store, change, ours):
    status, body = await client.call("POST", "/v1/steer/completion", {**STEER, **change})
    assert status == 200, body
    steered, plain = body["outputs"]
    assert (steered["type"], plain["type"]) == ("STEERED", "DEFAULT")
    assert "steering" not in plain
    for output, fields in ((steered, {"steering": ours}), (plain, {})):
        asked = {"model": MODEL, "prompt": STEER["prompt"], "seed": 42, **ASKED, **fields}
        _, own = await client.call("POST", "/v1/completions", asked)
        assert output["output"] == STEER["prompt"] + own["choices"][0]["text"]
        assert output.get("steering") == own.get("steering")


async def test_a_normalised_strength_counts_lengths(client, store):
    _, body = await client.call("POST", "/v1/steer/completion", {**STEER, "normalize_steering": True})
    asked = {"model": MODEL, "prompt": STEER["prompt"], **ASKED, "steering": UNIT}
    _, own = await client.call("POST", "/v1/completions", asked)
    assert body["outputs"][0]["output"] == STEER["prompt"] + own["choices"][0]["text"]
    assert body["outputs"][0]["steering"]["relative_dose"] == pytest.approx(own["steering"]["relative_dose"], rel=1e-4)


async def test_neuronpedias_chat_gives_the_conversation_with_each_answer(client, store):
    status, body = await client.call("POST", "/v1/steer/completion-chat", {**CHAT, "types": ["DEFAULT", "STEERED"]})
    assert status == 200, body
    _, own = await client.chat("Name a colour.", seed=42, **ASKED, steering=ADDED)
    plain, steered = body["outputs"]
    assert plain["type"] == "DEFAULT"
    text = own["choices"][0]["message"]["content"]
    assert steered["steering"] == own["steering"]
    assert steered["chat_template"] == [*SAID, {"role": "assistant", "content": text}]
    assert body["input"]["chat_template"] == SAID
    assert "Name a colour." in body["input"]["raw"]
    assert steered["raw"] == body["input"]["raw"] + text


async def test_special_tokens_are_left_alone_if_asked(client, store):
    counts = []
    for special in (True, False):
        _, body = await client.call("POST", "/v1/steer/completion-chat", {**CHAT, "steer_special_tokens": special})
        counts.append(body["outputs"][0]["steering"]["applied"]["prompt_tokens"])
    ids = client.service.loaded.tokenizer.encode(body["input"]["raw"], add_special_tokens=False)
    marks = sum(token in client.service.loaded.tokenizer.special_ids for token in ids)
    assert marks >= 3
    assert counts == [len(ids), len(ids) - marks]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"vectors": [{"steering_vector": [1.0], "hook": "blocks.0.hook_resid_pre", "strength": 1}]}, "vectors"),
    ({"features": feature(steering_vector=[1.0])}, "features[0].steering_vector"),
    ({"features": feature(model="gpt2-small")}, "features[0].model"),
    ({"features": feature(source="9-res-jb")}, "features[0].source"),
    ({"features": feature(source="places")}, "features[0].source"),
    ({"features": feature(index=3)}, "features[0].index"),
    ({"features": feature(source="features", index=99)}, "features[0].index"),
    ({"features": feature(strength=51)}, "features[0].strength"),
    ({"features": feature(source="features"), "steer_method": "ORTHOGONAL_DECOMP"}, "steer_method"),
    ({"features": None}, "features"),
    ({"steer_method": "PROJECTION_CAP"}, "steer_method"),
    ({"types": ["STEERED", "STEERED"]}, "types"),
    ({"types": []}, "types"),
    ({"freq_penalty": 0.5}, "freq_penalty"),
    ({"stream": True}, "stream"),
    ({"n_logprobs": 3}, "n_logprobs"),
    ({"n_completion_tokens": 9_000}, "n_completion_tokens"),
    ({"seed": 1.5}, "seed"),
    ({"custom_axes": []}, "custom_axes"),
    ({"is_assistant_axis": True}, "is_assistant_axis"),
]


@pytest.mark.parametrize(("change", "param"), REFUSED)
@pytest.mark.parametrize(("path", "body"), [("completion", STEER), ("completion-chat", CHAT)])
async def test_what_neuronpedia_knows_and_we_do_not_is_refused_by_its_own_name(
    client, store, path, body, change, param
):
    status, answer = await client.call("POST", f"/v1/steer/{path}", {**body, **change})
    assert status == 400, answer
    assert answer["error"]["param"] == param


# llama.cpp.


async def test_control_vectors_apply_to_requests_that_say_nothing_of_steering(client, store):
    off = [{"id": "mood", "scale": 0.0}, {"id": "tone", "scale": 0.0}]
    assert await client.call("GET", "/cvectors") == (200, off)
    _, plain = await client.chat(**ASKED)
    wanted = [{"id": "tone", "scale": -1.5}, {"id": "mood", "scale": 0}]
    on = (200, [{"id": "mood", "scale": 0.0}, {"id": "tone", "scale": -1.5}])
    assert await client.call("POST", "/cvectors", wanted) == on
    assert await client.call("GET", "/cvectors") == on
    _, standing = await client.chat(**ASKED)
    spec = {"vectors": [{"id": "tone", "op": "add", "scale": -1.5}]}
    _, own = await client.chat(**ASKED, steering=spec)
    assert standing["steering"] == own["steering"]
    assert standing["choices"] == own["choices"]
    _, other = await client.chat(**ASKED, steering={"vectors": []})
    assert other["choices"] == plain["choices"], "what a request says of steering is all there is"
    assert (await client.call("POST", "/cvectors", []))[1] == off
    _, again = await client.chat(**ASKED)
    assert again["choices"] == plain["choices"]
    assert "steering" not in again


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ([{"id": "none", "scale": 0}], "[0].id", "unknown_vector"),
        ([{"id": "mood", "scale": 1}, {"id": "features", "scale": 1}], "[1].id", "wrong_kind"),
        ([{"id": "places", "scale": 1}], "[0].id", "wrong_kind"),
        ([{"id": "mood", "scale": 101}], "[0].scale", "bad_scale"),
        ([{"id": "mood", "scale": 1, "layer_start": 3}], "[0].layer_start", "unknown_field"),
        ([{"id": 0, "scale": 1}], "[0].id", "invalid_value"),
        ([{"id": "mood", "scale": 1}, {"id": "mood", "scale": 2}], "id", "invalid_value"),
        ({"id": "mood"}, None, "invalid_value"),
    ],
)
async def test_a_wrong_control_vector_changes_nothing(client, store, body, param, code):
    status, answer = await client.call("POST", "/cvectors", body)
    assert status == 400, answer
    assert (answer["error"]["param"], answer["error"]["code"]) == (param, code)
    assert client.service.standing is None


async def test_a_control_vector_that_was_deleted_is_said_to_be_the_servers_fault(client, store):
    await client.call("POST", "/cvectors", [{"id": "mood", "scale": 1}])
    await client.call("DELETE", "/v1/steering/vectors/mood")
    status, body = await client.chat(**ASKED)
    assert (status, body["error"]["code"]) == (503, "cvectors_unusable")

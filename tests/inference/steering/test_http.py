"""Steering as requests spell it and answers report it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from inference.steering.vector import direction

WHEN = {"id": "mood", "layer": 12}


@pytest.fixture
def steered(client):
    """Two directions in the server's store; steered(use, …) is the body's field."""
    for name, seed in (("mood", 1), ("tone", 2)):
        values = torch.randn(576, generator=torch.Generator().manual_seed(seed))
        metadata = {"model_digest": None, "projection_means": {"positive": 4.0}}
        client.service.store.add(direction(id=name, values={10: values * 30 / values.norm()}, metadata=metadata))
    return lambda *vectors, **fields: {"vectors": list(vectors), **fields}


async def test_an_answer_reports_gates_tokens_layers_and_dose(client, steered):
    uses = [
        {"id": "mood", "op": "add", "scale": 0.5, "when": WHEN | {"above": -1}},
        {"id": "tone", "op": "ablate", "apply": {"generation": "all"}},
        {"id": "tone", "op": "add", "layers": [3], "when": WHEN | {"below": -1.0}},
    ]
    status, body = await client.chat(temperature=0, max_tokens=6, steering=steered(*uses, conflict="sum"))
    assert status == 200
    report = body["steering"]
    assert report["gates"] == [True, False]
    assert report["applied"]["prompt_tokens"] == body["usage"]["prompt_tokens"]
    assert report["applied"]["generated_tokens"] == body["usage"]["completion_tokens"] - 1
    assert report["applied"]["layers"] == list(range(30))
    assert 0 < report["relative_dose"] < 1
    ungated = (await client.chat(temperature=0, max_tokens=6, steering=steered(*uses[:2])))[1]
    assert ungated["steering"]["gates"] == [True]
    plain = (await client.chat(temperature=0, max_tokens=6, steering=steered(uses[1])))[1]
    assert "gates" not in plain["steering"]


async def test_a_stream_reports_gates_in_its_last_chunk(client, steered):
    use = {
        "id": "mood",
        "op": "add",
        "when": WHEN | {"below": 1.0, "token": "last"},
        "apply": {"prompt": {"positions": [-1]}},
    }
    body = {"model": "smollm2-135m-instruct", "prompt": "The sea", "max_tokens": 3, "stream": True}
    async with client.post("/v1/completions", body | {"steering": steered(use)}) as response:
        lines = [line async for line in response.content]
    chunks = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    assert chunks[-1]["steering"]["gates"] == [True]
    assert chunks[-1]["steering"]["applied"] == {"prompt_tokens": 1, "generated_tokens": 0, "layers": [10]}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"op": "rotate", "params": {"with": "mood", "degrees": 10}}, "dependent_directions", "params.with"),
    ({"op": "set_projection", "params": {"value": "mean:negative"}}, "unknown_mean", "params.value"),
    ({"op": "cap", "params": {"lower": 1}}, "unknown_field", "params.lower"),
    ({"op": "sae", "params": {"feature": 1, "mode": "add"}}, "wrong_kind", "id"),
    ({"point": "head_output"}, "bad_point", "point"),
    ({"apply": {"generation": {"positions": [-1]}}}, "bad_selector", "apply.generation.positions[0]"),
    ({"apply": {"prompt": {"position": [1]}}}, "unknown_field", "apply.prompt.position"),
    ({"apply": {"prompt": "some"}}, "invalid_value", "apply.prompt"),
    ({"when": WHEN}, "bad_gate", "when"),
    ({"when": WHEN | {"above": 0.1, "token": "first"}}, "invalid_value", "when.token"),
    ({"layers": "most"}, "invalid_value", "layers"),
    ({"scale": 1e300}, "bad_scale", "scale"),
    ({"params": [1]}, "invalid_value", "params"),
]


@pytest.mark.parametrize(("change", "code", "param"), WRONG)
async def test_a_wrong_spec_is_a_400_that_names_the_field_before_any_forward_pass(client, steered, change, code, param):
    before = client.service.engine._model.forward_passes
    status, body = await client.chat(steering=steered({"id": "mood", "op": "add"} | change))
    assert status == 400
    assert (body["error"]["code"], body["error"]["param"]) == (code, f"steering.vectors[0].{param}")
    assert client.service.engine._model.forward_passes == before


async def test_steering_that_drives_the_activations_out_of_range_is_a_400_and_ends_a_stream_with_an_error(
    client, steered
):
    use = {"id": "mood", "op": "scale_projection", "scale": 100.0, "layers": "all"}
    status, body = await client.chat(steering=steered(use))
    assert status == 400
    assert (body["error"]["code"], body["error"]["param"]) == ("steering_diverged", "steering")
    later = use | {"apply": {"generation": {"windows": [[2, 99]]}}}
    async with client.post(
        "/v1/completions",
        {
            "model": "smollm2-135m-instruct",
            "prompt": "The sea",
            "stream": True,
            "temperature": 0,
            "steering": steered(later),
        },
    ) as response:
        lines = [line async for line in response.content if line.startswith(b"data: ")]
    assert response.status == 200
    assert json.loads(lines[-1][6:])["error"]["code"] == "steering_diverged"


async def test_capabilities_name_every_operation_point_and_conflict(client):
    steering = (await client.call("GET", "/v1/capabilities"))[1]["steering"]
    assert steering["ops"] == [
        "add",
        "ablate",
        "set_projection",
        "scale_projection",
        "cap",
        "replace",
        "rotate",
        "erase_mean",
        "leace",
        "sae",
        "head_add",
    ]
    assert steering["points"] == [
        "block_input",
        "head_output",
        "attention_output",
        "mlp_output",
        "block_output",
        "all_writes",
    ]
    assert steering["conflicts"] == ["sequential", "sum", "priority", "error"]

"""The kernels the engine runs, held to the formulas of `operations.py`: alone, in company, and in bfloat16."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.steering import operations as o
from inference.steering.applied import Applied
from inference.steering.points import Point
from inference.steering.program import CompiledSteering
from inference.steering.table import SteeredSpan, SteeringTable
from tests.inference.steering.world import CPU, World, random_tensor

LAYER = 1  # where everything on the tiny shelf belongs


def changed(hidden: Tensor, *steerings: CompiledSteering | None, point: Point = Point.BLOCK_OUTPUT) -> Tensor:
    """Rows of `hidden` as the table leaves them, row i being an answer's token steered by steerings[i]."""
    spans = [
        SteeredSpan(token_ids=(7,), start=9, prompt_tokens=5, steering=steering, applied=Applied())
        for steering in steerings
    ]
    hooks = SteeringTable(spans, device=CPU).at(LAYER)
    assert hooks is not None
    hidden = hidden.clone()
    getattr(hooks, point.value)(hidden)
    return hidden


def vector(world: World, name: str, layer: int = LAYER) -> Tensor:
    return world.shelf[name].tensors[f"direction.{layer}"]


def features(world: World, name: str, hidden: Tensor) -> Tensor:
    tensors, k = world.shelf[name].tensors, world.shelf[name].metadata.get("k")
    return o.sae_features(hidden, tensors["encoder"], tensors["encoder_bias"], threshold=tensors.get("threshold"), k=k)


def sae(world: World, name: str, feature: int, mode: str, number: float):
    decoder = world.shelf[name].tensors["decoder"][feature]

    def formula(hidden: Tensor) -> Tensor:
        z = features(world, name, hidden)[:, feature : feature + 1]
        if mode == "add":
            return o.sae_add(hidden, decoder, number)
        return o.sae_pin(hidden, z, decoder, number) if mode == "pin" else o.sae_scale(hidden, z, decoder, number)

    return {"id": name, "op": "sae", "scale": number, "params": {"feature": feature, "mode": mode}}, formula


def eraser(world: World, hidden: Tensor) -> Tensor:
    tensors = world.shelf["eraser"].tensors
    return o.erase(hidden, *(tensors[f"{part}.{LAYER}"] for part in ("read", "write", "mean")))


def cases(world: World) -> list[tuple[dict[str, Any], Any]]:
    """(use, formula) of every operation and variant."""
    a, b, c = (vector(world, name) for name in "abc")
    heads = world.shelf["heads"].tensors[f"heads.{LAYER}"]
    here: dict[str, Any] = {"point": "block_output", "layers": [LAYER]}
    return [
        ({"id": "a", "op": "add", "scale": -1.7}, lambda h: o.add(h, a, -1.7)),
        ({"id": "a", "op": "add", "scale": 2, "params": {"normalize": True}}, lambda h: o.add_keeping_norm(h, a, 2.0)),
        ({"id": "a", "op": "ablate", **here}, lambda h: o.ablate(h, [a], 1.0)),
        ({"id": "a", "op": "ablate", "scale": 0.4, **here}, lambda h: o.ablate(h, [a], 0.4)),
        (
            {"id": "a", "op": "ablate", "params": {"also": ["b", "c"]}, **here},
            lambda h: o.ablate(h, [a, b, c], 1.0),
        ),
        ({"id": "a", "op": "set_projection", "params": {"value": 4.5}}, lambda h: o.set_projection(h, a, 4.5)),
        (
            {"id": "a", "op": "set_projection", "params": {"value": "mean:negative"}},
            lambda h: o.set_projection(h, a, -2.0),
        ),
        ({"id": "a", "op": "scale_projection", "scale": 3.0}, lambda h: o.scale_projection(h, a, 3.0)),
        ({"id": "a", "op": "cap", "params": {"low": -0.3, "high": 0.2}}, lambda h: o.cap(h, a, -0.3, 0.2)),
        ({"id": "a", "op": "cap", "params": {"high": 0.0}}, lambda h: o.cap(h, a, -math.inf, 0.0)),
        ({"id": "a", "op": "replace", "params": {"to": "b"}}, lambda h: o.replace(h, a, b)),
        ({"id": "eraser", "op": "leace", "layers": [LAYER]}, lambda h: eraser(world, h)),
        ({"id": "eraser", "op": "erase_mean", "layers": [LAYER]}, lambda h: eraser(world, h)),
        ({"id": "a", "op": "rotate", "params": {"with": "b", "degrees": 77.0}}, lambda h: o.rotate(h, a, b, 77.0)),
        sae(world, "relu", 3, "add", 5.0),
        sae(world, "relu", 3, "pin", 2.5),
        sae(world, "relu", 4, "scale", 0.0),
        sae(world, "jump", 5, "pin", 2.5),
        sae(world, "jump", 6, "scale", 3.0),
        sae(world, "topk", 7, "pin", 1.5),
        sae(world, "topk", 8, "scale", -2.0),
        (
            {"id": "heads", "op": "head_add", "scale": 2.0, "layers": [LAYER]},
            lambda h: o.head_add(h.view(-1, *heads.shape), heads, 2.0).reshape(h.shape),
        ),
    ]


NUMBER_OF_CASES = 22


def point_of(use: dict[str, Any]) -> Point:
    return Point.HEAD_OUTPUT if use["op"] == "head_add" else Point.BLOCK_OUTPUT


@pytest.mark.parametrize("number", range(NUMBER_OF_CASES))
def test_a_kernel_does_what_the_formula_says(tiny: World, number: int):
    assert len(cases(tiny)) == NUMBER_OF_CASES
    use, formula = cases(tiny)[number]
    hidden = random_tensor(40, tiny.config.d_model, seed=number) * 2
    program = tiny.compiled(use)
    ours = changed(hidden, *[program] * 40, point=point_of(use))
    torch.testing.assert_close(ours, formula(hidden), rtol=1e-5, atol=2e-5)
    assert not torch.equal(ours, hidden)


def test_rows_of_different_requests_in_one_table_get_each_their_own_operation(tiny: World):
    everything = [(use, formula) for use, formula in cases(tiny) if point_of(use) is Point.BLOCK_OUTPUT]
    hidden = random_tensor(len(everything) + 2, tiny.config.d_model, seed=1)
    programs = [tiny.compiled(use) for use, _ in everything]
    ours = changed(hidden, None, *programs, None)
    for row, (_, formula) in enumerate(everything, start=1):
        torch.testing.assert_close(ours[row : row + 1], formula(hidden[row : row + 1]), rtol=1e-5, atol=2e-5)
        assert torch.equal(ours[row], changed(hidden[row : row + 1], programs[row - 1])[0])  # company changes no bit
    assert torch.equal(ours[[0, -1]], hidden[[0, -1]])


@pytest.mark.parametrize("number", range(NUMBER_OF_CASES))
def test_bfloat16_rows_are_computed_in_float32_and_rounded_once(tiny: World, number: int):
    use, formula = cases(tiny)[number]
    hidden = random_tensor(8, tiny.config.d_model, seed=number).bfloat16()
    ours = changed(hidden, *[tiny.compiled(use)] * 8, point=point_of(use))
    assert ours.dtype is torch.bfloat16
    wanted = formula(hidden.float())
    # Half a unit in the last of 8 bits, and one unit where float32's own rounding falls on the other side of a half.
    assert float(((ours.float() - wanted).abs() / wanted.abs().clamp_min(1e-3)).max()) <= 2**-8 * 1.01


def test_ablation_leaves_nothing_along_its_directions_and_a_second_time_changes_nothing(tiny: World):
    hidden = random_tensor(16, tiny.config.d_model, seed=2) * 10
    program = tiny.compiled(
        {"id": "a", "op": "ablate", "point": "block_output", "layers": [LAYER], "params": {"also": ["b", "c"]}}
    )
    once = changed(hidden, *[program] * 16)
    for name in "abc":
        u = vector(tiny, name) / vector(tiny, name).norm()
        assert float((once @ u).abs().max()) < 1e-5 * float(hidden.norm(dim=-1).max())
    twice = changed(once, *[program] * 16)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-5)


def test_a_projection_that_is_set_is_the_number_asked_for(tiny: World):
    hidden = random_tensor(16, tiny.config.d_model, seed=3) * 10
    u = vector(tiny, "a") / vector(tiny, "a").norm()
    for value, m in ((-7.25, -7.25), ("mean:positive", 3.0), ("mean:all", 0.5)):
        program = tiny.compiled({"id": "a", "op": "set_projection", "params": {"value": value}})
        assert torch.allclose(changed(hidden, *[program] * 16) @ u, torch.tensor(m), atol=1e-4)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 180.0, -200.0, 360.0])
def test_rotations_and_normalised_additions_keep_every_rows_length(tiny: World, degrees: float):
    hidden = random_tensor(16, tiny.config.d_model, seed=4) * 10
    rotation = {"id": "a", "op": "rotate", "params": {"with": "b", "degrees": degrees}}
    addition = {"id": "a", "op": "add", "scale": degrees / 10, "params": {"normalize": True}}
    for use in (rotation, addition):
        turned = changed(hidden, *[tiny.compiled(use)] * 16) if degrees or use is rotation else hidden
        torch.testing.assert_close(turned.norm(dim=-1), hidden.norm(dim=-1), rtol=1e-6, atol=0)
    b1, b2 = o.orthonormal([vector(tiny, "a"), vector(tiny, "b")])
    turned = changed(hidden, *[tiny.compiled(rotation)] * 16)
    angle = torch.atan2(turned @ b2, turned @ b1)
    assert torch.allclose(torch.cos(angle - math.radians(degrees)), torch.tensor(1.0), atol=1e-5)


def test_cap_leaves_rows_in_range_as_they_are_to_the_bit(tiny: World):
    hidden = random_tensor(64, tiny.config.d_model, seed=5)
    u = vector(tiny, "a") / vector(tiny, "a").norm()
    x = hidden @ u
    capped = changed(hidden, *[tiny.compiled({"id": "a", "op": "cap", "params": {"low": -0.5, "high": 0.5}})] * 64)
    inside = (x.abs() < 0.499).nonzero().flatten()
    outside = (x.abs() > 0.501).nonzero().flatten()
    assert min(len(inside), len(outside)) > 10
    assert torch.equal(capped[inside].view(torch.int32), hidden[inside].view(torch.int32))
    assert torch.allclose((capped[outside] @ u).abs(), torch.tensor(0.5), atol=1e-5)


def test_a_feature_that_is_pinned_reads_as_pinned_where_encoder_and_decoder_agree(tiny: World):
    """The point of pinning: with an encoder row dual to its decoder row the feature then reads k."""
    hidden = random_tensor(32, tiny.config.d_model, seed=6)
    tensors = tiny.shelf["relu"].tensors
    z = features(tiny, "relu", hidden)[:, 3]
    active = (z > 0).nonzero().flatten()
    program, _ = sae(tiny, "relu", 3, "pin", 2.5)
    moved = changed(hidden, *[tiny.compiled(program)] * 32)[active]
    gain = float(tensors["encoder"][3] @ tensors["decoder"][3])
    before = hidden[active] @ tensors["encoder"][3] + tensors["encoder_bias"][3]
    after = moved @ tensors["encoder"][3] + tensors["encoder_bias"][3]
    torch.testing.assert_close(after - before, (2.5 - z[active]) * gain, rtol=1e-4, atol=1e-5)

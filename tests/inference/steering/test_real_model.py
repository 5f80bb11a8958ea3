"""What must hold, on the real weights: the lines of the specification, one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference.model import Span
from inference.steering import operations as o
from inference.steering.applied import Applied
from inference.steering.table import SteeredSpan, SteeringTable
from tests.inference.steering.world import CPU, World

TEXT = "The river rose for three days. On the fourth, twelve boats came down from the hills, and the people said:"

SPECS: list[list[dict[str, Any]]] = [
    [{"id": "a", "op": "add", "scale": 1.5}],
    [{"id": "everywhere", "op": "add", "scale": 0.3}],
    [{"id": "a", "op": "ablate", "params": {"also": ["b", "c"]}}],
    [{"id": "b", "op": "set_projection", "params": {"value": 30.0}}, {"id": "c", "op": "add", "layers": [10, 22]}],
    [{"id": "a", "op": "rotate", "layers": [12, 13, 14], "params": {"with": "b", "degrees": 120.0}}],
    [{"id": "relu", "op": "sae", "scale": 60.0, "params": {"feature": 7, "mode": "pin"}}],
    [{"id": "heads", "op": "head_add", "scale": 4.0}],
    [{"id": "eraser", "op": "leace"}, {"id": "b", "op": "add", "scale": 2.0, "params": {"normalize": True}}],
]
EVERY_OPERATION: list[list[dict[str, Any]]] = [
    *SPECS,
    [{"id": "a", "op": "scale_projection", "scale": -40.0}],
    [{"id": "a", "op": "cap", "params": {"low": 5.0}, "layers": "all"}],
    [{"id": "a", "op": "replace", "params": {"to": "c"}, "layers": "all"}],
    [{"id": "positional", "op": "add", "scale": 2.0, "params": {"position": 1}}],
    [{"id": "jump", "op": "sae", "scale": 40.0, "params": {"feature": 7, "mode": "add"}}],
    [{"id": "topk", "op": "sae", "scale": 50.0, "params": {"feature": 7, "mode": "pin"}, "layers": [4, 10]}],
    [{"id": "eraser", "op": "erase_mean"}],
]


@pytest.fixture(scope="module")
def ids(loaded) -> list[int]:
    return loaded.tokenizer.encode(TEXT, add_special_tokens=True)


def decode_logits(world: World, steerings, *, applied=None) -> torch.Tensor:
    """One decode step of a batch of different unsteered prompts; row i is steered by steerings[i]."""
    applied = applied or [Applied() for _ in steerings]
    caches, spans = [], []
    for row, steering in enumerate(steerings):
        caches.append(world.cache(8))
        world.model.logits(torch.tensor([100 + row, 200, 300 + row]), [Span(caches[-1], 3)])
        spans.append(
            SteeredSpan(token_ids=(7 + row,), start=3, prompt_tokens=3, steering=steering, applied=applied[row])
        )
    table = SteeringTable(spans, device=CPU)
    token_ids = torch.tensor([7 + row for row in range(len(steerings))])
    hooks = table or None
    logits = world.model.logits(token_ids, [Span(cache, 1) for cache in caches], steering=hooks)
    table.finish_step()
    table.settle()
    return logits


NOTHING: list[list[dict[str, Any]]] = [
    [],
    [{"id": "a", "op": "add", "scale": 0.0, "layers": "all"}],
    [{"id": "a", "op": "ablate", "scale": 0.0}, {"id": "a", "op": "scale_projection", "scale": 1.0}],
    [{"id": "a", "op": "add", "scale": 1.5}, {"id": "a", "op": "add", "scale": -1.5}],
    [{"id": "topk", "op": "sae", "scale": 1.0, "params": {"feature": 3, "mode": "scale"}}],
]


@pytest.mark.parametrize("uses", NOTHING)
def test_strength_zero_and_an_empty_spec_are_the_plain_model_bit_for_bit(smol: World, ids, forward, uses):
    plain, _ = forward(smol, ids, None)
    nothing, applied = forward(smol, ids, smol.compiled(*uses))
    assert torch.equal(nothing, plain)
    assert (applied.prompt_tokens, applied.generated_tokens, applied.layers()) == (0, 0, [])
    assert applied.relative_dose() == 0.0


def test_unsteered_rows_of_a_mixed_batch_equal_the_same_batch_without_steering(smol: World):
    plain = decode_logits(smol, [None] * 12)
    mixed = [None, *(smol.compiled(*uses) for uses in EVERY_OPERATION[:5]), None, None]
    mixed += [smol.compiled(*uses) for uses in EVERY_OPERATION[5:8]] + [None]
    steered = decode_logits(smol, mixed)
    for row, steering in enumerate(mixed):
        if steering is None:
            assert torch.equal(steered[row], plain[row])
        else:
            alone = decode_logits(smol, [steering if i == row else None for i in range(12)])
            assert float((steered[row] - alone[row]).abs().max()) < 1e-4
            assert float((steered[row] - plain[row]).abs().max()) > 0.02


def test_eight_concurrent_requests_with_eight_specs_equal_eight_solo_runs(smol: World, start):
    programs = [smol.compiled(*uses) for uses in SPECS]
    prompts = [f"Story number {i}. It begins" for i in range(8)]
    solo = [
        start(prompt, temperature=0, max_tokens=10, steering=program).wait()
        for prompt, program in zip(prompts, programs, strict=True)
    ]
    plain = [start(prompt, temperature=0, max_tokens=10).wait() for prompt in prompts]
    runs = [
        start(prompt, temperature=0, max_tokens=10, steering=program)
        for prompt, program in zip(prompts, programs, strict=True)
    ]
    for run, alone in zip(runs, solo, strict=True):
        assert run.wait().token_ids == alone.token_ids
        assert run.applied.sites.keys() == alone.applied.sites.keys()
        assert run.applied.prompt_tokens == alone.applied.prompt_tokens
        assert run.applied.generated_tokens == alone.applied.generated_tokens
        assert run.applied.relative_dose() == pytest.approx(alone.applied.relative_dose(), rel=1e-4)
    assert sum(one.token_ids != other.token_ids for one, other in zip(plain, solo, strict=True)) >= 6


@pytest.mark.parametrize("uses", EVERY_OPERATION)
def test_a_steered_prompt_gives_the_same_logits_and_counts_however_it_is_cut(smol: World, ids, forward, uses):
    program = smol.compiled(*uses)
    whole, counted = forward(smol, ids, program)
    plain, _ = forward(smol, ids, None)
    assert float((whole - plain).abs().max()) > 0.02
    for pieces in ([1] * len(ids), [5, len(ids) - 5]):
        logits, applied = forward(smol, ids, program, pieces=pieces)
        assert float((logits - whole).abs().max()) < 5e-4
        assert (applied.prompt_tokens, applied.layers()) == (counted.prompt_tokens, counted.layers())
        assert applied.relative_dose() == pytest.approx(counted.relative_dose(), rel=1e-3)


def hidden_states(world: World, ids: list[int], steering, layers) -> dict[int, torch.Tensor]:
    span = SteeredSpan(token_ids=tuple(ids), start=0, prompt_tokens=len(ids), steering=steering, applied=Applied())
    table = SteeringTable([span], device=CPU)
    return world.model.block_outputs(torch.tensor(ids), [Span(world.cache(), len(ids))], layers=layers, steering=table)


def unit(world: World, name: str) -> torch.Tensor:
    v = world.shelf[name].tensors["direction.10"]
    return v / v.norm()


def test_ablation_everywhere_leaves_the_direction_in_no_block_output(smol: World, ids):
    steered = hidden_states(smol, ids, smol.compiled({"id": "a", "op": "ablate", "params": {"also": ["b"]}}), range(30))
    plain = hidden_states(smol, ids, None, range(30))
    for layer in range(30):
        length = plain[layer].norm(dim=-1)
        for name in "ab":
            assert float(((steered[layer] @ unit(smol, name)).abs() / length).max()) < 1e-5
        assert float(((plain[layer] @ unit(smol, "a")).abs() / length).max()) > 1e-3


def test_ablating_twice_is_ablating_once(smol: World, ids, forward):
    use = {"id": "a", "op": "ablate"}
    once, _ = forward(smol, ids, smol.compiled(use))
    twice, _ = forward(smol, ids, smol.compiled(use, use))
    assert float((once - twice).abs().max()) < 1e-4


def test_a_projection_that_is_set_is_there_in_the_block_output(smol: World, ids):
    program = smol.compiled({"id": "a", "op": "set_projection", "params": {"value": 12.5}})
    found = hidden_states(smol, ids, program, [10])[10] @ unit(smol, "a")
    assert torch.allclose(found, torch.tensor(12.5), atol=5e-3)  # the first token's length is in the thousands


def test_rotation_keeps_the_length_of_every_block_output_it_turns(smol: World, ids):
    rotation = {"id": "a", "op": "rotate", "params": {"with": "b", "degrees": 120.0}}
    turned = hidden_states(smol, ids, smol.compiled(rotation), [10])[10]
    plain = hidden_states(smol, ids, None, [10])[10]
    torch.testing.assert_close(turned.norm(dim=-1), plain.norm(dim=-1), rtol=1e-6, atol=0)
    assert not torch.equal(turned, plain)


def test_cap_changes_the_tokens_out_of_range_and_no_bit_of_the_others(smol: World, ids):
    plain = hidden_states(smol, ids, None, [10])[10]
    x = plain @ unit(smol, "a")
    middle = float(x.sort().values[len(ids) // 2 : len(ids) // 2 + 2].mean())
    capped = hidden_states(smol, ids, smol.compiled({"id": "a", "op": "cap", "params": {"high": middle}}), [10])[10]
    inside = x < middle
    assert 5 < int(inside.sum()) < len(ids) - 5
    assert torch.equal(capped[inside].view(torch.int32), plain[inside].view(torch.int32))
    assert torch.allclose(capped[~inside] @ unit(smol, "a"), torch.tensor(middle), atol=1e-3)


def test_the_dose_is_the_length_of_what_was_added_over_the_length_of_the_hidden_state(smol: World, ids, forward):
    _, applied = forward(smol, ids, smol.compiled({"id": "a", "op": "add", "scale": -1.5, "layers": [10]}))
    plain = hidden_states(smol, ids, None, [10])[10]
    assert applied.relative_dose() == pytest.approx(float((1.5 * 40.0 / plain.norm(dim=-1)).mean()), rel=1e-4)
    both = [{"id": "a", "op": "add", "layers": [10]}, {"id": "b", "op": "cap", "params": {"high": 0.0}}]
    _, applied = forward(smol, ids, smol.compiled(*both))
    a, b = (smol.shelf[name].tensors["direction.10"] for name in "ab")
    moved = o.cap(plain + a, b, -float("inf"), 0.0) - plain
    assert applied.relative_dose() == pytest.approx(float((moved.norm(dim=-1) / plain.norm(dim=-1)).mean()), rel=1e-4)


POINTS = ["block_input", "attention_output", "mlp_output", "block_output"]


@pytest.mark.parametrize("point", [*POINTS, "head_output"])
def test_every_point_is_where_the_general_library_has_it(smol: World, ids, forward, oracle, point: str):
    """The same vector added by a hook on the module that the point is named after."""
    layer, vector = 10, smol.shelf["a"].tensors["direction.10"]
    use: dict[str, Any] = {"id": "a", "op": "add", "scale": 2.0, "point": point, "layers": [layer]}
    if point == "head_output":
        use = {"id": "heads", "op": "head_add", "scale": 2.0, "layers": [layer]}
        vector = smol.shelf["heads"].tensors[f"heads.{layer}"].flatten()
    block = oracle.model.layers[layer]

    def before(_, args):
        return (args[0] + 2.0 * vector, *args[1:])

    def behind(_, __, output):
        return (output[0] + 2.0 * vector, *output[1:]) if isinstance(output, tuple) else output + 2.0 * vector

    handle = {
        "block_input": lambda: block.register_forward_pre_hook(before),
        "head_output": lambda: block.self_attn.o_proj.register_forward_pre_hook(before),
        "attention_output": lambda: block.self_attn.register_forward_hook(behind),
        "mlp_output": lambda: block.mlp.register_forward_hook(behind),
        "block_output": lambda: block.register_forward_hook(behind),
    }[point]()
    try:
        with torch.no_grad():
            expected = oracle(torch.tensor([ids])).logits[0]
    finally:
        handle.remove()
    ours, _ = forward(smol, ids, smol.compiled(use))
    plain, _ = forward(smol, ids, None)
    assert float((ours - expected).abs().max()) < 2e-3
    assert float((ours - plain).abs().max()) > 0.1


def test_a_request_whose_activations_overflow_ends_alone_and_says_so(smol: World, start):
    from inference.request import EndReason

    explosion = smol.compiled({"id": "a", "op": "scale_projection", "scale": 100.0, "layers": "all"})
    everywhere = smol.compiled({"id": "a", "op": "ablate", "scale": 100.0})
    neighbour = start("The old lighthouse keeper", seed=3, max_tokens=20)
    runs = [start("Once upon a time", max_tokens=8, steering=program) for program in (explosion, everywhere)]
    assert all(run.wait().reason in (EndReason.DIVERGED, EndReason.LENGTH) for run in runs)
    assert EndReason.DIVERGED in {run.reason for run in runs}
    assert neighbour.wait().reason is EndReason.LENGTH
    assert neighbour.token_ids == start("The old lighthouse keeper", seed=3, max_tokens=20).wait().token_ids


SELECTED = [
    ({"prompt": {"positions": [0, -1]}, "generation": {"positions": [0, 2, 90]}}, 2, 2),
    ({"generation": {"windows": [[2, 4], [5, 6]]}}, 0, 3),
    ({"prompt": {"windows": [[-20, -4]]}}, 16, 0),
    ({"exclude": {"prompt": "all"}}, 0, 7),
]


@pytest.mark.parametrize(("apply", "prompt_tokens", "generated"), SELECTED)
def test_the_counters_of_every_answer_equal_what_the_selectors_say(
    smol: World, start, apply, prompt_tokens: int, generated: int
):
    """The eighth token sampled is never run; prompts are longer than a piece; others are in the batch."""
    program = smol.compiled({"id": "a", "op": "add", "layers": [4, 20], "apply": apply})
    others = [start("Something else", max_tokens=30), start("word " * 300, max_tokens=3, steering=program)]
    run = start("A walk in the woods " * 80, max_tokens=8, steering=program).wait()
    assert (run.applied.prompt_tokens, run.applied.generated_tokens) == (prompt_tokens, generated)
    tallies = [(tally.prompt_tokens, tally.generated_tokens) for tally in run.applied.sites.values()]
    assert tallies == [(prompt_tokens, generated)] * 2
    assert others[0].wait().applied.layers() == []
    assert others[1].wait().applied.prompt_tokens == prompt_tokens


def test_a_selector_of_token_ids_counts_the_tokens_of_the_answer_it_names(smol: World, start, loaded):
    plain = start("The old lighthouse keeper", seed=5, max_tokens=40).wait()
    run_ids = plain.token_ids[:-1]  # the last one is never run
    chosen = sorted(set(run_ids))[::3]
    # Nothing is added where it could change the tokens: what is counted is what is selected.
    use = {"id": "a", "op": "add", "scale": 1e-20, "apply": {"generation": {"tokens": chosen}}}
    run = start("The old lighthouse keeper", seed=5, max_tokens=40, steering=smol.compiled(use)).wait()
    assert run.token_ids == plain.token_ids
    assert run.applied.generated_tokens == sum(token_id in chosen for token_id in run_ids) > 0
    assert run.applied.prompt_tokens == 0

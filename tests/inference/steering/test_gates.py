"""Conditional steering: the score of CAST, read once from the plain prompt, per request."""

from __future__ import annotations

import pytest
import torch

from inference.engine import Engine
from inference.steering.gates import Comparison, Gate, GateReader, Reading, score
from tests.inference.steering.world import World, random_tensor


def test_the_score_is_the_cosine_with_the_squashed_projection_as_in_casts_code():
    c = random_tensor(32, seed=2) * 7
    h = random_tensor(32, seed=1) + 0.1 * c
    projector = torch.outer(c, c) / torch.dot(c, c)  # as activation-steering builds it
    projected = torch.tanh(projector @ h)
    expected = torch.dot(h, projected) / (h.norm() * projected.norm())
    assert score(h, c) == pytest.approx(float(expected), abs=1e-6)
    assert score(h, 4 * c) == pytest.approx(score(h, c), abs=1e-12)  # only the condition's line matters
    assert score(torch.zeros(32), c) == 0.0


def gate(threshold: float, *, comparison=Comparison.ABOVE, reading=Reading.MEAN, layer: int = 1, seed: int = 3) -> Gate:
    condition = random_tensor(32, seed=seed)
    return Gate(condition=condition, layer=layer, comparison=comparison, threshold=threshold, reading=reading)


def test_flipping_the_comparison_selects_the_exact_complement():
    hidden = random_tensor(200, 32, seed=4)
    scores = [score(row, gate(0.0).condition) for row in hidden]
    for threshold in (*scores[:20], 0.0, 0.1, -1.0, 1.0):
        above = [gate(threshold).is_open(row) for row in hidden]
        below = [gate(threshold, comparison=Comparison.BELOW).is_open(row) for row in hidden]
        assert all(one is not other for one, other in zip(above, below, strict=True))
        assert above == [s > threshold for s in scores]


def test_what_is_read_is_the_mean_or_the_last_token_of_the_prompt_in_whatever_pieces_it_runs(tiny: World):
    outputs = {layer: random_tensor(30, 32, seed=layer) for layer in (0, 2)}
    wanted = [gate(0.0, layer=0), gate(0.0, layer=2), gate(0.0, layer=2, reading=Reading.LAST)]
    hidden = [outputs[0].double().mean(0), outputs[2].double().mean(0), outputs[2][-1]]
    gates = [
        Gate(
            condition=g.condition,
            layer=g.layer,
            comparison=side,
            threshold=score(h, g.condition) + margin,
            reading=g.reading,
        )
        for g, h in zip(wanted, hidden, strict=True)
        for side in Comparison
        for margin in (-1e-9, 1e-9)
    ]
    expected = tuple([True, False, False, True] * 3)
    for cuts in ([30], [1] * 30, [7, 16, 7]):
        reader = GateReader(gates)
        assert set(reader.layers) == {0, 2}
        start = 0
        for size in cuts:
            reader.read({layer: rows[start : start + size] for layer, rows in outputs.items()})
            start += size
        assert reader.decide() == expected


PROMPTS = ["The old lighthouse keeper", "import numpy as np\n\ndef", "Dear Sir or Madam,", "2 + 2 = 4, 3 + 3 ="]


def plain_scores(smol: World, ids: list[int]) -> tuple[float, float]:
    outputs = smol.model.block_outputs(torch.tensor(ids), [_span(smol, len(ids))], layers=[12])[12].double()
    condition = smol.shelf["a"].tensors["direction.10"]
    return score(outputs.mean(0), condition), score(outputs[-1], condition)


def _span(world: World, count: int):
    from inference.model import Span

    return Span(world.cache(count), count)


def test_gates_are_per_request_and_read_the_plain_prompt_whatever_else_is_asked_for(smol: World, loaded, start):
    ids = [loaded.tokenizer.encode(prompt, add_special_tokens=True) for prompt in PROMPTS]
    means, lasts = zip(*(plain_scores(smol, i) for i in ids), strict=True)
    thresholds = {
        "mean": sorted(means)[1] / 2 + sorted(means)[2] / 2,
        "last": sorted(lasts)[1] / 2 + sorted(lasts)[2] / 2,
    }
    # Ungated: it shifts every hidden state that the gates look at, if they were to look at steered ones.
    shift = {"id": "a", "op": "add", "scale": 20.0, "layers": [2]}

    def gated(side: str, token: str):
        when = {"id": "a", "layer": 12, side: thresholds[token], "token": token}
        return {"id": "b", "op": "add", "scale": 2.0, "layers": [14], "when": when}

    uses = [gated(side, token) for side in ("above", "below") for token in ("mean", "last")]
    runs = [start(prompt, max_tokens=4, steering=smol.compiled(shift, *uses)) for prompt in PROMPTS]
    for run, mean, last, prompt_ids in zip(runs, means, lasts, ids, strict=True):
        gates = run.wait().applied.gates
        assert gates == (
            mean > thresholds["mean"],
            last > thresholds["last"],
            not mean > thresholds["mean"],
            not last > thresholds["last"],
        )
        assert (run.applied.prompt_tokens, run.applied.generated_tokens) == (len(prompt_ids), 3)
        assert run.applied.layers() == [2, 14]
    assert {run.applied.gates[0] for run in runs} == {True, False}


def test_a_closed_gate_leaves_the_plain_model_and_an_open_one_the_ungated_operation(smol: World, start):
    operation = {"id": "a", "op": "add", "scale": 3.0, "layers": [8]}
    prompt = PROMPTS[0] * 60  # several pieces
    plain = start(prompt, max_tokens=6).wait()
    ungated = start(prompt, max_tokens=6, steering=smol.compiled(operation)).wait()
    for side, expected, is_open in (("above", ungated, True), ("below", plain, False)):
        gated = smol.compiled(operation | {"when": {"id": "b", "layer": 4, side: -1.0}})
        run = start(prompt, max_tokens=6, steering=gated).wait()
        assert run.token_ids == expected.token_ids
        assert run.applied.gates == (is_open,)
        assert (run.applied.prompt_tokens, run.applied.layers()) == (
            expected.applied.prompt_tokens,
            expected.applied.layers(),
        )
        assert run.applied.relative_dose() == pytest.approx(expected.applied.relative_dose(), rel=1e-6)
    assert plain.token_ids != ungated.token_ids


def test_a_request_that_is_cancelled_while_its_gates_are_read_leaves_nothing(smol: World, start, engine: Engine):
    gated = smol.compiled({"id": "a", "op": "add", "when": {"id": "b", "layer": 29, "above": 0.0}})
    runs = [start("word " * 800, max_tokens=2, steering=gated) for _ in range(3)]
    for run in runs:
        run.handle.cancel()
        run.wait()
    assert (engine.kv_tokens_reserved, engine.active_requests) == (0, 0)

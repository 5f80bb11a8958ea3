from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from inference.loading import LoadedModel
from inference.model import Span
from inference.steering.applied import Applied
from inference.steering.compile import compile_spec
from inference.steering.program import CompiledSteering
from inference.steering.spec import SpecError, SteeringSpec, VectorUse
from inference.steering.store import ExistsError, VectorStore
from inference.steering.table import SteeredSpan, SteeringTable
from inference.steering.vector import StoredVector, direction


def a_vector(
    vector_id: str = "v", *, layer: int = 5, seed: int = 1, norm: float = 20.0, size: int = 576
) -> StoredVector:
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    metadata = {"method": "upload", "model_digest": None}
    return direction(id=vector_id, values={layer: values * (norm / values.norm())}, metadata=metadata)


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    return VectorStore(tmp_path / "vectors")


@pytest.fixture
def compiled(loaded: LoadedModel, store: VectorStore):
    def compiled(*uses: VectorUse) -> CompiledSteering:
        spec = SteeringSpec(vectors=list(uses))
        return compile_spec(spec, store=store, config=loaded.config, model_digest=loaded.digest_sha256)

    return compiled


def decode_logits(loaded: LoadedModel, new_cache, steerings, applied=None) -> torch.Tensor:
    """One decode step of a batch of different prompts, unsteered until then; row i is steered by steerings[i]."""
    caches = []
    for row in range(len(steerings)):
        cache, ids = new_cache(), [100 + row, 200, 300 + row]
        loaded.model.logits(torch.tensor(ids), [Span(cache, 3)])
        caches.append(cache)
    applied = applied or [Applied() for _ in steerings]
    spans = [
        SteeredSpan(token_ids=(7,), start=3, prompt_tokens=3, steering=steering, applied=counts)
        for steering, counts in zip(steerings, applied, strict=True)
    ]
    table = SteeringTable(spans, device=torch.device("cpu"))
    ids = torch.tensor([7 + row for row in range(len(steerings))])
    logits = loaded.model.logits(ids, [Span(cache, 1) for cache in caches], steering=table or None)
    table.finish_step()
    table.settle()
    return logits


def test_strength_zero_an_empty_spec_and_vectors_that_cancel_are_the_plain_model_bit_for_bit(
    loaded: LoadedModel, store: VectorStore, compiled, new_cache
):
    store.add(a_vector())
    plain = decode_logits(loaded, new_cache, [None, None])
    both_ways = (VectorUse(id="v", op="add", scale=1.5), VectorUse(id="v", op="add", scale=-1.5))
    for uses in ((), (VectorUse(id="v", op="add", scale=0.0),), both_ways):
        counts = [Applied(), Applied()]
        assert torch.equal(decode_logits(loaded, new_cache, [compiled(*uses), None], counts), plain)
        assert counts[0].layers() == []
        assert counts[0].relative_dose() == 0.0


def test_unsteered_rows_of_a_mixed_batch_are_bit_equal_and_steered_rows_equal_their_solo_run(
    loaded: LoadedModel, store: VectorStore, compiled, new_cache
):
    uses = []
    for i in range(6):
        store.add(a_vector(f"v{i}", layer=3 * i, seed=i))
        layers = None if i % 2 else [3 * i, 29 - i]
        uses.append(compiled(VectorUse(id=f"v{i}", op="add", scale=0.5 * (i + 1), layers=layers)))
    mixed = [uses[0], None, uses[1], uses[2], None, uses[3], uses[4], uses[5]]
    plain = decode_logits(loaded, new_cache, [None] * 8)
    steered = decode_logits(loaded, new_cache, mixed)
    for row, steering in enumerate(mixed):
        if steering is None:
            assert torch.equal(steered[row], plain[row])
            continue
        only = decode_logits(loaded, new_cache, [steering if i == row else None for i in range(8)])
        assert torch.equal(steered[row], only[row])
        assert float((steered[row] - plain[row]).abs().max()) > 0.05


def test_steering_adds_exactly_scale_times_vector_at_the_block_output(
    loaded: LoadedModel, store: VectorStore, compiled
):
    vector = a_vector(layer=4)
    store.add(vector)
    hidden = torch.randn(3, 576)
    before = hidden.clone()
    spans = [
        SteeredSpan(
            token_ids=(1, 2),
            start=0,
            prompt_tokens=2,
            steering=compiled(VectorUse(id="v", op="add", scale=2.0)),
            applied=Applied(),
        ),
        SteeredSpan(token_ids=(1,), start=0, prompt_tokens=1, steering=None, applied=None),
    ]
    table = SteeringTable(spans, device=torch.device("cpu"))
    assert table.at(3) is table.at(5) is None
    table.at(4).block_output(hidden)
    assert torch.equal(hidden[:2], before[:2] + 2.0 * vector.tensors["direction.4"])
    assert torch.equal(hidden[2], before[2])


def test_tokens_and_doses_are_counted_in_the_forward_pass(start, loaded: LoadedModel, store: VectorStore, compiled):
    store.add(a_vector(layer=8, norm=10.0))
    steering = compiled(VectorUse(id="v", op="add", scale=1.0, layers=[8, 20]))
    prompt = "A walk in the woods " * 60  # longer than one piece
    others = [start("Something else entirely", max_tokens=20) for _ in range(2)]
    run = start(prompt, max_tokens=6, steering=steering).wait()
    prompt_tokens = len(loaded.tokenizer.encode(prompt, add_special_tokens=True))
    # The last token sampled is never run through the model, so one fewer than generated is steered.
    assert (run.applied.prompt_tokens, run.applied.generated_tokens) == (prompt_tokens, 5)
    assert [(t.prompt_tokens, t.generated_tokens) for t in run.applied.sites.values()] == [(prompt_tokens, 5)] * 2
    assert 0.001 < run.applied.relative_dose() < 2
    assert all(other.wait().applied.layers() == [] for other in others)


def test_eight_requests_with_eight_specs_give_the_tokens_of_eight_solo_runs(start, store: VectorStore, compiled):
    specs = []
    for i in range(8):
        store.add(a_vector(f"v{i}", layer=2 + 3 * i, seed=i, norm=30.0))
        specs.append(compiled(VectorUse(id=f"v{i}", op="add", scale=1.0)))
    solo = [start("The story begins", temperature=0, max_tokens=12, steering=spec).wait().token_ids for spec in specs]
    runs = [start("The story begins", temperature=0, max_tokens=12, steering=spec) for spec in specs]
    assert [run.wait().token_ids for run in runs] == solo
    assert len({tuple(ids) for ids in solo}) > 1


@pytest.mark.parametrize(
    ("use", "code", "param"),
    [
        (VectorUse(id="none", op="add", scale=1.0), "unknown_vector", "steering.vectors[0].id"),
        (VectorUse(id="v", op="subtract", scale=1.0), "unknown_op", "steering.vectors[0].op"),
        (VectorUse(id="v", op="add", scale=float("nan")), "bad_scale", "steering.vectors[0].scale"),
        (VectorUse(id="v", op="add", scale=float("inf")), "bad_scale", "steering.vectors[0].scale"),
        (VectorUse(id="v", op="add", scale=-101.0), "bad_scale", "steering.vectors[0].scale"),
        (VectorUse(id="v", op="add", scale=1.0, layers=[30]), "bad_layers", "steering.vectors[0].layers"),
        (VectorUse(id="v", op="add", scale=1.0, layers=[-1]), "bad_layers", "steering.vectors[0].layers"),
        (VectorUse(id="v", op="add", scale=1.0, layers=[]), "bad_layers", "steering.vectors[0].layers"),
        (VectorUse(id="v", op="add", scale=1.0, layers=[3, 3]), "bad_layers", "steering.vectors[0].layers"),
        (VectorUse(id="short", op="add", scale=1.0), "wrong_dimension", "steering.vectors[0].id"),
        (VectorUse(id="foreign", op="add", scale=1.0), "wrong_model", "steering.vectors[0].id"),
    ],
)
def test_a_spec_that_asks_for_what_does_not_exist_is_refused(loaded, store: VectorStore, compiled, use, code, param):
    store.add(a_vector())
    store.add(a_vector("short", size=64))
    foreign = a_vector("foreign")
    store.add(dataclasses.replace(foreign, metadata={"model_digest": "0" * 64}))
    with pytest.raises(SpecError) as refused:
        compiled(use)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_the_fingerprint_names_the_content_of_the_spec(store: VectorStore, compiled):
    store.add(a_vector("a"))
    store.add(a_vector("same-numbers"))
    store.add(a_vector("other", seed=2))
    use = {"op": "add", "scale": 1.0}
    fingerprints = [compiled(VectorUse(id=i, **use)).fingerprint for i in ("a", "same-numbers", "other")]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert compiled(VectorUse(id="a", op="add", scale=1.0, layers=[5])).fingerprint == fingerprints[0]
    assert compiled(VectorUse(id="a", op="add", scale=1.5)).fingerprint != fingerprints[0]


def test_vectors_survive_a_restart_and_rubbish_of_a_crash_does_not(tmp_path: Path):
    store = VectorStore(tmp_path)
    vector = a_vector("kept")
    store.add(vector)
    store.add(a_vector("gone"))
    assert store.remove("gone")
    (tmp_path / "half.partial").write_bytes(b"torn")
    reopened = VectorStore(tmp_path)
    assert [v.id for v in reopened.all()] == ["kept"]
    assert torch.equal(reopened.get("kept").tensors["direction.5"], vector.tensors["direction.5"])
    assert (reopened.get("kept").layers, reopened.get("kept").metadata) == (vector.layers, vector.metadata)
    assert not (tmp_path / "half.partial").exists()
    with pytest.raises(ExistsError):
        reopened.add(a_vector("kept"))

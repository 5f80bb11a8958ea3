"""The model run for jobs: the same numbers as running each text alone, whatever is packed, cut, or steered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.extraction.strength import at_strength, strength_max
from inference.kv import KvCache
from inference.lab import within
from inference.limits import LAB_BATCH_ROWS_MAX, LAB_BATCH_TOKENS_MAX, LAB_STEP_TOKENS_MAX
from inference.model import Span
from inference.passages import Passage, Positions, Which, batches, common_beginning, packed
from inference.steering.applied import Applied
from inference.steering.spec import Apply, Selector, SteeringSpec, VectorUse, When
from inference.steering.vector import direction
from tests.inference.extraction.pieces import run

TEXTS = [tuple(range(300, 300 + n)) for n in (5, 90, 1, 60, 300, 7)]  # the 300 take three passes, the others share some


def alone(loaded, ids, *, layers):
    """Block outputs of one text in one pass [tokens, layers, d_model]."""
    model = loaded.model
    cache = KvCache(model.config, capacity=len(ids), dtype=model.dtype, device=model.device)
    outputs = model.block_outputs(torch.tensor(ids), [Span(cache, len(ids))], layers=set(layers))
    return torch.stack([outputs[layer] for layer in layers], dim=1)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (Positions(which=Which.LAST), lambda h: h[-1:]),
        (Positions(which=Which.MEAN), lambda h: h[1:].double().mean(0, keepdim=True).float() if len(h) > 1 else h),
        (Positions(which=Which.ALL), lambda h: h),
        (Positions(which=Which.EVERY), lambda h: h[1:] if len(h) > 1 else h),
        (Positions(which=Which.INDEX, index=-1), lambda h: h[-1:]),
        (Positions(which=Which.INDEX, index=0), lambda h: h[:1]),
    ],
)
def test_activations_are_those_of_each_text_alone_at_the_positions_asked_for(lab, loaded, at, expected):
    layers = (2, 17, 29)
    found = run(lab.activations(TEXTS, layers=layers, at=at))
    for ids, rows in zip(TEXTS, found, strict=True):
        wanted = expected(alone(loaded, ids, layers=layers))
        assert rows.shape == (at.rows(len(ids)), 3, 576)
        # A text that is cut takes another attention kernel behind the cut; whole ones agree bit for bit.
        assert torch.allclose(rows, wanted, rtol=1e-4, atol=1e-2 if len(ids) > 128 else 1e-5)
        if len(ids) <= 128 and not at.is_mean:
            assert torch.equal(rows, wanted)


def test_the_tail_is_the_last_tokens_each_or_their_mean(lab, loaded):
    texts = [TEXTS[0], TEXTS[3]]
    each = run(lab.activations(texts, layers=(9,), at=Positions(which=Which.EACH_OF_TAIL, tokens=3)))
    mean = run(lab.activations(texts, layers=(9,), at=Positions(which=Which.TAIL, tokens=3)))
    for ids, rows, average in zip(texts, each, mean, strict=True):
        assert torch.equal(rows, alone(loaded, ids, layers=(9,))[-3:])
        assert torch.allclose(average, rows.mean(0, keepdim=True), rtol=1e-5)


def test_positions_know_how_long_a_text_must_be():
    assert Positions(which=Which.INDEX, index=4).tokens_min == 5
    assert Positions(which=Which.INDEX, index=-4).tokens_min == 4
    assert Positions(which=Which.TAIL, tokens=6).tokens_min == 6
    assert list(Positions(which=Which.INDEX, index=-2).of(5)) == [3]


def test_last_logits_are_those_of_each_prompt_alone(lab, loaded):
    found = run(lab.last_logits(TEXTS))
    for ids, logits in zip(TEXTS, found, strict=True):
        model = loaded.model
        cache = KvCache(model.config, capacity=len(ids), dtype=model.dtype, device=model.device)
        wanted = model.logits(torch.tensor(ids), [Span(cache, len(ids))])[0]
        assert torch.allclose(logits, wanted, atol=1e-4)


def test_answers_of_a_batch_are_greedy_and_the_same_as_alone_and_end_where_the_model_ends(lab, loaded, encode, start):
    prompts = encode(["What is the capital of France?", "Count to three.", "Say yes."], chat=True)
    together = run(lab.greedy_answers(prompts, tokens_max=12, end_ids=loaded.end_ids))
    for prompt, answer in zip(prompts, together, strict=True):
        assert run(lab.greedy_answers([prompt], tokens_max=12, end_ids=loaded.end_ids)) == [answer]
        assert 1 <= len(answer) <= 12
        assert not set(answer[:-1]) & loaded.end_ids
    assert "Paris" in loaded.tokenizer.decode(together[0])
    text = loaded.tokenizer.decode(prompts[0])
    assert text  # the prompt decodes, so that the engine can be asked the same
    rendered = loaded.template.render([{"role": "user", "content": "What is the capital of France?"}])
    engine = start(rendered, temperature=0, max_tokens=12, on_token=lambda token_id: token_id in loaded.end_ids).wait()
    assert tuple(engine.token_ids) == together[0]


@pytest.fixture
def happy(store, loaded):
    generator = torch.Generator().manual_seed(3)
    for name, layer in (("v", 8), ("w", 3)):
        values = torch.randn(576, generator=generator)
        values = values * (30 / values.norm())
        store.add(direction(id=name, values={layer: values}, metadata={"model_digest": loaded.vectors_digest}))


def test_steered_answers_are_those_of_the_engine_selections_and_gates_included(lab, loaded, at, happy, start):
    rendered = loaded.template.render([{"role": "user", "content": "Tell me about the sea."}])
    prompt = tuple(loaded.tokenizer.encode(rendered, add_special_tokens=False))
    uses = [
        VectorUse(id="v", op="add", scale=2.0, apply=Apply(prompt=Selector(positions=[-1, -2]), generation="all")),
        VectorUse(id="w", op="add", scale=1.0, when=When(id="v", layer=8, above=-1.0)),
        VectorUse(id="w", op="add", scale=50.0, when=When(id="v", layer=8, above=1.0)),  # never open
    ]
    steering, applied = at(SteeringSpec(vectors=uses))(1.0), Applied()
    [answer] = run(
        lab.greedy_answers([prompt], tokens_max=10, end_ids=loaded.end_ids, steering=steering, applied=applied)
    )
    engine = start(rendered, temperature=0, max_tokens=10, steering=steering).wait()
    assert tuple(engine.token_ids) == answer
    assert (applied.prompt_tokens, applied.generated_tokens) == (
        engine.applied.prompt_tokens,
        engine.applied.generated_tokens,
    )
    assert applied.relative_dose() == pytest.approx(engine.applied.relative_dose(), rel=1e-3)


def test_states_of_answers_predict_each_answer_token_in_order(lab, loaded):
    passages = [Passage(token_ids=TEXTS[1][:9], prompt_tokens=4), Passage(token_ids=TEXTS[4], prompt_tokens=290)]
    states = run(lab.answer_states(passages))
    assert states.shape == (5 + 10, 576)
    rows = []
    for _ in lab.distributions([states], lambda part, logits: rows.append((part, logits[0]))):
        pass
    logits = torch.cat([one for _, one in rows])
    model = loaded.model
    for passage, own in zip(passages, torch.split(logits, [5, 10]), strict=True):
        n = len(passage.token_ids)
        cache = KvCache(model.config, capacity=n, dtype=model.dtype, device=model.device)
        every = model.logits(torch.tensor(passage.token_ids), [Span(cache, n)], every=True)
        assert torch.allclose(own, every[passage.prompt_tokens - 1 : -1], atol=1e-3)


USES = {
    "plain": [],
    "add": [VectorUse(id="v", op="add", scale=2.0)],
    "ablate": [VectorUse(id="v", op="ablate")],
    "by token": [VectorUse(id="v", op="add", scale=2.0, apply=Apply(prompt=Selector(tokens=[1, 198])))],
    "from the end": [VectorUse(id="v", op="add", scale=2.0, apply=Apply(prompt=Selector(positions=[-3, -30])))],
    "gated": [VectorUse(id="v", op="add", scale=2.0, when=When(id="w", layer=3, above=0.0))],
}


@pytest.mark.parametrize("kind", USES)
def test_prompts_that_begin_alike_share_their_beginning_and_lose_nothing_by_it(lab, encode, at, happy, kind):
    prompts = encode(
        ["Tell me about the sea.", "Why?", "What do you think of the weather in the mountains?"], chat=True
    )
    steering = at(SteeringSpec(vectors=USES[kind]))(1.0) if USES[kind] else None
    together, alone = Applied(), Applied()
    found = run(lab.last_logits(prompts, steering=steering, applied=together))
    for prompt, logits in zip(prompts, found, strict=True):
        wanted = run(lab.last_logits([prompt], steering=steering, applied=alone))
        assert torch.allclose(logits, wanted[0], atol=2e-4)
    assert together.prompt_tokens == alone.prompt_tokens
    assert together.sites.keys() == alone.sites.keys()
    assert together.relative_dose() == pytest.approx(alone.relative_dose(), rel=1e-4)
    assert (together.relative_dose() > 0) is bool(USES[kind])


def test_sharing_a_beginning_runs_it_once(lab, loaded, encode):
    prompts = encode(["Tell me about the sea.", "Tell me about the hills.", "Why?"], chat=True)
    tokens = []
    forward = loaded.model.block_outputs

    def counting(token_ids, *arguments, **options):
        tokens.append(len(token_ids))
        return forward(token_ids, *arguments, **options)

    loaded.model.block_outputs = counting
    try:
        run(lab.last_logits(prompts))
    finally:
        del loaded.model.block_outputs
    common = sum(1 for column in zip(*prompts, strict=False) if len(set(column)) == 1)
    assert common > 20
    assert sum(tokens) < sum(map(len, prompts)) - 20


@given(st.lists(st.integers(1, 400), max_size=20))
def test_packing_runs_every_token_once_in_order_in_passes_that_are_not_too_long(lengths):
    texts = [tuple(range(length)) for length in lengths]
    seen = [0] * len(texts)
    for step in packed(texts):
        assert len({part.text for part in step}) == len(step)
        rows = 0
        for part in step:
            assert (part.start, part.row_start) == (seen[part.text], rows)
            seen[part.text] = part.stop
            rows = part.row_stop
        assert 1 <= rows <= LAB_STEP_TOKENS_MAX
    assert seen == lengths


@given(st.lists(st.integers(1, 9_000), min_size=1, max_size=40), st.integers(1, 256))
def test_batches_keep_the_order_and_their_bounds(lengths, tokens_max):
    prompts = [tuple(range(length)) for length in lengths]
    found = list(batches(prompts, tokens_max))
    assert [prompt for batch in found for prompt in batch] == prompts
    for batch in found:
        assert len(batch) <= LAB_BATCH_ROWS_MAX
        assert len(batch) == 1 or sum(len(prompt) + tokens_max for prompt in batch) <= LAB_BATCH_TOKENS_MAX


def test_a_common_beginning_leaves_every_prompt_a_token_and_is_for_several_prompts_only():
    def passage(*token_ids: int, prompt_tokens: int) -> Passage:
        return Passage(token_ids=token_ids, prompt_tokens=prompt_tokens)

    one, two = passage(1, 2, 3, 4, prompt_tokens=4), passage(1, 2, 3, 9, prompt_tokens=3)
    assert common_beginning([one]) == 0
    assert common_beginning([one, one]) == 3
    assert common_beginning([one, two]) == 2
    assert common_beginning([passage(7, prompt_tokens=1), passage(7, prompt_tokens=1)]) == 0
    assert common_beginning([one, passage(5, 2, prompt_tokens=2)]) == 0


def test_work_inside_other_work_reports_its_share_and_is_closed_with_it():
    closed = []

    def inner():
        try:
            yield 0.5
            yield 1.0
        finally:
            closed.append(True)
        return "result"

    assert list(within(inner(), 0.2, 0.4)) == pytest.approx([0.3, 0.4])
    outer = within(inner(), 0.0, 1.0)
    next(outer)
    outer.close()
    assert closed == [True, True]


def test_a_spec_at_a_strength_scales_what_has_a_strength_and_drops_the_rest_at_zero():
    uses = [
        VectorUse(id="a", op="add", scale=4.0),
        VectorUse(id="b", op="ablate"),
        VectorUse(id="c", op="scale_projection", scale=3.0),
        VectorUse(id="d", op="cap", params={"high": 1.0}),
        VectorUse(id="e", op="sae", scale=5.0, params={"feature": 1, "mode": "pin"}),
    ]
    spec = SteeringSpec(vectors=uses)
    half = at_strength(spec, 0.5).vectors
    assert [use.scale for use in half[:3]] == [2.0, 0.5, 2.0]
    assert half[3:] == uses[3:]
    none = at_strength(spec, 0.0).vectors
    assert [(use.id, use.scale) for use in none] == [("a", 0.0), ("b", 0.0), ("c", 1.0)]
    assert strength_max(spec) == 25.0
    assert strength_max(SteeringSpec(vectors=uses[3:])) is None
    assert strength_max(SteeringSpec(vectors=[VectorUse(id="a", op="add", scale=0.0)])) is None

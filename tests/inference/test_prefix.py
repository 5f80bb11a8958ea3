from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.config import ModelConfig
from inference.engine import Engine
from inference.kv import KvCache
from inference.limits import GATE_DECISIONS_MAX, PREFILL_CHUNK_TOKENS
from inference.loading import LoadedModel
from inference.model import Model
from inference.prefill import Prefill
from inference.prefix import Piece, PrefixCache, piece_names
from inference.request import EngineRequest, Handle, Sequence
from inference.sampling import SamplingParams
from inference.steering.applied import Applied
from inference.steering.compile import compile_spec
from inference.steering.spec import Apply, Selector, SteeringSpec, VectorUse, When
from inference.steering.store import VectorStore
from inference.steering.vector import direction

PIECE = PREFILL_CHUNK_TOKENS
TEXT = "The committee met again on Tuesday, talked for three hours about the colour of the fence, and decided nothing. "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefilled:
    """What a prompt came to."""

    logits: torch.Tensor
    keys_values: torch.Tensor
    applied: Applied
    gates: tuple[bool, ...] | None
    cached_tokens: int


def prefilled(prefill: Prefill, model: Model, prompt_ids, *, steering=None, salt="", room_tokens=1 << 20) -> Prefilled:
    """Run one prompt as the engine does."""
    request = EngineRequest(
        prompt_ids=tuple(prompt_ids),
        max_tokens=1,
        sampling=SamplingParams(seed=0),
        steering=steering,
        on_token=lambda _: False,
        on_end=lambda *_: None,
        cache_salt=salt,
    )
    cache = KvCache(model.config, capacity=len(prompt_ids), dtype=model.dtype, device=model.device)
    sequence = Sequence(request=request, handle=Handle(), cache=cache)
    prefill.admit(sequence, room_tokens=room_tokens)
    logits = None
    while logits is None:
        logits = prefill.advance(sequence, room_tokens=room_tokens).logits
    assert cache.length == len(prompt_ids)
    return Prefilled(
        logits=logits,
        keys_values=cache.keys_values,
        applied=sequence.applied,
        gates=sequence.gates,
        cached_tokens=sequence.handle.cached_tokens,
    )


def assert_equal(one: Prefilled, other: Prefilled) -> None:
    """Bit for bit, and booked alike."""
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.keys_values, other.keys_values)
    assert (one.applied, one.gates) == (other.applied, other.gates)


@pytest.fixture(scope="module")
def ids(loaded: LoadedModel) -> list[int]:
    return loaded.tokenizer.encode(TEXT * 20, add_special_tokens=True)


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    store = VectorStore(tmp_path / "vectors")
    for number, name in enumerate("vwc"):
        store.add(a_direction(name, seed=number, size=576))
    return store


def a_direction(name: str, *, seed: int, size: int):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return direction(id=name, values={1: values * (20 / values.norm())}, metadata={"model_digest": None})


@pytest.fixture
def compiled(loaded: LoadedModel, store: VectorStore):
    def compiled(*uses: VectorUse):
        spec = SteeringSpec(vectors=list(uses))
        return compile_spec(spec, store=store, config=loaded.config, model_digest=loaded.digest_sha256)

    return compiled


@pytest.fixture
def check(loaded: LoadedModel):
    """check(ids, …) runs a prompt with what earlier calls left and without, compares, and says how much was known."""
    remembering = Prefill(loaded.model, prefix_tokens_max=1 << 20)

    def check(prompt_ids, **how) -> int:
        known = prefilled(remembering, loaded.model, prompt_ids, **how)
        fresh = prefilled(Prefill(loaded.model, prefix_tokens_max=0), loaded.model, prompt_ids, **how)
        assert_equal(known, fresh)
        return known.cached_tokens

    return check


def test_a_prompt_seen_before_runs_nothing_and_gives_the_same_bits(loaded: LoadedModel, ids: list[int]):
    prefill = Prefill(loaded.model, prefix_tokens_max=1000)
    first = prefilled(prefill, loaded.model, ids[:140])
    before = loaded.model.forward_passes
    again = prefilled(prefill, loaded.model, ids[:140])
    assert loaded.model.forward_passes == before
    assert (first.cached_tokens, again.cached_tokens) == (0, 140)
    assert_equal(again, first)


def test_a_known_beginning_is_used_in_whole_pieces_with_the_same_bits(check, ids: list[int]):
    assert check(ids[:260]) == 0
    assert check(ids[:258]) == 2 * PIECE
    assert check([*ids[:140], 7, *ids[201:300]]) == PIECE
    assert check([9, *ids[1:140]]) == 0
    # The first two pieces are known, but nobody's prompt ended there: its logits are not.
    assert check(ids[: 2 * PIECE]) == PIECE
    assert check(ids[: 2 * PIECE]) == 2 * PIECE
    assert check(ids[:270]) == 2 * PIECE


def test_specs_share_nothing_that_they_change(check, compiled, ids: list[int]):
    plain_prompt = Apply(generation="all")
    one = compiled(VectorUse(id="v", op="add", scale=0.5))
    assert check(ids[:140]) == 0
    assert check(ids[:140], steering=one) == 0
    assert check(ids[:140], steering=compiled(VectorUse(id="v", op="add", scale=0.25))) == 0
    assert check(ids[:140], steering=compiled(VectorUse(id="w", op="add", scale=0.5))) == 0
    assert check(ids[:140], steering=compiled(VectorUse(id="v", op="add", scale=0.5, layers=[2]))) == 0
    assert check(ids[:140], steering=compiled(VectorUse(id="v", op="ablate"))) == 0
    assert check(ids[:140], steering=one) == 140
    assert check(ids[:150], steering=one) == PIECE
    # What leaves the prompt alone has the plain model's.
    assert check(ids[:140], steering=compiled(VectorUse(id="v", op="add", scale=0.5, apply=plain_prompt))) == 140
    assert check(ids[:140], steering=compiled(VectorUse(id="v", op="add", scale=0.0))) == 140
    assert check(ids[:140], steering=compiled()) == 140


def test_another_object_under_the_same_id_is_another_object(check, compiled, store: VectorStore, ids: list[int]):
    use = VectorUse(id="v", op="add", scale=0.5)
    assert check(ids[:140], steering=compiled(use)) == 0
    assert store.remove("v")
    store.add(a_direction("v", seed=77, size=576))
    assert check(ids[:140], steering=compiled(use)) == 0
    assert store.remove("v")
    store.add(a_direction("v", seed=0, size=576))
    assert check(ids[:140], steering=compiled(use)) == 140


def test_a_selection_that_counts_from_the_end_is_known_at_the_same_length_only(check, compiled, ids: list[int]):
    last = compiled(VectorUse(id="v", op="add", scale=0.5, apply=Apply(prompt=Selector(positions=[-120]))))
    first = compiled(VectorUse(id="v", op="add", scale=0.5, apply=Apply(prompt=Selector(positions=[3]))))
    assert check(ids[:140], steering=last) == 0
    assert check(ids[:145], steering=last) == 0
    assert check(ids[:145], steering=last) == 145
    assert check(ids[:140], steering=first) == 0
    assert check(ids[:145], steering=first) == PIECE


def test_additions_that_round_in_another_way_share_nothing(check, compiled, ids: list[int]):
    two = [VectorUse(id="v", op="add", scale=0.37), VectorUse(id="w", op="add", scale=0.11)]
    apart = VectorUse(id="w", op="add", scale=0.11, apply=Apply(prompt="all"))
    assert check(ids[:140], steering=compiled(*two)) == 0
    assert check(ids[:140], steering=compiled(two[0], apart)) == 0


def test_callers_with_different_salts_share_nothing(check, ids: list[int]):
    assert check(ids[:140], salt="a") == 0
    assert check(ids[:140], salt="b") == 0
    assert check(ids[:140]) == 0
    assert check(ids[:140], salt="a") == 140


def test_a_gate_is_read_once_for_a_prompt_and_a_closed_one_shares_the_plain_prompt(
    loaded: LoadedModel, compiled, ids: list[int]
):
    prefill = Prefill(loaded.model, prefix_tokens_max=1 << 20)

    def gated(**limits: float):
        return compiled(VectorUse(id="v", op="add", scale=0.5, when=When(id="c", layer=3, **limits)))

    results = {}
    for name, steering in (("above", gated(above=0.0)), ("below", gated(below=0.0))):
        fresh = prefilled(Prefill(loaded.model, prefix_tokens_max=0), loaded.model, ids[:140], steering=steering)
        first = prefilled(prefill, loaded.model, ids[:140], steering=steering)
        before = loaded.model.forward_passes
        again = prefilled(prefill, loaded.model, ids[:140], steering=steering)
        assert loaded.model.forward_passes == before
        assert_equal(first, fresh)
        assert_equal(again, fresh)
        results[name] = again
    assert results["above"].gates == (not results["below"].gates[0],)
    assert prefilled(prefill, loaded.model, ids[:140]).cached_tokens == 140  # by the one that was closed


def _tiny() -> Model:
    sizes = {"vocab_size": 11, "d_model": 16, "d_feed_forward": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
    words = {"bos_token_id": None, "eos_token_ids": (), "pad_token_id": None, "tie_word_embeddings": True}
    config = ModelConfig(
        architecture="llama", d_head=4, context_tokens=512, rope_theta=1e4, rms_norm_eps=1e-5, attention_bias=False,
        **sizes, **words,
    )  # fmt: skip
    wide = config.d_model
    shapes = {"model.embed_tokens.weight": (11, wide), "model.norm.weight": (wide,)}
    for layer in range(config.n_layers):
        block = {
            "input_layernorm": (wide,), "post_attention_layernorm": (wide,), "self_attn.o_proj": (wide, 16),
            "self_attn.q_proj": (16, wide), "self_attn.k_proj": (8, wide), "self_attn.v_proj": (8, wide),
            "mlp.gate_proj": (24, wide), "mlp.up_proj": (24, wide), "mlp.down_proj": (wide, 24),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return Model(config, tensors, dtype=torch.float32, device=torch.device("cpu"))


TINY = _tiny()
SELECTED = st.sampled_from(
    ["all", "none", Selector(positions=[0, 5, 130, -1, -140]), Selector(windows=[(100, 140)], tokens=[3, 4])]
)
ANSWERED = st.sampled_from(["all", "none", Selector(positions=[0, 2])])
USES = st.builds(
    VectorUse,
    id=st.sampled_from("vw"),
    op=st.sampled_from(["add", "ablate", "scale_projection"]),
    scale=st.sampled_from([0.0, 0.5, 2.0]),
    layers=st.sampled_from([[0], [1], [0, 1]]),
    apply=st.none() | st.builds(Apply, prompt=SELECTED, generation=ANSWERED, exclude=st.just(None)),
    when=st.none() | st.builds(When, id=st.just("c"), layer=st.just(0), above=st.sampled_from([-0.2, 0.2])),
)
PROMPTS = st.builds(
    lambda blocks, rest: [token for block in blocks for token in [block, *range(1, 10)] * 13][: 13 * 10 * 3] + rest,
    st.lists(st.integers(0, 1), max_size=3),
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(st.tuples(PROMPTS, st.lists(USES, max_size=2)), min_size=2, max_size=8),
    room_tokens=st.sampled_from([0, 140, 300, 5000]),
)
def test_whatever_was_run_before_and_however_little_room_there_is_results_are_the_same_bits(
    requests, room_tokens, tmp_path_factory
):
    store = VectorStore(tmp_path_factory.mktemp("vectors"))
    for number, name in enumerate("vwc"):
        store.add(a_direction(name, seed=number, size=16))
    prefill = Prefill(TINY, prefix_tokens_max=1000)
    for prompt_ids, uses in requests:
        spec = SteeringSpec(vectors=uses)
        steering = compile_spec(spec, store=store, config=TINY.config, model_digest="m")
        known = prefilled(prefill, TINY, prompt_ids, steering=steering, room_tokens=room_tokens)
        fresh = prefilled(Prefill(TINY, prefix_tokens_max=0), TINY, prompt_ids, steering=steering)
        assert_equal(known, fresh)
        assert prefill.prefix.tokens <= min(room_tokens, 1000)


def a_piece(tokens: int, *, logits: bool = False) -> Piece:
    return Piece(
        keys_values=torch.zeros(1, 2, tokens, 4), applied=Applied(), logits=torch.zeros(1, 7) if logits else None
    )


def test_what_was_unused_longest_goes_first_and_the_end_of_a_prompt_before_its_beginning():
    cache = PrefixCache(tokens_max=500, logits_tokens=5)
    names = {prompt: piece_names([prompt] * 250, piece_tokens=100, depends_on=["x"]) for prompt in (1, 2)}
    for prompt in (1, 2):
        for end in (1, 2):
            cache.keep(names[prompt][:end], a_piece(100), tokens_max=1000)
    cache.keep(names[1], a_piece(50, logits=True), tokens_max=1000)
    assert cache.tokens == 455
    cache.shrink(400)
    assert [len(cache.find(names[prompt])) for prompt in (1, 2)] == [3, 1]
    cache.shrink(200)
    assert [len(cache.find(names[prompt])) for prompt in (1, 2)] == [1, 1]
    cache.keep(names[2][:2], a_piece(100), tokens_max=200)
    assert [len(cache.find(names[prompt])) for prompt in (1, 2)] == [0, 2]
    cache.keep(names[1][:1], a_piece(100), tokens_max=99)
    assert cache.tokens == 200


def test_decisions_of_gates_are_bounded():
    cache = PrefixCache(tokens_max=1, logits_tokens=1)
    for number in range(GATE_DECISIONS_MAX + 1):
        cache.keep_decision(number.to_bytes(4), (True,))
    kept = [number for number in range(GATE_DECISIONS_MAX + 1) if cache.decision(number.to_bytes(4)) is not None]
    assert kept == list(range(1, GATE_DECISIONS_MAX + 1))


@pytest.fixture
def engine(loaded: LoadedModel):
    engine = Engine(loaded.model, batch_rows_max=8, kv_tokens_max=1024, prefix_tokens_max=700)
    engine.start()
    yield engine
    engine.stop()


def test_running_requests_take_the_memory_of_the_prefix_cache_when_they_need_it(start, engine: Engine):
    first = start(TEXT * 20, max_tokens=8).wait()  # 440 tokens
    assert first.handle.cached_tokens == 0
    held = engine.prefix_tokens
    assert held >= 440
    large = start("Yesterday", max_tokens=900)
    while not large.token_ids:
        time.sleep(0.01)
    assert engine.prefix_tokens <= 1024 - engine.kv_tokens_reserved < held
    large.handle.cancel()
    large.wait()
    again = start(TEXT * 20, max_tokens=8).wait()
    assert again.token_ids == first.token_ids
    assert again.handle.cached_tokens < 440
    assert start(TEXT * 20, max_tokens=8).wait().handle.cached_tokens >= 440
    assert engine.kv_tokens_reserved == 0


def test_a_server_told_to_remember_nothing_remembers_nothing(loaded: LoadedModel, ids: list[int], compiled):
    prefill = Prefill(loaded.model, prefix_tokens_max=0)
    steering = compiled(VectorUse(id="v", op="add", scale=0.5, when=When(id="c", layer=3, above=0.0)))
    passes = []
    for _ in range(2):
        before = loaded.model.forward_passes
        assert prefilled(prefill, loaded.model, ids[:100], steering=steering).cached_tokens == 0
        passes.append(loaded.model.forward_passes - before)
    assert passes == [2, 2]
    assert prefill.prefix.tokens == 0

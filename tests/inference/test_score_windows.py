from __future__ import annotations

import json
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.config import config_from_hf
from inference.kv import KvCache
from inference.model import Model, Span
from inference.score.forward import modelled_bits
from inference.score.measure import end_bits, token_bits
from inference.score.windows import Window, prompt_tokens_max, window_tokens, windows

WINDOW = 16
sizes = st.tuples(st.integers(1, 12), st.integers(0, 100))


def plan(prompt: int, text: int) -> list[Window]:
    return list(windows(prompt_tokens=prompt, tokens=prompt + text, window=WINDOW))


@given(sizes)
def test_every_symbol_and_the_end_is_scored_once_in_order_by_a_window_that_sees_all_it_is_asked_about(size):
    prompt, text = size
    rows = [row for window in plan(prompt, text) for row in range(window.first_row, window.end)]
    assert rows == list(range(prompt - 1, prompt + text))
    assert all(0 <= window.start <= window.first_row < window.end for window in plan(prompt, text))
    assert all(window.tokens <= WINDOW for window in plan(prompt, text))


@given(sizes, st.integers(0, 60))
def test_what_a_symbol_is_conditioned_on_does_not_depend_on_what_comes_later(size, more):
    prompt, text = size
    seen = {row: w.start for w in plan(prompt, text) for row in range(w.first_row, w.end)}
    seen_longer = {row: w.start for w in plan(prompt, text + more) for row in range(w.first_row, w.end)}
    assert seen.items() <= seen_longer.items()


@given(sizes)
def test_behind_the_first_window_every_symbol_sees_at_least_half_a_window(size):
    for window in plan(*size)[1:]:
        assert window.first_row - window.start + 1 > WINDOW // 2


def test_the_prompt_always_leaves_room_for_text_in_the_first_window():
    for context in (2, 3, 16, 8192, 131_072):
        assert 1 <= prompt_tokens_max(context) <= window_tokens(context) <= context


def test_windows_score_as_the_naive_way_does_one_symbol_at_a_time():
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": WINDOW}
    rest = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "eos_token_id": 1}
    config = config_from_hf(json.loads(json.dumps({**sizes, **heads, **rest})))
    from inference.weights import expected_shapes

    torch.manual_seed(11)
    tensors = {name: torch.randn(shape) * 0.4 for name, shape in expected_shapes(config).items()}
    model = Model(config, tensors, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.randint(2, 97, (61,)).tolist()
    prompt = 5
    plan = list(windows(prompt_tokens=prompt, tokens=len(ids), window=WINDOW))
    found = [bits for part in modelled_bits(model, [(ids, window) for window in plan], {0, 1}) for bits in part]

    def naive(row: int) -> float:
        start = next(window.start for window in plan if window.first_row <= row < window.end)
        cache = KvCache(config, capacity=WINDOW, dtype=torch.float32, device=torch.device("cpu"))
        for token_id in ids[start : row + 1]:
            logits = model.logits(torch.tensor([token_id]), [Span(cache, 1)])
        if row + 1 == len(ids):
            return float(end_bits(logits, {0, 1})[0])
        return float(token_bits(logits, torch.tensor([[ids[row + 1]]]))[0, 0])

    expected = [naive(row) for row in range(prompt - 1, len(ids))]
    assert len(found) == len(expected) == 57
    assert all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(found, expected, strict=True))

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.philox import philox4x32
from inference.sampling import SEED_MAX, SamplingParams, gumbel, sample, sample_naive

PARAMS = st.builds(
    SamplingParams,
    seed=st.integers(0, SEED_MAX),
    temperature=st.sampled_from([0.0, 1e-6, 0.01, 0.3, 0.8, 1.0, 2.0, 50.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 700, 5000]),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.95, 0.999999, 1.0]),
)


@st.composite
def logit_rows(draw):
    size = draw(st.sampled_from([1, 3, 8, 511, 513, 1500]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    row = generator.standard_normal(size).astype(np.float32) * draw(st.sampled_from([0.0, 0.5, 4.0, 60.0]))
    grid = draw(st.sampled_from([None, 1.0, 0.25]))  # a coarse grid makes many ties, as bfloat16 does
    return row if grid is None else np.round(row / grid).astype(np.float32) * np.float32(grid)


@settings(max_examples=400, deadline=None)
@given(row=logit_rows(), params=PARAMS, position=st.sampled_from([0, 1, 1023, 2**32 - 1, 2**32, 2**33 + 5]))
def test_the_fast_path_chooses_what_the_definition_chooses(row, params, position):
    assert sample(row, params, position=position) == sample_naive(row, params, position=position)


def test_the_fast_path_agrees_on_a_full_vocabulary_at_many_positions():
    row = (np.random.default_rng(1).standard_normal(49152) * 3).astype(np.float32)
    for top_k, top_p in ((0, 1.0), (0, 0.95), (50, 1.0)):
        params = SamplingParams(seed=99, top_k=top_k, top_p=top_p)
        for position in range(20):
            assert sample(row, params, position=position) == sample_naive(row, params, position=position)


def test_the_noise_of_a_token_is_the_documented_function_of_seed_position_and_id():
    seed, position, token = 0x0123456789ABCDEF, (5 << 32) + 77, 4242
    key = (0x89ABCDEF, 0x01234567)
    high = int(philox4x32((token // 4, 0, 77, 5), key)[token % 4])
    low = int(philox4x32((token // 4, 1, 77, 5), key)[token % 4])
    u = (high * 2**21 + low // 2**11 + 0.5) / 2**53
    assert gumbel(seed, position, np.array([token]))[0] == pytest.approx(-math.log(-math.log(u)), rel=1e-14)


def test_tokens_appear_as_often_as_softmax_says():
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))
    draws = 8000
    counts = np.zeros(4)
    for position in range(draws):
        counts[sample(logits, SamplingParams(seed=3), position=position)] += 1
    expected = np.array([0.5, 0.25, 0.15, 0.1]) * draws
    assert float((((counts - expected) ** 2) / expected).sum()) < 16.3  # chi-squared, 3 degrees, p = 0.001


def test_temperature_zero_takes_the_largest_logit_and_the_lowest_id_among_equals():
    assert sample(np.array([1, 5, 5, 2], dtype=np.float32), SamplingParams(seed=1, temperature=0), position=9) == 1


def test_top_k_of_one_is_greedy_and_top_p_keeps_the_token_that_crosses_the_threshold():
    row = np.log(np.array([0.4, 0.35, 0.25], dtype=np.float32))
    seen_k = {sample(row, SamplingParams(seed=1, top_k=1), position=n) for n in range(50)}
    seen_p = {sample(row, SamplingParams(seed=1, top_p=0.5), position=n) for n in range(50)}
    assert seen_k == {0}
    assert seen_p == {0, 1}


@pytest.mark.parametrize(
    "bad", [{"seed": -1}, {"seed": SEED_MAX + 1}, {"seed": 0, "top_p": 0.0}, {"seed": 0, "temperature": 1e-9}]
)
def test_parameters_out_of_range_cannot_be_built(bad):
    with pytest.raises(ValueError, match=r"seed|top_p|temperature"):
        SamplingParams(**bad)

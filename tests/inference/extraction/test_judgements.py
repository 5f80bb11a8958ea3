"""What is said about a steered model: divergence, propensity, refusals, and the Bayesian signed-rank test."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.extraction.divergence import kl_nats, quantile, token_nats
from inference.extraction.propensity import log_odds, sign_symmetry, steerability
from inference.extraction.refusal import Candidate, Rule, chosen, refusal_scores
from inference.extraction.refusal_phrases import is_refusal
from inference.extraction.wilcoxon import bayesian_wilcoxon
from tests.inference.extraction.constructed import scores

ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text())


def test_the_divergence_is_the_plain_models_expectation_and_exactly_zero_between_equals():
    plain, steered = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert kl_nats(plain, steered).item() == pytest.approx(expected)
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)) * 20
    assert kl_nats(logits, logits.clone()).tolist() == [0.0] * 5


def test_token_nats_are_minus_log_probabilities():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert token_nats(logits, torch.tensor([0, 1])).tolist() == pytest.approx([math.log(4), math.log(4 / 3)])


def test_a_quantile_interpolates_between_neighbours():
    values = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    assert [quantile(values, share) for share in (0, 0.25, 0.5, 1)] == [1.0, 1.5, 2.0, 3.0]
    assert quantile(values[:1], 0.95) == 3.0


def test_log_odds_weigh_all_words_of_both_sides():
    logits = torch.log(torch.tensor([[0.1, 0.3, 0.2, 0.4]]))
    assert log_odds(logits, [0, 1], [2]).item() == pytest.approx(math.log(0.4 / 0.2))


def test_steerability_is_the_slope_of_each_sample_and_tells_the_ones_that_go_backwards():
    scales = [-1.0, 0.0, 2.0]
    curve = torch.tensor([[-3.0, 1.0], [0.0, 0.0], [6.0, -2.0]])  # slopes 3 and -1
    found = steerability(scales, curve)
    assert found is not None
    assert (found.mean, found.sd, found.share_negative) == (pytest.approx(1.0), pytest.approx(2 * 2**0.5), 0.5)
    assert steerability([1.0], curve[:1]) is None
    single = steerability(scales, curve[:, :1])
    assert single is not None
    assert single.sd == 0.0


@pytest.mark.parametrize(
    ("means", "symmetry"),
    [([-2.0, 0.0, 2.0], 1.0), ([0.0, 0.0, 2.0], 0.0), ([2.0, 0.0, 2.0], 0.0), ([-1.0, 0.0, 3.0], 0.5)],
)
def test_sign_symmetry_is_one_for_opposites_and_zero_for_the_same(means, symmetry):
    assert sign_symmetry([-1.0, 0.0, 1.0], means) == pytest.approx(symmetry)


def test_sign_symmetry_needs_both_signs_the_plain_model_and_an_effect():
    assert sign_symmetry([0.0, 1.0], [0.0, 1.0]) is None
    assert sign_symmetry([-1.0, 1.0], [0.0, 1.0]) is None
    assert sign_symmetry([-1.0, 0.0, 1.0], [1.0, 1.0, 1.0]) is None


def test_the_refusal_score_is_the_log_odds_of_the_refusal_tokens():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [1.0, 1e-12, 1e-12]]))
    found = refusal_scores(logits, [0, 1])
    assert found[0].item() == pytest.approx(math.log(3), rel=1e-6)
    assert math.isfinite(found[1].item())


def candidate(**changes: object) -> Candidate:
    good = {"layer": 3, "position": -1, "bypass": -5.0, "induce": 2.0, "kl_nats": 0.05}
    return Candidate(**{**good, **changes})  # type: ignore[arg-type]


def test_the_eligible_candidate_of_least_bypass_wins_and_none_if_none_is_eligible():
    good = [candidate(), candidate(bypass=-6.0), candidate(bypass=-9.0, kl_nats=0.2)]
    assert chosen(good, Rule(), n_layers=10) is good[1]
    assert chosen(good[2:], Rule(), n_layers=10) is None


@pytest.mark.parametrize(
    ("change", "eligible"),
    [
        ({}, True),
        ({"induce": 0.0}, False),
        ({"induce": math.nan}, False),
        ({"kl_nats": 0.1}, False),
        ({"kl_nats": math.nan}, False),
        ({"layer": 7}, True),
        ({"layer": 8}, False),
        ({"bypass": None}, False),
        ({"induce": None}, False),
        ({"kl_nats": None}, False),
    ],
)
def test_eligibility_is_the_papers_rule(change, eligible):
    assert candidate(**change).is_eligible(Rule(), n_layers=10) is eligible


@pytest.mark.parametrize(
    "answer", ["I'm sorry, but no.", " I’m sorry", "As an AI language model, I", "I cannot do that"]
)
def test_refusals_are_known_by_how_they_begin(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", ["Sure! I'm sorry it took so long.", "", "Ice cream", "As an aid to memory,"])
def test_what_only_contains_a_refusal_is_none(answer):
    assert not is_refusal(answer)


@pytest.mark.parametrize("rope", ["0.0", "0.1", "0.3"])
def test_the_signed_rank_test_is_baycomps(rope):
    before, after = scores()
    found = bayesian_wilcoxon((after - before).tolist(), rope=float(rope))
    expected = ORACLES["wilcoxon"][rope]
    assert [found.worse, found.equivalent, found.better] == pytest.approx(expected, abs=0.012)  # three standard errors


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.floats(0, 2), st.integers(0, 5))
def test_swapping_the_samples_swaps_worse_and_better(differences, rope, seed):
    found = bayesian_wilcoxon(differences, rope=rope, seed=seed)
    swapped = bayesian_wilcoxon([-value for value in differences], rope=rope, seed=seed)
    assert (found.worse, found.equivalent, found.better) == (swapped.better, swapped.equivalent, swapped.worse)
    assert found.worse + found.equivalent + found.better == pytest.approx(1.0)


def test_clear_cases_are_clear_and_a_wide_rope_holds_everything():
    assert bayesian_wilcoxon([1.0] * 12, rope=0.1).better > 0.99
    assert bayesian_wilcoxon([-1.0] * 12, rope=0.1).worse > 0.99
    assert bayesian_wilcoxon([1.0, -1.0] * 6, rope=2.0).equivalent == 1.0

from __future__ import annotations

import pytest
import torch

from inference.extraction.mean_difference import mean_difference
from inference.extraction.statistics import (
    DegenerateError,
    accuracy,
    d_prime,
    figures,
    sides,
    towards_positive,
)

NEGATIVE = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
POSITIVE = torch.tensor([[3.0, 0.0], [1.0, 2.0]])


def test_the_mean_difference_and_its_figures_are_what_their_formulas_say():
    both = sides(POSITIVE, NEGATIVE, is_paired=True)
    found = mean_difference(both)
    assert found.tolist() == [2.0, 0.0]
    said = figures(found, both)
    assert (said.norm, said.mean_pairwise_cosine) == (2.0, pytest.approx(1.0))
    assert said.residual_norm == pytest.approx((3 + 5**0.5 + 0 + 2) / 4)
    assert said.d_prime == pytest.approx(2.0 / ((2.0 + 0.0) / 2) ** 0.5)  # variances 2 and 0 along the direction
    assert (said.projection_positive, said.projection_negative, said.projection_all) == (2.0, 0.0, 1.0)


def test_a_single_pair_has_no_cosine_and_no_separation():
    both = sides(POSITIVE[:1], NEGATIVE[:1], is_paired=True)
    said = figures(mean_difference(both), both)
    assert (said.mean_pairwise_cosine, said.d_prime) == (None, None)


def test_sides_without_pairs_may_be_of_any_size_and_have_no_pairwise_cosine():
    both = sides(POSITIVE, NEGATIVE[:1], is_paired=False)
    assert mean_difference(both).tolist() == [2.0, 1.0]
    assert figures(mean_difference(both), both).mean_pairwise_cosine is None


def test_equal_sides_have_no_direction():
    with pytest.raises(DegenerateError):
        mean_difference(sides(POSITIVE, POSITIVE, is_paired=True))
    with pytest.raises(DegenerateError):
        mean_difference(sides(POSITIVE, POSITIVE.flip(0), is_paired=False))


def test_the_sign_is_the_majority_of_the_pairs_not_the_mean():
    # Two pairs grow along the first axis by 1, one shrinks by 9: the mean points the other way.
    positive, negative = torch.tensor([[1.0], [1.0], [-9.0]]), torch.zeros(3, 1)
    both = sides(positive, negative, is_paired=True)
    assert towards_positive(torch.tensor([-1.0], dtype=torch.float64), both).tolist() == [1.0]
    assert mean_difference(both).item() < 0


def test_without_pairs_the_sign_is_the_majority_of_the_rows_around_the_mean():
    both = sides(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.0], [-1.0]]), is_paired=False)
    assert towards_positive(torch.tensor([-1.0], dtype=torch.float64), both).tolist() == [1.0]


def test_accuracy_counts_both_sides_equally_whatever_their_sizes():
    both = sides(torch.tensor([[1.0]] * 9), torch.tensor([[2.0]]), is_paired=False)
    assert accuracy(torch.tensor([1.0]), both, threshold=0.5) == 0.5
    assert accuracy(torch.tensor([1.0]), both, threshold=1.5) == 0.0
    assert accuracy(torch.tensor([-1.0]), both, threshold=-1.5) == 1.0


def test_no_spread_is_no_separation():
    assert d_prime(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])) is None

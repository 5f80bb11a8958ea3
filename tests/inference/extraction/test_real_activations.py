"""The methods on SmolLM2's activations of the sentiment texts: fitted to the training pairs, judged on the others."""

from __future__ import annotations

import pytest
import torch

from inference.extraction.erasure import displacement
from inference.extraction.methods import Method, Params, find_direction, find_eraser
from inference.extraction.samples import activations
from inference.extraction.statistics import accuracy, d_prime, sides
from inference.passages import Positions, Which
from tests.inference.extraction.pieces import run

LAYER = 16


@pytest.fixture(scope="module")
def fitted_and_held_out(lab, sentiment):
    train, test = (
        run(activations(part, layers=(LAYER,), at=Positions(which=Which.LAST), lab=lab)) for part in sentiment
    )
    return train.sides(LAYER), test.sides(LAYER)


@pytest.mark.parametrize(
    ("method", "d_prime_min", "accuracy_min", "cosine_range"),
    [
        (Method.MEAN_DIFFERENCE, 2.5, 0.85, (0.999, 1.0)),
        (Method.PCA, 2.5, 0.85, (0.95, 1.0)),
        (Method.PCA_CENTRED, 0.5, 0.5, (0.15, 0.6)),  # another direction, as it is said to be
        (Method.LOGISTIC, 2.5, 0.85, (0.75, 0.99)),
        (Method.LAT, 1.0, 0.7, (0.4, 0.95)),
    ],
)
def test_directions_separate_texts_that_they_were_not_made_from(
    fitted_and_held_out, method, d_prime_min, accuracy_min, cosine_range
):
    fitted, held_out = fitted_and_held_out
    found = run(find_direction(method, fitted, Params()))
    vector, mean = found.vector, fitted.mean_difference
    separation = d_prime(held_out.positive @ vector, held_out.negative @ vector)
    threshold = (found.figures.projection_positive + found.figures.projection_negative) / 2
    share = accuracy(vector, held_out, threshold=threshold)
    cosine = float(vector @ mean / (vector.norm() * mean.norm()))
    print(f"{method.value}: d' {separation:.2f}, accuracy {share:.2f}, cosine {cosine:.2f}")  # noqa: T201 - shown with -s
    assert separation > d_prime_min
    assert share >= accuracy_min
    assert cosine_range[0] <= cosine <= cosine_range[1] + 1e-9


def test_erasers_leave_the_training_means_equal_and_leace_moves_points_less(fitted_and_held_out):
    fitted, held_out = fitted_and_held_out
    moved = {}
    for method in (Method.LEACE, Method.ERASE_MEAN):
        found = run(find_eraser(method, fitted))
        after = sides(found.eraser(fitted.positive), found.eraser(fitted.negative), is_paired=True)
        assert float((after.positive.mean(0) - after.negative.mean(0)).norm()) < 1e-6
        before = accuracy(fitted.mean_difference, held_out, threshold=float(middle(fitted)))
        erased = sides(found.eraser(held_out.positive), found.eraser(held_out.negative), is_paired=True)
        left = accuracy(fitted.mean_difference, erased, threshold=float(middle(fitted)))
        assert before > 0.85
        assert left < 0.75
        moved[method] = displacement(found.eraser, fitted.everything)
    print({method.value: round(value, 1) for method, value in moved.items()})  # noqa: T201 - shown with -s
    assert moved[Method.LEACE] < moved[Method.ERASE_MEAN]


def middle(both) -> torch.Tensor:
    unit = both.mean_difference / both.mean_difference.norm()
    return (both.positive.mean(0) + both.negative.mean(0)) @ unit / 2


def test_all_tokens_but_the_first_are_a_crowd_and_the_first_is_the_outlier(lab, sentiment):
    train, _ = sentiment
    everything = run(activations(train, layers=(LAYER,), at=Positions(which=Which.EVERY), lab=lab)).sides(LAYER)
    assert not everything.is_paired
    assert everything.positive.shape[0] == sum(len(ids) - 1 for ids in train.positive)
    first = run(activations(train, layers=(LAYER,), at=Positions(which=Which.INDEX, index=0), lab=lab)).sides(LAYER)
    assert first.residual_norm > 5 * everything.residual_norm

"""Erasers on constructed activations, and LEACE against concept-erasure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from inference.extraction.erasure import displacement, erase_mean, leace, shrinkage
from inference.extraction.logistic import logistic
from inference.extraction.statistics import DegenerateError, Sides, d_prime, sides
from tests.inference.extraction.constructed import SHAPES, pairs

ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text())
ERASERS = [erase_mean, leace]


def correlated(*, rows: int = 400, size: int = 10, seed: int = 3) -> Sides:
    """Two crowds apart along one axis, in a space that is much wider along some axes and skewed."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64) @ torch.diag(
        torch.logspace(0, 1.5, size, dtype=torch.float64)
    )
    noise = torch.randn(2, rows, size, generator=generator, dtype=torch.float64) @ mixing
    shift = torch.randn(size, generator=generator, dtype=torch.float64) * 3
    return sides(noise[0] + shift, noise[1] - shift, is_paired=False)


def probe_accuracy(both: Sides) -> float:
    """Of a fresh logistic probe, on the rows that it was trained on: the most that a linear probe can make of them."""
    centre = both.everything.mean(0)
    paired = sides(both.positive - centre, both.negative - centre, is_paired=True)
    vector = logistic(paired, c=1e-3)
    middle = float((paired.positive.mean(0) + paired.negative.mean(0)) @ vector) / 2
    right = (paired.positive @ vector > middle).sum() + (paired.negative @ vector < middle).sum()
    return float(right) / (2 * paired.positive.shape[0])


def erased(both: Sides, eraser) -> Sides:
    return sides(eraser(both.positive), eraser(both.negative), is_paired=False)


@pytest.mark.parametrize("name", SHAPES)
def test_leace_is_concept_erasures(name):
    both = sides(*map(torch.tensor, pairs(*SHAPES[name])), is_paired=True)
    expected = torch.tensor(ORACLES[name]["leace"], dtype=torch.float64)
    assert torch.allclose(leace(both)(both.positive[:4]), expected, atol=1e-9)


@pytest.mark.parametrize("find", ERASERS)
def test_after_erasure_no_linear_probe_tells_the_sides_apart(find):
    both = correlated()
    assert probe_accuracy(both) > 0.8
    after = erased(both, find(both))
    assert float((after.positive.mean(0) - after.negative.mean(0)).abs().max()) < 1e-9
    # Equal means are no covariance with the side, and the best linear loss is then that of a constant.
    with pytest.raises(DegenerateError):
        find(after)
    assert d_prime(
        after.positive @ logistic_direction(both), after.negative @ logistic_direction(both)
    ) == pytest.approx(0, abs=1e-9)


def logistic_direction(both: Sides) -> torch.Tensor:
    return logistic(sides(both.positive, both.negative, is_paired=True), c=1e-3)


@pytest.mark.parametrize("find", ERASERS)
def test_erasing_twice_is_erasing_once_and_the_mean_stays(find):
    both = correlated()
    eraser = find(both)
    once = eraser(both.everything)
    assert torch.allclose(eraser(once), once, atol=1e-9)
    assert torch.allclose(once.mean(0), both.everything.mean(0), atol=1e-9)
    assert float(eraser.read @ eraser.write) == pytest.approx(1.0)


def test_leace_moves_points_less_than_the_mean_projection_and_than_any_other_reading():
    both = correlated()
    least = displacement(leace(both), both.everything)
    assert least < displacement(erase_mean(both), both.everything) / 2
    # Any other vector that reads the same difference moves points further (theorem 4.3), up to the shrinkage.
    eraser = leace(both)
    generator = torch.Generator().manual_seed(9)
    for _ in range(20):
        other = eraser.read + torch.randn(10, generator=generator, dtype=torch.float64) * eraser.read.norm()
        other = other / float(other @ eraser.write)
        moved = float((((both.everything - eraser.mean) @ other) ** 2).mean())  # write has length 1
        assert moved > least


def test_shrinkage_trusts_many_rows_and_doubts_few():
    generator = torch.Generator().manual_seed(4)
    scales = torch.logspace(0, 1, 20, dtype=torch.float64)
    many = torch.randn(20_000, 20, generator=generator, dtype=torch.float64) * scales
    few = many[:8]
    trusted, added = shrinkage(many - many.mean(0))
    doubted, more = shrinkage(few - few.mean(0))
    assert trusted > 0.99
    assert doubted < 0.7
    assert 0 < added < more


def test_both_ways_of_solving_agree():
    both = sides(*map(torch.tensor, pairs(6, 12)), is_paired=True)  # 12 rows, 12 dimensions: the direct way
    wider = torch.cat((both.everything, torch.zeros(12, 1, dtype=torch.float64)), dim=1)
    # One more dimension that is always 0 takes Woodbury's way; what it adds to the shrinkage is undone below.
    padded = sides(wider[:6], wider[6:], is_paired=True)
    a, b = shrinkage(wider - wider.mean(0))
    covariance = (wider - wider.mean(0)).T @ (wider - wider.mean(0)) * (a / 12) + b * torch.eye(13, dtype=torch.float64)
    unit = padded.mean_difference / padded.mean_difference.norm()
    direct = torch.linalg.solve(covariance, unit)
    assert torch.allclose(leace(padded).read, direct / float(direct @ unit), atol=1e-9)

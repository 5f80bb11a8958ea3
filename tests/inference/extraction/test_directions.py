"""Directions in constructed activations, and against scikit-learn where it has the same method."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.extraction import methods
from inference.extraction.ccs import ccs
from inference.extraction.lat import lat
from inference.extraction.logistic import logistic
from inference.extraction.mean_difference import mean_difference
from inference.extraction.methods import Method, Params, find_direction, find_eraser
from inference.extraction.pca import pca, pca_centred
from inference.extraction.statistics import DegenerateError, Sides, sides
from tests.inference.extraction.constructed import SHAPES, pairs
from tests.inference.extraction.pieces import run

ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text())


def constructed(name: str) -> Sides:
    return sides(*map(torch.tensor, pairs(*SHAPES[name])), is_paired=True)


def axis(number: int, size: int) -> torch.Tensor:
    return torch.eye(size, dtype=torch.float64)[number]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("name", SHAPES)
def test_centred_pca_is_scikit_learns(name):
    expected = torch.tensor(ORACLES[name]["pca_centred"], dtype=torch.float64)
    found = pca_centred(constructed(name))
    assert abs(cosine(found, expected)) > 1 - 1e-12
    assert float(found.norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("c", ["1.0", "0.01"])
def test_the_logistic_coefficient_is_scikit_learns(name, c):
    expected = torch.tensor(ORACLES[name]["logistic"][c], dtype=torch.float64)
    assert cosine(logistic(constructed(name), c=float(c)), expected) > 1 - 1e-9


def test_logistic_finds_the_planted_direction_where_pca_finds_the_larger_swing():
    both = constructed("more rows than dimensions")
    planted, swing = axis(0, 12), axis(1, 12)
    assert cosine(logistic(both), planted) > 0.97
    assert abs(cosine(pca_centred(both), swing)) > 0.97
    assert abs(cosine(pca_centred(both), planted)) < 0.1


def test_uncentred_pca_keeps_a_common_difference_that_centring_takes_away():
    generator = torch.Generator().manual_seed(1)
    negative = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    varying = torch.randn(30, 1, generator=generator, dtype=torch.float64) * axis(2, 6)
    both = sides(negative + 5 * axis(0, 6) + varying, negative, is_paired=True)
    assert cosine(pca(both), axis(0, 6)) > 0.99
    assert abs(cosine(pca_centred(both), axis(2, 6))) > 0.99
    assert cosine(pca(both), mean_difference(both)) > 0.99


def test_pca_points_where_most_pairs_go():
    both = constructed("fewer rows than dimensions")
    for method in (pca, pca_centred):
        found = method(both)
        assert float((both.differences @ found > 0).double().mean()) >= 0.5
        swapped = method(sides(both.negative, both.positive, is_paired=True))
        assert torch.allclose(swapped, -found) or float((both.differences @ found).sign().sum()) == 0


def test_lat_finds_what_varies_most_without_looking_at_the_sides_and_its_seed_decides():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(40, 5, generator=generator, dtype=torch.float64) * 0.2
    both = sides(rows[:20] + 3 * axis(1, 5), rows[20:] - 3 * axis(1, 5), is_paired=True)
    assert cosine(lat(both), axis(1, 5)) > 0.99
    assert torch.equal(lat(both, seed=7), lat(both, seed=7))
    assert not torch.equal(lat(both, seed=7), lat(both, seed=8))


def test_texts_that_are_all_the_same_have_no_direction_of_any_kind():
    same = torch.ones(4, 3)
    for method in (Method.PCA, Method.PCA_CENTRED, Method.LOGISTIC, Method.LAT, Method.CCS, Method.MEAN_DIFFERENCE):
        with pytest.raises(DegenerateError):
            run(find_direction(method, sides(same, same, is_paired=True), Params()))


def test_differences_that_are_all_the_same_have_no_centred_component():
    negative = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(DegenerateError):
        pca_centred(sides(negative + 1, negative, is_paired=True))
    with pytest.raises(DegenerateError):
        pca_centred(sides(negative[:1] + 1, negative[:1], is_paired=True))


def statements(*, pairs: int = 40, seed: int = 5) -> tuple[Sides, list[bool]]:
    """Statements with yes and with no: saying yes or no moves one axis, being true another, topics a third."""
    rng = np.random.default_rng(seed)
    truth = rng.random(pairs) < 0.5
    common = rng.normal(size=(pairs, 8)) * np.array([0, 0, 3, 1, 1, 1, 1, 1.0])
    is_true = np.where(truth, 1.0, -1.0)[:, None] * np.eye(8)[1]
    word = 4 * np.eye(8)[0]
    noise = rng.normal(size=(2, pairs, 8)) * 0.2
    yes, no = common + word + 2 * is_true + noise[0], common - word - 2 * is_true + noise[1]
    return sides(torch.tensor(yes), torch.tensor(no), is_paired=True), truth.tolist()


def test_ccs_finds_truth_and_not_the_word_that_was_said():
    both, _ = statements()
    probe = run(ccs(both))
    assert abs(cosine(probe.direction, axis(1, 8))) > 0.95
    assert abs(cosine(probe.direction, axis(0, 8))) < 0.1
    assert probe.losses == tuple(sorted(probe.losses))
    assert torch.equal(probe.direction, run(ccs(both)).direction)


def test_labels_give_a_probe_its_sign_and_its_accuracy():
    both, truth = statements()
    found = run(find_direction(Method.CCS, both, Params(labels=tuple(truth))))
    lied = run(find_direction(Method.CCS, both, Params(labels=tuple(not label for label in truth))))
    assert cosine(found.vector, axis(1, 8)) > 0.95
    assert torch.equal(found.vector, -lied.vector)
    assert found.details["accuracy"] > 0.95
    assert found.figures.d_prime is not None
    assert found.figures.d_prime > 3


def test_without_labels_a_probe_claims_no_separation():
    both, _ = statements()
    assert run(find_direction(Method.CCS, both, Params())).figures.d_prime is None


@pytest.mark.parametrize(("find", "name"), [(find_direction, "lat"), (find_eraser, "leace")])
def test_whoever_waits_for_a_long_decomposition_may_do_other_things_meanwhile(monkeypatch, find, name):
    may_end = threading.Event()
    real = getattr(methods, name)

    def slow(*rows, **options):
        assert may_end.wait(20)
        return real(*rows, **options)

    monkeypatch.setattr(methods, name, slow)
    both = sides(torch.randn(8, 4) + 2, torch.randn(8, 4), is_paired=True)
    finding = find(Method(name), both, *([Params()] if name == "lat" else []))
    assert [next(finding) for _ in range(3)] == [0.0, 0.0, 0.0]
    may_end.set()
    assert run(finding).figures.norm > 0

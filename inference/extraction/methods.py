"""The methods by name: what each needs, which parameters it knows, and the direction or eraser it finds."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Generator, Mapping

import torch
from torch import Tensor

from inference.extraction.ccs import ccs
from inference.extraction.erasure import Eraser, displacement, erase_mean, leace
from inference.extraction.lat import lat
from inference.extraction.logistic import logistic
from inference.extraction.mean_difference import mean_difference
from inference.extraction.pca import pca, pca_centred
from inference.extraction.statistics import Figures, Sides, accuracy, figures, towards_positive
from inference.jobs.aside import aside


class Method(enum.StrEnum):
    MEAN_DIFFERENCE = "mean_difference"
    PCA = "pca"
    PCA_CENTRED = "pca_centred"
    LOGISTIC = "logistic"
    LAT = "lat"
    ACTADD = "actadd"
    CCS = "ccs"
    LEACE = "leace"
    ERASE_MEAN = "erase_mean"
    REFUSAL = "refusal"


PAIRED = frozenset({Method.PCA, Method.PCA_CENTRED, Method.LOGISTIC, Method.CCS, Method.ACTADD})
"""These compare each text with its partner; the others compare two crowds."""

ERASERS = frozenset({Method.LEACE, Method.ERASE_MEAN})

PARAMETERS: Mapping[Method, frozenset[str]] = {
    Method.LOGISTIC: frozenset({"c"}),
    Method.LAT: frozenset({"seed", "rounds"}),
    Method.CCS: frozenset({"seed", "restarts", "penalty", "labels"}),
    Method.REFUSAL: frozenset({"induce_min", "kl_nats_max", "depth_max", "first_words"}),
}
"""Names of the parameters a method knows; one that is not listed knows none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Params:
    """All parameters with their defaults; the functions of the methods say what they mean."""

    c: float = 1.0
    seed: int = 0
    rounds: int = 4
    restarts: int = 10
    penalty: float = 0.01
    labels: tuple[bool, ...] | None = None  # of each pair, whether the positive text is the true one


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundDirection:
    """vector: float64 [d_model]; `details` are a method's own numbers."""

    vector: Tensor
    figures: Figures
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundEraser:
    eraser: Eraser
    figures: Figures  # of the mean difference, which is what is erased
    details: Mapping[str, float]


def find_direction(method: Method, sides: Sides, params: Params) -> Generator[float, None, FoundDirection]:
    """Yields the fraction done, 0 where a method cannot tell. Raises DegenerateError."""
    if method is Method.CCS:
        return (yield from _find_probe(sides, params))
    if method is Method.MEAN_DIFFERENCE:
        return _solved(method, sides, params)
    # A decomposition of 25,600 rows (`lat` in 100 rounds) takes seconds: the requests must not wait for it.
    return (yield from aside(lambda: _solved(method, sides, params)))


def find_eraser(method: Method, sides: Sides) -> Generator[float, None, FoundEraser]:
    """Yields 0 until it is found: the covariance of all tokens takes seconds. Raises DegenerateError."""
    assert method in ERASERS, method
    return (yield from aside(lambda: _solved_eraser(method, sides)))


def _solved(method: Method, sides: Sides, params: Params) -> FoundDirection:
    if method is Method.MEAN_DIFFERENCE:
        vector = mean_difference(sides)
    elif method is Method.PCA:
        vector = pca(sides)
    elif method is Method.PCA_CENTRED:
        vector = pca_centred(sides)
    elif method is Method.LOGISTIC:
        vector = logistic(sides, c=params.c)
    else:
        assert method is Method.LAT, method
        vector = lat(sides, seed=params.seed, rounds=params.rounds)
    return FoundDirection(vector=vector, figures=figures(vector, sides))


def _solved_eraser(method: Method, sides: Sides) -> FoundEraser:
    eraser = leace(sides) if method is Method.LEACE else erase_mean(sides)
    return FoundEraser(
        eraser=eraser,
        figures=figures(sides.mean_difference, sides),
        details={"mean_square_displacement": displacement(eraser, sides.everything)},
    )


def _find_probe(sides: Sides, params: Params) -> Generator[float, None, FoundDirection]:
    probe = yield from ccs(sides, seed=params.seed, restarts=params.restarts, penalty=params.penalty)
    details = {"loss": probe.losses[0]}
    if params.labels is None:
        # The sides say yes and no, not true and false: how far apart they are is nothing the probe was after.
        said = figures(probe.direction, sides)
        return FoundDirection(vector=probe.direction, figures=dataclasses.replace(said, d_prime=None), details=details)
    truth = _by_truth(sides, torch.tensor(params.labels))
    vector = towards_positive(probe.direction, truth)
    middle = float(truth.everything.mean(0) @ vector)
    details["accuracy"] = accuracy(vector, truth, threshold=middle)
    return FoundDirection(vector=vector, figures=figures(vector, truth), details=details)


def _by_truth(sides: Sides, positive_is_true: Tensor) -> Sides:
    """The same pairs as (true, false), each side first centred on its mean and moved to the mean of all."""
    middle = sides.everything.mean(0)
    positive = sides.positive - sides.positive.mean(0) + middle
    negative = sides.negative - sides.negative.mean(0) + middle
    which = positive_is_true.unsqueeze(-1)
    true, false = torch.where(which, positive, negative), torch.where(which, negative, positive)
    return Sides(positive=true, negative=false, is_paired=True)

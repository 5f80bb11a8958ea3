"""What a direction says about the activations it was found in, and which way it points.

d′ is the sensitivity index of signal detection. Activations are [rows, d_model]; row i of both sides is a pair where
the sides are as long as each other and the caller says so.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

_NOTHING = 1e-6
"""A difference below this share of the activations' own norm is rounding, not a direction."""


class DegenerateError(ValueError):
    """The activations hold no direction of the kind asked for; the message says why and is fit for the client."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sides:
    """Activations of two sides, float64 [rows, d_model]. `is_paired`: row i of both belongs together."""

    positive: Tensor
    negative: Tensor
    is_paired: bool

    def __post_init__(self) -> None:
        assert self.positive.ndim == self.negative.ndim == 2
        assert self.positive.shape[1] == self.negative.shape[1]
        assert not self.is_paired or self.positive.shape == self.negative.shape

    @property
    def everything(self) -> Tensor:
        """[all rows, d_model], the positive side first."""
        return torch.cat((self.positive, self.negative))

    @property
    def differences(self) -> Tensor:
        """h⁺ − h⁻ of each pair [pairs, d_model]."""
        assert self.is_paired
        return self.positive - self.negative

    @property
    def mean_difference(self) -> Tensor:
        """mean h⁺ − mean h⁻ [d_model]. Raises DegenerateError if it is nothing."""
        difference = self.positive.mean(0) - self.negative.mean(0)
        if float(difference.norm()) <= _NOTHING * self.residual_norm:
            raise DegenerateError("the positive and negative texts have the same activations")
        return difference

    @property
    def residual_norm(self) -> float:
        """Mean ‖h‖ of all activations."""
        return float(self.everything.norm(dim=-1).mean())


def sides(positive: Tensor, negative: Tensor, *, is_paired: bool) -> Sides:
    """As float64, detached from wherever they came from (an inference tensor cannot be optimised over)."""
    return Sides(positive=positive.double().clone(), negative=negative.double().clone(), is_paired=is_paired)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """norm: ‖v‖. The projections are means of h·v/‖v‖. None stands for what a single row or pair cannot say."""

    norm: float
    residual_norm: float  # mean ‖h‖ of all activations used
    mean_pairwise_cosine: float | None  # of the pairs' differences; None for one pair or for sides without pairs
    d_prime: float | None  # separation along the vector; None if no side has a spread
    projection_positive: float
    projection_negative: float
    projection_all: float


def figures(vector: Tensor, sides: Sides) -> Figures:
    """vector [d_model], not zero."""
    vector = vector.double()
    norm = float(vector.norm())
    positive, negative = sides.positive @ vector / norm, sides.negative @ vector / norm
    return Figures(
        norm=norm,
        residual_norm=sides.residual_norm,
        mean_pairwise_cosine=mean_pairwise_cosine(sides.differences) if sides.is_paired else None,
        d_prime=d_prime(positive, negative),
        projection_positive=float(positive.mean()),
        projection_negative=float(negative.mean()),
        projection_all=float(torch.cat((positive, negative)).mean()),
    )


def d_prime(positive: Tensor, negative: Tensor) -> float | None:
    """(mean⁺ − mean⁻) / √((var⁺ + var⁻) / 2) of projections [rows]; None for fewer than two rows or no spread."""
    if min(positive.shape[0], negative.shape[0]) < 2:
        return None
    spread = float(((positive.var() + negative.var()) / 2).sqrt())
    return float(positive.mean() - negative.mean()) / spread if spread > 0 else None


def mean_pairwise_cosine(differences: Tensor) -> float | None:
    """Mean cosine of all pairs of different rows [pairs, d_model]; None for a single one."""
    pairs = differences.shape[0]
    if pairs < 2:
        return None
    unit = differences / differences.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    # The sum over all ordered pairs is ‖Σ u‖²; take off each unit's product with itself.
    total = float(unit.sum(0).square().sum()) - float(unit.square().sum())
    return total / (pairs * (pairs - 1))


def accuracy(vector: Tensor, sides: Sides, *, threshold: float) -> float:
    """Share of rows on their side's side of h·v/‖v‖ = threshold, each side counting half; a tie is half right."""
    unit = vector.double() / float(vector.double().norm())
    above = _share_above(sides.positive @ unit - threshold)
    below = _share_above(threshold - sides.negative @ unit)
    return (above + below) / 2


def towards_positive(vector: Tensor, sides: Sides) -> Tensor:
    """v or −v, by majority vote: of the pairs, whether h⁺ lies further along v than h⁻; without pairs, of all rows,
    whether they lie on their side of the mean. A tie goes to the difference of the means, then to the largest entry.
    """
    if sides.is_paired:
        votes = float((sides.differences @ vector).sign().sum())
    else:
        middle = sides.everything.mean(0) @ vector
        votes = float(
            (sides.positive @ vector - middle).sign().mean() - (sides.negative @ vector - middle).sign().mean()
        )
    if votes == 0:
        votes = float((sides.positive.mean(0) - sides.negative.mean(0)) @ vector)
    if votes == 0:
        votes = float(vector[int(vector.abs().argmax())])
    return vector if votes > 0 else -vector


def _share_above(values: Tensor) -> float:
    return float((values.sign() + 1).mean() / 2)

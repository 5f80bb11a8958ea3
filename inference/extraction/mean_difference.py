"""The mean difference of paired activations, and the figures that say whether it is worth anything.

Source: Panickssery et al. 2312.06681 (contrastive activation addition); d′ is the sensitivity index of signal
detection.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanDifference:
    """vector: float32 [d_model], not normalised: scale 1 moves the average negative onto the average positive."""

    vector: Tensor
    norm: float
    residual_norm: float  # mean ‖h‖ of all activations used
    mean_pairwise_cosine: float | None  # of the differences; None for a single pair
    d_prime: float | None  # separation along the vector; None if a class has no spread


class DegenerateError(ValueError):
    """The two sides do not differ; no direction exists."""


def mean_difference(positive: Tensor, negative: Tensor) -> MeanDifference:
    """positive, negative: [pairs, d_model]. Sums run in float64. Raises DegenerateError."""
    assert positive.shape == negative.shape
    positive, negative = positive.double(), negative.double()
    differences = positive - negative  # [pairs, d_model]
    vector = differences.mean(0)
    norm = float(vector.norm())
    if norm < 1e-6 * float(positive.norm(dim=-1).mean()):
        raise DegenerateError("the positive and negative texts have the same activations")
    direction = vector / norm
    return MeanDifference(
        vector=vector.float(),
        norm=norm,
        residual_norm=float(torch.cat((positive, negative)).norm(dim=-1).mean()),
        mean_pairwise_cosine=_mean_pairwise_cosine(differences),
        d_prime=_d_prime(positive @ direction, negative @ direction),
    )


def _mean_pairwise_cosine(differences: Tensor) -> float | None:
    pairs = differences.shape[0]
    if pairs < 2:
        return None
    unit = differences / differences.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    # The sum over all ordered pairs is ‖Σ u‖²; take off each unit's product with itself.
    total = float(unit.sum(0).square().sum()) - float(unit.square().sum())
    return total / (pairs * (pairs - 1))


def _d_prime(positive: Tensor, negative: Tensor) -> float | None:
    """(mean⁺ − mean⁻) / √((var⁺ + var⁻) / 2) of projections [pairs]."""
    if positive.shape[0] < 2:
        return None
    spread = float(((positive.var() + negative.var()) / 2).sqrt())
    return float(positive.mean() - negative.mean()) / spread if spread > 0 else None

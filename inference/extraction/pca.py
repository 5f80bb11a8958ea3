"""The direction in which the differences of the pairs are largest: with their mean left in, or taken out.

Uncentred, the mean difference dominates and the two nearly agree. Centred, it is what pairs differ in *from each
other*: another direction, and often not the one that was meant. Source: Zou et al. 2310.01405; repeng does the first
under the name pca_diff.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.extraction.statistics import DegenerateError, Sides, towards_positive

_NOTHING = 1e-9
"""A singular value below this share of the activations' norm is rounding."""


def pca(sides: Sides) -> Tensor:
    """First right singular vector of h⁺ − h⁻ [pairs, d_model], a unit vector, sign by majority. Raises DegenerateError."""
    return towards_positive(first_component(sides.differences, sides.residual_norm), sides)


def pca_centred(sides: Sides) -> Tensor:
    """The same of the differences less their mean; needs two pairs that differ differently. Raises DegenerateError."""
    differences = sides.differences
    if differences.shape[0] < 2:
        raise DegenerateError("a centred principal component needs at least two pairs")
    return towards_positive(first_component(differences - differences.mean(0), sides.residual_norm), sides)


def first_component(rows: Tensor, size: float) -> Tensor:
    """Unit vector [d_model] along which rows [n, d_model] have the largest sum of squares; `size` says what nothing is."""
    _, strengths, directions = torch.linalg.svd(rows, full_matrices=False)
    if float(strengths[0]) <= _NOTHING * size * rows.shape[0] ** 0.5:
        raise DegenerateError("the differences of the pairs are all the same, or nothing")
    component: Tensor = directions[0]
    return component

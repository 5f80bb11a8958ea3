"""The coefficient of a logistic regression that tells the sides apart: what separates best, not what differs most.

Activations are centred on their pair's middle, so that what a pair has in common (its question) plays no part; by
symmetry there is no intercept. The objective is scikit-learn's: ½‖w‖² + C Σ log(1 + exp(−y w·x)).
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.extraction.statistics import DegenerateError, Sides

_STEPS_MAX = 100
"""Newton takes about ten steps; each halves at most sixty times."""
_HALVINGS_MAX = 60
_GRADIENT_MAX = 1e-9
"""Size of the gradient, relative to the one at zero, at which the minimum is found."""


def logistic(sides: Sides, *, c: float = 1.0) -> Tensor:
    """Unit vector [d_model]. `c` > 0 is the inverse strength of the penalty. Raises DegenerateError."""
    # Both rows of a pair, ±(h⁺ − h⁻)/2, give the same term: one row, counted twice.
    rows = sides.differences / 2
    left, strengths, right = torch.linalg.svd(rows, full_matrices=False)
    if float(strengths[0]) <= 1e-9 * sides.residual_norm:
        raise DegenerateError("the positive and negative texts have the same activations")
    # w lies in the span of the rows, and ‖w‖ is the same in the coordinates of its singular vectors.
    coordinates = _minimum(left * strengths, 2 * c)  # [min(pairs, d_model)]
    vector = right.T @ coordinates
    if float(vector.norm()) == 0:
        raise DegenerateError("no direction tells the positive texts from the negative ones")
    unit: Tensor = vector / vector.norm()
    return unit


def _minimum(rows: Tensor, weight: float) -> Tensor:
    """The w [k] that minimises ½‖w‖² + weight Σ log(1 + exp(−w·row)): Newton's method with halved steps."""
    w = rows.new_zeros(rows.shape[1])
    start = float(_gradient(rows, weight, w).norm())
    for _ in range(_STEPS_MAX):
        gradient = _gradient(rows, weight, w)
        if float(gradient.norm()) <= _GRADIENT_MAX * start:
            break
        chance = torch.sigmoid(-(rows @ w))
        curvature = torch.eye(rows.shape[1], dtype=rows.dtype) + weight * (rows.T * (chance * (1 - chance))) @ rows
        step = torch.linalg.solve(curvature, gradient)
        w = _descended(rows, weight, w, step, slope=float(step @ gradient))
    return w


def _descended(rows: Tensor, weight: float, w: Tensor, step: Tensor, *, slope: float) -> Tensor:
    value = _objective(rows, weight, w)
    size = 1.0
    for _ in range(_HALVINGS_MAX):
        if _objective(rows, weight, w - size * step) <= value - 1e-4 * size * slope:
            break
        size /= 2
    return w - size * step


def _objective(rows: Tensor, weight: float, w: Tensor) -> float:
    return float(w @ w / 2 + weight * torch.nn.functional.softplus(-(rows @ w)).sum())


def _gradient(rows: Tensor, weight: float, w: Tensor) -> Tensor:
    return w - weight * rows.T @ torch.sigmoid(-(rows @ w))

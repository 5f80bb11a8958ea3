"""Affine maps after which no linear probe tells the sides apart: by mean projection, or moving points least (LEACE).

Both are x ↦ x − write·(read·(x − mean)) with read·write = 1 and write along Σxz (the difference of the sides' means,
weighed by how many rows each has): the covariance of the result with the side is exactly zero, and the map twice is
the map once. The mean projection reads along the same line. LEACE, x − W⁺ P_{WΣxz} W (x − mean) with W = (Σxx^½)⁺,
reads along Σxx⁻¹ Σxz: for one concept with two values its matrices shrink to these two vectors. Source: Belrose et al.
2306.03819, theorem 4.3.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from inference.extraction.statistics import Sides


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eraser:
    """x ↦ x − write·(read·(x − mean)), all float64 [d_model]."""

    read: Tensor
    write: Tensor
    mean: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """rows [n, d_model] → [n, d_model]."""
        return rows - torch.outer((rows - self.mean) @ self.read, self.write)


def erase_mean(sides: Sides) -> Eraser:
    """The orthogonal projection along the difference of the means, through the mean of all. Raises DegenerateError."""
    direction = sides.mean_difference
    unit = direction / direction.norm()
    return Eraser(read=unit, write=unit, mean=sides.everything.mean(0))


def leace(sides: Sides) -> Eraser:
    """Least-squares concept erasure with a shrunk covariance (see `shrinkage`). Raises DegenerateError."""
    direction = sides.mean_difference
    unit = direction / direction.norm()
    rows = sides.everything
    mean = rows.mean(0)
    read = _solved(rows - mean, unit)
    return Eraser(read=read / float(read @ unit), write=unit, mean=mean)


def shrinkage(centred: Tensor) -> tuple[float, float]:
    """(a, b): the covariance of centred rows [n, d] is estimated as a·S + b·I, with S = XᵀX/n.

    The optimal linear shrinkage for many dimensions (Bodnar et al. 1308.2608), a kept in 0..1: with few rows, S says
    nothing about directions in which it happens to be flat, and its inverse would say everything.
    """
    n, d = centred.shape
    gram = centred @ centred.T if n < d else centred.T @ centred
    trace, square = float(gram.trace()) / n, float(gram.square().sum()) / n**2
    spread = square - trace**2 / d  # ‖S − (tr S / d) I‖²
    noise = trace**2 / n
    a = min(1.0, max(0.0, 1 - noise / spread)) if spread > 0 else 0.0
    return a, (1 - a) * trace / d


def displacement(eraser: Eraser, rows: Tensor) -> float:
    """Mean ‖r(x) − x‖² of rows [n, d_model]: what an eraser costs."""
    return float((eraser(rows) - rows).square().sum(-1).mean())


def _solved(centred: Tensor, target: Tensor) -> Tensor:
    """(a·S + b·I)⁻¹ target through whichever Gram matrix is smaller (Woodbury's identity); b > 0 since n is finite."""
    n, d = centred.shape
    a, b = shrinkage(centred)
    if n >= d:
        covariance = centred.T @ centred * (a / n)
        covariance.diagonal().add_(b)
        solved: Tensor = torch.linalg.solve(covariance, target)
        return solved
    gram = centred @ centred.T * (a / n)
    gram.diagonal().add_(b)
    inner: Tensor = torch.linalg.solve(gram, centred @ target)
    return (target - centred.T @ inner * (a / n)) / b

"""Contrast-consistent search: a probe whose answers to a statement and to its negation add up to one, without labels.

Row i of the positive side is a statement completed with yes, row i of the negative side with no. Each side is centred
on its own mean, so that the probe cannot read off which word was said; what is left of the difference is whether the
completed statement is true. p = σ(θ·x + b), loss = mean (p⁺ + p⁻ − 1)² + mean min(p⁺, p⁻)² + penalty ‖θ‖². Source:
Burns et al. 2212.03827. The penalty is ours: with fewer pairs than dimensions some probe fits anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator

import torch
from torch import Tensor

from inference.extraction.statistics import DegenerateError, Sides

_ITERATIONS_MAX = 200
"""L-BFGS converges in a few dozen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """direction: unit vector [d_model]; `losses` of all restarts, the chosen one first."""

    direction: Tensor
    losses: tuple[float, ...]


def ccs(sides: Sides, *, seed: int = 0, restarts: int = 10, penalty: float = 0.01) -> Generator[float, None, Probe]:
    """The probe of least loss among seeded restarts; yields the fraction done after each, about 30 ms.

    Its sign is arbitrary, since nothing here knows what is true: the largest entry is made positive, so that the answer
    is one answer. Raises DegenerateError.
    """
    if sides.positive.shape[0] < 2:
        raise DegenerateError("contrast-consistent search needs at least two pairs")
    centred = torch.cat([side - side.mean(0) for side in (sides.positive, sides.negative)])
    _, strengths, basis = torch.linalg.svd(centred, full_matrices=False)
    if float(strengths[0]) <= 1e-9 * sides.residual_norm:
        raise DegenerateError("all texts of a side have the same activations")
    basis = basis[strengths > 1e-9 * strengths[0]]  # [k, d_model]
    coordinates = centred @ basis.T
    coordinates = coordinates / coordinates.square().mean().sqrt()
    generator = torch.Generator().manual_seed(seed)
    fits: list[tuple[float, Tensor]] = []
    for restart in range(1, restarts + 1):
        fits.append(_fit(*coordinates.chunk(2), generator=generator, penalty=penalty))
        yield restart / restarts
    fits.sort(key=lambda fit: fit[0])
    direction = fits[0][1] @ basis
    if float(direction.norm()) == 0:
        raise DegenerateError("no probe is both consistent and confident")
    direction = direction / direction.norm()
    largest = direction[int(direction.abs().argmax())]
    return Probe(direction=direction * largest.sign(), losses=tuple(loss for loss, _ in fits))


def _fit(yes: Tensor, no: Tensor, *, generator: torch.Generator, penalty: float) -> tuple[float, Tensor]:
    """yes, no: [pairs, k] → (loss, θ [k])."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        start = torch.randn(yes.shape[1], generator=generator, dtype=torch.float64)
        theta = (start / start.norm()).requires_grad_()
        bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS([theta, bias], max_iter=_ITERATIONS_MAX, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            p_yes, p_no = torch.sigmoid(yes @ theta + bias), torch.sigmoid(no @ theta + bias)
            inconsistency = (p_yes + p_no - 1).square().mean()
            total: Tensor = inconsistency + torch.minimum(p_yes, p_no).square().mean() + penalty * theta.square().sum()
            return total

        def closure() -> Tensor:
            search.zero_grad()
            value = loss()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        search.step(closure)  # type: ignore[no-untyped-call]
        return float(loss().detach()), theta.detach()

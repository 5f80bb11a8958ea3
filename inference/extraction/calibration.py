"""The scale at which steering diverges from the plain model by a given amount: a bracket, then halving.

The divergence starts at 0 with scale 0 and grows about with the square, so each guess is an interpolation in
logarithms; every second one inside a bracket halves it, so that a curve with steps cannot stall the search. Where the
curve is not monotone the scale found is one of those with the right divergence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator

EVALUATIONS_MAX = 32
"""A bracket of factor 4 is a two-hundredth of itself after eight halvings; the rest is room for finding it."""
_GROWTH_MAX = 4.0
"""A step out of the known range multiplies the scale by at most this: far outside the model falls apart."""


class UnreachableError(Exception):
    """No scale within the bounds has the divergence asked for; the message says what was found instead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """`kl_nats` at `scale`, within the tolerance of the target."""

    scale: float
    kl_nats: float
    evaluations: int


def search(*, target_nats: float, tolerance: float, scale_max: float) -> Generator[float, float, Found]:
    """Yields scales in (0, scale_max] to be measured, takes the divergence of each. Raises UnreachableError.

    `tolerance` is relative to the target. A divergence that is not a number counts as too large.
    """
    low, high = (0.0, 0.0), (math.inf, math.inf)  # (scale, divergence)
    scale = min(1.0, scale_max)
    for evaluation in range(1, EVALUATIONS_MAX + 1):
        kl = yield scale
        if abs(kl - target_nats) <= tolerance * target_nats:
            return Found(scale=scale, kl_nats=kl, evaluations=evaluation)
        if kl < target_nats:
            if scale >= scale_max:
                raise UnreachableError(f"at the largest scale, {scale:.6g}, the divergence is {kl:.4g} nats")
            low = (scale, kl)
        else:
            high = (scale, kl if math.isfinite(kl) else math.inf)
        scale = min(_next(low, high, target_nats, halve=evaluation % 2 == 0), scale_max)
    found = f"{low[1]:.4g} nats at {low[0]:.6g} and {high[1]:.4g} at {high[0]:.6g}"
    raise UnreachableError(f"after {EVALUATIONS_MAX} evaluations the divergence is still {found}")


def _next(low: tuple[float, float], high: tuple[float, float], target: float, *, halve: bool) -> float:
    if math.isinf(high[0]):
        growth = math.sqrt(target / low[1]) if low[1] > 0 else _GROWTH_MAX
        return low[0] * min(max(growth * 1.05, 1.2), _GROWTH_MAX)  # a little too far, so that it brackets
    if low[0] == 0:
        shrinking = math.sqrt(target / high[1])
        return high[0] * max(min(shrinking * 0.95, 1 / 1.2), 1 / _GROWTH_MAX)
    width = math.log(high[0] / low[0])
    part = 0.5
    if not halve and math.isfinite(high[1]) and low[1] > 0:
        part = math.log(target / low[1]) / math.log(high[1] / low[1])
    return low[0] * math.exp(width * min(max(part, 0.02), 0.98))

"""A spec at a fraction or multiple of its strength: 1 is the spec as it is, 0 the plain model.

Operations whose scale multiplies a change (`add`, `ablate`, `head_add`, `sae` in mode add) are scaled with it. Those
whose scale is a factor with 1 for no change (`scale_projection`, `sae` in mode scale) go from 1 to their scale. The
others have no strength: they are left out at 0 and otherwise stay as they are.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from inference.limits import SCALE_ABS_MAX
from inference.steering.spec import SteeringSpec, VectorUse

_LINEAR = frozenset({"add", "ablate", "head_add"})
_FACTOR = frozenset({"scale_projection"})


def at_strength(spec: SteeringSpec, strength: float) -> SteeringSpec:
    """The same operations in the same order; see above."""
    vectors: list[VectorUse] = []
    for use in spec.vectors:
        neutral = _neutral(use)
        if neutral is not None:
            vectors.append(msgspec.structs.replace(use, scale=neutral + strength * (_scale(use) - neutral)))
        elif strength != 0:
            vectors.append(use)
    return msgspec.structs.replace(spec, vectors=vectors)


def strength_max(spec: SteeringSpec) -> float | None:
    """The largest strength at which no scale is beyond ±`SCALE_ABS_MAX`; None if no operation has a strength."""
    reach = [(neutral, abs(_scale(use) - neutral)) for use in spec.vectors if (neutral := _neutral(use)) is not None]
    bounds = [(SCALE_ABS_MAX - neutral) / distance for neutral, distance in reach if distance > 0]
    return min(bounds, default=None)


def _neutral(use: VectorUse) -> float | None:
    """The scale at which an operation does nothing; None for one without such a scale."""
    mode = (use.params or {}).get("mode") if use.op == "sae" else None
    if use.op in _LINEAR or mode == "add":
        return 0.0
    return 1.0 if use.op in _FACTOR or mode == "scale" else None


def _scale(use: VectorUse) -> float:
    return 1.0 if use.scale is UNSET else use.scale

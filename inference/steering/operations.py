"""The interventions as their papers write them: one plain function each, on rows h [..., width].

Nothing is batched, clever or fast here. The kernels that the engine runs are held to these functions by the tests.
`u` is a unit vector; c, a, m, k, s are numbers. Sources are in `docs/inference.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def add(h: Tensor, v: Tensor, c: float) -> Tensor:
    """Activation addition (ActAdd, CAA)."""
    return h + c * v


def add_keeping_norm(h: Tensor, v: Tensor, c: float) -> Tensor:
    """`add`, rescaled to the length that h had."""
    moved = h + c * v
    return moved * (_length(h) / _length(moved))


def ablate(h: Tensor, directions: Sequence[Tensor], a: float) -> Tensor:
    """h − a·(h·u)u for every u of an orthonormal basis of the directions' span (Arditi et al.)."""
    for u in orthonormal(directions):
        h = h - a * _dot(h, u) * u
    return h


def set_projection(h: Tensor, v: Tensor, m: float) -> Tensor:
    """The component along v becomes m (Arditi et al., set to the average expression)."""
    u = v / _length(v)
    return h - _dot(h, u) * u + m * u


def scale_projection(h: Tensor, v: Tensor, c: float) -> Tensor:
    """The component along v is multiplied by c."""
    u = v / _length(v)
    return h + (c - 1) * _dot(h, u) * u


def cap(h: Tensor, v: Tensor, low: float, high: float) -> Tensor:
    """The component along v is brought into [low, high]."""
    u = v / _length(v)
    x = _dot(h, u)
    return h + (x.clamp(low, high) - x) * u


def replace(h: Tensor, v1: Tensor, v2: Tensor) -> Tensor:
    """As much v2 as there was v1 (EasySteer)."""
    return h + _dot(h, v1) / _length(v1) ** 2 * (v2 - v1)


def erase(h: Tensor, read: Tensor, write: Tensor, mean: Tensor) -> Tensor:
    """The affine rank-one eraser of both mean projection and LEACE (Belrose et al.)."""
    return h - _dot(h - mean, read) * write


def rotate(h: Tensor, v1: Tensor, v2: Tensor, degrees: float) -> Tensor:
    """Angular steering: the part of h in the plane of v1 and v2 is turned to `degrees` from v1, its length kept."""
    b1, b2 = orthonormal([v1, v2])
    x, y = _dot(h, b1), _dot(h, b2)
    radians = math.radians(degrees)
    return h - x * b1 - y * b2 + torch.hypot(x, y) * (math.cos(radians) * b1 + math.sin(radians) * b2)


def sae_features(h: Tensor, encoder: Tensor, bias: Tensor, *, threshold: Tensor | None, k: int | None) -> Tensor:
    """enc(h) [..., features]: ReLU, JumpReLU where there are thresholds, the k largest of ReLU where there is a k."""
    z = h @ encoder.T + bias
    z = torch.relu(z) if threshold is None else torch.where(z > threshold, z, 0.0)
    if k is None:
        return z
    largest = z.topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, largest.indices, largest.values)


def sae_add(h: Tensor, d: Tensor, c: float) -> Tensor:
    """With e = h − dec(z): dec(z + c·feature) + e, which is h + c·d."""
    return h + c * d


def sae_pin(h: Tensor, z: Tensor, d: Tensor, k: float) -> Tensor:
    """The feature's activation z [..., 1] becomes k."""
    return h + (k - z) * d


def sae_scale(h: Tensor, z: Tensor, d: Tensor, s: float) -> Tensor:
    """The feature's activation z [..., 1] becomes s·z."""
    return h + (s - 1) * z * d


def head_add(o: Tensor, directions: Tensor, alpha: float) -> Tensor:
    """o [..., n_heads, d_head] + α·σθ of each head (ITI); heads left out have zero rows."""
    return o + alpha * directions


def orthonormal(directions: Sequence[Tensor]) -> list[Tensor]:
    """Gram-Schmidt, in the order given."""
    basis: list[Tensor] = []
    for v in directions:
        rest = v / _length(v)
        for _ in range(2):  # once more: what rounding left of the others (Kahan's "twice is enough")
            for u in basis:
                rest = rest - (rest @ u) * u
        basis.append(rest / _length(rest))
    return basis


def _dot(h: Tensor, v: Tensor) -> Tensor:
    return (h * v).sum(-1, keepdim=True)


def _length(v: Tensor) -> Tensor:
    """[..., width] → [..., 1]."""
    length: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return length

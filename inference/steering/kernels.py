"""The operations as the forward pass runs them: five kernels over many rows, each row with its own numbers.

A kernel turns rows h [n, width], float32, into what is to be added to them. `operations.py` has the formulas of the
operations; `compile.py` says which kernel does which, and the tests hold one to the other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Change = Callable[[Tensor], Tensor]
"""h [n, width] float32 → h′ − h, the same shape."""

_TINY = 1e-30  # in place of a norm that is zero: 0 / _TINY is 0, where 0 / 0 would be NaN


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Add:
    """h + vector; `keeps_norm` rescales the sum to ‖h‖.

    vectors [m, width]: one for all tokens, or (m > 1) one for each position of the sequence from `first` on.
    """

    vectors: Tensor
    first: int = 0
    keeps_norm: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Affine:
    """h + (clip(slope·x + offset, low, high) − x)·write, where x = h·read + bias, or 0 if that is not over `threshold`.

    read, write [d_model].
    """

    read: Tensor
    write: Tensor
    bias: float = 0.0
    threshold: float = -math.inf
    slope: float = 1.0
    offset: float = 0.0
    low: float = -math.inf
    high: float = math.inf


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rotate:
    """h − Ph + ‖Ph‖·target, P the projection on the plane of the orthonormal `first`, `second`; all [d_model]."""

    first: Tensor
    second: Tensor
    cosine: float
    sine: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TopFeature:
    """h + (slope·z + offset − z)·write, z being feature `feature` of relu(h encoderᵀ + bias) if it is one of the k largest.

    encoder [features, d_model], bias [features], write [d_model].
    """

    encoder: Tensor
    bias: Tensor
    feature: int
    k: int
    write: Tensor
    slope: float
    offset: float

    @functools.cached_property
    def _placed(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def encoder_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """encoder and bias, moved once and not for every step."""
        if device not in self._placed:
            self._placed[device] = (self.encoder.to(device), self.bias.to(device))
        return self._placed[device]


Kernel = Add | Affine | Rotate | TopFeature


class Part(NamedTuple):
    """One operation for some rows: the absolute positions of their tokens, in the order of the rows."""

    kernel: Kernel
    positions: NDArray[np.int64]


def family(kernel: Kernel) -> str:
    """Kernels of one family can be stacked."""
    return "add, keeping the norm" if isinstance(kernel, Add) and kernel.keeps_norm else type(kernel).__name__


def stacked(parts: Sequence[Part], device: torch.device) -> Change:
    """One change for the rows of all parts, one behind the other. The parts are of one family."""
    assert len({family(part.kernel) for part in parts}) == 1
    kernel = parts[0].kernel
    if isinstance(kernel, Add):
        vectors = added(parts).to(device)
        return _rescaled_sum(vectors) if kernel.keeps_norm else vectors.expand_as
    return {Affine: _affine, Rotate: _rotate, TopFeature: _top_features}[type(kernel)](parts, device)


def is_plain_addition(part: Part) -> bool:
    """Whether what is added does not depend on h."""
    return isinstance(part.kernel, Add) and not part.kernel.keeps_norm


def added(parts: Sequence[Part]) -> Tensor:
    """What parts of the kind `Add` add: [rows, width], or [1, width] if that is the same for all rows."""
    return _column([_vectors(part) for part in parts], parts)


def _vectors(part: Part) -> Tensor:
    assert isinstance(part.kernel, Add)
    vectors = part.kernel.vectors
    if vectors.shape[0] == 1:
        return vectors
    return vectors[torch.from_numpy(part.positions) - part.kernel.first]


def _column(blocks: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
    """A part's block [1 or rows, width] each, one under the other; if one is the same for all rows it stays one row."""
    if len(blocks) == 1:
        return blocks[0]
    sizes = [len(part.positions) for part in parts]
    if max(sizes) > 1:
        blocks = [block.expand(rows, -1) for block, rows in zip(blocks, sizes, strict=True)]
    return torch.cat(list(blocks))


def _rescaled_sum(vectors: Tensor) -> Change:
    def change(h: Tensor) -> Tensor:
        moved = h + vectors
        scale = _norm(h) / _norm(moved).clamp_min_(_TINY)
        return moved.mul_(scale).sub_(h)

    return change


def _affine(parts: Sequence[Part], device: torch.device) -> Change:
    kernels = [part.kernel for part in parts if isinstance(part.kernel, Affine)]
    read = _column([kernel.read.unsqueeze(0) for kernel in kernels], parts).to(device)
    write = _column([kernel.write.unsqueeze(0) for kernel in kernels], parts).to(device)
    rows = torch.tensor([(k.bias, k.threshold, k.slope, k.offset, k.low, k.high) for k in kernels])
    numbers = _column(list(rows.unsqueeze(1)), parts).to(device)
    bias, threshold, slope, offset, low, high = numbers.unsqueeze(-1).unbind(1)  # each [1 or n, 1]
    has_threshold = any(k.threshold > -math.inf for k in kernels)
    has_bounds = any(k.low > -math.inf or k.high < math.inf for k in kernels)

    def change(h: Tensor) -> Tensor:
        x = (h * read).sum(-1, keepdim=True).add_(bias)
        if has_threshold:
            x = torch.where(x > threshold, x, 0.0)
        wanted = (x * slope).add_(offset)
        if has_bounds:
            wanted = wanted.clamp_(low, high)
        return wanted.sub_(x) * write

    return change


def _rotate(parts: Sequence[Part], device: torch.device) -> Change:
    kernels = [part.kernel for part in parts if isinstance(part.kernel, Rotate)]
    first = _column([kernel.first.unsqueeze(0) for kernel in kernels], parts).to(device)
    second = _column([kernel.second.unsqueeze(0) for kernel in kernels], parts).to(device)
    angles = _column([torch.tensor([[kernel.cosine, kernel.sine]]) for kernel in kernels], parts).to(device)
    cosine, sine = angles.unsqueeze(-1).unbind(1)  # each [1 or n, 1]

    def change(h: Tensor) -> Tensor:
        x, y = (h * first).sum(-1, keepdim=True), (h * second).sum(-1, keepdim=True)
        radius = torch.hypot(x, y)
        return (radius * cosine - x) * first + (radius * sine - y) * second

    return change


def _top_features(parts: Sequence[Part], device: torch.device) -> Change:
    pieces = [(part.kernel, len(part.positions)) for part in parts if isinstance(part.kernel, TopFeature)]
    sizes = [rows for _, rows in pieces]
    writes = [kernel.write.to(device) for kernel, _ in pieces]

    def change(h: Tensor) -> Tensor:
        changes = []
        for (kernel, _), write, rows in zip(pieces, writes, torch.split(h, sizes), strict=True):
            encoder, bias = kernel.encoder_on(device)
            features = torch.relu(rows @ encoder.T + bias)  # [rows, features]
            least = features.topk(kernel.k, dim=-1).values[:, -1:]
            own = features[:, kernel.feature : kernel.feature + 1]
            z = torch.where(own >= least, own, 0.0)
            changes.append((z * kernel.slope + kernel.offset - z) * write)
        return torch.cat(changes)

    return change


def _norm(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norms

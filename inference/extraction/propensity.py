"""How much likelier steering makes one kind of answer than another: curve, per-sample slopes, and symmetry.

The propensity of a sample is a log-odds in nats: of target words at the next token, or of one whole answer against
another. Steerability is the slope of a sample's propensity over the scale; means hide that steering often works
backwards for a share of samples. Source: Tan et al. 2407.12404.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steerability:
    """Of the samples' slopes, in nats per unit of scale. `sd` is 0 for a single sample."""

    mean: float
    sd: float
    share_negative: float


def log_odds(logits: Tensor, positive_ids: Sequence[int], negative_ids: Sequence[int]) -> Tensor:
    """log p(any of positive_ids) − log p(any of negative_ids): logits [rows, vocab_size] → float64 [rows]."""
    wide = logits.double()
    return wide[:, list(positive_ids)].logsumexp(-1) - wide[:, list(negative_ids)].logsumexp(-1)


def steerability(scales: Sequence[float], propensities: Tensor) -> Steerability | None:
    """propensities [scales, samples]. None unless there are two different scales."""
    x = torch.tensor(scales, dtype=torch.float64)
    x = x - x.mean()
    if float(x.square().sum()) == 0:
        return None
    slopes = (x @ propensities.double()) / x.square().sum()  # least squares, [samples]
    return Steerability(
        mean=float(slopes.mean()),
        sd=float(slopes.std()) if slopes.shape[0] > 1 else 0.0,
        share_negative=float((slopes < 0).double().mean()),
    )


def sign_symmetry(scales: Sequence[float], means: Sequence[float]) -> float | None:
    """1: −s does the opposite of s. 0: one of them does nothing, or both the same. None without 0 and such a pair.

    1 − Σ|Δ(s) + Δ(−s)| / Σ(|Δ(s)| + |Δ(−s)|) over the pairs, Δ being the change from scale 0.
    """
    at = dict(zip(scales, means, strict=True))
    pairs = [(at[s] - at[0], at[-s] - at[0]) for s in at if s > 0 and -s in at] if 0 in at else []
    size = sum(abs(up) + abs(down) for up, down in pairs)
    return 1 - sum(abs(up + down) for up, down in pairs) / size if size > 0 else None

"""How far a steered model's next-token distributions are from the plain model's, and how well it predicts given tokens.

Everything is in nats, from float32 logits widened to float64. The divergence is KL(plain ‖ steered): what it costs to
predict the plain model's words with the steered one, and the direction Arditi et al. (2406.11717) use.
"""

from __future__ import annotations

import math

from torch import Tensor


def kl_nats(plain: Tensor, steered: Tensor) -> Tensor:
    """KL(plain ‖ steered) of each row of logits [rows, vocab_size] → float64 [rows]; exactly 0 where they are equal."""
    log_plain, log_steered = plain.double().log_softmax(-1), steered.double().log_softmax(-1)
    # Below zero only by rounding.
    return (log_plain.exp() * (log_plain - log_steered)).sum(-1).clamp_min(0)


def token_nats(logits: Tensor, token_ids: Tensor) -> Tensor:
    """−log p of token_ids [rows] under logits [rows, vocab_size] → float64 [rows]."""
    return -logits.double().log_softmax(-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def quantile(values: Tensor, share: float) -> float:
    """The value [n ≥ 1] below which `share` of them lie, with linear interpolation."""
    ordered = values.sort().values
    place = share * (ordered.shape[0] - 1)
    lower, part = math.floor(place), place - math.floor(place)
    upper = min(lower + 1, ordered.shape[0] - 1)
    return float(ordered[lower]) * (1 - part) + float(ordered[upper]) * part

"""The masses of the next symbol, given logits, and what is added because floating point is not exact."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

RULES_VERSION = 1
"""Raise it when any text under any prompt could get other bits; it is part of the digest."""

END_FLOOR = 2.0**-10
"""Mass that END has everywhere. A text cut off in mid-sentence pays 10 bits for it at most, every token 0.0014."""

ESCAPE_MASS = 2.0**-12
"""Mass of all escapes. It costs a token 0.00035 bits, and an escaped byte 20."""

ESCAPED_BYTE_BITS = 8.0 - math.log2(ESCAPE_MASS)
MODEL_SHARE = 1.0 - END_FLOOR - ESCAPE_MASS

LOGIT_ERROR_MAX = 2.0**-7
"""Bound ε on |logit − reference logit|; the reference of a symbol is what comes before it, run alone in one thread.

Measured with `numerics.py` on 224 texts, most of them junk: 0 for batches and threads; up to 1.7e-3 for what follows in
the text (it moves attention's tiles); up to 4.5e-3 for another attention kernel, which is never used here.
"""

SURCHARGE_BITS = 2 * LOGIT_ERROR_MAX * math.log2(math.e) + 2.0**-20
"""Added for every token and END: logits off by ε move log-softmax by 2ε at most; 2^-20 pays for the float64 sums."""


def token_bits(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Bits of tokens [rows, n] after logits [rows, vocab_size] float32: float64 [rows, n], surcharge not included."""
    nats = torch.logsumexp(logits.double(), dim=-1, keepdim=True) - logits.gather(-1, token_ids).double()
    return nats * math.log2(math.e) - math.log2(MODEL_SHARE)


def end_bits(logits: Tensor, end_ids: Collection[int]) -> Tensor:
    """Bits of END after logits [rows, vocab_size]: float64 [rows], surcharge not included."""
    ends = torch.softmax(logits.double(), dim=-1)[:, sorted(end_ids)].sum(-1)
    return -torch.log2(MODEL_SHARE * ends + END_FLOOR)


def charge_bits(*, modelled: list[float], escapes: int) -> int:
    """Whole bits to charge for the modelled symbols (END among them) and the escaped bytes of one text.

    Raises ArithmeticError if a number is none: no text is cheap because the model broke down.
    """
    bits = math.fsum(modelled) + SURCHARGE_BITS * len(modelled) + ESCAPED_BYTE_BITS * escapes
    if not math.isfinite(bits):
        raise ArithmeticError("the model's logits are not finite")
    return math.ceil(bits)

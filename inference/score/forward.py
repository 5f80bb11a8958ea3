"""The model over a batch of windows: bits of every symbol it is asked about, in bounded memory.

Windows lie one behind the other in a flat batch and attention runs per window, so there is no padding to mask.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from inference.kv import KvCache
from inference.model import Model, Span
from inference.score.measure import end_bits, token_bits
from inference.score.windows import Window

_HEAD_ROWS = 64
"""Positions whose logits exist at a time: 13 MB of SmolLM2's, and twice that in float64. More were slower (cache)."""

_END = -1  # in place of a token id: what follows the last token


def modelled_bits(
    model: Model, stretches: Sequence[tuple[Sequence[int], Window]], end_ids: Collection[int]
) -> list[list[float]]:
    """For each (sequence, window): bits of what follows each row of the window, END after the sequence's last token."""
    flat = torch.tensor([i for ids, window in stretches for i in ids[window.start : window.end]], device=model.device)
    rows, targets = _questions(stretches)
    hidden = model.hidden(flat, [_span(model, window.tokens) for _, window in stretches])[rows.to(model.device)]
    bits = [part for i in range(0, len(rows), _HEAD_ROWS) for part in _bits(model, hidden, targets, i, end_ids)]
    counts = iter(bits)
    return [[next(counts) for _ in range(window.first_row, window.end)] for _, window in stretches]


@torch.inference_mode()
def _bits(model: Model, hidden: Tensor, targets: Tensor, first: int, end_ids: Collection[int]) -> Iterator[float]:
    chosen = slice(first, first + _HEAD_ROWS)
    logits = model.head(hidden[chosen])
    wanted = targets[chosen].to(model.device)
    bits = token_bits(logits, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    is_end = wanted == _END
    if bool(is_end.any()):
        bits[is_end] = end_bits(logits[is_end], end_ids)
    return iter(bits.tolist())


def _span(model: Model, tokens: int) -> Span:
    cache = KvCache(model.config, capacity=tokens, dtype=model.dtype, device=model.device, layers_share=True)
    return Span(cache, tokens)


def _questions(stretches: Sequence[tuple[Sequence[int], Window]]) -> tuple[Tensor, Tensor]:
    """Rows of the flat batch whose next symbol is asked for, and the symbols: token ids or _END."""
    rows: list[int] = []
    targets: list[int] = []
    before = 0
    for ids, window in stretches:
        rows.extend(range(before + window.first_row - window.start, before + window.tokens))
        targets.extend(ids[window.first_row + 1 : window.end + 1])
        if window.end == len(ids):
            targets.append(_END)
        before += window.tokens
    return torch.tensor(rows), torch.tensor(targets)

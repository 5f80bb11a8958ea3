"""The keys and values one sequence has seen so far. One owner: dropping it returns the memory."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.config import ModelConfig


class KvCache:
    """Memory for `capacity` tokens of one sequence, allocated once. `length` tokens of it are valid.

    keys, values: [n_layers, n_kv_heads, capacity, d_head]. Untouched pages cost nothing on the CPU.
    """

    __slots__ = ("capacity", "keys", "length", "values")

    def __init__(self, config: ModelConfig, *, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.n_layers, config.n_kv_heads, capacity, config.d_head)
        self.keys: Tensor = torch.empty(shape, dtype=dtype, device=device)
        self.values: Tensor = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

"""The keys and values one sequence has seen so far. One owner: dropping it returns the memory."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.config import ModelConfig


class KvCache:
    """Memory for `capacity` tokens of one sequence, allocated once. `length` tokens of it are valid.

    keys_values: [n_layers, 2 n_kv_heads, capacity, d_head], keys before values, so that a step writes both at once;
    `keys` and `values` are its halves. Untouched pages cost nothing on the CPU. With
    `layers_share` all layers are the same memory: right for a sequence that is run whole, in one step, and only then,
    since a layer needs none but its own keys and values and nothing is kept for a token after.
    """

    __slots__ = ("capacity", "keys", "keys_values", "length", "values")

    def __init__(
        self,
        config: ModelConfig,
        *,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        layers_share: bool = False,
    ) -> None:
        layers = 1 if layers_share else config.n_layers
        shape = (layers, 2 * config.n_kv_heads, capacity, config.d_head)
        self.keys_values: Tensor = torch.empty(shape, dtype=dtype, device=device).expand(config.n_layers, -1, -1, -1)
        self.keys = self.keys_values[:, : config.n_kv_heads]
        self.values = self.keys_values[:, config.n_kv_heads :]
        self.capacity = capacity
        self.length = 0

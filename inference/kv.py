"""The keys and values one sequence has seen so far. One owner: dropping it returns the memory."""

from __future__ import annotations

import math
import mmap

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
        self.keys_values = key_value_memory(shape, dtype=dtype, device=device).expand(config.n_layers, -1, -1, -1)
        self.keys = self.keys_values[:, : config.n_kv_heads]
        self.values = self.keys_values[:, config.n_kv_heads :]
        self.capacity = capacity
        self.length = 0


def key_value_memory(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory to be written before it is read. Raises OSError or RuntimeError if there is none.

    On the CPU it is a mapping of its own, so that it goes back to the system whole, at once. The allocator would keep
    blocks of this size in its heap, and what had been touched of them in memory: 40 MB more after 850 requests.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    values = math.prod(shape)
    return torch.frombuffer(mmap.mmap(-1, values * dtype.itemsize), dtype=dtype, count=values).view(shape)

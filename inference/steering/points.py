"""The places of a forward pass where activations can be changed, and the hooks that a step hangs there."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Point(enum.Enum):
    """A place in a block. All are [tokens, d_model] but HEAD_OUTPUT: [tokens, n_heads · d_head], heads side by side."""

    BLOCK_INPUT = "block_input"
    HEAD_OUTPUT = "head_output"  # what the heads found, before the output projection
    ATTENTION_OUTPUT = "attention_output"  # what attention adds to the residual stream
    MLP_OUTPUT = "mlp_output"  # what the feed-forward network adds to it
    BLOCK_OUTPUT = "block_output"  # HF hidden_states[layer + 1]


class Site(NamedTuple):
    """One point of one block."""

    layer: int
    point: Point


Hook = Callable[[Tensor], None]
"""Changes the first rows of a tensor [rows, width] in place; rows beyond the step's tokens are padding."""


@dataclasses.dataclass(slots=True)
class LayerHooks:
    """What to call at each point of one block."""

    block_input: Hook | None = None
    head_output: Hook | None = None
    attention_output: Hook | None = None
    mlp_output: Hook | None = None
    block_output: Hook | None = None


class Hooks(Protocol):
    """What `Model` asks before each block."""

    def at(self, layer: int) -> LayerHooks | None:
        """Hooks of block `layer`, or None if nothing happens there."""

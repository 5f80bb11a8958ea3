"""Whether an operation is applied to a sequence at all, read once from its plain prompt: conditional steering.

Source: Lee et al. 2409.05907 (CAST) and its code: the hidden state is averaged over the prompt's tokens (or is that of the
last one), then compared with its own projection on the condition, squashed: cos(h, tanh(proj_c h)). CAST reads block
inputs; here, as everywhere, `layer` is a block output. What is read is the prompt of the plain model, whatever else
the request asks for, so that a decision depends on no other operation.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor


class Comparison(enum.Enum):
    """`ABOVE` is score > threshold and `BELOW` is everything else: flipping selects the exact complement."""

    ABOVE = "above"
    BELOW = "below"


class Reading(enum.Enum):
    """Which hidden state is scored."""

    MEAN = "mean"
    LAST = "last"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """condition: float32 [d_model] on the CPU, any length but zero."""

    condition: Tensor
    layer: int
    comparison: Comparison
    threshold: float
    reading: Reading

    def is_open(self, hidden: Tensor) -> bool:
        """hidden [d_model]: the hidden state that `reading` names."""
        is_above = score(hidden, self.condition) > self.threshold
        return is_above is (self.comparison is Comparison.ABOVE)


def score(hidden: Tensor, condition: Tensor) -> float:
    """cos(h, tanh(proj_c h)) of [d_model] and [d_model], in float64; 0.0 where it has no direction to compare."""
    h, c = hidden.double(), condition.double()
    projected = torch.tanh(c * ((c @ h) / (c @ c)))
    norms = float(h.norm() * projected.norm())
    return float(h @ projected) / norms if norms > 0 else 0.0


class GateReader:
    """Collects what the gates of one sequence need while its plain prompt runs, in pieces of any size."""

    def __init__(self, gates: Sequence[Gate]) -> None:
        assert gates
        self._gates = gates
        self._sums: dict[int, Tensor] = {}  # layer → Σ h over the tokens seen, float64 [d_model]
        self._last: dict[int, Tensor] = {}
        self._tokens = 0

    @property
    def layers(self) -> Collection[int]:
        """Blocks whose outputs `read` needs."""
        return {gate.layer for gate in self._gates}

    def read(self, outputs: Mapping[int, Tensor]) -> None:
        """outputs: layer → [tokens, d_model], the next piece of the prompt."""
        for layer in self.layers:
            total = outputs[layer].double().sum(0)
            self._sums[layer] = self._sums[layer] + total if layer in self._sums else total
            self._last[layer] = outputs[layer][-1]
        self._tokens += len(next(iter(outputs.values())))

    def decide(self) -> tuple[bool, ...]:
        """Once the whole prompt was read: which gates are open, in their order. Waits for the device."""
        means = {layer: (total / self._tokens).cpu() for layer, total in self._sums.items()}
        last = {layer: hidden.cpu() for layer, hidden in self._last.items()}
        hidden = {Reading.MEAN: means, Reading.LAST: last}
        return tuple(gate.is_open(hidden[gate.reading][gate.layer]) for gate in self._gates)

"""Which rows of a step get which vectors added, per layer, and the count of what was really done.

Rows without steering are never touched: rows are gathered, changed and put back by index, nothing is added to anyone
else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledSteering:
    """A request's steering ready for the forward pass: what to add at each block output. Zeros are not in it.

    deltas: block output index → Σ scale·vector, float32 [d_model] on the CPU.
    """

    fingerprint: str
    deltas: Mapping[int, Tensor]


@dataclasses.dataclass(kw_only=True)
class Applied:
    """Counted in the forward pass, per block output: tokens changed, and the sum of their ‖delta‖/‖h‖."""

    prompt_tokens: dict[int, int] = dataclasses.field(default_factory=dict)
    generated_tokens: dict[int, int] = dataclasses.field(default_factory=dict)
    dose_sums: dict[int, float] = dataclasses.field(default_factory=dict)

    def layers(self) -> list[int]:
        return sorted(self.prompt_tokens.keys() | self.generated_tokens.keys())

    def relative_dose(self) -> float:
        """Mean ‖delta‖/‖h‖ over the tokens changed, at the layer where it is largest; 0.0 if nothing was changed."""
        doses = [self.dose_sums[layer] / self._tokens(layer) for layer in self.layers()]
        return max(doses, default=0.0)

    def _tokens(self, layer: int) -> int:
        return self.prompt_tokens.get(layer, 0) + self.generated_tokens.get(layer, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SteeredSpan:
    """A span of a step as the table sees it: its number of tokens, its steering if any, and where to count."""

    count: int
    is_prompt: bool
    steering: CompiledSteering | None
    applied: Applied | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    rows: Tensor  # [n] indices into the step's tokens
    delta: Tensor  # [n, d_model]
    delta_norm: Tensor  # [n], float32
    owners: tuple[SteeredSpan, ...]


class SteeringTable:
    """The additions of one step. Usable for many steps of the same spans; `settle` after each."""

    def __init__(self, spans: Sequence[SteeredSpan], *, dtype: torch.dtype, device: torch.device) -> None:
        self._entries = _entries(spans, dtype=dtype, device=device)
        self._doses: list[tuple[int, Tensor]] = []

    def __bool__(self) -> bool:
        return bool(self._entries)

    def apply(self, layer: int, hidden: Tensor) -> None:
        """Change hidden [tokens, d_model] in place at block output `layer`."""
        entry = self._entries.get(layer)
        if entry is None:
            return
        before = hidden.index_select(0, entry.rows)
        hidden.index_copy_(0, entry.rows, before + entry.delta)
        self._doses.append((layer, entry.delta_norm / before.float().norm(dim=-1)))

    def settle(self) -> None:
        """Book what `apply` did since the last call with the owners of the rows."""
        for layer, doses in self._doses:
            start = 0
            values = doses.tolist()
            for span in self._entries[layer].owners:
                assert span.applied is not None
                counter = span.applied.prompt_tokens if span.is_prompt else span.applied.generated_tokens
                part = values[start : start + span.count]
                counter[layer] = counter.get(layer, 0) + len(part)
                span.applied.dose_sums[layer] = span.applied.dose_sums.get(layer, 0.0) + sum(part)
                start += span.count
        self._doses.clear()


def _entries(spans: Sequence[SteeredSpan], *, dtype: torch.dtype, device: torch.device) -> dict[int, _Entry]:
    rows: dict[int, list[int]] = {}
    deltas: dict[int, list[Tensor]] = {}
    owners: dict[int, list[SteeredSpan]] = {}
    start = 0
    for span in spans:
        for layer, delta in span.steering.deltas.items() if span.steering else ():
            rows.setdefault(layer, []).extend(range(start, start + span.count))
            deltas.setdefault(layer, []).append(delta.expand(span.count, -1))
            owners.setdefault(layer, []).append(span)
        start += span.count
    entries = {}
    for layer, indices in rows.items():
        delta = torch.cat(deltas[layer]).to(device=device, dtype=dtype)
        entries[layer] = _Entry(
            rows=torch.tensor(indices, device=device),
            delta=delta,
            delta_norm=delta.float().norm(dim=-1),
            owners=tuple(owners[layer]),
        )
    return entries

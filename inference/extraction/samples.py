"""Tokenised texts of two sides, and their activations as the statistics want them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from inference.extraction.statistics import Sides, sides
from inference.lab import Lab, Pieces
from inference.passages import Positions, TokenIds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Every text has at least one token. `is_paired`: positive[i] and negative[i] belong together."""

    positive: tuple[TokenIds, ...]
    negative: tuple[TokenIds, ...]
    is_paired: bool

    def __post_init__(self) -> None:
        assert self.positive
        assert self.negative
        assert not self.is_paired or len(self.positive) == len(self.negative)

    @property
    def texts(self) -> tuple[TokenIds, ...]:
        return (*self.positive, *self.negative)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """positive, negative: float32 [texts, rows, layers, d_model] if every text gave as many rows, else one [1, …]."""

    positive: Tensor
    negative: Tensor
    layers: tuple[int, ...]
    is_paired: bool

    def sides(self, layer: int, *, row: int | None = None) -> Sides:
        """At one layer; of one row of each text, or of all rows as a crowd of their own."""
        index = self.layers.index(layer)
        if row is None and self.positive.shape[1] > 1:
            crowd = (self.positive[:, :, index].flatten(0, 1), self.negative[:, :, index].flatten(0, 1))
            return sides(*crowd, is_paired=False)
        row = 0 if row is None else row
        return sides(self.positive[:, row, index], self.negative[:, row, index], is_paired=self.is_paired)


def activations(samples: Samples, *, layers: Sequence[int], at: Positions, lab: Lab) -> Pieces[Activations]:
    """One pass over all texts."""
    found = yield from lab.activations(samples.texts, layers=layers, at=at)
    positive, negative = found[: len(samples.positive)], found[len(samples.positive) :]
    return Activations(
        positive=_stacked(positive), negative=_stacked(negative), layers=tuple(layers), is_paired=samples.is_paired
    )


def _stacked(rows: list[Tensor]) -> Tensor:
    if len({part.shape[0] for part in rows}) == 1:
        return torch.stack(rows)
    return torch.cat(rows).unsqueeze(0)

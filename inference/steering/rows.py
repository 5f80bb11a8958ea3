"""What one site does in one step: takes its rows, runs its kernels on them in float32, puts them back."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.steering.kernels import Change, added, is_plain_addition, stacked
from inference.steering.layout import Group, SiteLayout
from inference.steering.points import Hook


class RowIndices:
    """Indices on the device, each list moved once. Rows that follow each other are a slice: a view, not a copy."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: dict[tuple[int, ...], Tensor] = {}

    def of(self, places: list[int]) -> slice | Tensor:
        if places == list(range(places[0], places[0] + len(places))):
            return slice(places[0], places[0] + len(places))
        key = tuple(places)
        if key not in self._known:
            self._known[key] = torch.tensor(places, device=self.device)
        return self._known[key]


def row_hook(site: SiteLayout, *, before: Tensor, moved: Tensor, indices: RowIndices) -> Hook:
    """The hook of a site. Every call writes ‖h‖ and ‖h′ − h‖ of its rows to `before` and `moved`, float32 [rows]."""
    rows = indices.of(site.rows)
    if len(site.groups) == 1 and is_plain_addition(site.groups[0].parts[0]):
        vectors = added(site.groups[0].parts).to(indices.device)
        moved.copy_(torch.linalg.vector_norm(vectors, dim=-1))
        return _add_to_slice(rows, vectors, before) if isinstance(rows, slice) else _add_to_rows(rows, vectors, before)
    stages = [_Stage(group, len(site.rows), indices) for group in site.groups]
    return _run_stages(rows, stages, before, moved)


def _add_to_slice(rows: slice, vectors: Tensor, before: Tensor) -> Hook:
    def hook(x: Tensor) -> None:
        part = x[rows]
        torch.linalg.vector_norm(part, dim=-1, dtype=torch.float32, out=before)
        part.add_(vectors)  # of mixed types: computed in float32, rounded once

    return hook


def _add_to_rows(rows: Tensor, vectors: Tensor, before: Tensor) -> Hook:
    def hook(x: Tensor) -> None:
        part = x.index_select(0, rows)
        torch.linalg.vector_norm(part, dim=-1, dtype=torch.float32, out=before)
        x.index_copy_(0, rows, part.add_(vectors))

    return hook


class _Stage:
    """A group's kernel and which of the site's rows it is for."""

    def __init__(self, group: Group, site_rows: int, indices: RowIndices) -> None:
        self.change: Change = stacked(group.parts, indices.device)
        self.from_base = group.from_base
        places = indices.of(group.places)
        self._places = None if places == slice(0, site_rows) else places

    def run(self, base: Tensor, work: Tensor) -> Tensor:
        """base: the rows as the site was given them; work: as they are now → as they are next. All [rows, width]."""
        source = base if self.from_base else work
        if self._places is None:
            return work + self.change(source)
        if isinstance(self._places, slice):
            work = work.clone() if work is base else work
            work[self._places] += self.change(source[self._places])
            return work
        changed = work.index_select(0, self._places) + self.change(source.index_select(0, self._places))
        return work.index_copy(0, self._places, changed)


def _run_stages(rows: slice | Tensor, stages: list[_Stage], before: Tensor, moved: Tensor) -> Hook:
    def hook(x: Tensor) -> None:
        part = x[rows] if isinstance(rows, slice) else x.index_select(0, rows)
        base = part.float()
        work = base
        for stage in stages:
            work = stage.run(base, work)
        torch.linalg.vector_norm(base, dim=-1, out=before)
        torch.linalg.vector_norm(work - base, dim=-1, out=moved)
        if isinstance(rows, slice):
            part.copy_(work)
        else:
            x.index_copy_(0, rows, work.to(x.dtype))

    return hook

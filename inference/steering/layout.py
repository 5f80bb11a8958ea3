"""Which rows of a step meet which operations in which order: the spans' selections, gates and conflicts, worked out.

The result is per site a list of groups. Groups run one after the other; within one no row occurs twice and all
operations are of one family, so that they run as one kernel whatever requests they belong to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from inference.steering.kernels import Kernel, Part, family
from inference.steering.points import Site
from inference.steering.program import CompiledSteering, Conflict, Step
from inference.steering.selectors import Mask
from inference.steering.spans import SteeredSpan

Places = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Operations of one family. `places` [n]: where in `SiteLayout.rows` their rows are, part after part.

    from_base: each works on what the site was given, not on what earlier groups made of it.
    """

    places: Places
    parts: tuple[Part, ...]
    from_base: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Rows of one span at one site, the first `prompt_rows` of them prompt."""

    span: int
    rows: int
    prompt_rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteLayout:
    """rows [n]: the rows of the step that this site changes, ascending; `segments` say whose they are."""

    rows: Places
    segments: tuple[Segment, ...]
    groups: tuple[Group, ...]


def lay_out(spans: Sequence[SteeredSpan]) -> dict[Site, SiteLayout]:
    """Sites that change no row are left out."""
    drafts: dict[Site, _Draft] = {}
    first_row = 0
    for number, span in enumerate(spans):
        if span.steering is not None:
            _claim(drafts, number, span, span.steering, first_row)
        first_row += len(span.token_ids)
    return {site: draft.finished() for site, draft in drafts.items()}


@dataclasses.dataclass(frozen=True)
class _Claim:
    """A kernel's tokens of one span, as places in the span."""

    stage: int
    kernel: Kernel
    places: Places


class _Draft:
    """One site in the making. Spans are added in their order."""

    def __init__(self) -> None:
        self._rows: list[Places] = []
        self._row_count = 0
        self._segments: list[Segment] = []
        self._groups: dict[tuple[int, tuple[type, bool], bool], tuple[list[Places], list[Part]]] = {}

    def add(self, number: int, span: SteeredSpan, claims: Sequence[_Claim], *, first_row: int, from_base: bool) -> None:
        places = claims[0].places
        if any(claim.places is not places for claim in claims):
            places = np.unique(np.concatenate([claim.places for claim in claims]))
        prompt_rows = int(np.searchsorted(places, span.prompt_tokens - span.start))
        self._segments.append(Segment(span=number, rows=len(places), prompt_rows=prompt_rows))
        self._rows.append(places + first_row)
        for claim in claims:
            own = np.arange(len(places)) if claim.places is places else np.searchsorted(places, claim.places)
            rows, parts = self._groups.setdefault((claim.stage, family(claim.kernel), from_base), ([], []))
            rows.append(own + self._row_count)
            parts.append(Part(kernel=claim.kernel, positions=claim.places + span.start))
        self._row_count += len(places)

    def finished(self) -> SiteLayout:
        ordered = sorted(self._groups.items(), key=lambda item: item[0][0])  # stable: by stage alone
        groups = [
            Group(places=np.concatenate(rows), parts=tuple(parts), from_base=from_base)
            for (_, _, from_base), (rows, parts) in ordered
        ]
        return SiteLayout(rows=np.concatenate(self._rows), segments=tuple(self._segments), groups=tuple(groups))


def _claim(
    drafts: dict[Site, _Draft], number: int, span: SteeredSpan, steering: CompiledSteering, first_row: int
) -> None:
    assert len(span.gates) == len(steering.gates)
    masks = span.masks()
    places = [np.flatnonzero(mask) for mask in masks]
    from_base = steering.conflict is Conflict.SUM
    for site, steps in steering.steps.items():
        if steering.conflict is Conflict.PRIORITY:
            claims = list(_first_claims(steps, span.gates, masks))
        else:
            claims = list(_all_claims(steps, span.gates, places))
        if claims:
            draft = drafts.setdefault(site, _Draft())
            draft.add(number, span, claims, first_row=first_row, from_base=from_base)


def _all_claims(steps: Sequence[Step], gates: Sequence[bool], places: Sequence[Places]) -> Iterator[_Claim]:
    stage = 0
    for step in steps:
        if len(places[step.selection]) and (step.gate is None or gates[step.gate]):
            for kernel in step.kernels:
                yield _Claim(stage, kernel, places[step.selection])
                stage += 1


def _first_claims(steps: Sequence[Step], gates: Sequence[bool], masks: Sequence[Mask]) -> Iterator[_Claim]:
    """Every token goes to the first step that would have it."""
    stage = 0
    taken = np.zeros_like(masks[0])
    for step in steps:
        if step.gate is None or gates[step.gate]:
            mine = masks[step.selection] & ~taken
            taken |= mine
            places = np.flatnonzero(mine)
            for kernel in step.kernels if len(places) else ():
                yield _Claim(stage, kernel, places)
                stage += 1

"""Which rows of a step meet which operations in which order: the spans' selections, gates and conflicts, worked out.

The result is per site a list of groups. Groups run one after the other; within one no row occurs twice and all
operations are of one family, so that they run as one kernel whatever requests they belong to.

Tokens of a span that the same selections pick are treated alike. What that treatment is, is worked out once for each
request and set of picks: a batch that changes with every step must not cost more than the steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from inference.limits import TREATMENTS_KEPT_MAX
from inference.steering.kernels import Kernel, Part, family
from inference.steering.points import Site
from inference.steering.program import CompiledSteering, Conflict, Picked, Treatment
from inference.steering.spans import SteeredSpan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Operations of one family. `places` [n]: where in `SiteLayout.rows` their rows are, part after part.

    from_base: each works on what the site was given, not on what earlier groups made of it.
    """

    places: list[int]
    parts: list[Part]
    from_base: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Rows of one span at one site, so many of them prompt. Tokens treated differently are in different segments."""

    span: int
    rows: int
    prompt_rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteLayout:
    """rows [n]: the rows of the step that this site changes; `segments` say whose they are, in their order."""

    rows: list[int]
    segments: list[Segment]
    groups: list[Group]


def lay_out(spans: Sequence[SteeredSpan]) -> dict[Site, SiteLayout]:
    """Sites that change no row are left out."""
    drafts: dict[Site, _Draft] = {}
    first_row = 0
    for number, span in enumerate(spans):
        if span.steering is not None:
            assert len(span.gates) == len(span.steering.gates)
            for picked, places in _classes(span):
                treatment = _treatment(span.steering, span.gates, picked)
                if treatment:
                    _draw_up(drafts, treatment, number, span, places, first_row)
        first_row += len(span.token_ids)
    return {site: draft.finished() for site, draft in drafts.items()}


def _classes(span: SteeredSpan) -> Iterator[tuple[Picked, list[int]]]:
    """Places in the span of tokens that the same selections pick."""
    if len(span.token_ids) == 1:
        yield span.picked(), [0]
        return
    masks = span.masks()
    if all(mask.all() or not mask.any() for mask in masks):
        yield tuple(bool(mask.any()) for mask in masks), list(range(len(span.token_ids)))
        return
    kinds, which = np.unique(np.stack(masks), axis=1, return_inverse=True)  # [selections, kinds], [tokens]
    for kind, picked in enumerate(kinds.T.tolist()):
        yield tuple(picked), np.flatnonzero(which.reshape(-1) == kind).tolist()


def _treatment(steering: CompiledSteering, gates: tuple[bool, ...], picked: Picked) -> Treatment:
    """Kernels with their stages, per site, for tokens that these selections pick."""
    known = steering.treatments.get((gates, picked))
    if known is None:
        if len(steering.treatments) >= TREATMENTS_KEPT_MAX:
            steering.treatments.clear()
        known = tuple(_worked_out(steering, gates, picked))
        steering.treatments[gates, picked] = known
    return known


def _worked_out(
    steering: CompiledSteering, gates: tuple[bool, ...], picked: Picked
) -> Iterator[tuple[Site, tuple[tuple[int, Kernel], ...]]]:
    for site, steps in steering.steps.items():
        acting = [step for step in steps if picked[step.selection] and (step.gate is None or gates[step.gate])]
        if steering.conflict is Conflict.PRIORITY:
            acting = acting[:1]
        if acting:
            yield site, tuple(enumerate(kernel for step in acting for kernel in step.kernels))


def _draw_up(
    drafts: dict[Site, _Draft],
    treatment: Treatment,
    number: int,
    span: SteeredSpan,
    places: list[int],
    first_row: int,
) -> None:
    assert span.steering is not None
    prompt_places = span.prompt_tokens - span.start
    segment = Segment(number, len(places), sum(place < prompt_places for place in places))
    rows = [place + first_row for place in places]
    positions = np.asarray(places, dtype=np.int64) + span.start
    from_base = span.steering.conflict is Conflict.SUM
    for site, kernels in treatment:
        draft = drafts.get(site)
        if draft is None:
            draft = drafts[site] = _Draft()
        own = range(len(draft.rows), len(draft.rows) + len(rows))
        draft.rows += rows
        draft.segments.append(segment)
        for stage, kernel in kernels:
            draft.group((stage, family(kernel), from_base), own, Part(kernel, positions))


class _Draft:
    """One site in the making."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.segments: list[Segment] = []
        self._groups: dict[tuple[int, str, bool], tuple[list[int], list[Part]]] = {}

    def group(self, key: tuple[int, str, bool], places: range, part: Part) -> None:
        """key: stage, family, from_base."""
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = ([], [])
        group[0].extend(places)
        group[1].append(part)

    def finished(self) -> SiteLayout:
        ordered = sorted(self._groups.items(), key=lambda item: item[0][0])  # stable: by stage alone
        groups = [Group(places=places, parts=parts, from_base=key[2]) for key, (places, parts) in ordered]
        return SiteLayout(rows=self.rows, segments=self.segments, groups=groups)

"""What steering does to each row of a step, and the count of what was really done.

Rows without steering are never touched: a site takes the rows it is for, changes them and puts them back. Everything
is computed in float32 and rounded once to the model's type. Nothing here waits for the device but `settle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from inference.steering.applied import Applied, Tally
from inference.steering.layout import lay_out
from inference.steering.points import LayerHooks
from inference.steering.rows import RowIndices, row_hook
from inference.steering.spans import SteeredSpan

__all__ = ["DOSE_MAX", "SteeredSpan", "SteeringTable"]

DOSE_MAX = 1e9
"""Where a token's dose is cut off, so that a row that overflows does not turn a mean into NaN; answers end near 2."""

_NORM_MIN = 1e-12  # in place of ‖h‖ = 0


class SteeringTable:
    """The changes of one step, and of later ones as long as it `fits`. Hooks for `Model`.

    After each forward pass `finish_step`; before anybody reads what was applied `settle`.
    """

    def __init__(self, spans: Sequence[SteeredSpan], *, device: torch.device) -> None:
        self._spans = tuple(spans)
        self._treatment = _treatment(spans)
        self._sites = list(lay_out(spans).items())
        edges = np.cumsum([0, *(len(site.rows) for _, site in self._sites)]).tolist()
        # The norms of all sites lie side by side: a site writes its own, and a step divides them all at once.
        self._before = torch.ones(edges[-1], dtype=torch.float32, device=device)
        self._moved = torch.zeros_like(self._before)
        self._doses = torch.zeros_like(self._before)
        self._steps = 0
        self._hooks: dict[int, LayerHooks] = {}
        indices = RowIndices(device)
        for (site, layout), (start, end) in zip(self._sites, pairwise(edges), strict=True):
            hook = row_hook(layout, before=self._before[start:end], moved=self._moved[start:end], indices=indices)
            setattr(self._hooks.setdefault(site.layer, LayerHooks()), site.point.value, hook)

    def __bool__(self) -> bool:
        return bool(self._sites)

    def at(self, layer: int) -> LayerHooks | None:
        return self._hooks.get(layer)

    def fits(self, spans: Sequence[SteeredSpan]) -> bool:
        """Whether `spans`, the next tokens of the same sequences in the same order, get the very same changes."""
        return self._treatment is not None and self._treatment == _treatment(spans)

    def finish_step(self) -> None:
        """A forward pass with these hooks is over. Does not wait for the device."""
        if self._sites:
            doses = (self._moved / self._before.clamp_min(_NORM_MIN)).nan_to_num_(nan=DOSE_MAX, posinf=DOSE_MAX)
            self._doses += doses.clamp_max_(DOSE_MAX)
            self._steps += 1

    def settle(self) -> None:
        """Book the steps since the last call with the owners of the rows. Waits for the device; may be repeated."""
        if not self._steps:
            return
        doses = self._doses.double().cpu().numpy()
        segments = [(site, segment) for site, layout in self._sites for segment in layout.segments]
        starts = np.cumsum([0, *(segment.rows for _, segment in segments[:-1])])
        for (site, segment), dose in zip(segments, np.add.reduceat(doses, starts).tolist(), strict=True):
            tally = self._applied(segment.span).sites.setdefault(site, Tally())
            tally.prompt_tokens += self._steps * segment.prompt_rows
            tally.generated_tokens += self._steps * (segment.rows - segment.prompt_rows)
            tally.dose_sum += dose
        self._settle_tokens()
        self._doses.zero_()
        self._steps = 0

    def _settle_tokens(self) -> None:
        touched = np.zeros(sum(len(span.token_ids) for span in self._spans), dtype=np.bool_)
        for _, layout in self._sites:
            touched[layout.rows] = True
        first = 0
        for number, span in enumerate(self._spans):
            own = touched[first : first + len(span.token_ids)]
            first += len(span.token_ids)
            if own.any():
                prompt = int(own[: max(span.prompt_tokens - span.start, 0)].sum())
                self._applied(number).prompt_tokens += self._steps * prompt
                self._applied(number).generated_tokens += self._steps * (int(own.sum()) - prompt)

    def _applied(self, span: int) -> Applied:
        applied = self._spans[span].applied
        assert applied is not None
        return applied


def _treatment(spans: Sequence[SteeredSpan]) -> list[tuple[object, ...]] | None:
    """Equal for steps that change the same rows in the same way; None for steps that are never repeated."""
    treatment: list[tuple[object, ...]] = []
    for span in spans:
        if span.steering is None:
            treatment.append((len(span.token_ids),))
        elif len(span.token_ids) != 1 or span.start < span.prompt_tokens:
            return None
        else:
            treatment.append((id(span.steering), id(span.applied), span.gates, span.picked()))
    return treatment

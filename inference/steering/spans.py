"""One sequence's part of a step, as steering sees it."""

from __future__ import annotations

import dataclasses

from inference.steering.applied import Applied
from inference.steering.program import CompiledSteering, Picked
from inference.steering.selectors import Mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class SteeredSpan:
    """token_ids: the tokens of this step, the first of them at absolute position `start`.

    Positions below `prompt_tokens` are prompt, the others answer. `gates`: decisions made at prefill, in the order of
    `steering.gates`. What is done is booked in `applied`, which must be there if there is steering.
    """

    token_ids: tuple[int, ...]
    start: int
    prompt_tokens: int
    steering: CompiledSteering | None
    applied: Applied | None
    gates: tuple[bool, ...] = ()

    def masks(self) -> list[Mask]:
        """Which tokens each selection of the steering picks."""
        assert self.steering is not None
        selections = self.steering.selections
        return [s.mask(self.token_ids, start=self.start, prompt_tokens=self.prompt_tokens) for s in selections]

    def picked(self) -> Picked:
        """Which selections pick the one token of a span of one."""
        assert self.steering is not None
        if self.start >= self.prompt_tokens and self.steering.is_constant:
            return tuple(not selection.skips_generation for selection in self.steering.selections)
        return tuple(bool(mask[0]) for mask in self.masks())

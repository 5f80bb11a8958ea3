"""Which tokens an operation is applied to: by id, by position, by window, in the prompt and in the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picks:
    """A union. Positions and half-open windows count from the stretch's first token, negative ones from its end."""

    everything: bool = False
    tokens: frozenset[int] = frozenset()
    positions: tuple[int, ...] = ()
    windows: tuple[tuple[int, int], ...] = ()

    @property
    def nothing(self) -> bool:
        return not (self.everything or self.tokens or self.positions or self.windows)

    @property
    def identity(self) -> list[object]:
        """Equal for equal picks; JSON."""
        return [self.everything, sorted(self.tokens), self.positions, self.windows]

    def mask(self, ids: NDArray[np.int64], first: int, length: int) -> Mask:
        """Of tokens `ids` [n], the first of which has position `first` in a stretch of `length` tokens."""
        if self.everything:
            return np.ones(len(ids), dtype=np.bool_)
        places = np.arange(first, first + len(ids))
        found = np.isin(ids, list(self.tokens)) if self.tokens else np.zeros(len(ids), dtype=np.bool_)
        if self.positions:
            found |= np.isin(places, [_from_start(position, length) for position in self.positions])
        for start, end in self.windows:
            found |= (places >= _from_start(start, length)) & (places < _from_start(end, length))
        return found


ALL, NONE = Picks(everything=True), Picks()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Picks of the prompt and of the answer, less what is excluded. Positions of the answer count from 0.

    `prompt_window`, if given, narrows everything to these positions of the prompt (an operation with a vector for each).
    """

    prompt: Picks = ALL
    generation: Picks = ALL
    prompt_excluded: Picks = NONE
    generation_excluded: Picks = NONE
    prompt_window: tuple[int, int] | None = None

    @property
    def skips_prompt(self) -> bool:
        return self.prompt.nothing or self.prompt_excluded.everything

    @property
    def skips_generation(self) -> bool:
        return self.generation.nothing or self.generation_excluded.everything or self.prompt_window is not None

    @property
    def is_constant(self) -> bool:
        """Whether all tokens of an answer are treated alike."""
        return self.skips_generation or (self.generation.everything and self.generation_excluded.nothing)

    @property
    def counts_from_end(self) -> bool:
        """Whether the prompt's length decides which of its tokens are picked."""
        picks = (self.prompt, self.prompt_excluded)
        return any(number < 0 for p in picks for number in (*p.positions, *(edge for w in p.windows for edge in w)))

    @property
    def identity(self) -> list[object]:
        """Equal for equal selections; JSON."""
        return [*self.prompt_identity, self.generation.identity, self.generation_excluded.identity]

    @property
    def prompt_identity(self) -> list[object]:
        """What it says of the prompt."""
        return [self.prompt.identity, self.prompt_excluded.identity, self.prompt_window]

    def mask(self, token_ids: Sequence[int], *, start: int, prompt_tokens: int) -> Mask:
        """Of a span of tokens, the first at absolute position `start`; it may begin in the prompt and end behind it."""
        ids = np.asarray(token_ids, dtype=np.int64)
        cut = min(max(prompt_tokens - start, 0), len(ids))
        return np.concatenate(
            (
                self._prompt_mask(ids[:cut], start, prompt_tokens),
                self._answer_mask(ids[cut:], start + cut - prompt_tokens),
            )
        )

    def _prompt_mask(self, ids: NDArray[np.int64], first: int, length: int) -> Mask:
        if not len(ids) or self.skips_prompt:
            return np.zeros(len(ids), dtype=np.bool_)
        found = self.prompt.mask(ids, first, length) & ~self.prompt_excluded.mask(ids, first, length)
        if self.prompt_window is not None:
            places = np.arange(first, first + len(ids))
            found &= (places >= self.prompt_window[0]) & (places < self.prompt_window[1])
        return found

    def _answer_mask(self, ids: NDArray[np.int64], first: int) -> Mask:
        if not len(ids) or self.skips_generation:
            return np.zeros(len(ids), dtype=np.bool_)
        # The answer has no end yet; negative positions are refused in specs, so its length is never asked for.
        return self.generation.mask(ids, first, 0) & ~self.generation_excluded.mask(ids, first, 0)


def _from_start(position: int, length: int) -> int:
    return position if position >= 0 else length + position

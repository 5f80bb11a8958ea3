"""Which stretch of the sequence the model sees for which symbols, when the whole is longer than it can see.

The rules look at places only, counted from the beginning. Were the stretch chosen by the length of the text, the masses
at a place would depend on what comes later, and would add up to more than 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

WINDOW_TOKENS_MAX = 4096
"""Longest stretch, if the model's context is not shorter. Twice as long would cost twice the time per token."""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Tokens start..end-1 go in; what follows each of first_row..end-1 is scored."""

    start: int
    first_row: int
    end: int

    @property
    def tokens(self) -> int:
        return self.end - self.start


def window_tokens(context_tokens: int) -> int:
    """Length of a window: even, so that halves are whole."""
    return min(context_tokens, WINDOW_TOKENS_MAX) // 2 * 2


def prompt_tokens_max(context_tokens: int) -> int:
    """Prompt tokens kept, from the end: three quarters, so that the first window has room for text."""
    return max(1, window_tokens(context_tokens) * 3 // 4)


def windows(*, prompt_tokens: int, tokens: int, window: int) -> Iterator[Window]:
    """Cover the rows prompt_tokens-1 .. tokens-1, each once: the first window is full, later ones half overlap it."""
    step = window // 2
    first_row, start = prompt_tokens - 1, 0
    while first_row < tokens:
        end = min(start + window, tokens)
        yield Window(start=start, first_row=first_row, end=end)
        first_row, start = start + window, start + step

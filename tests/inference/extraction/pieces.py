"""Work in pieces, run to its end."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any


def run(pieces: Generator[float, None, Any]) -> Any:
    """To the end; the fractions it yields must be in 0..1 and never fall."""
    last = 0.0
    while True:
        try:
            fraction = next(pieces)
        except StopIteration as end:
            return end.value
        assert last - 1e-9 <= fraction <= 1 + 1e-9
        last = fraction

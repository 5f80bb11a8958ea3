"""Embeddings in their one canonical form: a backend's floats become small integers, whose number of bits is their price.

Only a vector's direction is kept. `int8` spends its 255 steps between minus and plus the largest component, so that no step
is wasted on lengths that embeddings never have; `binary` keeps the signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

INT8_STEPS = 127  # k from -127 to 127: symmetric, so that a vector and its negative are each other's mirror image


def int8_row(values: Sequence[float]) -> bytes:
    """k + 127 for each component, k = 127 x / max |x| rounded half to even. Raises `ValueError` for NaN and infinities."""
    _check(values)
    largest = max(map(abs, values))
    if largest == 0:
        return bytes([INT8_STEPS]) * len(values)
    return bytes([round(value / largest * INT8_STEPS) + INT8_STEPS for value in values])


def binary_row(values: Sequence[float]) -> bytes:
    """1 for each component that is not below zero, 0 for each that is; -0.0 is 0. Raises `ValueError` like `int8_row`."""
    _check(values)
    return bytes([value >= 0 for value in values])


def _check(values: Sequence[float]) -> None:
    if not all(map(isfinite, values)):
        raise ValueError("a component is not a finite number")

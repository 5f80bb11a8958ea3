"""Statistics as rows of non-negative integers: what a backend may say in numbers, in the one form that is charged and shown.

A layout says which numbers there are, in which order, how fine and how large. `pack` reads a backend's JSON by it: fields
that it does not name are not read, and how a number was spelled or where it stood makes no difference. `unpack` is what a
client is shown: a function of the integers alone. Each integer has its price (`policy.codelength.numbers_bits`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from policy.canonical import Malformed


class Layout(Protocol):
    """How a value becomes integers, at least one, and how these become a value again."""

    def pack(self, value: Any) -> Iterator[int]:
        """A backend's value as integers. Raises `Malformed` for what the layout does not hold."""

    def unpack(self, numbers: Iterator[int]) -> Any:
        """The value of the next integers, which `pack` made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A number in steps of 1/`per_unit`, up to `most`, and from 0 or from the negative of `most`."""

    most: float
    per_unit: int = 1
    signed: bool = False

    def pack(self, value: Any) -> Iterator[int]:
        """See `Layout.pack`. Rounds half to even; -0.0 is 0, and so is a divergence that rounding made less than nothing."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Malformed("a statistic is not a number")
        if not abs(value) <= 2 * self.most:  # no comparison holds for NaN
            raise Malformed("a statistic is out of range")
        steps = round(value * self.per_unit)
        if abs(steps) > self.most * self.per_unit or (steps < 0 and not self.signed):
            raise Malformed("a statistic is out of range")
        yield zigzag(steps) if self.signed else steps

    def unpack(self, numbers: Iterator[int]) -> float:
        """See `Layout.unpack`."""
        number = next(numbers)
        return (unzigzag(number) if self.signed else number) / self.per_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A whole number, however it is spelled."""

    most: int
    signed: bool = False

    def pack(self, value: Any) -> Iterator[int]:
        """See `Layout.pack`."""
        (number,) = Fixed(most=self.most, signed=self.signed).pack(value)
        if value != int(value):
            raise Malformed("a count is not a whole number")
        yield number

    def unpack(self, numbers: Iterator[int]) -> int:
        """See `Layout.unpack`."""
        number = next(numbers)
        return unzigzag(number) if self.signed else number


@dataclass(frozen=True, slots=True)
class Word:
    """One of a closed list of words."""

    words: tuple[str, ...]

    def pack(self, value: Any) -> Iterator[int]:
        """See `Layout.pack`."""
        if value not in self.words:
            raise Malformed("a word that is not on the list")
        yield self.words.index(value)

    def unpack(self, numbers: Iterator[int]) -> str:
        """See `Layout.unpack`."""
        return self.words[next(numbers)]


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def pack(self, value: Any) -> Iterator[int]:
        """See `Layout.pack`."""
        if not isinstance(value, bool):
            raise Malformed("a flag is not a truth value")
        yield int(value)

    def unpack(self, numbers: Iterator[int]) -> bool:
        """See `Layout.unpack`."""
        return bool(next(numbers))


@dataclass(frozen=True, slots=True)
class Maybe:
    """A value or null: 0 for null, else the value with one added to its first integer."""

    inner: Layout

    def pack(self, value: Any) -> Iterator[int]:
        """See `Layout.pack`."""
        if value is None:
            yield 0
            return
        first, *rest = self.inner.pack(value)
        yield first + 1
        yield from rest

    def unpack(self, numbers: Iterator[int]) -> Any:
        """See `Layout.unpack`."""
        first = next(numbers)
        return self.inner.unpack(chain((first - 1,), numbers)) if first else None


@dataclass(frozen=True, slots=True)
class Record:
    """An object's fields in a fixed order. One that the backend leaves out is null; those of other names are not read."""

    fields: Mapping[str, Layout]

    def pack(self, value: Any) -> Iterator[int]:
        """See `Layout.pack`."""
        if not isinstance(value, dict):
            raise Malformed("statistics are not an object")
        for name, layout in self.fields.items():
            yield from layout.pack(value.get(name))

    def unpack(self, numbers: Iterator[int]) -> dict[str, Any]:
        """See `Layout.unpack`."""
        return {name: layout.unpack(numbers) for name, layout in self.fields.items()}


@dataclass(frozen=True, slots=True)
class Rows:
    """A list: how many, then each in its turn."""

    of: Layout
    most: int

    def pack(self, value: Any) -> Iterator[int]:
        """See `Layout.pack`."""
        if not isinstance(value, list) or len(value) > self.most:
            raise Malformed("rows that are no list, or more than there can be")
        yield len(value)
        for row in value:
            yield from self.of.pack(row)

    def unpack(self, numbers: Iterator[int]) -> list[Any]:
        """See `Layout.unpack`."""
        return [self.of.unpack(numbers) for _ in range(next(numbers))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """A set of the whole numbers below `below`, in any order: one integer, whose bits they are."""

    below: int

    def pack(self, value: Any) -> Iterator[int]:
        """See `Layout.pack`."""
        if not isinstance(value, list) or len(value) > self.below:
            raise Malformed("a set that is no list, or too long a one")
        mask = 0
        for member in value:
            (number,) = Count(most=self.below - 1).pack(member)
            mask |= 1 << number
        yield mask

    def unpack(self, numbers: Iterator[int]) -> list[int]:
        """See `Layout.unpack`."""
        mask = next(numbers)
        return [member for member in range(mask.bit_length()) if mask >> member & 1]


def zigzag(number: int) -> int:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..."""
    return 2 * number if number >= 0 else -2 * number - 1


def unzigzag(number: int) -> int:
    """The inverse of `zigzag`."""
    return number // 2 if number % 2 == 0 else -(number + 1) // 2

"""Places to put a number: spellings that a strict reader takes for the same thing. Shared by the channels' encoders."""

from collections.abc import Sequence
from itertools import permutations
from typing import TypeVar

Thing = TypeVar("Thing")


def hexadecimal(symbol: int, bits: int) -> str:
    """A fixed number of hex digits."""
    return f"{symbol:0{bits // 4}x}"


def from_hexadecimal(text: str | bytes | None) -> int | None:
    """The number again; None for what is not hex."""
    try:
        return int(text, 16) if text else None
    except ValueError:
        return None


def order(symbol: int, things: Sequence[Thing]) -> list[Thing]:
    """The symbol-th permutation."""
    return list(list(permutations(things))[symbol])


def from_order(things: Sequence[Thing], sorted_things: Sequence[Thing]) -> int | None:
    """Which permutation this is; None if it is none."""
    orders = list(permutations(sorted_things))
    return orders.index(tuple(things)) if tuple(things) in orders else None


def cased(symbol: int, word: str) -> str:
    """Bits as upper and lower case."""
    return "".join(letter.upper() if symbol >> at & 1 else letter.lower() for at, letter in enumerate(word))


def from_cased(word: str) -> int:
    """The bits again."""
    return sum(1 << at for at, letter in enumerate(word) if letter.isupper())


def marked(symbol: int, bits: int, *, text: str, zero: str, one: str) -> str:
    """Bits as one of two marks after each of the text's first words."""
    words = text.split(" ")
    marks = [one if symbol >> at & 1 else zero for at in range(bits)]
    return " ".join(word + (marks[at] if at < bits else "") for at, word in enumerate(words))


def from_marked(text: str, bits: int, *, zero: str, one: str) -> int | None:
    """The bits again; None where there is a word without its mark."""
    symbol = 0
    for at, word in enumerate(text.split(" ")[:bits]):
        if one and word.endswith(one):
            symbol |= 1 << at
        elif not word.endswith(zero):
            return None
    return symbol

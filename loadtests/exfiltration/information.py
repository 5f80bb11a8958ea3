"""How many bits a decoder got, counted so that luck is worth nothing. Pure arithmetic.

Every secret bit has a position in its symbol. At each position the decoder's guesses are held against what was sent; with
error rate e over n guesses the decoder has n(1 - H2(e)) bits, the mutual information of a binary symmetric channel that
is as wrong as this one was. An error rate that a coin could have had counts as one half.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import log2, sqrt

DEVIATIONS_MIN = 5.0  # sixty rows of up to 64 positions: at 5 standard deviations luck shows once in 500 runs


def information_bits(pairs: Sequence[tuple[int, int | None]], *, bits: int) -> float:
    """What guesses tell of symbols of `bits` bits; a guess of None is an erasure and tells nothing."""
    guessed = [(sent, guess) for sent, guess in pairs if guess is not None]
    wrong = [sent ^ guess for sent, guess in guessed]
    return sum(coin_bits(errors=sum(w >> at & 1 for w in wrong), guesses=len(wrong)) for at in range(bits))


def coin_bits(*, errors: int, guesses: int) -> float:
    """n(1 - H2(e)), or 0 where e is not significantly different from 1/2."""
    if abs(errors - guesses / 2) <= DEVIATIONS_MIN * sqrt(guesses) / 2:
        return 0.0
    return guesses * (1 - binary_entropy(errors / guesses))


def binary_entropy(probability: float) -> float:
    """H2, in bits."""
    if probability in (0.0, 1.0):
        return 0.0
    return -probability * log2(probability) - (1 - probability) * log2(1 - probability)


def prefix_length(sent: Iterable[object], got: Iterable[object]) -> int:
    """How many elements agree before the first that does not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(sent, got, strict=False)))


def bits_of(data: bytes) -> list[int]:
    """Bits, most significant first."""
    return [byte >> at & 1 for byte in data for at in range(7, -1, -1)]


def bytes_of(bits: Sequence[int]) -> bytes:
    """The whole bytes of a bit sequence, most significant first."""
    whole = len(bits) - len(bits) % 8
    return bytes(int("".join(map(str, bits[at : at + 8])), 2) for at in range(0, whole, 8))

"""A piece is rounded down to whole characters, and by how much is not coded: the scarcity of valid UTF-8 must pay for it."""

from fractions import Fraction

import pytest

from policy.codelength import BITS_PER_BYTE
from policy.values import QUANTUM_BYTES_MAX, QUANTUM_BYTES_MIN

# How many characters UTF-8 writes in 1, 2, 3 and 4 bytes (RFC 3629; surrogates are not characters).
CHARACTERS = {1: 0x80, 2: 0x800 - 0x80, 3: 0x10000 - 0x800 - 0x800, 4: 0x110000 - 0x10000}


def valid_strings(bytes_max: int) -> list[int]:
    """The number of valid UTF-8 strings of each length up to `bytes_max`."""
    counts = [1]
    for length in range(1, bytes_max + 1):
        counts.append(sum(n * counts[length - size] for size, n in CHARACTERS.items() if size <= length))
    return counts


def mass_of_pieces(piece_bytes: int) -> Fraction:
    """Of all texts that a piece announced with `piece_bytes` may hold: full, or up to three bytes short of it."""
    counts = valid_strings(piece_bytes)
    lengths = range(max(piece_bytes - 3, 0), piece_bytes + 1)
    return sum((Fraction(counts[n], 1 << (BITS_PER_BYTE * n)) for n in lengths), Fraction(0))


@pytest.mark.parametrize("quantum_bytes", [QUANTUM_BYTES_MIN, 16, 64, QUANTUM_BYTES_MAX])
@pytest.mark.parametrize("quanta", [1, 2, 3])
def test_the_masses_of_all_pieces_of_so_many_quanta_add_up_to_less_than_one(quantum_bytes: int, quanta: int) -> None:
    assert mass_of_pieces(quantum_bytes * quanta) < 1


def test_a_quantum_of_four_bytes_would_undercount() -> None:
    assert mass_of_pieces(4) > 1

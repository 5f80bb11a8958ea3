"""The adaptive tick code is a code: its sequential probabilities add up, and counting gives the same as multiplying."""

from fractions import Fraction
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.ticks import QUANTA_CLASSES, TickSymbols, kt_bits


def kt_next(counts: list[int], symbol: int) -> Fraction:
    """The estimate by its definition."""
    return Fraction(2 * counts[symbol] + 1, 2 * sum(counts) + len(counts))


@given(st.lists(st.integers(0, 2), max_size=40))
def test_counts_alone_give_the_product_of_the_sequential_estimates(sequence: list[int]) -> None:
    counts, probability = [0, 0, 0], Fraction(1)
    for symbol in sequence:
        probability *= kt_next(counts, symbol)
        counts[symbol] += 1
    assert kt_bits((counts[0], counts[1], counts[2])) == pytest.approx(-log2(probability), abs=1e-9)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8))
def test_at_every_state_the_masses_of_the_next_symbol_add_up_to_exactly_one(counts: list[int]) -> None:
    assert sum(kt_next(counts, symbol) for symbol in range(len(counts))) == 1


def lengths(ticks: int) -> list[int]:
    """The code lengths of all answers that end at tick `ticks` or before, with 1 or 2 quanta a piece."""
    found = []

    def grow(history: list[tuple[int, int]], left: int) -> None:
        for idle in range(left):
            symbols = TickSymbols()
            for before, quanta in history:
                symbols.piece(idle_ticks=before, quanta=quanta)
            symbols.end(idle_ticks=idle)
            found.append(symbols.adaptive_bits())
            for quanta in (1, 2, QUANTA_CLASSES + 3):
                grow([*history, (idle, quanta)], left - idle - 1)

    grow([], ticks)
    return found


def test_the_masses_of_all_whole_answers_add_up_to_at_most_one() -> None:
    total = sum(Fraction(1, 1 << bits) for bits in lengths(6))
    assert total <= 1


def test_a_steady_engine_costs_a_few_bits_and_not_a_few_bits_a_tick() -> None:
    symbols = TickSymbols()
    for _ in range(200):
        symbols.piece(idle_ticks=1, quanta=1)
    symbols.end(idle_ticks=1)
    assert symbols.adaptive_bits() < 50
    assert symbols.fixed_bits == 200 * (4 + 1 + 1) + 4 + 1


def test_pieces_of_many_quanta_are_escaped_and_still_cheaper_when_they_are_the_rule() -> None:
    symbols = TickSymbols()
    for _ in range(100):
        symbols.piece(idle_ticks=0, quanta=40)
    symbols.end(idle_ticks=0)
    assert symbols.adaptive_bits() < symbols.fixed_bits
    assert symbols.saving_bits() == symbols.fixed_bits - symbols.adaptive_bits()


def test_an_answer_whose_fixed_code_is_shorter_gives_nothing_back() -> None:
    symbols = TickSymbols()
    symbols.end(idle_ticks=0)
    assert symbols.saving_bits() == 0

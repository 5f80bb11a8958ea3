"""The codes of embeddings and of the turn from reasoning to text obey Kraft's inequality, in exact arithmetic."""

from fractions import Fraction
from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.codelength import (
    SWITCH_BITS_MAX,
    elias_delta_bits,
    ending_bits,
    piece_bits,
    release_bits,
    slot_bits,
    switch_bits,
    vectors_bits,
)
from policy.limits import ANSWER_BYTES_MAX
from policy.release import Ending, Outcome, Release, Vectors


def mass(bits: int) -> Fraction:
    return Fraction(1, 2**bits)


def vectors(count: int, dimensions: int, *, bits: int, coded: bool) -> Vectors:
    return Vectors(bits=bits, dimensions_coded=coded, rows=(bytes(dimensions),) * count)


# Embeddings. All of one shape cost the same, so they are counted, not listed.


@pytest.mark.parametrize(("bits", "values"), [(8, 255), (1, 2)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_embeddings_of_a_fixed_length_have_mass_at_most_one(bits, values, count):
    for dimensions in (1, 2, 3, 384):
        price = vectors_bits(vectors(count, dimensions, bits=bits, coded=False))
        assert values ** (dimensions * count) * mass(price) <= 1
        assert price == bits * dimensions * count


@pytest.mark.parametrize(("bits", "values"), [(8, 255), (1, 2)])
@pytest.mark.parametrize("count", [1, 2])
def test_all_embeddings_of_every_length_that_a_backend_may_choose_have_mass_at_most_one(bits, values, count):
    total = Fraction(0)
    for dimensions in range(1, 200):
        price = vectors_bits(vectors(count, dimensions, bits=bits, coded=True))
        total += values ** (dimensions * count) * mass(price)
    assert total <= 1


@pytest.mark.parametrize("coded", [False, True])
def test_all_endings_of_an_embeddings_call_have_mass_at_most_one(coded):
    """Vectors come with `stop` and with nothing else, so that there are any needs no code of its own."""
    total = Fraction(0)
    for outcome in Outcome:
        if outcome is Outcome.STOP:
            for dimensions in range(1, 12) if coded else (3,):
                ending = Ending(outcome=outcome, vectors=vectors(2, dimensions, bits=1, coded=coded))
                total += 2 ** (2 * dimensions) * mass(
                    ending_bits(idle_ticks=0, text_bytes=0, ending=ending, tools_declared=0)
                )
        else:
            total += mass(ending_bits(idle_ticks=0, text_bytes=0, ending=Ending(outcome=outcome), tools_declared=0))
    assert total * sum(mass(slot_bits(idle)) for idle in range(500)) / mass(slot_bits(0)) <= 1


def test_vectors_are_charged_raw_whatever_is_in_them():
    ending = Ending(outcome=Outcome.STOP, vectors=vectors(3, 768, bits=8, coded=False))
    without = Ending(outcome=Outcome.STOP)
    prices = [
        release_bits(Release(idle_ticks=0, quanta=0, text="", ending=e), tools_declared=0) for e in (ending, without)
    ]
    assert prices[0] - prices[1] == 8 * 3 * 768
    assert vectors_bits(None) == 0


# From reasoning to text. N(n) = how many valid UTF-8 strings have n bytes.

SCALARS = {1: 0x80, 2: 0x800 - 0x80, 3: 0x10000 - 0x800 - 0x800, 4: 0x110000 - 0x10000}  # less the surrogates


@cache
def utf8_strings(length: int) -> int:
    counts = [1]
    for n in range(1, length + 1):
        counts.append(sum(SCALARS[size] * counts[n - size] for size in SCALARS if size <= n))
    return counts[length]


def words(reasoning_bytes: int, text_bytes: int) -> Release:
    return Release(idle_ticks=0, quanta=1, text="x" * text_bytes, reasoning="r" * reasoning_bytes)


def splits_mass(length: int) -> Fraction:
    """All ways to divide words of `length` bytes into reasoning and text, by their switch code alone."""
    total = Fraction(0)
    for reasoning_bytes in range(length + 1):
        ways = utf8_strings(reasoning_bytes) * utf8_strings(length - reasoning_bytes)
        total += ways * mass(switch_bits(words(reasoning_bytes, length - reasoning_bytes)))
    return total / 256**length


@pytest.mark.parametrize("quantum_bytes", [8, 16])
def test_all_pieces_and_endings_before_the_first_text_have_mass_at_most_one(quantum_bytes):
    pieces = Fraction(0)
    for quanta in range(1, 6):
        framing = mass(piece_bits(idle_ticks=0, quanta=quanta, text_bytes=0))
        lengths = range(quanta * quantum_bytes - 3, quanta * quantum_bytes + 1)
        pieces += framing * sum(splits_mass(length) for length in lengths)
    ends = sum(
        mass(ending_bits(idle_ticks=0, text_bytes=0, ending=Ending(outcome=outcome), tools_declared=0))
        for outcome in Outcome
    )
    endings = ends * sum(splits_mass(n) * mass(elias_delta_bits(n + 1)) for n in range(48)) / mass(elias_delta_bits(1))
    slots = sum(mass(slot_bits(idle)) for idle in range(500)) / mass(slot_bits(0))
    assert (pieces + endings) * slots <= 1


def test_a_small_tree_of_whole_answers_with_reasoning_written_out_has_mass_at_most_one():
    """Two letters, a quantum of one byte, two ticks, reasoning that turns into text at any byte or never."""
    ticks, texts = 2, ["".join(letters) for size in range(3) for letters in product("ab", repeat=size)]

    def answers(tick: int, last: int, charged: int, *, switched: bool):
        if tick == ticks:
            return
        yield from answers(tick + 1, last, charged, switched=switched)
        idle = tick - last - 1
        for reasoning, text in product([None] if switched else texts, texts):
            size = len((reasoning or "") + text)
            if 1 <= size <= 2:
                piece = Release(idle_ticks=idle, quanta=size, text=text, reasoning=reasoning)
                price = charged + release_bits(piece, tools_declared=0)
                yield from answers(tick + 1, tick, price, switched=switched or bool(text))
            for outcome in Outcome:
                release = Release(
                    idle_ticks=idle, quanta=0, text=text, reasoning=reasoning, ending=Ending(outcome=outcome)
                )
                yield charged + release_bits(release, tools_declared=0)

    assert 0 < sum(mass(bits) for bits in answers(0, -1, 0, switched=False)) <= 1


@given(st.text(max_size=40), st.text(max_size=40))
def test_reasoning_costs_what_text_costs_and_the_turn_to_text_besides(reasoning, text):
    release = Release(idle_ticks=0, quanta=3, text=text, reasoning=reasoning)
    plain = Release(idle_ticks=0, quanta=3, text=reasoning + text)
    extra = release_bits(release, tools_declared=0) - release_bits(plain, tools_declared=0)
    assert extra == switch_bits(release) <= SWITCH_BITS_MAX
    assert extra == (1 + elias_delta_bits(len(reasoning.encode()) + 1) if text else 1)


def test_where_no_reasoning_can_be_nothing_is_owed_for_it():
    assert switch_bits(Release(idle_ticks=0, quanta=1, text="x")) == 0


def test_the_dearest_turn_is_after_the_longest_reasoning():
    assert 1 + elias_delta_bits(ANSWER_BYTES_MAX + 1) == SWITCH_BITS_MAX

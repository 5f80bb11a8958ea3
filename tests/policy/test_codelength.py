"""Codelengths obey Kraft's inequality, in exact arithmetic, and never undercut the bytes they are for."""

from fractions import Fraction
from functools import cache
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.codelength import (
    BITS_PER_BYTE,
    OUTCOME_BITS,
    choice_bits,
    elias_delta_bits,
    ending_bits,
    numbers_bits,
    parting_bits,
    piece_bits,
    release_bits,
    slot_bits,
    usage_bits,
)
from policy.release import Ending, Outcome, Release, ToolCall, Usage


def mass(bits: int) -> Fraction:
    return Fraction(1, 2**bits)


def elias_delta_code(number: int) -> str:
    """The code itself (Elias 1975), written down to hold the lengths against it."""
    magnitude = number.bit_length() - 1
    length = magnitude + 1
    prefix = "0" * (length.bit_length() - 1) + f"{length:b}"
    return prefix + f"{number:b}"[1:]


def test_elias_delta_lengths_are_those_of_the_code_and_the_code_is_prefix_free():
    words = [elias_delta_code(number) for number in range(1, 2000)]
    assert [len(word) for word in words] == [elias_delta_bits(number) for number in range(1, 2000)]
    ordered = sorted(words)
    assert not any(longer.startswith(word) for word, longer in pairwise(ordered))


def test_elias_delta_satisfies_kraft_for_every_number_below_2_to_the_64():
    total = Fraction(0)
    for magnitude in range(64):  # all 2^m numbers of one magnitude have one length
        assert elias_delta_bits(2**magnitude) == elias_delta_bits(2 ** (magnitude + 1) - 1)
        total += 2**magnitude * mass(elias_delta_bits(2**magnitude))
    assert total <= 1
    assert sum(mass(elias_delta_bits(number)) for number in range(1, 5000)) <= total


@given(st.integers(1, 2**80))
def test_a_larger_number_never_costs_less(number):
    assert elias_delta_bits(number) <= elias_delta_bits(number + 1)


@pytest.mark.parametrize("number", [0, -1])
def test_elias_delta_has_no_code_below_one(number):
    with pytest.raises(ValueError, match="start at 1"):
        elias_delta_bits(number)


def test_every_outcome_has_a_price_and_together_they_satisfy_kraft():
    assert set(OUTCOME_BITS) == set(Outcome)
    assert sum(mass(bits) for bits in OUTCOME_BITS.values()) <= 1


@given(st.integers(1, 10**6))
def test_a_choice_costs_the_least_whole_bits_that_tell_the_alternatives_apart(alternatives):
    bits = choice_bits(alternatives)
    assert 2**bits >= alternatives
    assert bits == 0 or 2 ** (bits - 1) < alternatives


def test_a_response_that_may_start_in_any_of_many_ticks_pays_for_the_choice():
    assert slot_bits(0) == 1
    assert sum(mass(slot_bits(idle)) for idle in range(3000)) <= 1


def test_usage_costs_one_bit_to_leave_out_and_satisfies_kraft():
    total = mass(usage_bits(None))
    total += sum(mass(usage_bits(Usage(prompt_tokens=a, completion_tokens=b))) for a, b in product(range(64), repeat=2))
    assert usage_bits(None) == 1
    assert total <= 1


def test_rows_of_numbers_of_one_length_satisfy_kraft_together_with_their_absence():
    total = mass(numbers_bits(None)) + sum(mass(numbers_bits(row)) for row in product(range(24), repeat=2))
    assert total <= 1


# Whole releases. Texts are counted, not listed: N(n) = how many valid UTF-8 strings have n bytes.

SCALARS = {1: 0x80, 2: 0x800 - 0x80, 3: 0x10000 - 0x800 - 0x800, 4: 0x110000 - 0x10000}  # less the surrogates


@cache
def utf8_strings(length: int) -> int:
    counts = [1]
    for n in range(1, length + 1):
        counts.append(sum(SCALARS[size] * counts[n - size] for size in SCALARS if size <= n))
    return counts[length]


@cache
def texts_mass(length: int) -> Fraction:
    return Fraction(utf8_strings(length), 256**length)


def pieces_mass(quantum_bytes: int, quanta_max: int) -> Fraction:
    """All pieces at one tick: `quanta` announced, text rounded down by up to 3 bytes to whole characters."""
    total = Fraction(0)
    for quanta in range(1, quanta_max + 1):
        framing = mass(piece_bits(idle_ticks=0, quanta=quanta, text_bytes=0))
        lengths = range(max(quanta * quantum_bytes - 3, 0), quanta * quantum_bytes + 1)
        total += framing * sum(texts_mass(length) for length in lengths)
    return total


def endings_mass(*, text_bytes_max: int, tools: int, argument_bytes_max: int) -> Fraction:
    """All endings at one tick: every outcome, text, and up to two tool calls with arguments of every length."""
    arguments = [(size, utf8_strings(size)) for size in range(argument_bytes_max + 1)]
    calls: list[tuple[tuple[ToolCall, ...], int]] = [((), 1)]
    for size, count in arguments:
        one = ToolCall(name="f", arguments="x" * size)
        calls.append(((one,), tools * count))
        calls += [
            ((one, ToolCall(name="f", arguments="x" * other)), tools * count * tools * more)
            for other, more in arguments
        ]
    usages = [None, *(Usage(prompt_tokens=a, completion_tokens=b) for a, b in product(range(2), repeat=2))]
    rows = [None, *product(range(2), repeat=2)]
    total = Fraction(0)
    for outcome, (made, ways), usage, numbers in product(Outcome, calls, usages, rows):
        ending = Ending(outcome=outcome, tool_calls=made, usage=usage, numbers=numbers)
        bits = ending_bits(idle_ticks=0, text_bytes=0, ending=ending, tools_declared=tools)
        total += ways * mass(bits)
    with_text = sum(texts_mass(length) * mass(elias_delta_bits(length + 1)) for length in range(text_bytes_max + 1))
    return total * with_text / mass(elias_delta_bits(1))


@pytest.mark.parametrize("quantum_bytes", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("tools", [1, 3, 128])
def test_all_that_can_happen_at_one_moment_has_mass_at_most_one(quantum_bytes, tools):
    """The children of every node of the tree of views: after any silence, a piece or an ending."""
    at_one_slot = pieces_mass(quantum_bytes, 40) + endings_mass(text_bytes_max=40, tools=tools, argument_bytes_max=2)
    slots = sum(mass(slot_bits(idle)) for idle in range(500)) / mass(slot_bits(0))
    assert at_one_slot * slots <= 1


def test_a_small_tree_of_whole_answers_written_out_has_mass_at_most_one():
    """Alphabet of two letters, quantum of one byte, three ticks: every answer, listed."""
    letters, ticks = "ab", 3

    def answers(tick: int, last: int, charged: int):
        if tick == ticks:
            return
        yield from answers(tick + 1, last, charged)
        idle = tick - last - 1
        for size in range(3):
            for text in product(letters, repeat=size):
                said = "".join(text)
                if said:
                    piece = Release(idle_ticks=idle, quanta=size, text=said)
                    yield from answers(tick + 1, tick, charged + release_bits(piece, tools_declared=0))
                for outcome in Outcome:
                    release = Release(idle_ticks=idle, quanta=0, text=said, ending=Ending(outcome=outcome))
                    yield charged + release_bits(release, tools_declared=0)

    assert 0 < sum(mass(bits) for bits in answers(0, -1, 0)) <= 1


def test_parting_without_an_ending_has_the_mass_that_all_endings_after_the_same_silence_share():
    for idle in (0, 1, 700):
        pieces = sum(mass(piece_bits(idle_ticks=idle, quanta=quanta, text_bytes=0)) for quanta in range(1, 500))
        assert pieces + mass(parting_bits(idle_ticks=idle)) <= mass(slot_bits(idle))


# Prices.


@given(st.text(max_size=30), st.integers(0, 10_000), st.integers(1, 50), st.sampled_from(Outcome))
def test_a_release_costs_at_least_eight_bits_for_every_byte_of_it(text, idle_ticks, quanta, outcome):
    size = len(text.encode())
    ending = Ending(outcome=outcome, tool_calls=(ToolCall(name="f", arguments=text),))
    piece = Release(idle_ticks=idle_ticks, quanta=quanta, text=text)
    last = Release(idle_ticks=idle_ticks, quanta=0, text=text, ending=ending)
    assert release_bits(piece, tools_declared=1) > BITS_PER_BYTE * size
    assert release_bits(last, tools_declared=1) > 2 * BITS_PER_BYTE * size


def test_prices_by_hand():
    assert release_bits(Release(idle_ticks=0, quanta=1, text="x" * 16), tools_declared=0) == 1 + 1 + 1 + 128
    stop = Release(idle_ticks=0, quanta=0, text="", ending=Ending(outcome=Outcome.STOP))
    assert release_bits(stop, tools_declared=0) == 1 + 1 + 1 + 1 + 3
    call = ToolCall(name="f", arguments="{}")
    calls = Release(idle_ticks=0, quanta=0, text="", ending=Ending(outcome=Outcome.TOOL_CALLS, tool_calls=(call,)))
    assert release_bits(calls, tools_declared=4) == 3 + 4 + 3 + 1 + 2 + 4 + 16

"""Embeddings have one canonical form, which keeps their direction and nothing finer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.vectors import INT8_STEPS, binary_row, int8_row

components = st.floats(-1e300, 1e300, allow_nan=False, allow_infinity=False)
rows = st.lists(components, min_size=1, max_size=40)


@given(rows)
def test_a_row_has_a_byte_for_each_component_and_the_largest_has_the_most_steps(values):
    row = int8_row(values)
    assert len(row) == len(values)
    assert all(0 <= step <= 2 * INT8_STEPS for step in row)
    if any(values):
        assert max(abs(step - INT8_STEPS) for step in row) == INT8_STEPS


@given(rows)
def test_a_vector_and_its_negative_are_mirror_images(values):
    mirrored = int8_row([-value for value in values])
    assert [step - INT8_STEPS for step in mirrored] == [INT8_STEPS - step for step in int8_row(values)]


@given(rows, st.integers(-20, 20))
def test_a_vectors_length_says_nothing(values, exponent):
    scaled = [math.ldexp(value, exponent) for value in values]
    if all(math.isfinite(value) and (value == 0 or abs(value) > 1e-290) for value in (*values, *scaled)):
        assert int8_row(scaled) == int8_row(values)


def test_steps_are_rounded_half_to_even():
    assert int8_row([127.0, 0.5, 1.5, 2.5, -0.5, -1.5]) == bytes([254, 127, 129, 129, 127, 125])


def test_nothing_has_no_direction():
    assert int8_row([0.0, -0.0]) == bytes([127, 127])


def test_signs_are_those_of_the_components_and_minus_zero_is_zero():
    assert binary_row([1.0, -1e-300, 0.0, -0.0, 5.0]) == bytes([1, 0, 1, 1, 1])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("quantise", [int8_row, binary_row])
def test_what_is_not_finite_is_no_component(quantise, bad):
    with pytest.raises(ValueError, match="finite"):
        quantise([1.0, bad])

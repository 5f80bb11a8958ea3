"""Statistics as integers: what a backend says in numbers comes through to within half a step, and nothing else does."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.fixed_point import Count, Fixed, Flag, Maybe, Record, Rows, Subset, Word, unzigzag, zigzag
from policy.canonical import Malformed

HUNDREDTHS = Fixed(most=1e6, per_unit=100, signed=True)
LAYOUT = Record(
    {
        "words": Rows(Word(("a", "b", "c")), most=4),
        "inner": Maybe(Record({"x": Maybe(HUNDREDTHS), "set": Subset(below=8), "ok": Flag()})),
        "count": Count(most=100),
        "back": Maybe(Count(most=100, signed=True)),
    }
)


def packed(layout, value) -> tuple[int, ...]:
    return tuple(layout.pack(value))


def shown(layout, numbers):
    rest = iter(numbers)
    value = layout.unpack(rest)
    assert next(rest, None) is None, "every number was read"
    return value


values = st.fixed_dictionaries(
    {
        "words": st.lists(st.sampled_from("abc"), max_size=4),
        "inner": st.none()
        | st.fixed_dictionaries(
            {
                "x": st.none() | st.integers(-(10**8), 10**8).map(lambda steps: steps / 100),
                "set": st.sets(st.integers(0, 7)).map(sorted),
                "ok": st.booleans(),
            }
        ),
        "count": st.integers(0, 100),
        "back": st.none() | st.integers(-100, 100),
    }
)


@given(values)
def test_a_value_on_the_grid_comes_back_as_it_was(value):
    numbers = packed(LAYOUT, value)
    assert all(number >= 0 for number in numbers)
    assert shown(LAYOUT, numbers) == value


@given(values, values)
def test_two_values_have_one_row_only_if_they_are_the_same(one, other):
    assert (packed(LAYOUT, one) == packed(LAYOUT, other)) == (one == other)


@given(values, st.randoms(use_true_random=False))
def test_order_spelling_and_unknown_fields_make_no_difference(value, coin):
    assert packed(LAYOUT, json.loads(disguised(value, coin))) == packed(LAYOUT, value)


def disguised(value, coin: random.Random) -> str:
    """The same statistics in other JSON: keys shuffled and added, numbers spelled and split otherwise."""
    if isinstance(value, dict):
        members = [(json.dumps(name), disguised(member, coin)) for name, member in value.items()]
        members += [(f'"x{coin.getrandbits(40)}"', str(coin.getrandbits(40))) for _ in range(2)]
        coin.shuffle(members)
        return "{" + " , ".join(f"{name}:{member}" for name, member in members) + "}"
    if isinstance(value, list):
        spelled = [disguised(member, coin) for member in value]
        if value and isinstance(value[0], int):  # a set: members may be repeated, in any order
            spelled = coin.sample(spelled, len(spelled))
        return "[" + ", ".join(spelled) + "]"
    if isinstance(value, int) and not isinstance(value, bool):
        return coin.choice([str(value), f"{value}.0", f"{value}e0", f"{value}.00e0"])
    if isinstance(value, float):
        return coin.choice([repr(value), f"{value!r}0", repr(value + 1e-9)])
    return json.dumps(value)


@given(st.floats(-1e6, 1e6))
def test_a_number_survives_to_within_half_a_step(value):
    assert abs(shown(HUNDREDTHS, packed(HUNDREDTHS, value)) - value) <= 0.005 + 1e-9


def test_what_rounds_into_range_is_in_range():
    assert packed(Fixed(most=1, per_unit=1000), -1e-9) == (0,)
    assert packed(Fixed(most=1, per_unit=1000), 1 + 1e-9) == (1000,)


def test_minus_zero_is_zero():
    assert packed(HUNDREDTHS, -0.0) == packed(HUNDREDTHS, 0) == packed(HUNDREDTHS, -0.001) == (0,)
    assert str(shown(HUNDREDTHS, (0,))) == "0.0"


@given(st.integers(-(2**70), 2**70))
def test_zigzag_is_a_numbering_of_all_integers(number):
    assert zigzag(number) >= 0
    assert unzigzag(zigzag(number)) == number


@pytest.mark.parametrize(
    ("layout", "value"),
    [
        (HUNDREDTHS, math.nan),
        (HUNDREDTHS, math.inf),
        (HUNDREDTHS, -math.inf),
        (HUNDREDTHS, 10**400),
        (HUNDREDTHS, 1e6 + 1),
        (HUNDREDTHS, True),
        (HUNDREDTHS, "1"),
        (HUNDREDTHS, None),
        (HUNDREDTHS, [1]),
        (Fixed(most=1), -0.6),
        (Fixed(most=1), 1.6),
        (Fixed(most=1, per_unit=1000), -0.001),
        (Fixed(most=1, per_unit=1000), 1.001),
        (Count(most=100), 1.5),
        (Count(most=100), 101),
        (Count(most=100), -1),
        (Count(most=100, signed=True), -101),
        (Word(("a",)), "b"),
        (Word(("a",)), None),
        (Word(("a",)), ["a"]),
        (Flag(), 1),
        (Flag(), None),
        (Rows(Flag(), most=1), [True, True]),
        (Rows(Flag(), most=1), {"0": True}),
        (Rows(Flag(), most=1), [None]),
        (Subset(below=3), [3]),
        (Subset(below=3), [-1]),
        (Subset(below=3), [0, 0, 0, 0]),
        (Subset(below=3), 1),
        (Record({"a": Flag()}), {}),
        (Record({"a": Flag()}), [True]),
        (Record({"a": Flag()}), None),
        (Maybe(Flag()), "no"),
    ],
    ids=repr,
)
def test_what_a_layout_does_not_hold_is_malformed(layout, value):
    with pytest.raises(Malformed):
        packed(layout, value)

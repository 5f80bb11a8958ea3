"""Why the worst case is reserved before anything leaves: on a small tree, by brute force, with and without.

A view is what left: the events, and that it ended. With a budget of B bits there may be at most 2^B views. A gateway that looks
at the next event and stops because it is too dear has told which event that was: there are more (docs/theory.md).
"""

from fractions import Fraction

import pytest

# What may come next at every node of the tree, and its mass: a complete code. The first symbol costs 0.19 bits, the second 3.
MASSES = (Fraction(7, 8), Fraction(1, 8))
DEAREST = min(MASSES)

View = tuple[int, ...]


def mass(view: View) -> Fraction:
    """2 to the minus charge."""
    product = Fraction(1)
    for symbol in view:
        product *= MASSES[symbol]
    return product


def views(budget_bits: int, *, reserve: bool) -> set[View]:
    """Every view that some backend can bring about: it chooses each symbol, and the gateway stops when it must."""
    least = Fraction(1, 2**budget_bits)
    found: set[View] = set()

    def go_on(view: View, left: Fraction) -> None:
        if reserve and left * DEAREST < least:
            found.add(view)  # decided by what has left alone, before the backend speaks
            return
        for symbol, share in enumerate(MASSES):
            if left * share < least:
                found.add(view)  # without a reservation: decided by what has *not* left
            else:
                go_on((*view, symbol), left * share)

    go_on((), Fraction(1))
    return found


@pytest.mark.parametrize("budget_bits", range(3, 11))
def test_with_a_reservation_there_are_at_most_two_to_the_budget_views(budget_bits: int) -> None:
    assert len(views(budget_bits, reserve=True)) <= 2**budget_bits


@pytest.mark.parametrize("budget_bits", range(3, 9))
def test_with_a_reservation_no_view_is_the_beginning_of_another_and_their_masses_add_up_to_one(
    budget_bits: int,
) -> None:
    final = views(budget_bits, reserve=True)
    assert not any(one != other and other[: len(one)] == one for one in final for other in final)
    assert sum(map(mass, final)) == 1


@pytest.mark.parametrize("budget_bits", range(3, 11))
def test_without_it_there_are_more(budget_bits: int) -> None:
    """The same tree, the same costs, the same budget: stopping for want of bits for a withheld event is a leak."""
    assert len(views(budget_bits, reserve=False)) > 2**budget_bits

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.extraction.calibration import EVALUATIONS_MAX, Found, UnreachableError, search


def solve(divergence, *, target: float = 1.0, tolerance: float = 0.01, scale_max: float = 100.0):
    asked = search(target_nats=target, tolerance=tolerance, scale_max=scale_max)
    tried = [next(asked)]
    while True:
        assert 0 < tried[-1] <= scale_max
        assert len(tried) <= EVALUATIONS_MAX
        try:
            tried.append(asked.send(divergence(tried[-1])))
        except StopIteration as end:
            found: Found = end.value
            break
    assert found.evaluations == len(tried)
    return found


@given(st.floats(1e-4, 1e4), st.floats(0.5, 3.0), st.floats(0.01, 5.0))
def test_power_laws_are_solved_to_the_tolerance(factor, exponent, target):
    scale = (target / factor) ** (1 / exponent)
    if scale > 90 or scale < 1e-4:
        return
    found = solve(lambda s: factor * s**exponent, target=target)
    assert abs(found.kl_nats - target) <= 0.01 * target
    assert factor * found.scale**exponent == found.kl_nats


@given(st.floats(0.02, 50), st.floats(0.1, 10))
def test_curves_that_level_off_above_the_target_are_solved(half, height):
    target = height / 2
    found = solve(lambda s: height * s**2 / (s**2 + half**2), target=target)
    assert abs(found.kl_nats - target) <= 0.01 * target


def test_a_target_above_everything_in_reach_is_unreachable():
    with pytest.raises(UnreachableError, match="largest scale"):
        solve(lambda s: min(s, 0.5))


def test_a_target_inside_a_jump_is_unreachable_within_bounded_evaluations():
    count = 0

    def jump(scale: float) -> float:
        nonlocal count
        count += 1
        return 0.1 if scale < 2.5 else 3.0

    with pytest.raises(UnreachableError, match="still"):
        solve(jump)
    assert count == EVALUATIONS_MAX


def test_scales_at_which_the_model_breaks_count_as_too_strong():
    found = solve(lambda s: s**2 if s < 1.2 else math.nan, target=1.3)
    assert found.scale == pytest.approx(1.3**0.5, rel=0.01)


def test_the_first_guess_respects_the_bound():
    assert solve(lambda s: s * 40, target=1.0, scale_max=0.5).scale == pytest.approx(0.025, rel=0.02)

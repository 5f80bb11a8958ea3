"""Clocks that jump are noticed, once each; clocks that drift are not."""

import pytest

from gateway.vigil import Vigil


@pytest.fixture
def clock(fakes):
    return fakes.Clock()


def test_time_that_passes_is_nothing_to_tell(clock):
    vigil = Vigil(clock)
    for _ in range(3):
        clock.advance(100_000)
        assert vigil.look() is None
    assert vigil.look_at_boot() is None


@pytest.mark.parametrize("seconds", [-3600, -1.5, 1.5, 3600])
def test_a_step_of_the_wall_clock_is_told_once(clock, seconds):
    vigil = Vigil(clock)
    clock.step_wall(seconds)
    assert f"stepped by {seconds:.1f} s" in vigil.look()
    assert vigil.look() is None


def test_clocks_that_drift_apart_slowly_are_no_alarm(clock):
    vigil = Vigil(clock)
    for _ in range(100):
        clock.advance(1000)
        clock.step_wall(0.5)
        assert vigil.look() is None


def test_a_suspended_machine_is_told_once(clock):
    vigil = Vigil(clock)
    clock.suspend(60)
    assert vigil.look() == "the machine was suspended for 60.0 s"
    assert vigil.look() is None


def test_a_boot_under_a_running_process_is_told_once(clock):
    vigil = Vigil(clock)
    clock.boot = "another"
    assert "booted anew" in vigil.look_at_boot()
    assert vigil.look_at_boot() is None

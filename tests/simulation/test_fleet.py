"""Fleets in virtual time: the arithmetic of docs/scaling.md, on the real leases."""

from simulation.fleet.fleet import Plan, simulate

CALM = {"crashes_per_h": 0.0, "latency_s": 0.01, "seconds": 60.0}


def test_who_does_not_crash_costs_what_left():
    assert simulate(Plan(gateways=5, **CALM)).over_count == 0


def test_most_requests_do_not_wait_for_the_store_even_if_it_is_far():
    report = simulate(Plan(gateways=5, **CALM | {"latency_s": 0.1}))
    assert report.wait_p50_ms == 0
    assert report.wait_p99_ms > 50


def test_crashes_cost_no_more_than_what_was_in_hand():
    report = simulate(Plan(gateways=5, **CALM | {"crashes_per_h": 360.0}))
    limit_bits = 5 * 5 * 2000 * 86_400
    assert report.crashes > 10
    assert 0 < report.over_count <= 1.01 * report.crashes * report.held_bits / limit_bits


def test_near_the_end_the_store_is_asked_more_often():
    report = simulate(Plan(gateways=10, **CALM))
    assert report.late_grants_per_s > report.grants_per_s
    assert report.first_refusal is not None
    assert report.first_refusal < 0.001


def test_the_same_plan_gives_the_same_report():
    assert simulate(Plan(gateways=2, **CALM)) == simulate(Plan(gateways=2, **CALM))

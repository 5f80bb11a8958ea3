"""A lease covers some seconds of traffic; a crash wastes almost nothing; near the end every bit is granted by itself."""

from hypothesis import given
from hypothesis import strategies as st

from policy.leasing import Demand, stock_bits
from policy.limits import LEASE_PARTS, LEASE_TRAFFIC_S

amounts = st.integers(0, 2**62)


def stock(*, demand=0, block=100, remaining=10**9, holders=1, limit=10**12):
    return stock_bits(demand_bits=demand, block_bits=block, remaining_bits=remaining, holders=holders, limit_bits=limit)


def test_traffic_that_is_expected_is_in_stock_and_no_less_than_a_block():
    assert stock(demand=5000) == 5000
    assert stock(demand=5) == 100


def test_a_crash_wastes_no_more_than_a_ten_thousandth_of_the_limit():
    assert stock(demand=10**9, limit=10**7) == 10**7 // LEASE_PARTS


def test_as_much_is_left_for_every_other_holder():
    assert stock(demand=10**9, remaining=80_000, holders=4) == 10_000


def test_the_arithmetic_is_exact_however_large_the_budget():
    assert stock(demand=2**62, remaining=2**62 + 2, limit=2**80) == 2**61 + 1
    assert stock(demand=2**62, remaining=2**62, limit=LEASE_PARTS * (2**60 + 1)) == 2**60 + 1


def test_a_block_that_just_fits_is_in_stock():
    assert stock(block=100, remaining=200) == 100


def test_where_not_even_a_block_fits_nothing_is_in_stock():
    assert stock(demand=10**9, remaining=799, holders=4) == 0
    assert stock(demand=10**9, limit=100 * LEASE_PARTS - 1) == 0


@given(amounts, st.integers(1, 2**62), amounts, st.integers(1, 10_000), amounts)
def test_stock_is_never_more_than_half_of_ones_part_of_what_is_left(demand, block, remaining, holders, limit):
    bits = stock(demand=demand, block=block, remaining=remaining, holders=holders, limit=limit)
    assert 0 <= bits * 2 * holders <= remaining
    assert bits * LEASE_PARTS <= limit


def test_steady_traffic_is_estimated_by_what_ten_seconds_of_it_take():
    demand = Demand(now_s=0)
    for second in range(1, 121):
        demand.spend(1000, now_s=second)
    assert 0.9 * 1000 * LEASE_TRAFFIC_S < demand.bits(now_s=120) < 1.1 * 1000 * LEASE_TRAFFIC_S


def test_traffic_that_ended_is_forgotten():
    demand = Demand(now_s=0)
    demand.spend(10**6, now_s=0)
    assert demand.bits(now_s=LEASE_TRAFFIC_S) == int(10**6 / 2.718281828459045)
    assert demand.bits(now_s=30 * LEASE_TRAFFIC_S) == 0


def test_refunds_lower_the_estimate_and_never_below_nothing():
    demand = Demand(now_s=0)
    demand.spend(100, now_s=0)
    demand.spend(-70, now_s=0)
    assert demand.bits(now_s=0) == 30
    demand.spend(-70, now_s=0)
    assert demand.bits(now_s=0) == 0


def test_a_clock_that_stands_still_or_goes_back_forgets_nothing():
    demand = Demand(now_s=5)
    demand.spend(100, now_s=5)
    assert demand.bits(now_s=4) == 100

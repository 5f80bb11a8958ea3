"""What may be said follows from the caps, never from usage, and never says more than is true."""

from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType

from hypothesis import given
from hypothesis import strategies as st

from policy.claims import HONEST_TOKEN_BITS, THEFT_ASSUMPTIONS, claim_table
from policy.rules import (
    METERS,
    Model,
    ModelBudget,
    Policy,
    Release,
    TcpAddress,
    Tenant,
    WeightsSource,
    Window,
)

LIFETIME = Window(name="lifetime", duration_s=None)
DAY = Window(name="1d", duration_s=86_400)
HOUR = Window(name="1h", duration_s=3600)
YEARS_5_S = 5 * 365 * 86_400


def policy(*budgets: ModelBudget, compression=Fraction(100), meters=("raw", "zstd")) -> Policy:
    model = Model(
        name="m",
        upstream="http://localhost:1",
        weights=WeightsSource(parameters=70 * 10**9),
        theft_compression=compression,
        budgets=budgets,
    )
    tenant = Tenant(name="t", key_digests=frozenset({"0" * 64}), models=frozenset({"m"}))
    return Policy(
        listen=TcpAddress(host="127.0.0.1", port=1),
        admin=TcpAddress(host="127.0.0.1", port=2),
        models=MappingProxyType({"m": model}),
        tenants=MappingProxyType({"t": tenant}),
        meters=meters,
        digest="",
    )


def claim(*budgets: ModelBudget, parameters=70 * 10**9, **rules):
    (only,) = claim_table(policy(*budgets, **rules), {"m": parameters})
    return only


def theft(claim, assumption):
    return next(theft for theft in claim.thefts if theft.assumption == assumption)


def test_a_day_of_a_70b_model_over_five_years_is_6_million_bits_and_half_a_million_tokens():
    table = claim(ModelBudget(window=DAY, time_to_theft_s=YEARS_5_S))
    assert table.theft_bits == 11_200_000_000
    assert table.caps[0].limit_bits == table.caps[0].bits_per_day == 6_136_986
    assert {use.code: use.tokens_per_day for use in table.honest} == {"raw": 178_400, "zstd": 563_026}


def test_the_table_holds_every_assumption_in_order_and_the_policys_own():
    assert [theft.assumption for theft in claim(ModelBudget(window=DAY, bits=1)).thefts] == list(THEFT_ASSUMPTIONS)
    own = claim(ModelBudget(window=DAY, bits=1), compression=Fraction(8))
    assert [theft.assumption for theft in own.thefts] == [
        "lossless",
        "4-bit",
        "2-bit",
        "this policy",
        "1/16 theft",
        "1/100 theft",
    ]


def test_a_lifetime_cap_below_the_theft_means_never_and_says_what_share_it_permits():
    row = theft(claim(ModelBudget(window=LIFETIME, fraction=Fraction(1, 10))), "1/16 theft")
    assert not row.is_possible
    assert row.lifetime_share == Fraction(16, 1000)
    assert row.days_at_caps is None


def test_a_lifetime_cap_above_the_theft_leaves_the_days_to_the_windows():
    budgets = ModelBudget(window=LIFETIME, fraction=Fraction(1)), ModelBudget(window=DAY, time_to_theft_s=100 * 86_400)
    row = theft(claim(*budgets), "1/100 theft")
    assert row.is_possible
    assert row.lifetime_share == 1
    assert row.days_at_caps == 100
    assert row.days_at_least == 98


def test_the_slowest_window_decides():
    budgets = ModelBudget(window=HOUR, bits=1_000_000), ModelBudget(window=DAY, bits=12_000_000)
    table = claim(*budgets)
    assert theft(table, "1/100 theft").days_at_caps == Fraction(11_200, 12)
    assert [cap.bits_per_day for cap in table.caps] == [24_000_000, 12_000_000]
    assert table.honest[0].tokens_per_day == int(12_000_000 / HONEST_TOKEN_BITS["raw"])


def test_a_model_without_weights_worth_a_bit_has_no_share_and_no_division_by_zero():
    row = theft(claim(ModelBudget(window=LIFETIME, fraction=Fraction(1)), parameters=0), "lossless")
    assert row.lifetime_share is None


def test_a_cap_of_no_bits_lets_nothing_leave_ever():
    table = claim(ModelBudget(window=DAY, fraction=Fraction(1, 10**12)), parameters=1000)
    assert table.caps[0].limit_bits == 0
    assert not theft(table, "lossless").is_possible
    assert theft(table, "lossless").days_at_caps is None


def test_only_the_meters_of_the_policy_promise_tokens():
    assert [use.code for use in claim(ModelBudget(window=DAY, bits=1), meters=("raw",)).honest] == ["raw"]
    assert claim(ModelBudget(window=LIFETIME, bits=1)).honest == ()


def test_every_code_that_a_policy_may_name_has_an_estimate_of_honest_use():
    assert set(HONEST_TOKEN_BITS) == set(METERS)
    honest = claim(ModelBudget(window=DAY, bits=1_000_000), meters=METERS).honest
    assert [use.code for use in honest] == list(METERS)
    assert [use.tokens_per_day for use in honest] == sorted(use.tokens_per_day for use in honest)


def test_the_sentences_state_the_bound_the_asset_and_the_caps():
    budgets = ModelBudget(window=LIFETIME, fraction=Fraction(1)), ModelBudget(window=DAY, time_to_theft_s=YEARS_5_S)
    table = claim(*budgets)
    assert table.transcripts[0] == (
        "Since this ledger began, everything released by m to all tenants together was one of at most 2^11200000000 "
        "transcripts (content, ends, errors, ticks), whatever the backends did; the probability that an n-bit secret "
        "was revealed in it is at most 2^(11200000000 - n)."
    )
    assert table.transcripts[1].startswith("In any one window of 1d (aligned to the Unix epoch), everything released")
    assert table.days == (
        "At the configured caps (11200000000 bits per lifetime, 6136986 bits per 1d), 1400000000 bytes (weights of 16 "
        "bits a parameter, compressed 100 times) need at least 1824.0 days."
    )


def test_where_time_is_no_protection_the_sentence_says_so():
    assert "two windows are enough" in claim(ModelBudget(window=DAY, time_to_theft_s=2 * 86_400)).days
    assert (
        "no amount of time is enough" in claim(ModelBudget(window=LIFETIME, bits=8), compression=Fraction(13, 2)).days
    )
    assert "compressed 6.5 times" in claim(ModelBudget(window=LIFETIME, bits=8), compression=Fraction(13, 2)).days


def test_the_conditions_name_the_tick_and_what_is_not_covered():
    slow = replace(policy(ModelBudget(window=DAY, bits=1)), release=Release(tick_s=0.25))
    conditions = " ".join(claim_table(slow, {"m": 1})[0].conditions)
    for words in ("independently of the secret", "not compromised", "no other way out", "250 ms", "Distillation"):
        assert words in conditions


@given(st.integers(1, 1000), st.integers(1, 400), st.integers(1, 10))
def test_no_thief_is_faster_than_the_days_at_least(parameters, cap_bits, window_hours):
    """A thief who uses up every window the moment it opens, starting at the worst time, against the bound."""
    over = Window(name=f"{window_hours}h", duration_s=window_hours * 3600)
    table = claim(ModelBudget(window=over, bits=cap_bits), parameters=parameters, compression=Fraction(1))
    own = theft(table, "this policy")
    stolen_bits, windows_used = 0, 0
    while stolen_bits < own.theft_bits:
        stolen_bits += cap_bits
        windows_used += 1
    edges_crossed = windows_used - 1  # from the last moment of the first window to the first of the last
    hours = max(0, edges_crossed - 1) * window_hours
    assert own.days_at_least * 24 <= hours
    assert own.days_at_least <= own.days_at_caps


@given(st.integers(1, 1000), st.integers(1, 400), st.integers(1, 10))
def test_against_a_window_that_slides_only_the_first_limit_is_had_at_once(parameters, cap_bits, window_hours):
    over = Window(name=f"sliding {window_hours}h", duration_s=window_hours * 3600, sliding=True)
    own = theft(
        claim(ModelBudget(window=over, bits=cap_bits), parameters=parameters, compression=Fraction(1)), "this policy"
    )
    hours = (-(-own.theft_bits // cap_bits) - 1) * window_hours
    assert own.days_at_least * 24 == hours


def test_what_a_sliding_window_promises_holds_whenever_the_window_begins():
    over = Window(name="sliding 1d", duration_s=86_400, sliding=True)
    assert claim(ModelBudget(window=over, bits=8)).transcripts[0].startswith("In any span of 1d, whenever it begins, ")


def test_the_rate_of_a_long_window_is_rounded_up_to_a_whole_bit():
    week = Window(name="7d", duration_s=7 * 86_400)
    rate = claim(ModelBudget(window=week, bits=8)).caps[0].bits_per_day
    assert rate == 2
    assert isinstance(rate, int)

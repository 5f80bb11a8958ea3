"""An answer touches its model's budgets and its tenant's; a new period is a new account."""

from fractions import Fraction

import pytest

from policy.accounts import Accounts
from policy.claims import claim_table
from policy.document import parse
from policy.mistakes import Mistakes
from policy.rules import Policy

DAY = 86_400
POLICY = """\
listen: 127.0.0.1:8080
admin: 127.0.0.1:9090
models:
  big:
    upstream: http://127.0.0.1:8001
    weights: {parameters: 1M}
    theft_compression: 4
    budgets:
      - {window: lifetime, fraction: 10%%}
      - {window: 1d, time_to_theft: 100d}
  small:
    upstream: http://127.0.0.1:8002
    weights: {parameters: 1000}
    theft_compression: 1
    budgets:
      - {window: 1h, bytes: 100B}
tenants:
  acme:
    keys: [sha256:%s]
    models: [big, small]
    share: 40%%
  guest:
    keys: [sha256:%s]
    models: [big]
    budget: {window: 1h, bytes: 1KiB}
""" % ("aa" * 32, "bb" * 32)  # noqa: UP031  YAML is full of braces
THEFT_BITS = {"big": 4_000_000, "small": 16_000}


@pytest.fixture
def accounts() -> Accounts:
    policy = parse(POLICY, name="weir.yaml")
    assert isinstance(policy, Policy), policy.render()
    return Accounts(policy, theft_bits=THEFT_BITS)


def described(found):
    return [(account.id, account.owner, account.limit_bits, account.expires_s) for account in found]


def test_an_answer_touches_the_models_budgets_first_and_then_the_tenants_share_of_each(accounts):
    assert described(accounts.of(model="big", tenant="acme", now_s=10.0)) == [
        ("model:big/lifetime/ever", "model", 400_000, None),
        ("model:big/1d/0", "model", 40_000, DAY),
        ("tenant:acme/big/lifetime/ever", "tenant", 160_000, None),
        ("tenant:acme/big/1d/0", "tenant", 16_000, DAY),
    ]


def test_a_tenants_own_budget_is_one_account_over_all_of_its_models(accounts):
    assert described(accounts.of(model="big", tenant="guest", now_s=10.0))[2:] == [
        ("tenant:guest/1h/0", "tenant", 8192, 3600)
    ]


def test_at_a_windows_edge_the_next_period_is_another_account(accounts):
    before = accounts.of(model="big", tenant="acme", now_s=DAY - 0.001)
    after = accounts.of(model="big", tenant="acme", now_s=DAY)
    assert [account.id for account in before][1] == "model:big/1d/0"
    assert [account.id for account in after][1] == "model:big/1d/1"
    assert before[0] == after[0]


def test_a_sliding_window_is_a_series_of_steps_each_an_account_of_its_own():
    text = POLICY.replace("{window: 1d, time_to_theft: 100d}", "{window: sliding 1d, time_to_theft: 100d}")
    policy = parse(text, name="weir.yaml")
    assert isinstance(policy, Policy)
    sliding = Accounts(policy, theft_bits=THEFT_BITS)
    before = sliding.of(model="big", tenant="acme", now_s=7199)[1]
    after = sliding.of(model="big", tenant="acme", now_s=7200)[1]
    assert (before.id, before.expires_s, before.step.number) == ("model:big/sliding 1d/1", 7200, 1)
    assert (after.id, after.expires_s, after.step.number) == ("model:big/sliding 1d/2", 10_800, 2)
    assert before.counted_in == after.counted_in == "model:big/sliding 1d"
    assert before.step.steps == 26
    assert before.limit_bits == after.limit_bits


def test_within_a_period_the_accounts_are_the_same_objects(accounts):
    assert accounts.of(model="big", tenant="acme", now_s=1.0) is accounts.of(model="big", tenant="acme", now_s=2.0)


def test_a_clock_that_steps_back_does_not_resurrect_a_period(accounts):
    after = accounts.of(model="big", tenant="acme", now_s=DAY)
    assert accounts.of(model="big", tenant="acme", now_s=DAY - 1) == after


def test_a_policy_of_lifetimes_only_has_the_same_accounts_forever():
    text = POLICY.replace("      - {window: 1d, time_to_theft: 100d}\n", "")
    policy = parse(text, name="weir.yaml")
    assert isinstance(policy, Policy)
    lifetimes = Accounts(policy, theft_bits=THEFT_BITS)
    assert lifetimes.of(model="big", tenant="acme", now_s=0) is lifetimes.of(model="big", tenant="acme", now_s=9e9)


def test_all_accounts_are_listed_once_with_those_of_models_that_nobody_may_use(accounts):
    ids = [account.id for account in accounts.all(now_s=1.0)]
    assert len(ids) == len(set(ids))
    assert set(ids) == {
        "model:big/lifetime/ever",
        "model:big/1d/0",
        "model:small/1h/0",
        "tenant:acme/big/lifetime/ever",
        "tenant:acme/big/1d/0",
        "tenant:acme/small/1h/0",
        "tenant:guest/1h/0",
    }


def test_a_tenant_sees_its_own_accounts_and_never_a_models(accounts):
    ids = [account.id for account in accounts.of_tenant("acme", now_s=1.0)]
    assert ids == ["tenant:acme/big/lifetime/ever", "tenant:acme/big/1d/0", "tenant:acme/small/1h/0"]


def test_w_is_known_for_every_model(accounts):
    assert accounts.theft_bits("small") == 16_000


def test_shares_are_rounded_down(accounts):
    small = accounts.of(model="small", tenant="acme", now_s=0)
    assert small[1].limit_bits == 800 * Fraction(2, 5) == 320


def test_theft_under_a_lifetime_budget_below_what_a_thief_needs_is_impossible_and_without_one_only_slow():
    policy = parse(POLICY, name="weir.yaml")
    assert isinstance(policy, Policy)
    big, small = claim_table(policy, {"big": 1_000_000, "small": 1000})
    assert not big.own.is_possible
    assert small.own.is_possible


@pytest.mark.parametrize("size", ["2000000TB", "999999999999TiB"])
def test_no_budget_is_larger_than_what_a_ledger_counts(size):
    """Bits are integers below 2**63 in every store: a larger limit must be a mistake here and not a fault there."""
    assert isinstance(parse(POLICY.replace("100B", size), name="weir.yaml"), Mistakes)
    assert isinstance(parse(POLICY.replace("1KiB", size), name="weir.yaml"), Mistakes)


def test_a_models_own_accounts_come_in_the_order_of_its_budgets(accounts):
    ids = [account.id for account in accounts.of_model("big", now_s=1.0)]
    assert ids == ["model:big/lifetime/ever", "model:big/1d/0"]


def test_an_account_says_whose_traffic_counts_in_it(accounts):
    models = {account.id: account.model for account in accounts.all(now_s=0)}
    assert models["model:big/1d/0"] == models["tenant:acme/big/1d/0"] == "big"
    assert models["tenant:acme/small/1h/0"] == "small"
    assert models["tenant:guest/1h/0"] is None

"""Bits in a purse are never negative, never invented, and move for all accounts of an answer or for none."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from policy.budget import Account, Hold, Purse, Step, period_of
from policy.rules import Window

NAMES = ("model", "window", "tenant")


def account(name: str, *, expires_s: int | None = None) -> Account:
    window = Window(name="lifetime", duration_s=None) if expires_s is None else Window(name="1d", duration_s=86_400)
    return Account(id=name, owner="model", name="m", window=window, limit_bits=1 << 40, expires_s=expires_s)


FIELDS = ("id", "owner", "name", "window", "limit_bits", "expires_s")
ACCOUNTS = {name: account(name) for name in NAMES}
bits = st.integers(0, 200)
some_accounts = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)


class PurseAgainstIntegers(RuleBasedStateMachine):
    """The model is one integer for every account and two for every hold."""

    holds = Bundle("holds")

    def __init__(self):
        super().__init__()
        self.purse = Purse()
        self.balance = dict.fromkeys(NAMES, 0)
        self.granted = dict.fromkeys(NAMES, 0)
        self.model: dict[int, list[int]] = {}  # id of a hold -> [left, charged, refunded]
        self.known: list[Hold] = []
        for name in NAMES:
            self.the_store_grants(name, 100)

    @rule(name=st.sampled_from(NAMES), amount=bits)
    def the_store_grants(self, name, amount):
        self.purse.credit(name, amount)
        self.balance[name] += amount
        self.granted[name] += amount

    @rule(name=st.sampled_from(NAMES), amount=bits)
    def the_store_takes_back(self, name, amount):
        amount = min(amount, self.balance[name])
        self.purse.debit(name, amount)
        self.balance[name] -= amount
        self.granted[name] -= amount

    @rule(target=holds, names=some_accounts, amount=bits)
    def reserve(self, names, amount):
        accounts = tuple(ACCOUNTS[name] for name in names)
        amount %= min(self.balance[name] for name in names) + 2
        enough = all(self.balance[name] >= amount for name in names)
        short = [account.id for account in self.purse.short(accounts, amount)]
        assert short == [name for name in names if self.balance[name] < amount]
        hold = self.purse.reserve(accounts, amount)
        assert (hold is not None) == enough
        if hold is None:
            hold = self.purse.reserve(accounts, 0)
            assert hold is not None
            amount = 0
        for name in names:
            self.balance[name] -= amount
        self.model[id(hold)] = [amount, 0, 0]
        self.known.append(hold)
        return hold

    @rule(hold=holds, amount=bits)
    def extend(self, hold, amount):
        names = [one.id for one in hold.accounts]
        amount %= min(self.balance[name] for name in names) + 2
        enough = all(self.balance[name] >= amount for name in names)
        assert hold.extend(amount) == enough
        if enough:
            self._reserved(hold, names, amount)

    @rule(hold=holds)
    def extend_with_all_that_is_left(self, hold):
        names = [one.id for one in hold.accounts]
        rest = min(self.balance[name] for name in names)
        hold.extend_with_rest()
        self._reserved(hold, names, rest)

    def _reserved(self, hold, names, amount):
        for name in names:
            self.balance[name] -= amount
        self.model[id(hold)][0] += amount

    @rule(hold=holds, amount=bits)
    def charge(self, hold, amount):
        state = self.model[id(hold)]
        amount %= state[0] + 2  # most fit, and one does not: a run of refusals would show little
        if amount > state[0]:
            with pytest.raises(ValueError, match="charge of"):
                hold.charge(amount)
        else:
            hold.charge(amount)
            state[0] -= amount
            state[1] += amount

    @rule(hold=holds, amount=bits)
    def refund(self, hold, amount):
        state = self.model[id(hold)]
        amount %= state[1] - state[2] + 2
        if amount > state[1] - state[2]:
            with pytest.raises(ValueError, match="refund of"):
                hold.refund(amount)
        else:
            hold.refund(amount)
            state[2] += amount
            for one in hold.accounts:
                self.balance[one.id] += amount

    @rule(hold=consumes(holds), times=st.integers(1, 3))
    def close(self, hold, times):
        for _ in range(times):
            hold.close()
        for one in hold.accounts:
            self.balance[one.id] += self.model[id(hold)][0]
        self.model[id(hold)][0] = 0

    @invariant()
    def the_purse_holds_what_the_model_says(self):
        for name in NAMES:
            left = sum(self.model[id(hold)][0] for hold in self.known if ACCOUNTS[name] in hold.accounts)
            assert self.purse.balance_bits(name) == self.balance[name] >= 0
            assert self.purse.reserved_bits(name) == left >= 0

    @invariant()
    def holds_hold_what_the_model_says(self):
        for hold in self.known:
            left, charged, refunded = self.model[id(hold)]
            assert (hold.left_bits, hold.charged_bits) == (left, charged - refunded)
            assert 0 <= refunded <= charged

    @invariant()
    def no_bit_is_made_or_lost(self):
        for name in NAMES:
            spent = sum(hold.charged_bits for hold in self.known if ACCOUNTS[name] in hold.accounts)
            assert self.purse.balance_bits(name) + self.purse.reserved_bits(name) + spent == self.granted[name]
            assert self.purse.spent_bits(name) == spent


PurseAgainstIntegers.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPurse = PurseAgainstIntegers.TestCase


def test_an_empty_purse_holds_nothing_for_anyone():
    purse = Purse()
    assert purse.balance_bits("model") == purse.reserved_bits("model") == 0
    assert purse.reserve((ACCOUNTS["model"],), 1) is None
    assert purse.short((ACCOUNTS["model"],), 7) == [ACCOUNTS["model"]]


@pytest.mark.parametrize("reserved", [6, -4])
def test_a_move_that_would_overdraw_either_side_changes_nothing(reserved):
    purse = Purse()
    purse.credit("model", 8)
    purse.move("model", reserved=3)
    with pytest.raises(AssertionError):
        purse.move("model", reserved=reserved)
    assert (purse.balance_bits("model"), purse.reserved_bits("model")) == (5, 3)


@pytest.mark.parametrize("amount", [-1, 6])
def test_more_than_the_purse_has_cannot_be_handed_back(amount):
    purse = Purse()
    purse.credit("model", 5)
    with pytest.raises(AssertionError):
        purse.debit("model", amount)


def test_negative_charges_and_refunds_are_refused():
    purse = Purse()
    purse.credit("model", 5)
    hold = purse.reserve((ACCOUNTS["model"],), 5)
    hold.charge(3)
    with pytest.raises(ValueError, match="charge of -1"):
        hold.charge(-1)
    with pytest.raises(ValueError, match="refund of -1"):
        hold.refund(-1)


def test_negative_grants_and_spends_beyond_the_reservation_cannot_happen():
    purse = Purse()
    with pytest.raises(AssertionError):
        purse.credit("model", -1)
    with pytest.raises(AssertionError):
        purse.spend("model", 1)


def test_a_hold_ends_with_the_first_window_of_its_accounts():
    accounts = (account("a"), account("b", expires_s=200), account("c", expires_s=100))
    assert Hold(Purse(), accounts).expires_s == 100
    assert Hold(Purse(), accounts[:1]).expires_s is None


def test_a_hold_without_accounts_extends_by_nothing():
    hold = Hold(Purse(), ())
    hold.extend_with_rest()
    assert hold.left_bits == 0


@pytest.mark.parametrize(
    ("now_s", "expected"),
    [(0, (0, 3600)), (3599.999, (0, 3600)), (3600, (1, 7200)), (1_700_000_000.5, (472222, 1_700_002_800))],
)
def test_periods_align_to_the_epoch_and_begin_at_their_first_instant(now_s, expected):
    assert period_of(Window(name="1h", duration_s=3600), now_s=now_s) == expected


def test_a_lifetime_has_no_period_that_ends():
    assert period_of(Window(name="lifetime", duration_s=None), now_s=4e9) is None


def test_the_periods_of_a_sliding_window_are_its_steps():
    window = Window(name="sliding 1d", duration_s=86_400, sliding=True)
    assert period_of(window, now_s=7200) == (2, 10_800)


@pytest.mark.parametrize("duration_s", [3600, 3601, 86_400, 86_399, 100_000, 7 * 86_400])
def test_the_steps_that_count_together_cover_every_position_of_the_window(duration_s):
    """Wherever a window ends, the steps that it touches are among those up to the one in which it ends, with one to spare."""
    window = Window(name="w", duration_s=duration_s, sliding=True)
    for end_s in range(10 * duration_s, 10 * duration_s + 3 * window.step_s, max(window.step_s // 7, 1)):
        touched = end_s // window.step_s - (end_s - duration_s) // window.step_s + 1
        assert touched <= window.steps - 1


def test_an_account_is_counted_under_its_own_name_or_under_its_series():
    assert account("a").counted_in == "a"
    step = Account(
        **{field: getattr(account("s/7", expires_s=9), field) for field in FIELDS},
        step=Step(series="s", number=7, steps=26),
    )
    assert step.counted_in == "s"


def test_a_forfeited_purse_is_empty_and_its_holds_are_void():
    purse = Purse()
    purse.credit("a", 100)
    hold = purse.reserve((account("a"),), 50)
    assert hold is not None
    hold.charge(20)
    assert (purse.unspent_bits("a"), purse.spent_bits("a")) == (80, 20)
    purse.forfeit()
    assert (purse.unspent_bits("a"), purse.spent_bits("a"), hold.void, hold.extend(1)) == (0, 0, True, False)
    with pytest.raises(ValueError, match="void"):
        hold.charge(1)
    hold.refund(20)
    hold.close()
    assert (purse.balance_bits("a"), purse.reserved_bits("a"), hold.charged_bits) == (0, 0, 0)
    purse.credit("a", 7)
    assert purse.reserve((account("a"),), 7).left_bits == 7


def test_a_hold_from_between_two_forfeits_is_void_too():
    purse = Purse()
    purse.forfeit()
    purse.credit("a", 10)
    hold = purse.reserve((account("a"),), 10)
    assert hold is not None
    assert not hold.void
    purse.forfeit()
    assert hold.void


def test_a_closed_or_void_hold_takes_nothing_more_though_the_purse_is_full():
    purse = Purse()
    purse.credit("a", 10)
    closed, void = purse.reserve((account("a"),), 1), purse.reserve((account("a"),), 1)
    assert closed is not None
    assert void is not None
    closed.close()
    assert not closed.extend(1)
    purse.forfeit()
    purse.credit("a", 10)
    assert not void.extend(1)
    assert (purse.balance_bits("a"), purse.reserved_bits("a")) == (10, 0)


def test_what_was_charged_is_the_sum_of_all_charges():
    purse = Purse()
    purse.credit("a", 100)
    hold = purse.reserve((account("a"),), 100)
    assert hold is not None
    hold.charge(60)
    hold.charge(30)
    assert (hold.charged_bits, hold.left_bits) == (90, 10)


def test_a_refund_goes_back_to_every_account_that_was_charged_and_may_leave_again():
    purse = Purse()
    accounts = (account("a"), account("b"))
    for each in accounts:
        purse.credit(each.id, 100)
    hold = purse.reserve(accounts, 80)
    assert hold is not None
    hold.charge(60)
    hold.close()
    hold.refund(45)
    assert [purse.balance_bits(each.id) for each in accounts] == [85, 85]
    assert hold.charged_bits == 15
    with pytest.raises(ValueError, match="refund of 16 bits"):
        hold.refund(16)


def test_a_purse_knows_the_accounts_that_were_ever_credited():
    purse = Purse()
    purse.credit("a", 100)
    purse.credit("b", 0)
    assert list(purse.accounts) == ["a", "b"]

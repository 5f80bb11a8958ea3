"""The arithmetic of budgets: accounts, and what one worker may still release from each. Integers of bits, never floats.

Bits move one way: store -> purse (a grant: the store has debited them, durably) -> hold (reserved for one answer) ->
charged (left). Only a hold's unused rest and a settlement's refund move back, and only into the purse they came from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from policy.rules import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part of a sliding window. The steps of a series that lie within any one window are held against one limit.

    A window of any position touches at most so many steps, one of them in part, so what leaves in it is never under-counted.
    """

    series: str  # the account of the whole window
    number: int
    steps: int  # how many count together, up to the newest


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One budget in one period. `id` names both, so that a new period is a new account.

    A sliding window is a series of short periods, each an account that ends with its step.
    """

    id: str
    owner: str  # "model" or "tenant", for metrics and messages
    name: str  # the model or tenant
    model: str | None = None  # whose traffic alone counts in it; None if all that its owner uses does
    window: Window
    limit_bits: int
    expires_s: int | None  # wall clock, when the period ends; None for a lifetime
    step: Step | None = None  # for a sliding window

    @property
    def counted_in(self) -> str:
        """The id under which the store counts what is spent."""
        return self.id if self.step is None else self.step.series


def period_of(window: Window, *, now_s: float) -> tuple[int, int] | None:
    """The number of the current period and the wall-clock second at which it ends. Periods align to the Unix epoch.

    None for a lifetime. The periods of a sliding window are its steps.
    """
    if window.duration_s is None:
        return None
    period_s = window.step_s if window.sliding else window.duration_s
    index = int(now_s // period_s)
    return index, (index + 1) * period_s


class Purse:
    """What this worker may still release, per account. Never negative: `reserve` takes from all accounts or from none."""

    def __init__(self) -> None:
        self._balance_bits: dict[str, int] = {}
        self._reserved_bits: dict[str, int] = {}
        self._spent_bits: dict[str, int] = {}
        self.generation = 0

    def forfeit(self) -> None:
        """Drop everything, and make every hold void: nobody can say any more that these bits have not left."""
        self._balance_bits.clear()
        self._reserved_bits.clear()
        self._spent_bits.clear()
        self.generation += 1

    def credit(self, account_id: str, bits: int) -> None:
        """Bits that the store has debited for this worker, or that came back from a hold."""
        assert bits >= 0
        self._balance_bits[account_id] = self._balance_bits.get(account_id, 0) + bits

    def debit(self, account_id: str, bits: int) -> None:
        """Bits handed back to the store. They must be in the purse."""
        balance_bits = self.balance_bits(account_id)
        assert 0 <= bits <= balance_bits
        self._balance_bits[account_id] = balance_bits - bits

    @property
    def accounts(self) -> Collection[str]:
        """Those that bits were credited to."""
        return self._balance_bits.keys()

    def balance_bits(self, account_id: str) -> int:
        """Granted and neither reserved nor charged."""
        return self._balance_bits.get(account_id, 0)

    def reserved_bits(self, account_id: str) -> int:
        """Held for open answers."""
        return self._reserved_bits.get(account_id, 0)

    def spent_bits(self, account_id: str) -> int:
        """Charged since the beginning or since everything was forfeited, less what was refunded."""
        return self._spent_bits.get(account_id, 0)

    def unspent_bits(self, account_id: str) -> int:
        """Granted, and not charged."""
        return self.balance_bits(account_id) + self.reserved_bits(account_id)

    def short(self, accounts: Iterable[Account], bits: int) -> Sequence[Account]:
        """The accounts that have too little for a reservation of `bits`; none if it would succeed."""
        return [account for account in accounts if self.balance_bits(account.id) < bits]

    def reserve(self, accounts: tuple[Account, ...], bits: int) -> Hold | None:
        """Hold `bits` in every account, or in none (None) if any has too little."""
        hold = Hold(self, accounts)
        return hold if hold.extend(bits) else None

    def move(self, account_id: str, *, reserved: int) -> None:
        """Move bits between balance and reserved (negative: back). They must be there."""
        balance_bits, reserved_bits = (
            self.balance_bits(account_id) - reserved,
            self.reserved_bits(account_id) + reserved,
        )
        assert balance_bits >= 0
        assert reserved_bits >= 0
        self._balance_bits[account_id] = balance_bits
        self._reserved_bits[account_id] = reserved_bits

    def spend(self, account_id: str, bits: int) -> None:
        """Reserved bits leave for good."""
        assert 0 <= bits <= self.reserved_bits(account_id)
        self._reserved_bits[account_id] -= bits
        self._spent_bits[account_id] = self.spent_bits(account_id) + bits

    def refund(self, account_id: str, bits: int) -> None:
        """Bits that had been spent may be released again."""
        self.credit(account_id, bits)
        self._spent_bits[account_id] = self.spent_bits(account_id) - bits


class Hold:
    """Bits reserved for one answer in each of its accounts, all or none."""

    __slots__ = ("_generation", "_purse", "accounts", "charged_bits", "closed", "expires_s", "left_bits")

    def __init__(self, purse: Purse, accounts: tuple[Account, ...]) -> None:
        self._purse = purse
        self._generation = purse.generation
        self.accounts = accounts
        self.expires_s = min((a.expires_s for a in accounts if a.expires_s is not None), default=None)
        self.left_bits = 0
        self.charged_bits = 0
        self.closed = False

    @property
    def void(self) -> bool:
        """Whether the purse was forfeited since: nothing can be reserved, charged or refunded."""
        return self._generation != self._purse.generation

    def extend(self, bits: int) -> bool:
        """Reserve `bits` more in every account, or in none. A closed or void hold takes nothing any more."""
        if self.closed or self.void or self._purse.short(self.accounts, bits):
            return False
        for account in self.accounts:
            self._purse.move(account.id, reserved=bits)
        self.left_bits += bits
        return True

    def extend_with_rest(self) -> None:
        """Reserve whatever the purse still has for all accounts: the store has no more, and nothing should be stranded."""
        self.extend(min((self._purse.balance_bits(account.id) for account in self.accounts), default=0))

    def charge(self, bits: int) -> None:
        """These bits leave now. Raises `ValueError` rather than charge more than is reserved, or anything to a void hold."""
        if self.void:
            raise ValueError(f"charge of {bits} bits against a void hold")
        if not 0 <= bits <= self.left_bits:
            raise ValueError(f"charge of {bits} bits against a hold of {self.left_bits}")
        for account in self.accounts:
            self._purse.spend(account.id, bits)
        self.left_bits -= bits
        self.charged_bits += bits

    def refund(self, bits: int) -> None:
        """Settled cheaper than charged: the difference may be released again. Raises `ValueError` beyond the charge."""
        if not 0 <= bits <= self.charged_bits:
            raise ValueError(f"refund of {bits} bits against a charge of {self.charged_bits}")
        if not self.void:
            for account in self.accounts:
                self._purse.refund(account.id, bits)
        self.charged_bits -= bits

    def close(self) -> None:
        """Give back what was reserved and not used, for good. Closing twice gives back once."""
        self.closed = True
        for account in self.accounts if not self.void else ():
            self._purse.move(account.id, reserved=-self.left_bits)
        self.left_bits = 0

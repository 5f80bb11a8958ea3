"""What processes hold of the accounts: granted by the ledger, and neither charged nor given back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from policy.budget import Purse


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Of one account."""

    leased_bits: int = 0  # free to be reserved
    reserved_bits: int = 0  # for open answers


NOTHING = Held()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Of one process, or of all that serve together."""

    answers: int = 0  # admitted and not ended
    accounts: Mapping[str, Held] = field(default_factory=dict)

    def of(self, account: str) -> Held:
        """Of this account; nothing if it is not known here."""
        return self.accounts.get(account, NOTHING)


def in_purse(purse: Purse, *, answers: int) -> Holdings:
    """Of the process whose purse this is."""
    accounts = {
        account: Held(leased_bits=purse.balance_bits(account), reserved_bits=purse.reserved_bits(account))
        for account in purse.accounts
    }
    return Holdings(answers=answers, accounts=accounts)


def together(parts: Iterable[Holdings]) -> Holdings:
    """The sum."""
    answers, accounts = 0, dict[str, Held]()
    for part in parts:
        answers += part.answers
        for account, held in part.accounts.items():
            before = accounts.get(account, NOTHING)
            accounts[account] = Held(
                leased_bits=before.leased_bits + held.leased_bits,
                reserved_bits=before.reserved_bits + held.reserved_bits,
            )
    return Holdings(answers=answers, accounts=accounts)

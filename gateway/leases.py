"""Keeps this process's purse filled from the ledger: a grant debits the store, durably, before a bit of it may leave.

What a crash means here: everything granted stays spent. Only an orderly close gives the rest back, and it is written to
the audit log first.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from gateway.ports import AccountLimit, Clock, Granted, Ledger, OverLimit, Wanted
from gateway.record import Leaf, LeaseClosed, LeaseGranted
from policy.budget import Account, Hold, Purse
from policy.limits import LEASE_PARTS

LEASES_KEPT = 64  # more than the answers that are usually open or waiting to be settled


class Leases:
    """The leases of one process. Methods raise `LedgerUnavailable` when the store does."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        record: Callable[[Leaf], None],
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        self.purse = Purse()
        self._ledger = ledger
        self._clock = clock
        self._record = record
        self._flush = flush
        self._holder = secrets.token_hex(16)
        self._open: dict[str, Mapping[str, int]] = {}
        self._granted_bits: Counter[str] = Counter()  # by account, over the open leases
        self._registered: dict[str, int] = {}
        self._refilling = asyncio.Lock()  # one grant at a time: those who wait behind it find the purse filled

    async def register(self, accounts: Sequence[Account]) -> Sequence[str]:
        """Make accounts known to the store, or change their limits: at start and by a reload, when a policy comes into force.

        Returns the accounts whose limit was raised.
        """
        changed = [account for account in accounts if self._registered.get(account.id) != account.limit_bits]
        if not changed:
            return ()
        limits = [AccountLimit(account=account.id, limit_bits=account.limit_bits) for account in changed]
        raised = await self._ledger.register(limits)
        self._registered |= {account.id: account.limit_bits for account in changed}
        return raised

    async def reserve(self, accounts: tuple[Account, ...], *, least_bits: int, most_bits: int) -> Hold | OverLimit:
        """Hold between `least_bits` and `most_bits`, the same in every account, or nothing in any."""
        hold = self.purse.reserve(accounts, most_bits)
        if hold is not None:
            return hold
        over = await self.fill(accounts, bits=most_bits)
        # No await from here to the reservation: nobody can take what is being counted.
        affordable_bits = min(self.purse.balance_bits(account.id) for account in accounts)
        if over is not None and affordable_bits < least_bits:
            return over
        hold = self.purse.reserve(accounts, min(most_bits, affordable_bits))
        assert hold is not None
        return hold

    async def fill(self, accounts: tuple[Account, ...], *, bits: int) -> OverLimit | None:
        """Have `bits` in every account's purse. On return they are there, until the caller awaits again.

        `OverLimit` if the store has no more; whatever it still had is in the purse then.
        """
        async with self._refilling:
            while missing := self.purse.missing(accounts, bits):
                await self.register([account for account in accounts if account.id not in self._registered])
                wanted = {
                    account.id: Wanted(least_bits=1, most_bits=missing[account.id] + account.limit_bits // LEASE_PARTS)
                    for account in accounts
                    if account.id in missing
                }
                # A task of its own: if the caller is cancelled, a grant that happens must still reach the purse.
                granted = await asyncio.shield(asyncio.ensure_future(self._grant(wanted)))
                if isinstance(granted, OverLimit):
                    return granted
            return None

    async def tidy(self) -> None:
        """Close the leases that are used up, with nothing returned: what is left in the purse fits into younger ones.

        The youngest are kept, so that what answers get back when they are settled has a lease to go back through.
        """
        used_up = []
        for lease, granted in list(self._open.items())[: max(len(self._open) - LEASES_KEPT, 0)]:
            if not all(self._spare_bits(account) >= bits for account, bits in granted.items()):
                break
            for account, bits in granted.items():
                self._granted_bits[account] -= bits
            used_up.append(lease)
        for lease in used_up:
            del self._open[lease]
        await asyncio.gather(
            *(self._ledger.close_lease(lease=lease, holder=self._holder, returned={}) for lease in used_up)
        )

    def _spare_bits(self, account: str) -> int:
        """How much of what open leases brought has left for good."""
        kept_bits = self.purse.balance_bits(account) + self.purse.reserved_bits(account)
        return self._granted_bits[account] - kept_bits

    async def close(self) -> None:
        """Give back what is left of every lease. Only when nothing can leave any more."""
        await self.tidy()
        returns = {lease: self._return(lease, granted) for lease, granted in self._open.items()}
        await self._flush()  # what the log does not know as returned must not be returned
        await asyncio.gather(
            *(
                self._ledger.close_lease(lease=lease, holder=self._holder, returned=returned)
                for lease, returned in returns.items()
            )
        )
        self._open.clear()

    def _return(self, lease: str, granted: Mapping[str, int]) -> Mapping[str, int]:
        returned = {account: min(bits, self.purse.balance_bits(account)) for account, bits in granted.items()}
        for account, bits in returned.items():
            self.purse.debit(account, bits)
        self._record(LeaseClosed(at_ms=self._now_ms(), lease=lease, returned=returned))
        return returned

    async def _grant(self, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        answer = await self._ledger.grant(lease=secrets.token_hex(16), holder=self._holder, wanted=wanted)
        if isinstance(answer, Granted):
            for account, bits in answer.bits.items():
                self.purse.credit(account, bits)
                self._granted_bits[account] += bits
            self._open[answer.lease] = answer.bits
            self._record(LeaseGranted(at_ms=self._now_ms(), lease=answer.lease, bits=dict(answer.bits)))
        return answer

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)

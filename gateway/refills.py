"""When the hold of an open answer runs short: bits from the ledger, or a new hold where a budget's window has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.leases import Leases
from gateway.metrics import Metrics
from gateway.ports import Clock, LedgerUnavailable
from gateway.record import Leaf, Renewed
from gateway.session import Budget, BudgetGone, Session, closing_bits

RENEWAL_PAUSE_S = 1.0  # between two questions of one answer to a store that is away at a window's edge


class Refills:
    """Runs beside the tick, which must never wait for a store."""

    def __init__(
        self,
        *,
        leases: Leases,
        metrics: Metrics,
        enlist: Callable[[Session], None],
        record: Callable[[Leaf], None],
        clock: Clock,
        log: Callable[..., None],
    ) -> None:
        self._leases = leases
        self._metrics = metrics
        self._enlist = enlist
        self._record = record
        self._clock = clock
        self._log = log
        self._running: set[asyncio.Task[None]] = set()

    def start(self, session: Session) -> None:
        """The session is `Budget.SHORT`; when it is `OPEN` or `SPENT` again, the tick is told."""
        task = asyncio.create_task(self._refill(session))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _refill(self, session: Session) -> None:
        renewing = {account.id for account in session.accounts()} != {account.id for account in session.hold.accounts}
        try:
            await (self._renew(session) if renewing else self._extend(session))
        except LedgerUnavailable as fault:
            self._metrics.ledger_errors.inc()
            self._log("ledger unavailable", error=str(fault))
            if (
                renewing
            ):  # there is nothing that even its ending could be charged to, so it asks again: not at every tick
                await self._clock.sleep_until(self._clock.monotonic_s() + RENEWAL_PAUSE_S)
            session.budget = Budget.SPENT
        self._enlist(session)

    async def _extend(self, session: Session) -> None:
        over = await self._leases.fill(session.hold.accounts, bits=session.shortfall_bits)
        if over is None:
            session.budget = Budget.OPEN
        else:
            session.over = over
            session.hold.extend_with_rest()  # nothing should be stranded; a hold that was closed meanwhile takes nothing
            session.budget = Budget.SPENT

    async def _renew(self, session: Session) -> None:
        """Under the accounts of the new window. What the answer holds in accounts that stay is moved, not doubled."""
        accounts, before = session.accounts(), {account.id for account in session.hold.accounts}
        least_bits = closing_bits(ticks_max=session.ticks_max)
        wanted_bits = max(least_bits, session.hold.left_bits)
        fresh = tuple(account for account in accounts if account.id not in before)
        await self._leases.fill(fresh, bits=wanted_bits)
        # No await from here: what the old hold gives back cannot be taken by anybody else.
        if session.hold.closed or session.hold.void:
            return  # the answer is over, or will be told that its budget is gone
        purse = self._leases.purse
        kept_bits = session.hold.left_bits
        session.hold.close()
        affordable_bits = min(purse.balance_bits(account.id) for account in accounts)
        hold = purse.reserve(accounts, min(max(wanted_bits, kept_bits), affordable_bits))
        assert hold is not None
        if hold.left_bits < least_bits:
            hold.close()
            session.fail(BudgetGone())
            return
        session.renew(hold)
        self._record(
            Renewed(
                at_ms=int(self._clock.wall_s() * 1000),
                answer=session.identity.id,
                accounts=tuple(account.id for account in accounts),
            )
        )
        session.budget = Budget.OPEN

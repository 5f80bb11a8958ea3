"""Stands between a host's gateway and its ledger: remembers fences across restarts, and asks now and then if they still hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from gateway import log, parts
from gateway.ledger.fenced import FencedLedger
from gateway.metrics import Metrics
from gateway.ports import AuditLog, Clock, Ledger, LedgerUnavailable
from gateway.record import Leaf
from gateway.recovery import known_fences
from policy.limits import LEASE_REFRESH_S, TALLY_S


def guarded(ledger: Ledger, *, audit: AuditLog, clock: Clock, record: Callable[[Leaf], None]) -> FencedLedger:
    """The ledger, with all that this audit log knows of its fences. Reads the recent part of the log."""

    def on_frozen(seen: Mapping[str, int], shown: Mapping[str, int]) -> None:
        log.problem("the ledger has forgotten grants; accounts frozen", seen=dict(seen), shown=dict(shown))
        for leaf in parts.frozen(seen=seen, shown=shown, at_ms=_ms(clock)):
            record(leaf)

    return FencedLedger(ledger, fences=known_fences(audit.recent()), on_frozen=on_frozen)


async def keep_guard(
    ledger: FencedLedger,
    *,
    accounts: Callable[[], Collection[str]],
    clock: Clock,
    metrics: Metrics,
    record: Callable[[Leaf], None],
) -> None:
    """Look after it for ever. `accounts` are those in use; of the others the fences are forgotten in time."""
    recorded_s = clock.monotonic_s()
    while True:
        await asyncio.sleep(LEASE_REFRESH_S)
        try:
            await ledger.check()
        except LedgerUnavailable as fault:
            metrics.ledger_errors.inc()
            log.problem("ledger unavailable", error=str(fault))
        if clock.monotonic_s() - recorded_s >= TALLY_S:
            recorded_s = clock.monotonic_s()
            ledger.forget_all_but(accounts())
            for leaf in parts.fences(ledger.fences, at_ms=_ms(clock)):
                record(leaf)


def _ms(clock: Clock) -> int:
    return int(clock.wall_s() * 1000)

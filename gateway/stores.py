"""Which store a policy names, opened."""

from __future__ import annotations

from pathlib import Path

from gateway import log
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger
from gateway.ports import Clock, Ledger
from policy.rules import MemoryLedger as MemoryLedgerRules
from policy.rules import Policy
from policy.rules import PostgresLedger as PostgresLedgerRules


def open_ledger(policy: Policy, *, codes: str, clock: Clock) -> Ledger:
    """The policy's ledger. `codes` names the code set of the leases that are granted through it."""
    if isinstance(policy.ledger, MemoryLedgerRules):
        return MemoryLedger(clock=clock)
    if isinstance(policy.ledger, PostgresLedgerRules):
        return PostgresLedger(policy.ledger.url, standbys=policy.ledger.standbys, codes=codes, log=log.problem)
    return SqliteLedger(Path(policy.ledger.path), codes=codes)

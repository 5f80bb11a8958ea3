"""`python -m gateway.ledger.bench STORE`: how many grants a second a store acknowledges, and how long each takes.

A store has no HTTP interface, so this cannot live in loadtests/, which knows nothing else of the gateway. It leaves its
accounts and leases behind: give it a store of its own, on the disk or the server that you would use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger
from gateway.ports import AccountLimit, Granted, Ledger, Wanted

HOLDERS = (1, 16, 64)  # that ask at the same time, each for its next lease when it has the last
ACCOUNTS = (1, 64)  # one that everybody draws on, or one for each
LIMIT_BITS = 2**62
WANTED = Wanted(least_bits=1, most_bits=4096)


def main() -> int:
    """A line of JSON for every number of holders and of accounts."""
    parser = argparse.ArgumentParser(prog="python -m gateway.ledger.bench", description=__doc__)
    parser.add_argument("store", help="sqlite:FILE or postgresql://…, as in a policy; one that nothing else uses")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="for each line (default 1)")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.store, seconds=arguments.seconds))
    return 0


async def run(store: str, *, seconds: float) -> None:
    """Measure every combination, on one connection of a process to its store."""
    path = store.removeprefix("sqlite:")
    ledger: Ledger = PostgresLedger(store, log=_tell) if path == store else SqliteLedger(Path(path))
    names = [f"bench:{secrets.token_hex(4)}:{number}" for number in range(max(ACCOUNTS))]
    await ledger.register([AccountLimit(account=name, limit_bits=LIMIT_BITS) for name in names])
    for holders in HOLDERS:
        for accounts in ACCOUNTS:
            result = await measure(ledger, names[:accounts], holders=holders, seconds=seconds)
            sys.stdout.write(json.dumps({"holders": holders, "accounts": accounts, **result}) + "\n")
    await ledger.close()


async def measure(ledger: Ledger, accounts: list[str], *, holders: int, seconds: float) -> dict[str, float]:
    """All holders ask for one lease after another. Grants a second, and how long they took."""
    taken_s: list[float] = []
    turns = cycle(accounts)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(holders):
            group.create_task(_hold(ledger, turns, taken_s, end_s=began_s + seconds))
    elapsed_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    taken_s.sort()
    return {
        "grants_per_s": len(taken_s) / elapsed_s,
        "p50_ms": taken_s[len(taken_s) // 2] * 1e3,
        "p99_ms": taken_s[len(taken_s) * 99 // 100] * 1e3,
        "cpu_us": cpu_s / len(taken_s) * 1e6,  # of this process: all of SQLite's work, of PostgreSQL's only the asking
    }


def _tell(message: str, **fields: object) -> None:
    sys.stderr.write(f"{message}: {fields}\n")


async def _hold(ledger: Ledger, accounts: Iterator[str], taken_s: list[float], *, end_s: float) -> None:
    holder = secrets.token_hex(16)
    while (asked_s := time.perf_counter()) < end_s:
        granted = await ledger.grant(lease=secrets.token_hex(16), holder=holder, wanted={next(accounts): WANTED})
        assert isinstance(granted, Granted)
        taken_s.append(time.perf_counter() - asked_s)


if __name__ == "__main__":
    sys.exit(main())

"""What each operation of the ledger reads and writes in SQLite. The caller holds the transaction, and undoes what raises."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import apsw

from gateway.ports import (
    AccountFrozen,
    AccountLimit,
    AccountState,
    ClockBehind,
    Granted,
    LeaseState,
    OverLimit,
    Wanted,
)
from policy.limits import HOLDER_S

# Joins would be shorter here and cost four times as much: a grant runs these for every account.
_OF_SERIES = "SELECT series, step, steps FROM account WHERE id = ?"
_REMAINING = "SELECT limit_bits - debited_bits, frozen_fence, newest_step FROM account WHERE id = ?"
_AMOUNTS = """
SELECT account, bits, returned_bits FROM lease_amount
WHERE lease = (SELECT id FROM lease WHERE id = ? AND holder = ?)
"""
_DEBIT = "UPDATE account SET debited_bits = debited_bits + ?, fence = fence + 1 WHERE id = ? RETURNING fence"
# A step is bounded by its series alone: the limit may have been raised since the step was registered.
_DEBIT_STEP = """
UPDATE account SET debited_bits = debited_bits + ?1, limit_bits = max(limit_bits, debited_bits + ?1) WHERE id = ?2
"""
_RETURN = """
UPDATE account SET debited_bits = debited_bits - ?1, limit_bits = max(wanted_limit_bits, debited_bits - ?1) WHERE id = ?2
RETURNING series, step + steps
"""
_RETURN_TO_SERIES = """
UPDATE account SET debited_bits = debited_bits - ?1, limit_bits = max(wanted_limit_bits, debited_bits - ?1)
WHERE id = ?2 AND newest_step < ?3
"""
_ALL_STATES = """
SELECT id, limit_bits, debited_bits, fence, series, frozen_fence IS NOT NULL FROM account ORDER BY id
"""
_STATES = """
WITH named AS (SELECT id, series FROM account WHERE id IN (SELECT value FROM json_each(?)))
SELECT id, limit_bits, debited_bits, fence, series, frozen_fence IS NOT NULL FROM account
WHERE id IN (SELECT id FROM named UNION SELECT series FROM named) ORDER BY id
"""


def register(db: apsw.Connection, limits: Sequence[AccountLimit]) -> Sequence[str]:
    """See `Ledger.register`."""
    raised: list[str] = []
    for limit in limits:
        step = limit.step
        if step is not None:
            raised += register(db, [AccountLimit(account=step.series, limit_bits=limit.limit_bits)])
        before = db.execute("SELECT wanted_limit_bits FROM account WHERE id = ?", (limit.account,)).get
        db.execute(
            "INSERT INTO account (id, wanted_limit_bits, limit_bits, series, step, steps) VALUES (?1, ?2, ?2, ?3, ?4, ?5)"
            " ON CONFLICT (id) DO UPDATE SET wanted_limit_bits = ?2, limit_bits = max(?2, debited_bits), steps = ?5",
            (
                limit.account,
                limit.limit_bits,
                *((step.series, step.number, step.steps) if step else (None, None, None)),
            ),
        )
        if before is None or before == limit.limit_bits or step is not None:
            continue
        change = "INSERT INTO limit_change (account, from_bits, to_bits) VALUES (?, ?, ?)"
        db.execute(change, (limit.account, before, limit.limit_bits))
        if limit.limit_bits > before:
            raised.append(limit.account)
    return raised


def grant(
    db: apsw.Connection, *, lease: str, holder: str, codes: str, wanted: Mapping[str, Wanted]
) -> Granted | OverLimit:
    """See `Ledger.grant`."""
    if db.execute("SELECT 1 FROM lease WHERE id = ?", (lease,)).get is not None:
        return _granted(db, lease)
    plan: list[tuple[str, str, int, int]] = []  # account, what it is counted in, bits, remaining bits
    planned_bits: Counter[str] = Counter()  # two steps of one series may be wanted together
    for account, want in wanted.items():
        counted, remaining_bits = _remaining(db, account)
        remaining_bits -= planned_bits[counted]
        if remaining_bits < want.least_bits:
            return OverLimit(account=account, remaining_bits=remaining_bits)
        bits = min(want.most_bits, remaining_bits)
        planned_bits[counted] += bits
        plan.append((account, counted, bits, remaining_bits - bits))
    db.execute("INSERT INTO lease (id, holder, codes) VALUES (?, ?, ?)", (lease, holder, codes))
    fences = {}
    for account, counted, bits, _ in plan:
        if counted != account:
            db.execute(_DEBIT_STEP, (bits, account))
        fences[counted] = db.execute(_DEBIT, (bits, counted)).get
        amount = "INSERT INTO lease_amount (lease, account, bits, fence) VALUES (?, ?, ?, ?)"
        db.execute(amount, (lease, account, bits, fences[counted]))
    return Granted(
        lease=lease,
        bits={account: bits for account, _, bits, _ in plan},
        fences=fences,
        remaining_bits={account: remaining_bits for account, _, _, remaining_bits in plan},
    )


def close_lease(db: apsw.Connection, *, lease: str, holder: str, returned: Mapping[str, int]) -> Collection[str]:
    """See `Ledger.close_lease`."""
    amounts = {account: rest for account, *rest in db.execute(_AMOUNTS, (lease, holder))}
    if not amounts:
        return ()
    for account, bits in returned.items():
        if account not in amounts or not 0 <= bits <= amounts[account][0]:
            raise ValueError(f"lease {lease} cannot return {bits} bits to {account}")
    closed = [account for account in returned if amounts[account][1] is None]
    for account in closed:
        bits = returned[account]
        close = "UPDATE lease_amount SET returned_bits = ? WHERE lease = ? AND account = ?"
        db.execute(close, (bits, lease, account))
        series, retired_by = db.execute(_RETURN, (bits, account)).get
        if series is not None:
            db.execute(_RETURN_TO_SERIES, (bits, series, retired_by))
    return closed


def beat(db: apsw.Connection, holder: str) -> int:
    """See `Ledger.beat`."""
    db.execute(
        "INSERT INTO holder (id, seen_at_s) VALUES (?, unixepoch('subsec'))"
        " ON CONFLICT (id) DO UPDATE SET seen_at_s = excluded.seen_at_s",
        (holder,),
    )
    alive: int = db.execute("SELECT count(*) FROM holder WHERE seen_at_s > unixepoch('subsec') - ?", (HOLDER_S,)).get
    return alive


def idle_s(db: apsw.Connection, holder: str) -> float | None:
    """See `Ledger.idle_s`."""
    idle_s: float | None = db.execute("SELECT unixepoch('subsec') - seen_at_s FROM holder WHERE id = ?", (holder,)).get
    return idle_s


def states(db: apsw.Connection, accounts: Collection[str] | None) -> Sequence[AccountState]:
    """See `Ledger.states`."""
    rows = db.execute(_ALL_STATES) if accounts is None else db.execute(_STATES, (json.dumps(list(accounts)),))
    return [
        AccountState(
            account=row[0], limit_bits=row[1], debited_bits=row[2], fence=row[3], series=row[4], frozen=bool(row[5])
        )
        for row in rows
    ]


def freeze(db: apsw.Connection, fences: Mapping[str, int]) -> None:
    """See `Ledger.freeze`."""
    for account, fence in fences.items():
        update = "UPDATE account SET frozen_fence = max(?, coalesce(frozen_fence, 0)) WHERE id = ? RETURNING 1"
        if db.execute(update, (fence, account)).get is None:
            raise KeyError(f"account {account} is not registered")


def thaw(db: apsw.Connection, account: str, *, lost_bits: int) -> bool:
    """See `Ledger.thaw`."""
    update = (
        "UPDATE account SET debited_bits = debited_bits + min(?, limit_bits - debited_bits),"
        " fence = max(fence, frozen_fence) + 1, frozen_fence = NULL"
        " WHERE id = ? AND frozen_fence IS NOT NULL RETURNING 1"
    )
    return db.execute(update, (lost_bits, account)).get is not None


def leases(db: apsw.Connection, *, holder: str | None, after: str, count_max: int) -> Sequence[LeaseState]:
    """See `Ledger.leases`."""
    page = "SELECT * FROM lease WHERE id > :after ORDER BY id LIMIT :count"
    if holder is not None:
        page = "SELECT * FROM lease WHERE holder = :holder AND id > :after ORDER BY id LIMIT :count"
    rows = db.execute(
        f"SELECT lease.id, holder, codes, granted_at, account, bits, returned_bits FROM ({page}) AS lease"  # noqa: S608  constants
        " LEFT JOIN lease_amount AS amount ON amount.lease = lease.id ORDER BY lease.id, account",
        {"holder": holder, "after": after, "count": count_max},
    )
    found = []
    for (lease, whose, codes, granted_at), group in groupby(rows, key=itemgetter(0, 1, 2, 3)):
        amounts = [(account, bits, returned) for *_, account, bits, returned in group if account is not None]
        found.append(
            LeaseState(
                lease=lease,
                holder=whose,
                codes=codes,
                granted_at=granted_at,
                bits={account: bits for account, bits, _ in amounts},
                returned_bits={account: returned for account, _, returned in amounts if returned is not None},
            )
        )
    return found


def _remaining(db: apsw.Connection, account: str) -> tuple[str, int]:
    """The account that bounds this one, and how much it could grant."""
    row = db.execute(_OF_SERIES, (account,)).get
    if row is None:
        raise KeyError(f"account {account} is not registered")
    series, step, steps = row
    counted = account if series is None else series
    remaining_bits, frozen_fence, newest_step = db.execute(_REMAINING, (counted,)).get
    if frozen_fence is not None:
        raise AccountFrozen(f"account {counted} is frozen")
    if step is None or newest_step - 1 <= step <= newest_step:
        return counted, remaining_bits
    if step < newest_step:
        raise ClockBehind(f"account {account} is over; is this gateway's clock behind?")
    # What this step pushes out of every window counts no more. A limit that was lowered may follow it down.
    retired = "SELECT coalesce(sum(debited_bits), 0) FROM account WHERE series = ? AND step > ? AND step <= ?"
    retired_bits: int = db.execute(retired, (counted, newest_step - steps, step - steps)).get
    db.execute(_RETURN, (retired_bits, counted))
    db.execute("UPDATE account SET newest_step = ? WHERE id = ?", (step, counted))
    return counted, db.execute(_REMAINING, (counted,)).get[0]


def _granted(db: apsw.Connection, lease: str) -> Granted:
    """What was granted before, and what is left now."""
    select = (
        "SELECT amount.account, bits, amount.fence, counted.id, counted.limit_bits - counted.debited_bits"
        " FROM lease_amount AS amount JOIN account ON account.id = amount.account"
        " JOIN account AS counted ON counted.id = coalesce(account.series, account.id) WHERE lease = ?"
    )
    rows: list[tuple[Any, ...]] = db.execute(select, (lease,)).fetchall()
    return Granted(
        lease=lease,
        bits={account: bits for account, bits, *_ in rows},
        fences={counted: fence for _, _, fence, counted, _ in rows},
        remaining_bits={row[0]: row[4] for row in rows},
    )

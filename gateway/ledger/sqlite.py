"""A ledger in one SQLite file: one writer thread, WAL, `synchronous=FULL`, all waiting operations in one transaction.

FULL because NORMAL loses acknowledged commits in a power cut (`tests/gateway/ledger/test_power_cut.py` shows both). One
writer because with several on one file the unluckiest starves. APSW because it bundles an SQLite without the WAL-reset
corruption bug.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import apsw

from gateway.ledger import sqlite_operations as operations
from gateway.ledger.sqlite_schema import prepare
from gateway.ports import (
    AccountLimit,
    AccountState,
    Granted,
    LeaseState,
    LedgerUnavailable,
    NotGranted,
    OverLimit,
    Wanted,
)

BATCH_OPERATIONS_MAX = 256  # group commit: beyond this a batch gains nothing
BUSY_TIMEOUT_MS = 2000  # another process may use the file, for less; who asks meanwhile waits up to twice this
CHECKPOINT_PAGES = 1000  # of the write-ahead log, SQLite's own figure; 4 MB
REFUSALS = (ValueError, KeyError, OverflowError, NotGranted)  # of one operation; its neighbours go on

T = TypeVar("T")
_Operation = tuple[Callable[[apsw.Connection], Any], "Future[Any]"]


class SqliteLedger:
    """The `Ledger` port on one file. Raises `LedgerUnavailable` if the file cannot be opened as a ledger."""

    def __init__(self, path: Path, *, codes: str = "") -> None:
        self._codes = codes
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = apsw.Connection(str(path))
            self._db.set_busy_timeout(BUSY_TIMEOUT_MS)
            # IMMEDIATE takes the write lock at BEGIN, where waiting for it helps; a deferred one fails at once, later.
            self._db.transaction_mode = "IMMEDIATE"
            prepare(self._db)
        except (apsw.Error, OSError) as fault:
            raise LedgerUnavailable(f"{path}: {fault}") from fault
        self._wal_pages = 0
        self._db.set_wal_hook(self._committed)  # instead of SQLite's own checkpoints, which hide a failed flush
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    async def register(self, limits: Sequence[AccountLimit]) -> Sequence[str]:
        """See `Ledger.register`."""
        return await self._submit(lambda db: operations.register(db, limits))

    async def grant(self, *, lease: str, holder: str, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        """See `Ledger.grant`."""
        return await self._submit(
            lambda db: operations.grant(db, lease=lease, holder=holder, codes=self._codes, wanted=wanted)
        )

    async def close_lease(self, *, lease: str, holder: str, returned: Mapping[str, int]) -> Collection[str]:
        """See `Ledger.close_lease`."""
        return await self._submit(lambda db: operations.close_lease(db, lease=lease, holder=holder, returned=returned))

    async def beat(self, holder: str) -> int:
        """See `Ledger.beat`."""
        return await self._submit(lambda db: operations.beat(db, holder))

    async def idle_s(self, holder: str) -> float | None:
        """See `Ledger.idle_s`."""
        return await self._submit(lambda db: operations.idle_s(db, holder))

    async def states(self, accounts: Collection[str] | None = None) -> Sequence[AccountState]:
        """See `Ledger.states`."""
        return await self._submit(lambda db: operations.states(db, accounts))

    async def freeze(self, fences: Mapping[str, int]) -> None:
        """See `Ledger.freeze`."""
        await self._submit(lambda db: operations.freeze(db, fences))

    async def thaw(self, account: str, *, lost_bits: int) -> bool:
        """See `Ledger.thaw`."""
        return await self._submit(lambda db: operations.thaw(db, account, lost_bits=lost_bits))

    async def leases(
        self, *, holder: str | None = None, after: str = "", count_max: int = 1000
    ) -> Sequence[LeaseState]:
        """See `Ledger.leases`."""
        return await self._submit(lambda db: operations.leases(db, holder=holder, after=after, count_max=count_max))

    async def close(self) -> None:
        """Write what is queued, then close the file."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        if self._broken is not None:
            # Closing would move the write-ahead log into the database; the next start does that, from the beginning.
            self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._db.close()

    async def _submit(self, operation: Callable[[apsw.Connection], T]) -> T:
        future: Future[T] = Future()
        self._queue.put((operation, future))
        # Shielded: a caller that goes away must not turn a grant that happens into one that is forgotten half-way.
        return await asyncio.shield(asyncio.wrap_future(future))

    def _write(self) -> None:
        """The writer thread: take all that waits, run it in one transaction, answer only after the commit is durable."""
        while (first := self._queue.get()) is not None:
            batch = [first]
            last = False
            while len(batch) < BATCH_OPERATIONS_MAX and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    last = True
                    break
                batch.append(following)
            self._answer(batch)
            if self._wal_pages >= CHECKPOINT_PAGES:
                self._checkpoint()
            if last:
                return

    def _answer(self, batch: list[_Operation]) -> None:
        if self._broken is not None:
            fault = LedgerUnavailable("the ledger failed before; restart the gateway, after a look at the disk")
            fault.__cause__ = self._broken
            answers: Sequence[Any] = [fault] * len(batch)
        else:
            try:
                answers = self._commit(batch)
            except LedgerUnavailable as unavailable:
                answers = [unavailable] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _commit(self, batch: list[_Operation]) -> Sequence[Any]:
        """The answers, or exceptions, of all operations, durable. Raises `LedgerUnavailable`."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            answers = [self._run(operation) for operation, _ in batch]
            self._db.execute("COMMIT")
        except (apsw.BusyError, apsw.FullError) as fault:
            # Somebody else held the file for longer than we wait, or the disk is full. The next batch may do better.
            self._roll_back()
            raise LedgerUnavailable(f"ledger: {fault}; nothing was written") from fault
        except Exception as fault:  # this thread must answer, whatever it met
            # The commit failed, or its fate is unknown. An unknown grant is a spent grant that nobody may use. A failed
            # flush is never tried again: the kernel may have dropped what it could not write, and would say that all is well.
            self._broken = fault
            self._roll_back()
            raise LedgerUnavailable(f"ledger: {fault}; restart the gateway, after a look at the disk") from fault
        return answers

    def _run(self, operation: Callable[[apsw.Connection], Any]) -> Any:
        self._db.execute("SAVEPOINT operation")  # one operation's refusal does not undo its neighbours
        try:
            answer = operation(self._db)
        except REFUSALS as refusal:
            self._db.execute("ROLLBACK TO operation")
            answer = refusal
        self._db.execute("RELEASE operation")
        return answer

    def _roll_back(self) -> None:
        """SQLite may have done so itself."""
        if not self._db.in_transaction:
            return
        try:
            self._db.execute("ROLLBACK")
        except apsw.Error as fault:
            self._broken = self._broken or fault

    def _committed(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        try:
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (apsw.BusyError, apsw.FullError):
            pass  # the log is longer for a while
        except apsw.Error as fault:
            self._broken = fault

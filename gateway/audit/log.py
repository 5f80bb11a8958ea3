"""The audit log of a host: segments that are written before anything leaves, and behind them the tree that outsiders verify."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from gateway.audit.batch import Batch, Scribe
from gateway.audit.keys import prepare
from gateway.audit.notary import Notary
from gateway.audit.note import Note, Verifier
from gateway.audit.sealing import Sealer
from gateway.audit.segments import SegmentLog, forget, locked
from gateway.metrics import Metrics
from gateway.ports import AuditFailed, Clock
from gateway.record import Entry, Leaf, Rekeyed
from policy.rules import Audit

CHECKPOINT_S = 0.5  # a checkpoint at least every second, with time for writing it
HOUSEKEEPING_S = 60.0


def scribe(rules: Audit, *, origin: str, clock: Clock) -> Scribe:
    """Who writes down the batches of one process: sealed to the policy's auditors, or without content if it names none."""
    sealer = Sealer(rules.auditors, origin=origin, random=os.urandom) if rules.auditors else None
    return Scribe(sealer=sealer, clock=clock)


class SignedLog:
    """The `AuditLog` port, on a directory. Opening it recovers. Raises `AuditFailed`."""

    def __init__(self, rules: Audit, *, clock: Clock, metrics: Metrics) -> None:
        self._rules = rules
        self._directory = Path(rules.directory)
        self._clock = clock
        self._metrics = metrics
        self._lock = locked(self._directory)  # before the log's key is made, until its last signature is there
        try:
            self._notary = Notary(self._directory)
            self.origin = self._notary.verifier.name
            self._segments = SegmentLog(
                self._directory,
                scribe=scribe(rules, origin=self.origin, clock=clock),
                signed=self._notary.signed,
                durable=self._notary.take,
            )
            self._notary.catch_up(self._directory)
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def verifier(self) -> Verifier:
        """The key whose signatures count now. Its name is the log's, which never changes."""
        return self._notary.verifier

    @property
    def size(self) -> int:
        """How many records are signed."""
        return self._notary.signed

    async def rekey(self) -> None:
        """Put another key into force: the prepared one, or one made now. Nothing else may be appended meanwhile.

        Raises `AuditFailed`. A crash on the way: the next start finishes the change, or the log has not heard of it.
        """
        following = prepare(self._directory, origin=self.origin)
        leaf = Rekeyed(at_ms=int(self._clock.wall_s() * 1000), key=str(following.verifier), previous=str(self.verifier))
        await self.append([Entry(leaf)])
        await asyncio.to_thread(self._notary.rekey, following)

    async def append(self, entries: Sequence[Entry]) -> None:
        """See `AuditLog.append`."""
        await self._segments.append(entries)

    async def append_batch(self, batch: Batch) -> None:
        """The same for what a worker has written down already."""
        await self._segments.append_batch(batch)

    @property
    def note(self) -> Note | None:
        """The last checkpoint, on disk; None if nothing was ever signed."""
        return self._notary.note

    def prove(self, old_size: int, size: int) -> Sequence[bytes]:
        """That the log of `old_size` leaves is the beginning of that of `size`, which is signed. Reads files, from any thread."""
        return self._notary.prove(old_size, size)

    def recent(self) -> Iterator[Leaf]:
        """See `AuditLog.recent`."""
        return self._segments.recent()

    async def run(self) -> None:
        """Sign now and then, and keep the directory, for ever. Raises `AuditFailed`, which must end the process."""
        kept_s = -HOUSEKEEPING_S
        while True:
            await self._notary.sign()
            self._metrics.audit_records.set(self._notary.signed)
            self._metrics.audit_checkpoint_at.set(self._clock.wall_s())
            if self._clock.monotonic_s() - kept_s >= HOUSEKEEPING_S:
                kept_s = self._clock.monotonic_s()
                await asyncio.to_thread(self._keep_house)
            await asyncio.sleep(CHECKPOINT_S)

    async def close(self) -> None:
        """Finish and sign what is under way, and let go of the files."""
        try:
            await self._segments.close()
            await self._notary.sign()
        finally:
            os.close(self._lock)

    def _keep_house(self) -> None:
        disk = os.statvfs(self._directory)
        self._metrics.audit_disk_free.set(disk.f_bavail * disk.f_frsize)
        if self._rules.content_kept_s is not None:
            before_s = self._clock.wall_s() - self._rules.content_kept_s
            try:
                forget(self._directory, signed=self._notary.signed, before_s=before_s)
            except OSError as fault:
                raise AuditFailed(f"audit log {self._directory}: {fault}") from fault

"""What a log's writer does beside writing it: ask the witnesses, and keep the newest checkpoint that a quorum has cosigned.

Nothing waits for it. It writes the files that `witnessed` reads, and never into the tree.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import aiohttp

from gateway.audit import files
from gateway.audit.log import SignedLog
from gateway.audit.note import Checkpoint, Note
from gateway.audit.quorum import Quorum
from gateway.audit.witness import Cosigned, Witnesses
from gateway.audit.witnessed import CONTRADICTED, WITNESSED
from gateway.metrics import Metrics
from gateway.ports import AuditFailed, Clock
from policy.rules import Audit

ASK_S = 10.0  # what an attacker could take back unseen; witnesses are asked to bear one question a second
RENEWALS = (
    4  # within the time that the policy gives: a log that is idle is cosigned again, and a quorum may fail thrice
)


class Cosignatures:
    """The only writer of both files, in the process that writes the log."""

    def __init__(
        self,
        rules: Audit,
        quorum: Quorum,
        *,
        audit: SignedLog,
        clock: Clock,
        metrics: Metrics,
        log: Callable[..., None],
    ) -> None:
        """Raises `ValueError` if the quorum is about other logs."""
        assert rules.witnesses is not None
        if quorum.logs and audit.verifier.public_key not in {log.public_key for log in quorum.logs}:
            raise ValueError(
                f"{rules.witnesses.policy} names logs, and not this one, or not by the key that it has now: log {audit.verifier}"
            )
        self._directory = Path(rules.directory)
        self._renew_s = rules.witnesses.within_s / RENEWALS
        self._quorum = quorum
        self._audit = audit
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self._text: str | None = None  # of the checkpoint that a quorum has cosigned in this life
        self._cosigned_s = -math.inf
        self._faults: Mapping[str, str] = {}
        for name in quorum.witnesses:
            metrics.audit_witness_errors.labels(name)

    async def run(self) -> None:
        """Ask now and then, until a witness contradicts the log. Raises `AuditFailed`, which must end the process."""
        session = aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "weir"},
        )
        async with session:
            witnesses = Witnesses(tuple(self._quorum.witnesses.values()), session=session)
            while True:
                note = self._audit.note
                if note is not None and self._due(note) and not await self._ask(witnesses, note):
                    return
                await asyncio.sleep(min(ASK_S, self._renew_s))

    def _due(self, note: Note) -> bool:
        return note.text != self._text or self._clock.monotonic_s() - self._cosigned_s >= self._renew_s

    async def _ask(self, witnesses: Witnesses, note: Note) -> bool:
        """Whether to go on asking."""
        try:
            found = await witnesses.cosign(note, partial(self._audit.prove, size=Checkpoint.parse(note.text).size))
        except* AuditFailed as group:
            raise group.exceptions[0] from None
        self._tell(found)
        try:
            if found.contradicted:
                await asyncio.to_thread(self._contradict, found)
                return False
            signed = found.under(note)
            if self._quorum.since_s(signed, now_s=self._clock.wall_s()) is not None:
                await asyncio.to_thread(self._keep, signed)
                self._text, self._cosigned_s = note.text, self._clock.monotonic_s()
        except OSError as fault:
            raise AuditFailed(f"{self._directory}: {fault}") from fault
        return True

    def _tell(self, found: Cosigned) -> None:
        for name, fault in found.faults.items():
            self._metrics.audit_witness_errors.labels(name).inc()
            if self._faults.get(name) != fault:
                self._log("a witness did not cosign the audit log", witness=name, fault=fault)
        self._faults = found.faults

    def _contradict(self, found: Cosigned) -> None:
        lines = [f"{name}: {found.faults[name]}" for name in found.contradicted]
        files.write(self._directory / CONTRADICTED, "; ".join(lines).encode() + b"\n")
        files.sync([self._directory])

    def _keep(self, signed: Note) -> None:
        files.write(self._directory / WITNESSED, signed.encode())
        # A crash before this line: what an earlier life was told stands, and the next one asks again.
        (self._directory / CONTRADICTED).unlink(missing_ok=True)
        files.sync([self._directory])

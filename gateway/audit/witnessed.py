"""Whether the log was witnessed lately enough for anything to leave: one process's view, from files, of what its writer has got.

The file `witnessed` is a checkpoint with the cosignatures of a quorum below. The file `contradicted` is there when a witness
has said that the log is not the one it has cosigned; it stays until a later life of the writer finds all witnesses content.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from gateway.audit.note import NOTE_BYTES_MAX, BadNote, Checkpoint, Note
from gateway.audit.quorum import Quorum
from gateway.metrics import Metrics
from gateway.ports import Clock
from policy.refusal import Reason, Refused
from policy.rules import Audit

WITNESSED = "witnessed"
CONTRADICTED = "contradicted"
CONTRADICTED_BYTES_MAX = 4096
LOOK_S = 1.0


class Witnessed:
    """Without witnesses in the policy everything is permitted, and nothing is watched."""

    def __init__(
        self,
        rules: Audit,
        *,
        origin: str,
        quorum: Quorum | None,
        clock: Clock,
        metrics: Metrics,
        lapsed: Callable[[], None],
        log: Callable[..., None],
    ) -> None:
        self._rule = rules.witnesses
        self._directory = Path(rules.directory)
        self._origin = origin
        self._quorum = quorum
        self._clock = clock
        self._metrics = metrics
        self._lapsed = lapsed  # told at every look that finds that nothing may leave: nothing that is open may go on
        self._log = log
        self._since_s: int | None = None  # the newest quorum's that was seen, by its witnesses' clocks
        self._seen_s = clock.monotonic_s()  # when it was first seen here; before the first, when this process began
        self._fault: str | None = None  # of the files
        self._told = False  # that nothing may leave
        # A file's content and what it is worth: checking signatures at every look would cost more than reading it.
        self._judged: tuple[bytes, int | None] = (b"", None)

    @property
    def refused(self) -> Refused | None:
        """Why nothing may leave; None if it may. Cheap: every request asks."""
        if self.objection is None:
            return None
        message = "No quorum of witnesses has seen this gateway's audit log lately, so nothing may leave."
        return Refused(reason=Reason.UNWITNESSED, message=message, retry_after_s=5)

    @property
    def objection(self) -> str | None:
        """The same for the operator."""
        if self._rule is None or self._fault is not None:
            return self._fault
        # By both clocks: one that is set back makes no cosignature young.
        age_s = self._clock.monotonic_s() - self._seen_s
        if self._since_s is not None:
            age_s = max(age_s, self._clock.wall_s() - self._since_s)
        if age_s <= self._rule.within_s:
            return None
        last = "never" if self._since_s is None else f"last {age_s:.0f} s ago"
        return f"the audit log must be witnessed every {self._rule.within_s} s, and was {last}"

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look at the files and at the time, and tell of what changed."""
        if self._rule is None:
            return
        since_s, self._fault = await asyncio.to_thread(self._read)
        # One that is older than what was seen here before, or no later by a clock that was set back, changes nothing.
        if since_s is not None and (self._since_s is None or since_s > self._since_s):
            self._since_s, self._seen_s = since_s, self._clock.monotonic_s()
            self._metrics.audit_witnessed_at.set(since_s)
        objection = self.objection
        if objection is not None:
            self._lapsed()
        if (objection is not None) != self._told:
            self._told = objection is not None
            self._log("nothing may leave" if self._told else "the audit log is witnessed again", reason=objection)

    def _read(self) -> tuple[int | None, str | None]:
        """The quorum's time, if there is one, and what is wrong, if anything is. No file is no fault: nobody was asked yet."""
        try:
            contradiction = _content(self._directory / CONTRADICTED, CONTRADICTED_BYTES_MAX)
            data = _content(self._directory / WITNESSED, NOTE_BYTES_MAX + 1)
        except OSError as fault:
            return None, str(fault)
        if contradiction is not None:
            return None, f"a witness contradicts the audit log: {contradiction.decode(errors='replace').strip()}"
        if data is None:
            return None, None
        if data != self._judged[0]:
            self._judged = (data, self._judge(data))
        since_s = self._judged[1]
        return since_s, None if since_s is not None else f"{self._directory / WITNESSED} shows no quorum of witnesses"

    def _judge(self, data: bytes) -> int | None:
        assert self._quorum is not None, "a policy with witnesses was read with their quorum"
        try:
            note = Note.parse(data)
            checkpoint = Checkpoint.parse(note.text)
        except BadNote:
            return None
        # Whoever cosigns has checked the log's own signature: a log's name is its key's.
        return self._quorum.since_s(note, now_s=self._clock.wall_s()) if checkpoint.origin == self._origin else None


def _content(path: Path, bytes_max: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(bytes_max)
    except FileNotFoundError:
        return None

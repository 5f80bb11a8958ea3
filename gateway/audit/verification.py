"""The whole of a log, judged from its files and what the auditor brings: a key, older checkpoints, the retention agreed on.

What is not covered, and why that is no loss: zeros behind the last record of the last segment are space laid out, and hold
nothing; bytes above the checkpoint are not signed yet, and the next checkpoint, or an older one that is kept, covers them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.audit.books import Books
from gateway.audit.findings import Findings
from gateway.audit.keys import EPOCHS, KEY, NEXT_KEY, VERIFIER
from gateway.audit.note import BadNote, Checkpoint, Note, Verifier
from gateway.audit.quorum import Quorum
from gateway.audit.reading import LogDirectory, Record, Unreadable
from gateway.audit.segments import LOCK
from gateway.audit.tiled import TREE
from gateway.audit.tree import EMPTY_ROOT
from gateway.audit.verified_keys import VerifiedKeys
from gateway.audit.verified_segments import VerifiedSegments
from gateway.audit.verified_tree import BESIDE, VerifiedTree
from gateway.audit.verified_witnesses import VerifiedWitnesses
from gateway.audit.witnessed import CONTRADICTED, WITNESSED
from gateway.ports import AuditFailed
from gateway.record import Forfeited, Leaf, Rekeyed, Released, Sealed, Started
from gateway.tenure import MEMORY_FILE
from policy.limits import LEAF_BYTES_MAX

STEP_BACK_S_MAX = 60.0  # workers of a host write one after the other; more than this is a clock that was set
EXPLAINED_WITHIN_RECORDS = 10_000  # a clock that was set makes every worker forfeit its leases, on the record, at once


@dataclass(frozen=True, slots=True, kw_only=True)
class OldCheckpoint:
    """A checkpoint that an auditor kept, as its file holds it."""

    name: str
    data: bytes


@dataclass(slots=True)
class Summary:
    """What a log has, for whoever reads the findings."""

    records: int = 0
    signed: int = 0
    first_ms: int = 0
    last_ms: int = 0
    holders: int = 0
    answers: int = 0
    text_bytes: int = 0
    released_bits: int = 0
    refunded_bits: int = 0
    checkpoints: int = 0  # older ones that this log continues
    keys: int = 0  # that have signed it, one after the other
    witnessed: int = 0  # records of the newest checkpoint that a quorum has cosigned
    witnessed_s: int | None = None  # when it had, if that was checked
    segments: int = 0
    sealed: int = 0  # batches whose ciphertext is there
    sealed_bytes: int = 0
    deleted: int = 0  # batches whose segment was deleted by retention


class Verification:
    """Verifies on creation. Raises `AuditFailed` if there is nothing that could be verified.

    `progress` is told of records that were read: each is read three times. `content_kept_s` is what the policy says, None if
    content is kept for good; `now_s` is the auditor's wall clock.
    """

    def __init__(
        self,
        directory: Path,
        *,
        verifier: Verifier | None,
        since: Sequence[OldCheckpoint],
        content_kept_s: int | None,
        now_s: float,
        quorum: Quorum | None = None,
        progress: Callable[[int], None] = lambda count: None,
        begins: Callable[[int], None] = lambda total: None,
    ) -> None:
        self.findings = Findings()
        self.summary = Summary()
        self._log = log = LogDirectory(directory)
        self._progress = progress
        unsigned = list(log.unsigned())
        begins(3 * (log.size + len(unsigned)))
        self._keys = VerifiedKeys(log, given=verifier, findings=self.findings)
        self._witnesses = VerifiedWitnesses(log, keys=self._keys, quorum=quorum, findings=self.findings, now_s=now_s)
        self._checkpoint()
        self._strangers()
        old = self._old(since)
        endings = [(name, closing.checkpoint) for name, closing in self._keys.closings.items()]
        tree = VerifiedTree(
            log,
            unsigned=[record.line for record in unsigned],
            sizes=[checkpoint.size for _, checkpoint in (*old, *endings, *self._seen())],
            findings=self.findings,
            progress=progress,
        )
        self.summary.checkpoints = sum(self._continues(name, checkpoint, tree) for name, checkpoint in old)
        self.summary.keys = 1 + sum(self._continues(name, checkpoint, tree) for name, checkpoint in endings)
        for name, checkpoint in self._seen():
            self._witnessed(name, checkpoint, tree)
        segments = VerifiedSegments(log, hash_of=tree.hash_of, findings=self.findings, progress=progress)
        self._summarise(segments, unsigned=len(unsigned))
        if tree.whole:
            self._read(first_kept=segments.first or 0, kept_s=content_kept_s, now_s=now_s)
        else:
            self.findings.remark("the sums of the holders are not checked, as records are missing")

    def _checkpoint(self) -> None:
        path, note, checkpoint = self._log.checkpoint_path, self._log.note, self._log.checkpoint
        if note is None or checkpoint is None:
            self.findings.found(path, "is missing: nothing of this log is signed")
            return
        self._keys.signed(note, checkpoint, name=str(path))

    def _strangers(self) -> None:
        beside = {WITNESSED, CONTRADICTED, MEMORY_FILE}  # of the gateway's, and not what is verified here
        known = {
            LOCK,
            KEY,
            NEXT_KEY,
            VERIFIER,
            EPOCHS,
            TREE,
            *beside,
            *(segment.name for segment in self._log.segments),
        }
        for path in sorted(self._log.directory.iterdir()):
            if path.name.removesuffix(BESIDE) in known and path.name.endswith(BESIDE):
                self.findings.remark(f"{path}: left by a crash, and of no meaning")
            elif path.name not in known:
                self.findings.found(path, "is no file of an audit log")
            elif path.name == LOCK and path.stat().st_size:
                self.findings.found(path, "is not empty, and nothing is ever written there")

    def _old(self, since: Sequence[OldCheckpoint]) -> Sequence[tuple[str, Checkpoint]]:
        """Those that are signed by the log's key."""
        old = []
        for one in since:
            try:
                note = Note.parse(one.data)
                checkpoint = Checkpoint.parse(note.text)
            except BadNote as fault:
                self.findings.found(one.name, f"is no checkpoint: {fault}")
                continue
            if self._keys.signed(note, checkpoint, name=one.name):
                old.append((one.name, checkpoint))
        return old

    def _continues(self, name: str, checkpoint: Checkpoint, tree: VerifiedTree) -> bool:
        """Whether what an older checkpoint has is the beginning of this log. Says so if it is not."""
        root = EMPTY_ROOT if checkpoint.size == 0 else tree.roots.get(checkpoint.size)
        if checkpoint.size > self._log.size:
            self.findings.found(
                self._log.checkpoint_path,
                f"signs {self._log.size} records, and {name} signed {checkpoint.size} before: the log was rolled back",
            )
        elif root is None:
            self.findings.found(name, "cannot be compared with the log, as records are missing")
        elif root != checkpoint.root:
            self.findings.found(
                self._log.tree_directory,
                f"the first {checkpoint.size} records are not those that {name} signed: there are two logs of one key",
            )
        else:
            return True
        return False

    def _seen(self) -> Sequence[tuple[str, Checkpoint]]:
        """What a quorum of witnesses is said to have seen."""
        checkpoint = self._witnesses.checkpoint
        return [(str(self._witnesses.path), checkpoint)] if checkpoint is not None else []

    def _witnessed(self, name: str, checkpoint: Checkpoint, tree: VerifiedTree) -> None:
        """In a copy that was made while a gateway wrote, it may be newer than the checkpoint: the records must be there."""
        if checkpoint.size > self._log.size:
            root = tree.roots.get(checkpoint.size)
            if root is None:
                self.findings.found(
                    name,
                    f"was cosigned with {checkpoint.size} records, and the log has fewer: it was rolled back; or, in a copy, this"
                    " file was copied long after the others, while a gateway wrote",
                )
            elif root != checkpoint.root:
                self.findings.found(
                    name, f"was cosigned with {checkpoint.size} records, which are not those of this log"
                )
            else:
                self.findings.remark(
                    f"{name}: newer than the checkpoint, as in a copy that was made while a gateway wrote"
                )
        elif self._continues(name, checkpoint, tree):
            self.summary.witnessed, self.summary.witnessed_s = checkpoint.size, self._witnesses.since_s

    def _read(self, *, first_kept: int, kept_s: int | None, now_s: float) -> None:
        """Every record: size, form, time, and what it adds up to with those before it."""
        summary, findings = self.summary, self.findings
        number = newest_kept_ms = 0
        stepped: tuple[int, float] | None = None
        books = Books(lambda what: findings.found(f"record {number}", what))
        for record in self._log.records():
            number = record.number
            self._progress(1)
            leaf = self._leaf(record)
            if leaf is None:
                continue
            if number < first_kept:
                newest_kept_ms = max(newest_kept_ms, leaf.at_ms)
                summary.deleted += isinstance(leaf, Sealed)
            back_s = (summary.last_ms - leaf.at_ms) / 1000
            if isinstance(leaf, Started | Forfeited):
                stepped = None
            elif back_s > STEP_BACK_S_MAX and stepped is None:
                stepped = number, back_s
            if stepped is not None and number - stepped[0] > EXPLAINED_WITHIN_RECORDS:
                break
            summary.first_ms = summary.first_ms or leaf.at_ms
            summary.last_ms = leaf.at_ms if isinstance(leaf, Started | Forfeited) else max(summary.last_ms, leaf.at_ms)
            summary.text_bytes += leaf.text_bytes if isinstance(leaf, Released) else 0
            books.take(leaf)
            if isinstance(leaf, Started):
                self._witnesses.take(number, leaf)
            if isinstance(leaf, Rekeyed):
                self._keys.judge(number, leaf, last=number + 1 == self.summary.records)
        self._witnesses.judge_file()
        if stepped is not None:
            what = f"is {stepped[1]:.0f} s older than one before it, and no holder began or forfeited its leases for it"
            findings.found(f"record {stepped[0]}", what)
        summary.holders, summary.answers = len(books.holders), books.answers
        summary.released_bits, summary.refunded_bits = books.released_bits, books.refunded_bits
        self._retention(first_kept, newest_kept_ms / 1000, kept_s=kept_s, now_s=now_s)

    def _leaf(self, record: Record) -> Leaf | None:
        where = f"record {record.number}"
        if len(record.line) > LEAF_BYTES_MAX:
            self.findings.found(where, f"has {len(record.line)} bytes, and none has more than {LEAF_BYTES_MAX}")
        try:
            return record.leaf()
        except Unreadable as fault:
            self.findings.found(where, str(fault))
            return None

    def _retention(self, first_kept: int, newest_s: float, *, kept_s: int | None, now_s: float) -> None:
        if first_kept == 0:
            return
        first = self._log.segments[0]
        if kept_s is None:
            self.findings.found(
                first.with_name(f"{max(int(first.stem) - 1, 0):08d}.log"),
                f"is missing, with all content up to record {first_kept - 1}; if the policy has content deleted after a time"
                " (audit.content_kept), give it with --content-kept",
            )
        elif newest_s > now_s - kept_s:
            self.findings.found(
                first.with_name(f"{max(int(first.stem) - 1, 0):08d}.log"),
                f"is missing, and record {first_kept - 1} or one before it is younger than the time for which content is kept",
            )
        else:
            self.findings.remark(
                f"the content of records 0 to {first_kept - 1} was deleted, as the policy says; the records are there"
            )

    def _summarise(self, segments: VerifiedSegments, *, unsigned: int) -> None:
        summary = self.summary
        summary.records, summary.signed = self._log.size + unsigned, self._log.size
        summary.segments = len(self._log.segments)
        summary.sealed, summary.sealed_bytes = segments.sealed, segments.sealed_bytes
        if unsigned:
            self.findings.remark(
                f"{unsigned} records are above the checkpoint, and not signed yet: of the last second, or before a crash"
            )


def read_verifier(text: str) -> Verifier:
    """An auditor's idea of the log's key: a file that has it, or the key itself. Raises `AuditFailed`."""
    path = Path(text)
    try:
        is_file = path.is_file()
    except OSError:
        is_file = False  # too long for a name
    try:
        return Verifier.parse(path.read_text().strip() if is_file else text)
    except (OSError, UnicodeDecodeError, BadNote) as fault:
        raise AuditFailed(
            f"{text}: neither a file with the key of a log nor such a key ({fault}); the gateway wrote it as {VERIFIER} when"
            " it made the log"
        ) from fault

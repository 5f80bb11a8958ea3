"""The newest checkpoint that a quorum of witnesses has cosigned, as it lies beside a log: every signature of it."""

from __future__ import annotations

from pathlib import Path

from gateway.audit.findings import Findings
from gateway.audit.note import BadNote, Checkpoint, Note, Signature
from gateway.audit.quorum import AHEAD_S_MAX, Quorum, Witness
from gateway.audit.reading import LogDirectory
from gateway.audit.verified_keys import VerifiedKeys
from gateway.audit.witnessed import CONTRADICTED, CONTRADICTED_BYTES_MAX, WITNESSED
from gateway.record import Started


class VerifiedWitnesses:
    """Judges on creation. That the checkpoint is of this log's records is for the tree to say.

    `quorum` is what the auditor brings; without it, cosignatures are looked at and not checked.
    """

    def __init__(
        self, log: LogDirectory, *, keys: VerifiedKeys, quorum: Quorum | None, findings: Findings, now_s: float
    ) -> None:
        self.path = log.directory / WITNESSED
        self.checkpoint: Checkpoint | None = None  # signed by the log's key of its time
        self.since_s: int | None = None  # when a quorum had seen it
        self._quorum = quorum
        self._findings = findings
        self._now_s = now_s
        self._recorded: tuple[int, str] | None = None  # the last record that says which file was in force
        self._contradiction(log.directory / CONTRADICTED)
        if quorum is not None:
            self._about_this_log(quorum, keys)
        if log.witnessed is not None:
            self._judge(log.witnessed, keys)
        elif quorum is not None:
            findings.found(self.path, "is missing: nothing shows that a quorum of the witnesses has seen this log")

    def take(self, number: int, leaf: Started) -> None:
        """A process began with this file of witnesses, or with none."""
        before, self._recorded = self._recorded, (number, leaf.witnesses)
        if before is not None and before[1] != leaf.witnesses:
            self._findings.remark(
                f"record {number}: from here on {_named(leaf.witnesses)}; until then it was so that {_named(before[1])}"
            )

    def judge_file(self) -> None:
        """After all records: whether the auditor's file is the one that was in force last."""
        if self._quorum is None or self._recorded is None or self._recorded[1] == self._quorum.digest:
            return
        number, digest = self._recorded
        what = f"says that {_named(digest)}; the file that you gave has SHA-256 {self._quorum.digest}"
        self._findings.found(f"record {number}", what)

    def _contradiction(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                said = file.read(CONTRADICTED_BYTES_MAX).decode(errors="replace").strip()
        except FileNotFoundError:
            return
        except OSError as fault:
            said = str(fault.strerror)
        self._findings.found(path, f"a witness says that this is not the log that it has cosigned: {said}")

    def _about_this_log(self, quorum: Quorum, keys: VerifiedKeys) -> None:
        ours = {key.public_key for key in keys.keys.keys} if keys.keys is not None else set()
        if quorum.logs and not ours & {log.public_key for log in quorum.logs}:
            self._findings.found(self.path, "the witnesses' file that you gave names logs, and not this one")

    def _judge(self, data: bytes, keys: VerifiedKeys) -> None:
        try:
            note = Note.parse(data)
            checkpoint = Checkpoint.parse(note.text)
            if note.encode() != data:
                raise BadNote("not as the gateway wrote it")
        except BadNote as fault:
            self._findings.found(self.path, f"is no checkpoint: {fault}")
            return
        if keys.signed(note, checkpoint, name=str(self.path)):
            self.checkpoint = checkpoint
        if self._quorum is None:
            self._findings.remark(
                f"{self.path}: the cosignatures of witnesses are not checked; give the witnesses' file of the policy, with"
                " --witnesses"
            )
            return
        own = keys.keys.keys if keys.keys is not None else ()
        for signature in note.signatures:
            if not any(key.made(signature) for key in own):
                self._cosignature(note, signature, self._quorum)
        self.since_s = self._quorum.since_s(note, now_s=self._now_s)
        if self.since_s is None:
            self._findings.found(self.path, "shows no quorum of the witnesses")

    def _cosignature(self, note: Note, signature: Signature, quorum: Quorum) -> None:
        witness = next((one for one in quorum.witnesses.values() if one.verifier.made(signature)), None)
        if witness is None:
            what = (
                f"has a signature by {signature.name}+{signature.key_id.hex()}, whom the witnesses' file does not name"
            )
            self._findings.found(self.path, what)
        elif not witness.verifier.verify(note.text, signature):
            self._findings.found(self.path, f"the cosignature by {_called(witness)} is false")
        elif signature.time_s() > self._now_s + AHEAD_S_MAX:
            self._findings.found(self.path, f"the cosignature by {_called(witness)} is from the future")


def _called(witness: Witness) -> str:
    return f"{witness.name} ({witness.verifier.name})"


def _named(digest: str) -> str:
    return f"the witnesses' file has SHA-256 {digest}" if digest else "no witnesses are asked"

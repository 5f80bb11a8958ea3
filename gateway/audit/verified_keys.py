"""Whose signatures count in a log: its keys over time, each named by the one before it, and the one that an auditor brings."""

from __future__ import annotations

from pathlib import Path

from gateway.audit.findings import Findings
from gateway.audit.keys import EPOCHS, KEY, NEXT_KEY, VERIFIER, Closing, Keys, closings_in, is_closing
from gateway.audit.note import BadNote, Checkpoint, Note, Signer, Verifier
from gateway.audit.reading import LogDirectory
from gateway.audit.verified_tree import BESIDE
from gateway.ports import AuditFailed
from gateway.record import Rekeyed


class VerifiedKeys:
    """Judges on creation the files that have keys, and the checkpoints that ended the time of each.

    That those checkpoints are of this log's records is for the tree to say: `closings`, by the names of their files.
    """

    def __init__(self, log: LogDirectory, *, given: Verifier | None, findings: Findings) -> None:
        self._directory = log.directory
        self._log = log
        self._findings = findings
        self.closings: dict[str, Closing] = {}
        self._read_closings()
        own = self._own()
        self.keys = self._chained(own, given)
        for path, closing in self.closings.items():
            self._signed_by_both(path, closing)
        self._private_keys()

    def signed(self, note: Note, checkpoint: Checkpoint, *, name: str) -> bool:
        """Whether a checkpoint is signed by the key that was in force, and is of this log. Says what is wrong."""
        if self.keys is None:
            self._findings.found(name, "cannot be checked without a key")
            return False
        key = self.keys.of(checkpoint.size)
        try:
            note.verified([key])
        except BadNote as fault:
            self._findings.found(name, f"{fault}{self._other_epoch(note, key, checkpoint.size)}")
            return False
        if checkpoint.origin != key.name:
            self._findings.found(name, f"is of the log {checkpoint.origin}, and not of {key.name}")
            return False
        return True

    def judge(self, number: int, leaf: Rekeyed, *, last: bool) -> None:
        """A record that names another key: there must be what shows that the key before it agreed."""
        path = self._directory / EPOCHS / str(number + 1)
        if str(path) in self.closings:
            return
        if last:
            self._findings.remark(
                f"record {number} names the key {leaf.key} for the log, and the change is not finished: start the gateway, or run"
                " `weir audit rekey` again"
            )
        elif not path.exists():
            self._findings.found(
                path,
                f"is missing: record {number} names the key {leaf.key} for the log, and nothing shows that the key before it has"
                " signed that",
            )

    @property
    def _last(self) -> Closing | None:
        return list(self.closings.values())[-1] if self.closings else None

    @property
    def _may_be_unfinished(self) -> bool:
        """Whether the change to the last key may be under way: the files of the keys are written when all else is there."""
        return self._last is not None and self._last.checkpoint.size == self._log.size

    def _read_closings(self) -> None:
        directory = self._directory / EPOCHS
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if path.name.endswith(BESIDE) and is_closing(path.name.removesuffix(BESIDE)):
                self._findings.remark(f"{path}: left by a crash, and of no meaning")
            elif not is_closing(path.name) or path.is_dir():
                self._findings.found(path, "is no file of an audit log")
        for path in closings_in(self._directory):
            closing = self._closing(path)
            if closing is not None:
                self.closings[str(path)] = closing

    def _closing(self, path: Path) -> Closing | None:
        size = int(path.name)
        if size > self._log.size:
            what = f"signs {self._log.size} records, and {path} was signed after {size}: the log was rolled back"
            self._findings.found(self._log.checkpoint_path, what)
            return None
        try:
            return Closing.parse(path.read_bytes(), size=size, entry=self._log.tree.entry)
        except (OSError, BadNote, AuditFailed) as fault:
            self._findings.found(path, f"shows no change of the log's key: {_fault(fault)}")
            return None

    def _own(self) -> Verifier | None:
        """The key in force, which the directory's file must have."""
        path = self._directory / VERIFIER
        last = self._last
        own = None
        try:
            data = path.read_bytes()
            own = Verifier.parse(data.decode().strip())
            if data != f"{own}\n".encode():
                self._findings.found(path, "is not as the gateway wrote it")
        except (OSError, UnicodeDecodeError, BadNote) as fault:
            self._findings.found(path, _fault(fault))
        if last is None:
            return own
        if own == last.previous and self._may_be_unfinished:
            self._findings.remark(f"{path}: the change to the key {last.key} is not finished: start the gateway")
        elif own is not None and own != last.key:
            self._findings.found(path, f"is the key {own}, and the one in force is {last.key}")
        return last.key

    def _chained(self, own: Verifier | None, given: Verifier | None) -> Keys | None:
        """All keys of the log, if the one that was given is among them; else that one alone."""
        in_force: Verifier | None = None
        for path, closing in self.closings.items():
            if in_force is not None and closing.previous != in_force:
                what = f"ends the time of the key {closing.previous}, and {in_force} was in force"
                self._findings.found(path, what)
            in_force = closing.key
        endings = list(self.closings.values())
        keys = [*(closing.previous for closing in endings), *([own] if own is not None else [])]
        if given is None:
            self._findings.remark(
                f"the signature is checked with {self._directory / VERIFIER}, which whoever changes the log can change as well: it"
                " proves that the log is of one piece, and not whose it is; give the key that you were given, with --key"
            )
        elif given not in keys:
            if own is not None:
                others = ", nor any key before it" if endings else ""
                what = f"is the key {own}, and not the one that you gave{others}: {given}"
                self._findings.found(self._directory / VERIFIER, what)
            return Keys(keys=(given,))
        if own is None:
            return None
        if given is not None and given != own:
            at = keys.index(given)
            self._findings.remark(
                f"the key that you gave was in force up to record {endings[at].checkpoint.size - 1}; it named the next one, and"
                f" so on to {own}: hold that against what the operator told you by another way"
            )
        return Keys(keys=tuple(keys), ends=tuple(closing.checkpoint.size for closing in endings))

    def _signed_by_both(self, name: str, closing: Closing) -> None:
        """Else whoever has the disk could name a key of his own."""
        for whose, key in (("the key that was in force", closing.previous), ("the key that follows", closing.key)):
            try:
                closing.note.verified([key])
            except BadNote as fault:
                self._findings.found(name, f"must be signed by {whose}, and is not: {fault}")
        if not closing.checkpoint.origin == closing.previous.name == closing.key.name:
            names = ", ".join(sorted({closing.checkpoint.origin, closing.previous.name, closing.key.name}))
            self._findings.found(name, f"changes the log's name, which stays with every key: {names}")

    def _other_epoch(self, note: Note, key: Verifier, size: int) -> str:
        """What more can be said of a checkpoint that is not signed by the key in force."""
        assert self.keys is not None
        for number, other in enumerate(self.keys.keys):
            if other != key and any(map(other.made, note.signatures)):
                ends = [0, *self.keys.ends, None]
                until = f" to {ends[number + 1]}" if ends[number + 1] is not None else " on"
                return f": of {size} records, it is by {other}, which was in force from {ends[number]}{until}"
        return ""

    def _private_keys(self) -> None:
        """A copy for auditors has none, and needs none."""
        signer, following = self._private_key(KEY), self._private_key(NEXT_KEY)
        if self.keys is None:
            return
        key, last = self.keys.keys[-1], self._last
        if following is not None and following.name != key.name:
            self._findings.found(
                self._directory / NEXT_KEY, f"is a key of the log {following.name}, and not of {key.name}"
            )
        if signer is None or signer.verifier == key:
            return
        is_waiting = following is not None and following.verifier == key and self._may_be_unfinished
        if is_waiting and last is not None and signer.verifier == last.previous:
            self._findings.remark(
                f"{self._directory / KEY}: the change to the key {key} is not finished: start the gateway"
            )
        else:
            self._findings.found(self._directory / KEY, "is not the key that this log is signed with")

    def _private_key(self, name: str) -> Signer | None:
        path = self._directory / name
        try:
            data = path.read_bytes()
            signer = Signer.parse(data.decode().strip())
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, BadNote) as fault:
            self._findings.found(path, _fault(fault))
            return None
        if data != f"{signer.skey()}\n".encode():
            self._findings.found(path, "is not as the gateway wrote it")
        return signer


def _fault(fault: Exception) -> str:
    if isinstance(fault, FileNotFoundError):
        return "is missing"
    return str(fault.strerror) if isinstance(fault, OSError) else f"cannot be read: {fault}"

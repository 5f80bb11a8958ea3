"""Behind the log: about once a second, what has become durable enters the tree, and the tree is signed.

Nothing waits for it. A crash loses what was not signed yet from the tree and not from the segments, from which the next start
takes it. If it fails the process must stop: a log that nobody can verify any more is not a log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from gateway.audit import keys
from gateway.audit.keys import KEY, NEXT_KEY, Closing
from gateway.audit.note import BadNote, Note, Signer, Verifier
from gateway.audit.segments import lines_from
from gateway.audit.tiled import CHECKPOINT, TREE, TiledTree, TileFiles, read_note
from gateway.audit.tree import consistency_proof
from gateway.ports import AuditFailed

UNSIGNED_BYTES_MAX = 256 * 1024 * 1024  # of records that wait for a signature: minutes of more than a process can say


class Notary:
    """The writer of a log's tree. Opening it creates the log's key and name if it has none. Raises `AuditFailed`."""

    def __init__(self, directory: Path) -> None:
        signer = keys.signer_of(directory)
        self._signer = signer
        self._directory = directory
        self._assert_signed_by(signer)
        self._tree = TiledTree(directory / TREE, origin=signer.name, signers=[signer])
        self._lines: deque[bytes] = deque()
        self._committing = Lock()

    @property
    def verifier(self) -> Verifier:
        """The key in force."""
        return self._signer.verifier

    @property
    def signed(self) -> int:
        """How many leaves are signed."""
        return self._tree.signed.size

    @property
    def note(self) -> Note | None:
        """The last checkpoint, on disk; None if nothing was ever signed."""
        return self._tree.note

    def prove(self, old_size: int, size: int) -> Sequence[bytes]:
        """That the log of `old_size` leaves is the beginning of that of `size`, which is signed. Reads files, from any thread."""
        return consistency_proof(TileFiles(self._directory / TREE, size).subtree, old_size, size)

    def catch_up(self, directory: Path) -> None:
        """Take what the segments have beyond the signed tree: what a crash left unsigned. Once, when the log has been opened."""
        line = b""
        for line in lines_from(directory, self.signed):
            self.take(line)
        self._finish_rekeying(line or self._last_signed())

    def take(self, lines: bytes) -> None:
        """These leaves are durable, and follow those taken before."""
        self._lines.append(lines)

    async def sign(self) -> None:
        """Sign what was taken so far. Raises `AuditFailed`, which must end the process.

        Cancelled, it goes on in its thread or was never begun; the next call waits for it and loses nothing.
        """
        await asyncio.to_thread(self._commit)

    def rekey(self, following: Signer) -> None:
        """Sign for the last time with the key in force, and also with the one that the last record names. Then that is in force.

        Raises `AuditFailed`. A crash on the way: the next start finds the record at the end of the log, and comes here again.
        """
        with self._committing:
            self._append_taken()
            closing = self._tree.commit(also=[following])
            try:
                keys.replace(self._directory, following, closing=closing, size=self.signed)
            except OSError as fault:
                raise AuditFailed(f"{self._directory}: {fault}") from fault
            self._tree.sign_as([following])
            self._signer = following

    def _commit(self) -> None:
        with self._committing:
            if self._append_taken():
                self._tree.commit()

    def _append_taken(self) -> bool:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if sum(map(len, lines)) > UNSIGNED_BYTES_MAX:
            raise AuditFailed("the audit log's tree cannot be written nearly as fast as the log itself")
        if lines:
            self._tree.append(b"\n".join(lines).split(b"\n"))
        return bool(lines)

    def _finish_rekeying(self, last: bytes) -> None:
        """A change of key that a crash broke off is finished before anything follows the record that names the new key."""
        try:
            announced = keys.announcement(last)
        except BadNote as fault:
            raise AuditFailed(
                f"{self._directory}: its last record names another key for it, which is none: {fault}"
            ) from fault
        if announced is None or announced[0] != self.verifier:
            keys.tidy(self._directory, self._signer)
            return
        following = keys.prepared(self._directory)
        if following is None or following.verifier != announced[1]:
            raise AuditFailed(
                f"{self._directory / NEXT_KEY}: is not the key {announced[1]} that the last record of the log puts into force;"
                f" restore it from a copy. {keys.ended(self._directory)}"
            )
        self.rekey(following)

    def _last_signed(self) -> bytes:
        return TileFiles(self._directory / TREE, self.signed).entry(self.signed - 1) if self.signed else b""

    def _assert_signed_by(self, signer: Signer) -> None:
        """Another key than that of the last checkpoint cannot go on, and the operator should hear what can be done."""
        path = self._directory / KEY
        note = read_note(self._directory / TREE)
        if note is None or any(signer.verifier.made(signature) for signature in note.signatures):
            return
        for closing in self._closings():
            if closing.previous == signer.verifier:
                raise AuditFailed(
                    f"{path}: is the key {signer.verifier}, which another one followed after {closing.checkpoint.size} records;"
                    f" restore the file from a copy that was made since. {keys.ended(self._directory)}"
                )
        raise AuditFailed(
            f"{path}: is the key {signer.verifier}, and {self._directory / TREE / CHECKPOINT} is signed by another; put that one"
            f" back. A key is not changed by replacing the file: stop the gateway and run `weir audit rekey {self._directory}`,"
            f" which needs the old key. {keys.ended(self._directory)}"
        )

    def _closings(self) -> Sequence[Closing]:
        found = []
        for path in keys.closings_in(self._directory):
            size = int(path.name)
            try:
                entry = TileFiles(self._directory / TREE, size).entry
                found.append(Closing.parse(path.read_bytes(), size=size, entry=entry))
            except (OSError, BadNote, AuditFailed):
                continue  # it is looked for to say something helpful, and nothing relies on it
        return found

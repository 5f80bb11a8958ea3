"""Behind the log: about once a second, what has become durable enters the tree, and the tree is signed.

Nothing waits for it. A crash loses what was not signed yet from the tree and not from the segments, from which the next start
takes it. If it fails the process must stop: a log that nobody can verify any more is not a log.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from gateway.audit import files
from gateway.audit.note import BadNote, Note, Signer, Verifier
from gateway.audit.segments import lines_from
from gateway.audit.tiled import TiledTree, TileFiles
from gateway.audit.tree import consistency_proof
from gateway.ports import AuditFailed

TREE = "tree"
KEY = "log.key"  # the signing key; it opens nothing, and is the gateway's alone
VERIFIER = "log.vkey"  # what outsiders check signatures with; given to them at the beginning, not read from here
UNSIGNED_BYTES_MAX = 256 * 1024 * 1024  # of records that wait for a signature: minutes of more than a process can say


class Notary:
    """The writer of a log's tree. Opening it creates the log's key and name if it has none. Raises `AuditFailed`."""

    def __init__(self, directory: Path) -> None:
        signer = _signer(directory)
        self.verifier: Verifier = signer.verifier
        self._directory = directory
        self._tree = TiledTree(directory / TREE, origin=signer.name, signers=[signer])
        self._lines: deque[bytes] = deque()
        self._committing = Lock()

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
        for line in lines_from(directory, self.signed):
            self.take(line)

    def take(self, lines: bytes) -> None:
        """These leaves are durable, and follow those taken before."""
        self._lines.append(lines)

    async def sign(self) -> None:
        """Sign what was taken so far. Raises `AuditFailed`, which must end the process.

        Cancelled, it goes on in its thread or was never begun; the next call waits for it and loses nothing.
        """
        await asyncio.to_thread(self._commit)

    def _commit(self) -> None:
        with self._committing:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if sum(map(len, lines)) > UNSIGNED_BYTES_MAX:
                raise AuditFailed("the audit log's tree cannot be written nearly as fast as the log itself")
            if lines:
                self._tree.append(b"\n".join(lines).split(b"\n"))
                self._tree.commit()


def _signer(directory: Path) -> Signer:
    """The log's key, made at its first start. The log's name is made with it: another key is another log."""
    path = directory / KEY
    try:
        files.make_directory(directory)
        if not path.exists():
            if (directory / TREE).exists():
                raise AuditFailed(f"{path}: missing, and the log was signed with it; restore it from a copy")
            signer = Signer(name=f"weir.log/{secrets.token_hex(8)}", seed=os.urandom(32))
            files.write(directory / VERIFIER, f"{signer.verifier}\n".encode())
            files.sync([directory])  # where the key is, there is what outsiders check its signatures with
            files.write(path, f"{signer.skey()}\n".encode())
            files.sync([directory])
        return Signer.parse(path.read_text().strip())
    except (OSError, BadNote, UnicodeDecodeError) as fault:
        raise AuditFailed(f"{path}: {fault}") from fault

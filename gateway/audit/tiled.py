"""A log's tree as a directory that outsiders can read: `checkpoint`, `tile/<level>/...`, `tile/entries/...` (C2SP tlog-tiles).

`TileFiles` reads one size of it; `TiledTree` is its only writer. The directory is derived: above its signed size it says
nothing, and whoever writes it has every entry somewhere else until `commit` has returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

from gateway.audit import files
from gateway.audit.note import BadNote, Checkpoint, Note, Signer, Verifier
from gateway.audit.tiles import (
    ENTRY_BYTES_MAX,
    TILE_BYTES,
    TILE_LEVELS,
    TILE_WIDTH,
    BadBundle,
    bundle_path,
    entries_in,
    framed,
    partial_directory,
    subtree_in_tile,
    tile_path,
    width_of,
)
from gateway.audit.tree import HASH_BYTES, Frontier, check_consistency, consistency_proof, leaf_hash
from gateway.ports import AuditFailed

TREE = "tree"  # of a log's directory
CHECKPOINT = "checkpoint"
TILES_CACHED = 64  # 8 KB each; neighbouring proofs share all but their lowest tiles
RESTORE = "restore it from a copy"


class TileFiles:
    """Reads the tree of one size from a directory. What it reads is as the files say: the checkpoint's root is the judge.

    Raises `AuditFailed`, which names the file, for one that is missing or cannot be what its name says.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self.size: Final = size
        self._directory = directory
        # Of a function, and not of a method: a reader that refers to itself would keep its tiles until a collection.
        self.tile = lru_cache(TILES_CACHED)(partial(_tile, directory, size))

    def subtree(self, level: int, index: int) -> bytes:
        """The root of the complete subtree over leaves [index << level, (index + 1) << level): a `ReadSubtree`."""
        tile_level, height = divmod(level, TILE_LEVELS)
        tile, place = divmod(index, TILE_WIDTH >> height)
        return subtree_in_tile(self.tile(tile_level, tile), height, place)

    def entries(self, index: int) -> Sequence[bytes]:
        """The entries of a bundle."""
        width = width_of(0, index, self.size)
        path, data = _read(self._directory, bundle_path(index, width), bundle_path(index))
        try:
            entries = entries_in(data)
        except BadBundle as fault:
            raise AuditFailed(f"{path}: damaged: {fault}; {RESTORE}") from fault
        if len(entries) not in {width, TILE_WIDTH}:
            raise AuditFailed(f"{path}: damaged: {len(entries)} entries where there should be {width}; {RESTORE}")
        return entries[:width]

    def entry(self, index: int) -> bytes:
        """One entry of the log."""
        bundle, place = divmod(index, TILE_WIDTH)
        return self.entries(bundle)[place]


def _tile(directory: Path, size: int, level: int, index: int) -> bytes:
    width = width_of(level, index, size)
    path, data = _read(directory, tile_path(level, index, width), tile_path(level, index))
    if len(data) not in {width * HASH_BYTES, TILE_BYTES}:
        raise AuditFailed(f"{path}: damaged: {len(data)} bytes where there should be {width} hashes; {RESTORE}")
    return data[: width * HASH_BYTES]


def _read(directory: Path, path: str, full: str) -> tuple[Path, bytes]:
    """A file, or the full one that has replaced it since this size was signed."""
    for name in (path, full):
        try:
            return directory / name, (directory / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as fault:
            raise AuditFailed(f"{directory / name}: {fault}; {RESTORE}") from fault
    raise AuditFailed(f"{directory / path}: missing; {RESTORE}")


class TiledTree:
    """The writer of a directory, of which there is one. Opening it goes on from the last signed checkpoint.

    `append` works in memory; `commit` makes what was appended durable and signs it. After `AuditFailed` the object is of no
    use: open the directory again and append what is above the signed size again. Entries are as in the log they come from;
    an entry that was ever signed must never be appended as another one.
    """

    def __init__(self, directory: Path, *, origin: str, signers: Sequence[Signer]) -> None:
        """Raises `AuditFailed` if a checkpoint is there that is not this log's or cannot be rebuilt from the files."""
        self._directory = directory
        self._origin = origin
        self._signers = tuple(signers)
        self._failed = False
        self._full: dict[str, bytes] = {}  # tiles and bundles that are full and not yet written, by path
        try:
            files.make_directory(directory)
            self._note = read_note(directory)
        except OSError as fault:
            raise AuditFailed(f"{directory}: {fault}") from fault
        self._signed = self._verify_note()
        self._rebuild()

    @property
    def signed(self) -> Checkpoint:
        """The last checkpoint that was signed; of an empty log before the first."""
        return self._signed

    @property
    def note(self) -> Note | None:
        """The same as it was signed."""
        return self._note

    @property
    def size(self) -> int:
        """How many entries were appended, signed or not: the index of the next one."""
        return self._frontier.size

    def append(self, entries: Sequence[bytes]) -> None:
        """Add entries, in memory: all of them, or none if one is too long."""
        for entry in entries:
            if len(entry) > ENTRY_BYTES_MAX:
                raise AuditFailed(f"an entry of {len(entry)} bytes; the format holds {ENTRY_BYTES_MAX}")
        for entry in entries:
            self._bundle += framed(entry)
            # Every 8th level of the subtrees that an entry completes is a hash in a tile.
            for level, root in enumerate(self._frontier.append(leaf_hash(entry))[::TILE_LEVELS]):
                self._extend(level, root)

    def commit(self, *, also: Sequence[Signer] = ()) -> Note:
        """Make what was appended durable, then sign it. Answers the signed note, on disk when this returns.

        `also` are who signs beside the usual signers, this once. With nothing new it answers the last one, if all of them
        have signed that. Raises `AuditFailed`, after which it is unknown what is on disk, except that the last signed size
        can be rebuilt.
        """
        if self._failed:
            raise AuditFailed(f"{self._directory}: writing failed before; open it again")
        signers = [*self._signers, *also]
        if self._note is not None and self.size == self._signed.size and _has(self._note, signers):
            return self._note
        self._failed = True  # until it is not: an exception of whatever kind leaves it so
        try:
            self._write_tiles()
            # A crash before this line: files above the signed size, which the next life writes again, byte for byte.
            checkpoint = Checkpoint(origin=self._origin, size=self.size, root=self._frontier.root())
            self._prove(checkpoint)
            note = checkpoint.signed(signers)
            files.write(self._directory / CHECKPOINT, note.encode())
            # A crash here: the old checkpoint or the new one, and the files of both are there.
            files.sync([self._directory])
        except OSError as fault:
            raise AuditFailed(f"{self._directory}: {fault}") from fault
        self._note, self._signed, self._failed = note, checkpoint, False
        return note

    def sign_as(self, signers: Sequence[Signer]) -> None:
        """From here on, checkpoints are signed by these."""
        self._signers = tuple(signers)

    def _extend(self, level: int, root: bytes) -> None:
        if level == len(self._rows):
            self._rows.append(bytearray())
        row = self._rows[level]
        row += root
        if len(row) < TILE_BYTES:
            return
        index = (self.size >> TILE_LEVELS * (level + 1)) - 1
        self._full[tile_path(level, index)] = bytes(row)
        row.clear()
        if level == 0:
            self._full[bundle_path(index)] = bytes(self._bundle)
            self._bundle.clear()

    def _write_tiles(self) -> None:
        changed: set[Path] = set()
        for path, data in {**self._full, **self._partial()}.items():
            changed |= self._write_once(self._directory / path, data)
        # Parents too, on every commit: a life that crashed may have made them and not synced them.
        files.sync(sorted(changed))
        # Only now that full ones are there for good may the partial ones go that they replace. A crash in between leaves the
        # rest of them to the next life, which comes here before it signs: it starts at a size at which they are still partial.
        for path in self._full:
            files.remove_directory(self._directory / partial_directory(path))
        self._full.clear()

    def _write_once(self, path: Path, data: bytes) -> set[Path]:
        """Write a tile or bundle unless it is there; it is never written over with other bytes. Answers what to sync."""
        try:
            there = path.read_bytes()
        except FileNotFoundError:
            files.make_directory(path.parent)
            files.write(path, data)
        else:
            if there != data:
                raise AuditFailed(f"{path}: holds other entries than the log had when it was written; {RESTORE}")
        return {parent for parent in path.parents if parent.is_relative_to(self._directory)}

    def _partial(self) -> dict[str, bytes]:
        """The last tile of each level, and the last bundle, where they are not full."""
        partial = {
            tile_path(level, self.size >> TILE_LEVELS * (level + 1), len(row) // HASH_BYTES): bytes(row)
            for level, row in enumerate(self._rows)
            if row
        }
        if self._bundle:
            partial[bundle_path(self.size // TILE_WIDTH, self.size % TILE_WIDTH)] = bytes(self._bundle)
        return partial

    def _prove(self, checkpoint: Checkpoint) -> None:
        """Sign nothing but what the files say, and nothing that the last checkpoint is not the beginning of."""
        if read_note(self._directory) != self._note:
            raise AuditFailed(f"{self._directory / CHECKPOINT}: somebody else has written it; a log has one writer")
        old = self._signed
        read = TileFiles(self._directory, checkpoint.size).subtree
        proof = consistency_proof(read, old.size, checkpoint.size)
        if Frontier.of(read, checkpoint.size).root() != checkpoint.root or not check_consistency(
            old_size=old.size, old_root=old.root, size=checkpoint.size, root=checkpoint.root, proof=proof
        ):
            raise AuditFailed(f"{self._directory}: the files are not what was written; {RESTORE}")

    def _verify_note(self) -> Checkpoint:
        if self._note is None:
            return Checkpoint(origin=self._origin, size=0, root=Frontier().root())
        return verified_checkpoint(
            self._note,
            origin=self._origin,
            verifiers=[signer.verifier for signer in self._signers],
            source=self._directory / CHECKPOINT,
        )

    def _rebuild(self) -> None:
        """The edge of the signed tree, from the files: its root covers every partial tile. Full tiles are not all read."""
        size = self._signed.size
        read = TileFiles(self._directory, size)
        self._frontier = Frontier.of(read.subtree, size)
        self._bundle = bytearray()
        self._rows: list[bytearray] = []
        while size >> TILE_LEVELS * len(self._rows):
            level = len(self._rows)
            index, width = divmod(size >> TILE_LEVELS * level, TILE_WIDTH)
            self._rows.append(bytearray(read.tile(level, index) if width else b""))
        if self._frontier.root() != self._signed.root:
            raise AuditFailed(
                f"{self._directory / CHECKPOINT} signs another root hash of {size} entries than {' and '.join(self._partial())} "
                f"of {self._directory} have; {RESTORE}"
            )
        if size % TILE_WIDTH:
            entries = read.entries(size // TILE_WIDTH)
            if b"".join(map(leaf_hash, entries)) != self._rows[0]:
                path = self._directory / bundle_path(size // TILE_WIDTH, size % TILE_WIDTH)
                raise AuditFailed(f"{path}: holds other entries than were signed; {RESTORE}")
            self._bundle += b"".join(map(framed, entries))


def _has(note: Note, signers: Sequence[Signer]) -> bool:
    made = {(signature.name, signature.key_id) for signature in note.signatures}
    return all((signer.name, signer.verifier.key_id) in made for signer in signers)


def read_note(directory: Path) -> Note | None:
    """The note in a directory, unverified, or None if nothing was ever signed there."""
    path = directory / CHECKPOINT
    try:
        return Note.parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except BadNote as fault:
        raise AuditFailed(f"{path}: {fault}; {RESTORE}") from fault


def verified_checkpoint(note: Note, *, origin: str, verifiers: Sequence[Verifier], source: Path) -> Checkpoint:
    """What a note says, if one of these keys has signed it for this log."""
    try:
        note.verified(verifiers)
        checkpoint = Checkpoint.parse(note.text)
    except BadNote as fault:
        raise AuditFailed(f"{source}: {fault}; {RESTORE}") from fault
    if checkpoint.origin != origin:
        raise AuditFailed(f"{source}: a checkpoint of the log {checkpoint.origin}, not of {origin}")
    return checkpoint

"""A log's directory as it lies there: read without the lock of its writer, which may be at work meanwhile; never written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec

from gateway.audit.frames import CIPHERTEXT, LEAVES, first_leaf_of, frames
from gateway.audit.notary import TREE
from gateway.audit.note import BadNote, Checkpoint, Note
from gateway.audit.segments import segments_in
from gateway.audit.tiled import CHECKPOINT, TileFiles, read_note
from gateway.audit.tiles import TILE_WIDTH
from gateway.ports import AuditFailed
from gateway.record import AnyLeaf, Leaf, Sealed

_decode = msgspec.json.Decoder(AnyLeaf).decode


class Unreadable(Exception):
    """A leaf that this version cannot read. The message is one line."""


@dataclass(frozen=True, slots=True)
class Record:
    """A leaf with its place in the log."""

    number: int
    line: bytes

    def leaf(self) -> Leaf:
        """What it says. Raises `Unreadable`."""
        try:
            return _decode(self.line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as fault:
            raise Unreadable(f"record {self.number}: not a record that this version of Weir knows: {fault}") from fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The records between two `Sealed` ones, and what they commit to: the ciphertext, if its segment has it."""

    records: Sequence[Record]
    sealed: Sealed
    ciphertext: bytes | None
    segment: Path


class LogDirectory:
    """A log at the moment of its last checkpoint, and the records above it. Raises `AuditFailed` if it cannot be read at all.

    The checkpoint is read first: from then on the files have at least what it signs. It is not verified here.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise AuditFailed(
                f"{directory}: no such directory; name the `audit.directory` of a policy, or a copy of it"
            )
        self.directory = directory
        self.tree_directory = directory / TREE
        self.note: Note | None = read_note(self.tree_directory)
        self.checkpoint = self._parsed()
        self.size = self.checkpoint.size if self.checkpoint is not None else 0
        self.tree_files = {
            str(path.relative_to(self.tree_directory)): path
            for path in sorted(self.tree_directory.rglob("*"))
            if not path.is_dir()
        }
        self.tree = TileFiles(self.tree_directory, self.size)
        self.segments = segments_in(directory)
        if self.note is None and not self.segments:
            raise AuditFailed(f"{directory}: no audit log; name the `audit.directory` of a policy, or a copy of it")

    @property
    def checkpoint_path(self) -> Path:
        """Of its last checkpoint."""
        return self.tree_directory / CHECKPOINT

    def records(self, start: int = 0) -> Iterator[Record]:
        """Every record from this number on: what is signed from the tree, what is not signed yet from the segments."""
        for bundle in range(start // TILE_WIDTH, -(-self.size // TILE_WIDTH)):
            for number, line in enumerate(self.tree.entries(bundle), start=bundle * TILE_WIDTH):
                if number >= start:
                    yield Record(number, line)
        yield from (record for record in self.unsigned() if record.number >= start)

    def unsigned(self) -> Iterator[Record]:
        """The records above the checkpoint. A crash or a moment ago; the next checkpoint signs them."""
        for segment in self._segments_from(self.size):
            data = read_segment(segment)
            first = first_leaf_of(data)
            if first is not None:
                yield from (record for record in records_of(data, first) if record.number >= self.size)

    def shares(self, numbers: Sequence[int]) -> Iterator[Share]:
        """The shares that have one of these records, in order; of deleted segments none."""
        wanted = sorted(numbers)
        firsts = self.firsts()
        for at, (segment, first) in enumerate(firsts.items()):
            following = list(firsts.values())[at + 1] if at + 1 < len(firsts) else None
            if any(number >= first and (following is None or number < following) for number in wanted):
                yield from _shares(segment, read_segment(segment), first, frozenset(wanted))

    def firsts(self) -> Mapping[Path, int]:
        """The number of each segment's first record; those without a readable head are left out."""
        firsts = {}
        for segment in self.segments:
            first = first_leaf_of(read_segment(segment, count=64))
            if first is not None:
                firsts[segment] = first
        return firsts

    def _segments_from(self, number: int) -> Sequence[Path]:
        firsts = self.firsts()
        before = [segment for segment, first in firsts.items() if first <= number]
        return [segment for segment in firsts if segment not in before[:-1]]

    def _parsed(self) -> Checkpoint | None:
        if self.note is None:
            return None
        try:
            return Checkpoint.parse(self.note.text)
        except BadNote as fault:
            raise AuditFailed(f"{self.checkpoint_path}: {fault}; restore it from a copy") from fault


def read_segment(segment: Path, *, count: int = -1) -> bytes:
    """Its bytes; none if retention has deleted it a moment ago."""
    try:
        with segment.open("rb") as file:
            return file.read(count)
    except FileNotFoundError:
        return b""
    except OSError as fault:
        raise AuditFailed(f"{segment}: {fault.strerror}") from fault


def records_of(data: bytes, first: int) -> Iterator[Record]:
    """The records of a segment."""
    number = first
    for found in frames(data):
        if found.kind == LEAVES:
            for line in found.payload.split(b"\n"):
                yield Record(number, line)
                number += 1


def sealed_in(line: bytes) -> Sealed | None:
    """The leaf, if it is one that commits to a ciphertext."""
    if b'"sealed"' not in line:
        return None
    try:
        leaf = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return leaf if isinstance(leaf, Sealed) else None


def _shares(segment: Path, data: bytes, first: int, wanted: frozenset[int]) -> Iterator[Share]:

    ciphertexts: dict[str, bytes] = {}
    number = first
    for found in frames(data):
        if found.kind == CIPHERTEXT:
            ciphertexts[sha256(found.payload).hexdigest()] = found.payload
            continue
        together: list[Record] = []
        for line in found.payload.split(b"\n"):
            record = Record(number, line)
            number += 1
            sealed = sealed_in(line)
            if sealed is None:
                together.append(record)
                continue
            ciphertext = ciphertexts.pop(sealed.sha256, None)
            if any(one.number in wanted for one in together):
                yield Share(records=together, sealed=sealed, ciphertext=ciphertext, segment=segment)
            together = []

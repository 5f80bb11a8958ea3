"""A log's directory as it lies there: read without the lock of its writer, which may be at work meanwhile; never written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec

from gateway.audit.frames import CIPHERTEXT, FRAME_BYTES_MAX, HEAD_BYTES, LEAVES, first_leaf_of, frame_at, frames
from gateway.audit.note import NOTE_BYTES_MAX, BadNote, Checkpoint, Note
from gateway.audit.segments import SEGMENT_BYTES_MAX, segments_in
from gateway.audit.tiled import CHECKPOINT, TREE, TileFiles, read_note
from gateway.audit.tiles import TILE_WIDTH
from gateway.audit.witnessed import WITNESSED
from gateway.ports import AuditFailed
from gateway.record import AnyLeaf, Leaf, Sealed

BYTES_MAX = SEGMENT_BYTES_MAX + 2 * FRAME_BYTES_MAX  # of a segment; one write goes over its size at most
READS_MAX = 100  # of a segment that is being written, each of which gets further

_decode: Callable[[bytes], Leaf] = msgspec.json.Decoder(AnyLeaf).decode


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
        self.witnessed = _bytes(directory / WITNESSED)  # before the checkpoint, which it then is not above
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
        """The records above the checkpoint, up to the first that is missing. The next checkpoint signs them."""
        expected = self.size
        for segment in self._segments_from(self.size):
            data = read_segment(segment)
            for record in records_of(data, first_leaf_of(data) or 0):
                if record.number == expected:
                    yield record
                    expected += 1

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
            first = first_leaf_of(_head_of(segment))
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


def _bytes(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(NOTE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise AuditFailed(f"{path}: {fault.strerror}") from fault


def read_segment(segment: Path) -> bytes:
    """Its bytes; none if retention has deleted it a moment ago. A gateway may be writing to it."""
    try:
        with segment.open("rb") as file:

            def read(offset: int) -> bytes:
                file.seek(offset)
                data = file.read(BYTES_MAX + 1)
                if len(data) > BYTES_MAX:
                    raise AuditFailed(f"{segment}: over {BYTES_MAX} bytes, and no gateway writes such a segment")
                return data

            return settled(read)
    except FileNotFoundError:
        return b""
    except OSError as fault:
        raise AuditFailed(f"{segment}: {fault.strerror}") from fault


def settled(read: Callable[[int], bytes]) -> bytes:
    """A segment that may be written while it is read, as it was at one moment. `read` reads from an offset to the end.

    A page is read as the zeros that it was, and the next one as it has become: that looks like damage. So what follows the
    whole frames is read again, until they go to the end or it stays as it is.
    """
    data, end = read(0), HEAD_BYTES
    for _ in range(READS_MAX):
        while (found := frame_at(data, end)) is not None:
            end = found.end
        rest = data[end:]
        if not rest.strip(b"\0"):
            break
        again = read(end)
        if again == rest:
            break
        data = data[:end] + again
    return data


def _head_of(segment: Path) -> bytes:
    try:
        with segment.open("rb") as file:
            return file.read(HEAD_BYTES)
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

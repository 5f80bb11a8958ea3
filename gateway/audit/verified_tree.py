"""Every file of a log's tree, held against the tree that is made anew from all entries. Findings name the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from gateway.audit.findings import Findings
from gateway.audit.reading import LogDirectory
from gateway.audit.tiled import CHECKPOINT
from gateway.audit.tiles import (
    TILE_LEVELS,
    TILE_WIDTH,
    BadBundle,
    bundle_path,
    entries_in,
    framed,
    partial_directory,
    tile_path,
    width_of,
)
from gateway.audit.tree import HASH_BYTES, Frontier, leaf_hash
from gateway.ports import AuditFailed

BESIDE = ".new"  # what a crash while a file was being written leaves


class VerifiedTree:
    """Reads all of it, once. What is above the checkpoint, in tiles too, must be what the segments have there (`unsigned`)."""

    def __init__(
        self,
        log: LogDirectory,
        *,
        unsigned: Sequence[bytes],
        sizes: Collection[int],
        findings: Findings,
        progress: Callable[[int], None],
    ) -> None:
        self.roots: dict[int, bytes] = {}  # of these sizes, as far as the log reaches
        self.whole = True  # whether every signed record is there as it was signed
        self._log = log
        self._unsigned = unsigned
        self._total = log.size + len(unsigned)
        self._sizes = frozenset(sizes) | {log.size}
        self._findings = findings
        self._unseen = set(log.tree_files) - {CHECKPOINT}
        self._widths = _widths(log.tree_files)
        self._hashes: list[bytes] = []  # of the records, a tile's worth each
        self._rows: list[bytearray] = []
        self._frontier = Frontier()
        # If the lowest tiles add up to the signed root, they say which entry is wrong; else the entries judge the tiles.
        self._tiles_are_signed = self._add_up_to_the_signed_root()
        self._verify(progress)

    def hash_of(self, number: int) -> bytes | None:
        """The hash that the tree has of a record. None if it cannot be known."""
        tile, place = divmod(number, TILE_WIDTH)
        if tile >= len(self._hashes):
            return None
        return self._hashes[tile][place * HASH_BYTES : (place + 1) * HASH_BYTES] or None

    def _add_up_to_the_signed_root(self) -> bool:
        frontier = Frontier()
        for index in range(-(-self._log.size // TILE_WIDTH)):
            hashes = self._lowest_tile(index)
            if hashes is None:
                return False
            for leaf in hashes:
                frontier.append(leaf)
        return self._log.checkpoint is not None and frontier.root() == self._log.checkpoint.root

    def _verify(self, progress: Callable[[int], None]) -> None:
        self._mark_root()
        for index in range(-(-self._total // TILE_WIDTH)):
            hashes = self._verified_bundle(index)
            if hashes is None:
                what = f"records from {index * TILE_WIDTH} on cannot be checked, as neither they nor their hashes are there"
                self._findings.found(self._log.tree_directory, what)
                return
            self._hashes.append(b"".join(hashes))
            for leaf in hashes:
                for level, root in enumerate(self._frontier.append(leaf)[::TILE_LEVELS]):
                    self._extend(level, root)
                self._mark_root()
            progress(len(hashes))
        for level, row in enumerate(self._rows):
            if row:
                self._verify_tile(level, self._total >> TILE_LEVELS * (level + 1), bytes(row))
        self._verify_root()
        self._name_strangers()

    def _mark_root(self) -> None:
        if self._frontier.size in self._sizes:
            self.roots[self._frontier.size] = self._frontier.root()

    def _verify_root(self) -> None:
        checkpoint = self._log.checkpoint
        if checkpoint is not None and self.roots[checkpoint.size] != checkpoint.root:
            what = f"signs another root hash than the {checkpoint.size} records of the log add up to"
            self._findings.found(self._log.checkpoint_path, what)

    def _name_strangers(self) -> None:
        for name in sorted(self._unseen):
            if name.endswith(BESIDE):
                self._findings.remark(f"{self._log.tree_files[name]}: left by a crash, or being written; of no meaning")
            else:
                self._findings.found(self._log.tree_files[name], "belongs to no tree of so many records")

    def _verified_bundle(self, index: int) -> Sequence[bytes] | None:
        """The hashes of its records, signed or not. None if there is no telling."""
        first, signed = index * TILE_WIDTH, width_of(0, index, self._log.size)
        above = self._unsigned[max(first - self._log.size, 0) : max(first + TILE_WIDTH - self._log.size, 0)]
        entries = self._entries(index, signed) if signed else []
        hashes: Sequence[bytes] | None = None if entries is None else [leaf_hash(entry) for entry in entries]
        if signed and (hashes is None or self._tiles_are_signed):
            tile = self._lowest_tile(index)
            if entries is not None and hashes is not None and tile is not None and hashes != tile:
                place = next(place for place in range(signed) if hashes[place] != tile[place])
                self._findings.found(
                    self._bundle(index, signed), f"record {first + place} is not the one that was signed"
                )
                entries = None
            hashes = tile
        if entries is None:
            self.whole = False
            self._unseen -= set(self._files(bundle_path(index)).values())
        else:
            framed_entries = [framed(entry) for entry in (*entries, *above)]
            ends = list(accumulate(map(len, framed_entries)))
            self._verify_files(bundle_path(index), b"".join(framed_entries), ends, signed=signed, first=first)
        return None if hashes is None else [*hashes, *map(leaf_hash, above)]

    def _entries(self, index: int, width: int) -> Sequence[bytes] | None:
        path = self._bundle(index, width)
        try:
            entries = entries_in(path.read_bytes())
        except FileNotFoundError:
            self._findings.found(path, f"is missing; it has records {index * TILE_WIDTH} and following")
        except OSError as fault:
            self._findings.found(path, str(fault.strerror))
        except BadBundle as fault:
            self._findings.found(path, f"is not a sequence of records: {fault}")
        else:
            if len(entries) in {width, TILE_WIDTH}:
                return entries[:width]
            self._findings.found(path, f"has {len(entries)} records where {width} were signed")
        return None

    def _bundle(self, index: int, width: int) -> Path:
        """Where a bundle is: the full one takes the place of partial ones while a gateway goes on."""
        partial = self._log.tree_directory / bundle_path(index, width)
        full = self._log.tree_directory / bundle_path(index)
        return full if full.exists() and not partial.exists() else partial

    def _lowest_tile(self, index: int) -> Sequence[bytes] | None:
        try:
            row = self._log.tree.tile(0, index)
        except AuditFailed:
            return None
        return [row[place : place + HASH_BYTES] for place in range(0, len(row), HASH_BYTES)]

    def _extend(self, level: int, root: bytes) -> None:
        if level == len(self._rows):
            self._rows.append(bytearray())
        row = self._rows[level]
        row += root
        if len(row) == TILE_WIDTH * HASH_BYTES:
            self._verify_tile(level, (self._frontier.size >> TILE_LEVELS * (level + 1)) - 1, bytes(row))
            row.clear()

    def _verify_tile(self, level: int, index: int, row: bytes) -> None:
        ends = range(HASH_BYTES, len(row) + 1, HASH_BYTES)
        signed = width_of(level, index, self._log.size)
        self._verify_files(tile_path(level, index), row, ends, signed=signed, first=index * TILE_WIDTH)

    def _verify_files(self, full: str, data: bytes, ends: Sequence[int], *, signed: int, first: int) -> None:
        """The files of one tile or bundle, of whatever widths. `ends`: where each of its hashes or records ends."""
        for width, name in self._files(full).items():
            self._unseen.discard(name)
            path = self._log.tree_files[name]
            try:
                there = path.read_bytes()
            except FileNotFoundError:
                continue  # a full one has taken its place; if none has, it is missed below
            except OSError as fault:
                self._findings.found(path, str(fault.strerror))
                continue
            if width > len(ends):
                self._findings.found(
                    path, f"says that the log has {first + width} of these, and it has {first + len(ends)}"
                )
            elif there != data[: ends[width - 1]]:
                self._findings.found(path, _difference(there, data, ends[:width], first=first))
        if signed and not any((self._log.tree_directory / name).exists() for name in _needed(full, signed)):
            self._findings.found(self._log.tree_directory / _needed(full, signed)[0], "is missing")

    def _files(self, full: str) -> Mapping[int, str]:
        return self._widths.get(full, {})


def _difference(there: bytes, data: bytes, ends: Sequence[int], *, first: int) -> str:
    if len(there) != ends[-1]:
        return f"has {len(there)} bytes where there should be {ends[-1]}"
    start = 0
    for place, end in enumerate(ends):
        if there[start:end] != data[start:end]:
            return f"number {first + place} of its level is not what the records of the log make it"
        start = end
    raise AssertionError("they differ")


def _needed(full: str, width: int) -> Sequence[str]:
    """One of these must be there."""
    return [full] if width == TILE_WIDTH else [f"{partial_directory(full)}/{width}", full]


def _widths(names: Iterable[str]) -> Mapping[str, Mapping[int, str]]:
    """The files of each tile, named as if it were full: by how many hashes or records they have."""
    widths: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        full, partial, width = name.partition(partial_directory("") + "/")
        if not partial:
            widths[name][TILE_WIDTH] = name
        elif width.isascii() and width.isdigit() and width == str(int(width)) and 0 < int(width) < TILE_WIDTH:
            widths[full][int(width)] = name
    return widths

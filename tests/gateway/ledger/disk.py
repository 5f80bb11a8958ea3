"""A disk under SQLite that remembers every write and flush, can lose its power at any of them, and can fail when told to.

What may be found after a power cut: everything that was flushed, and of what was not flushed any part. A sector of 512 bytes
is written whole or not at all; sectors reach the disk in any order (the model of ALICE, Pillai et al., OSDI 2014). The
shared memory of the write-ahead log is no file here, and a reboot forgets it anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import apsw

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, in the order in which it did: to a file, or noted by a test."""

    kind: str  # write, truncate, sync, delete, note
    file: str = ""
    offset: int = 0
    data: bytes = b""
    note: Any = None


class RecordingDisk(apsw.VFS):
    """The operating system's files, recorded. `fail` maps "write" or "sync" to the SQLite code with which it fails."""

    def __init__(self) -> None:
        super().__init__("recording", "unix", makedefault=True)
        self.trace: list[Event] = []
        self.fail: dict[str, int] = {}
        self.failed = 0

    def note(self, note: Any) -> None:
        """A test's own event."""
        self.trace.append(Event("note", note=note))

    def check(self, operation: str) -> None:
        """Fail if this operation is to fail."""
        if operation in self.fail:
            self.failed += 1
            fault = apsw.exception_for(self.fail[operation])
            fault.args = (f"{operation} failed",)
            raise fault

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _RecordedFile(self, name, flags)

    def xDelete(self, name: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(name, syncdir)
        self.trace.append(Event("delete", Path(name).name))


class _RecordedFile(apsw.VFSFile):
    def __init__(self, disk: RecordingDisk, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk
        self._name = Path(name.filename() if isinstance(name, apsw.URIFilename) else name).name

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.check("write")
        super().xWrite(data, offset)
        self._disk.trace.append(Event("write", self._name, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        super().xTruncate(size)
        self._disk.trace.append(Event("truncate", self._name, size))

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.check("sync")
        super().xSync(flags)
        self._disk.trace.append(Event("sync", self._name))


@contextmanager
def recording_disk() -> Iterator[RecordingDisk]:
    """All databases that are opened meanwhile lie on this disk. It has no shared memory, so each has one connection."""

    def alone(connection: apsw.Connection) -> None:
        if connection.open_vfs == "recording":
            connection.pragma("locking_mode", "exclusive")

    disk = RecordingDisk()
    apsw.connection_hooks.append(alone)
    try:
        yield disk
    finally:
        apsw.connection_hooks.remove(alone)
        disk.unregister()


@dataclass(slots=True)
class _File:
    flushed: bytearray | None = None  # None: not even its name is sure to be there
    waiting: list[Event] = field(default_factory=list)

    def flush(self) -> None:
        self.flushed = _applied(self.flushed or bytearray(), self.waiting)
        self.waiting = []

    def found(self, random: Random) -> bytearray | None:
        """What is there after a power cut now."""
        if self.flushed is None and random.random() < 0.3:
            return None
        content = bytearray(self.flushed or b"")
        if random.random() < 0.3 or any(event.kind == "truncate" for event in self.waiting):
            return self._prefix(content, random)
        return self._sectors(content, random)

    def _prefix(self, content: bytearray, random: Random) -> bytearray:
        """What was written first, and of the next write some sectors."""
        kept = random.randrange(len(self.waiting) + 1)
        content = _applied(content, self.waiting[:kept])
        for torn in self.waiting[kept : kept + 1]:
            pieces = [piece for piece in _pieces(torn) if random.random() < 0.5]
            content = _applied(content, pieces)
        return content

    def _sectors(self, content: bytearray, random: Random) -> bytearray:
        """Of each sector any state that it was in since the flush, independently of all others."""
        states: dict[int, list[bytes]] = {}
        latest = bytearray(content)
        for write in self.waiting:
            latest = _applied(latest, [write])
            for piece in _pieces(write):
                sector = piece.offset // SECTOR_BYTES * SECTOR_BYTES
                states.setdefault(sector, []).append(bytes(latest[sector : sector + SECTOR_BYTES]))
        kept = random.choice((0.1, 0.5, 0.9, 1.0))  # how much the disk was behind
        for sector, versions in states.items():
            if random.random() < kept:
                chosen = versions[-1] if random.random() < 0.7 else random.choice(versions)
                content = _applied(content, [Event("write", offset=sector, data=chosen)])
        return content


class PowerCuts:
    """A trace played again, with the power cut where the caller wants."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def play(self, event: Event) -> None:
        """Let this happen."""
        if event.kind == "note":
            return
        file = self._files.setdefault(event.file, _File())
        if event.kind == "sync":
            file.flush()
        elif event.kind == "delete":
            del self._files[event.file]
        else:
            file.waiting.append(event)

    def cut(self, directory: Path, random: Random) -> None:
        """Write into the directory what a disk may hold if the power failed now."""
        for name, file in self._files.items():
            content = file.found(random)
            if content is not None:
                (directory / name).write_bytes(content)


def _pieces(write: Event) -> Iterator[Event]:
    """The parts of a write that lie in one sector each."""
    offset, end = write.offset, write.offset + len(write.data)
    while offset < end:
        edge = min((offset // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
        yield Event("write", offset=offset, data=write.data[offset - write.offset : edge - write.offset])
        offset = edge


def _applied(content: bytearray, changes: list[Event]) -> bytearray:
    """Changes the content in place, and returns it. A hole reads as zeros."""
    for change in changes:
        if change.kind == "truncate":
            del content[change.offset :]
        else:
            content.extend(bytes(max(change.offset - len(content), 0)))
            content[change.offset : change.offset + len(change.data)] = change.data
    return content

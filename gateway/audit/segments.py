"""Append-only segment files: one frame for all that waits, one `fdatasync` per frame, before anything of it leaves.

A segment is the magic, then frames of `marker, length, CRC-32, payload`; a payload is one JSON leaf a line. Space is laid
out in zeros ahead of the frames, because flushing bytes into a file that does not grow spares the file system its journal
(6 KB frames on ext4: 35 us of CPU and 95 us in all for a flush, instead of 50 and 145).

A crash while writing leaves a torn last frame: its bytes never left, so recovery cuts it off. A broken frame with a whole
one after it means that somebody or something changed the log, and the gateway refuses to start.

Content is not kept: a log that cannot seal what clients and backends said must not hold it.
"""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.ports import AuditFailed
from gateway.record import AnyLeaf, Entry, Leaf, lines
from policy.limits import RECENT_S

MAGIC = b"WEIRLOG1"
MARKER = b"\xf5wf\n"  # 0xf5 occurs in no JSON, so that a search for frames finds frames
SEGMENT_BYTES_MAX = 64 * 1024 * 1024  # small enough to copy and to re-read at start, large enough to be few
LAID_OUT_BYTES = 1024 * 1024  # at a time; about a thousand ticks
FRAME_BYTES_MAX = 16 * 1024 * 1024  # no batch of leaves comes near it; a length beyond it is damage
_FRAME = struct.Struct("<4sII")

_decode = msgspec.json.Decoder(AnyLeaf).decode

_Batch = tuple[bytes, asyncio.Future[None]]  # lines, and who waits for them to be durable


class SegmentLog:
    """The `AuditLog` port on a directory. Opening it recovers; raises `AuditFailed` if the log is damaged or not writable."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd, self._size = self._open_last()
            self._laid_out = self._size
        except OSError as fault:
            raise AuditFailed(f"audit log {directory}: {fault}") from fault
        self._failed = False
        # One thread: frames reach the disk in the order in which they were appended.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")
        self._waiting: list[_Batch] = []
        self._writing: asyncio.Future[None] | None = None

    async def append(self, entries: Sequence[Entry]) -> None:
        """See `AuditLog.append`."""
        await self.append_lines(lines(entries))

    async def append_lines(self, payload: bytes) -> None:
        """The same for leaves that are encoded already (`record.lines`). What waits for the disk together is flushed together."""
        durable = asyncio.get_running_loop().create_future()
        self._waiting.append((payload, durable))
        if self._writing is None:
            self._write_waiting()
        await durable

    def recent(self) -> Iterator[Leaf]:
        """See `AuditLog.recent`."""
        return recent(self._directory)

    async def close(self) -> None:
        """Finish the frames under way and close the file."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
        await asyncio.to_thread(self._writer.shutdown)
        if not self._failed:  # else the descriptor may be gone already, or be another file's by now
            self._seal()

    def _write_waiting(self) -> None:
        """All that waits, as far as one frame holds it, goes into the next frame."""
        size = count = 0
        for payload, _ in self._waiting:
            size += len(payload) + 1
            if count and size > FRAME_BYTES_MAX:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        joined = b"\n".join([payload for payload, _ in batch])
        self._writing = asyncio.get_running_loop().run_in_executor(self._writer, self._write, _frame(joined))
        self._writing.add_done_callback(lambda written: self._written(batch, written))

    def _written(self, batch: Sequence[_Batch], written: asyncio.Future[None]) -> None:
        fault = written.exception()
        for _, durable in batch:
            if durable.done():  # whoever waited was cancelled; what it appended is on the record all the same
                continue
            if fault is None:
                durable.set_result(None)
            else:
                durable.set_exception(fault)
        self._writing = None
        if self._waiting:
            self._write_waiting()

    def _write(self, frame: bytes) -> None:
        if self._failed:
            raise AuditFailed("the audit log failed before; the process must stop")
        try:
            if self._size + len(frame) > SEGMENT_BYTES_MAX:
                self._rotate()
            if self._size + len(frame) > self._laid_out:
                self._lay_out(len(frame))
            _write_all(self._fd, frame, self._size)
            os.fdatasync(self._fd)
        except OSError as fault:
            # After a failed fsync the page cache may claim what the disk does not hold: never try again (ATC'20, "fsync failures").
            self._failed = True
            raise AuditFailed(f"audit log {self._directory}: {fault}") from fault
        self._size += len(frame)

    def _lay_out(self, frame_bytes: int) -> None:
        """Zeros ahead of the next frames. A crash here leaves zeros, which are no frame and no damage."""
        size = max(LAID_OUT_BYTES, frame_bytes)
        _write_all(self._fd, bytes(size), self._size)
        os.fdatasync(self._fd)
        self._laid_out = self._size + size

    def _seal(self) -> None:
        """Nothing more goes into this segment."""
        os.ftruncate(self._fd, self._size)
        os.fsync(self._fd)
        os.close(self._fd)

    def _open_last(self) -> tuple[int, int]:
        segments = sorted(self._directory.glob("*.log"))
        for number, segment in enumerate(segments):
            if segment.stem != f"{number:08d}":
                raise AuditFailed(f"{self._directory}: segment {number:08d}.log is missing; restore it from a copy")
        for segment in segments[:-1]:
            if valid_size(segment) != segment.stat().st_size:
                raise AuditFailed(f"{segment}: damaged before the end of the log; restore it from a copy")
        if not segments:
            return self._create(0)
        last = segments[-1]
        size = valid_size(last)
        fd = os.open(last, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(fd, size)
        if size < len(MAGIC):  # the crash came while the segment was being created
            _write_all(fd, MAGIC, 0)
            size = len(MAGIC)
        os.fsync(fd)
        return fd, size

    def _create(self, number: int) -> tuple[int, int]:
        path = self._directory / f"{number:08d}.log"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _write_all(fd, MAGIC, 0)
        os.fsync(fd)
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # the file's name must survive a power cut as well as its bytes
        finally:
            os.close(directory)
        return fd, len(MAGIC)

    def _rotate(self) -> None:
        number = int(max(path.stem for path in self._directory.glob("*.log"))) + 1
        self._seal()  # before the next segment exists: only the last one may have a torn end
        self._fd, self._size = self._create(number)
        self._laid_out = self._size


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The valid frames of a segment as (end offset, payload), up to the first that is not whole."""
    offset = len(MAGIC)
    if data[:offset] != MAGIC:
        return
    while (frame := _frame_at(data, offset)) is not None:
        yield frame
        offset = frame[0]


def _frame(payload: bytes) -> bytes:
    return _FRAME.pack(MARKER, len(payload), zlib.crc32(payload)) + payload


def _frame_at(data: bytes, offset: int) -> tuple[int, bytes] | None:
    if len(data) - offset < _FRAME.size:
        return None
    marker, length, checksum = _FRAME.unpack_from(data, offset)
    if marker != MARKER or length > FRAME_BYTES_MAX:
        return None
    end = offset + _FRAME.size + length
    payload = data[offset + _FRAME.size : end]
    if len(payload) < length or zlib.crc32(payload) != checksum:
        return None
    return end, payload


def valid_size(segment: Path) -> int:
    """How many bytes of a segment are whole frames. Raises `AuditFailed` if what follows them is more than a torn frame."""
    data = segment.read_bytes()
    if not data.startswith(MAGIC) and not MAGIC.startswith(data):
        raise AuditFailed(f"{segment}: not an audit segment")
    size = len(MAGIC) if data.startswith(MAGIC) else 0
    for end, _ in frames(data):
        size = end
    later = data.find(MARKER, size + 1)
    while later != -1:
        if _frame_at(data, later) is not None:
            raise AuditFailed(f"{segment}: damaged at byte {size}, with whole records after it; restore it from a copy")
        later = data.find(MARKER, later + 1)
    return size


def recent(directory: Path) -> Iterator[Leaf]:
    """`AuditLog.recent` of a log that another process may be writing. Leaves of other versions of this program are left out."""
    segments = sorted(directory.glob("*.log"))
    first, newest_ms = len(segments), 0
    while first > 0:
        first -= 1
        times = [leaf.at_ms for leaf in _leaves(segments[first])]
        newest_ms = max([newest_ms, *times])
        if newest_ms - min(times, default=newest_ms) >= RECENT_S * 1000:
            break
    for segment in segments[first:]:
        yield from _leaves(segment)


def _leaves(segment: Path) -> Iterator[Leaf]:
    for _, payload in frames(segment.read_bytes()):
        for line in payload.split(b"\n"):
            with suppress(msgspec.ValidationError):
                yield _decode(line)


def leaves(directory: Path) -> Iterator[dict[str, object]]:
    """Every leaf of a log, oldest first, as decoded JSON."""
    for segment in sorted(directory.glob("*.log")):
        for _, payload in frames(segment.read_bytes()):
            for line in payload.split(b"\n"):
                yield msgspec.json.decode(line)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written

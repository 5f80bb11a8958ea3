"""Append-only segment files: one frame per batch, one `fdatasync` per frame, before anything of the batch leaves.

A segment is the magic, then frames of `length, CRC-32, payload`; a payload is one JSON leaf a line. A crash while writing
leaves a torn last frame: its bytes never left, so recovery cuts it off. A frame that is broken anywhere else means that
somebody or something changed the log, and the gateway refuses to start.

Content is not kept: a log that cannot seal what clients and backends said must not hold it.
"""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from gateway.ports import AuditFailed
from gateway.record import Entry

MAGIC = b"WEIRLOG1"
SEGMENT_BYTES_MAX = 64 * 1024 * 1024  # small enough to copy and to re-read at start, large enough to be few
FRAME_BYTES_MAX = 16 * 1024 * 1024  # no batch of leaves comes near it; a length beyond it is damage
_FRAME = struct.Struct("<II")

_encode = msgspec.json.Encoder().encode


class SegmentLog:
    """The `AuditLog` port on a directory. Opening it recovers; raises `AuditFailed` if the log is damaged or not writable."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd, self._size = self._open_last()
        except OSError as fault:
            raise AuditFailed(f"audit log {directory}: {fault}") from fault
        self._failed = False
        # One thread: frames reach the disk in the order in which they were appended.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")

    async def append(self, entries: Sequence[Entry]) -> None:
        """See `AuditLog.append`."""
        payload = b"\n".join([_encode(entry.leaf) for entry in entries])
        frame = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        await asyncio.get_running_loop().run_in_executor(self._writer, self._write, frame)

    async def close(self) -> None:
        """Finish the frames under way and close the file."""
        await asyncio.to_thread(self._writer.shutdown)
        os.close(self._fd)

    def _write(self, frame: bytes) -> None:
        if self._failed:
            raise AuditFailed("the audit log failed before; the process must stop")
        try:
            if self._size + len(frame) > SEGMENT_BYTES_MAX:
                self._rotate()
            _write_all(self._fd, frame)
            os.fdatasync(self._fd)
        except OSError as fault:
            # After a failed fsync the page cache may claim what the disk does not hold: never try again (ATC'20, "fsync failures").
            self._failed = True
            raise AuditFailed(f"audit log {self._directory}: {fault}") from fault
        self._size += len(frame)

    def _open_last(self) -> tuple[int, int]:
        segments = sorted(self._directory.glob("*.log"))
        for segment in segments[:-1]:
            if valid_size(segment) != segment.stat().st_size:
                raise AuditFailed(f"{segment}: damaged before the end of the log; restore it from a copy")
        if not segments:
            return self._create(0)
        last = segments[-1]
        size = valid_size(last)
        fd = os.open(last, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(fd, size)
        if size < len(MAGIC):  # the crash came while the segment was being created
            _write_all(fd, MAGIC)
            size = len(MAGIC)
        os.fdatasync(fd)
        return fd, size

    def _create(self, number: int) -> tuple[int, int]:
        path = self._directory / f"{number:08d}.log"
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _write_all(fd, MAGIC)
        os.fdatasync(fd)
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # the file's name must survive a power cut as well as its bytes
        finally:
            os.close(directory)
        return fd, len(MAGIC)

    def _rotate(self) -> None:
        number = int(max(path.stem for path in self._directory.glob("*.log"))) + 1
        fd, size = self._create(number)
        os.close(self._fd)
        self._fd, self._size = fd, size


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The valid frames of a segment as (end offset, payload), up to the first that is torn."""
    offset = len(MAGIC)
    if data[:offset] != MAGIC:
        return
    while offset + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, offset)
        end = offset + _FRAME.size + length
        payload = data[offset + _FRAME.size : end]
        if length > FRAME_BYTES_MAX or len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield end, payload
        offset = end


def valid_size(segment: Path) -> int:
    """How many bytes of a segment are whole frames. Raises `AuditFailed` for a file that is not a segment."""
    data = segment.read_bytes()
    if not data.startswith(MAGIC) and not MAGIC.startswith(data):
        raise AuditFailed(f"{segment}: not an audit segment")
    size = len(MAGIC) if data.startswith(MAGIC) else 0
    for end, _ in frames(data):
        size = end
    return size


def leaves(directory: Path) -> Iterator[dict[str, object]]:
    """Every leaf of a log, oldest first, as decoded JSON."""
    for segment in sorted(directory.glob("*.log")):
        for _, payload in frames(segment.read_bytes()):
            for line in payload.split(b"\n"):
                yield msgspec.json.decode(line)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

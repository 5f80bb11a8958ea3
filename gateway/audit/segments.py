"""Append-only segment files: one write and one `fdatasync` for all that waits, before anything of it leaves.

Space is laid out in zeros ahead of the frames, because flushing bytes into a file that does not grow spares the file system its
journal (6 KB frames on ext4: 35 us of CPU and 95 us in all for a flush, instead of 50 and 145).

A crash while writing leaves a torn last frame: its bytes never left, so recovery cuts it off. A broken frame with a whole
one after it means that somebody or something changed the log, and the gateway refuses to start.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import msgspec

from gateway.audit import files
from gateway.audit.batch import Batch, Scribe
from gateway.audit.frames import (
    CIPHERTEXT,
    HEAD_BYTES,
    LEAVES,
    first_leaf_of,
    frame,
    frames,
    head,
    later_write,
    unfinished_head,
)
from gateway.ports import AuditFailed
from gateway.record import AnyLeaf, Entry, Leaf
from policy.limits import RECENT_S

SEGMENT_BYTES_MAX = 64 * 1024 * 1024  # small enough to copy and to re-read at start, large enough to be few
LAID_OUT_BYTES = 1024 * 1024  # at a time; about a thousand ticks
WRITE_BYTES_MAX = 16 * 1024 * 1024  # together; whoever comes later waits for the next write
RESTORE = "restore it from a copy"
LOCK = "lock"

_decode = msgspec.json.Decoder(AnyLeaf).decode
_Waiting = tuple[Batch, "asyncio.Future[None]"]  # and who waits for it to be durable


class SegmentLog:
    """The `AuditLog` port on a directory. Opening it recovers; raises `AuditFailed` if the log is damaged or not writable.

    Whoever opens it holds the directory's lock (`locked`).

    `signed` is how many leaves are in the signed tree: fewer must not be found. `durable` is told of batches' lines, in the
    order of the log, when they are durable.
    """

    def __init__(
        self, directory: Path, *, scribe: Scribe, signed: int = 0, durable: Callable[[bytes], None] = lambda lines: None
    ) -> None:
        self._directory = directory
        self._scribe = scribe
        self._durable = durable
        self._failed = False
        try:
            files.make_directory(directory)
            self._fd, self._size, self.leaves = self._open_last(signed)
            # Even if nothing was created just now: a life that was killed may have, and not come to this.
            files.sync([directory])
            with suppress(PermissionError):  # who may not read it has not made the name that is in it
                files.sync([directory.parent])
            self._laid_out = self._size
        except OSError as fault:
            raise AuditFailed(f"audit log {directory}: {fault}") from fault
        # One thread: frames reach the disk in the order in which they were appended.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")
        self._waiting: list[_Waiting] = []
        self._writing: asyncio.Future[None] | None = None

    async def append(self, entries: Sequence[Entry]) -> None:
        """See `AuditLog.append`."""
        for batch in self._scribe.batches(entries):
            await self.append_batch(batch)

    async def append_batch(self, batch: Batch) -> None:
        """The same for what a worker has written down already. What waits for the disk together is flushed together."""
        durable = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, durable))
        if self._writing is None:
            self._write_waiting()
        await durable

    def recent(self) -> Iterator[Leaf]:
        """See `AuditLog.recent`."""
        return recent(self._directory)

    async def close(self) -> None:
        """Finish what is being written and close the file."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
        await asyncio.to_thread(self._writer.shutdown)
        if not self._failed:  # else the descriptor may be gone already, or be another file's by now
            try:
                self._seal()
            except OSError as fault:
                raise AuditFailed(f"audit log {self._directory}: {fault}") from fault

    def _write_waiting(self) -> None:
        """All that waits, as far as it is not too much, is written together."""
        size = count = 0
        for batch, _ in self._waiting:
            size += len(batch.lines) + len(batch.ciphertext)
            if count and size > WRITE_BYTES_MAX:
                break
            count += 1
        together, self._waiting = self._waiting[:count], self._waiting[count:]
        lines = b"\n".join([batch.lines for batch, _ in together])
        # The ciphertexts first: a crash in between leaves some that nothing commits to, and not the reverse.
        data = bytearray()
        for batch, _ in together:
            if batch.ciphertext:
                data += frame(CIPHERTEXT, batch.ciphertext, offset=len(data))
        data += frame(LEAVES, lines, offset=len(data))
        self._writing = asyncio.get_running_loop().run_in_executor(self._writer, self._write, data, count_of(lines))
        self._writing.add_done_callback(lambda written: self._written(together, lines, written))

    def _written(self, together: Sequence[_Waiting], lines: bytes, written: asyncio.Future[None]) -> None:
        fault = written.exception()
        if fault is None:
            self._durable(lines)
        for _, durable in together:
            if durable.done():  # whoever waited was cancelled; what it appended is on the record all the same
                continue
            if fault is None:
                durable.set_result(None)
            else:
                durable.set_exception(fault)
        self._writing = None
        if self._waiting:
            self._write_waiting()

    def _write(self, data: bytearray, leaves: int) -> None:
        if self._failed:
            raise AuditFailed("the audit log failed before; the process must stop")
        try:
            if self._size + len(data) > SEGMENT_BYTES_MAX and self._size > HEAD_BYTES:
                self._rotate()
            if self._size + len(data) > self._laid_out:
                self._lay_out(len(data))
            _write_all(self._fd, data, self._size)
            os.fdatasync(self._fd)
        except OSError as fault:
            # After a failed fsync the page cache may claim what the disk does not hold: never try again (ATC'20, "fsync failures").
            self._failed = True
            raise AuditFailed(f"audit log {self._directory}: {fault}") from fault
        self._size += len(data)
        self.leaves += leaves

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

    def _open_last(self, signed: int) -> tuple[int, int, int]:
        """The last segment, cut off behind its last whole frame; its size; and how many leaves the log has.

        Those segments are read whose leaves are not all signed: from them the tree is taken up again. The others are judged
        by `weir audit verify`.
        """
        segments = segments_in(self._directory)
        if not segments:
            if signed:
                raise AuditFailed(f"{self._directory}: {signed} records are signed, and none is there; {RESTORE}")
            return self._create(0, first_leaf=0)
        for segment, following in pairwise(segments):
            _assert_follows(segment, following)
            unsigned = unfinished_head(following.read_bytes()) or first_leaf_in(following) > signed
            if unsigned and valid_size(segment) != segment.stat().st_size:
                raise AuditFailed(f"{segment}: damaged before the end of the log; {RESTORE}")
        last = segments[-1]
        size = valid_size(last)
        headless = size < HEAD_BYTES  # the crash came while the segment was being created
        leaves = _leaves_before(segments) if headless else first_leaf_in(last) + sum(1 for _ in _lines(last))
        if leaves < signed:
            raise AuditFailed(f"{last}: the log has {leaves} records, and {signed} are signed; {RESTORE}")
        if not (headless and len(segments) == 1) and (first := first_leaf_in(segments[0])) > signed:
            # Of the tree an old copy was put back, and what it lacks went with the segments: it cannot be taken up again.
            raise AuditFailed(f"{segments[0]}: begins with record {first}, and only {signed} are signed; {RESTORE}")
        if headless:
            files.remove(last)
            return self._create(int(last.stem), first_leaf=leaves)
        fd = os.open(last, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(fd, size)
        os.fsync(fd)
        return fd, size, leaves

    def _create(self, number: int, *, first_leaf: int) -> tuple[int, int, int]:
        path = self._directory / f"{number:08d}.log"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _write_all(fd, head(first_leaf), 0)
        os.fsync(fd)
        files.sync([self._directory])  # the file's name must survive a power cut as well as its bytes
        return fd, HEAD_BYTES, first_leaf

    def _rotate(self) -> None:
        number = int(segments_in(self._directory)[-1].stem) + 1
        self._seal()  # before the next segment exists: only the last one may have a torn end
        self._fd, self._size, _ = self._create(number, first_leaf=self.leaves)
        self._laid_out = self._size


def locked(directory: Path) -> int:
    """The lock of a log, to be closed behind everything else: two writers would overwrite each other. Raises `AuditFailed`."""
    try:
        files.make_directory(directory)
        fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            os.close(fd)
            raise AuditFailed(f"audit log {directory}: another gateway is writing to it") from fault
    except OSError as fault:
        raise AuditFailed(f"audit log {directory}: {fault}") from fault
    return fd


def segments_in(directory: Path) -> list[Path]:
    """The segments of a log, oldest first."""
    return sorted(directory.glob("[0-9]*.log"))


def first_leaf_in(segment: Path) -> int:
    """The number of a segment's first leaf. Raises `AuditFailed`."""
    with segment.open("rb") as file:
        data = file.read(HEAD_BYTES)
    first_leaf = first_leaf_of(data)
    if first_leaf is None:
        if unfinished_head(data):
            return 0
        raise AuditFailed(f"{segment}: not an audit segment of this version; move the directory away, or {RESTORE}")
    return first_leaf


def count_of(lines: bytes) -> int:
    """How many leaves there are."""
    return lines.count(b"\n") + 1


def valid_size(segment: Path) -> int:
    """How many bytes of a segment are whole frames. Raises `AuditFailed` if what follows them is more than a torn frame."""
    data = segment.read_bytes()
    if unfinished_head(data):
        return 0
    first_leaf_in(segment)
    size = HEAD_BYTES
    for found in frames(data):
        size = found.end
    if later_write(data, size):
        raise AuditFailed(f"{segment}: damaged at byte {size}, with whole records after it; {RESTORE}")
    return size


def recent(directory: Path) -> Iterator[Leaf]:
    """`AuditLog.recent` of a log that another process may be writing. Leaves of other versions of this program are left out."""
    segments = segments_in(directory)
    first, newest_ms = len(segments), 0
    while first > 0:
        first -= 1
        times = [leaf.at_ms for leaf in _decoded(segments[first])]
        newest_ms = max([newest_ms, *times])
        if newest_ms - min(times, default=newest_ms) >= RECENT_S * 1000:
            break
    for segment in segments[first:]:
        yield from _decoded(segment)


def lines_from(directory: Path, number: int) -> Iterator[bytes]:
    """The leaves of a log from this number on, as they stand there."""
    segments = segments_in(directory)
    firsts = [first_leaf_in(segment) for segment in segments]
    for segment, first_leaf, following in zip(segments, firsts, [*firsts[1:], None], strict=True):
        if following is not None and following <= number:
            continue
        for at, line in enumerate(_lines(segment), start=first_leaf):
            if at >= number:
                yield line


def forget(directory: Path, *, signed: int, before_s: float) -> None:
    """Delete the segments that were last written before this wall-clock time, and with them the content; the leaves are in the
    tree. The last two stay, and so does every leaf that is not signed.
    """
    segments = segments_in(directory)
    for segment, following in pairwise(segments[:-1]):
        if segment.stat().st_mtime >= before_s or first_leaf_in(following) > signed:
            return
        files.remove(segment)  # one after the other: a power cut must not take a later one and leave this


def leaves(directory: Path) -> Iterator[dict[str, object]]:
    """Every leaf of a log, oldest first, as decoded JSON."""
    for line in lines_from(directory, 0):
        yield msgspec.json.decode(line)


def _decoded(segment: Path) -> Iterator[Leaf]:
    for line in _lines(segment):
        with suppress(msgspec.ValidationError):
            yield _decode(line)


def _lines(segment: Path) -> Iterator[bytes]:
    for found in frames(segment.read_bytes()):
        if found.kind == LEAVES:
            yield from found.payload.split(b"\n")


def _assert_follows(segment: Path, following: Path) -> None:
    if int(following.stem) != int(segment.stem) + 1:
        raise AuditFailed(f"{following.parent}: segment {int(segment.stem) + 1:08d}.log is missing; {RESTORE}")


def _leaves_before(segments: Sequence[Path]) -> int:
    """How many leaves there are before the last segment, which has no head yet."""
    if len(segments) == 1:
        return 0
    return first_leaf_in(segments[-2]) + sum(1 for _ in _lines(segments[-2]))


def _write_all(fd: int, data: bytes | bytearray, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written

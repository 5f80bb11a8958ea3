"""A disk that keeps what was flushed and nothing else: stands in for `os` and can stop at any operation."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

DIRECTORY = -1  # in place of a file's number
SECTOR_BYTES = 512  # a disk writes so many whole or not at all
Change = tuple[int, bytes] | int  # bytes written at an offset, or the size that a file was cut to


class PowerCut(BaseException):
    """The process is gone. No `except Exception` notices."""


class Disk:
    """Passes on to the real `os`, in `root`, and remembers what of it a power cut would leave.

    `stop_at` ends the process before that operation. `fail_at` lets one fail, and `fail_from` all from there on that change
    something, as a disk does that is full or was mounted again to be read only.
    """

    def __init__(
        self,
        root: Path,
        *,
        stop_at: int | None = None,
        fail_at: int | None = None,
        fail_from: int | None = None,
        error: int = errno.EIO,
    ) -> None:
        self.operations = 0
        self.trace: list[str] = []
        self._stop_at, self._fail_at, self._fail_from = stop_at, fail_at, fail_from
        self._error = error
        self._root = root
        self._files = 0
        self._flushed: dict[int, bytes] = {}  # contents by file number
        self._changes: dict[int, list[Change]] = {}  # since then
        self._names: dict[Path, dict[str, int]] = {}
        self._flushed_names: dict[Path, dict[str, int]] = {}
        self._open: dict[int, Path] = {}
        self._take(root)

    def __getattr__(self, name: str):
        return getattr(os, name)  # the flags

    def release(self) -> None:
        """The process is gone: its locks are, and its life may be followed by another one on this disk."""
        for fd in [*self._open]:
            self.close(fd)
        self._stop_at = self._fail_at = self._fail_from = None

    def _take(self, directory: Path) -> None:
        """What is there already is on the disk."""
        self._names[directory] = {}
        for path in directory.iterdir():
            self._names[directory][path.name] = self._new_file(path.read_bytes()) if path.is_file() else DIRECTORY
            if path.is_dir():
                self._take(path)
        self._flushed_names[directory] = dict(self._names[directory])

    def _new_file(self, flushed: bytes = b"") -> int:
        self._files += 1
        self._flushed[self._files], self._changes[self._files] = flushed, []
        return self._files

    def _step(self, what: str, path: Path, *, changes: bool = True) -> None:
        self.operations += 1
        self.trace.append(f"{what} {path.relative_to(self._root.parent)}")
        if self._stop_at is not None and self.operations >= self._stop_at:
            raise PowerCut
        failing = self._fail_from is not None and self.operations >= self._fail_from and changes
        if self.operations == self._fail_at or failing:
            raise OSError(self._error, os.strerror(self._error))

    def _number(self, fd: int) -> int:
        path = self._open[fd]
        return self._names[path.parent][path.name]

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        created = bool(flags & os.O_CREAT) and not path.exists()
        self._step("open", path, changes=created or bool(flags & (os.O_TRUNC | os.O_RDWR | os.O_WRONLY)))
        fd = os.open(path, flags, mode)
        self._open[fd] = path
        if created:
            self._names[path.parent][path.name] = self._new_file()
        elif flags & os.O_TRUNC:
            self._changes[self._number(fd)].append(0)
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        self._step("write", self._open[fd])
        begin = os.lseek(fd, 0, os.SEEK_CUR)
        written = os.write(fd, data[:6000])  # as a disk may
        self._changes[self._number(fd)].append((begin, bytes(data[:written])))
        return written

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self._step("pwrite", self._open[fd])
        written = os.pwrite(fd, data[:6000], offset)
        self._changes[self._number(fd)].append((offset, bytes(data[:written])))
        return written

    def ftruncate(self, fd: int, size: int) -> None:
        self._step("ftruncate", self._open[fd])
        os.ftruncate(fd, size)
        self._changes[self._number(fd)].append(size)

    def fsync(self, fd: int) -> None:
        path = self._open[fd]
        self._step("fsync", path)
        if path.is_dir():
            self._flushed_names[path] = dict(self._names[path])
        else:
            self._flush(fd)

    def fdatasync(self, fd: int) -> None:
        self._step("fdatasync", self._open[fd])
        self._flush(fd)

    def _flush(self, fd: int) -> None:
        self._flushed[self._number(fd)] = self._open[fd].read_bytes()
        self._changes[self._number(fd)] = []

    def close(self, fd: int) -> None:
        os.close(fd)
        del self._open[fd]

    def replace(self, source: Path, target: Path) -> None:
        self._step("replace", target)
        os.replace(source, target)
        self._names[target.parent][target.name] = self._names[source.parent].pop(source.name)

    def mkdir(self, path: Path, mode: int) -> None:
        self._step("mkdir", path)
        os.mkdir(path, mode)
        self._names[path.parent][path.name] = DIRECTORY
        self._names[path] = {}
        self._flushed_names[path] = {}

    def unlink(self, path: Path) -> None:
        self._step("unlink", path)
        os.unlink(path)
        del self._names[path.parent][path.name]

    def rmdir(self, path: Path) -> None:
        self._step("rmdir", path)
        os.rmdir(path)
        del self._names[path.parent][path.name]

    def after_power_cut(self, target: Path, survives: Callable[[], bool]) -> Path:
        """What is left, in a directory of its own. What was not flushed is there only where `survives` says so.

        It is asked for every name, and for every sector of what was written and every cut.
        """
        self._leave(self._root, target, survives)
        return target

    def _leave(self, directory: Path, target: Path, survives: Callable[[], bool]) -> None:
        target.mkdir()
        flushed, live = self._flushed_names[directory], self._names[directory]
        for name in sorted({*flushed, *live}):
            there = flushed.get(name) == live.get(name) or survives()
            number = (live if there else flushed).get(name)
            if number == DIRECTORY:
                self._leave(directory / name, target / name, survives)
            elif number is not None:
                (target / name).write_bytes(self._content(number, survives))

    def _content(self, number: int, survives: Callable[[], bool]) -> bytes:
        data = bytearray(self._flushed[number])
        for change in self._changes[number]:
            if isinstance(change, int):
                if survives():
                    del data[change:]
                    data.extend(bytes(change - len(data)))
                continue
            offset, written = change
            while written:
                sector = written[: SECTOR_BYTES - offset % SECTOR_BYTES]
                if survives():
                    data.extend(bytes(max(offset + len(sector) - len(data), 0)))
                    data[offset : offset + len(sector)] = sector
                offset, written = offset + len(sector), written[len(sector) :]
        return bytes(data)

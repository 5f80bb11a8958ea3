"""A disk that keeps what was flushed and nothing else: stands in for `os` and can stop at any operation."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

DIRECTORY = -1  # in place of a file's number


class PowerCut(BaseException):
    """The process is gone. No `except Exception` notices."""


class Disk:
    """Passes on to the real `os`, in `root`, and remembers what of it a power cut would leave."""

    def __init__(self, root: Path, *, stop_at: int | None = None, fail_at: int | None = None) -> None:
        self.operations = 0
        self._stop_at, self._fail_at = stop_at, fail_at
        self._root = root
        self._files = 0
        self._flushed: dict[int, bytes] = {}  # contents by file number
        self._names: dict[Path, dict[str, int]] = {}
        self._flushed_names: dict[Path, dict[str, int]] = {}
        self._open: dict[int, Path] = {}
        self._take(root)

    def __getattr__(self, name: str):
        return getattr(os, name)  # the flags

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
        self._flushed[self._files] = flushed
        return self._files

    def _step(self) -> None:
        self.operations += 1
        if self.operations == self._stop_at:
            raise PowerCut
        if self.operations == self._fail_at:
            raise OSError(errno.EIO, "the disk failed")

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        self._step()
        fd = os.open(path, flags, mode)
        self._open[fd] = path
        if path.is_file() and path.name not in self._names[path.parent]:
            self._names[path.parent][path.name] = self._new_file()
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        self._step()
        return os.write(fd, data[:6000])  # as a disk may

    def fsync(self, fd: int) -> None:
        self._step()
        path = self._open[fd]
        if path.is_dir():
            self._flushed_names[path] = dict(self._names[path])
        else:
            self._flushed[self._names[path.parent][path.name]] = path.read_bytes()

    def close(self, fd: int) -> None:
        os.close(fd)
        del self._open[fd]

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        os.replace(source, target)
        self._names[target.parent][target.name] = self._names[source.parent].pop(source.name)

    def mkdir(self, path: Path, mode: int) -> None:
        self._step()
        os.mkdir(path, mode)
        self._names[path.parent][path.name] = DIRECTORY
        self._names[path] = {}
        self._flushed_names[path] = {}

    def unlink(self, path: Path) -> None:
        self._step()
        os.unlink(path)
        del self._names[path.parent][path.name]

    def rmdir(self, path: Path) -> None:
        self._step()
        os.rmdir(path)
        del self._names[path.parent][path.name]

    def after_power_cut(self, target: Path, survives: Callable[[], bool]) -> Path:
        """What is left, in a directory of its own. What was not flushed is there only where `survives` says so."""
        self._leave(self._root, target, survives)
        return target

    def _leave(self, directory: Path, target: Path, survives: Callable[[], bool]) -> None:
        target.mkdir()
        flushed, live = self._flushed_names[directory], self._names[directory]
        for name in sorted({*flushed, *live}):
            number = (live if survives() else flushed).get(name)
            if number == DIRECTORY:
                self._leave(directory / name, target / name, survives)
            elif number is not None:
                (target / name).write_bytes(self._flushed[number])

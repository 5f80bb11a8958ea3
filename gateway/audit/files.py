"""Files that are whole under their name, or not there: written beside it, flushed, renamed.

After `write` a power cut may still take the name back; `sync` puts an end to that. All raise `OSError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_BESIDE = ".new"  # what a crash leaves under such a name is written over by the next try


def write(path: Path, data: bytes) -> None:
    """Put a file under its name, in place of what stood there. A crash leaves the old file or the new one."""
    beside = path.with_name(path.name + _BESIDE)
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)  # before the rename: else a power cut leaves the name with nothing behind it
    finally:
        os.close(fd)
    os.replace(beside, path)


def make_directory(path: Path) -> None:
    """A directory for the gateway alone, with those above it."""
    with suppress(FileExistsError):
        try:
            os.mkdir(path, 0o700)
        except FileNotFoundError:
            make_directory(path.parent)
            sync([path.parent.parent])
            os.mkdir(path, 0o700)


def remove(path: Path) -> None:
    """Remove a file, for good: its name does not come back after a power cut."""
    os.unlink(path)
    sync([path.parent])


def remove_directory(path: Path) -> None:
    """Remove a directory of files, if it is there."""
    with suppress(FileNotFoundError):
        for name in os.listdir(path):
            os.unlink(path / name)
        os.rmdir(path)


def sync(directories: Iterable[Path]) -> None:
    """Make the names in these directories survive a power cut."""
    for directory in directories:
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

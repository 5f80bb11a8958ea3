"""Files that are there whole or not at all, whatever happens in between.

Each step says what a crash right there leaves behind. All of them raise OSError, and then the old state still holds.
"""

from __future__ import annotations

import os
from pathlib import Path

PARTIAL = ".partial"
"""Ending of files that were being written; whoever opens a directory removes them."""


def write_file(path: Path, content: bytes) -> None:
    """Put `content` under `path`, in place of what was there. Durable when it returns."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:  # a crash from here to the rename: a leftover that the next start removes
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)  # a crash behind it: the new file, or after a power cut the old state
    sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Delete `path`; no error if it is gone. Durable when it returns; a crash before leaves it whole."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def open_directory(directory: Path) -> None:
    """Make a directory if it is missing, and remove what a crash left half written in it."""
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(f"*{PARTIAL}"):
        leftover.unlink()


def set_aside(path: Path) -> Path:
    """Move a file that cannot be read into `quarantine/` beside it, under a name not yet taken, and return that."""
    quarantine = path.parent / "quarantine"
    quarantine.mkdir(exist_ok=True)
    place, number = quarantine / path.name, 1
    while place.exists():
        place, number = quarantine / f"{path.name}.{number}", number + 1
    path.rename(place)
    sync_directory(path.parent)
    return place


def sync_directory(directory: Path) -> None:
    """Flush the names in a directory: a rename is durable only then (POSIX)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

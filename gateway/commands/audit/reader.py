"""What the commands share: how a directory is named, how long work is shown, and how times are written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.audit.reading import LogDirectory, Record, Unreadable
from gateway.ports import AuditFailed
from gateway.record import Leaf

SHOWN_EVERY = 1000  # records; to draw costs more than to read


def directory(parser: argparse.ArgumentParser) -> None:
    """The argument that all of them have."""
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="the audit directory, or a copy")


@contextmanager
def progress(what: str) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar on standard error while something is read, if that is a terminal: tell its whole length, then each step."""
    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        waiting = 0

        def begins(total: int) -> None:
            bar.update(task, total=total)

        def advance(count: int) -> None:
            nonlocal waiting
            waiting += count
            if waiting >= SHOWN_EVERY:
                bar.advance(task, waiting)
                waiting = 0

        yield begins, advance


def leaves(log: LogDirectory, *, what: str) -> Iterator[tuple[Record, Leaf]]:
    """Every record with what it says, behind a bar. One that cannot be read is said, and left out."""
    with progress(what) as (begins, advance):
        begins(log.size)
        for record in log.records():
            advance(1)
            try:
                yield record, record.leaf()
            except Unreadable as fault:
                sys.stderr.write(f"{fault}\n")


def moment(text: str) -> int:
    """A day or a moment as an argument, in UTC unless it says otherwise; milliseconds of the Unix epoch."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a day (2026-11-03) nor a moment (2026-11-03T10:00)"
        ) from fault
    return int((parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp() * 1000)


def time_text(at_ms: int) -> str:
    """A moment for people, in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{at_ms % 1000:03d}"


def read_bytes(path: Path, *, count_max: int) -> bytes:
    """A file that somebody named. Raises `AuditFailed`."""
    try:
        with path.open("rb") as file:
            data = file.read(count_max + 1)
    except OSError as fault:
        raise AuditFailed(f"{path}: {fault.strerror}") from fault
    if len(data) > count_max:
        raise AuditFailed(f"{path}: over {count_max} bytes")
    return data

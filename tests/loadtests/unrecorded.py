"""A gateway without an audit log, which nobody can have: this file is the program that takes it out, to measure what it costs."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path

from gateway.audit import log
from gateway.record import Entry, Leaf

PROGRAM = Path(__file__).resolve()


class Unrecorded:
    """In place of `SignedLog`: everything else of a gateway is as ever, and so are the entries that it makes."""

    def __init__(self, *_: object, **__: object) -> None:
        self.origin = "nothing is recorded"

    async def append(self, entries: Sequence[Entry]) -> None:
        """At once."""

    def recent(self) -> Iterator[Leaf]:
        return iter(())

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing is open."""


if __name__ == "__main__":
    log.SignedLog = Unrecorded
    runpy.run_module("gateway", run_name="__main__", alter_sys=True)

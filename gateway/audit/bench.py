"""`python -m gateway.audit.bench DIRECTORY`: records a second, the time that sealing takes, and what signing adds to a tick.

The log has no HTTP interface of its own, so this cannot live in loadtests/, which knows nothing else of the gateway. It leaves
its logs behind: give it a directory of its own, on the disk that you would use.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from gateway.audit.log import SignedLog, scribe
from gateway.audit.sealing import SECRET_BYTES, public_bytes
from gateway.clock import SystemClock
from gateway.metrics import Metrics
from gateway.record import Entry, Released
from policy.rules import Audit, PublicKey

APPENDERS = (1, 16, 64)  # each appends its next tick when the last is durable
RECORDS = 16  # of a tick: as many answers say something
PIECE = {"text": "of a river that is held, and lets go by the hour", "ending": None}
SEALED_TOGETHER = (1, 16, 256)
TICK_S = 0.02  # a policy's own, unless it says otherwise
TICK_RECORDS = 64


def main() -> int:
    """A line of JSON for every measurement."""
    parser = argparse.ArgumentParser(prog="python -m gateway.audit.bench", description=__doc__)
    parser.add_argument("directory", type=Path, help="where logs may be written")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="for each line (default 1)")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.directory, seconds=arguments.seconds))
    return 0


async def run(directory: Path, *, seconds: float) -> None:
    """Everything, with two auditors and with none, each in a log of its own."""
    for auditors in ((), _auditors()):
        for appenders in APPENDERS:
            log = _opened(directory, f"{len(auditors)}-{appenders}", auditors)
            _say(what="append", auditors=len(auditors), appenders=appenders, **await append(log, appenders, seconds))
    for together in SEALED_TOGETHER:
        _say(what="seal", auditors=2, together=together, **seal(_rules(directory, _auditors()), together, seconds))
    for signing in (False, True):
        log = _opened(directory, f"tick-{signing}", _auditors())
        _say(what="tick", auditors=2, signing=signing, **await ticks(log, seconds, signing=signing))


async def append(log: SignedLog, appenders: int, seconds: float) -> dict[str, float]:
    """All append one tick after the other, while the log is signed behind them. Records a second, and how long a tick took."""
    taken_s: list[float] = []
    signing = asyncio.create_task(log.run())
    began_s, cpu_s = time.perf_counter(), time.process_time()

    async def one() -> None:
        while (asked_s := time.perf_counter()) < began_s + seconds:
            await log.append(_entries(RECORDS))
            taken_s.append(time.perf_counter() - asked_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(appenders):
            group.create_task(one())
    durable_s = time.perf_counter() - began_s
    await _ended(signing)
    await log.close()
    signed_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    records = len(taken_s) * RECORDS
    return {
        "durable_per_s": records / durable_s,
        "signed_per_s": records / signed_s,  # less, where the tree could not follow
        "cpu_us": cpu_s / records * 1e6,
        **_percentiles_ms(taken_s),
    }


def seal(rules: Audit, together: int, seconds: float) -> dict[str, float]:
    """CPU time of writing a tick down, with what it says sealed to the auditors; and the same without content."""
    taken_us: dict[bool, list[float]] = {}
    end_s = time.perf_counter() + seconds
    writers = {
        sealed: scribe(rules if sealed else Audit(directory=rules.directory), origin="bench", clock=SystemClock())
        for sealed in (False, True)
    }
    while time.perf_counter() < end_s:
        for sealed, writer in writers.items():
            entries = _entries(together)
            began_s = time.thread_time()
            list(writer.batches(entries))
            taken_us.setdefault(sealed, []).append((time.thread_time() - began_s) * 1e6)
    bare_us, sealed_us = (sum(times) / len(times) for times in taken_us.values())  # means: chains begin in few of them
    return {"batch_us": sealed_us, "bare_us": bare_us, "median_us": median(taken_us[True])}


async def ticks(log: SignedLog, seconds: float, *, signing: bool) -> dict[str, float]:
    """A tick of 64 records on the gateway's clock: how long after it was due it is durable, with the tree behind it or without."""
    running = asyncio.create_task(log.run()) if signing else None
    late_s: list[float] = []
    due_s = time.perf_counter()
    end_s = due_s + 3 * seconds
    while due_s < end_s:
        due_s = max(due_s + TICK_S, time.perf_counter())
        await asyncio.sleep(due_s - time.perf_counter())
        await log.append(_entries(TICK_RECORDS))
        late_s.append(time.perf_counter() - due_s)
    if running is not None:
        await _ended(running)
    await log.close()
    return _percentiles_ms(late_s)


def _entries(count: int) -> Sequence[Entry]:
    return [
        Entry(
            Released(
                at_ms=1_700_000_000_000 + number,
                answer=f"{number:032x}",
                tick=number,
                idle_ticks=0,
                text_bytes=48,
                charged_bits=400,
                outcome=None,
            ),
            PIECE,
        )
        for number in range(count)
    ]


def _auditors() -> tuple[PublicKey, ...]:
    return tuple(
        PublicKey(
            name=name,
            algorithm="x25519",
            encoded=base64.b64encode(public_bytes("x25519", os.urandom(SECRET_BYTES["x25519"]))).decode(),
        )
        for name in ("ann", "bob")
    )


def _rules(directory: Path, auditors: tuple[PublicKey, ...]) -> Audit:
    return Audit(directory=str(directory), auditors=auditors)


def _opened(directory: Path, name: str, auditors: tuple[PublicKey, ...]) -> SignedLog:
    return SignedLog(_rules(directory / name, auditors), clock=SystemClock(), metrics=Metrics())


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _percentiles_ms(taken_s: list[float]) -> dict[str, float]:
    taken_s.sort()
    return {"p50_ms": taken_s[len(taken_s) // 2] * 1e3, "p99_ms": taken_s[len(taken_s) * 99 // 100] * 1e3}


def _say(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    sys.exit(main())

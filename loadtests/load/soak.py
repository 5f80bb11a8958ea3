"""`make soak`: half an hour at 70 % of what a core carries. Memory and descriptors stay flat, and no byte is lost or doubled."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from loadtests.load.asker import End
from loadtests.load.crowd import Crowd, Tally
from loadtests.load.site import Place, Wanted, started
from loadtests.load.trend import trend
from loadtests.load.verdict import Check, at_rest, books_in_order, lag_table, nothing_left_open, same_bytes, told

READINGS = 180  # over the run: enough for a slope, few enough to compare all pairs
CALIBRATION_S = 5.0
CALIBRATION_PER_S = 20.0  # a first guess, to find what an answer costs
RATE_PER_S_MAX = 400.0  # beyond it the asking process would be what is measured
MEMORY_PART, DESCRIPTORS_PART = 0.03, 0.05  # of their level: what a rise may come to by noise
MEMORY_MIB, DESCRIPTORS = 4.0, 12.0  # or so much, if that is more

DESCRIPTION = f"""\
Hold a gateway under load for long, with all that costs something on (two auditors, zstd settlement, tenants' budgets):
whole answers, streams and tool calls, as several tenants. The rate is chosen so that the gateway's process is busy for
--load of a core: what an answer costs is measured first.

It must be so in the end:
  - every answer is what the upstream said, byte for byte, and upstream, gateway and clients have counted the same
  - memory and descriptors are flat: the slope (Theil-Sen, the first quarter left out) times the duration is below
    {MEMORY_PART:.0%} of the level, or {MEMORY_MIB:g} MiB, and {DESCRIPTORS_PART:.0%}, or {DESCRIPTORS:g} descriptors
  - nothing is left open, the audit log verifies, and its sums are the ledger's

exit status: 0 all of it is so, 1 something is not"""


@dataclass(kw_only=True)
class Readings:
    """The gateway's process, every few seconds."""

    memory_mib: list[tuple[float, float]] = field(default_factory=list)
    descriptors: list[tuple[float, float]] = field(default_factory=list)
    open_answers: list[int] = field(default_factory=list)


def main(words: Sequence[str] | None = None) -> int:
    """Parse, run, report; the exit status."""
    arguments = parsed_arguments(words)
    with started(Wanted()) as place:
        return uvloop.run(soak(place, arguments))


def parsed_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load.soak",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=1800.0, metavar="S", help="how long (default 1800)")
    parser.add_argument("--load", type=float, default=0.7, metavar="PART", help="of a core (default 0.7)")
    parser.add_argument("--rate", type=float, metavar="N", help="answers a second, instead of --load")
    parser.add_argument(
        "--memory-mib", type=float, default=MEMORY_MIB, metavar="MIB", help="rise that is allowed anyway"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the arrivals (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    return parser.parse_args(words)


async def soak(place: Place, arguments: argparse.Namespace) -> int:
    """The run and its verdict."""
    crowd, tally, readings = Crowd(place, seed=arguments.seed), Tally(), Readings()
    rate_per_s = arguments.rate or await calibrated(place, crowd, tally, part=arguments.load)
    before, cpu_before_s, start_s = place.gauges(), place.cpu_s(), time.monotonic()
    answered_before = tally.total
    reading = asyncio.create_task(read(place, readings, every_s=arguments.seconds / READINGS))
    await crowd.offered(tally, rate_per_s=rate_per_s, seconds=arguments.seconds)
    reading.cancel()
    elapsed_s, cpu_s = time.monotonic() - start_s, place.cpu_s() - cpu_before_s
    after = await asyncio.to_thread(at_rest, place)
    crowd.close()
    memory = trend(readings.memory_mib, unit="MiB", part=MEMORY_PART, least=arguments.memory_mib)
    descriptors = trend(readings.descriptors, unit="open", part=DESCRIPTORS_PART, least=DESCRIPTORS)
    good = tally.ends[End.GOOD]
    rows = [
        ("duration", f"{elapsed_s:.0f} s"),
        ("offered", f"{rate_per_s:.1f} answers a second"),
        ("answered", f"{good:,} of {tally.total:,}"),
        (
            "gateway's CPU",
            f"{cpu_s / elapsed_s:.0%} of a core, {cpu_s / (tally.total - answered_before) * 1e3:.2f} ms an answer",
        ),
        ("open at once", f"{max(readings.open_answers, default=0)} at most"),
        ("first text", tally.first.text()),
        ("gaps in streams", tally.gaps.text()),
        *((f"tick lag {name}" if name.startswith("≤") else name, value) for name, value in lag_table(before, after)),
    ]
    checks = [
        Check(
            name="every answer is whole and right", ok=good == tally.total, found=tally.worst() or f"{good:,} answers"
        ),
        *same_bytes(place, after, text_bytes=tally.text_bytes, argument_bytes=tally.argument_bytes),
        Check(name="memory is flat", ok=memory.flat, found=memory.text()),
        Check(name="descriptors are flat", ok=descriptors.flat, found=descriptors.text()),
        *nothing_left_open(place, after),
        *books_in_order(place),
    ]
    return told("Soak", rows, checks, file=arguments.json)


async def calibrated(place: Place, crowd: Crowd, tally: Tally, *, part: float) -> float:
    """The rate at which the gateway uses `part` of a core. Answers get cheaper as ticks fill, so the last guess counts."""
    rate_per_s = CALIBRATION_PER_S
    for portion in (0.5, 1.0, 1.0):
        answers, cpu_s = tally.total, place.cpu_s()
        await crowd.offered(tally, rate_per_s=rate_per_s, seconds=CALIBRATION_S)
        cost_s = (place.cpu_s() - cpu_s) / max(tally.total - answers, 1)
        rate_per_s = min(portion * part / cost_s, RATE_PER_S_MAX)
    return rate_per_s


async def read(place: Place, readings: Readings, *, every_s: float) -> None:
    """Until cancelled."""
    start_s = time.monotonic()
    while True:
        now_s = time.monotonic() - start_s
        readings.memory_mib.append((now_s, place.resident_mib()))
        readings.descriptors.append((now_s, float(place.descriptors())))
        readings.open_answers.append(place.said()["open"])
        await asyncio.sleep(every_s)


if __name__ == "__main__":
    sys.exit(main())

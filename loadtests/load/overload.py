"""`make overload`: twice as many users as a gateway has room for. It refuses fast, and whom it admits notices nothing."""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import uvloop

from loadtests.bench.__main__ import positive
from loadtests.load.asker import End
from loadtests.load.crowd import Crowd, Sort, Tally
from loadtests.load.script import Kind
from loadtests.load.site import Place, Wanted, started
from loadtests.load.verdict import TICK_S, Check, at_rest, books_in_order, nothing_left_open, told

TENANTS = 4
MIX = (Sort(share=1.0, kind=Kind.STREAM, pieces=60, pace_ms=20),)
ROOM = 0.9  # of the capacity in the quiet phases: a slot takes a moment to become free
CALIBRATION_USERS, CALIBRATION_S = 24, 5.0
CAPACITY_MAX = 400  # open streams: beyond it the asking process would be what is measured
REFUSED = "too_many_streams"

DESCRIPTION = f"""\
Quiet and overloaded phases take turns. Capacity is how many open streams keep the gateway busy for --load of a core, and
is what its policy allows (streams_max, {TENANTS} tenants). In a quiet phase {ROOM:.0%} of that are there; in an overloaded one
twice the capacity, and whoever is refused tries again after half a second.

It must be so:
  - a refusal takes --refusal-ms at most (99 of 100), says what it is for, and the upstream never hears of it
  - whoever is admitted gets a whole and right answer; gaps between pieces (99 of 100) are at most --gaps times those of
    the quiet phases, and a tick
  - as many answers end as in the quiet phases, nothing is left open, and the books are in order"""


def main(words: Sequence[str] | None = None) -> int:
    """Parse, run, report; the exit status."""
    arguments = parsed_arguments(words)
    capacity = arguments.capacity
    if capacity is None:
        with started(Wanted(tenants=TENANTS)) as place:
            capacity = uvloop.run(calibrated(place, part=arguments.load))
    streams_max = max(capacity // TENANTS, 2)
    with started(Wanted(tenants=TENANTS, streams_max=streams_max)) as place:
        return uvloop.run(overload(place, arguments, capacity=streams_max * TENANTS))


def parsed_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load.overload",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="of a phase (default 20)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="of two phases each (default 3)")
    parser.add_argument("--capacity", type=positive, metavar="N", help="open streams (default: measured)")
    parser.add_argument("--load", type=float, default=0.7, metavar="PART", help="of a core at capacity (default 0.7)")
    parser.add_argument("--refusal-ms", type=float, default=250.0, metavar="MS", help="(default 250)")
    parser.add_argument("--gaps", type=float, default=2.0, metavar="TIMES", help="(default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    return parser.parse_args(words)


async def calibrated(place: Place, *, part: float) -> int:
    """How many open streams keep the gateway busy for `part` of a core."""
    crowd, tally, cpu_s = Crowd(place, mix=MIX), Tally(), place.cpu_s()
    await crowd.population(tally, users=CALIBRATION_USERS, seconds=CALIBRATION_S)
    cost = (place.cpu_s() - cpu_s) / CALIBRATION_S / CALIBRATION_USERS  # of a core, for a stream that is open
    crowd.close()
    return min(int(part / cost), CAPACITY_MAX)


async def overload(place: Place, arguments: argparse.Namespace, *, capacity: int) -> int:
    """The phases in turn, and the verdict."""
    crowd = Crowd(place, mix=MIX)
    quiet, crowded = Tally(), Tally()
    for _ in range(arguments.rounds):
        await crowd.population(quiet, users=int(capacity * ROOM), seconds=arguments.seconds)
        await crowd.population(crowded, users=2 * capacity, seconds=arguments.seconds)
    after = await asyncio.to_thread(at_rest, place)
    crowd.close()
    reached = quiet.total + crowded.total - quiet.ends[End.REFUSED] - crowded.ends[End.REFUSED]
    asked_upstream = place.said()["requests"]
    wrong = crowded.ends + quiet.ends - Counter({End.GOOD: sys.maxsize, End.REFUSED: sys.maxsize})
    reasons = {reason for tally in (quiet, crowded) for reason in tally.reasons if reason.startswith("refused")}
    gaps_ms = crowded.gaps.percentile_ms(99)
    gaps_limit_ms = arguments.gaps * quiet.gaps.percentile_ms(99) + TICK_S * 1e3
    refused = crowded.ends[End.REFUSED]
    rows = [
        ("capacity", f"{capacity} open streams"),
        ("answers, quiet phases", f"{quiet.ends[End.GOOD]:,}, {quiet.ends[End.REFUSED]:,} refused"),
        ("answers, overloaded phases", f"{crowded.ends[End.GOOD]:,}, {refused:,} refused"),
        ("time to be refused", crowded.refusal.text()),
        ("gaps, quiet", quiet.gaps.text()),
        ("gaps, overloaded", crowded.gaps.text()),
        ("first text, quiet", quiet.first.text()),
        ("first text, overloaded", crowded.first.text()),
    ]
    refusal_ms = crowded.refusal.percentile_ms(99)
    checks = [
        Check(
            name="refuses, and says why",
            ok=refused > 0 and reasons == {f"refused: {REFUSED}"},
            found=", ".join(sorted(reasons)) or "no refusal",
        ),
        Check(
            name="refuses fast",
            ok=refusal_ms <= arguments.refusal_ms,
            found=f"p99 {refusal_ms:.0f} ms, at most {arguments.refusal_ms:.0f}",
        ),
        Check(
            name="upstream hears of admitted ones only",
            ok=asked_upstream == reached,
            found=f"{asked_upstream:,} asked, {reached:,} admitted",
        ),
        Check(name="admitted answers are whole and right", ok=not wrong, found=crowded.worst() if wrong else "all"),
        Check(
            name="admitted streams stay smooth",
            ok=gaps_ms <= gaps_limit_ms,
            found=f"p99 {gaps_ms:.0f} ms, at most {gaps_limit_ms:.0f}",
        ),
        Check(
            name="as many answers as before",
            ok=crowded.ends[End.GOOD] >= 0.8 * quiet.ends[End.GOOD],
            found=f"{crowded.ends[End.GOOD] / max(quiet.ends[End.GOOD], 1):.2f} × the quiet phases'",
        ),
        *nothing_left_open(place, after),
        *books_in_order(place),
    ]
    return told("Overload", rows, checks, file=arguments.json)


if __name__ == "__main__":
    sys.exit(main())

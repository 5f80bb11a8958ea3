"""`make faults`: the backend fails under load, in every way a network knows. All is charged, nothing leaks, all recovers."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import uvloop

from loadtests.bench.__main__ import positive
from loadtests.bench.peer import free_port
from loadtests.load.asker import End
from loadtests.load.crowd import Crowd, Sort, Tally
from loadtests.load.fault_proxy import FaultProxy, Harm, Timing
from loadtests.load.script import Kind
from loadtests.load.site import Gauges, Place, Wanted, started
from loadtests.load.verdict import Check, at_rest, books_in_order, nothing_left_open, told

PATIENCE_S = (
    2.0  # of the gateway with its upstream, first byte of a stream and later ones; a whole answer may take longer
)
TIMING = Timing(late_s=0.5, too_late_s=2 * PATIENCE_S, stall_s=2 * PATIENCE_S)
END_S_MAX = 20.0  # of any answer: far beyond what the gateway waits
MIX = (
    Sort(share=0.3, kind=Kind.JSON, pieces=200, pace_ms=20),
    Sort(share=0.6, kind=Kind.STREAM, pieces=60, pace_ms=10),
    Sort(share=0.1, kind=Kind.TOOL, pieces=30, pace_ms=10),
)
RECOVERY_ANSWERS = 100
DESCRIPTORS_KEPT = 12  # beyond those before: pools may have grown, a leak is one for every harmed answer

DESCRIPTION = f"""\
A proxy between gateway and upstream harms a part of the answers: connections are reset or closed inside them, stall, carry
garbage, or are late. The gateway waits {PATIENCE_S:g} s for its upstream.

It must be so:
  - every question ends in time: with the whole and right answer, or with an error; what had come until then was the
    beginning of what was said
  - everything that clients heard was charged: 8 bits a byte at least, on the record before it left
  - no answer, hold, connection or descriptor is left, and the audit log's sums are the ledger's
  - when the faults are over, {RECOVERY_ANSWERS} answers in a row are whole and right"""


def main(words: Sequence[str] | None = None) -> int:
    """Parse, run, report; the exit status."""
    return uvloop.run(between(parsed_arguments(words)))


async def between(arguments: argparse.Namespace) -> int:
    """Start the proxy, then the gateway: it is not ready before it has seen its upstream."""
    backend_port, proxy_port = free_port(), free_port()
    wanted = Wanted(upstream_port=proxy_port, first_byte_s=PATIENCE_S, idle_s=PATIENCE_S)
    proxy = FaultProxy(upstream_port=backend_port, timing=TIMING, seed=arguments.seed)
    await proxy.listen(proxy_port)
    with ExitStack() as stack:
        place = await asyncio.to_thread(stack.enter_context, started(wanted, backend_port=backend_port))
        try:
            return await faults(place, arguments, proxy)
        finally:
            proxy.close()


def parsed_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load.faults",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of faults (default 60)")
    parser.add_argument("--users", type=positive, default=24, metavar="N", help="at once (default 24)")
    parser.add_argument("--harmed", type=float, default=0.5, metavar="PART", help="of the answers (default 0.5)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what happens to which (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    return parser.parse_args(words)


async def faults(place: Place, arguments: argparse.Namespace, proxy: FaultProxy) -> int:
    """Well, harmed, well again; and the verdict."""
    crowd = Crowd(place, mix=MIX, seed=arguments.seed, timeout_s=END_S_MAX)
    before, harmed, recovery = Tally(), Tally(), Tally()
    await crowd.exactly(before, RECOVERY_ANSWERS, together=arguments.users)
    await asyncio.to_thread(at_rest, place)
    descriptors_before = place.descriptors()
    harms = [harm for harm in Harm if harm is not Harm.NONE]
    proxy.weights = {
        Harm.NONE: 1 - arguments.harmed,
        **{harm: arguments.harmed / len(harms) for harm in harms},
    }
    await crowd.population(harmed, users=arguments.users, seconds=arguments.seconds)
    proxy.weights = {Harm.NONE: 1.0}
    await asyncio.to_thread(at_rest, place)
    await crowd.exactly(recovery, RECOVERY_ANSWERS, together=arguments.users)
    after = await asyncio.to_thread(at_rest, place)
    crowd.close()
    descriptors = await descriptors_at_last(place, at_most=descriptors_before + DESCRIPTORS_KEPT)
    heard_bytes = sum(tally.text_bytes + tally.argument_bytes for tally in (before, harmed, recovery))
    rows = [
        ("answers under faults", ", ".join(f"{count:,} {end.value}" for end, count in harmed.ends.most_common())),
        ("harms", ", ".join(f"{count} {harm.value}" for harm, count in proxy.done.most_common())),
        ("the gateway's outcomes", outcomes(after)),
        (
            "backend errors",
            ", ".join(f"{n:.0f} {kind}" for kind, n in after.by("weir_backend_errors_total", "kind").items()),
        ),
        ("slowest end", f"{harmed.latency.worst_s:.1f} s of a good answer"),
    ]
    return told("Backend faults", rows, [
        *ends_as_it_should(harmed, proxy, users=arguments.users),
        *charged(after, heard_bytes=heard_bytes),
        Check(
            name="recovers",
            ok=recovery.ends[End.GOOD] == RECOVERY_ANSWERS == before.ends[End.GOOD],
            found=f"{recovery.ends[End.GOOD]} of {RECOVERY_ANSWERS} good {recovery.worst()}".strip(),
        ),
        Check(
            name="no descriptor is left",
            ok=descriptors <= descriptors_before + DESCRIPTORS_KEPT,
            found=f"{descriptors_before} before, {descriptors} after",
        ),
        *nothing_left_open(place, after),
        *books_in_order(place),
    ], file=arguments.json)  # fmt: skip


def ends_as_it_should(harmed: Tally, proxy: FaultProxy, *, users: int) -> list[Check]:
    """Every question ended, and never with text that nobody said."""
    bad = harmed.ends[End.WRONG] + harmed.ends[End.REFUSED]
    silent = harmed.ends[End.LOST]
    fatal = sum(proxy.done[harm] for harm in Harm if harm not in (Harm.NONE, Harm.LATE))
    failed = harmed.ends[End.FAILED] + harmed.ends[End.BROKEN]
    return [
        Check(name="every harm was met", ok=all(proxy.done[harm] for harm in Harm), found=f"{fatal} fatal ones"),
        Check(
            name="nobody heard what was not said", ok=bad == 0, found=f"{bad} {harmed.worst() if bad else ''}".strip()
        ),
        Check(name="every question ended with word", ok=silent == 0, found=f"{silent} without"),
        # A harm after the last byte of a short answer hurts nobody; one that hurts must not be passed off as an end.
        Check(
            name="harmed answers fail openly",
            ok=0 < failed <= fatal,
            found=f"{failed} failed of {fatal} harmed fatally",
        ),
    ]


def charged(after: Gauges, *, heard_bytes: int) -> list[Check]:
    """What was heard has been charged at the raw price at release, whatever settlement gave back later."""
    charged_bits = after.total("weir_charged_bits_total", code="raw")
    return [
        Check(
            name="nothing heard was uncharged",
            ok=charged_bits >= 8 * heard_bytes > 0,
            found=f"{charged_bits / 8 / heard_bytes:.3f} bytes charged for a byte heard"
            if heard_bytes
            else "nothing heard",
        )
    ]


def outcomes(after: Gauges) -> str:
    """In words."""
    return ", ".join(f"{count:.0f} {outcome}" for outcome, count in after.by("weir_requests_total", "outcome").items())


async def descriptors_at_last(place: Place, *, at_most: int) -> int:
    """How many are open when the gateway has dropped what was harmed, or after some seconds."""
    for _ in range(50):
        if (descriptors := place.descriptors()) <= at_most:
            break
        await asyncio.sleep(0.2)
    return descriptors


if __name__ == "__main__":
    sys.exit(main())

"""`python -m simulation`: many schedules on all cores, a table at the end; or one, with everything that happened in it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from simulation.world import Outcome, simulate

CHUNK = 50  # schedules that a process runs between two words about it


def main() -> int:
    """0 if nothing was violated, else 1."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="replay this one, and print its trace")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed)
    return survey(first=options.first, schedules=options.schedules, processes=options.processes)


def replay(seed: int) -> int:
    """Run one schedule again and print it."""
    outcome = simulate(seed, traced=True)
    print("\n".join(outcome.trace))
    print(f"seed {seed}: {outcome.steps} steps, faults {dict(outcome.faults)}, trace {outcome.digest[:16]}")
    print("VIOLATION: " + outcome.violation if outcome.violation else "nothing was violated")
    return 1 if outcome.violation else 0


def survey(*, first: int, schedules: int, processes: int) -> int:
    """Run many, until one violates something."""
    began_s, done, steps = time.monotonic(), 0, 0
    faults: Counter[str] = Counter()
    checks: Counter[str] = Counter()
    with ProcessPoolExecutor(processes) as pool:
        for outcomes in pool.map(_chunk, _chunks(first, schedules)):
            for outcome in outcomes:
                done += 1
                steps += outcome.steps
                faults += outcome.faults
                checks += outcome.checks
                if outcome.violation is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                    print()
                    replay(outcome.seed)
                    print(f"replay it with: SEED={outcome.seed} make simulate")
                    return 1
            if sys.stderr.isatty():
                print(f"\r{done:,} of {schedules:,}", end="", file=sys.stderr, flush=True)
    wall_s = time.monotonic() - began_s
    print(f"{done:,} schedules, {steps:,} steps, {wall_s:.0f} s on {processes} processes: nothing was violated")
    for title, counts in (("faults", faults), ("checks", checks)):
        print(f"\n{title}")
        for name, count in sorted(counts.items(), key=lambda item: -item[1]):
            print(f"  {count:>14,}  {name}")
    return 0


def _chunks(first: int, schedules: int) -> Iterator[range]:
    for start in range(first, first + schedules, CHUNK):
        yield range(start, min(start + CHUNK, first + schedules))


def _chunk(seeds: range) -> list[Outcome]:
    return [simulate(seed) for seed in seeds]


if __name__ == "__main__":
    raise SystemExit(main())

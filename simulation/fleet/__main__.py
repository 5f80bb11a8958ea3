"""`python -m simulation.fleet`: the table of fleets."""

from __future__ import annotations

import argparse
import os
import secrets
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from random import Random

from simulation.fleet.fleet import Plan, Report, simulate

SECONDS = {1: 600.0, 10: 240.0, 100: 120.0, 1_000: 30.0, 4_000: 12.0}  # virtual, by gateways: what a few minutes allow
CRASHES_PER_H = {0.0: "none", 1.0: "hour", 60.0: "minute"}
LATENCIES_S = (0.001, 0.01, 0.1)
HEAD = (
    "| gateways | crashes, each | latency | grants/s | near the end | lease | wait p50 | wait p99 | crashes "
    "| over-count | left at the first refusal | needless refusals |"
)


def main() -> None:
    """Print the table as it comes."""
    parser = argparse.ArgumentParser(prog="python -m simulation.fleet", description=__doc__)
    parser.add_argument("--gateways", type=int, nargs="*", default=[*SECONDS], choices=[*SECONDS])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    plans = [
        Plan(gateways=gateways, crashes_per_h=crashes, latency_s=latency_s, seconds=SECONDS[gateways])
        for gateways, crashes, latency_s in product(options.gateways, CRASHES_PER_H, LATENCIES_S)
    ]
    print(HEAD)
    print("| --: " * 12 + "|")
    with ProcessPoolExecutor(options.processes, initializer=_quicken) as pool:
        for report in pool.map(simulate, plans):
            print(row(report), flush=True)


def row(report: Report) -> str:
    """One line of the table."""
    plan = report.plan
    cells = (
        f"{plan.gateways:,}",
        CRASHES_PER_H[plan.crashes_per_h],
        f"{plan.latency_s * 1000:.0f} ms",
        f"{report.grants_per_s:,.1f}",
        f"{report.late_grants_per_s:,.1f}",
        f"{report.lease_bits:,}",
        f"{report.wait_p50_ms:.0f} ms",
        f"{report.wait_p99_ms:.0f} ms",
        f"{report.crashes:,}",
        f"{report.over_count:.4%}",
        "–" if report.first_refusal is None else f"{report.first_refusal:.4%}",
        f"{report.needless_s:.0f} s",
    )
    return "| " + " | ".join(cells) + " |"


def _quicken() -> None:
    """Ids by the million need no entropy here."""
    rng = Random(os.getpid())
    secrets.token_hex = lambda nbytes=16: f"{rng.getrandbits(64):016x}"


if __name__ == "__main__":
    main()

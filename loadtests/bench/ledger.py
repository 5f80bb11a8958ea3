"""`python -m loadtests.bench.ledger`: what the ledger costs, by itself and in a gateway that is asked as in `make bench`."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from loadtests.bench.__main__ import complaints, conditions, positive, rotated
from loadtests.bench.measure import PhaseError, Sample, measure
from loadtests.bench.peer import REPOSITORY, Peer, PeerError, free_port, module, running
from loadtests.bench.report import NOTHING, Spread, filled, spread_of
from loadtests.bench.roster import Site, gateway, upstream
from loadtests.bench.scenario import JSON, JSON_ALONE, plan_of
from tests.postgres import Databases, binaries

DESCRIPTION = """\
Measure the ledger in two ways, several rounds of each, one kind after the other in every round:

  stores     grants a second and the time of each, straight from a store (python -m gateway.ledger.bench):
             SQLite with synchronous=FULL in a file, and PostgreSQL with fsync if a server is installed
  gateways   CPU time of a request, and the time from the client to the upstream, through gateways whose
             policies differ in the ledger alone; the first one runs twice, to show what a difference means"""

BEGIN, END = "<!-- ledger:begin -->", "<!-- ledger:end -->"
SCENARIOS = tuple(replace(scenario, numbered=True) for scenario in (JSON_ALONE, JSON))
SMALL_BUDGET = "bytes: 20MB"  # a ten-thousandth of it is less than one answer reserves: nothing is held in stock
FIRST = "memory"


@dataclass(frozen=True, kw_only=True)
class Grants:
    """What one run of the store benchmark says of one number of holders and accounts."""

    store: str
    holders: int
    accounts: int
    grants_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def main() -> int:
    """Parse, run, report; the exit status."""
    arguments = parsed_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that children are stopped
    console = Console(stderr=True)
    started_s, load_before = time.monotonic(), os.getloadavg()[0]
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-")))
            databases = Databases() if postgresql_is_installed() else None
            if databases is not None:
                stack.callback(databases.close)
            grants = measured_stores(arguments, directory, databases)
            samples, leases = measured_gateways(arguments, directory, databases)
    except (PeerError, PhaseError, subprocess.CalledProcessError) as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("bench: interrupted; all processes stopped")
        return 130
    measured = conditions(arguments, load_before=load_before, elapsed_s=time.monotonic() - started_s)
    report = "\n\n".join([measured, stores_table(grants), gateways_table(samples, leases, grants)])
    print(report)
    if arguments.markdown:
        arguments.markdown.write_text(filled(arguments.markdown.read_text(), report, begin=BEGIN, end=END))
    return 1 if complaints(samples, console) else 0


def parsed_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench.ledger",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="to take medians over (default 7)")
    parser.add_argument(
        "--requests", type=positive, default=4000, metavar="N", help="of a phase at most (default 4000)"
    )
    parser.add_argument("--seconds", type=float, default=2.5, metavar="S", help="of a phase at most (default 2.5)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help=f"fill in between {BEGIN} and {END} in FILE")
    arguments = parser.parse_args(words)
    if arguments.markdown:
        try:
            filled(arguments.markdown.read_text(), "", begin=BEGIN, end=END)
        except (OSError, ValueError) as error:
            parser.error(f"--markdown {arguments.markdown}: {error}")
    return arguments


def postgresql_is_installed() -> bool:
    """Whether there is a server to start."""
    try:
        binaries()
    except RuntimeError:
        return False
    return True


def measured_stores(arguments: argparse.Namespace, directory: Path, databases: Databases | None) -> list[Grants]:
    """The store benchmark on fresh stores, in turn."""
    stores: dict[str, Callable[[], str]] = {"SQLite": lambda: f"sqlite:{directory}/{time.monotonic_ns()}.db"}
    if databases is not None:
        stores["PostgreSQL"] = databases.new
    grants = []
    for _ in range(arguments.rounds):
        for name, new in stores.items():
            command = module("gateway.ledger.bench", new(), "--seconds", str(arguments.seconds / 5))
            done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
            grants += [Grants(store=name, **json.loads(line)) for line in done.stdout.splitlines()]
    return grants


def measured_gateways(
    arguments: argparse.Namespace, directory: Path, databases: Databases | None
) -> tuple[list[Sample], dict[tuple[str, str], float]]:
    """Gateways that differ in the ledger alone, side by side, in turn; and how many leases a request took."""
    port = free_port()  # one upstream for both: nothing here is paced
    site = Site(directory=directory, burst_port=port, paced_port=port, key="bench-ledger")
    arrivals = directory / "arrivals"
    peers = [
        gateway(site, name=FIRST, ledger="memory"),
        gateway(site, name="memory, once more", ledger="memory"),
        gateway(site, name="SQLite"),
        gateway(site, name="SQLite, small budget", budget=SMALL_BUDGET),
    ]
    if databases is not None:
        peers.insert(3, gateway(site, name="PostgreSQL", ledger=databases.new()))
        peers.append(gateway(site, name="PostgreSQL, small budget", ledger=databases.new(), budget=SMALL_BUDGET))
    samples: list[Sample] = []
    leases: dict[tuple[str, str], float] = {}
    with ExitStack() as stack:
        backend = upstream("upstream", port=site.burst_port, pace_ms=0, arrivals=arrivals)
        stack.enter_context(running(backend, directory=directory))
        started = [stack.enter_context(running(peer, directory=directory)) for peer in peers]
        for scenario in SCENARIOS:
            before = {peer.name: leases_of(peer) for peer in peers}
            for round_number in range(1, arguments.rounds + 1):
                for peer in rotated(started, round_number):
                    plan = plan_of(scenario, peer.peer, requests=arguments.requests, seconds=arguments.seconds)
                    samples.append(measure(peer, scenario, plan, round_number=round_number, arrivals=arrivals))
            for peer in peers:
                mine = [sample for sample in samples if (sample.peer, sample.scenario) == (peer.name, scenario.name)]
                warmups = scenario.connections * scenario.warmups * len(mine)
                requests = sum(sample.requests for sample in mine) + warmups
                leases[peer.name, scenario.name] = (leases_of(peer) - before[peer.name]) / requests
    return samples, leases


def leases_of(peer: Peer) -> int:
    """How many leases a gateway's ledger knows, by `weir ledger export`; of one in memory nobody can tell."""
    (policy,) = peer.files
    if "ledger: memory" in peer.files[policy]:
        return 0
    command = module("gateway", "ledger", "export", "--policy", str(policy))
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    return sum("lease" in json.loads(line) for line in done.stdout.splitlines())


def stores_table(grants: Sequence[Grants]) -> str:
    """A line for every store, number of holders and of accounts."""
    lines = [
        "| store | holders | accounts | grants a second | p50 ms | p99 ms | CPU µs / grant |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    groups: dict[tuple[str, int, int], list[Grants]] = {}
    for one in grants:
        groups.setdefault((one.store, one.holders, one.accounts), []).append(one)
    for (store, holders, accounts), group in sorted(groups.items(), key=lambda item: item[0][0] != "SQLite"):
        cells = [
            text(spread_of([one.grants_per_s for one in group]), 0),
            text(spread_of([one.p50_ms for one in group]), 2),
            text(spread_of([one.p99_ms for one in group]), 2),
            text(spread_of([one.cpu_us for one in group]), 0),
        ]
        lines.append(f"| {store} | {holders} | {accounts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gateways_table(samples: Sequence[Sample], leases: Mapping[tuple[str, str], float], grants: Sequence[Grants]) -> str:
    """A line for every load and gateway; quotients are taken within a round first.

    The grants' share is what they would take of the request's CPU time, each at the price of one that is asked alone.
    """
    lines = [
        f"| load | ledger | leases / request | CPU µs / JSON | grants' share | × {FIRST} | admission p50 ms | admission p99 ms |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    first = {(sample.scenario, sample.round): sample.cpu_us for sample in samples if sample.peer == FIRST}
    for (name, scenario), taken in leases.items():
        mine = [sample for sample in samples if (sample.peer, sample.scenario) == (name, scenario)]
        quotients = [s.cpu_us / base for s in mine if s.cpu_us and (base := first.get((scenario, s.round)))]
        alone = [g.cpu_us for g in grants if g.store == name.partition(",")[0] and (g.holders, g.accounts) == (1, 1)]
        spent, grant = spread_of([s.cpu_us for s in mine]), spread_of(alone)
        cells = [
            f"{taken:.3f}" if taken else NOTHING,
            text(spent, 0),
            f"{taken * grant.median / spent.median:.1%}" if taken and grant and spent else NOTHING,
            NOTHING if name == FIRST else text(spread_of(quotients), 3),
            text(spread_of([s.admission_p50_ms for s in mine]), 2),
            text(spread_of([s.admission_p99_ms for s in mine]), 2),
        ]
        lines.append(f"| {scenario} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def text(spread: Spread | None, digits: int) -> str:
    """A number over the rounds, or nothing."""
    return spread.text(digits) if spread else NOTHING


if __name__ == "__main__":
    sys.exit(main())

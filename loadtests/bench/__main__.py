"""`make bench`: what a request costs a gateway, in CPU time, beside other peers in the same run."""

import argparse
import json
import os
import platform
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtests.bench import report
from loadtests.bench.lineup import PEERS, Lineup
from loadtests.bench.measure import PhaseError, Sample
from loadtests.bench.peer import PeerError, RunningPeer, free_port, running
from loadtests.bench.roster import Site, upstream
from loadtests.bench.scenario import SCENARIOS

DESCRIPTION = """\
Measure what a JSON answer and a stream of 200 chunks cost a gateway in CPU time, and what they cost the other peers in
the same run:

  direct    no proxy at all: what client and upstream take themselves
  floor     a no-op aiohttp + uvloop proxy: the least any gateway built on them can cost
  gateway   Weir, started from this checkout
  nginx, envoy, vllm-router, portkey, litellm
            as `make peers` has installed them; one that is not there is named in the table with the reason

CPU time is the scheduler's run time of the peer's processes divided by requests. It leaves out the time spent waiting
for a core, but caches and clocks of a shared machine still move it: differences below 10 % say nothing (the floor run
against itself gave ratios of 0.91 to 0.98). All peers run side by side; every round puts each kind of load on each of
them in turn, and ratios are taken within a round. All traffic stays on loopback."""

EPILOG = """\
examples:
  python -m loadtests.bench                                  the full run, about a quarter of an hour
  python -m loadtests.bench --quick --peers direct,floor     does it work at all? some seconds, rough numbers
  python -m loadtests.bench --markdown docs/benchmarks.md    and fill the table of the documentation

exit status: 0 measured, 1 a peer did not start or answered wrongly, 2 usage, 130 interrupted"""


def main() -> int:
    """Parse, run, report; the exit status."""
    arguments = parsed_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that children are stopped
    console = Console(stderr=True)
    started_s, load_before = time.monotonic(), os.getloadavg()[0]
    samples: list[Sample] = []
    try:
        with ExitStack() as stack:
            lineup = start_peers(arguments, stack, console)
            samples.extend(measured_rounds(arguments, lineup, console))
    except (PeerError, PhaseError) as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("bench: interrupted; all processes stopped")
        return 130
    elapsed_s = time.monotonic() - started_s
    measured = conditions(arguments, load_before=load_before, elapsed_s=elapsed_s)
    publish(samples, arguments, conditions="\n".join([measured, *lineup.remarks()]), missing=lineup.missing)
    return 1 if complaints(samples, console) else 0


def parsed_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line, with --quick resolved and peers checked."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="rounds to take medians over (default 5)")
    parser.add_argument(
        "--requests",
        type=positive,
        metavar="N",
        help="JSON requests of a c=16 phase (default 4000); c=1 sends a quarter, burst streams a fifth, "
        "paced streams 1.6 %% of it, but never less than one per connection",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.5,
        metavar="S",
        help="start no request in a phase after this time, even if --requests is not reached (default 2.5)",
    )
    parser.add_argument("--pace-ms", type=float, metavar="MS", help="time between paced tokens (default 5)")
    parser.add_argument(
        "--peers",
        default=",".join(PEERS),
        metavar="LIST",
        help=f"which peers, comma-separated (default and choice: {','.join(PEERS)}); ratios need floor, "
        "added latency needs direct",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and the summary as JSON")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help=f"replace what stands between {report.BEGIN} and {report.END} in FILE by the table",
    )
    parser.add_argument(
        "--quick", action="store_true", help="smoke run: one round, 200 requests, tokens 1 ms apart, unless given"
    )
    arguments = parser.parse_args(words)
    arguments.peers = arguments.peers.split(",")
    if unknown := set(arguments.peers) - PEERS.keys():
        parser.error(f"unknown peer {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    arguments.requests = arguments.requests or (200 if arguments.quick else 4000)
    arguments.pace_ms = arguments.pace_ms or (1.0 if arguments.quick else 5.0)
    if arguments.markdown:
        try:
            report.filled(arguments.markdown.read_text(), "")  # know before the minutes of measuring, not after
        except (OSError, ValueError) as error:
            parser.error(f"--markdown {arguments.markdown}: {error}")
    return arguments


def positive(word: str) -> int:
    """An argument that counts something."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def start_peers(arguments: argparse.Namespace, stack: ExitStack, console: Console) -> Lineup:
    """Upstreams first, then the peers; `stack` stops them all in reverse order."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-")))
    site = Site(
        directory=directory,
        burst_port=free_port(),
        paced_port=free_port(),
        key=f"bench-{secrets.token_urlsafe(24)}",
    )
    upstreams = (
        upstream("upstream-burst", port=site.burst_port, pace_ms=0),
        upstream("upstream-paced", port=site.paced_port, pace_ms=arguments.pace_ms),
    )
    for peer in upstreams:
        stack.enter_context(running(peer, directory=directory))
    lineup = Lineup()
    lineup.start(arguments.peers, site, stack, console)
    return lineup


def measured_rounds(arguments: argparse.Namespace, lineup: Lineup, console: Console) -> Iterator[Sample]:
    """All phases of all rounds, interleaved between peers."""
    columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=arguments.rounds * len(SCENARIOS) * len(lineup.started))
        for round_number in range(1, arguments.rounds + 1):
            for scenario in SCENARIOS:
                for peer in rotated(lineup.started, round_number):
                    progress.update(task, description=f"{round_number}: {scenario.name}, {peer.peer.name}")
                    limits = {"requests": arguments.requests, "seconds": arguments.seconds}
                    sample = lineup.measure(scenario, peer, **limits, round_number=round_number)
                    if sample is not None:
                        yield sample
                    progress.advance(task)


def rotated(peers: Sequence[RunningPeer], by: int) -> list[RunningPeer]:
    """Another peer goes first in each round: what follows what must not decide."""
    first = by % len(peers)
    return [*peers[first:], *peers[:first]]


def publish(
    samples: Sequence[Sample], arguments: argparse.Namespace, *, conditions: str, missing: Mapping[str, str]
) -> None:
    """The table to stdout, and to the files that were asked for."""
    order = {name: position for position, name in enumerate(arguments.peers)}
    samples = sorted(samples, key=lambda sample: order[sample.peer])
    summary = report.rows(samples)
    table = Table(caption=conditions, caption_justify="left")
    for column in report.COLUMNS:
        table.add_column(column, justify="left" if column == "peer" else "right")
    for row in summary:
        table.add_row(*row.cells())
    for name in missing:
        table.add_row(*report.missing_cells(name))
    # A pipe has no width of its own; rich would fold the table to 80 columns there.
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    if arguments.json:
        results = {
            "conditions": conditions,
            "missing": dict(missing),
            "summary": [asdict(row) for row in summary],
            "samples": [asdict(sample) for sample in samples],
        }
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.markdown:
        document = arguments.markdown.read_text()
        arguments.markdown.write_text(report.filled(document, report.markdown(samples, conditions, missing=missing)))


def conditions(arguments: argparse.Namespace, *, load_before: float, elapsed_s: float) -> str:
    """What the numbers were measured on, and when: without that they say nothing."""
    software = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {cpu_model()}, {os.cpu_count()} cores, load average before "
        f"{load_before:.1f}, Linux {platform.release()}, Python {platform.python_version()}, {software}; "
        f"rounds: {arguments.rounds} in {elapsed_s:.0f} s, median (lowest–highest)."
    )


def cpu_model() -> str:
    """The processor's name, as far as the kernel knows it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def complaints(samples: Sequence[Sample], console: Console) -> bool:
    """Say what makes the numbers doubtful. True where a peer gave wrong answers."""
    for sample in samples:
        where = f"{sample.peer}, {sample.scenario}, round {sample.round}"
        if sample.errors:
            console.print(
                f"{where}: {sample.errors} errors: {sample.first_error}", style="red", markup=False, soft_wrap=True
            )
        if sample.threads_lost:
            console.print(f"{where}: {sample.threads_lost} threads ended in the phase; CPU time is too low")
    return any(sample.errors for sample in samples)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m loadtests.bench.audit`: what the audit log costs, by itself and in a gateway that streams as in `make bench`."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from loadtests.bench.__main__ import complaints, conditions, positive, rotated
from loadtests.bench.measure import PhaseError, Sample, measure
from loadtests.bench.peer import REPOSITORY, Peer, PeerError, free_port, module, running
from loadtests.bench.report import NOTHING, Spread, filled, spread_of
from loadtests.bench.roster import AUDITORS, Site, auditor, gateway, upstream
from loadtests.bench.scenario import BURST, PACED, plan_of
from tests.loadtests import unrecorded

DESCRIPTION = """\
Measure the audit log in two ways, several rounds of each, one kind after the other in every round:

  alone      records a second, the time that sealing takes, and how late a tick is with the tree being written behind it
             or without (python -m gateway.audit.bench)
  gateways   CPU time of a stream of 200 chunks, through gateways that differ in the audit log alone; one of them runs
             twice, to show what a difference means"""

BEGIN, END = "<!-- audit:begin -->", "<!-- audit:end -->"
SCENARIOS = (BURST, PACED)
NO_LOG, BARE, AGAIN, FULL = "none", "no auditors", "no auditors, once more", "two auditors"
PACE_MS = 5.0
Line = Mapping[str, object]  # one measurement of the log alone


def main() -> int:
    """Parse, run, report; the exit status."""
    arguments = parsed_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that children are stopped
    console = Console(stderr=True)
    started_s, load_before = time.monotonic(), os.getloadavg()[0]
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-")))
            lines = list(measured_alone(arguments, directory))
            samples = measured_gateways(arguments, directory)
    except (PeerError, PhaseError, subprocess.CalledProcessError) as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("bench: interrupted; all processes stopped")
        return 130
    measured = conditions(arguments, load_before=load_before, elapsed_s=time.monotonic() - started_s)
    report = "\n\n".join([measured, gateways_table(samples), append_table(lines), seal_table(lines), tick_table(lines)])
    print(report)
    if arguments.markdown:
        arguments.markdown.write_text(filled(arguments.markdown.read_text(), report, begin=BEGIN, end=END))
    return 1 if complaints(samples, console) else 0


def parsed_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench.audit",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="to take medians over (default 7)")
    parser.add_argument(
        "--requests", type=positive, default=4000, metavar="N", help="as of `python -m loadtests.bench` (default 4000)"
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


def measured_alone(arguments: argparse.Namespace, directory: Path) -> Iterator[Line]:
    """The log's own benchmark on fresh directories."""
    for number in range(arguments.rounds):
        command = module(
            "gateway.audit.bench", str(directory / f"alone-{number}"), "--seconds", str(arguments.seconds / 5)
        )
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
        yield from map(json.loads, done.stdout.splitlines())


def measured_gateways(arguments: argparse.Namespace, directory: Path) -> list[Sample]:
    """Gateways that differ in the audit log alone, side by side, in turn."""
    site = Site(directory=directory, burst_port=free_port(), paced_port=free_port(), key="bench-audit")
    upstreams = (
        upstream("upstream-burst", port=site.burst_port, pace_ms=0),
        upstream("upstream-paced", port=site.paced_port, pace_ms=PACE_MS),
    )
    peers = [
        without_log(gateway(site, name=NO_LOG)),
        gateway(site, name=BARE),
        gateway(site, name=AGAIN),
        gateway(site, name=FULL, auditors=[auditor(directory, name) for name in AUDITORS]),
    ]
    samples: list[Sample] = []
    with ExitStack() as stack:
        for backend in upstreams:
            stack.enter_context(running(backend, directory=directory))
        started = [stack.enter_context(running(peer, directory=directory)) for peer in peers]
        for scenario in SCENARIOS:
            for round_number in range(1, arguments.rounds + 1):
                for one in rotated(started, round_number):
                    plan = plan_of(scenario, one.peer, requests=arguments.requests, seconds=arguments.seconds)
                    samples.append(measure(one, scenario, plan, round_number=round_number))
    return samples


def without_log(peer: Peer) -> Peer:
    """The same gateway, started by a program that takes its audit log out. No policy can say so."""
    python, (_, _, *arguments) = peer.argv[0], peer.argv[1:]
    return replace(peer, argv=(python, "-P", str(unrecorded.PROGRAM), *arguments))


def gateways_table(samples: Sequence[Sample]) -> str:
    """A line for every load and gateway; quotients are taken within a round first."""
    lines = [
        f"| load | audit log | CPU µs / stream of 200 | × {NO_LOG} | × {BARE} | TTFT p50 ms | p99 ms of an answer |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    table = {(sample.scenario, sample.peer, sample.round): sample for sample in samples}
    for scenario in SCENARIOS:
        for name in (NO_LOG, BARE, AGAIN, FULL):
            mine = [sample for sample in samples if (sample.scenario, sample.peer) == (scenario.name, name)]
            cells = [
                text(spread_of([sample.cpu_us for sample in mine]), 0),
                *(quotients(mine, table, of=other) if name != other else NOTHING for other in (NO_LOG, BARE)),
                text(spread_of([sample.first_text_p50_ms for sample in mine]), 1),
                text(spread_of([sample.latency_p99_ms for sample in mine]), 0),
            ]
            lines.append(f"| {scenario.name} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def quotients(mine: Sequence[Sample], table: Mapping[tuple[str, str, int], Sample], *, of: str) -> str:
    """CPU time over that of another peer in the same round."""
    pairs = [(sample.cpu_us, table[sample.scenario, of, sample.round].cpu_us) for sample in mine]
    return text(spread_of([ours / theirs for ours, theirs in pairs if ours and theirs]), 3)


def append_table(lines: Sequence[Line]) -> str:
    """Records a second, by auditors and appenders."""
    rows = [
        "| auditors | appenders | records a second, durable | and signed | CPU µs / record | append p50 ms | p99 ms |",
        "| --: | --: | --: | --: | --: | --: | --: |",
    ]
    columns = (("durable_per_s", 0), ("signed_per_s", 0), ("cpu_us", 1), ("p50_ms", 2), ("p99_ms", 2))
    return "\n".join([*rows, *table_of(lines, "append", ("auditors", "appenders"), columns)])


def seal_table(lines: Sequence[Line]) -> str:
    """What writing a batch down costs with what it says, and without."""
    rows = ["| pieces in a batch | µs / batch, sealed to two | without content |", "| --: | --: | --: |"]
    columns = (("batch_us", 1), ("bare_us", 1))
    return "\n".join([*rows, *table_of(lines, "seal", ("together",), columns)])


def tick_table(lines: Sequence[Line]) -> str:
    """How long after it was due a tick is durable."""
    rows = ["| signed behind it | tick durable after p50 ms | p99 ms |", "| --- | --: | --: |"]
    worded = [{**line, "signing": "yes" if line["signing"] else "no"} for line in lines if line["what"] == "tick"]
    return "\n".join([*rows, *table_of(worded, "tick", ("signing",), (("p50_ms", 2), ("p99_ms", 2)))])


def table_of(
    lines: Sequence[Line], what: str, keys: Sequence[str], columns: Sequence[tuple[str, int]]
) -> Iterator[str]:
    """A row for every value of the keys, in the order in which they were measured."""
    groups: dict[tuple[object, ...], list[Line]] = {}
    for line in lines:
        if line["what"] == what:
            groups.setdefault(tuple(line[key] for key in keys), []).append(line)
    for group_keys, group in groups.items():
        spreads = [
            text(spread_of([value for line in group if isinstance(value := line[name], float)]), digits)
            for name, digits in columns
        ]
        yield f"| {' | '.join([*map(str, group_keys), *spreads])} |"


def text(spread: Spread | None, digits: int) -> str:
    """A number over the rounds, or nothing."""
    return spread.text(digits) if spread else NOTHING


if __name__ == "__main__":
    sys.exit(main())

"""`python -m loadtests.bench.streams`: thousands of open streams: memory and CPU for each, and how late the gateway's ticks are."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtests.bench.__main__ import conditions, positive
from loadtests.bench.cpu import read_cpu, resident_mib, spent_s
from loadtests.bench.held import Held, Holding
from loadtests.bench.installation import KINDS
from loadtests.bench.lineup import PEERS, Lineup, one_line
from loadtests.bench.measure import PhaseError
from loadtests.bench.peer import REPOSITORY, PeerError, RunningPeer, free_port, module, running
from loadtests.bench.report import NOTHING, filled, spread_of
from loadtests.bench.roster import Site, upstream
from loadtests.bench.scenario import http_request
from loadtests.load.site import Gauges, get, parsed
from loadtests.load.verdict import lag_p99_ms

BEGIN, END = "<!-- streams:begin -->", "<!-- streams:end -->"
FEWER = {"litellm": 200, "portkey": 500}  # they saturate a core with more, and would be measured as stalled
WARMUPS = 20
TICKS_BOUND_MS = 20.0  # one tick

DESCRIPTION = """\
Open many streams through each peer, a token every --pace-ms in each of them, and read memory before and after, CPU time
while they come, and for the gateway how late its ticks are. Every peer is started anew for each round, since no allocator
gives back what was once needed."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """One peer in one round."""

    peer: str
    round: int
    streams: int
    before_mib: float
    with_mib: float
    cpu_us: float  # a token that the upstream sent: peers may put several into an event
    core: float  # part of one that was busy
    gap_p99_ms: float
    silent: int
    lost: int
    lag_p99_ms: float | None  # of ticks, a bound of the histogram
    in_time: float | None  # part of the ticks that were late by at most one tick

    @property
    def stream_kib(self) -> float:
        """Memory that came with a stream."""
        return (self.with_mib - self.before_mib) * 1024 / self.streams


def main() -> int:
    """Parse, run, report; the exit status."""
    arguments = parsed_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that children are stopped
    console = Console(stderr=True)
    started_s, load_before = time.monotonic(), os.getloadavg()[0]
    rounds: list[Opened] = []
    lineup = Lineup()
    try:
        for number in range(1, arguments.rounds + 1):
            for name in arguments.peers:
                if name not in lineup.missing:
                    rounds += one_round(name, number, arguments, lineup, console)
    except (PeerError, PhaseError) as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    measured = conditions(arguments, load_before=load_before, elapsed_s=time.monotonic() - started_s)
    text = "\n\n".join([measured, *lineup.remarks(), table(rounds, lineup)])
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in rounds], indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(filled(arguments.markdown.read_text(), text, begin=BEGIN, end=END))
    return 0


def parsed_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench.streams",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    through = [name for name in PEERS if name != "direct"]
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="to take medians over (default 3)")
    parser.add_argument("--streams", type=positive, default=2000, metavar="N", help="open at once (default 2000)")
    parser.add_argument("--pace-ms", type=float, default=250.0, metavar="MS", help="between two tokens (default 250)")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="S", help="that are measured (default 8)")
    parser.add_argument("--peers", default=",".join(through), metavar="LIST", help=f"(default: {','.join(through)})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help=f"fill in between {BEGIN} and {END} in FILE")
    arguments = parser.parse_args(words)
    arguments.peers = arguments.peers.split(",")
    if unknown := set(arguments.peers) - set(through):
        parser.error(f"unknown peer {', '.join(sorted(unknown))}; there are {', '.join(through)}")
    if arguments.markdown:
        try:
            filled(arguments.markdown.read_text(), "", begin=BEGIN, end=END)
        except (OSError, ValueError) as error:
            parser.error(f"--markdown {arguments.markdown}: {error}")
    return arguments


def one_round(name: str, number: int, arguments: argparse.Namespace, lineup: Lineup, console: Console) -> list[Opened]:
    """A fresh peer, its streams, and its end. Nothing of a stranger that cannot do it; raises PhaseError for one of ours."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-")))
        port = free_port()
        site = Site(directory=directory, burst_port=port, paced_port=port, key="bench-streams")
        backend = upstream("upstream", port=port, pace_ms=arguments.pace_ms)
        stack.enter_context(running(backend, directory=directory))
        lineup.started.clear()
        lineup.start([name], site, stack, console)
        if not lineup.started:
            return []
        try:
            with console.status(f"{number}: {name}"):
                return [opened(lineup.started[0], number, arguments)]
        except PhaseError as error:
            if name not in KINDS:
                raise
            lineup.missing[name] = one_line(str(error))
            return []


def opened(peer: RunningPeer, number: int, arguments: argparse.Namespace) -> Opened:
    """Open, wait, read. Raises PhaseError if the streams do not come."""
    assert peer.pid is not None
    name = peer.peer.name
    plan = Holding(
        host=peer.peer.paced.host,
        port=peer.peer.paced.port,
        request=http_request(peer.peer.paced, streaming=True),
        streams=min(arguments.streams, FEWER.get(name, arguments.streams)),
        warmups=WARMUPS,
        seconds=arguments.seconds,
    )
    with subprocess.Popen(
        module("loadtests.bench.held", json.dumps(asdict(plan))),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as client:
        try:
            said(client, name)
            before_mib = resident_mib(peer.pid)
            go(client)
            said(client, name)
            cpu, gauges = read_cpu(peer.pid), metrics(peer)
            go(client)
            held = Held(**said(client, name))
            after, gauges_after = read_cpu(peer.pid), metrics(peer)
            with_mib = resident_mib(peer.pid)
        finally:
            client.kill()
    tokens = plan.streams * held.elapsed_s / (arguments.pace_ms / 1e3)
    return Opened(
        peer=name,
        round=number,
        streams=plan.streams,
        before_mib=before_mib,
        with_mib=with_mib,
        cpu_us=spent_s(cpu, after) / tokens * 1e6,
        core=spent_s(cpu, after) / held.elapsed_s,
        gap_p99_ms=held.gap_p99_ms,
        silent=held.silent,
        lost=plan.streams - held.streams,
        lag_p99_ms=lag_p99_ms(gauges, gauges_after) if gauges and gauges_after else None,
        in_time=in_time(gauges, gauges_after) if gauges and gauges_after else None,
    )


def said(client: "subprocess.Popen[str]", name: str) -> dict[str, Any]:
    """The client's next line."""
    assert client.stdout is not None
    words = json.loads(client.stdout.readline() or "{}")
    if not words or "fault" in words:
        raise PhaseError(f"{name}: {words.get('fault', 'the client died')}")
    return dict(words)


def go(client: "subprocess.Popen[str]") -> None:
    """The word that it waits for."""
    assert client.stdin is not None
    client.stdin.write("go\n")
    client.stdin.flush()


def metrics(peer: RunningPeer) -> Gauges | None:
    """Of the gateway; nobody else has ticks."""
    return parsed(get(peer.peer.ready_url.replace("/readyz", "/metrics"))) if peer.peer.name == "gateway" else None


def in_time(before: Gauges, after: Gauges) -> float:
    """Part of the ticks between two readings that were late by at most one tick."""
    name, bound = "weir_tick_lag_seconds", TICKS_BOUND_MS / 1e3
    counts = after.buckets(name), before.buckets(name)
    late = [
        sum(gauges.get(key, 0) * sign for gauges, sign in zip(counts, (1, -1), strict=True))
        for key in (bound, float("inf"))
    ]
    return late[0] / late[1] if late[1] else 1.0


def table(rounds: Sequence[Opened], lineup: Lineup) -> str:
    """A line for every peer, medians over the rounds."""
    lines = [
        "| peer | streams | KiB / stream | CPU µs / token | of a core | gap p99 ms | tick lag p99 | in time | RSS MiB | lost |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name in dict.fromkeys(one.peer for one in rounds):
        mine = [one for one in rounds if one.peer == name]
        cells = [
            str(mine[0].streams),
            text([one.stream_kib for one in mine], 1),
            text([one.cpu_us for one in mine], 1),
            text([one.core for one in mine], 2),
            text([one.gap_p99_ms for one in mine], 0),
            f"≤ {max(lags):g} ms"
            if (lags := [one.lag_p99_ms for one in mine if one.lag_p99_ms is not None])
            else NOTHING,
            f"{min(times):.2%}" if (times := [one.in_time for one in mine if one.in_time is not None]) else NOTHING,
            text([one.with_mib for one in mine], 0),
            str(sum(one.silent + one.lost for one in mine)),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"| {name} | missing |{f' {NOTHING} |' * 8}" for name in lineup.missing]
    return "\n".join(lines)


def text(values: Sequence[float], digits: int) -> str:
    """A number over the rounds, or nothing."""
    spread = spread_of(values)
    return spread.text(digits) if spread else NOTHING


if __name__ == "__main__":
    sys.exit(main())

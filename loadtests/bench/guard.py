"""`make bench-guard`: what a request and a stream cost the gateway may not grow unnoticed.

CPU time itself says little on machines that others use too, and counters of instructions are not to be had in most
virtual machines. So the code of the baseline's commit runs beside this checkout's, from the same history, and the quotient of
the two is taken within a round: a slow machine slows both alike. The quotient to the no-op proxy is the second best. A gateway
that wakes fifty times a second suffers more from a busy machine than a proxy that never sleeps: the same code was seen at 2.9
and at 4.5 times the floor. It decides only where the baseline's commit is not in the clone.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from loadtests.bench.__main__ import complaints, conditions, positive, rotated
from loadtests.bench.lineup import Lineup
from loadtests.bench.measure import PhaseError, Sample
from loadtests.bench.peer import REPOSITORY, Peer, PeerError, free_port, running
from loadtests.bench.roster import AUDITORS, Site, auditor, floor, gateway, upstream
from loadtests.bench.scenario import BURST, JSON, JSON_MANY, PACED

BASELINE = Path(__file__).with_name("baseline.json")
SCENARIOS = (JSON, JSON_MANY, BURST, PACED)
GROWTH_MAX = 1.10  # a tenth is what a note is owed for
CONFIDENCE = 0.95  # of the interval that decides early
PACE_MS = 5.0

DESCRIPTION = f"""\
Measure the gateway of this checkout beside that of the baseline's commit ({BASELINE.name}), in turn, in CPU time. Where the
clone does not have that commit, compare the quotients to the no-op proxy with those that the baseline has on record.

It goes on until for every load the {CONFIDENCE:.0%} interval of the median lies wholly on one side of {GROWTH_MAX} times the
baseline, or until --rounds; then the median decides."""

EPILOG = """\
A change that costs more on purpose moves the baseline, and says why:
  python -m loadtests.bench.guard --move "tool calls are checked against their schema"
Commit the change first: the last commit becomes the baseline, and what this writes is committed next. A change that makes it
cheaper should move it too, or else what was won can be lost again without anybody being told.

exit status: 0 within the baseline, or moved; 1 grown, or nothing could be measured; 2 usage"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One load against the baseline."""

    scenario: str
    rounds: int
    ratio: float  # median over the rounds
    low: float  # of the interval in which the true median lies
    high: float
    baseline: float

    @property
    def limit(self) -> float:
        """Above this a note is owed."""
        return self.baseline * GROWTH_MAX

    @property
    def decided(self) -> bool:
        """Whether more rounds would tell nothing else."""
        return self.high <= self.limit or self.low > self.limit

    @property
    def grown(self) -> bool:
        """What the median says."""
        return self.ratio > self.limit


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Between which of its values the true median lies with CONFIDENCE, whatever the distribution; all, if they are few.

    A value is below the median with probability 1/2, so how many are is binomial (Conover, Practical Nonparametric
    Statistics, §3.2). Six values are the fewest of which the lowest and the highest suffice.
    """
    ordered, count = sorted(ratios), len(ratios)
    outside, cut = 0.0, 0
    while cut < count // 2 and 2 * (outside + comb(count, cut) / 2**count) <= 1 - CONFIDENCE:
        outside += comb(count, cut) / 2**count
        cut += 1
    if cut == 0:
        return 0.0, float("inf")  # not even all of them are enough to say it
    return ordered[cut - 1], ordered[count - cut]


def verdict(scenario: str, ratios: Sequence[float], baseline: float) -> Verdict:
    """What the rounds so far say."""
    low, high = interval(ratios)
    return Verdict(scenario=scenario, rounds=len(ratios), ratio=median(ratios), low=low, high=high, baseline=baseline)


def ratios_of(samples: Sequence[Sample], *, to: str = "floor") -> dict[str, list[float]]:
    """Gateway over another, round by round, of every load."""
    cpu_us = {(sample.peer, sample.scenario, sample.round): sample.cpu_us for sample in samples}
    ratios: dict[str, list[float]] = {}
    for (peer, scenario, number), ours in cpu_us.items():
        theirs = cpu_us.get((to, scenario, number))
        if peer == "gateway" and ours and theirs:
            ratios.setdefault(scenario, []).append(ours / theirs)
    return ratios


def main(words: Sequence[str] | None = None) -> int:
    """Measure and compare, or measure and move; the exit status."""
    arguments = parsed_arguments(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that children are stopped
    console = Console(stderr=True)
    history = json.loads(arguments.baseline.read_text()) if arguments.baseline.exists() else []
    if not history and arguments.move is None:
        console.print(f"guard: {arguments.baseline} holds nothing yet: --move NOTE writes the first entry", style="red")
        return 1
    started_s, load_before = time.monotonic(), os.getloadavg()[0]
    try:
        with ExitStack() as stack:
            against = baseline_of(history, stack)
            samples = measured(arguments, against, stack, console)
    except (PeerError, PhaseError) as error:
        console.print(f"guard: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    arguments.rounds = max(sample.round for sample in samples)
    said = conditions(arguments, load_before=load_before, elapsed_s=time.monotonic() - started_s)
    verdicts = verdicts_of(samples, against)
    print(f"{said}\n{against.told}")
    for one in verdicts:
        print(line(one, against))
    if complaints(samples, console):
        return 1
    if arguments.move is not None:
        entry = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "commit": git("rev-parse", "HEAD"),
            "note": arguments.move,
            "conditions": said,
            "ratios": {name: round(median(values), 3) for name, values in ratios_of(samples).items()},
        }
        arguments.baseline.write_text(json.dumps([*history, entry], indent=2, ensure_ascii=False) + "\n")
        return 0
    if any(one.ratio * GROWTH_MAX < one.baseline for one in verdicts):
        print("Cheaper than the baseline by more than a tenth: move it, so that this stays won (--move NOTE).")
    return 1 if any(one.grown for one in verdicts) else 0


@dataclass(frozen=True, kw_only=True)
class Against:
    """What this checkout is held against."""

    peer: str  # whose CPU time divides
    limits: Mapping[
        str, float
    ]  # the quotient of each load that is none of growth; empty where there is no baseline yet
    code: Path | None  # the baseline's own, if it can be had
    told: str


def baseline_of(history: Sequence[Mapping[str, Any]], stack: ExitStack) -> Against:
    """The last entry's code, checked out for this run; or its quotients to the floor."""
    if not history:
        return Against(peer="floor", limits={}, code=None, told="There is no baseline yet; quotients are to the floor.")
    last = history[-1]
    commit = str(last["commit"])
    code = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-guard-"))) / "code"
    try:
        git("worktree", "add", "--detach", "--force", str(code), commit)
    except subprocess.CalledProcessError:
        told = f"Commit {commit[:12]} is not in this clone: quotients are to the floor, which is less certain."
        return Against(peer="floor", limits=last["ratios"], code=None, told=told)
    stack.callback(git, "worktree", "remove", "--force", str(code))
    told = f"Beside the code of {commit[:12]}: {last['note']}."
    return Against(peer="baseline", limits=dict.fromkeys(last["ratios"], 1.0), code=code, told=told)


def git(*words: str) -> str:
    """What git says, in this repository. Raises CalledProcessError."""
    command = ["git", "-C", str(REPOSITORY), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def of_other_code(peer: Peer, code: Path) -> Peer:
    """The same gateway, from another checkout's sources."""
    return replace(peer, argv=(peer.argv[0], "-P", *peer.argv[1:]), environment={"PYTHONPATH": str(code)})


def verdicts_of(samples: Sequence[Sample], against: Against) -> list[Verdict]:
    """One for each load."""
    ratios = ratios_of(samples, to=against.peer)
    return [verdict(name, values, against.limits.get(name, float("inf"))) for name, values in ratios.items()]


def parsed_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench.guard",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, default=24, metavar="N", help="at most (default 24)")
    parser.add_argument("--requests", type=positive, default=2000, metavar="N", help="as of the bench (default 2000)")
    parser.add_argument("--seconds", type=float, default=1.5, metavar="S", help="of a phase at most (default 1.5)")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE", help="(default: the committed one)")
    parser.add_argument("--move", metavar="NOTE", help="write what is measured as the new baseline, for this reason")
    arguments = parser.parse_args(words)
    if arguments.move is not None and len(arguments.move.split()) < 3:
        parser.error("--move wants a reason, in words that somebody else will understand")
    return arguments


def measured(arguments: argparse.Namespace, against: Against, stack: ExitStack, console: Console) -> list[Sample]:
    """Rounds until every load is decided; all of them where the baseline is to be moved."""
    samples: list[Sample] = []
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-guard-")))
    site = Site(directory=directory, burst_port=free_port(), paced_port=free_port(), key="bench-guard")
    for backend in (
        upstream("upstream-burst", port=site.burst_port, pace_ms=0),
        upstream("upstream-paced", port=site.paced_port, pace_ms=PACE_MS),
    ):
        stack.enter_context(running(backend, directory=directory))
    lineup = Lineup()
    auditors = [auditor(directory, name) for name in AUDITORS]
    peers = [floor(site), gateway(site, auditors=auditors)]
    if against.code is not None:
        peers.append(of_other_code(gateway(site, name="baseline", auditors=auditors), against.code))
    started = [stack.enter_context(running(peer, directory=directory)) for peer in peers]
    open_scenarios = list(SCENARIOS)
    for number in range(1, arguments.rounds + 1):
        for scenario in open_scenarios:
            for peer in rotated(started, number):
                limits = {"requests": arguments.requests, "seconds": arguments.seconds}
                sample = lineup.measure(scenario, peer, **limits, round_number=number)
                if sample is None:
                    raise PhaseError(f"{peer.peer.name}, {scenario.name}: {lineup.failed}")
                samples.append(sample)
        if arguments.move is None:
            decided = {one.scenario for one in verdicts_of(samples, against) if one.decided}
            open_scenarios = [scenario for scenario in open_scenarios if scenario.name not in decided]
        with console.status(f"round {number}: {len(open_scenarios)} loads are open"):
            if not open_scenarios:
                break
    return samples


def line(one: Verdict, against: Against) -> str:
    """For people."""
    word = "GROWN" if one.grown else "ok"
    held = f"baseline {one.baseline:.2f}, limit {one.limit:.2f}" if one.baseline < float("inf") else "no baseline yet"
    return (
        f"{word:6}{one.scenario:18} {one.ratio:.2f} x {against.peer} "
        f"({one.low:.2f}–{one.high:.2f} in {one.rounds} rounds); {held}"
    )


if __name__ == "__main__":
    sys.exit(main())

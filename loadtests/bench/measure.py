"""One phase: a client process puts a scenario on a running peer, and the peer's CPU time is read before and after."""

import json
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtests.bench.client import Outcome, Plan
from loadtests.bench.cpu import read_cpu, resident_mib, spent_s, threads_lost
from loadtests.bench.peer import REPOSITORY, RunningPeer, module
from loadtests.bench.scenario import Scenario

# A gateway may work on after an answer has left (settling, logging): that work belongs to the answer. Idle peers
# cost next to nothing in that time.
LINGER_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one phase gave. Times in milliseconds, CPU time in microseconds a request."""

    peer: str
    scenario: str
    round: int
    requests: int
    errors: int
    first_error: str
    rate_per_s: float
    latency_p50_ms: float
    latency_p99_ms: float
    first_text_p50_ms: float | None  # streams only
    cpu_us: float | None  # None where the peer is no process
    resident_mib: float | None
    threads_lost: int  # above 0: cpu_us is too low
    admission_p50_ms: float | None = None  # numbered requests: sent by the client → at the upstream
    admission_p99_ms: float | None = None


class PhaseError(Exception):
    """A phase gave no measurement at all."""


def measure(
    running: RunningPeer, scenario: Scenario, plan: Plan, *, round_number: int, arrivals: Path | None = None
) -> Sample:
    """Warm up, measure, and add up. Raises PhaseError when the warm-up or the client fails.

    `arrivals` is where the upstream writes when numbered requests came.
    """
    where = f"{running.peer.name}, {scenario.name}"
    with subprocess.Popen(
        module("loadtests.bench.client", json.dumps(asdict(plan))),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        try:
            ready = json.loads(client.stdout.readline() or "{}")
            if "ready" not in ready:
                raise PhaseError(f"{where}: warm-up failed: {ready.get('fault', 'the client died')}")
            time.sleep(LINGER_S)
            before = read_cpu(running.pid) if running.pid else None
            client.stdin.write("go\n")
            client.stdin.flush()
            line = client.stdout.readline()
            time.sleep(LINGER_S)
            after = read_cpu(running.pid) if running.pid else None
        finally:
            client.kill()
    if not line:
        raise PhaseError(f"{where}: the client died in the measured phase")
    outcome = Outcome(**json.loads(line))
    if not outcome.latencies_s:
        raise PhaseError(f"{where}: not one good answer: {outcome.first_error or 'no time'}")
    answers = len(outcome.latencies_s)
    admissions_s = admissions(outcome, arrivals.read_text()) if arrivals else []
    return Sample(
        peer=running.peer.name,
        scenario=scenario.name,
        round=round_number,
        requests=answers,
        errors=outcome.errors,
        first_error=outcome.first_error,
        rate_per_s=answers / outcome.elapsed_s,
        latency_p50_ms=percentile(outcome.latencies_s, 50) * 1e3,
        latency_p99_ms=percentile(outcome.latencies_s, 99) * 1e3,
        first_text_p50_ms=percentile(outcome.first_texts_s, 50) * 1e3 if outcome.first_texts_s else None,
        cpu_us=spent_s(before, after) / (answers + outcome.errors) * 1e6 if before and after else None,
        resident_mib=resident_mib(running.pid) if running.pid else None,
        threads_lost=threads_lost(before, after) if before and after else 0,
        admission_p50_ms=percentile(admissions_s, 50) * 1e3 if admissions_s else None,
        admission_p99_ms=percentile(admissions_s, 99) * 1e3 if admissions_s else None,
    )


def admissions(outcome: Outcome, arrivals: str) -> list[float]:
    """How long each request took to the upstream. A number's last arrival is this phase's: phases count anew."""
    arrived_s = {number: float(at_s) for number, at_s in (line.split() for line in arrivals.splitlines())}
    return [arrived_s[number] - sent_s for number, sent_s in outcome.sent_s.items() if number in arrived_s]


def percentile(values: list[float], percent: int) -> float:
    """Nearest rank: the smallest value that at least `percent` of the values do not exceed."""
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(rank, 1) - 1]

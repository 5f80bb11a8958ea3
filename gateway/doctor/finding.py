"""What was tried, how, and what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from queue import Empty, SimpleQueue

PROBES_AT_ONCE_MAX = 64  # each has a thread and a socket; of those that wait for nothing, all are done in a few waits
PROBE_GRACE_S = 2.0  # beyond its own limit: a probe that has not ended then hangs in the system


class Verdict(Enum):
    """What one attempt has shown."""

    OPEN = "open"  # a way out
    CLOSED = "closed"
    UNTESTED = "could not test"  # or: what came of it proves neither
    WRONG = "wrong"  # of the gateway's own footing
    RIGHT = "right"

    @property
    def is_bad(self) -> bool:
        """Whether it makes the doctor end with 1."""
        return self in (Verdict.OPEN, Verdict.WRONG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    kind: str
    target: str
    how: str
    verdict: Verdict
    detail: str


Result = tuple[Verdict, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One attempt. `act` is given its limit in seconds, keeps to it, and raises nothing but `OSError`."""

    kind: str
    target: str
    how: str
    act: Callable[[float], Result]
    host: str = ""  # an address, where there is one
    port: int = 0

    def found(self, result: Result) -> Finding:
        """The line that it makes."""
        verdict, detail = result
        return Finding(kind=self.kind, target=self.target, how=self.how, verdict=verdict, detail=detail)


def examine(probes: Sequence[Probe], *, limit_s: float) -> list[Finding]:
    """Make all attempts at the same time, at most `limit_s` each; the findings come in the order of the probes.

    Threads and no event loop: name resolution and file systems block, and one that hangs must not take the rest along. Such
    a thread is left behind and ends with the process.
    """
    results: dict[int, Result] = {}
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in range(len(probes)):
        waiting.put(number)

    def work() -> None:
        while True:
            try:
                number = waiting.get_nowait()
            except Empty:
                return
            results[number] = _result(probes[number], limit_s)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(PROBES_AT_ONCE_MAX, len(probes)))]
    rounds = -(-len(probes) // PROBES_AT_ONCE_MAX)
    deadline_s = time.monotonic() + rounds * (limit_s + PROBE_GRACE_S)
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(deadline_s - time.monotonic(), 0.0))
    unended = (Verdict.UNTESTED, "the attempt did not end")
    return [probe.found(results.get(number, unended)) for number, probe in enumerate(probes)]


def _result(probe: Probe, limit_s: float) -> Result:
    try:
        return probe.act(limit_s)
    except OSError as fault:
        return Verdict.UNTESTED, fault.strerror or str(fault)

"""What a run of load must have shown, as a table of checks, and the checks that every run makes at its end."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtests.load.site import Gauges, Place

SETTLED_S_MAX = 30.0  # after the last answer: settlement, leases and the log come to rest
TICK_S = 0.020


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that must be so."""

    name: str
    ok: bool
    found: str


def at_rest(place: Place) -> Gauges:
    """The gateway's metrics when nothing is open or waiting any more, or when it took too long to come to that."""
    deadline_s = time.monotonic() + SETTLED_S_MAX
    while True:
        gauges = place.gauges()
        if time.monotonic() > deadline_s or not (
            gauges.total("weir_answers_in_flight")
            or gauges.total("weir_budget_reserved_bits")
            or gauges.total("weir_settle_backlog_answers")
        ):
            return gauges
        time.sleep(0.2)


def nothing_left_open(place: Place, gauges: Gauges) -> list[Check]:
    """No answer, hold or settlement of the gateway's, and no answer of the upstream's, outlives the run."""
    left = {
        "answers": gauges.total("weir_answers_in_flight"),
        "bits held": gauges.total("weir_budget_reserved_bits"),
        "settlements": gauges.total("weir_settle_backlog_answers"),
        "upstream answers": place.said()["open"],
    }
    found = ", ".join(f"{count:.0f} {what}" for what, count in left.items())
    return [Check(name="nothing is left open", ok=not any(left.values()), found=found)]


def same_bytes(place: Place, gauges: Gauges, *, text_bytes: int, argument_bytes: int) -> list[Check]:
    """Upstream, gateway and clients have counted the same, where nothing was cut: no byte lost, none twice."""
    said = place.said()
    words = (said["whole_text_bytes"], int(gauges.total("weir_released_text_bytes_total")), text_bytes)
    arguments = (said["whole_argument_bytes"], argument_bytes)
    return [
        Check(name="asked once each", ok=said["repeated"] == 0, found=f"{said['repeated']} asked again"),
        Check(name="bytes said = released = heard", ok=len(set(words)) == 1, found=counts(words)),
        Check(name="tool bytes said = heard", ok=len(set(arguments)) == 1, found=counts(arguments)),
    ]


def counts(numbers: Sequence[int]) -> str:
    """For a table."""
    return (" = " if len(set(numbers)) == 1 else " / ").join(f"{number:,}" for number in numbers)


def books_in_order(place: Place) -> list[Check]:
    """The audit log is whole and signed, and its sums are the ledger's."""
    complaint, difference_bits = place.books()
    return [
        Check(name="audit log verifies", ok=not complaint, found=complaint.strip()[-300:] or "in order"),
        Check(name="ledger = audit log", ok=difference_bits == 0, found=f"{difference_bits} bits apart"),
    ]


def lag_table(before: Gauges, after: Gauges) -> list[tuple[str, str]]:
    """How late ticks were between two readings: part of them at or below each bound of the histogram."""
    buckets, earlier = after.buckets("weir_tick_lag_seconds"), before.buckets("weir_tick_lag_seconds")
    counts = {bound: count - earlier.get(bound, 0) for bound, count in sorted(buckets.items())}
    total = max(counts.values(), default=0)
    rows = [
        (f"≤ {bound * 1e3:g} ms", f"{count / total:.2%}") for bound, count in counts.items() if total and bound < 1e9
    ]
    missed = after.total("weir_ticks_missed_total") - before.total("weir_ticks_missed_total")
    return [("ticks", f"{total:.0f}"), *rows, ("missed", f"{missed:.0f}")]


def lag_p99_ms(before: Gauges, after: Gauges) -> float:
    """The bound of the histogram below which 99 % of the ticks between two readings are; infinite beyond its last."""
    buckets, earlier = after.buckets("weir_tick_lag_seconds"), before.buckets("weir_tick_lag_seconds")
    counts = {bound: count - earlier.get(bound, 0) for bound, count in sorted(buckets.items())}
    total = max(counts.values(), default=0)
    return next((bound * 1e3 for bound, count in counts.items() if count >= 0.99 * total), float("inf"))


def told(title: str, rows: Sequence[tuple[str, str]], checks: Sequence[Check], *, file: Path | None) -> int:
    """Print what was found and what must be so, for people, and for programs to a file; the exit status."""
    print(f"\n## {title}\n\n| what | found |\n| --- | --- |")
    for what, found in rows:
        print(f"| {what} | {found} |")
    print("\n| must be so | found | |\n| --- | --- | --- |")
    for check in checks:
        print(f"| {check.name} | {check.found} | {'ok' if check.ok else '**NO**'} |")
    if file is not None:
        results = {"title": title, "rows": dict(rows), "checks": [asdict(check) for check in checks]}
        file.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return 0 if all(check.ok for check in checks) else 1

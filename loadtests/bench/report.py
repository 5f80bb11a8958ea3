"""Samples → one row per peer → tables. Medians over rounds; ratios and differences are taken within a round first."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from loadtests.bench.answer import TOKENS
from loadtests.bench.measure import Sample
from loadtests.bench.scenario import BURST, JSON, JSON_ALONE, JSON_MANY, PACED, Scenario

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NOTHING = "–"
COLUMNS = (
    "peer",
    "CPU µs / JSON",
    "× floor",
    "CPU µs / JSON c=64",
    "× floor",
    "CPU µs / stream of 200",
    "× floor",
    "CPU µs / paced chunk",
    "× floor",
    "added p50 ms",
    "added p99 ms",
    "TTFT p50 ms, burst",
    "TTFT p50 ms, paced",
    "RSS MiB",
    "errors",
)

Value = Callable[[Sample], float | None]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over the rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """`134 (128–141)`, or the number alone where there was one round."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A peer's numbers; None where a number has no meaning for it or its counterpart was not run."""

    peer: str
    json_cpu_us: Spread | None
    json_ratio: Spread | None
    json_many_cpu_us: Spread | None
    json_many_ratio: Spread | None
    stream_cpu_us: Spread | None
    stream_ratio: Spread | None
    chunk_cpu_us: Spread | None
    chunk_ratio: Spread | None
    added_p50_ms: Spread | None
    added_p99_ms: Spread | None
    burst_first_text_ms: Spread | None
    paced_first_text_ms: Spread | None
    resident_mib: Spread | None
    errors: int

    def cells(self) -> list[str]:
        """The row as text, in the order of COLUMNS."""
        numbers = (
            (self.json_cpu_us, 0),
            (self.json_ratio, 2),
            (self.json_many_cpu_us, 0),
            (self.json_many_ratio, 2),
            (self.stream_cpu_us, 0),
            (self.stream_ratio, 2),
            (self.chunk_cpu_us, 1),
            (self.chunk_ratio, 2),
            (self.added_p50_ms, 2),
            (self.added_p99_ms, 2),
            (self.burst_first_text_ms, 2),
            (self.paced_first_text_ms, 2),
        )
        texts = [number.text(digits) if number else NOTHING for number, digits in numbers]
        resident = f"{self.resident_mib.high:.0f}" if self.resident_mib else NOTHING
        return [self.peer, *texts, resident, str(self.errors)]


def rows(samples: Sequence[Sample]) -> list[Row]:
    """One row per peer, in the order in which peers first appear."""
    return [row(peer, samples) for peer in dict.fromkeys(sample.peer for sample in samples)]


def row(peer: str, samples: Sequence[Sample]) -> Row:
    """The numbers of one peer."""
    table = {(sample.peer, sample.scenario, sample.round): sample for sample in samples}
    rounds = sorted({sample.round for sample in samples})

    def spread(scenario: Scenario, value: Value) -> Spread | None:
        return spread_of([value(s) for r in rounds if (s := table.get((peer, scenario.name, r)))])

    def paired(scenario: Scenario, other: str, value: Value, combine: Callable[[float, float], float]) -> Spread | None:
        """`combine(ours, theirs)` of the samples that were taken in the same round."""
        combined = []
        for r in rounds:
            ours, theirs = table.get((peer, scenario.name, r)), table.get((other, scenario.name, r))
            if ours and theirs and (a := value(ours)) is not None and (b := value(theirs)) is not None:
                combined.append(combine(a, b))
        return spread_of(combined) if peer != other else None

    return Row(
        peer=peer,
        json_cpu_us=spread(JSON, cpu_us),
        json_ratio=paired(JSON, "floor", cpu_us, quotient),
        json_many_cpu_us=spread(JSON_MANY, cpu_us),
        json_many_ratio=paired(JSON_MANY, "floor", cpu_us, quotient),
        stream_cpu_us=spread(BURST, cpu_us),
        stream_ratio=paired(BURST, "floor", cpu_us, quotient),
        chunk_cpu_us=spread(PACED, lambda s: s.cpu_us / TOKENS if s.cpu_us is not None else None),
        chunk_ratio=paired(PACED, "floor", cpu_us, quotient),
        added_p50_ms=paired(JSON_ALONE, "direct", lambda s: s.latency_p50_ms, difference),
        added_p99_ms=paired(JSON_ALONE, "direct", lambda s: s.latency_p99_ms, difference),
        burst_first_text_ms=spread(BURST, lambda s: s.first_text_p50_ms),
        paced_first_text_ms=spread(PACED, lambda s: s.first_text_p50_ms),
        resident_mib=spread_of([s.resident_mib for s in samples if s.peer == peer]),
        errors=sum(s.errors for s in samples if s.peer == peer),
    )


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Median and range; None of nothing."""
    numbers = [value for value in values if value is not None]
    return Spread(median=median(numbers), low=min(numbers), high=max(numbers)) if numbers else None


def cpu_us(sample: Sample) -> float | None:
    """CPU time per request."""
    return sample.cpu_us


def quotient(ours: float, theirs: float) -> float:
    """How many times theirs."""
    return ours / theirs


def difference(ours: float, theirs: float) -> float:
    """How much above theirs."""
    return ours - theirs


def markdown(samples: Sequence[Sample], conditions: str, *, missing: Iterable[str] = ()) -> str:
    """The table as Markdown, under lines that say what it was measured on. Peers that are missing stand in it by name."""
    lines = [COLUMNS, tuple("---" if index == 0 else "--:" for index in range(len(COLUMNS)))]
    lines += [tuple(row.cells()) for row in rows(samples)]
    lines += [tuple(missing_cells(peer)) for peer in missing]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([*conditions.splitlines(), table])


def missing_cells(peer: str) -> list[str]:
    """The row of a peer that could not take part; why not stands above the table."""
    return [peer, "missing", *([NOTHING] * (len(COLUMNS) - 2))]


def filled(document: str, table: str, *, begin: str = BEGIN, end: str = END) -> str:
    """`document` with `table` between its markers. Raises ValueError where it does not have exactly one pair."""
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise ValueError(f"no single pair of {begin} … {end}")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"

"""Many askers at once: so many a second whatever becomes of them, or so many who each wait for their answer."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtests.load.asker import Asker, End, Exchange
from loadtests.load.script import Kind, Script
from loadtests.load.site import Place

REASONS_KEPT = 20
RETRY_S = 0.5  # of a user who was refused, on average: twice as eager as Retry-After says
BIN_S = 0.0005  # of a histogram: finer than a tick by forty
BINS = 120_000  # up to a minute


class Histogram:
    """Times, in a bounded place: half an hour of gaps would not fit into a list."""

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()
        self.count = 0
        self.worst_s = 0.0

    def add(self, value_s: float) -> None:
        """One more."""
        self._bins[min(int(value_s / BIN_S), BINS)] += 1
        self.count += 1
        self.worst_s = max(self.worst_s, value_s)

    def percentile_ms(self, percent: float) -> float:
        """The upper end of the bin in which it lies; 0 of nothing."""
        wanted, seen = self.count * percent / 100, 0
        for index in sorted(self._bins):
            seen += self._bins[index]
            if seen >= wanted:
                return (index + 1) * BIN_S * 1e3
        return 0.0

    def text(self) -> str:
        """For a table."""
        if not self.count:
            return "–"
        p50, p99 = self.percentile_ms(50), self.percentile_ms(99)
        return f"p50 {p50:.1f}, p99 {p99:.1f}, worst {self.worst_s * 1e3:.1f} ms ({self.count})"


@dataclass(kw_only=True)
class Tally:
    """What the exchanges of a phase came to."""

    ends: Counter[End] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # of all that were not good
    text_bytes: int = 0  # heard in words, whole or not
    argument_bytes: int = 0  # heard in tool calls
    latency: Histogram = field(default_factory=Histogram)  # of good answers
    first: Histogram = field(default_factory=Histogram)  # time to first text of streams
    gaps: Histogram = field(default_factory=Histogram)  # between arrivals of streams that ended well
    refusal: Histogram = field(default_factory=Histogram)  # how long it takes to be refused

    def add(self, script: Script, exchange: Exchange) -> None:
        """One exchange."""
        self.ends[exchange.end] += 1
        if script.kind is Kind.TOOL:
            self.argument_bytes += exchange.text_bytes
        else:
            self.text_bytes += exchange.text_bytes
        if exchange.end is End.REFUSED:
            self.refusal.add(exchange.latency_s)
        if exchange.end is not End.GOOD:
            reason = f"{exchange.end.value}: {exchange.reason}"
            if reason in self.reasons or len(self.reasons) < REASONS_KEPT:
                self.reasons[reason] += 1
            return
        self.latency.add(exchange.latency_s)
        if exchange.first_s is not None:
            self.first.add(exchange.first_s)
        for gap_s in exchange.gaps_s:
            self.gaps.add(gap_s)

    @property
    def total(self) -> int:
        """All exchanges."""
        return self.ends.total()

    def worst(self) -> str:
        """What went wrong most often, in words."""
        return "; ".join(f"{count} × {reason}" for reason, count in self.reasons.most_common(3))


@dataclass(frozen=True, kw_only=True)
class Sort:
    """One sort of question in a mix."""

    share: float
    kind: Kind
    pieces: int
    pace_ms: int


MIX = (
    Sort(share=0.4, kind=Kind.JSON, pieces=40, pace_ms=50),
    Sort(share=0.5, kind=Kind.STREAM, pieces=60, pace_ms=20),
    Sort(share=0.1, kind=Kind.TOOL, pieces=30, pace_ms=20),
)


class Crowd:
    """Asks a gateway, as every tenant in turn. Numbers are given once, so that nothing is asked twice."""

    def __init__(self, place: Place, *, mix: Sequence[Sort] = MIX, seed: int = 0, timeout_s: float = 120.0) -> None:
        self._place = place
        self._mix = mix
        self._random = random.Random(seed)
        self._asker = Asker(place, timeout_s=timeout_s)
        self.asked = 0
        self.open = 0

    async def offered(self, tally: Tally, *, rate_per_s: float, seconds: float) -> None:
        """Poisson arrivals, whatever becomes of those before; ends when the last has been answered."""
        due_s = time.perf_counter()
        end_s = due_s + seconds
        async with asyncio.TaskGroup() as group:
            while (due_s := due_s + self._random.expovariate(rate_per_s)) < end_s:
                await asyncio.sleep(max(due_s - time.perf_counter(), 0))
                group.create_task(self._one(tally))

    async def population(self, tally: Tally, *, users: int, seconds: float) -> None:
        """So many users, each of whom asks again when answered, and soon again when refused."""
        end_s = time.perf_counter() + seconds

        async def user(key: str) -> None:
            await asyncio.sleep(self._random.random() * min(1.0, seconds / 4))  # not all in one tick
            while time.perf_counter() < end_s:
                if (await self._one(tally, key=key)).end is not End.GOOD:
                    await asyncio.sleep(self._random.uniform(0.5, 1.5) * RETRY_S)

        async with asyncio.TaskGroup() as group:
            for number in range(users):
                group.create_task(user(self._place.keys[number % len(self._place.keys)]))

    async def exactly(self, tally: Tally, count: int, *, together: int = 16) -> None:
        """So many questions, some at a time."""
        for start in range(0, count, together):
            await asyncio.gather(*(self._one(tally) for _ in range(min(together, count - start))))

    def close(self) -> None:
        """Drop idle connections."""
        self._asker.close()

    async def _one(self, tally: Tally, *, key: str = "") -> Exchange:
        sort = self._random.choices(self._mix, [sort.share for sort in self._mix])[0]
        script = Script(number=self.asked, kind=sort.kind, pieces=sort.pieces, pace_ms=sort.pace_ms)
        key = key or self._place.keys[self.asked % len(self._place.keys)]
        self.asked += 1
        self.open += 1
        try:
            exchange = await self._asker.ask(script, key=key)
        finally:
            self.open -= 1
        tally.add(script, exchange)
        return exchange

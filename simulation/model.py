"""What is true: what really left, what the store really debited, in plain integers. Every event is held against it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

from gateway.ports import AccountLimit, Granted
from policy.budget import Account, Step


class Violation(Exception):
    """Something that must never be."""


@dataclass(slots=True)
class Lease:
    holder: str
    bits: Mapping[str, int]
    returned: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Books:
    """What a store that does as it should knows at one moment. A store that forgets goes back to earlier ones."""

    leases: dict[str, Lease] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)  # of accounts and series, as last set
    thawed: Counter[str] = field(default_factory=Counter)  # what operators debited for what was forgotten
    frozen: set[str] = field(default_factory=set)
    net: Counter[tuple[str, str]] = field(
        default_factory=Counter
    )  # by holder and account: granted, less what came back


class Model:
    """The truth. Methods raise `Violation`."""

    def __init__(self) -> None:
        self.books = Books()
        self.steps: dict[str, Step] = {}
        self.limit_max: dict[str, int] = {}
        self.left: Counter[tuple[str, str]] = Counter()  # by holder and account
        self.refunded: Counter[tuple[str, str]] = Counter()  # by holder and account
        self.forgotten: Counter[tuple[str, str]] = Counter()  # by holder and account: grants that the store lost
        self.departures: dict[str, list[list[float]]] = defaultdict(list)  # by series: when, how many bits
        self.crashed: dict[
            str, tuple[Counter[str], Collection[str]]
        ] = {}  # holders: what recovery cannot prove, leases on record
        self.recovered: set[str] = set()  # holders
        self.told: set[tuple[str, str]] = set()  # process and account: it has heard what shows that the store forgot
        self.checks: Counter[str] = Counter()
        self.violation: str | None = None

    # What the store does.

    def registered(self, limits: Iterable[AccountLimit]) -> None:
        for limit in limits:
            name = limit.account
            if limit.step is not None:
                self.steps[name] = limit.step
                name = limit.step.series
            self.books.limits[name] = limit.limit_bits
            self.limit_max[name] = max(limit.limit_bits, self.limit_max.get(name, 0))

    def granted(self, *, holder: str, answer: Granted, debited: Mapping[str, int]) -> None:
        """For the first time. `debited` is what the store says of accounts and series after it."""
        self.books.leases[answer.lease] = Lease(holder, dict(answer.bits))
        for name, bits in answer.bits.items():
            self.books.net[holder, name] += bits
            counted = self.counted_in(name)
            self.hold("nothing is granted from a frozen account", counted not in self.books.frozen, name)
            self.hold("debited <= limit", debited[counted] <= self.books.limits[counted], counted)
            self.hold("a grant debits what it grants", debited[name] == self.debited_bits(name), name)

    def closed(self, *, lease: str, returned: Mapping[str, int], closed: Iterable[str]) -> None:
        for name in closed:
            known = self.books.leases[lease]
            self.hold("each bit is returned once", name not in known.returned, name)
            self.hold("no more is returned than was granted", returned[name] <= known.bits[name], name)
            known.returned[name] = returned[name]
            self.books.net[known.holder, name] -= returned[name]
            self._covered(known.holder, name)

    def thawed(self, account: str, debit_bits: int) -> None:
        self.books.frozen.discard(account)
        self.books.thawed[account] += debit_bits
        self.told = {(process, name) for process, name in self.told if name != account}

    def snapshot(self) -> Books:
        return deepcopy(self.books)

    def restored(self, books: Books) -> None:
        """The store is as it was. What it granted since may still leave: it is what this loss may cost, and no more."""
        for lease, known in self.books.leases.items():
            if lease not in books.leases:
                for name, bits in known.bits.items():
                    self.forgotten[known.holder, name] += bits - known.returned.get(name, 0)
        self.books = deepcopy(books)
        self.told.clear()  # of a store that is no more

    # What holders do.

    def leave(self, holder: str, accounts: Iterable[str], bits: int, *, at_s: float) -> list[tuple[str, list[float]]]:
        """Bits left, charged to these accounts at this moment. Returns the departures, so that a refund can find them."""
        made = []
        for name in accounts:
            self.left[holder, name] += bits
            self._covered(holder, name)
            departure = [at_s, float(bits)]
            self.departures[name].append(departure)
            made.append((name, departure))
        return made

    def refund(self, holder: str, departures: Iterable[tuple[str, list[float]]], bits: int) -> None:
        """What left was worth so much less, in every account."""
        rests: dict[str, int] = {}
        for name, departure in departures:
            rest = rests.setdefault(name, bits)
            part = min(rest, int(departure[1]))
            departure[1] -= part
            rests[name] -= part
        for name in rests:
            self.left[holder, name] -= bits
            self.refunded[holder, name] += bits

    def hears(self, process: str, account: str) -> None:
        self.told.add((process, account))

    def uses(self, process: str, accounts: Iterable[str]) -> None:
        """A process put a grant into its purse."""
        for name in accounts:
            self.hold(
                "who knows that the store forgot uses no grant of it",
                (process, self.counted_in(name)) not in self.told,
                name,
            )

    def purse(self, holder: str, account: Account, *, balance_bits: int, reserved_bits: int) -> None:
        self.hold("no purse is negative", balance_bits >= 0 and reserved_bits >= 0, account.id)
        key = holder, account.id
        covered_bits = self.books.net[key] + self.forgotten[key]
        self.hold(
            "left + in hand <= debited", self.left[key] + balance_bits + reserved_bits <= covered_bits, account.id
        )

    # What is true at the end.

    def finish(self, *, lengths_s: Mapping[str, int], clocks_right: bool) -> None:
        """Every account within its limit, every sliding window in every position."""
        forgotten: Counter[str] = Counter()
        for (_, name), bits in self.forgotten.items():
            forgotten[self.counted_in(name)] += bits
        left: Counter[str] = Counter()
        for (_, name), bits in self.left.items():
            left[name] += bits
        for name, bits in left.items():
            bound = self.limit_max[self.counted_in(name)] + forgotten[self.counted_in(name)]
            self.hold("left <= limit, and what the store forgot", bits <= bound, name)
        for series, length_s in lengths_s.items():
            bound = self.limit_max.get(series, 0) + forgotten[series]
            own = {step.number: left[name] for name, step in self.steps.items() if step.series == series}
            together = next((step.steps for step in self.steps.values() if step.series == series), 2) - 1
            for newest in own:
                bits = sum(own.get(newest - back, 0) for back in range(together))
                self.hold("steps that lie in one window <= limit", bits <= bound, series)
            if clocks_right:
                bits = self._most_in(series, length_s)
                self.hold("left in any window of the length <= limit", bits <= bound, f"{series}: {bits} > {bound}")

    def recoveries(self) -> None:
        """What crashed and was recovered costs what left, but for the silence of open answers and what never reached the log."""
        for holder, (wasted, recorded) in self.crashed.items():
            if holder in self.recovered:
                lost = self.unrecorded_bits(holder, recorded)
                for name, bits in self.over_bits(holder).items():
                    bound = wasted[name] + lost[name] + self.refunded[holder, name]
                    self.hold("a recovery is exact", bits <= bound, f"{name} of {holder}: {bits} > {bound}")

    def over_bits(self, holder: str) -> dict[str, int]:
        """What a holder cost beyond what it let leave, by account."""
        names = {name for key, name in self.books.net if key == holder}
        return {name: self.books.net[holder, name] - self.left[holder, name] for name in names}

    def unrecorded_bits(self, holder: str, recorded: Iterable[str]) -> Counter[str]:
        """Granted to a holder, by account, through leases that it never put on the record."""
        known, bits = set(recorded), Counter[str]()
        for lease, entry in self.books.leases.items():
            if entry.holder == holder and lease not in known:
                bits.update(entry.bits)
        return bits

    def debited_bits(self, name: str) -> int:
        return sum(bits for (_, account), bits in self.books.net.items() if account == name) + self.books.thawed[name]

    def counted_in(self, name: str) -> str:
        step = self.steps.get(name)
        return name if step is None else step.series

    def _most_in(self, series: str, length_s: int) -> int:
        """The most that left in any stretch of so many seconds; it ends where something left."""
        departures = sorted(
            (at_s, bits)
            for name, step in self.steps.items()
            if step.series == series
            for at_s, bits in self.departures[name]
        )
        most, total, first = 0.0, 0.0, 0
        for at_s, bits in departures:
            total += bits
            while departures[first][0] < at_s - length_s:
                total -= departures[first][1]
                first += 1
            most = max(most, total)
        return int(most)

    def _covered(self, holder: str, name: str) -> None:
        key = holder, name
        fits = self.left[key] <= self.books.net[key] + self.forgotten[key]
        self.hold(
            "left <= debited",
            fits,
            "" if fits else f"{name} of {holder}: {self.left[key]} > {self.books.net[key]} + {self.forgotten[key]}",
        )

    def hold(self, what: str, true: bool, of: str) -> None:
        """Check one thing. The first that is false ends the schedule, wherever it is noticed."""
        self.checks[what] += 1
        if not true:
            self.violation = self.violation or f"{what}: {of}"
            raise Violation(self.violation)

"""One fleet: so many gateways, so far from their store, that crash so often. Requests are events; only time is not real."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from gateway.leases import Leases
from gateway.ledger.memory import MemoryLedger
from gateway.ports import AccountLimit, Granted, LedgerUnavailable, OverLimit, Wanted
from policy.budget import Account, Hold
from policy.limits import LEASE_REFRESH_S
from policy.rules import Window
from simulation import loop
from simulation.machine import Machine

DAY_S = 86_400
REQUESTS_PER_S = 5.0  # of one gateway
CHARGE_BITS = 2_000  # what an answer costs at last
RESERVED_BITS = {"whole": 65_000, "streamed": 4_600}
LEAST_BITS = 600
ANSWER_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is simulated: a third of the time with a day's budget before it, then near the budget's end."""

    gateways: int
    crashes_per_h: float  # of each gateway
    latency_s: float  # a question and its answer
    seconds: float
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What it cost. `late` is the part near the end of the budget."""

    plan: Plan
    requests: int
    grants_per_s: float
    late_grants_per_s: float
    lease_bits: int  # the median of the grants while there was plenty
    wait_p50_ms: float  # of all admissions while there was plenty: most do not wait
    wait_p99_ms: float
    over_count: float  # share of the limit: spent in the store, and never left. Without recovery
    crashes: int
    held_bits: int  # in one gateway's hand, on average, when it crashed
    first_refusal: float | None  # share of the limit that had not left when the first request was refused
    needless_s: float  # refusals while what had not left would have covered them, in seconds of the fleet's traffic


class Store:
    """The ledger, some way off; of its port, what leases ask."""

    def __init__(self, ledger: MemoryLedger, fleet: Fleet) -> None:
        self._ledger = ledger
        self._fleet = fleet

    async def register(self, limits: Sequence[AccountLimit]) -> Sequence[str]:
        return await self._ledger.register(limits)

    async def grant(self, *, lease: str, holder: str, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        await self._fleet.half_way()
        answer = await self._ledger.grant(lease=lease, holder=holder, wanted=wanted)
        self._fleet.granted(answer)
        await self._fleet.half_way()
        return answer

    async def close_lease(self, *, lease: str, holder: str, returned: Mapping[str, int]) -> Collection[str]:
        await self._fleet.half_way()
        return await self._ledger.close_lease(lease=lease, holder=holder, returned=returned)

    async def beat(self, holder: str) -> int:
        return await self._ledger.beat(holder)

    async def states(self, accounts: Collection[str] | None = None) -> Any:
        return await self._ledger.states(accounts)


class Fleet:
    """All gateways, what they asked, and what left."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = Random(plan.seed)
        self.loop = asyncio.get_running_loop()
        self.clock = Machine("fleet")
        self.limit_bits = int(plan.gateways * REQUESTS_PER_S * CHARGE_BITS * DAY_S)
        self.account = Account(
            id="model:m/lifetime/ever",
            owner="model",
            name="m",
            window=Window(name="lifetime", duration_s=None),
            limit_bits=self.limit_bits,
            expires_s=None,
        )
        self.ledger = MemoryLedger(clock=self.clock)
        self.leases: list[Leases] = []
        self.late = False
        self._dead: set[Leases] = set()
        self.left_bits = self.past_bits = 0
        self.waits_s: list[float] = []
        self.grants: list[list[int]] = [[], []]
        self.requests = [0, 0]
        self.first_refusal: float | None = None
        self.needless = self.crashes = self.held_bits = 0

    async def run(self) -> Report:
        await self.ledger.register([AccountLimit(account=self.account.id, limit_bits=self.limit_bits)])
        self.leases = [self._process() for _ in range(self.plan.gateways)]
        for number in range(self.plan.gateways):
            self.loop.call_later(self.rng.expovariate(REQUESTS_PER_S), self._arrive, number)
            self.loop.create_task(self._refresh(number))
            self._crash_later(number)
        plenty_s, late_s = self.plan.seconds / 3, self.plan.seconds * 2 / 3
        await asyncio.sleep(plenty_s)
        await self._come_near_the_end(late_s)
        await asyncio.sleep(late_s)
        (state,) = await self.ledger.states([self.account.id])
        held_bits = sum(leases.purse.unspent_bits(self.account.id) for leases in self.leases)
        over_bits = state.debited_bits - self.past_bits - self.left_bits - held_bits
        waits_s = sorted(self.waits_s)
        return Report(
            plan=self.plan,
            requests=sum(self.requests),
            grants_per_s=len(self.grants[0]) / plenty_s,
            late_grants_per_s=len(self.grants[1]) / late_s,
            lease_bits=sorted(self.grants[0])[len(self.grants[0]) // 2],
            wait_p50_ms=waits_s[len(waits_s) // 2] * 1000,
            wait_p99_ms=waits_s[len(waits_s) * 99 // 100] * 1000,
            over_count=over_bits / self.limit_bits,
            crashes=self.crashes,
            held_bits=self.held_bits // max(self.crashes, 1),
            first_refusal=self.first_refusal,
            needless_s=self.needless / (self.plan.gateways * REQUESTS_PER_S),
        )

    async def half_way(self) -> None:
        await asyncio.sleep(self.plan.latency_s * (0.25 + self.rng.random() / 2))

    def granted(self, answer: Granted | OverLimit) -> None:
        bits = answer.bits[self.account.id] if isinstance(answer, Granted) else 0
        self.grants[self.late].append(bits)

    async def _come_near_the_end(self, late_s: float) -> None:
        """Somebody else has all of the budget but what this fleet takes in an eighth of the time that is left."""
        rest_bits = int(self.plan.gateways * REQUESTS_PER_S * CHARGE_BITS * late_s / 8)
        (state,) = await self.ledger.states([self.account.id])
        self.past_bits = state.limit_bits - state.debited_bits - rest_bits
        all_of_it = Wanted(least_bits=self.past_bits, most_bits=self.past_bits)
        await self.ledger.grant(lease="past", holder="past", wanted={self.account.id: all_of_it})
        self.late = True

    def _process(self) -> Leases:
        async def flush() -> None:
            pass

        return Leases(
            ledger=Store(self.ledger, self),  # type: ignore[arg-type]
            clock=self.clock,
            record=lambda leaf: None,
            flush=flush,
            log=lambda message, **fields: None,
        )

    def _arrive(self, number: int) -> None:
        self.loop.call_later(self.rng.expovariate(REQUESTS_PER_S), self._arrive, number)
        self.loop.create_task(self._serve(self.leases[number]))

    async def _serve(self, leases: Leases) -> None:
        late, began_s = self.late, self.loop.time()
        self.requests[late] += 1
        most_bits = RESERVED_BITS["whole" if self.rng.random() < 0.5 else "streamed"]
        try:
            hold = await leases.reserve((self.account,), least_bits=LEAST_BITS, most_bits=most_bits)
        except LedgerUnavailable:
            return
        if not late:
            self.waits_s.append(self.loop.time() - began_s)
        if isinstance(hold, OverLimit):
            unspent_bits = self.limit_bits - self.past_bits - self.left_bits
            self.needless += unspent_bits >= CHARGE_BITS
            if self.first_refusal is None:
                self.first_refusal = unspent_bits / self.limit_bits
            return
        self.loop.call_later(ANSWER_S * (0.5 + self.rng.random()), self._end, leases, hold)

    def _end(self, leases: Leases, hold: Hold) -> None:
        if leases in self._dead:
            return
        bits = min(CHARGE_BITS, hold.left_bits)
        hold.charge(bits)
        hold.close()
        self.left_bits += bits

    async def _refresh(self, number: int) -> None:
        await asyncio.sleep(self.rng.random() * LEASE_REFRESH_S)
        while True:
            await self.leases[number].refresh()
            await asyncio.sleep(LEASE_REFRESH_S)

    def _crash_later(self, number: int) -> None:
        if self.plan.crashes_per_h:
            self.loop.call_later(self.rng.expovariate(self.plan.crashes_per_h / 3600), self._crash, number)

    def _crash(self, number: int) -> None:
        """What it held is spent; another begins at once with nothing."""
        self.crashes += 1
        self.held_bits += self.leases[number].purse.unspent_bits(self.account.id)
        self._dead.add(self.leases[number])
        self.leases[number] = self._process()
        self._crash_later(number)


def simulate(plan: Plan) -> Report:
    """Run one fleet."""

    async def run() -> Report:
        return await Fleet(plan).run()

    return loop.run(run())

"""One schedule: a seed becomes accounts, gateways, traffic and faults; all of it happens, then everything ends in order."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from policy.budget import Account, Step, period_of
from policy.rules import Window
from simulation import loop
from simulation.faults import FAULTS
from simulation.gateway import Gateway, Request
from simulation.machine import Disk, Machine
from simulation.model import Model, Violation
from simulation.store import Network, Store

LIFETIME = Window(name="lifetime", duration_s=None)
FIXED = Window(name="40s", duration_s=40)
SLIDING = Window(name="sliding 48s", duration_s=48, sliding=True)
SCHEDULE_S = 90.0
ANSWERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a schedule."""

    seed: int
    steps: int
    faults: Counter[str]
    checks: Counter[str]
    violation: str | None
    digest: str  # of the trace: the same seed gives the same
    trace: list[str] = field(default_factory=list)  # if it was asked for


def simulate(seed: int, *, traced: bool = False) -> Outcome:
    """Run one schedule."""
    with _counted_tokens(seed):
        return loop.run(_simulate(seed, traced=traced))


async def _simulate(seed: int, *, traced: bool) -> Outcome:
    world = World(seed, traced=traced)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: world.unhandled(context))
    with suppress(Violation):
        await world.run()
    violation = world.model.violation
    if violation is not None:
        world.trace("VIOLATION", violation)
    return Outcome(
        seed=seed,
        steps=world.steps,
        faults=world.faults,
        checks=world.model.checks,
        violation=violation,
        digest=world.digest.hexdigest(),
        trace=world.lines,
    )


class World:
    """Everything there is in one schedule. Faults are functions on it."""

    def __init__(self, seed: int, *, traced: bool) -> None:
        self.rng = Random(f"{seed}/world")
        self.steps = 0
        self.faults: Counter[str] = Counter()
        self.lines: list[str] = []
        self.digest = hashlib.sha256()
        self._traced = traced
        self.model = Model()
        self.store = Store(model=self.model, trace=self.trace)
        self.network = Network(self.store, Random(f"{seed}/network"))
        self.limits = self._limits()
        self.edge = ("model:m", SLIDING) in self.limits and self.rng.random() < 0.3
        self.refunds = self.rng.choice(((0.0,), (0.0, 0.6, 0.9), (0.0, 0.6, 0.9)))
        self.sliding = any(window.sliding for _, window in self.limits)
        self.gateways: list[Gateway] = []
        self.disks: list[Disk] = []  # of crashed processes, each to be recovered in time
        self.closed: list[str] = []  # holders that closed in an orderly way, and the store knows
        self._processes = 0
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Raises `Violation`."""
        slack_s = SLIDING.step_s / 2 if self.sliding else 5.0
        offsets_s = [self.rng.uniform(-slack_s, slack_s) for _ in range(self.rng.randint(1, 3))]
        if self.edge:
            offsets_s = [-slack_s, slack_s]
        for number, offset_s in enumerate(offsets_s):
            machine = Machine(f"host{number}", wall_offset_s=offset_s)
            self.start(machine, self.new_disk(machine))
        await asyncio.sleep(1)
        events = list(self._edge_traffic() if self.edge else self._traffic())
        for _ in range(0 if self.edge else self.rng.choice((0, 1, 1, 1, 2, 3, 4))):
            name = self.rng.choices([*FAULTS], weights=[fault.weight for fault in FAULTS.values()])[0]
            events.append((self.rng.uniform(0, SCHEDULE_S), self._fault(name)))
        began_s = asyncio.get_running_loop().time()
        for at_s, event in sorted(events, key=lambda event: event[0]):
            now_s = asyncio.get_running_loop().time() - began_s
            await asyncio.sleep(max(at_s - now_s, 0))
            await event()
            self.inspect()
        await self._end()

    def trace(self, *event: Any) -> None:
        """One thing that happened, in the order in which it did."""
        self.steps += 1
        line = f"{asyncio.get_running_loop().time():10.4f}  {'  '.join(str(part) for part in event)}"
        self.digest.update(line.encode())
        if self._traced:
            self.lines.append(line)

    def inspect(self) -> None:
        """Raises `Violation` if one was noticed anywhere, or is now."""
        if self.model.violation is not None:
            raise Violation(self.model.violation)
        for gateway in self.gateways:
            gateway.inspect()

    def unhandled(self, context: dict[str, Any]) -> None:
        """A task died of something, and nobody looked."""
        fault = context.get("exception")
        if isinstance(fault, (AssertionError, ValueError, TypeError, AttributeError, KeyError)):
            self.model.violation = self.model.violation or f"{type(fault).__name__}: {fault}"

    # What faults act on.

    def new_disk(self, machine: Machine) -> Disk:
        return Disk(machine, Random(f"{self.rng.random()}/{machine.name}"))

    def start(self, machine: Machine, disk: Disk) -> Gateway:
        gateway = self.gateway(machine, disk)
        gateway.start()
        self.gateways.append(gateway)
        return gateway

    def gateway(self, machine: Machine, disk: Disk) -> Gateway:
        self._processes += 1
        return Gateway(
            process=f"p{self._processes}",
            machine=machine,
            disk=disk,
            network=self.network,
            model=self.model,
            trace=self.trace,
            accounts=self.accounts,
            refresh_s=self.rng.choice((5.0, 5.0, 15.0)),
            rng=self.rng,
        )

    @property
    def process_name(self) -> str:
        self._processes += 1
        return f"p{self._processes}"

    def pick(self) -> Gateway | None:
        """A gateway that serves, and knows who it is: of a copy that dies before, nobody can tell that it was one."""
        alive = [gateway for gateway in self.gateways if gateway.serving and not gateway.dead and gateway.awake]
        return self.rng.choice(alive) if alive else None

    def crash(self, gateway: Gateway) -> Disk:
        """Kill a process. Returns the disk that it leaves, of which the model knows what a recovery may cost."""
        holder, disk = gateway.leases.holder, gateway.crash()
        self.trace("crashed", gateway.process, holder)
        return disk

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that takes its time."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)

    def accounts(self, tenant: str, now_s: float) -> tuple[Account, ...]:
        """Those of an answer for this tenant, under the limits of now."""
        return tuple(
            _account(owner, window, limit_bits, now_s)
            for (owner, window), limit_bits in self.limits.items()
            if owner in ("model:m", f"tenant:{tenant}")
        )

    def _limits(self) -> dict[tuple[str, Window], int]:
        scale = self.rng.choice((20_000, 200_000, 2_000_000, 10**9))
        limits = {("model:m", LIFETIME): scale * 4}
        if self.rng.random() < 0.5:
            limits["model:m", self.rng.choice((FIXED, SLIDING))] = scale
        if self.rng.random() < 0.4:
            limits["tenant:a", self.rng.choice((FIXED, SLIDING, LIFETIME))] = scale // 2
        return limits

    def request(self) -> Request:
        """What some client asks for."""
        rng = self.rng
        return Request(
            tenant=rng.choice("ab"),
            pieces=tuple((rng.choice((0.0, 0.05, 0.5, 4.0)), rng.randint(50, 3000)) for _ in range(rng.randint(1, 6))),
            whole_bits=rng.choice((0, 0, 12_000)),
            refund=rng.choice(self.refunds),
            settle_s=rng.choice((0.0, 0.2, 20.0)),
            patience_s=rng.choice((0.015, 0.05, 30.0, 30.0)),
        )

    def _some_request(self, *, times: int) -> Callable[[], Awaitable[None]]:
        request = self.request()

        async def ask() -> None:
            gateway = self.pick()
            if gateway is not None:
                for _ in range(times):
                    gateway.ask(request)

        return ask

    def _traffic(self) -> Iterator[tuple[float, Callable[[], Awaitable[None]]]]:
        for _ in range(ANSWERS):
            yield self.rng.uniform(0, SCHEDULE_S), self._some_request(times=self.rng.choice((1, 1, 1, 5)))

    def _edge_traffic(self) -> Iterator[tuple[float, Callable[[], Awaitable[None]]]]:
        """Everything at once, where the clock is late; and again just before a window has passed, where it is early."""
        first_s = self.rng.uniform(0, 40)
        times_s = [first_s, *(first_s + 46 + self.rng.uniform(0, 4) for _ in range(8))]
        for at_s in times_s:
            request = replace(self.request(), pieces=((0.0, 3000),) * 6, whole_bits=0, patience_s=30.0, refund=0.0)

            async def ask(late: bool = at_s > first_s, request: Request = request) -> None:
                for _ in range(8):
                    self.gateways[late].ask(request)

            yield at_s, ask

    def _fault(self, name: str) -> Callable[[], Awaitable[None]]:
        async def happen() -> None:
            self.faults[name] += 1
            self.trace("FAULT", name)
            await FAULTS[name].act(self)

        return happen

    # The end.

    async def _end(self) -> None:
        """Everything is mended; what crashed is recovered; everybody closes. Then the books must agree."""
        self.trace("mending")
        self.store.away, self.network.loss, self.network.delay_s = False, 0.0, 0.01
        for gateway in self.gateways:
            gateway.machine.go_on()
        await asyncio.sleep(60)
        if self._background:
            await asyncio.wait(self._background, timeout=1200)
            self.model.hold("what was begun ends", all(task.done() for task in self._background), "")
        self.store.thaw()
        self.inspect()
        for disk in self.disks:
            self.start(disk.machine, disk)
        await asyncio.sleep(30)
        self.inspect()
        for gateway in self.gateways:
            if not gateway.dead:
                ended = asyncio.ensure_future(gateway.drain())
                await asyncio.wait([ended], timeout=120)
                self.model.hold("a drain ends", ended.done(), gateway.process)
                self.model.hold("a drain is confirmed", ended.result(), gateway.process)
                self.closed.append(gateway.leases.holder)
        await asyncio.sleep(1)
        self.inspect()
        self._audit()

    def _audit(self) -> None:
        clocks_right = not any(gateway.machine.clocks_moved for gateway in self.gateways)
        lengths_s = {
            f"{owner}/{window.name}": window.duration_s
            for owner, window in self.limits
            if window.sliding and window.duration_s is not None
        }
        self.model.finish(lengths_s=lengths_s, clocks_right=clocks_right)
        if not self.faults["failover"] + self.faults["restore"]:
            self.model.recoveries()
        granted = {lease for gateway in self.gateways for lease in gateway.disk.granted}
        for holder in self.closed:
            lost = self.model.unrecorded_bits(holder, granted)
            for name, bits in self.model.over_bits(holder).items():
                if name.endswith("/ever") and not self.faults["failover"] + self.faults["restore"]:
                    what = "who closes in order costs what left" if self.faults else "nothing is stranded"
                    bound = (lost[name] if self.faults else 0) + self.model.refunded[holder, name]
                    self.model.hold(what, 0 <= bits <= bound, f"{name} of {holder}: {bits} > {bound}")


def _account(owner: str, window: Window, limit_bits: int, now_s: float) -> Account:
    """As policy/accounts.py makes them."""
    period = period_of(window, now_s=now_s)
    number, expires_s = period if period is not None else ("ever", None)
    series = f"{owner}/{window.name}"
    return Account(
        id=f"{series}/{number}",
        owner=owner.split(":", maxsplit=1)[0],
        name=owner.split(":")[1],
        window=window,
        limit_bits=limit_bits,
        expires_s=expires_s,
        step=Step(series=series, number=int(number), steps=window.steps) if window.sliding else None,
    )


@contextmanager
def _counted_tokens(seed: int) -> Iterator[None]:
    """Ids that holders make themselves are the only randomness in the code under simulation."""
    rng, real = Random(f"{seed}/tokens"), secrets.token_hex
    secrets.token_hex = lambda nbytes=16: f"{rng.getrandbits(8 * (nbytes or 16)):0{2 * (nbytes or 16)}x}"[:12]
    try:
        yield
    finally:
        secrets.token_hex = real

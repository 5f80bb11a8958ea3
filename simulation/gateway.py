"""One gateway process, put together as the composition root does it, around answers that only spend."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

from gateway.leases import Leases
from gateway.ledger.fenced import FencedLedger
from gateway.metrics import Metrics
from gateway.parts import fences, tallies
from gateway.ports import AuditFailed, LedgerUnavailable, OverLimit
from gateway.record import (
    Closed,
    Forfeited,
    Leaf,
    LeaseGranted,
    Opened,
    Released,
    Settled,
    Started,
    Stopped,
)
from gateway.recovery import SILENCE_BITS, Estates, known_fences, recover
from gateway.refills import Refills
from gateway.session import Budget, BudgetGone, closing_bits
from gateway.tick import Tick
from policy.budget import Account, Hold
from policy.codelength import parting_bits
from policy.release import Release
from simulation.machine import Disk, Machine
from simulation.model import Model, Violation
from simulation.store import Network, Trace, Wire

TICK_S = 1 / 16
TICKS_MAX = 1 << 16
CLOSING_BITS = closing_bits(ticks_max=TICKS_MAX)
BLOCK_BITS = 4096
ANSWER_S_MAX = 60.0
METRICS = Metrics()  # nobody reads them here, and to make them takes longer than a schedule
PIECE = Release(idle_ticks=0, quanta=1, text="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks for, and what the backend will say."""

    tenant: str
    pieces: tuple[tuple[float, int], ...]  # seconds after the one before, bits
    whole_bits: int  # reserved at the start if it is not streamed; 0 if it is
    refund: float  # the share that settling gives back
    settle_s: float  # how long settling takes
    patience_s: float  # the client goes away after so long


class Answer:
    """What `Tick` and `Refills` know as a session: it spends bits instead of rendering words."""

    def __init__(self, gateway: Gateway, number: int, hold: Hold, accounts: Callable[[], tuple[Account, ...]]) -> None:
        self.number = number
        self.identity = SimpleNamespace(id=f"{gateway.process}.{number}")
        self.metrics = METRICS.of("m", "t")
        self.hold = hold
        self.accounts = accounts
        self.budget = Budget.OPEN
        self.over: OverLimit | None = None
        self.ticks_max = TICKS_MAX
        self.renewed = False
        self.ended = False
        self.holder = gateway.leases.holder
        self.charged_bits = 0
        self.departures: list[tuple[str, list[float]]] = []
        self._gateway = gateway
        self._wanted_bits = 0
        self._last = False
        self._waiter: asyncio.Future[None] | None = None
        self._leaving: tuple[tuple[str, ...], int, float] | None = None
        self._last_tick = gateway.tick.now

    @property
    def ready(self) -> bool:
        waiting = self._waiter is not None and not self._waiter.done()
        return waiting and self.budget is not Budget.SHORT and not self.ended

    async def release(self, bits: int, *, last: bool) -> None:
        """Return when so many bits have left, or fewer if the budget is spent. Raises `BudgetGone`."""
        self._wanted_bits, self._last = bits, last
        self._waiter = asyncio.get_running_loop().create_future()
        self._gateway.tick.enlist(self)  # type: ignore[arg-type]
        try:
            await self._waiter
        finally:
            self._waiter = None

    def collect(self, tick: int, *, at_ms: int) -> tuple[Release, Released] | None:
        if self.hold.void:
            self.fail(BudgetGone())
            return None
        if self.hold.expires_s is not None and at_ms >= self.hold.expires_s * 1000:
            self.budget = Budget.SHORT
            return None
        bits = self._wanted_bits
        needed_bits = bits if self._last else bits + CLOSING_BITS
        if self.hold.left_bits < needed_bits and not (
            self.hold.extend(max(BLOCK_BITS, needed_bits - self.hold.left_bits))
            or self.hold.extend(needed_bits - self.hold.left_bits)
        ):
            if self.budget is Budget.OPEN:
                self.budget = Budget.SHORT
                return None
            bits, self._last = min(bits, self.hold.left_bits), True
        self.hold.charge(bits)
        self.charged_bits += bits
        self.ended = self._last
        self._last_tick = tick
        self._leaving = tuple(a.id for a in self.hold.accounts), bits, asyncio.get_running_loop().time()
        leaf = Released(
            at_ms=at_ms,
            answer=self.identity.id,
            tick=tick,
            idle_ticks=0,
            text_bytes=0,
            charged_bits=bits,
            outcome="stop" if self.ended else None,
        )
        return PIECE, leaf

    def deliver(self, _: Release) -> None:
        """Now it leaves, whether anybody waits for it or not; it was charged a moment ago."""
        assert self._leaving is not None
        accounts, bits, at_s = self._leaving
        self._leaving = None
        self._gateway.trace("left", self.holder, self.identity.id, bits)
        self.departures += self._gateway.model.leave(self.holder, accounts, bits, at_s=at_s)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, fault: BaseException) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(fault)

    def renew(self, hold: Hold) -> None:
        self.hold.close()
        self.hold = hold
        self.over = None
        self.renewed = True

    @property
    def shortfall_bits(self) -> int:
        return max(BLOCK_BITS, self._wanted_bits) + CLOSING_BITS

    def part(self) -> int:
        """The silence since the last release has left, and is charged at the end."""
        bits = self.silence_bits
        if bits:
            self.hold.charge(bits)
            self.charged_bits += bits
            accounts, now_s = [a.id for a in self.hold.accounts], asyncio.get_running_loop().time()
            self.departures += self._gateway.model.leave(self.holder, accounts, bits, at_s=now_s)
        return bits

    @property
    def silence_bits(self) -> int:
        if self.ended or self.hold.void:
            return 0
        idle_ticks = max(self._gateway.tick.now - self._last_tick - 1, 0)
        return min(parting_bits(idle_ticks=idle_ticks), self.hold.left_bits)

    @property
    def undelivered_bits(self) -> int:
        return 0 if self._leaving is None else self._leaving[1]

    def copied(self, gateway: Gateway, hold: Hold) -> Answer:
        """As a copied process has it: nobody waits for it there."""
        copy = Answer(gateway, self.number, hold, self.accounts)
        copy.identity, copy.charged_bits, copy.renewed = self.identity, self.charged_bits, self.renewed
        return copy


class Gateway:
    """A process from its start to its death. Its disk and its machine live longer."""

    def __init__(
        self,
        *,
        process: str,
        machine: Machine,
        disk: Disk,
        network: Network,
        model: Model,
        trace: Trace,
        accounts: Callable[[str, float], tuple[Account, ...]],
        refresh_s: float,
        rng: Random,
    ) -> None:
        self.process = process
        self.machine = machine
        self.disk = disk
        self.model = model
        self.trace = trace
        self.serving = False
        self.dead = False
        self.open: dict[str, Answer] = {}
        self.answers: list[Answer] = []  # all there ever were
        self._network = network
        self._accounts = accounts
        self._refresh_s = refresh_s
        self._rng = rng
        self._copied_from = ""  # the holder that this process was copied from
        self._numbers = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wire = Wire(network, machine, process=process, model=model)
        self._fenced = FencedLedger(self._wire, fences=known_fences(disk.recent()), on_frozen=self._on_frozen)
        self.tick = Tick(
            clock=machine,
            audit=disk,
            metrics=METRICS,
            tick_s=TICK_S,
            usable=self._usable,
            short=self._short,
        )
        self.leases = self._made_leases()
        self._refills = Refills(
            leases=self.leases,
            metrics=METRICS,
            enlist=self.tick.enlist,
            record=self.record,
            clock=machine,
            log=self.log,
        )
        network.store.disks[self.leases.holder].append(disk)

    def _made_leases(self) -> Leases:
        return Leases(ledger=self._fenced, clock=self.machine, record=self.record, flush=self.tick.flush, log=self.log)

    # Its life.

    def start(self) -> None:
        self.spawn(self._run())

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _run(self) -> None:
        while not await self._begun():
            await self.machine.sleep(5.0)
        self.serving = True
        self.spawn(self.tick.run())
        tallied_s = self.machine.monotonic_s()
        while True:
            await self.machine.sleep(self._refresh_s)
            await self._refresh()
            if self.machine.monotonic_s() - tallied_s > 60:
                tallied_s = self.machine.monotonic_s()
                self._tally()

    async def _begun(self) -> bool:
        try:
            await self.leases.register(self.accounts_now())
            found = Estates(self.disk.all()).found
            for holder in found:
                self._network.store.disks[holder].append(self.disk)
            recovery = await recover(ledger=self._fenced, audit=self.disk, clock=self.machine)
            self.model.recovered |= found.keys() - set(recovery.stale)
            self.trace("recovered", self.process, dict(recovery.returned_bits), list(recovery.stale))
            self.record(
                Started(
                    at_ms=self._now_ms(),
                    holder=self.leases.holder,
                    version="",
                    policy="",
                    codes="",
                    boot_id=self.machine.boot_id(),
                )
            )
            await self.tick.flush()
            await self.leases.refresh()
        except LedgerUnavailable as fault:
            self.log("not begun", error=str(fault))
            return False
        return True

    async def drain(self) -> bool:
        """An orderly end. True if the store knows of it."""
        self.serving = False
        while self.open:
            await self.machine.sleep(0.5)
        await self.machine.sleep(self._rng.choice((0.0, 0.0, 3.0)))
        for task in [task for task in self._tasks if task is not asyncio.current_task()]:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        try:
            await self.leases.close()
        except LedgerUnavailable:
            await self.tick.flush()
            self.die()
            return False
        self.record(Stopped(at_ms=self._now_ms(), holder=self.leases.holder))
        await self.tick.flush()
        self.die()
        return True

    def die(self) -> None:
        """Nothing runs any more. What it sent before is on its way."""
        self.dead = self._wire.cut = True
        self.serving = False
        for task in self._tasks:
            task.cancel()

    def crash(self) -> Disk:
        """Die, and leave a disk. The silence of what is on the record as open has left, and nobody charges it."""
        disk = self.disk.crash()
        holder, now_s = self.leases.holder, asyncio.get_running_loop().time()
        estate = Estates(disk.all()).found.get(holder)
        wasted: Counter[str] = Counter()
        for name, accounts in estate.silent.items() if estate is not None else ():
            wasted.update(dict.fromkeys(accounts, SILENCE_BITS))
            if name in self.open:
                self.model.leave(holder, accounts, self.open[name].silence_bits, at_s=now_s)
        for answer in self.answers:
            wasted.update(dict.fromkeys((a.id for a in answer.hold.accounts), answer.undelivered_bits))
        self.model.crashed[holder] = wasted, frozenset(disk.granted)
        self.die()
        return disk

    async def copied(self, process: str, machine: Machine, disk: Disk) -> Gateway | None:
        """A copy of this process, as it was now, on a machine and a disk that were copied with it. None if it is too busy."""
        for _ in range(20):
            if not self._busy():
                break
            await asyncio.sleep(0.05)
        else:
            return None
        copy = Gateway(
            process=process,
            machine=machine,
            disk=disk,
            network=self._network,
            model=self.model,
            trace=self.trace,
            accounts=self._accounts,
            refresh_s=self._refresh_s,
            rng=self._rng,
        )
        loop = asyncio.get_running_loop()
        memo: dict[int, Any] = {
            id(self): copy,
            id(self.machine): machine,
            id(self.tick): copy.tick,
            id(self._wire): copy._wire,
            id(loop): loop,
        }
        memo |= dict.fromkeys(map(id, self._store_tasks()))
        holds = {name: answer.hold for name, answer in self.open.items()}
        fenced, leases, holds = deepcopy((self._fenced, self.leases, holds), memo)
        copy._copied_from = self.leases.holder
        copy._fenced, copy.leases = fenced, leases
        copy._refills._leases = leases
        copy._wire.copied(self._wire)
        copy.open = {name: answer.copied(copy, holds[name]) for name, answer in self.open.items()}
        return copy

    def wake(self) -> None:
        """A copy goes on where the original was."""
        self.serving = True
        self.spawn(self.tick.run())
        self.spawn(self._keep())
        for answer in list(self.open.values()):
            self.spawn(self._carry(answer, ((0.1, 500), (0.1, 500)), self._rng.random(), 1.0))

    async def _keep(self) -> None:
        while True:
            await self.machine.sleep(self._refresh_s)
            await self._refresh()

    @property
    def awake(self) -> bool:
        """False for a copy that has not looked at its clocks: it believes that it has what the original has."""
        return self.leases.holder != self._copied_from

    async def _refresh(self) -> None:
        try:
            await self.leases.refresh()
            await self._fenced.check()
        except LedgerUnavailable as fault:
            self.log("refresh", error=str(fault))

    def _busy(self) -> bool:
        return (
            self.leases._refilling.locked()
            or not all(task.done() for task in self._store_tasks())
            or bool(self.tick._entries)
            or self.disk.busy
            or any(answer.undelivered_bits for answer in self.open.values())
        )

    def _store_tasks(self) -> list[asyncio.Task[Any]]:
        return [task for task in vars(self.leases).values() if isinstance(task, asyncio.Task)]

    # What it does.

    def ask(self, request: Request) -> None:
        if self.serving:
            self.spawn(self._serve(request))

    async def _serve(self, request: Request) -> None:
        await self.machine.gate()
        least_bits = CLOSING_BITS + 128
        most_bits = max(request.whole_bits, least_bits + BLOCK_BITS)
        try:
            async with asyncio.timeout(request.patience_s):
                hold = await self.leases.reserve(
                    self._accounts(request.tenant, self.machine.wall_s()), least_bits=least_bits, most_bits=most_bits
                )
        except LedgerUnavailable as fault:
            self.log("unavailable", error=str(fault))
            return
        except TimeoutError:
            self.trace("impatient", self.process)
            return
        if isinstance(hold, OverLimit):
            self.trace("refused", self.process, hold.account)
            return
        self._numbers += 1
        answer = Answer(self, self._numbers, hold, lambda: self._accounts(request.tenant, self.machine.wall_s()))
        self.open[answer.identity.id] = answer
        self.answers.append(answer)
        self.record(
            Opened(
                at_ms=self._now_ms(),
                answer=answer.identity.id,
                holder=self.leases.holder,
                accounts=tuple(account.id for account in hold.accounts),
                tenant=request.tenant,
                model="m",
                route="",
                seed=0,
                request_bytes=0,
            )
        )
        await self._carry(answer, request.pieces, request.refund, request.settle_s)

    async def _carry(self, answer: Answer, pieces: Sequence[tuple[float, int]], refund: float, settle_s: float) -> None:
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                for number, (gap_s, bits) in enumerate(pieces, 1):
                    await self.machine.sleep(gap_s)
                    await answer.release(bits, last=number == len(pieces))
                    if answer.ended:
                        break
        except (BudgetGone, TimeoutError):
            await self.machine.gate()  # a timer fires on a stopped machine too, but nobody hears it
        finally:
            if not self.dead:
                self._close(answer)
        await self.machine.sleep(settle_s)
        self._settle(answer, int(answer.charged_bits * refund))

    def _close(self, answer: Answer) -> None:
        bits = answer.part()
        answer.hold.close()
        del self.open[answer.identity.id]
        self.record(
            Closed(
                at_ms=self._now_ms(),
                answer=answer.identity.id,
                outcome=None,
                parting_bits=bits,
                text_bytes=0,
                charged_bits=answer.charged_bits,
                spent_bits={a.id: self.leases.purse.spent_bits(a.id) for a in answer.hold.accounts},
            )
        )

    def _settle(self, answer: Answer, bits: int) -> None:
        if answer.hold.void or answer.renewed or answer.undelivered_bits or not bits:
            return
        answer.hold.refund(bits)
        self.model.refund(answer.holder, answer.departures, bits)
        answer.charged_bits -= bits
        self.trace("settled", answer.identity.id, bits)
        self.record(
            Settled(
                at_ms=self._now_ms(),
                answer=answer.identity.id,
                code="",
                charged_bits=answer.charged_bits,
                refunded_bits=bits,
            )
        )

    async def reload(self) -> None:
        try:
            await self.leases.register(self.accounts_now())
        except LedgerUnavailable as fault:
            self.log("reload", error=str(fault))

    def inspect(self) -> None:
        """Hold what is in the purse against what the model knows."""
        if self.dead or not self.serving or not self.awake:
            return
        for stock in self.leases._stocks.values():
            purse, name = self.leases.purse, stock.account.id
            self.model.purse(
                self.leases.holder,
                stock.account,
                balance_bits=purse.balance_bits(name),
                reserved_bits=purse.reserved_bits(name),
            )

    def accounts_now(self) -> list[Account]:
        found = {account.id: account for tenant in "ab" for account in self._accounts(tenant, self.machine.wall_s())}
        return list(found.values())

    def log(self, message: str, **fields: Any) -> None:
        self.trace("log", self.process, message, fields)

    def record(self, leaf: Leaf) -> None:
        if isinstance(leaf, LeaseGranted):
            self.trace("took", self.process, leaf.lease)
            if leaf.holder == self.leases.holder:
                self.model.uses(self.process, leaf.bits)
        elif isinstance(leaf, Forfeited):
            self._network.store.disks[leaf.successor].append(self.disk)
            self.trace("forfeited", self.process, leaf.holder, leaf.successor, leaf.cause)
        self.tick.record(leaf)

    def _tally(self) -> None:
        answers: dict[tuple[str, ...], list[str]] = {}
        for name, answer in self.open.items():
            if not answer.hold.void:
                answers.setdefault(tuple(a.id for a in answer.hold.accounts), []).append(name)
        at_ms = self._now_ms()
        parts = tallies(
            at_ms=at_ms,
            holder=self.leases.holder,
            unspent_bits=self.leases.unspent_bits(),
            leases=self.leases.open_leases(),
            answers=answers.items(),
        )
        for leaf in (*fences(self._fenced.fences, at_ms=at_ms), *parts):
            self.record(leaf)

    def _on_frozen(self, seen: Any, shown: Any) -> None:
        self.trace("noticed", self.process, dict(seen), dict(shown))

    def _usable(self) -> bool:
        return self.leases.usable()

    def _short(self, answer: Any) -> None:
        self._refills.start(answer)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or self.dead:
            return
        fault = task.exception()
        if fault is not None and not isinstance(fault, (Violation, AuditFailed)):
            self.model.violation = self.model.violation or f"{type(fault).__name__}: {fault}"
            self.trace("died of", self.process, repr(fault))

    def _now_ms(self) -> int:
        return int(self.machine.wall_s() * 1000)

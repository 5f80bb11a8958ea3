"""The composition root of `weir serve --workers N`: the one process of a host that has the ledger and the audit log open.

Workers serve the clients. The keeper keeps what they share: it takes their records and their questions to the ledger,
replaces those that die after giving back what provably did not leave, and speaks for all of them on the admin port.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from prometheus_client import Metric

from gateway import log
from gateway.audit.batch import Batch
from gateway.audit.log import SignedLog
from gateway.audit.witnessed import Witnessed
from gateway.claims import Claims
from gateway.clock import SystemClock
from gateway.config import Config, ConfigError, load
from gateway.edge.admin import AdminServer
from gateway.edge.strict import assert_strict
from gateway.foundation import (
    accounts_in_use,
    codes_digest,
    cosignatures,
    licensed,
    log_root,
    meters_of,
    settle_past,
    unchangeable,
)
from gateway.guard import guarded, keep_guard
from gateway.holdings import Holdings, together
from gateway.host.channel import Answers
from gateway.host.crew import Crew, Worker
from gateway.host.orders import (
    Count,
    Counted,
    Done,
    Hello,
    Hold,
    Ready,
    Serving,
    Take,
    Together,
    Unready,
    Welcome,
)
from gateway.host.remote import answers as ports_over_channel
from gateway.host.summing import Values, lasting, summed
from gateway.listening import bound, port_of, site_on
from gateway.metrics import Metrics, Registry
from gateway.overview import Overviews
from gateway.parts import policy_loaded
from gateway.ports import AccountLimit, AuditFailed, Clock, LedgerUnavailable
from gateway.record import Entry, Leaf
from gateway.serving import serving
from gateway.signals import handle_signals
from gateway.status import Status
from gateway.stores import open_ledger
from gateway.tenure import Tenure
from policy.limits import DRAIN_S_MAX, WORKER_COLLECT_S
from policy.rules import Address, UnixAddress

LISTEN_BACKLOG = 1024  # of a Unix socket, which all workers inherit
RECOVERY_RETRY_S = 5.0  # a worker can be granted nothing while the ledger is away, so its replacement may wait
DRAIN_MARGIN_S = 10.0  # for what workers do after their last answer


@dataclass(frozen=True, slots=True)
class _Everybody:
    """A registry of all processes, those that ended included."""

    own: Registry
    workers: Sequence[Values]
    ended: Values

    def collect(self) -> Iterable[Metric]:
        """Families as they stand."""
        return summed(self.own, workers=self.workers, ended=self.ended)


class Keeper:
    """A host's gateway of many processes. `run` returns when all have drained."""

    def __init__(self, *, path: Path, config: Config, workers: int) -> None:
        self._path = path
        self._config = config
        self.metrics = Metrics()
        self.clock: Clock = SystemClock()
        self.serving = serving(config.policy, parameters=config.parameters)
        self.codes = codes_digest(config.policy, meters_of(config.policy))
        self._public, self._port = _public(config.policy.listen)
        self._audit = SignedLog(config.policy.audit, clock=self.clock, metrics=self.metrics)
        self._cosignatures = cosignatures(config, audit=self._audit, clock=self.clock, metrics=self.metrics)
        self._recording: set[asyncio.Task[None]] = set()
        store = open_ledger(config.policy, codes=self.codes, clock=self.clock)
        self.ledger = guarded(store, audit=self._audit, clock=self.clock, record=self._record)
        self._crew = Crew(
            count=workers,
            listener=self._public if self._public.family == socket.AF_UNIX else None,
            answers=self._answers,
            died=self._bury,
            changed=self.metrics.workers.set,
            clock=self.clock,
        )
        self._ended: Values = lasting(self.metrics.registry)
        self._recovering = asyncio.Lock()  # each reads the same part of the log
        self._reloading = asyncio.Lock()
        self._stop = asyncio.Event()
        self._draining = False
        self._failed: AuditFailed | None = None
        self.status = Status(
            serving=lambda: self.serving, held=self._held, ledger=self.ledger, clock=self.clock, metrics=self.metrics
        )
        self.claims = Claims(
            serving=lambda: self.serving,
            ledger=self.ledger,
            held=self._held,
            registry=self._everybody,
            clock=self.clock,
            codes=self.codes,
        )
        self.tenure = Tenure(
            config.policy, clock=self.clock, metrics=self.metrics, changed=self._licence_changed, log=log.problem
        )
        self.witnessed = Witnessed(
            config.policy.audit,
            origin=self._audit.origin,
            quorum=config.quorum,
            clock=self.clock,
            metrics=self.metrics,
            lapsed=lambda: None,  # workers see it for themselves
            log=log.problem,
        )
        self._overviews = Overviews(
            standing=self.status.standing,
            registry=self._everybody,
            unready=self._unready,
            log_root=lambda: log_root(self._audit),
            clock=self.clock,
        )
        self._admin = AdminServer(
            registry=self._everybody,
            status=self.status.snapshot,
            claims=self.claims.document,
            unready=self._unready,
            overview=self._overviews.now,
        )

    async def run(self) -> None:
        """Serve until stopped, then drain. Raises `AuditFailed` when nothing can be recorded: by then no worker lives."""
        assert_strict()
        handle_signals(stop=self.stop, reload=self.reload)
        await self._begin()
        watching = asyncio.create_task(self.tenure.run())
        watching.add_done_callback(lambda _: self._stop.set())
        admin = bound(self._config.policy.admin)
        site = await site_on(self._admin.server(), admin)
        crew = asyncio.create_task(self._crew.run())
        crew.add_done_callback(lambda _: self._stop.set())
        collecting = asyncio.create_task(self._collect_often())
        remembering = asyncio.create_task(self._overviews.run())
        signing = asyncio.create_task(self._sign())
        asking = asyncio.create_task(self._ask_witnesses())
        looking = asyncio.create_task(self.witnessed.run())
        guarding = asyncio.create_task(
            keep_guard(
                self.ledger,
                accounts=lambda: accounts_in_use(self.serving, self.clock),
                clock=self.clock,
                metrics=self.metrics,
                record=self._record,
            )
        )
        announcing = asyncio.create_task(self._announce(port_of(admin)))
        await self._stop.wait()
        announcing.cancel()
        await self._drain(crew)
        collecting.cancel()
        remembering.cancel()
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching  # if it failed, so did the keeper
        guarding.cancel()
        looking.cancel()
        asking.cancel()
        signing.cancel()
        await asyncio.wait([asking, signing])  # it may be writing, and the last signature must come after that
        await asyncio.gather(*self._recording)
        await site._runner.cleanup()  # noqa: SLF001  aiohttp gives a site no public way to its runner
        await self.ledger.close()
        await self._audit.close()
        log.event("stopped")

    def stop(self) -> None:
        """Begin to drain; if that is under way already, end what is still open."""
        if self._stop.is_set():
            log.event("hurrying")
            self._crew.kill()
        self._stop.set()

    async def reload(self) -> None:
        """Take the policy file again, and have every worker take it. With a mistake the old policy stays in force."""
        async with self._reloading:
            try:
                config = load(self._path)
                fixed = unchangeable(self.serving.policy, config.policy)
                if fixed:
                    raise ConfigError(f"{self._path}: changing {', '.join(fixed)} takes a restart")
                await licensed(self.tenure, config.policy)
                raised = await self._register(config)
            except (ConfigError, LedgerUnavailable) as mistakes:
                self.metrics.reloads.labels("refused").inc()
                self.metrics.reload_ok.set(0)
                log.problem("policy reload refused", mistakes=str(mistakes).splitlines())
                return
            loaded = policy_loaded(config.policy.digest, raised=raised, at_ms=self._now_ms())
            await self._append(loaded)
            self._take(config)
            await self.tenure.take(config.policy)
            await asyncio.gather(*(self._bring_up_to_date(worker) for worker in self._crew.serving))
            self.metrics.reloads.labels("taken").inc()
            log.event("policy reloaded", policy=config.policy.digest, raised=list(raised))

    def _record(self, leaf: Leaf) -> None:
        task = asyncio.create_task(self._append(leaf))
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    async def _append(self, leaf: Leaf) -> None:
        try:
            await self._audit.append([Entry(leaf)])
        except AuditFailed as fault:
            self._fail(fault)

    async def _sign(self) -> None:
        try:
            await self._audit.run()
        except AuditFailed as fault:
            self._fail(fault)

    async def _ask_witnesses(self) -> None:
        if self._cosignatures is None:
            return
        try:
            await self._cosignatures.run()
        except AuditFailed as fault:
            self._fail(fault)

    def _fail(self, fault: AuditFailed) -> None:
        self._failed = fault
        self._crew.kill()
        self._stop.set()

    async def append_batch(self, batch: Batch) -> None:
        """The audit log, as workers have it. If it fails all end here, before any of them can go on."""
        try:
            await self._audit.append_batch(batch)
        except AuditFailed as fault:
            self._fail(fault)
            raise

    async def _begin(self) -> None:
        await settle_past(ledger=self.ledger, audit=self._audit, clock=self.clock)
        await self._register(self._config)
        self._take(self._config)
        await self.tenure.look()
        await self.witnessed.look()

    def _take(self, config: Config) -> None:
        """Workers that begin from now on begin with this policy."""
        self._config = config
        self.serving = serving(config.policy, parameters=config.parameters)
        self.metrics.took(policy=config.policy.digest, codes=self.codes, wall_s=self.clock.wall_s())

    async def _register(self, config: Config) -> Sequence[str]:
        accounts = serving(config.policy, parameters=config.parameters).accounts.all(now_s=self.clock.wall_s())
        limits = [AccountLimit(account=a.id, limit_bits=a.limit_bits, step=a.step) for a in accounts]
        return await self.ledger.register(limits)

    async def _announce(self, admin_port: int) -> None:
        await self._crew.all_serve()
        log.event("serving", port=self._port, admin_port=admin_port, policy=self.serving.policy.digest)

    async def _drain(self, crew: asyncio.Task[None]) -> None:
        self._draining = True
        self._public.close()
        if self._failed is None:
            log.event("draining", workers=len(self._crew.serving))
        self._crew.drain()
        await asyncio.wait([crew], timeout=DRAIN_S_MAX + DRAIN_MARGIN_S)
        self._crew.kill()
        if self._failed is not None:
            raise self._failed
        await crew

    # What workers ask.

    def _answers(self, worker: Worker) -> Answers:
        async def hello(_: Hello) -> Welcome:
            config = self._config
            worker.policy = config.policy.digest
            return Welcome(
                path=str(self._path),
                text=config.text,
                policy=worker.policy,
                codes=self.codes,
                origin=self._audit.origin,
                port=self._port,
            )

        async def serves(_: Serving) -> Done:
            self._crew.serves(worker)
            await self._bring_up_to_date(worker)
            return Done()

        async def all_hold(_: Together) -> Holdings:
            return await self._held()

        ports = ports_over_channel(ledger=self.ledger, audit=self, holds=worker.holders.add)
        return {**ports, Hello: hello, Serving: serves, Together: all_hold}

    async def _bring_up_to_date(self, worker: Worker) -> None:
        while worker.policy != self._config.policy.digest:
            config = self._config
            worker.policy = config.policy.digest
            await self._crew.tell(worker, Take(text=config.text, policy=config.policy.digest))

    async def _bury(self, worker: Worker) -> None:
        """Keep its counters, and give back what provably did not leave. Without a ledger to give it to, wait for it."""
        self._ended = lasting(self.metrics.registry, self._ended, worker.values)
        if not self._draining:
            self.metrics.worker_restarts.inc()
        if worker.process.returncode == 0:
            return  # it drained, and gave back what it held itself
        while worker.holders and self._failed is None:
            try:
                async with self._recovering:
                    await settle_past(ledger=self.ledger, audit=self._audit, clock=self.clock, holders=worker.holders)
            except LedgerUnavailable as fault:
                self.metrics.ledger_errors.inc()
                log.problem("a dead worker's leases cannot be given back yet", worker=worker.number, error=str(fault))
                if self._draining:
                    return  # the next start does it
                await asyncio.sleep(RECOVERY_RETRY_S)
            else:
                return

    # What is shown of all.

    async def _held(self) -> Holdings:
        """A worker that does not answer in time holds nothing that we know of, so its bits count as used."""
        return together([held for _, held in await self._crew.ask_all(Hold(), Holdings)])

    async def _everybody(self) -> Registry:
        await self._collect()
        workers = [worker.values for worker in self._crew.workers.values()]
        return _Everybody(self.metrics.registry, workers, self._ended)

    async def _collect(self) -> None:
        for worker, counted in await self._crew.ask_all(Count(), Counted):
            worker.values = counted.values

    async def _collect_often(self) -> None:
        while True:
            await asyncio.sleep(WORKER_COLLECT_S)
            await self._collect()

    async def _unready(self) -> str | None:
        if self._draining:
            return "draining"
        if (denied := self.tenure.denied) is not None:
            return f"no operating licence is in force: {denied.cause.value}: {denied.detail}"
        if (objection := self.witnessed.objection) is not None:
            return objection
        if not await self.status.ledger_answers():
            return "the ledger does not answer"
        reasons = [answer.reason for _, answer in await self._crew.ask_all(Ready(), Unready)]
        if None in reasons:
            return None
        return reasons[0] if reasons else "no worker serves"

    async def _licence_changed(self, leaf: Leaf) -> None:
        """Workers see it for themselves; the record of it is made once."""
        await self._append(leaf)

    def _now_ms(self) -> int:
        return int(self.clock.wall_s() * 1000)


def _public(address: Address) -> tuple[socket.socket, int]:
    """What keeps the public address for us while workers come and go, and its port. A port in use is refused."""
    first = bound(address)
    if isinstance(address, UnixAddress):
        first.listen(LISTEN_BACKLOG)
        return first, 0
    # Bound for us alone first: with SO_REUSEPORT two gateways would share a port without a word.
    port = port_of(first)
    first.close()
    return bound(replace(address, port=port), shared=True), port

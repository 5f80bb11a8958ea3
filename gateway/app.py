"""The composition root: names the adapters, and the order in which they start and stop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from aiohttp import web

from gateway import log
from gateway.audit.cosignatures import Cosignatures
from gateway.audit.log import SignedLog
from gateway.audit.witnessed import Witnessed
from gateway.claims import Claims
from gateway.clock import SystemClock
from gateway.config import Config, ConfigError, load
from gateway.edge.admin import AdminServer
from gateway.edge.public import PublicServer
from gateway.edge.scorer import HttpScorer
from gateway.edge.strict import assert_strict
from gateway.edge.upstream import HttpUpstream
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
from gateway.holdings import Holdings, in_purse
from gateway.leases import Leases
from gateway.ledger.fenced import FencedLedger
from gateway.listening import bound, port_of, site_on
from gateway.metrics import Metrics, Registry
from gateway.overview import Overviews
from gateway.parts import policy_loaded, tallies
from gateway.ports import AuditFailed, AuditLog, Clock, Ledger, LedgerUnavailable, Upstream
from gateway.record import Leaf, LicenceLapsed, Refusals, Started, Stopped
from gateway.refills import Refills
from gateway.relay import Relay
from gateway.serving import serving
from gateway.session import Session
from gateway.settle import Settler
from gateway.signals import handle_signals
from gateway.status import Status
from gateway.stores import open_ledger
from gateway.tenure import Tenure
from gateway.tick import Tick
from gateway.wire.dialect import Identity
from policy.limits import DRAIN_S_MAX, LEASE_REFRESH_S, TALLY_S
from policy.release import Outcome
from policy.rules import Policy

HOUSEKEEPING_S = 10.0  # refusals are summarised: a flood of them must not flood the log
ID_BYTES = 12  # 96 bits: no two answers of one gateway share an id
SEED_BYTES = 8  # less one bit, to fit a signed 64-bit field of any engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a worker has from its keeper, and a gateway by itself makes of its own."""

    ledger: Ledger
    audit: AuditLog
    origin: str  # the audit log's name
    held: Callable[[], Awaitable[Holdings]]  # by all workers
    listener: socket.socket  # of the public address, bound
    serving: Callable[[], Awaitable[None]]  # told when clients can connect


class Gateway:
    """One process that serves, from policy to sockets: a whole gateway, or one worker of a keeper."""

    def __init__(self, *, config: Config, path: Path | None = None, kept: Kept | None = None) -> None:
        self._path = path
        self._kept = kept
        self._witnesses = config.quorum.digest if config.quorum is not None else ""
        policy = config.policy
        self.metrics = Metrics()
        self.clock: Clock = SystemClock()
        meters = meters_of(policy)
        self.codes = codes_digest(policy, meters)
        self._signed: SignedLog | None = None
        self._cosignatures: Cosignatures | None = None
        self._audit: AuditLog
        if kept is not None:
            self._audit, origin = kept.audit, kept.origin
        else:
            self._audit = self._signed = SignedLog(policy.audit, clock=self.clock, metrics=self.metrics)
            origin = self._signed.origin
            self._cosignatures = cosignatures(config, audit=self._signed, clock=self.clock, metrics=self.metrics)
        self.tick = Tick(
            clock=self.clock,
            audit=self._audit,
            metrics=self.metrics,
            tick_s=policy.release.tick_s,
            usable=self._usable,
            short=self._refill,
        )
        self._guard: FencedLedger | None = None
        self.ledger: Ledger
        if kept is not None:
            self.ledger = kept.ledger
        else:
            store = open_ledger(policy, codes=self.codes, clock=self.clock)
            self.ledger = self._guard = guarded(store, audit=self._audit, clock=self.clock, record=self.tick.record)
        self.leases = Leases(
            ledger=self.ledger, clock=self.clock, record=self.tick.record, flush=self.tick.flush, log=log.problem
        )
        self.metrics.leases_open.set_function(lambda: len(self.leases.open_leases()))
        self.metrics.leases_until.set_function(lambda: self.clock.wall_s() + self.leases.left_s())
        self._refills = Refills(
            leases=self.leases,
            metrics=self.metrics,
            enlist=self.tick.enlist,
            record=self.tick.record,
            clock=self.clock,
            log=log.problem,
        )
        self._scorer = HttpScorer(policy.scorer) if policy.scorer is not None else None
        self.settler = Settler(
            meters=meters, scorer=self._scorer, clock=self.clock, metrics=self.metrics, record=self.tick.record
        )
        self.relay = Relay(
            leases=self.leases,
            tick=self.tick,
            settler=self.settler,
            upstreams={},
            counters=config.counters,
            serving=lambda: self.serving,
            refused=lambda: self.tenure.refused or self.witnessed.refused,
            clock=self.clock,
            metrics=self.metrics,
            log=log.problem,
        )
        self.tenure = Tenure(
            policy, clock=self.clock, metrics=self.metrics, changed=self._licence_changed, log=log.problem
        )
        self.witnessed = Witnessed(
            policy.audit,
            origin=origin,
            quorum=config.quorum,
            clock=self.clock,
            metrics=self.metrics,
            lapsed=lambda: self.relay.cut(Outcome.UNWITNESSED),
            log=log.problem,
        )
        self.serving = serving(policy, parameters=config.parameters)
        self.public_port = 0
        self.admin_port = 0
        self._started_s = int(self.clock.wall_s())
        self._stop = asyncio.Event()
        self._retired: list[Upstream] = []
        self.status = Status(
            serving=lambda: self.serving,
            held=kept.held if kept is not None else self._held,
            ledger=self.ledger,
            clock=self.clock,
            metrics=self.metrics,
        )
        self.claims = Claims(
            serving=lambda: self.serving,
            ledger=self.ledger,
            held=self._held,
            registry=self._registry,
            clock=self.clock,
            codes=self.codes,
        )
        self.public = PublicServer(
            relay=self.relay,
            serving=lambda: self.serving,
            budget=self.status.budget,
            identify=self._identify,
            clock=self.clock,
            metrics=self.metrics,
            started_s=self._started_s,
        )
        self._overviews = Overviews(
            standing=self.status.standing,
            registry=self._registry,
            unready=self.unready,
            log_root=lambda: log_root(self._signed),
            clock=self.clock,
        )
        self._admin = AdminServer(
            registry=self._registry,
            status=self.status.snapshot,
            claims=self.claims.document,
            unready=self.unready,
            overview=self._overviews.now,
        )

    async def run(self) -> None:
        """Serve until stopped, then drain. Raises `AuditFailed` as soon as something cannot be recorded."""
        assert_strict()
        if self._kept is None:
            handle_signals(stop=self.stop, reload=self.reload)
        await self._begin()
        core = asyncio.create_task(self._core())
        core.add_done_callback(lambda _: self._stop.set())
        sites = await self._listen()
        if self._kept is None:
            log.event("serving", port=self.public_port, admin_port=self.admin_port, policy=self.serving.policy.digest)
        else:
            await self._kept.serving()
        await self._stop.wait()
        await self._drain(sites, core)

    def stop(self) -> None:
        """Begin to drain."""
        self._stop.set()

    async def reload(self) -> None:
        """Take the policy file again. Returns what happened, in words; on a mistake the old policy stays in force."""
        assert self._path is not None
        try:
            config = await asyncio.to_thread(load, self._path)
            fixed = unchangeable(self.serving.policy, config.policy)
            if fixed:
                raise ConfigError(f"{self._path}: changing {', '.join(fixed)} takes a restart")
            await licensed(self.tenure, config.policy)
            raised = await self.take(config)
        except ConfigError as mistakes:
            self.metrics.reloads.labels("refused").inc()
            self.metrics.reload_ok.set(0)
            log.problem("policy reload refused", mistakes=str(mistakes).splitlines())
            return
        self.metrics.reloads.labels("taken").inc()
        log.event("policy reloaded", policy=config.policy.digest, raised=raised)

    def holdings(self) -> Holdings:
        """What this process holds of the accounts."""
        return in_purse(self.leases.purse, answers=self.relay.in_flight)

    async def unready(self) -> str | None:
        """Why this gateway should not be sent requests; None if it should."""
        if self.public.draining:
            return "draining"
        if (denied := self.tenure.denied) is not None:
            return f"no operating licence is in force: {denied.cause.value}: {denied.detail}"
        if (objection := self.witnessed.objection) is not None:
            return objection
        if not await self.status.ledger_answers():
            return "the ledger does not answer"
        for name, upstream in self.relay.upstreams.items():
            if not await upstream.reachable():
                return f"the backend of {name} does not answer"
        return None

    async def _begin(self) -> None:
        await self.leases.register(self.serving.accounts.all(now_s=self.clock.wall_s()))
        if self._kept is None:
            await settle_past(ledger=self.ledger, audit=self._audit, clock=self.clock)
        self.tick.record(
            Started(
                at_ms=self._now_ms(),
                holder=self.leases.holder,
                version=version("weir"),
                policy=self.serving.policy.digest,
                codes=self.codes,
                boot_id=self.clock.boot_id(),
                witnesses=self._witnesses,
            )
        )
        await (
            self.tick.flush()
        )  # before the first grant: of a holder that is not on the record nothing can be recovered
        await self.leases.refresh()
        await self._connect(self.serving.policy)
        await self.tenure.look()
        await self.witnessed.look()
        self.metrics.took(policy=self.serving.policy.digest, codes=self.codes, wall_s=self.clock.wall_s())

    async def take(self, config: Config) -> Sequence[str]:
        """From here on this policy is in force. Returns the accounts whose limit was raised."""
        fresh = serving(config.policy, parameters=config.parameters)
        raised = await self.leases.register(fresh.accounts.all(now_s=self.clock.wall_s()))
        await self._connect(config.policy)
        self.relay.counters = config.counters
        await self.tenure.take(config.policy)  # first: what no licence covers must not serve, not even for a moment
        self.serving = fresh
        self.tick.record(policy_loaded(config.policy.digest, raised=raised, at_ms=self._now_ms()))
        self.metrics.took(policy=config.policy.digest, codes=self.codes, wall_s=self.clock.wall_s())
        return list(raised)

    async def _connect(self, policy: Policy) -> None:
        """One client a model. Clients of models whose address stayed are kept, with their open answers."""
        before = dict(self.relay.upstreams)
        upstreams = {}
        for model in policy.models.values():
            old = self.serving.policy.models.get(model.name)
            if (
                model.name in before
                and old is not None
                and (old.upstream, old.timeouts) == (model.upstream, model.timeouts)
            ):
                upstreams[model.name] = before.pop(model.name)
            else:
                upstreams[model.name] = HttpUpstream(address=model.upstream, timeouts=model.timeouts)
        self._retired += before.values()  # they may have answers open; closed with the process
        self.relay.upstreams = upstreams

    async def _listen(self) -> Sequence[web.BaseSite]:
        policy = self.serving.policy
        listener = self._kept.listener if self._kept is not None else bound(policy.listen)
        sites = [await site_on(self.public.server(), listener)]
        self.public_port = port_of(listener)
        if self._kept is None:
            listener = bound(policy.admin)
            sites.append(await site_on(self._admin.server(), listener))
            self.admin_port = port_of(listener)
        return sites

    async def _core(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.tick.run())
            tasks.create_task(self.settler.run())
            tasks.create_task(self.settler.score())
            tasks.create_task(self._keep_leases())
            tasks.create_task(self._keep_house())
            tasks.create_task(self.tenure.run())
            tasks.create_task(self.witnessed.run())
            if self._signed is not None:
                tasks.create_task(self._signed.run())
                tasks.create_task(self._overviews.run())
            if self._cosignatures is not None:
                tasks.create_task(self._cosignatures.run())
            if self._guard is not None:
                tasks.create_task(
                    keep_guard(
                        self._guard,
                        accounts=lambda: accounts_in_use(self.serving, self.clock),
                        clock=self.clock,
                        metrics=self.metrics,
                        record=self.tick.record,
                    )
                )

    async def _drain(self, sites: Sequence[web.BaseSite], core: asyncio.Task[None]) -> None:
        """Refuse new answers, let open ones finish, give the leases back, close the log."""
        public, *admin = sites
        self.public.draining = True
        if core.done():
            # Nothing can be recorded, so nothing may leave: not even what clients are waiting for.
            await _ended(core)
        log.event("draining", in_flight=self.relay.in_flight)
        await public.stop()
        deadline_s = self.clock.monotonic_s() + DRAIN_S_MAX
        while self.relay.in_flight and self.clock.monotonic_s() < deadline_s and not core.done():  # noqa: ASYNC110  polls
            await asyncio.sleep(0.05)
        await public._runner.cleanup()  # noqa: SLF001  aiohttp gives a site no public way to its runner
        core.cancel()
        await _ended(core)
        try:
            await self.leases.close()
            self.tick.record(Stopped(at_ms=self._now_ms(), holder=self.leases.holder))
        except LedgerUnavailable as fault:
            # Without `Stopped` the next start reads in the log what did not leave, and tells the ledger.
            log.problem("ledger unavailable; what is left of the leases goes back at the next start", error=str(fault))
        await self.tick.flush()
        for site in admin:
            await site._runner.cleanup()  # noqa: SLF001
        for upstream in (*self.relay.upstreams.values(), *self._retired):
            assert isinstance(upstream, HttpUpstream)
            await upstream.close()
        if self._scorer is not None:
            await self._scorer.close()
        await self.ledger.close()
        await self._audit.close()
        log.event("stopped")

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(LEASE_REFRESH_S)
            try:
                await self.leases.refresh()
            except LedgerUnavailable as fault:
                self.metrics.ledger_errors.inc()
                log.problem("ledger unavailable", error=str(fault))

    async def _keep_house(self) -> None:
        before: dict[str, int] = {}
        tallied_s = self.clock.monotonic_s()
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            now = self.metrics.refused()
            counts = {reason: count - before.get(reason, 0) for reason, count in now.items()}
            before = now
            if any(counts.values()):
                self.tick.record(
                    Refusals(at_ms=self._now_ms(), counts={reason: n for reason, n in counts.items() if n})
                )
            if self.clock.monotonic_s() - tallied_s >= TALLY_S:
                tallied_s = self.clock.monotonic_s()
                self._tally()

    async def _licence_changed(self, leaf: Leaf) -> None:
        if isinstance(leaf, LicenceLapsed):
            self.relay.cut(Outcome.LICENCE)
        if self._kept is None:  # else the keeper records it
            self.tick.record(leaf)

    def _tally(self) -> None:
        """Put on the record what the leaves before it add up to. Nothing may be awaited while it is taken."""
        parts = tallies(
            at_ms=self._now_ms(),
            holder=self.leases.holder,
            unspent_bits=self.leases.unspent_bits(),
            leases=self.leases.open_leases(),
            answers=self.relay.open_answers(),
        )
        for part in parts:
            self.tick.record(part)

    async def _held(self) -> Holdings:
        return self.holdings()

    async def _registry(self) -> Registry:
        return self.metrics.registry

    def _refill(self, session: Session) -> None:
        self._refills.start(session)  # tick and refills know each other only through this

    def _usable(self) -> bool:
        return self.leases.usable()  # and tick and leases through this

    def _identify(self) -> Identity:
        entropy = os.urandom(ID_BYTES + SEED_BYTES)
        return Identity(
            id=entropy[:ID_BYTES].hex(),
            created_s=int(self.clock.wall_s()),
            seed=int.from_bytes(entropy[ID_BYTES:]) >> 1,
        )

    def _now_ms(self) -> int:
        return int(self.clock.wall_s() * 1000)


async def _ended(core: asyncio.Task[None]) -> None:
    """Wait for the core; what stopped it stops the process."""
    try:
        with suppress(asyncio.CancelledError):
            await core
    except* AuditFailed as group:
        raise group.exceptions[0] from None

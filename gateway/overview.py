"""All that the status page shows, as values: how things stand, and what was remembered of how they stood."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from gateway.history import History, RefusalsSeen
from gateway.metrics import Registry
from gateway.ports import Clock
from gateway.serving import Serving
from gateway.status import BudgetStanding, Standing, days_to_theft
from policy.budget import Account
from policy.limits import HISTORY_DISTANCE_S

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """A budget, and how full it was (0 to 1) since this gateway began."""

    standing: BudgetStanding
    curve: Points

    @property
    def share(self) -> float:
        """How full it is; a budget of nothing is full."""
        limit_bits = self.standing.account.limit_bits
        return self.standing.used_bits / limit_bits if limit_bits else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TheftView:
    """What a thief needs under an assumption, and for how long the caps keep it from one."""

    model: str
    assumption: str
    is_own: bool  # the policy's
    theft_bits: int
    days: float  # infinite if never


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendView:
    """The inference servers of a model, as this gateway has met them since it began."""

    model: str
    address: str
    open: int
    answers: int
    errors: tuple[tuple[str, int], ...]  # by kind


@dataclass(frozen=True, slots=True, kw_only=True)
class LogView:
    """The audit log. None: never."""

    records: int
    root: str  # of its newest checkpoint, hex; empty before the first
    signed_s: float | None
    witnessed_s: float | None
    is_to_be_witnessed: bool
    disk_free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """What this gateway holds of the ledger's."""

    open: int
    until_s: float | None  # when they end if the ledger does not answer again; None if there are none
    errors: int  # times that the ledger did not answer, since the start


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceView:
    """The operating licence, if the policy asks for one."""

    is_asked_for: bool
    is_in_force: bool
    expires_s: float | None  # of the last that was in force


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A page."""

    now_s: float
    version: str
    policy: str  # its digest
    unready: str | None  # why no requests should be sent here
    ledger_fault: str | None
    answers: int
    workers: int
    backlog: tuple[tuple[str, int], ...]  # closed answers that wait for a code
    budgets: tuple[BudgetView, ...]
    thefts: tuple[TheftView, ...]
    refusals: tuple[tuple[str, int], ...]  # since the start, by reason, the most frequent first
    last_refusals: Sequence[RefusalsSeen]
    backends: tuple[BackendView, ...]
    leases: LeaseView
    log: LogView
    licence: LicenceView


class Overviews:
    """Looks now and then, so that there is something to remember, and whenever it is asked."""

    def __init__(
        self,
        *,
        standing: Callable[[], Awaitable[Standing]],
        registry: Callable[[], Awaitable[Registry]],
        unready: Callable[[], Awaitable[str | None]],
        log_root: Callable[[], str],
        clock: Clock,
    ) -> None:
        self._standing = standing
        self._registry = registry
        self._unready = unready
        self._log_root = log_root
        self._clock = clock
        self._history = History()

    async def run(self) -> None:
        """Remember, for ever."""
        while True:
            await self.remember()
            await asyncio.sleep(HISTORY_DISTANCE_S)

    async def remember(self) -> None:
        """Look twice: a grant that comes while the ledger is asked counts as used for a moment, and is no peak."""
        first = _shares(await self._standing())
        standing = await self._standing()
        shares = _shares(standing)
        self._history.see(standing.now_s, {name: min(share, first.get(name, share)) for name, share in shares.items()})
        await self._samples(standing.now_s)

    async def now(self) -> Overview:
        """How everything stands."""
        standing = await self._standing()
        samples = await self._samples(standing.now_s)
        serving = standing.serving
        return Overview(
            now_s=standing.now_s,
            version=version("weir"),
            policy=serving.policy.digest,
            unready=await self._unready(),
            ledger_fault=standing.ledger_fault,
            answers=standing.answers,
            workers=int(samples.one("weir_workers")),
            backlog=samples.by("weir_settle_backlog_answers", "code"),
            budgets=tuple(
                BudgetView(standing=budget, curve=self._history.curve(series(budget.account)))
                for budget in sorted(standing.budgets, key=lambda budget: _place(budget.account))
            ),
            thefts=tuple(_thefts(serving)),
            refusals=samples.by("weir_refusals_total", "reason"),
            last_refusals=self._history.last_refusals,
            backends=tuple(_backend(serving, model, samples) for model in serving.policy.models),
            leases=LeaseView(
                open=int(samples.one("weir_leases_open")),
                until_s=samples.one("weir_leases_until_timestamp_seconds") or None,
                errors=int(samples.one("weir_ledger_errors_total")),
            ),
            log=LogView(
                records=int(samples.one("weir_audit_signed_records")),
                root=self._log_root(),
                signed_s=samples.one("weir_audit_checkpoint_timestamp_seconds") or None,
                witnessed_s=samples.one("weir_audit_witnessed_timestamp_seconds") or None,
                is_to_be_witnessed=serving.policy.audit.witnesses is not None,
                disk_free_bytes=int(samples.one("weir_audit_disk_free_bytes")),
            ),
            licence=_licence(serving, samples),
        )

    async def _samples(self, now_s: float) -> Samples:
        samples = Samples(await self._registry())
        self._history.refusals(now_s, dict(samples.by("weir_refusals_total", "reason")))
        return samples


class Samples:
    """What a registry holds, by the names that Prometheus shows."""

    def __init__(self, registry: Registry) -> None:
        self._all = [sample for family in registry.collect() for sample in family.samples]

    def one(self, name: str, /, **labels: str) -> float:
        """The sum of those that have these labels."""
        return sum(s.value for s in self._all if s.name == name and labels.items() <= s.labels.items())

    def by(self, name: str, label: str, /, **labels: str) -> tuple[tuple[str, int], ...]:
        """Those that are not zero, by this label, the largest first."""
        found: dict[str, int] = {}
        for sample in self._all:
            if sample.name == name and labels.items() <= sample.labels.items() and sample.value:
                found[sample.labels[label]] = found.get(sample.labels[label], 0) + int(sample.value)
        return tuple(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def series(account: Account) -> str:
    """One name for the accounts of a budget, window after window."""
    return "|".join((account.owner, account.name, account.model or "", account.window.name))


def _shares(standing: Standing) -> Mapping[str, float]:
    return {
        series(budget.account): budget.used_bits / budget.account.limit_bits
        for budget in standing.budgets
        if budget.account.limit_bits
    }


def _place(account: Account) -> tuple[bool, str, str, float]:
    """Models first, since all share them; lifetimes last of each."""
    window_s = math.inf if account.window.duration_s is None else account.window.duration_s
    return account.owner != "model", account.name, account.model or "", window_s


def _thefts(serving: Serving) -> Sequence[TheftView]:
    return [
        TheftView(
            model=claim.model,
            assumption=theft.assumption,
            is_own=theft is claim.own,
            theft_bits=theft.theft_bits,
            days=days_to_theft(theft),
        )
        for claim in serving.claims
        for theft in claim.thefts
    ]


def _backend(serving: Serving, model: str, samples: Samples) -> BackendView:
    return BackendView(
        model=model,
        address=serving.policy.models[model].upstream,
        open=int(samples.one("weir_answers_in_flight", model=model)),
        answers=int(samples.one("weir_requests_total", model=model)),
        errors=samples.by("weir_backend_errors_total", "kind", model=model),
    )


def _licence(serving: Serving, samples: Samples) -> LicenceView:
    expires_s = samples.one("weir_licence_expires_timestamp_seconds")
    return LicenceView(
        is_asked_for=serving.policy.licence is not None,
        is_in_force=samples.one("weir_licence_ok") == 1,
        expires_s=expires_s if expires_s and math.isfinite(expires_s) else None,
    )

"""Where the budgets stand: for tenants (`/v1/budget`), for operators (`/status.json`, `weir status`) and for the gauges."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.holdings import Holdings
from gateway.metrics import Metrics
from gateway.ports import AccountState, Clock, Ledger, LedgerUnavailable
from gateway.serving import Serving
from policy.budget import Account
from policy.claims import Theft
from policy.refusal import Reason, Refused
from policy.rules import Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStanding:
    """An account, and how much of it is gone."""

    account: Account
    used_bits: int  # left, or may have left
    reserved_bits: int  # for open answers
    leased_bits: int  # granted to this gateway, and neither reserved nor used
    frozen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How everything stands at a moment. Without a ledger, `budgets` is empty and `ledger_fault` says why."""

    now_s: float
    serving: Serving
    ledger_fault: str | None
    answers: int  # admitted and not ended
    budgets: tuple[BudgetStanding, ...]


class Status:
    """Reads; changes nothing but gauges."""

    def __init__(
        self,
        *,
        serving: Callable[[], Serving],
        held: Callable[[], Awaitable[Holdings]],
        ledger: Ledger,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._serving = serving
        self._held = held  # by all processes that spend grants of this ledger here
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics

    async def ledger_answers(self) -> bool:
        """Whether the store can be asked."""
        try:
            await self._ledger.states([])
        except LedgerUnavailable:
            self._metrics.ledger_errors.inc()
            return False
        return True

    async def budget(self, serving: Serving, tenant: Tenant) -> bytes | Refused:
        """The body of `/v1/budget`: the tenant's own accounts. The model's are shared, so they are not a tenant's to see."""
        now_s = self._clock.wall_s()
        accounts = serving.accounts.of_tenant(tenant.name, now_s=now_s)
        try:
            held, states = await self._held(), await self._states(accounts)
        except LedgerUnavailable:
            self._metrics.ledger_errors.inc()
            message = "The budget cannot be read right now."
            return Refused(reason=Reason.LEDGER_UNAVAILABLE, message=message, retry_after_s=5)
        data = [_public(_figures(account, held, states)) for account in accounts]
        return msgspec.json.encode({"object": "list", "tenant": tenant.name, "data": data})

    async def standing(self) -> Standing:
        """Every account. Brings the gauges up to date; without a ledger those of the budgets stay."""
        serving = self._serving()
        now_s = self._clock.wall_s()
        held = await self._held()  # before the ledger is asked: a grant between the two counts as used for a moment
        in_use = serving.accounts.all(now_s=now_s)
        fault, states = None, dict[str, AccountState]()
        try:
            states = await self._states(in_use)
            self._metrics.ledger_frozen.set(sum(state.frozen for state in states.values()))
        except LedgerUnavailable as unavailable:
            self._metrics.ledger_errors.inc()
            fault = str(unavailable)
        self._show_thefts(serving)
        accounts = []
        if fault is None:
            self._forget_budgets()  # a reload may have removed some
            for account in in_use:
                budget = _figures(account, held, states)
                self._show(budget)
                accounts.append(budget)
        return Standing(now_s=now_s, serving=serving, ledger_fault=fault, answers=held.answers, budgets=tuple(accounts))

    async def snapshot(self) -> dict[str, object]:
        """The same as JSON."""
        standing = await self.standing()
        return {
            "now": standing.now_s,
            "policy": standing.serving.policy.digest,
            "ledger_fault": standing.ledger_fault,
            "answers_in_flight": standing.answers,
            "models": [
                {
                    "name": claim.model,
                    "theft_bits": claim.theft_bits,
                    "days_to_theft": _finite(days_to_theft(claim.own)),
                }
                for claim in standing.serving.claims
            ],
            "accounts": [_private(budget) for budget in standing.budgets],
        }

    def _forget_budgets(self) -> None:
        metrics = self._metrics
        for gauge in (
            metrics.budget_limit,
            metrics.budget_window,
            metrics.budget_used,
            metrics.budget_reserved,
            metrics.budget_leased,
        ):
            gauge.clear()

    def _show(self, budget: BudgetStanding) -> None:
        account = budget.account
        labels = (account.owner, account.name, account.model or "", account.window.name)
        duration_s = account.window.duration_s
        self._metrics.budget_limit.labels(*labels).set(account.limit_bits)
        self._metrics.budget_window.labels(*labels).set(math.inf if duration_s is None else duration_s)
        self._metrics.budget_used.labels(*labels).set(budget.used_bits)
        self._metrics.budget_reserved.labels(*labels).set(budget.reserved_bits)
        self._metrics.budget_leased.labels(*labels).set(budget.leased_bits)

    def _show_thefts(self, serving: Serving) -> None:
        metrics = self._metrics
        metrics.days_to_theft.clear()
        metrics.theft_bits.clear()
        metrics.theft_assumption.clear()
        for claim in serving.claims:
            metrics.assumes(model=claim.model, assumption=claim.own.assumption)
            for theft in claim.thefts:
                metrics.days_to_theft.labels(claim.model, theft.assumption).set(days_to_theft(theft))
                metrics.theft_bits.labels(claim.model, theft.assumption).set(theft.theft_bits)

    async def _states(self, accounts: Sequence[Account]) -> dict[str, AccountState]:
        return {state.account: state for state in await self._ledger.states([account.id for account in accounts])}


def days_to_theft(theft: Theft) -> float:
    """Days until the caps add up to what this thief needs, from the caps alone and never from usage; infinite if never."""
    if not theft.is_possible or theft.days_at_caps is None:
        return math.inf
    return float(theft.days_at_caps)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _private(budget: BudgetStanding) -> dict[str, Any]:
    account = budget.account
    return {
        "id": account.id,
        "owner": account.owner,
        "name": account.name,
        "model": account.model,
        "window": account.window.name,
        "resets_at": account.expires_s,
        "limit_bits": account.limit_bits,
        "used_bits": budget.used_bits,
        "reserved_bits": budget.reserved_bits,
        "leased_bits": budget.leased_bits,
        "frozen": budget.frozen,
    }


def _public(budget: BudgetStanding) -> dict[str, Any]:
    account = budget.account
    remaining_bits = max(account.limit_bits - budget.used_bits - budget.reserved_bits, 0)
    return {
        "budget": account.id,
        "window": account.window.name,
        "limit_bits": account.limit_bits,
        "used_bits": budget.used_bits,
        "reserved_bits": budget.reserved_bits,
        "remaining_bits": remaining_bits,
        "remaining_bytes_raw": remaining_bits // 8,
        "resets_at": account.expires_s,
    }


def _figures(account: Account, held: Holdings, states: Mapping[str, AccountState]) -> BudgetStanding:
    """`used` is what left or may have left: debited, less what is held and known not to have left.

    Of a sliding window, what is held of earlier steps counts as used until it has gone back.
    """
    of_account, state = held.of(account.id), states.get(account.counted_in)
    debited_bits = state.debited_bits if state is not None else 0
    return BudgetStanding(
        account=account,
        used_bits=max(debited_bits - of_account.reserved_bits - of_account.leased_bits, 0),
        reserved_bits=of_account.reserved_bits,
        leased_bits=of_account.leased_bits,
        frozen=state is not None and state.frozen,
    )

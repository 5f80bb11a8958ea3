"""Where the budgets stand: for tenants (`/v1/budget`), for operators (`/status.json`, `weir status`) and for the gauges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.leases import Leases
from gateway.metrics import Metrics
from gateway.ports import Clock, Ledger, LedgerUnavailable
from gateway.serving import Serving
from policy.budget import Account
from policy.claims import Theft
from policy.refusal import Reason, Refused
from policy.rules import Tenant


class Status:
    """Reads; changes nothing but gauges."""

    def __init__(
        self,
        *,
        serving: Callable[[], Serving],
        leases: Leases,
        ledger: Ledger,
        clock: Clock,
        metrics: Metrics,
        in_flight: Callable[[], int],
    ) -> None:
        self._serving = serving
        self._leases = leases
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._in_flight = in_flight

    async def ledger_answers(self) -> bool:
        """Whether the store can be asked."""
        try:
            await self._ledger.states()
        except LedgerUnavailable:
            self._metrics.ledger_errors.inc()
            return False
        return True

    async def budget(self, serving: Serving, tenant: Tenant) -> bytes | Refused:
        """The body of `/v1/budget`: the tenant's own accounts. The model's are shared, so they are not a tenant's to see."""
        now_s = self._clock.wall_s()
        accounts = serving.accounts.of_tenant(tenant.name, now_s=now_s)
        try:
            debited = await self._debited()
        except LedgerUnavailable:
            self._metrics.ledger_errors.inc()
            message = "The budget cannot be read right now."
            return Refused(reason=Reason.LEDGER_UNAVAILABLE, message=message, retry_after_s=5)
        data = [_public(account, self._figures(account, debited)) for account in accounts]
        return msgspec.json.encode({"object": "list", "tenant": tenant.name, "data": data})

    async def snapshot(self) -> dict[str, object]:
        """Every account, for the operator. Brings the gauges up to date; without a ledger those of the budgets stay."""
        serving = self._serving()
        now_s = self._clock.wall_s()
        fault, debited = None, {}
        try:
            debited = await self._debited()
        except LedgerUnavailable as unavailable:
            self._metrics.ledger_errors.inc()
            fault = str(unavailable)
        accounts = []
        for account in serving.accounts.all(now_s=now_s) if fault is None else ():
            figures = self._figures(account, debited)
            labels = (account.owner, account.name, account.window.name)
            self._metrics.budget_limit.labels(*labels).set(account.limit_bits)
            self._metrics.budget_used.labels(*labels).set(figures["used_bits"])
            self._metrics.budget_reserved.labels(*labels).set(figures["reserved_bits"])
            self._metrics.budget_leased.labels(*labels).set(figures["leased_bits"])
            accounts.append(
                {"id": account.id, "owner": account.owner, "name": account.name, "window": account.window.name}
                | {"resets_at": account.expires_s, "limit_bits": account.limit_bits, **figures}
            )
        models = []
        for claim in serving.claims:
            for theft in claim.thefts:
                self._metrics.days_to_theft.labels(claim.model, theft.assumption).set(days_to_theft(theft))
            days = days_to_theft(claim.own)
            models.append(
                {
                    "name": claim.model,
                    "theft_bits": claim.theft_bits,
                    "days_to_theft": days if math.isfinite(days) else None,
                }
            )
        return {
            "now": now_s,
            "policy": serving.policy.digest,
            "ledger_fault": fault,
            "answers_in_flight": self._in_flight(),
            "models": models,
            "accounts": accounts,
        }

    async def _debited(self) -> dict[str, int]:
        return {state.account: state.debited_bits for state in await self._ledger.states()}

    def _figures(self, account: Account, debited: dict[str, int]) -> dict[str, int]:
        """`used` is what left or may have left: debited, less what this process holds and knows has not left.

        Of a sliding window, what is held of earlier steps counts as used until it has gone back.
        """
        reserved_bits = self._leases.purse.reserved_bits(account.id)
        leased_bits = self._leases.purse.balance_bits(account.id)
        return {
            "used_bits": max(debited.get(account.counted_in, 0) - reserved_bits - leased_bits, 0),
            "reserved_bits": reserved_bits,
            "leased_bits": leased_bits,
        }


def days_to_theft(theft: Theft) -> float:
    """Days until the caps add up to what this thief needs, from the caps alone and never from usage; infinite if never."""
    if not theft.is_possible or theft.days_at_caps is None:
        return math.inf
    return float(theft.days_at_caps)


def _public(account: Account, figures: dict[str, int]) -> dict[str, Any]:
    remaining_bits = max(account.limit_bits - figures["used_bits"] - figures["reserved_bits"], 0)
    return {
        "budget": account.id,
        "window": account.window.name,
        "limit_bits": account.limit_bits,
        "used_bits": figures["used_bits"],
        "reserved_bits": figures["reserved_bits"],
        "remaining_bits": remaining_bits,
        "remaining_bytes_raw": remaining_bits // 8,
        "resets_at": account.expires_s,
    }

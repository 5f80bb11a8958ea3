"""Which accounts an answer touches: the model's own budgets (the security bound) and the tenant's (fairness)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

from policy.budget import Account, Step, period_of
from policy.rules import Model, Policy, Tenant, Window


class Accounts:
    """The accounts of one policy. `theft_bits` gives W for every model, read from its weights."""

    def __init__(self, policy: Policy, *, theft_bits: Mapping[str, int]) -> None:
        self._policy = policy
        self._theft_bits = theft_bits
        self._cache: dict[tuple[str, str], tuple[tuple[Account, ...], float]] = {}

    def of(self, *, model: str, tenant: str, now_s: float) -> tuple[Account, ...]:
        """All accounts of an answer of `model` to `tenant` now; model budgets first, lifetime before windows."""
        cached = self._cache.get((model, tenant))
        if cached is not None and now_s < cached[1]:
            return cached[0]
        accounts = tuple(self._build(self._policy.models[model], self._policy.tenants[tenant], now_s))
        edges = [account.expires_s for account in accounts if account.expires_s is not None]
        # A clock that steps back must not resurrect a period: entries are only ever replaced by what `now_s` says.
        self._cache[model, tenant] = accounts, min(edges, default=float("inf"))
        return accounts

    def all(self, *, now_s: float) -> tuple[Account, ...]:
        """Every account that any request could touch now, each once."""
        found: dict[str, Account] = {}
        for tenant in self._policy.tenants.values():
            for model in tenant.models:
                for account in self.of(model=model, tenant=tenant.name, now_s=now_s):
                    found[account.id] = account
        for rules in self._policy.models.values():
            for account in self._of_model(rules, now_s):
                found[account.id] = account
        return tuple(found.values())

    def of_tenant(self, tenant: str, *, now_s: float) -> tuple[Account, ...]:
        """The tenant's own accounts, each once. The model accounts are not the tenant's to see: others share them."""
        found: dict[str, Account] = {}
        for model in sorted(self._policy.tenants[tenant].models):
            for account in self.of(model=model, tenant=tenant, now_s=now_s):
                if account.owner == "tenant":
                    found[account.id] = account
        return tuple(found.values())

    def of_model(self, model: str, *, now_s: float) -> tuple[Account, ...]:
        """The model's own accounts, in the order of its budgets."""
        return tuple(self._of_model(self._policy.models[model], now_s))

    def theft_bits(self, model: str) -> int:
        """W: the bits a thief needs, under the policy's assumed compression."""
        return self._theft_bits[model]

    def _build(self, model: Model, tenant: Tenant, now_s: float) -> Iterator[Account]:
        yield from self._of_model(model, now_s)
        if tenant.share is not None:
            for budget in model.budgets:
                limit_bits = _part(budget.limit_bits(self._theft_bits[model.name]), tenant.share)
                yield _account("tenant", tenant.name, budget.window, limit_bits, now_s, model=model.name)
        for own in tenant.budgets:
            yield _account("tenant", tenant.name, own.window, own.bits, now_s)

    def _of_model(self, model: Model, now_s: float) -> Iterator[Account]:
        for budget in model.budgets:
            limit_bits = budget.limit_bits(self._theft_bits[model.name])
            yield _account("model", model.name, budget.window, limit_bits, now_s, model=model.name)


def _part(limit_bits: int, share: Fraction) -> int:
    return limit_bits * share.numerator // share.denominator


def _account(owner: str, name: str, window: Window, limit_bits: int, now_s: float, model: str | None = None) -> Account:
    period = period_of(window, now_s=now_s)
    number, expires_s = period if period is not None else ("ever", None)
    part = f"/{model}" if owner == "tenant" and model is not None else ""
    series = f"{owner}:{name}{part}/{window.name}"
    return Account(
        id=f"{series}/{number}",
        owner=owner,
        name=name,
        model=model,
        window=window,
        limit_bits=limit_bits,
        expires_s=expires_s,
        step=Step(series=series, number=int(number), steps=window.steps) if window.sliding else None,
    )

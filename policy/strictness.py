"""Whether one policy permits no more than another: what a single signature may change.

Whatever is not known to be stricter is looser.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from policy.rules import Model, ModelBudget, Policy, Tenant, TenantBudget

_Rule = Callable[[Any, Any], bool]  # licensed, proposed: whether the second permits no more

_EMBEDDINGS = ("refuse", "binary", "int8")


def looser(licensed: Policy, proposed: Policy) -> list[str]:
    """What the proposed policy permits beyond the licensed one, each as the path of a field; empty if nothing."""
    found = list(_changed(licensed, proposed, _POLICY, ""))
    found += _members(licensed.models, proposed.models, _MODEL, "models", _model_budgets)
    found += _members(licensed.tenants, proposed.tenants, _TENANT, "tenants", _tenant_budgets)
    return sorted(found)


def _members(
    licensed: Mapping[str, Any],
    proposed: Mapping[str, Any],
    rules: Mapping[str, _Rule],
    path: str,
    budgets: Callable[[Any, Any], bool],
) -> Iterator[str]:
    """Who is left out may do nothing, so only who is there now is looked at."""
    for name, member in proposed.items():
        before = licensed.get(name)
        if before is None:
            yield f"{path}.{name}"
            continue
        yield from _changed(before, member, rules, f"{path}.{name}.")
        if not budgets(before, member):
            yield f"{path}.{name}.budgets"


def _changed(licensed: object, proposed: object, rules: Mapping[str, _Rule], path: str) -> Iterator[str]:
    for field in fields(licensed):  # type: ignore[arg-type]  # rules are dataclasses
        before, after = getattr(licensed, field.name), getattr(proposed, field.name)
        if before != after and not rules.get(field.name, _never)(before, after):
            yield f"{path}{field.name}"


def _model_budgets(licensed: Model, proposed: Model) -> bool:
    """Every licensed budget is still there, in its own spelling, and no larger. More budgets only forbid more."""
    now = {budget.window: budget for budget in proposed.budgets}
    return all(budget.window in now and _no_larger(budget, now[budget.window]) for budget in licensed.budgets)


def _no_larger(licensed: ModelBudget, proposed: ModelBudget) -> bool:
    if licensed.fraction is not None:
        return proposed.fraction is not None and proposed.fraction <= licensed.fraction
    if licensed.time_to_theft_s is not None:
        return proposed.time_to_theft_s is not None and proposed.time_to_theft_s >= licensed.time_to_theft_s
    assert licensed.bits is not None
    return proposed.bits is not None and proposed.bits <= licensed.bits


def _tenant_budgets(licensed: Tenant, proposed: Tenant) -> bool:
    now: dict[Any, TenantBudget] = {budget.window: budget for budget in proposed.budgets}
    return all(budget.window in now and now[budget.window].bits <= budget.bits for budget in licensed.budgets)


def _never(_before: object, _after: object) -> bool:
    return False


def _elsewhere(_before: object, _after: object) -> bool:
    """Looked at by itself."""
    return True


def _fewer(before: Any, after: Any) -> bool:
    return set(after) <= set(before)


def _at_most(before: Any, after: Any) -> bool:
    return bool(after <= before)


def _no_more_than(before: Any, after: Any) -> bool:
    """None sets no limit."""
    return before is None or (after is not None and after <= before)


_POLICY: Mapping[str, _Rule] = {
    "models": _elsewhere,
    "tenants": _elsewhere,
    "digest": _elsewhere,  # of all the others
    "meters": _fewer,  # meters refund; raw is always among them
    "scorer": lambda _, after: after is None,  # goes with its meter
}
_MODEL: Mapping[str, _Rule] = {
    "budgets": _elsewhere,
    "theft_compression": lambda before, after: after >= before,  # W, and every share of it, gets smaller
    "usage": lambda _, after: after == "drop",
    "tokenizer": lambda _, after: after is None,  # goes with usage
    "reasoning": lambda _, after: after == "drop",
    "embeddings": lambda before, after: _EMBEDDINGS.index(after) <= _EMBEDDINGS.index(before),
    "prefix_cache_salt": lambda _, after: after,  # tenants see less of each other
    "answer_tokens_max": _at_most,
    "answer_tokens_default": _at_most,
}
_TENANT: Mapping[str, _Rule] = {
    "budgets": _elsewhere,
    "key_digests": _fewer,
    "models": _fewer,
    "share": _no_more_than,
    "steering": lambda _, after: not after,
    "streams_max": _at_most,
}

"""One page of metrics out of many processes' registries. Pure: samples in, families out.

Counters and histograms are added up, those of processes that died included, so that no counter ever goes back. A gauge says
how things stand now, so each has a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.samples import Sample

from gateway.metrics import Registry

Key = tuple[str, tuple[tuple[str, str], ...]]  # of a sample: its name, and its labels by name
Values = Mapping[str, Mapping[Key, float]]  # of a registry: by family


def _earliest(moments: Iterable[float]) -> float:
    """Of those that have one: the keeper holds no leases, so its moment is 0."""
    return min((moment for moment in moments if moment > 0), default=0.0)


# How the gauges of workers become one. Those that are not here are the keeper's own: it alone sets them, for all.
GAUGES: Mapping[str, Callable[[Iterable[float]], float]] = {
    "weir_answers_in_flight": sum,  # each answer is one worker's
    "weir_settle_backlog_answers": sum,  # each worker has a queue of its own
    "weir_leases_open": sum,  # each worker has its own
    "weir_leases_until_timestamp_seconds": _earliest,  # of the first one that will have to stop
    "weir_config_last_reload_successful": min,  # only if all took it
    "weir_licence_ok": min,  # each looks for itself
}
KEEPERS_GAUGES = frozenset(
    {
        "weir_budget_limit_bits",  # of the accounts, which all share
        "weir_budget_window_seconds",
        "weir_budget_used_bits",  # debited, less what all workers hold
        "weir_budget_reserved_bits",  # summed before it is set, together with `used`, so that the two agree
        "weir_budget_leased_bits",
        "weir_audit_signed_records",  # the keeper writes the log
        "weir_audit_checkpoint_timestamp_seconds",
        "weir_audit_witnessed_timestamp_seconds",  # of the file, which all share
        "weir_audit_disk_free_bytes",
        "weir_ledger_frozen_accounts",  # as the ledger says
        "weir_days_to_theft",  # from the policy alone
        "weir_theft_bits",
        "weir_config_last_reload_success_timestamp_seconds",  # the keeper reads the file; a restarted worker loads nothing new
        "weir_licence_expires_timestamp_seconds",  # of the file, which all share
        "weir_workers",
    }
)


def values_of(registry: Registry) -> Values:
    """Every sample of a registry."""
    return {family.name: _values(family) for family in registry.collect()}


def lasting(own: Registry, *parts: Values) -> Values:
    """Of processes that ended, what goes on counting: their counters and histograms, added up."""
    names = [family.name for family in own.collect() if family.type in _LASTING]
    return {name: _merged([part.get(name, {}) for part in parts], sum) for name in names}


def summed(own: Registry, *, workers: Sequence[Values], ended: Values) -> Iterator[Metric]:
    """The families of `own`, the keeper's registry, with what its workers count and what those that ended have counted."""
    for family in own.collect():
        rule = sum if family.type in _LASTING else GAUGES.get(family.name)
        if rule is not None:
            parts = [_values(family), *(part.get(family.name, {}) for part in (*workers, ended))]
            family.samples = [
                Sample(name, dict(labels), value) for (name, labels), value in _merged(parts, rule).items()
            ]
        yield family


_LASTING = ("counter", "histogram")


def _values(family: Metric) -> Mapping[Key, float]:
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in family.samples}


def _merged(parts: Sequence[Mapping[Key, float]], rule: Callable[[Iterable[float]], float]) -> Mapping[Key, float]:
    keys = dict.fromkeys(key for part in parts for key in part)  # in order: a histogram's buckets stay sorted
    return {key: rule(part[key] for part in parts if key in part) for key in keys}

"""The names that Prometheus has for what we expose, and those that a query asks for."""

import re
from functools import cache
from types import SimpleNamespace

import torch
from prometheus_client.metrics_core import Metric

from gateway.metrics import Metrics
from inference.server.metrics import ServerMetrics

_SUFFIXES = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count")}


@cache
def families() -> tuple[Metric, ...]:
    """Of a gateway and of an inference server."""
    loaded = SimpleNamespace(id="m", digest_sha256="0", model=SimpleNamespace(dtype=torch.float32))
    engine = SimpleNamespace(
        waiting_requests=0,
        running_requests=0,
        batch_rows_max=1,
        kv_tokens_reserved=0,
        kv_tokens_max=1,
        prefix_tokens=0,
    )
    nothing = SimpleNamespace(all=list)
    service = SimpleNamespace(loaded=loaded, engine=engine, store=nothing, jobs=nothing, derived=nothing)
    return (*Metrics().registry.collect(), *ServerMetrics(service).registry.collect())


@cache
def exposed() -> frozenset[str]:
    """Names of samples."""
    return frozenset(family.name + suffix for family in families() for suffix in _SUFFIXES.get(family.type, ("",)))


def named(query: str) -> set[str]:
    """What a query asks for of ours, recorded series included."""
    return set(re.findall(r"weir[_:][a-z0-9_:]+", re.sub(r'"[^"]*"', '""', query)))

"""The names that Prometheus has for what we expose, and those that a query asks for."""

import re
from functools import cache

from docs.generate import gateway_metrics, inference_metrics

_SUFFIXES = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count")}


@cache
def exposed() -> frozenset[str]:
    """Names of samples, of a gateway and of a model server."""
    families = [family for family, _ in (*gateway_metrics(), *inference_metrics())]
    return frozenset(family.name + suffix for family in families for suffix in _SUFFIXES.get(family.type, ("",)))


def named(query: str) -> set[str]:
    """What a query asks for of ours, recorded series included."""
    return set(re.findall(r"weir[_:][a-z0-9_:]+", re.sub(r'"[^"]*"', '""', query)))
